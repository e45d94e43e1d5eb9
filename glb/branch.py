"""Branches: a server's part on one hub.

A server has one for each of its hubs: the acceptors that live there, their team in the ring,
and what runs handlers. The first is on the hub that starts the server, each other one on a
`glb.hubs.HubThread` of its own, which ends when the server is closed and its handlers are done.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import Greenlet, Timeout, get_hub
from gevent.event import Event
from gevent.lock import DummySemaphore

from .dispatcher import Dispatcher
from .handlers import Handlers, Job, handlers_here
from .hubs import HubThread
from .registry import Entry
from .ring import Team
from .standby import dispatcher_for

if TYPE_CHECKING:
    from .acceptor import Acceptor

__all__ = ["KILL_SECONDS", "Branch", "SharedBound"]

# As gevent's `stop`: so long for handlers that were killed, and don't want to go.
KILL_SECONDS: Final = 1.0


class Branch:
    """A server's part on one hub. The caller closes what it has opened."""

    def __init__(self, index: int) -> None:
        #: Which hub of the server's, 0 for the one that started it.
        self.index: Final = index
        self.acceptors: list[Acceptor] = []
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
        #: Greenlets that run handlers, and that ours aren't.
        self.strangers: set[Any] = set()
        self._idle: Any = None
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

    def open(self, entry: Entry, turn: Any, *, is_out_of_reach: bool) -> None:
        """Open it on this thread's hub; its clones have no turns yet.

        Args:
            turn: The server's of this thread, which is told.
            is_out_of_reach: See `glb.turns.Member`.

        Raises:
            OSError, RuntimeError: There is no room for a watcher or a thread. It is closed.
        """
        dispatcher = dispatcher_for(entry, get_hub())
        self.handlers = handlers_here()
        self.handlers.acquire()
        self._idle = Event()
        # A ring's own from here on; a server that starts again brings a new one.
        team: Team[Any] = Team(seated=False)
        with dispatcher.turns.lock:
            dispatcher.servers[team] = None
        for acceptor in self.acceptors:
            acceptor.dispatcher = dispatcher
            acceptor.team = team
            acceptor.is_out_of_reach = is_out_of_reach
        turn.branch = self
        self.dispatcher = dispatcher
        self.is_closed = False

    def open_in_thread(
        self,
        entry: Entry,
        turn: Any,
        name: str,
        on_system_error: Callable[[BaseException], object],
        *,
        is_out_of_reach: bool,
    ) -> int:
        """Start a thread, and open it there; return the thread's native ident.

        Raises:
            OSError, RuntimeError: There is no room for it. Nothing is left.
        """
        thread = HubThread(name, on_system_error).start()
        try:
            thread.call(lambda: self.open(entry, turn, is_out_of_reach=is_out_of_reach))
        except BaseException:
            thread.end()
            raise
        self.thread = thread
        thread.at_exit = self._end_at_exit
        return thread.ident

    @property
    def team(self) -> Team[Any]:
        """Its clones, in the ring."""
        return self.acceptors[0].team

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
                then()
                handlers.release()
                dispatcher.hold_loop(self, is_held=False)
                dispatcher.detach()

        self._leave = leave
        dispatcher.run(leave)

    # -- its handlers ----------------------------------------------------------------------------

    def handler_ended(self) -> None:
        """A handler is done, after it was closed."""
        if self.active == 0 and self._idle is not None:
            self._idle.set()

    def wait(self, timeout: float | None, *, kill: bool) -> None:
        """Wait for the handlers, at most *timeout* seconds. In its hub.

        Args:
            kill: Kill what is left then, and wait for that, as long as gevent does.

        Switches:
            While waiting.
        """
        self._wait(timeout)
        handlers = self.handlers
        if not kill or handlers is None:
            return
        handlers.drop(self._is_ours)
        left = [*handlers.running(self._is_ours), *self.strangers]
        gevent.killall(left, block=False)
        self._wait(KILL_SECONDS)

    def _is_ours(self, job: Job) -> bool:
        return getattr(job[0], "__self__", None) in self.acceptors

    def _wait(self, timeout: float | None) -> None:
        with Timeout(timeout, False):  # type: ignore[arg-type]  # not in the stubs
            while self.active > 0 and self._idle is not None:
                self._idle.clear()
                self._idle.wait()

    def forget(self) -> None:
        """Its thread is not in this process, which was forked."""
        self.dispatcher = self.handlers = self.thread = None
        self.is_closed = True
        self.taken = self.done = self.given_up = 0
        self.strangers = set()

    # -- the end of its thread -------------------------------------------------------------------

    def finish(self, timeout: float | None, *, kill: bool) -> None:
        """`wait`, and end its thread, if it has one. From any thread; returns at once."""
        thread = self.thread
        if thread is not None:
            finish = functools.partial(self._finish, thread, self._leave, timeout, kill=kill)
            thread.send(functools.partial(gevent.spawn, finish))

    def _finish(
        self,
        thread: HubThread,
        leave: Callable[[], object],
        timeout: float | None,
        *,
        kill: bool,
    ) -> None:
        try:
            leave()  # if it has not come to it yet
            self.wait(timeout, kill=kill)
        finally:
            thread.end()

    def _end_at_exit(self) -> None:
        self.close(lambda: None)
        self.finish(0, kill=True)


class SharedBound:
    """How many handlers a server may have on all of its hubs together: its ``pool``.

    It has what gevent's servers, and their users, ask of a pool.

    Args:
        size: How many.
        branches: Called for the server's branches.
    """

    def __init__(self, size: int, branches: Callable[[], Sequence[Branch]]) -> None:
        self.size: Final = size
        self._branches = branches
        # gevent's servers link themselves to it.
        self._semaphore: Final = DummySemaphore()

    def __len__(self) -> int:
        return sum(branch.active for branch in self._branches())

    def free_count(self) -> int:
        """How many more there could be."""
        return max(0, self.size - len(self))

    def full(self) -> bool:
        """Whether there is no room for one more."""
        return self.size <= len(self)

    def spawn(self, *args: Any, **kwargs: Any) -> Greenlet:  # type: ignore[type-arg]  # generic in the stubs alone
        """Run a function in a greenlet of this thread's hub."""
        return gevent.spawn(*args, **kwargs)
