"""Admission: whether a server's clones have turns, and why not.

A server has one. Its state is changed in one place, `Admission.enter`, from any thread, and only as
`glb.model.states` allows. What ends the turns for a while (a pool without room, a limit, an accept
that failed) gives them back by itself: with the end of a handler, or with a timer.

gevent's servers have two hooks for the same, ``stop_accepting`` and ``start_accepting``, which
programs override. So pauses go through these, see `Admission.pause`.

All of it is guarded by the registry's lock.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any, Final

from ..accept.dispatcher import Dispatcher
from ..accept.handover import HandOver
from ..accept.registry import REGISTRY
from ..hubs.greenlet_pool import HandlerPool, handlers_here
from ..hubs.guard import GUARD_SECONDS
from ..hubs.threads import call_where_it_may_switch
from ..model.accept_errors import Episode
from ..model.limits import Bucket
from ..model.states import MOVES, PAUSES, State, before
from ..model.stats import PAUSE_REASONS
from ..net.fd_leaks import Watermark
from ..originals import monotonic
from .bounds import SharedBound
from .drain_worker import FOREVER
from .hooks import Hooks
from .spawning import Spawning
from .workers import Workers

__all__ = ["Admission"]

log: Final = logging.getLogger("glb")


class Admission:
    """Whether the clones of *server* have turns.

    Args:
        spawning: Has the pool that bounds its handlers, if any.
        on_room: Called by the semaphore of a pool that may have room again.
    """

    def __init__(
        self,
        server: Hooks,
        workers: Workers,
        spawning: Spawning,
        on_room: Callable[[object], object],
    ) -> None:
        self.server: Final = server
        self._workers: Final = workers
        self._spawning: Final = spawning
        self.on_room: Final = on_room
        self.state = State.STOPPED
        #: Tells how many descriptors are open; of a server that was opened.
        self.watermark: Watermark
        #: Its address's, once it was opened.
        self.turns: HandOver | None = None
        #: Connections that are on their way to a clone. Changed with the registry's lock held.
        self.expected = 0
        #: Whether there is a limit to look at before each connection.
        self.is_limited = False
        #: How fast it may take connections, if there is a limit.
        self.bucket: Bucket | None = None
        #: Whether all connections are to end when nothing is under way on them: since a drain has
        #: begun, and until the next start.
        self.is_drained = False
        #: Whether those of some of its clones are.
        self.is_ending = False
        #: Whether a drain has begun, and clones have their turns still: what waits in the accept
        #: queue is served first. Its `state` tells what it does about that, as ever.
        self.lingers = False
        #: What was reported already of accepts that failed.
        self.failures = Episode()
        #: How often it has paused, by the reason: ``"full"``, ``"rate"`` or ``"error"``.
        self.pauses: Final[Counter[str]] = Counter(dict.fromkeys(PAUSE_REASONS, 0))
        # Whether its listener was found broken, since it was opened.
        self._has_failed = False
        self._timer: Any = None
        # When a pause is over, on the monotonic clock.
        self._until = FOREVER
        # Counts the changes of state, so that a timer knows whether it still matters.
        self._episode = 0
        # Whether a pool's semaphore calls when there is room.
        self._is_called_for_room = False
        # Whether it is full because it has as many connections as it may.
        self._has_reached_most = False

    @property
    def is_open(self) -> bool:
        """Whether clones that aren't paused wait for connections now."""
        turns = self.turns
        is_accepting = self.shown_state is State.ACCEPTING
        return is_accepting and turns is not None and not turns.is_paused

    @property
    def shown_state(self) -> State:
        """Its state for all others: that of a server that drains from the first moment on."""
        return State.DRAINING if self.lingers else self.state

    # -- the state -----------------------------------------------------------------------------

    def open(self, turns: HandOver, home: Dispatcher, *, is_ending: bool) -> None:
        """Its clones are to stand in *turns*; they have none yet.

        Args:
            home: The dispatcher of its first hub, which is this thread's.
            is_ending: Whether some of its clones went, and may have connections still.
        """
        server = self.server
        self.turns = turns
        self.is_drained = self._has_failed = False
        self.is_ending = is_ending
        rate = server.accept_rate
        self.bucket = None if rate is None else Bucket(rate, monotonic())
        limits = (server.max_connections, server.max_connections_per_clone, rate)
        self.is_limited = any(limit is not None for limit in limits)
        home.guarded[self] = self.look_over

    def linger(self) -> None:
        """A drain has begun, which `close` follows: leave the turns as they are until then."""
        with REGISTRY.lock:
            if self.turns is not None:
                self.lingers = self.is_drained = self.is_ending = True

    def close(self, state: State) -> None:
        """Leave the turns, for *state*: stopped, or draining."""
        with REGISTRY.lock:
            self.lingers = False
            if state in MOVES[self.state]:
                self._set_locked(state)
            self.turns = None

    def leave(self, home: Dispatcher) -> None:
        """Leave nothing in *home*, the dispatcher of its first hub. In that hub."""
        self._end_timer(home)
        home.guarded.pop(self, None)

    def _end_timer(self, home: Dispatcher) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and home.has_loop:
            timer.close()

    def enter(
        self,
        state: State,
        delay: float | None = None,
        reason: str | None = None,
        *,
        after: Collection[State] = tuple(State),
        episode: int | None = None,
    ) -> None:
        """Change the state, from any thread; after *delay* seconds, if given, accept again.

        Only if it is one of *after* now, if that leads there, and if it is that *episode*.

        Args:
            reason: Of a pause, for the count of them.
        """
        with REGISTRY.lock:
            turns = self.turns
            opened = self._workers.opened()
            if turns is None or not opened:
                return  # there is no timer, and no place in a ring
            if self.state not in after or self.state not in before(state):
                return
            if episode not in (None, self._episode):
                return
            self._set_locked(state)
            if reason is not None:
                self.pauses[reason] += 1
            self._until = FOREVER if delay is None else monotonic() + delay
            episode = self._episode
            if state is State.ACCEPTING:
                turns.admit(opened)
            else:
                turns.suspend(opened)
            watchdog = turns.watchdog
        home = opened[0][0]
        if delay is not None and watchdog is not None and len(self._workers) > 1:
            # Its first hub may be stalled, and the others be waiting for nothing else.
            is_kept = watchdog.later(delay, functools.partial(self.accept_again, episode))
            delay = None if is_kept else delay
        home.run(functools.partial(self._entered, home, episode, delay))

    def _set_locked(self, state: State) -> None:
        self.state = state
        if state is State.DRAINING:
            self.is_drained = self.is_ending = True
        self._episode += 1

    def _entered(self, home: Dispatcher, episode: int, delay: float | None) -> None:
        # In the server's first hub. Here everything may have changed again.
        if home is not self._workers.home:
            return
        home.hold_loop(self._workers[0], is_held=self.state is not State.STOPPED)
        if episode != self._episode:
            return
        self._end_timer(home)
        if delay is not None and home.has_loop:
            self._timer = home.hub.loop.timer(delay)
            self._timer.start(self.accept_again, episode)

    def look_over(self) -> None:
        """Take up what an exception has left undone: see `glb.hubs.guard`. In the first hub."""
        with REGISTRY.lock:  # or another thread could change the state in between
            turns, opened = self.turns, self._workers.opened()
            is_accepting = self.state is State.ACCEPTING
            is_wrong = any((team in each.admitted) is not is_accepting for each, team in opened)
            if turns is not None and is_wrong and is_accepting:
                turns.admit(opened)
            elif turns is not None and is_wrong:
                turns.suspend(opened)
            self.expected = sum(worker.in_flight for worker in self._workers)
        bound = self._spawning.bound
        if isinstance(bound, HandlerPool):
            bound.look_over(handlers_here())
        if self.state is State.FULL:
            self.look_for_room()
        elif self.state is State.BACKING_OFF and monotonic() > self._until + GUARD_SECONDS:
            self.accept_again(self._episode)

    # -- pauses, by gevent's hooks -------------------------------------------------------------

    def pause(self, state: State, reason: str, delay: float | None = None) -> None:
        """Go from accepting to *state*, by gevent's hook, for *delay* seconds if given."""
        turn = self._workers.turn
        turn.pause = (state, delay, reason)
        try:
            self.server.stop_accepting()
        finally:
            turn.pause = None
        self.enter(state, delay, reason, after=(State.ACCEPTING,))  # if the hook did not

    def accept_again(self, episode: int | None = None) -> None:
        """End a pause, by gevent's hook: this one, or the one with that number."""
        turn = self._workers.turn
        turn.resumed = self._episode if episode is None else episode
        try:
            self.server.start_accepting()
        finally:
            turn.resumed = None

    def stopped_accepting(self) -> None:
        """Gevent's hook says so: for a pause, or since its owner wants it."""
        pause = self._workers.turn.pause
        if pause is None:
            self.enter(State.STOPPED)
        else:
            self.enter(*pause, after=(State.ACCEPTING,))

    def starts_again(self) -> bool:
        """Gevent's hook says so: if it is for the end of a pause, end it, and tell."""
        episode = self._workers.turn.resumed
        if episode is None:
            return False
        self.enter(State.ACCEPTING, after=PAUSES, episode=episode)
        return True

    # -- room ----------------------------------------------------------------------------------

    def has_assigned_all(self) -> bool:
        """Whether all room in the pool is for connections that are on their way here."""
        pool = self._spawning.bound
        return (
            self.expected > 0
            and pool is not None
            and pool.size is not None
            and pool.free_count() <= self.expected
        )

    def is_within_limits(self) -> bool:
        """Whether no limit of the whole server keeps it from one more; if one does, pause."""
        if self._has_most():
            self._is_called_for_room = False
            self._has_reached_most = True
            if self.state is State.ACCEPTING:
                self.pause(State.FULL, "full")
            self.look_for_room()  # the last handler may have ended a moment before
            return False
        bucket = self.bucket
        if bucket is not None and self.state is State.ACCEPTING:
            delay = bucket.pause(monotonic())
            if delay:
                self.pause(State.BACKING_OFF, "rate", delay)
                return False
        return True

    def _has_most(self) -> bool:
        most = self.server.max_connections
        return most is not None and self._workers.active + self.expected >= most

    def found_full(self) -> None:
        """A turn found no room for its handler: pass over all clones until there is some."""
        if self.state is not State.ACCEPTING:
            return  # `full` itself has stopped or closed the server
        bound = self._spawning.bound
        is_shared = isinstance(bound, SharedBound)
        is_locked = bound is not None and bound._semaphore.locked()
        self._is_called_for_room = is_locked
        self._has_reached_most = False
        if is_locked or is_shared:
            self.pause(State.FULL, "full")
        else:
            # A `full` of the program's own: nothing reports when its answer changes. The end of
            # each handler is a good moment to ask (see `handler_ended`), and so is this.
            self.pause(State.FULL, "full", self.next_delay() if self.server.delay >= 0 else None)
        home = self._workers.home
        locked = [each for each in self.semaphores if each.locked()]
        if is_shared:
            self.look_for_room()  # the last handler may have ended a moment before
        elif locked and home is not None:
            home.run(functools.partial(self._ask_for_room, locked))

    def _ask_for_room(self, semaphores: list[Any]) -> None:
        for semaphore in semaphores:
            semaphore.unlink(self.on_room)
            semaphore.rawlink(self.on_room)

    @property
    def semaphores(self) -> list[Any]:
        """Those of the pool that bounds the handlers, and of one that a program has set."""
        bound, pool = self._spawning.bound, self.server.pool
        pools = [bound] if pool is bound else [bound, pool]
        return [each._semaphore for each in pools if hasattr(each, "_semaphore")]

    def forget_room(self) -> None:
        """It is closed: be called by no semaphore any more."""
        for semaphore in self.semaphores:
            semaphore.unlink(self.on_room)

    def handler_ended(self) -> None:
        """A handler is done, in whatever thread it ran. If all was full, there may be room."""
        if self.state is not State.FULL or self._is_called_for_room:
            return
        home = self._workers.home
        if len(self._workers) > 1:
            self.look_for_room()
        elif home is not None:
            home.send(self.look_for_room)

    def look_for_room_soon(self) -> None:
        """What was on its way is not any more: if all was full, there may be room."""
        turns, home = self.turns, self._workers.home
        if turns is not None and turns.watchdog is not None and len(self._workers) > 1:
            turns.watchdog.send(self.look_for_room)
        elif home is not None:
            home.send(self.look_for_room)

    def look_for_room(self) -> None:
        """Accept again, if it was full and is not any more."""
        if self.state is not State.FULL or self._has_most():
            return
        if self._has_reached_most:
            # Others may have filled the pool meanwhile: the next turn finds that out.
            self._has_reached_most = False
            self.accept_again()
        elif not self.server.full() and not self.has_assigned_all():
            self.accept_again()

    def expect_locked(self) -> None:
        """A connection was handed to one of its clones, and is on its way."""
        self.expected += 1
        if self.bucket is not None:
            self.bucket.take(monotonic())

    def unexpect_locked(self) -> None:
        """One that was on its way has arrived, or won't come."""
        self.expected -= 1
        if self.state is State.FULL:
            self.look_for_room_soon()

    # -- failures ------------------------------------------------------------------------------

    def next_delay(self) -> float:
        """Return how long to pause now, in seconds; twice as long the next time."""
        server = self.server
        delay: float = server.delay
        server.delay = min(server.max_delay, delay * 2)
        return delay

    def accept_failed(self, error: BaseException) -> None:
        """Report *error*, but once an episode, and pause all clones, once."""
        server = self.server
        with REGISTRY.lock:  # hubs may fail at the same time
            is_news = self.failures.is_news(error, server.delay, monotonic())
        self.back_off(server, error, is_news=is_news)

    def back_off(self, context: object, error: BaseException, *, is_news: bool = True) -> None:
        """Report *error* as gevent does, and pause all clones, once."""
        server = self.server
        if is_news:
            server.loop.handle_error(context, type(error), error, error.__traceback__)
        if server.delay >= 0 and self.state is State.ACCEPTING:
            self.pause(State.BACKING_OFF, "error", self.next_delay())

    def fail(self, error: BaseException) -> None:
        """The listener is broken: report it, and close the server, once."""
        with REGISTRY.lock:  # hubs may fail at the same time
            if self._has_failed:
                return
            self._has_failed = True
        server = self.server
        server.loop.handle_error(server, type(error), error, error.__traceback__)
        name = str(server)
        server.close()
        call_where_it_may_switch(
            functools.partial(log.error, "%s failed with %s", name, str(error) or repr(error))
        )
