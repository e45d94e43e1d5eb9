"""Draining: how a server comes to its end, on all of its hubs.

A `Draining` is one server's. `Draining.drain` is the gentle end: it closes what is idle and lets
handlers finish, empties the accept queue meanwhile, if no other server has the address, and leaves.
`Draining.end` is what that has in common with a stop: the handlers of every hub are seen to in
that hub, at the same time, and the hubs' threads end after them.

A greenlet that waits here for handlers to end is a *caller*. A caller that runs a handler itself is
not waited for: see `Draining.calling`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Final

import gevent
from gevent import getcurrent

from ..accept.descriptor import is_adopted
from ..accept.registry import REGISTRY, Entry
from ..hubs.signals import Signal, ask
from ..hubs.threads import HubThread
from ..model.limits import check_seconds
from ..model.states import PAUSES, State
from ..model.stats import DrainReport
from ..net.sockets import is_loopback
from ..originals import monotonic
from .admission import Admission
from .clone_set import CloneSet
from .drain_worker import KILL_SECONDS, DrainPlan, begin, finish, wait_for_handlers
from .hooks import Hooks
from .workers import Workers

__all__ = ["LINGER_SECONDS", "Draining"]

log: Final = logging.getLogger("glb")

# The states in which it has turns, or will have again.
SERVES: Final = (State.ACCEPTING, *PAUSES)

# With the last server of an address: so long, at most, for clients that the kernel has let in. As a
# rule they are served in a moment; they wait only if the server is full.
LINGER_SECONDS: Final = 1.0

# While no new client is let in, so long for handshakes that have begun: a way there and back
# between continents. On a loopback address there are none.
HANDSHAKE_SECONDS: Final = 0.3

# For so long, at most, connections that were accepted are on their way to a clone of another hub. A
# hub that is stalled gives them back sooner, to one that turns.
ARRIVAL_SECONDS: Final = 1.0

# How often it is looked whether the accept queue is empty: once a round of a hub's loop, about.
QUEUE_LOOK_SECONDS: Final = 0.005

# So often a drain with a delay looks whether it is called off, or hastened.
DELAY_LOOK_SECONDS: Final = 0.05

# How often a caller that waits for a thread looks whether a handler there waits for the same.
CALLERS_LOOK_SECONDS: Final = 0.1


class _Drain:
    """A drain that goes on."""

    def __init__(self, plan: DrainPlan) -> None:
        self.plan: Final = plan
        self.over: Final = Signal()
        self.report = DrainReport(0, 0, 0, 0.0)


class Draining:
    """The end of *server*.

    Args:
        leave: Leaves the server's turns, and its address.
    """

    def __init__(
        self,
        server: Hooks,
        workers: Workers,
        admission: Admission,
        clones: CloneSet,
        leave: Callable[[State], object],
    ) -> None:
        self._server: Final = server
        self._workers: Final = workers
        self._admission: Final = admission
        self._clones: Final = clones
        self._leave: Final = leave
        self._drain: _Drain | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a drain goes on."""
        return self._drain is not None

    def call_off(self) -> None:
        """The server was closed: a drain waits for its handlers no longer."""
        drain, self._drain = self._drain, None
        if drain is not None:
            drain.plan.is_called_off = True
            drain.over.set()

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """In this block the greenlet waits for handlers to end: its own is not waited for."""
        greenlet, callers = getcurrent(), self._workers.callers
        if greenlet in callers:
            yield
            return
        callers.add(greenlet)
        try:
            worker = self._workers.here
            if worker is not None:
                worker.handler_ended(None)  # those that wait already count one less
            yield
        finally:
            callers.discard(greenlet)

    def stop(self, timeout: float) -> None:
        """Stop. A drain that is under way has no longer than *timeout* seconds from now on."""
        drain = self._drain
        with self.calling():
            if drain is None:
                self.end(DrainPlan(timeout, kill=True), State.STOPPED)
            else:
                drain.plan.hasten(timeout)
                drain.over.wait(None)
                if drain.plan.is_called_off:  # by a close, in another thread
                    self.end(DrainPlan(timeout, kill=True), State.STOPPED)

    def drain(
        self, timeout: float | None, spread: float, linger: float, delay: float
    ) -> DrainReport:
        """See `glb.server.StreamServer.drain`."""
        check_seconds("timeout", timeout, may_be_zero=True)
        for name, seconds in {"spread": spread, "linger": linger, "delay": delay}.items():
            check_seconds(name, seconds, may_be_zero=True, may_be_none=False)
        began = monotonic() + delay
        plan = DrainPlan(
            timeout, kill=True, closes_idle=True, spread=spread, began=began, delay=delay
        )
        with REGISTRY.lock:
            drain, is_first = self._drain, self._drain is None
            if drain is None:
                self._drain = drain = _Drain(plan)
        with self.calling():
            if is_first:
                self._run(drain, linger)
            else:
                drain.over.wait(None)
        return drain.report

    def _run(self, drain: _Drain, linger: float) -> None:
        plan, workers = drain.plan, [*self._workers]
        before = [worker.done for worker in workers]
        try:
            try:
                self._announce(plan)
                self._empty_accept_queue(plan, plan.began + linger)
                self._let_arrive(plan)
                if not plan.is_called_off:
                    self.end(plan, State.DRAINING)
            except BaseException:
                plan.is_called_off = True  # what hubs have begun of it ends
                raise
            finally:
                if self._drain is drain:  # no close has called it off
                    self._drain = None  # nor does this one, where a hub is late
                    self._server.close()
        finally:
            # Of a hub that is late this is what has become of its connections until now.
            watches = [*plan.workers]
            reports = [watch.report for watch in watches]
            total = DrainReport.total(reports, monotonic() - plan.began)
            # Those that ended before a drain worker counted have finished, too.
            done = sum(worker.done - begun for worker, begun in zip(workers, before, strict=True))
            others = sum(watch.ended_otherwise for watch in watches)
            drain.report = total._replace(finished=max(0, done - others))
            drain.over.set()

    def _announce(self, plan: DrainPlan) -> None:
        """Until the plan begins, serve on as a server that is not ready for new clients."""
        admission = self._admission
        turns = admission.turns
        if turns is None or monotonic() >= plan.began:
            return
        admission.linger()
        while admission.turns is turns and admission.state in SERVES and not plan.is_called_off:
            left = min(plan.began, plan.until) - monotonic()
            if left <= 0:
                break
            gevent.sleep(min(left, DELAY_LOOK_SECONDS))
        plan.begin_now()

    def _empty_accept_queue(self, plan: DrainPlan, until: float) -> None:
        admission, listeners = self._admission, self._clones.listeners
        turns = admission.turns
        if turns is None or not listeners or monotonic() >= until:
            return
        entry = listeners[0].entry
        if self._has_others(entry):
            return  # they serve the clients in the queue
        is_shut = entry.refuse_newcomers()
        began = monotonic()
        # A client that has our SYN-ACK believes that it is connected; it is in the queue when its
        # own answer has come.
        shaken_by = began + HANDSHAKE_SECONDS * (is_shut and not is_loopback(entry.pristine))
        while admission.turns is turns and admission.state in SERVES:
            if monotonic() >= min(until, plan.until):
                return
            is_empty = not (turns.waiting or admission.expected or entry.has_clients())
            if is_empty and monotonic() >= shaken_by:
                return
            if not plan.lingers:
                self._linger(plan)
            gevent.sleep(QUEUE_LOOK_SECONDS)

    def _has_others(self, entry: Entry) -> bool:
        """Whether clones of others have the address, in this process."""
        handed_in = getattr(self._clones.handed_in, "_sock", None)
        return entry.clones > len(self._clones.listeners) + is_adopted(handed_in)

    def _let_arrive(self, plan: DrainPlan) -> None:
        """Accept nothing more, and wait for what was accepted and has no handler yet.

        If the server left before, it would be closed, as no clone is left to take it.
        """
        admission, listeners = self._admission, self._clones.listeners
        turns = admission.turns
        if turns is None or not listeners or len(self._workers) == 1:
            return
        entry = listeners[0].entry
        if self._has_others(entry):
            return  # they are given what is left
        entry.accept_nothing()
        until = min(monotonic() + ARRIVAL_SECONDS, plan.until)
        for worker in self._workers:
            if not worker.is_here:
                # What it was about to hand on, it has handed on when it comes to this.
                ask(worker.send, lambda: None, lambda: plan.is_called_off)(until - monotonic())
        while admission.turns is turns and admission.state in SERVES and monotonic() < until:
            if not (turns.waiting or admission.expected):
                return
            gevent.sleep(QUEUE_LOOK_SECONDS)

    def _linger(self, plan: DrainPlan) -> None:
        """Begin the end of connections in use; its clones have their turns still.

        What is idle makes room for what waits in the accept queue, if the server is full.
        """
        plan.lingers = True
        self._admission.linger()
        for worker in self._workers:
            if worker.is_here:
                begin(worker, plan)
            else:
                worker.send(functools.partial(begin, worker, plan))

    def end(self, plan: DrainPlan, state: State) -> None:
        """Leave for *state*, and see to the end of its handlers, and of its threads."""
        workers = [*self._workers]
        turns, home = self._admission.turns, workers[0]
        watchdog = None if turns is None else turns.watchdog
        here = [worker for worker in workers if worker.is_here]
        if state is State.DRAINING:
            self._admission.close(state)  # replies say so from now on
        dispatcher = home.dispatcher
        home_ends = None
        if dispatcher is not None and home not in here:
            # Asked before it leaves, and is not to be reached any more.
            wait = functools.partial(wait_for_handlers, home, plan)
            home_ends = ask(
                dispatcher.send,
                wait,
                lambda: plan.is_called_off or dispatcher.is_dead or monotonic() >= plan.last,
            )
        if state is State.STOPPED:
            self._server.close()
        else:
            self._leave(state)
        plan.lingers = False  # not before: what comes after the deadline would not be killed
        for worker in workers:
            if worker not in here:
                finish(worker, plan)
        for worker in here:
            wait_for_handlers(worker, plan)
            finish(worker, plan.again())
            if worker.thread is None and worker.has_callers:
                gevent.spawn(wait_for_handlers, worker, plan.again())
        if home_ends is not None:
            home_ends(None)
        threads = [worker.thread for worker in workers if worker not in here and worker.thread]
        if turns is not None and turns.is_closed and watchdog is not None:
            threads.append(watchdog.thread_of_its_own)
        for thread in threads:
            if not self._wait_for(thread, plan):
                with REGISTRY.reserve.lend():  # for the log's file
                    log.error(
                        "%s: the thread %r is blocked, and ends when it isn't",
                        self._server,
                        thread.name,
                    )

    def _wait_for(self, thread: HubThread, plan: DrainPlan) -> bool:
        # Unless a handler there waits for the same end: its thread ends after it.
        workers = [worker for worker in self._workers if worker.thread is thread]
        until, active = plan.last, sum(worker.active for worker in workers)
        while monotonic() < until:
            if plan.is_called_off or any(worker.has_callers for worker in workers):
                return True
            before, active = active, sum(worker.active for worker in workers)
            if active < before:  # it isn't blocked: thousands that were killed take their time
                until = max(until, monotonic() + 2 * KILL_SECONDS)
            left = until - monotonic()
            if thread.wait(max(0.001, min(CALLERS_LOOK_SECONDS, left))):
                return True
        return thread.has_ended
