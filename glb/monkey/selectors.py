"""Selectors: ``select``, ``poll`` and epoll, in which a clone is readable on its turn.

All clones of an address lead to one kernel socket, which is readable for each of them as soon as
one connection waits. Here a clone is readable on its turn alone: a poll waits for the clone's
readiness event instead (see `glb.accept.readiness`), and the clone is ready for as long as the poll
lasts. A poll without an event checks the accept queue before it returns, because it may have had no
time for one: its timeout was 0 or short, or another descriptor was ready at once.

`select`, `poll`, `select_of_selector` and `start_accepting` replace gevent's: `glb.monkey.patch`
puts them there. Descriptors that aren't clones' go to gevent's own.

Source: ``gevent.select``, ``gevent.selectors`` and ``gevent.baseserver``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from gevent import get_hub
from gevent.baseserver import BaseServer

# By name, and now: ours will replace them.
from gevent.select import POLLIN, get_fileno  # type: ignore[attr-defined]  # not in the stubs
from gevent.select import poll as GeventPoll
from gevent.select import select as _gevents_select
from gevent.selectors import GeventSelector

from ..accept.descriptor import NUMBERS, Descriptor, find
from ..accept.readiness import Readiness, in_order
from ..accept.readiness_event import ReadinessWatcher
from .sockets import SharedSocket

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing, from 3.11 on

__all__ = ["poll", "select", "select_of_selector", "start_accepting"]

_gevents_poll: Final[Any] = GeventPoll.poll
_gevents_select_of_selector: Final[Any] = GeventSelector.select
_gevents_start_accepting: Final[Any] = BaseServer.start_accepting

_READ: Final = 1
_WRITE: Final = 2
_WRITABLE: Final = 4  # POLLOUT


K = TypeVar("K")


class _Polled(Generic[K]):
    """Some clones during a poll, ready meanwhile. The keys of *clones* are the poller's."""

    def __init__(self, clones: Mapping[K, Descriptor], *, is_waiting: bool) -> None:
        self._polled = {key: clone.readiness for key, clone in clones.items()}
        self._is_waiting = is_waiting
        self._begun: list[tuple[Readiness, Any]] = []
        self._reported: list[Readiness] = []

    def __enter__(self) -> Self:
        try:
            for one, mates in in_order(self._polled.values()):
                here = one.begin_poll(is_waiting=self._is_waiting, mates=mates)
                self._begun.append((one, here))
        except BaseException:
            self._end([])
            raise
        return self

    def ready(self, *, is_over: bool) -> list[K]:
        """Return the keys of the clones that have a connection to accept, or were closed.

        If the poll *is_over* otherwise, and there are none, the accept queue is dealt out now.
        """
        if is_over and not any(one.is_ready for one in self._polled.values()):
            for one in {one.entry: one for one, _ in self._begun}.values():
                one.deal()
        ready = {key: one for key, one in self._polled.items() if one.is_ready}
        self._reported = [*ready.values()]
        return [*ready]

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._end(self._reported if error is None else [])

    def _end(self, reported: list[Readiness]) -> None:
        for one, here in self._begun:
            one.end_poll(here, is_waiting=self._is_waiting, is_reported=one in reported)


# -- select ---------------------------------------------------------------------------------------


def select(rlist: Any, wlist: Any, xlist: Any, timeout: Any = None) -> Any:
    """`gevent.select.select`, in which a clone is readable on its turn."""
    if not NUMBERS or (timeout is not None and timeout < 0):
        return _gevents_select(rlist, wlist, xlist, timeout)
    rlist, wlist = [*rlist], [*wlist]
    clones: dict[int, Descriptor] = {}
    for place, each in enumerate(rlist):
        clone = _clone_behind(each)
        if clone is not None:
            clones[place] = clone
    if not clones:
        return _gevents_select(rlist, wlist, xlist, timeout)
    others = [each for place, each in enumerate(rlist) if place not in clones]
    is_waiting = timeout is None or timeout > 0
    with _Polled(clones, is_waiting=is_waiting) as polled:
        # First what is ready now, and errors of the others, as gevent's.
        readable, writable, exceptional = _gevents_select(others, wlist, xlist, 0)
        is_over = bool(readable or writable or exceptional or not is_waiting)
        ready = polled.ready(is_over=is_over)
        if ready or is_over:
            clones_of = [rlist[place] for place in ready]
            return [*clones_of, *readable], [*writable], [*exceptional]
        # Read now: a socket that is closed meanwhile has no number. Its clone is ready then.
        writing = [get_fileno(each) for each in wlist]
        reading = [
            clones[place].fileno() if place in clones else get_fileno(each)
            for place, each in enumerate(rlist)
        ]
        by_number = {reading[place]: clone for place, clone in clones.items()}
        flags = dict.fromkeys(writing, _WRITE)
        for place, number in enumerate(reading):
            if place not in clones:
                flags[number] = flags.get(number, 0) | _READ
        milliseconds = None if timeout is None else timeout * 1000
        events = dict(_gevents_poll(_Poll(flags, by_number), milliseconds))
        heard = {*polled.ready(is_over=True)}
    # A closed socket is readable, as gevent has it.
    return (
        [
            each
            for place, (each, number) in enumerate(zip(rlist, reading, strict=True))
            if place in heard or (place not in clones and events.get(number, 0) & ~_WRITABLE)
        ],
        [each for each, n in zip(wlist, writing, strict=True) if events.get(n, 0) & _WRITABLE],
        [],
    )


def _clone_behind(polled: Any) -> Descriptor | None:
    try:
        number = get_fileno(polled)
    except Exception:
        return None  # gevent raises the error
    return find(number)


# -- poll -----------------------------------------------------------------------------------------


def poll(self: Any, timeout: Any = None) -> list[tuple[int, int]]:
    """`gevent.select.poll.poll`, in which a clone is readable on its turn."""
    clones = _clones_among(self.fds.items(), _READ) if NUMBERS else None
    if not clones:
        return _gevents_poll(self, timeout)  # type: ignore[no-any-return]  # not in the stubs
    others = {number: flags for number, flags in self.fds.items() if number not in clones}
    with _Polled(clones, is_waiting=timeout is None or timeout != 0) as polled:
        found: list[tuple[int, int]] = _gevents_poll(_Poll(others, clones), timeout)
        ready = polled.ready(is_over=True)
    return [*((number, POLLIN) for number in ready), *(e for e in found if e[0] not in clones)]


class _Poll(GeventPoll):
    """gevent's ``poll`` of some descriptors, and of the readiness events of some clones."""

    fds: Any

    def __init__(self, flags: Mapping[int, int], clones: Mapping[int, Descriptor]) -> None:
        super().__init__()
        self.fds = flags
        self._clones = clones

    def _get_started_watchers(self, result: Any) -> list[Any]:
        watchers: list[Any] = super()._get_started_watchers(result)  # type: ignore[misc]  # not in the stubs
        hub = get_hub()
        for number, clone in self._clones.items():
            watcher = ReadinessWatcher(clone.readiness.event, hub)
            watchers.append(watcher)
            watcher.start(result.add_event, number, pass_events=True)
        return watchers


def _clones_among(polled: Iterable[tuple[int, int]], flag: int) -> dict[int, Descriptor]:
    found = {number: find(number) for number, flags in polled if flags & flag}
    return {number: clone for number, clone in found.items() if clone is not None}


# -- selectors ------------------------------------------------------------------------------------


def select_of_selector(self: Any, timeout: Any = None) -> list[Any]:
    """`gevent.selectors.GeventSelector.select`, in which a clone is readable on its turn."""
    clones = None
    if NUMBERS and self._inactive_watchers is not None:
        keys = self._fd_to_key.items()
        clones = _clones_among(((number, key.events) for number, key in keys), EVENT_READ)
    if not clones:
        return _gevents_select_of_selector(self, timeout)  # type: ignore[no-any-return]  # as above
    for number, clone in clones.items():
        _watch_event(self, number, clone)
    with _Polled(clones, is_waiting=timeout is None or timeout > 0) as polled:
        found: list[Any] = _gevents_select_of_selector(self, timeout)
        ready = polled.ready(is_over=True)
    active = self._active_watchers
    for number in {*ready} & {*active}:
        # It is in the result now: its event must not add it again.
        watcher = self._inactive_watchers[number] = active.pop(number)
        watcher.stop()
    others = [(key, events) for key, events in found if key.fd not in clones]
    keys = (self._fd_to_key.get(number) for number in ready)
    return [*((key, EVENT_READ) for key in keys if key is not None), *others]


def _watch_event(selector: Any, number: int, clone: Descriptor) -> None:
    active, inactive = selector._active_watchers, selector._inactive_watchers
    heard = selector._accumulated_events
    watcher = active.get(number) or inactive.get(number)
    event = clone.readiness.event
    is_ours = isinstance(watcher, ReadinessWatcher) and watcher.event is event
    if is_ours and (number not in heard or event.is_set):
        return
    # An event between two calls is over.
    heard.pop(number, None)
    if not heard:
        selector._ready.clear()
    active.pop(number, None)
    watcher.stop()
    if not is_ours:
        watcher.close()
        watcher = ReadinessWatcher(event, selector.hub)
    inactive[number] = watcher


# -- gevent's own servers -------------------------------------------------------------------------


def start_accepting(self: Any) -> None:
    """`gevent.baseserver.BaseServer.start_accepting`, which polls a clone until it stops.

    For gevent's servers that were imported before the patch.
    """
    sock = getattr(self, "socket", None)
    clone = getattr(sock, "_sock", sock)  # gevent takes the plain socket out
    if self._watcher is None and isinstance(clone, SharedSocket):
        self._watcher = _ServersWatcher(clone)
        self._watcher.start(self._do_read)
    else:
        _gevents_start_accepting(self)


class _ServersWatcher:
    """Polls a clone from its start to its stop."""

    def __init__(self, clone: SharedSocket) -> None:
        self._readiness = clone.readiness
        self._watcher = ReadinessWatcher(self._readiness.event, get_hub())
        self._here: Any = None

    def start(self, callback: Callable[[], object]) -> None:
        self._here = self._readiness.begin_poll(is_waiting=True)
        self._watcher.start(self._call, callback)

    def _call(self, callback: Callable[[], object]) -> None:
        # In the hub, as gevent's; and again, unless the callback has stopped it.
        callback()
        if self._here is not None:
            self._watcher.start(self._call, callback)

    def stop(self) -> None:
        here, self._here = self._here, None
        if here is not None:
            self._watcher.stop()
            # A connection that it has not accepted goes to the next clone.
            self._readiness.end_poll(here, is_waiting=True, is_reported=False)

    def close(self) -> None:
        self.stop()
