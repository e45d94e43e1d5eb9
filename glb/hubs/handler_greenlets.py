"""Handler greenlets: each runs one connection's handler after another.

A new greenlet for each connection costs more than its accept: the kernel maps memory for its
frames, faults it in and unmaps it again. Here a greenlet whose handler has returned is parked, and
runs the next one.

**The next handler can't tell.** A greenlet is used again only if nothing is left of the handler
that it ran: no reference to it and no weak one, no link, no attribute, no context variable. So all
that is kept by greenlet (`gevent.local`, `threading.local` and `current_thread()` under monkey
patching, `Greenlet.link`, ``minimal_ident``, a `gevent.Timeout` that was never closed, a `kill` on
its way, a program's own dict or set) finds its greenlet dead when the handler is done, and the
next handler runs in a fresh one. Rather a greenlet too many than a leak: a handler that raises, is
killed or leaves a trace ends its greenlet, in gevent's own way and with gevent's own report.
`glb.hubs.proof` says how that is known.

State: one `Handlers` a thread, in ``THREAD``.

Source: ``gevent.Greenlet.spawn``, for what a handler sees.
"""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast
from weakref import getweakrefcount

from gevent import Greenlet, GreenletExit, getcurrent

from ..originals import Local
from .proof import Proof, count

__all__ = ["END", "MAX_PARKED", "THREAD", "HandlerGreenlet", "Handlers", "Job", "JobPool"]

# Two full wake-ups of 100 connections, and some. A parked greenlet holds about 7 KiB
# (250 of them, CPython 3.11 and 3.13).
MAX_PARKED: Final = 256

# A greenlet that was not needed for so long ends. Longer than the pause between two bursts, short
# enough that the memory of a peak is soon free.
TRIM_SECONDS: Final = 5.0

# A switch with this value starts a job in a parked greenlet. Any other value comes from elsewhere,
# and ends it.
_GO: Final = object()
END: Final = object()


class JobPool(Protocol):
    """The pool that a job belongs to: see `glb.hubs.greenlet_pool.HandlerPool`."""

    def begin(self) -> None: ...

    def end(self, greenlet: HandlerGreenlet) -> None: ...

    def cancel(self) -> None: ...


#: ``run(handle, close, args)`` runs a connection's handler and closes it; then the pool.
Job = tuple[
    Callable[..., object], Callable[..., object], Callable[..., object], Any, JobPool | None
]


class HandlerGreenlet(Greenlet):  # type: ignore[type-arg]  # generic in the stubs alone
    """A greenlet that runs the jobs of its `Handlers`, until something refers to it."""

    # An idle connection keeps its greenlet, so each frame and method here costs bytes for as long.
    # gevent notes ten frames of what spawns a greenlet. They would all be of this module and the
    # hub, and say nothing about the connection.
    spawning_stack_limit = 1

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

    # The greenlet copies its C stack when it waits. An own `run` around gevent's would add a C call
    # of the interpreter to that, 0.4 to 0.9 KiB a connection, and a bound method here 0.2 KiB.
    @staticmethod
    def _run() -> object:
        self = cast("HandlerGreenlet", getcurrent())
        handlers = self._handlers
        jobs, started = handlers.jobs, handlers.started
        try:
            handlers.all.add(self)
            sent = handlers.park()  # for its first count
            while sent is _GO:
                handlers.due -= 1
                handlers.begun += 1
                try:
                    self.job = run, handle, close, args, pool = jobs.popleft()
                except IndexError:
                    # They were taken back, see `Handlers.take_back`. No handler has run.
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
                    and started
                    and started[0] is self
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
                    sent = handlers.park()
                except BaseException:
                    if handlers.is_started(self):
                        raise  # an interrupt, just as the next job came
                    sent = END  # a kill or a Timeout that comes too late: no effect
                self._has_ended = False
            return self._result
        except GreenletExit:
            self.job = None  # any other error is reported with it
            raise
        finally:
            handlers.all.discard(self)
            # gevent keeps an error with the greenlet, and the error keeps the frames that it went
            # through, down to this one. If no frame has the greenlet there is no cycle, and what
            # the handler held is released together with the greenlet.
            del self

    # Code that calls these has a reference: the greenlet ends at once, and not when the hub judges
    # it. (`dead` is gevent's own: gevent reads it after it has thrown something into a greenlet.)

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
        if self._has_ended and THREAD.handlers is self._handlers:
            self.end()

    def end(self) -> None:
        """End it, which is parked, and return here."""
        hub, here = cast("Any", self.parent), cast("Any", getcurrent())
        self.parent = here
        self.switch(END)
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
        # For reports, as gevent's: the handler and its arguments.
        if self.job is None:
            return ""
        _, handle, _, args, _ = self.job
        name = getattr(handle, "__name__", "") or repr(handle)
        return f"{name}({', '.join(repr(arg)[:50] for arg in args)})"


class Handlers:
    """The handler greenlets of one hub. Jobs start in the order in which they came."""

    def __init__(self, hub: Any, proof: Proof) -> None:
        self.hub = hub
        #: Switches to the hub. Here once, or each greenlet would keep a method of its own.
        self.park: Final = hub.switch
        self.proof = proof
        #: Its greenlets, from their start to their end.
        self.all: set[HandlerGreenlet] = set()
        #: The jobs that wait for a greenlet.
        self.jobs: deque[Job] = deque()
        #: How many of them start before the hub goes on: not those that they spawn themselves.
        self.due = 0
        #: How many have begun, ever.
        self.begun = 0
        #: The greenlet that runs within the switch that started it, and has not waited yet. One or
        #: none, and no other reference to it.
        self.started: list[HandlerGreenlet] = []
        self._is_starting = False
        # The callback that starts the jobs that wait, if it is pending.
        self._callback: Any = None
        self._ended: list[HandlerGreenlet] = []
        # The one of them that is being judged.
        self._judged: list[HandlerGreenlet] = []
        self._parked: list[HandlerGreenlet] = []
        self._least_parked = 0
        self._trimmer: Any = None
        self._users = 0

    def __len__(self) -> int:
        """How many are parked."""
        return len(self._parked)

    # -- users -----------------------------------------------------------------------------

    def acquire(self) -> None:
        """Count one more server; while there is one, greenlets are parked."""
        self._users += 1
        if self.proof.is_given is None:
            self._start_soon()  # the trial runs before the first job comes

    def release(self) -> None:
        """Count a server out. With the last one the parked greenlets end."""
        self._users -= 1
        if self._users == 0 and THREAD.handlers is self:
            self.end_parked()

    def end_parked(self) -> None:
        """Leave no greenlet parked. In its own thread; its hub may be gone."""
        self._least_parked = len(self._parked)
        self._trim()
        self._end_lost()

    # -- jobs ------------------------------------------------------------------------------

    def spawn(
        self,
        run: Callable[..., object],
        handle: Callable[..., object],
        close: Callable[..., object],
        args: Any,
        pool: JobPool | None = None,
    ) -> None:
        """Call ``run(handle, close, args)`` in a handler greenlet, soon."""
        self.jobs.append((run, handle, close, args, pool))
        callback = self._callback
        if callback is None or not callback.pending:
            self._callback = self.hub.loop.run_callback(self._start)

    def look(self) -> None:
        """Start the jobs that wait, soon, unless that is about to happen."""
        if self.jobs:
            self._start_soon()

    def look_over(self) -> None:
        """Take up what an exception has left undone, in a callback: see `glb.hubs.guard`."""
        self._is_starting = False
        self.started.clear()
        self.look()
        if self._ended or self._judged:
            self._park_untouched()
        self._end_lost()
        if self._trimmer is not None and not self._trimmer.active:
            self._trimmer.start(self._trim)

    def _start_soon(self) -> None:
        # An exception may be raised in `_start` before its first line. gevent's callback knows that
        # it was called, where a flag of ours would stay.
        if self._callback is None or not self._callback.pending:
            self._callback = self.hub.loop.run_callback(self._start)

    def is_started(self, greenlet: HandlerGreenlet) -> bool:
        """Return True if *greenlet* runs within the switch that started it."""
        return bool(self.started) and self.started[0] is greenlet

    def take_back(self, is_wanted: Callable[[Job], bool]) -> list[Job]:
        """Remove and return the jobs that wait and that *is_wanted* accepts, oldest first.

        From any thread. Call `look` in the hub after that.
        """
        taken: list[Job] = []
        left: list[Job] = []
        # The hub may take jobs meanwhile: a job belongs to the thread that pops it.
        while True:
            try:
                job = self.jobs.pop()
            except IndexError:
                break
            (taken if is_wanted(job) else left).append(job)
        self.jobs.extend(reversed(left))
        taken.reverse()
        return taken

    def drop(self, is_dropped: Callable[[Job], bool]) -> int:
        """Kill the jobs that wait and that *is_dropped* accepts: their connections are closed.

        Return how many there were.
        """
        jobs = self.take_back(is_dropped)
        for job in jobs:
            self._kill(job)
        return len(jobs)

    def running(self, is_wanted: Callable[[Job], bool]) -> list[HandlerGreenlet]:
        """Return the greenlets that run a job that *is_wanted* accepts."""
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
        """Put a parked greenlet into `started`."""
        parked, started = self._parked, self.started
        while parked:
            started.append(parked.pop())
            # Code that lists all objects, by the garbage collector, may have found it.
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
            # For spawn callbacks (`Greenlet.add_spawn_callback`). The switch to it takes it off the
            # loop again.
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
        """Note that *greenlet* has done its job, and is about to switch to the hub."""
        self._ended.append(greenlet)
        if not self._is_starting and len(self._ended) == 1:
            # The code that switched to it has a reference, until that is off the stack.
            self.hub.loop.run_callback(self._park_untouched)

    def _park_untouched(self) -> None:
        ended, judged = self._ended, self._judged
        ended += judged  # an exception was raised here the last time
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
                judged.pop().switch(END)

    def _end_lost(self) -> None:
        # An exception struck while a greenlet was moved from one list to another: it waits for a
        # job, and is in none of them.
        known = {*self._parked, *self._ended, *self._judged, *self.started}
        for greenlet in [*self.all]:
            if greenlet.job is None and greenlet not in known:
                greenlet.end()

    def _trim(self) -> None:
        # The last one parked runs first, so the first ones were not needed.
        surplus = self._parked[: self._least_parked]
        del self._parked[: self._least_parked]
        self._least_parked = len(self._parked)
        for greenlet in surplus:
            greenlet.end()
        if not self._parked and self._trimmer is not None:
            if self.hub.loop is not None:  # a destroyed one has taken its timers along
                self._trimmer.close()
            self._trimmer = None


class _Thread(Local):
    handlers: Handlers | None = None


THREAD: Final = _Thread()


def _die(*_args: object) -> None:
    raise GreenletExit
