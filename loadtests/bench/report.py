"""What people see of a run: tables, as text, for a terminal and in Markdown; JSON; a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

from loadtests.frame.figures import Figure
from loadtests.frame.old_promise import Promise
from loadtests.frame.old_sheet import Cell, Sheet
from loadtests.frame.process import Contender
from loadtests.frame.sheet import Table

from . import figures
from .contenders import BASE, BASE_HTTP, FLOOR, RUST_HTTP
from .plan import OPEN_RATE, Plan
from .promises import PROMISES

#: Over this much of its CPU, in percent, a process is taken to be at its limit.
SATURATED: Final = 90


@dataclass(frozen=True)
class Report(Sheet):
    """A run that is over: *absent* are the contenders that are not installed here."""

    plan: Plan
    absent: Sequence[Contender]

    plotter: ClassVar[str] = "loadtests.bench.plot:plot"
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
        return self.table(
            "What a connection costs the server",
            "accept, reply, close",
            contenders,
            ("connections/s", self.median(figures.RATE)),
            ("x gevent", self.beside(BASE, figures.RATE)),
            ("CPU us", self.median(figures.CPU)),
            ("x gevent", self.beside(BASE, figures.CPU)),
            ("x C", self.beside(FLOOR, figures.CPU)),
            ("system calls", self.median(figures.CALLS)),
            ("server's CPU", self.median(figures.SERVER_BUSY, " %")),
            ("client's CPU", self.median(figures.CLIENT_BUSY, " %")),
            ("", self._note),
        )

    def _latency(self, contenders: Sequence[Contender]) -> Table:
        return self.table(
            f"How long a client waits: {self.plan.concurrency} at a time, and on a schedule",
            "accept, reply, close",
            contenders,
            ("p50 us", self.median(figures.P50)),
            ("p99 us", self.median(figures.P99)),
            ("p99.9 us", self.median(figures.P999)),
            (f"p99 us at {OPEN_RATE:,}/s", self.median(figures.OPEN_P99)),
            ("x gevent", self.beside(BASE, figures.OPEN_P99)),
        )

    def _clones(self, contenders: Sequence[Contender]) -> Table:
        return self.table(
            "Who serves, and what it takes to be there",
            "clones",
            [one for one in contenders if one.places > 1 or one.is_idle_measured],
            ("exact order", self.is_exact),
            ("fairness (Jain)", self.median(figures.FAIRNESS)),
            ("KiB a clone", self.median(figures.CLONE_KIB)),
            ("KiB an idle connection", self.median(figures.IDLE_KIB)),
        )

    def _http(self, contenders: Sequence[Contender]) -> Table:
        return self.table(
            "HTTP, a connection a request",
            "HTTP",
            contenders,
            ("connections/s", self.median(figures.RATE)),
            *self._beside_both("CPU us", figures.CPU),
            *self._beside_both("10 headers: CPU us", figures.BROWSER_CPU),
            ("system calls", self.median(figures.CALLS)),
            ("", self._note),
        )

    def _kept(self, contenders: Sequence[Contender]) -> Table:
        return self.table(
            f"HTTP, kept alive: 1 connection for p50, {self.plan.keep_concurrency} for the rest",
            "HTTP kept alive",
            [one for one in contenders if one.is_kept],
            ("p50 us", self.median(figures.KEEP_P50)),
            ("requests/s", self.median(figures.KEEP_RATE)),
            *self._beside_both("CPU us", figures.KEEP_CPU),
            *self._beside_both("10 headers: CPU us", figures.KEEP_BROWSER_CPU),
        )

    def _beside_both(self, head: str, figure: Figure) -> tuple[tuple[str, Cell], ...]:
        return (
            (head, self.median(figure)),
            ("x gevent", self.beside(BASE_HTTP, figure)),
            ("x granian", self.beside(RUST_HTTP, figure)),
        )

    def _idle(self, contenders: Sequence[Contender]) -> Table:
        return self.table(
            "What idle kept-alive connections cost",
            "HTTP, idle connections",
            [one for one in contenders if one.is_idle_measured],
            ("KiB each", self.median(figures.IDLE_KIB)),
            ("x gevent", self.beside(BASE_HTTP, figures.IDLE_KIB)),
            ("CPU us a request without", self.median(figures.ALONE_CPU)),
            (f"with {self.plan.crowd:,}", self.median(figures.CROWD_CPU)),
            ("x without", self.median(figures.CROWD)),
        )

    def _note(self, name: str) -> str:
        bound = "client-bound" if self.is_client_bound(name) else ""
        return ", ".join(filter(None, (bound, self.errors(name))))

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
