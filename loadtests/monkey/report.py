"""What people see of a run: a table for each question, and one for the promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtests.frame import process
from loadtests.frame.figures import Figure
from loadtests.frame.old_promise import Promise
from loadtests.frame.old_sheet import Cell, Sheet
from loadtests.frame.promise import NOTHING
from loadtests.frame.sheet import Table

from . import figures
from .contenders import AGAIN, BASE, COPIES, Contender, contender
from .plan import CONCURRENCY, ORDERED_CONNECTIONS, Plan
from .promises import PROMISES


@dataclass(frozen=True)
class Report(Sheet):
    """A run that is over."""

    contenders: Sequence[Contender]
    plan: Plan

    def heading(self) -> str:
        plan = self.plan
        return (
            f"Medians of {plan.rounds} rounds (seed {plan.seed}), each with processes of its own, "
            f"and of ratios within a round; {plan.connections:,} connections in a round, in "
            f"{plan.turns} interleaved turns, of which the median counts, {CONCURRENCY} at a time; "
            f"over loopback; "
            f"{self.cpus}. {self.surroundings()}."
        )

    # -- tables -------------------------------------------------------------------------------

    def tables(self) -> list[Table]:
        return [*(one for one in (self._price(), self._order()) if one.rows), self.promised()]

    def _price(self) -> Table:
        return self.table(
            "What does the patch cost a program that has no use for it?",
            "one listener: under whose patch",
            [one for one in self.contenders if not one.places],
            *self._costs(),
        )

    def _order(self) -> Table:
        return self.table(
            f"What does it give {COPIES} listeners with SO_REUSEPORT? Order and fairness of "
            f"{ORDERED_CONNECTIONS} connections, one after another",
            f"{COPIES} copies: under whose patch",
            [one for one in self.contenders if one.places],
            ("exact", self.is_exact),
            ("in order", self.median(figures.IN_ORDER, " %")),
            ("Jain's fairness", self.median(figures.FAIRNESS)),
            *self._costs(),
        )

    def _costs(self) -> tuple[tuple[str, Cell], ...]:
        return (
            ("CPU us", self.median(figures.CPU)),
            ("x gevent's", lambda name: self._beside(name)[0]),
            ("half of rounds", lambda name: self._beside(name)[1]),
            ("", self.errors),
        )

    def _beside(self, name: str) -> tuple[str, str]:
        """Return the median of the ratios to gevent's patch, and what half of them lie between."""
        base = self._base(name)
        ratios = self.results.ratios(name, base, figures.CPU)
        if name == base or not ratios:
            return NOTHING, NOTHING
        median = self.results.ratio(name, base, figures.CPU)
        low, high = figures.quartiles(ratios)
        return f"{median:.3f}", f"{low:.3f} to {high:.3f}"

    def _base(self, name: str) -> str:
        one = next(one for one in self.contenders if one.name == name)
        return contender(one.of, BASE, one.number).name

    # -- what a sheet asks --------------------------------------------------------------------

    def promises(self) -> Sequence[Promise]:
        # Of what was asked: a part of the programs is a run, too.
        names = {one.name for one in self.contenders}
        return [one for one in PROMISES if one.contender in names]

    def remark(self, promise: Promise) -> str:
        """Return by how much gevent's patch differs from itself: finer than that is noise."""
        if promise.figure is not figures.CPU:
            return ""
        one = next(one for one in self.contenders if one.name == promise.contender)
        again, base = (contender(one.of, side).name for side in (AGAIN, BASE))
        itself = self.results.ratio(again, base, figures.CPU)
        return "" if itself is None else f" (gevent's beside itself {itself:.3f})"

    def plan_as_json(self) -> dict[str, Any]:
        return asdict(self.plan)

    def ratios_as_json(
        self, contender: process.Contender, figure: Figure
    ) -> dict[str, float | None]:
        base = self._base(contender.name)
        return {"beside_gevents_patch": self.results.ratio(contender.name, base, figure)}
