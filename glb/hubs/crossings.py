"""Crossings: objects that belong to one hub of a server, and were used on another.

gevent's queues, greenlets, pools and sockets belong to one hub. Used on two, they fail far from
the place in the program that is to blame: one hub tries to wake a greenlet that waits on another,
and fails with ``AssertionError: Can only use Waiter.switch method from the Hub greenlet``. The
greenlet goes on waiting.

A `Crossings` is one server's. It reads what gevent reports on the server's hubs, by
``hub.handle_error``, which gevent leaves to programs. gevent's report stays as it is. After the
first that has to do with two hubs the log has one warning, with the names of both hubs and the
stack of the greenlet. A server of one hub has no `Crossings`.

A queue's failure is mended where that is safe: the greenlet's own hub wakes it, gevent's report is
left out, and the first time the log has a warning. gevent's error names neither queue nor greenlet.
Both are found by their references to each other: that takes a search through all objects of the
process, some milliseconds for each mended wait. If there is more than one candidate, none is woken.

Process-wide: the lock of that search.

Source: gevent's ``queue.py``, ``SimpleQueue._unlock``, ``put`` and ``get``.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from itertools import compress
from types import MethodType, TracebackType
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

import gevent
import greenlet
from gevent import get_hub
from gevent._waiter import Waiter
from gevent.exceptions import InvalidThreadUseError
from gevent.queue import Empty, SimpleQueue

from ..originals import RLock
from .threads import call_where_it_may_switch

__all__ = ["Crossings"]

Send = Callable[[Callable[[], object]], bool]

log: Final = logging.getLogger("glb")

# A second search at the same time would refer to what the first one looks for.
_search_lock: Final = RLock()

# How often a greenlet that waits in the place of another checks that the other still waits.
WAIT_SECONDS: Final = 0.25

_WAITS_ON: Final = "The greenlet that waits for it may wait for ever."
_WOKEN: Final = (
    "The greenlet that waits for it was woken all the same. That is slow, and the next ones are "
    "woken without a word."
)


class Crossings:
    """The crossings of one server's hubs.

    Args:
        name: The server's, for the warning.
    """

    def __init__(self, name: str) -> None:
        self.name: Final = name
        #: The warnings that the log has: `_WAITS_ON`, `_WOKEN`.
        self._logged: set[str] = set()
        #: The name of each hub, and the function that calls into it.
        self._hubs: WeakKeyDictionary[Any, tuple[str, Send]] = WeakKeyDictionary()
        self._watches: list[_Watch] = []

    def watch(self, hub: Any, name: str, send: Send) -> None:
        """Read what *hub*, one of the server's, reports. From any thread.

        Args:
            send: Calls a function in that hub. From any thread.
        """
        watch = hub.handle_error
        if not isinstance(watch, _Watch):
            watch = hub.handle_error = _Watch(hub)
        watch.crossings.append(self)
        self._watches.append(watch)
        self._hubs[hub] = (name, send)

    def end(self) -> None:
        """Stop reading reports. Twice is harmless; from any thread."""
        while self._watches:
            self._watches.pop().leave(self)

    def mend(self, context: Any, kind: Any, error: Any) -> bool:
        """Wake the greenlet that a queue of this hub couldn't wake on another.

        Returns:
            ``False`` if that can't be done.

        The arguments are those of gevent's ``handle_error``.
        """
        if not _is_of_waiter(kind, error):
            return False
        here = get_hub()
        if not _search_lock.acquire(timeout=1):  # held by a thread that a fork has ended
            return False
        try:
            queue, waiters = self._find_hand_over(here, context)
        finally:
            _search_lock.release()
        if queue is None:
            return False
        # The error has ended the queue's loop: wake the greenlets behind the one that failed, too.
        here.loop.run_callback(type(queue)._unlock, queue)
        if len(waiters) != 1:
            return False
        (waiter,) = waiters
        stack = _stack_of(waiter.greenlet) if not self._logged else []
        _, send = self._hubs[waiter.hub]
        send(functools.partial(_hand_over, queue, waiter))
        if not self._logged:
            self._warn(_WOKEN, here, waiter.hub, stack)
        return True

    def look(self, context: Any, kind: Any, error: Any, trace: TracebackType | None) -> None:
        """Warn if *error*, which this thread's hub reports, has to do with another of the hubs.

        The arguments are those of gevent's ``handle_error``.
        """
        if _WAITS_ON in self._logged:
            return
        here = get_hub()
        found = None
        if _is_of_waiter(kind, error):
            found = self._find_waiter(here, context)
        elif kind is InvalidThreadUseError and len(error.args) == 3:  # owner, here, greenlet
            found = error.args[0], traceback.format_tb(trace)
        elif kind is greenlet.error and "different thread" in str(error):
            found = self._find_expected(here, error), self._stack_in(context, trace)
        if found is None or found[0] not in self._hubs or found[0] is here:
            return
        self._warn(_WAITS_ON, here, *found)

    def _warn(self, outcome: str, here: Any, other: Any, stack: Sequence[str]) -> None:
        self._logged.add(outcome)
        warn = functools.partial(
            log.warning,
            "%s has several hubs, and what belongs to one of them (gevent's queues, greenlets, "
            "pools, sockets do) was used on another: %s and %s. %s Give the server one hub "
            "(hubs=1), or keep what handlers share to one. The greenlet is at:\n%s",
            self.name,
            self._hubs[here][0] if here in self._hubs else repr(here),
            self._hubs[other][0],
            outcome,
            "".join(stack).rstrip(),
        )
        call_where_it_may_switch(warn)

    def _find_hand_over(self, here: Any, context: Any) -> tuple[Any, list[Any]]:
        # The queue has the callback that failed, or is its argument (`mend`). It has removed the
        # waiter. Only the stack of the waiter's greenlet refers to it, which is in C, where the
        # garbage collector doesn't see it.
        given = getattr(context, "args", None) or ()
        others = [hub for hub in [*self._hubs] if hub is not here]
        found = gc.get_referrers(context, *others)
        queues = [
            each
            for each in given or found
            if issubclass(type(each), SimpleQueue)
            and (given or any(referent is context for referent in gc.get_referents(each)))
        ]
        if len(queues) != 1:
            return None, []
        (queue,) = queues
        waiters: list[Any] = [
            each
            for each in found
            if issubclass(type(each), Waiter)
            and each.hub in others
            and getattr(each, "queue", queue) is queue  # of one that puts
        ]
        del found
        arguments = tuple(waiters)
        kept = {
            id(each)
            for holder in gc.get_referrers(*arguments)
            if holder is not waiters and holder is not arguments
            for each in gc.get_referents(holder)
        }
        # This check is last: in the meantime the waiter's own thread may have woken it.
        return queue, [e for e in waiters if id(e) not in kept and e.greenlet is not None]

    def _find_waiter(self, here: Any, context: Any) -> tuple[Any, Sequence[str]] | None:
        # gevent's error doesn't name the waiter. Its queue has removed it, so that only its
        # greenlet's stack refers to it, which the garbage collector doesn't see.
        given = [each for each in getattr(context, "args", None) or () if isinstance(each, Waiter)]
        waiters: list[Any] = given or [
            each for each in gc.get_objects() if issubclass(type(each), Waiter)
        ]
        for waiter in waiters:
            if waiter.hub is here or waiter.hub not in self._hubs or waiter.greenlet is None:
                continue
            if given or not _is_kept(waiter):
                return waiter.hub, _stack_of(waiter.greenlet)
        return None

    def _find_expected(self, here: Any, error: BaseException) -> Any:
        # The text names the main greenlets of the two threads, the parents of their hubs.
        text = str(error)
        for hub in [*self._hubs]:
            if hub is not here and f" {id(hub.parent):#x} " in text:
                return hub
        return None

    def _stack_in(self, context: Any, trace: TracebackType | None) -> Sequence[str]:
        link = getattr(context[0], "__self__", None) if isinstance(context, tuple) else None
        if isinstance(link, greenlet.greenlet) and link.gr_frame is not None:
            return _stack_of(link)
        return traceback.format_tb(trace)


class _Watch:
    """Replaces a hub's ``handle_error``. It has no strong reference to its hub."""

    def __init__(self, hub: Any) -> None:
        self._hub = ref(hub)
        self._programs: Callable[..., object] | None = hub.__dict__.get("handle_error")
        self.crossings: list[Crossings] = []

    def __call__(self, context: Any, kind: Any, error: Any, trace: Any) -> None:
        hub = self._hub()
        if hub is None:
            return
        report = self._programs or type(hub).handle_error.__get__(hub)
        with contextlib.suppress(Exception):  # as gevent asks of it
            if any(each.mend(context, kind, error) for each in [*self.crossings]):
                return
        try:
            report(context, kind, error, trace)
        finally:
            with contextlib.suppress(Exception):
                for each in [*self.crossings]:
                    each.look(context, kind, error, trace)

    def leave(self, crossings: Crossings) -> None:
        """Remove *crossings*; with the last one, restore the hub's ``handle_error``."""
        self.crossings.remove(crossings)
        hub = self._hub()
        if hub is None or self.crossings or hub.__dict__.get("handle_error") is not self:
            return
        if self._programs is None:
            del hub.handle_error
        else:
            hub.handle_error = self._programs


def _is_of_waiter(kind: Any, error: object) -> bool:
    return kind is AssertionError and "from the Hub greenlet" in str(error)


def _hand_over(queue: Any, waiter: Any) -> None:
    # In the waiter's hub. Another thread may have taken the item, and gevent's `get` doesn't check
    # again: it would raise IndexError. Between the check of the queue and the end of `get`, no
    # other thread may run, so it is one call, into C. A waiter in `put` has put its item already.
    is_there = (True,) if hasattr(waiter, "item") else map(len, (queue,))
    if not [*map(waiter.switch, compress((waiter,), is_there))] and waiter.greenlet is not None:
        gevent.spawn(_wait_again, queue, waiter)


def _wait_again(queue: Any, waiter: Any) -> None:
    # The queue won't take the waiter back, so this greenlet waits in its place.
    run_callback = get_hub().loop.run_callback
    while waiter.greenlet is not None:
        try:
            queue.peek(timeout=WAIT_SECONDS)
        except Empty:
            continue
        except Exception as error:  # the queue is shut down
            run_callback(waiter.throw, error)
        else:
            run_callback(_hand_over, queue, waiter)
        return


def _is_kept(waiter: object) -> bool:
    # A queue or a watcher's callback keeps a waiter that it will wake. A channel's queue has the
    # waiter in a pair, which its greenlet's stack has as well.
    for each in gc.get_referrers(waiter):
        if isinstance(each, (deque, MethodType)):
            return True
        if isinstance(each, tuple) and any(isinstance(e, deque) for e in gc.get_referrers(each)):
            return True
    return False


def _stack_of(waiting: Any) -> list[str]:
    return traceback.format_stack(waiting.gr_frame)
