"""Seats: where those sit who want a clone's connections.

A clone stands in the ring of its address while somebody wants a connection of it. There are
three ways to want one, and `Seats` keeps all of them apart from what the program holds, be it a
`glb.Listener` or a socket of a monkey-patched program:

* A greenlet **waits**, in `accept`. Its clone is ready, and it goes on within the turn.
* A greenlet **polls**, in ``select`` or one of its kin. Its clone is ready as long as that lasts.
  The connection of its turn lies in the clone's **pocket**, and its bell rings, until somebody
  accepts it: so each poller is told on its clone's turn, and never for nothing.
* Somebody **asks**: accepts without waiting, or polls with no time. A program's socket that does
  so, and is never polled otherwise, is ready from then on, and finds the connection of its turn
  in the pocket when it asks again. A poll with no time is ready for as long as it lasts in any
  case, and deals out what waits before it returns: `Seats.look`.

Who stops waiting because its time is over, or polling, without having had a turn, gets its place
in line back when it returns, unless it was passed over meanwhile.

The clones of one poll are **mates**: they are ready together, and they come back together. So each
keeps its place between two polls, even at the end of the line, where a turn has sent it. And one
that accepts again between two polls does not take the turn of a mate that has waited longer: the
connection stays in the accept queue, where the next poll finds it.

What lies in a pocket when the clone closes is the next one's, and so is what came for one that has
stopped asking. What a poller was told of stays, as on a socket of its own. A program's objects on
one kernel socket, by ``dup`` say, have their seats, pocket and bell in common. There is a seat for
each hub; all may be used from any thread's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from gevent import Timeout, get_hub, getcurrent
from gevent.exceptions import InvalidSwitchError
from gevent.hub import Waiter

from ..model.accept_errors import Episode, Heap, classify
from ..originals import monotonic
from .dispatcher import Dispatcher
from .protocols import Handed, Turn
from .readiness import Bell
from .registry import Entry
from .ring import Team
from .watchdog import dispatcher_for

__all__ = ["Seats", "in_order"]

# gevent's own min_delay and max_delay: short enough that a waiting client does not notice,
# and at most one try a second for a process that stays out of descriptors.
PAUSE_MIN_SECONDS: Final = 0.01
PAUSE_MAX_SECONDS: Final = 1.0

# As gevent's servers: so many connections a wake-up, then whatever else the hub has to do.
MAX_ACCEPT: Final = 100

# Who hasn't asked for so many times as long as it took between its last two questions has stopped
# asking: an irregular one has time, and a client doesn't wait long for one that works or is stuck.
ASKING_INTERVALS: Final = 3
ASKING_MIN_SECONDS: Final = 0.05
ASKING_MAX_SECONDS: Final = 1.0

# Who polls, and then accepts until there is nothing more, is refused once in between: that
# doesn't make it one that asks, which would be ready while it does something else.
REFUSALS_OF_POLLERS: Final = 2


#: The plain socket of a connection, and its peer.
Accepted = tuple[Any, Any]


class Holder(Protocol):
    """A descriptor of the clone. Never kept alive by its seats."""

    @property
    def asks_in_line(self) -> bool:
        """Whether it is ready from the time it asks until it asks again."""

    def take(self) -> Accepted:
        """Accept from the kernel: see `glb.net.connection.accept_plain`."""


class Seats:
    """A clone's seats, its pocket and its bell.

    Args:
        hub: The one whose seat is kept between two accepts.
    """

    __slots__ = (
        "__weakref__",
        "_asked_at",
        "_bell",
        "_by_hub",
        "_error",
        "_holders",
        "_home",
        "_interval",
        "_is_told",
        "_keeps_place",
        "_look",
        "_mates",
        "_place",
        "_pocket",
        "_refusals",
        "_refusals_since_poll",
        "entry",
    )

    def __init__(self, entry: Entry, hub: Any) -> None:
        self.entry: Final = entry
        self._home: Any = hub
        self._holders: list[weakref.ref[Holder]] = []
        self._by_hub: dict[Any, _Seat] = {}
        self._pocket: deque[Accepted] = deque()
        self._bell: Bell | None = None
        # What who comes is told, once they have ended.
        self._error: Callable[[], OSError] | None = None
        # Where in line it stood when it last left, and whether it may come back there: it had no
        # turn then, or it has mates.
        self._place: int | None = None
        self._keeps_place = False
        # The clones of this address in the last poll of this one, itself among them.
        self._mates: list[Seats] = []
        # Whether a poller knows of what lies in the pocket.
        self._is_told = False
        # How often it was refused since somebody polled it and waited.
        self._refusals = REFUSALS_OF_POLLERS
        # How often it was refused since it was last polled, with time or without.
        self._refusals_since_poll = 0
        # When it was last asked, and how long after the time before.
        self._asked_at = 0.0
        self._interval = 0.0
        # The timer that looks after the pocket. Each stops itself, in its own hub.
        self._look: Any = None

    # -- whose they are ------------------------------------------------------------------------

    def join(self, holder: Holder) -> None:
        """They are *holder*'s as well."""
        self._holders.append(weakref.ref(holder))

    @property
    def holder(self) -> Holder | None:
        """One of those whose they are."""
        found = (reference() for reference in [*self._holders])
        return next((each for each in found if each is not None), None)

    @property
    def is_shared(self) -> bool:
        """Whether several descriptors have them in common."""
        return len(self._holders) > 1

    def leave(self, holder: Holder, waiting: OSError, error: Callable[[], OSError]) -> None:
        """*holder* closes: *waiting* is for who waits by it, *error* for who comes later.

        With the last holder they end. Twice is harmless.
        """
        with self.entry.turns.lock:
            self._holders = [each for each in self._holders if each() not in (holder, None)]
            if self._holders:
                for seat in [*self._by_hub.values()]:
                    seat.cancel(waiting, by=holder)
                return
            self._error = error
            seats, self._by_hub = self._by_hub, {}
        for seat in seats.values():
            seat.end(waiting)
        if self._bell is not None:
            self._bell.end()
        self._mates = []
        self._empty_pocket()
        self._look = None

    def cancel(self, error: Callable[[], OSError]) -> None:
        """Raise *error* in whoever waits, and in who comes. From any thread."""
        self._error = error
        for seat in [*self._by_hub.values()]:
            seat.cancel(error())
            seat.settle()
        self._empty_pocket()

    def reopen(self) -> None:
        """Undo `cancel`, for who comes from now on, or polls still."""
        self._error = None
        self._ring()
        self._settle()

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody gets anything here."""
        return self._error is not None

    def check_open(self) -> None:
        """Raise what `cancel` or `leave` were given."""
        error = self._error
        if error is not None:
            raise error()

    # -- accepting -----------------------------------------------------------------------------

    def accept(self, timeout: float | None, holder: Holder) -> Accepted:
        """Wait for the clone's turn; see `glb.Listener.accept`."""
        self.check_open()
        if timeout == 0.0:
            return self.ask(is_in_line=holder.asks_in_line)
        found = self._from_pocket()
        if found is not None:
            return found
        hub = get_hub()
        if getcurrent() is hub:
            # Waiting is an error in a callback; what is there already can be had.
            try:
                return self.ask(is_in_line=False)
            except BlockingIOError:
                hub.switch_out()
        seat = self._seat_on(hub)
        self._mates = []  # it is polled no more
        try:
            return seat.wait(timeout, holder)
        finally:
            self._leave_seat(seat)

    def ask(self, *, is_in_line: bool) -> Accepted:
        """Accept what is this clone's now, and never wait.

        It stands in line from then on, if *is_in_line*, and it is never polled. Those before it
        are given their connections first: into the pocket, if nobody waits there. Who waits in
        `accept`, and servers, are given theirs by the dispatcher.

        Raises:
            OSError: ``BlockingIOError`` if there is nothing for it now; whatever accept(2) says.
        """
        self.check_open()
        turns = self.entry.turns
        with turns.lock:
            if is_in_line:
                self._note_question()
            while True:
                found = self._from_pocket()
                if found is not None:
                    return found
                try:
                    seat = self._next_seat()
                except BlockingIOError:
                    break
                if seat is not None and seat.seats is not self and self._goes_before_line:
                    seat = None
                if seat is not None and seat.seats is not self:
                    if self._has_mate(seat.seats):
                        break
                    seat.give(self._next_connection())
                    continue
                # Other clones may have been given theirs a moment ago, without time to fetch it.
                if turns.in_pockets or self._is_turn_of_mate:
                    break
                handed = self._next_connection()
                turns.accepted_before += 1
                if seat is not None:
                    turns.rotate(seat.team, seat)
                else:
                    kept = self._place if self._keeps_place else None
                    self._place = turns.ring.serve(kept)
                    self._keeps_place = bool(self._mates)
                return handed.sock, handed.address
            self._refusals += 1
            self._refusals_since_poll += 1
            if self._refusals_since_poll >= REFUSALS_OF_POLLERS:
                self._mates = []  # it is polled no more
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def look(self) -> None:
        """Give what is in the accept queue to the clones that stand in line, into their pockets.

        It never waits. Where a greenlet in `accept`, or a server, is next, that is left to the
        dispatcher. An error is left to a later accept, which meets it again.
        """
        with self.entry.turns.lock, contextlib.suppress(OSError):
            while (seat := self._next_seat()) is not None:
                seat.give(self._next_connection())

    def _next_seat(self) -> _Seat | None:
        """Return the seat whose turn it is; ``None`` if the line is empty.

        Raises:
            BlockingIOError: The dispatcher gives this turn.
        """
        turns = self.entry.turns
        last: object = None
        while (member := turns.next_locked()) is not None:
            if member is not last and not member.has_room():
                last = member
                continue
            if member is not last and isinstance(member, _Seat) and not member.waiters:
                return member
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return None

    @property
    def _goes_before_line(self) -> bool:
        """Whether it has kept a place that is before all that stand in line."""
        return self._keeps_place and self.entry.turns.ring.is_first(self._place)

    @property
    def _is_turn_of_mate(self) -> bool:
        """Whether a mate has waited longer."""
        rank = self._rank
        return any(mate._rank < rank and self._has_mate(mate) for mate in self._mates)

    def _has_mate(self, other: Seats) -> bool:
        """Tell whether the next poll of this clone is to be one of *other* too."""
        return bool(self._mates) and other._mates is self._mates and other._error is None

    @property
    def _rank(self) -> tuple[int, int]:
        """Sorts mates: those with a place in line, then the new ones, then those that had turns."""
        for seat in [*self._by_hub.values()]:
            joined = seat.team.line.get(seat)
            if joined is not None:
                return 0, joined
        if self._place is None:
            return 1, 0
        return 0 if self._keeps_place else 2, self._place

    def _next_connection(self) -> Handed:
        handed = self.entry.turns.take_waiting()  # what has been given to nobody
        if handed is None:
            holder = self.holder
            if holder is None:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            handed = Handed(*holder.take())
        return handed

    def _note_question(self) -> None:
        now = monotonic()
        self._interval = now - self._asked_at
        self._asked_at = now
        if self._refusals >= REFUSALS_OF_POLLERS:
            seat = self._seat_on(get_hub())
            if not seat.polls:  # or it would stand in line when the poll is over
                seat.asks = True
                seat.settle()

    # -- polling -------------------------------------------------------------------------------

    @property
    def bell(self) -> Bell:
        """Rings while there is something to accept, or to be told."""
        if self._bell is None:
            with self.entry.turns.lock:
                self._bell = self._bell or Bell(self.entry.turns.lock)
            self._ring()
        return self._bell

    @property
    def is_ringing(self) -> bool:
        """Whether a poller would be told now."""
        return bool(self._pocket) or self._error is not None

    def begin_poll(self, *, is_waiting: bool, mates: list[Seats] | None = None) -> _Seat:
        """Be ready until `end_poll` of what is returned.

        Args:
            is_waiting: Whether the poll has time. One without is a question as well: see `ask`.
            mates: The clones of this address in the same poll; see `in_order`.
        """
        self._mates = mates or []
        self._refusals_since_poll = 0
        if not is_waiting:
            self._note_question()
        seat = self._seat_on(get_hub())
        if is_waiting:
            self._refusals = 0
            seat.asks = False
        seat.polls += 1
        seat.hold_loop()
        seat.settle()
        return seat

    def end_poll(self, seat: _Seat, *, is_waiting: bool, is_told: bool) -> None:
        """Stop being ready.

        What is in the pocket then is for this clone to accept, if the poller *is_told* of it; if
        not, because the poller was killed, it is the next one's.
        """
        if not (is_waiting or is_told):
            self._refusals += 1
        seat.polls -= 1
        seat.settle(keeps_place=True)
        seat.hold_loop()
        self._leave_seat(seat)
        if self._pocket and is_told:
            self._is_told = True
        elif not (self._is_told or any(each.polls for each in [*self._by_hub.values()])):
            self._empty_pocket()

    # -- the pocket ----------------------------------------------------------------------------

    def _from_pocket(self) -> Accepted | None:
        with self.entry.turns.lock:
            if not self._pocket:
                return None
            found = self._pocket.popleft()
            self.entry.turns.in_pockets -= 1
            self._is_told = bool(self._pocket)
        self._ring()
        self._settle()
        return found

    def _settle(self) -> None:
        for seat in [*self._by_hub.values()]:
            seat.settle()

    def _put_into_pocket(self, accepted: Accepted) -> None:
        with self.entry.turns.lock:
            self._pocket.append(accepted)
            self.entry.turns.in_pockets += 1
        if self._error is None:
            self._ring()
        else:
            self._empty_pocket()  # another thread has ended them meanwhile

    def _ring(self) -> None:
        if self._bell is not None:
            with self.entry.turns.lock:  # or what it is told may be old by then
                self._bell.ring(is_ringing=self.is_ringing)

    def _empty_pocket(self) -> None:
        turns = self.entry.turns
        with turns.lock:
            back = [Handed(*accepted) for accepted in self.take_pocket()]
            turns.put_back_locked(back)
        self._ring()

    def take_pocket(self) -> list[Accepted]:
        """Return what lies in the pocket; it is the caller's."""
        with self.entry.turns.lock:
            taken = [*self._pocket]
            self._pocket.clear()
            self.entry.turns.in_pockets -= len(taken)
            self._is_told = False
        return taken

    def fill_pocket(self, accepted: list[Accepted]) -> None:
        """Undo `take_pocket`."""
        for each in accepted:
            self._put_into_pocket(each)

    def look_after_pocket(self) -> None:
        """See to it, from this thread's hub, that nothing lies here for one that asks no more."""
        with self.entry.turns.lock:
            if self._look is not None or not self._pocket or not self._is_asked:
                return
            timer = self._look = get_hub().loop.timer(self._asking_seconds, ref=False)
        timer.start(self._look_into_pocket, timer)

    @property
    def _is_asked(self) -> bool:
        return any(seat.asks for seat in [*self._by_hub.values()])

    @property
    def _asking_seconds(self) -> float:
        return min(ASKING_MAX_SECONDS, max(ASKING_MIN_SECONDS, ASKING_INTERVALS * self._interval))

    def _look_into_pocket(self, timer: Any) -> None:
        timer.stop()
        timer.close()
        with self.entry.turns.lock:
            if self._look is not timer:
                return  # they were ended, in another thread
            self._look = None
        is_gone = monotonic() - self._asked_at >= self._asking_seconds
        if is_gone and self._is_asked and self._pocket and not self._is_told:
            for seat in [*self._by_hub.values()]:
                seat.asks = False
            self._empty_pocket()
            self._settle()
        self.look_after_pocket()

    # -- fork ----------------------------------------------------------------------------------

    def forget(self) -> None:
        """In a forked child: what lies in the pocket is the parent's to serve."""
        for sock, _ in self.take_pocket():
            with contextlib.suppress(OSError):  # EBADF: its number was closed elsewhere
                sock.close()
        self._ring()

    def abandon(self) -> None:
        """In a forked child: give up all seats as well. Their hubs aren't there."""
        self._look = None
        self.forget()
        self._by_hub = {}

    # -- seats ---------------------------------------------------------------------------------

    def _seat_on(self, hub: Any) -> _Seat:
        seat = self._by_hub.get(hub)
        if seat is None:
            seat = self._by_hub[hub] = _Seat(self, hub)
            if not self._holders:
                # Another thread ended them before it could see this one.
                self._by_hub.pop(hub, None)
                seat.close()
                self.check_open()
        return seat

    def _leave_seat(self, seat: _Seat) -> None:
        # The home hub's seat is kept until the end, so that a loop of accepts doesn't make its
        # watchers anew each time.
        if seat.hub is not self._home and not seat.is_used:
            if self._by_hub.get(seat.hub) is seat:
                del self._by_hub[seat.hub]
            seat.close()


def in_order(polled: Iterable[Seats]) -> Iterator[tuple[Seats, list[Seats]]]:
    """Yield *polled*, each once and with its mates, so that they may begin a poll in this order.

    A clone alone has no mates. Mates that were passed over go to the end of the line in the order
    that they had, whatever the order in which the poller has them.
    """
    by_entry: dict[Entry, list[Seats]] = {}
    for seats in dict.fromkeys(polled):
        by_entry.setdefault(seats.entry, []).append(seats)
    for mates in by_entry.values():
        mates.sort(key=lambda seats: seats._rank)
        for seats in mates:
            yield seats, mates if len(mates) > 1 else []


class _Greenlet(Waiter):  # type: ignore[type-arg]  # generic in the stubs alone
    """A greenlet that waits for a connection, and what it gets: plain socket and peer."""

    accepted: Accepted | None = None
    #: By which descriptor it waits.
    holder: Holder


class _Seat:
    """A clone's place in the ring of one hub, with those who want its turns there."""

    __slots__ = (
        "_delay",
        "_expected",
        "_is_closed",
        "asks",
        "dispatcher",
        "hub",
        "polls",
        "seats",
        "waiters",
    )

    #: Nobody knows how long a program works on what it accepted.
    load: Final = 0
    #: The greenlet that waits goes on within the turn.
    is_out_of_reach: Final = False
    runs_at_once: Final = True
    max_accept: Final = MAX_ACCEPT

    def __init__(self, seats: Seats, hub: Any) -> None:
        self.dispatcher: Dispatcher = dispatcher_for(seats.entry, hub)
        self.hub = hub
        self.seats = seats
        self._is_closed = False
        # Connections that are on their way here from another hub.
        self._expected = 0
        self._delay = PAUSE_MIN_SECONDS
        self.waiters: deque[_Greenlet] = deque()
        #: How many poll the clone on this hub.
        self.polls = 0
        #: Whether somebody asks here.
        self.asks = False

    @property
    def team(self) -> Team[Any]:
        return self.dispatcher.singles

    @property
    def is_used(self) -> bool:
        return bool(self.waiters or self.polls or self.asks)

    @property
    def context(self) -> str:
        return f"the listener on {self.seats.entry.address!r}"

    def wait(self, timeout: float | None, holder: Holder) -> Accepted:
        """Return the descriptor and the peer's address of the next connection."""
        waiter = _Greenlet(self.hub)
        waiter.holder = holder
        over = TimeoutError("timed out")
        deadline = Timeout.start_new(timeout, over)
        is_over = False
        try:
            self.waiters.append(waiter)
            self.hold_loop()
            self.settle()
            self.seats.check_open()  # another thread may have struck a moment ago
            switched = waiter.get()
            if switched is not waiter:
                raise InvalidSwitchError(f"invalid switch into {waiter!r}: got {switched!r}")
            accepted: Accepted | None = waiter.accepted
            assert accepted is not None, "it comes with the switch"
            return accepted
        except TimeoutError as error:
            is_over = error is over
            raise
        finally:
            deadline.close()
            if waiter.accepted is None and waiter in self.waiters:
                self.waiters.remove(waiter)
                self.settle(keeps_place=is_over)
            self.hold_loop()
            # An exception that refers to this frame, which refers to it, would wait for a
            # garbage collection, and the clone with it.
            del deadline, over, waiter

    def hold_loop(self) -> None:
        """Keep the hub alive while anybody waits or polls."""
        self.dispatcher.hold_loop(self, is_held=bool(self.waiters or self.polls))

    @property
    def _room(self) -> int:
        seats = self.seats
        if self._is_closed or seats._error is not None:
            return 0
        # Pollers, and who asks, share one connection: then it is for them to accept.
        wants_one = bool((self.polls or self.asks) and not seats._pocket)
        return len(self.waiters) + wants_one - self._expected

    def settle(self, *, keeps_place: bool = False) -> None:
        """Be ready while more is wanted than connections are on their way."""
        turns, seats = self.dispatcher.turns, self.seats
        with turns.lock:
            if self._room > 0:
                turns.join(self, seats._place if seats._keeps_place else None)
                seats._keeps_place = False
                return
            place = turns.leave(self)
            if place is not None:
                seats._place, seats._keeps_place = place, keeps_place or bool(seats._mates)

    def may_expect_locked(self) -> bool:
        return True

    def expect_locked(self) -> None:
        self._expected += 1
        self.settle()

    def unexpect_locked(self) -> None:
        self._expected -= 1
        self.settle()

    def has_room(self) -> bool:
        if self._room > 0:
            return True
        self.settle()
        return False

    def take(self, handed: Handed) -> bool:
        with self.dispatcher.turns.lock:
            if self._is_closed or not self.is_used:
                return False
            self._expected -= 1
        self._wake(handed.sock, handed.address)
        return True

    def give(self, handed: Handed) -> None:
        """Put the connection of its turn into its pocket. With the lock held, in any thread."""
        self.dispatcher.turns.accepted_before += 1
        self.dispatcher.turns.rotate(self.team, self)
        self.seats._put_into_pocket((handed.sock, handed.address))
        self.settle()
        self.dispatcher.run(self.seats.look_after_pocket)

    def take_turn(self) -> Turn:
        holder = self.seats.holder
        if holder is None or not self.has_room():
            self.dispatcher.turns.leave(self)
            return Turn.PASSED
        try:
            sock, address = holder.take()
        except BlockingIOError:
            return Turn.EMPTY
        except OSError as error:
            if classify(error) is not Heap.BROKEN and not self.wants(error):
                raise
            self.broken(error)
            return Turn.TAKEN
        self.dispatcher.accepted += 1
        self.dispatcher.turns.rotate(self.team, self)
        self._wake(sock, address)
        return Turn.TAKEN

    @property
    def failures(self) -> Episode:
        return self.seats.entry.failures

    def wants(self, error: OSError) -> bool:
        # A poller can't be given an error that may be over by the time it accepts: it goes on
        # waiting, while the dispatcher pauses. What is broken stays so.
        return bool(self.waiters) and classify(error) is Heap.UNKNOWN

    def broken(self, error: OSError) -> None:
        if not self.dispatcher.has_loop:
            return  # and its greenlets with it
        if self.waiters:
            self.dispatcher.turns.rotate(self.team, self)
            self.waiters[0].throw(error)  # it takes itself out
        elif classify(error) is Heap.BROKEN:
            number, text = error.errno, error.strerror
            # An accept will tell.
            self.seats.cancel(lambda: OSError(number, text))
        else:
            self.settle()

    def _wake(self, sock: Any, address: Any) -> None:
        # The greenlet runs now, in this switch: there is no moment in which it could be
        # killed, or its timeout end, with a connection on the way to it.
        self._delay = PAUSE_MIN_SECONDS
        if self.waiters:
            waiter = self.waiters[0]
            try:
                waiter.accepted = (sock, address)
                self.waiters.popleft()
                self.settle()
                waiter.switch(waiter)
            except BaseException:
                if waiter.accepted is not None and waiter.greenlet is not None:
                    # It struck from outside, before the switch: the connection is the greenlet's.
                    if waiter in self.waiters:
                        self.waiters.remove(waiter)
                    self.hub.loop.run_callback(waiter.switch, waiter)
                raise
        else:
            self.seats._put_into_pocket((sock, address))
            self.settle()
            self.seats.look_after_pocket()

    def next_delay(self) -> float:
        delay = self._delay
        self._delay = min(PAUSE_MAX_SECONDS, delay * 2)
        return delay

    def cancel(self, error: OSError, by: Holder | None = None) -> None:
        """Raise *error* in every greenlet that waits here now, *by* that. From any thread."""
        cancelled = [each for each in [*self.waiters] if by is None or each.holder is by]
        if cancelled:
            self.dispatcher.run(lambda: self._cancel(cancelled, error))

    def _cancel(self, cancelled: list[_Greenlet], error: OSError) -> None:
        # Some may have got a connection since.
        still = [each for each in cancelled if each in self.waiters]
        for waiter in still:
            self.waiters.remove(waiter)
        self.settle()
        for waiter in still if self.dispatcher.has_loop else ():
            self.hub.loop.run_callback(waiter.throw, error)

    def end(self, error: OSError) -> None:
        """Cancel all, and give the place up. From any thread."""

        def end() -> None:
            self._cancel([*self.waiters], error)
            self.close()

        self.dispatcher.run(end)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.dispatcher.turns.leave(self)
            self.dispatcher.hold_loop(self, is_held=False)
            self.dispatcher.detach()
