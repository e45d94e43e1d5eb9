"""The command of an experiment: its options, what it says meanwhile, and how it ends."""

from __future__ import annotations

import json
import pathlib
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from typing import Any, Final, NoReturn, Protocol

import click
from rich.console import Console

from . import old_sheet
from .client import CompilerError, compile_programs
from .process import Cpus, pinned
from .progress import Progress
from .rounds import Tools
from .sheet import Answer, Sheet, surroundings

__all__ = [
    "CONCURRENCY",
    "MARKDOWN",
    "QUICK",
    "allow_descriptors",
    "chosen",
    "command_line",
    "conduct",
    "experiment",
    "json_option",
    "seed_option",
    "show",
    "wants_linux",
]

#: Options that don't belong to what is run, but to what is shown of it.
SHOWN: Final = frozenset({"output", "markdown", "file"})

Option = Callable[[Any], Any]

CONCURRENCY: Final[Option] = click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=64,
    show_default=True,
    help="Connections at a time.",
)
QUICK: Final[Option] = click.option(
    "--quick", is_flag=True, help="Small numbers, to try it: no figures to quote."
)
MARKDOWN: Final[Option] = click.option(
    "--markdown", is_flag=True, help="Print Markdown, for docs/measured.md."
)


def seed_option(of: str = "Of all that is chosen.") -> Option:
    """Return ``--seed``, which is drawn if it isn't given."""

    def draw(_context: object, _option: object, seed: int | None) -> int:
        return random.SystemRandom().randrange(10_000) if seed is None else seed

    return click.option("--seed", type=int, callback=draw, help=f"{of} Printed if not given.")


def json_option(words: str) -> Option:
    """Return ``--json FILE``, as the argument *file*."""
    path: Any = click.Path(dir_okay=False, path_type=pathlib.Path)
    return click.option("--json", "file", type=path, help=words)


def wants_linux(needs: str) -> None:
    """Raise a `click.ClickException` elsewhere: the experiment *needs* what is Linux's."""
    if not sys.platform.startswith("linux"):
        raise click.ClickException(f"needs Linux ({needs}), this is {sys.platform}")


def chosen(only: str | None, what: str, known: Collection[str]) -> list[str]:
    """Return the names in *only*, all that are *known* if it is ``None``.

    Raises:
        click.BadParameter: One of them isn't known.
    """
    names = [*known] if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"no {what} {name!r}; there are {', '.join(known)}")
    return names


def allow_descriptors() -> int:
    """Allow this process as many as may be; return how many these are."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def command_line(context: click.Context, name: str) -> str:
    """Return what a user types to run *name* again: its options, but for what is shown."""
    words = [f"python -m loadtests.{name}"]
    for parameter in context.command.params:
        value = context.params[parameter.name or ""]
        if parameter.name in SHOWN or value in (None, False, ()):
            continue
        if isinstance(parameter, click.Argument):
            words += value
        elif value is True:
            words.append(parameter.opts[0])
        else:
            words.append(
                f"{parameter.opts[0]} {value:g}"
                if isinstance(value, float)
                else f"{parameter.opts[0]} {value}"
            )
    return " ".join(words)


#: Is called with each step, "part: of what", before it.
Tell = Callable[[str], None]


def conduct(
    command: str,
    scenarios: Mapping[str, Callable[[Tell], Answer]],
    heading: str = "Over loopback",
    *,
    markdown: bool = False,
    file: pathlib.Path | None = None,
) -> NoReturn:
    """Ask all *scenarios*, print what was found, and exit: with 0 if every promise was kept.

    One that breaks is a line in the end, and the others go on: a run takes minutes.

    Args:
        command: What a user types to run it again.
        heading: How it was measured. The versions are added.
        file: Gets all of it as JSON.
    """
    answers: dict[str, Answer] = {}
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}
    print(command, file=sys.stderr)
    with Progress(Console(stderr=True)) as progress:
        for name, ask in scenarios.items():
            began = time.monotonic()
            try:
                answers[name] = ask(progress.tell)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"
            seconds[name] = time.monotonic() - began
    sheet = Sheet(command, f"{heading}. {surroundings()}.", answers, failed, seconds)
    print(sheet.markdown() if markdown else sheet.text())
    if file is not None:
        file.write_text(json.dumps(sheet.as_json(), indent=2) + "\n")
        print(f"written: {file}", file=sys.stderr)
    sys.exit(0 if sheet.is_kept else 1)


class Run(Protocol):
    """What an experiment does: see `loadtests.frame.rounds.Rounds`."""

    @property
    def steps(self) -> int:
        """How often `tell` will be called."""
        ...

    def go(self) -> object:
        """Do everything."""
        ...

    def report(self, command: str) -> old_sheet.Sheet:
        """Return what was measured, beside what is promised."""
        ...


def experiment(
    name: str,
    words: str | None,
    plan: Any,
    begin: Callable[[Any, Any, Tools], Run],
    choose: Callable[[str | None], Any],
    only: str,
    *more: Option,
    least: int = 100,
) -> click.Command:
    """Return the command ``python -m loadtests.NAME``, whose help are its *words*.

    Args:
        plan: The numbers, by default. Options of their names replace them.
        begin: Makes a run of a plan, of what was chosen, and of tools.
        choose: Returns what there is of ``--only``, or all of ``None``.
        only: What ``--only`` chooses.
        more: Further options.
        least: So many connections there are at least.
    """

    def main(**given: Any) -> None:
        wants_linux("epoll, CPU affinity")
        told = {each.name: given[each.name] for each in fields(plan) if each.name in given}
        is_quick = given.get("quick", False)
        sized = replace(plan, **told)
        _conduct(
            lambda tools: begin(sized.quick() if is_quick else sized, choose(given["only"]), tools),
            command_line(click.get_current_context(), name),
            is_unpinned=given.get("unpinned", False),
            **{each: given[each] for each in ("seed", "output", "markdown")},
        )

    folder: Any = click.Path(file_okay=False, path_type=pathlib.Path)
    place = pathlib.Path("bench-results", *([] if name == "bench" else [name]))
    number = click.IntRange
    options = [
        click.option("--rounds", type=number(1), default=plan.rounds, show_default=True),
        click.option(
            "--connections",
            type=number(least),
            default=plan.connections,
            show_default=True,
            help="In a round, for each contender.",
        ),
        *more,
        click.option("--only", metavar="NAMES", help=only),
        click.option(
            "--output", type=folder, default=place, show_default=True, help="Folder for the files."
        ),
        seed_option("Of the order in the rounds."),
        MARKDOWN,
    ]
    for option in reversed(options):
        option(main)
    return click.command(help=words)(main)


def _conduct(
    begin: Callable[[Tools], Run],
    command: str,
    *,
    seed: int,
    output: pathlib.Path,
    markdown: bool,
    is_unpinned: bool,
) -> None:
    console = Console(stderr=markdown)
    console.print(f"seed {seed}")
    cpus = Cpus.available(is_shared=is_unpinned)
    with tempfile.TemporaryDirectory() as folder, pinned(cpus.client):
        try:
            programs = compile_programs(pathlib.Path(folder))
        except CompilerError as error:
            raise click.ClickException(str(error)) from error
        with Progress(console) as progress:
            run = begin(Tools(programs, cpus, progress.tell))
            progress.expect(run.steps)
            run.go()
    report = run.report(command)
    files = report.write(output)
    show(report, console, markdown=markdown)
    console.print("written: " + ", ".join(map(str, files)), soft_wrap=True)
    sys.exit(0 if report.all_kept() else 1)


def show(report: old_sheet.Sheet, console: Console, *, markdown: bool) -> None:
    """Print *report*, as *markdown* or for people."""
    if markdown:
        print(report.markdown())
    else:
        report.print(console)
