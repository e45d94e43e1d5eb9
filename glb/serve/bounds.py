"""Bounds: how many handlers a server may have at once, on all of its hubs together."""

from __future__ import annotations

from typing import Any, Final

import gevent
from gevent import Greenlet
from gevent.lock import DummySemaphore

from .workers import Workers

__all__ = ["SharedBound"]


class SharedBound:
    """How many handlers a server may have on all of its hubs together: its ``pool``.

    It has what gevent's servers, and their users, ask of a pool.

    Args:
        size: How many.
        workers: The server's.
    """

    def __init__(self, size: int, workers: Workers) -> None:
        self.size: Final = size
        self._workers: Final = workers
        # gevent's servers link themselves to it.
        self._semaphore: Final = DummySemaphore()

    def __len__(self) -> int:
        return self._workers.active

    def free_count(self) -> int:
        """How many more there could be."""
        return max(0, self.size - len(self))

    def full(self) -> bool:
        """Whether there is no room for one more."""
        return self.size <= len(self)

    def spawn(self, *args: Any, **kwargs: Any) -> Greenlet:  # type: ignore[type-arg]  # generic in the stubs alone
        """Run a function in a greenlet of this thread's hub."""
        return gevent.spawn(*args, **kwargs)
