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
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import Any, Final
from weakref import WeakSet

import gevent
import gevent.server
from gevent import get_hub
from gevent.baseserver import BaseServer
from gevent.monkey import get_original
from gevent.server import DatagramServer

from .acceptor import Acceptor, State
from .address import Address, parse
from .adopted import Adopted, is_excluded
from .balance import Policy
from .branch import KILL_SECONDS, Branch, SharedBound
from .clones import Clone, current_clone
from .connection import Connection
from .dispatcher import Dispatcher
from .handlers import HandlerPool, handlers_here
from .listener import Listener
from .registry import REGISTRY, native_ident
from .sockets import DEFAULT_BACKLOG, check_backlog, set_nodelay
from .stats import CloneStats
from .turns import Handed, Turns

__all__ = ["DatagramServer", "StreamServer"]

log: Final = logging.getLogger("glb")


#: The states that end by themselves.
PAUSES: Final = (State.FULL, State.BACKING_OFF)


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
    #: The pause that ends now: see `StreamServer._episode`.
    resumed: int | None = None


class _TurnOfThread(_Turn, get_original("threading", "local")):  # type: ignore[misc]  # found at run time
    """What a server of several hubs does in this thread."""


def check_count(name: str, count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name} must be a whole number, got {count!r}")
    if count < 1:
        raise ValueError(f"{name} must be 1 or more, got {count!r}")


def check_places(clones: int | None, hubs: int | None) -> None:
    """Refuse numbers of clones and hubs that don't fit; ``None`` always does."""
    for name, count in {"clones": clones, "hubs": hubs}.items():
        if count is not None:
            check_count(name, count)
    if clones is not None and clones < (hubs or 1):
        raise ValueError(f"clones must be {hubs} or more, one for each hub, got {clones!r}")


def _check_patience(patience: object) -> None:
    if patience is None:
        return
    if isinstance(patience, bool) or not isinstance(patience, (int, float)):
        raise TypeError(f"patience must be a number of seconds, got {patience!r}")
    if not 0 < patience < float("inf"):
        raise ValueError(f"patience must be more than 0 seconds, got {patience!r}")


class StreamServer(gevent.server.StreamServer):
    """A TCP, TLS or Unix server whose connections go round its clones in exact turn.

    Args:
        listener: An address in any form of `glb.address.parse`; a bound, listening socket;
            or a `glb.Listener`, which is then the first clone. The server closes it.
        handle: Called with the connection and the peer's address, in a handler greenlet.
        backlog: Length of the accept queue, in connections; only with an address. ``None``
            is the class attribute, by default what the kernel allows.
        spawn: As in gevent. A number or a `gevent.pool.Pool` bounds the whole server, not
            each clone. By default, and with a number, handlers run in greenlets that are
            used again (see `glb.handlers`); ``gevent.spawn`` makes a fresh one each time.
        clones: How many, 1 or more; ``None`` is the class attribute, 4.
        reuse_port: Join the registry, so that other servers and listeners of this process
            may have the same address, all in one ring. ``None`` is the class attribute,
            ``False``: then a second server gets EADDRINUSE, as with gevent.
        handler_factory: Called with 0 to *clones* - 1 when the server first accepts; each
            returns the handler of that clone. In place of *handle*.
        policy: Which ready clone is next: ``"round_robin"``, the default,
            ``"least_connections"`` or ``"first"``; see `glb.balance.Policy`. One an address;
            ``None`` takes what is there.
        hubs: On how many hubs the clones live, 1 or more: clone *i* on hub *i* modulo *hubs*.
            Hub 0 is the one that starts the server, each other one turns in a native thread
            of its own. Handlers then run in several threads at once and must be thread-safe.
            ``None`` is the class attribute, 1. There are at least as many clones as hubs.
        patience: How long a hub may let a connection lie, in seconds, before it is another
            hub's: see `glb.turns`. One an address; ``None`` is the class attribute, which has
            no wish either: then it is 0.01.
        nodelay: Set TCP_NODELAY on the listening socket, which connections inherit, so that
            small replies leave at once: otherwise the second part of one waits for the
            client's delayed acknowledgement, 40 ms on Linux. ``None`` is the class
            attribute, ``True``; ``False`` leaves it as it is. Not for Unix sockets.
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

    #: What makes each clone's handler, if anything.
    handler_factory: Callable[[int], Callable[..., object]] | None = None

    #: Length of the accept queue. gevent's 128 overflows in the first burst.
    backlog: int = DEFAULT_BACKLOG

    # gevent's, which the stubs leave out.
    _stop_event: Any
    _spawn: Any
    _timer: Any
    pool: Any

    _policy: Policy | None = None
    _state: State = State.STOPPED
    _acceptors: Sequence[Acceptor] = ()
    _listeners: Sequence[Listener] = ()
    _handed_in: Any = None
    _branches: list[Branch]
    _turn: _Turn
    _turns: Turns | None = None
    _loop: Any = None
    _replaced_spawn: Any = None
    _is_told_of_room: bool = False
    #: Whether its clones or hubs were given to its constructor.
    _is_told_places: bool = False
    #: What a connection's socket is: family, type, protocol.
    _kind: tuple[int, int, int] = (-1, -1, -1)
    #: What it wished of its address: policy and patience.
    _wishes: tuple[Policy | None, float | None] = (None, None)
    #: Counts the changes of state, so that a timer knows whether it still matters.
    _episode: int = 0
    #: Connections that are on their way to a clone.
    _expected: int = 0
    # gevent forgets it when the server closes, while another hub may be about to use it.
    _last_handle: Any = None

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
        **ssl_args: Any,
    ) -> None:
        self._take_arguments(handle, backlog, spawn, handler_factory, policy, nodelay)
        self._take_places(spawn, clones, hubs, patience, reuse_port)
        super().__init__(listener, handle, backlog, spawn, **ssl_args)

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
        _check_patience(self.patience)
        self._check_pool(spawn)
        self._make_acceptors()

    def _check_pool(self, spawn: object) -> None:
        if self.hubs > 1 and hasattr(spawn, "spawn") and not isinstance(spawn, SharedBound):
            raise ValueError(
                f"spawn must not be a pool with {self.hubs} hubs, as a pool belongs to one: "
                f"give its size instead, got {spawn!r}"
            )

    def _make_acceptors(self) -> None:
        check_places(self.clones, self.hubs)
        self._turn = _Turn() if self.hubs == 1 else _TurnOfThread()
        self._branches = [Branch(index) for index in range(self.hubs)]
        self._acceptors = [
            Acceptor(self, index, self._branches[index % self.hubs]) for index in range(self.clones)
        ]

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
            if isinstance(getattr(listener, "_sock", None), Adopted):
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
        self.__dict__.pop("full", None)  # the last pool's
        if isinstance(spawn, int) and self.hubs > 1:
            spawn = SharedBound(spawn, lambda: self._branches)
        elif isinstance(spawn, int):
            spawn = HandlerPool(spawn)
        super().set_spawn(spawn)
        # Handler greenlets stand for what makes one of gevent's for each connection, unless
        # a subclass, or somebody who sets `_spawn` later, has another way.
        is_replaced = is_default or isinstance(self.pool, (HandlerPool, SharedBound))
        self._replaced_spawn = self._spawn if is_replaced else None

    def _handle_by_clone(self, *args: Any) -> object:
        # Found here and not in `do_handle`, so that gevent's hooks around a handler, TLS
        # among them, stay around this one as well.
        return self._handler_of(current_clone())(*args)

    def _handler_of(self, clone: Clone | None) -> Callable[..., object]:
        if clone is not None and clone.server is self:
            acceptor: Acceptor | None = self._acceptors[clone]
        else:
            acceptor = self._turn.acceptor
        if acceptor is None or acceptor.handle is None:
            raise RuntimeError(f"no clone of {self} has its turn: run handlers by do_handle()")
        return acceptor.handle

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
        if not hasattr(self, "handle"):
            self.set_handle(self._closed_handle)
        if "_spawn" not in self.__dict__:
            self.set_spawn(self._closed_spawn)
        self._fit_pool()
        if not self._listeners:
            self._open_listeners()
        self._handle = self.wrap_socket_and_handle if self.ssl_args else self.handle
        self._last_handle = self._handle

    def _fit_pool(self) -> None:
        # `hubs` may have been set since the number was given.
        pool = self.pool
        if isinstance(pool, SharedBound if self.hubs == 1 else HandlerPool):
            self.set_spawn("default" if pool.size is None else pool.size)
        else:
            self._check_pool(pool)

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
            for listener in listeners:
                if listener is not given:
                    listener.close()
            if self._handed_in is not given:
                self._handed_in.close()
                self._handed_in = given
            raise
        self._listeners = listeners
        # As in gevent, the plain socket under the cooperative one: `do_read` never waits.
        self.socket = sock = listeners[0]._sock
        self.address = listeners[0].address
        self._kind = (sock.family, sock.type, sock.proto)
        self._wishes = (self._policy, self.patience)

    def _first_listener(self) -> Listener:
        if self._handed_in is None and hasattr(self, "socket"):
            self._handed_in = self.socket  # an `init_socket` of the user's own made it
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
        plain = getattr(listener, "_sock", None)
        if isinstance(plain, Adopted):
            return Listener(REGISTRY.acquire(plain.entry))
        return Listener(REGISTRY.adopt(listener.fileno(), shared=self.reuse_port))

    def close(self) -> None:
        """Stop accepting, and close every clone and whatever was handed in. From anywhere.

        The threads of other hubs end when the handlers there are done.
        """
        with REGISTRY.lock:
            self._state = State.STOPPED
            self._turns = None
            self._episode += 1
        listeners, self._listeners = self._listeners, ()
        handed_in, self._handed_in = self._handed_in, None
        timer, self._timer = self._timer, None
        home = self._home()
        if home is None or home.is_here:
            self._stop_event.set()
        try:
            for branch in self._branches:
                branch.close(functools.partial(self._left, home, self._stop_event, timer))
                branch.finish(None, kill=False)
        finally:
            if listeners:
                listeners[0].entry.turns.leave_wishes(*self._wishes)
            for listener in listeners:
                listener.close()
            if handed_in is not None:
                handed_in.close()
            self._remember_for_restart()
            self._forget_as_gevent()

    def _left(self, home: Dispatcher | None, event: Any, timer: Any) -> None:
        # Called in each hub that it leaves. Who waits for the end waits in the first.
        if home is not None and home.is_here:
            event.set()
            if timer is not None and home.has_loop:
                timer.stop()
                timer.close()

    def _forget_as_gevent(self) -> None:
        # What is left of gevent's `close`, which would tell of the end in this thread.
        try:
            self.stop_accepting()
        finally:
            with contextlib.suppress(Exception):  # AttributeError, of one that was never open
                self.socket.close()
            for name in ("socket", "handle", "_handle", "_spawn", "full"):
                self.__dict__.pop(name, None)
            if self.pool is not None:
                self.pool._semaphore.unlink(self._start_accepting_if_started)

    def _home(self) -> Dispatcher | None:
        """Return the dispatcher of its first hub, while it is open."""
        opened = (branch.dispatcher for branch in self._branches if branch.dispatcher is not None)
        return next(opened, None)

    def stop(self, timeout: float | None = None) -> None:
        """Close, and wait for the handlers, at most *timeout* seconds: then they are killed.

        As in gevent that is so with a pool or a number for ``spawn``; with several hubs it is
        so with the default as well, and their threads have ended when this returns, with all
        greenlets that lived there. A thread that a handler blocks for longer is left to end by
        itself, and the log tells so.

        Args:
            timeout: ``None`` is `stop_timeout`, 1.

        Switches:
            While waiting.
        """
        if len(self._branches) == 1:
            super().stop(timeout)
            return
        timeout = self.stop_timeout if timeout is None else timeout
        threads = [branch.thread for branch in self._branches if branch.thread is not None]
        turns, home = self._turns, self._branches[0]
        standby = None if turns is None else turns.standby
        is_home = home.dispatcher is None or home.dispatcher.is_here
        if home.dispatcher is not None and not is_home:
            end = functools.partial(gevent.spawn, home.wait, timeout, kill=True)
            home.dispatcher.send(end)
        self.close()
        for branch in self._branches:
            branch.finish(timeout, kill=True)
        if is_home:
            home.wait(timeout, kill=True)
        if turns is not None and turns.is_closed and standby is not None:
            threads.append(standby.thread_of_its_own)
        deadline = monotonic() + timeout + 2 * KILL_SECONDS
        for thread in threads:
            if thread.ident != native_ident() and not thread.wait(max(0, deadline - monotonic())):
                log.error("%s: the thread %r is blocked, and ends when it isn't", self, thread.name)

    # gevent forgets the handler and the spawn of a closed server, so that one that was given
    # its handler can't start again. Ours can.
    _closed_handle: Callable[..., object] | None = None
    _closed_spawn: Any = "default"

    def _remember_for_restart(self) -> None:
        if "handle" in self.__dict__:
            self._closed_handle = self.handle
        if "_spawn" in self.__dict__:
            if self.pool is not None:
                self._closed_spawn = self.pool
            elif self._spawn is not None and self._spawn is self._replaced_spawn:
                self._closed_spawn = "default"
            else:
                self._closed_spawn = self._spawn

    # -- accepting ----------------------------------------------------------------------------

    def start_accepting(self) -> None:
        """Let the clones have turns. Twice is once."""
        episode = self._turn.resumed
        if episode is not None:
            self._enter(State.ACCEPTING, after=PAUSES, episode=episode)
            return
        if not self._listeners:
            self.socket  # noqa: B018  # AttributeError, as gevent, of a server that isn't open
            self._open_listeners()
        if self._turns is None:
            listeners = self._listeners
            self._make_handlers()
            # Making them may have taken a while: somebody may have closed or started it.
            if self._listeners is not listeners:
                return
        if self._turns is None:
            self._join(listeners)
        self._enter(State.ACCEPTING)

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
                    branch.open(entry, turn, is_out_of_reach=is_later)
                    continue
                name = f"glb hub {branch.index} of {entry.address!r}"
                thread = branch.open_in_thread(
                    entry, turn, name, self._system_error, is_out_of_reach=is_later
                )
                # The forked child of another thread doesn't keep them.
                for listener in listeners[branch.index :: self.hubs]:
                    listener.belongs_to(thread)
        except BaseException:
            for branch in self._branches:
                branch.close(lambda: None)
                branch.finish(0, kill=True)
            raise
        self.loop = get_hub().loop
        self._turns = turns
        if self.hubs > 1:
            _forked.add(self)
        for acceptor in self._acceptors:
            if not acceptor.is_paused:
                turns.join(acceptor)

    def _renew_branches(self) -> None:
        # Their threads may be about to end still, since it was closed.
        for index, branch in enumerate(self._branches):
            if branch.thread is not None:
                renewed = Branch(index)
                for acceptor in branch.acceptors:
                    acceptor.branch = renewed
                    renewed.acceptors.append(acceptor)
                self._branches[index] = renewed

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
            self._expected = 0
            for acceptor in self._acceptors:
                acceptor.promised = 0
        if self._state in PAUSES:
            self._accept_again()

    def _system_error(self, error: BaseException) -> None:
        # What would end the program in its main hub ends it from any other, too.
        home = self._home()
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
        self._loop = loop

    def stop_accepting(self) -> None:
        """Take nothing more, until `start_accepting`. Clients wait in the accept queue."""
        pause = self._turn.pause
        if pause is None:
            self._enter(State.STOPPED)
        else:
            self._enter(*pause, after=(State.ACCEPTING,))

    def _pause(self, state: State, delay: float | None = None) -> None:
        """Go from accepting to *state*, by gevent's hook, for *delay* seconds if given."""
        turn = self._turn
        turn.pause = (state, delay)
        try:
            self.stop_accepting()
        finally:
            turn.pause = None
        self._enter(state, delay, after=(State.ACCEPTING,))  # if the hook did not

    def _accept_again(self, episode: int | None = None) -> None:
        """End a pause, by gevent's hook: this one, or the one with that number."""
        turn = self._turn
        turn.resumed = self._episode if episode is None else episode
        try:
            self.start_accepting()
        finally:
            turn.resumed = None

    def _enter(
        self,
        state: State,
        delay: float | None = None,
        *,
        after: Collection[State] = (),
        episode: int | None = None,
    ) -> None:
        """Change the state, from any thread; after *delay* seconds, if given, accept again.

        Only if it is one of *after* now, where that is given, and that *episode*.
        """
        with REGISTRY.lock:
            turns = self._turns
            opened = [(each.dispatcher, each.team) for each in self._branches if each.dispatcher]
            if turns is None or not opened:
                self._state = State.STOPPED  # and there is no timer, and no place in a ring
                return
            if (after and self._state not in after) or episode not in (None, self._episode):
                return
            self._state = state
            self._episode += 1
            episode = self._episode
            if state is State.ACCEPTING:
                turns.seat(opened)
            else:
                turns.unseat(opened)
            standby = turns.standby
        home = opened[0][0]
        if delay is not None and standby is not None and len(self._branches) > 1:
            # Its first hub may be stalled, and the others be waiting for nothing else.
            is_kept = standby.later(delay, functools.partial(self._accept_again, episode))
            delay = None if is_kept else delay
        home.run(functools.partial(self._entered, home, episode, delay))

    def _entered(self, home: Dispatcher, episode: int, delay: float | None) -> None:
        # In the server's first hub. Here everything may have changed again.
        if home is not self._home():
            return
        home.hold_loop(self._branches[0], is_held=self._state is not State.STOPPED)
        if episode != self._episode:
            return
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
        if delay is not None and home.has_loop:
            self._timer = home.hub.loop.timer(delay)
            self._timer.start(self._accept_again, episode)

    def _make_handlers(self) -> None:
        if self.handler_factory is not None:
            handlers = [self.handler_factory(index) for index in range(len(self._acceptors))]
            for acceptor, handle in zip(self._acceptors, handlers, strict=True):
                if not callable(handle):
                    raise TypeError(
                        f"handler_factory must return a callable, got {handle!r} "
                        f"for clone {acceptor.clone}"
                    )
                acceptor.handle = handle

    # -- what acceptors tell ------------------------------------------------------------------

    def has_promised_all(self) -> bool:
        """Whether all room in the pool is for connections that are on their way here."""
        pool = self.pool
        return (
            self._expected > 0
            and pool is not None
            and pool.size is not None
            and pool.free_count() <= self._expected
        )

    def found_full(self) -> None:
        """A turn found no room for its handler: pass over all clones until there is some."""
        if self._state is not State.ACCEPTING:
            return  # `full` itself has stopped or closed the server
        pool = self.pool
        is_locked = pool is not None and pool._semaphore.locked()
        self._is_told_of_room = is_locked
        if is_locked or isinstance(pool, SharedBound):
            self._pause(State.FULL)
        else:
            # A `full` of the user's own: nobody tells when it changes its mind. The end of
            # each handler is a good moment to ask (see `handler_ended`), and so is this.
            self._pause(State.FULL, self.next_delay() if self.delay >= 0 else None)
        home = self._home()
        if is_locked and home is not None:
            home.run(self._ask_for_room)
        elif isinstance(pool, SharedBound):
            self._look_for_room()  # the last handler may have ended a moment before

    def _ask_for_room(self) -> None:
        semaphore: Any = None if self.pool is None else self.pool._semaphore
        if semaphore is not None:
            semaphore.unlink(self._start_accepting_if_started)
            semaphore.rawlink(self._start_accepting_if_started)

    def _start_accepting_if_started(self, _event: object = None) -> None:
        # gevent's name; a pool's semaphore calls it when there may be room.
        if self._state is State.FULL:
            self._accept_again()

    def handler_ended(self, branch: Branch) -> None:
        """A handler is done, in whatever thread it ran, and not all is as it was.

        If all was full, there may be room; if the branch was closed, that may have been the last.
        """
        if branch.is_closed:
            branch.handler_ended()
        if self._state is not State.FULL or self._is_told_of_room:
            return
        home = self._home()
        if len(self._branches) > 1:
            self._look_for_room()
        elif home is not None:
            home.send(self._look_for_room)

    def look_for_room_soon(self) -> None:
        """What was on its way is not any more: if all was full, there may be room."""
        turns, home = self._turns, self._home()
        if turns is not None and turns.standby is not None and len(self._branches) > 1:
            turns.standby.send(self._look_for_room)
        elif home is not None:
            home.send(self._look_for_room)

    def _look_for_room(self) -> None:
        if self._state is State.FULL and not self.full() and not self.has_promised_all():
            self._accept_again()

    def next_delay(self) -> float:
        """Return how long to pause now, in seconds; twice as long the next time."""
        delay = self.delay
        self.delay = min(self.max_delay, delay * 2)
        return delay

    def back_off(self, context: object, error: BaseException) -> None:
        """Report *error* as gevent does, and pause all clones, once."""
        self.loop.handle_error(context, type(error), error, error.__traceback__)
        if self.delay >= 0 and self._state is State.ACCEPTING:
            self._pause(State.BACKING_OFF, self.next_delay())

    def is_fatal_error(self, ex: BaseException) -> bool:
        # gevent looks at args[0], which an OSError made without an errno doesn't have.
        return bool(ex.args) and super().is_fatal_error(ex)

    def fail(self, error: BaseException) -> None:
        """The listener is broken: report it, and close the server, once."""
        self.loop.handle_error(self, type(error), error, error.__traceback__)
        name = str(self)
        self.close()
        log.error("%s failed with %s", name, str(error) or repr(error))

    def do_read(self) -> Any:  # a subclass may return what it likes, gevent's stubs don't know
        """Accept a connection, if one waits; or take the one that another hub has accepted."""
        if self._turn.handed is not None:
            return self.read_handed()
        sock: Any = self.socket
        try:
            number, address = sock._accept()
        except BlockingIOError:
            if sock.timeout:
                raise
            return None
        family, kind, protocol = self._kind
        return Connection(family, kind, protocol, number), address

    def read_handed(self) -> tuple[Connection, Any]:
        """Take the connection that was accepted for the clone whose turn it is."""
        turn = self._turn
        handed = turn.handed
        assert handed is not None, "only in a turn"
        family, kind, protocol = self._kind
        connection = Connection(family, kind, protocol, handed.number)
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
                spawn(acceptor.serve_anywhere, handle, close, args)
            elif self.pool is not None and self.hubs == 1:
                acceptor.charged += turn.acceptor is not None
                self.pool.handle(serve, handle, close, args)
            else:
                acceptor.charged += turn.acceptor is not None
                handlers = branch.handlers if turn.acceptor is not None else None
                (handlers or handlers_here()).spawn(serve, handle, close, args)
        except BaseException:
            if acceptor.begun == begun:
                acceptor.never_served(is_charged=acceptor.charged != charged)
            close(*args)
            raise

    # -- clones -------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether clones that aren't paused wait for connections now."""
        turns = self._turns
        return self._state is State.ACCEPTING and turns is not None and not turns.is_paused

    def clone_stats(self) -> list[CloneStats]:
        """Return what each clone has done since the server was made, by index."""
        return [acceptor.stats() for acceptor in self._acceptors]

    def pause_clone(self, index: int) -> None:
        """Pass over clone *index* until `resume_clone`; its handlers go on. Twice is once.

        With all clones paused, clients wait in the accept queue.

        Raises:
            TypeError, ValueError: *index* is not 0 to N-1.
        """
        acceptor = self._acceptor(index)
        acceptor.is_paused = True
        if self._turns is not None:
            self._turns.leave(acceptor)

    def resume_clone(self, index: int) -> None:
        """Let clone *index* have turns again, from the end of the line. Twice is once."""
        acceptor = self._acceptor(index)
        acceptor.is_paused = False
        if self._turns is not None:
            self._turns.join(acceptor)

    def _acceptor(self, index: int) -> Acceptor:
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
