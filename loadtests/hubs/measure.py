"""The run: one question after the other, each in interleaved rounds of its contenders.

For the order each round has a fresh server: its first turn is clone 0's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from loadtests.frame.client import ask_in_turn
from loadtests.frame.process import Server
from loadtests.frame.rounds import Rounds, Tools

from . import figures
from .contenders import Contender, Question
from .figures import spread
from .plan import (
    BLOCK_RATE,
    OPEN_RATE,
    ORDERED_CONNECTIONS,
    STALL_BEFORE_SECONDS,
    STALL_RATE,
    WARM_UP,
    Plan,
)
from .report import Report
from .stall import Timeline, block


class Run(Rounds[Contender]):
    """One run of *plan*."""

    #: glb's watchdog looks around for 0.1 s more, which is part of the price.
    settle_seconds: ClassVar[float] = 0.15

    def __init__(self, plan: Plan, contenders: list[Contender], tools: Tools) -> None:
        super().__init__(contenders, plan.seed, tools)
        self._plan = plan
        #: Of each contender that was asked about stalls, one for each round.
        self.timelines: dict[str, list[Timeline]] = {}

    @property
    def steps(self) -> int:
        return sum(
            self._plan.rounds_of(one.question) + (one.question in WARM_UP)
            for one in self.contenders
        )

    def go(self) -> None:
        rounds = self._plan.rounds_of(Question.ORDER)
        for number, contender in self.rounds(self._of(Question.ORDER), rounds):
            self.tell(f"order, round {number}: {contender.title}")
            self.attempt(contender, self._order_turn)
        self._ask(Question.STALL, self._stall_turn)
        self._ask(Question.BLOCK, self._block_turn)
        self._ask(Question.PRICE, self._price_turn)

    def report(self, command: str) -> Report:
        cpus = self.cpus.describe()
        return Report(self.results, self.contenders, cpus, command, self._plan, self.timelines)

    def _ask(self, question: Question, turn: Callable[[Contender, Server], None]) -> None:
        def warm_up(server: Server) -> None:
            if question is Question.STALL:
                ask_in_turn(server.port, WARM_UP[question])
            else:
                self.warm_up(server, WARM_UP[question])

        self.interleaved(
            f"{question.value}, ",
            self._of(question),
            self._plan.rounds_of(question),
            lambda one: self.start(one, question.job),
            warm_up,
            turn,
        )

    def _of(self, question: Question) -> list[Contender]:
        return [one for one in self.contenders if one.question is question]

    # -- the questions --------------------------------------------------------------------------

    def _order_turn(self, contender: Contender) -> None:
        name, places = contender.name, contender.places
        with self.start(contender, Question.ORDER.job) as server:
            answers = ask_in_turn(server.port, ORDERED_CONNECTIONS)
            load, noted = self.client.close_noted(
                server.port, ORDERED_CONNECTIONS, self._plan.concurrency
            )
        clones = [one.clone for one in noted]
        differ = spread([clones.count(one) for one in range(places)])
        self.results.note_order(name, answers, places)
        self.results.add(name, figures.SPREAD, differ)
        self.results.add(name, figures.ERRORS, load.errors)

    def _stall_turn(self, contender: Contender, server: Server) -> None:
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(
                self.client.open_noted, server.port, self._plan.stall_seconds, STALL_RATE
            )
            time.sleep(STALL_BEFORE_SECONDS)
            stall = block(server.port, contender.blocked)
            load, answers = loading.result()
        seen = Timeline(stall, answers, contender.hubs, contender.places)
        self.timelines.setdefault(contender.name, []).append(seen)
        add, name = self.results.add, contender.name
        add(name, figures.LONGEST_WAIT, seen.longest_wait_ms())
        add(name, figures.LOST, load.errors)
        add(name, figures.WAITED_FOR_IT, seen.waited_for_it())
        add(name, figures.TURNS_AFTER, seen.turns_after())
        add(name, figures.SHARE_AFTER, seen.share_after())
        if (differ := seen.spread_after()) is not None:
            add(name, figures.SPREAD_AFTER, differ)

    def _block_turn(self, contender: Contender, server: Server) -> None:
        # As many as take as long, if hubs do what they could.
        count = round(BLOCK_RATE * contender.hubs * self._plan.block_seconds)
        concurrency = self._plan.concurrency
        load, _ = self.closed_loop(
            server, lambda: self.client.close(server.port, count, concurrency)
        )
        self.results.add(contender.name, figures.ERRORS, load.errors)

    def _price_turn(self, contender: Contender, server: Server) -> None:
        plan, add, name = self._plan, self.results.add, contender.name
        load, cpu = self.closed_loop(
            server, lambda: self.client.close(server.port, plan.connections, plan.concurrency)
        )
        add(name, figures.CPU, cpu / load.count * 1e6)
        errors = load.errors
        if contender.has_schedule:
            load, cpu = self.priced(
                server, lambda: self.client.open(server.port, plan.open_seconds, OPEN_RATE)
            )
            add(name, figures.OPEN_P50, load.p50)
            add(name, figures.OPEN_P99, load.p99)
            add(name, figures.OPEN_CPU, cpu / load.count * 1e6)
            errors += load.errors
        add(name, figures.ERRORS, errors)
