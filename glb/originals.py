"""Originals: clocks, locks, threads and calls that no monkey patch and no frozen clock reaches.

The rules that always hold:

* Nothing here switches greenlets. It blocks its thread, or returns at once.
* The names are bound when glb is imported. It makes no difference whether gevent has patched the
  standard library before.
* A test that freezes the clock stops the program's time, not glb's: a timeout still ends.

The module imports nothing of glb.
"""

from __future__ import annotations

import functools
import os
import select as _select_module
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from gevent.monkey import get_original

if TYPE_CHECKING:
    from threading import local as Local
else:
    Local = get_original("threading", "local")

__all__ = [
    "Local",
    "Lock",
    "RLock",
    "close",
    "monotonic",
    "native_ident",
    "poll",
    "posix_spawn",
    "select",
    "sleep",
    "start_new_thread",
    "waitpid",
]

Lock: Final[Callable[[], Any]] = get_original("_thread", "allocate_lock")
#: A signal handler or a garbage collection may run while it is held, and take it again.
RLock: Final[Callable[[], Any]] = get_original("_thread", "RLock")
start_new_thread: Final[Callable[..., int]] = get_original("_thread", "start_new_thread")
native_ident: Final[Callable[[], int]] = get_original("_thread", "get_ident")

sleep: Final[Callable[[float], None]] = get_original("time", "sleep")

#: gevent's waits for a turn of the loop before it closes, and keeps the loop going until then.
close: Final[Callable[[int], None]] = get_original("os", "close")

#: gevent's have the loop reap the process. ``None`` on Windows, which has none.
posix_spawn: Final[Any] = get_original("os", "posix_spawn") if hasattr(os, "posix_spawn") else None
waitpid: Final[Any] = get_original("os", "waitpid") if hasattr(os, "waitpid") else None

select: Final[Any] = get_original("select", "select")
#: ``None`` on Windows, which has none.
poll: Final[Any] = get_original("select", "poll") if hasattr(_select_module, "poll") else None


def _clock() -> Callable[[], float]:
    # freezegun replaces `time.monotonic`, and each attribute of a loaded module that is the same
    # object. It leaves the clock below it alone, so this one goes on even if the time was frozen
    # before glb was imported. It counts from the same moment, and costs the same but for 5 to
    # 20 ns a call (timeit, CPython 3.11 and 3.14). time-machine lets monotonic clocks be.
    if hasattr(time, "clock_gettime"):
        return functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    # Windows. A partial is another object, too; but glb has to be imported before the time stops.
    return functools.partial(time.monotonic)


#: Seconds since some moment in the past, as `time.monotonic`.
monotonic: Final[Callable[[], float]] = _clock()
