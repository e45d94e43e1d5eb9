"""The watchdog: keeps connections from waiting for a hub that is stalled.

Where clones of two hubs share an address, a third hub joins them, in a thread of its own that
runs no handlers. As long as all goes well it sleeps, or looks around once a tick. When

* a hub is too slow with a connection that it was handed, that is taken back (see
  `glb.accept.handover`);
* the leader doesn't accept while connections wait, the watchdog takes the lead;
* nothing of the kind has happened for `CALM_SECONDS`, a hub gets it back: to accept where
  connections are handled as well spares them a switch between threads.

It keeps the lead where only plain listeners of several hubs share an address: a thread that
loops over ``accept`` turns its hub while it waits there, and no longer.

**Sleeping.** An idle process has no ticks but the guard's (`glb.hubs.guard`). They begin with a
connection that one hub hands to another, or when one waits in the accept queue: until then the
watchdog watches it too.

Source: Node's cluster, where a worker gets the next connection when it has acknowledged the
last. (nginx and Envoy leave a connection to the worker that is stuck.)
"""

from __future__ import annotations

from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from ..hubs.threads import HubThread
from ..model.accept_errors import listener_closed
from ..originals import monotonic
from .dispatcher import Dispatcher
from .registry import Entry

__all__ = ["CALM_SECONDS", "Watchdog", "dispatcher_for"]

# So long without a hub that let anything lie, and one of them may accept again. Each time that
# trust is mistaken, connections wait for up to two ticks: one in a hundred of the time, at worst.
CALM_SECONDS: Final = 1.0

# So long after it was too slow a hub gets one connection at a time, unless it is quick before
# (`glb.accept.handover.QUICK_TAKES`). With a quarter of that 16 hubs whose handlers block 5 ms
# served 14.1 times what one did, instead of 15.1, and 8.6 instead of 12.5 with policy "first".
PROBATION_SECONDS: Final = 1.0

# A hub that goes on beginning handlers, if slowly, is let alone for so many ticks more: what
# lies there would not be begun much sooner elsewhere, and to move it costs exactness. (With 5,
# 16 hubs whose handlers block 5 ms, and 32 clients, served 12 times what one did, not 15.)
SLOW_TICKS: Final = 2

# So often what a connection may lie is doubled, once for each time that it was taken back: up to
# 5 s, with the default.
MOST_DOUBLINGS: Final = 8

# A tick is late if the process was stopped, or that threads queue for the
# interpreter: then the hubs could not turn either, and only each so many such ticks count.
LATE_TICKS: Final = 4

# So many ticks without anything to see, and it sleeps: 0.2 s as a rule. Under steady traffic,
# however thin, waking up costs more than a tick.
QUIET_TICKS: Final = 20


class _Look:
    """What the watchdog saw of one dispatcher when it last looked."""

    def __init__(self) -> None:
        self._moves = (0, 0)
        # How many handlers were to begin, ever, counting those that waited, at the last tick and
        # some ticks before.
        self._due = self._long_due = 0
        self._long_due_at = 0

    def is_letting_lie(self, dispatcher: Dispatcher, clock: int) -> bool:
        """Whether a connection that was there when it last looked still is; with the lock held."""
        begun, waiting = dispatcher.handlers.begun, len(dispatcher.handlers.jobs)
        moves = (dispatcher.moves, begun)
        patience = 1 if moves == self._moves else SLOW_TICKS
        is_lying = any(
            clock - handed.clock > patience << min(handed.moves, MOST_DOUBLINGS)
            for handed in [*dispatcher.inbox][:1]
        )
        if waiting and moves == self._moves:
            is_lying = is_lying or begun < self._due
        is_long = clock - self._long_due_at >= SLOW_TICKS
        if waiting and is_long:
            is_lying = is_lying or begun < self._long_due
        self._moves = moves
        self._due = begun + waiting
        if is_long:
            self._long_due, self._long_due_at = self._due, clock
        return is_lying


class Watchdog(Dispatcher):
    """A dispatcher without clones. It belongs to the hub of its own thread."""

    is_watchdog = True

    def __init__(self, entry: Entry, thread: HubThread) -> None:
        super().__init__(entry, thread.hub)
        self.thread_of_its_own: Final = thread
        self.is_ticking = False
        self._timer: Any = None
        self._timers: set[Any] = set()
        self._ticked_at = 0.0
        self._late = 0
        self._looks: WeakKeyDictionary[Any, _Look] = WeakKeyDictionary()
        self._disturbed_at = monotonic()
        self._seen_moves = 0
        self._missed = 0
        self._quiet = 0

    @classmethod
    def start(cls, entry: Entry) -> Watchdog:
        """Return one in a thread of its own, which ends when it is closed."""
        name = f"glb watchdog of {entry.address!r}"
        # `close` ends it with the registry's lock held.
        thread = HubThread(name, lock=entry.turns.lock).start()
        try:
            watchdog = thread.call(lambda: cls(entry, thread))
        except BaseException:
            thread.end()
            raise
        thread.at_exit = watchdog.close
        return watchdog

    def close(self) -> None:
        self._stop_ticking()
        for timer in [*self._timers]:
            self._end_timer(timer)
        super().close()
        self.thread_of_its_own.end()

    def arm_locked(self) -> None:
        if not self.is_ticking:
            self.is_ticking = True
            self.wake_locked()

    def later(self, delay: float, call: Any) -> bool:
        """Have *call* called in this hub *delay* seconds from now. From any thread.

        Returns:
            ``False`` if it has ended: it won't be called.
        """
        return self.send(lambda: self._start_timer(delay, call))

    def _start_timer(self, delay: float, call: Any) -> None:
        if not self.mailbox.is_open:
            return
        timer = self.hub.loop.timer(delay)
        self._timers.add(timer)

        def ring() -> None:
            self._end_timer(timer)
            call()

        timer.start(ring)

    def _end_timer(self, timer: Any) -> None:
        self._timers.discard(timer)
        if self.has_loop:
            timer.close()

    # -- watching ------------------------------------------------------------------------------

    def _is_to_watch(self) -> bool:
        if self.turns.leader is self:
            return super()._is_to_watch()
        is_wanted = not self.is_ticking and not self._entry.is_left
        return is_wanted and self.turns.is_anybody_ready

    def _on_readable(self) -> None:
        if self.turns.leader is self:
            super()._on_readable()
        else:
            with self.turns.lock:
                self.arm_locked()

    def _watch_while_ready(self) -> None:
        if self.is_ticking and self._timer is None and self._io is not None and self.has_loop:
            self._start_ticking()
        super()._watch_while_ready()

    # -- ticks ---------------------------------------------------------------------------------

    def _start_ticking(self) -> None:
        patience = self.turns.patience
        self._quiet = 0
        self._missed = 0
        self._seen_moves = self._count_moves()
        self._ticked_at = monotonic()
        self._timer = self.hub.loop.timer(patience, patience)
        self._timer.start(self._tick)

    def _stop_ticking(self) -> None:
        self.is_ticking = False
        timer, self._timer = self._timer, None
        if timer is not None and self.has_loop:
            timer.close()

    def _tick(self) -> None:
        turns = self.turns
        with turns.lock:
            now = monotonic()
            elapsed, self._ticked_at = now - self._ticked_at, now
            if elapsed < turns.patience / 2:
                return  # the loop makes up for one that was late
            self._late = self._late + 1 if elapsed > 1.5 * turns.patience else 0
            if self._late % LATE_TICKS:
                return
            turns.clock += 1
            every = cast("list[Dispatcher]", [*turns.dispatchers.values()])
            has_work = turns.waiting or any(each.inbox or each.handlers.jobs for each in every)
            self._judge_locked(every, now)
            if turns.leader is None:
                turns.assign_locked(self)
            elif turns.leader is not self:
                self._judge_leader_locked()
            elif now - self._disturbed_at > CALM_SECONDS:
                self._hand_lead_on_locked()
            moves = self._count_moves()
            is_quiet = not has_work and moves == self._seen_moves
            self._seen_moves = moves
            self._quiet = self._quiet + 1 if is_quiet else 0
            if self._quiet >= QUIET_TICKS:
                self._stop_ticking()
        if turns.leader is self and turns.waiting:
            self._on_readable()
        else:
            self._watch_while_ready()

    def _judge_locked(self, every: list[Dispatcher], now: float) -> None:
        turns = self.turns
        stalled = []
        for dispatcher in every:
            look = self._looks.setdefault(dispatcher, _Look())
            if look.is_letting_lie(dispatcher, turns.clock):
                self._disturbed_at = now
                stalled.append(dispatcher)
                turns.stall_locked(dispatcher)
            elif (
                dispatcher.stalled_at is not None
                and dispatcher.has_turns
                and now - dispatcher.stalled_at > PROBATION_SECONDS
            ):
                dispatcher.stalled_at = None
        # If no hub turns it lies well where it is: perhaps that one is back first.
        if stalled and turns.has_hub_that_turns_locked():
            for dispatcher in stalled:
                turns.reclaim_locked(dispatcher)

    def _judge_leader_locked(self) -> None:
        turns = self.turns
        leader = cast("Dispatcher", turns.leader)
        has_moved = self._count_moves() != self._seen_moves
        if has_moved or leader.is_paused or turns.next_locked() is None:
            self._missed = 0
        elif turns.waiting or self._entry.has_clients():
            self._missed += 1
            if self._missed > 1:
                self._missed = 0
                self._disturbed_at = monotonic()
                turns.stall_locked(leader)
                turns.assign_locked(self)

    def _count_moves(self) -> int:
        leader = cast("Dispatcher | None", self.turns.leader)
        return 0 if leader is None else leader.moves

    def _hand_lead_on_locked(self) -> None:
        dispatcher = self.turns.find_fit_locked()
        if dispatcher is not None:
            self.turns.assign_locked(dispatcher)


def dispatcher_for(entry: Entry, hub: Any) -> Dispatcher:
    """Return *entry*'s dispatcher on *hub*, this thread's, attached; the caller detaches it.

    With the second hub comes the watchdog.

    Raises:
        OSError: EBADF, when the entry is closed.
        RuntimeError, OSError: There is no room for the watchdog's thread, or for its loop.
    """
    turns = entry.turns
    watchdog: Watchdog | None = None
    try:
        while True:
            with turns.lock:
                if entry.is_closed:
                    raise listener_closed(entry.address)
                turns.forget_dead_locked()
                found = cast("Dispatcher | None", turns.dispatchers.get(hub))
                is_second = found is None and bool(turns.dispatchers)
                if not is_second or turns.watchdog is not None or watchdog is not None:
                    dispatcher = found or Dispatcher(entry, hub)
                    if found is None:
                        turns.add_locked(hub, dispatcher)
                    dispatcher.attach()
                    if watchdog is not None and turns.watchdog is None:
                        turns.add_watchdog_locked(watchdog.hub, watchdog)
                        watchdog = None
                    return dispatcher
            # Not within the lock, for which the new thread may ask as well.
            watchdog = Watchdog.start(entry)
    finally:
        if watchdog is not None:
            watchdog.send(watchdog.close)
