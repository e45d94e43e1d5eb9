"""Spawning: how a server gives each connection its greenlet.

By default, and with a number for ``spawn``, handlers run in greenlets that are used again: see
`glb.hubs.greenlet_pool`. Whatever else a program gives is called as gevent calls it.
"""

from __future__ import annotations

from typing import Any

from ..hubs.greenlet_pool import HandlerPool
from .bounds import SharedBound
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
        #: gevent's ``_spawn`` that our handler greenlets replace. A subclass, or a program that
        #: sets ``_spawn`` later, has another one.
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

    def fit(self, server: Any) -> None:
        """Set gevent's ``spawn`` of *server*, which opens, to what it was when it was closed.

        The number of hubs may have been set since a number was given.
        """
        own, hubs = server.__dict__, server.hubs
        is_forgotten = "_spawn" not in own
        bound, pool, full = self.bound, server.pool, own.get("full")
        spawn = self.closed if is_forgotten else bound
        is_other = isinstance(spawn, SharedBound if hubs == 1 else HandlerPool)
        if is_other:
            spawn = "default" if spawn.size is None else spawn.size
        elif not is_forgotten:
            check_pool(spawn, hubs)
            return
        server.set_spawn(spawn)
        # What a program has set since, as gevent lets it, stays.
        if pool is not bound:
            server.pool = pool
        if full is not None and full != getattr(bound, "full", None):
            own["full"] = full
