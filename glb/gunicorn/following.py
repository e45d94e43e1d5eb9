"""Following: where the requests of a connection are, which gunicorn's code serves.

That code has its own loop over the requests of a connection. A server that drains must know which
connections wait for a request, and a request that takes too long may have been answered in part
already. Both are seen from below: gunicorn reads by ``recv`` and writes by ``send``.

``_followed`` is of the process: what each handler's greenlet does, while it does it.

A connection is idle from the moment its handler wants a request until the first byte of one is
there. One case is missed: half of a request that came in one piece with the request before it, and
whose rest doesn't come, looks idle. A client that sends ahead must be ready to send again
(RFC 9112, 9.3.2).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final

from gevent import getcurrent
from gevent.ssl import SSLSocket

from ..net.connection import Connection
from ..serve.idle import IdleConnections

__all__ = ["Following", "Waiting", "following_here"]

_followed: Final[dict[Any, Following]] = {}


def following_here() -> Following | None:
    """Return what follows the connection of this greenlet's handler, if something does."""
    return _followed.get(getcurrent())


class Following:
    """What one handler does. In this block its connection is followed; in the handler's greenlet.

    Args:
        sock: The connection. One of another kind than glb's and gevent's own is left as it is:
            it never looks idle, and always as if a part of a reply had left.
        idle: The idle connections of its hub.

    Attributes:
        has_sent: Whether a part of a reply has left, since that was last set to ``False``.
        timeout: What is cancelled when the client and the application speak another protocol.
    """

    __slots__ = ("_greenlet", "_has_served", "_idle", "_is_seen", "_wants_request", "has_sent", "timeout")

    def __init__(self, sock: Any, idle: IdleConnections | None) -> None:
        if type(sock) is Connection:
            sock.__class__ = _FollowedConnection
        elif type(sock) is SSLSocket:
            sock.__class__ = _FollowedTls
        self._is_seen: Final = isinstance(sock, _Followed)
        self._idle: Final = idle if self._is_seen else None
        self._greenlet: Any = None
        self._has_served = False
        self._wants_request = True
        self.has_sent = False
        self.timeout: Any = None
        self.begin_request()

    def __enter__(self) -> Following:
        self._greenlet = getcurrent()
        _followed[self._greenlet] = self
        return self

    def __exit__(self, *_: object) -> None:
        _followed.pop(self._greenlet, None)
        self._greenlet = None  # a recycled greenlet keeps nothing alive

    def begin_request(self) -> None:
        """A request's time begins: nothing was sent for it."""
        self.has_sent = not self._is_seen

    def wants_request(self, *, wants: bool) -> None:
        """The handler waits for a request from now on, or has it."""
        self._wants_request = wants and self._idle is not None
        if not wants:
            self._has_served = True

    def receive(self, sock: Any, args: Any) -> Any:
        """Return what *sock* receives: ``b""`` if it was ended while it was idle."""
        idle = self._idle
        if not self._wants_request or idle is None:
            return super(_Followed, sock).recv(*args)
        self._wants_request = False
        greenlet = self._greenlet
        idle.enter(sock, greenlet, has_served=self._has_served)
        try:
            if self._has_served and type(sock) is _FollowedConnection and sock.timeout is None:
                sock._wait(sock._read_event)  # mostly there is nothing yet: spare the first look
            data = super(_Followed, sock).recv(*args)
        finally:
            is_over = idle.leave(greenlet)
        return b"" if is_over else data

    def sends(self, data: Any) -> None:
        """*data* is about to be sent."""
        if self.has_sent:
            return
        start = bytes(memoryview(data)[:12])
        if start.startswith(b"HTTP/1.1 101") and self.timeout is not None:
            self.timeout.cancel()
        elif start.startswith(b"HTTP/1.1 1"):
            return  # 100 Continue, or early hints: the reply is still to come
        self.has_sent = True


class Waiting:
    """In this block the handler of *following* waits for a request, for as long as *limit* does."""

    __slots__ = ("_following", "_limit")

    def __init__(self, following: Following, limit: AbstractContextManager[Any]) -> None:
        self._following: Final = following
        self._limit: Final = limit

    def __enter__(self) -> object:
        self._following.wants_request(wants=True)
        return self._limit.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._following.wants_request(wants=False)
        return self._limit.__exit__(kind, error, traceback)


class _Followed:
    """A connection that a handler reads, and writes, in its greenlet."""

    __slots__ = ()

    def recv(self, *args: Any) -> Any:
        following = _followed.get(getcurrent())
        if following is None:
            return super().recv(*args)  # type: ignore[misc]  # a socket's
        return following.receive(self, args)

    def send(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        following = _followed.get(getcurrent())
        if following is not None:
            following.sends(data)
        return super().send(data, *args, **kwargs)  # type: ignore[misc]  # a socket's

    def sendall(self, data: Any, *args: Any) -> Any:
        following = _followed.get(getcurrent())
        if following is not None:
            following.sends(data)
        return super().sendall(data, *args)  # type: ignore[misc]  # a socket's


class _FollowedConnection(_Followed, Connection):
    __slots__ = ()


class _FollowedTls(_Followed, SSLSocket):
    __slots__ = ()
