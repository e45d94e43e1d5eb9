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

import enum
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final

from gevent import GreenletExit, getcurrent
from gevent.ssl import SSLSocket

from ..net.connection import Connection
from ..serve.idle import IdleConnections

__all__ = ["Following", "following_here"]

_followed: Final[dict[Any, Following]] = {}


def following_here() -> Following | None:
    """Return what follows the connection of this greenlet's handler, if something does."""
    return _followed.get(getcurrent())


class _Stage(enum.Enum):
    """What a handler is about to read."""

    FIRST_BYTE = enum.auto()
    #: The rest of a head, whose first bytes it has.
    HEAD = enum.auto()
    #: The rest of a head, of which the client has sent a part and then waited.
    SLOW_HEAD = enum.auto()
    #: A body, or whatever the application reads.
    OTHER = enum.auto()


class Following:
    """What one handler does. While it is entered, its handler waits for a request.

    Args:
        sock: The connection. One of another kind than glb's and gevent's own is left as it is:
            it never looks idle, and always as if a part of a reply had left.
        idle: The idle connections of its hub. If they have a timeout, it holds for the time until
            a request is there, and once more for its head.
        waits: Whether the handler begins with a request. One that enters this says so by itself;
            one of another protocol has waits of its own.
        follows_replies: Whether to know if a part of a reply has left.

    Attributes:
        limit: What else limits the time for which the handler waits.
        timeout: What is cancelled when client and application begin to speak another protocol.
    """

    __slots__ = (
        "_greenlet", "_has_sent", "_has_served", "_idle", "_is_seen", "_stage", "limit", "timeout",
    )  # fmt: skip

    def __init__(
        self, sock: Any, idle: IdleConnections | None, *, waits: bool, follows_replies: bool
    ) -> None:
        kinds = _KINDS_OF_REPLIES if follows_replies else _KINDS
        kind = kinds.get(type(sock))
        if kind is not None:
            sock.__class__ = kind
        self._is_seen: Final = kind is not None
        self._idle: Final = idle if self._is_seen else None
        self._greenlet: Any = None
        self._has_served = False
        self._has_sent = False
        self._stage = _Stage.FIRST_BYTE if waits and self._idle is not None else _Stage.OTHER
        self.limit: AbstractContextManager[Any] | None = None
        self.timeout: Any = None

    # -- the connection ------------------------------------------------------------------------

    def begin(self) -> None:
        """Follow what this greenlet does; `end` is to follow."""
        self._greenlet = getcurrent()
        _followed[self._greenlet] = self

    def end(self) -> None:
        """The handler is done."""
        greenlet, self._greenlet = self._greenlet, None  # which keeps nothing alive
        _followed.pop(greenlet, None)

    @property
    def is_timed(self) -> bool:
        """Whether the idle connections have a timeout, so that it needs no `limit`."""
        return self._idle is not None and self._idle.timeout is not None

    # -- a request -----------------------------------------------------------------------------

    def __enter__(self) -> Following:
        if self._idle is not None:
            self._stage = _Stage.FIRST_BYTE
        if self.limit is not None:
            self.limit.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if self._stage is _Stage.SLOW_HEAD and self._idle is not None:
            self._idle.leave_head()
        self._stage = _Stage.OTHER
        self._has_served = True
        limit, self.limit = self.limit, None
        return None if limit is None else limit.__exit__(kind, error, traceback)

    def receive(self, sock: Any, args: Any) -> Any:
        """Return what *sock* receives: ``b""`` if it was ended while it was idle."""
        idle, stage = self._idle, self._stage
        if stage is _Stage.OTHER or idle is None:
            return sock.receive(*args)
        if stage is not _Stage.FIRST_BYTE:
            if stage is _Stage.HEAD:
                self._stage = _Stage.SLOW_HEAD
                idle.enter_head(sock)
            return sock.receive(*args)
        self._stage = _Stage.HEAD
        is_plain = isinstance(sock, Connection) and sock.timeout is None
        if is_plain:
            # A client's first request is mostly there already. So is a busy client's next one:
            # gunicorn's code takes longer than the way there and back.
            try:
                return sock._sock.recv(*args)
            except BlockingIOError:
                pass
        idle.enter(sock, self._greenlet, has_served=self._has_served)
        try:
            if is_plain:
                sock._wait(sock._read_event)
            data = sock.receive(*args)
        except GreenletExit:
            return b""  # no request is lost; gunicorn's code would log an error
        finally:
            is_over = idle.leave(self._greenlet)
        return b"" if is_over else data

    # -- its reply -----------------------------------------------------------------------------

    def begin_reply(self, timeout: Any) -> None:
        """A request is there, and nothing was sent for it; *timeout* may cut that off."""
        self._has_sent = False
        self.timeout = timeout

    @property
    def has_sent(self) -> bool:
        """Whether a part of the reply may have left."""
        return self._has_sent or not self._is_seen

    def sends(self, data: Any) -> None:
        """*data* is about to be sent."""
        if self._has_sent:
            return
        start = bytes(memoryview(data)[:12])
        if start.startswith(b"HTTP/1.1 101"):
            if self.timeout is not None:
                self.timeout.close()
        elif start.startswith(b"HTTP/1.1 1"):
            return  # 100 Continue, or early hints: the reply is still to come
        self._has_sent = True


class _Followed:
    """A connection that a handler reads in its greenlet."""

    __slots__ = ()

    def recv(self, *args: Any) -> Any:
        following = _followed.get(getcurrent())
        if following is None or following._stage is _Stage.OTHER:
            return super().recv(*args)  # type: ignore[misc]  # a socket's
        return following.receive(self, args)

    def receive(self, *args: Any) -> Any:
        """Receive, with nothing around it."""
        return super().recv(*args)  # type: ignore[misc]  # a socket's


class _FollowedReplies(_Followed):
    """One that it also writes."""

    __slots__ = ()

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


class _Plain(_Followed, Connection):
    __slots__ = ()


class _PlainReplies(_FollowedReplies, Connection):
    __slots__ = ()


class _Tls(_Followed, SSLSocket):
    __slots__ = ()


class _TlsReplies(_FollowedReplies, SSLSocket):
    __slots__ = ()


_KINDS: Final[dict[type, type]] = {Connection: _Plain, SSLSocket: _Tls}
_KINDS_OF_REPLIES: Final[dict[type, type]] = {Connection: _PlainReplies, SSLSocket: _TlsReplies}
