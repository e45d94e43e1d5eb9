"""Polls: ``select`` and its kin, for clones.

All clones of an address lead to one kernel socket, which is readable for each of them as soon as
one connection waits. Here a clone is told of a connection on its turn, and no other: whoever
polls it looks at its bell instead (see `glb.seats`), and it is ready for as long as that lasts.

`select`, `poll` and `select_of_selector` stand for gevent's, `glb.monkey` puts them in place.
Descriptors that aren't clones' go to gevent's, as they are.

Source: ``gevent.select`` and ``gevent.selectors``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from selectors import EVENT_READ
from typing import Any, Final

# By name, and now: ours will stand in their places.
from gevent.select import get_fileno  # type: ignore[attr-defined]  # not in the stubs
from gevent.select import poll as GeventPoll
from gevent.select import select as _gevents_select
from gevent.selectors import GeventSelector

from .descriptor import NUMBERS, Descriptor, find
from .sockets import Bell

__all__ = ["poll", "select", "select_of_selector"]

_gevents_poll: Final[Any] = GeventPoll.poll
_gevents_select_of_selector: Final[Any] = GeventSelector.select

_READ: Final = 1


@contextmanager
def _polled(clones: Iterable[Descriptor], *, is_waiting: bool) -> Iterator[None]:
    """Let *clones* be ready; or ask for a connection now, if nobody waits."""
    begun = []
    try:
        for clone in clones:
            seats = clone.seats
            begun.append((seats, seats.begin_poll(is_waiting=is_waiting)))
        yield
    finally:
        for seats, seat in begun:
            seats.end_poll(seat)


def select(rlist: Any, wlist: Any, xlist: Any, timeout: Any = None) -> Any:
    """`gevent.select.select`, where a clone is readable on its turn."""
    if not NUMBERS or (timeout is not None and timeout < 0):
        return _gevents_select(rlist, wlist, xlist, timeout)
    rlist = [*rlist]
    clones: dict[int, Descriptor] = {}
    for place, each in enumerate(rlist):
        clone = _clone_behind(each)
        if clone is not None:
            clones[place] = clone
    if not clones:
        return _gevents_select(rlist, wlist, xlist, timeout)
    looked_at = [*rlist]
    for place, clone in clones.items():
        looked_at[place] = _Meant(rlist[place], clone.seats.bell)
    is_waiting = timeout is None or timeout > 0
    with _polled(clones.values(), is_waiting=is_waiting):
        readable, *others = _gevents_select(looked_at, wlist, xlist, timeout)
    told = [each.polled if isinstance(each, _Meant) else each for each in readable]
    return (told, *others)


class _Meant:
    """What ``select`` is given for a clone: the bell, and what the program gave."""

    __slots__ = ("bell", "polled")

    def __init__(self, polled: Any, bell: Bell) -> None:
        self.polled = polled
        self.bell = bell

    def fileno(self) -> int:
        return self.bell.fileno()


def _clone_behind(polled: Any) -> Descriptor | None:
    try:
        number = get_fileno(polled)
    except Exception:
        return None  # gevent says what is wrong with it
    return find(number)


def poll(self: Any, timeout: Any = None) -> list[tuple[int, int]]:
    """`gevent.select.poll.poll`, where a clone is readable on its turn."""
    clones = _clones_among(self.fds.items(), _READ) if NUMBERS else None
    if not clones:
        return _gevents_poll(self, timeout)  # type: ignore[no-any-return]  # not in the stubs
    bells = {number: clone.seats.bell for number, clone in clones.items()}
    meant = {bell.fileno(): number for number, bell in bells.items()}
    looking: Any = GeventPoll()
    looking.fds = {number: flags for number, flags in self.fds.items() if number not in bells}
    looking.fds.update(dict.fromkeys(meant, _READ))
    with _polled(clones.values(), is_waiting=timeout is None or timeout != 0):
        found = _gevents_poll(looking, timeout)
    return [(meant.get(number, number), flags) for number, flags in found]


def select_of_selector(self: Any, timeout: Any = None) -> list[Any]:
    """`gevent.selectors.GeventSelector.select`, where a clone is readable on its turn."""
    clones = None
    if NUMBERS and self._inactive_watchers is not None:
        keys = self._fd_to_key.items()
        clones = _clones_among(((number, key.events) for number, key in keys), EVENT_READ)
    if not clones:
        return _gevents_select_of_selector(self, timeout)  # type: ignore[no-any-return]  # as above
    for number, clone in clones.items():
        _watch_bell(self, number, clone.seats.bell)
    with _polled(clones.values(), is_waiting=timeout is None or timeout > 0):
        found: list[Any] = _gevents_select_of_selector(self, timeout)
    return found


def _clones_among(polled: Iterable[tuple[int, int]], flag: int) -> dict[int, Descriptor]:
    found = {number: find(number) for number, flags in polled if flags & flag}
    return {number: clone for number, clone in found.items() if clone is not None}


class _BellWatcher:
    """A selector's watcher of a bell, which it keeps for as long as a loop looks at it."""

    def __init__(self, bell: Bell, loop: Any) -> None:
        self.bell = bell
        self._watcher = loop.io(bell.fileno(), _READ)
        self._watcher.priority = loop.MAXPRI

    def start(self, *args: Any, **options: Any) -> None:
        self._watcher.start(*args, **options)

    def stop(self) -> None:
        self._watcher.stop()

    def close(self) -> None:
        self._watcher.close()


def _watch_bell(selector: Any, number: int, bell: Bell) -> None:
    active, inactive = selector._active_watchers, selector._inactive_watchers
    watcher = active.get(number) or inactive.get(number)
    if isinstance(watcher, _BellWatcher) and watcher.bell is bell:
        return
    fresh = _BellWatcher(bell, selector.hub.loop)
    active.pop(number, None)
    inactive[number] = fresh
    watcher.stop()
    watcher.close()
