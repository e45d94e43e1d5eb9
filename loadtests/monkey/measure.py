"""The run: rounds of groups, and in each of them turns.

In a round each group, a program under each patch, has its own processes: how a process happens
to lie in memory is worth a percent or two, and stays for its life. There the sides take turns,
several each, in an order that is shuffled anew: how fast the machine is changes within seconds. A
sample is the median of the turns of a side in a round, so that a turn in which another
process had the machine doesn't count; and a ratio is that of two sides in one round.
"""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import ClassVar, Final

from loadtests.bench.servers.job import Job
from loadtests.frame import process
from loadtests.frame.client import GIVE_UP_SECONDS, REQUEST_AND_CLOSE, ask_in_turn
from loadtests.frame.process import Cpus, Server
from loadtests.frame.rounds import Rounds, Tools

from . import figures
from .contenders import Contender, Group
from .plan import CONCURRENCY, ORDERED_CONNECTIONS, Plan
from .report import Report

#: Connections before the first turn: what is imported and specialised late is by then.
WARM_UP: Final = 300

#: What `clients` talk to. It has no patch, and runs where the client does.
ECHO: Final = process.Contender("echo", "who sends back what comes", "patched:echo")


class Run(Rounds[Contender]):
    """One run of *plan*."""

    #: A third of what is usual: turns are many here, and of each the end weighs as much.
    settle_seconds: ClassVar[float] = 0.01

    def __init__(self, plan: Plan, groups: Sequence[Group], tools: Tools) -> None:
        super().__init__([one for group in groups for one in group], plan.seed, tools)
        self._plan = replace(plan, turns=min(plan.turns, plan.connections))
        self._groups = groups
        self._echo_port = 0
        # Of all servers: the order of names in dictionaries is worth a percent, by chance.
        os.environ["PYTHONHASHSEED"] = "0"

    @property
    def steps(self) -> int:
        return self._plan.rounds * len(self._groups)

    def go(self) -> None:
        beside_the_client = Cpus(self.cpus.client, self.cpus.client)
        with self.start(ECHO, cpus=beside_the_client) as echo:
            self._echo_port = echo.port
            for number in range(1, self._plan.rounds + 1):
                for group in self.shuffled(self._groups):
                    self.tell(f"round {number}: {group[0].of.title}")
                    self._round(group)

    def report(self, command: str) -> Report:
        return Report(self.results, self.contenders, self.cpus.describe(), command, self._plan)

    def _round(self, group: Group) -> None:
        with ExitStack() as stack:
            servers: dict[Contender, Server] = {}
            prices: dict[Contender, list[float]] = {one: [] for one in group}
            errors = dict.fromkeys(group, 0)
            for one in self.shuffled(group):
                self.attempt(one, lambda one: self._begin(one, servers, stack))
            size = self._plan.connections // self._plan.turns

            def turn(one: Contender) -> None:
                server = servers[one]
                before = server.cpu_seconds()
                failed = self._load(one, server, size)
                time.sleep(self.settle_seconds)
                cpu = server.cpu_seconds() - before
                prices[one].append(cpu / max(size - failed, 1) * 1e6)
                errors[one] += failed

            for _ in range(self._plan.turns):
                for one in self.shuffled(group):
                    self.attempt(one, turn)
        for one in group:
            if one.name not in self.results.failed:
                self.results.add(one.name, figures.CPU, statistics.median(prices[one]))
                self.results.add(one.name, figures.ERRORS, errors[one])
                if one.places:
                    self.attempt(one, self._note_order)

    def _begin(self, one: Contender, servers: dict[Contender, Server], stack: ExitStack) -> None:
        server = servers[one] = stack.enter_context(self.start(one))
        if self._load(one, server, WARM_UP) > WARM_UP / 2:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")

    def _load(self, contender: Contender, server: Server, count: int) -> int:
        """Return how many of *count* connections went wrong."""
        if not contender.of.is_client:
            load = self.client.close(server.port, count, CONCURRENCY, http=contender.is_http)
            return load.errors
        with socket.create_connection(("127.0.0.1", server.port), GIVE_UP_SECONDS) as orders:
            orders.sendall(b"%d %d" % (self._echo_port, count))
            return count - int(orders.recv(100) or b"0")

    def _note_order(self, contender: Contender) -> None:
        places = contender.places
        with self.start(contender, Job.ORDER) as server:
            request = REQUEST_AND_CLOSE if contender.is_http else ""
            answers = ask_in_turn(server.port, ORDERED_CONNECTIONS, request)
        steps = [(after - before) % places for before, after in itertools.pairwise(answers)]
        self.results.note_order(contender.name, answers, places)
        self.results.add(contender.name, figures.IN_ORDER, steps.count(1) / len(steps) * 100)
