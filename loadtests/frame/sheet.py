"""What a run has found: promises, answers, tables; as text that is Markdown, and as JSON."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Final

import gevent

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


@dataclass(frozen=True)
class Table:
    """A title, the heads of the columns, and rows of text: the first column is names."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return it in Markdown, whose columns stand below each other."""
        widths = [max(3, *map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
        lines = []
        for name, *cells in (self.head, rule, *self.rows):
            padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append(f"| {' | '.join([name.ljust(widths[0]), *padded])} |")
        return "\n".join([f"**{self.title}**", "", *lines, ""])


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
        lines = [line for answer in self.answers.values() for line in answer.lines]
        lines += [f"{name} failed: {reason}" for name, reason in self.failed.items()]
        lines.append(f"{'every' if self.is_kept else 'NOT every'} promise was kept")
        return "\n".join([f"`{self.command}`", "", self.heading, "", *tables, *lines])

    def json(self) -> str:
        def known(thing: Any) -> dict[str, Any]:
            is_kept = getattr(thing, "is_kept", None)
            return {**vars(thing), **({} if is_kept is None else {"kept": is_kept})}

        return json.dumps(self, indent=2, default=known) + "\n"


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
