"""`StreamServer`: gevent's, with clones.

Change the import and say how many::

    from glb.server import StreamServer

    StreamServer(("127.0.0.1", 8000), handle, clones=4).serve_forever()

(`DatagramServer` is gevent's, here so that its import can be changed as a whole.)

Everything of `gevent.server.StreamServer` holds: constructor, attributes, subclassing,
errors. Where several accept loops would break one of its promises, the promise is kept:
hooks run in the hub and as often as before, ``max_accept`` counts connections of a wake-up
of the process, a full pool leaves connections in the kernel, and an error pauses, reports
or closes the whole server once.

Source: ``gevent.baseserver`` and ``gevent.server``.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

import gevent
import gevent.server
from gevent import get_hub
from gevent.baseserver import BaseServer
from gevent.server import DatagramServer

from .accept.descriptor import is_adopted
from .accept.exclusions import is_excluded
from .accept.listener import Listener
from .accept.registry import REGISTRY
from .model.address import Address, parse
from .model.clone import Clone, current_clone
from .model.forwarded import TrustedProxies
from .model.limits import check_count, check_seconds
from .model.policy import Policy
from .model.proxy_header import Version
from .model.states import State
from .model.stats import DrainReport
from .net.connection import Connection, accept_plain
from .serve.accept_loop import check_hooks, default_accept_loop, refuse_to_handle
from .serve.controls import Controls
from .serve.drain import LINGER_SECONDS
from .serve.engine import Engine
from .serve.first_byte import handle_tls, wait_for_first_byte
from .serve.hooks import Handler
from .serve.options import Options
from .serve.own_read import read_handed
from .serve.proxied import handle_proxied
from .serve.spawning import check_pool

__all__ = ["DatagramServer", "StreamServer", "default_accept_loop"]

log: Final = logging.getLogger("glb")


class StreamServer(Options, Controls, gevent.server.StreamServer):
    """A TCP, TLS or Unix server whose connections go round its clones in exact turn.

    Args:
        listener: An address in any form of `glb.model.address.parse`; a bound, listening socket;
            or a `glb.Listener`, which is then the first clone. The server closes it.
        handle: Called with the connection and the peer's address, in a handler greenlet.
        backlog: Length of the accept queue, in connections; only with an address.
        spawn: As in gevent. A number or a `gevent.pool.Pool` bounds the whole server, not each
            clone. By default, and with a number, handlers run in greenlets that are used again
            (see `glb.hubs.greenlet_pool`); ``gevent.spawn`` makes a fresh one each time.
        clones: How many, 1 or more; by default 4.
        reuse_port: Join the registry, so that other servers and listeners of this process may
            have the same address, all in one ring. By default a second server gets EADDRINUSE,
            as with gevent.
        handler_factory: In place of *handle*. Called with 0 to *clones* - 1 when the server first
            accepts; each call returns the handler of that clone.
        accept_loop: Called with a `glb.Listener` and a `glb.Clone` for each clone, in a greenlet of
            its own on the clone's hub: it accepts, in place of the server. Or a method of that
            name: see `glb.serve.accept_loop`. It needs no *handle*, unless it uses
            `glb.Clone.handle`.
        policy: Which ready clone is next: ``"round_robin"``, the default, ``"least_connections"``
            or ``"first"``; see `glb.model.policy.Policy`. An address has one.
        hubs: On how many hubs the clones live, 1 or more, at most *clones*: clone *i* on hub *i*
            modulo *hubs*. Hub 0 is the one that starts the server, each other one turns in a
            native thread of its own: handlers must be thread-safe. By default 1.
        patience: How long a hub may leave a connection unhandled, in seconds, before another
            takes it: see `glb.accept.turns`. An address has one, by default 0.01.
        nodelay: Set TCP_NODELAY, so that small replies leave at once; otherwise their second
            part waits for the client's delayed acknowledgement, 40 ms on Linux. ``True`` by
            default; ``False`` changes nothing. Not for Unix sockets.
        max_connections: How many connections the server has at once, on all clones together; the
            rest waits in the accept queue. Like a number for *spawn*, with any *spawn*.
        max_connections_per_clone: The same of each clone. One that is full is passed over.
        accept_rate: How many connections it takes a second. After a time without any it may take
            a tenth of a second's worth at once.
        handshake_timeout: How long a client may take for TLS's handshake, in seconds.
        first_byte_timeout: How long a client may be silent before it says anything, in seconds.
            Its handler is called then, so this is not for protocols in which the server speaks
            first. It holds in `glb.idle` as well, and for HTTP before each request, and once more
            for its head. A silent client is closed up to a quarter later (1 s at most).
        proxy_protocol: Which header of the PROXY protocol each connection begins with: ``"v1"``,
            ``"v2"`` or ``"any"``. The handler then gets the client's address from it, and
            `glb.proxied` has all that it says. A connection without it is closed. With TLS, it
            comes before the handshake. ``None`` is none.
        proxy_allow_ips: From which addresses and networks it may come, for example
            ``["10.0.0.0/8"]``; ``"unix"`` is any Unix socket, ``"*"`` every address. By default
            this machine's: ``("127.0.0.1", "::1", "unix")``.
        **ssl_args: As in gevent; any turns TLS on.

    ``None`` is the attribute of the class (see `glb.serve.options.Options`). Limits are taken
    when the server starts; ``None`` there is no limit.

    Raises:
        TypeError, ValueError: An argument has the wrong type or shape. Nothing is left.

    Example:
        >>> server = StreamServer(("127.0.0.1", 0), lambda sock, peer: None, clones=2)
        >>> server.start()
        >>> [clone.ready for clone in server.clone_stats()]
        [True, True]
        >>> server.stop()
    """

    # gevent's, which the stubs leave out.
    _stop_event: Any
    _spawn: Any
    _handle: Any = None
    ssl_args: Any
    #: Set by ``spawn``. A program may set or delete it, as in gevent: see `glb.serve.spawning`.
    pool: Any = None

    # gevent forgets these when the server closes: a handler, so that one which was given its
    # handler can't start again; ours can. And another hub may be about to use the last one.
    _closed_handle: Handler | None = None
    _last_handle: Any = None
    # What gevent wraps connections with, for TLS.
    _gevents_wrap: Any = None
    _loop: Any = None
    # Whether a program has set `loop`: the first to set it is gevent's constructor.
    _is_loop_set: bool = False

    #: Whether a ``do_read`` of a subclass accepts, in place of ours; see there.
    accepts_by_hook: bool = False

    def __init__(
        self,
        listener: Any,
        handle: Handler | None = None,
        backlog: int | None = None,
        spawn: Any = "default",
        *,
        clones: int | None = None,
        reuse_port: bool | None = None,
        handler_factory: Callable[[int], Handler] | None = None,
        accept_loop: Callable[[Listener, Clone], object] | None = None,
        policy: Policy | str | None = None,
        hubs: int | None = None,
        patience: float | None = None,
        nodelay: bool | None = None,
        max_connections: int | None = None,
        max_connections_per_clone: int | None = None,
        accept_rate: float | None = None,
        handshake_timeout: float | None = None,
        first_byte_timeout: float | None = None,
        proxy_protocol: Version | None = None,
        proxy_allow_ips: Iterable[str] | str | None = None,
        **ssl_args: Any,
    ) -> None:
        self._take_options(
            handle,
            backlog,
            spawn,
            ssl_args,
            clones=clones,
            hubs=hubs,
            handler_factory=handler_factory,
            accept_loop=accept_loop,
            policy=policy,
            reuse_port=reuse_port,
            patience=patience,
            nodelay=nodelay,
            max_connections=max_connections,
            max_connections_per_clone=max_connections_per_clone,
            accept_rate=accept_rate,
            handshake_timeout=handshake_timeout,
            first_byte_timeout=first_byte_timeout,
            proxy_protocol=proxy_protocol,
            proxy_allow_ips=proxy_allow_ips,
        )
        super().__init__(listener, handle, backlog, spawn, **ssl_args)
        self._gevents_wrap = self.__dict__.get("wrap_socket")  # a subclass may have its own

    def _take_places(self, spawn: object, clones: int | None, hubs: int | None) -> None:
        super()._take_places(spawn, clones, hubs)
        check_pool(spawn, self.hubs)
        self.glb_engine = Engine(self, self._start_accepting_if_started)
        self.glb_engine.clones.policy = self._policy

    # -- gevent's setters ---------------------------------------------------------------------

    def set_listener(self, listener: Any) -> None:
        if hasattr(listener, "accept"):
            if isinstance(listener, Listener):
                listener.check_open()
            try:
                super().set_listener(listener)
            except AttributeError as error:
                what = f"listener must be an address or a bound socket, got {listener!r}"
                raise TypeError(what) from error
            self.glb_engine.clones.handed_in = listener
            has_own_clones = is_adopted(getattr(listener, "_sock", None))
        else:
            address = parse(listener)
            self.family, self.address = address.family, address.sockaddr
            has_own_clones = is_excluded(address)
        if has_own_clones and not self._has_places:
            self.clones = self.hubs = 1

    def set_handle(self, handle: Handler | None) -> None:
        if handle is None and self.handler_factory is not None:
            handle = self._handle_by_clone
        elif handle is None and self.accept_loop is not None and not hasattr(self, "handle"):
            handle = refuse_to_handle
        super().set_handle(handle)  # type: ignore[arg-type]  # gevent takes None

    def set_spawn(self, spawn: Any) -> None:
        engine, own = self.glb_engine, self.__dict__
        is_default = spawn == "default" and self._spawn == BaseServer._spawn  # type: ignore[attr-defined]  # not in the stubs
        spawn = engine.spawning.bound_of(spawn, self.hubs, engine.workers)
        if own.get("full") == getattr(engine.spawning.bound, "full", None):
            own.pop("full", None)  # the last pool's
        super().set_spawn(spawn)
        engine.spawning.take(spawn, self._spawn, is_default=is_default)

    def choose_handle(self) -> None:
        """Have connections handled by what is set now."""
        handle: Any = self.handle
        if self.ssl_args:
            handle = self.wrap_socket_and_handle
        elif self.first_byte_timeout is not None and self.has_streams:
            handle = self._handle_after_first_byte
        if self.proxy_protocol is not None:
            balancers = TrustedProxies(self.proxy_allow_ips)
            handle = functools.partial(self._handle_proxied, balancers, handle)
        self._handle = self._last_handle = handle

    def handle_by_clone(self) -> bool:
        """Have each clone handle with its own handler; tell whether all had a common one."""
        handle = self._find_handle()
        if self.handler_factory is not None or handle == self._handle_by_clone:
            return False
        for acceptor in self.glb_engine.clones.acceptors:
            acceptor.handle = handle
        self.handle = self._handle_by_clone
        is_found_late = self._handle != handle
        self.choose_handle()
        return not is_found_late

    def _find_handle(self) -> Any:
        # A closed server has what it had; a subclass may have a method.
        return getattr(self, "handle", None) or self._closed_handle

    def _handle_by_clone(self, *args: Any) -> object:
        # Found here and not in `do_handle`, so that gevent's hooks around a handler, TLS
        # among them, stay around this one as well.
        return self.glb_engine.clones.handler_of(current_clone())(*args)

    def wrap_socket_and_handle(self, client_socket: Any, *args: Any) -> object:
        return handle_tls(self, self._gevents_wrap, self._find_handle, client_socket, args)

    def handshake_failed(self, sock: Any, peer: Any, error: OSError) -> bool:
        """Report a TLS handshake that failed; ``False`` if gevent is to report it.

        A hook for subclasses; *sock* is closed after it.
        """
        return False

    def proxy_header_failed(self, sock: Any, peer: Any, error: Exception) -> None:
        """Tell of a connection without the header of the PROXY protocol that it must have.

        A hook for subclasses; the connection is closed after it.
        """
        log.info("%s: no header of the PROXY protocol from %r: %s", self, peer, error)

    def _handle_proxied(
        self, balancers: TrustedProxies, handle: Handler, sock: Any, *args: Any
    ) -> object:
        return handle_proxied(self, self.glb_engine.idle_here, balancers, handle, sock, args)

    def _handle_after_first_byte(self, sock: Any, *args: Any) -> object:
        wait_for_first_byte(self.glb_engine.idle_here, sock)
        return self._find_handle()(sock, *args)

    # -- opening and closing ------------------------------------------------------------------

    @classmethod
    def get_listener(
        cls, address: Any, backlog: int | None = None, family: int | None = None
    ) -> Any:
        """Return a listener on *address* that is this server's alone.

        A subclass may return any bound, listening socket. Not called with ``reuse_port``.
        """
        where = parse(address) if family is None else Address(family, address)
        length = cls.backlog if backlog is None else backlog
        return Listener(REGISTRY.open(where, length, shared=False, reuse_addr=bool(cls.reuse_addr)))

    def init_socket(self) -> None:
        """Bind, if need be, and make the clones; accept nothing yet.

        A `fork` may come between this and `start_accepting`: the clones are the child's too.
        """
        self.glb_engine.check_start()
        if "handle" not in self.__dict__ and (
            self._closed_handle is not None or not hasattr(self, "handle")
        ):
            self.set_handle(self._closed_handle)
        self.glb_engine.spawning.fit(self)
        check_hooks(self, reads=type(self).do_read is not StreamServer.do_read)
        self._check_limits()  # they may have been set since
        check_count("max_accept", self.max_accept)
        if not self.glb_engine.clones.listeners:
            self.glb_engine.clones.open()
        self.choose_handle()

    def close(self) -> None:
        """Stop accepting, and close every clone and whatever was handed in. From anywhere.

        The threads of other hubs end when the handlers there are done. A drain that is under way
        waits for them no longer.
        """
        self.glb_engine.close(self._stop_event.set)
        if "handle" in self.__dict__:
            self._closed_handle = self.handle
        if "_spawn" in self.__dict__:
            self.glb_engine.spawning.remember(self._spawn)
        # What is left of gevent's `close`, which would report the end in this thread.
        try:
            self.stop_accepting()
        finally:
            with contextlib.suppress(Exception):  # AttributeError, of one that was never open
                self.socket.close()
            for name in ("socket", "handle", "_handle", "_spawn", "full"):
                self.__dict__.pop(name, None)
            self.glb_engine.admission.forget_room()

    def stop(  # type: ignore[override]  # gevent's returns nothing
        self,
        timeout: float | None = None,
        drain: bool = False,
        *,
        spread: float = 0.0,
        linger: float = LINGER_SECONDS,
    ) -> DrainReport | None:
        """Close, and wait for the handlers, at most *timeout* seconds: then they are killed.

        As in gevent that is so with a pool or a number for ``spawn``. With several hubs it is so
        always, and their threads have ended when this returns, with all their greenlets. A thread
        that a handler blocks for longer is reported in the log, and ends later. With accept loops
        it is so always, too: they are waited for, and killed, like handlers. So ends a drain that
        is under way.

        Args:
            timeout: ``None`` is `stop_timeout`, 1.
            drain, spread, linger: Stop by `drain`, and return its report.

        Raises:
            TypeError, ValueError: *timeout* is no such number. Nothing has changed.

        Switches:
            While waiting.
        """
        timeout = self.stop_timeout if timeout is None else timeout
        check_seconds("timeout", timeout, may_be_zero=True)
        if drain:
            return self.drain(timeout, spread=spread, linger=linger)
        engine = self.glb_engine
        home = engine.workers[0]
        if len(engine.workers) > 1 or home.loops or engine.draining.is_under_way:
            engine.draining.stop(timeout)
            if self.pool is not engine.spawning.bound and self.pool:  # as gevent
                self.pool.join(timeout=timeout)
                self.pool.kill(block=True, timeout=1)
        else:
            super().stop(timeout)
        return None

    # -- accepting ----------------------------------------------------------------------------

    def start_accepting(self) -> None:
        """Let the clones have turns. Twice is once."""
        self.accepts_by_hook = type(self).do_read is not StreamServer.do_read
        hooks_are_ours = (
            self._spawn is self.glb_engine.spawning.replaced
            and not self.accepts_by_hook
            and type(self).do_handle is StreamServer.do_handle
        )
        is_first = self.glb_engine.start_accepting(hooks_are_ours=hooks_are_ours)
        if is_first and not self._is_loop_set:
            self._loop = get_hub().loop

    @property
    def loop(self) -> Any:
        """The event loop of this thread, if it is one of the server's, or of its first hub."""
        loop = self.glb_engine.workers.loop_here()
        return self._loop if loop is None else loop

    @loop.setter
    def loop(self, loop: Any) -> None:
        self._is_loop_set = self._loop is not None
        self._loop = loop

    def stop_accepting(self) -> None:
        """Take nothing more, until `start_accepting`. Clients wait in the accept queue."""
        self.glb_engine.admission.stopped_accepting()

    def _start_accepting_if_started(self, _event: object = None) -> None:
        # gevent's name; a pool's semaphore calls it when there may be room.
        if self.glb_engine.admission.state is State.FULL:
            self.glb_engine.admission.accept_again()

    @property
    def runs_in_hub(self) -> bool:
        """Whether handlers run in the hub, before the next accept: with ``None`` for ``spawn``."""
        return self._spawn is None

    def has_upgraded(self, sock: Any) -> None:
        """*sock* has no requests any more."""

    def is_long_lived(self, sock: Any) -> bool:
        """Whether *sock* has no requests, so that only ``spread`` would end it."""
        return True

    def is_fatal_error(self, ex: BaseException) -> bool:
        # gevent looks at args[0], which an OSError made without an errno doesn't have.
        return bool(ex.args) and super().is_fatal_error(ex)

    def do_read(self) -> Any:  # a subclass may return what it likes, gevent's stubs don't know
        """Accept a connection, if one waits; or take the one that another hub has accepted."""
        engine = self.glb_engine
        turn = engine.workers.turn
        if turn.handed is not None:
            return read_handed(turn, engine.admission)
        sock: Any = self.socket
        try:
            plain, address = accept_plain(sock._accept, engine.clones.kind)
        except BlockingIOError:
            if sock.timeout:
                raise
            return None
        return Connection.on(plain, engine.admission.watermark, self), address

    def do_handle(self, *args: Any) -> None:
        """Run the handler for a connection of the clone whose turn it is, as ``spawn`` says."""
        engine = self.glb_engine
        turn = engine.workers.turn
        acceptor = turn.acceptor or engine.clones.acceptor_out_of_turn  # gevent allows that
        handle = self._handle
        if handle is None:
            handle = self._last_handle
        acceptor.start(turn, engine.spawning, self._spawn, handle, self.do_close, args)
