"""The run: rounds of groups, and in each of them turns.

In a round each group, a program under each patch, has its own processes: how a process happens
to lie in memory is worth a percent or two, and stays for its life. There the sides take turns,
several each, in an order that is shuffled anew: how fast the machine is changes within seconds. A
sample is the median of the turns of a side in a round, so that a turn in which another
process had the machine doesn't count; and a ratio is that of two sides in one round.
"""

from __future__ import annotations

import itertools
import pathlib
import random
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from loadtests.bench.servers.job import Job
from loadtests.frame import process
from loadtests.frame.client import GIVE_UP_SECONDS, REQUEST_AND_CLOSE, Client
from loadtests.frame.figures import Results
from loadtests.frame.process import Cpus, Server

from . import figures
from .contenders import Contender, Group

#: Until a server is done with what comes after the last reply, in seconds. A third of what
#: `loadtests.bench` waits: turns are many here, and of each the end weighs as much.
SETTLE_SECONDS: Final = 0.01

#: Connections at a time. So few that the kernel's queues stay short; so many that a server finds
#: several ready when it wakes, as with a load.
CONCURRENCY: Final = 16

#: Connections before the first turn: what is imported and specialised late is by then.
WARM_UP: Final = 300

ORDERED_CONNECTIONS: Final = 200

#: What `clients` talk to. It has no patch, and runs where the client does.
ECHO: Final = process.Contender("echo", "who sends back what comes", "patched:echo")


@dataclass(frozen=True)
class Plan:
    """How much of everything: the options of the command."""

    rounds: int = 9
    #: Of each contender in a round, in all its turns.
    connections: int = 4000
    #: Of each contender in a round.
    turns: int = 20
    seed: int = 0


class Run:
    """One run of *plan*. *tell* is called with what is done, before each step."""

    def __init__(
        self,
        plan: Plan,
        groups: Sequence[Group],
        programs: tuple[pathlib.Path, pathlib.Path],
        cpus: Cpus,
        tell: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._groups = groups
        self._cpus = cpus
        self._client = Client(programs[0], cpus)
        self._c_server = programs[1]
        self._tell = tell
        self._shuffle = random.Random(plan.seed).sample
        self._echo_port = 0
        self.results = Results()

    @property
    def steps(self) -> int:
        """How often *tell* will be called."""
        return self._plan.rounds * len(self._groups)

    def go(self) -> Results:
        """Do everything, and return what was measured."""
        beside_the_client = Cpus(self._cpus.client, self._cpus.client)
        with Server(ECHO, self._c_server, beside_the_client) as echo:
            self._echo_port = echo.port
            for number in range(1, self._plan.rounds + 1):
                for group in self._shuffle(self._groups, len(self._groups)):
                    self._tell(f"round {number}: {group[0].of.title}")
                    self._round(group)
        return self.results

    def _round(self, group: Group) -> None:
        with ExitStack() as stack:
            servers: dict[Contender, Server] = {}
            prices: dict[Contender, list[float]] = {one: [] for one in group}
            errors = dict.fromkeys(group, 0)
            for one in self._shuffle(group, len(group)):
                self._attempt(one, lambda one: self._begin(one, servers, stack))
            size = self._plan.connections // self._plan.turns

            def turn(one: Contender) -> None:
                server = servers[one]
                before = server.cpu_seconds()
                failed = self._load(one, server, size)
                time.sleep(SETTLE_SECONDS)
                cpu = server.cpu_seconds() - before
                prices[one].append(cpu / max(size - failed, 1) * 1e6)
                errors[one] += failed

            for _ in range(self._plan.turns):
                for one in self._shuffle(group, len(group)):
                    self._attempt(one, turn)
        for one in group:
            if one.name not in self.results.failed:
                self.results.add(one.name, figures.CPU, statistics.median(prices[one]))
                self.results.add(one.name, figures.ERRORS, errors[one])
                if one.places:
                    self._attempt(one, self._note_order)

    def _begin(self, one: Contender, servers: dict[Contender, Server], stack: ExitStack) -> None:
        server = servers[one] = stack.enter_context(self._start(one, Job.REPLY))
        if self._load(one, server, WARM_UP) > WARM_UP / 2:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")

    def _start(self, contender: Contender, job: Job) -> Server:
        return Server(contender, self._c_server, self._cpus, job)

    def _load(self, contender: Contender, server: Server, count: int) -> int:
        """Return how many of *count* connections went wrong."""
        if not contender.of.is_client:
            load = self._client.close(server.port, count, CONCURRENCY, http=contender.is_http)
            return load.errors
        with socket.create_connection(("127.0.0.1", server.port), GIVE_UP_SECONDS) as orders:
            orders.sendall(b"%d %d" % (self._echo_port, count))
            return count - int(orders.recv(100) or b"0")

    def _note_order(self, contender: Contender) -> None:
        places = contender.places
        with self._start(contender, Job.ORDER) as server:
            request = REQUEST_AND_CLOSE if contender.is_http else ""
            answers = ask(server.port, ORDERED_CONNECTIONS, request)
        steps = [(after - before) % places for before, after in itertools.pairwise(answers)]
        counts = [answers.count(place) for place in range(places)]
        add = self.results.add
        add(contender.name, figures.EXACT, float(answers[0] == 0 and set(steps) == {1}))
        add(contender.name, figures.IN_ORDER, steps.count(1) / len(steps) * 100)
        add(contender.name, figures.FAIRNESS, figures.fairness(counts))

    def _attempt(self, contender: Contender, step: Callable[[Contender], None]) -> None:
        # One contender that breaks is a line in the table, not the end of the run.
        if contender.name in self.results.failed:
            return
        try:
            step(contender)
        except Exception as error:
            self.results.fail(contender.name, f"{type(error).__name__}: {error}")


def ask(port: int, count: int, request: str) -> list[int]:
    """Connect *count* times, one after the other; return the copy that answered each."""
    answers = []
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            sock.sendall(request.encode())
            reply = b""
            while piece := sock.recv(4096):
                reply += piece
        answers.append(int(reply.split()[-1]))
    return answers
