"""Bounds: how many handlers a server may have at once, on all of its hubs together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import Greenlet
from gevent.lock import DummySemaphore

if TYPE_CHECKING:
    from .hub_worker import Branch

__all__ = ["SharedBound"]


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
