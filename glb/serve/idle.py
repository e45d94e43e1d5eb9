"""Idle connections: those whose handlers wait for their client to say something.

A handler between two requests does nothing that would be lost, so such a connection may be
closed when its server drains, or when the client has been silent for too long. It is closed
**by its reading side**: the handler reads what the client has sent until then, and after that
the end of the stream, as if the client had left. So a request that is on its way is served or
has not begun, and nothing is raised in the middle of it.

`IdleConnections` belongs to one hub, and only its thread may touch it.

Source: shutdown(2); nginx and HAProxy close idle connections on a soft stop, too.
"""

from __future__ import annotations

import _socket
import contextlib
import functools
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final
from weakref import WeakSet

from gevent import getcurrent

from ..hubs.threads import call_where_it_may_switch
from ..model.clone import current_clone
from ..originals import monotonic
from .sweep import Sweep

__all__ = ["IdleConnections", "idle"]

log: Final = logging.getLogger("glb")

_DONTWAIT: Final[int] = getattr(_socket, "MSG_DONTWAIT", 0)  # Windows has none


# One connection that waits: the socket; since when, on `time.monotonic`'s clock, or 0 without a
# timeout when it isn't for the first request; and whether its handler has served a request before,
# ``None`` if it has not even begun. The client of one that has not has no reason to think that it
# might be closed. (A tuple, as one is made for each request.)
Wait = tuple[Any, float, bool | None]

_Late = tuple[object, Wait]


class IdleConnections(Sweep[_Late]):
    """The connections of one server that wait on one hub, by the greenlets of their handlers.

    Args:
        hub: This thread's.
        timeout: How long a client may be silent, in seconds; ``None`` is for ever.
        timeouts: Counts those that were closed since the client was silent for too long, by what
            was waited for: ``"first_byte"``, ``"head"``, or ``"idle"`` for another request.
    """

    def __init__(
        self, hub: Any, timeout: float | None = None, timeouts: Counter[str] | None = None
    ) -> None:
        super().__init__(hub)
        self.timeout = timeout
        self.timeouts: Final = Counter() if timeouts is None else timeouts
        #: Called with each greenlet that begins to wait, while a clone is replaced.
        self.watchers: list[Callable[[object], object]] = []
        #: The connections that were in `idle` before.
        self.served: WeakSet[Any] = WeakSet()
        #: Those whose reading was ended, and that may not have noticed yet.
        self.ended: set[object] = set()
        # Both oldest first.
        #: What is waited for, by the greenlet of the handler.
        self.waits: dict[object, Wait] = {}
        self._heads: dict[object, Wait] = {}

    def __len__(self) -> int:
        return len(self.waits)

    def has_served(self, sock: Any) -> bool:
        """Whether *sock* was in `idle` before; also if it is of a kind that can't be remembered."""
        try:
            return sock in self.served
        except TypeError:
            return True

    def get(self, greenlet: object) -> Wait | None:
        """Return for what *greenlet* waits, if it does."""
        return self.waits.get(greenlet)

    def enter(self, sock: Any, greenlet: object, *, has_served: bool | None) -> None:
        """The handler in *greenlet*, which is this one, waits for *sock*'s client."""
        timeout = self.timeout
        if timeout is None and has_served:
            self.waits[greenlet] = (sock, 0.0, has_served)
        else:
            self.waits[greenlet] = (sock, monotonic(), has_served)
            if timeout is not None and self._timer is None:
                self._start(timeout)
        if self.watchers:
            for watcher in [*self.watchers]:
                watcher(greenlet)

    def leave(self, greenlet: object) -> bool:
        """The handler waits no more; return whether its reading was ended."""
        self.waits.pop(greenlet, None)
        if self.ended and greenlet in self.ended:
            self.ended.discard(greenlet)
            return True
        return False

    def enter_head(self, sock: Any) -> None:
        """A client has begun a request, and is to go on with it. Only a timeout ends that."""
        if self.timeout is not None:
            self._heads[getcurrent()] = (sock, monotonic(), True)
            # Its first bytes may have been there at once, so that it never waited for them.
            if self._timer is None:
                self._start(self.timeout)

    def leave_head(self) -> bool:
        """The head of the request is there, or never will be; tell whether time was up before."""
        return self._heads.pop(getcurrent(), None) is None

    def tell(self, greenlet: object) -> bool:
        """End a wait, unless the client has just said something; tell whether it was ended."""
        wait = self.waits.get(greenlet)
        if wait is None or greenlet in self.ended:
            return False
        if not close_reading(wait[0]):
            return False
        self.ended.add(greenlet)
        return True

    # -- silent clients ------------------------------------------------------------------------

    def _is_idle(self) -> bool:
        return not self.waits and not self._heads

    def _find_late(self, timeout: float) -> Iterator[_Late]:
        limit = monotonic() - timeout
        return iter([*_older(self.waits, limit), *_older(self._heads, limit)])

    def _end(self, late: _Late) -> None:
        greenlet, wait = late
        if self.waits.get(greenlet) is wait:
            if self.tell(greenlet):
                self.timeouts["idle" if wait[2] else "first_byte"] += 1
        elif self._heads.get(greenlet) is wait:
            del self._heads[greenlet]
            end_reading(wait[0])
            self.timeouts["head"] += 1


def _older(waits: dict[object, Wait], limit: float) -> Iterator[_Late]:
    return itertools.takewhile(lambda each: each[1][1] <= limit, waits.items())


def close_reading(sock: Any) -> bool:
    """Have *sock*'s reader meet its end, unless there is something to read; tell which.

    What is no socket, but something of the program's own, is left to itself, and the log says so.
    """
    try:
        return _close_reading(sock)
    except Exception as error:
        call_where_it_may_switch(
            functools.partial(log.error, "can't end the connection %r", sock, exc_info=error)
        )
        return False


def _close_reading(sock: Any) -> bool:
    plain = getattr(sock, "_sock", sock)
    try:
        pending = getattr(sock, "pending", None)  # of TLS: what was read and deciphered already
        if pending is not None and pending():
            return False
        plain.recv(1, _socket.MSG_PEEK | _DONTWAIT)
    except BlockingIOError:
        end_reading(sock)
        return True
    except (OSError, ValueError):
        pass  # it is closed, or its client has gone: the reader meets that, too
    return False


def end_reading(sock: Any) -> None:
    """Have *sock*'s reader meet its end. What it writes is sent still, and TLS's goodbye."""
    session = getattr(sock, "_sslobj", None)
    if session is not None and not has_ended(sock):
        # TLS that meets the kernel's end of the stream can't say goodbye any more.
        sock._sslobj = _EndedSession(session)
    # The kernel's alone: gevent's would raise in the reader that the descriptor was bad.
    with contextlib.suppress(OSError):
        getattr(sock, "_sock", sock).shutdown(_socket.SHUT_RD)


def has_ended(sock: Any) -> bool:
    """Whether *sock* speaks TLS, and its reading was ended."""
    return isinstance(getattr(sock, "_sslobj", None), _EndedSession)


class _EndedSession:
    """TLS's session of a connection whose reader is to meet the end."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def read(self, _length: int = 0, buffer: Any = None) -> Any:
        return b"" if buffer is None else 0

    def pending(self) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def connection_of(args: Any) -> Any:
    """Return the connection of a handler's *args*, or the TLS socket that has taken it over."""
    sock = args[0]
    try:
        return getattr(sock, "secured", sock)
    except OSError:  # its handler has closed it
        return sock


@contextlib.contextmanager
def idle() -> Iterator[None]:
    """Say that the running handler waits for its client, and that nothing is lost if it ends.

    For handlers that serve many requests on a connection. While one is in such a block, a
    server that drains may end the connection: the handler reads the end of the stream, as if
    the client had left. `glb.pywsgi.WSGIServer` does so by itself. Outside of a handler, and in
    greenlets that a handler spawned, it does nothing.

    Example:
        >>> def handle(sock, address):
        ...     while True:
        ...         with idle():
        ...             request = sock.recv(1000)
        ...         if not request:
        ...             return
        ...         sock.sendall(request.upper())

    Switches:
        Never.
    """
    clone = current_clone()
    worker = None if clone is None else clone.server.glb_engine.workers.here
    connections = None if worker is None else worker.idle
    greenlet = getcurrent()
    args = None if worker is None else worker.args_of(greenlet)
    if connections is None or args is None or connections.get(greenlet) is not None:
        yield  # or it is within another such block
        return
    sock = connection_of(args)
    connections.enter(sock, greenlet, has_served=connections.has_served(sock))
    try:
        yield
    finally:
        connections.leave(greenlet)
        del greenlet  # or an error's traceback keeps it, and it keeps the error
        with contextlib.suppress(TypeError):  # see `IdleConnections.has_served`
            connections.served.add(sock)
