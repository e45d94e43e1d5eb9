"""Endings: how the connections of a server come to their end.

An `Ending` is the plan, the same for all hubs of a server: until when, what is closed before, and
whether the rest is killed. A `Watch` carries it out on one hub: it waits for handlers to end, and
meanwhile closes what is idle, all at once or spread over a window, so that thousands of clients
don't all come back in the same moment. It counts what becomes of each connection, once.

Source: HAProxy's ``hard-stop-after`` and ``close-spread-time``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gevent.event import Event

from ..model.stats import DrainReport
from ..originals import monotonic
from .idle import Wait, close_reading, connection_of

if TYPE_CHECKING:
    from .acceptor import Acceptor
    from .hub_worker import Branch

__all__ = ["Ending", "InUse", "Watch"]

# A client that has just connected has not asked anything yet, and has no reason to think that
# it might be closed: so long for the first request. Longer than a client on another continent
# takes to send it; a browser that connects in advance holds a drain up for no longer than that.
FIRST_REQUEST_SECONDS: Final = 1.0

# How often it is looked for what has become idle meanwhile.
LOOK_SECONDS: Final = 0.05

# As gevent's `stop`: so long for handlers that were killed, and don't want to go.
KILL_SECONDS: Final = 1.0

FOREVER: Final = float("inf")


@dataclass
class Ending:
    """How the connections that are in use are to end.

    Attributes:
        timeout: How long their handlers have, in seconds; ``None`` is for ever.
        kill: Whether what is left then is killed.
        closes_idle: Whether connections that wait for their client are closed before.
        spread: Over how many seconds that is spread. With more than 0, connections that have
            no requests, but a stream or a websocket, are closed in the same way.
        began: On `time.monotonic`'s clock.
        announced: When the first of several endings began, of which this one is a part.
        lingers: Whether connections may still come: then it isn't over when there are none.
        leaves_callers: Whether handlers are left alone that wait for others' end themselves.
        is_called_off: Whether nobody wants it any more: set by who has begun it.
    """

    timeout: float | None
    kill: bool
    closes_idle: bool = False
    spread: float = 0.0
    began: float = field(default_factory=lambda: monotonic())  # noqa: PLW0108  # found when it is called
    announced: float | None = None
    lingers: bool = False
    leaves_callers: bool = True
    is_called_off: bool = False

    def again(self) -> Ending:
        """Return one for handlers that have waited for this one's end: the same time, from now."""
        # At least as long as who was killed has: it has a reply to send.
        timeout = None if self.timeout is None else max(self.timeout, KILL_SECONDS)
        kill = self.kill and timeout is not None
        return Ending(timeout, kill=kill, leaves_callers=False)

    def hasten(self, timeout: float) -> None:
        """Be over *timeout* seconds from now, at the latest."""
        self.timeout = min(self.until, monotonic() + timeout) - self.began

    def first_request_until(self, since: float) -> float:
        """Return until when a client may send its first request that was waited for *since* then.

        One that had connected before the ending began has its time from that moment on.
        """
        announced = self.began if self.announced is None else self.announced
        seconds = FIRST_REQUEST_SECONDS
        if self.timeout is not None:
            seconds = min(seconds, self.timeout / 2)
        return max(since, announced) + seconds

    @property
    def until(self) -> float:
        """When their time is over, on `time.monotonic`'s clock."""
        return FOREVER if self.timeout is None else self.began + self.timeout


class InUse(NamedTuple):
    """A connection that a handler has."""

    greenlet: Any
    acceptor: Acceptor
    #: The handler's arguments: the connection, and its peer.
    args: Any

    @property
    def sock(self) -> Any:
        """The connection, or the TLS socket that has taken it over."""
        return connection_of(self.args)


class Watch:
    """Waits for handlers of one hub to end. In that hub.

    Args:
        is_wanted: Which of those that are at work now; ``None`` is all of them, and all that come.
        until_idle: Only until a handler waits for its client again. Those that do now are let
            alone.
    """

    def __init__(
        self,
        branch: Branch,
        ending: Ending,
        is_wanted: Callable[[InUse], bool] | None = None,
        *,
        until_idle: bool = False,
    ) -> None:
        self._branch: Final = branch
        self._ending: Final = ending
        self._until_idle: Final = until_idle
        self._changed: Final = Event()
        self._left: dict[int, InUse] | None = None
        # What became of connections: each is one of these when its handler ends.
        self.finished = self.closed = self.killed = 0
        # Those that were told, by the identity of their handlers' arguments.
        self._told: set[int] = set()
        self._killed: set[int] = set()
        if is_wanted is not None:
            self._left = {id(each.args): each for each in branch.in_use() if is_wanted(each)}
            if until_idle:
                for each in [*self._left.values()]:
                    if branch.wait_of(each.greenlet) is not None:
                        del self._left[id(each.args)]
        # When connections are to be closed, earliest first; without a window at once.
        self._due: dict[int, float] = {}
        self._open: dict[int, InUse] = {}
        if ending.spread:
            found = branch.in_use()
            step = ending.spread / max(1, len(found))
            for place, each in enumerate(found):
                self._due[id(each.args)] = ending.began + step * (place + branch.share)
                self._open[id(each.args)] = each

    @property
    def report(self) -> DrainReport:
        """What has become of them until now. From any thread."""
        return DrainReport(
            self.finished,
            self.closed + len(self._told),
            self.killed + len(self._killed),
            monotonic() - self._ending.began,
        )

    @property
    def ended_otherwise(self) -> int:
        """How many of them have ended since they were closed, or their handlers killed."""
        return self.closed + self.killed

    def run(self) -> DrainReport:
        """Wait, and return what became of them.

        Switches:
            While waiting.
        """
        ending, branch = self._ending, self._branch
        waiting = branch.waiting
        branch.watched.append(self._ended)
        if self._until_idle and waiting is not None:
            waiting.watchers.append(self._went_idle)
        try:
            while ending.lingers and not ending.is_called_off:
                self._close_due()
                self._changed.clear()
                self._changed.wait(LOOK_SECONDS)
            while self._count() > 0 and not ending.is_called_off:
                when = ending.until
                if ending.closes_idle:
                    self._close_due()
                    when = min(when, monotonic() + LOOK_SECONDS)
                if self._wait_until(when) or monotonic() >= ending.until:
                    break
            if ending.kill and not ending.is_called_off and self._count() > 0:
                self._kill(but=self._told)
                if self._told:  # they are about to end
                    self._wait_until(monotonic() + LOOK_SECONDS)
                    self._kill(but=self._killed)
                self._wait_until(monotonic() + KILL_SECONDS)
        finally:
            branch.watched.remove(self._ended)
            if self._until_idle and waiting is not None:
                waiting.watchers.remove(self._went_idle)
        return self.report

    def _count(self) -> int:
        # Who waits for the end of others is not waited for, but by what may take for ever.
        branch = self._branch
        count = branch.active if self._left is None else len(self._left)
        if self._ending.leaves_callers and branch.callers and count <= len(branch.callers):
            # Only then can it matter which callers are handlers here. This is asked at each end.
            callers = {id(branch.args_of(each)) for each in [*branch.callers]} - {id(None)}
            count -= len(callers if self._left is None else callers & self._left.keys())
        return count

    def _wait_until(self, when: float) -> bool:
        while self._count() > 0:
            self._changed.clear()
            seconds = when - monotonic()
            if seconds <= 0:
                return False
            # libuv's timers have whole milliseconds, and gevent warns of less than one.
            self._changed.wait(None if seconds == FOREVER else max(0.001, seconds))
        return True

    def _ended(self, args: object) -> None:
        key = id(args)
        if args is None or (self._left is not None and self._left.pop(key, None) is None):
            pass  # it is to look again, or another's
        elif key in self._killed:
            self._killed.discard(key)
            self.killed += 1
        elif key in self._told:
            self._told.discard(key)
            self.closed += 1
        else:
            self.finished += 1
        if self._due:  # another connection may have the same identity after it
            self._due.pop(key, None)
            self._open.pop(key, None)
        if args is None or self._count() <= 0:
            self._changed.set()

    def _went_idle(self, greenlet: object) -> None:
        self._ended(self._branch.args_of(greenlet))

    # -- closing -------------------------------------------------------------------------------

    def _close_due(self) -> None:
        waiting = self._branch.waiting
        now = monotonic()
        if waiting is not None:
            for greenlet, wait in [*waiting.waits.items()]:
                args = self._branch.args_of(greenlet)
                key = id(args)
                if args is None or not self._is_open(key) or now < self._due_of(key, wait):
                    continue
                if waiting.tell(greenlet):
                    self._told.add(key)
        current: dict[int, InUse] | None = None
        for key, in_use in [*self._open.items()]:
            if self._due[key] > now:
                break
            if in_use.greenlet is None:  # it had not begun
                if current is None:
                    current = {id(each.args): each for each in self._branch.in_use()}
                in_use = current.get(key, in_use)  # noqa: PLW2901
                self._open[key] = in_use
                if key in current and in_use.greenlet is None:
                    continue
            if self._branch.args_of(in_use.greenlet) is not in_use.args:
                del self._open[key]  # it is over
            elif not self._is_open(key) or self._branch.wait_of(in_use.greenlet) is not None:
                continue
            elif in_use.acceptor.server.is_long_lived(in_use.sock) and close_reading(in_use.sock):
                self._told.add(key)

    def _is_open(self, key: int) -> bool:
        return key not in self._told and (self._left is None or key in self._left)

    def _due_of(self, key: int, wait: Wait) -> float:
        # Of those that have come later nobody waits for a share in the window.
        due = self._due.get(key, self._ending.began)
        return due if wait[2] else max(due, self._ending.first_request_until(wait[1]))

    def _kill(self, but: Collection[int] = ()) -> None:
        branch = self._branch
        left = branch.in_use() if self._left is None else [*self._left.values()]
        callers = [*branch.callers] if self._ending.leaves_callers else []
        keys = {id(each.args) for each in left if each.greenlet not in callers} - {*but}
        del left  # or it would keep all alive until the last is killed
        self._told -= keys
        self._killed |= keys
        branch.kill(keys)
