"""Spawning: how a server gives each connection its greenlet.

By default, and with a number for ``spawn``, handlers run in greenlets that are used again: see
`glb.hubs.greenlet_pool`. Whatever else a program gives is called as gevent calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..hubs.greenlet_pool import HandlerPool, handlers_here
from .bounds import SharedBound
from .hooks import Handler, Turn
from .hub_worker import Served
from .workers import Workers

__all__ = ["Spawning", "check_pool"]


def check_pool(spawn: object, hubs: int) -> None:
    """Refuse a pool for several hubs.

    Raises:
        ValueError: It is one.
    """
    if hubs > 1 and hasattr(spawn, "spawn") and not isinstance(spawn, SharedBound):
        raise ValueError(
            f"spawn must not be a pool with {hubs} hubs, as a pool belongs to one: "
            f"give its size instead, got {spawn!r}"
        )


class Spawning:
    """What ``spawn`` means to one server."""

    def __init__(self) -> None:
        #: The pool that ``spawn`` gave, which bounds the handlers; ``None`` if it gave none.
        #: gevent's ``pool`` is the same until a program sets another one: gevent's servers wait
        #: for that one in `stop`, and run no handler in it.
        self.bound: Any = None
        #: gevent's ``_spawn`` in whose place our handler greenlets are. A subclass, or a program
        #: that sets ``_spawn`` later, has another one.
        self.replaced: Any = None
        #: What is to be ``spawn`` when the server starts again, since gevent forgets it.
        self.closed: Any = "default"

    def bound_of(self, spawn: Any, hubs: int, workers: Workers) -> Any:
        """Return *spawn*, or in place of a number the pool of that size."""
        check_pool(spawn, hubs)
        if not isinstance(spawn, int):
            return spawn
        return SharedBound(spawn, workers) if hubs > 1 else HandlerPool(spawn)

    def take(self, spawn: Any, gevents: Any, *, is_default: bool) -> None:
        """Handlers are run by *spawn* from now on, which *gevents* ``_spawn`` is."""
        self.bound = spawn if hasattr(spawn, "spawn") else None
        is_replaced = is_default or isinstance(self.bound, (HandlerPool, SharedBound))
        self.replaced = gevents if is_replaced else None

    def remember(self, gevents: Any) -> None:
        """The server closes, and gevent forgets its ``_spawn``."""
        is_ours = gevents is not None and gevents is self.replaced
        if self.bound is not None:
            self.closed = self.bound
        else:
            self.closed = "default" if is_ours else gevents

    def to_set_again(self, hubs: int, *, is_forgotten: bool) -> tuple[Any, bool]:
        """Return what ``spawn`` is to be when the server opens, and whether it is to be set anew.

        The number of hubs may have been set since a number was given.
        """
        spawn = self.closed if is_forgotten else self.bound
        is_other = isinstance(spawn, SharedBound if hubs == 1 else HandlerPool)
        if is_other:
            spawn = "default" if spawn.size is None else spawn.size
        elif not is_forgotten:
            check_pool(spawn, hubs)
        return spawn, is_other or is_forgotten

    def start(
        self,
        turn: Turn,
        acceptors: Sequence[Served],
        spawn: Any,
        handle: Handler,
        close: Handler,
        args: Any,
    ) -> None:
        """Have *spawn* run *handle*, then *close*, for a connection of the clone that has its turn.

        Out of turn, which gevent allows, it is counted for the first of *acceptors*.
        """
        acceptor: Served | None = turn.acceptor
        is_in_turn = acceptor is not None
        if acceptor is None:
            acceptor = acceptors[0]
        begun, assigned = acceptor.begun, acceptor.assigned
        worker = turn.worker or acceptor.worker
        worker.taken += 1
        try:
            if spawn is None:
                acceptor.serve_anywhere(handle, close, args)
            elif spawn is not self.replaced:
                acceptor.spawned[id(args)] = args
                try:
                    spawn(acceptor.serve_spawned, handle, close, args)
                except BaseException:
                    acceptor.spawned.pop(id(args), None)
                    raise
            else:
                acceptor.assigned += is_in_turn
                serve = acceptor.serve if is_in_turn else acceptor.serve_anywhere
                if isinstance(self.bound, HandlerPool):
                    self.bound.handle(serve, handle, close, args)
                else:
                    handlers = worker.handlers if is_in_turn else None
                    (handlers or handlers_here()).spawn(serve, handle, close, args)
        except BaseException:
            # What struck may have done so when it waited already. It is not to run on what is
            # closed here.
            handlers_here().drop(lambda job: job[-2] is args)
            if acceptor.begun == begun:
                acceptor.never_served(is_assigned=acceptor.assigned != assigned)
            close(*args)
            raise
