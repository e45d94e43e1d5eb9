"""Draining: how a server comes to its end, on all of its hubs.

A `Draining` is one server's. `Draining.drain` is the gentle end: it closes what is idle and lets
handlers finish, empties the accept queue meanwhile, if no other server has the address, and leaves.
`Draining.end` is what that has in common with a stop: the handlers of every hub are seen to in
that hub, at the same time, and the hubs' threads end after them.

Whoever waits here for handlers to end is a *caller*. If it is a handler itself, it is not waited
for: see `Draining.calling`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import gevent
from gevent import getcurrent

from ..accept.descriptor import is_adopted
from ..accept.registry import REGISTRY
from ..hubs.signals import Signal, ask
from ..hubs.threads import HubThread
from ..model.states import PAUSES, State
from ..model.stats import DrainReport
from ..net.sockets import is_loopback, is_readable
from ..originals import monotonic
from .drain_worker import KILL_SECONDS, Ending

if TYPE_CHECKING:
    from ..server import StreamServer

__all__ = ["LINGER_SECONDS", "Draining"]

log: Final = logging.getLogger("glb")

# The states in which it has turns, or will have again.
SERVES: Final = (State.ACCEPTING, *PAUSES)

# With the last server of an address: so long, at most, for those whom the kernel has let in. As a
# rule they are served in a moment; only if the server is full they wait.
LINGER_SECONDS: Final = 1.0

# With nobody new let in, so long for handshakes that have begun: a way there and back between
# continents. On a loopback address there are none.
HANDSHAKE_SECONDS: Final = 0.3

# How often it is looked whether the accept queue is empty: once a round of a hub's loop, about.
QUEUE_LOOK_SECONDS: Final = 0.005

# How often who waits for a thread looks whether somebody there waits for the same.
CALLERS_LOOK_SECONDS: Final = 0.1


class _Drain:
    """A drain that goes on, for who waits for its end."""

    def __init__(self, ending: Ending) -> None:
        self.ending: Final = ending
        self.over: Final = Signal()
        self.report = DrainReport(0, 0, 0, 0.0)


class Draining:
    """The end of *server*."""

    def __init__(self, server: StreamServer) -> None:
        self.server = server
        #: Greenlets that wait for its handlers to end.
        self.callers: set[object] = set()
        self._drain: _Drain | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a drain goes on."""
        return self._drain is not None

    def call_off(self) -> None:
        """Somebody has closed the server: a drain waits for its handlers no longer."""
        drain, self._drain = self._drain, None
        if drain is not None:
            drain.ending.is_called_off = True
            drain.over.set()

    @contextlib.contextmanager
    def calling(self) -> Iterator[None]:
        """In this block the greenlet waits for handlers to end: its own is not waited for."""
        greenlet = getcurrent()
        if greenlet in self.callers:
            yield
            return
        self.callers.add(greenlet)
        try:
            branch = self.server.branch_here
            if branch is not None:
                branch.handler_ended(None)  # who waits already counts one less
            yield
        finally:
            self.callers.discard(greenlet)

    def stop(self, timeout: float) -> None:
        """Stop. A drain that is under way has no longer than *timeout* seconds from now on."""
        drain = self._drain
        with self.calling():
            if drain is None:
                self.end(Ending(timeout, kill=True), State.STOPPED)
            else:
                drain.ending.hasten(timeout)
                drain.over.wait(None)
                if drain.ending.is_called_off:  # by a close, in another thread
                    self.end(Ending(timeout, kill=True), State.STOPPED)

    def drain(self, ending: Ending, linger: float) -> DrainReport:
        """See `glb.server.StreamServer.drain`."""
        with REGISTRY.lock:
            drain, is_first = self._drain, self._drain is None
            if drain is None:
                self._drain = drain = _Drain(ending)
        with self.calling():
            if is_first:
                self._run(drain, ending.began + linger)
            else:
                drain.over.wait(None)
        return drain.report

    def _run(self, drain: _Drain, linger_until: float) -> None:
        server, ending = self.server, drain.ending
        branches = [*server._branches]
        before = [branch.done for branch in branches]
        try:
            try:
                self._empty_accept_queue(ending, linger_until)
                if not ending.is_called_off:
                    self.end(ending, State.DRAINING)
            except BaseException:
                ending.is_called_off = True  # what hubs have begun of it ends
                raise
            finally:
                if self._drain is drain:  # no close has called it off
                    self._drain = None  # nor does this one, where a hub is late
                    server.close()
        finally:
            # Of a hub that is late this is what has become of its connections until now.
            watches = [branch.watch for branch in branches if branch.watch is not None]
            reports = [watch.report for watch in watches]
            total = DrainReport.total(reports, monotonic() - ending.began)
            # Those that ended before anybody watched have finished, too.
            done = sum(branch.done - begun for branch, begun in zip(branches, before, strict=True))
            others = sum(watch.ended_otherwise for watch in watches)
            drain.report = total._replace(finished=max(0, done - others))
            drain.over.set()

    def _empty_accept_queue(self, ending: Ending, until: float) -> None:
        server, gate = self.server, self.server._gate
        turns, listeners = gate.turns, server._listeners
        if turns is None or not listeners or monotonic() >= until:
            return
        entry = listeners[0].entry
        handed_in = getattr(server._handed_in, "_sock", None)
        if entry.clones > len(listeners) + is_adopted(handed_in):
            return  # others serve who waits there
        is_shut = entry.refuse_newcomers()
        began = monotonic()
        # Who has the kernel's answer is in, as far as it knows, and is in the queue when its own
        # answer has come.
        shaken_by = began + HANDSHAKE_SECONDS * (is_shut and not is_loopback(entry.pristine))
        while gate.turns is turns and gate.state in SERVES:
            if monotonic() >= min(until, ending.until):
                return
            is_empty = not (turns.waiting or gate.expected or is_readable(entry.pristine))
            if is_empty and monotonic() >= shaken_by:
                return
            if not ending.lingers:
                self._linger(ending)
            gevent.sleep(QUEUE_LOOK_SECONDS)

    def _linger(self, ending: Ending) -> None:
        """Begin the end of connections in use; its clones have their turns still.

        What is idle makes room for what waits in the accept queue, if the server is full.
        """
        ending.lingers = True
        self.server._gate.linger()
        for branch in self.server._branches:
            if branch.is_here:
                branch.begin(ending)
            else:
                branch.send(functools.partial(branch.begin, ending))

    def end(self, ending: Ending, state: State) -> None:
        """Leave for *state*, and see to the end of its handlers, and of its threads."""
        server = self.server
        branches = [*server._branches]
        turns, home = server._gate.turns, branches[0]
        standby = None if turns is None else turns.standby
        here = [branch for branch in branches if branch.is_here]
        if state is State.DRAINING:
            server._gate.close(state)  # replies say so from now on
        dispatcher = home.dispatcher
        home_ends = None
        if dispatcher is not None and home not in here:
            # Asked before it leaves, and is not to be reached any more.
            wait = functools.partial(home.wait, ending)
            home_ends = ask(
                dispatcher.send,
                wait,
                lambda: ending.is_called_off or dispatcher.is_dead or monotonic() >= last(ending),
            )
        if state is State.STOPPED:
            server.close()
        else:
            server.leave(state)
        ending.lingers = False  # not before: what comes after the deadline would not be killed
        for branch in branches:
            if branch not in here:
                branch.finish(ending)
        for branch in here:
            branch.wait(ending)
            branch.finish(ending.again())
            if branch.thread is None and branch.has_callers:
                gevent.spawn(branch.wait, ending.again())
        if home_ends is not None:
            home_ends(None)
        threads = [branch.thread for branch in branches if branch not in here and branch.thread]
        if turns is not None and turns.is_closed and standby is not None:
            threads.append(standby.thread_of_its_own)
        for thread in threads:
            if not self._wait_for(thread, ending):
                with REGISTRY.reserve.lend():  # for the log's file
                    log.error(
                        "%s: the thread %r is blocked, and ends when it isn't", server, thread.name
                    )

    def _wait_for(self, thread: HubThread, ending: Ending) -> bool:
        # Unless a handler there waits for the same end: its thread ends after it.
        branches = [branch for branch in self.server._branches if branch.thread is thread]
        until, active = last(ending), sum(branch.active for branch in branches)
        while monotonic() < until:
            if ending.is_called_off or any(branch.has_callers for branch in branches):
                return True
            before, active = active, sum(branch.active for branch in branches)
            if active < before:  # it isn't blocked: thousands that were killed take their time
                until = max(until, monotonic() + 2 * KILL_SECONDS)
            left = until - monotonic()
            if thread.wait(max(0.001, min(CALLERS_LOOK_SECONDS, left))):
                return True
        return thread.has_ended


def last(ending: Ending) -> float:
    """Return until when to wait for hubs that may be stalled, on `time.monotonic`'s clock."""
    return ending.until + 2 * KILL_SECONDS
