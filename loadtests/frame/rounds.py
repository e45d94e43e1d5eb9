"""A run: contenders, each in a process of its own, that have their turns in interleaved rounds.

In a round each contender has its turn, in an order that is shuffled anew, so that a noisy minute is
noisy for all. A contender that breaks is a line in the table, and not the end of the run.
"""

from __future__ import annotations

import pathlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from loadtests.bench.servers.job import Job

from .client import Client, Load
from .figures import CLIENT_BUSY, RATE, SERVER_BUSY, Results
from .process import Contender, Cpus, Server

__all__ = ["Rounds", "Tools"]

One = TypeVar("One", bound=Contender)
Any_ = TypeVar("Any_")


@dataclass(frozen=True)
class Tools:
    """What a run works with: *programs* are the client and the C loop, compiled."""

    programs: tuple[pathlib.Path, pathlib.Path]
    cpus: Cpus
    #: Is called with what is done, "part: contender", before each step.
    tell: Callable[[str], None]


class Rounds(Generic[One]):
    """What runs have in common: servers, the client, the order of turns, and the results."""

    #: Until a server is done with what comes after the last reply, in seconds. Its CPU there is
    #: part of the price, and nothing that can be seen from outside tells when it is over.
    settle_seconds: ClassVar[float] = 0.03

    def __init__(self, contenders: Sequence[One], seed: int, tools: Tools) -> None:
        self.contenders = contenders
        self.results = Results()
        self.cpus = tools.cpus
        self.client = Client(tools.programs[0], tools.cpus)
        self.tell = tools.tell
        self._c_server = tools.programs[1]
        self._random = random.Random(seed)

    def shuffled(self, some: Sequence[Any_]) -> list[Any_]:
        return self._random.sample(some, len(some))

    def start(self, contender: Contender, job: Job = Job.REPLY, cpus: Cpus | None = None) -> Server:
        return Server(contender, self._c_server, cpus or self.cpus, job)

    def attempt(self, contender: One, step: Callable[[One], None]) -> None:
        """Take *step*, unless *contender* has failed before."""
        if contender.name in self.results.failed:
            return
        try:
            step(contender)
        except Exception as error:
            self.results.fail(contender.name, f"{type(error).__name__}: {error}")

    def interleaved(
        self,
        part: str,
        contenders: Sequence[One],
        rounds: int,
        start: Callable[[One], Server],
        warm_up: Callable[[Server], None],
        turn: Callable[[One, Server], None],
    ) -> None:
        """Start all *contenders*; then have each take its *turn* in so many *rounds*.

        All servers are up during the rounds, those that don't have their turn idle.
        """
        servers: dict[One, Server] = {}
        with ExitStack() as stack:

            def begin(one: One) -> None:
                servers[one] = stack.enter_context(start(one))
                warm_up(servers[one])

            for contender in contenders:
                self.tell(f"{part}start: {contender.title}")
                self.attempt(contender, begin)
            for number, contender in self.rounds(contenders, rounds):
                self.tell(f"{part}round {number}: {contender.title}")
                self.attempt(contender, lambda one: turn(one, servers[one]))

    def rounds(self, contenders: Sequence[One], rounds: int) -> Iterator[tuple[int, One]]:
        """Yield the number of each round with each of *contenders*, in an order of its own."""
        for number in range(1, rounds + 1):
            for contender in self.shuffled(contenders):
                yield number, contender

    # -- loads --------------------------------------------------------------------------------

    def priced(self, server: Server, put: Callable[[], Load]) -> tuple[Load, float]:
        """Return the load that *put* puts on *server*, and its CPU seconds for it.

        Raises:
            RuntimeError: It doesn't answer.
        """
        before = server.cpu_seconds()
        load = put()
        time.sleep(self.settle_seconds)
        cpu = server.cpu_seconds() - before
        if load.count == 0:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")
        return load, cpu

    def closed_loop(self, server: Server, put: Callable[[], Load]) -> tuple[Load, float]:
        """`priced`, of a load as fast as it may be: its rate, and how busy both sides were."""
        load, cpu = self.priced(server, put)
        name = server.contender.name
        self.results.add(name, RATE, load.count / load.seconds)
        self.results.add(name, SERVER_BUSY, cpu / load.seconds * 100)
        self.results.add(name, CLIENT_BUSY, load.cpu_seconds / load.seconds * 100)
        return load, cpu

    def warm_up(self, server: Server, count: int) -> None:
        """Have *count* connections, 16 at a time.

        Raises:
            RuntimeError: Half of them have no answer.
        """
        load = self.client.close(server.port, count, 16, http=server.contender.is_http)
        if load.count < count / 2:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")
