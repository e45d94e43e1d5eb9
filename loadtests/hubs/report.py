"""What people see of a run: a table for each question, and one for the promises."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from loadtests.bench.servers.blocking import BLOCK_MICROSECONDS
from loadtests.frame import process
from loadtests.frame.figures import Figure
from loadtests.frame.promise import Promise
from loadtests.frame.sheet import NOTHING, Sheet, Table

from . import figures
from .contenders import Contender, Question
from .measure import OPEN_RATE, ORDERED_CONNECTIONS, STALL_RATE, Plan
from .promises import PROMISES
from .stall import Timeline

#: What the contenders of a question are compared with.
BASES: Final = {
    Question.STALL: "stall-1",
    Question.BLOCK: "block-1",
    Question.PRICE: "price-1",
}


@dataclass(frozen=True)
class Report(Sheet):
    """A run that is over."""

    contenders: Sequence[Contender]
    plan: Plan
    timelines: Mapping[str, Sequence[Timeline]]

    def heading(self) -> str:
        plan = self.plan
        return (
            f"Medians of {plan.rounds} interleaved rounds (seed {plan.seed}), of order and blocked "
            f"hubs {plan.stall_rounds}, with {plan.connections:,} connections in a round, "
            f"{plan.concurrency} at a time, and {plan.open_seconds:g} s at {OPEN_RATE:,} "
            f"connections/s; over loopback; {self.cpus}. {self.surroundings()}."
        )

    # -- tables -------------------------------------------------------------------------------

    def tables(self) -> list[Table]:
        tables = (self._order(), self._stall(), self._block(), self._price(), self._schedule())
        return [*(table for table in tables if table.rows), self.promised()]

    def _order(self) -> Table:
        head = ("order", "exact", f"{self.plan.concurrency} at a time: differ by", "")
        return Table(
            f"Is the order exact? {ORDERED_CONNECTIONS} connections one after another, and "
            f"{self.plan.concurrency} at a time; the worst round",
            head,
            self.rows(
                self._of(Question.ORDER),
                lambda name: (
                    "yes" if min(self.results.of(name, figures.EXACT)) == 1 else "no",
                    self._worst(name, figures.SPREAD),
                    self._note(name),
                ),
                len(head),
            ),
        )

    def _stall(self) -> Table:
        head: tuple[str, ...] = ("a hub is blocked for 1 s", "longest wait ms", "worst round")
        head += ("lost", "waited for it", "its turns after", "x fair share", "differ by")
        return Table(
            f"Who waits for a blocked hub? {STALL_RATE} connections/s; its turns when it is back, "
            "and by how much all clones' differ when it is trusted again",
            head,
            self.rows(
                self._of(Question.STALL),
                lambda name: (
                    self.median(name, figures.LONGEST_WAIT),
                    self._worst(name, figures.LONGEST_WAIT),
                    self._worst(name, figures.LOST),
                    self.median(name, figures.WAITED_FOR_IT),
                    self.median(name, figures.TURNS_AFTER),
                    self.median(name, figures.SHARE_AFTER),
                    self._worst(name, figures.SPREAD_AFTER),
                ),
                len(head),
            ),
        )

    def _block(self) -> Table:
        head = ("every handler blocks", "connections/s", "x 1 hub", "server's CPU", "")
        return Table(
            f"How many connections a second, if every handler blocks its hub for "
            f"{BLOCK_MICROSECONDS / 1000:g} ms?",
            head,
            self.rows(
                self._of(Question.BLOCK),
                lambda name: (
                    self.median(name, figures.RATE),
                    self.ratio(name, BASES[Question.BLOCK], figures.RATE),
                    self.median(name, figures.SERVER_BUSY, " %"),
                    self._note(name),
                ),
                len(head),
            ),
        )

    def _price(self) -> Table:
        base = BASES[Question.PRICE]
        head: tuple[str, ...] = ("accept, reply, close", "CPU us", "x 1 hub", "connections/s")
        head += ("x 1 hub", "server's CPU", "client's CPU", "")
        return Table(
            "What does a connection cost the server?",
            head,
            self.rows(
                self._of(Question.PRICE),
                lambda name: (
                    self.median(name, figures.CPU),
                    self.ratio(name, base, figures.CPU),
                    self.median(name, figures.RATE),
                    self.ratio(name, base, figures.RATE),
                    self.median(name, figures.SERVER_BUSY, " %"),
                    self.median(name, figures.CLIENT_BUSY, " %"),
                    self._note(name),
                ),
                len(head),
            ),
        )

    def _schedule(self) -> Table:
        base = BASES[Question.PRICE]
        head = ("on a schedule", "p50 us", "p99 us", "x 1 hub", "CPU us", "x 1 hub")
        return Table(
            f"How long does a client wait, at {OPEN_RATE:,} connections/s?",
            head,
            self.rows(
                [one for one in self._of(Question.PRICE) if one.has_schedule],
                lambda name: (
                    self.median(name, figures.OPEN_P50),
                    self.median(name, figures.OPEN_P99),
                    self.ratio(name, base, figures.OPEN_P99),
                    self.median(name, figures.OPEN_CPU),
                    self.ratio(name, base, figures.OPEN_CPU),
                ),
                len(head),
            ),
        )

    def _of(self, question: Question) -> list[Contender]:
        return [one for one in self.contenders if one.question is question]

    def _worst(self, name: str, figure: Figure) -> str:
        samples = self.results.of(name, figure)
        return f"{max(samples):,.{figure.digits}f}" if samples else NOTHING

    def _note(self, name: str) -> str:
        errors = sum(self.results.of(name, figures.ERRORS))
        return f"{errors:,.0f} errors" if errors else ""

    # -- what a sheet asks --------------------------------------------------------------------

    def promises(self) -> Sequence[Promise]:
        return PROMISES

    def plan_as_json(self) -> dict[str, Any]:
        return asdict(self.plan)

    def contender_as_json(self, contender: process.Contender) -> dict[str, Any]:
        seen = [
            {
                "hub": one.stall.hub,
                "seconds": (one.stall.ended - one.stall.began) / 1e9,
                "due_s_and_wait_ms": [(round(at, 4), round(wait, 3)) for at, wait in one.points()],
            }
            for one in self.timelines.get(contender.name, ())
        ]
        return {**super().contender_as_json(contender), **({"stalls": seen} if seen else {})}

    def ratios_as_json(
        self, contender: process.Contender, figure: Figure
    ) -> dict[str, float | None]:
        question = next(one.question for one in self.contenders if one.name == contender.name)
        base = BASES.get(question)
        if base is None:
            return {}
        return {"beside_1_hub": self.results.ratio(contender.name, base, figure)}

    def plot(self, file: pathlib.Path) -> None:
        from .plot import plot  # noqa: PLC0415  # matplotlib may not be installed

        plot(self.results, self.contenders, self.timelines, self.heading(), file)
