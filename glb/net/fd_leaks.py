"""Leaks: how many descriptors are open, what they are, and whether handlers left them open.

**Numbers are evidence.** The kernel gives the lowest free number. So when an accept returns 800,
at least 800 other descriptors are open; when it fails with EMFILE, as many as are allowed; and a
listener's own number is a lower bound for those that were open when it was bound. All three cost
nothing.

**Handlers are suspected**, and no more than that, if many descriptors have come since the listener
was bound, and most of them are not connections that handlers have: see `Census.is_suspect`. A
program may have good reasons, so the report says "may" and "seem", and lists what the descriptors
are.

Descriptors are examined one by one, by number. To list a directory would need a descriptor, and
would take longer the more there are. Without ``/proc`` the report has only the kind of each file.

Source: getrlimit(2), proc(5) for ``/proc/self/fd`` and ``/proc/sys/fs/file-nr``.
"""

from __future__ import annotations

import errno
import functools
import importlib
import logging
import os
import random
import stat
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ..originals import Lock, monotonic

__all__ = ["Census", "Watermark", "describe"]

log: Final = logging.getLogger("glb")

# Here, since without a descriptor nothing can be imported. Windows has none.
_resource: Final[Any] = None if sys.platform == "win32" else importlib.import_module("resource")

# At most so many descriptors are examined, 5 to 10 us each; of more, a random sample. Its error is
# 3 % at most, as a rule, and no hub waits much longer for it than 10 ms. Most systems allow a
# process so many by default, so that most reports are exact.
MOST_LOOKED_AT: Final = 1024

# The kinds that a report names, most frequent first. A leak has one kind or two.
MOST_KINDS: Final = 3

# The end of a long path says more than its beginning.
MOST_LETTERS: Final = 80

# An honest handler has some more than its connection: a proxy's upstream, a file that it sends.
HONEST_A_CONNECTION: Final = 2

# A smaller share of what is allowed is no trouble yet.
SUSPECT_SHARE: Final = 1 / 4

# Early enough for an operator to read it before the rest is gone too; a server that uses three
# quarters of its descriptors should have more of them anyway.
HIGH_SHARE: Final = 3 / 4

# An episode ends below that: well below where it began, or it would end and begin with each
# connection.
LOW_SHARE: Final = 1 / 2

# The shortest time between two checks for the end of an episode.
LOOK_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Census:
    """How many descriptors are open, and whose they are.

    Attributes:
        opened: How many are open.
        limit: How many may be.
        connections: How many of them are connections that handlers have.
        before: How many there were when the server started.
    """

    opened: int
    limit: int
    connections: int
    before: int

    @property
    def is_suspect(self) -> bool:
        """Whether handlers may leak them.

        Of those that came since the server started, more than two for each connection are none,
        and these are more than a quarter of all that is allowed.
        """
        others = self.opened - self.before - self.connections
        return (
            others > HONEST_A_CONNECTION * self.connections and others > SUSPECT_SHARE * self.limit
        )

    def __str__(self) -> str:
        return (
            f"{self.opened} of {self.limit} descriptors are open, "
            f"{self.connections} of them connections that handlers have"
        )


def describe(error: BaseException, count_connections: Callable[[], int | None], before: int) -> str:
    """Return the likely reason of an accept's *error*, for the log, or ``""``.

    For EMFILE it is what this process has open, for ENFILE how many files the system has.

    Args:
        count_connections: Returns how many connections handlers have; ``None`` if that is unknown.
        before: How many descriptors there were, at least, when the listener was bound.

    Raises:
        Nothing: the text leaves out what can't be found.
    """
    try:
        code = getattr(error, "errno", None)
        if code == errno.EMFILE:
            return _describe_process(count_connections(), before)
        if code == errno.ENFILE:
            return _describe_system()
    except Exception:  # the line that it is for must be logged in any case
        return ""
    return ""


def _describe_process(connections: int | None, before: int) -> str:
    limit = soft_limit()
    if limit is None:
        return ""
    if connections is None:
        return f"{limit} of {limit} descriptors are open, mostly {_most_of(look(limit)[1])}"
    census = Census(limit, limit, connections, before)
    if not census.is_suspect:
        return str(census)
    return f"{census}; handlers may leak the others, mostly {_most_of(look(limit)[1], connections)}"


def _describe_system() -> str:
    # As bytes: a text's codec may have to be imported, which takes a descriptor.
    with open("/proc/sys/fs/file-nr", "rb") as file:
        opened, _, limit = map(int, file.read().split())
    return f"{opened} of {limit} files of the system are open"


class Watermark:
    """Warns of a leak when three quarters of the descriptors are in use. From any thread.

    Call `reached` with the number of each new descriptor that is `level` or more. There is one
    warning an episode, and none if it is no leak. An episode lasts from the first such number
    until less than half of what is allowed is open.

    Args:
        before: How many descriptors there were when the server started: its listener's number.
        count_connections: Returns how many connections handlers have; ``None`` if that is unknown.
        limit: Returns how many descriptors may be open; ``None`` is any number.
        clock: Returns the time, in seconds.
        say: Calls a function that logs, which may switch greenlets.
    """

    def __init__(
        self,
        before: int,
        count_connections: Callable[[], int | None],
        *,
        say: Callable[[Callable[[], object]], object],
        limit: Callable[[], int | None] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.before: Final = before
        self._count_connections = count_connections
        self._limit = soft_limit if limit is None else limit
        self._clock = clock
        self._say = say
        #: The lowest number to call `reached` with; 0 in an episode, whose end any number may show.
        self.level = _share(self._limit(), HIGH_SHARE)
        # A second thread has nothing to add, so it never waits. (A child that is forked while it is
        # held has no more warnings.)
        self._lock: Any = Lock()
        # Within an episode without a warning: the number at which it is judged again.
        self._next = 0
        self._looks_at = 0.0

    def reached(self, server: object, number: int) -> None:
        """Note a new descriptor's *number*, which is `level` or more.

        It raises nothing, and costs a microsecond or two, and 10 ms a few times in an episode.
        """
        if not self._lock.acquire(False):
            return
        try:
            self._reached(server, number)
        except Exception:
            log.debug("can't find out whether descriptors leak", exc_info=True)
        finally:
            self._lock.release()

    def _reached(self, server: object, number: int) -> None:
        limit = self._limit()
        high = _share(limit, HIGH_SHARE)
        if limit is None or (self.level and number < high):
            self.level = high  # the limit was raised since
            return
        if number >= high:
            if not self.level:
                is_news = number >= self._next
            else:
                self.level, is_news = 0, True
                self._looks_at = self._clock() + LOOK_SECONDS
            if is_news:
                # Half way to the limit, and so on: a leak may show later.
                self._next = (number + limit + 1) // 2
                self._judge(server, number + 1, limit)
        elif self._clock() >= self._looks_at:
            # A low number alone proves nothing: it may be the only low one that is free.
            self._looks_at = self._clock() + LOOK_SECONDS
            if look(high)[0] < LOW_SHARE * limit:
                self.level = high

    def _judge(self, server: object, opened: int, limit: int) -> None:
        connections = self._count_connections()
        if connections is None:
            return
        census = Census(opened, limit, connections, self.before)
        if census.is_suspect:
            self._next = sys.maxsize  # once an episode
            others = _most_of(look(opened)[1], connections)
            self._say(functools.partial(_warn, str(server), census, others))


def _warn(server: str, census: Census, others: str) -> None:
    try:
        log.warning(
            "%s: handlers seem to leak descriptors: %s; the others are mostly %s",
            server,
            census,
            others,
        )
    except Exception:
        log.debug("can't warn of a leak", exc_info=True)


def _share(limit: int | None, share: float) -> int:
    return sys.maxsize if limit is None else max(1, int(limit * share))


def soft_limit() -> int | None:
    """Return how many descriptors this process may have; ``None`` is any number."""
    if _resource is None:
        return None
    limit: int = _resource.getrlimit(_resource.RLIMIT_NOFILE)[0]
    return None if limit == _resource.RLIM_INFINITY else limit


def look(below: int) -> tuple[int, Counter[str]]:
    """Return how many numbers *below* one are open, and of which kinds they are.

    Where there are more than 1,024, that many are looked at, and the counts are what follows.
    """
    sample: Any = range(below)
    if below > MOST_LOOKED_AT:
        sample = random.sample(sample, MOST_LOOKED_AT)
    found = Counter(kind for kind in map(_kind_of, sample) if kind is not None)
    scale = below / max(1, len(sample))
    kinds = Counter({kind: round(times * scale) for kind, times in found.items()})
    return round(sum(found.values()) * scale), kinds


def _kind_of(number: int) -> str | None:
    try:
        target = os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return _kind_without_proc(number)
    kind, is_numbered, _ = target.partition(":[")
    return kind if is_numbered and kind in ("socket", "pipe") else target


def _kind_without_proc(number: int) -> str | None:
    try:
        mode = os.fstat(number).st_mode
    except OSError:
        return None
    if stat.S_ISSOCK(mode):
        return "socket"
    return "pipe" if stat.S_ISFIFO(mode) else "file"


def _most_of(kinds: Counter[str], connections: int = 0) -> str:
    """Return *kinds* in words, without so many sockets that are *connections*."""
    left: Counter[str] = Counter()
    for kind, times in kinds.items():
        # Of many files that are open once each, as uploads are, the folder says more.
        is_alone = times == 1 and kind.startswith("/")
        left[f"files in {os.path.dirname(kind)}" if is_alone else kind] += times
    left["socket"] -= connections
    most = [f"{_printable(kind)} ({n})" for kind, n in left.most_common(MOST_KINDS) if n > 0]
    return ", ".join(most) or "of an unknown kind"


def _printable(kind: str) -> str:
    if len(kind) > MOST_LETTERS:
        kind = "..." + kind[-MOST_LETTERS:]
    return kind if kind.isprintable() else ascii(kind)
