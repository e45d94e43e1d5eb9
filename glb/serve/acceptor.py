"""Acceptors: a server's part in the ring, one a clone.

An acceptor stands in the ring for its clone. When its turn comes it runs gevent's accept
step on its server, in the hub as gevent does: ``full()``, ``do_read()``, ``do_handle()``,
each as often as gevent calls it and each open to subclasses; and it counts what becomes of
the connection. It needs no greenlet of its own. (One a clone would cost a switch a
connection and 16 KiB of stack a clone, and could not run ``spawn=None`` handlers in the
hub, where gevent promises to run them.)

Most of what keeps a clone from its turns is the server's, and all acceptors' at once. What is
one clone's alone, a pause by its owner, a limit of its own, the end of its use, is its acceptor's
`~Acceptor.own` state. See `glb.model.states`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from gevent import getcurrent

from ..accept.protocols import PendingConnection, Turn
from ..accept.registry import REGISTRY
from ..accept.ring import Team
from ..accept.turns import Turns
from ..hubs.greenlet_pool import HandlerPool, handlers_here
from ..model.accept_errors import AcceptErrorKind, Episode, classify
from ..model.clone import CURRENT, Clone
from ..model.states import State, before, of_clone
from ..model.stats import CloneStats
from ..net.connection import Connection
from ..originals import monotonic
from .admission import Admission
from .hooks import Handler, Hooks
from .hooks import Turn as Thread
from .hub_worker import HubWorker
from .own_read import take_handed, take_turn
from .spawning import Spawning
from .workers import Workers

if TYPE_CHECKING:
    from ..hubs.greenlet_pool import Job

__all__ = ["Acceptor", "Loop"]

# For the path of each connection. CPython 3.11 asks an enum's metaclass for them.
_ACCEPTING: Final = State.ACCEPTING
_FULL: Final = State.FULL


class Loop(Protocol):
    """The accept loop of a clone: see `glb.serve.accept_loop.AcceptLoop`."""

    has_ended: bool

    @property
    def is_waiting(self) -> bool: ...
    def settle(self) -> None: ...
    def start(self) -> None: ...


class Acceptor:
    """One clone of one server: its place in the ring, its handler, its counts."""

    __slots__ = (
        "accepted",
        "accepts_itself",
        "admission",
        "clone",
        "completed",
        "dispatcher",
        "failed",
        "handle",
        "in_flight",
        "is_not_reclaimable",
        "loop",
        "own",
        "reclaimed",
        "server",
        "spawned",
        "taken",
        "team",
        "worker",
        "workers",
    )

    def __init__(
        self,
        server: Hooks,
        index: int,
        worker: HubWorker,
        workers: Workers,
        admission: Admission,
    ) -> None:
        self.server = server
        self.admission: Final = admission
        self.workers: Final = workers
        #: Of the hub on which it lives.
        self.worker = worker
        worker.acceptors[self] = None
        #: Its hub's, and its place in the ring, once the worker was opened.
        self.dispatcher: Any = None
        self.team: Team[Any] = Team(admitted=False)
        #: Whether the program has a ``do_read`` of its own, as `has_room` has found.
        self.accepts_itself = False
        #: Whether a connection that it takes can't be reclaimed before its handler begins.
        self.is_not_reclaimable = False
        self.clone: Final = Clone(index, cast("Any", server))
        #: Its accept loop, which stands in the ring in its place; ``None`` if it has none.
        self.loop: Loop | None = None
        #: Its own handler, where there is a ``handler_factory``.
        self.handle: Handler | None = None
        #: Its own state, as far as it isn't the server's: see `enter`. Clone sets let it in.
        self.own = State.STOPPED
        # Each is changed by one thread at a time: these by its hub's. `taken` are those for which a
        # handler was to run: all that were `accepted`, unless a `do_handle` of the program's own
        # has kept one or brought one.
        self.accepted = self.taken = self.completed = self.failed = 0
        #: What a ``spawn`` of the user's own was given, and has not begun: the handlers' arguments,
        #: by their identity. It may take its time, or forget them.
        self.spawned: dict[int, Any] = {}
        # These with the registry's lock held: connections on their way here, and such as were
        # taken back from here.
        self.in_flight = self.reclaimed = 0

    @property
    def active(self) -> int:
        """Connections whose handler runs, or is certain to."""
        done = self.completed + self.failed
        return self.taken - self.reclaimed - done - len(self.spawned)

    @property
    def load(self) -> int:
        """Connections that it has, or is about to have."""
        return self.active + self.in_flight

    @property
    def state(self) -> State:
        """What it does about new connections, and why."""
        has_ended = self.loop is not None and self.loop.has_ended
        own = State.STOPPED if has_ended else self.own
        return of_clone(own, self.admission.shown_state)

    def enter(self, state: State, after: Collection[State] = tuple(State)) -> bool:
        """Change its own state, and with it whether it has turns; tell whether it has changed.

        Only if that is one of *after* now, and leads there. From any thread.
        """
        with REGISTRY.lock:
            if self.own not in before(state) or self.own not in after:
                return False
            self.own = state
            self.settle(self.admission.turns)
            return True

    def settle(self, turns: Turns | None) -> None:
        """Stand in the *turns* of its server exactly if it is ready, itself or by its loop."""
        if turns is None:
            return  # it is closed
        if self.loop is not None:
            self.loop.settle()
        elif self.own is State.ACCEPTING:
            turns.join(self)
        else:
            turns.leave(self)

    def join(self, turns: Turns) -> None:
        """Its server has opened: stand in its turns, unless it is to stay away."""
        self.settle(turns)
        self._look_for_room()  # handlers that it had at the last stop may be done

    @property
    def runs_at_once(self) -> bool:
        return self.is_not_reclaimable or self.server.runs_in_hub

    @property
    def max_accept(self) -> int:
        return self.server.max_accept

    def next_delay(self) -> float:
        return self.admission.next_delay()

    @property
    def failures(self) -> Episode:
        return self.admission.failures

    def wants(self, error: OSError) -> bool:
        return self.server.is_fatal_error(error)

    @property
    def context(self) -> Hooks:
        return self.server

    def __repr__(self) -> str:
        return f"<Acceptor {self.clone} of {self.server}>"

    def take_turn(self) -> Turn:
        return take_turn(self)

    def has_room(self) -> bool:
        admission, server = self.admission, self.server
        self.accepts_itself = server.accepts_by_hook or "do_read" in server.__dict__
        if server.full():
            admission.found_full()
            return False
        return not (admission.expected or admission.is_limited) or self._is_within_bounds()

    def _is_within_bounds(self) -> bool:
        admission = self.admission
        if admission.expected and admission.has_assigned_all():
            admission.found_full()
            return False
        if admission.is_limited:
            if not admission.is_within_limits():
                return False
            if not self._is_within_limit():
                self.enter(State.FULL, after=(State.ACCEPTING,))
                self._look_for_room()  # another thread's handler may have ended meanwhile
                return False
        return True

    def _is_within_limit(self) -> bool:
        limit = self.server.max_connections_per_clone
        return limit is None or self.load + len(self.spawned) < limit

    def _look_for_room(self) -> None:
        if self.own is State.FULL and self._is_within_limit():
            self.enter(State.ACCEPTING, after=(State.FULL,))

    def may_expect_locked(self) -> bool:
        if self._is_within_limit():
            return True
        self.enter(State.FULL, after=(State.ACCEPTING,))
        return False

    def expect_locked(self) -> None:
        self.in_flight += 1
        self.admission.expect_locked()

    def unexpect_locked(self) -> None:
        self.in_flight -= 1
        self.admission.unexpect_locked()
        if self.own is State.FULL:
            self._look_for_room()

    def take(self, handed: PendingConnection) -> bool:
        if (self.workers.turn.worker or self.worker).is_closed:
            return False
        if self.accepts_itself:
            return take_handed(self, handed)
        # A pool that others use as well may have filled up since it was asked.
        if self.server.full():
            self.admission.found_full()
            return False
        if not self.deliver(handed.sock, handed.address, handed.moves):
            return False
        with self.dispatcher.turns.lock:
            self.unexpect_locked()
        return True

    def deliver(self, plain: Any, address: Any, moves: int | None = None) -> bool:
        admission, server = self.admission, self.server
        if self.worker.is_closed:
            return False
        try:
            if admission.bucket is not None and moves is None:
                admission.bucket.take(monotonic())
            connection = Connection.on(plain, admission.watermark, server)
            if moves:
                connection.moves = moves
            server.delay = server.min_delay
        except BaseException as error:
            # Nothing was accepted here, so it is nothing that the kernel says.
            admission.accept_failed(error)
            return True
        # With no call between the two: no signal handler can raise there.
        self.accepted += 1
        self.dispatcher.accepted += 1
        taken = self.taken
        turn = self.workers.turn
        turn.acceptor = self
        try:
            server.do_handle(connection, address)
        except BaseException as error:
            self.handle_failed(taken, (address,), error)
        finally:
            turn.acceptor = None
        return True

    def handle_failed(self, taken: int, peer: Any, error: BaseException) -> None:
        """``do_handle`` raised *error*. So many connections were *taken* before it."""
        if self.taken == taken:
            # It raised before `start` had counted the connection, which has no handler then.
            self.taken += 1
            (self.workers.turn.worker or self.worker).taken += 1
            self.never_served()
        # Its context is the peer and the server, as gevent's is.
        self.admission.back_off((peer, self.server), error)

    def can_reclaim(self, job: Job) -> bool:
        """Whether *job* came by a turn, and its connection was seen by no program's code."""
        run, _, _, args, _ = job
        return (
            not self.is_not_reclaimable
            and getattr(run, "__func__", None) is Acceptor.serve
            and type(args[0]) is Connection
        )

    def reclaim(self, job: Job) -> PendingConnection:
        """Return the connection of a *job* that won't be done here. The lock is held."""
        args, pool = job[-2:]
        connection, address = args
        moves = getattr(connection, "moves", 0)
        handed = PendingConnection(connection.release_plain(), address, moves)
        self.reclaimed += 1
        worker = self.worker
        worker.reclaimed += 1
        if pool is not None:
            self.dispatcher.send(pool.cancel)
        if self.admission.state is State.FULL:
            self.admission.look_for_room_soon()
        if self.own is State.FULL:
            self._look_for_room()
        if worker.is_closed or worker.watched:
            self.dispatcher.send(functools.partial(worker.handler_ended, args))
        return handed

    def broken(self, error: OSError) -> None:
        self.accept_failed(error)
        if self.admission.turns is not None:  # not every broken socket is fatal to gevent
            self.join(self.admission.turns)

    def accept_failed(self, error: BaseException) -> Turn:
        server = self.server
        if self.worker.is_closed:
            return Turn.PASSED  # by another thread, in the middle of this turn
        if server.is_fatal_error(error):
            self.admission.fail(error)
            return Turn.PASSED
        if classify(error) in (AcceptErrorKind.PEER_LEFT, AcceptErrorKind.OUT_OF_ROOM):
            raise error
        self.admission.accept_failed(error)
        # With a negative delay the server goes on, at the next wake-up: as gevent.
        return Turn.EMPTY

    def start(
        self,
        turn: Thread,
        spawning: Spawning,
        spawn: Any,
        handle: Handler,
        close: Handler,
        args: Any,
    ) -> None:
        """Have *spawn* run *handle*, then *close*, for a connection of this clone."""
        worker = turn.worker or self.worker
        worker.taken += 1
        self.taken += 1
        try:
            if spawn is spawning.replaced and spawn is not None:
                run, handlers = self.serve_anywhere, None
                if turn.acceptor is not None:
                    run, handlers = self.serve, worker.handlers
                bound = spawning.bound
                if bound is not None and isinstance(bound, HandlerPool):
                    bound.handle(run, handle, close, args)
                else:
                    if handlers is None:
                        handlers = handlers_here()
                    handlers.spawn(run, handle, close, args)
            elif spawn is None:
                self.serve_anywhere(handle, close, args)
            else:
                self.spawned[id(args)] = args
                spawn(self.serve_spawned, handle, close, args)
        except BaseException:
            # A handler that was called here has counted itself. What struck may have done so when
            # it waited already: it is not to run on what is closed here.
            if spawn is not None and spawn is not spawning.replaced:
                is_counted = self.spawned.pop(id(args), None) is None
            else:
                was_waiting = handlers_here().drop(lambda job: job[-2] is args) > 0
                is_counted = was_waiting or spawn is None
            if not is_counted:
                self.never_served()
            close(*args)
            raise

    def serve(self, handle: Handler, close: Handler, args: tuple[Any, ...]) -> object:
        """Handle one connection, in a greenlet whose context is not used after it; close it."""
        try:
            CURRENT.set(self.clone)
            result = handle(*args)
        except BaseException:
            self.failed += 1
            raise
        else:
            self.completed += 1
            return result
        finally:
            try:
                close(*args)
            finally:
                # This thread's: the server may have been started again, on other threads.
                worker = self.workers.turn.worker or self.worker
                worker.done += 1
                if worker.is_closed or worker.watched:
                    worker.handler_ended(args)
                if self.own is _FULL:
                    self._look_for_room()
                if self.admission.state is not _ACCEPTING:
                    self.admission.handler_ended()

    def serve_anywhere(self, handle: Handler, close: Handler, args: tuple[Any, ...]) -> object:
        """Handle one connection, in whatever greenlet ``spawn`` runs this, and close it."""
        # No local name for the greenlet: an error's traceback would keep it, and it the error.
        outer = CURRENT.get()
        unpooled = (self.workers.turn.worker or self.worker).unpooled
        outer_args = unpooled.get(getcurrent())
        unpooled[getcurrent()] = (self, args)
        try:
            return self.serve(handle, close, args)
        finally:
            if outer_args is None:
                unpooled.pop(getcurrent(), None)
            else:  # one that serves a connection and, within that, another
                unpooled[getcurrent()] = outer_args
            CURRENT.set(outer)  # not reset(): a handler may have changed its context

    def serve_spawned(self, handle: Handler, close: Handler, args: tuple[Any, ...]) -> object:
        """`serve_anywhere` what is among the `spawned`, unless it was killed before."""
        if self.spawned.pop(id(args), None) is None:
            return None
        return self.serve_anywhere(handle, close, args)

    def never_served(self) -> None:
        """A connection that was taken could not be given to a handler."""
        self.failed += 1
        (self.workers.turn.worker or self.worker).done += 1

    def look_over(self) -> None:
        """Take up what an exception has left undone: see `glb.hubs.guard`."""
        with REGISTRY.lock:  # or another thread could pause it in between
            if self.admission.turns is None:
                return  # it isn't open, or not yet
            if self not in self.team.line:
                self.settle(self.admission.turns)
        if self.loop is not None:
            self.loop.start()
        self._look_for_room()

    @property
    def has_miscounted(self) -> bool:
        """Whether it counts handlers, where none runs nor is about to."""
        return not self.in_flight and not self.spawned and self.active != 0

    def lose_count(self) -> None:
        """Nothing runs here, nor is about to: what is counted as active was lost, and failed."""
        with REGISTRY.lock:
            if self.has_miscounted:
                self.failed = max(self.failed + self.active, 0)
                self.taken = self.completed + self.failed + self.reclaimed
        self._look_for_room()

    def kill_spawned(self, keys: set[int]) -> None:
        """End those of the `spawned` that have not begun. In their hub."""
        worker = self.workers.turn.worker or self.worker
        for key in keys & self.spawned.keys():
            args = self.spawned.pop(key)
            try:
                self.server.do_close(*args)
            finally:
                self.never_served()
                worker.handler_ended(args)

    def forget(self) -> None:
        """What it is about to handle, or does, is the parent's: this process was forked."""
        self.accepted = self.taken = self.completed + self.failed
        self.reclaimed = 0
        self.spawned = {}

    def stats(self) -> CloneStats:
        has_turns = self.own is State.ACCEPTING and (self.loop is None or self.loop.is_waiting)
        return CloneStats(
            self.clone.index,
            self.accepted - self.reclaimed,
            self.active,
            self.completed,
            self.failed,
            has_turns and self.admission.is_open and self.worker.is_ready,
            self.worker.index,
            self.state.value,
        )
