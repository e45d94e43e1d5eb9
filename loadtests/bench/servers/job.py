"""What every server program does, and the words it says."""

from __future__ import annotations

import enum
import pathlib
from typing import Final

#: The reply over TCP, and the body of the one over HTTP.
REPLY: Final = b"ok\n"


def _backlog() -> int:
    # What the kernel would cut it to, so that all have the same. Long enough for any
    # concurrency here: a client that is turned away waits for a second, and measures that.
    try:
        allowed = int(pathlib.Path("/proc/sys/net/core/somaxconn").read_text())
    except OSError:
        allowed = 128
    return min(4096, allowed)


#: Length of every accept queue, in connections.
BACKLOG: Final = _backlog()


class Job(enum.Enum):
    """What a handler does with its connection."""

    REPLY = "reply"  # a small fixed reply, and close
    ORDER = "order"  # the index of the clone that serves it, and close
    IDLE = "idle"  # a small fixed reply, then wait for the client to leave
    BLOCK = "block"  # block the hub for 5 ms, a small fixed reply, and close
    STALL = "stall"  # as order; but a client from another address may block the hub for 1 s


def announce(port: int | None) -> None:
    """Tell the benchmark where to connect: the listener listens."""
    assert port is not None  # which only gevent's stubs think of
    print(port, flush=True)
