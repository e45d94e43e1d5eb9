"""The guard: takes up what a callback of the hub has left undone.

Any exception may strike between any two steps of a callback: a signal handler that raises, a
`MemoryError`. Then gevent stops the watcher whose callback it was (on libev those of descriptors,
on libuv all), a callback that was to come has come, and a flag may be left as it was. So a hub that
serves looks over, a few times a second, whether what is to happen next is really on its way. It
derives that from what there is to do, and remembers nothing about errors.

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
    """Calls *look* in *hub*, every `GUARD_SECONDS`, whatever is raised there.

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
                timer.stop()
                timer.close()
