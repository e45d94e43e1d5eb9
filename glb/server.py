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

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import gevent.server
from gevent import get_hub
from gevent.baseserver import BaseServer
from gevent.server import DatagramServer

from .acceptor import Acceptor, State
from .address import Address, parse
from .balance import Policy
from .clones import Clone, current_clone
from .connection import Connection
from .dispatcher import Dispatcher, dispatcher_for
from .handlers import HandlerPool, Handlers, handlers_here
from .listener import Listener
from .registry import REGISTRY
from .ring import Team
from .sockets import DEFAULT_BACKLOG, check_backlog, set_nodelay
from .stats import CloneStats

__all__ = ["DatagramServer", "StreamServer"]

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
            each clone. By default, and with a number, handlers run in greenlets that are
            used again (see `glb.handlers`); ``gevent.spawn`` makes a fresh one each time.
        clones: How many, 1 or more; ``None`` is the class attribute, 4.
        reuse_port: Join the registry, so that other servers and listeners of this process
            may have the same address, all in one ring. ``None`` is the class attribute,
            ``False``: then a second server gets EADDRINUSE, as with gevent.
        handler_factory: Called with 0 to *clones* - 1 when the server first accepts; each
            returns the handler of that clone. In place of *handle*.
        policy: Which ready clone is next: ``"round_robin"``, the default, or
            ``"least_connections"``. One an address; ``None`` takes what is there.
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
    _dispatcher: Dispatcher | None = None
    _handlers: Handlers | None = None
    _replaced_spawn: Any = None
    _in_turn: Acceptor | None = None
    _is_told_of_room: bool = False

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
        nodelay: bool | None = None,
        **ssl_args: Any,
    ) -> None:
        self._take_arguments(
            handle, backlog, spawn, clones, reuse_port, handler_factory, policy, nodelay
        )
        super().__init__(listener, handle, backlog, spawn, **ssl_args)

    def _take_arguments(
        self,
        handle: object,
        backlog: object,
        spawn: object,
        clones: int | None,
        reuse_port: bool | None,
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
        if clones is not None:
            self.clones = clones
        if reuse_port is not None:
            self.reuse_port = bool(reuse_port)
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
        self._team: Team[Any] = Team(seated=False)
        self._make_acceptors()

    def _make_acceptors(self) -> None:
        if not isinstance(self.clones, int) or isinstance(self.clones, bool):
            raise TypeError(f"clones must be a whole number, got {self.clones!r}")
        if self.clones < 1:
            raise ValueError(f"clones must be 1 or more, got {self.clones!r}")
        self._acceptors = [Acceptor(self, index) for index in range(self.clones)]

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
        else:
            address = parse(listener)
            self.family = address.family
            self.address = address.sockaddr

    def set_handle(self, handle: Callable[..., object] | None) -> None:
        if handle is None and self.handler_factory is not None:
            handle = self._handle_by_clone
        super().set_handle(handle)  # type: ignore[arg-type]  # gevent takes None

    def set_spawn(self, spawn: Any) -> None:
        if isinstance(spawn, int):
            spawn = HandlerPool(spawn)
        super().set_spawn(spawn)
        # Handler greenlets stand for what makes one of gevent's for each connection, unless
        # a subclass, or somebody who sets `_spawn` later, has another way.
        is_default = spawn == "default" and self._spawn == BaseServer._spawn  # type: ignore[attr-defined]  # not in the stubs
        is_replaced = is_default or isinstance(self.pool, HandlerPool)
        self._replaced_spawn = self._spawn if is_replaced else None

    def _handle_by_clone(self, *args: Any) -> object:
        # Found here and not in `do_handle`, so that gevent's hooks around a handler, TLS
        # among them, stay around this one as well.
        return self._handler_of(current_clone())(*args)

    def _handler_of(self, clone: Clone | None) -> Callable[..., object]:
        if clone is not None and clone.server is self:
            acceptor: Acceptor | None = self._acceptors[clone]
        else:
            acceptor = self._in_turn
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
        if not self._listeners:
            self._open_listeners()
        self._handle = self.wrap_socket_and_handle if self.ssl_args else self.handle

    def _open_listeners(self) -> None:
        if len(self._acceptors) != self.clones:  # it was set since
            self._make_acceptors()
        given = self._handed_in
        listeners: list[Listener] = []
        try:
            listeners.append(self._first_listener())
            listeners.extend(listeners[0].dup() for _ in range(1, self.clones))
            if self.nodelay:
                set_nodelay(listeners[0]._sock)
            listeners[0].entry.join_policy(self._policy)
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
        self.socket = listeners[0]._sock
        self.address = listeners[0].address

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
        return Listener(REGISTRY.adopt(listener.fileno(), shared=self.reuse_port))

    def close(self) -> None:
        """Stop accepting, and close every clone and whatever was handed in. From anywhere."""
        self._stop_event.set()
        self._state = State.STOPPED
        listeners, self._listeners = self._listeners, ()
        handed_in, self._handed_in = self._handed_in, None
        dispatcher, self._dispatcher = self._dispatcher, None
        handlers, self._handlers = self._handlers, None
        timer, self._timer = self._timer, None
        team = self._team
        try:
            if dispatcher is not None:
                dispatcher.run(lambda: self._leave(dispatcher, handlers, team, timer))
        finally:
            if listeners:
                listeners[0].entry.leave_policy(self._policy)
            for listener in listeners:
                listener.close()
            if handed_in is not None:
                handed_in.close()
            self._remember_for_restart()
            super().close()

    def _leave(
        self, dispatcher: Dispatcher, handlers: Handlers | None, team: Team[Any], timer: Any
    ) -> None:
        # What the server was when it closed comes in: it may have been started again.
        if handlers is not None:
            handlers.release()
        if timer is not None and dispatcher.has_loop:
            timer.stop()
            timer.close()
        dispatcher.drop(team)
        dispatcher.detach()

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
        if not self._listeners:
            self.socket  # noqa: B018  # AttributeError, as gevent, of a server that isn't open
            self._open_listeners()
        if self._dispatcher is None:
            listeners = self._listeners
            self._make_handlers()
            # Making them may have taken a while: somebody may have closed or started it.
            if self._listeners is not listeners:
                return
        if self._dispatcher is None:
            hub = get_hub()
            dispatcher = dispatcher_for(listeners[0].entry, hub)
            self.loop = hub.loop
            self._dispatcher = dispatcher
            self._handlers = handlers_here()
            self._handlers.acquire()
            # A ring's own from here on; a server that starts again brings a new one.
            self._team = Team(seated=False)
            for acceptor in self._acceptors:
                if not acceptor.is_paused:
                    dispatcher.join(self._team, acceptor)
        self._enter(State.ACCEPTING)

    def stop_accepting(self) -> None:
        """Take nothing more, until `start_accepting`. Clients wait in the accept queue."""
        self._enter(State.STOPPED)

    def _enter(self, state: State, delay: float | None = None) -> None:
        """Change the state; after *delay* seconds, if given, accept again."""
        dispatcher = self._dispatcher
        if dispatcher is None:
            self._state = State.STOPPED  # and there is no timer, and no place in a ring
        else:
            dispatcher.run(lambda: self._set_state(state, dispatcher, delay))

    def _set_state(self, state: State, dispatcher: Dispatcher, delay: float | None) -> None:
        if dispatcher is not self._dispatcher:
            return  # it was closed meanwhile
        self._state = state
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None
        if state is State.ACCEPTING:
            dispatcher.seat(self._team)
        else:
            dispatcher.unseat(self._team)
        if delay is not None:
            self._timer = self.loop.timer(delay)
            self._timer.start(self._accept_again)

    def _accept_again(self) -> None:
        if self._state in (State.FULL, State.BACKING_OFF):
            self.start_accepting()

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

    def found_full(self) -> None:
        """A turn found no room for its handler: pass over all clones until there is some."""
        if self._state is not State.ACCEPTING:
            return  # `full` itself has stopped or closed the server
        self.stop_accepting()
        semaphore: Any = None if self.pool is None else self.pool._semaphore
        self._is_told_of_room = semaphore is not None and semaphore.locked()
        if self._is_told_of_room:
            self._enter(State.FULL)
            semaphore.unlink(self._start_accepting_if_started)
            semaphore.rawlink(self._start_accepting_if_started)
        else:
            # A `full` of the user's own: nobody tells when it changes its mind. The end of
            # each handler is a good moment to ask (see `handler_ended`), and so is this.
            self._enter(State.FULL, self.next_delay() if self.delay >= 0 else None)

    def _start_accepting_if_started(self, _event: object = None) -> None:
        # gevent's name; a pool's semaphore calls it when there may be room.
        if self._state is State.FULL:
            self._accept_again()

    def handler_ended(self) -> None:
        """A handler is done, in whatever thread it ran: if all was full, there may be room."""
        dispatcher = self._dispatcher
        if dispatcher is not None and not self._is_told_of_room:
            dispatcher.send(self._look_for_room)

    def _look_for_room(self) -> None:
        if self._state is State.FULL and not self.full():
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
            self.stop_accepting()
            self._enter(State.BACKING_OFF, self.next_delay())

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
        """Accept a connection, if one waits."""
        sock: Any = self.socket
        try:
            number, address = sock._accept()
        except BlockingIOError:
            if sock.timeout:
                raise
            return None
        return Connection(sock.family, sock.type, sock.proto, number), address

    def do_handle(self, *args: Any) -> None:
        """Run the handler for a connection of the clone whose turn it is, as ``spawn`` says."""
        # Out of turn, which gevent allows, a connection is counted for the first clone.
        acceptor = self._in_turn or self._acceptors[0]
        begun = acceptor.begun
        spawn: Any = self._spawn
        handle: Any = self._handle
        close = self.do_close
        try:
            if spawn is None:
                acceptor.serve_anywhere(handle, close, args)
            elif spawn is not self._replaced_spawn:
                spawn(acceptor.serve_anywhere, handle, close, args)
            elif self.pool is not None:
                self.pool.handle(acceptor.serve, handle, close, args)
            else:
                handlers = self._handlers
                if handlers is None or self._in_turn is None:
                    handlers = handlers_here()
                handlers.spawn(acceptor.serve, handle, close, args)
        except BaseException:
            if acceptor.begun == begun:
                acceptor.never_served()
            close(*args)
            raise

    # -- clones -------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether clones that aren't paused wait for connections now."""
        dispatcher = self._dispatcher
        return (
            self._state is State.ACCEPTING
            and dispatcher is not None
            and dispatcher.has_loop
            and not dispatcher.is_paused
        )

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
        dispatcher, team = self._dispatcher, self._team
        if dispatcher is not None:
            dispatcher.run(lambda: dispatcher.leave(team, acceptor))

    def resume_clone(self, index: int) -> None:
        """Let clone *index* have turns again, from the end of the line. Twice is once."""
        acceptor = self._acceptor(index)
        acceptor.is_paused = False
        dispatcher, team = self._dispatcher, self._team
        if dispatcher is not None:
            dispatcher.run(lambda: dispatcher.join(team, acceptor))

    def _acceptor(self, index: int) -> Acceptor:
        try:
            number = operator.index(index)
        except TypeError as error:
            raise TypeError(f"clone must be a whole number, got {index!r}") from error
        if not 0 <= number < len(self._acceptors):
            raise ValueError(f"clone must be 0 to {len(self._acceptors) - 1}, got {index!r}")
        return self._acceptors[number]
