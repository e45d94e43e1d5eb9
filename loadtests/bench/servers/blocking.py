"""Handlers that block their hub, in a call into C during which other threads run."""

from __future__ import annotations

import ctypes
import time
from typing import Any, Final

#: How long each handler blocks whose job that is: as long as a query of a database does.
BLOCK_MICROSECONDS: Final = 5_000

#: How long the one handler blocks that has to.
STALL_MICROSECONDS: Final = 1_000_000

#: Where a client connects from that gives orders. All of 127/8 is loopback, and so the
#: handlers for everybody else have nothing to read: what a hub has begun, it can't give back.
ORDERS_COME_FROM: Final = "127.0.0.2"

#: In place of a hub: whichever it is.
ANY_HUB: Final = -1


def _usleep() -> Any:
    usleep = ctypes.CDLL(None).usleep  # a CDLL's functions let go of the interpreter
    usleep.argtypes = [ctypes.c_uint]
    return usleep


usleep: Final = _usleep()


def obey(sock: Any, hub: int) -> None:
    """Block *hub*, which this is, if it is the one that is asked for; tell when that was."""
    wanted = int(sock.recv(16))
    if wanted not in (hub, ANY_HUB):
        sock.sendall(b"no\n")
        return
    began = time.monotonic_ns()
    usleep(STALL_MICROSECONDS)
    sock.sendall(b"%d %d %d\n" % (hub, began, time.monotonic_ns()))
