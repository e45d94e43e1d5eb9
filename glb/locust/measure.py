"""What a load test sees of the balance: who served how much, how fast, and how evenly.

Each process of a load test has a `Measure`. A worker's is emptied into reports (`Measure.take`),
which the master's takes up (`Measure.merge`); so the master's is the sum of all. The latencies are
locust's own `StatsEntry`, one a clone: rounded alike, merged alike, to be compared with the rest of
its report. Knows nothing of runners, options or pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import gevent
from locust.stats import RequestStats, StatsEntry

from ..stats import jain

__all__ = ["Clone", "CloneFigures", "Figures", "Measure", "Sample", "kind_of"]

#: A clone's number; or, where a server tells something else, its words.
Clone = int | str

_OF_HOW_MANY: Final = re.compile(r"(\d{1,6})/(\d{1,6})")

# A server that tells something new each time is a mistake, and not a reason to run out of memory.
MOST_CLONES: Final = 10_000
OTHERS: Final = "(others)"

# Samples: ten minutes of one a second, or a day of one in two or three minutes.
MOST_SAMPLES: Final = 600


@dataclass(frozen=True)
class CloneFigures:
    """What one clone did.

    Attributes:
        clone: Its number, or what the server told instead.
        turns: Connections that it served.
        replies: Replies that it gave, of which a connection may have many.
        failures: Those that were failures of locust's.
        mean_ms, p50_ms, p99_ms, max_ms: Response times, in milliseconds; percentiles are rounded
            as locust rounds them.
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
        clones: All that are known of, in order; also those that served nobody.
        resets, refusals, timeouts: Failed requests, by what failed them; whose they would have been
            nobody knows.
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
        """How many replies told who gave them."""
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


class Measure:
    """Counts who served what. Of one process, or of all that report to it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._stats = RequestStats(use_response_times_cache=False)
        self._entries: dict[Clone, StatsEntry] = {}
        self._turns: dict[Clone, int] = {}
        # What was told -> whose it is. Most replies tell what another has told before.
        self._told: dict[object, Clone] = {}
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
        told: int | str | bytes,
        milliseconds: float,
        length: int = 0,
        *,
        is_turn: bool = True,
        error: object = None,
    ) -> None:
        """Count a reply.

        Args:
            told: Which clone gave it: its number, or text; ``"3/4"`` is number 3 of 4.
            milliseconds: How long it took.
            length: Its length, in bytes.
            is_turn: Whether it is the first on its connection.
            error: What locust calls it a failure for.
        """
        clone = self._told.get(told)
        if clone is None:
            clone = self._learn(told)
        entry = self._entries[clone]
        entry.log(milliseconds, length)  # type: ignore[arg-type]  # locust's are fractions too
        if error is not None:
            entry.log_error(None)
        if is_turn:
            self._turns[clone] += 1

    def fail(self, exception: BaseException) -> None:
        """Count a request that failed, if it is a reset, a refusal or a timeout."""
        kind = kind_of(exception)
        if kind is not None:
            self._failures[kind] += 1

    def sample(self, seconds: float) -> None:
        """Keep the turns as they are, *seconds* after the test began; thins out what is old."""
        self._samples += 1
        if self._samples % self._every:
            return
        self._history.append(Sample(seconds, dict(self._turns)))
        if len(self._history) >= MOST_SAMPLES:
            del self._history[::2]
            self._every *= 2

    def take(self) -> dict[str, Any]:
        """Return what was counted since the last time, as plain data, and forget it."""
        report = {
            "clones": [
                [clone, self._turns[clone], entry.get_stripped_report()]
                for clone, entry in self._entries.items()
            ],
            "failures": self._failures,
        }
        self._failures = dict.fromkeys(self._failures, 0)
        self._turns = dict.fromkeys(self._turns, 0)
        return report

    def merge(self, report: dict[str, Any]) -> None:
        """Add what another one's `take` returned."""
        for clone, turns, entry in report["clones"]:
            known = self._add(clone)
            self._entries[known].extend(StatsEntry.unserialize(entry, self._stats))
            self._turns[known] += turns
        for kind, count in report["failures"].items():
            self._failures[kind] += count

    def figures(self) -> Figures:
        """Return what was counted until now."""
        clones = sorted(self._entries, key=lambda clone: (isinstance(clone, str), clone))
        return Figures(
            tuple(self._figures_of(clone) for clone in clones),
            resets=self._failures["reset"],
            refusals=self._failures["refused"],
            timeouts=self._failures["timeout"],
        )

    def _figures_of(self, clone: Clone) -> CloneFigures:
        entry = self._entries[clone]
        return CloneFigures(
            clone,
            turns=self._turns[clone],
            replies=entry.num_requests,
            failures=entry.num_failures,
            mean_ms=entry.avg_response_time,
            p50_ms=entry.get_response_time_percentile(0.5),
            p99_ms=entry.get_response_time_percentile(0.99),
            max_ms=entry.max_response_time,
        )

    def _learn(self, told: int | str | bytes) -> Clone:
        text = told.decode(errors="replace") if isinstance(told, bytes) else str(told)
        text = text.strip()
        parts = _OF_HOW_MANY.fullmatch(text)
        clone: Clone
        if parts is None:
            clone = self._add(int(text) if text.isascii() and text.isdigit() else text[:100])
        else:
            clone = self._add(int(parts[1]))
            for number in range(min(int(parts[2]), MOST_CLONES)):
                self._add(number)
        if len(self._told) < MOST_CLONES:
            self._told[told] = clone
        return clone

    def _add(self, clone: Clone) -> Clone:
        if clone not in self._entries:
            if len(self._entries) >= MOST_CLONES:
                clone = OTHERS
            if clone not in self._entries:
                self._entries[clone] = StatsEntry(self._stats, str(clone), "")
                self._turns[clone] = 0
        return clone


def kind_of(exception: BaseException) -> str | None:
    """Return whether it is a ``"reset"``, a ``"refused"`` or a ``"timeout"``; ``None`` if neither.

    Client libraries wrap what the socket raised: the causes are looked through, however they are
    kept.

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
            left += [each.__context__, each.__cause__, getattr(each, "reason", None), *each.args]
