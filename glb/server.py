"""`StreamServer`: gevent's, with clones.

Change the import and say how many::

    from glb.server import StreamServer

    StreamServer(("127.0.0.1", 8000), handle, clones=4).serve_forever()

Everything of `gevent.server.StreamServer` holds: constructor, attributes, subclassing,
errors. Where several accept loops would break one of its promises, the promise is kept:
hooks run in the hub and as often as before, ``max_accept`` counts connections of a wake-up
of the process, a full pool leaves connections in the kernel, and an error pauses, reports
or closes the whole server once.

Source: ``gevent.baseserver`` and ``gevent.server``.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import gevent.server
from gevent import get_hub
from gevent.hub import Hub

from .acceptor import Acceptor, State
from .address import AF_UNIX, parse
from .balance import Policy
from .clones import current_clone
from .dispatcher import Dispatcher, dispatcher_for
from .listener import Listener
from .registry import REGISTRY, Share
from .ring import Team
from .sockets import DEFAULT_BACKLOG, check_backlog
from .stats import CloneStats

__all__ = ["StreamServer"]

log: Final = logging.getLogger("glb")


class StreamServer(gevent.server.StreamServer):
    """A TCP, TLS or Unix server whose connections go round its clones in exact turn.

    Args:
        listener: An address in any form of `glb.address.parse`; a bound, listening socket;
            or a `glb.Listener`, which is then the first clone. The server closes it.
        handle: Called with the connection and the peer's address, in a handler greenlet.
        backlog: Length of the accept queue, in connections; only with an address. ``None``
            is the class attribute, by default what the kernel allows.
        spawn: As in gevent. A number or a `gevent.pool.Pool` bounds the whole server, not
            each clone.
        clones: How many, 1 or more; ``None`` is the class attribute, 4.
        reuse_port: Join the registry, so that other servers and listeners of this process
            may have the same address, all in one ring. ``None`` is the class attribute,
            ``False``: then a second server gets EADDRINUSE, as with gevent.
        handler_factory: Called with 0 to *clones* - 1 when the server first accepts; each
            returns the handler of that clone. In place of *handle*.
        policy: Which ready clone is next: ``"round_robin"``, the default, or
            ``"least_connections"``. One an address; ``None`` takes what is there.
        **ssl_args: As in gevent; any turns TLS on.

    Raises:
        TypeError, ValueError: An argument has the wrong type or shape. Nothing is left.

    Example:
        >>> server = StreamServer(("127.0.0.1", 0), lambda sock, peer: None, clones=2)
        >>> server.start()
        >>> [clone.ready for clone in server.clone_stats()]
        [True, True]
        >>> server.stop()
    """

    #: How many clones a server has that isn't told.
    clones: int = 4

    #: Whether a server that isn't told shares its address in this process.
    reuse_port: bool = False

    #: What makes each clone's handler, if anything.
    handler_factory: Callable[[int], Callable[..., object]] | None = None

    #: Length of the accept queue. gevent's 128 overflows in the first burst.
    backlog: int = DEFAULT_BACKLOG

    _policy: Policy | None = None
    _state: State = State.STOPPED
    _acceptors: Sequence[Acceptor] = ()
    _listeners: Sequence[Listener] = ()
    _handed_in: Any = None
    _dispatcher: Dispatcher | None = None

    def __init__(
        self,
        listener: Any,
        handle: Callable[..., object] | None = None,
        backlog: int | None = None,
        spawn: Any = "default",
        *,
        clones: int | None = None,
        reuse_port: bool | None = None,
        handler_factory: Callable[[int], Callable[..., object]] | None = None,
        policy: Policy | str | None = None,
        **ssl_args: Any,
    ) -> None:
        self._set_clones(clones, reuse_port, handler_factory, policy, handle)
        if backlog is not None:
            check_backlog(backlog)
        super().__init__(listener, handle, backlog, spawn, **ssl_args)

    def _set_clones(
        self,
        clones: int | None,
        reuse_port: bool | None,
        handler_factory: Callable[[int], Callable[..., object]] | None,
        policy: Policy | str | None,
        handle: object,
    ) -> None:
        # First, and without side effects: what is refused here has touched nothing.
        if clones is not None:
            self.clones = clones
        if not isinstance(self.clones, int) or isinstance(self.clones, bool):
            raise TypeError(f"clones must be a whole number, got {self.clones!r}")
        if self.clones < 1:
            raise ValueError(f"clones must be 1 or more, got {self.clones!r}")
        if reuse_port is not None:
            self.reuse_port = bool(reuse_port)
        if handler_factory is not None:
            if not callable(handler_factory):
                raise TypeError(f"handler_factory must be callable, got {handler_factory!r}")
            self.handler_factory = handler_factory
        if self.handler_factory is not None and handle is not None:
            raise TypeError(f"give handle or handler_factory, not both: got {handle!r}")
        self._policy = Policy.of(policy)
        self._team: Team[Any] = Team(seated=False)
        self._acceptors = [Acceptor(self, index) for index in range(self.clones)]
        self._in_turn = self._acceptors[0]

    # -- gevent's setters ---------------------------------------------------------------------

    def set_listener(self, listener: Any) -> None:
        if hasattr(listener, "accept"):
            super().set_listener(listener)
            self._handed_in = listener
            return
        address = parse(listener)
        self.family = address.family
        self.address = address.sockaddr
        if address.family == AF_UNIX:
            # Told from a host by its prefix, wherever an address is read again.
            self._bind_to: Any = address
        else:
            self._bind_to = None

    def set_handle(self, handle: Callable[..., object] | None) -> None:
        if handle is None and self.handler_factory is not None:
            handle = self._handle_by_clone
        super().set_handle(handle)  # type: ignore[arg-type]  # gevent takes None

    def _handle_by_clone(self, *args: Any) -> object:
        clone = current_clone()
        if clone is None or clone.server is not self:
            clone = self._in_turn.clone
        handle = self._acceptors[clone].handle
        assert handle is not None
        return handle(*args)
