"""The greenlet pool of a hub, and gevent's pool of such greenlets.

`handlers_here` returns this thread's handler greenlets, and `PROOF` says whether they are used
again. Here is also the trial that the proof needs.

Process-wide: `PROOF`.

Source: ``gevent.pool.Pool``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final
from weakref import getweakrefcount

from gevent import Greenlet, get_hub, getcurrent
from gevent.pool import Pool

from .handler_greenlets import END, MAX_PARKED, THREAD, HandlerGreenlet, Handlers, Job
from .proof import WARM_UP, Proof, count

__all__ = [
    "MAX_PARKED",
    "PROOF",
    "HandlerGreenlet",
    "HandlerPool",
    "Handlers",
    "Job",
    "Proof",
    "handlers_here",
]


class _Trial(Handlers):
    """Jobs that are known to keep their greenlet, or not to."""

    def __init__(self, hub: Any) -> None:
        super().__init__(hub, Proof(_Trial))
        self._users = 1
        self._made = 0

    def _new(self) -> HandlerGreenlet:
        self._made += 1
        return HandlerGreenlet(self)  # not started, so that no spawn callback sees it

    def count_unused(self) -> int | None:
        """Return how many references there are to a parked greenlet that nothing refers to.

        ``None`` if something does.
        """
        started = self.started
        started.append(self._new())
        started[0].switch()
        parked, is_seen = count(started), bool(getweakrefcount(started[0]))
        started[0].switch(END)
        has_ended, left = started[0].dead, count(started)
        started.clear()
        # Once it has ended, the list alone refers to it.
        is_alone = has_ended and left == next(map(sys.getrefcount, [object()]))
        return parked if is_alone and not is_seen else None

    def find_fault(self) -> str:
        """Return the fault of using greenlets again, or ``""``."""
        for waits in (False, True):
            made = self._made
            self._run_jobs(lambda: None, waits=waits)
            if self._made - made > (WARM_UP if waits else 1):
                return "one that was not kept is not used again"
            for keep in (_keep, _keep_its_switch, _keep_in_frame):
                made = self._made
                kept: list[object] = []
                self._run_jobs(functools.partial(keep, kept), waits=waits)
                # The first may be one that was parked before, to which nothing referred.
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

        # One at a time, and then all at once.
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


#: Of this process. A forked child has its parent's.
PROOF: Final = Proof(_Trial)


class HandlerPool(Pool):
    """A `gevent.pool.Pool` that counts handler greenlets as well: see `handle`."""

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
            self.look_over(handlers)  # an exception was raised as one was discarded
        self._semaphore.acquire()
        self._waiting += 1
        self._empty_event.clear()
        handlers.spawn(run, handle, close, args, self)

    def kill(self, *args: Any, **kwargs: Any) -> None:
        """Kill all handlers, and drop the jobs that wait for one. The arguments are gevent's."""
        handlers = handlers_here()
        handlers.drop(lambda job: job[-1] is self)
        self.look_over(handlers)  # gevent's waits without a switch for a dead one
        super().kill(*args, **kwargs)

    def begin(self) -> None:
        """Count a job that waited as running, in this greenlet."""
        self._waiting -= 1
        # No local name for it: an error that is raised here would keep it, and it the error.
        self.greenlets.add(getcurrent())  # type: ignore[arg-type]  # it is a Greenlet

    def end(self, greenlet: HandlerGreenlet) -> None:
        """Count out *greenlet*, whose job is done."""
        if greenlet in self.greenlets:  # the program may have discarded it
            self._discard(greenlet)

    def cancel(self) -> None:
        """Count out a job that waited and will never run."""
        self._waiting -= 1
        self._discard(None)

    def look_over(self, handlers: Handlers) -> None:
        """Take up what an exception has left undone: see `glb.hubs.guard`. In *handlers*' hub."""
        for greenlet in [*self.greenlets]:
            # A dead one keeps the job that failed.
            if isinstance(greenlet, HandlerGreenlet) and (greenlet.job is None or greenlet.dead):
                self.greenlets.discard(greenlet)
        self._waiting = sum(job[-1] is self for job in handlers.jobs)
        if self.size is not None:
            while self._semaphore.counter < self.size - len(self):
                self._semaphore.release()
        if not len(self):
            self._empty_event.set()

    def _discard(self, greenlet: Greenlet | None) -> None:  # type: ignore[type-arg]  # as above
        # As gevent's, which would count greenlets alone.
        self.greenlets.discard(greenlet)
        self.dying.discard(greenlet)
        if not len(self):
            self._empty_event.set()
        self._semaphore.release()


def handlers_here() -> Handlers:
    """Return the `Handlers` of this thread's hub."""
    hub: Any = get_hub()
    handlers = THREAD.handlers
    if handlers is None or handlers.hub is not hub:
        if handlers is not None:
            handlers.end_parked()  # its hub was destroyed
        handlers = THREAD.handlers = Handlers(hub, PROOF)
    return handlers
