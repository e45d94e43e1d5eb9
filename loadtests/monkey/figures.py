"""What is measured of a contender, beside the figures of `loadtests.bench`."""

from __future__ import annotations

import statistics
from typing import Final

from loadtests.bench.figures import CPU, ERRORS, EXACT, FAIRNESS
from loadtests.frame.figures import Figure, Results, fairness

__all__ = ["CPU", "ERRORS", "EXACT", "FAIRNESS", "IN_ORDER", "fairness", "quartiles", "ratios"]

IN_ORDER: Final = Figure("in_order", "connections that were the next one's", "%", 1)


def ratios(results: Results, contender: str, beside: str, figure: Figure) -> list[float]:
    """Return *contender*'s *figure* by *beside*'s, of each round."""
    pairs = zip(results.of(contender, figure), results.of(beside, figure), strict=False)
    return [one / other for one, other in pairs if other]


def quartiles(samples: list[float]) -> tuple[float, float]:
    """Return what a quarter of *samples* is below of, and what a quarter is above of."""
    if len(samples) == 1:
        return samples[0], samples[0]
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, high
