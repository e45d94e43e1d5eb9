"""Ctrl-C ends a run from locust's main greenlet, whatever runs as it comes.

Python raises `KeyboardInterrupt` in the greenlet that happens to run. That may be a user in the
middle of a request, which the server has counted; the greenlet that hears the workers; or the hub,
in a callback that was to wake one of those. Each of them would be lost before the last reports are
there.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Final

import gevent

__all__ = ["raise_in_main_greenlet"]


def raise_in_main_greenlet() -> None:
    """Have SIGINT raise `KeyboardInterrupt` in the main greenlet of the process.

    Nothing changes outside the main thread, and where the program has a handler of its own.
    """
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(signal.SIGINT, Interrupt(gevent.get_hub()))


class Interrupt:
    """A handler of SIGINT for a process whose main thread has *hub*."""

    def __init__(self, hub: Any) -> None:
        self._hub: Final = hub
        self._is_pending = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # A second one comes at once, as ever: a greenlet that never yields is ended by it.
        if self._is_pending or gevent.getcurrent() is self._hub.parent:
            self._is_pending = False
            raise KeyboardInterrupt
        self._is_pending = True
        # "threadsafe" is safe within a signal handler, too: it wakes a loop that waits.
        self._hub.loop.run_callback_threadsafe(self._raise)

    def _raise(self) -> None:
        if self._is_pending:
            self._is_pending = False
            self._hub.parent.throw(KeyboardInterrupt)
