"""What every program does: the words it says, and how it ends."""

from __future__ import annotations

import ctypes
import enum
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

#: The reply over TCP, and the body of the one over HTTP.
REPLY: Final = b"ok\n"

#: How long each handler blocks its hub whose job that is: as long as a query of a database does.
BLOCK_MICROSECONDS: Final = 5_000

#: How long the one handler blocks that has to.
STALL_MICROSECONDS: Final = 1_000_000

#: Where a client connects from that gives orders. All of 127/8 is loopback, and so the
#: handlers of all other clients have nothing to read: what a hub has begun, it can't give back.
ORDERS_COME_FROM: Final = "127.0.0.2"

#: In place of a hub: whichever it is.
ANY_HUB: Final = -1

#: Length of every accept queue, in connections; the kernel may cut it, and does so for all alike.
#: Long enough for any concurrency here: a client that is turned away waits for a second, and
#: measures that.
BACKLOG: Final = 4096

#: Its functions let go of the interpreter: a hub is blocked, and other threads run.
LIBC: Final = ctypes.CDLL(None)

# prctl(2): strace may attach where Yama forbids it.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_PTRACER: Final = 0x59616D61
_PR_SET_PTRACER_ANY: Final = ctypes.c_ulong(-1)


class Job(enum.Enum):
    """What a handler does with its connection."""

    REPLY = "reply"  # a small fixed reply, and close
    ORDER = "order"  # the index of the clone that serves it, and close
    IDLE = "idle"  # a small fixed reply, then wait for the client to leave
    BLOCK = "block"  # block the hub for 5 ms, a small fixed reply, and close
    STALL = "stall"  # as order; but an order from another address may block its hub for 1 s


def end_with_parent() -> None:
    """Have this process end with the benchmark; and traced, if that wants to."""
    LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    LIBC.prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY)


def announce(port: object) -> None:
    """Tell the benchmark where to connect: the listener listens."""
    print(port, flush=True)


def run(first: Any, *others: Any) -> None:
    """Run servers of gevent's kind, and announce the first."""
    for server in (first, *others):
        server.start()
    announce(first.server_port)
    first.serve_forever()


def take_orders(work: Callable[..., Any]) -> None:
    """Be a client: print what *work* returns for the words of each line of input."""
    announce(0)
    for line in sys.stdin:
        print(work(*line.split()), flush=True)
