"""The run: one question after the other, each in interleaved rounds of its contenders.

In a round each contender of a question has its turn, in an order that is shuffled anew, so that
a noisy minute is noisy for all. The servers of a question are up during its rounds, those that
don't have their turn idle. For the order each round has a fresh one: its first turn is clone 0's.
"""

from __future__ import annotations

import pathlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from loadtests.bench.servers.blocking import BLOCK_MICROSECONDS, STALL_MICROSECONDS
from loadtests.frame.client import Client, Load, ask_in_turn
from loadtests.frame.figures import Results
from loadtests.frame.process import Cpus, Server

from . import figures
from .contenders import Contender, Question
from .figures import spread
from .stall import Timeline, block

#: Until a server is done with what comes after the last reply, in seconds. glb's watchdog looks
#: around for 0.1 s more, which is part of the price.
SETTLE_SECONDS: Final = 0.15

#: Rates of the open loops, connections/s. While a hub is blocked, so few that each of a second's
#: connections is one to look at; for the latency as `loadtests.bench` has it.
STALL_RATE: Final = 100
OPEN_RATE: Final = 1000

ORDERED_CONNECTIONS: Final = 800

#: What a hub could do at best, if each of its handlers blocks it: connections/s.
BLOCK_RATE: Final = 1e6 / BLOCK_MICROSECONDS

#: The load goes on for so long before a hub is blocked.
STALL_BEFORE_SECONDS: Final = 1.0

#: Connections before the first round, 16 at a time.
WARM_UP: Final = {Question.STALL: 160, Question.BLOCK: 160, Question.PRICE: 2000}


@dataclass(frozen=True)
class Plan:
    """How much of everything: the options of the command."""

    rounds: int = 7
    #: Of order and stall: what is counted there doesn't become better by a median.
    stall_rounds: int = 3
    connections: int = 10_000
    concurrency: int = 64
    open_seconds: float = 4.0
    block_seconds: float = 2.0
    #: How long the load goes on when the hub is back.
    stall_after_seconds: float = 2.5
    seed: int = 0

    def quick(self) -> Plan:
        """Return a plan that only tries whether everything works."""
        return Plan(2, 1, 2000, self.concurrency, 0.5, 0.5, 1.5, self.seed)

    @property
    def stall_seconds(self) -> float:
        return STALL_BEFORE_SECONDS + STALL_MICROSECONDS / 1e6 + self.stall_after_seconds

    def rounds_of(self, question: Question) -> int:
        is_timed = question in (Question.BLOCK, Question.PRICE)
        return self.rounds if is_timed else self.stall_rounds


class Run:
    """One run of *plan*. *tell* is called with what is done, before each step."""

    def __init__(
        self,
        plan: Plan,
        contenders: Sequence[Contender],
        programs: tuple[pathlib.Path, pathlib.Path],
        cpus: Cpus,
        tell: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._all = contenders
        self._cpus = cpus
        self._client = Client(programs[0], cpus)
        self._c_server = programs[1]
        self._tell = tell
        self._shuffle = random.Random(plan.seed).sample
        self.results = Results()
        #: Of each contender that was asked about stalls, one for each round.
        self.timelines: dict[str, list[Timeline]] = {}

    @property
    def turns(self) -> int:
        """How often *tell* will be called."""
        return sum(
            self._plan.rounds_of(one.question) + (one.question in WARM_UP) for one in self._all
        )

    def go(self) -> Results:
        """Do everything, and return what was measured."""
        self._ask_order()
        self._ask(Question.STALL, self._stall_turn)
        self._ask(Question.BLOCK, self._block_turn)
        self._ask(Question.PRICE, self._price_turn)
        return self.results

    def _ask_order(self) -> None:
        for number, contender in self._rounds(Question.ORDER):
            self._tell(f"order, round {number}: {contender.title}")
            self._attempt(contender, self._order_turn)

    def _ask(self, question: Question, turn: Callable[[Contender, Server], None]) -> None:
        with ExitStack() as stack:
            servers: dict[Contender, Server] = {}
            for contender in self._of(question):
                self._tell(f"{question.value}, start: {contender.title}")
                try:
                    server = servers[contender] = stack.enter_context(self._start(contender))
                    self._warm_up(question, server)
                except Exception as error:
                    self.results.fail(contender.name, str(error))
            for number, contender in self._rounds(question):
                self._tell(f"{question.value}, round {number}: {contender.title}")
                self._attempt(contender, lambda one: turn(one, servers[one]))

    def _warm_up(self, question: Question, server: Server) -> None:
        count = WARM_UP[question]
        if question is Question.STALL:
            ask_in_turn(server.port, count)
        elif self._client.close(server.port, count, 16).count < count / 2:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")

    def _of(self, question: Question) -> list[Contender]:
        return [one for one in self._all if one.question is question]

    def _rounds(self, question: Question) -> Iterator[tuple[int, Contender]]:
        contenders = self._of(question)
        for number in range(1, self._plan.rounds_of(question) + 1):
            for contender in self._shuffle(contenders, len(contenders)):
                yield number, contender

    def _start(self, contender: Contender) -> Server:
        return Server(contender, self._c_server, self._cpus, contender.question.job)

    def _attempt(self, contender: Contender, step: Callable[[Contender], None]) -> None:
        # One contender that breaks is a line in the table, not the end of the run.
        if contender.name in self.results.failed:
            return
        try:
            step(contender)
        except Exception as error:
            self.results.fail(contender.name, f"{type(error).__name__}: {error}")

    # -- the questions --------------------------------------------------------------------------

    def _order_turn(self, contender: Contender) -> None:
        places = contender.places
        with self._start(contender) as server:
            answers = ask_in_turn(server.port, ORDERED_CONNECTIONS)
            load, noted = self._client.close_noted(
                server.port, ORDERED_CONNECTIONS, self._plan.concurrency
            )
        is_exact = answers == [index % places for index in range(len(answers))]
        clones = [one.clone for one in noted]
        add = self.results.add
        add(contender.name, figures.EXACT, float(is_exact))
        add(contender.name, figures.SPREAD, spread([clones.count(one) for one in range(places)]))
        add(contender.name, figures.ERRORS, load.errors)

    def _stall_turn(self, contender: Contender, server: Server) -> None:
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(
                self._client.open_noted, server.port, self._plan.stall_seconds, STALL_RATE
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
        load, _ = self._closed_loop(contender, server, count)
        self.results.add(contender.name, figures.ERRORS, load.errors)

    def _price_turn(self, contender: Contender, server: Server) -> None:
        add, name = self.results.add, contender.name
        load, cpu = self._closed_loop(contender, server, self._plan.connections)
        add(name, figures.CPU, cpu / load.count * 1e6)
        errors = load.errors
        if contender.has_schedule:
            before = server.cpu_seconds()
            load = self._client.open(server.port, self._plan.open_seconds, OPEN_RATE)
            time.sleep(SETTLE_SECONDS)
            cpu = server.cpu_seconds() - before
            if load.count == 0:
                raise RuntimeError(f"doesn't answer: {server.last_words()}")
            add(name, figures.OPEN_P50, load.p50)
            add(name, figures.OPEN_P99, load.p99)
            add(name, figures.OPEN_CPU, cpu / load.count * 1e6)
            errors += load.errors
        add(name, figures.ERRORS, errors)

    def _closed_loop(self, contender: Contender, server: Server, count: int) -> tuple[Load, float]:
        before = server.cpu_seconds()
        load = self._client.close(server.port, count, self._plan.concurrency)
        time.sleep(SETTLE_SECONDS)
        cpu = server.cpu_seconds() - before
        if load.count == 0:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")
        add, name = self.results.add, contender.name
        add(name, figures.RATE, load.count / load.seconds)
        add(name, figures.SERVER_BUSY, cpu / load.seconds * 100)
        add(name, figures.CLIENT_BUSY, load.cpu_seconds / load.seconds * 100)
        return load, cpu
