"""What a run has found: answers with promises and tables, as text, in Markdown and JSON."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

import gevent

from .promise import Promise, verdict_of

__all__ = ["Answer", "Sheet", "Table", "surroundings"]


@dataclass(frozen=True)
class Table:
    """A title, the heads of the columns, and rows of text: the first column is names."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    #: A line below it.
    caption: str = ""

    def text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (self.head, *self.rows)
        ]
        return self._whole(self.title, lines)

    def markdown(self) -> str:
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (self.head, rule, *self.rows)]
        return self._whole(f"**{self.title}**", lines)

    def _whole(self, title: str, lines: Sequence[str]) -> str:
        return "\n".join([title, "", *lines, "", *([self.caption, ""] if self.caption else ())])


@dataclass(frozen=True)
class Answer:
    """The answer to *question*: what was promised, and what was seen beside it."""

    question: str
    promises: Sequence[Promise]
    #: Further lines of the promises' table: what, and how much it was.
    notes: Sequence[tuple[str, str]] = ()
    #: Stand before it.
    tables: Sequence[Table] = ()
    #: Stand behind it: what broke, and how.
    lines: Sequence[str] = ()
    #: For the JSON alone.
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_kept(self) -> bool:
        """True if every promise was measured and kept; and there is one."""
        return bool(self.promises) and all(promise.is_kept for promise in self.promises)

    def all_tables(self) -> list[Table]:
        rows = [promise.row() for promise in self.promises]
        rows += [(says, "", value, "") for says, value in self.notes]
        return [*self.tables, Table(self.question, ("promise", "limit", "measured", ""), rows)]

    def as_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "kept": self.is_kept,
            "promises": [{**asdict(one), "kept": one.is_kept} for one in self.promises],
            "notes": dict(self.notes),
            "tables": [asdict(one) for one in self.tables],
            "lines": [*self.lines],
            **self.details,
        }


@dataclass(frozen=True)
class Sheet:
    """A run of *command* that is over: *answers* by name, and why there is none of what *failed*.

    With more than one, each has its line in a table at the end, with the *seconds* it took.
    """

    command: str
    heading: str
    answers: Mapping[str, Answer]
    failed: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_kept(self) -> bool:
        """True if nothing failed, and every promise was kept."""
        return not self.failed and all(one.is_kept for one in self.answers.values())

    def tables(self) -> list[Table]:
        tables = [table for answer in self.answers.values() for table in answer.all_tables()]
        rows = [
            (name, verdict_of(answer.is_kept), f"{self.seconds.get(name, 0):.0f}")
            for name, answer in self.answers.items()
        ]
        rows += [(name, "NOT MEASURED", "") for name in self.failed]
        if len(rows) > 1:
            tables.append(Table("All in all", ("", "promises", "seconds"), rows))
        return tables

    def text(self) -> str:
        tables = [table.text() for table in self.tables()]
        return "\n".join([*tables, self.heading, *self._lines(), self._verdict()])

    def markdown(self) -> str:
        tables = [table.markdown() for table in self.tables()]
        return "\n".join([f"`{self.command}`", "", self.heading, "", *tables, *self._lines()])

    def as_json(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "heading": self.heading,
            "kept": self.is_kept,
            "failed": dict(self.failed),
            "seconds": dict(self.seconds),
            "answers": {name: answer.as_json() for name, answer in self.answers.items()},
        }

    def _lines(self) -> list[str]:
        lines = [line for answer in self.answers.values() for line in answer.lines]
        return lines + [f"{name} failed: {reason}" for name, reason in self.failed.items()]

    def _verdict(self) -> str:
        return "every promise was kept" if self.is_kept else "NOT every promise was kept"


def surroundings(*packages: str) -> str:
    """Return versions, those of *packages* if installed, kernel and CPUs: no names, no paths."""
    loop = gevent.config.loop
    words = [f"{platform.python_implementation()} {platform.python_version()}"]
    for package in ("gevent", "greenlet", *packages):
        if importlib.util.find_spec(package) is not None:
            words.append(f"{package} {metadata.version(package)}")
    words[1] += f" on {loop.__module__.split('.')[1]}"
    words.append(f"{platform.system()} {platform.release()}")
    words.append(f"{os.cpu_count()} CPUs")
    return ", ".join(words)
