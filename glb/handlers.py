"""Greenlets that run handlers, one connection's after another's.

A new greenlet for each connection costs more than its accept: the kernel maps memory for
its frames, faults it in and unmaps it again. Here a greenlet whose handler has returned is
parked, and runs the next one.

**Nobody can tell.** A greenlet is used again only if nothing is left of the handler that it
ran: no reference to it and no weak one, no link, no attribute, no context variable. So all
that is kept by greenlet (`gevent.local`, `threading.local` and `current_thread()` under
monkey patching, `Greenlet.link`, ``minimal_ident``, a `gevent.Timeout` that was never
closed, a `kill` on its way, a program's own dict or set) finds its greenlet dead when the
handler is done, and the next handler runs in a fresh one. Rather a greenlet too many than a
leak: whatever raises, is killed or leaves a trace ends its greenlet, in gevent's own way and
with gevent's own report.

The proof is the count of references. A Python that has none gets fresh greenlets.

State: one `Handlers` a thread, in ``_THREAD``.

Source: ``gevent.Greenlet.spawn`` and ``gevent.pool.Pool``, for what a handler sees.
"""

from __future__ import annotations

import contextvars
import math
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast
from weakref import getweakrefcount

from gevent import Greenlet, GreenletExit, get_hub, getcurrent
from gevent.pool import Pool

from .originals import Local

__all__ = ["HandlerGreenlet", "HandlerPool", "Handlers", "handlers_here"]

# Two full wake-ups of 100 connections, and some. A parked greenlet holds about 7 KiB
# (250 of them, CPython 3.11 and 3.13).
MAX_PARKED: Final = 256

# Who was not needed for so long is let go. Longer than the pause between two bursts, short
# enough that a peak's memory is back before anybody asks where it is.
TRIM_SECONDS: Final = 5.0

# What a parked greenlet is told when there is a job for it. Any other word means that somebody
# knows it, and it ends.
_GO: Final = object()
_END: Final = object()

# Where there are no counts, none is right: nan equals nothing, not even itself.
_count_references: Final[Callable[[object], float]] = getattr(
    sys, "getrefcount", lambda _: math.nan
)

#: ``run(handle, close, args)`` runs a connection's handler and closes it; then the pool.
Job = tuple[
    Callable[..., object], Callable[..., object], Callable[..., object], Any, "HandlerPool | None"
]


class HandlerGreenlet(Greenlet):  # type: ignore[type-arg]  # generic in the stubs alone
    """A greenlet that runs the jobs of its `Handlers`, until somebody could tell."""

    __slots__ = ("_handlers", "_has_ended", "_result", "_tree_locals", "job")

    def __init__(self, handlers: Handlers) -> None:
        super().__init__()
        self._handlers = handlers
        self._has_ended = False
        #: What it runs.
        self.job: Job | None = None
        self._result: object = None
        self._tree_locals = self.spawn_tree_locals

    def run(self) -> None:
        handlers = self._handlers
        handlers.all.add(self)
        try:
            super().run()  # gevent's: runs `_run`, and tells what came of it
        finally:
            handlers.all.discard(self)
            self.job = None

    def _run(self) -> object:
        handlers = self._handlers
        jobs = handlers.jobs
        park = handlers.hub.switch
        if not handlers.untouched_started:
            handlers.untouched_started = _count_references(self)  # it is the probe
        while True:
            handlers.due -= 1
            handlers.begun += 1
            try:
                self.job = run, handle, close, args, pool = jobs.popleft()
            except IndexError:
                # They were taken back, see `Handlers.take_back`. It has touched nothing.
                handlers.begun -= 1
                handlers.due = 0
                return None
            if pool is None:
                self._result = run(handle, close, args)
            else:
                pool.begin(self)
                try:
                    self._result = run(handle, close, args)
                finally:
                    pool.end(self)
            del run, handle, close, args, pool
            self.job = None
            self.gr_context = None
            if (
                handlers.due > 0
                and handlers.started is self
                and _count_references(self) == handlers.untouched_started
                and self._is_bare()
            ):
                continue
            if self.has_links():
                return self._result
            self._has_ended = True
            handlers.ended(self)
            try:
                told = park()
            except BaseException:
                if handlers.started is self:
                    raise  # an interrupt, which struck as the next job came
                told = _END  # a kill or a Timeout that comes too late: as nothing to the dead
            self._has_ended = False
            if told is not _GO:
                return self._result

    # Whoever asks knows it: then it ends at once, and not when the hub looks at it. (But for
    # who asks whether it is `dead`: gevent does, of one that it has just thrown something into.)

    def ready(self) -> bool:
        self._end_if_ended()
        return bool(super().ready())

    def successful(self) -> bool:
        self._end_if_ended()
        return bool(super().successful())

    def __bool__(self) -> bool:
        self._end_if_ended()
        return bool(super().__bool__())

    def _end_if_ended(self) -> None:
        if self._has_ended and _THREAD.handlers is self._handlers:
            self.end()

    def end(self) -> None:
        """Let it end, which is parked, and come back here."""
        hub, here = cast("Any", self.parent), cast("Any", getcurrent())
        self.parent = here
        self.switch(_END)
        self.parent = hub

    def _is_bare(self) -> bool:
        return not (
            getweakrefcount(self)
            or self.has_links()
            or self.__dict__
            or self.kwargs
            or self.spawn_tree_locals is not self._tree_locals
            or self.parent is not self._handlers.hub
        )

    def _formatinfo(self) -> str:
        # For reports, as gevent's: what runs, and for whom.
        if self.job is None:
            return ""
        _, handle, _, args, _ = self.job
        name = getattr(handle, "__name__", "") or repr(handle)
        return f"{name}({', '.join(repr(arg)[:50] for arg in args)})"


class Handlers:
    """The handler greenlets of one hub. Jobs start in the order in which they came."""

    def __init__(self, hub: Any) -> None:
        self.hub = hub
        #: Its greenlets, from their start to their end.
        self.all: set[HandlerGreenlet] = set()
        #: What waits for a greenlet.
        self.jobs: deque[Job] = deque()
        #: How many of them are to start before the hub has another turn: not those that they
        #: bring about themselves.
        self.due = 0
        #: How many have begun, ever.
        self.begun = 0
        #: Who runs within the switch that started it: it has not waited for anything yet.
        self.started: HandlerGreenlet | None = None
        #: How many references there are to it then, if nobody knows it.
        self.untouched_started: float = 0
        self._is_starting = False
        self._is_due = False
        self._ended: list[HandlerGreenlet] = []
        self._parked: list[HandlerGreenlet] = []
        self._least_parked = 0
        self._trimmer: Any = None
        self._users = 0
        # How many references there are to a greenlet that has ended, if nobody knows it.
        self._untouched_ended: float = 0

    def __len__(self) -> int:
        """How many are parked."""
        return len(self._parked)

    # -- who uses it -----------------------------------------------------------------------

    def acquire(self) -> None:
        """Count one more server; while there is one, greenlets are parked."""
        self._users += 1
        if not self._untouched_ended:
            # To probe, before the first job comes.
            self._is_due = True
            self.hub.loop.run_callback(self._start)

    def release(self) -> None:
        """Count a server out. With the last one the parked greenlets end."""
        self._users -= 1
        if self._users == 0 and _THREAD.handlers is self:
            self.end_parked()

    def end_parked(self) -> None:
        """Leave no greenlet parked. In its own thread; its hub may be gone."""
        self._least_parked = len(self._parked)
        self._trim()

    # -- jobs ------------------------------------------------------------------------------

    def spawn(
        self,
        run: Callable[..., object],
        handle: Callable[..., object],
        close: Callable[..., object],
        args: Any,
        pool: HandlerPool | None = None,
    ) -> None:
        """Call ``run(handle, close, args)`` in a handler greenlet, soon."""
        self.jobs.append((run, handle, close, args, pool))
        if not self._is_due:
            self._is_due = True
            self.hub.loop.run_callback(self._start)

    @property
    def is_probed(self) -> bool:
        """Whether it has begun. Before, no other thread may take anything back."""
        return bool(self._untouched_ended)

    def look(self) -> None:
        """See to it that what waits is started."""
        if self.jobs and not self._is_due:
            self._is_due = True
            self.hub.loop.run_callback(self._start)

    def take_back(self, is_wanted: Callable[[Job], bool]) -> list[Job]:
        """Take away what waits and *is_wanted*, oldest first. From any thread.

        The hub is to `look` after that.
        """
        taken: list[Job] = []
        left: list[Job] = []
        # The hub may take jobs meanwhile: each has them to itself, whoever pops first.
        while True:
            try:
                job = self.jobs.pop()
            except IndexError:
                break
            (taken if is_wanted(job) else left).append(job)
        self.jobs.extend(reversed(left))
        taken.reverse()
        return taken

    def drop(self, is_dropped: Callable[[Job], bool]) -> None:
        """Kill the jobs that wait and for which *is_dropped*: their connections are closed."""
        for job in self.take_back(is_dropped):
            self._kill(job)

    def running(self, is_wanted: Callable[[Job], bool]) -> list[HandlerGreenlet]:
        """Return the greenlets that run a job for which *is_wanted*."""
        return [each for each in self.all if each.job is not None and is_wanted(each.job)]

    def _start(self) -> None:
        jobs, parked = self.jobs, self._parked
        self._is_starting = True
        try:
            if not self._untouched_ended:
                self._untouched_ended = self._probe()
            self.due = len(jobs)
            while self.due > 0:
                # No other name for it: each reference counts.
                if parked:
                    self.started = parked.pop()
                    self.started.switch(_GO)
                else:
                    self.started = self._new()
                    self.started.switch()
                self.started = None
                if self._ended:
                    self._park_untouched()
        finally:
            self.started = None
            self._is_starting = False
            self._is_due = bool(jobs)
            if jobs:
                self.hub.loop.run_callback(self._start)
            self._least_parked = min(self._least_parked, len(parked))

    def _new(self) -> HandlerGreenlet:
        try:
            greenlet = HandlerGreenlet(self)
            # For who asked to see each greenlet that starts (`Greenlet.add_spawn_callback`).
            # The switch to it takes it off the loop again.
            greenlet.start()
        except BaseException:
            self.due -= 1
            if self.jobs:
                self._kill(self.jobs.popleft())
            raise
        return greenlet

    def _kill(self, job: Job) -> None:
        run, _, close, args, pool = job
        if pool is not None:
            pool.cancel()
        try:
            contextvars.copy_context().run(run, _die, close, args)
        except GreenletExit:
            pass
        except BaseException as error:  # as if in its greenlet, where closing failed
            self.hub.handle_error(run, type(error), error, error.__traceback__)

    def _probe(self) -> float:
        def run(*_: object) -> None:
            self.started = None  # or it would go on to the next job

        self.jobs.appendleft((run, run, run, (), None))
        self.started = HandlerGreenlet(self)
        self.started.switch()
        greenlet = self._ended.pop()
        count = _count_references(greenlet)
        greenlet.switch(_END)
        return count

    # -- parking ---------------------------------------------------------------------------

    def ended(self, greenlet: HandlerGreenlet) -> None:
        """*greenlet* has done its job, and is about to switch to the hub."""
        self._ended.append(greenlet)
        if not self._is_starting and len(self._ended) == 1:
            # Whoever switched to it has a reference, until it is off the stack.
            self.hub.loop.run_callback(self._park_untouched)

    def _park_untouched(self) -> None:
        ended = self._ended
        while ended:
            greenlet = ended.pop()
            if (
                _count_references(greenlet) == self._untouched_ended
                and greenlet._is_bare()
                and len(self._parked) < MAX_PARKED
                and self._users
            ):
                greenlet._has_ended = False
                greenlet._result = None
                self._parked.append(greenlet)
                if self._trimmer is None:
                    self._trimmer = self.hub.loop.timer(TRIM_SECONDS, TRIM_SECONDS, ref=False)
                    self._trimmer.start(self._trim)
            else:
                greenlet.switch(_END)

    def _trim(self) -> None:
        # The last one parked runs first, so the first ones were not needed.
        surplus = self._parked[: self._least_parked]
        del self._parked[: self._least_parked]
        self._least_parked = len(self._parked)
        for greenlet in surplus:
            greenlet.end()
        if not self._parked and self._trimmer is not None:
            if self.hub.loop is not None:  # a destroyed one has taken its timers along
                self._trimmer.stop()
                self._trimmer.close()
            self._trimmer = None


class HandlerPool(Pool):
    """A `gevent.pool.Pool` that has handler greenlets as well, by `handle`."""

    # gevent's, which the stubs leave out.
    _empty_event: Any
    _semaphore: Any
    dying: set[Any]

    def __init__(self, size: int | None = None) -> None:
        super().__init__(size)
        self._waiting = 0

    def __len__(self) -> int:
        return len(self.greenlets) + self._waiting

    def handle(
        self,
        run: Callable[..., object],
        handle: Callable[..., object],
        close: Callable[..., object],
        args: Any,
    ) -> None:
        """Call ``run(handle, close, args)`` in a handler greenlet, soon.

        Switches:
            While the pool is full.
        """
        self._semaphore.acquire()
        self._waiting += 1
        self._empty_event.clear()
        handlers_here().spawn(run, handle, close, args, self)

    def kill(self, *args: Any, **kwargs: Any) -> None:
        """Kill all handlers, and who waits for one. The arguments are gevent's."""
        handlers_here().drop(lambda job: job[-1] is self)
        super().kill(*args, **kwargs)

    def begin(self, greenlet: HandlerGreenlet) -> None:
        """*greenlet* runs one that waited."""
        self._waiting -= 1
        self.greenlets.add(greenlet)

    def end(self, greenlet: HandlerGreenlet) -> None:
        """*greenlet* is done with it."""
        if greenlet in self.greenlets:  # somebody may have discarded it
            self._discard(greenlet)

    def cancel(self) -> None:
        """One that waited never will run."""
        self._waiting -= 1
        self._discard(None)

    def _discard(self, greenlet: Greenlet | None) -> None:  # type: ignore[type-arg]  # as above
        # gevent's, but for who waits.
        self.greenlets.discard(greenlet)
        self.dying.discard(greenlet)
        if not len(self):
            self._empty_event.set()
        self._semaphore.release()


class _Thread(Local):
    handlers: Handlers | None = None


_THREAD: Final = _Thread()


def handlers_here() -> Handlers:
    """Return the `Handlers` of this thread's hub."""
    hub: Any = get_hub()
    handlers = _THREAD.handlers
    if handlers is None or handlers.hub is not hub:
        if handlers is not None:
            handlers.end_parked()  # its hub was destroyed
        handlers = _THREAD.handlers = Handlers(hub)
    return handlers


def _die(*_args: object) -> None:
    raise GreenletExit
