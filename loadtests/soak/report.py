"""The report of a run: what was done, what was found, and whether all was kept."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import gevent
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .load import Behaviour, Outcome, Result
from .plan import Plan

__all__ = ["Report", "quantile"]

MIB = 2**20

#: The report has the actions of so long before a fault. A roll takes longer, but the report has the
#: actions during it as well.
LAST_SECONDS = 3.0


def quantile(samples: Sequence[float], share: float) -> float | None:
    """Return the least of *samples* that *share* of them don't exceed."""
    if not samples:
        return None
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Report:
    """A run that is over.

    Attributes:
        server: What the server's process has found: see `loadtests.soak.server`.
        errors: What it has written that wasn't planned, and how often.
        failures: What else went wrong.
        stderr: All that it has written.
    """

    plan: Plan
    command: str
    outcome: Outcome
    server: Mapping[str, Any]
    errors: Mapping[str, int]
    failures: Sequence[str]
    stderr: str = ""

    @property
    def violations(self) -> dict[str, list[str]]:
        """What did not hold, with details."""
        found = {
            f"{name} ({count:,} times)": [*self.server["details"].get(name, ())]
            for name, count in self.server.get("violated", {}).items()
        }
        unserved = self.outcome.of(Result.LOST, Result.FAILED)
        if unserved:
            found[f"who asks properly is served ({unserved:,} times)"] = self.outcome.details
        if self.errors:
            times = sum(self.errors.values())
            found[f"no error but planned ones ({times:,} times)"] = [
                f"{count:,} x {text}" for text, count in [*self.errors.items()][:5]
            ]
        if self.failures:
            found["the run comes to its end"] = [*self.failures, f"...{self.stderr[-1500:]}"]
        if not self.outcome.of(Result.SERVED):
            found["anything is measured"] = ["nobody was served"]
        return found

    @property
    def is_kept(self) -> bool:
        return not self.violations

    @property
    def last_actions(self) -> list[tuple[float, float, str]]:
        """What was done to servers when something was found wrong, and shortly before it.

        Each from when to when, in seconds after their start, in the order in which it began; and
        with it what was found.
        """
        start = self.server.get("began", 0.0)
        found = [(at, at, "FOUND by the server") for at in self.server.get("found_at", ())]
        for began, ended in self.outcome.found_at:
            found.append((began - start, ended - start, "FOUND: a client was not served"))
        actions = [
            (began, ended, what)
            for began, ended, what in self.server.get("events", ())
            if any(ended > since - LAST_SECONDS and began < until for since, until, _ in found)
        ]
        return sorted(actions + found)

    # -- figures ----------------------------------------------------------------------------------

    def milliseconds(self, share: float) -> float | None:
        seconds = quantile(self.outcome.latencies, share)
        return None if seconds is None else 1000 * seconds

    def memory(self) -> dict[str, float]:
        """Return the resident memory, in MiB, and its trend in the second half, in MiB/min."""
        samples = self.server.get("samples", ())
        if not samples:
            return {}
        half = samples[len(samples) // 2 :]
        found = {
            "first": samples[0][1] / MIB,
            "middle": half[0][1] / MIB,
            "last": samples[-1][1] / MIB,
            "most": max(each[1] for each in samples) / MIB,
        }
        minutes = (half[-1][0] - half[0][0]) / 60
        if minutes:
            found["a_minute"] = (half[-1][1] - half[0][1]) / MIB / minutes
        return found

    def to_json(self) -> str:
        return json.dumps(
            {
                "command": self.command,
                "surroundings": self.surroundings(),
                "plan": asdict(self.plan),
                "clients": {
                    behaviour.value: {
                        result.value: self.outcome.counts[behaviour, result]
                        for result in Result
                        if self.outcome.counts[behaviour, result]
                    }
                    for behaviour in Behaviour
                },
                "held_back": self.outcome.held_back,
                "p50_ms": self.milliseconds(0.5),
                "p99_ms": self.milliseconds(0.99),
                "longest_ms": self.milliseconds(1),
                "memory_mib": self.memory(),
                "server": self.server,
                "violations": self.violations,
                "last_actions": self.last_actions,
                "kept": self.is_kept,
                "stderr": "" if self.is_kept else self.stderr,
            },
            indent=1,
        )

    # -- what people see --------------------------------------------------------------------------

    def surroundings(self) -> str:
        loop = gevent.config.loop
        return (
            f"{platform.python_implementation()} {platform.python_version()}, "
            f"gevent {metadata.version('gevent')} on {loop.__module__.split('.')[1]}, "
            f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs"
        )

    def print(self, console: Console) -> None:
        console.print(f"{self.command}\n{self.surroundings()}\n", soft_wrap=True)
        console.print(self._clients())
        served = self.server.get("served", {})
        console.print(_counts("what handlers did", served))
        console.print(_counts("what was done to servers", self.server.get("done", {})))
        console.print(_counts("changes of servers' states", self.server.get("moves", {})))
        console.print(self._checks())
        console.print(self._before_and_after())
        for name, details in self.violations.items():
            console.print(f"[red]VIOLATED[/red] {name}", soft_wrap=True, highlight=False)
            for detail in details:
                console.print(f"  {detail}", soft_wrap=True, markup=False, highlight=False)
        for began, ended, what in self.last_actions:
            line = f"{began:8.2f} s to {ended:8.2f} s: {what}"
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        said = "nothing was violated, nobody lost" if self.is_kept else "NOT kept"
        console.print(said)

    def _clients(self) -> Table:
        shown = [each for each in Result if self.outcome.of(each)]
        table = _table("clients", *(each.value for each in shown))
        for behaviour in Behaviour:
            counts = [self.outcome.counts[behaviour, each] for each in shown]
            if any(counts):
                table.add_row(behaviour.value, *(f"{each:,}" if each else "-" for each in counts))
        shares = {"p50": 0.5, "p99": 0.99, "longest": 1.0}
        times = {name: self.milliseconds(share) for name, share in shares.items()}
        table.caption = ", ".join(
            [f"{name} {each:,.1f} ms" for name, each in times.items() if each is not None]
            + [f"{self.outcome.held_back:,} held back"]
        )
        return table

    def _checks(self) -> Table:
        table = _table("what must hold", "looked at", "violated")
        violated = self.server.get("violated", {})
        for name, count in sorted(self.server.get("checked", {}).items()):
            wrong = violated.get(name, 0)
            table.add_row(name, f"{count:,}", f"[red]{wrong:,}[/red]" if wrong else "-")
        return table

    def _before_and_after(self) -> Table:
        table = _table("the server's process", "before", "after")
        for name, (before, after) in self.server.get("left", {}).items():
            table.add_row(name, f"{before:,}", f"{after:,}")
        memory = self.memory()
        table.caption = "resident MiB: " + ", ".join(
            f"{name.replace('_', ' ')} {each:.1f}" for name, each in memory.items()
        )
        return table


def _table(title: str, *heads: str) -> Table:
    table = Table(box=SIMPLE_HEAD, caption_justify="left")
    table.add_column(title)
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _counts(title: str, counts: Mapping[str, int]) -> Table:
    table = _table(title, "times")
    for name, count in sorted(counts.items()):
        table.add_row(name, f"{count:,}")
    return table
