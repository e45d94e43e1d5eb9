"""The dispatcher: gives the turns of one address on one hub.

The leader (see `glb.accept.turns`) watches one descriptor, the pristine socket's, however many
clones there are, and only while one of them is ready. When connections wait, it accepts one for
the clone that is next, and delivers it. Nothing is accepted that no clone is ready to take, so
overload waits in the accept queue and costs nothing here.

Where clones of several hubs share the address, the leader accepts for all of them, and puts the
connection into the inbox of the clone's dispatcher. A connection whose handler can't begin, since
another one blocks the hub, is in the accept queue, in an inbox, or among the jobs of its hub's
handler greenlets, where the watchdog finds it. A server that starts handlers in another way gets
one connection at a time.

When the kernel is out of room for another connection, or gives nothing but errors for another
reason, the dispatcher pauses for all of its clones at once, says so in the log once, and tries
again by itself. No client is lost: the accept queue keeps them.

The members are those of `glb.accept.waiters` and `glb.serve.acceptor`. A dispatcher
belongs to its hub's thread. From others only `send`, `run`, and what ends in ``_locked`` may be
called.

Source: the shape is memcached's and HAProxy's (accept, then deal out); the pause is theirs
and trio's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from ..hubs.greenlet_pool import Job, handlers_here
from ..hubs.guard import Guard
from ..hubs.mailbox import Mailbox
from ..model.accept_errors import AcceptErrorKind, classify
from ..net.connection import accept_plain, kind_of
from ..originals import monotonic, native_ident
from . import protocols
from .handover import HandOver
from .protocols import Member, PendingConnection, SelfAccepting, Turn
from .registry import Entry
from .reports import report
from .ring import Team

__all__ = ["Dispatcher"]

_READ: Final = 1

# To look it up costs more where it is a class's: CPython 3.11 asks the metaclass.
_TAKEN: Final = Turn.TAKEN

# As many clients as Linux lets wait in one accept queue, by default, may all have left. When more
# have done so in a row, with neither a connection nor the end of the queue between them, the
# kernel doesn't take them out of it: then each wake-up of nothing else is followed by a pause.
MOST_LEFT_IN_A_ROW: Final = 4096


class Dispatcher:
    """The turns of one entry on one hub; see `glb.accept.watchdog.dispatcher_for`."""

    is_watchdog: bool = False

    def __init__(self, entry: Entry, hub: Any) -> None:
        self.accepted = 0
        self.inbox: deque[PendingConnection] = deque()
        self.handed_to: dict[protocols.Dispatcher, None] = {}
        #: The team of plain listeners.
        self.singles: Team[Member] = Team()
        self.admitted: dict[Team[Any], None] = {self.singles: None}
        self.servers: dict[Team[Any], None] = {}
        self.has_turns = True
        self.stalled_at: float | None = None
        self.tried_at = self.quick = 0
        #: Counts what its hub does here, so that the watchdog sees whether it does.
        self.moves = 0
        self.turns: HandOver = entry.turns
        self.hub: Final = hub
        self._entry = entry
        self._users = 0
        self._is_giving_turns = False
        self._is_orphan = False
        self._kind: Final = kind_of(entry.pristine)
        # Callbacks that may be on their way: to give the next turn, to take up the next connection.
        self._next_turn: Any = None
        self._next_take: Any = None
        #: Called by the guard, in this hub: see `glb.hubs.guard`.
        self.guarded: dict[object, Callable[[], object]] = {}
        #: What runs the handlers of this hub.
        self.handlers: Final = handlers_here()
        # What keeps the hub alive: servers that have not stopped, listeners on which a greenlet
        # waits. Their clones may all be paused, and no descriptor be watched here.
        self._holders: set[object] = set()
        self._taken = 0
        # How many peers had left since the last connection, or the end of the queue.
        self._left_in_a_row = 0
        self._pause: Any = None
        # Neither keeps the hub alive by itself: see `hold_loop`.
        self._io: Any = hub.loop.io(entry.pristine.fileno(), _READ, ref=False)
        self.mailbox: Final = Mailbox(hub, entry.turns.lock, self._woken, self._lost, ref=False)
        self._guard: Final = Guard(hub, self._look_over)
        entry.keep_reserve()

    # -- users -----------------------------------------------------------------------------

    def attach(self) -> None:
        """Count one more user; the dispatcher lives until the last has detached."""
        self._users += 1

    def detach(self) -> None:
        """Count a user out."""
        self._users -= 1
        if self._users == 0:
            self.close()

    def send(self, call: Callable[[], object]) -> bool:
        """Have *call* called in its hub; ``False`` if that is gone. From any thread."""
        return self.mailbox.post(call)

    def wake_locked(self) -> None:
        self.mailbox.wake()

    def _lost(self) -> None:
        # Its thread has destroyed the loop, or does so this moment, and the watchers with it.
        self._io = self._pause = None
        self._is_orphan = True
        self.turns.remove_locked(self)
        self._entry.dispatcher_closed(self)

    def run(self, call: Callable[[], object]) -> None:
        """Call *call*: now, if this thread may touch the dispatcher, else in its hub."""
        if self.is_here:
            call()
        else:
            self.send(call)

    @property
    def thread(self) -> int:
        """The native ident of its hub's thread."""
        # No attribute: CPython 3.11 keeps at most 30 of an instance where it finds them fast.
        ident: int = self.hub.thread_ident
        return ident

    @property
    def has_loop(self) -> bool:
        """Whether its loop is there. A destroyed one has taken its watchers with it."""
        return not self._is_orphan and self.hub.loop is not None

    @property
    def is_dead(self) -> bool:
        """Whether its hub or thread is gone."""
        return self.hub.dead or not self.has_loop

    @property
    def is_here(self) -> bool:
        """Whether this thread may touch it: its own, or any once it is dead."""
        return self.thread == native_ident() or self.is_dead

    def _woken(self) -> None:
        self.moves += 1
        self._do_what_is_due()

    def _do_what_is_due(self) -> None:
        self.mailbox.answer()
        self.handlers.look()
        if (self.inbox or not self.has_turns) and not _is_pending(self._next_take):
            self._take_up_all()
        if self.turns.leader is self and self.turns.waiting:
            self._on_readable()
        else:
            self._watch_while_ready()

    def _look_over(self) -> None:
        # The guard's. The loop is here, so nothing of this hub is in the middle of a callback, and
        # no greenlet holds the registry's lock. From CPython 3.14 on a signal handler may raise
        # after a `with` has acquired it, and before anything would release it.
        lock = self.turns.lock
        while lock._is_owned():
            lock.release()
        if not self.mailbox.is_open:
            return
        self._is_giving_turns = False
        self._wake_others()
        self.mailbox.look_over()
        # Where gevent has stopped it on libuv, it says that it is active; to start what is started
        # changes nothing.
        if self.is_watching:
            self._io.start(self._on_readable)
        if self._pause is not None and not self._pause.active:
            self._resume()
        self.handlers.look_over()
        for look in [*self.guarded.values()]:
            look()
        with self.turns.lock:
            self.turns.look_over_locked(self)
        self._do_what_is_due()

    def close(self) -> None:
        """Leave nothing on the loop. Twice is harmless."""
        with self.turns.lock:
            if self._io is None:
                return
            io, self._io = self._io, None
            self.turns.remove_locked(self)
        self._guard.close()
        self.mailbox.close()
        if self.has_loop:
            self._end_pause()
            io.close()
            # Not here: the lock may be held, and a call may switch greenlets.
            self.hub.loop.run_callback(self.mailbox.answer)
        self._entry.dispatcher_closed(self)

    def abandon(self) -> None:
        self.mailbox.forget()
        self._io = self._pause = None
        self._is_orphan = True

    def hold_loop(self, holder: object, *, is_held: bool) -> None:
        """Keep the hub alive for *holder*, or no longer. In its own thread."""
        if is_held:
            self._holders.add(holder)
        else:
            self._holders.discard(holder)
        self.mailbox.hold_loop(is_held=bool(self._holders))

    @property
    def is_paused(self) -> bool:
        """Whether there was no room a moment ago."""
        return self._pause is not None

    @property
    def is_watching(self) -> bool:
        """Whether the loop has its eye on the pristine socket's descriptor."""
        return self._io is not None and self.has_loop and bool(self._io.active)

    # -- watching ------------------------------------------------------------------------------

    def look_locked(self) -> None:
        if self.is_here:
            self._watch_while_ready()
        elif not self.is_watching and self._is_to_watch():
            # The other way round it finds out by itself.
            self.wake_locked()

    def _is_to_watch(self) -> bool:
        turns = self.turns
        is_wanted = turns.leader is self and self._pause is None and not self._entry.is_left
        return is_wanted and turns.is_anybody_ready

    def _watch_while_ready(self) -> None:
        # Between two turns the ring is often empty for a moment, when a listener's only
        # greenlet had its turn and is about to accept again: then the watcher stays.
        if self._is_giving_turns:
            return
        with self.turns.lock:  # or the descriptor could be closed as it is about to be watched
            if self._io is None or self._entry.is_closed or not self.has_loop:
                return
            if not self._is_to_watch():
                self._io.stop()
            elif not self._io.active:
                self._io.start(self._on_readable)

    def _on_readable(self) -> None:
        if self._is_giving_turns or _is_pending(self._next_turn):
            return
        self._taken = 0
        self._give_turns()

    # -- turns ---------------------------------------------------------------------------------

    def _give_turns(self) -> None:
        try:
            self._is_giving_turns = True
            self._next_turn = None
            self._give_turns_while_ready()
        finally:
            self._is_giving_turns = False
            self._wake_others()
            self._watch_while_ready()

    def _wake_others(self) -> None:
        """Wake the hubs that connections were handed to: once each, at the end of a batch.

        A wake-up costs a system call, and the interpreter's lock goes to the other hub and back:
        with one a connection, 4 hubs took 2.1 times the CPU of one, and 1.4 with one a batch.
        """
        if self.handed_to:
            with self.turns.lock:
                for dispatcher in [*self.handed_to]:
                    dispatcher.wake_locked()
                    del self.handed_to[dispatcher]

    def _give_turns_while_ready(self) -> None:
        # Until the queue is empty, at the price of one accept that fails. To stop sooner costs
        # more than that: CPU a connection beside plain gevent, 64 clients at a time, was 0.54
        # with 100 turns a wake-up or with 16, 0.57 with 4, 0.70 with 1; and to stop where the
        # last wake-up found the end, looking on in every 16th, took 3 % less CPU but served
        # 8 % fewer a second (the client of loadtests/bench, CPython 3.11, libev, Linux 6.18).
        #
        # A turn may run a greenlet, or a handler, that changes anything here. So nothing is
        # remembered from one turn to the next.
        turns, lock, ring = self.turns, self.turns.lock, self.turns.ring
        self.moves += 1
        member: Member | None
        passed: Member | None = None
        if self._pause is not None:
            return
        while turns.leader is self:  # not, once it is closed
            with lock:
                member = ring.first() if turns.policy is None else turns.next_locked()
            if member is None or self._taken >= member.max_accept:
                return
            try:
                turn = self._deal(member)
            except BaseException as error:
                if self._may_go_on(member, error):
                    continue
                self._pause_for(member, error)
                return
            if turn is _TAKEN:
                self._taken += 1
                self._left_in_a_row = 0
                if self._next_turn is not None:
                    return
            elif turn is Turn.EMPTY:
                self._left_in_a_row = 0
                return
            elif member is passed:
                return  # it has not left the ring, as an exception struck: see `glb.hubs.guard`
            else:
                passed = member

    def _deal(self, member: Member) -> Turn:
        """Accept one connection, and deliver it to *member* or, on other hubs, to the next one."""
        turns = self.turns
        watchdog = turns.watchdog
        if watchdog is not None and not watchdog.is_ticking:
            with turns.lock:
                watchdog.arm_locked()
        try:
            if not member.has_room():
                return Turn.PASSED
        except BaseException as error:
            return self._accept_failed(member, error)
        is_own = member.dispatcher is self
        handed = turns.take_waiting() if turns.waiting else None
        if handed is None:
            if is_own and member.accepts_itself:
                self._wake_others()
                turn = cast("SelfAccepting", member).take_turn()
                if watchdog is not None and member.is_not_reclaimable:
                    self._go_on_later()
                return turn
            try:
                plain, address = accept_plain(self._entry.accept, self._kind)
            except BlockingIOError:
                return Turn.EMPTY
            except BaseException as error:
                return self._accept_failed(member, error)
            if is_own:
                with turns.lock:
                    turns.ring.rotate(member.team, member)
                if self.handed_to and member.runs_at_once:
                    self._wake_others()
                if not member.deliver(plain, address):
                    turns.put_back(PendingConnection(plain, address))
                if watchdog is not None and member.is_not_reclaimable:
                    self._go_on_later()
                return _TAKEN
            handed = PendingConnection(plain, address)
        if turns.hand(handed, self):
            member = handed.member
            if self.handed_to and member.runs_at_once:
                self._wake_others()
            self._take_up(handed)
            if watchdog is not None and member.is_not_reclaimable:
                self._go_on_later()
        return _TAKEN

    def _go_on_later(self) -> None:
        if self._next_turn is None:  # once a batch, whatever turns come after this one
            self._next_turn = self.hub.loop.run_callback(self._give_turns)

    def _accept_failed(self, member: Member, error: BaseException) -> Turn:
        self._wake_others()
        if self._entry.is_closed:
            return Turn.EMPTY
        if member.dispatcher is self:
            return member.accept_failed(error)
        if isinstance(error, OSError) and (
            classify(error) is AcceptErrorKind.BROKEN or member.wants(error)
        ):
            self.turns.leave(member)
            member.dispatcher.run(lambda: member.broken(error))
            return Turn.PASSED
        raise error

    # -- what was handed to it -----------------------------------------------------------------

    def _take_up_all(self) -> None:
        turns = self.turns
        while self.inbox:
            self.moves += 1
            with turns.lock:
                if not self.inbox:
                    break
                handed = self.inbox.popleft()
            try:
                self._take_up(handed)
            except BaseException as error:  # an interrupt, say, that strikes here
                self.hub.loop.handle_error(self, type(error), error, error.__traceback__)
            # On probation a hub is ready again when the handler has begun, and not before.
            if handed.member.is_not_reclaimable or self.stalled_at is not None:
                self._next_take = self.hub.loop.run_callback(self._take_up_all)
                return
        if not self.has_turns:
            with turns.lock:
                if not self.inbox:
                    turns.restore_locked(self)

    def _take_up(self, handed: PendingConnection) -> None:
        if not handed.member.take(handed):
            self.turns.give_back(handed)

    def reclaim_jobs(self) -> list[PendingConnection]:
        """Take away connections whose handlers have not begun. From any thread."""
        jobs = self.handlers.take_back(self._can_take_back)
        return [job[0].__self__.reclaim(job) for job in jobs]  # type: ignore[attr-defined]  # a method

    def _can_take_back(self, job: Job) -> bool:
        member: Any = getattr(job[0], "__self__", None)
        return getattr(member, "dispatcher", None) is self and bool(member.can_reclaim(job))

    # -- pauses --------------------------------------------------------------------------------

    def _may_go_on(self, member: Member, error: BaseException) -> bool:
        """Whether *error* is of a peer that left, and other clients may wait behind it."""
        if classify(error) is not AcceptErrorKind.PEER_LEFT:
            return False
        self._taken += 1
        self._left_in_a_row += 1
        if self._left_in_a_row <= MOST_LEFT_IN_A_ROW:
            return True
        self._left_in_a_row -= member.max_accept
        return False

    def _pause_for(self, member: Member, error: BaseException) -> None:
        self._wake_others()  # a report may take its time
        delay = member.next_delay()
        is_kernels = classify(error) in (AcceptErrorKind.OUT_OF_ROOM, AcceptErrorKind.PEER_LEFT)
        failures = self._entry.failures if is_kernels else member.failures
        with self.turns.lock:
            is_news = failures.is_news(error, delay, monotonic())
        if is_kernels and is_news:
            report(self._entry, member.context, error, delay)
        elif is_news:
            # It may have struck from outside: an interrupt, or the end of this hub, which goes
            # on from here. gevent would stop the watcher.
            self.hub.loop.handle_error(member.context, type(error), error, error.__traceback__)
        if delay >= 0 and self._io is not None:
            self._pause = self.hub.loop.timer(delay)
            self._pause.start(self._resume)
            self.turns.pauses["out_of_room" if is_kernels else "error"] += 1

    def _resume(self) -> None:
        self._end_pause()
        self._entry.registry.reserve.refill()
        self._watch_while_ready()

    def _end_pause(self) -> None:
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.close()


def _is_pending(callback: Any) -> bool:
    """Whether gevent is still to call what `run_callback` returned."""
    return callback is not None and bool(callback.pending)
