"""What people see of a run: for each scenario its promises, kept or not, and what else was seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests.frame.old_sheet import Sheet
from loadtests.frame.sheet import Table

from .answers import Answer, verdict

__all__ = ["Report"]


@dataclass(frozen=True)
class Report(Sheet):
    """A run that is over: the *answers*, and how long each took; what broke has none."""

    answers: Mapping[str, Answer] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def heading(self) -> str:
        return f"Over loopback; {self.cpus}. {self.surroundings()}."

    def tables(self) -> list[Table]:
        tables = [table for answer in self.answers.values() for table in answer.tables()]
        return [*tables, self._verdicts()]

    def _verdicts(self) -> Table:
        rows: list[Sequence[str]] = [
            (name, verdict(answer.is_kept), f"{self.seconds[name]:.0f}")
            for name, answer in self.answers.items()
        ]
        rows += [(name, "NOT MEASURED", "") for name in self.results.failed]
        return Table("Is anything lost?", ("scenario", "promises", "seconds"), rows)

    def all_kept(self) -> bool:
        return not self.results.failed and all(each.is_kept for each in self.answers.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "surroundings": self.surroundings(),
            "cpus": self.cpus,
            "kept": self.all_kept(),
            "failed": self.results.failed,
            "scenarios": {
                name: {**answer.as_json(), "seconds": self.seconds[name]}
                for name, answer in self.answers.items()
            },
        }
