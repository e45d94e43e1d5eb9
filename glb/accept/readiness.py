"""Readiness: how programs that poll a clone are told of its connections, without a descriptor.

A `Bell` rings while there is something to accept, or to be told, of one clone. A `BellWatcher`
takes the place of a loop's watcher of a descriptor: see `glb.monkey.selectors`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..hubs.mailbox import WakeUp
from ..originals import native_ident

__all__ = ["Bell", "BellWatcher"]

_READ: Final = 1


class Bell:
    """Tells pollers, each in its own hub, that there is something. It needs no descriptor.

    Args:
        lock: The registry's. Who looks away in one thread is not woken in another any more, as its
            hub may be destroyed at once.
    """

    __slots__ = ("_lock", "_watchers", "is_over", "is_ringing")

    def __init__(self, lock: Any) -> None:
        self.is_ringing = False
        #: Whether it has rung for the last time: its clone is closed.
        self.is_over = False
        self._watchers: set[BellWatcher] = set()
        self._lock: Final = lock

    def ring(self, *, is_ringing: bool) -> None:
        """Ring, or be silent. Twice is once. From any thread."""
        with self._lock:
            if self.is_over or is_ringing is self.is_ringing:
                return
            self.is_ringing = is_ringing
            if is_ringing:
                self._wake_locked()

    def end(self) -> None:
        """Tell all who look at it, and no one afterwards."""
        with self._lock:
            self.is_over = self.is_ringing = True
            self._wake_locked()

    def add(self, watcher: BellWatcher) -> None:
        with self._lock:
            self._watchers.add(watcher)
            if self.is_ringing:
                watcher.wake_locked()

    def discard(self, watcher: BellWatcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)

    def _wake_locked(self) -> None:
        for watcher in [*self._watchers]:
            watcher.wake_locked()


class BellWatcher:
    """Looks at a bell as a loop's watcher does at a descriptor, but tells only once a start."""

    __slots__ = ("__weakref__", "_call", "_hub", "_is_told_of_end", "_wake_up", "bell")

    def __init__(self, bell: Bell, hub: Any) -> None:
        self.bell = bell
        self._hub: Any = hub
        self._call: tuple[Callable[..., object], tuple[object, ...]] | None = None
        self._is_told_of_end = False
        # While it looks: what another thread wakes its hub by.
        self._wake_up: WakeUp | None = None

    def start(
        self, callback: Callable[..., object], *args: object, pass_events: bool = False
    ) -> None:
        self._call = (callback, (_READ, *args) if pass_events else args)
        if self._is_told_of_end:
            return
        if self._wake_up is None:
            self._wake_up = WakeUp(self._hub, self._tell)
        self.bell.add(self)

    def stop(self) -> None:
        self._call = None
        self.bell.discard(self)
        wake_up, self._wake_up = self._wake_up, None
        if wake_up is not None:
            wake_up.close()

    def close(self) -> None:
        self.stop()

    def wake_locked(self) -> None:
        """Tell, in its own hub. From any thread, with the registry's lock held."""
        if self._hub.thread_ident == native_ident() and self._hub.loop is not None:
            self._hub.loop.run_callback(self._tell)
        elif self._wake_up is None or not self._wake_up.send():
            self.bell.discard(self)  # the loop was destroyed under it

    def _tell(self) -> None:
        # Somebody may have fetched it since.
        if self._call is not None and self.bell.is_ringing:
            callback, args = self._call
            self._is_told_of_end = self.bell.is_over
            self.stop()
            callback(*args)
