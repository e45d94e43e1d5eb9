"""The run: interleaved rounds, and then what is measured apart from them.

In a round each contender has its turn, in an order that is shuffled anew, so that a noisy
minute is noisy for all. All servers are up during the rounds, those that don't have their turn
idle. System calls, order, memory and what idle connections cost come afterwards: strace slows
what it watches, and the others need servers that are fresh.
"""

from __future__ import annotations

import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from loadtests.frame.client import (
    BROWSER_REQUEST,
    BROWSER_REQUEST_AND_CLOSE,
    REQUEST,
    Client,
    Load,
    ask_in_turn,
)
from loadtests.frame.figures import Results, fairness
from loadtests.frame.process import Contender, Cpus, Server

from . import figures
from .contenders import CONTENDERS
from .crowd import Crowd
from .servers.job import Job

#: Until a server is done with what comes after the last reply, in seconds. Its CPU there is part
#: of the price, and nothing that can be seen from outside tells when it is over.
SETTLE_SECONDS: Final = 0.03

#: Rate of the open loop, connections/s. An eighth of what plain gevent can do: what is
#: measured is how promptly it answers, not how long its queue grows.
OPEN_RATE: Final = 1000

#: A connection has several system calls, and those of the end and the beginning of a trace,
#: an epoll_wait that was cut in two, are one in hundreds.
TRACED_CONNECTIONS: Final = 2000

ORDERED_CONNECTIONS: Final = 400
IDLE_CONNECTIONS: Final = 1000


@dataclass(frozen=True)
class Plan:
    """How much of everything: the options of the command."""

    rounds: int = 7
    connections: int = 10_000
    concurrency: int = 64
    open_seconds: float = 1.5
    keep_seconds: float = 1.0
    keep_concurrency: int = 16
    memory_repeats: int = 3
    crowd: int = 10_000
    crowd_repeats: int = 5
    seed: int = 0

    def quick(self) -> Plan:
        """Return a plan that only tries whether everything works."""
        return replace(
            self,
            rounds=2,
            connections=2000,
            open_seconds=0.5,
            memory_repeats=1,
            crowd=min(self.crowd, 1000),
            crowd_repeats=1,
        )


class Run:
    """One run of *plan*. *tell* is called with what is done, before each step."""

    def __init__(
        self,
        plan: Plan,
        contenders: list[Contender],
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
        self.results = Results()
        self.steps = len(self._steps())

    def _steps(self) -> list[tuple[str, Callable[[Contender], None], Contender]]:
        """Return what is to be done after the rounds."""
        traced = self._all if shutil.which("strace") else []
        ordered = [one for one in self._all if one.places > 1]
        weighed = [one for one in self._all if one.is_idle_measured]
        crowded = [one for one in weighed if one.is_kept]
        many = [one for one in self._all if one.name == "glb-1024"]
        return [
            *(("system calls", self._count_calls, one) for one in traced),
            *(("order", self._note_order, one) for one in ordered),
            *(("memory of idle connections", self._weigh_idle, one) for one in weighed),
            *(("idle connections beside requests", self._crowd, one) for one in crowded),
            *(("memory of clones", self._weigh_clones, one) for one in many),
        ]

    @property
    def turns(self) -> int:
        """How often *tell* will be called."""
        return len(self._all) * (self._plan.rounds + 1) + self.steps

    def go(self) -> Results:
        """Do everything, and return what was measured."""
        shuffle = random.Random(self._plan.seed).sample
        with ExitStack() as stack:
            servers: dict[Contender, Server] = {}
            for contender in self._all:
                self._tell(f"start: {contender.title}")
                try:
                    server = servers[contender] = stack.enter_context(self._start(contender))
                    warm_up = max(self._plan.connections // 5, 500)
                    load = self._client.close(server.port, warm_up, 16, http=contender.is_http)
                    if load.count < warm_up / 2:
                        raise RuntimeError(f"doesn't answer: {server.last_words()}")
                except Exception as error:
                    self.results.fail(contender.name, str(error))
            for number in range(1, self._plan.rounds + 1):
                for contender in shuffle(self._all, len(self._all)):
                    self._tell(f"round {number}: {contender.title}")
                    if contender.name not in self.results.failed:
                        self._attempt(contender, lambda one: self._turn(servers[one]))
        for what, step, contender in self._steps():
            self._tell(f"{what}: {contender.title}")
            if contender.name not in self.results.failed:
                self._attempt(contender, step)
        return self.results

    def _start(self, contender: Contender, job: Job = Job.REPLY) -> Server:
        return Server(contender, self._c_server, self._cpus, job)

    def _attempt(self, contender: Contender, step: Callable[[Contender], None]) -> None:
        # One contender that breaks is a line in the table, not the end of the run.
        try:
            step(contender)
        except Exception as error:
            self.results.fail(contender.name, f"{type(error).__name__}: {error}")

    # -- in the rounds ------------------------------------------------------------------------

    def _turn(self, server: Server) -> None:
        plan, name, http = self._plan, server.contender.name, server.contender.is_http
        add = self.results.add
        before = server.cpu_seconds()
        load = self._client.close(server.port, plan.connections, plan.concurrency, http=http)
        time.sleep(SETTLE_SECONDS)
        cpu = server.cpu_seconds() - before
        if load.count == 0:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")
        add(name, figures.RATE, load.count / load.seconds)
        add(name, figures.CPU, cpu / load.count * 1e6)
        add(name, figures.P50, load.p50)
        add(name, figures.P99, load.p99)
        add(name, figures.P999, load.p999)
        add(name, figures.SERVER_BUSY, cpu / load.seconds * 100)
        add(name, figures.CLIENT_BUSY, load.cpu_seconds / load.seconds * 100)
        errors = load.errors
        load = self._client.open(server.port, plan.open_seconds, OPEN_RATE, http=http)
        add(name, figures.OPEN_P99, load.p99)
        errors += load.errors
        if http:
            errors += self._browser_turn(server)
        if server.contender.is_kept:
            errors += self._keep_turn(server)
        add(name, figures.ERRORS, errors)

    def _browser_turn(self, server: Server) -> int:
        plan = self._plan
        before = server.cpu_seconds()
        load = self._client.close(
            server.port,
            plan.connections,
            plan.concurrency,
            http=True,
            request=BROWSER_REQUEST_AND_CLOSE,
        )
        cpu = self._cpu_of_each(server, before, load)
        self.results.add(server.contender.name, figures.BROWSER_CPU, cpu)
        return load.errors

    def _keep_turn(self, server: Server) -> int:
        # One connection for the latency: with more, a fast server's would be its queue. Several
        # for the CPU: a server that waits for acknowledgements has a few dozen requests a second
        # on one. Its CPU idles between them all the same, and wakes cold: part of the price.
        plan, name = self._plan, server.contender.name
        alone = self._client.keep(server.port, plan.keep_seconds, 1)
        self.results.add(name, figures.KEEP_P50, alone.p50)
        cpu, load = self._keep(server)
        self.results.add(name, figures.KEEP_RATE, load.count / load.seconds)
        self.results.add(name, figures.KEEP_CPU, cpu)
        cpu, browser = self._keep(server, BROWSER_REQUEST)
        self.results.add(name, figures.KEEP_BROWSER_CPU, cpu)
        return alone.errors + load.errors + browser.errors

    def _keep(self, server: Server, request: str = REQUEST) -> tuple[float, Load]:
        """Return what a request costs the server that is kept alive, in us of CPU; the load."""
        plan = self._plan
        before = server.cpu_seconds()
        load = self._client.keep(server.port, plan.keep_seconds, plan.keep_concurrency, request)
        return self._cpu_of_each(server, before, load), load

    def _cpu_of_each(self, server: Server, before: float, load: Load) -> float:
        """Return the server's CPU since *before* for each reply of *load*, in us."""
        time.sleep(SETTLE_SECONDS)
        cpu = server.cpu_seconds() - before
        if load.count == 0:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")
        return cpu / load.count * 1e6

    # -- apart from the rounds ----------------------------------------------------------------

    def _count_calls(self, contender: Contender) -> None:
        with self._start(contender) as server, tempfile.TemporaryDirectory() as folder:
            self._client.close(server.port, 200, 1, http=contender.is_http)  # warm-up
            counts = pathlib.Path(folder, "counts")
            pids = server.pids()
            command = ["strace", "-f", "-c", "-o", str(counts)]
            command += [word for pid in pids for word in ("-p", str(pid))]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
                assert strace.stderr is not None
                for _ in pids:
                    line = strace.stderr.readline()
                    if "attached" not in line:
                        strace.kill()
                        return  # forbidden here: the figure is left out
                load = self._client.close(
                    server.port, TRACED_CONNECTIONS, 1, http=contender.is_http
                )
                time.sleep(SETTLE_SECONDS)
                strace.send_signal(signal.SIGINT)
                strace.communicate(timeout=20)
            total = re.search(r"^\s*100\.00\s+\S+\s+\S+\s+(\d+).*total$", counts.read_text(), re.M)
            if total is None:
                raise RuntimeError("can't read the counts of strace")
            self.results.add(contender.name, figures.CALLS, int(total[1]) / load.count)

    def _note_order(self, contender: Contender) -> None:
        places = contender.places
        with self._start(contender, Job.ORDER) as server:
            answers = ask_in_turn(server.port, max(ORDERED_CONNECTIONS, 2 * places))
        is_exact = answers == [index % places for index in range(len(answers))]
        counts = [answers.count(place) for place in range(places)]
        self.results.add(contender.name, figures.EXACT, float(is_exact))
        self.results.add(contender.name, figures.FAIRNESS, fairness(counts))

    def _weigh_idle(self, contender: Contender) -> None:
        count = min(IDLE_CONNECTIONS, self._plan.crowd)
        for _ in range(self._plan.memory_repeats):
            with (
                self._start(contender, Job.IDLE) as server,
                # Some to load what the first connections load.
                Crowd(server.port, 20, http=contender.is_http),
            ):
                before = server.memory_kib()
                with Crowd(server.port, count, http=contender.is_http):
                    time.sleep(SETTLE_SECONDS)
                    after = server.memory_kib()
            self.results.add(contender.name, figures.IDLE_KIB, (after - before) / count)

    def _crowd(self, contender: Contender) -> None:
        # A fresh server each time: without idle connections is measured in a process that had
        # none, whose memory is still in one piece.
        add = self.results.add
        for _ in range(self._plan.crowd_repeats):
            with self._start(contender) as server:
                self._keep(server)  # warm-up
                alone, load = self._keep(server)
                with Crowd(server.port, self._plan.crowd, http=True):
                    time.sleep(SETTLE_SECONDS)
                    crowded, crowded_load = self._keep(server)
            if errors := load.errors + crowded_load.errors:
                raise RuntimeError(f"{errors} replies were not whole")
            add(contender.name, figures.ALONE_CPU, alone)
            add(contender.name, figures.CROWD_CPU, crowded)
            add(contender.name, figures.CROWD, crowded / alone)

    def _weigh_clones(self, many: Contender) -> None:
        few = contender_named("glb-4")
        for _ in range(self._plan.memory_repeats):
            weights = []
            for contender in (few, many):
                with self._start(contender) as server:
                    # Each clone has served: what it keeps for the next time counts.
                    self._client.close(server.port, 4 * many.number, self._plan.concurrency)
                    time.sleep(SETTLE_SECONDS)
                    weights.append(server.memory_kib())
            self.results.add(
                many.name,
                figures.CLONE_KIB,
                (weights[1] - weights[0]) / (many.number - few.number),
            )


def contender_named(name: str) -> Contender:
    return next(contender for contender in CONTENDERS if contender.name == name)
