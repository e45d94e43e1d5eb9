"""Crossings: what belongs to one hub of a server, and was used on another.

gevent's queues, greenlets, pools and sockets belong to one hub. Used on two, they fail far from
the place in the program that is to blame: a greenlet that waits on one hub is to be woken by
another, which can't, and says ``AssertionError: Can only use Waiter.switch method from the Hub
greenlet``. The greenlet goes on waiting.

A `Crossings` is one server's. It looks at what gevent reports on the server's hubs, by
``hub.handle_error``, which gevent leaves to programs. gevent's report stays as it is; the first
that has to do with two hubs is followed by one warning in the log, which names both hubs and has
the stack of the greenlet. A server of one hub has no `Crossings`.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from types import MethodType, TracebackType
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

import greenlet
from gevent import get_hub
from gevent._waiter import Waiter
from gevent.exceptions import InvalidThreadUseError

__all__ = ["Crossings"]

log: Final = logging.getLogger("glb")


class Crossings:
    """What of the hubs of one server was used across them.

    Args:
        name: Of the server, for the warning.
    """

    def __init__(self, name: str) -> None:
        self.name: Final = name
        #: Whether the program was warned.
        self.is_told = False
        self._hubs: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._watches: list[_Watch] = []

    def watch(self, hub: Any, name: str) -> None:
        """Look at what *hub*, one of the server's, reports. From any thread."""
        watch = hub.handle_error
        if not isinstance(watch, _Watch):
            watch = hub.handle_error = _Watch(hub)
        watch.crossings.append(self)
        self._watches.append(watch)
        self._hubs[hub] = name

    def end(self) -> None:
        """Look no longer. Twice is harmless; from any thread."""
        while self._watches:
            self._watches.pop().leave(self)

    def look(self, context: Any, kind: Any, error: Any, trace: TracebackType | None) -> None:
        """*error* is reported on this thread's hub: warn, if another of the hubs has to do with it.

        The arguments are those of gevent's ``handle_error``.
        """
        if self.is_told:
            return
        here = get_hub()
        found = None
        if kind is AssertionError and "from the Hub greenlet" in str(error):
            found = self._find_waiter(here, context)
        elif kind is InvalidThreadUseError and len(error.args) == 3:  # owner, here, greenlet
            found = error.args[0], traceback.format_tb(trace)
        elif kind is greenlet.error and "different thread" in str(error):
            found = self._find_expected(here, error), self._stack_in(context, trace)
        if found is None or found[0] not in self._hubs or found[0] is here:
            return
        self.is_told = True
        self._warn(here, *found)

    def _warn(self, here: Any, other: Any, stack: Sequence[str]) -> None:
        log.warning(
            "%s has several hubs, and what belongs to one of them (gevent's queues, greenlets, "
            "pools, sockets do) was used on another: %s and %s. The greenlet that waits for it "
            "may wait for ever. Give the server one hub (hubs=1), or keep what handlers share to "
            "one. The greenlet is at:\n%s",
            self.name,
            self._hubs.get(here, repr(here)),
            self._hubs[other],
            "".join(stack).rstrip(),
        )

    def _find_waiter(self, here: Any, context: Any) -> tuple[Any, Sequence[str]] | None:
        # gevent's error doesn't tell whose waiter it was. It was taken out of its queue, so that
        # nothing refers to it but the stack of its greenlet, which isn't found.
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
        # It names the main greenlets of the two threads, each of which is the parent of its hub.
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
    """What stands for a hub's ``handle_error``. It has no strong reference to its hub."""

    def __init__(self, hub: Any) -> None:
        self._hub = ref(hub)
        self._programs: Callable[..., object] | None = hub.__dict__.get("handle_error")
        self.crossings: list[Crossings] = []

    def __call__(self, context: Any, kind: Any, error: Any, trace: Any) -> None:
        hub = self._hub()
        if hub is None:
            return
        report = self._programs or type(hub).handle_error.__get__(hub)
        try:
            report(context, kind, error, trace)
        finally:
            with contextlib.suppress(Exception):  # as gevent asks of it
                for each in [*self.crossings]:
                    each.look(context, kind, error, trace)

    def leave(self, crossings: Crossings) -> None:
        """Look no more for *crossings*; with the last one, be gone."""
        self.crossings.remove(crossings)
        hub = self._hub()
        if hub is None or self.crossings or hub.__dict__.get("handle_error") is not self:
            return
        if self._programs is None:
            del hub.handle_error
        else:
            hub.handle_error = self._programs


def _is_kept(waiter: object) -> bool:
    # By what wakes a greenlet when it is its turn: a queue, or a watcher's callback. A channel's
    # queue has the waiter in a pair, which its greenlet's stack has as well.
    for each in gc.get_referrers(waiter):
        if isinstance(each, (deque, MethodType)):
            return True
        if isinstance(each, tuple) and any(isinstance(e, deque) for e in gc.get_referrers(each)):
            return True
    return False


def _stack_of(waiting: Any) -> list[str]:
    return traceback.format_stack(waiting.gr_frame)
