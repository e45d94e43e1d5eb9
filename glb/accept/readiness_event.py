"""Readiness events: how programs that poll a clone learn of its connections, without a descriptor.

A `ReadinessEvent` is set while there is something to accept, or to raise, of one clone. A
`ReadinessWatcher` takes the place of a loop's watcher of a descriptor: see `glb.monkey.selectors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..hubs.mailbox import WakeUp
from ..originals import native_ident

__all__ = ["ReadinessEvent", "ReadinessWatcher"]

_READ: Final = 1


class ReadinessEvent:
    """Is set while a clone has something to accept, or an error to raise. From any thread.

    Args:
        lock: The registry's. A watcher that is stopped in one thread is not woken by another any
            more, as its hub may be destroyed at once.
    """

    __slots__ = ("_lock", "_watchers", "is_over", "is_set")

    def __init__(self, lock: Any) -> None:
        self.is_set = False
        #: Whether its clone is closed: then it stays set.
        self.is_over = False
        self._watchers: set[ReadinessWatcher] = set()
        self._lock: Final = lock

    def change(self, *, is_set: bool) -> None:
        """Set or clear it. Twice is once."""
        with self._lock:
            if self.is_over or is_set is self.is_set:
                return
            self.is_set = is_set
            if is_set:
                self._wake_locked()

    def end(self) -> None:
        """Set it for good, and wake all that watch it now."""
        with self._lock:
            self.is_over = self.is_set = True
            self._wake_locked()

    def add(self, watcher: ReadinessWatcher) -> None:
        with self._lock:
            self._watchers.add(watcher)
            if self.is_set:
                watcher.wake_locked()

    def discard(self, watcher: ReadinessWatcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)

    def _wake_locked(self) -> None:
        for watcher in [*self._watchers]:
            watcher.wake_locked()


class ReadinessWatcher:
    """Watches a `ReadinessEvent` as a loop's watcher does a descriptor, but calls once a start."""

    __slots__ = ("__weakref__", "_call", "_has_called_at_end", "_hub", "_wake_up", "event")

    def __init__(self, event: ReadinessEvent, hub: Any) -> None:
        self.event = event
        self._hub: Any = hub
        self._call: tuple[Callable[..., object], tuple[object, ...]] | None = None
        self._has_called_at_end = False
        # While it is started: wakes its hub from another thread.
        self._wake_up: WakeUp | None = None

    def start(
        self, callback: Callable[..., object], *args: object, pass_events: bool = False
    ) -> None:
        self._call = (callback, (_READ, *args) if pass_events else args)
        if self._has_called_at_end:
            return
        if self._wake_up is None:
            self._wake_up = WakeUp(self._hub, self._look)
        self.event.add(self)

    def stop(self) -> None:
        self._call = None
        self.event.discard(self)
        wake_up, self._wake_up = self._wake_up, None
        if wake_up is not None:
            wake_up.close()

    def close(self) -> None:
        self.stop()

    def wake_locked(self) -> None:
        """Have its hub call back. From any thread, with the registry's lock held."""
        if self._hub.thread_ident == native_ident() and self._hub.loop is not None:
            self._hub.loop.run_callback(self._look)
        elif self._wake_up is None or not self._wake_up.send():
            self.event.discard(self)  # the loop was destroyed under it

    def _look(self) -> None:
        # The connection may have been accepted since.
        if self._call is not None and self.event.is_set:
            callback, args = self._call
            self._has_called_at_end = self.event.is_over
            self.stop()
            callback(*args)
