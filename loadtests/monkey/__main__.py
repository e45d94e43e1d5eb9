"""What does glb's monkey patch cost a program without use for it, and give the others?

    python -m loadtests.monkey

Programs of the standard library under gevent's patch and under glb's, each in a process of its
own, in interleaved rounds: CPU time a connection, and gevent's patch beside itself, to tell what
is noise. Then four copies on one address, by SO_REUSEPORT: is the order exact? Printed are tables,
and what glb promises beside what was measured; JSON and Markdown are written to a folder. Exit
status 0 only if every promise was measured and kept.
"""

from __future__ import annotations

import os
import pathlib
import random
import sys
import tempfile

import click
from rich.console import Console

from loadtests.frame.client import CompilerError, compile_programs
from loadtests.frame.process import Cpus, pinned
from loadtests.frame.progress import Progress

from .contenders import GROUPS, PROGRAMS, Group
from .measure import Plan, Run
from .report import Report

DEFAULTS = Plan()


def _chosen(only: str | None) -> list[Group]:
    known = [program.name for program in PROGRAMS]
    names = known if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"no program {name!r}; there are {', '.join(known)}")
    return [group for group in GROUPS if group[0].of.name in names]


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), default=DEFAULTS.rounds, show_default=True)
@click.option(
    "--connections",
    type=click.IntRange(10),
    default=DEFAULTS.connections,
    show_default=True,
    help="In a round, for each contender.",
)
@click.option(
    "--turns",
    type=click.IntRange(1),
    default=DEFAULTS.turns,
    show_default=True,
    help="Among which they are divided.",
)
@click.option(
    "--only",
    metavar="NAMES",
    help=f"Programs, with commas between: {', '.join(program.name for program in PROGRAMS)}.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default=pathlib.Path("bench-results/monkey"),
    show_default=True,
    help="Folder for the files.",
)
@click.option("--seed", type=int, help="Of the order in the rounds. Printed if not given.")
@click.option("--markdown", is_flag=True, help="Print Markdown, for the README.")
def main(
    rounds: int,
    connections: int,
    turns: int,
    only: str | None,
    output: pathlib.Path,
    seed: int | None,
    markdown: bool,
) -> None:
    if not sys.platform.startswith("linux"):
        raise click.ClickException(f"needs Linux (epoll, CPU affinity), this is {sys.platform}")
    groups = _chosen(only)
    if seed is None:
        seed = random.SystemRandom().randrange(10_000)
    plan = Plan(rounds, connections, min(turns, connections), seed)
    command = f"python -m loadtests.monkey --rounds {rounds} --connections {connections}"
    command += f" --turns {turns} --seed {seed}"
    command += f" --only {only}" if only else ""
    console = Console(stderr=markdown)
    console.print(f"seed {seed}")
    # Of all servers: the order of names in dictionaries is worth a percent, by chance.
    os.environ["PYTHONHASHSEED"] = "0"
    cpus = Cpus.available()
    with tempfile.TemporaryDirectory() as folder, pinned(cpus.client):
        try:
            programs = compile_programs(pathlib.Path(folder))
        except CompilerError as error:
            raise click.ClickException(str(error)) from error
        with Progress(console) as progress:
            run = Run(plan, groups, programs, cpus, progress.tell)
            progress.expect(run.steps)
            results = run.go()
    every = [contender for group in groups for contender in group]
    report = Report(results, every, cpus.describe(), command, plan)
    files = report.write(output)
    if markdown:
        print(report.markdown())
    else:
        report.print(console)
    console.print("written: " + ", ".join(map(str, files)), soft_wrap=True)
    sys.exit(0 if report.all_kept() else 1)


if __name__ == "__main__":
    main()
