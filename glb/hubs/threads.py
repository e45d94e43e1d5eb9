"""Hub threads: native threads in which a gevent hub turns. The only module that starts any.

A `HubThread` makes the calls that it is sent, `~HubThread.send`, in its hub, until
`~HubThread.end`; then its hub is destroyed and the thread is over. They are native threads
under monkey patching, too.

At the end of the interpreter all are ended, and waited for: a thread that runs Python
while that is torn down crashes the process in some runs.

State: the threads that run, in ``_running``, for that end alone. After a `fork` there are none.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import gevent
from gevent import get_hub, getcurrent
from gevent._hub_local import get_hub_if_exists
from gevent.exceptions import HubDestroyed, LoopExit
from gevent.monkey import is_module_patched
from greenlet import greenlet

from ..originals import Lock, RLock, monotonic, native_ident, start_new_thread
from .mailbox import Mailbox
from .signals import Signal

__all__ = ["HubThread", "call_where_it_may_switch"]

# At the end of the interpreter, so long for all together. A thread that is in a call into C
# for longer is left where it is: then the process ends before it comes back, as a rule.
EXIT_SECONDS: Final = 5.0

# So long for greenlets that a program left on a hub that ends: as gevent's servers.
KILL_SECONDS: Final = 1.0

# A hub opens 2 descriptors on libev, 5 on libuv; so many must be free, in pairs. Without them libev
# asks for its own for ever, and writes a line each time.
PAIRS_FOR_A_HUB: Final = 3

T = TypeVar("T")


class HubThread:
    """A native thread with a hub that turns.

    Args:
        name: For reports, and for `threading.enumerate` where that knows native threads.
        on_system_error: Called in the thread with what ends a program in gevent's main hub,
            as ``KeyboardInterrupt`` and ``SystemExit``; the thread goes on.
        lock: What guards its state, native and re-entrant, so that a signal handler or a garbage
            collection may strike inside. A thread that sends while holding a lock gives that one.
    """

    def __init__(
        self,
        name: str,
        on_system_error: Callable[[BaseException], object] | None = None,
        lock: Any = None,
    ) -> None:
        self.name: Final = name
        #: The thread's hub and its native ident, once it was started.
        self.hub: Any = None
        self.ident = 0
        #: Called in a greenlet of the hub when the interpreter ends. It ends the thread.
        self.at_exit: Callable[[], object] = self.end
        self._on_system_error = on_system_error
        self._lock = RLock() if lock is None else lock
        self._mailbox: Mailbox | None = None
        self._main: Any = None
        self._is_ending = False
        # What a loop counts on which nothing is going on.
        self._idle_count = 0
        self._thread: threading.Thread | None = None
        self._over = Lock()
        self._ended = Signal(self._lock)
        self._failed: BaseException | None = None

    def start(self) -> HubThread:
        """Start the thread, and return when its hub is there.

        Raises:
            RuntimeError, OSError: There is no room for a thread, or for what its event loop
                needs. Nothing is left.

        Switches:
            Never: the calling thread waits, for a millisecond.
        """
        started = Lock()
        started.acquire()
        self._over.acquire()
        try:
            self._thread = _start_native(self.name, lambda: self._run(started))
        except BaseException:
            self._over.release()
            self._ended.set()
            raise
        try:
            started.acquire()
        except BaseException:  # an interrupt
            self._is_ending = True
            self.end()
            raise
        failed = self._failed
        if failed is not None:
            self.join(-1)
            if isinstance(failed, OSError):
                reason = f"can't start the thread {self.name!r}: {failed.strerror}"
                raise OSError(failed.errno, reason) from failed
            raise failed
        return self

    def send(self, call: Callable[[], object]) -> bool:
        """Have *call* called in the hub; ``False`` if that has ended. From any thread.

        It must not wait.
        """
        mailbox = self._mailbox
        return mailbox is not None and mailbox.post(call)

    def call(self, function: Callable[[], T]) -> T:
        """Return what *function* returns in the hub, or raise what it raises.

        Raises:
            RuntimeError: The thread has ended.

        Switches:
            Never: the calling thread waits. For a hub that is known to turn, and not while
            holding the registry's lock, for which the thread may ask.
        """
        done = Lock()
        done.acquire()
        found: list[Any] = [None, None]

        def run() -> None:
            try:
                found[0] = function()
            except BaseException as error:
                found[1] = error
            finally:
                done.release()

        if not self.send(run):
            raise RuntimeError(f"the thread {self.name!r} has ended")
        done.acquire()
        if found[1] is not None:
            try:
                raise found[1]
            finally:
                del found
        result: T = found[0]
        return result

    def end(self) -> None:
        """Tell the thread to end, when its hub turns. Twice is harmless; from any thread."""
        self.send(self._end)

    def wait(self, timeout: float | None) -> bool:
        """Wait for the thread's end, at most *timeout* seconds; tell whether it has ended.

        Switches:
            While waiting.
        """
        return self._ended.wait(timeout) and self.join(-1)

    @property
    def has_ended(self) -> bool:
        """Whether it is over, but for its last steps."""
        return self._ended.is_set

    def join(self, timeout: float) -> bool:
        """Wait natively; the calling thread's hub does not turn. -1 is for ever."""
        if not self._over.acquire(True, timeout):
            return False
        self._over.release()
        if self._thread is not None:
            self._thread.join()  # its last steps
        return True

    def forget(self) -> None:
        """There is no such thread in this process: it was forked, perhaps with a lock held."""
        if self._mailbox is not None:
            self._mailbox.forget()
        self._ended.forget()
        self._ended.set()
        self._over = Lock()
        self._thread = None

    # -- in the thread -----------------------------------------------------------------------

    def _run(self, started: Any) -> None:
        try:
            try:
                self.ident = native_ident()
                self._main = gevent.getcurrent()
                _check_room()
                self.hub = get_hub()
                self._idle_count = _count_watchers(self.hub.loop)
                self._mailbox = Mailbox(self.hub, self._lock)
                _running[self] = None
            except BaseException as error:
                self._failed = error
                return
            finally:
                started.release()
            while not self._is_ending:
                try:
                    self.hub.switch()
                except BaseException as error:
                    if self._on_system_error is not None:
                        self._on_system_error(error)
        finally:
            self._tear_down()

    def _end(self) -> None:
        self._is_ending = True
        self._main.switch()

    def _tear_down(self) -> None:
        mailbox = self._mailbox
        try:
            if mailbox is not None:
                mailbox.close()
                mailbox.answer()
                if _count_watchers(self.hub.loop) > self._idle_count:
                    self._end_what_is_left()
        finally:
            try:
                if self.hub is not None:
                    _destroy(self.hub)
            finally:
                _running.pop(self, None)
                self._ended.set()
                self._over.release()

    def _end_what_is_left(self) -> None:
        # Greenlets of the program's own, which wait on this hub, and would for ever.
        left: list[greenlet] = []
        try:
            # By its type alone: to ask a proxy what it is may do anything.
            found = [each for each in gc.get_objects() if issubclass(type(each), greenlet)]
            left = [each for each in found if each.parent is self.hub and not each.dead]
            gevent.killall(left, block=True, timeout=KILL_SECONDS)
        except BaseException as error:
            if self._on_system_error is not None:
                self._on_system_error(error)
        # A greenlet that refuses to die keeps a watcher, and a Timeout that was never closed is one
        # without a greenlet. gevent's loop on libuv goes on as long as there is one, and would
        # never be destroyed. (The one of the hub's thread pool is still needed to end that.)
        is_only_timers = all(each.dead for each in left)
        for watcher in [*getattr(self.hub.loop, "_keepaliveset", ())]:
            if watcher.active and (not is_only_timers or type(watcher).__name__ == "timer"):
                watcher.stop()


def call_where_it_may_switch(function: Callable[[], object]) -> None:
    """Call *function*, in a greenlet of its own if this is the hub.

    For the log: under monkey patching its handlers' locks switch greenlets, and so may what they
    write to. In the hub that raises, and whatever logs there is left half done.
    """
    # A thread without a hub gets none by this: its loop's descriptors would stay.
    if getcurrent() is get_hub_if_exists():
        gevent.spawn(function)
    else:
        function()


def _destroy(hub: Any) -> None:
    # As `destroy` begins, too; but gevent keeps the exception with which the hub ends for ever,
    # and with its traceback our frames, and with them the hub: 80 KiB a thread.
    try:
        hub.throw(HubDestroyed(True))
    except LoopExit as error:
        error.args = ()
        error.__traceback__ = None
    hub.destroy(destroy_loop=True)


def _count_watchers(loop: Any) -> int:
    kept = getattr(loop, "_keepaliveset", None)  # on libuv, whose own count is another
    return int(loop.activecnt) if kept is None else len(kept)


def _check_room() -> None:
    """Raise an OSError if a hub would find no descriptors."""
    with contextlib.ExitStack() as stack:
        for _ in range(PAIRS_FOR_A_HUB):
            for number in os.pipe():
                stack.callback(os.close, number)


def _start_native(name: str, run: Callable[[], None]) -> threading.Thread | None:
    if is_module_patched("threading") or is_module_patched("_thread"):
        start_new_thread(run, ())
        return None
    # So that `threading` knows it by its name, and not as a dummy that stays for ever.
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


# -- the end of the process ------------------------------------------------------------------

_running: Final[dict[HubThread, None]] = {}


def _end_all() -> None:
    threads = [*_running]
    for thread in threads:
        thread.send(functools.partial(gevent.spawn, thread.at_exit))
    until = monotonic() + EXIT_SECONDS
    for thread in threads:
        thread.join(max(0.0, until - monotonic()))


def _after_fork_in_child() -> None:
    _renew_loop()
    threads = [*_running]
    _running.clear()
    for thread in threads:
        thread.forget()


def _renew_loop() -> None:
    # On libuv the child has the parent's epoll set until its loop is renewed: what it closes
    # would be watched no more in the parent, which is deaf from then on. libev looks for a fork
    # by itself. `gevent.os.fork` does the same, after this; twice is harmless.
    hub: Any = get_hub_if_exists()
    loop = None if hub is None else hub.loop
    if loop is not None and hasattr(loop, "_keepaliveset"):  # libuv's
        loop.reinit()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
