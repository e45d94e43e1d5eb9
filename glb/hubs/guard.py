"""The guard: takes up what a callback of the hub has left undone.

An exception may be raised between any two steps of a callback: by a signal handler, or a
`MemoryError`. Then gevent stops the watcher of that callback (on libev those of descriptors, on
libuv all), a pending callback counts as called, and a flag may keep its value. So a few times a
second a hub that serves checks that its next step is really scheduled. It derives that from the
work that there is, and remembers nothing about errors.

Source: gevent's ``callbacks.c`` and ``gevent._ffi.loop.python_handle_error``, for what stops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

__all__ = ["GUARD_SECONDS", "Guard"]

# A client notices a pause of a second and hardly one of a quarter; gevent's own loop wakes up for
# signals every 0.3 s.
GUARD_SECONDS: Final = 0.25


class Guard:
    """Calls *look* in *hub*, every `GUARD_SECONDS`, in spite of any exception.

    It keeps no hub alive. Two timers take turns, and each starts the other again if that was
    stopped.
    """

    def __init__(self, hub: Any, look: Callable[[], object]) -> None:
        self._hub: Final = hub
        self._look: Final = look
        self._timers: list[Any] = []
        for turn in (1, 2):
            timer = hub.loop.timer(GUARD_SECONDS * turn, 2 * GUARD_SECONDS, ref=False)
            self._timers.append(timer)
            timer.start(self._tick)

    def _tick(self) -> None:
        for timer in self._timers:
            if not timer.active:
                timer.start(self._tick)
        self._look()

    def close(self) -> None:
        """Leave no timer on the loop. In its own thread; twice is harmless."""
        timers, self._timers = self._timers, []
        if self._hub.loop is not None:
            for timer in timers:
                timer.close()
