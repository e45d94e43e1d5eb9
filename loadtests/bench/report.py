"""What people see of a run: tables, as text, for a terminal and in Markdown; JSON; a plot."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Final

import rich.box
import rich.table
from rich.console import Console

from . import figures
from .contenders import BASE, BASE_HTTP, FLOOR, Contender
from .figures import Figure, Results
from .measure import OPEN_RATE, Plan
from .promises import PROMISES

#: Over this much of its CPU, in percent, a process is taken to be at its limit.
SATURATED: Final = 90

NOTHING: Final = "-"


@dataclass(frozen=True)
class Table:
    """A title, the heads of the columns, and rows of text: the first column is names."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> rich.table.Table:
        table = rich.table.Table(title=self.title, title_justify="left", box=rich.box.SIMPLE_HEAD)
        for index, head in enumerate(self.head):
            table.add_column(head, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def text(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.head, *self.rows, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (self.head, *self.rows)
        ]
        return "\n".join([self.title, "", *lines, ""])

    def markdown(self) -> str:
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (self.head, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, ""])


@dataclass(frozen=True)
class Report:
    """A run that is over: *absent* are the contenders that are not installed here."""

    plan: Plan
    results: Results
    contenders: Sequence[Contender]
    absent: Sequence[Contender]
    cpus: str
    command: str

    # -- what it was measured with ------------------------------------------------------------

    def surroundings(self) -> str:
        """Return the versions, the kernel and the number of CPUs: no names, no paths."""
        words = [f"{platform.python_implementation()} {platform.python_version()}"]
        for package in ("gevent", "greenlet", "uvloop", "gunicorn"):
            if importlib.util.find_spec(package) is not None:
                words.append(f"{package} {metadata.version(package)}")
        words.append(f"{platform.system()} {platform.release()}")
        words.append(f"{os.cpu_count()} CPUs")
        return ", ".join(words)

    def heading(self) -> str:
        plan = self.plan
        return (
            f"Medians of {plan.rounds} interleaved rounds (seed {plan.seed}) of "
            f"{plan.connections:,} connections, {plan.concurrency} at a time, over loopback; "
            f"{self.cpus}. {self.surroundings()}."
        )

    # -- tables -------------------------------------------------------------------------------

    def tables(self) -> list[Table]:
        tcp = [one for one in self.contenders if not one.is_http]
        http = [one for one in self.contenders if one.is_http]
        tables = []
        if tcp:
            tables += [self._cost(tcp), self._latency(tcp), self._clones(tcp)]
        if http:
            tables += [self._http(http)]
        return [*tables, self._promises()]

    def _cost(self, contenders: Sequence[Contender]) -> Table:
        head: tuple[str, ...] = (
            "accept, reply, close",
            "connections/s",
            "x gevent",
            "CPU us",
            "x gevent",
        )
        head += ("x C", "system calls", "server's CPU", "client's CPU", "")
        return Table(
            "What a connection costs the server",
            head,
            self._rows(
                contenders,
                lambda name: (
                    self._median(name, figures.RATE),
                    self._ratio(name, BASE, figures.RATE),
                    self._median(name, figures.CPU),
                    self._ratio(name, BASE, figures.CPU),
                    self._ratio(name, FLOOR, figures.CPU),
                    self._median(name, figures.CALLS),
                    self._median(name, figures.SERVER_BUSY, " %"),
                    self._median(name, figures.CLIENT_BUSY, " %"),
                    self._note(name),
                ),
                len(head),
            ),
        )

    def _latency(self, contenders: Sequence[Contender]) -> Table:
        head: tuple[str, ...] = ("accept, reply, close", "p50 us", "p99 us", "p99.9 us")
        head += (f"p99 us at {OPEN_RATE:,}/s", "x gevent")
        return Table(
            f"How long a client waits: {self.plan.concurrency} at a time, and on a schedule",
            head,
            self._rows(
                contenders,
                lambda name: (
                    self._median(name, figures.P50),
                    self._median(name, figures.P99),
                    self._median(name, figures.P999),
                    self._median(name, figures.OPEN_P99),
                    self._ratio(name, BASE, figures.OPEN_P99),
                ),
                len(head),
            ),
        )

    def _clones(self, contenders: Sequence[Contender]) -> Table:
        head: tuple[str, ...] = (
            "clones",
            "exact order",
            "fairness (Jain)",
            "KiB a clone",
            "KiB an idle connection",
        )
        several = [one for one in contenders if one.places > 1 or one.is_idle_measured]
        return Table(
            "Who serves, and what it takes to be there",
            head,
            self._rows(
                several,
                lambda name: (
                    {None: NOTHING, 0.0: "no", 1.0: "yes"}[
                        self.results.median(name, figures.EXACT)
                    ],
                    self._median(name, figures.FAIRNESS),
                    self._median(name, figures.CLONE_KIB),
                    self._median(name, figures.IDLE_KIB),
                ),
                len(head),
            ),
        )

    def _http(self, contenders: Sequence[Contender]) -> Table:
        head: tuple[str, ...] = ("HTTP", "connections/s", "CPU us", "x gevent", "system calls")
        head += ("kept alive: p50 us", "x gevent", "CPU us a request", "x gevent", "")
        return Table(
            f"HTTP: a connection a request; and kept alive, 1 connection for p50 and "
            f"{self.plan.keep_concurrency} for CPU",
            head,
            self._rows(
                contenders,
                lambda name: (
                    self._median(name, figures.RATE),
                    self._median(name, figures.CPU),
                    self._ratio(name, BASE_HTTP, figures.CPU),
                    self._median(name, figures.CALLS),
                    self._median(name, figures.KEEP_P50),
                    self._ratio(name, BASE_HTTP, figures.KEEP_P50),
                    self._median(name, figures.KEEP_CPU),
                    self._ratio(name, BASE_HTTP, figures.KEEP_CPU),
                    self._note(name),
                ),
                len(head),
            ),
        )

    def _promises(self) -> Table:
        rows = []
        for promise in PROMISES:
            value, is_kept = promise.measured(self.results), promise.is_kept(self.results)
            verdict = {None: "not measured", True: "kept", False: "NOT KEPT"}[is_kept]
            if promise.figure is figures.RATE and self.is_client_bound(promise.contender):
                verdict += ", client-bound"
            rows.append(
                (
                    promise.says,
                    f"{'>=' if promise.is_floor else '<='} {promise.limit:g}",
                    NOTHING if value is None else _number(value),
                    verdict,
                )
            )
        return Table("What glb promises", ("promise", "limit", "measured", ""), rows)

    def all_kept(self) -> bool:
        """Tell whether every promise was measured and kept."""
        return all(promise.is_kept(self.results) for promise in PROMISES)

    def _rows(
        self,
        contenders: Sequence[Contender],
        cells: Callable[[str], tuple[str, ...]],
        width: int,
    ) -> list[tuple[str, ...]]:
        rows = []
        for contender in contenders:
            if contender in self.absent:
                row = (contender.title, "not installed", *[NOTHING] * (width - 2))
            elif contender.name in self.results.failed:
                row = (contender.title, "failed", *[NOTHING] * (width - 2))
            else:
                row = (contender.title, *cells(contender.name))
            rows.append(row)
        return rows

    def _median(self, name: str, figure: Figure, unit: str = "") -> str:
        value = self.results.median(name, figure)
        return NOTHING if value is None else f"{value:,.{figure.digits}f}{unit}"

    def _ratio(self, name: str, beside: str, figure: Figure) -> str:
        value = self.results.ratio(name, beside, figure)
        return NOTHING if value is None else _number(value)

    def _note(self, name: str) -> str:
        words = []
        if self.is_client_bound(name):
            words.append("client-bound")
        if errors := sum(self.results.of(name, figures.ERRORS)):
            words.append(f"{errors:,.0f} errors")
        return ", ".join(words)

    def is_client_bound(self, name: str) -> bool:
        """Tell whether the client was at its limit and the server not: the rate is a floor."""
        server = self.results.median(name, figures.SERVER_BUSY)
        client = self.results.median(name, figures.CLIENT_BUSY)
        return server is not None and client is not None and server < SATURATED < client

    # -- forms --------------------------------------------------------------------------------

    def print(self, console: Console) -> None:
        """Print the tables; plain text if *console* is not a terminal."""
        for table in self.tables():
            if console.is_terminal:
                console.print(table.rich())
            else:
                print(table.text())
        print(self.heading())
        for name, reason in self.results.failed.items():
            print(f"{name} failed: {reason}")

    def markdown(self) -> str:
        tables = [table.markdown() for table in self.tables()]
        return "\n".join([f"`{self.command}`", "", self.heading(), "", *tables])

    def as_json(self) -> dict[str, Any]:
        results = self.results
        contenders = {}
        for contender in self.contenders:
            base = BASE_HTTP if contender.is_http else BASE
            measured = {
                figure.name: {
                    "unit": figure.unit,
                    "median": statistics.median(samples),
                    "min": min(samples),
                    "max": max(samples),
                    "rounds": samples,
                    "beside_gevent": results.ratio(contender.name, base, figure),
                    "beside_c": results.ratio(contender.name, FLOOR, figure),
                }
                for figure in figures.ALL
                if (samples := results.of(contender.name, figure))
            }
            contenders[contender.name] = {
                "title": contender.title,
                "installed": contender not in self.absent,
                "failed": results.failed.get(contender.name),
                "client_bound": self.is_client_bound(contender.name),
                "figures": measured,
            }
        promises = [
            {
                **asdict(promise),
                "figure": promise.figure.name,
                "measured": promise.measured(results),
                "kept": promise.is_kept(results),
            }
            for promise in PROMISES
        ]
        return {
            "command": self.command,
            "surroundings": self.surroundings(),
            "cpus": self.cpus,
            "plan": asdict(self.plan),
            "contenders": contenders,
            "promises": promises,
        }

    def write(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Write JSON, Markdown and, if matplotlib is installed, the plot; return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "results.json", folder / "results.md"]
        files[0].write_text(json.dumps(self.as_json(), indent=2) + "\n")
        files[1].write_text(self.markdown())
        if importlib.util.find_spec("matplotlib") is not None:
            from .plot import plot  # noqa: PLC0415  # matplotlib may not be installed

            files.append(folder / "results.png")
            plot(self.results, self.contenders, self.heading(), files[-1])
        return files


def _number(value: float) -> str:
    """Return *value* with three digits that count."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
