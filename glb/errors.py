"""What the kernel's accept errors mean, in three heaps.

accept(2) fails for three kinds of reason, and each asks for another answer:

* the **peer left** before anybody took its connection: go on with the next one;
* we are **out of room**, and will have some again: wait, and lose nobody, because
  the accept queue keeps who is waiting;
* we are **broken**: the socket itself is not what it should be. Stop, and say why.

An errno stands in one heap only. One that stands in none is a surprise: servers
report it in full and back off, as gevent does.

This module is plain data; it waits for nothing and closes nothing.

Source: accept(2), "Error handling"; trio's and HAProxy's accept loops.
"""

from __future__ import annotations

import enum
import errno
from typing import Final

__all__ = ["Heap", "classify"]


class Heap(enum.Enum):
    """Which of the three heaps an accept error lies in, or `UNKNOWN`."""

    PEER_LEFT = "the peer left"
    OUT_OF_ROOM = "out of room"
    BROKEN = "broken"
    UNKNOWN = "unknown"


def _errnos(*names: str) -> frozenset[int]:
    """Return the numbers of those *names* that this platform has."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


# Linux hands errors that already wait on the *new* connection to accept(2), and asks to
# treat them like EAGAIN: they say nothing about the listener. EPERM is not among them,
# though accept(2) speaks of firewalls: a security module that says it refuses before the
# connection has left the queue, and would keep a hub spinning.
PEER_LEFT_ERRNOS: Final = _errnos(
    "ECONNABORTED",
    "ECONNRESET",  # Windows' word for ECONNABORTED here
    "EHOSTDOWN",
    "EHOSTUNREACH",
    "EINTR",
    "ENETDOWN",
    "ENETUNREACH",
    "ENONET",
    "ENOPROTOOPT",
    "EPROTO",
    "ETIMEDOUT",
)

# The process's descriptors, the system's descriptors, and two words for memory.
OUT_OF_ROOM_ERRNOS: Final = _errnos("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "WSAEMFILE")

# gevent's `fatal_errors`, and EOPNOTSUPP: accept(2) also lists it among the peer's errors,
# but from a socket that is not a stream it comes for ever, and would keep a hub spinning.
BROKEN_ERRNOS: Final = _errnos("EBADF", "EINVAL", "ENOTSOCK", "EOPNOTSUPP")


def classify(error: BaseException) -> Heap:
    """Return the heap that *error*, raised by an accept, lies in.

    Example:
        >>> classify(OSError(errno.EMFILE, "Too many open files"))
        <Heap.OUT_OF_ROOM: 'out of room'>
        >>> classify(ValueError("not from the kernel"))
        <Heap.UNKNOWN: 'unknown'>
    """
    if isinstance(error, OSError):
        if error.errno in OUT_OF_ROOM_ERRNOS:
            return Heap.OUT_OF_ROOM
        if error.errno in PEER_LEFT_ERRNOS:
            return Heap.PEER_LEFT
        if error.errno in BROKEN_ERRNOS:
            return Heap.BROKEN
    return Heap.UNKNOWN


def listener_closed(address: object) -> OSError:
    """Return what using a closed listener on *address* raises."""
    return OSError(errno.EBADF, f"the listener on {address!r} is closed")


def listener_shut_down(address: object) -> OSError:
    """Return what accept(2) says of a listener that was shut down."""
    return OSError(errno.EINVAL, f"the listener on {address!r} was shut down")


def address_in_use(address: object) -> OSError:
    """Return what bind(2) says of an *address* that is taken."""
    return OSError(errno.EADDRINUSE, f"{address!r} is in use in this process")
