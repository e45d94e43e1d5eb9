"""The measure of a balance: turns and times of each clone, as the clients of a load test see them.

Each process of a load test has a `Measure`. A worker's is emptied into reports (`Measure.take`),
and the master's adds them up (`Measure.merge`): so the master's is the sum of all. It knows nothing
of locust: neither its runners nor its options or pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import gevent

from ..model.stats import jain

__all__ = ["Clone", "CloneFigures", "Figures", "Measure", "Sample", "kind_of"]

#: A clone's number; or another text of the server's.
Clone = int | str

_OF_HOW_MANY: Final = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)
# Longer ones are text: they fit neither in a message to the master, nor in a page's numbers.
_NUMBER: Final = re.compile(r"\d{1,15}", re.ASCII)

# A server that sends a new name each time is a mistake, and not a reason to run out of memory.
MOST_CLONES: Final = 10_000
OTHERS: Final = "(others)"

# Samples: ten minutes of one a second, or a day of one in two or three minutes.
MOST_SAMPLES: Final = 600
#: Of very many clones there are fewer: so many counts are kept, but some samples at least.
MOST_COUNTS: Final = 100_000
LEAST_SAMPLES: Final = 20


@dataclass(frozen=True)
class CloneFigures:
    """The figures of one clone.

    Attributes:
        clone: Its number, or the server's text.
        turns: Connections that it served.
        replies: Replies that it gave, of which a connection may have many.
        failures: Replies that locust counts as failures.
        mean_ms, p50_ms, p99_ms, max_ms: Response times, in milliseconds; percentiles have two
            significant digits.
    """

    clone: Clone
    turns: int = 0
    replies: int = 0
    failures: int = 0
    mean_ms: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0


@dataclass(frozen=True)
class Figures:
    """How evenly a load was spread.

    Attributes:
        clones: All known clones, in order; also those that served no client.
        resets, refusals, timeouts: Failed requests, by their error; their clones aren't known.
    """

    clones: tuple[CloneFigures, ...]
    resets: int = 0
    refusals: int = 0
    timeouts: int = 0

    @property
    def turns(self) -> int:
        """How many connections were served."""
        return sum(each.turns for each in self.clones)

    @property
    def replies(self) -> int:
        """The number of replies whose clone is known."""
        return sum(each.replies for each in self.clones)

    @property
    def jain(self) -> float:
        """Jain's fairness index of the turns: 1 if all are equal, 1/N if one has everything."""
        return jain([each.turns for each in self.clones])

    @property
    def spread(self) -> int:
        """The most turns less the fewest: at most 1 if they went round exactly."""
        turns = [each.turns for each in self.clones]
        return max(turns, default=0) - min(turns, default=0)

    @property
    def deviation(self) -> float:
        """How far the clone that is farthest from an equal share is from it, in turns."""
        if not self.clones:
            return 0.0
        share = self.turns / len(self.clones)
        return max(abs(each.turns - share) for each in self.clones)

    @property
    def is_exact(self) -> bool:
        """Whether it is what exact turns give."""
        return self.turns > 0 and self.spread <= 1


@dataclass(frozen=True)
class Sample:
    """How many turns each clone had had after so many seconds."""

    seconds: float
    turns: dict[Clone, int]


@dataclass
class _Served:
    """What is counted of a clone. `times`: how many replies took so many milliseconds, rounded."""

    turns: int = 0
    replies: int = 0
    failures: int = 0
    total_ms: float = 0.0
    max_ms: float = 0.0
    times: dict[float, int] = field(default_factory=dict)

    def merge(
        self,
        turns: int,
        replies: int,
        failures: int,
        total_ms: float,
        max_ms: float,
        times: dict[float, int],
    ) -> None:
        self.turns += turns
        self.replies += replies
        self.failures += failures
        self.total_ms += total_ms
        self.max_ms = max(self.max_ms, max_ms)
        for milliseconds, count in times.items():
            self.times[milliseconds] = self.times.get(milliseconds, 0) + count

    def percentile(self, part: float) -> float:
        """Return within how many milliseconds *part* of the replies came."""
        left = self.replies * part
        for milliseconds in sorted(self.times):
            left -= self.times[milliseconds]
            if left <= 0:
                return milliseconds
        return 0.0

    def figures(self, clone: Clone) -> CloneFigures:
        return CloneFigures(
            clone,
            turns=self.turns,
            replies=self.replies,
            failures=self.failures,
            mean_ms=self.total_ms / self.replies if self.replies else 0.0,
            p50_ms=self.percentile(0.5),
            p99_ms=self.percentile(0.99),
            max_ms=self.max_ms,
        )


class Measure:
    """Counts the turns of each clone, of one process or of all that report to it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._served: dict[Clone, _Served] = {}
        # The server's text -> the clone. Most replies have a known text.
        self._known: dict[object, Clone] = {}
        self._failures = {"reset": 0, "refused": 0, "timeout": 0}
        self._history: list[Sample] = []
        self._samples = 0
        self._every = 1

    @property
    def history(self) -> list[Sample]:
        """Samples of the turns, oldest first."""
        return self._history

    def record(
        self,
        name: int | str | bytes | bytearray | memoryview,
        milliseconds: float,
        *,
        is_turn: bool = True,
        is_failure: bool = False,
    ) -> None:
        """Count a reply.

        Args:
            name: Its clone: a number, from 0, or text; ``"3/4"`` is number 3 of 4.
            milliseconds: How long it took.
            is_turn: True if it is the first on its connection.
            is_failure: True if locust counts it as a failure.
        """
        if isinstance(name, (bytearray, memoryview)):
            name = bytes(name)
        clone = self._known.get(name)
        if clone is None:
            clone = self._learn(name)
        served = self._served[clone]
        served.turns += is_turn
        served.replies += 1
        served.failures += is_failure
        served.total_ms += milliseconds
        served.max_ms = max(served.max_ms, milliseconds)
        rounded = float(f"{milliseconds:.2g}")
        served.times[rounded] = served.times.get(rounded, 0) + 1

    def fail(self, exception: BaseException) -> None:
        """Count a request that failed, if it is a reset, a refusal or a timeout."""
        kind = kind_of(exception)
        if kind is not None:
            self._failures[kind] += 1

    def sample(self, seconds: float) -> None:
        """Keep the present turns, *seconds* after the test began, and thin out old samples."""
        self._samples += 1
        if self._samples % self._every:
            return
        self._history.append(
            Sample(seconds, {clone: each.turns for clone, each in self._served.items()})
        )
        most = min(MOST_SAMPLES, max(LEAST_SAMPLES, MOST_COUNTS // max(len(self._served), 1)))
        while len(self._history) >= most:
            del self._history[::2]
            self._every *= 2

    def take(self) -> dict[str, Any]:
        """Return the counts since the last call, as plain data, and clear them."""
        report = {
            "clones": [[clone, asdict(each)] for clone, each in self._served.items()],
            "failures": self._failures,
        }
        # Known clones stay known.
        self._served = {clone: _Served() for clone in self._served}
        self._failures = dict.fromkeys(self._failures, 0)
        return report

    def merge(self, report: dict[str, Any]) -> None:
        """Add the result of another one's `take`."""
        for clone, counts in report["clones"]:
            self._served[self._add(clone)].merge(**counts)
        for kind, count in report["failures"].items():
            self._failures[kind] += count

    def figures(self) -> Figures:
        """Return the figures until now."""
        clones = sorted(self._served, key=lambda clone: (isinstance(clone, str), clone))
        return Figures(
            tuple(self._served[clone].figures(clone) for clone in clones),
            resets=self._failures["reset"],
            refusals=self._failures["refused"],
            timeouts=self._failures["timeout"],
        )

    def _learn(self, name: int | str | bytes) -> Clone:
        text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        # Text from outside, which goes to terminals and files.
        text = "".join(each if each.isprintable() else "\ufffd" for each in text.strip()[:100])
        parts = _OF_HOW_MANY.fullmatch(text)
        clone: Clone
        if parts is None:
            clone = self._add(int(text) if _NUMBER.fullmatch(text) else text)
        else:
            clone = self._add(int(parts[1]))
            for number in range(min(int(parts[2]), MOST_CLONES)):
                self._add(number)
        if len(self._known) < MOST_CLONES:
            self._known[name] = clone
        return clone

    def _add(self, clone: Clone) -> Clone:
        if clone not in self._served:
            if len(self._served) >= MOST_CLONES:
                clone = OTHERS
            self._served.setdefault(clone, _Served())
        return clone


def kind_of(exception: BaseException) -> str | None:
    """Return whether it is a ``"reset"``, a ``"refused"`` or a ``"timeout"``; ``None`` if neither.

    Client libraries wrap the socket's error: all causes are searched, in any of their ways.

    Example:
        >>> kind_of(ValueError("no luck", ConnectionResetError()))
        'reset'
    """
    for each in _causes(exception):
        if isinstance(each, ConnectionRefusedError):
            return "refused"
        if isinstance(each, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)):
            return "reset"
        if isinstance(each, (TimeoutError, gevent.Timeout)):
            return "timeout"
    return None


def _causes(exception: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    left: list[object] = [exception]
    while left:
        each = left.pop()
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            left += [each.__cause__, getattr(each, "reason", None), *each.args]
            # An error that was handled when a socket failed is another failure, counted already.
            # Libraries have OSErrors of their own, which only wrap.
            if not isinstance(each, OSError) or type(each).__module__ != "builtins":
                left.append(each.__context__)
