"""The hand-over: connections that are accepted and not yet handled.

As soon as clones of a second hub share an address, one hub accepts for all (`glb.accept.turns`),
and these rules hold:

* A connection is accepted only while a clone is ready, and then **handed** to one. It is in the
  inbox of that clone's dispatcher, and then among the jobs of its hub's handler greenlets, until
  its handler begins.
* A connection that was not taken up within the patience is **taken back**, and given to the next
  ready clone. It is in one place at any time: in an inbox, among the jobs of a hub's handler
  greenlets, waiting here, or in a handler's hands. Nothing is served twice.
* A hub that was too slow is **withdrawn**: its clones are not ready until it turns again. Then it
  is on probation, and gets the next connection when it has taken up the last.

All state is guarded by the registry's lock.

Source: Node's cluster hands on what a worker has not acknowledged; HAProxy's listeners have
the queue a thread.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ..model.stats import PAUSE_REASONS
from ..originals import monotonic
from .protocols import Dispatcher, PendingConnection
from .turns import Turns

__all__ = ["QUICK_TAKES", "HandOver"]

# A hub that begins what it was handed at once, so often in succession, is trusted again.
QUICK_TAKES: Final = 16


class HandOver(Turns):
    """The turns of one address, and the connections that are on their way to clones."""

    def __init__(self, lock: Any) -> None:
        super().__init__(lock)
        #: The watchdog's ticks, one each `patience`.
        self.clock = 0
        #: How often a connection was taken back from a hub that was too slow, by its thread.
        self.taken_back_from: Final[Counter[int]] = Counter()
        #: How often nothing was accepted for a while, by the reason: ``"out_of_room"``, since no
        #: descriptor or memory was left, or another ``"error"``.
        self.pauses: Final[Counter[str]] = Counter(dict.fromkeys(PAUSE_REASONS, 0))
        #: How many of those had arrived with their hub already, where they count as accepted.
        self.reclaimed = 0
        #: What was accepted without a dispatcher, or by one that is gone.
        self.accepted_before = 0
        self.is_closed = False
        #: Connections that were accepted, and have no clone now; oldest first.
        self.waiting: deque[PendingConnection] = deque()
        #: How many connections are pending for programs that poll: see `glb.accept.readiness`.
        self.pending = 0

    @property
    def accepted(self) -> int:
        """How many connections were given to clones."""
        taken = sum(each.accepted for each in [*self.dispatchers.values()])
        return self.accepted_before + taken - self.reclaimed

    @property
    def taken_back(self) -> int:
        """How often a connection was taken back from a hub that was too slow."""
        return self.taken_back_from.total()

    def _look_locked(self) -> None:
        super()._look_locked()
        if self.waiting and self.leader is not None:
            self.leader.wake_locked()

    # -- hubs that go ----------------------------------------------------------------------------

    def remove_locked(self, dispatcher: Dispatcher) -> None:
        """Forget *dispatcher*; connections in its inbox go to others. Twice is harmless."""
        hubs = [hub for hub, each in self.dispatchers.items() if each is dispatcher]
        if not hubs:
            return
        del self.dispatchers[hubs[0]]
        self.accepted_before += dispatcher.accepted
        self._forget_locked(dispatcher)
        jobs = dispatcher.reclaim_jobs() if dispatcher.is_dead else []
        self.reclaimed += len(jobs)
        self._wait_locked([*jobs, *_take_all_locked(dispatcher)])

    def forget_dead_locked(self) -> None:
        """Forget the dispatchers of hubs that are no more."""
        for dispatcher in [*self.dispatchers.values()]:
            if dispatcher.is_dead:
                self.remove_locked(dispatcher)

    # -- connections on their way ----------------------------------------------------------------

    def take_waiting(self) -> PendingConnection | None:
        """Return the oldest of what was accepted and has no clone now; the caller has it then."""
        if not self.waiting:
            return None
        with self.lock:
            return self.waiting.popleft() if self.waiting else None

    def hand(self, handed: PendingConnection, giver: Dispatcher) -> bool:
        """Give *handed* to the next ready clone; tell whether that is one of *giver*'s own.

        Then the giver takes it up itself, now. Otherwise the giver wakes the other hub, when its
        batch ends: see `Dispatcher.handed_to`.
        """
        with self.lock:
            member = None if self.is_closed else self.next_locked()
            while member is not None and not member.may_expect_locked():
                full, member = member, self.next_locked()
                if member is full:
                    member = None  # it did not leave
            if member is None:
                self._wait_locked([handed])
                return False
            dispatcher = member.dispatcher
            handed.member = member
            handed.clock = self.clock
            self.ring.rotate(member.team, member)
            member.expect_locked()
            if dispatcher is giver:
                return True
            dispatcher.inbox.append(handed)
            if dispatcher.stalled_at is not None:
                dispatcher.tried_at = self.clock
                self._withdraw_locked(dispatcher)
            giver.handed_to[dispatcher] = None
            if self.watchdog is not None:
                self.watchdog.arm_locked()
            return False

    def give_back(self, handed: PendingConnection) -> None:
        """The clone to which it was handed can't take it: it is the next one's."""
        with self.lock:
            handed.member.unexpect_locked()
            self._wait_locked([handed])

    def put_back(self, accepted: PendingConnection) -> None:
        """The clone that had its turn can't take *accepted*: it is the next one's."""
        with self.lock:
            self._wait_locked([accepted])

    def put_back_locked(self, accepted: Sequence[PendingConnection]) -> None:
        """Give *accepted* to the next ready clones: those that were counted for it don't use it."""
        self.reclaimed += len(accepted)
        self._wait_locked(accepted)

    def reclaim_locked(self, dispatcher: Dispatcher) -> None:
        """Give what *dispatcher*'s hub lets lie to others."""
        jobs = dispatcher.reclaim_jobs()
        self.reclaimed += len(jobs)
        lying = [*jobs, *_take_all_locked(dispatcher)]
        for handed in lying:
            handed.moves += 1
        self.taken_back_from[dispatcher.thread] += len(lying)
        self._wait_locked(lying)

    def stall_locked(self, dispatcher: Dispatcher) -> None:
        """*dispatcher*'s hub does not turn: its clones aren't ready until it does."""
        dispatcher.stalled_at = monotonic()
        dispatcher.tried_at, dispatcher.quick = -1, 0
        self._withdraw_locked(dispatcher)
        dispatcher.wake_locked()

    def _withdraw_locked(self, dispatcher: Dispatcher) -> None:
        dispatcher.has_turns = False
        for team in dispatcher.admitted:
            self.ring.suspend(team)

    def restore_locked(self, dispatcher: Dispatcher) -> None:
        """*dispatcher*'s hub turns, and has taken up what it was handed."""
        if not dispatcher.has_turns:
            if dispatcher.stalled_at is not None:
                dispatcher.quick = dispatcher.quick + 1 if dispatcher.tried_at == self.clock else 0
                if dispatcher.quick > QUICK_TAKES:
                    dispatcher.stalled_at = None  # it was a false alarm, or is over
            dispatcher.has_turns = True
            self.ring.admit(*dispatcher.admitted)
            self._look_locked()

    def _wait_locked(self, back: Iterable[PendingConnection]) -> None:
        # To the front: what comes here was in the accept queue before all that is there now.
        self.waiting.extendleft(reversed([*back]))
        if self.is_closed:
            self._close_waiting_locked()
        elif self.waiting and self.leader is not None:
            self.leader.wake_locked()

    # -- the end -------------------------------------------------------------------------------

    def close_locked(self) -> None:
        """The entry is closed: close the connections that still wait here."""
        self.is_closed = True
        self._close_waiting_locked()

    def _close_waiting_locked(self) -> None:
        while self.waiting:
            with contextlib.suppress(OSError):  # EBADF: its number was closed elsewhere
                self.waiting.popleft().sock.close()

    def keep_thread_locked(self, thread: int) -> None:
        """Keep the dispatchers of *thread* alone, in a forked child.

        What is on its way is the parent's to serve. Other hubs' loops are not run here, and
        touching them could touch the parent's.
        """
        every = self.dispatchers
        kept = {hub: each for hub, each in every.items() if each.thread == thread}
        # No hub is woken until only those are left whose loops are here.
        self.dispatchers = {}
        self.leader = self.watchdog = None
        for hub, dispatcher in every.items():
            if hub not in kept:
                dispatcher.abandon()
                self._forget_locked(dispatcher)
            self.waiting.extend([*dispatcher.reclaim_jobs(), *_take_all_locked(dispatcher)])
        self._close_waiting_locked()
        for hub, dispatcher in kept.items():
            dispatcher.stalled_at = None
            self.add_locked(hub, dispatcher)
            self.restore_locked(dispatcher)
        self._look_locked()


def _take_all_locked(dispatcher: Dispatcher) -> list[PendingConnection]:
    lying = [*dispatcher.inbox]
    dispatcher.inbox.clear()
    for handed in lying:
        handed.member.unexpect_locked()
    return lying
