"""What the kernel's accept errors mean: three kinds.

accept(2) fails for three kinds of reason, and each asks for another answer:

* the **peer left** before its connection was accepted: go on with the next one;
* we are **out of room**, and will have some again: wait, and lose no connection, because the
  accept queue keeps them;
* we are **broken**: the socket itself is not what it should be. Stop, and say why.

An errno has one kind only. One that has none is a surprise: servers report it in full and back
off, as gevent does.

A failure that lasts comes again with each try. An `Episode` says which of them is news.

This module is plain data; it waits for nothing and closes nothing.

Source: accept(2), "Error handling"; trio's and HAProxy's accept loops.
"""

from __future__ import annotations

import enum
import errno
from typing import Final

__all__ = ["AcceptErrorKind", "Episode", "classify"]


class AcceptErrorKind(enum.Enum):
    """The kind of an accept error, or `UNKNOWN`."""

    PEER_LEFT = "the peer left"
    OUT_OF_ROOM = "out of room"
    BROKEN = "broken"
    UNKNOWN = "unknown"


def _errnos(*names: str) -> frozenset[int]:
    """Return the numbers of those *names* that this platform has."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


# Linux hands errors that already wait on the *new* connection to accept(2), and asks to
# treat them like EAGAIN: they say nothing about the listener. EPERM is not among them, though
# accept(2) speaks of firewalls: a security module refuses with it before the connection has left
# the queue, which would keep a hub spinning.
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

# The process's descriptors, the system's descriptors, and memory (two errnos).
OUT_OF_ROOM_ERRNOS: Final = _errnos("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "WSAEMFILE")

# gevent's `fatal_errors`, and EOPNOTSUPP: accept(2) also lists it among the peer's errors,
# but from a socket that is not a stream it comes for ever, and would keep a hub spinning.
BROKEN_ERRNOS: Final = _errnos("EBADF", "EINVAL", "ENOTSOCK", "EOPNOTSUPP")


def classify(error: BaseException) -> AcceptErrorKind:
    """Return the kind of *error*, which an accept has raised.

    Example:
        >>> classify(OSError(errno.EMFILE, "Too many open files"))
        <AcceptErrorKind.OUT_OF_ROOM: 'out of room'>
        >>> classify(ValueError("not from the kernel"))
        <AcceptErrorKind.UNKNOWN: 'unknown'>
    """
    if isinstance(error, OSError):
        if error.errno in OUT_OF_ROOM_ERRNOS:
            return AcceptErrorKind.OUT_OF_ROOM
        if error.errno in PEER_LEFT_ERRNOS:
            return AcceptErrorKind.PEER_LEFT
        if error.errno in BROKEN_ERRNOS:
            return AcceptErrorKind.BROKEN
    return AcceptErrorKind.UNKNOWN


# After so long without a failure the next one is news. Longer than the longest pause, 1 s.
EPISODE_GAP_SECONDS: Final = 1.0


class Episode:
    """A time in which accepts fail again and again: one report is enough for it.

    It ends when nothing has failed for longer than the pauses were, and not with an accept that
    succeeds, since the next one often fails again. Used in one thread at a time.
    """

    def __init__(self) -> None:
        # On `time.monotonic`'s clock.
        self._until = 0.0
        self._known: set[object] = set()

    def is_news(self, error: BaseException, delay: float, now: float) -> bool:
        """Note *error*; return True if it is the first of its kind in this episode.

        A lack of room is one kind, and so are all peers that left. Of the rest each type and
        errno is its own. An exception that ends a greenlet or a program, such as
        `KeyboardInterrupt`, is always news.

        Args:
            delay: How long the pause is that follows, in seconds; negative is none.
            now: By `time.monotonic`.
        """
        if not isinstance(error, Exception):
            return True
        if now > self._until:
            self._known.clear()
        self._until = now + 2 * max(delay, 0) + EPISODE_GAP_SECONDS
        kind: object = classify(error)
        if kind is AcceptErrorKind.UNKNOWN:
            kind = (type(error), getattr(error, "errno", None))
        is_news = kind not in self._known
        self._known.add(kind)
        return is_news


def listener_closed(address: object) -> OSError:
    """Return what using a closed listener on *address* raises."""
    return OSError(errno.EBADF, f"the listener on {address!r} is closed")


def listener_shut_down(address: object) -> OSError:
    """Return what accept(2) says of a listener that was shut down."""
    return OSError(errno.EINVAL, f"the listener on {address!r} was shut down")


def address_in_use(address: object) -> OSError:
    """Return what bind(2) says of an *address* that is taken."""
    return OSError(errno.EADDRINUSE, f"{address!r} is in use in this process")
