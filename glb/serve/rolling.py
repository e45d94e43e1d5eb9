"""Rolling: how a server is changed, while it runs, without a connection lost.

A `Rolling` is one server's. It changes handlers, and the number of clones, one thing at a time:
the next change waits. A clone that gets another handler keeps its place in the ring, so there is no
moment without it; the new handler has each connection after the change, and only what the old one
still does is waited for. A clone that goes leaves the ring first, drains, and may come back later,
with its counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import gevent

from ..hubs.signals import Answer, FairLock, ask
from ..model.limits import check_count, check_places, check_seconds
from ..model.states import State
from ..model.stats import DrainReport, RollReport
from ..originals import monotonic
from .acceptor import Acceptor
from .clone_set import CloneSet, make_handlers
from .drain import Draining
from .drain_worker import DrainPlan, DrainWorker
from .hooks import Handler, Hooks
from .hub_worker import HubWorker, InUse

__all__ = ["Rolling"]

NOTHING: Final = DrainReport(0, 0, 0, 0.0)


class Rolling:
    """The changes of *server*."""

    def __init__(self, server: Hooks, clones: CloneSet, draining: Draining) -> None:
        self._server: Final = server
        self._clones: Final = clones
        self._draining: Final = draining
        self._lock: Final = FairLock()

    # -- handlers ------------------------------------------------------------------------------

    def roll(
        self,
        handle: Handler | None,
        handler_factory: Callable[[int], Handler] | None,
        timeout: float | None,
        *,
        wait: bool,
    ) -> RollReport:
        """See `glb.server.StreamServer.roll`."""
        check_seconds("timeout", timeout, may_be_zero=True)
        if (handle is None) == (handler_factory is None):
            raise TypeError(
                f"give a handler or a handler_factory, got {handle!r} and {handler_factory!r}"
            )
        if handler_factory is not None and not callable(handler_factory):
            raise TypeError(f"handler_factory must be callable, got {handler_factory!r}")
        if handle is not None:
            check_handle(handle)
        with self._draining.calling(), self._lock:
            acceptors = self._clones.acceptors
            if handler_factory is not None:
                handlers = make_handlers(handler_factory, range(len(acceptors)))
            else:
                assert handle is not None, "one of them is"
                handlers = [handle for _ in acceptors]
            began = monotonic()
            reports = []
            for acceptor, each in zip(acceptors, handlers, strict=True):
                reports.append(self._replace(acceptor, each, timeout, wait=wait, announced=began))
                gevent.sleep(0)  # each looks through all connections
            self._server.handler_factory = handler_factory
            return RollReport(tuple(reports), monotonic() - began)

    def replace(
        self, index: int, handle: Handler, timeout: float | None, *, wait: bool
    ) -> DrainReport:
        """See `glb.server.StreamServer.replace_clone`."""
        self._clones.at(index)
        check_seconds("timeout", timeout, may_be_zero=True)
        check_handle(handle)
        with self._draining.calling(), self._lock:
            # It may have gone meanwhile.
            return self._replace(self._clones.at(index), handle, timeout, wait=wait)

    def _replace(
        self,
        acceptor: Acceptor,
        handle: Handler,
        timeout: float | None,
        *,
        wait: bool,
        announced: float | None = None,
    ) -> DrainReport:
        # What waits to begin may have the old one already.
        may_have_old = self._server.handle_by_clone()
        acceptor.handle = handle
        worker = acceptor.worker
        if not wait:
            return NOTHING
        is_kept = not self._server.has_streams

        def is_old(in_use: InUse) -> bool:
            if in_use.acceptor is not acceptor:
                return False
            wait_of = worker.wait_of(in_use.greenlet)
            # Of TLS's handshake, or the first byte, no handler knows yet.
            has_begun = in_use.greenlet is not None and (wait_of is None or wait_of[2] is not None)
            return has_begun or (may_have_old and in_use.greenlet is None)

        plan = DrainPlan(timeout, kill=True, closes_idle=not is_kept, announced=announced)
        return _watch([worker], plan, is_old, until_idle=is_kept)

    # -- clones --------------------------------------------------------------------------------

    def resize(self, clones: int, timeout: float | None) -> DrainReport:
        """See `glb.server.StreamServer.resize`."""
        check_count("clones", clones)
        check_seconds("timeout", timeout, may_be_zero=True)
        check_places(clones, self._server.hubs)
        with self._draining.calling(), self._lock:
            if not self._clones.listeners:
                self._server.clones = clones  # they are made when it starts
                return NOTHING
            if clones >= len(self._clones):
                self._clones.grow(clones)
                return NOTHING
            return self._shrink(clones, timeout)

    def _shrink(self, clones: int, timeout: float | None) -> DrainReport:
        going = self._clones.shrink(clones)
        workers = [*dict.fromkeys(acceptor.worker for acceptor in going)]
        plan = DrainPlan(timeout, kill=True, closes_idle=True)
        try:
            return _watch(workers, plan, lambda each: each.acceptor in going)
        finally:
            for acceptor in going:
                # A server that was ended and started meanwhile may have it back.
                acceptor.enter(State.STOPPED, after=(State.DRAINING,))


def check_handle(handle: object) -> None:
    """Refuse what can't be called."""
    if not callable(handle):
        raise TypeError(f"handle must be callable, got {handle!r}")


def _watch(
    workers: Sequence[HubWorker],
    plan: DrainPlan,
    is_wanted: Callable[[InUse], bool],
    *,
    until_idle: bool = False,
) -> DrainReport:
    """Wait for handlers of several hubs, at the same time, and return what became of them."""

    def run(worker: HubWorker) -> DrainReport:
        return DrainWorker(worker, plan, is_wanted, until_idle=until_idle).run()

    answers: list[Answer[DrainReport]] = []
    reports: list[DrainReport | None] = []
    here = [worker for worker in workers if worker.is_here]
    for worker in workers:
        if worker not in here and not worker.is_gone:
            answers.append(_ask(worker, run))
    reports += [run(worker) for worker in here]
    for answer in answers:
        # What a hub that is stalled takes longer is not waited for.
        reports.append(answer(plan.last - monotonic()))
    found = [report for report in reports if report is not None]
    return DrainReport.total(found, monotonic() - plan.began)


def _ask(worker: HubWorker, run: Callable[[HubWorker], DrainReport]) -> Any:
    return ask(worker.send, lambda: run(worker), lambda: worker.is_gone)
