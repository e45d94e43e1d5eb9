"""Accept waiters: greenlets in ``accept()``, and the clones that they wait by.

A clone stands in the ring of its address while a program wants a connection of it. A greenlet that
waits in ``accept()`` goes on within its clone's turn. Programs may also poll a clone; that is
`glb.accept.readiness`'s, and a clone that is never polled has none of it.

A greenlet whose timeout is over without a turn has its place in line back when it waits again,
unless the clone was passed over meanwhile.

A program's objects on one kernel socket, by ``dup`` say, have their `AcceptWaiters` in common. For
each hub these have a `HubWaiters`, the member of the ring. All may be used from any hub's thread.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from gevent import Timeout, get_hub, getcurrent
from gevent.exceptions import InvalidSwitchError
from gevent.hub import Waiter

from ..model.accept_errors import AcceptErrorKind, Episode, classify
from .dispatcher import Dispatcher
from .protocols import PendingConnection, Turn
from .readiness import Accepted, Readiness
from .registry import Entry
from .ring import Team
from .watchdog import dispatcher_for

__all__ = ["AcceptWaiters", "HubWaiters"]

# gevent's own min_delay and max_delay: short enough that a waiting client does not notice,
# and at most one try a second for a process that stays out of descriptors.
PAUSE_MIN_SECONDS: Final = 0.01
PAUSE_MAX_SECONDS: Final = 1.0

# As gevent's servers: so many connections a wake-up, then whatever else the hub has to do.
MAX_ACCEPT: Final = 100


class Holder(Protocol):
    """A descriptor of the clone. Its waiters never keep it alive."""

    @property
    def asks_in_line(self) -> bool:
        """Whether an ``accept()`` that doesn't wait keeps the clone ready until the next one."""


class AcceptWaiters:
    """All that wait for the connections of one clone.

    Args:
        hub: The one whose `HubWaiters` are kept between two accepts.
    """

    __slots__ = (
        "__weakref__",
        "_by_hub",
        "_error",
        "_holders",
        "_home",
        "entry",
        "keeps_place",
        "place",
        "polled",
    )

    def __init__(self, entry: Entry, hub: Any) -> None:
        self.entry: Final = entry
        self._home: Any = hub
        self._holders: list[weakref.ref[Holder]] = []
        self._by_hub: dict[Any, HubWaiters] = {}
        # Makes what an accept raises, once they are cancelled or closed.
        self._error: Callable[[], OSError] | None = None
        #: Where in line the clone stood when it last left.
        self.place: int | None = None
        #: Whether it may come back there: it had no turn then, or it has mates.
        self.keeps_place = False
        #: Its `readiness`, once it was polled.
        self.polled: Readiness | None = None

    @property
    def readiness(self) -> Readiness:
        """What programs that poll need; made when first needed."""
        if self.polled is None:
            with self.entry.turns.lock:
                self.polled = self.polled or Readiness(self)
        return self.polled

    # -- their descriptors ---------------------------------------------------------------------

    def join(self, holder: Holder) -> None:
        """They are *holder*'s as well."""
        self._holders.append(weakref.ref(holder))

    @property
    def holder(self) -> Holder | None:
        """A descriptor that has them."""
        found = (reference() for reference in [*self._holders])
        return next((each for each in found if each is not None), None)

    @property
    def is_shared(self) -> bool:
        """Whether several descriptors have them in common."""
        return len(self._holders) > 1

    def end(self, holder: Holder, waiting: OSError, error: Callable[[], OSError]) -> None:
        """*holder* closes: raise *waiting* in greenlets that wait by it, and *error* in later ones.

        With the last holder they end. Twice is harmless.
        """
        with self.entry.turns.lock:
            self._holders = [each for each in self._holders if each() not in (holder, None)]
            if self._holders:
                for each in self.hubs:
                    each.cancel(waiting, by=holder)
                return
            self._error = error
            ended, self._by_hub = self._by_hub, {}
        for each in ended.values():
            each.end(waiting)
        if self.polled is not None:
            self.polled.end()

    def cancel(self, error: Callable[[], OSError]) -> None:
        """Raise *error* in all greenlets that wait, and in later ones. From any thread."""
        self._error = error
        for each in self.hubs:
            each.cancel(error())
            each.settle()
        if self.polled is not None:
            self.polled.give_back()

    def reopen(self) -> None:
        """Undo `cancel`, for later accepts, and for polls that last still."""
        self._error = None
        if self.polled is not None:
            self.polled.changed()
        self.settle()

    @property
    def is_cancelled(self) -> bool:
        """Whether an accept raises at once."""
        return self._error is not None

    def check_open(self) -> None:
        """Raise what `cancel` or `end` were given."""
        error = self._error
        if error is not None:
            raise error()

    # -- accepting -----------------------------------------------------------------------------

    def accept(self, timeout: float | None, holder: Holder) -> Accepted:
        """Wait for the clone's turn; see `glb.Listener.accept`."""
        self.check_open()
        if timeout == 0.0:
            return self.accept_nowait(is_in_line=holder.asks_in_line)
        if self.polled is not None:
            found = self.polled.take_one()
            if found is not None:
                return found
        hub = get_hub()
        if getcurrent() is hub:
            # Waiting is an error in a callback; what is there already can be had.
            try:
                return self.accept_nowait(is_in_line=False)
            except BlockingIOError:
                hub.switch_out()
        here = self.on(hub)
        if self.polled is not None:
            self.polled.stop_polling()
        try:
            return here.wait(timeout, holder)
        finally:
            self.leave(here)

    def accept_nowait(self, *, is_in_line: bool) -> Accepted:
        """See `glb.accept.readiness.Readiness.accept_nowait`."""
        return self.readiness.accept_nowait(is_in_line=is_in_line)

    # -- hubs ----------------------------------------------------------------------------------

    @property
    def hubs(self) -> list[HubWaiters]:
        """Their parts on all hubs."""
        return [*self._by_hub.values()]

    def on(self, hub: Any) -> HubWaiters:
        """Return their part on *hub*, this thread's; the caller leaves it."""
        found = self._by_hub.get(hub)
        if found is None:
            found = self._by_hub[hub] = self.make_member(hub)
            if not self._holders:
                # Another thread ended them before it could see this one.
                self._by_hub.pop(hub, None)
                found.close()
                self.check_open()
        return found

    def make_member(self, hub: Any) -> HubWaiters:
        """Return a new part on *hub*."""
        return HubWaiters(self, hub)

    def leave(self, here: HubWaiters) -> None:
        """*here* may not be needed any more."""
        # The home hub's is kept until the end, so that a loop of accepts doesn't make its watchers
        # anew each time.
        if here.hub is not self._home and not here.is_used:
            if self._by_hub.get(here.hub) is here:
                del self._by_hub[here.hub]
            here.close()

    def settle(self) -> None:
        """See `HubWaiters.settle`."""
        for each in self.hubs:
            each.settle()

    # -- fork ----------------------------------------------------------------------------------

    def forget(self) -> None:
        """In a forked child: pending connections are the parent's to serve."""
        if self.polled is not None:
            self.polled.forget()

    def abandon(self) -> None:
        """In a forked child without their hubs."""
        if self.polled is not None:
            self.polled.abandon()
        self._by_hub = {}


class _Greenlet(Waiter):  # type: ignore[type-arg]  # generic in the stubs alone
    """A greenlet that waits for a connection, and what it gets: plain socket and peer."""

    accepted: Accepted | None = None
    #: The descriptor by which it waits.
    holder: Holder


class HubWaiters:
    """A clone's place in the ring, on one hub, with the greenlets that wait there."""

    __slots__ = (
        "_delay",
        "_expected",
        "_is_closed",
        "clone",
        "dispatcher",
        "hub",
        "is_polled_nowait",
        "polls",
        "waiters",
    )

    #: The greenlet that waits goes on within the turn.
    is_not_reclaimable: bool = False
    runs_at_once: Final = True
    accepts_itself: Final = False

    def __init__(self, clone: AcceptWaiters, hub: Any) -> None:
        self.dispatcher: Dispatcher = dispatcher_for(clone.entry, hub)
        self.hub = hub
        self.clone = clone
        self._is_closed = False
        self._expected = 0
        self._delay = PAUSE_MIN_SECONDS
        self.waiters: deque[_Greenlet] = deque()
        #: How many polls of the clone wait on this hub.
        self.polls = 0
        #: Whether a program polls the clone here without waiting.
        self.is_polled_nowait = False

    @property
    def load(self) -> int:
        return 0  # it isn't known how long a program works on what it accepted

    @property
    def max_accept(self) -> int:
        return MAX_ACCEPT

    @property
    def team(self) -> Team[Any]:
        return self.dispatcher.singles

    @property
    def is_used(self) -> bool:
        return bool(self.waiters or self.polls or self.is_polled_nowait)

    @property
    def context(self) -> object:
        return f"the listener on {self.clone.entry.address!r}"

    def wait(self, timeout: float | None, holder: Holder) -> Accepted:
        """Return the plain socket and the peer's address of the next connection."""
        waiter = _Greenlet(self.hub)
        waiter.holder = holder
        over = TimeoutError("timed out")
        deadline = Timeout.start_new(timeout, over)
        is_over = False
        try:
            self.waiters.append(waiter)
            self.hold_loop()
            self.settle()
            self.clone.check_open()  # another thread may have struck a moment ago
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
        """Keep the hub alive while a greenlet waits or polls."""
        self.dispatcher.hold_loop(self, is_held=bool(self.waiters or self.polls))

    @property
    def expected(self) -> int:
        """Connections that are on their way here from another hub."""
        return self._expected

    @property
    def is_taking(self) -> bool:
        """Whether something here wants a connection, also one that it isn't ready for."""
        return not self._is_closed and self.is_used

    @property
    def room(self) -> int:
        """How many connections more are wanted than are on their way."""
        if self._is_closed or self.clone.is_cancelled:
            return 0
        wanted = len(self.waiters) - self.expected
        if self.polls or self.is_polled_nowait:
            # All that poll share one pending connection, which they race to accept.
            wanted += not self.clone.readiness.pending
        return wanted

    def settle(self, *, keeps_place: bool = False) -> None:
        """Be ready while more is wanted than connections are on their way."""
        turns, clone = self.dispatcher.turns, self.clone
        with turns.lock:
            if self.room > 0:
                turns.join(self, clone.place if clone.keeps_place else None)
                clone.keeps_place = False
                return
            place = turns.leave(self)
            if place is not None:
                polled = clone.polled
                clone.place = place
                clone.keeps_place = keeps_place or (polled is not None and polled.has_mates)

    def may_expect_locked(self) -> bool:
        return True

    def expect_locked(self) -> None:
        self._expected += 1
        self.settle()

    def unexpect_locked(self) -> None:
        self._expected -= 1
        self.settle()

    def has_room(self) -> bool:
        if self.room > 0:
            return True
        self.settle()
        return False

    def take(self, handed: PendingConnection) -> bool:
        return self.deliver(handed.sock, handed.address, handed.moves)

    def arrived(self, plain: Any, *, is_new: bool) -> None:
        """A connection is about to be delivered; it *is_new* if it came from no other hub."""
        self.dispatcher.accepted += 1
        self._delay = PAUSE_MIN_SECONDS

    def deliver(self, plain: Any, address: Any, moves: int | None = None) -> bool:
        with self.dispatcher.turns.lock:
            if not self.is_taking:
                return False
            if moves is not None:
                self._expected -= 1
        self.arrived(plain, is_new=moves is None)
        # The greenlet runs now, in this switch: there is no moment in which it could be
        # killed, or its timeout end, with a connection on the way to it.
        if not self.waiters:
            polled = self.clone.readiness
            polled.add((plain, address))
            self.settle()
            polled.look_after()
            return True
        waiter = self.waiters[0]
        try:
            waiter.accepted = (plain, address)
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
        return True

    # -- errors --------------------------------------------------------------------------------

    @property
    def failures(self) -> Episode:
        return self.clone.entry.failures

    def wants(self, error: OSError) -> bool:
        # A poller can't be given an error that may be over by the time it accepts: it goes on
        # waiting, while the dispatcher pauses. What is broken stays so.
        return bool(self.waiters) and classify(error) is AcceptErrorKind.UNKNOWN

    def accept_failed(self, error: BaseException) -> Turn:
        if not isinstance(error, OSError) or (
            classify(error) is not AcceptErrorKind.BROKEN and not self.wants(error)
        ):
            raise error
        self.broken(error)
        return Turn.TAKEN

    def broken(self, error: OSError) -> None:
        if not self.dispatcher.has_loop:
            return  # and its greenlets with it
        if self.waiters:
            self.dispatcher.turns.rotate(self.team, self)
            self.waiters[0].throw(error)  # it takes itself out
        elif classify(error) is AcceptErrorKind.BROKEN:
            number, text = error.errno, error.strerror
            # The next accept raises it.
            self.clone.cancel(lambda: OSError(number, text))
        else:
            self.settle()

    def next_delay(self) -> float:
        delay = self._delay
        self._delay = min(PAUSE_MAX_SECONDS, delay * 2)
        return delay

    # -- the end -------------------------------------------------------------------------------

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
