"""Seats: where those sit who want a clone's connections.

A clone stands in the ring of its address while somebody wants a connection of it. There are
three ways to want one, and `Seats` keeps all of them apart from what the program holds, be it a
`glb.Listener` or a socket of a monkey-patched program:

* A greenlet **waits**, in `accept`. Its clone is ready, and it goes on within the turn.
* A greenlet **polls**, in ``select`` or one of its kin. Its clone is ready as long as that lasts.
  The connection of its turn lies in the clone's **pocket**, and the clone's bell rings, until
  somebody accepts it: so each poller is told on its clone's turn, and never for nothing.
* Somebody **asks**: accepts without waiting, or polls with no time. A clone is not ready between
  two questions. Those who wait go first; those who ask have an order of their own, which passes
  over who has stopped asking (see `glb.ring.Askers`).

A clone that stops waiting or polling keeps its place in line until its hub has run what is
ready to run: a loop that waits again, because its time was over, has not been away.

What lies in a pocket when the clone closes is the next clone's. There is a seat for each hub;
all may be used from any thread's.
"""

from __future__ import annotations

import _socket
import errno
import os
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from gevent import Timeout, get_hub, getcurrent
from gevent.exceptions import InvalidSwitchError
from gevent.hub import Waiter

from .dispatcher import Dispatcher
from .errors import Heap, classify
from .registry import Entry
from .ring import Team
from .sockets import Bell, is_readable
from .standby import dispatcher_for
from .turns import Handed, Turn

__all__ = ["Seats"]

# gevent's own min_delay and max_delay: short enough that a waiting client does not notice,
# and at most one try a second for a process that stays out of descriptors.
PAUSE_MIN_SECONDS: Final = 0.01
PAUSE_MAX_SECONDS: Final = 1.0

# As gevent's servers: so many connections a wake-up, then whatever else the hub has to do.
MAX_ACCEPT: Final = 100

Accepted = tuple[int, Any]


class Owner(Protocol):
    """Whose seats they are: a clone. Never kept alive by them."""

    def take(self) -> Accepted:
        """Accept from the kernel, as ``_socket.socket._accept`` does."""


class Seats:
    """A clone's seats, its pocket and its bell. The caller ends them when the clone closes.

    Args:
        hub: The one whose seat is kept between two accepts.
    """

    __slots__ = ("__weakref__", "_bell", "_by_hub", "_error", "_home", "_owner", "_pocket", "entry")

    def __init__(self, owner: Owner, entry: Entry, hub: Any) -> None:
        self.entry: Final = entry
        self._owner: weakref.ref[Owner] = weakref.ref(owner)
        self._home: Any = hub
        self._by_hub: dict[Any, _Seat] = {}
        self._pocket: deque[Accepted] = deque()
        self._bell: Bell | None = None
        # What who comes is told, once they have ended.
        self._error: Callable[[], OSError] | None = None

    @property
    def owner(self) -> Owner | None:
        return self._owner()

    def check_open(self) -> None:
        """Raise what `end` or `cancel` were given."""
        if self._error is not None:
            raise self._error()

    # -- accepting -----------------------------------------------------------------------------

    def accept(self, timeout: float | None) -> Accepted:
        """Wait for the clone's turn; see `glb.Listener.accept`."""
        self.check_open()
        hub = get_hub()
        if timeout == 0.0:
            return self.ask()
        found = self._from_pocket()
        if found is not None:
            return found
        if getcurrent() is hub:
            # Waiting is an error in a callback; what is there already can be had.
            try:
                return self.ask()
            except BlockingIOError:
                hub.switch_out()
        seat = self._seat_on(hub)
        try:
            return seat.wait(timeout)
        finally:
            self._leave(seat, hub)

    def ask(self) -> Accepted:
        """Accept if it's the clone's turn among those who ask, and nobody waits; never wait.

        Raises:
            OSError: ``BlockingIOError`` if there is nothing for it now; whatever accept(2) says.
        """
        self.check_open()
        found = self._from_pocket()
        if found is not None:
            return found
        turns = self.entry.turns
        owner = self._owner()
        with turns.lock:
            # Not even who is first takes what others wait for, on their way to it this moment.
            is_passed = owner is None or turns.next_locked() is not None
            if is_passed or not turns.askers.is_next(self, self._has_connection):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            handed = turns.take_waiting()  # by a hub that was too slow
            assert owner is not None, "as it wasn't passed"
            accepted = owner.take() if handed is None else (handed.number, handed.address)
            turns.askers.rotate(self)
            turns.accepted_before += 1
        return accepted

    def _has_connection(self) -> bool:
        entry = self.entry
        return bool(entry.turns.waiting) or (not entry.is_closed and is_readable(entry.pristine))

    # -- polling -------------------------------------------------------------------------------

    @property
    def bell(self) -> Bell:
        """Readable while there is something to accept, or to be told. Made when first needed."""
        if self._bell is None:
            self._bell = Bell()
            self._ring()
        return self._bell

    def begin_poll(self, *, is_waiting: bool) -> _Seat | None:
        """Be ready until `end_poll` of what is returned; or only ask, if nobody is waiting."""
        if self._error is not None or self._pocket:
            return None
        if not is_waiting:
            try:
                self._put_into_pocket(self.ask())
            except OSError:
                pass  # the poller is told nothing, and an accept that fails is told again
            return None
        seat = self._seat_on(get_hub())
        seat.polls += 1
        seat.settle()
        return seat

    def end_poll(self, seat: _Seat | None) -> None:
        """Stop being ready. After `end` it changes nothing."""
        if seat is not None and seat.polls:
            seat.polls -= 1
            seat.settle_soon()
            self._leave(seat, get_hub())

    def _from_pocket(self) -> Accepted | None:
        try:
            found = self._pocket.popleft()
        except IndexError:
            return None
        self._ring()
        for seat in [*self._by_hub.values()]:
            if seat.polls:
                seat.settle()
        return found

    def _put_into_pocket(self, accepted: Accepted) -> None:
        self._pocket.append(accepted)
        self._ring()
        if self._error is not None:  # another thread has ended them meanwhile
            self._empty_pocket()

    def _ring(self) -> None:
        if self._bell is not None:
            with self.entry.turns.lock:
                self._bell.ring(is_ringing=bool(self._pocket) or self._error is not None)

    def _empty_pocket(self) -> None:
        turns = self.entry.turns
        with turns.lock:
            back = [Handed(number, address) for number, address in self._pocket]
            self._pocket.clear()
            turns.put_back_locked(back)

    # -- the end -------------------------------------------------------------------------------

    def cancel(self, error: Callable[[], OSError]) -> None:
        """Raise *error* in whoever waits, and in who comes. From any thread."""
        self._error = error
        self.entry.turns.forget_asker(self)
        for seat in [*self._by_hub.values()]:
            seat.cancel(error())
        self._empty_pocket()
        self._ring()

    def reopen(self) -> None:
        """Undo `cancel`, for who comes from now on."""
        self._error = None
        self._ring()

    def end(self, waiting: OSError, error: Callable[[], OSError]) -> None:
        """Give all seats up: *waiting* is for who waits now, *error* for who comes."""
        self._error = error
        self.entry.turns.forget_asker(self)
        seats, self._by_hub = self._by_hub, {}
        for seat in seats.values():
            seat.end(waiting)
        self._empty_pocket()
        # Pollers see it ring, and keep its descriptor as long as they look at it.
        self._ring()
        self._bell = None

    def forget(self) -> None:
        """In a forked child: what lies in the pocket is the parent's, and so is the bell."""
        while self._pocket:
            _socket.close(self._pocket.popleft()[0])
        if self._bell is not None:
            self._bell.renew()
            self._ring()

    def abandon(self) -> None:
        """In a forked child: give up all seats as well. Their hubs aren't there."""
        self.forget()
        self._by_hub = {}

    # -- seats ---------------------------------------------------------------------------------

    def _seat_on(self, hub: Any) -> _Seat:
        seat = self._by_hub.get(hub)
        if seat is None:
            seat = self._by_hub[hub] = _Seat(self, hub)
            if self._error is not None:
                # Another thread ended them before it could see this one.
                self._by_hub.pop(hub, None)
                seat.close()
                self.check_open()
        return seat

    def _leave(self, seat: _Seat, hub: Any) -> None:
        # The home hub's seat is kept until the end, so that a loop of accepts doesn't make its
        # watchers anew each time.
        if hub is not self._home and not seat.is_used:
            self._by_hub.pop(hub, None)
            seat.close()


class _Greenlet(Waiter):  # type: ignore[type-arg]  # generic in the stubs alone
    """A greenlet that waits for a connection, and what it gets: descriptor and peer."""

    accepted: Accepted | None = None


class _Seat:
    """A clone's place in the ring of one hub, with the greenlets that want its turns there."""

    __slots__ = (
        "_delay",
        "_expected",
        "_hub",
        "_is_closed",
        "_seats",
        "dispatcher",
        "polls",
        "waiters",
    )

    #: Nobody knows how long a program works on what it accepted.
    load: Final = 0
    #: The greenlet that waits goes on within the turn.
    is_out_of_reach: Final = False
    max_accept: Final = MAX_ACCEPT

    def __init__(self, seats: Seats, hub: Any) -> None:
        self.dispatcher: Dispatcher = dispatcher_for(seats.entry, hub)
        self._hub = hub
        self._seats = seats
        self._is_closed = False
        # Connections that are on their way here from another hub.
        self._expected = 0
        self._delay = PAUSE_MIN_SECONDS
        self.waiters: deque[_Greenlet] = deque()
        #: How many poll the clone on this hub.
        self.polls = 0

    @property
    def team(self) -> Team[Any]:
        return self.dispatcher.singles

    @property
    def is_used(self) -> bool:
        return bool(self.waiters or self.polls)

    @property
    def context(self) -> str:
        return f"the listener on {self._seats.entry.address!r}"

    def wait(self, timeout: float | None) -> Accepted:
        """Return the descriptor and the peer's address of the next connection."""
        waiter = _Greenlet(self._hub)
        deadline = Timeout.start_new(timeout, TimeoutError("timed out"))
        is_over = False
        try:
            self.waiters.append(waiter)
            self.dispatcher.hold_loop(self, is_held=True)
            self.settle()
            switched = waiter.get()
            if switched is not waiter:
                raise InvalidSwitchError(f"invalid switch into {waiter!r}: got {switched!r}")
            accepted: Accepted | None = waiter.accepted
            assert accepted is not None, "it comes with the switch"
            return accepted
        except TimeoutError:
            is_over = True
            raise
        finally:
            deadline.close()
            if waiter.accepted is None and waiter in self.waiters:
                self.waiters.remove(waiter)
                if is_over:
                    self.settle_soon()
                else:
                    self.settle()
            if not self.waiters:
                self.dispatcher.hold_loop(self, is_held=False)

    @property
    def _room(self) -> int:
        # Pollers share one connection: then they are told, and it is for them to accept.
        return len(self.waiters) + (self.polls > 0 and not self._seats._pocket) - self._expected

    def settle(self) -> None:
        """Be ready while more is wanted than connections are on their way."""
        turns = self.dispatcher.turns
        with turns.lock:
            if self._room > 0:
                turns.join(self)
            else:
                turns.leave(self)

    def settle_soon(self) -> None:
        """Keep the place in line for somebody who is back at once."""
        if self._room <= 0 and self.dispatcher.has_loop:
            self._hub.loop.run_callback(self.settle)
        else:
            self.settle()

    def expect_locked(self) -> None:
        self._expected += 1
        self.settle()

    def unexpect_locked(self) -> None:
        self._expected -= 1
        self.settle()

    def has_room(self) -> bool:
        if self._room > 0:
            return True
        self.settle()  # nobody came back
        return False

    def take(self, handed: Handed) -> bool:
        with self.dispatcher.turns.lock:
            if not self.is_used:
                return False
            self._expected -= 1
        self._wake(handed.number, handed.address)
        return True

    def broken(self, error: OSError) -> None:
        self._cancel(error)

    def take_turn(self) -> Turn:
        owner = self._seats.owner
        if owner is None or not self.has_room():
            self.dispatcher.turns.leave(self)
            return Turn.PASSED
        try:
            number, address = owner.take()
        except BlockingIOError:
            return Turn.EMPTY
        except OSError as error:
            heap = classify(error)
            if heap is Heap.OUT_OF_ROOM:
                raise
            if heap is not Heap.PEER_LEFT:
                self._fail(error)
            return Turn.TAKEN
        self.dispatcher.accepted += 1
        self.dispatcher.turns.rotate(self.team, self)
        self._wake(number, address)
        return Turn.TAKEN

    def _fail(self, error: OSError) -> None:
        if self.waiters:
            self.dispatcher.turns.rotate(self.team, self)
            self._next_waiter().throw(error)
        else:
            # Its accept will tell.
            self._seats.cancel(lambda: error)

    def _wake(self, number: int, address: Any) -> None:
        # The greenlet runs now, in this switch: there is no moment in which it could be
        # killed, or its timeout end, with a connection on the way to it.
        self._delay = PAUSE_MIN_SECONDS
        if self.waiters:
            waiter = self._next_waiter()
            waiter.accepted = (number, address)
            waiter.switch(waiter)
        else:
            self._seats._put_into_pocket((number, address))
            self.settle()

    def _next_waiter(self) -> _Greenlet:
        waiter = self.waiters.popleft()
        self.settle()
        return waiter

    def next_delay(self) -> float:
        delay = self._delay
        self._delay = min(PAUSE_MAX_SECONDS, delay * 2)
        return delay

    def cancel(self, error: OSError) -> None:
        """Raise *error* in every greenlet that waits here. From any thread."""
        self.dispatcher.run(lambda: self._cancel(error))

    def _cancel(self, error: OSError) -> None:
        waiters, self.waiters = self.waiters, deque()
        self.polls = 0
        self.settle()
        for waiter in waiters if self.dispatcher.has_loop else ():
            self._hub.loop.run_callback(waiter.throw, error)

    def end(self, error: OSError) -> None:
        """Cancel, and give the place up. From any thread."""

        def end() -> None:
            self._cancel(error)
            self.close()

        self.dispatcher.run(end)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.dispatcher.turns.leave(self)
            self.dispatcher.detach()
