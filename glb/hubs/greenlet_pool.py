"""Greenlets that run handlers, one connection's after another's.

A new greenlet for each connection costs more than its accept: the kernel maps memory for
its frames, faults it in and unmaps it again. Here a greenlet whose handler has returned is
parked, and runs the next one.

**The next handler can't tell.** A greenlet is used again only if nothing is left of the handler
that it ran: no reference to it and no weak one, no link, no attribute, no context variable. So all
that is kept by greenlet (`gevent.local`, `threading.local` and `current_thread()` under monkey
patching, `Greenlet.link`, ``minimal_ident``, a `gevent.Timeout` that was never closed, a `kill` on
its way, a program's own dict or set) finds its greenlet dead when the handler is done, and the
next handler runs in a fresh one. Rather a greenlet too many than a leak: whatever raises, is
killed or leaves a trace ends its greenlet, in gevent's own way and with gevent's own report.

**The proof** is a count of references, by these steps:

1. *Counted by C alone.* A parked greenlet is an element of a list, and `map` calls
   `sys.getrefcount` with it. No bytecode has it in its hands, so it makes no difference that
   CPython 3.14 and newer borrow references where older ones count them, nor how warm a function is.
2. *Compared with the same greenlet.* Each parks once before its first job, and is counted there.
   When it parks again, its stack is the same to the instruction, so one more in the count is one
   reference more. Within a switch, where several jobs follow one another, the count before a job
   is compared with the count after it.
3. *Nothing refers to it at the first count.* Here a count is compared with another greenlet's:
   one of `Proof`'s trials, which was seen to end, and to have no reference left but its list's.
   A greenlet on which a tracer, a spawn callback or a profiler has laid its hand has another
   count, and is never used again; nor is one whose stack differs for another reason.
4. *Tried.* When a process first needs it, `Proof` runs jobs that keep their greenlet, and jobs that
   keep nothing, by the very code that decides. If a kept one could be used again, or if one that
   was not kept is not, no greenlet of this process is used again. `PROOF` says so, and the log.

CPython 3.10 to 3.13 own each reference that a frame has; from 3.14 on a frame may borrow it from
another, but something owns it, and owning counts. Debug builds and development mode count alike.
Coverage has a weak reference to each greenlet that it sees (with ``concurrency = greenlet``), and
some profilers add a reference to the stack: there each handler has a fresh greenlet. A Python that
has no counts gets fresh greenlets.

State: one `Handlers` a thread, in ``_THREAD``; `PROOF`, one a process.

Source: ``gevent.Greenlet.spawn`` and ``gevent.pool.Pool``, for what a handler sees.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, cast
from weakref import getweakrefcount

from gevent import Greenlet, GreenletExit, get_hub, getcurrent
from gevent.pool import Pool

from ..originals import Local
from .threads import call_where_it_may_switch

__all__ = ["PROOF", "HandlerGreenlet", "HandlerPool", "Handlers", "Proof", "handlers_here"]

log: Final = logging.getLogger("glb")

# Two full wake-ups of 100 connections, and some. A parked greenlet holds about 7 KiB
# (250 of them, CPython 3.11 and 3.13).
MAX_PARKED: Final = 256

# Who was not needed for so long is let go. Longer than the pause between two bursts, short
# enough that a peak's memory is back before anybody asks where it is.
TRIM_SECONDS: Final = 5.0

# What a parked greenlet is sent when there is a job for it. Any other value comes from somewhere
# else, and ends it.
_GO: Final = object()
_END: Final = object()

_count_references: Final[Callable[[object], int] | None] = getattr(sys, "getrefcount", None)

# So many trials of each kind. CPython replaces a call by a specialized one at its second to
# sixteenth; the count of 3.14 and 3.15 is one less from the second on.
WARM_UP: Final = 32

#: ``run(handle, close, args)`` runs a connection's handler and closes it; then the pool.
Job = tuple[
    Callable[..., object], Callable[..., object], Callable[..., object], Any, "HandlerPool | None"
]


class HandlerGreenlet(Greenlet):  # type: ignore[type-arg]  # generic in the stubs alone
    """A greenlet that runs the jobs of its `Handlers`, until something refers to it."""

    __slots__ = ("_handlers", "_has_ended", "_result", "_tree_locals", "is_provable", "job")

    def __init__(self, handlers: Handlers) -> None:
        super().__init__()
        self._handlers = handlers
        self._has_ended = False
        #: Whether nothing referred to it when it parked before its first job.
        self.is_provable = False
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
            # gevent keeps an error with the greenlet, and the error keeps the frames that it went
            # through and their callers, down to this one. Without the greenlet in them that is no
            # cycle, and what the handler held is released as soon as the greenlet is.
            del self

    def _run(self) -> object:
        handlers = self._handlers
        jobs, started = handlers.jobs, handlers.started
        park = handlers.hub.switch
        try:
            told = park()  # for its first count
            while told is _GO:
                handlers.due -= 1
                handlers.begun += 1
                try:
                    self.job = run, handle, close, args, pool = jobs.popleft()
                except IndexError:
                    # They were taken back, see `Handlers.take_back`. It has touched nothing.
                    handlers.begun -= 1
                    handlers.due = 0
                    break
                untouched = count(started) if handlers.due > 0 else 0
                if pool is None:
                    self._result = run(handle, close, args)
                else:
                    pool.begin()
                    try:
                        self._result = run(handle, close, args)
                    finally:
                        pool.end(self)
                del run, handle, close, args, pool
                self.job = None
                self.gr_context = None
                if (
                    handlers.due > 0
                    and handlers.is_started(self)
                    and count(started) == untouched
                    and self.is_provable
                    and self._is_bare()
                ):
                    continue
                if self.has_links():
                    break
                self._has_ended = True
                handlers.ended(self)
                try:
                    told = park()
                except BaseException:
                    if handlers.is_started(self):
                        raise  # an interrupt, which struck as the next job came
                    told = _END  # a kill or a Timeout that comes too late: as nothing to the dead
                self._has_ended = False
        except BaseException:
            del self  # as in `run`
            raise
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
        self.proof = PROOF
        #: Its greenlets, from their start to their end.
        self.all: set[HandlerGreenlet] = set()
        #: What waits for a greenlet.
        self.jobs: deque[Job] = deque()
        #: How many of them are to start before the hub has another turn: not those that they
        #: bring about themselves.
        self.due = 0
        #: How many have begun, ever.
        self.begun = 0
        #: The greenlet that runs within the switch that started it, and has not waited for
        #: anything yet. One or none, and no other reference to it.
        self.started: list[HandlerGreenlet] = []
        self._is_starting = False
        # What will start the jobs that wait, if it is pending.
        self._callback: Any = None
        self._ended: list[HandlerGreenlet] = []
        # The one of them that is being looked at.
        self._judged: list[HandlerGreenlet] = []
        self._parked: list[HandlerGreenlet] = []
        self._least_parked = 0
        self._trimmer: Any = None
        self._users = 0

    def __len__(self) -> int:
        """How many are parked."""
        return len(self._parked)

    # -- who uses it -----------------------------------------------------------------------

    def acquire(self) -> None:
        """Count one more server; while there is one, greenlets are parked."""
        self._users += 1
        if self.proof.is_given is None:
            self._start_soon()  # tries whether it can be given, before the first job comes

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
        callback = self._callback
        if callback is None or not callback.pending:
            self._callback = self.hub.loop.run_callback(self._start)

    def look(self) -> None:
        """Start what waits, soon, unless that is about to happen."""
        if self.jobs:
            self._start_soon()

    def look_over(self) -> None:
        """Take up what an exception has left undone, in a callback: see `glb.hubs.guard`."""
        self._is_starting = False
        self.started.clear()
        self.look()
        if self._ended or self._judged:
            self._park_untouched()
        if self._trimmer is not None and not self._trimmer.active:
            self._trimmer.start(self._trim)

    def _start_soon(self) -> None:
        # An exception may strike `_start` before its first line. gevent's callback knows that it
        # was called, where a flag of ours would stay.
        if self._callback is None or not self._callback.pending:
            self._callback = self.hub.loop.run_callback(self._start)

    def is_started(self, greenlet: HandlerGreenlet) -> bool:
        """Whether *greenlet* runs within the switch that started it."""
        return bool(self.started) and self.started[0] is greenlet

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
        parked, started = self._parked, self.started
        self._is_starting = True
        try:
            if self.proof.is_given is None:
                self.proof.give(self.hub)
            self.due = len(self.jobs)
            while self.due > 0:
                self._take_greenlet()
                started[0].switch(_GO)
                started.clear()
                if self._ended:
                    self._park_untouched()
        finally:
            started.clear()
            self._is_starting = False
            if self.jobs:
                self._start_soon()
            self._least_parked = min(self._least_parked, len(parked))

    def _take_greenlet(self) -> None:
        """Have a parked greenlet in `started`."""
        parked, started = self._parked, self.started
        while parked:
            started.append(parked.pop())
            # What looks at all objects, as the garbage collector's lists do, may have found it.
            if self.proof.holds(started):
                return
            started[0].end()
            started.clear()
        started.append(self._new())
        started[0].switch()
        started[0].is_provable = self.proof.holds(started)
        if not started[0].is_provable:
            self.proof.found_traced()

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

    # -- parking ---------------------------------------------------------------------------

    def ended(self, greenlet: HandlerGreenlet) -> None:
        """*greenlet* has done its job, and is about to switch to the hub."""
        self._ended.append(greenlet)
        if not self._is_starting and len(self._ended) == 1:
            # Whoever switched to it has a reference, until it is off the stack.
            self.hub.loop.run_callback(self._park_untouched)

    def _park_untouched(self) -> None:
        ended, judged = self._ended, self._judged
        ended += judged  # an exception struck here the last time
        judged.clear()
        while ended:
            judged.append(ended.pop())
            if (
                judged[0].is_provable
                and self.proof.holds(judged)
                and judged[0]._is_bare()
                and len(self._parked) < MAX_PARKED
                and self._users
            ):
                judged[0]._has_ended = False
                judged[0]._result = None
                self._parked.append(judged.pop())
                if self._trimmer is None:
                    self._trimmer = self.hub.loop.timer(TRIM_SECONDS, TRIM_SECONDS, ref=False)
                    self._trimmer.start(self._trim)
            else:
                judged.pop().switch(_END)

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


def count(one: list[HandlerGreenlet]) -> int:
    """Return how many references there are to the greenlet that *one* has; 0 if it has none.

    No frame has it in its hands meanwhile: see the module's docstring.
    """
    return next(map(_count_references, one), 0) if _count_references is not None else 0


class Proof:
    """Whether handler greenlets are used again in this process, and why not."""

    def __init__(self) -> None:
        #: Whether they are; ``None`` before the first server of this process starts, and after a
        #: trial that could not tell.
        self.is_given: bool | None = None
        #: Why they are not, if they aren't.
        self.reason = ""
        # How many references there are to a parked greenlet that nothing refers to.
        self._untouched = 0

    def __repr__(self) -> str:
        return f"<Proof is_given={self.is_given} reason={self.reason!r}>"

    def holds(self, one: list[HandlerGreenlet]) -> bool:
        """Whether nothing refers to the parked greenlet that *one* has, but for *one*."""
        return (
            self.is_given is True and count(one) == self._untouched and not getweakrefcount(one[0])
        )

    def found_traced(self) -> None:
        """Note that something refers to a greenlet before its first job."""
        if self.is_given is not False and not self.reason:
            self.reason = "a tracer, profiler or spawn callback refers to each new greenlet"
            self._log(log.debug, "handlers run in fresh greenlets, as %s", self.reason)

    def give(self, hub: Any) -> None:
        """Try, in *hub* and within its callback, and set `is_given`.

        It takes about a millisecond, once a process.
        """
        if _count_references is None:
            self.is_given, self.reason = False, "this Python has no reference counts"
            self._log(log.info, "handlers run in fresh greenlets, as %s", self.reason)
            return
        trial = _Trial(hub)
        counts: list[int] = []
        for _ in range(WARM_UP):
            found = trial.count_unused()
            if found is None:  # what refers to it may be gone when the next server starts
                self.found_traced()
                return
            counts.append(found)
        if len({*counts[WARM_UP // 2 :]}) > 1:
            self._refuse(f"the number of references to an unused one varies: {counts}")
            return
        # Other hubs go on without a proof until the trial is over.
        trial.proof = Proof()
        trial.proof.is_given, trial.proof._untouched = True, counts[-1]
        fault = trial.find_fault()
        trial.end_parked()
        if fault:
            self._refuse(fault)
        else:
            self._untouched = counts[-1]
            self.is_given, self.reason = True, ""

    def _refuse(self, reason: str) -> None:
        self.is_given, self.reason = False, reason
        self._log(
            log.warning,
            "handlers run in fresh greenlets, as using them again is not safe: %s",
            reason,
        )

    @staticmethod
    def _log(write: Callable[..., None], *line: object) -> None:
        call_where_it_may_switch(functools.partial(write, *line))


class _Trial(Handlers):
    """Handlers that keep their greenlet, or don't, and are known to."""

    def __init__(self, hub: Any) -> None:
        super().__init__(hub)
        self._users = 1
        self._made = 0

    def _new(self) -> HandlerGreenlet:
        self._made += 1
        return HandlerGreenlet(self)  # of which spawn callbacks are not to know

    def count_unused(self) -> int | None:
        """Return how many references there are to a parked greenlet that nothing refers to.

        ``None``, if something does.
        """
        started = self.started
        started.append(self._new())
        started[0].switch()
        parked, is_seen = count(started), bool(getweakrefcount(started[0]))
        started[0].switch(_END)
        has_ended, left = started[0].dead, count(started)
        started.clear()
        # Once it has ended, the list alone refers to it.
        is_alone = has_ended and left == next(map(sys.getrefcount, [object()]))
        return parked if is_alone and not is_seen else None

    def find_fault(self) -> str:
        """Return what goes wrong when greenlets are used again, or ``""``."""
        for waits in (False, True):
            made = self._made
            self._run_jobs(lambda: None, waits=waits)
            if self._made - made > (WARM_UP if waits else 1):
                return "one that was not kept is not used again"
            for keep in (_keep, _keep_its_switch, _keep_in_frame):
                made = self._made
                kept: list[object] = []
                self._run_jobs(functools.partial(keep, kept), waits=waits)
                # Parked before, so nothing referred to it: the first may be the last one of those.
                if len(self) or len(kept) != 2 * WARM_UP:
                    return "one that was kept is used again"
                greenlets = {*map(_greenlet_of, kept)}
                if len(greenlets) != len(kept):
                    return "one that was kept is used again"
        return ""

    def _run_jobs(self, run: Callable[[], object], *, waits: bool) -> None:
        waiting: list[Any] = []

        def wait_and_run(*_: object) -> None:
            if waits:
                waiting.append(getcurrent())
                self.hub.switch()
            run()

        # One after the other, and then in one go.
        for each in (*(1 for _ in range(WARM_UP)), WARM_UP):
            for _ in range(each):
                self.jobs.append((wait_and_run, run, run, (), None))
            self._start()
            while waiting:
                waiting.pop(0).switch()
            self._park_untouched()


def _keep(kept: list[object]) -> None:
    kept.append(getcurrent())


def _keep_its_switch(kept: list[object]) -> None:
    kept.append(getcurrent().switch)


def _keep_in_frame(kept: list[object]) -> None:
    def hold() -> Iterator[object]:
        greenlet = getcurrent()
        yield None
        yield greenlet

    frame = hold()
    next(frame)
    kept.append(frame)


def _greenlet_of(kept: Any) -> object:
    if isinstance(kept, Greenlet):
        return kept
    return next(kept) if hasattr(kept, "gi_frame") else kept.__self__


#: Of this process. A child that is forked has its parent's.
PROOF: Final = Proof()


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
        handlers = handlers_here()
        if self._semaphore.locked() and not self.full():
            self.look_over(handlers)  # an exception has struck as one was discarded
        self._semaphore.acquire()
        self._waiting += 1
        self._empty_event.clear()
        handlers.spawn(run, handle, close, args, self)

    def kill(self, *args: Any, **kwargs: Any) -> None:
        """Kill all handlers, and who waits for one. The arguments are gevent's."""
        handlers = handlers_here()
        handlers.drop(lambda job: job[-1] is self)
        self.look_over(handlers)  # gevent's waits without a switch for one that is dead
        super().kill(*args, **kwargs)

    def begin(self) -> None:
        """Count one that waited as one that runs, in this greenlet."""
        self._waiting -= 1
        # No local name for it: an error that strikes here would keep it, and it the error.
        self.greenlets.add(getcurrent())  # type: ignore[arg-type]  # it is a Greenlet

    def end(self, greenlet: HandlerGreenlet) -> None:
        """*greenlet* is done with it."""
        if greenlet in self.greenlets:  # somebody may have discarded it
            self._discard(greenlet)

    def cancel(self) -> None:
        """One that waited never will run."""
        self._waiting -= 1
        self._discard(None)

    def look_over(self, handlers: Handlers) -> None:
        """Take up what an exception has left undone: see `glb.hubs.guard`. In *handlers*' hub."""
        for greenlet in [*self.greenlets]:
            if isinstance(greenlet, HandlerGreenlet) and greenlet.job is None:
                self.greenlets.discard(greenlet)
        self._waiting = sum(job[-1] is self for job in handlers.jobs)
        if self.size is not None:
            while self._semaphore.counter < self.size - len(self):
                self._semaphore.release()
        if not len(self):
            self._empty_event.set()

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
