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
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from gevent import getcurrent

from ..accept.protocols import Handed, Turn
from ..accept.registry import REGISTRY
from ..accept.ring import Team
from ..accept.turns import Turns
from ..model.accept_errors import Episode, Heap, classify
from ..model.clone import CURRENT, Clone
from ..model.states import State, before, of_clone
from ..model.stats import CloneStats
from ..net.connection import Connection
from ..originals import monotonic

if TYPE_CHECKING:
    from ..hubs.greenlet_pool import Job
    from ..server import StreamServer
    from .admission import Gate
    from .hub_worker import Branch

__all__ = ["Acceptor"]


class Acceptor:
    """One clone of one server: its place in the ring, its handler, its counts."""

    __slots__ = (
        "accepted",
        "begun",
        "branch",
        "charged",
        "clone",
        "completed",
        "dispatcher",
        "failed",
        "gate",
        "given_up",
        "handle",
        "is_out_of_reach",
        "own",
        "promised",
        "server",
        "spawned",
        "team",
    )

    def __init__(self, server: StreamServer, index: int, branch: Branch) -> None:
        self.server = server
        self.gate: Gate = server._gate
        #: Of the hub on which it lives.
        self.branch = branch
        branch.acceptors[self] = None
        #: Its hub's, and its place in the ring, once the branch was opened.
        self.dispatcher: Any = None
        self.team: Team[Any] = Team(seated=False)
        #: Whether what it takes is where nobody can take it back, until its handler begins.
        self.is_out_of_reach = False
        self.clone = Clone(index, server)
        #: Its own handler, where there is a ``handler_factory``.
        self.handle: Callable[..., object] | None = None
        #: Its own state, as far as it isn't the server's: see `enter`.
        self.own = State.ACCEPTING
        # Each is changed by one thread at a time: these by its hub's,
        self.accepted = self.begun = self.completed = self.failed = 0
        #: Handlers that have begun, or are certain to.
        self.charged = 0
        #: What a ``spawn`` of the user's own was given, and has not begun: the handlers' arguments,
        #: by their identity. It may take its time, or forget them.
        self.spawned: dict[int, Any] = {}
        #: and these with the registry's lock held: connections on their way here, and such as
        #: were taken back from here.
        self.promised = self.given_up = 0

    @property
    def load(self) -> int:
        """Connections that it has, or is about to have."""
        return self.charged - self.given_up - self.completed - self.failed + self.promised

    @property
    def state(self) -> State:
        """What it does about new connections, and why."""
        return of_clone(self.own, self.gate.shown_state)

    def enter(self, state: State, after: Collection[State] = tuple(State)) -> bool:
        """Change its own state, and with it whether it has turns; tell whether it has changed.

        Only if that is one of *after* now, and leads there. From any thread.
        """
        turns = self.gate.turns
        with REGISTRY.lock:
            if self.own not in before(state) or self.own not in after:
                return False
            self.own = state
            if turns is not None and state is State.ACCEPTING:
                turns.join(self)
            elif turns is not None:
                turns.leave(self)
            return True

    def join(self, turns: Turns) -> None:
        """Its server has opened: stand in its turns, unless it is to stay away."""
        if self.own is State.ACCEPTING:
            turns.join(self)
        else:
            self._look_for_room()  # those that it had at the last stop may be done

    @property
    def runs_at_once(self) -> bool:
        return self.is_out_of_reach or self.server._spawn is None

    @property
    def max_accept(self) -> int:
        return self.server.max_accept

    def next_delay(self) -> float:
        return self.gate.next_delay()

    @property
    def failures(self) -> Episode:
        return self.gate.failures

    def wants(self, error: OSError) -> bool:
        return self.server.is_fatal_error(error)

    @property
    def context(self) -> StreamServer:
        return self.server

    def __repr__(self) -> str:
        return f"<Acceptor {self.clone} of {self.server}>"

    def take_turn(self) -> Turn:
        server = self.server
        try:
            if not self.has_room():
                return Turn.PASSED
            args: Any = server.do_read()
            server.delay = server.min_delay
            if not args:
                return Turn.EMPTY
        except BaseException as error:
            return self._read_failed(error)
        dispatcher = self.dispatcher
        dispatcher.accepted += 1
        turns = dispatcher.turns
        with turns.lock:
            turns.ring.rotate(self.team, self)
        if self.gate.bucket is not None:
            self.gate.bucket.take(monotonic())
        self._handle(args)
        return Turn.TAKEN

    def has_room(self) -> bool:
        gate = self.gate
        if self.server.full() or (gate.expected and gate.has_promised_all()):
            gate.found_full()
            return False
        if gate.is_limited:
            if not gate.is_within_limits():
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
        self.promised += 1
        self.gate.expect_locked()

    def unexpect_locked(self) -> None:
        self.promised -= 1
        self.gate.unexpect_locked()
        if self.own is State.FULL:
            self._look_for_room()

    def take(self, handed: Handed) -> bool:
        server = self.server
        turn = server._turn
        branch = turn.branch or self.branch
        if branch.is_closed:
            return False
        turn.handed = handed
        try:
            # A pool that others use as well may have filled up since it was asked.
            if server.full():
                self.gate.found_full()
                return False
            args: Any = server.do_read()
            if turn.handed is not None:
                # A `do_read` that accepts by itself. What it may have got is served as well.
                if args:
                    self._handle(args)
                args = server.read_handed()
            server.delay = server.min_delay
            self._handle(args)
        except BaseException as error:
            # Nothing was accepted here, so it is nothing that the kernel says.
            self.gate.accept_failed(error)
            if turn.handed is not None:
                return False
        finally:
            turn.handed = None
        with self.dispatcher.turns.lock:
            self.unexpect_locked()
        return True

    def can_give_up(self, job: Job) -> bool:
        """Whether *job* is one that came by a turn, and of which nobody knows yet."""
        run, _, _, args, _ = job
        return (
            not self.is_out_of_reach
            and getattr(run, "__func__", None) is Acceptor.serve
            and type(args[0]) is Connection
        )

    def give_up(self, job: Job) -> Handed:
        """Return the connection of a *job* that won't be done here. The lock is held."""
        args, pool = job[-2:]
        connection, address = args
        moves = getattr(connection, "moves", 0)
        handed = Handed(connection.give_up(), address, moves)
        self.given_up += 1
        branch = self.branch
        branch.given_up += 1
        if pool is not None:
            self.dispatcher.send(pool.cancel)
        if self.gate.state is State.FULL:
            self.gate.look_for_room_soon()
        if self.own is State.FULL:
            self._look_for_room()
        if branch.is_closed or branch.watched:
            self.dispatcher.send(functools.partial(branch.handler_ended, args))
        return handed

    def broken(self, error: OSError) -> None:
        self._read_failed(error)
        if self.gate.turns is not None:  # not every broken socket is fatal to gevent
            self.join(self.gate.turns)

    def _handle(self, args: Any) -> None:
        server = self.server
        self.accepted += 1
        turn = server._turn
        turn.acceptor = self
        try:
            server.do_handle(*args)
        except BaseException as error:
            # Its context is the peer and the server, as gevent's is.
            peer = args[1:] if isinstance(args, (tuple, list)) else args
            self.gate.back_off((peer, server), error)
        finally:
            turn.acceptor = None

    def _read_failed(self, error: BaseException) -> Turn:
        server = self.server
        if self.branch.is_closed:
            return Turn.PASSED  # by another thread, in the middle of this turn
        if server.is_fatal_error(error):
            server.fail(error)
            return Turn.PASSED
        if classify(error) in (Heap.PEER_LEFT, Heap.OUT_OF_ROOM):
            raise error
        self.gate.accept_failed(error)
        # With a negative delay the server goes on, at the next wake-up: as gevent.
        return Turn.EMPTY

    def serve(
        self, handle: Callable[..., object], close: Callable[..., object], args: tuple[Any, ...]
    ) -> object:
        """Handle one connection, in a greenlet whose context nobody has after it; close it."""
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
                server = self.server
                # This thread's: the server may have been started again, on other threads.
                branch = server._turn.branch or self.branch
                branch.done += 1
                if branch.is_closed or branch.watched:
                    branch.handler_ended(args)
                if self.own is State.FULL:
                    self._look_for_room()
                if self.gate.state is not State.ACCEPTING:
                    self.gate.handler_ended()

    def serve_anywhere(
        self, handle: Callable[..., object], close: Callable[..., object], args: tuple[Any, ...]
    ) -> object:
        """Handle one connection, in whatever greenlet ``spawn`` runs this, and close it."""
        self.charged += 1
        return self._serve_charged(handle, close, args)

    def serve_spawned(
        self, handle: Callable[..., object], close: Callable[..., object], args: tuple[Any, ...]
    ) -> object:
        """`serve_anywhere` what is among the `spawned`, unless it was killed before."""
        if id(args) not in self.spawned:
            return None
        # In this order: another thread may look whether there is room.
        self.charged += 1
        del self.spawned[id(args)]
        return self._serve_charged(handle, close, args)

    def _serve_charged(
        self, handle: Callable[..., object], close: Callable[..., object], args: tuple[Any, ...]
    ) -> object:
        # No local name for the greenlet: an error's traceback would keep it, and it the error.
        outer = CURRENT.get()
        strangers = (self.server._turn.branch or self.branch).strangers
        outer_args = strangers.get(getcurrent())
        strangers[getcurrent()] = (self, args)
        try:
            return self.serve(handle, close, args)
        finally:
            if outer_args is None:
                strangers.pop(getcurrent(), None)
            else:  # one that serves a connection and, within that, another
                strangers[getcurrent()] = outer_args
            CURRENT.set(outer)  # not reset(): a handler may have changed its context

    def never_served(self, *, is_charged: bool) -> None:
        """A connection that was taken could not be given to a handler."""
        self.charged += not is_charged
        self.begun += 1
        self.failed += 1
        (self.server._turn.branch or self.branch).done += 1

    def look_over(self) -> None:
        """Take up what an exception has left undone: see `glb.hubs.guard`."""
        with REGISTRY.lock:  # or another thread could pause it in between
            turns = self.gate.turns
            if turns is not None and self.own is State.ACCEPTING and self not in self.team.line:
                turns.join(self)
        self._look_for_room()

    @property
    def has_miscounted(self) -> bool:
        """Whether it counts handlers, where none runs nor is about to."""
        is_idle = not self.promised and not self.spawned
        return is_idle and (self.load != 0 or self.begun != self.completed + self.failed)

    def lose_count(self) -> None:
        """Nothing runs here, nor is about to: what is counted as active was lost, and failed."""
        with REGISTRY.lock:
            if self.has_miscounted:
                self.begun = max(self.begun, self.completed + self.failed)
                self.failed = self.begun - self.completed
                self.charged = self.completed + self.failed + self.given_up
        self._look_for_room()

    def kill_spawned(self, keys: set[int]) -> None:
        """End those of the `spawned` that have not begun. In their hub."""
        branch = self.server._turn.branch or self.branch
        for key in keys & self.spawned.keys():
            args = self.spawned.pop(key)
            try:
                self.server.do_close(*args)
            finally:
                self.never_served(is_charged=False)
                branch.handler_ended(args)

    def forget(self) -> None:
        """What it is about to handle, or does, is the parent's: this process was forked."""
        self.begun = self.charged = self.completed + self.failed
        self.accepted, self.given_up = self.begun, 0
        self.spawned = {}

    def stats(self) -> CloneStats:
        return CloneStats(
            self.clone.index,
            self.accepted - self.given_up,
            self.begun - self.completed - self.failed,
            self.completed,
            self.failed,
            self.own is State.ACCEPTING and self.gate.is_open and self.branch.is_ready,
            self.branch.index,
            self.state.value,
        )
