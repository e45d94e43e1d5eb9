"""What is measured of a contender, beside the figures of the frame."""

from __future__ import annotations

import statistics
from typing import Final

from loadtests.frame.figures import CPU, ERRORS, EXACT, FAIRNESS, Figure, fairness

__all__ = ["CPU", "ERRORS", "EXACT", "FAIRNESS", "IN_ORDER", "fairness", "quartiles"]

IN_ORDER: Final = Figure("in_order", "connections that were the next one's", "%", 1)


def quartiles(samples: list[float]) -> tuple[float, float]:
    """Return what a quarter of *samples* is below of, and what a quarter is above of."""
    if len(samples) == 1:
        return samples[0], samples[0]
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, high
