"""Workers: the hub workers of one server, one for each of its hubs.

They are changed while the server is closed, or opens. Other threads read them meanwhile, so a
change replaces the list.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from gevent import get_hub

from ..accept.dispatcher import Dispatcher
from ..accept.registry import Entry
from ..accept.ring import Team
from ..hubs.crossings import Crossings
from ..originals import native_ident
from .drain_worker import DrainPlan, finish
from .hooks import Turn, TurnOfThread
from .hub_worker import HubWorker

__all__ = ["Workers"]


class Workers:
    """The hub workers of one server, the one of its first hub first."""

    def __init__(self) -> None:
        self.all: Sequence[HubWorker] = ()
        #: What the server does at this moment in this thread.
        self.turn = Turn()
        #: Greenlets of any hub that wait for the end of the server's handlers.
        self.callers: Final[set[object]] = set()
        self._crossings: Crossings | None = None

    def __iter__(self) -> Iterator[HubWorker]:
        return iter(self.all)

    def __getitem__(self, index: int) -> HubWorker:
        return self.all[index]

    def __len__(self) -> int:
        return len(self.all)

    @property
    def here(self) -> HubWorker | None:
        """The one of this thread's hub."""
        return self.turn.worker

    @property
    def home(self) -> Dispatcher | None:
        """The dispatcher of the first hub, while the server is open."""
        return next((each.dispatcher for each in self.all if each.dispatcher is not None), None)

    @property
    def active(self) -> int:
        """Connections for which a handler runs, or is about to."""
        return sum(worker.active for worker in self.all)

    def opened(self) -> list[tuple[Dispatcher, Team[Any]]]:
        """Return the dispatchers of the hubs, while the server is open, with its clones there."""
        return [(each.dispatcher, each.team) for each in self.all if each.dispatcher is not None]

    def loop_here(self) -> Any:
        """Return the loop of this thread, if it is a worker's own."""
        ident = native_ident()
        threads = (worker.thread for worker in self.all[1:])
        return next((each.hub.loop for each in threads if each and each.ident == ident), None)

    # -- opening and closing -------------------------------------------------------------------

    def fit(self, hubs: int) -> None:
        """Have *hubs* of them, while the server is closed.

        Handlers of the last time may run still, so the workers that count them are kept.
        """
        if hubs > 1 and not isinstance(self.turn, TurnOfThread):
            worker, self.turn = self.turn.worker, TurnOfThread()
            self.turn.worker = worker
        workers = [*self.all[:hubs]]
        workers += [HubWorker(index, self.callers) for index in range(len(workers), hubs)]
        for worker in workers:
            worker.share = worker.index / hubs
        self.all = workers

    def open(self, entry: Entry, *, is_not_reclaimable: bool, client_timeout: float | None) -> None:
        """Open all of them, the first on this thread's hub; their clones have no turns yet.

        Args:
            is_not_reclaimable: See `glb.accept.protocols.Member`.
            client_timeout: See `glb.serve.idle.IdleConnections`.

        Raises:
            OSError, RuntimeError: There is no room for a watcher or a thread. All are closed.
        """
        self._renew()

        def open_here(worker: HubWorker) -> None:
            worker.open(entry, is_not_reclaimable=is_not_reclaimable, client_timeout=client_timeout)
            self.turn.worker = worker

        try:
            for worker in self.all:
                opening = functools.partial(open_here, worker)
                if worker.index == 0:
                    opening()
                    continue
                name = f"glb hub {worker.index} of {entry.address!r}"
                thread = worker.start_thread(name, opening, self._system_error)
                thread.at_exit = functools.partial(_end_at_exit, worker)
        except BaseException:
            for worker in self.all:
                _end_at_exit(worker)
            raise

    def _renew(self) -> None:
        # Their threads may be about to end still, since the server was closed.
        workers = [*self.all]
        for index, worker in enumerate(workers):
            if worker.thread is not None:
                workers[index] = renewed = HubWorker(index, self.callers)
                renewed.share = worker.share
                renewed.timeouts.update(worker.timeouts)
                for acceptor in worker.acceptors:
                    if acceptor.worker is worker:
                        acceptor.worker = renewed
                        renewed.acceptors[acceptor] = None
        self.all = workers

    def _system_error(self, error: BaseException) -> None:
        # What would end the program in its main hub ends it from any other, too.
        home = self.home
        if home is not None:
            hub: Any = home.hub
            home.send(lambda: hub.handle_system_error(type(error), error))

    def watch_crossings(self, server: str) -> None:
        """Report what greenlets of one hub do to another's, while *server* has several."""
        self._crossings = crossings = Crossings(server)
        for worker in self.all:
            thread = worker.thread
            hub = get_hub() if thread is None else thread.hub
            where = "which started the server" if thread is None else f"in thread {thread.name!r}"
            name = f"hub {worker.index} (<Hub at {id(hub):#x}>, {where})"
            crossings.watch(hub, name, worker.send)

    def end_crossings(self) -> None:
        """Report no more of that."""
        if self._crossings is not None:
            self._crossings.end()

    def close(self, then: Callable[[], object]) -> None:
        """Give no more turns, at once, and call *then* in each hub. From any thread."""
        for worker in self.all:
            worker.close(then)


def _end_at_exit(worker: HubWorker) -> None:
    worker.close(lambda: None)
    finish(worker, DrainPlan(0, kill=True))
