"""Drain workers: how the connections and accept loops of a server come to their end, on one hub.

A `DrainPlan` is the same for all hubs of a server: until when, what is closed before, and whether
the rest is killed. A `DrainWorker` carries it out on one hub: it waits for handlers to end, and
meanwhile closes what is idle, all at once or spread over a window, so that thousands of clients
don't all come back in the same moment. It counts what becomes of each connection, once.

Source: HAProxy's ``hard-stop-after`` and ``close-spread-time``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

import gevent
from gevent.event import Event

from ..hubs.threads import HubThread
from ..model.stats import DrainReport
from ..originals import monotonic
from .hub_worker import HubWorker, InUse
from .idle import Wait, close_reading

__all__ = ["DrainPlan", "DrainWorker", "begin", "finish", "wait_for_handlers"]

# A client that has just connected has not asked anything yet, and has no reason to think that
# it might be closed: so long for the first request. Longer than a client on another continent
# takes to send it; a browser that connects in advance holds a drain up for no longer than that.
FIRST_REQUEST_SECONDS: Final = 1.0

# So long an idle HTTP connection that has had a request stays open: a client that is busy on it
# learns of the end by its next reply's ``Connection: close``. If it were closed at once, the
# client's next request could meet the end of it on the way.
# Source: nginx's ``keepalive_min_timeout``.
NOTICE_SECONDS: Final = 0.3

# How often it is looked for what has become idle meanwhile.
LOOK_SECONDS: Final = 0.05

# As gevent's `stop`: so long for handlers that were killed, and don't want to go.
KILL_SECONDS: Final = 1.0

FOREVER: Final = float("inf")


@dataclass
class DrainPlan:
    """How the connections that are in use are to end.

    Attributes:
        timeout: How long their handlers have, in seconds; ``None`` is for ever.
        kill: Whether what is left then is killed.
        closes_idle: Whether connections that wait for their client are closed before.
        spread: Over how many seconds that is spread. With more than 0, connections that have
            no requests, but a stream or a websocket, are closed in the same way.
        began: On `time.monotonic`'s clock. It may be to begin later.
        delay: For how many seconds before that replies have said that connections will be closed.
        announced: When the first of several plans began, of which this one is a part.
        lingers: Whether connections may still come: then it isn't over when there are none.
        leaves_callers: Whether handlers are left alone that wait for others' end themselves.
        is_called_off: Whether it is not to be carried out any further.
        workers: Those that carry it out, if it closes what is idle: they count what it comes to.
        begun: What carries it out already, by its hub: see `begin`.
    """

    timeout: float | None
    kill: bool
    closes_idle: bool = False
    spread: float = 0.0
    began: float = field(default_factory=lambda: monotonic())  # noqa: PLW0108  # found when it is called
    delay: float = 0.0
    announced: float | None = None
    lingers: bool = False
    leaves_callers: bool = True
    is_called_off: bool = False
    workers: list[DrainWorker] = field(default_factory=list)
    begun: dict[HubWorker, gevent.Greenlet[..., DrainReport]] = field(default_factory=dict)

    def again(self) -> DrainPlan:
        """Return one for handlers that have waited for this one's end: the same time, from now."""
        # At least as long as a handler that was killed has: it has a reply to send.
        timeout = None if self.timeout is None else max(self.timeout, KILL_SECONDS)
        kill = self.kill and timeout is not None
        return DrainPlan(timeout, kill=kill, leaves_callers=False)

    def hasten(self, timeout: float) -> None:
        """Be over *timeout* seconds from now, at the latest."""
        self.timeout = min(self.until, monotonic() + timeout) - self.began

    def begin_now(self) -> None:
        """Begin, if that was to be later. Its end stays where it is."""
        now = monotonic()
        if now < self.began:
            if self.timeout is not None:
                self.timeout = max(0.0, self.until - now)
            self.began = now

    def first_request_until(self, since: float) -> float:
        """Return until when a client may send its first request that was waited for *since* then.

        One that had connected before the plan began has its time from that moment on.
        """
        announced = self.began if self.announced is None else self.announced
        seconds = FIRST_REQUEST_SECONDS
        if self.timeout is not None:
            seconds = min(seconds, self.timeout / 2)
        return max(since, announced) + seconds

    @property
    def notice(self) -> float:
        """For how many seconds idle HTTP connections stay open: see `NOTICE_SECONDS`."""
        seconds = max(0.0, NOTICE_SECONDS - self.delay)
        return seconds if self.timeout is None else min(seconds, self.timeout / 2)

    @property
    def until(self) -> float:
        """When their time is over, on `time.monotonic`'s clock."""
        return FOREVER if self.timeout is None else self.began + self.timeout

    @property
    def last(self) -> float:
        """Until when to wait for hubs that may be stalled, on the same clock."""
        return self.until + 2 * KILL_SECONDS


class DrainWorker:
    """Waits for handlers of one hub to end. In that hub.

    Args:
        is_wanted: Which of those that are at work now; ``None`` is all of them, and all that come.
        until_idle: Only until a handler waits for its client again. Those that do now are let
            alone.
    """

    def __init__(
        self,
        worker: HubWorker,
        plan: DrainPlan,
        is_wanted: Callable[[InUse], bool] | None = None,
        *,
        until_idle: bool = False,
    ) -> None:
        self._worker: Final = worker
        # Any one: they are of one server. None is left of a hub whose clones have all gone.
        self._acceptor: Final = [*worker.acceptors][:1]
        self._plan: Final = plan
        self._until_idle: Final = until_idle
        self._is_wanted: Final = is_wanted
        self._changed: Final = Event()
        self._left: dict[int, InUse] | None = None
        # What became of connections: each is one of these when its handler ends.
        self.finished = self.closed = self.killed = 0
        # Those that are being closed, by the identity of their handlers' arguments.
        self._closing: set[int] = set()
        self._killed: set[int] = set()
        if is_wanted is not None:
            self._left = {id(each.args): each for each in worker.in_use() if is_wanted(each)}
            if until_idle:
                for each in [*self._left.values()]:
                    if worker.wait_of(each.greenlet) is not None:
                        del self._left[id(each.args)]
        # When idle HTTP connections were seen first, by the identity of their handlers' arguments.
        self._seen: dict[int, float] = {}
        # When connections are to be closed, earliest first; without a window at once.
        self._due: dict[int, float] = {}
        self._open: dict[int, InUse] = {}
        if plan.spread:
            found = worker.in_use()
            step = plan.spread / max(1, len(found))
            for place, each in enumerate(found):
                self._due[id(each.args)] = plan.began + step * (place + worker.share)
                self._open[id(each.args)] = each

    @property
    def report(self) -> DrainReport:
        """What has become of them until now. From any thread."""
        return DrainReport(
            self.finished,
            self.closed + len(self._closing),
            self.killed + len(self._killed),
            monotonic() - self._plan.began,
        )

    @property
    def ended_otherwise(self) -> int:
        """How many of them have ended since they were closed, or their handlers killed."""
        return self.closed + self.killed

    def run(self) -> DrainReport:
        """Wait, and return what became of them.

        Switches:
            While idle.
        """
        plan, worker = self._plan, self._worker
        idle = worker.idle
        worker.watched.append(self._ended)
        if self._until_idle and idle is not None:
            idle.watchers.append(self._went_idle)
        try:
            while plan.lingers and not plan.is_called_off:
                self._close_due()
                self._changed.clear()
                self._changed.wait(LOOK_SECONDS)
            while self._count() > 0 and not plan.is_called_off:
                when = plan.until
                if plan.closes_idle:
                    self._close_due()
                    when = min(when, monotonic() + LOOK_SECONDS)
                if self._wait_until(when) or monotonic() >= plan.until:
                    break
            if plan.kill and not plan.is_called_off and self._count() > 0:
                gevent.killall(self._loops, block=False)
                self._kill(but=self._closing)
                if self._closing:  # they are about to end
                    self._wait_until(monotonic() + LOOK_SECONDS)
                    self._kill(but=self._killed)
                self._wait_until(monotonic() + KILL_SECONDS)
        finally:
            worker.watched.remove(self._ended)
            if self._until_idle and idle is not None:
                idle.watchers.remove(self._went_idle)
        return self.report

    def _count(self) -> int:
        # A caller is not waited for, but where there is no deadline.
        worker = self._worker
        count = worker.active if self._left is None else len(self._left)
        if self._plan.leaves_callers and worker.callers and count <= len(worker.callers):
            # Only then can it matter which callers are handlers here. This is asked at each end.
            callers = {id(worker.args_of(each)) for each in [*worker.callers]} - {id(None)}
            count -= len(callers if self._left is None else callers & self._left.keys())
        # Not at each end of a handler: there may be a thousand of them.
        return count if count > 0 else len(self._loops)

    @property
    def _loops(self) -> list[Any]:
        """Accept loops that are to end."""
        loops = self._worker.loops_to_end(self._is_wanted)
        callers = self._worker.callers if self._plan.leaves_callers else ()
        return [each for each in loops if each not in callers]

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
        elif key in self._closing:
            self._closing.discard(key)
            self.closed += 1
        else:
            self.finished += 1
        self._seen.pop(key, None)  # another connection may have the same identity after it
        if self._due:
            self._due.pop(key, None)
            self._open.pop(key, None)
        if args is None or self._count() <= 0:
            self._changed.set()

    def _went_idle(self, greenlet: object) -> None:
        self._ended(self._worker.args_of(greenlet))

    # -- closing -------------------------------------------------------------------------------

    def _close_due(self) -> None:
        idle = self._worker.idle
        now = monotonic()
        if idle is not None:
            for greenlet, wait in [*idle.waits.items()]:
                args = self._worker.args_of(greenlet)
                key = id(args)
                if args is None or not self._is_open(key) or now < self._due_of(key, wait, now):
                    continue
                if idle.tell(greenlet):
                    self._closing.add(key)
        current: dict[int, InUse] | None = None
        for key, in_use in [*self._open.items()]:
            if self._due[key] > now:
                break
            if in_use.greenlet is None:  # it had not begun
                if current is None:
                    current = {id(each.args): each for each in self._worker.in_use()}
                in_use = current.get(key, in_use)  # noqa: PLW2901
                self._open[key] = in_use
                if key in current and in_use.greenlet is None:
                    continue
            if self._worker.args_of(in_use.greenlet) is not in_use.args:
                del self._open[key]  # it is over
            elif not self._is_open(key) or self._worker.wait_of(in_use.greenlet) is not None:
                continue
            elif in_use.acceptor.server.is_long_lived(in_use.sock) and close_reading(in_use.sock):
                self._closing.add(key)

    def _is_open(self, key: int) -> bool:
        return key not in self._closing and (self._left is None or key in self._left)

    def _due_of(self, key: int, wait: Wait, now: float) -> float:
        # Connections that came later have no share in the window.
        due, plan = self._due.get(key, self._plan.began), self._plan
        sock, since, has_served = wait
        if not has_served:
            return max(due, plan.first_request_until(since))
        # A stream has no reply that could announce anything.
        if any(each.server.is_long_lived(sock) for each in self._acceptor):
            return due
        return max(due, self._seen.setdefault(key, now) + plan.notice)

    def _kill(self, but: Collection[int] = ()) -> None:
        worker = self._worker
        left = worker.in_use() if self._left is None else [*self._left.values()]
        callers = [*worker.callers] if self._plan.leaves_callers else []
        keys = {id(each.args) for each in left if each.greenlet not in callers} - {*but}
        del left  # or it would keep all alive until the last is killed
        self._closing -= keys
        self._killed |= keys
        worker.kill(keys)


def begin(worker: HubWorker, plan: DrainPlan) -> None:
    """Carry out *plan* from now on; `wait_for_handlers` is to follow. In the worker's hub."""
    plan.begun[worker] = gevent.spawn(_watch(worker, plan).run)


def wait_for_handlers(worker: HubWorker, plan: DrainPlan) -> None:
    """Wait for all handlers, as *plan* says. In the worker's hub.

    Switches:
        While waiting.
    """
    begun = plan.begun.pop(worker, None)
    if begun is not None:
        begun.join()
    else:
        _watch(worker, plan).run()


def _watch(worker: HubWorker, plan: DrainPlan) -> DrainWorker:
    watching = DrainWorker(worker, plan)
    if plan.closes_idle:
        plan.workers.append(watching)
    return watching


def finish(worker: HubWorker, plan: DrainPlan) -> None:
    """`wait_for_handlers`, and end the worker's thread, if it has one of its own.

    From any thread; returns at once.
    """
    thread = worker.thread
    if thread is not None:
        end = functools.partial(_finish, worker, thread, worker.leave, plan)
        thread.send(functools.partial(gevent.spawn, end))


def _finish(
    worker: HubWorker, thread: HubThread, leave: Callable[[], object], plan: DrainPlan
) -> None:
    try:
        leave()  # if it has not come to it yet
        wait_for_handlers(worker, plan)
        if plan.is_called_off:  # a drain is, by a close, which leaves handlers to finish
            wait_for_handlers(worker, DrainPlan(None, kill=False, leaves_callers=False))
        if worker.has_callers:  # a handler that waits for others' end comes to its own after it
            wait_for_handlers(worker, plan.again())
    finally:
        worker.end_sweeps()
        thread.end()
