"""An experiment: contenders, questions that are asked of them in rounds, and promises.

In a round each contender has its turn, in an order that is shuffled anew, so that a noisy minute is
noisy for all. A contender that breaks is a line in the table, and not the end of the run.
"""

from __future__ import annotations

import importlib.util
import pathlib
import random
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

import click

from loadtests.bench.servers.job import Job

from .client import CLOSE, Client, Load, Mode, compile_programs, exchange, request
from .command import QUICK, Tell, command_line, conduct, seed_option, wants_linux
from .figures import CPU, ERRORS, OPEN_P99, P50, P99, P999, Figure, Results, draw
from .process import Contender, Cpus, Server, pinned
from .sheet import NOTHING, Answer, Promise, Table, number

#: Rate of the open loop, connections/s. An eighth of what plain gevent can do: what is
#: measured is how promptly it answers, not how long its queue grows.
OPEN_RATE: Final = 1000

ORDERED_CONNECTIONS: Final = 800

#: Of each command's help.
ENDING: Final = """
Printed are tables, and what glb promises beside what was measured; JSON and a picture are written
to a folder. Exit status 0 only if every promise was measured and kept.
"""

Thing = TypeVar("Thing")


class Size(NamedTuple):
    """How much there is of something, usually and with ``--quick``: an option of the command."""

    name: str
    usual: float
    quick: float

    def option(self) -> Callable[[Any], Any]:
        kind: Any = click.FloatRange(0, min_open=True)
        if isinstance(self.usual, int):
            kind = click.IntRange(1)
        default = f"{self.usual:g}; {self.quick:g} if quick"
        return click.option(f"--{self.name.replace('_', '-')}", type=kind, show_default=default)


#: Of a load on each contender in each of the rounds.
LOAD: Final = (
    Size("rounds", 7, 2),
    Size("connections", 10_000, 2000),
    Size("concurrency", 64, 64),
)


class Limit(NamedTuple):
    """What *figure* of *contender* may be at most, or at least; or its ratio to *beside*'s."""

    contender: str
    figure: Figure
    limit: float
    beside: str = ""


class Shown(NamedTuple):
    """A table of *contenders*: *figures*, before them those *compared* with *beside*'s.

    What is compared is in the picture, too.
    """

    title: str
    contenders: Sequence[Contender]
    figures: Sequence[Figure]
    compared: Sequence[Figure] = ()
    beside: Sequence[str] = ()

    def head(self) -> list[str]:
        besides = [f"x {other.rpartition('-')[2]}" for other in self.beside]
        compared = [head for one in self.compared for head in (one.head, *besides)]
        return ["", *compared, *(one.head for one in self.figures)]


@dataclass(frozen=True)
class Question:
    """What is asked of *contenders*, if they are chosen: each has its *turn* in *rounds*.

    All servers are up during the rounds, those that don't have their turn idle. *warm_up* is
    how many connections each has before.
    """

    name: str
    contenders: Sequence[Contender]
    turn: Callable[[Contender, Server], None]
    rounds: int = 1
    job: Job = Job.REPLY
    warm_up: int = 0


class Experiment(ABC):
    """One run with *contenders*; *sizes* are those that are not the usual ones."""

    #: Its module in `loadtests`.
    name: ClassVar[str]
    every: ClassVar[Sequence[Contender]]
    shown: ClassVar[Sequence[Shown]]
    promised: ClassVar[Sequence[Limit]]
    sizes: ClassVar[Sequence[Size]]

    #: Until a server is done with what comes after the last reply, in seconds. Its CPU there is
    #: part of the price, and nothing that can be seen from outside tells when it is over.
    settle_seconds: ClassVar[float] = 0.03

    client: Client
    _c_server: pathlib.Path

    def __init__(
        self, contenders: Sequence[Contender], *, seed: int = 0, quick: bool = False, **sizes: Any
    ) -> None:
        given = {name: each for name, each in sizes.items() if each is not None}
        usual = {each.name: each.quick if quick else each.usual for each in self.sizes}
        self.plan: Final = SimpleNamespace(**{**usual, **given})
        self.contenders: Final = contenders
        self.results: Final = Results()
        self.cpus: Final = Cpus.available()
        self._random: Final = random.Random(seed)
        for one in contenders:
            if one.needs and importlib.util.find_spec(one.needs) is None:
                self.results.fail(one.name, "not installed")

    @abstractmethod
    def questions(self) -> Iterator[Question]:
        """Yield one after the other: each has been asked when the next is wanted."""

    def run(self, tell: Tell) -> Answer:
        with tempfile.TemporaryDirectory() as folder, pinned(self.cpus.client):
            client, self._c_server = compile_programs(pathlib.Path(folder))
            self.client = Client(client, self.cpus)
            for question in self.questions():
                self.ask(question, tell)
        return self.answer()

    def ask(self, question: Question, tell: Tell) -> None:
        chosen = [one for one in question.contenders if one in self.contenders]
        servers: dict[str, Server] = {}

        def begin(one: Contender) -> None:
            server = servers[one.name] = stack.enter_context(self.start(one, question.job))
            self.warm_up(server, question.warm_up)

        with ExitStack() as stack:
            for one in self.shuffled(chosen):
                tell(f"{question.name}: start {one.title}")
                self.attempt(one, begin)
            for round_ in range(1, question.rounds + 1):
                for one in self.shuffled(chosen):
                    tell(f"{question.name}: round {round_}, {one.title}")
                    self.attempt(one, lambda one: question.turn(one, servers[one.name]))

    def start(self, one: Contender, job: Job) -> Server:
        return Server(one, self._c_server, self.cpus, job)

    def attempt(self, one: Contender, step: Callable[[Contender], object]) -> None:
        """Take *step*, unless *one* has failed before."""
        if one.name not in self.results.failed:
            try:
                step(one)
            except Exception as error:
                self.results.fail(one.name, f"{type(error).__name__}: {error}")

    def shuffled(self, some: Sequence[Thing]) -> list[Thing]:
        return self._random.sample(some, len(some))

    def put(self, server: Server, mode: Mode, **how: Any) -> Load:
        """Put load on *server*: `Client.run` says *how*."""
        how = {"concurrency": self.plan.concurrency, **how}
        how |= {"http": server.contender.is_http, "is_noted": server.job in (Job.ORDER, Job.STALL)}
        return self.client.run(mode, server.port, **how)

    def settle(self) -> None:
        """Let a server finish what comes after the last reply: see `settle_seconds`."""
        time.sleep(self.settle_seconds)

    def load(self, server: Server, mode: Mode, **how: Any) -> Load:
        """Put load on *server*; return it with the server's CPU for it. Its errors are counted.

        Raises:
            RuntimeError: It doesn't answer.
        """
        before = server.cpu_seconds()
        load = self.put(server, mode, **how)
        self.settle()
        seconds = server.cpu_seconds() - before
        if load.count == 0:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")
        self.results.add(server.contender.name, {ERRORS: load.errors})
        return replace(load, server_seconds=seconds)

    def price(self, one: Contender, server: Server) -> None:
        """Note what a connection costs *one*, and how long clients wait."""
        load = self.load(server, "close", count=self.plan.connections)
        found = {**load.rate(), CPU: load.price, P50: load.p50, P99: load.p99, P999: load.p999}
        load = self.load(server, "open", seconds=self.plan.open_seconds, rate=OPEN_RATE)
        self.results.add(one.name, {**found, OPEN_P99: load.p99})

    def order(self, one: Contender, server: Server) -> None:
        """Note in which order clones, or servers, of *one* serve clients that come in turn."""
        # In Python: the answering clone does not depend on the speed.
        count, text = (
            max(ORDERED_CONNECTIONS, 2 * one.number),
            request(CLOSE) if one.is_http else "",
        )
        answers = [int(exchange(server.port, text)[-1]) for _ in range(count)]
        self.results.note_order(one.name, answers, one.number)

    def warm_up(self, server: Server, count: int) -> None:
        """Have *count* connections, 16 at a time.

        Raises:
            RuntimeError: Half of them have no answer.
        """
        if count and self.put(server, "close", count=count, concurrency=16).count < count / 2:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")

    def tables(self) -> list[Table]:
        tables = []
        for shown in self.shown:
            rows = [self._row(one, shown) for one in shown.contenders if one in self.contenders]
            tables += [Table(shown.title, shown.head(), rows)] if rows else []
        return tables

    def _row(self, one: Contender, shown: Shown) -> list[str]:
        cells = []
        for figure in shown.compared:
            ratios = (self.results.ratio(one.name, other, figure) for other in shown.beside)
            cells += [self._cell(one.name, figure), *map(number, ratios)]
        cells += [self._cell(one.name, figure) for figure in shown.figures]
        if reason := self.results.failed.get(one.name):
            cells[0] = reason.partition(":")[0]
        return [one.title, *cells]

    def _cell(self, name: str, figure: Figure) -> str:
        value = self.results.value(name, figure)
        return NOTHING if value is None else f"{value:,.{figure.digits}f}"

    def promises(self) -> list[Promise]:
        """Return those of the contenders that are asked."""
        titles = {one.name: one.title for one in self.every}
        asked = {one.name for one in self.contenders}
        promises = []
        for name, figure, limit, beside in self.promised:
            says, value = f"{titles[name]}: {figure.head}", self.results.value(name, figure)
            if beside:
                says += f", beside {titles[beside]}"
                value = self.results.ratio(name, beside, figure)
            if name in asked:
                promises.append(Promise(says, value, limit, figure.is_more_better))
        return promises

    def draw(self, file: pathlib.Path, heading: str) -> None:
        """Draw what was compared of the contenders that were asked."""
        bars = [
            (f"{shown.title}: {figure.head}", some, figure)
            for shown in self.shown
            for figure in shown.compared
            if (some := [one for one in shown.contenders if self.results.of(one.name, figure)])
        ]
        draw(file, heading, bars, self.results)

    def answer(self) -> Answer:
        failed = [f"{name}: {reason}" for name, reason in self.results.failed.items()]
        figures = {
            name: {figure.name: samples for figure, samples in figures.items()}
            for name, figures in self.results.samples.items()
        }
        details = {"plan": vars(self.plan), "figures": figures}
        return Answer("What glb promises", self.promises(), (), self.tables(), failed, details)

    @classmethod
    def command(cls, words: str | None) -> click.Command:
        """Return the command ``python -m loadtests.NAME``, whose help are its *words*."""

        def main(only: str | None, output: pathlib.Path, **given: Any) -> None:
            wants_linux("epoll, CPU affinity")
            run = cls(chosen(only, cls.every), **given)
            context = click.get_current_context()
            context.params.update(vars(run.plan))
            output.mkdir(parents=True, exist_ok=True)
            conduct(
                command_line(context, cls.name),
                {cls.name: run.run},
                f"Medians of {run.plan.rounds} interleaved rounds, over loopback; "
                f"{run.cpus.describe()}",
                packages=sorted({one.needs for one in run.contenders if one.needs}),
                file=output / "results.json",
                save=lambda sheet: run.draw(output / "results.png", sheet.heading),
            )

        folder: Any = click.Path(file_okay=False, path_type=pathlib.Path)
        place = pathlib.Path("bench-results", *([] if cls.name == "bench" else [cls.name]))
        names = "Contenders, with commas between; glb is all of glb-..., too."
        options = [
            *(each.option() for each in cls.sizes),
            QUICK,
            click.option("--only", metavar="NAMES", help=names),
            click.option("--output", type=folder, default=place, show_default=True),
            seed_option("Of the order in the rounds."),
        ]
        for option in reversed(options):
            option(main)
        return click.command(help=f"{words}\n\n{ENDING}")(main)


def chosen(only: str | None, every: Sequence[Contender]) -> list[Contender]:
    """Return those of *every* that *only* names, or all; "glb" are "glb-4", "glb-256" ..., too.

    Raises:
        click.BadParameter: There is none of a name.
    """
    found = [*every] if only is None else []
    for name in only.split(",") if only is not None else ():
        some = [one for one in every if f"{one.name}-".startswith(f"{name.strip()}-")]
        if not some:
            names = ", ".join(one.name for one in every)
            raise click.BadParameter(f"no contender {name!r}; there are {names}")
        found += some
    return [one for one in every if one in found]
