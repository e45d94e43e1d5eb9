"""Sweeps: one timer of a hub finds all its connections, or requests, whose time is over.

A timer for each of them would cost more than all the rest of a timeout. So thousands share one,
which runs only while there are any. It finds them a little late: see `MAX_LOOK_SECONDS`. Where many
are late at once, as when a database hangs, it ends them in batches, and the hub turns in between.

Source: nginx and HAProxy, which have one timer a process and a tree of deadlines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, Generic, TypeVar

from ..originals import monotonic

__all__ = ["NEVER", "Deadlines", "Sweep", "Task"]

NEVER: Final = float("inf")

# A sweep looks four times within a timeout, and at least once in so many seconds. A task gets its
# deadline at the first look after its begin, and is found at the first look after its deadline: so
# up to two looks late, which is half of the timeout, or 2 s.
MAX_LOOK_SECONDS: Final = 1.0


# To end a request takes 0.3 ms: its greenlet runs, the client gets a reply, and the log a line.
# With 1,000 at once a hub did not turn for 200 ms, with 10 it is 5 ms.
BATCH: Final = 10
# Less is a warning of gevent's on libuv.
NEXT_BATCH_SECONDS: Final = 0.001

T = TypeVar("T")


class Sweep(ABC, Generic[T]):
    """A timer that looks for what is late on one hub. Only the hub's thread may use it.

    Args:
        hub: This thread's.
    """

    def __init__(self, hub: Any) -> None:
        self.hub: Final = hub
        self._timer: Any = None
        self._timeout = 0.0
        # What the last look has found, and no batch has come to yet.
        self._late: Iterator[T] = iter(())

    def _start(self, timeout: float, after: float | None = None) -> None:
        """Have `_look` called with *timeout*, in seconds, until `close`; at first *after* some."""
        self._timeout = timeout
        period = min(timeout / 4, MAX_LOOK_SECONDS)
        self._timer = self.hub.loop.timer(period if after is None else after, period, ref=False)
        self._timer.start(self._look, timeout)

    def _look(self, timeout: float) -> None:
        batch = [*islice(self._late, BATCH)]
        if not batch:
            if self._is_idle():
                self.close()
                return
            self._late = self._find_late(timeout)
            batch = [*islice(self._late, BATCH)]
        for each in batch:
            self._end(each)
        if len(batch) == BATCH and self._timer is not None:  # or its last end has closed this
            self.close()
            self._start(timeout, NEXT_BATCH_SECONDS)

    @abstractmethod
    def _is_idle(self) -> bool:
        """Return True if nothing is left to look for."""

    @abstractmethod
    def _find_late(self, timeout: float) -> Iterator[T]:
        """Return what is late now. It is found at once, and not while batches are ended."""

    @abstractmethod
    def _end(self, late: T) -> None:
        """End what was found, if that is late still."""

    def close(self) -> None:
        """Leave no timer on the loop. Twice is harmless."""
        timer, self._timer = self._timer, None
        if timer is not None and self.hub.loop is not None:
            timer.close()

    def look_over(self) -> None:
        """Start the timer again if an exception in the hub has stopped it: see `glb.hubs.guard`."""
        if self._timer is not None and not self._timer.active:
            self._timer.start(self._look, self._timeout)


class Task(ABC):
    """Work that one greenlet repeats, each time within a timeout. A base class.

    Args:
        greenlet: The one that works.

    Attributes:
        until: The deadline. The greenlet sets ``None`` when it begins, which reads no clock: the
            next look sets the deadline. It sets `NEVER` when it has ended.
    """

    __slots__ = ("greenlet", "until")

    def __init__(self, greenlet: Any) -> None:
        self.greenlet: Final = greenlet
        self.until: float | None = NEVER

    @abstractmethod
    def seconds(self) -> float | None:
        """Return the timeout, in seconds; ``None`` is for ever."""

    @abstractmethod
    def is_late(self, reported: dict[object, object], /) -> None:
        """End it. Called in the hub when its time is over, and again after each further timeout.

        Args:
            reported: Empty at each look: for what is to be reported once, for all that it finds.
        """


class Deadlines(Sweep[Task]):
    """The tasks of one hub, each with its deadline.

    No task is late before its deadline. A late one is found two looks after it at most. A task has
    a reference to its greenlet. So a greenlet whose task an exception has left here is never used
    again for another connection (see `glb.hubs.handler_greenlets`), which would get its deadline.
    """

    def __init__(self, hub: Any) -> None:
        super().__init__(hub)
        self._tasks: dict[Task, None] = {}
        self._reported: dict[object, object] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def enter(self, task: Task, seconds: float) -> None:
        """Watch *task* until `leave`. The first one's *seconds* set how often the hub looks."""
        self._tasks[task] = None
        if self._timer is None:
            self._start(seconds)

    def leave(self, task: Task) -> None:
        """Watch *task* no more. Twice is harmless."""
        task.until = NEVER
        self._tasks.pop(task, None)

    def _is_idle(self) -> bool:
        return not self._tasks

    def _find_late(self, _timeout: float) -> Iterator[Task]:
        self._reported = {}
        now, late = monotonic(), []
        for task in [*self._tasks]:
            if task.greenlet.dead:
                self.leave(task)  # an exception has ended the greenlet before its own `leave`
            elif task.until is None:
                self._set_deadline(task, now)
            elif task.until <= now:
                late.append(task)
        return iter(late)

    def _end(self, late: Task) -> None:
        now = monotonic()
        if late.until is not None and late.until <= now and self._set_deadline(late, now):
            late.is_late(self._reported)

    def _set_deadline(self, task: Task, now: float) -> bool:
        seconds = task.seconds()
        task.until = NEVER if seconds is None else now + seconds
        return seconds is not None
