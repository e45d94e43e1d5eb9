"""Rolling: how a server is changed, while it runs, without a connection lost.

A `Rolling` is one server's. It changes handlers, and the number of clones, one thing at a time:
who wants the next change waits. A clone that gets another handler stays where it is in the
ring, so there is no moment without it; what comes after the change is the new one's, and only
what the old one still does is waited for. A clone that goes leaves the ring first, drains, and
may come back later, with its counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gevent

from ..accept.listener import Listener
from ..hubs.signals import Answer, FairLock, ask
from ..model.clone import Clone
from ..model.limits import check_count, check_places, check_seconds
from ..model.states import State
from ..model.stats import DrainReport, RollReport
from ..originals import monotonic
from .acceptor import Acceptor
from .drain_worker import FOREVER, KILL_SECONDS, Ending, InUse, Watch

if TYPE_CHECKING:
    from ..server import StreamServer
    from .hub_worker import Branch

__all__ = ["Rolling", "make_handlers"]

Handler = Callable[..., object]

NOTHING = DrainReport(0, 0, 0, 0.0)


class Rolling:
    """The changes of *server*."""

    def __init__(self, server: StreamServer) -> None:
        self.server = server
        #: The clones that went, by index; some may have handlers still.
        self.gone: dict[int, Acceptor] = {}
        self._lock = FairLock()

    def acceptor_of(self, clone: Clone) -> Acceptor | None:
        """Return the acceptor of *clone*, also of one that went."""
        acceptors = self.server._acceptors
        return acceptors[clone] if clone < len(acceptors) else self.gone.get(clone)

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
        server = self.server
        with server._draining.calling(), self._lock:
            acceptors = server._acceptors
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
            server.handler_factory = handler_factory
            return RollReport(tuple(reports), monotonic() - began)

    def replace(
        self, index: int, handle: Handler, timeout: float | None, *, wait: bool
    ) -> DrainReport:
        """See `glb.server.StreamServer.replace_clone`."""
        server = self.server
        server.acceptor_at(index)
        check_seconds("timeout", timeout, may_be_zero=True)
        check_handle(handle)
        with server._draining.calling(), self._lock:
            # It may have gone meanwhile.
            return self._replace(server.acceptor_at(index), handle, timeout, wait=wait)

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
        may_have_old = self.server.handle_by_clone()
        acceptor.handle = handle
        branch = acceptor.branch
        if not wait:
            return NOTHING
        is_kept = not self.server.has_streams

        def is_old(in_use: InUse) -> bool:
            if in_use.acceptor is not acceptor:
                return False
            wait_of = branch.wait_of(in_use.greenlet)
            # Of TLS's handshake, or the first byte, no handler knows yet.
            has_begun = in_use.greenlet is not None and (wait_of is None or wait_of[2] is not None)
            return has_begun or (may_have_old and in_use.greenlet is None)

        ending = Ending(timeout, kill=True, closes_idle=not is_kept, announced=announced)
        return _watch([branch], ending, is_old, until_idle=is_kept)

    # -- clones --------------------------------------------------------------------------------

    def resize(self, clones: int, timeout: float | None) -> DrainReport:
        """See `glb.server.StreamServer.resize`."""
        check_count("clones", clones)
        check_seconds("timeout", timeout, may_be_zero=True)
        server = self.server
        check_places(clones, server.hubs)
        with server._draining.calling(), self._lock:
            if not server._listeners:
                server.clones = clones  # they are made when it starts
                return NOTHING
            if clones >= len(server._acceptors):
                self._grow(clones)
                return NOTHING
            return self._shrink(clones, timeout)

    def fit(self, clones: int) -> None:
        """Have *clones* acceptors, on the branches that there are now. Of a closed server."""
        server = self.server
        acceptors = [*server._acceptors]
        for acceptor in acceptors[clones:]:
            acceptor.enter(State.DRAINING)
            acceptor.enter(State.STOPPED)
            self.gone[acceptor.clone.index] = acceptor
        del acceptors[clones:]
        for index in range(clones):
            if index == len(acceptors):
                acceptors.append(self._come(index, acceptors[-1].handle if acceptors else None))
            else:
                self._settle(acceptors[index])
        server._acceptors = acceptors

    def _come(self, index: int, handle: Handler | None) -> Acceptor:
        server = self.server
        acceptor = self.gone.pop(index, None)
        if acceptor is None:
            acceptor = Acceptor(server, index, server._branches[index % len(server._branches)])
        if handle is not None:
            acceptor.handle = handle
        acceptor.enter(State.STOPPED, after=(State.DRAINING,))  # its handlers may be ending still
        acceptor.enter(State.ACCEPTING)
        self._settle(acceptor)
        return acceptor

    def _settle(self, acceptor: Acceptor) -> None:
        branches = self.server._branches
        acceptor.branch = branch = branches[acceptor.clone.index % len(branches)]
        branch.acceptors[acceptor] = None

    def _grow(self, clones: int) -> None:
        server = self.server
        listeners = server._listeners
        first = len(server._acceptors)
        handlers: list[Handler | None]
        if server.handler_factory is not None:
            handlers = [*make_handlers(server.handler_factory, range(first, clones))]
        else:
            # Where clones have handlers of their own, the last one's.
            handlers = [server._acceptors[-1].handle for _ in range(first, clones)]
        if server._listeners is not listeners:
            server.clones = clones  # it was closed meanwhile
            return
        added: list[Listener] = []
        try:
            for _ in handlers:
                added.append(listeners[0].dup())
        except BaseException:
            server.close_each(added)
            raise
        new = [self._come(first + place, handle) for place, handle in enumerate(handlers)]
        for acceptor, listener in zip(new, added, strict=True):
            branch = acceptor.branch
            if branch.thread is not None:
                listener.belongs_to(branch.thread.ident)
            if branch.dispatcher is not None:
                branch.place(acceptor)
        server._acceptors = [*server._acceptors, *new]
        server._listeners = [*listeners, *added]
        server.clones = clones
        for acceptor in new:
            acceptor.enter(State.ACCEPTING)

    def _shrink(self, clones: int, timeout: float | None) -> DrainReport:
        server = self.server
        going = server._acceptors[clones:]
        for acceptor in going:
            acceptor.enter(State.DRAINING)
            self.gone[acceptor.clone.index] = acceptor
        server._gate.is_ending = True
        left = server._listeners[clones:]
        server._acceptors = server._acceptors[:clones]
        server._listeners = server._listeners[:clones]
        server.clones = clones
        server.close_each(left)
        branches = [*dict.fromkeys(acceptor.branch for acceptor in going)]
        ending = Ending(timeout, kill=True, closes_idle=True)
        try:
            return _watch(branches, ending, lambda each: each.acceptor in going)
        finally:
            for acceptor in going:
                # A server that was ended and started meanwhile may have it back.
                acceptor.enter(State.STOPPED, after=(State.DRAINING,))


def check_handle(handle: object) -> None:
    """Refuse what can't be called."""
    if not callable(handle):
        raise TypeError(f"handle must be callable, got {handle!r}")


def make_handlers(factory: Callable[[int], Handler], indices: range) -> list[Handler]:
    """Return what *factory* makes for the clones *indices*.

    Raises:
        TypeError: Something that can't be called.
    """
    handlers = [factory(index) for index in indices]
    for index, handle in zip(indices, handlers, strict=True):
        if not callable(handle):
            raise TypeError(
                f"handler_factory must return a callable, got {handle!r} for clone {index}"
            )
    return handlers


def _watch(
    branches: Sequence[Branch],
    ending: Ending,
    is_wanted: Callable[[InUse], bool],
    *,
    until_idle: bool = False,
) -> DrainReport:
    """Wait for handlers of several hubs, at the same time, and return what became of them."""

    def run(branch: Branch) -> DrainReport:
        return Watch(branch, ending, is_wanted, until_idle=until_idle).run()

    answers: list[Answer[DrainReport]] = []
    reports: list[DrainReport | None] = []
    here = [branch for branch in branches if branch.is_here]
    for branch in branches:
        if branch not in here and not branch.is_gone:
            answers.append(_ask(branch, run))
    reports += [run(branch) for branch in here]
    for answer in answers:
        # What a hub that is stalled takes longer is not waited for.
        until = ending.until + 2 * KILL_SECONDS
        reports.append(answer(None if until == FOREVER else max(0.0, until - monotonic())))
    found = [report for report in reports if report is not None]
    return DrainReport.total(found, monotonic() - ending.began)


def _ask(branch: Branch, run: Callable[[Branch], DrainReport]) -> Any:
    return ask(branch.send, lambda: run(branch), lambda: branch.is_gone)
