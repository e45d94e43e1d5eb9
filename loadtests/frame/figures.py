"""What was measured of each contender, by round, and its ratios to others. Plain data."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

__all__ = ["Figure", "Results", "fairness"]


@dataclass(frozen=True)
class Figure:
    """One thing that is measured: its name in the JSON, what people read, its unit."""

    name: str
    title: str
    unit: str = ""
    digits: int = 0


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

    def ratio(self, contender: str, beside: str, figure: Figure) -> float | None:
        """Return the median over the rounds of *contender*'s figure by *beside*'s."""
        pairs = zip(self.of(contender, figure), self.of(beside, figure), strict=False)
        ratios = [one / other for one, other in pairs if other]
        return statistics.median(ratios) if ratios else None


def fairness(counts: list[int]) -> float:
    """Return Jain's index of *counts*: 1 if all are alike, 1/n if one has everything."""
    return sum(counts) ** 2 / (len(counts) * sum(count**2 for count in counts))
