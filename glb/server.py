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
from .model.clone import current_clone
from .model.forwarded import TrustedProxies
from .model.limits import check_count, check_seconds
from .model.policy import Policy
from .model.proxy_header import Version
from .model.states import State, of_server
from .model.stats import CloneStats, DrainReport, RollReport
from .serve.acceptor import read, read_handed
from .serve.drain import LINGER_SECONDS
from .serve.drain_worker import DrainPlan
from .serve.engine import Engine
from .serve.first_byte import handle_tls, wait_for_first_byte
from .serve.hooks import Handler
from .serve.options import Options
from .serve.proxied import handle_proxied
from .serve.spawning import check_pool

__all__ = ["DatagramServer", "StreamServer"]

log: Final = logging.getLogger("glb")


class StreamServer(Options, gevent.server.StreamServer):
    """A TCP, TLS or Unix server whose connections go round its clones in exact turn.

    Args:
        listener: An address in any form of `glb.model.address.parse`; a bound, listening socket;
            or a `glb.Listener`, which is then the first clone. The server closes it.
        handle: Called with the connection and the peer's address, in a handler greenlet.
        backlog: Length of the accept queue, in connections; only with an address. ``None``
            is the class attribute, by default what the kernel allows.
        spawn: As in gevent. A number or a `gevent.pool.Pool` bounds the whole server, not
            each clone. By default, and with a number, handlers run in greenlets that are
            used again (see `glb.hubs.greenlet_pool`); ``gevent.spawn`` makes a fresh one each time.
        clones: How many, 1 or more; ``None`` is the class attribute, 4.
        reuse_port: Join the registry, so that other servers and listeners of this process
            may have the same address, all in one ring. ``None`` is the class attribute,
            ``False``: then a second server gets EADDRINUSE, as with gevent.
        handler_factory: Called with 0 to *clones* - 1 when the server first accepts; each
            returns the handler of that clone. In place of *handle*.
        policy: Which ready clone is next: ``"round_robin"``, the default,
            ``"least_connections"`` or ``"first"``; see `glb.model.policy.Policy`. One an address;
            ``None`` takes what is there.
        hubs: On how many hubs the clones live, 1 or more: clone *i* on hub *i* modulo *hubs*.
            Hub 0 is the one that starts the server, each other one turns in a native thread
            of its own. Handlers then run in several threads at once and must be thread-safe.
            ``None`` is the class attribute, 1. There are at least as many clones as hubs.
        patience: How long a hub may let a connection lie, in seconds, before it is another
            hub's: see `glb.accept.turns`. One an address; ``None`` is the class attribute, which
            has no wish either: then it is 0.01.
        nodelay: Set TCP_NODELAY on the listening socket, which connections inherit, so that
            small replies leave at once: otherwise the second part of one waits for the
            client's delayed acknowledgement, 40 ms on Linux. ``None`` is the class
            attribute, ``True``; ``False`` leaves it as it is. Not for Unix sockets.
        max_connections: How many connections the server has at once, on all clones together; the
            rest waits in the accept queue. Unlike a number for *spawn*, which is the same to its
            clients, it leaves the choice of *spawn*.
        max_connections_per_clone: The same of each clone. One that is full is passed over.
        accept_rate: How many connections it takes a second. After a time without it may take a
            tenth of a second's worth at once.
        handshake_timeout: How long a client may take for TLS's handshake, in seconds.
        first_byte_timeout: How long a client may be silent before it says anything, in seconds;
            its handler is called then, so this is not for protocols in which the server speaks
            first. In `glb.idle` it holds as well; and for HTTP before each request, and once more
            for its head. Who is silent for longer is closed, up to a quarter later (1 s at most).
        proxy_protocol: Which header of the PROXY protocol each connection begins with: ``"v1"``,
            ``"v2"`` or ``"any"``. The handler then gets the client's address from it, and
            `glb.proxied` has all that it says. A connection without it is closed. With TLS, it
            comes before the handshake. ``None`` is none.
        proxy_allow_ips: From which addresses and networks it may come, for example
            ``["10.0.0.0/8"]``; ``"unix"`` is any Unix socket, ``"*"`` every address. By default
            this machine's: ``("127.0.0.1", "::1", "unix")``.
        **ssl_args: As in gevent; any turns TLS on.

    Each limit is ``None`` by default, as is its class attribute: there is none. They are taken
    when it starts.

    Raises:
        TypeError, ValueError: An argument has the wrong type or shape. Nothing is left.

    Example:
        >>> server = StreamServer(("127.0.0.1", 0), lambda sock, peer: None, clones=2)
        >>> server.start()
        >>> [clone.ready for clone in server.clone_stats()]
        [True, True]
        >>> server.stop()
    """

    #: What stands behind it. It is ours, and changes with our versions.
    glb_engine: Engine

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
            clones=clones,
            hubs=hubs,
            handler_factory=handler_factory,
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
            try:
                super().set_listener(listener)
            except AttributeError as error:
                raise TypeError(
                    f"listener must be an address or a bound socket, got {listener!r}"
                ) from error
            self.glb_engine.clones.handed_in = listener
            if is_adopted(getattr(listener, "_sock", None)):
                self._keep_to_one_clone()  # the program has clones of its own
        else:
            address = parse(listener)
            self.family = address.family
            self.address = address.sockaddr
            if is_excluded(address):
                self._keep_to_one_clone()

    def _keep_to_one_clone(self) -> None:
        if not self._has_places:
            self.clones = self.hubs = 1

    def set_handle(self, handle: Handler | None) -> None:
        if handle is None and self.handler_factory is not None:
            handle = self._handle_by_clone
        super().set_handle(handle)  # type: ignore[arg-type]  # gevent takes None

    def set_spawn(self, spawn: Any) -> None:
        engine, own = self.glb_engine, self.__dict__
        is_default = spawn == "default" and self._spawn == BaseServer._spawn  # type: ignore[attr-defined]  # not in the stubs
        spawn = engine.spawning.bound_of(spawn, self.hubs, engine.workers)
        if own.get("full") == getattr(engine.spawning.bound, "full", None):
            own.pop("full", None)  # the last pool's
        super().set_spawn(spawn)
        engine.spawning.take(spawn, self._spawn, is_default=is_default)

    def _fit_spawn(self) -> None:
        # To the number of hubs, and to what it was when the server was closed.
        spawning, own = self.glb_engine.spawning, self.__dict__
        spawn, is_new = spawning.to_set_again(self.hubs, is_forgotten="_spawn" not in own)
        if not is_new:
            return
        # What a program has set since, as gevent lets it, stays.
        bound, pool, full = spawning.bound, self.pool, own.get("full")
        self.set_spawn(spawn)
        if pool is not bound:
            self.pool = pool
        if full is not None and full != getattr(bound, "full", None):
            own["full"] = full

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
        handle = self._current_handle
        if self.handler_factory is not None or handle == self._handle_by_clone:
            return False
        for acceptor in self.glb_engine.clones.acceptors:
            acceptor.handle = handle
        self.handle = self._handle_by_clone
        is_found_late = self._handle != handle
        self.choose_handle()
        return not is_found_late

    @property
    def _current_handle(self) -> Any:
        # A closed server has what it had; a subclass may have a method.
        return getattr(self, "handle", None) or self._closed_handle

    def _handle_by_clone(self, *args: Any) -> object:
        # Found here and not in `do_handle`, so that gevent's hooks around a handler, TLS
        # among them, stay around this one as well.
        return self.glb_engine.clones.handler_of(current_clone())(*args)

    def wrap_socket_and_handle(self, client_socket: Any, *args: Any) -> object:
        return handle_tls(
            self,
            self.glb_engine,
            self._gevents_wrap,
            lambda: self._current_handle,
            client_socket,
            args,
        )

    def handshake_failed(self, sock: Any, peer: Any, error: OSError) -> bool:
        """Tell of the TLS handshake on *sock* that has failed; ``False`` if gevent is to report it.

        A hook for subclasses; the connection is closed after it.
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
        return self._current_handle(sock, *args)

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
        self._fit_spawn()
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

        As in gevent that is so with a pool or a number for ``spawn``; with several hubs it is
        so with the default as well, and their threads have ended when this returns, with all
        greenlets that lived there. A thread that a handler blocks for longer is left to end by
        itself, and the log tells so. A drain that is under way has no longer than that, either.

        Args:
            timeout: ``None`` is `stop_timeout`, 1.
            drain, spread, linger: Stop by `drain`, and return its report.

        Switches:
            While waiting.
        """
        timeout = self.stop_timeout if timeout is None else timeout
        if drain:
            return self.drain(timeout, spread=spread, linger=linger)
        engine = self.glb_engine
        if len(engine.workers) > 1 or engine.draining.is_under_way:
            engine.draining.stop(timeout)
            if self.pool is not engine.spawning.bound and self.pool:  # as gevent
                self.pool.join(timeout=timeout)
                self.pool.kill(block=True, timeout=1)
        else:
            super().stop(timeout)
        return None

    def drain(
        self,
        timeout: float | None = None,
        *,
        spread: float = 0.0,
        linger: float = LINGER_SECONDS,
    ) -> DrainReport:
        """Take no more connections, finish what is in flight, and stop.

        Handlers in flight finish. HTTP connections are closed when no request is under way, and
        replies tell so before, by ``Connection: close``; so are those whose handler is in
        `glb.idle`; with TLS they get its close_notify. One that has just connected has a second
        for its first request, from then on, or from the drain's beginning if that was later. What
        remains at the deadline is killed. The address is free as soon as nobody waits there,
        long before that.

        Twice is once: who comes later waits for the same end. A handler that drains its own
        server doesn't wait for itself.

        Args:
            timeout: How many seconds the handlers have; ``None`` is as long as they take.
            spread: Close connections over so many seconds, so that their clients don't all come
                back at once. With more than 0 that is so of streams and websockets, too: their
                handlers read the end of the stream, as if the client had left.
            linger: With the last server of an address: for how many seconds, at most, clients are
                still served that the kernel has let in already, and that would be reset. If it is
                full, as connections that end, or are closed while idle, make room. On
                Linux nobody new is let in meanwhile: a client that comes tries again a second
                later.

        Returns:
            What became of the connections that were in use.

        Raises:
            TypeError, ValueError: An argument is not a number of seconds. It goes on serving.

        Switches:
            While waiting. A kill stops the server at once, as `close` does.
        """
        check_seconds("timeout", timeout, may_be_zero=True)
        for name, seconds in {"spread": spread, "linger": linger}.items():
            if seconds is None:
                raise TypeError(f"{name} must be a number of seconds, got None")
            check_seconds(name, seconds, may_be_zero=True)
        plan = DrainPlan(timeout, kill=True, closes_idle=True, spread=spread)
        return self.glb_engine.draining.drain(plan, linger)

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
        return read(self.socket, engine.clones.kind, engine.admission)

    def do_handle(self, *args: Any) -> None:
        """Run the handler for a connection of the clone whose turn it is, as ``spawn`` says."""
        engine = self.glb_engine
        handle: Any = self.__dict__.get("_handle", self._last_handle)
        engine.spawning.start(
            engine.workers.turn, engine.clones.acceptors, self._spawn, handle, self.do_close, args
        )

    # -- clones -------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether clones that aren't paused wait for connections now."""
        return self.glb_engine.admission.is_open and self.state is State.ACCEPTING

    @property
    def state(self) -> State:
        """What it does about new connections, and why."""
        engine = self.glb_engine
        return of_server(
            engine.admission.shown_state, [each.own for each in engine.clones.acceptors]
        )

    @property
    def is_draining(self) -> bool:
        """Whether it is on its way to an end, and takes no more connections."""
        return self.glb_engine.admission.shown_state is State.DRAINING

    @property
    def active(self) -> int:
        """How many connections it has: for which a handler runs, or is about to."""
        return self.glb_engine.workers.active

    def clone_stats(self) -> list[CloneStats]:
        """Return what each clone has done since the server was made, by index."""
        return [acceptor.stats() for acceptor in self.glb_engine.clones.acceptors]

    def pause_clone(self, index: int) -> None:
        """Pass over clone *index* until `resume_clone`; its handlers go on. Twice is once.

        With all clones paused, clients wait in the accept queue.

        Raises:
            TypeError, ValueError: *index* is not 0 to N-1.
        """
        self.glb_engine.clones.at(index).enter(State.PAUSED)

    def resume_clone(self, index: int) -> None:
        """Let clone *index* have turns again, from the end of the line. Twice is once."""
        self.glb_engine.clones.at(index).enter(State.ACCEPTING)

    def replace_clone(
        self,
        index: int,
        handle: Handler,
        *,
        timeout: float | None = None,
        wait: bool = True,
    ) -> DrainReport:
        """Give clone *index* another handler, or application, from its next connection on.

        It keeps its place in the ring, and no connection is refused or closed. Handlers in flight
        finish with the old one. HTTP's kept-alive connections get the new application with
        their next request; of streams those are closed that are in `glb.idle`.

        Args:
            timeout: How many seconds the old one has; what it still does then is killed.
                ``None`` is as long as it takes.
            wait: Whether to wait for the old one. ``False`` leaves it to itself.

        Returns:
            What became of the connections on which the old one was at work.

        Raises:
            TypeError, ValueError: An argument has the wrong type or shape. Nothing has changed.

        Switches:
            While waiting: for another change of this server, and for the old one. A kill leaves
            the new one in place, and the old one to itself.
        """
        return self.glb_engine.rolling.replace(index, handle, timeout, wait=wait)

    def roll(
        self,
        handle: Handler | None = None,
        *,
        handler_factory: Callable[[int], Handler] | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> RollReport:
        """Give all clones another handler, one after another; see `replace_clone`.

        Args:
            handle: For all of them; or
            handler_factory: called with each clone's index, before the first one changes.
            timeout: How many seconds each clone's old one has.
            wait: Whether to wait for each clone's old one, before the next clone changes.

        Returns:
            What became of the connections, by clone.

        Raises:
            TypeError, ValueError: As `replace_clone`. What *handler_factory* raises comes out,
                too. Nothing has changed then.

        Switches:
            As `replace_clone`. A kill leaves some clones with the new one, some with the old.
        """
        return self.glb_engine.rolling.roll(handle, handler_factory, timeout, wait=wait)

    def resize(self, clones: int, *, timeout: float | None = None) -> DrainReport:
        """Have *clones* clones from now on: the last ones go, or new ones come behind them.

        Who goes is drained: see `drain`. Nobody waiting in the accept queue is lost.

        Args:
            clones: 1 or more, and at least as many as there are hubs.
            timeout: How many seconds the handlers of those who go have; ``None`` is as long as
                they take.

        Returns:
            What became of the connections of those who went.

        Raises:
            TypeError, ValueError: *clones* is no such number.
            OSError: There is no room for another descriptor. Nothing has changed.

        Switches:
            While waiting.
        """
        return self.glb_engine.rolling.resize(clones, timeout)
