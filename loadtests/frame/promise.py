"""A promise: how much something may be, how much it was, and whether that is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: In place of what was not measured.
NOTHING: Final = "-"


@dataclass(frozen=True)
class Promise:
    """What it *says* is at most *limit*, or at least, if *is_floor*."""

    says: str
    #: ``None`` if there was nothing to measure: then it isn't kept.
    measured: float | None
    limit: float = 0
    is_floor: bool = False
    #: Stands beside the verdict.
    remark: str = ""

    @property
    def is_kept(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.is_floor else self.measured <= self.limit

    def row(self) -> tuple[str, str, str, str]:
        """Return it as a line of a table: what, how much, how much it was, and the verdict."""
        verdict = "not measured" if self.measured is None else verdict_of(self.is_kept)
        bound = f"{'>=' if self.is_floor else '<='} {number(self.limit)}"
        return (self.says, bound, number(self.measured), verdict + self.remark)


def verdict_of(is_kept: bool) -> str:
    return "kept" if is_kept else "NOT KEPT"


def number(value: float | None) -> str:
    """Return *value* as people read it: whole if it is, else with the digits that count."""
    if value is None:
        return NOTHING
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 10 else f"{value:.3g}"  # 1.034 isn't at most 1.03
