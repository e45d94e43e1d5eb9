"""Branches: a server's part on one hub.

A server has one for each of its hubs: the acceptors that live there, their team in the ring,
and what runs handlers. The first is on the hub that starts the server, each other one on a
`glb.hubs.threads.HubThread` of its own, which ends when the server is closed and its handlers are
done.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import gevent
from gevent import Greenlet, GreenletExit, get_hub

from ..accept.dispatcher import Dispatcher
from ..accept.registry import Entry
from ..accept.ring import Team
from ..accept.watchdog import dispatcher_for
from ..hubs.greenlet_pool import Handlers, Job, handlers_here
from ..hubs.threads import HubThread
from ..model.stats import DrainReport
from ..originals import native_ident
from .drain_worker import Ending, InUse, Watch
from .idle import Wait, Waiting

if TYPE_CHECKING:
    from .acceptor import Acceptor

__all__ = ["Branch", "Hub"]

# So many handlers are killed at once, and what they leave is freed, before the next ones are. All
# 18,000 at once kept everything alive until the last had ended, and the garbage collector looked
# through it again and again, for as long as the rest took.
KILLED_AT_ONCE: Final = 256


class Hub(NamedTuple):
    """A hub of a server, as other threads may know it.

    Attributes:
        thread: The native ident of its thread.
        send: Has something called in it, from any thread; ``False`` if it has ended.
    """

    thread: int
    send: Callable[[Callable[[], object]], bool]


class Branch:
    """A server's part on one hub. The caller closes what it has opened.

    Args:
        callers: See `callers`.
        share: Its index, as a part of their number.
    """

    def __init__(self, index: int, callers: set[object], share: float = 0.0) -> None:
        #: Which hub of the server's, 0 for the one that started it.
        self.index: Final = index
        #: Its share of the hubs before it: 0 to 1.
        self.share = share
        #: Those that live here, and those that did, and may have handlers still.
        self.acceptors: dict[Acceptor, None] = {}
        #: Its clones, in the ring; a new one each time it is opened.
        self.team: Team[Any] = Team(seated=False)
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
        #: Connections that were taken back from it: changed with the registry's lock held.
        self.given_up = 0
        #: Greenlets that run handlers, and that ours aren't: for which clone, and with what.
        self.strangers: dict[Any, tuple[Acceptor, Any]] = {}
        #: Its connections whose handlers wait for their client, once it was opened.
        self.waiting: Waiting | None = None
        #: Who is told of each handler's end, by its arguments.
        self.watched: list[Callable[[object], object]] = []
        #: Greenlets of any hub that wait for the end of others' handlers: the server's.
        self.callers: Final = callers
        #: What counts what becomes of its connections, since a drain has begun.
        self.watch: Watch | None = None
        # What carries out an ending that began before it is waited for: see `begin`.
        self._begun: tuple[Ending, Greenlet[..., DrainReport]] | None = None
        self._is_out_of_reach = False
        # What was counted when the guard last looked, and what was wrong with it then: ``None`` if
        # nothing was.
        self._seen = (0, 0, 0, 0)
        self._astray: tuple[object, ...] | None = ()
        # Of the thread that runs its hub, also when it is closed: handlers may be there still.
        self._ident: int | None = None
        self._leave: Callable[[], object] = lambda: None

    @property
    def active(self) -> int:
        """Connections for which a handler runs, or is about to."""
        return self.taken - self.done - self.given_up

    @property
    def is_ready(self) -> bool:
        """Whether its hub is there, and turns."""
        dispatcher = self.dispatcher
        return dispatcher is not None and dispatcher.has_loop and dispatcher.has_turns

    # -- opening and closing -------------------------------------------------------------------

    def open(
        self,
        entry: Entry,
        turn: Any,
        *,
        is_out_of_reach: bool,
        client_timeout: float | None = None,
    ) -> None:
        """Open it on this thread's hub; its clones have no turns yet.

        Args:
            turn: The server's of this thread, which is told.
            is_out_of_reach: See `glb.accept.protocols.Member`.
            client_timeout: See `glb.serve.idle.Waiting`.

        Raises:
            OSError, RuntimeError: There is no room for a watcher or a thread. It is closed.
        """
        dispatcher = dispatcher_for(entry, get_hub())
        self.handlers = handlers_here()
        self.handlers.acquire()
        if self.waiting is not None and self.waiting.hub is get_hub():
            self.waiting.timeout = client_timeout  # handlers of the last time may wait there still
        else:
            self.waiting = Waiting(get_hub(), client_timeout)
        self.watch = None
        # A ring's own from here on; a server that starts again brings a new one.
        self.team = Team(seated=False)
        with dispatcher.turns.lock:
            dispatcher.servers[self.team] = None
        self.dispatcher = dispatcher
        self._ident = native_ident()
        self._is_out_of_reach = is_out_of_reach
        for acceptor in self.acceptors:
            self.place(acceptor)
        turn.branch = self
        self.is_closed = False
        dispatcher.guarded[self] = self.look_over

    def place(self, acceptor: Acceptor) -> None:
        """Have *acceptor*, one of its own, stand with its team. It has no turns yet."""
        acceptor.dispatcher = self.dispatcher
        acceptor.team = self.team
        acceptor.is_out_of_reach = self._is_out_of_reach

    def open_in_thread(
        self,
        entry: Entry,
        turn: Any,
        name: str,
        on_system_error: Callable[[BaseException], object],
        *,
        is_out_of_reach: bool,
        client_timeout: float | None = None,
    ) -> int:
        """Start a thread, and open it there; return the thread's native ident.

        Raises:
            OSError, RuntimeError: There is no room for it. Nothing is left.
        """
        thread = HubThread(name, on_system_error).start()
        try:
            thread.call(
                lambda: self.open(
                    entry, turn, is_out_of_reach=is_out_of_reach, client_timeout=client_timeout
                )
            )
        except BaseException:
            thread.end()
            raise
        self.thread = thread
        thread.at_exit = self._end_at_exit
        return thread.ident

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
                if self.waiting is not None and not len(self.waiting):
                    self.waiting.close()
                handlers.release()
                dispatcher.hold_loop(self, is_held=False)
                dispatcher.detach()

        self._leave = dispatcher.guarded[self] = leave
        dispatcher.run(leave)

    # -- what an exception has left undone -------------------------------------------------------

    def look_over(self) -> None:
        """See to it that what is counted is there: see `glb.hubs.guard`. In a callback of its hub.

        An exception may have struck between the end of a connection and its count. Connections
        that are under way may be counted a moment late, so a difference that stays is one.
        """
        # A connection that was lost between its inbox and its count has changed the last one alone.
        promised = sum(each.promised for each in self.acceptors if each.branch is self)
        seen = (self.taken, self.done, self.given_up, promised)
        is_quiet, self._seen = seen == self._seen, seen
        waiting = self.waiting
        if waiting is not None:
            waiting.look_over()
        if not is_quiet or self.dispatcher is None:
            self._astray = ()
            return
        if self._astray is None:
            return  # nothing has changed since all was right
        for greenlet in [each for each in self.strangers if each.dead]:
            del self.strangers[greenlet]
        self._count_arrivals(self.dispatcher)
        for acceptor in self.acceptors:
            if acceptor.branch is self:
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
            coming = Counter(handed.member for handed in dispatcher.inbox)
            for acceptor in self.acceptors:
                if acceptor.branch is self:
                    for _ in range(acceptor.promised - coming[acceptor]):
                        acceptor.unexpect_locked()

    # -- its handlers ----------------------------------------------------------------------------

    def as_hub(self) -> Hub:
        """Return it as other threads may know it. While it is open."""
        assert self.dispatcher is not None, "it is open"
        return Hub(self.dispatcher.thread, self.send)

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
        """A handler is done, while somebody watches. ``None``: it is to be looked again."""
        for watcher in [*self.watched]:
            watcher(args)

    def args_of(self, greenlet: Any) -> Any:
        """Return the arguments of the handler that *greenlet* runs here; ``None`` if it doesn't."""
        found = self.strangers.get(greenlet)
        if found is not None:
            return found[1]
        job = getattr(greenlet, "job", None)
        return job[3] if job is not None and self._is_ours(job) else None

    @property
    def has_callers(self) -> bool:
        """Whether a handler here waits for the end of others."""
        return any(self.args_of(each) is not None for each in [*self.callers])

    def wait_of(self, greenlet: Any) -> Wait | None:
        """Return for what client *greenlet* waits, if it does."""
        return None if self.waiting is None else self.waiting.get(greenlet)

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
        found += [InUse(each, *what) for each, what in self.strangers.items()]
        for acceptor in self.acceptors:
            found += [InUse(None, acceptor, args) for args in acceptor.spawned.values()]
        return found

    def _is_ours(self, job: Job) -> bool:
        return getattr(job[0], "__self__", None) in self.acceptors

    def begin(self, ending: Ending) -> None:
        """Carry out *ending* from now on; `wait` is to follow. In its hub, returns at once."""
        self._begun = (ending, gevent.spawn(self._watch(ending).run))

    def wait(self, ending: Ending) -> None:
        """Wait for all handlers, as *ending* says. In its hub.

        Switches:
            While waiting.
        """
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] is ending:
            begun[1].join()
        else:
            self._watch(ending).run()

    def _watch(self, ending: Ending) -> Watch:
        watch = Watch(self, ending)
        if ending.closes_idle:
            self.watch = watch
        return watch

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
        self.taken = self.done = self.given_up = 0
        self.strangers = {}
        self.waiting = self._ident = None

    # -- the end of its thread -------------------------------------------------------------------

    def finish(self, ending: Ending) -> None:
        """`wait`, and end its thread, if it has one. From any thread; returns at once."""
        thread = self.thread
        if thread is not None:
            finish = functools.partial(self._finish, thread, self._leave, ending)
            thread.send(functools.partial(gevent.spawn, finish))

    def _finish(self, thread: HubThread, leave: Callable[[], object], ending: Ending) -> None:
        try:
            leave()  # if it has not come to it yet
            self.wait(ending)
            if ending.is_called_off:  # a drain is, by a close, which leaves handlers to finish
                self.wait(Ending(None, kill=False, leaves_callers=False))
            if self.has_callers:  # a handler that waits for others' end comes to its own after it
                self.wait(ending.again())
        finally:
            if self.waiting is not None:
                self.waiting.close()
            thread.end()

    def _end_at_exit(self) -> None:
        self.close(lambda: None)
        self.finish(Ending(0, kill=True))
