"""What was asked, what glb promises, what was measured. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from loadtests.frame.promise import NOTHING, number
from loadtests.frame.sheet import Table

__all__ = ["Answer", "Promise", "Scenario", "Tell", "verdict"]

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Promise:
    """What it *says* is at most *limit*, or at least, if *is_floor*."""

    says: str
    #: ``None`` if there was nothing to measure: then it isn't kept.
    measured: float | None
    limit: float = 0
    is_floor: bool = False

    @property
    def is_kept(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.is_floor else self.measured <= self.limit

    def row(self) -> tuple[str, str, str, str]:
        bound = f"{'>=' if self.is_floor else '<='} {_figure(self.limit)}"
        return (self.says, bound, _figure(self.measured), verdict(self.is_kept))


@dataclass(frozen=True)
class Answer:
    """The answer to *question*: *notes* have what was seen beside the promises."""

    question: str
    promises: Sequence[Promise]
    notes: Sequence[tuple[str, str]] = ()
    #: What others do in the same place.
    comparison: Table | None = None
    #: For the JSON alone.
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def is_kept(self) -> bool:
        return all(promise.is_kept for promise in self.promises)

    def tables(self) -> list[Table]:
        rows = [promise.row() for promise in self.promises]
        rows += [(says, "", value, "") for says, value in self.notes]
        tables = [Table(self.question, ("promise", "limit", "measured", ""), rows)]
        return tables if self.comparison is None else [*tables, self.comparison]

    def as_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "kept": self.is_kept,
            "promises": [{**asdict(one), "kept": one.is_kept} for one in self.promises],
            "notes": dict(self.notes),
            "comparison": None if self.comparison is None else asdict(self.comparison),
            **self.details,
        }


class Scenario(Protocol):
    """One question, and how much of everything is done to answer it."""

    @property
    def name(self) -> str: ...

    @property
    def steps(self) -> int:
        """How often *tell* will be called."""
        ...

    def run(self, tell: Tell) -> Answer:
        """Do it. *tell* is called with each step, before it."""
        ...


def verdict(is_kept: bool) -> str:
    return "kept" if is_kept else "NOT KEPT"


def _figure(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value == int(value) else number(value)
