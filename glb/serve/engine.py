"""The engine: what stands behind a server.

It owns the hub workers, the clones, and what changes them: admission, drain, rolling. It knows the
server by its hooks alone (see `glb.serve.hooks`), and opens and closes all of it in one order.

A program has no need of it. It may change with each version.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from ..accept.registry import REGISTRY
from ..model.states import PAUSES, State
from ..originals import native_ident
from .accept_loop import start_loops
from .admission import Admission
from .clone_set import CloneSet, give_to_threads
from .drain import Draining
from .drain_worker import DrainPlan, finish
from .hooks import Hooks
from .rolling import Rolling
from .spawning import Spawning
from .workers import Workers

if TYPE_CHECKING:
    from ..accept.dispatcher import Dispatcher
    from ..model.clone import Clone
    from .idle import IdleConnections

__all__ = ["Engine"]


class Engine:
    """What stands behind *server*. It has its clones, and is not open.

    Args:
        on_room: gevent's hook of the server's, which a pool's semaphore calls.

    Raises:
        TypeError, ValueError: Its numbers of clones and hubs don't fit.
    """

    def __init__(self, server: Hooks, on_room: Callable[[object], object]) -> None:
        self._server: Final = server
        self.workers: Final = Workers()
        self.spawning: Final = Spawning()
        self.admission: Final = Admission(server, self.workers, self.spawning, on_room)
        self.clones: Final = CloneSet(server, self.workers, self.admission)
        self.draining: Final = Draining(
            server, self.workers, self.admission, self.clones, self.leave
        )
        self.rolling: Final = Rolling(server, self.clones, self.draining)
        self.clones.fit()

    @property
    def idle_here(self) -> IdleConnections | None:
        """The connections of this thread's hub that wait for their client."""
        worker = self.workers.here
        return None if worker is None else worker.idle

    def count_timeout(self, kind: str) -> None:
        """Note that time was up, on this thread's hub, for what *kind* says."""
        worker = self.workers.here
        if worker is not None:
            worker.timeouts[kind] += 1

    def is_ending(self, clone: Clone | None) -> bool:
        """Whether the connections of *clone* are to end when nothing is under way on them."""
        return self.admission.is_drained or (clone is not None and clone >= len(self.clones))

    # -- opening and closing -------------------------------------------------------------------

    def check_start(self) -> None:
        """Refuse to open the server here, or now.

        Raises:
            RuntimeError: It can't start from its own thread, or while it drains.
        """
        if any(worker.thread is not None and worker.is_here for worker in self.workers):
            raise RuntimeError(
                f"{self._server} can't start on a hub of its own: start it from another"
            )
        if self.draining.is_under_way:
            raise RuntimeError(f"{self._server} is draining: it can start when that is over")

    def start_accepting(self, *, hooks_are_ours: bool) -> bool:
        """Let the clones have turns; tell whether it has opened the workers for that.

        Args:
            hooks_are_ours: Whether no program's hook stands between an accept and its handler.
                Then handler greenlets let go of connections that they have not begun: see
                `glb.serve.acceptor.Acceptor.reclaim`.
        """
        admission, clones, server = self.admission, self.clones, self._server
        if admission.starts_again():
            return False
        if not clones.listeners:
            server.socket  # noqa: B018  # AttributeError, as gevent, of a server that isn't open
            if admission.state is State.DRAINING:
                return False
            clones.open()
        listeners = clones.listeners
        if admission.turns is None:
            clones.renew_handlers()
            # Making them may have taken a while: the server may be closed, or started, since.
            if clones.listeners is not listeners:
                return False
        is_first = admission.turns is None
        if is_first:
            entry = listeners[0].entry
            self.workers.open(
                entry,
                is_not_reclaimable=not hooks_are_ours,
                client_timeout=server.first_byte_timeout,
            )
            give_to_threads(clones.acceptors, listeners)
            home = self.workers.home
            assert home is not None, "the first worker was opened"
            if len(self.workers) > 1:
                _forked.add(self)
                self.workers.watch_crossings(str(server))
            clones.add_loops(clones.acceptors, listeners)
            with REGISTRY.lock:  # or the guard of a hub would have its own stand before others
                admission.open(entry.turns, home, is_ending=bool(clones.gone))
                for acceptor in clones.acceptors:
                    acceptor.join(entry.turns)
        admission.enter(State.ACCEPTING)
        if is_first:
            start_loops(clones.acceptors)
        return is_first

    def close(self, stopped: Callable[[], object]) -> None:
        """Stop, and close every clone and what was handed in; call *stopped* in the first hub.

        The threads of other hubs end when the handlers there are done. A drain that is under way
        waits for them no longer.
        """
        self.draining.call_off()
        self.leave(State.STOPPED, stopped)
        for worker in self.workers:
            finish(worker, DrainPlan(None, kill=False, leaves_callers=False))

    def leave(self, state: State, stopped: Callable[[], object] | None = None) -> None:
        """Leave the turns and the address, for *state*. What the handlers do goes on."""
        self.admission.close(state)
        self.workers.end_crossings()
        close_listeners = self.clones.take_listeners()
        home = self.workers.home
        if stopped is not None and (home is None or home.is_here):
            stopped()
        try:
            self.workers.close(functools.partial(self._left, home, stopped))
        finally:
            close_listeners()

    def _left(self, home: Dispatcher | None, stopped: Callable[[], object] | None) -> None:
        # Called in each hub. What waits for the end of the server waits in the first.
        if home is not None and home.is_here:
            if stopped is not None:
                stopped()
            self.admission.leave(home)

    def keep_this_thread(self) -> None:
        """Forget the workers whose hubs are not in this process, which was forked."""
        ident = native_ident()
        for worker in self.workers:
            if worker.dispatcher is None or worker.dispatcher.thread != ident:
                worker.forget()
        # Their clones were closed; accept by one that wasn't.
        plain: list[Any] = [getattr(each, "_sock", None) for each in self.clones.listeners]
        kept = [each for each in plain if each is not None and each.fileno() >= 0]
        if kept and self._server.socket not in kept:
            self._server.socket = kept[0]
        with REGISTRY.lock:
            self.admission.expected = 0
            for acceptor in self.clones.acceptors:
                acceptor.in_flight = 0
        if self.admission.state in PAUSES:
            self.admission.accept_again()


# -- fork -------------------------------------------------------------------------------------

#: The engines of servers of which a forked child has a part only.
_forked: Final[WeakSet[Engine]] = WeakSet()


def _after_fork_in_child() -> None:
    for engine in [*_forked]:
        engine.keep_this_thread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
