"""Hub workers: a server's part on one hub.

A server has one for each of its hubs: the acceptors that live there, their team in the ring,
and what runs handlers. The first is on the hub that starts the server, each other one on a
`glb.hubs.threads.HubThread` of its own, which ends when the server is closed and its handlers are
done.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol

import gevent
from gevent import GreenletExit, get_hub

from ..accept.dispatcher import Dispatcher
from ..accept.registry import Entry
from ..accept.ring import Team
from ..accept.watchdog import dispatcher_for
from ..hubs.greenlet_pool import Handlers, Job, handlers_here
from ..hubs.threads import HubThread
from ..model.states import State
from ..model.stats import TIMEOUT_KINDS
from ..originals import native_ident
from .idle import IdleConnections, Wait, connection_of
from .sweep import Deadlines

__all__ = ["HubWorker", "InUse", "Served"]

# So many handlers are killed at once, and what they leave is freed, before the next ones are. All
# 18,000 at once kept everything alive until the last had ended, and the garbage collector looked
# through it again and again, for as long as the rest took.
KILLED_AT_ONCE: Final = 256


class Served(Protocol):
    """A clone, as its hub worker sees it: a `glb.serve.acceptor.Acceptor`."""

    server: Any
    worker: HubWorker
    dispatcher: Any
    team: Team[Any]
    is_not_reclaimable: bool
    in_flight: int
    own: State
    spawned: dict[int, Any]

    @property
    def has_miscounted(self) -> bool: ...
    def forget(self) -> None: ...
    def kill_spawned(self, keys: set[int]) -> None: ...
    def look_over(self) -> None: ...
    def lose_count(self) -> None: ...
    def unexpect_locked(self) -> None: ...


class InUse(NamedTuple):
    """A connection that a handler has."""

    greenlet: Any
    acceptor: Served
    #: The handler's arguments: the connection, and its peer.
    args: Any

    @property
    def sock(self) -> Any:
        """The connection, or the TLS socket that has taken it over."""
        return connection_of(self.args)


class HubWorker:
    """A server's part on one hub. The caller closes what it has opened.

    Args:
        index: Which hub of the server's, 0 for the one that starts it.
        callers: See `callers`.
    """

    def __init__(self, index: int, callers: set[object]) -> None:
        self.index: Final = index
        #: Its index, as a part of the number of hubs.
        self.share = 0.0
        #: The clones that live here, and those that did and may have handlers still.
        self.acceptors: dict[Served, None] = {}
        #: Its clones, in the ring; a new one each time it is opened.
        self.team: Team[Any] = Team(admitted=False)
        #: Only while it is open.
        self.dispatcher: Dispatcher | None = None
        self.handlers: Handlers | None = None
        #: Its own, if it isn't on the hub that started the server.
        self.thread: HubThread | None = None
        #: Whether it gives no more turns; it may have handlers still.
        self.is_closed = True
        #: Connections for which it was to run a handler, and those with which that is over:
        #: changed by its own thread alone.
        self.taken = self.done = 0
        #: Connections that were reclaimed from it: changed with the registry's lock held.
        self.reclaimed = 0
        #: Greenlets that run handlers and are not from our pool: for which clone, with what.
        self.unpooled: dict[Any, tuple[Served, Any]] = {}
        #: Greenlets that run accept loops, each with its clone: see `glb.serve.accept_loop`.
        self.loops: dict[Any, Served] = {}
        #: Its connections whose handlers wait for their client, once it was opened.
        self.idle: IdleConnections | None = None
        #: Until when its handlers may be at work on what they are, once it was opened.
        self.deadlines: Deadlines | None = None
        #: How often time was up for a client or a handler, by what was waited for: changed by its
        #: own thread alone.
        self.timeouts: Counter[str] = Counter(dict.fromkeys(TIMEOUT_KINDS, 0))
        #: Called with the arguments of each handler that ends.
        self.watched: list[Callable[[object], object]] = []
        #: Greenlets of any hub that wait for the end of the server's handlers.
        self.callers: Final = callers
        #: Gives its clones no more turns; called in its hub, once it was closed.
        self.leave: Callable[[], object] = lambda: None
        self._is_not_reclaimable = False
        # What was counted when the guard last looked, and what was wrong with it then: ``None`` if
        # nothing was.
        self._seen = (0, 0, 0, 0)
        self._astray: tuple[object, ...] | None = ()
        # Of the thread that runs its hub, also when it is closed: handlers may be there still.
        self._ident: int | None = None

    @property
    def active(self) -> int:
        """Connections for which a handler runs, or is about to."""
        return self.taken - self.done - self.reclaimed

    @property
    def in_flight(self) -> int:
        """Connections that are on their way to its clones."""
        return sum(each.in_flight for each in self.acceptors if each.worker is self)

    @property
    def is_ready(self) -> bool:
        """Whether its hub is there, and turns."""
        dispatcher = self.dispatcher
        return dispatcher is not None and dispatcher.has_loop and dispatcher.has_turns

    # -- opening and closing -------------------------------------------------------------------

    def open(self, entry: Entry, *, is_not_reclaimable: bool, client_timeout: float | None) -> None:
        """Open it on this thread's hub; its clones have no turns yet.

        Args:
            is_not_reclaimable: See `glb.accept.protocols.Member`.
            client_timeout: See `glb.serve.idle.IdleConnections`.

        Raises:
            OSError, RuntimeError: There is no room for a watcher or a thread. It is closed.
        """
        dispatcher = dispatcher_for(entry, get_hub())
        self.handlers = handlers_here()
        self.handlers.acquire()
        if self.idle is not None and self.idle.hub is get_hub():
            self.idle.timeout = client_timeout  # handlers of the last time may wait there still
        else:
            self.idle = IdleConnections(get_hub(), client_timeout, self.timeouts)
            self.deadlines = Deadlines(get_hub())
        # A ring's own from here on; a server that starts again brings a new one.
        self.team = Team(admitted=False)
        with dispatcher.turns.lock:
            dispatcher.servers[self.team] = None
        self.dispatcher = dispatcher
        self._ident = native_ident()
        self._is_not_reclaimable = is_not_reclaimable
        for acceptor in self.acceptors:
            self.place(acceptor)
        self.is_closed = False
        dispatcher.guarded[self] = self.look_over

    def place(self, acceptor: Served) -> None:
        """Have *acceptor*, one of its own, stand with its team. It has no turns yet."""
        acceptor.dispatcher = self.dispatcher
        acceptor.team = self.team
        acceptor.is_not_reclaimable = self._is_not_reclaimable

    def start_thread(
        self,
        name: str,
        opening: Callable[[], object],
        on_system_error: Callable[[BaseException], object],
    ) -> HubThread:
        """Start a thread for it, and return it when *opening*, which opens it, was called there.

        Raises:
            OSError, RuntimeError: There is no room for it. Nothing is left.
        """
        thread = HubThread(name, on_system_error).start()
        try:
            thread.call(opening)
        except BaseException:
            thread.end()
            raise
        self.thread = thread
        return thread

    def close(self, then: Callable[[], object]) -> None:
        """Give no more turns, at once, and call *then* in its hub. From any thread."""
        self.is_closed = True
        dispatcher, self.dispatcher = self.dispatcher, None
        handlers = self.handlers
        if dispatcher is None or handlers is None:
            return
        with dispatcher.turns.lock:
            dispatcher.servers.pop(self.team, None)
            dispatcher.turns.drop([(dispatcher, self.team)])
        left = [dispatcher]

        def leave() -> None:
            if left:
                left.clear()
                dispatcher.guarded.pop(self, None)
                then()
                for each in self._sweeps:
                    if not len(each):
                        each.close()
                handlers.release()
                dispatcher.hold_loop(self, is_held=False)
                dispatcher.detach()

        self.leave = dispatcher.guarded[self] = leave
        dispatcher.run(leave)

    # -- what an exception has left undone -------------------------------------------------------

    def look_over(self) -> None:
        """See to it that what is counted is there: see `glb.hubs.guard`. In a callback of its hub.

        An exception may have struck between the end of a connection and its count. Connections
        that are under way may be counted a moment late, so a difference that stays is one.
        """
        # A connection that was lost between its inbox and its count has changed the last one alone.
        seen = (self.taken, self.done, self.reclaimed, self.in_flight)
        is_quiet, self._seen = seen == self._seen, seen
        for sweep in self._sweeps:
            sweep.look_over()
        if not is_quiet or self.dispatcher is None:
            self._astray = ()
            return
        if self._astray is None:
            return  # nothing has changed since all was right
        for greenlet in [each for each in self.unpooled if each.dead]:
            del self.unpooled[greenlet]
        self._count_arrivals(self.dispatcher)
        for acceptor in self.acceptors:
            if acceptor.worker is self:
                acceptor.look_over()
        in_use = self.in_use()
        busy = {each.acceptor for each in in_use}
        missing = self.active - len(in_use)
        wrong = [each for each in self.acceptors if each not in busy and each.has_miscounted]
        before, self._astray = self._astray, (missing, *wrong)
        if not missing and not wrong:
            self._astray = None
        elif before == self._astray:
            self._astray = None
            self.done += missing
            for acceptor in wrong:
                acceptor.lose_count()
            self.handler_ended(None)

    def _count_arrivals(self, dispatcher: Dispatcher) -> None:
        with dispatcher.turns.lock:
            members = (handed.member for handed in dispatcher.inbox)
            coming = Counter(getattr(each, "acceptor", each) for each in members)
            for acceptor in self.acceptors:
                if acceptor.worker is self:
                    for _ in range(acceptor.in_flight - coming[acceptor]):
                        acceptor.unexpect_locked()

    def end_sweeps(self) -> None:
        """Its handlers are done: leave no timer on its loop."""
        for each in self._sweeps:
            each.close()

    @property
    def _sweeps(self) -> list[IdleConnections | Deadlines]:
        return [each for each in (self.idle, self.deadlines) if each is not None]

    # -- its handlers ----------------------------------------------------------------------------

    def send(self, call: Callable[[], object]) -> bool:
        """Have *call* called in its hub; ``False`` if that is gone. From any thread."""
        thread, dispatcher = self.thread, self.dispatcher
        if thread is not None:
            return thread.send(call)
        return dispatcher is not None and dispatcher.send(call)

    @property
    def is_gone(self) -> bool:
        """Whether its hub is no more, or was never there."""
        if self.thread is not None:
            return self.thread.has_ended
        return self.dispatcher is None or self.dispatcher.is_dead

    @property
    def is_here(self) -> bool:
        """Whether this thread runs its hub, or it never had one."""
        return self._ident in (None, native_ident())

    def handler_ended(self, args: object) -> None:
        """Tell the watchers that a handler is done; with ``None``, that they are to look again."""
        for watcher in [*self.watched]:
            watcher(args)

    def args_of(self, greenlet: Any) -> Any:
        """Return the arguments of the handler that *greenlet* runs here; ``None`` if it doesn't."""
        found = self.unpooled.get(greenlet)
        if found is not None:
            return found[1]
        job = getattr(greenlet, "job", None)
        return job[3] if job is not None and self._is_ours(job) else None

    @property
    def has_callers(self) -> bool:
        """Whether a handler, or an accept loop, here waits for the end of others."""
        return any(each in self.loops or self.args_of(each) is not None for each in [*self.callers])

    def loops_to_end(self, is_wanted: Callable[[InUse], bool] | None) -> list[Any]:
        """Return the accept loops that are to end: all, or with their clones those *is_wanted*."""
        return [
            greenlet
            for greenlet, acceptor in [*self.loops.items()]
            if not greenlet.dead
            and (
                is_wanted is None
                or (acceptor.own is State.DRAINING and is_wanted(InUse(greenlet, acceptor, None)))
            )
        ]

    def wait_of(self, greenlet: Any) -> Wait | None:
        """Return for what client *greenlet* waits, if it does."""
        return None if self.idle is None else self.idle.get(greenlet)

    def in_use(self) -> list[InUse]:
        """Return the connections that handlers have, or that wait for one to begin."""
        handlers = self.handlers
        if handlers is None:
            return []
        running = handlers.running(self._is_ours)
        jobs: Iterable[tuple[Any, Job | None]]
        jobs = itertools.chain(
            ((each, each.job) for each in running),
            ((None, job) for job in [*handlers.jobs] if self._is_ours(job)),
        )
        found = [InUse(each, job[0].__self__, job[3]) for each, job in jobs if job]  # type: ignore[attr-defined]  # a method
        found += [InUse(each, *what) for each, what in self.unpooled.items()]
        for acceptor in self.acceptors:
            found += [InUse(None, acceptor, args) for args in acceptor.spawned.values()]
        return found

    def _is_ours(self, job: Job) -> bool:
        return getattr(job[0], "__self__", None) in self.acceptors

    def kill(self, keys: set[int]) -> None:
        """Kill the handlers whose arguments have these identities; don't wait for their ends.

        Switches:
            While they are killed.
        """
        if self.handlers is None:
            return
        for acceptor in self.acceptors:
            acceptor.kill_spawned(keys)
        self.handlers.drop(lambda job: self._is_ours(job) and id(job[3]) in keys)
        greenlets = [each.greenlet for each in self.in_use() if id(each.args) in keys]
        while greenlets:
            some = [each for each in greenlets[-KILLED_AT_ONCE:] if each is not None]
            del greenlets[-KILLED_AT_ONCE:]
            gevent.killall(some, block=False)
            gevent.sleep(0)  # they have been killed when it returns
            for each in some:
                value = getattr(each, "value", None)
                if isinstance(value, GreenletExit):
                    value.__traceback__ = None

    def forget(self) -> None:
        """Its thread is not in this process, which was forked."""
        self.dispatcher = self.handlers = self.thread = None
        self.is_closed = True
        self.taken = self.done = self.reclaimed = 0
        self.unpooled = {}
        self.loops = {}
        self.idle = self.deadlines = self._ident = None
        for acceptor in self.acceptors:
            acceptor.forget()
