"""The dispatcher: gives the turns of one address on one hub.

It watches one descriptor, the pristine socket's, however many clones there are, and only
while one of them is ready. When connections wait, it asks the ring whose turn it is and
lets that clone accept; nothing is taken from the kernel that no clone is ready to take, so
overload waits in the accept queue and costs nothing here.

When the kernel is out of room for another connection, the dispatcher pauses for all of its
clones at once, says so in the log once, and tries again by itself. Nobody is lost: the
accept queue keeps who waits.

What a turn is, the clones know: `glb.listener` and `glb.acceptor`. A dispatcher belongs to
its hub's thread. From others only `send` and `run` may be called.

Source: the shape is memcached's and HAProxy's (accept, then deal out); the pause is theirs
and trio's.
"""

from __future__ import annotations

import enum
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol

from .balance import Policy, least_loaded
from .errors import Heap, classify, listener_closed
from .registry import Entry, native_ident
from .ring import Ring, Team

__all__ = ["Dispatcher", "Turn"]

log: Final = logging.getLogger("glb")

_READ: Final = 1
_LEAST_CONNECTIONS: Final = Policy.LEAST_CONNECTIONS

# So long without a failure and the next one is news. Longer than the longest pause, 1 s.
EPISODE_GAP_SECONDS: Final = 1.0


class Turn(enum.Enum):
    """What came of a turn."""

    TAKEN = "a connection was taken from the accept queue"
    EMPTY = "the accept queue is empty"
    PASSED = "the clone was not ready after all, and has left the ring"


class Member(Protocol):
    """A clone in the ring."""

    @property
    def load(self) -> int: ...
    @property
    def max_accept(self) -> int:
        """How many connections a wake-up may take, counting those before this turn."""

    def take_turn(self) -> Turn:
        """Accept one connection and hand it on. Raises only what is out of room."""

    def next_delay(self) -> float:
        """How long to pause now, in seconds, growing with each call; negative: don't."""

    @property
    def context(self) -> object:
        """Whose turn it is, for a report: the server or the listener."""


class Dispatcher:
    """The turns of one entry on one hub; see `dispatcher_for`."""

    def __init__(self, entry: Entry, hub: Any) -> None:
        self.thread: int = hub.thread_ident
        #: Connections that were taken here.
        self.accepted = 0
        self._entry = entry
        self._hub = hub
        self._users = 0
        self._ring: Ring[Member] = Ring()
        #: The team of those who have none: plain listeners.
        self.singles: Team[Member] = Team()
        self._seated: set[Team[Member]] = set()
        self._is_giving_turns = False
        self._is_orphan = False
        self._calls: deque[Callable[[], object]] = deque()
        self._pause: Any = None
        self._io: Any = hub.loop.io(entry.pristine.fileno(), _READ)
        self._wake_up: Any = hub.loop.async_(ref=False)
        self._wake_up.start(self._answer_calls)

    # -- who uses it -----------------------------------------------------------------------

    def attach(self) -> None:
        """Count one more user; the dispatcher lives until the last has detached."""
        self._users += 1

    def detach(self) -> None:
        """Count a user out."""
        self._users -= 1
        if self._users == 0:
            self.close()

    def send(self, call: Callable[[], object]) -> None:
        """Have *call* called in this dispatcher's hub. From any thread."""
        with self._entry.registry.lock:
            if self._wake_up is None or not self.has_loop:
                return
            self._calls.append(call)
            try:
                self._wake_up.send()
            except Exception:
                # Its thread is destroying the loop this moment, and the watchers with it.
                self._io = self._wake_up = self._pause = None
                self._is_orphan = True
                self._entry.forget_dispatcher(self._hub)
                self._answer_calls()

    def run(self, call: Callable[[], object]) -> None:
        """Call *call*: now, if this thread may touch the dispatcher, else in its hub."""
        if self.is_here:
            call()
        else:
            self.send(call)

    @property
    def has_loop(self) -> bool:
        """Whether its loop is there. A destroyed one has taken its watchers with it."""
        return not self._is_orphan and self._hub.loop is not None

    @property
    def is_here(self) -> bool:
        """Whether this thread may touch it: its own, or any once its hub or thread is gone."""
        return self.thread == native_ident() or self._hub.dead or not self.has_loop

    def _answer_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def close(self) -> None:
        """Leave nothing on the loop. Twice is harmless."""
        with self._entry.registry.lock:
            if self._io is None:
                return
            io, wake_up = self._io, self._wake_up
            self._io = self._wake_up = None
        if self.has_loop:
            self._end_pause()
            for watcher in (io, wake_up):
                watcher.stop()
                watcher.close()
        self._entry.forget_dispatcher(self._hub)

    # -- the ring --------------------------------------------------------------------------

    def join(self, team: Team[Member], member: Member) -> None:
        """Let *member* have its turns."""
        self._ring.join(team, member)
        self._watch_while_ready()

    def leave(self, team: Team[Member], member: Member) -> None:
        """Give *member* no more turns."""
        self._ring.leave(team, member)
        self._watch_while_ready()

    def taken(self, team: Team[Member], member: Member) -> None:
        """*member* has taken a connection: send it to the end of the line."""
        self.accepted += 1
        self._ring.rotate(team, member)

    def rotate(self, team: Team[Member], member: Member) -> None:
        """Send *member*, who had its turn, to the end of the line."""
        self._ring.rotate(team, member)

    def seat(self, team: Team[Member]) -> None:
        """Let all of *team* have turns."""
        self._ring.seat(team)
        self._seated.add(team)
        self._hold_loop()
        self._watch_while_ready()

    def unseat(self, team: Team[Member]) -> None:
        """Pass over all of *team*."""
        self._ring.unseat(team)
        self._seated.discard(team)
        self._hold_loop()
        self._watch_while_ready()

    def drop(self, team: Team[Member]) -> None:
        """Forget *team*, for good."""
        self._ring.drop(team)
        self._seated.discard(team)
        self._hold_loop()
        self._watch_while_ready()

    def _hold_loop(self) -> None:
        # A server that accepts keeps its hub alive, although all its clones may be paused
        # and no descriptor watched.
        if self._wake_up is not None and self.has_loop:
            self._wake_up.ref = bool(self._seated)

    @property
    def ready(self) -> int:
        """How many clones wait for a connection."""
        return 0 if self._pause is not None else len(self._ring)

    @property
    def is_paused(self) -> bool:
        """Whether there was no room a moment ago."""
        return self._pause is not None

    @property
    def is_watching(self) -> bool:
        """Whether the loop has its eye on the pristine socket's descriptor."""
        return self._io is not None and self.has_loop and self._io.active

    def _watch_while_ready(self) -> None:
        # Between two turns the ring is often empty for a moment, when a listener's only
        # greenlet had its turn and is about to accept again: then the watcher stays.
        if self._io is None or self._is_giving_turns or not self.has_loop:
            return
        if self._pause is None and self._ring.first() is not None:
            if not self._io.active:
                self._io.start(self._on_readable)
        else:
            self._io.stop()

    # -- turns -----------------------------------------------------------------------------

    def _on_readable(self) -> None:
        self._is_giving_turns = True
        try:
            self._give_turns()
        finally:
            self._is_giving_turns = False
            self._watch_while_ready()

    def _give_turns(self) -> None:
        # Until the queue is empty, at the price of one accept that fails. To stop sooner costs
        # more than that: CPU a connection beside plain gevent, 64 clients at a time, was 0.54
        # with 100 turns a wake-up or with 16, 0.57 with 4, 0.70 with 1; and to stop where the
        # last wake-up found the end, looking on in every 16th, took 3 % less CPU but served
        # 8 % fewer a second (the client of loadtests/bench, CPython 3.11, libev, Linux 6.18).
        #
        # A turn may run a greenlet, or a handler, that changes anything here. So nothing is
        # remembered from one turn to the next.
        taken = 0
        entry, ring = self._entry, self._ring
        while self._io is not None and self._pause is None:
            if entry.policy is _LEAST_CONNECTIONS:
                member = least_loaded(ring.ready())
            else:
                member = ring.first()
            if member is None or taken >= member.max_accept:
                return
            try:
                turn = member.take_turn()
            except BaseException as error:
                self._pause_for(member, error)
                return
            if turn is Turn.EMPTY:
                return
            if turn is Turn.TAKEN:
                taken += 1

    def _pause_for(self, member: Member, error: BaseException) -> None:
        delay = member.next_delay()
        if classify(error) is Heap.OUT_OF_ROOM:
            self._log_once(member.context, error, delay)
        else:
            # Clones let nothing else through, unless it strikes from outside: an interrupt,
            # or the end of this hub, which goes on from here. gevent would stop the watcher.
            self._hub.loop.handle_error(member.context, type(error), error, error.__traceback__)
        if delay >= 0 and self._io is not None:
            self._pause = self._hub.loop.timer(delay)
            self._pause.start(self._resume)

    def _log_once(self, context: object, error: BaseException, delay: float) -> None:
        # An episode ends when nothing has failed for longer than the pauses were: not with a
        # connection that found room, since the next one often doesn't.
        now = monotonic()
        if now > self._entry.logged_until:
            log.error(
                "%s can't accept: %s; clients wait in the accept queue, trying again in %g s",
                context,
                error,
                max(delay, 0),
            )
        self._entry.logged_until = now + 2 * max(delay, 0) + EPISODE_GAP_SECONDS

    def _resume(self) -> None:
        self._end_pause()
        self._watch_while_ready()

    def _end_pause(self) -> None:
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.stop()
            pause.close()


def dispatcher_for(entry: Entry, hub: Any) -> Dispatcher:
    """Return *entry*'s dispatcher on *hub*, attached; the caller detaches it.

    Raises:
        OSError: EBADF, when the entry is closed.
    """
    with entry.registry.lock:
        if entry.is_closed:
            raise listener_closed(entry.address)
        dispatcher = entry.dispatchers.get(hub)
        if dispatcher is None:
            dispatcher = entry.dispatchers[hub] = Dispatcher(entry, hub)
        assert isinstance(dispatcher, Dispatcher)
        dispatcher.attach()
        return dispatcher
