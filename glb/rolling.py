"""Rolling: how a running server is changed, without a connection lost.

A `Rolling` is one server's. It changes handlers, and the number of clones, one thing at a time:
who wants the next change waits. A clone that gets another handler stays where it is in the
ring, so there is no moment without it; what comes after the change is the new one's, and only
what the old one still does is waited for. A clone that goes leaves the ring first, drains, and
may come back later, with its counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from gevent.lock import RLock

from .acceptor import Acceptor
from .branch import KILL_SECONDS
from .clones import Clone
from .ending import FOREVER, Ending, InUse
from .hubs import ask
from .limits import check_count, check_places, check_seconds
from .listener import Listener
from .states import State
from .stats import DrainReport, RollReport

if TYPE_CHECKING:
    from .branch import Branch
    from .server import StreamServer

__all__ = ["Rolling", "make_handlers"]

Change = tuple[Acceptor, Callable[..., object]]

NOTHING = DrainReport(0, 0, 0, 0.0)


class Rolling:
    """The changes of *server*."""

    def __init__(self, server: StreamServer) -> None:
        self.server = server
        #: The clones that are about to go.
        self.leaving: set[Clone] = set()
        self._lock = RLock()
        # Those that went, by index.
        self._gone: dict[int, Acceptor] = {}

    def acceptor_of(self, clone: Clone) -> Acceptor | None:
        """Return the acceptor of *clone*, also of one that is about to go."""
        acceptors = self.server._acceptors
        return acceptors[clone] if clone < len(acceptors) else self._gone.get(clone)

    # -- handlers ------------------------------------------------------------------------------

    def roll(
        self,
        handle: Callable[..., object] | None,
        handler_factory: Callable[[int], Callable[..., object]] | None,
        timeout: float | None,
        *,
        wait: bool,
    ) -> RollReport:
        """See `glb.server.StreamServer.roll`."""
        if (handle is None) == (handler_factory is None):
            raise TypeError(
                f"give a handler or a handler_factory, got {handle!r} and {handler_factory!r}"
            )
        if handler_factory is not None and not callable(handler_factory):
            raise TypeError(f"handler_factory must be callable, got {handler_factory!r}")
        with self._lock:
            acceptors = self.server._acceptors
            if handler_factory is None:
                assert handle is not None, "one of them is"
                changes = [(each, handle) for each in acceptors]
            else:
                handlers = make_handlers(handler_factory, range(len(acceptors)))
                changes = [*zip(acceptors, handlers, strict=True)]
            report = self.replace(changes, timeout, wait=wait)
            self.server.handler_factory = handler_factory
            return report

    def replace(
        self, changes: Sequence[Change], timeout: float | None, *, wait: bool
    ) -> RollReport:
        """Give each clone its new handler, and wait for what the old one does."""
        check_seconds("timeout", timeout, may_be_zero=True)
        for acceptor, handle in changes:
            if not callable(handle):
                raise TypeError(f"handle must be callable, got {handle!r} for {acceptor.clone!r}")
        with self._lock:
            began = monotonic()
            reports = []
            for acceptor, handle in changes:
                # What waits to begin may have the old one already.
                was_common = self.server.handle_by_clone()
                acceptor.handle = handle
                if wait:
                    reports.append(self._finish_old(acceptor, timeout, also_queued=was_common))
                else:
                    reports.append(NOTHING)
            return RollReport(tuple(reports), monotonic() - began)

    def _finish_old(
        self, acceptor: Acceptor, timeout: float | None, *, also_queued: bool
    ) -> DrainReport:
        migrates = not self.server.has_streams

        def is_old(in_use: InUse) -> bool:
            has_begun = in_use.greenlet is not None
            return in_use.acceptor is acceptor and (has_begun or also_queued)

        ending = Ending(timeout, kill=True, closes_idle=not migrates)
        return _wait_there(
            acceptor.branch,
            ending,
            lambda branch: branch.wait_for(ending, is_old, until_idle=migrates),
        )

    # -- clones --------------------------------------------------------------------------------

    def resize(self, clones: int, timeout: float | None) -> DrainReport:
        """See `glb.server.StreamServer.resize`."""
        check_count("clones", clones)
        check_seconds("timeout", timeout, may_be_zero=True)
        server = self.server
        check_places(clones, server.hubs)
        with self._lock:
            if not server._listeners:
                server.clones = clones  # they are made when it starts
                return NOTHING
            if clones >= len(server._acceptors):
                self._grow(clones)
                return NOTHING
            return self._shrink(clones, timeout)

    def _grow(self, clones: int) -> None:
        server = self.server
        listeners = server._listeners
        handlers: list[Callable[..., object] | None]
        indices = range(len(server._acceptors), clones)
        if server.handler_factory is not None:
            handlers = [*make_handlers(server.handler_factory, indices)]
        else:
            # Where clones have handlers of their own, the last one's.
            handlers = [server._acceptors[-1].handle for _ in indices]
        if server._listeners is not listeners:
            server.clones = clones  # it was closed meanwhile
            return
        added: list[Listener] = []
        try:
            for _ in handlers:
                added.append(listeners[0].dup())
        except BaseException:
            for listener in added:
                listener.close()
            raise
        acceptors = [*server._acceptors]
        for handle in handlers:
            index = len(acceptors)
            branch = server._branches[index % server.hubs]
            acceptor = self._gone.pop(index, None) or Acceptor(server, index, branch)
            if handle is not None:
                acceptor.handle = handle
            if acceptor.branch is not branch or acceptor not in branch.acceptors:
                acceptor.branch = branch
                branch.acceptors.append(acceptor)
            if branch.dispatcher is not None:
                branch.place(acceptor)
            if branch.thread is not None:
                added[index - len(server._acceptors)].belongs_to(branch.thread.ident)
            acceptors.append(acceptor)
        first = len(server._acceptors)
        server._acceptors, server._listeners = acceptors, [*listeners, *added]
        server.clones = clones
        for acceptor in acceptors[first:]:
            acceptor.enter(State.ACCEPTING)

    def _shrink(self, clones: int, timeout: float | None) -> DrainReport:
        server = self.server
        going = server._acceptors[clones:]
        for acceptor in going:
            acceptor.enter(State.DRAINING)
            self._gone[acceptor.clone.index] = acceptor
            self.leaving.add(acceptor.clone)
        server._gate.is_ending = True
        left = server._listeners[clones:]
        server._acceptors = server._acceptors[:clones]
        server._listeners = server._listeners[:clones]
        server.clones = clones
        for listener in left:
            listener.close()
        began = monotonic()
        ending = Ending(timeout, kill=True, closes_idle=True)
        try:
            waits = [
                _start_there(
                    branch,
                    lambda branch: branch.wait_for(
                        ending, lambda each: each.acceptor in going, until_idle=False
                    ),
                )
                for branch in server._branches
                if any(acceptor.branch is branch for acceptor in going)
            ]
            reports = [wait(_time_left(ending)) or NOTHING for wait in waits]
        finally:
            for acceptor in going:
                acceptor.enter(State.STOPPED)
                self.leaving.discard(acceptor.clone)
            server._gate.is_ending = server.is_draining or bool(self.leaving)
        return DrainReport.total(reports, monotonic() - began)


def make_handlers(
    factory: Callable[[int], Callable[..., object]], indices: range
) -> list[Callable[..., object]]:
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


def _start_there(
    branch: Branch, call: Callable[[Branch], DrainReport]
) -> Callable[[float | None], DrainReport | None]:
    if branch.is_here:
        return lambda _timeout: call(branch)
    return ask(branch.send, lambda: call(branch))


def _wait_there(
    branch: Branch, ending: Ending, call: Callable[[Branch], DrainReport]
) -> DrainReport:
    return _start_there(branch, call)(_time_left(ending)) or NOTHING


def _time_left(ending: Ending) -> float | None:
    # What a hub that is stalled takes longer is not waited for.
    until = ending.until
    return None if until == FOREVER else max(0.0, until - monotonic()) + 2 * KILL_SECONDS
