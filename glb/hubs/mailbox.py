"""Mailboxes: calls for one hub, from any thread.

A `Mailbox` keeps calls until its hub comes to them, and wakes the hub by a `WakeUp`: one async
watcher of the event loop. These rules always hold:

* Only the watcher's ``send`` is used from another thread. Everything else of a loop belongs to its
  own thread. (gevent's ``run_callback_threadsafe`` changes libuv's list of handles from the wrong
  thread, and crashes.)
* What sends to a watcher, and what closes it, hold the same lock. So a thread that closes what it
  has on its loop before it destroys the loop, as `glb.hubs.threads` does, is never woken too late.
* A program may destroy a loop without a word. Then ``hub.loop`` is ``None``, or the watcher refuses
  to be sent, and the hub counts as ended.
* A call is refused (``False``) if its hub has ended, and otherwise made once. If the hub ends in
  the same moment, the thread that finds out makes the calls that are left.

After a `fork`, the child forgets what belongs to other threads (`Mailbox.forget`): their loops
share descriptors with those of the parent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from gevent.exceptions import HubDestroyed

from ..originals import RLock

__all__ = ["Mailbox", "WakeUp"]


class WakeUp:
    """Has *call* called in *hub*, soon, when another thread says so. Made in the hub's thread.

    Its owner holds one lock when it sends, and when it closes what may still be sent.

    Args:
        ref: Whether it keeps the hub alive.
    """

    __slots__ = ("_args", "_call", "_hub", "_watcher")

    def __init__(
        self, hub: Any, call: Callable[..., object], *args: object, ref: bool = True
    ) -> None:
        self._hub: Final = hub
        self._call: Final = call
        self._args: Final = args
        self._watcher: Any = hub.loop.async_(ref=ref)
        self._watcher.start(call, *args)

    @property
    def is_open(self) -> bool:
        """Whether its hub can be woken by it."""
        return self._watcher is not None and self._hub.loop is not None

    def send(self) -> bool:
        """Wake the hub; ``False`` if that has ended. From any thread; several may be one."""
        watcher = self._watcher
        if watcher is None or self._hub.loop is None:
            return False
        try:
            watcher.send()
        except Exception:
            if _is_usable(watcher):
                raise  # it came from outside, a signal handler say, and does not come again
            # Its thread is destroying the loop at this moment, and the watchers with it.
            self._watcher = None
            return False
        return True

    def hold_loop(self, *, is_held: bool) -> None:
        """Keep the hub alive, or no longer. In its own thread."""
        if self.is_open:
            self._watcher.ref = is_held

    def look_over(self) -> None:
        """Start the watcher again, if an exception has stopped it: see `glb.hubs.guard`."""
        # On libuv a stopped one says that it is active. Starting an active one changes nothing.
        if self.is_open:
            self._watcher.start(self._call, *self._args)

    def close(self) -> None:
        """Leave nothing on the loop. In its own thread; twice is harmless."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None and self._hub.loop is not None:
            watcher.close()


def _is_usable(watcher: Any) -> bool:
    try:
        watcher.send()
    except Exception:
        return False
    return True


class Mailbox:
    """Calls that other threads have for *hub*. Made in the hub's thread.

    Args:
        lock: Native and re-entrant. A thread that posts while holding a lock gives that one.
        woken: Called in the hub when it is woken; it is to `answer`. ``None`` does no more.
        lost: Called with the lock held, in any thread, when the hub turns out to have ended
            without a `close`.
        ref: Whether it keeps the hub alive.
    """

    __slots__ = ("_calls", "_hub", "_lock", "_lost", "_wake_up")

    def __init__(
        self,
        hub: Any,
        lock: Any,
        woken: Callable[[], object] | None = None,
        lost: Callable[[], object] | None = None,
        *,
        ref: bool = True,
    ) -> None:
        self._hub: Final = hub
        self._lock: Any = lock
        self._lost: Final = lost
        self._calls: deque[Callable[[], object]] = deque()
        self._wake_up: WakeUp | None = WakeUp(hub, woken or self.answer, ref=ref)

    @property
    def is_open(self) -> bool:
        """Whether it takes calls."""
        wake_up = self._wake_up
        return wake_up is not None and wake_up.is_open

    def post(self, call: Callable[[], object]) -> bool:
        """Have *call* called in the hub, where it must not wait; ``False`` if that has ended."""
        with self._lock:
            if not self.is_open:
                return False
            self._calls.append(call)
            self.wake()
            return True

    def wake(self) -> None:
        """Have the hub look what there is to do. From any thread."""
        with self._lock:
            wake_up = self._wake_up
            if wake_up is None or not wake_up.is_open or wake_up.send():
                return
            self._wake_up = None
            if self._lost is not None:
                self._lost()
            self.answer()

    def answer(self) -> None:
        """Make all calls that are left, oldest first; the hub reports what one raises."""
        calls, hub = self._calls, self._hub
        while calls:
            call = calls.popleft()
            try:
                call()
            except HubDestroyed:
                raise
            except BaseException as error:  # those behind it are to be called, too
                hub.handle_error(call, type(error), error, error.__traceback__)

    def hold_loop(self, *, is_held: bool) -> None:
        """Keep the hub alive, or no longer. In its own thread."""
        if self._wake_up is not None:
            self._wake_up.hold_loop(is_held=is_held)

    def look_over(self) -> None:
        """See `WakeUp.look_over`."""
        if self._wake_up is not None:
            self._wake_up.look_over()

    def close(self) -> None:
        """Take no more calls, and leave nothing on the loop; twice is harmless.

        In its own thread, or in any once the hub has ended. Calls that came before are left for
        `answer`.
        """
        with self._lock:
            wake_up, self._wake_up = self._wake_up, None
        if wake_up is not None:
            wake_up.close()

    def forget(self) -> None:
        """Its loop isn't run in this process. It was forked, perhaps with the lock held."""
        self._wake_up = None
        self._lock = RLock()
        self._calls.clear()
