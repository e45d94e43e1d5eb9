"""What people see of a run: a table for each question, and one for the promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

from loadtests.bench.servers.blocking import BLOCK_MICROSECONDS
from loadtests.frame import process
from loadtests.frame.figures import Figure
from loadtests.frame.old_promise import Promise
from loadtests.frame.old_sheet import Sheet
from loadtests.frame.sheet import Table

from . import figures
from .contenders import Contender, Question
from .plan import OPEN_RATE, ORDERED_CONNECTIONS, STALL_RATE, Plan
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

    plotter: ClassVar[str] = "loadtests.hubs.plot:plot"

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
        return self.table(
            f"Is the order exact? {ORDERED_CONNECTIONS} connections one after another, and "
            f"{self.plan.concurrency} at a time; the worst round",
            "order",
            self._of(Question.ORDER),
            ("exact", self.is_exact),
            (f"{self.plan.concurrency} at a time: differ by", self.worst(figures.SPREAD)),
            ("", self.errors),
        )

    def _stall(self) -> Table:
        return self.table(
            f"Who waits for a blocked hub? {STALL_RATE} connections/s; its turns when it is back, "
            "and by how much all clones' differ when it is trusted again",
            "a hub is blocked for 1 s",
            self._of(Question.STALL),
            ("longest wait ms", self.median(figures.LONGEST_WAIT)),
            ("worst round", self.worst(figures.LONGEST_WAIT)),
            ("lost", self.worst(figures.LOST)),
            ("waited for it", self.median(figures.WAITED_FOR_IT)),
            ("its turns after", self.median(figures.TURNS_AFTER)),
            ("x fair share", self.median(figures.SHARE_AFTER)),
            ("differ by", self.worst(figures.SPREAD_AFTER)),
        )

    def _block(self) -> Table:
        return self.table(
            f"How many connections a second, if every handler blocks its hub for "
            f"{BLOCK_MICROSECONDS / 1000:g} ms?",
            "every handler blocks",
            self._of(Question.BLOCK),
            ("connections/s", self.median(figures.RATE)),
            ("x 1 hub", self.beside(BASES[Question.BLOCK], figures.RATE)),
            ("server's CPU", self.median(figures.SERVER_BUSY, " %")),
            ("", self.errors),
        )

    def _price(self) -> Table:
        base = BASES[Question.PRICE]
        return self.table(
            "What does a connection cost the server?",
            "accept, reply, close",
            self._of(Question.PRICE),
            ("CPU us", self.median(figures.CPU)),
            ("x 1 hub", self.beside(base, figures.CPU)),
            ("connections/s", self.median(figures.RATE)),
            ("x 1 hub", self.beside(base, figures.RATE)),
            ("server's CPU", self.median(figures.SERVER_BUSY, " %")),
            ("client's CPU", self.median(figures.CLIENT_BUSY, " %")),
            ("", self.errors),
        )

    def _schedule(self) -> Table:
        base = BASES[Question.PRICE]
        return self.table(
            f"How long does a client wait, at {OPEN_RATE:,} connections/s?",
            "on a schedule",
            [one for one in self._of(Question.PRICE) if one.has_schedule],
            ("p50 us", self.median(figures.OPEN_P50)),
            ("p99 us", self.median(figures.OPEN_P99)),
            ("x 1 hub", self.beside(base, figures.OPEN_P99)),
            ("CPU us", self.median(figures.OPEN_CPU)),
            ("x 1 hub", self.beside(base, figures.OPEN_CPU)),
        )

    def _of(self, question: Question) -> list[Contender]:
        return [one for one in self.contenders if one.question is question]

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
