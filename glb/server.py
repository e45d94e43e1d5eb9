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
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast
from weakref import WeakSet

import gevent
import gevent.server
from gevent import GreenletExit, Timeout, get_hub, getcurrent
from gevent.baseserver import BaseServer
from gevent.server import DatagramServer

from .accept.descriptor import is_adopted
from .accept.dispatcher import Dispatcher, count_connections
from .accept.exclusions import is_excluded
from .accept.listener import Listener
from .accept.protocols import Handed
from .accept.registry import REGISTRY
from .hubs.crossings import Crossings
from .hubs.greenlet_pool import HandlerPool, handlers_here
from .hubs.threads import call_where_it_may_switch
from .model.address import Address, parse
from .model.clone import Clone, current_clone
from .model.limits import check_count, check_places, check_rate, check_seconds
from .model.policy import Policy
from .model.states import PAUSES, State, of_server
from .model.stats import CloneStats, DrainReport, RollReport
from .net.connection import (
    Connection,
    Kind,
    accept_plain,
    kind_of,
    say_goodbye,
    wait_for_data,
)
from .net.fd_leaks import Watermark
from .net.sockets import DEFAULT_BACKLOG, check_backlog, set_nodelay
from .originals import Local, native_ident
from .serve.acceptor import Acceptor
from .serve.admission import Gate
from .serve.bounds import SharedBound
from .serve.drain import LINGER_SECONDS, Draining
from .serve.drain_worker import Ending
from .serve.hub_worker import Branch, Hub
from .serve.idle import Waiting, has_ended
from .serve.rolling import Rolling, make_handlers

__all__ = ["DatagramServer", "StreamServer"]

log: Final = logging.getLogger("glb")


class _Turn:
    """What a server does at this moment."""

    #: Whose turn it is.
    acceptor: Acceptor | None = None
    #: What was accepted for it, and not read yet.
    handed: Handed | None = None
    #: The server's part on this hub, once it was opened.
    branch: Branch | None = None
    #: Why it stops accepting, if not for good: the state, and for how long, in seconds.
    pause: tuple[State, float | None] | None = None
    #: The pause that ends now, by its number: see `glb.serve.admission`.
    resumed: int | None = None


class _TurnOfThread(_Turn, Local):
    """What a server of several hubs does in this thread."""


def _is_of_a_context(wrap: Any) -> bool:
    # Of another context, that is, which a program has set since: it may have a new certificate.
    from ssl import SSLContext  # noqa: PLC0415  # only servers that speak TLS need it

    return isinstance(getattr(wrap, "__self__", None), SSLContext)


class StreamServer(gevent.server.StreamServer):
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

    #: How many clones a server has that isn't told.
    clones: int = 4

    #: On how many hubs they live.
    hubs: int = 1

    #: On how many hubs they live if they aren't told, and nothing given keeps them to one: a
    #: pool would. `glb.monkey.patch_all` sets it.
    hubs_if_possible: int = 1

    #: How long a hub may let a connection lie, in seconds; ``None`` is what others wish.
    patience: float | None = None

    #: Whether a server that isn't told shares its address in this process.
    reuse_port: bool = False

    #: Whether connections send small replies at once; see TCP_NODELAY in tcp(7).
    nodelay: bool = True

    #: How many connections it has at once, on all clones together; ``None`` is no limit.
    max_connections: int | None = None

    #: How many connections each clone has at once.
    max_connections_per_clone: int | None = None

    #: How many connections it takes, a second.
    accept_rate: float | None = None

    #: How long a client may take for TLS's handshake, in seconds; ``None`` is for ever.
    handshake_timeout: float | None = None

    #: How long a client may be silent before it says something, in seconds.
    first_byte_timeout: float | None = None

    #: What makes each clone's handler, if anything.
    handler_factory: Callable[[int], Callable[..., object]] | None = None

    #: Length of the accept queue. gevent's 128 overflows in the first burst.
    backlog: int = DEFAULT_BACKLOG

    # gevent's, which the stubs leave out.
    _stop_event: Any
    _spawn: Any
    #: Set by ``spawn``. A program may set or delete it, as in gevent: see `_bound`.
    pool: Any = None

    _policy: Policy | None = None
    _acceptors: Sequence[Acceptor] = ()
    _listeners: Sequence[Listener] = ()
    _handed_in: Any = None
    _branches: Sequence[Branch] = ()
    _gate: Gate
    _rolling: Rolling
    _draining: Draining
    _turn: _Turn
    _loop: Any = None
    #: Whether a program has set `loop`: the first to set it is gevent's constructor.
    _is_loop_set: bool = False
    _replaced_spawn: Any = None
    #: The pool that ``spawn`` gave. It bounds the handlers. `pool` is the same until a program sets
    #: another one: gevent's servers wait for that one in `stop`, and run no handler in it.
    _bound: Any = None
    _watermark: Watermark
    #: Only while it has several hubs.
    _crossings: Crossings | None = None
    #: Whether its clones or hubs were given to its constructor.
    _is_told_places: bool = False
    _kind: Kind
    #: What it wished of its address: policy and patience.
    _wishes: tuple[Policy | None, float | None] = (None, None)
    # gevent forgets it when the server closes, while another hub may be about to use it.
    _last_handle: Any = None
    _handle: Any = None
    ssl_args: Any
    # What gevent wraps connections with, for TLS.
    _gevents_wrap: Any = None

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
        hubs: int | None = None,
        patience: float | None = None,
        nodelay: bool | None = None,
        max_connections: int | None = None,
        max_connections_per_clone: int | None = None,
        accept_rate: float | None = None,
        handshake_timeout: float | None = None,
        first_byte_timeout: float | None = None,
        **ssl_args: Any,
    ) -> None:
        self._take_arguments(handle, backlog, spawn, handler_factory, policy, nodelay)
        self._take_limits(
            max_connections=max_connections,
            max_connections_per_clone=max_connections_per_clone,
            accept_rate=accept_rate,
            handshake_timeout=handshake_timeout,
            first_byte_timeout=first_byte_timeout,
        )
        self._take_places(spawn, clones, hubs, patience, reuse_port)
        super().__init__(listener, handle, backlog, spawn, **ssl_args)
        self._gevents_wrap = self.__dict__.get("wrap_socket")  # a subclass may have its own

    def _take_arguments(
        self,
        handle: object,
        backlog: object,
        spawn: object,
        handler_factory: Callable[[int], Callable[..., object]] | None,
        policy: Policy | str | None,
        nodelay: bool | None,
    ) -> None:
        # Before gevent's constructor, which takes the listener over and closes it when
        # something fails: what is refused here has touched nothing.
        if handle is not None and not callable(handle):
            raise TypeError(f"handle must be callable, got {handle!r}")
        if backlog is not None:
            check_backlog(backlog)
        if isinstance(spawn, int):
            if spawn < 0:
                raise ValueError(f"spawn must be 0 handlers or more, got {spawn!r}")
        elif hasattr(spawn, "spawn"):
            if not hasattr(spawn, "_semaphore"):  # which tells gevent when there is room
                raise TypeError(f"spawn must be a gevent.pool.Pool, got {spawn!r}")
        elif spawn is not None and spawn != "default" and not callable(spawn):
            raise TypeError(f"spawn must be callable, a pool, a number or None, got {spawn!r}")
        if nodelay is not None:
            self.nodelay = bool(nodelay)
        if handler_factory is not None:
            self.handler_factory = handler_factory
        if self.handler_factory is not None:
            if not callable(self.handler_factory):
                raise TypeError(f"handler_factory must be callable, got {self.handler_factory!r}")
            if handle is not None:
                raise TypeError(f"give a handler_factory or a handler, not both: got {handle!r}")
        if policy is not None:
            self._policy = Policy.of(policy)

    def _take_limits(self, **limits: float | None) -> None:
        for name, limit in limits.items():
            if limit is not None:
                setattr(self, name, limit)
        self._check_limits()

    def _check_limits(self) -> None:
        for name in ("max_connections", "max_connections_per_clone"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_rate("accept_rate", self.accept_rate)
        for name in ("handshake_timeout", "first_byte_timeout"):
            check_seconds(name, getattr(self, name))

    def _take_places(
        self,
        spawn: object,
        clones: int | None,
        hubs: int | None,
        patience: float | None,
        reuse_port: bool | None,
    ) -> None:
        if reuse_port is not None:
            self.reuse_port = bool(reuse_port)
        self._is_told_places = clones is not None or hubs is not None
        if hubs is not None:
            self.hubs = hubs
        elif self.hubs == 1 and not hasattr(spawn, "spawn"):
            wished = self.hubs_if_possible
            self.hubs = wished if not isinstance(clones, int) or clones >= wished else 1
        check_count("hubs", self.hubs)
        if clones is not None:
            self.clones = clones
        elif self.clones < self.hubs:
            self.clones = self.hubs
        if patience is not None:
            self.patience = patience
        check_seconds("patience", self.patience)
        self._check_pool(spawn)
        self._turn = _Turn()
        self._gate = Gate(self)
        self._rolling = Rolling(self)
        self._draining = Draining(self)
        self._make_acceptors()

    def _check_pool(self, spawn: object) -> None:
        if self.hubs > 1 and hasattr(spawn, "spawn") and not isinstance(spawn, SharedBound):
            raise ValueError(
                f"spawn must not be a pool with {self.hubs} hubs, as a pool belongs to one: "
                f"give its size instead, got {spawn!r}"
            )

    def _make_acceptors(self) -> None:
        # Also of a server that is closed, whose numbers were set since. Handlers of the last time
        # may run still, so what counts them is kept.
        check_places(self.clones, self.hubs)
        if self.hubs > 1 and not isinstance(self._turn, _TurnOfThread):
            branch, self._turn = self._turn.branch, _TurnOfThread()
            self._turn.branch = branch
        branches = [*self._branches[: self.hubs]]
        branches += [self._make_branch(index) for index in range(len(branches), self.hubs)]
        for branch in branches:
            branch.share = branch.index / self.hubs
        self._branches = branches
        self._rolling.fit(self.clones)

    def _make_branch(self, index: int) -> Branch:
        return Branch(index, self._draining.callers, index / self.hubs)

    # -- gevent's setters ---------------------------------------------------------------------

    def set_listener(self, listener: Any) -> None:
        if hasattr(listener, "accept"):
            try:
                super().set_listener(listener)
            except AttributeError as error:
                raise TypeError(
                    f"listener must be an address or a bound socket, got {listener!r}"
                ) from error
            self._handed_in = listener
            if is_adopted(getattr(listener, "_sock", None)):
                self._keep_to_one_clone()  # the program has clones of its own
        else:
            address = parse(listener)
            self.family = address.family
            self.address = address.sockaddr
            if is_excluded(address):
                self._keep_to_one_clone()

    def _keep_to_one_clone(self) -> None:
        if not self._is_told_places:
            self.clones = self.hubs = 1

    def set_handle(self, handle: Callable[..., object] | None) -> None:
        if handle is None and self.handler_factory is not None:
            handle = self._handle_by_clone
        super().set_handle(handle)  # type: ignore[arg-type]  # gevent takes None

    def set_spawn(self, spawn: Any) -> None:
        is_default = spawn == "default" and self._spawn == BaseServer._spawn  # type: ignore[attr-defined]  # not in the stubs
        self._check_pool(spawn)
        if self.__dict__.get("full") == getattr(self._bound, "full", None):
            self.__dict__.pop("full", None)  # the last pool's
        if isinstance(spawn, int) and self.hubs > 1:
            spawn = SharedBound(spawn, lambda: self._branches)
        elif isinstance(spawn, int):
            spawn = HandlerPool(spawn)
        super().set_spawn(spawn)
        self._bound = spawn if hasattr(spawn, "spawn") else None
        # Handler greenlets stand for what makes one of gevent's for each connection, unless
        # a subclass, or somebody who sets `_spawn` later, has another way.
        is_replaced = is_default or isinstance(self._bound, (HandlerPool, SharedBound))
        self._replaced_spawn = self._spawn if is_replaced else None

    def choose_handle(self) -> None:
        """Have connections handled by what is set now."""
        handle: Any = self.handle
        if self.ssl_args:
            handle = self.wrap_socket_and_handle
        elif self.first_byte_timeout is not None and self.has_streams:
            handle = self._handle_after_first_byte
        self._handle = self._last_handle = handle

    #: Whether a connection is its handler's as a whole. HTTP's are made of requests.
    has_streams: bool = True

    def handle_by_clone(self) -> bool:
        """Have each clone handle with its own handler; tell whether all had a common one."""
        handle = self._current_handle
        if self.handler_factory is not None or handle == self._handle_by_clone:
            return False
        for acceptor in self._acceptors:
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
        return self._handler_of(current_clone())(*args)

    def _handler_of(self, clone: Clone | None) -> Callable[..., object]:
        if clone is not None and clone.server is self:
            acceptor = self._rolling.acceptor_of(clone)
        else:
            acceptor = self._turn.acceptor
        if acceptor is None or acceptor.handle is None:
            raise RuntimeError(f"no clone of {self} has its turn: run handlers by do_handle()")
        return acceptor.handle

    def wrap_socket_and_handle(self, client_socket: Any, *args: Any) -> object:
        # As gevent's, but for the handshake, which comes later: whatever ends it, a kill or a
        # drain, finds a socket that can be closed. A program's own wrapper does what it does.
        wrap = cast("Any", self).wrap_socket
        options = {**self.ssl_args}
        is_known = wrap == self._gevents_wrap or _is_of_a_context(wrap)
        shakes_hands = is_known and options.pop("do_handshake_on_connect", True)
        if is_known:
            options["do_handshake_on_connect"] = False
        with wrap(client_socket, **options) as ssl_socket:
            if isinstance(client_socket, Connection):
                client_socket.secured = ssl_socket
            if shakes_hands:
                try:
                    with Timeout(self.handshake_timeout, GreenletExit("the client was silent")):
                        self._wait_before(ssl_socket, ssl_socket.do_handshake)
                except OSError as error:
                    if not self.handshake_failed(ssl_socket, args[0] if args else None, error):
                        raise
                    return None
            try:
                if self.first_byte_timeout is not None and self.has_streams:
                    self._wait_before(ssl_socket, functools.partial(wait_for_data, ssl_socket))
                return self._current_handle(ssl_socket, *args)
            finally:
                if self.is_ending(current_clone()) or has_ended(ssl_socket):
                    say_goodbye(ssl_socket)

    def handshake_failed(self, sock: Any, peer: Any, error: OSError) -> bool:
        """Tell of the TLS handshake on *sock* that has failed; ``False`` if gevent is to report it.

        A hook for subclasses; the connection is closed after it.
        """
        return False

    def _handle_after_first_byte(self, sock: Any, *args: Any) -> object:
        self._wait_before(sock, functools.partial(wait_for_data, sock))
        return self._current_handle(sock, *args)

    def _wait_before(self, sock: Any, wait: Callable[[], object]) -> None:
        # For a client, before the handler begins. If it is let go meanwhile, its handler's greenlet
        # ends as if it were killed, which nobody reports.
        waiting = self.waiting_here
        if waiting is None:
            wait()
            return
        greenlet = getcurrent()
        waiting.enter(sock, greenlet, has_served=None)
        try:
            wait()
        finally:
            is_over = waiting.leave(greenlet)
            del greenlet  # or an error's traceback keeps it, and it keeps the error
            if is_over:
                raise GreenletExit("the client was silent")

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
        if any(branch.thread is not None and branch.is_here for branch in self._branches):
            raise RuntimeError(f"{self} can't start on a hub of its own: start it from another")
        if self._draining.is_under_way:
            raise RuntimeError(f"{self} is draining: it can start when that is over")
        if "handle" not in self.__dict__ and (
            self._closed_handle is not None or not hasattr(self, "handle")
        ):
            self.set_handle(self._closed_handle)
        self._fit_spawn()
        self._check_limits()  # they may have been set since
        check_count("max_accept", self.max_accept)
        if not self._listeners:
            self._open_listeners()
        self.choose_handle()

    def _fit_spawn(self) -> None:
        is_forgotten = "_spawn" not in self.__dict__  # since it was closed
        spawn = self._closed_spawn if is_forgotten else self._bound
        # `hubs` may have been set since the number was given.
        is_other = isinstance(spawn, SharedBound if self.hubs == 1 else HandlerPool)
        if is_other:
            spawn = "default" if spawn.size is None else spawn.size
        if not is_forgotten and not is_other:
            self._check_pool(spawn)
            return
        # What a program has set since, as gevent lets it, stays.
        bound, pool, full = self._bound, self.pool, self.__dict__.get("full")
        self.set_spawn(spawn)
        if pool is not bound:
            self.pool = pool
        if full is not None and full != getattr(bound, "full", None):
            self.__dict__["full"] = full

    def _open_listeners(self) -> None:
        if (len(self._acceptors), len(self._branches)) != (self.clones, self.hubs):
            self._make_acceptors()  # they were set since
        given = self._handed_in
        listeners: list[Listener] = []
        try:
            listeners.append(self._first_listener())
            listeners.extend(listeners[0].dup() for _ in range(1, self.clones))
            if self.nodelay:
                set_nodelay(listeners[0]._sock)
            entry = listeners[0].entry
            entry.turns.join_wishes(self._policy, self.patience, entry.address)
        except BaseException:
            opened = [*listeners, self._handed_in]
            self._handed_in = given
            self.close_each(each for each in opened if each is not given)
            raise
        self._listeners = listeners
        # As in gevent, the plain socket under the cooperative one: `do_read` never waits.
        self.socket = sock = listeners[0]._sock
        self.address = listeners[0].address
        self._kind = kind_of(sock)
        self._wishes = (self._policy, self.patience)
        self._watermark = Watermark(sock.fileno(), functools.partial(count_connections, REGISTRY))

    def _first_listener(self) -> Listener:
        if hasattr(self, "socket"):
            # What was given, or what a program, or its own `init_socket`, has set since.
            self._handed_in = self.socket
        listener = self._handed_in
        if listener is None and self.reuse_port:
            where = Address(self.family, self.address)
            return Listener(
                REGISTRY.open(where, self.backlog, shared=True, reuse_addr=bool(self.reuse_addr))
            )
        if listener is None:
            listener = self.get_listener(self.address, self.backlog, self.family)
            if not isinstance(listener, Listener):
                self._handed_in = listener
        if isinstance(listener, Listener):
            return listener
        plain: Any = getattr(listener, "_sock", None)
        if is_adopted(plain):
            return Listener(REGISTRY.acquire(plain.entry))
        return Listener(REGISTRY.adopt(listener.fileno(), shared=self.reuse_port))

    def close(self) -> None:
        """Stop accepting, and close every clone and whatever was handed in. From anywhere.

        The threads of other hubs end when the handlers there are done. A drain that is under way
        waits for them no longer.
        """
        self._draining.call_off()
        self.leave(State.STOPPED)
        for branch in self._branches:
            branch.finish(Ending(None, kill=False, leaves_callers=False))
        self._remember_for_restart()
        self._forget_as_gevent()

    def leave(self, state: State) -> None:
        """Leave its turns and its address, for *state*. What its handlers do goes on."""
        self._gate.close(state)
        if self._crossings is not None:
            self._crossings.end()
        listeners, self._listeners = self._listeners, ()
        handed_in, self._handed_in = self._handed_in, None
        home = self._home
        if state is State.STOPPED and (home is None or home.is_here):
            self._stop_event.set()
        try:
            for branch in self._branches:
                branch.close(functools.partial(self._left, home, state))
        finally:
            if listeners:
                listeners[0].entry.turns.leave_wishes(*self._wishes)
            self.close_each([*listeners, handed_in])

    def close_each(self, listeners: Iterable[Any]) -> None:
        """Close all of *listeners* but ``None``. What one raises is in the log, and stops none."""
        try:
            with contextlib.ExitStack() as rest:
                for each in reversed([*listeners]):
                    if each is not None:
                        rest.callback(each.close)
        except Exception as error:  # EBADF, of a number that the program has closed
            with REGISTRY.reserve.lend():  # for the log's file
                log.error("%s can't close a clone: %s; all the rest is closed", self, error)

    def _left(self, home: Dispatcher | None, state: State) -> None:
        # Called in each hub that it leaves. Who waits for the end waits in the first.
        if home is not None and home.is_here:
            if state is State.STOPPED:
                self._stop_event.set()
            self._gate.end_timer(home)
            home.guarded.pop(self._gate, None)

    def _forget_as_gevent(self) -> None:
        # What is left of gevent's `close`, which would tell of the end in this thread.
        try:
            self.stop_accepting()
        finally:
            with contextlib.suppress(Exception):  # AttributeError, of one that was never open
                self.socket.close()
            for name in ("socket", "handle", "_handle", "_spawn", "full"):
                self.__dict__.pop(name, None)
            for semaphore in self._semaphores:
                semaphore.unlink(self._start_accepting_if_started)

    @property
    def _semaphores(self) -> list[Any]:
        # Those of the pool that bounds the handlers, and of one that a program has set.
        pools = [self._bound] if self.pool is self._bound else [self._bound, self.pool]
        return [each._semaphore for each in pools if hasattr(each, "_semaphore")]

    @property
    def _home(self) -> Dispatcher | None:
        """The dispatcher of its first hub, while it is open."""
        opened = (branch.dispatcher for branch in self._branches if branch.dispatcher is not None)
        return next(opened, None)

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
        if len(self._branches) > 1 or self._draining.is_under_way:
            self._draining.stop(timeout)
            if self.pool is not self._bound and self.pool:  # as gevent
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
        ending = Ending(timeout, kill=True, closes_idle=True, spread=spread)
        return self._draining.drain(ending, linger)

    # gevent forgets the handler and the spawn of a closed server, so that one that was given
    # its handler can't start again. Ours can.
    _closed_handle: Callable[..., object] | None = None
    _closed_spawn: Any = "default"

    def _remember_for_restart(self) -> None:
        if "handle" in self.__dict__:
            self._closed_handle = self.handle
        if "_spawn" in self.__dict__:
            if self._bound is not None:
                self._closed_spawn = self._bound
            elif self._spawn is not None and self._spawn is self._replaced_spawn:
                self._closed_spawn = "default"
            else:
                self._closed_spawn = self._spawn

    # -- accepting ----------------------------------------------------------------------------

    def start_accepting(self) -> None:
        """Let the clones have turns. Twice is once."""
        if self._gate.starts_again():
            return
        if not self._listeners:
            self.socket  # noqa: B018  # AttributeError, as gevent, of a server that isn't open
            if self._gate.state is State.DRAINING:
                return
            self._open_listeners()
        if self._gate.turns is None:
            listeners = self._listeners
            self._make_handlers()
            # Making them may have taken a while: somebody may have closed or started it.
            if self._listeners is not listeners:
                return
        if self._gate.turns is None:
            self._join(listeners)
        self._gate.enter(State.ACCEPTING)

    def _join(self, listeners: Sequence[Listener]) -> None:
        entry = listeners[0].entry
        turns = entry.turns
        # Handler greenlets let go of what they have not begun: see `Acceptor.give_up`.
        is_later = not (
            self._spawn is self._replaced_spawn
            and type(self).do_read is StreamServer.do_read
            and type(self).do_handle is StreamServer.do_handle
        )
        self._renew_branches()
        turn = self._turn
        try:
            for branch in self._branches:
                if branch.index == 0:
                    branch.open(
                        entry,
                        turn,
                        is_out_of_reach=is_later,
                        client_timeout=self.first_byte_timeout,
                    )
                    continue
                name = f"glb hub {branch.index} of {entry.address!r}"
                thread = branch.open_in_thread(
                    entry,
                    turn,
                    name,
                    self._system_error,
                    is_out_of_reach=is_later,
                    client_timeout=self.first_byte_timeout,
                )
                # The forked child of another thread doesn't keep them.
                for listener in listeners[branch.index :: self.hubs]:
                    listener.belongs_to(thread)
        except BaseException:
            for branch in self._branches:
                branch.close(lambda: None)
                branch.finish(Ending(0, kill=True))
            raise
        if not self._is_loop_set:
            self._loop = get_hub().loop
        self._gate.open(turns)
        home = self._home
        assert home is not None, "the first branch was opened"
        home.guarded[self._gate] = self._gate.look_over
        if self.hubs > 1:
            _forked.add(self)
            self._watch_hubs()
        for acceptor in self._acceptors:
            acceptor.join(turns)

    def _watch_hubs(self) -> None:
        self._crossings = crossings = Crossings(str(self))
        for branch in self._branches:
            thread = branch.thread
            hub = get_hub() if thread is None else thread.hub
            where = "which started the server" if thread is None else f"in thread {thread.name!r}"
            name = f"hub {branch.index} (<Hub at {id(hub):#x}>, {where})"
            crossings.watch(hub, name, branch.send)

    def _renew_branches(self) -> None:
        # Their threads may be about to end still, since it was closed.
        branches = [*self._branches]
        for index, branch in enumerate(branches):
            if branch.thread is not None:
                branches[index] = renewed = self._make_branch(index)
                for acceptor in branch.acceptors:
                    if acceptor.branch is branch:
                        acceptor.branch = renewed
                        renewed.acceptors[acceptor] = None
        self._branches = branches

    def keep_this_thread(self) -> None:
        """Forget the parts of it whose hubs are not in this process, which was forked."""
        ident = native_ident()
        for branch in self._branches:
            if branch.dispatcher is None or branch.dispatcher.thread != ident:
                branch.forget()
                for acceptor in branch.acceptors:
                    acceptor.forget()
        # Their clones were closed; accept by one that wasn't.
        kept = [each._sock for each in self._listeners if each._sock.fileno() >= 0]
        if kept and self.socket not in kept:
            self.socket = kept[0]
        with REGISTRY.lock:
            self._gate.expected = 0
            for acceptor in self._acceptors:
                acceptor.promised = 0
        if self._gate.state in PAUSES:
            self._gate.accept_again()

    def _system_error(self, error: BaseException) -> None:
        # What would end the program in its main hub ends it from any other, too.
        home = self._home
        if home is not None:
            hub: Any = home.hub
            home.send(lambda: hub.handle_system_error(type(error), error))

    @property
    def loop(self) -> Any:
        """The event loop of this thread, if it is one of the server's, or of its first hub."""
        ident = native_ident()
        for branch in self._branches[1:]:
            if branch.thread is not None and branch.thread.ident == ident:
                return branch.thread.hub.loop
        return self._loop

    @loop.setter
    def loop(self, loop: Any) -> None:
        self._is_loop_set = self._loop is not None
        self._loop = loop

    def stop_accepting(self) -> None:
        """Take nothing more, until `start_accepting`. Clients wait in the accept queue."""
        self._gate.stopped_accepting()

    def _make_handlers(self) -> None:
        if self.handler_factory is not None:
            handlers = make_handlers(self.handler_factory, range(len(self._acceptors)))
            for acceptor, handle in zip(self._acceptors, handlers, strict=True):
                acceptor.handle = handle

    # -- what acceptors ask and tell -----------------------------------------------------------

    def _start_accepting_if_started(self, _event: object = None) -> None:
        # gevent's name; a pool's semaphore calls it when there may be room.
        if self._gate.state is State.FULL:
            self._gate.accept_again()

    @property
    def waiting_here(self) -> Waiting | None:
        """Its connections of this thread's hub that wait for their client."""
        branch = self.branch_here
        return None if branch is None else branch.waiting

    @property
    def branch_here(self) -> Branch | None:
        """Its part on this thread's hub."""
        return self._turn.branch

    def has_upgraded(self, sock: Any) -> None:
        """*sock* has no requests any more."""

    def is_long_lived(self, sock: Any) -> bool:
        """Whether *sock* has no requests, so that only ``spread`` would end it."""
        return True

    def is_ending(self, clone: Clone | None) -> bool:
        """Whether the connections of *clone* are to end when nothing is under way on them."""
        return self._gate.is_drained or (clone is not None and clone >= len(self._acceptors))

    def is_fatal_error(self, ex: BaseException) -> bool:
        # gevent looks at args[0], which an OSError made without an errno doesn't have.
        return bool(ex.args) and super().is_fatal_error(ex)

    def fail(self, error: BaseException) -> None:
        """The listener is broken: report it, and close the server, once."""
        self.loop.handle_error(self, type(error), error, error.__traceback__)
        name = str(self)
        self.close()
        call_where_it_may_switch(
            functools.partial(log.error, "%s failed with %s", name, str(error) or repr(error))
        )

    def do_read(self) -> Any:  # a subclass may return what it likes, gevent's stubs don't know
        """Accept a connection, if one waits; or take the one that another hub has accepted."""
        if self._turn.handed is not None:
            return self.read_handed()
        sock: Any = self.socket
        try:
            plain, address = accept_plain(sock._accept, self._kind)
        except BlockingIOError:
            if sock.timeout:
                raise
            return None
        number = plain.fileno()
        if number >= self._watermark.level:
            self._watermark.reached(self, number)
        return Connection.on(plain), address

    def read_handed(self) -> tuple[Connection, Any]:
        """Take the connection that was accepted for the clone whose turn it is."""
        turn = self._turn
        handed = turn.handed
        assert handed is not None, "only in a turn"
        number = handed.sock.fileno()
        if number >= self._watermark.level:
            self._watermark.reached(self, number)
        connection = Connection.on(handed.sock)
        if handed.moves:
            connection.moves = handed.moves
        turn.handed = None
        return connection, handed.address

    def do_handle(self, *args: Any) -> None:
        """Run the handler for a connection of the clone whose turn it is, as ``spawn`` says."""
        turn = self._turn
        # Out of turn, which gevent allows, a connection is counted for the first clone.
        acceptor = turn.acceptor
        if acceptor is not None:
            serve = acceptor.serve
        else:
            acceptor = self._acceptors[0]
            serve = acceptor.serve_anywhere
        begun, charged = acceptor.begun, acceptor.charged
        branch = turn.branch or acceptor.branch
        branch.taken += 1
        spawn: Any = self._spawn
        handle: Any = self.__dict__.get("_handle", self._last_handle)
        close = self.do_close
        try:
            if spawn is None:
                acceptor.serve_anywhere(handle, close, args)
            elif spawn is not self._replaced_spawn:
                acceptor.spawned[id(args)] = args
                try:
                    spawn(acceptor.serve_spawned, handle, close, args)
                except BaseException:
                    acceptor.spawned.pop(id(args), None)
                    raise
            elif isinstance(self._bound, HandlerPool):
                acceptor.charged += turn.acceptor is not None
                self._bound.handle(serve, handle, close, args)
            else:
                acceptor.charged += turn.acceptor is not None
                handlers = branch.handlers if turn.acceptor is not None else None
                (handlers or handlers_here()).spawn(serve, handle, close, args)
        except BaseException:
            # What struck may have done so when it waited already. It is not to run on what is
            # closed here.
            handlers_here().drop(lambda job: job[-2] is args)
            if acceptor.begun == begun:
                acceptor.never_served(is_charged=acceptor.charged != charged)
            close(*args)
            raise

    # -- clones -------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether clones that aren't paused wait for connections now."""
        return self._gate.is_open and self.state is State.ACCEPTING

    @property
    def state(self) -> State:
        """What it does about new connections, and why."""
        return of_server(self._gate.shown_state, [each.own for each in self._acceptors])

    @property
    def is_draining(self) -> bool:
        """Whether it is on its way to an end, and takes no more connections."""
        return self._gate.shown_state is State.DRAINING

    @property
    def active(self) -> int:
        """How many connections it has: for which a handler runs, or is about to."""
        return sum(branch.active for branch in self._branches)

    def hubs_now(self) -> list[Hub]:
        """Return its hubs, by index, while it is started."""
        return [each.as_hub() for each in self._branches if each.dispatcher is not None]

    def clone_stats(self) -> list[CloneStats]:
        """Return what each clone has done since the server was made, by index."""
        return [acceptor.stats() for acceptor in self._acceptors]

    def pause_clone(self, index: int) -> None:
        """Pass over clone *index* until `resume_clone`; its handlers go on. Twice is once.

        With all clones paused, clients wait in the accept queue.

        Raises:
            TypeError, ValueError: *index* is not 0 to N-1.
        """
        self.acceptor_at(index).enter(State.PAUSED)

    def resume_clone(self, index: int) -> None:
        """Let clone *index* have turns again, from the end of the line. Twice is once."""
        self.acceptor_at(index).enter(State.ACCEPTING)

    def replace_clone(
        self,
        index: int,
        handle: Callable[..., object],
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
        return self._rolling.replace(index, handle, timeout, wait=wait)

    def roll(
        self,
        handle: Callable[..., object] | None = None,
        *,
        handler_factory: Callable[[int], Callable[..., object]] | None = None,
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
        return self._rolling.roll(handle, handler_factory, timeout, wait=wait)

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
        return self._rolling.resize(clones, timeout)

    def acceptor_at(self, index: int) -> Acceptor:
        """Return the acceptor of clone *index*.

        Raises:
            TypeError, ValueError: There is none.
        """
        try:
            number = operator.index(index)
        except TypeError as error:
            raise TypeError(f"clone must be a whole number, got {index!r}") from error
        if not 0 <= number < len(self._acceptors):
            raise ValueError(f"clone must be 0 to {len(self._acceptors) - 1}, got {index!r}")
        return self._acceptors[number]


# -- fork -------------------------------------------------------------------------------------

#: Servers of which a forked child has a part only.
_forked: Final[WeakSet[StreamServer]] = WeakSet()


def _after_fork_in_child() -> None:
    for server in [*_forked]:
        server.keep_this_thread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
