"""Signals: greenlets of one hub that wait for an event in another thread.

gevent's own events can be used between threads, but a greenlet that waits for one gets `LoopExit`
if its hub has nothing else to do. Here each waiting greenlet has a watcher, which keeps its hub
going and can be woken from any thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import gevent
from gevent import GreenletExit, Timeout, get_hub
from gevent.hub import Waiter

from ..originals import RLock, monotonic
from .mailbox import WakeUp

__all__ = ["Answer", "FairLock", "Signal", "ask"]

# How often a greenlet that waits for another hub checks that the hub is still there. Only a call
# that was on its way at the moment of the hub's end needs that.
LOOK_SECONDS: Final = 0.1

T = TypeVar("T")


class Signal:
    """An event that happens once, for which greenlets of any thread wait.

    Args:
        lock: Guards its state, native and re-entrant. If `set` is called with a lock held, this
            must be that lock.
    """

    def __init__(self, lock: Any = None) -> None:
        self._lock = RLock() if lock is None else lock
        self._is_set = False
        self._wake_ups: list[WakeUp] = []

    @property
    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Wake all that wait. From any thread; twice is once."""
        with self._lock:
            self._is_set = True
            for wake_up in self._wake_ups:
                wake_up.send()

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is set, at most *timeout* seconds; return ``False`` if it isn't.

        Switches:
            While waiting.
        """
        if self._is_set:
            return True
        hub: Any = get_hub()
        waiter: Waiter[None] = Waiter(hub)
        wake_up = WakeUp(hub, waiter.switch, None)
        try:
            with self._lock:
                is_waiting = not self._is_set
                if is_waiting:
                    self._wake_ups.append(wake_up)
            if is_waiting:
                with Timeout(timeout, False):  # type: ignore[arg-type]  # not in the stubs
                    waiter.get()
        finally:
            with self._lock:
                if wake_up in self._wake_ups:
                    self._wake_ups.remove(wake_up)
            wake_up.close()
        return self._is_set

    def forget(self) -> None:
        """Start anew in a forked child, where the lock may be held and no greenlet waits."""
        self._lock = RLock()
        self._wake_ups = []


class Answer(Generic[T]):
    """The result of a function that was sent to another hub. Call it, with a timeout, once or more.

    It raises what the function raises. It returns ``None`` if the time is over, or if the hub ended
    before; a function that has begun goes on.
    """

    def __init__(self, is_gone: Callable[[], bool]) -> None:
        self._is_gone = is_gone
        self._signal = Signal()
        self._found: list[Any] = []

    def give(self, function: Callable[[], T]) -> None:
        """Run *function*, and keep its result or error. In the other hub."""
        answer: tuple[Any, BaseException | None]
        try:
            answer = (function(), None)
        except GreenletExit:  # its hub ends, which must not end the greenlet that waits
            self.end()
            return
        except BaseException as error:
            answer = (None, error)
        self._found[:] = answer
        self._signal.set()

    def end(self) -> None:
        """Note that there won't be any."""
        self._signal.set()

    def __call__(self, timeout: float | None) -> T | None:
        until = float("inf") if timeout is None else monotonic() + timeout
        while not self._signal.wait(max(0.001, min(until - monotonic(), LOOK_SECONDS))):
            if self._is_gone() or monotonic() >= until:
                break
        if not self._found:
            return None
        if self._found[1] is not None:
            raise self._found[1]
        result: T = self._found[0]
        return result


def ask(
    send: Callable[[Callable[[], object]], object],
    function: Callable[[], T],
    is_gone: Callable[[], bool] = lambda: False,
) -> Answer[T]:
    """Run *function* in a greenlet of another hub, and return its `Answer`.

    Args:
        send: Calls a function in that hub; returns ``False`` if the hub is gone, as
            `glb.hubs.threads.HubThread.send`.
        is_gone: Returns ``True`` if the hub has ended since.
    """
    answer: Answer[T] = Answer(is_gone)
    if send(lambda: gevent.spawn(answer.give, function)) is False:
        answer.end()
    return answer


class FairLock:
    """A lock that greenlets of any thread get in the order in which they came."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._is_held = False
        self._waiting: deque[Signal] = deque()

    def __enter__(self) -> None:
        """Acquire it.

        Switches:
            While another greenlet holds it. A kill leaves it as it was.
        """
        with self._lock:
            if not self._is_held:
                self._is_held = True
                return
            mine = Signal(self._lock)
            self._waiting.append(mine)
        try:
            mine.wait(None)
        except BaseException:
            with self._lock:
                if mine in self._waiting:
                    self._waiting.remove(mine)
                else:
                    self._hand_on_locked()  # it was ours a moment before
            raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._hand_on_locked()

    def _hand_on_locked(self) -> None:
        self._is_held = bool(self._waiting)
        if self._waiting:
            self._waiting.popleft().set()
