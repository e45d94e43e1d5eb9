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
from typing import TYPE_CHECKING, Any, Final, cast

from gevent import getcurrent

from ..accept.protocols import PendingConnection, Turn
from ..accept.registry import REGISTRY
from ..accept.ring import Team
from ..accept.turns import Turns
from ..model.accept_errors import AcceptErrorKind, Episode, classify
from ..model.clone import CURRENT, Clone
from ..model.states import State, before, of_clone
from ..model.stats import CloneStats
from ..net.connection import Connection
from ..originals import monotonic
from .accept_loop import AcceptLoop, settle
from .admission import Admission
from .hooks import Handler, Hooks
from .hooks import Turn as Thread
from .hub_worker import HubWorker
from .workers import Workers

if TYPE_CHECKING:
    from ..hubs.greenlet_pool import Job

__all__ = ["Acceptor", "read_handed"]


class Acceptor:
    """One clone of one server: its place in the ring, its handler, its counts."""

    __slots__ = (
        "accepted",
        "accepts_itself",
        "admission",
        "assigned",
        "begun",
        "clone",
        "completed",
        "dispatcher",
        "failed",
        "handle",
        "in_flight",
        "is_out_of_reach",
        "loop",
        "own",
        "reclaimed",
        "server",
        "spawned",
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
        self.is_out_of_reach = False
        self.clone: Final = Clone(index, cast("Any", server))
        #: Its accept loop, which stands in the ring in its place; ``None`` if it has none.
        self.loop: AcceptLoop | None = None
        #: Its own handler, where there is a ``handler_factory``.
        self.handle: Handler | None = None
        #: Its own state, as far as it isn't the server's: see `enter`.
        self.own = State.ACCEPTING
        # Each is changed by one thread at a time: these by its hub's,
        self.accepted = self.begun = self.completed = self.failed = 0
        #: Handlers that have begun, or are certain to.
        self.assigned = 0
        #: What a ``spawn`` of the user's own was given, and has not begun: the handlers' arguments,
        #: by their identity. It may take its time, or forget them.
        self.spawned: dict[int, Any] = {}
        #: and these with the registry's lock held: connections on their way here, and such as
        #: were taken back from here.
        self.in_flight = self.reclaimed = 0

    @property
    def load(self) -> int:
        """Connections that it has, or is about to have."""
        return self.assigned - self.reclaimed - self.completed - self.failed + self.in_flight

    @property
    def state(self) -> State:
        """What it does about new connections, and why."""
        return of_clone(self.own, self.admission.shown_state)

    def enter(self, state: State, after: Collection[State] = tuple(State)) -> bool:
        """Change its own state, and with it whether it has turns; tell whether it has changed.

        Only if that is one of *after* now, and leads there. From any thread.
        """
        with REGISTRY.lock:
            if self.own not in before(state) or self.own not in after:
                return False
            self.own = state
            settle(self, self.admission.turns)
            return True

    def join(self, turns: Turns) -> None:
        """Its server has opened: stand in its turns, unless it is to stay away."""
        settle(self, turns)
        self._look_for_room()  # handlers that it had at the last stop may be done

    @property
    def runs_at_once(self) -> bool:
        return self.is_out_of_reach or self.server.runs_in_hub

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
        server, admission = self.server, self.admission
        try:
            args: Any = server.do_read()
            server.delay = server.min_delay
            if not args:
                return Turn.EMPTY
        except BaseException as error:
            return self.accept_failed(error)
        dispatcher = self.dispatcher
        dispatcher.accepted += 1
        turns = dispatcher.turns
        with turns.lock:
            turns.ring.rotate(self.team, self)
        if admission.bucket is not None:
            admission.bucket.take(monotonic())
        # As `_handle`, which is a call more.
        self.accepted += 1
        turn = self.workers.turn
        turn.acceptor = self
        try:
            server.do_handle(*args)
        except BaseException as error:
            self._handle_failed(args, error)
        finally:
            turn.acceptor = None
        return Turn.TAKEN

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
            return self._read_handed(handed)
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
            if moves is None and admission.bucket is not None:
                admission.bucket.take(monotonic())
            number = plain.fileno()
            if number >= admission.watermark.level:
                admission.watermark.reached(server, number)
            connection = Connection.on(plain)
            if moves:
                connection.moves = moves
            server.delay = server.min_delay
        except BaseException as error:
            # Nothing was accepted here, so it is nothing that the kernel says.
            admission.accept_failed(error)
            return True
        self.accepted += 1
        turn = self.workers.turn
        turn.acceptor = self
        try:
            server.do_handle(connection, address)
        except BaseException as error:
            # Its context is the peer and the server, as gevent's is.
            admission.back_off(((address,), server), error)
        finally:
            turn.acceptor = None
        return True

    def _read_handed(self, handed: PendingConnection) -> bool:
        server = self.server
        turn = self.workers.turn
        turn.handed = handed
        try:
            # A pool that others use as well may have filled up since it was asked.
            if server.full():
                self.admission.found_full()
                return False
            args: Any = server.do_read()
            if turn.handed is not None:
                # A `do_read` that accepts by itself. What it may have got is served as well.
                if args:
                    self._handle(args)
                args = read_handed(turn, self.admission)
            server.delay = server.min_delay
            self._handle(args)
        except BaseException as error:
            # Nothing was accepted here, so it is nothing that the kernel says.
            self.admission.accept_failed(error)
            if turn.handed is not None:
                return False
        finally:
            turn.handed = None
        with self.dispatcher.turns.lock:
            self.unexpect_locked()
        return True

    def can_give_up(self, job: Job) -> bool:
        """Whether *job* came by a turn, and its connection was seen by no program's code."""
        run, _, _, args, _ = job
        return (
            not self.is_out_of_reach
            and getattr(run, "__func__", None) is Acceptor.serve
            and type(args[0]) is Connection
        )

    def give_up(self, job: Job) -> PendingConnection:
        """Return the connection of a *job* that won't be done here. The lock is held."""
        args, pool = job[-2:]
        connection, address = args
        moves = getattr(connection, "moves", 0)
        handed = PendingConnection(connection.give_up(), address, moves)
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

    def _handle(self, args: Any) -> None:
        self.accepted += 1
        turn = self.workers.turn
        turn.acceptor = self
        try:
            self.server.do_handle(*args)
        except BaseException as error:
            self._handle_failed(args, error)
        finally:
            turn.acceptor = None

    def _handle_failed(self, args: Any, error: BaseException) -> None:
        # Its context is the peer and the server, as gevent's is.
        peer = args[1:] if isinstance(args, (tuple, list)) else args
        self.admission.back_off((peer, self.server), error)

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

    def serve(self, handle: Handler, close: Handler, args: tuple[Any, ...]) -> object:
        """Handle one connection, in a greenlet whose context is not used after it; close it."""
        self.begun += 1
        CURRENT.set(self.clone)
        try:
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
                if self.own is State.FULL:
                    self._look_for_room()
                if self.admission.state is not State.ACCEPTING:
                    self.admission.handler_ended()

    def serve_anywhere(self, handle: Handler, close: Handler, args: tuple[Any, ...]) -> object:
        """Handle one connection, in whatever greenlet ``spawn`` runs this, and close it."""
        self.assigned += 1
        return self._serve_assigned(handle, close, args)

    def serve_spawned(self, handle: Handler, close: Handler, args: tuple[Any, ...]) -> object:
        """`serve_anywhere` what is among the `spawned`, unless it was killed before."""
        if id(args) not in self.spawned:
            return None
        # In this order: another thread may look whether there is room.
        self.assigned += 1
        del self.spawned[id(args)]
        return self._serve_assigned(handle, close, args)

    def _serve_assigned(self, handle: Handler, close: Handler, args: tuple[Any, ...]) -> object:
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

    def never_served(self, *, is_assigned: bool) -> None:
        """A connection that was taken could not be given to a handler."""
        self.assigned += not is_assigned
        self.begun += 1
        self.failed += 1
        (self.workers.turn.worker or self.worker).done += 1

    def look_over(self) -> None:
        """Take up what an exception has left undone: see `glb.hubs.guard`."""
        with REGISTRY.lock:  # or another thread could pause it in between
            if self not in self.team.line:
                settle(self, self.admission.turns)
        if self.loop is not None:
            self.loop.start()
        self._look_for_room()

    @property
    def has_miscounted(self) -> bool:
        """Whether it counts handlers, where none runs nor is about to."""
        is_idle = not self.in_flight and not self.spawned
        return is_idle and (self.load != 0 or self.begun != self.completed + self.failed)

    def lose_count(self) -> None:
        """Nothing runs here, nor is about to: what is counted as active was lost, and failed."""
        with REGISTRY.lock:
            if self.has_miscounted:
                self.begun = max(self.begun, self.completed + self.failed)
                self.failed = self.begun - self.completed
                self.assigned = self.completed + self.failed + self.reclaimed
        self._look_for_room()

    def kill_spawned(self, keys: set[int]) -> None:
        """End those of the `spawned` that have not begun. In their hub."""
        worker = self.workers.turn.worker or self.worker
        for key in keys & self.spawned.keys():
            args = self.spawned.pop(key)
            try:
                self.server.do_close(*args)
            finally:
                self.never_served(is_assigned=False)
                worker.handler_ended(args)

    def forget(self) -> None:
        """What it is about to handle, or does, is the parent's: this process was forked."""
        self.begun = self.assigned = self.completed + self.failed
        self.accepted, self.reclaimed = self.begun, 0
        self.spawned = {}

    def stats(self) -> CloneStats:
        has_turns = self.own is State.ACCEPTING and (self.loop is None or self.loop.is_waiting)
        return CloneStats(
            self.clone.index,
            self.accepted - self.reclaimed,
            self.begun - self.completed - self.failed,
            self.completed,
            self.failed,
            has_turns and self.admission.is_open and self.worker.is_ready,
            self.worker.index,
            self.state.value,
        )


def read_handed(turn: Thread, admission: Admission) -> tuple[Connection, Any]:
    """Take the connection that was accepted for the clone whose turn it is."""
    handed = turn.handed
    assert handed is not None, "only in a turn"
    number = handed.sock.fileno()
    if number >= admission.watermark.level:
        admission.watermark.reached(admission.server, number)
    connection = Connection.on(handed.sock)
    if handed.moves:
        connection.moves = handed.moves
    turn.handed = None
    return connection, handed.address
