"""An experiment: contenders, questions that are asked of them in rounds, and promises.

In a round each contender has its turn, in an order that is shuffled anew, so that a noisy minute is
noisy for all. A contender that breaks is a line in the table, and not the end of the run.
"""

from __future__ import annotations

import json
import pathlib
import random
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

import click

from loadtests.bench.servers.job import Job

from .client import Client, Load, ask_in_turn, compile_programs
from .command import MARKDOWN, QUICK, Tell, command_line, conduct, seed_option, wants_linux
from .figures import CPU, ERRORS, OPEN_CPU, OPEN_P50, OPEN_P99, P50, P99, P999, Figure, Results
from .plot import Panel, bars, draw
from .process import Contender, Cpus, Server, pinned
from .promise import NOTHING, Promise, number
from .sheet import Answer, Sheet, Table

#: Rate of the open loop, connections/s. An eighth of what plain gevent can do: what is
#: measured is how promptly it answers, not how long its queue grows.
OPEN_RATE: Final = 1000

ORDERED_CONNECTIONS: Final = 800

Numbers = TypeVar("Numbers", bound="Plan")
Thing = TypeVar("Thing")


def size(default: Any, quick: Any = None, words: str = "", *, least: int = 1) -> Any:
    """Return a field of a `Plan`, which is *quick* if that is asked for.

    With *words* it is an option, of at *least* so much.
    """
    about = {"quick": default if quick is None else quick, "least": least, "words": words}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Plan:
    """How much of everything: the options of the command."""

    seed: int = 0
    unpinned: bool = size(False, words="Servers and client may both use every CPU.")
    rounds: int = size(7, 2, "In which each contender has its turn.")
    concurrency: int = size(64, words="Connections at a time.")


@dataclass(frozen=True)
class LoadPlan(Plan):
    connections: int = size(10_000, 2000, "In a round, for each contender.", least=100)
    open_seconds: float = size(1.5, 0.5)


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

    All servers are up during the rounds, those that don't have their turn idle. If they are
    *fresh*, each turn has a server of its own. *begin* is called with each that has started.
    """

    name: str
    contenders: Sequence[Contender]
    turn: Callable[[Contender, Server], None]
    rounds: int = 1
    job: Job = Job.REPLY
    begin: Callable[[Server], object] = lambda _: None
    is_fresh: bool = False


class Experiment(ABC, Generic[Numbers]):
    """One run of *plan* with *contenders*."""

    #: Its module in `loadtests`.
    name: ClassVar[str]
    every: ClassVar[Sequence[Contender]]
    shown: ClassVar[Sequence[Shown]]
    promised: ClassVar[Sequence[Limit]]
    numbers: ClassVar[type[Any]] = Plan

    #: Until a server is done with what comes after the last reply, in seconds. Its CPU there is
    #: part of the price, and nothing that can be seen from outside tells when it is over.
    settle_seconds: ClassVar[float] = 0.03

    client: Client
    _c_server: pathlib.Path

    def __init__(self, plan: Numbers, contenders: Sequence[Contender]) -> None:
        self.plan: Numbers = plan
        self.contenders: Final = contenders
        self.results: Final = Results()
        self.cpus: Final = Cpus.available(is_shared=plan.unpinned)
        self._random: Final = random.Random(plan.seed)
        for one in contenders:
            if not one.is_installed():
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

        def begin(one: Contender, stack: ExitStack) -> Server:
            server = servers[one.name] = stack.enter_context(self.start(one, question.job))
            question.begin(server)
            return server

        def take_turn(one: Contender) -> None:
            with ExitStack() as own:
                server = begin(one, own) if question.is_fresh else servers[one.name]
                question.turn(one, server)

        with ExitStack() as stack:
            for one in () if question.is_fresh else self.shuffled(chosen):
                tell(f"{question.name}: start {one.title}")
                self.attempt(one, lambda one: begin(one, stack))
            for round_ in range(1, question.rounds + 1):
                for one in self.shuffled(chosen):
                    tell(f"{question.name}: round {round_}, {one.title}")
                    self.attempt(one, take_turn)

    def start(self, one: Contender, job: Job = Job.REPLY, cpus: Cpus | None = None) -> Server:
        return Server(one, self._c_server, cpus or self.cpus, job)

    def attempt(self, one: Contender, step: Callable[[Contender], object]) -> None:
        """Take *step*, unless *one* has failed before."""
        if one.name not in self.results.failed:
            try:
                step(one)
            except Exception as error:
                self.results.fail(one.name, f"{type(error).__name__}: {error}")

    def shuffled(self, some: Sequence[Thing]) -> list[Thing]:
        return self._random.sample(some, len(some))

    def load(self, server: Server, put: Callable[[], Load]) -> Load:
        """Return the load that *put* puts on *server*, with its CPU for it. Its errors are counted.

        Raises:
            RuntimeError: It doesn't answer.
        """
        before = server.cpu_seconds()
        load = put()
        time.sleep(self.settle_seconds)
        seconds = server.cpu_seconds() - before
        if load.count == 0:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")
        self.results.add(server.contender.name, {ERRORS: load.errors})
        return replace(load, server_seconds=seconds)

    def close(self, server: Server, count: int, **how: Any) -> Load:
        """Return a load of *count* connections: `Client.close` says *how*."""
        port, many, http = server.port, self.plan.concurrency, server.contender.is_http
        return self.load(server, lambda: self.client.close(port, count, many, http=http, **how))

    def open(self, server: Server, seconds: float, rate: float = OPEN_RATE, **how: Any) -> Load:
        """Return a load of *rate* connections/s: `Client.open` says *how*."""
        port, http = server.port, server.contender.is_http
        return self.load(server, lambda: self.client.open(port, seconds, rate, http=http, **how))

    def price(self, server: Server, plan: LoadPlan) -> dict[Figure, float]:
        """Return what a connection costs *server*, and how long clients wait."""
        load = self.close(server, plan.connections)
        found = {**load.rate(), CPU: load.price, P50: load.p50, P99: load.p99, P999: load.p999}
        load = self.open(server, plan.open_seconds)
        return {**found, OPEN_P50: load.p50, OPEN_P99: load.p99, OPEN_CPU: load.price}

    def order(self, one: Contender, server: Server) -> None:
        """Note in which order the places of *one* serve."""
        count = max(ORDERED_CONNECTIONS, 2 * one.places)
        answers = ask_in_turn(server.port, count, http=one.is_http)
        self.results.note_order(one.name, answers, one.places)

    def warm_up(self, server: Server, count: int, **how: Any) -> None:
        """Have *count* connections, 16 at a time; `Client.close` says *how*.

        Raises:
            RuntimeError: Half of them have no answer.
        """
        http = server.contender.is_http
        load = self.client.close(server.port, count, 16, http=http, **how)
        if load.count < count / 2:
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

    def panels(self) -> list[Panel]:
        """Return what is drawn."""
        return [
            bars(f"{shown.title}: {figure.head}", shown.contenders, figure)
            for shown in self.shown
            if any(one in self.contenders for one in shown.contenders)
            for figure in shown.compared
        ]

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

    def answer(self) -> Answer:
        failed = [f"{name}: {reason}" for name, reason in self.results.failed.items()]
        figures = {
            name: {figure.name: samples for figure, samples in figures.items()}
            for name, figures in self.results.samples.items()
        }
        details = {"plan": asdict(self.plan), "figures": figures}
        return Answer("What glb promises", self.promises(), (), self.tables(), failed, details)

    def save(self, sheet: Sheet, folder: pathlib.Path) -> None:
        """Write JSON, Markdown and the picture into *folder*."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(sheet.as_json(), indent=2) + "\n")
        (folder / "results.md").write_text(sheet.markdown())
        draw(folder / "results.png", sheet.heading, self.panels(), self.results)
        click.echo(f"written: {folder}", err=True)

    @classmethod
    def command(cls, words: str | None) -> click.Command:
        """Return the command ``python -m loadtests.NAME``, whose help are its *words*."""

        def main(only: str | None, quick: bool, output: pathlib.Path, **given: Any) -> None:
            wants_linux("epoll, CPU affinity")
            context, markdown = click.get_current_context(), given.pop("markdown")
            for each in fields(cls.numbers):
                if given.get(each.name) is None:
                    given[each.name] = each.metadata["quick"] if quick else each.default
            context.params.update(given)
            plan = cls.numbers(**given)
            run = cls(plan, chosen(only, cls.every))
            conduct(
                command_line(context, cls.name),
                {cls.name: run.run},
                f"Medians of {plan.rounds} interleaved rounds (seed {plan.seed}), over loopback; "
                f"{run.cpus.describe()}",
                packages=sorted({one.needs for one in run.contenders if one.needs}),
                markdown=markdown,
                save=lambda sheet: run.save(sheet, output),
            )

        folder: Any = click.Path(file_okay=False, path_type=pathlib.Path)
        place = pathlib.Path("bench-results", *([] if cls.name == "bench" else [cls.name]))
        names = "Contenders, with commas between; glb is all of glb-..., too."
        options = [
            *(_option(each) for each in fields(cls.numbers) if each.metadata.get("words")),
            QUICK,
            click.option("--only", metavar="NAMES", help=names),
            click.option("--output", type=folder, default=place, show_default=True),
            seed_option("Of the order in the rounds."),
            MARKDOWN,
        ]
        for option in reversed(options):
            option(main)
        return click.command(help=words)(main)


def _option(each: Any) -> Callable[[Any], Any]:
    name, words = f"--{each.name.replace('_', '-')}", each.metadata["words"]
    if isinstance(each.default, bool):
        return click.option(name, is_flag=True, default=None, help=words)
    kind: Any = click.FloatRange(0, min_open=True)
    if isinstance(each.default, int):
        kind = click.IntRange(each.metadata["least"])
    return click.option(name, type=kind, help=words, show_default=str(each.default))


def chosen(only: str | None, every: Sequence[Contender]) -> list[Contender]:
    """Return those of *every* that *only* names, or all; "glb" are "glb-4", "glb-256" ..., too.

    Raises:
        click.BadParameter: There is none of a name.
    """
    names = [one.name for one in every]
    groups = [name[:at] for name in names for at, each in enumerate(name) if each == "-"]
    known = dict.fromkeys([*names, *groups])
    wanted = [each.strip() for each in only.split(",")] if only is not None else names
    for name in wanted:
        if name not in known:
            raise click.BadParameter(f"no contender {name!r}; there are {', '.join(known)}")
    return [one for one in every if any(f"{one.name}-".startswith(f"{name}-") for name in wanted)]
