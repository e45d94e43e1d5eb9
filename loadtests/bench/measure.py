"""The run: interleaved rounds, and then what is measured apart from them.

System calls, order, memory and what idle connections cost come afterwards: strace slows what it
watches, and the others need servers that are fresh.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from loadtests.frame.client import (
    BROWSER_REQUEST,
    BROWSER_REQUEST_AND_CLOSE,
    REQUEST,
    REQUEST_AND_CLOSE,
    Load,
    ask_in_turn,
)
from loadtests.frame.command import allow_descriptors
from loadtests.frame.process import Contender, Server
from loadtests.frame.rounds import Rounds, Tools

from . import figures
from .contenders import CONTENDERS
from .crowd import Crowd
from .plan import OPEN_RATE, Plan
from .report import Report
from .servers.job import Job

#: What a server and the command have open beside idle connections, at most.
OTHER_DESCRIPTORS: Final = 256

#: A connection has several system calls, and those of the end and the beginning of a trace,
#: an epoll_wait that was cut in two, are one in hundreds.
TRACED_CONNECTIONS: Final = 2000

ORDERED_CONNECTIONS: Final = 400
IDLE_CONNECTIONS: Final = 1000


class Run(Rounds[Contender]):
    """One run of *plan*."""

    def __init__(self, plan: Plan, contenders: list[Contender], tools: Tools) -> None:
        installed = [one for one in contenders if one.is_installed()]
        super().__init__(installed, plan.seed, tools)
        # A server with 1,024 clones and its connections has more than the 1,024 that are usual.
        room = max(1, allow_descriptors() - OTHER_DESCRIPTORS)
        self._plan = replace(plan, crowd=min(plan.crowd, room))
        self._all = contenders

    def _steps(self) -> list[tuple[str, Callable[[Contender], None], Contender]]:
        """Return what is to be done after the rounds."""
        some = self.contenders
        traced = some if shutil.which("strace") else []
        weighed = [one for one in some if one.is_idle_measured]
        return [
            *(("system calls", self._count_calls, one) for one in traced),
            *(("order", self._note_order, one) for one in some if one.places > 1),
            *(("memory of idle connections", self._weigh_idle, one) for one in weighed),
            *(("idle connections beside requests", self._crowd, one)
              for one in weighed if one.is_kept),
            *(("memory of clones", self._weigh_clones, one)
              for one in some if one.name == "glb-1024"),
        ]  # fmt: skip

    @property
    def steps(self) -> int:
        return len(self.contenders) * (self._plan.rounds + 1) + len(self._steps())

    def go(self) -> None:
        warm_up = max(self._plan.connections // 5, 500)
        self.interleaved(
            "",
            self.contenders,
            self._plan.rounds,
            self.start,
            lambda server: self.warm_up(server, warm_up),
            lambda _, server: self._turn(server),
        )
        for what, step, contender in self._steps():
            self.tell(f"{what}: {contender.title}")
            self.attempt(contender, step)

    def report(self, command: str) -> Report:
        absent = [one for one in self._all if one not in self.contenders]
        cpus = self.cpus.describe()
        return Report(self.results, self._all, cpus, command, self._plan, absent)

    # -- in the rounds ------------------------------------------------------------------------

    def _turn(self, server: Server) -> None:
        plan, name, http = self._plan, server.contender.name, server.contender.is_http
        add = self.results.add
        load, cpu = self.closed_loop(server, lambda: self._close(server))
        add(name, figures.CPU, cpu / load.count * 1e6)
        add(name, figures.P50, load.p50)
        add(name, figures.P99, load.p99)
        add(name, figures.P999, load.p999)
        errors = load.errors
        load = self.client.open(server.port, plan.open_seconds, OPEN_RATE, http=http)
        add(name, figures.OPEN_P99, load.p99)
        errors += load.errors
        if http:
            browser, cpu = self.priced(
                server, lambda: self._close(server, BROWSER_REQUEST_AND_CLOSE)
            )
            add(name, figures.BROWSER_CPU, cpu / browser.count * 1e6)
            errors += browser.errors
        if server.contender.is_kept:
            errors += self._keep_turn(server)
        add(name, figures.ERRORS, errors)

    def _close(self, server: Server, request: str = REQUEST_AND_CLOSE) -> Load:
        count, concurrency = self._plan.connections, self._plan.concurrency
        http = server.contender.is_http
        return self.client.close(server.port, count, concurrency, http=http, request=request)

    def _keep_turn(self, server: Server) -> int:
        # One connection for the latency: with more, a fast server's would be its queue. Several
        # for the CPU: a server that waits for acknowledgements has a few dozen requests a second
        # on one. Its CPU idles between them all the same, and wakes cold: part of the price.
        plan, name = self._plan, server.contender.name
        alone = self.client.keep(server.port, plan.keep_seconds, 1)
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
        load, cpu = self.priced(
            server,
            lambda: self.client.keep(
                server.port, plan.keep_seconds, plan.keep_concurrency, request
            ),
        )
        return cpu / load.count * 1e6, load

    # -- apart from the rounds ----------------------------------------------------------------

    def _count_calls(self, contender: Contender) -> None:
        with self.start(contender) as server, tempfile.TemporaryDirectory() as folder:
            self.client.close(server.port, 200, 1, http=contender.is_http)  # warm-up
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
                load = self.client.close(server.port, TRACED_CONNECTIONS, 1, http=contender.is_http)
                time.sleep(self.settle_seconds)
                strace.send_signal(signal.SIGINT)
                strace.communicate(timeout=20)
            total = re.search(r"^\s*100\.00\s+\S+\s+\S+\s+(\d+).*total$", counts.read_text(), re.M)
            if total is None:
                raise RuntimeError("can't read the counts of strace")
            self.results.add(contender.name, figures.CALLS, int(total[1]) / load.count)

    def _note_order(self, contender: Contender) -> None:
        places = contender.places
        with self.start(contender, Job.ORDER) as server:
            answers = ask_in_turn(server.port, max(ORDERED_CONNECTIONS, 2 * places))
        self.results.note_order(contender.name, answers, places)

    def _weigh_idle(self, contender: Contender) -> None:
        count = min(IDLE_CONNECTIONS, self._plan.crowd)
        for _ in range(self._plan.memory_repeats):
            with (
                self.start(contender, Job.IDLE) as server,
                # Some to load what the first connections load.
                Crowd(server.port, 20, http=contender.is_http),
            ):
                before = server.memory_kib()
                with Crowd(server.port, count, http=contender.is_http):
                    time.sleep(self.settle_seconds)
                    after = server.memory_kib()
            self.results.add(contender.name, figures.IDLE_KIB, (after - before) / count)

    def _crowd(self, contender: Contender) -> None:
        # A fresh server each time: without idle connections is measured in a process that had
        # none, whose memory is still in one piece.
        add = self.results.add
        for _ in range(self._plan.crowd_repeats):
            with self.start(contender) as server:
                self._keep(server)  # warm-up
                alone, load = self._keep(server)
                with Crowd(server.port, self._plan.crowd, http=True):
                    time.sleep(self.settle_seconds)
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
                with self.start(contender) as server:
                    # Each clone has served: what it keeps for the next time counts.
                    self.client.close(server.port, 4 * many.number, self._plan.concurrency)
                    time.sleep(self.settle_seconds)
                    weights.append(server.memory_kib())
            self.results.add(
                many.name,
                figures.CLONE_KIB,
                (weights[1] - weights[0]) / (many.number - few.number),
            )


def contender_named(name: str) -> Contender:
    return next(contender for contender in CONTENDERS if contender.name == name)
