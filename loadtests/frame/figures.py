"""What was measured of each contender, by round, and its ratios to others. Plain data.

With it the figures that more than one experiment has.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Figure:
    """One thing that is measured: its name in the JSON, what people read, its unit."""

    name: str
    title: str
    unit: str = ""
    digits: int = 0


RATE: Final = Figure("rate", "connections/s", "/s")
CPU: Final = Figure("cpu", "CPU a connection", "us", 1)
OPEN_P99: Final = Figure("open_p99", "p99 in the open loop", "us")
SERVER_BUSY: Final = Figure("server_busy", "server's CPU", "%")
CLIENT_BUSY: Final = Figure("client_busy", "client's CPU", "%")
ERRORS: Final = Figure("errors", "errors")
FAIRNESS: Final = Figure("fairness", "fairness", "", 3)
EXACT: Final = Figure("exact", "exact order")


@dataclass
class Results:
    """Samples of each contender's figures, in the order of the rounds.

    What is measured in the rounds has one sample a round, so sample *i* of two contenders is
    of one minute of one machine: ratios are taken there, and then the median of them. A
    contender that broke has a reason in *failed* and no samples.
    """

    samples: dict[str, dict[Figure, list[float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, contender: str, figure: Figure, sample: float) -> None:
        self.samples.setdefault(contender, {}).setdefault(figure, []).append(sample)

    def fail(self, contender: str, reason: str) -> None:
        self.failed[contender] = reason
        self.samples.pop(contender, None)

    def of(self, contender: str, figure: Figure) -> list[float]:
        return self.samples.get(contender, {}).get(figure, [])

    def median(self, contender: str, figure: Figure) -> float | None:
        """Return the median, or ``None`` if it was not measured."""
        samples = self.of(contender, figure)
        return statistics.median(samples) if samples else None

    def ratios(self, contender: str, beside: str, figure: Figure) -> list[float]:
        """Return *contender*'s figure by *beside*'s, of each round."""
        pairs = zip(self.of(contender, figure), self.of(beside, figure), strict=False)
        return [one / other for one, other in pairs if other]

    def ratio(self, contender: str, beside: str, figure: Figure) -> float | None:
        """Return the median of these over the rounds."""
        ratios = self.ratios(contender, beside, figure)
        return statistics.median(ratios) if ratios else None

    def note_order(self, contender: str, answers: list[int], places: int) -> None:
        """Add whether *answers*, the place that gave each, are exactly in turn; and how fair."""
        is_exact = answers == [index % places for index in range(len(answers))]
        self.add(contender, EXACT, float(is_exact))
        self.add(contender, FAIRNESS, fairness([answers.count(each) for each in range(places)]))


def fairness(counts: list[int]) -> float:
    """Return Jain's index of *counts*: 1 if all are alike, 1/n if one has everything."""
    return sum(counts) ** 2 / (len(counts) * sum(count**2 for count in counts))
