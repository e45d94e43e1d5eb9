"""Sweeps: one timer of a hub looks for everything of its kind whose time is up.

A timer for each would cost a connection, or a request, more than all the rest of a timeout. So
thousands share one, which runs only while there is something to look for. What is late is found a
little later: see `MAX_LOOK_SECONDS`.

Source: nginx and HAProxy, which have one timer a process and a tree of deadlines.
"""

from __future__ import annotations

from typing import Any, Final

from ..originals import monotonic

__all__ = ["NEVER", "Deadlines", "Sweep", "Task"]

NEVER: Final = float("inf")

# How much later than its time what is late may be found: a quarter of it, and not longer than that.
MAX_LOOK_SECONDS: Final = 1.0


class Sweep:
    """Something that looks, now and then, for what is late on one hub. Only its thread may use it.

    Args:
        hub: This thread's.
    """

    def __init__(self, hub: Any) -> None:
        self.hub: Final = hub
        self._timer: Any = None
        self._timeout = 0.0

    def _start(self, timeout: float) -> None:
        """Have `_look` called with *timeout*, in seconds, until `close`."""
        self._timeout = timeout
        period = min(timeout / 4, MAX_LOOK_SECONDS)
        self._timer = self.hub.loop.timer(period, period, ref=False)
        self._timer.start(self._look, timeout)

    def _look(self, timeout: float) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Leave no timer on the loop. Twice is harmless."""
        timer, self._timer = self._timer, None
        if timer is not None and self.hub.loop is not None:
            timer.stop()
            timer.close()

    def look_over(self) -> None:
        """Take up what an exception has left undone, in a callback: see `glb.hubs.guard`."""
        if self._timer is not None and not self._timer.active:
            self._timer.start(self._look, self._timeout)


class Task:
    """What one greenlet does again and again, within a time for each: to be derived from.

    Args:
        greenlet: Which does it.

    Attributes:
        until: ``None`` once it has begun, as no clock is asked then: the next look finds it, and
            sets its deadline. `NEVER` when it is done.
    """

    __slots__ = ("greenlet", "until")

    def __init__(self, greenlet: Any) -> None:
        self.greenlet: Final = greenlet
        self.until: float | None = NEVER

    def seconds(self) -> float | None:
        """Return how long it may take; ``None`` is for ever."""
        raise NotImplementedError

    def is_late(self) -> None:
        """Its time is up, in the hub. Called each time that as long has passed, if it goes on."""
        raise NotImplementedError


class Deadlines(Sweep):
    """The tasks of greenlets of one hub, and until when they may take.

    Nothing is late before its time, and what is late is found two looks later at most. A task keeps
    its greenlet: one that an exception leaves here is never used again for another connection (see
    `glb.hubs.handler_greenlets`), which would have its deadline.
    """

    def __init__(self, hub: Any) -> None:
        super().__init__(hub)
        self._tasks: dict[Task, None] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def enter(self, task: Task, seconds: float) -> None:
        """Look after *task*, often enough for *seconds*, until `leave`."""
        self._tasks[task] = None
        if self._timer is None:
            self._start(seconds)

    def leave(self, task: Task) -> None:
        """It is not done again. Twice is harmless."""
        task.until = NEVER
        self._tasks.pop(task, None)

    def _look(self, _timeout: float) -> None:
        if not self._tasks:
            self.close()
            return
        now = monotonic()
        for task in [*self._tasks]:
            if task.greenlet.dead:
                self.leave(task)  # an exception struck before it could say that it is done
                continue
            until = task.until
            if until is not None and until > now:
                continue
            seconds = task.seconds()
            task.until = NEVER if seconds is None else now + seconds
            if until is not None and seconds is not None:
                task.is_late()
