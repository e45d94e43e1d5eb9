"""Branches: a server's part on one hub.

A server has one for each of its hubs: the acceptors that live there, their team in the ring,
and what runs handlers. The first is on the hub that starts the server, each other one on a
`glb.hubs.HubThread` of its own, which ends when the server is closed and its handlers are done.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import Timeout, get_hub, getcurrent
from gevent.event import Event

from .dispatcher import Dispatcher
from .handlers import Handlers, SharedPool, handlers_here
from .hubs import HubThread
from .registry import Entry
from .ring import Team
from .standby import dispatcher_for

if TYPE_CHECKING:
    from .acceptor import Acceptor

__all__ = ["KILL_SECONDS", "Branch"]

# As gevent's `stop`: so long for handlers that were killed, and don't want to go.
KILL_SECONDS: Final = 1.0


class Branch:
    """A server's part on one hub. The caller closes what it has opened."""

    __slots__ = (
        "_idle",
        "_running",
        "acceptors",
        "dispatcher",
        "handlers",
        "index",
        "team",
        "thread",
    )

    def __init__(self, index: int) -> None:
        #: Which hub of the server's, 0 for the one that started it.
        self.index: Final = index
        self.acceptors: list[Acceptor] = []
        #: Only while it is open.
        self.dispatcher: Dispatcher | None = None
        self.handlers: Handlers | None = None
        #: Its own, if it isn't on the hub that started the server.
        self.thread: HubThread | None = None
        self.team: Team[Any] = Team(seated=False)
        self._running: set[Any] = set()
        self._idle: Any = None

    @property
    def is_ready(self) -> bool:
        """Whether its hub is there, and turns."""
        dispatcher = self.dispatcher
        return dispatcher is not None and dispatcher.has_loop and dispatcher.has_turns

    # -- opening and closing -------------------------------------------------------------------

    def open(self, entry: Entry) -> None:
        """Open it on this thread's hub; its clones have no turns yet.

        Raises:
            OSError, RuntimeError: There is no room for a watcher or a thread. It is closed.
        """
        dispatcher = dispatcher_for(entry, get_hub())
        self.handlers = handlers_here()
        self.handlers.acquire()
        self._running = set()
        self._idle = Event()
        # A ring's own from here on; a server that starts again brings a new one.
        self.team = Team(seated=False)
        self.dispatcher = dispatcher

    def open_in_thread(
        self, entry: Entry, name: str, on_system_error: Callable[[BaseException], object]
    ) -> int:
        """Start a thread, and open it there; return the thread's native ident.

        Raises:
            OSError, RuntimeError: There is no room for it. Nothing is left.
        """
        thread = HubThread(name, on_system_error).start()
        try:
            thread.call(lambda: self.open(entry))
        except BaseException:
            thread.end()
            raise
        self.thread = thread
        return thread.ident

    def close(self, then: Callable[[], object] | None = None) -> None:
        """Give no more turns, at once, and call *then* in its hub. From any thread."""
        dispatcher, self.dispatcher = self.dispatcher, None
        handlers, self.handlers = self.handlers, None
        if dispatcher is None or handlers is None:
            return
        dispatcher.turns.drop([(dispatcher, self.team)])

        def leave() -> None:
            if then is not None:
                then()
            handlers.release()
            dispatcher.hold_loop()
            dispatcher.detach()

        dispatcher.run(leave)

    # -- the end of its thread -------------------------------------------------------------------

    def finish(self, pool: SharedPool | None, timeout: float | None, *, kill: bool) -> None:
        """End its thread when its handlers are done, or were killed after *timeout* seconds.

        From any thread; it returns at once.
        """
        thread = self.thread
        if thread is not None:
            # What it is now: the server may be started again before that is done.
            end = functools.partial(_finish, thread, pool, self._running, self._idle, timeout, kill)
            thread.at_exit = functools.partial(
                _finish, thread, pool, self._running, self._idle, 0, True
            )
            thread.send(lambda: gevent.spawn(end))

    def begin(self) -> None:
        """Know the current greenlet, which runs a handler and that no pool of ours knows."""
        self._running.add(getcurrent())

    def end(self) -> None:
        """Its handler is done."""
        self._running.discard(getcurrent())
        self._idle.set()


def _finish(
    thread: HubThread,
    pool: SharedPool | None,
    running: set[Any],
    idle: Any,
    timeout: float | None,
    kill: bool,
) -> None:
    try:
        here = None if pool is None else pool.here()
        with Timeout(timeout, False):  # type: ignore[arg-type]  # not in the stubs
            if here is not None:
                here.join()
            while running:
                idle.clear()
                idle.wait()
        if kill:
            if here is not None:
                here.kill(block=True, timeout=KILL_SECONDS)
            gevent.killall([*running], block=True, timeout=KILL_SECONDS)
    finally:
        if pool is not None:
            pool.forget_here()
        thread.end()
