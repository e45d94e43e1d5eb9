"""What people see of a run: tables, as text, for a terminal and in Markdown; JSON; a plot."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

from loadtests.frame.figures import Figure
from loadtests.frame.process import Contender
from loadtests.frame.promise import Promise
from loadtests.frame.sheet import NOTHING, Sheet, Table

from . import figures
from .contenders import BASE, BASE_HTTP, FLOOR, RUST_HTTP
from .measure import OPEN_RATE, Plan
from .promises import PROMISES

#: Over this much of its CPU, in percent, a process is taken to be at its limit.
SATURATED: Final = 90


@dataclass(frozen=True)
class Report(Sheet):
    """A run that is over: *absent* are the contenders that are not installed here."""

    plan: Plan
    absent: Sequence[Contender]

    packages: ClassVar[Sequence[str]] = (
        "gevent",
        "greenlet",
        "uvloop",
        "gunicorn",
        "granian",
        "pyuwsgi",
    )

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
            tables += [self._http(http), self._kept(http), self._idle(http)]
        return [*tables, self.promised()]

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
            self.rows(
                contenders,
                lambda name: (
                    self.median(name, figures.RATE),
                    self.ratio(name, BASE, figures.RATE),
                    self.median(name, figures.CPU),
                    self.ratio(name, BASE, figures.CPU),
                    self.ratio(name, FLOOR, figures.CPU),
                    self.median(name, figures.CALLS),
                    self.median(name, figures.SERVER_BUSY, " %"),
                    self.median(name, figures.CLIENT_BUSY, " %"),
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
            self.rows(
                contenders,
                lambda name: (
                    self.median(name, figures.P50),
                    self.median(name, figures.P99),
                    self.median(name, figures.P999),
                    self.median(name, figures.OPEN_P99),
                    self.ratio(name, BASE, figures.OPEN_P99),
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
            self.rows(
                several,
                lambda name: (
                    {None: NOTHING, 0.0: "no", 1.0: "yes"}[
                        self.results.median(name, figures.EXACT)
                    ],
                    self.median(name, figures.FAIRNESS),
                    self.median(name, figures.CLONE_KIB),
                    self.median(name, figures.IDLE_KIB),
                ),
                len(head),
            ),
        )

    def _http(self, contenders: Sequence[Contender]) -> Table:
        head: tuple[str, ...] = ("HTTP", "connections/s", "CPU us", "x gevent", "x granian")
        head += ("10 headers: CPU us", "x gevent", "x granian", "system calls", "")
        return Table(
            "HTTP, a connection a request",
            head,
            self.rows(
                contenders,
                lambda name: (
                    self.median(name, figures.RATE),
                    self.median(name, figures.CPU),
                    self.ratio(name, BASE_HTTP, figures.CPU),
                    self.ratio(name, RUST_HTTP, figures.CPU),
                    self.median(name, figures.BROWSER_CPU),
                    self.ratio(name, BASE_HTTP, figures.BROWSER_CPU),
                    self.ratio(name, RUST_HTTP, figures.BROWSER_CPU),
                    self.median(name, figures.CALLS),
                    self._note(name),
                ),
                len(head),
            ),
        )

    def _kept(self, contenders: Sequence[Contender]) -> Table:
        head: tuple[str, ...] = ("HTTP kept alive", "p50 us", "requests/s", "CPU us")
        head += ("x gevent", "x granian", "10 headers: CPU us", "x gevent", "x granian")
        return Table(
            f"HTTP, kept alive: 1 connection for p50, {self.plan.keep_concurrency} for the rest",
            head,
            self.rows(
                [one for one in contenders if one.is_kept],
                lambda name: (
                    self.median(name, figures.KEEP_P50),
                    self.median(name, figures.KEEP_RATE),
                    self.median(name, figures.KEEP_CPU),
                    self.ratio(name, BASE_HTTP, figures.KEEP_CPU),
                    self.ratio(name, RUST_HTTP, figures.KEEP_CPU),
                    self.median(name, figures.KEEP_BROWSER_CPU),
                    self.ratio(name, BASE_HTTP, figures.KEEP_BROWSER_CPU),
                    self.ratio(name, RUST_HTTP, figures.KEEP_BROWSER_CPU),
                ),
                len(head),
            ),
        )

    def _idle(self, contenders: Sequence[Contender]) -> Table:
        head: tuple[str, ...] = ("HTTP, idle connections", "KiB each", "x gevent")
        head += ("CPU us a request without", f"with {self.plan.crowd:,}", "x without")
        return Table(
            "What idle kept-alive connections cost",
            head,
            self.rows(
                [one for one in contenders if one.is_idle_measured],
                lambda name: (
                    self.median(name, figures.IDLE_KIB),
                    self.ratio(name, BASE_HTTP, figures.IDLE_KIB),
                    self.median(name, figures.ALONE_CPU),
                    self.median(name, figures.CROWD_CPU),
                    self.median(name, figures.CROWD),
                ),
                len(head),
            ),
        )

    def _note(self, name: str) -> str:
        words = []
        if self.is_client_bound(name):
            words.append("client-bound")
        if errors := sum(self.results.of(name, figures.ERRORS)):
            words.append(f"{errors:,.0f} errors")
        return ", ".join(words)

    def is_client_bound(self, name: str) -> bool:
        """Return True if the client was at its limit and the server not: the rate is a floor."""
        server = self.results.median(name, figures.SERVER_BUSY)
        client = self.results.median(name, figures.CLIENT_BUSY)
        return server is not None and client is not None and server < SATURATED < client

    # -- what a sheet asks --------------------------------------------------------------------

    def promises(self) -> Sequence[Promise]:
        return PROMISES

    def remark(self, promise: Promise) -> str:
        if promise.figure is figures.RATE and self.is_client_bound(promise.contender):
            return ", client-bound"
        return ""

    def gap(self, contender: Contender) -> str:
        return "not installed" if contender in self.absent else super().gap(contender)

    def plan_as_json(self) -> dict[str, Any]:
        return asdict(self.plan)

    def contender_as_json(self, contender: Contender) -> dict[str, Any]:
        return {
            "title": contender.title,
            "installed": contender not in self.absent,
            "failed": self.results.failed.get(contender.name),
            "client_bound": self.is_client_bound(contender.name),
        }

    def ratios_as_json(self, contender: Contender, figure: Figure) -> dict[str, float | None]:
        ratio, name = self.results.ratio, contender.name
        if contender.is_http:
            return {
                "beside_gevent": ratio(name, BASE_HTTP, figure),
                "beside_granian": ratio(name, RUST_HTTP, figure),
            }
        return {
            "beside_gevent": ratio(name, BASE, figure),
            "beside_c": ratio(name, FLOOR, figure),
        }

    def plot(self, file: pathlib.Path) -> None:
        from .plot import plot  # noqa: PLC0415  # matplotlib may not be installed

        plot(self.results, self.contenders, self.heading(), file)
