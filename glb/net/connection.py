"""Connections: cooperative sockets that cost what is used of them.

A `Connection` is a `gevent.socket.socket` for every purpose. gevent's makes two watchers,
for reading and for writing, with a system call each, and asks the kernel for the size of its
send buffer each time it sends. A short connection needs none of that. Here the first wait makes
the watcher.

Source: ``gevent._socket3.socket`` and ``gevent._socketcommon.SocketMixin``.
"""

from __future__ import annotations

import _socket
import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from gevent import get_hub
from gevent._socket3 import _closedsocket as ClosedSocket
from gevent._socketcommon import GSENDAGAIN, cancel_wait_ex
from gevent.socket import socket as GeventSocket

if TYPE_CHECKING:
    from .fd_leaks import Watermark

__all__ = [
    "Connection",
    "Kind",
    "LazySocket",
    "PlainSocket",
    "accept_plain",
    "kind_of",
    "say_goodbye",
    "wait_for_data",
]

#: gevent's own plain socket, which can be weakly referenced.
PlainSocket: Final[Any] = GeventSocket._gevent_sock_class  # type: ignore[attr-defined]  # not in the stubs

_BYTES: Final = frozenset((bytes, bytearray))  # whose length is what is sent
_READ: Final = 1
_WRITE: Final = 2

_new: Final = object.__new__

# gevent makes one for each socket, which differ by nothing but the number that `repr` shows. There
# are few kinds of sockets.
_CLOSED: Final[dict[tuple[int, int, int], Any]] = {}

#: Makes a plain socket of the number of its descriptor.
Kind = Callable[[int], Any]


def kind_of(listening: Any) -> Kind:
    """Return what makes the connections of the plain socket *listening*, for `accept_plain`."""
    return functools.partial(PlainSocket, listening.family, listening.type, listening.proto)


def accept_plain(accept: Callable[[], tuple[int, Any]], kind: Kind) -> tuple[Any, Any]:
    """Accept one connection; return its plain socket and the peer's address, in one step.

    If a signal handler raises within this function, the descriptor still has one owner: the
    returned socket has it, or it is closed. So a ``for`` makes each call: the interpreter runs no
    signal handlers between that call and the assignment.

    Args:
        accept: ``_accept`` of a plain socket, which doesn't block.
        kind: Its `kind_of`.

    Raises:
        OSError: As accept(2); ``BlockingIOError`` if no connection waits.
    """
    number, plain = -1, None
    try:
        for number, address in iter(accept, None):  # noqa: B007  # see above
            break
        for plain in map(kind, (number,)):  # noqa: B007
            break
    except BaseException:
        if number >= 0 and plain is None:
            _socket.close(number)
        raise
    return plain, address


class LazySocket(GeventSocket):
    """A cooperative socket that makes its watchers when they are first needed.

    Args:
        sock: The plain socket it takes over, which doesn't block.
    """

    __slots__ = ("_reading", "_writing")

    # gevent's slots, which the stubs leave out or have as what can't be set.
    timeout: Any
    _closed: bool
    _io_refs: int

    def __init__(self, sock: Any) -> None:
        # Not gevent's constructor, which would open a socket and make the watchers.
        self._sock = sock
        self._closed = False
        self._io_refs = 0
        self._reading: Any = None
        self._writing: Any = None
        self.hub: Any = get_hub()
        self.timeout = _socket.getdefaulttimeout()

    # gevent looks its watchers up under these two names. A closed socket has none.

    @property
    def _read_event(self) -> Any:
        if self._reading is None and self._sock:
            self._reading = self.hub.loop.io(self._sock.fileno(), _READ)
        return self._reading

    @property
    def _write_event(self) -> Any:
        if self._writing is None and self._sock:
            self._writing = self.hub.loop.io(self._sock.fileno(), _WRITE)
        return self._writing

    def shutdown(self, how: int) -> None:
        # As gevent's, which would make both watchers just to find that no greenlet waits on them.
        if how in (_socket.SHUT_RD, _socket.SHUT_RDWR):
            self.hub.cancel_wait(self._reading, cancel_wait_ex)
        if how in (_socket.SHUT_WR, _socket.SHUT_RDWR):
            self.hub.cancel_wait(self._writing, cancel_wait_ex)
        self._sock.shutdown(how)

    def _drop_events_and_close(self, closefd: bool = True, _reason: Any = cancel_wait_ex) -> None:
        # gevent's would make the watchers to drop them.
        watchers = (self._reading, self._writing)
        self._reading = self._writing = None
        if self.hub.loop is None:  # it was destroyed, and its watchers with it
            if closefd:
                self._sock.close()
            return
        drop = self._drop_ref_on_close if closefd else id
        for watcher in watchers:
            if watcher is not None and watcher.callback is not None:
                # A greenlet waits. It must get its error before the number is another socket's.
                self.hub.cancel_waits_close_and_then(watchers, _reason, drop, self._sock)
                return
        for watcher in watchers:
            if watcher is not None:
                watcher.close()
        drop(self._sock)

    def _drop_ref_on_close(self, sock: Any) -> None:
        loop = self.hub.loop
        # Without a loop its hub was destroyed.
        if loop is not None and loop.closing_fd(sock.fileno()):
            _close_later(loop, sock)
        else:
            sock.close()


class Connection(LazySocket):
    """A connection, as `gevent.socket.socket.accept` returns it. The arguments are a socket's."""

    __slots__ = ("moves", "secured")

    #: How often it was reclaimed from a hub; missing if it never was.
    moves: int
    #: The TLS socket that has taken it over, if one has.
    secured: Any

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # noqa: A002  # the standard library's name
        proto: int = -1,
        fileno: int | None = None,
    ) -> None:
        if fileno is None:
            family = _socket.AF_INET if family == -1 else family
            type = _socket.SOCK_STREAM if type == -1 else type  # noqa: A001  # as above
            proto = 0 if proto == -1 else proto
        self._sock = None  # for `repr`, if the next step fails
        sock = PlainSocket(family, type, proto, fileno)
        sock.setblocking(False)
        super().__init__(sock)

    @staticmethod
    def on(sock: Any, watermark: Watermark | None = None, server: object = None) -> Connection:
        """Return one on a plain socket, which it takes over.

        Args:
            watermark: Learns its number, as that of one of *server*'s connections.
        """
        if watermark is not None:
            number = sock.fileno()
            if number >= watermark.level:
                watermark.reached(server, number)
        # As the constructor of `LazySocket`, which is a call more.
        connection = _new(Connection)
        sock.setblocking(False)
        connection._sock = sock
        connection._closed = False
        connection._io_refs = 0
        connection._reading = connection._writing = None
        connection.hub = get_hub()
        connection.timeout = _socket.getdefaulttimeout()
        return connection

    def sendall(self, data: Any, flags: int = 0) -> None:
        # Mostly one send is enough. gevent first asks the kernel how big its buffer is.
        if type(data) in _BYTES and data and self.timeout != 0.0:
            try:
                sent = self._sock.send(data, flags)
            except OSError as error:
                if error.errno not in GSENDAGAIN:
                    raise
                sent = 0
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        super().sendall(data, flags)

    def release_plain(self) -> Any:
        """Return the plain socket, which the caller owns then. Only for an unused connection."""
        sock = self._sock
        self._sock = ClosedSocket(sock.family, sock.type, sock.proto, sock.fileno(), "given up")
        return sock

    def close(self) -> None:
        self._closed = True
        sock = self._sock
        if self._io_refs > 0 or self._reading is not None or self._writing is not None:
            super().close()
            return
        if sock:
            # As gevent's, but for the steps that are for watchers of its own.
            self._drop_ref_on_close(sock)
            self._sock = _closed_of(sock)


def _close_later(loop: Any, sock: Any) -> None:
    """Close *sock* when watchers of its descriptor that aren't its own have seen its end.

    gevent has the check alone. libev calls that after its wait for the next event, which may take
    for ever, and so the peer would see the end as late: the timer is that event.
    """
    check, timer = loop.check(), loop.timer(0.0)

    def close() -> None:
        try:
            with contextlib.suppress(OSError):
                sock.close()
        finally:
            for each in (check, timer):
                each.close()

    check.start(close)
    timer.start(int)  # which does nothing


def _closed_of(sock: Any) -> Any:
    """Return what gevent's sockets have in place of *sock* once it is closed."""
    kind = (sock.family, sock.type, sock.proto)
    try:
        return _CLOSED[kind]
    except KeyError:
        closed = _CLOSED[kind] = ClosedSocket(*kind, None, "closed")
        return closed


def say_goodbye(sock: Any) -> None:
    """Send TLS's close_notify, if *sock* is a TLS socket that can; don't wait for the peer's.

    Without it a client can't tell the end of what it was sent from a connection that was cut.
    """
    session = getattr(sock, "_sslobj", None)
    if session is not None:
        # SSLWantReadError is the rule: the peer's own has not come.
        with contextlib.suppress(OSError, ValueError):
            session.shutdown()


def wait_for_data(sock: Any) -> None:
    """Return when there is something to read on *sock*: data, its end, or an error.

    Switches:
        While waiting.
    """
    pending = getattr(sock, "pending", None)  # of TLS: what was read and deciphered already
    while pending is None or not pending():
        try:
            sock._sock.recv(1, _socket.MSG_PEEK)
        except BlockingIOError:
            sock._wait(sock._read_event)
        except OSError:
            return
        else:
            return
