"""Readiness: clones of programs that poll, in ``select`` or by accepting without waiting.

A greenlet in ``accept()`` needs nothing of this. A `Readiness` is made for a clone when a program
first polls it, or accepts from it without waiting:

* While a program **polls** it, the clone is ready. The connection of its turn becomes a **pending
  connection** of the clone, and its `ReadinessEvent` is set until the program has accepted it. So
  each poller learns of a connection on its clone's turn, and never for nothing.
* A program may **poll without waiting**: call ``accept`` on a non-blocking socket, or poll with a
  timeout of 0. If it never polls otherwise, its clone is ready from then on, and the next call
  finds the connection of the turn. Such a poll also deals out what waits: `Readiness.deal`.

The clones of one poll are **mates**: they are ready together, and they come back together. So each
keeps its place between two polls, even at the end of the line, where a turn has sent it. A mate
that accepts again between two polls does not take the turn of one that has waited longer: the
connection stays in the accept queue, where the next poll finds it.

A closed clone's pending connection goes to the next ready clone. So does that of a program that
has stopped polling without waiting. A pending connection that a poller has seen stays, as on a
socket of its own.

The event is `glb.accept.readiness_event`'s.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from gevent import get_hub

from ..net.connection import accept_plain, kind_of
from ..originals import monotonic
from .handover import HandOver
from .protocols import Member, PendingConnection
from .readiness_event import ReadinessEvent

__all__ = ["Accepted", "Readiness", "in_order"]

# A program that has been silent for so many times its last polling interval has stopped polling: an
# irregular one has time, and a client doesn't wait long for one that works or is stuck.
POLLING_INTERVALS: Final = 3
POLLING_MIN_SECONDS: Final = 0.05
POLLING_MAX_SECONDS: Final = 1.0

# A program that polls, and then accepts until there is nothing more, is refused once in between.
# That doesn't make it one that polls without waiting, and is ready while it does something else.
REFUSALS_OF_POLLERS: Final = 2


#: The plain socket of a connection, and its peer.
Accepted = tuple[Any, Any]


class OfHub(Member, Protocol):
    """A clone's part on one hub: see `glb.accept.waiters.HubWaiters`."""

    polls: int
    is_polled_nowait: bool
    waiters: deque[Any]

    @property
    def clone(self) -> Any: ...
    def settle(self, *, keeps_place: bool = False) -> None: ...
    def hold_loop(self) -> None: ...


class OfClone(Protocol):
    """A clone, as its readiness sees it: see `glb.accept.waiters.AcceptWaiters`."""

    place: int | None
    keeps_place: bool

    @property
    def entry(self) -> Any: ...
    @property
    def hubs(self) -> list[Any]: ...
    @property
    def is_cancelled(self) -> bool: ...
    def check_open(self) -> None: ...
    def on(self, hub: Any) -> Any: ...
    def leave(self, of_hub: Any) -> None: ...
    def settle(self) -> None: ...


class Readiness:
    """A clone's pending connections, its event, and what is known of the program that polls it."""

    __slots__ = (
        "__weakref__",
        "_clone",
        "_event",
        "_interval",
        "_is_seen",
        "_mates",
        "_polled_at",
        "_refusals",
        "_refusals_since_poll",
        "_timer",
        "pending",
    )

    def __init__(self, clone: OfClone) -> None:
        self._clone: Final = clone
        #: Its pending connections, oldest first.
        self.pending: deque[Accepted] = deque()
        self._event: ReadinessEvent | None = None
        # The clones of this address in the last poll of this one, itself among them.
        self._mates: list[Readiness] = []
        # Whether a poller knows of the pending connections.
        self._is_seen = False
        # How often it was refused since the last poll that waited.
        self._refusals = REFUSALS_OF_POLLERS
        # How often it was refused since the last poll of any kind.
        self._refusals_since_poll = 0
        # When it was last polled without waiting, and how long after the time before.
        self._polled_at = 0.0
        self._interval = 0.0
        # Looks after pending connections. Each stops itself, in its own hub.
        self._timer: Any = None

    @property
    def entry(self) -> Any:
        return self._clone.entry

    @property
    def _turns(self) -> HandOver:
        turns: HandOver = self._clone.entry.turns
        return turns

    # -- without waiting -----------------------------------------------------------------------

    def accept_nowait(self, *, is_in_line: bool) -> Accepted:
        """Accept what is this clone's now.

        It stands in line from then on, if *is_in_line*, and it is never polled. Those before it are
        given their connections first, as pending ones. The dispatcher gives theirs to greenlets in
        ``accept()``, and to servers.

        Raises:
            OSError: ``BlockingIOError`` if there is nothing for it now; whatever accept(2) says.
        """
        clone, turns = self._clone, self._turns
        clone.check_open()
        with turns.lock:
            if is_in_line:
                self._note_poll_nowait()
            while True:
                found = self.take_one()
                if found is not None:
                    return found
                try:
                    first = self._first_polled()
                except BlockingIOError:
                    break
                if first is not None and first.clone is not clone and self._goes_before_line:
                    first = None
                if first is not None and first.clone is not clone:
                    if self._has_mate(first.clone.readiness):
                        break
                    first.clone.readiness.give_turn(first, self._next_connection())
                    continue
                # Other clones may have pending connections that they had no time to accept.
                if turns.pending or self._is_turn_of_mate:
                    break
                handed = self._next_connection()
                turns.accepted_before += 1
                if first is not None:
                    turns.rotate(first.team, first)
                else:
                    clone.place = turns.ring.serve(clone.place if clone.keeps_place else None)
                    clone.keeps_place = bool(self._mates)
                return handed.sock, handed.address
            self._refusals += 1
            self._refusals_since_poll += 1
            if self._refusals_since_poll >= REFUSALS_OF_POLLERS:
                self._mates = []  # it is polled no more
        raise _nothing_now()

    def deal(self) -> None:
        """Give clones that stand in line what is in the accept queue, as pending connections.

        It never waits. Where a greenlet in ``accept()``, or a server, is next, that is left to the
        dispatcher. An error is left to a later accept, which meets it again.
        """
        with self._turns.lock, contextlib.suppress(OSError):
            while (first := self._first_polled()) is not None:
                first.clone.readiness.give_turn(first, self._next_connection())

    def _first_polled(self) -> OfHub | None:
        """Return the part of the clone that is next; ``None`` if the line is empty.

        Raises:
            BlockingIOError: It isn't polled: the dispatcher gives this turn.
        """
        turns = self._turns
        last: object = None
        while (member := turns.next_locked()) is not None:
            if member is not last and not member.has_room():
                last = member
                continue
            # Plain listeners are alone in their team.
            is_plain = member.team is member.dispatcher.singles
            if member is not last and is_plain and not member.waiters:
                found: OfHub = member
                return found
            raise _nothing_now()
        return None

    @property
    def _goes_before_line(self) -> bool:
        """Whether it has kept a place that is before all that stand in line."""
        return self._clone.keeps_place and self._turns.ring.is_first(self._clone.place)

    @property
    def _is_turn_of_mate(self) -> bool:
        """Whether a mate has waited longer."""
        rank = self._rank
        return any(mate._rank < rank and self._has_mate(mate) for mate in self._mates)

    def _has_mate(self, other: Readiness) -> bool:
        """Whether the next poll of this clone is to be one of *other* too."""
        is_mate = bool(self._mates) and other._mates is self._mates
        return is_mate and not other._clone.is_cancelled

    @property
    def has_mates(self) -> bool:
        """Whether the next poll of this clone is to be one of others too."""
        return bool(self._mates)

    @property
    def _rank(self) -> tuple[int, int]:
        """Sorts mates: those with a place in line, then the new ones, then those that had turns."""
        clone = self._clone
        for each in clone.hubs:
            joined = each.team.line.get(each)
            if joined is not None:
                return 0, joined
        if clone.place is None:
            return 1, 0
        return 0 if clone.keeps_place else 2, clone.place

    def _next_connection(self) -> PendingConnection:
        entry = self.entry
        return self._turns.take_waiting() or PendingConnection(
            *accept_plain(entry.accept, kind_of(entry.pristine))
        )

    def _note_poll_nowait(self) -> None:
        now = monotonic()
        self._interval = now - self._polled_at
        self._polled_at = now
        if self._refusals >= REFUSALS_OF_POLLERS:
            here = self._clone.on(get_hub())
            if not here.polls:  # or it would stand in line when the poll is over
                here.is_polled_nowait = True
                here.settle()

    # -- polling -------------------------------------------------------------------------------

    @property
    def event(self) -> ReadinessEvent:
        """Is set while there is something to accept, or to raise."""
        if self._event is None:
            with self._turns.lock:
                self._event = self._event or ReadinessEvent(self._turns.lock)
            self.changed()
        return self._event

    @property
    def is_ready(self) -> bool:
        """Whether a poller finds the clone readable now."""
        return bool(self.pending) or self._clone.is_cancelled

    def begin_poll(self, *, is_waiting: bool, mates: list[Readiness] | None = None) -> Any:
        """Be ready until `end_poll` of what is returned.

        Args:
            is_waiting: Whether the poll has time.
            mates: The clones of this address in the same poll; see `in_order`.
        """
        self._mates = mates or []
        self._refusals_since_poll = 0
        if not is_waiting:
            self._note_poll_nowait()
        here = self._clone.on(get_hub())
        if is_waiting:
            self._refusals = 0
            here.is_polled_nowait = False
        here.polls += 1
        here.hold_loop()
        here.settle()
        return here

    def end_poll(self, here: Any, *, is_waiting: bool, is_reported: bool) -> None:
        """Stop being ready.

        The clone keeps its pending connections, if the poll *is_reported* as ready. If not,
        because the poller was killed, they go to the next ready clones.
        """
        if not (is_waiting or is_reported):
            self._refusals += 1
        here.polls -= 1
        here.settle(keeps_place=True)
        here.hold_loop()
        self._clone.leave(here)
        if self.pending and is_reported:
            self._is_seen = True
        elif not (self._is_seen or any(each.polls for each in self._clone.hubs)):
            self.give_back()

    def stop_polling(self) -> None:
        """It is polled no more."""
        self._mates = []

    # -- pending connections -------------------------------------------------------------------

    def give_turn(self, of_hub: OfHub, handed: PendingConnection) -> None:
        """Have the connection of its turn pending. With the lock held, in any thread."""
        turns = self._turns
        turns.accepted_before += 1
        turns.rotate(of_hub.team, of_hub)
        self.add((handed.sock, handed.address))
        of_hub.settle()
        of_hub.dispatcher.run(self.look_after)

    def add(self, accepted: Accepted) -> None:
        """Have one more pending connection."""
        with self._turns.lock:
            self.pending.append(accepted)
            self._turns.pending += 1
        if self._clone.is_cancelled:
            self.give_back()  # another thread has ended it meanwhile
        else:
            self.changed()

    def take_one(self) -> Accepted | None:
        """Return the oldest pending connection; it is the caller's."""
        with self._turns.lock:
            if not self.pending:
                return None
            found = self.pending.popleft()
            self._turns.pending -= 1
            self._is_seen = bool(self.pending)
        self.changed()
        self._clone.settle()
        return found

    def take_all(self) -> list[Accepted]:
        """Return all pending connections; they are the caller's."""
        with self._turns.lock:
            taken = [*self.pending]
            self.pending.clear()
            self._turns.pending -= len(taken)
            self._is_seen = False
        return taken

    def put_back(self, accepted: list[Accepted]) -> None:
        """Undo `take_all`."""
        for each in accepted:
            self.add(each)

    def give_back(self) -> None:
        """Leave pending connections to the next ready clones."""
        turns = self._turns
        with turns.lock:
            turns.put_back_locked([PendingConnection(*accepted) for accepted in self.take_all()])
        self.changed()

    def changed(self) -> None:
        """Set or clear the event, as it is now."""
        if self._event is not None:
            with self._turns.lock:  # or another thread could change it in between
                self._event.change(is_set=self.is_ready)

    def look_after(self) -> None:
        """Start the timer that gives pending connections back, if the program stops polling."""
        with self._turns.lock:
            if self._timer is not None or not self.pending or not self._is_polled_nowait:
                return
            timer = self._timer = get_hub().loop.timer(self._patience_seconds, ref=False)
        timer.start(self._look, timer)

    @property
    def _is_polled_nowait(self) -> bool:
        return any(each.is_polled_nowait for each in self._clone.hubs)

    @property
    def _patience_seconds(self) -> float:
        seconds = POLLING_INTERVALS * self._interval
        return min(POLLING_MAX_SECONDS, max(POLLING_MIN_SECONDS, seconds))

    def _look(self, timer: Any) -> None:
        timer.close()
        with self._turns.lock:
            if self._timer is not timer:
                return  # the clone was closed, in another thread
            self._timer = None
        has_stopped = monotonic() - self._polled_at >= self._patience_seconds
        if has_stopped and self._is_polled_nowait and self.pending and not self._is_seen:
            for each in self._clone.hubs:
                each.is_polled_nowait = False
            self.give_back()
            self._clone.settle()
        self.look_after()

    # -- the end, and fork -----------------------------------------------------------------------

    def end(self) -> None:
        """The clone is closed."""
        if self._event is not None:
            self._event.end()
        self._mates = []
        self.give_back()
        self._timer = None

    def forget(self) -> None:
        """In a forked child: pending connections are the parent's to serve."""
        for sock, _ in self.take_all():
            with contextlib.suppress(OSError):  # EBADF: its number was closed elsewhere
                sock.close()
        self.changed()

    def abandon(self) -> None:
        """In a forked child without its hubs."""
        self._timer = None
        self.forget()


def _nothing_now() -> BlockingIOError:
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def in_order(polled: Iterable[Readiness]) -> Iterator[tuple[Readiness, list[Readiness]]]:
    """Yield *polled*, each once and with its mates, so that they may begin a poll in this order.

    A clone alone has no mates. Mates that were passed over go to the end of the line in the order
    that they had, whatever the order in which the poller has them.
    """
    by_entry: dict[Any, list[Readiness]] = {}
    for each in dict.fromkeys(polled):
        by_entry.setdefault(each.entry, []).append(each)
    for mates in by_entry.values():
        mates.sort(key=lambda each: each._rank)
        for each in mates:
            yield each, mates if len(mates) > 1 else []
