"""A promise: what a figure may be, and whether it was kept."""

from __future__ import annotations

from dataclasses import dataclass

from .figures import Figure, Results

__all__ = ["Promise"]


@dataclass(frozen=True)
class Promise:
    """*figure* of *contender* is at most *limit*, or at least, if *is_floor*.

    With *beside*, it is the ratio to that contender's, and not the figure itself. One that
    *is_always* to hold is judged by the worst round, and not by the median.
    """

    says: str
    contender: str
    figure: Figure
    limit: float
    beside: str | None = None
    is_floor: bool = False
    is_always: bool = False

    def measured(self, results: Results) -> float | None:
        """Return the value that is compared with *limit*; ``None`` if there is none."""
        samples = results.of(self.contender, self.figure)
        if self.is_always and samples:
            return min(samples) if self.is_floor else max(samples)
        if self.beside is None:
            return results.median(self.contender, self.figure)
        return results.ratio(self.contender, self.beside, self.figure)

    def is_kept(self, results: Results) -> bool | None:
        """Return True if it was kept; ``None`` if it was not measured."""
        value = self.measured(results)
        if value is None:
            return None
        return value >= self.limit if self.is_floor else value <= self.limit
