"""What do many hubs buy, and what do they cost, with one server over them?

    python -m loadtests.hubs

Servers of glb with clones on 1 to 16 hubs, and gevent's, each in a process of its own, in
interleaved rounds: is the order exact, which connections wait while a hub is blocked, what do
handlers that block cost, what does a connection cost, and how long does a client wait. It prints
tables, and glb's promises beside the measurements, and writes JSON, Markdown and a plot to a
folder.
Exit status 0 only if every promise was measured and kept.
"""

from __future__ import annotations

import pathlib
import random
import sys
import tempfile
from dataclasses import replace

import click
from rich.console import Console

from loadtests.frame.client import CompilerError, compile_programs
from loadtests.frame.process import Cpus, pinned
from loadtests.frame.progress import Progress

from .contenders import CONTENDERS, Contender, Question
from .measure import Plan, Run
from .report import Report

DEFAULTS = Plan()


def _chosen(only: str | None) -> list[Contender]:
    known = [question.value for question in Question]
    names = known if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in known:
            raise click.BadParameter(f"no question {name!r}; there are {', '.join(known)}")
    return [one for one in CONTENDERS if one.question.value in names]


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), default=DEFAULTS.rounds, show_default=True)
@click.option(
    "--stall-rounds",
    type=click.IntRange(1),
    default=DEFAULTS.stall_rounds,
    show_default=True,
    help="Of order and blocked hubs, where the worst round counts.",
)
@click.option(
    "--connections",
    type=click.IntRange(100),
    default=DEFAULTS.connections,
    show_default=True,
    help="In a round, for each contender whose price is measured.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=DEFAULTS.concurrency,
    show_default=True,
    help="Connections at a time.",
)
@click.option(
    "--only",
    metavar="NAMES",
    help="Questions, with commas between: order, stall, block, price.",
)
@click.option("--unpinned", is_flag=True, help="Servers and client may both use every CPU.")
@click.option("--quick", is_flag=True, help="Small numbers, to try it: no figures to quote.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default=pathlib.Path("bench-results/hubs"),
    show_default=True,
    help="Folder for the files.",
)
@click.option("--seed", type=int, help="Of the order in the rounds. Printed if not given.")
@click.option("--markdown", is_flag=True, help="Print Markdown, for the README.")
def main(
    rounds: int,
    stall_rounds: int,
    connections: int,
    concurrency: int,
    only: str | None,
    unpinned: bool,
    quick: bool,
    output: pathlib.Path,
    seed: int | None,
    markdown: bool,
) -> None:
    if not sys.platform.startswith("linux"):
        raise click.ClickException(f"needs Linux (epoll, CPU affinity), this is {sys.platform}")
    contenders = _chosen(only)
    if seed is None:
        seed = random.SystemRandom().randrange(10_000)
    plan = replace(
        DEFAULTS,
        rounds=rounds,
        stall_rounds=stall_rounds,
        connections=connections,
        concurrency=concurrency,
        seed=seed,
    )
    command = f"python -m loadtests.hubs --rounds {rounds} --stall-rounds {stall_rounds}"
    command += f" --connections {connections} --concurrency {concurrency} --seed {seed}"
    command += f" --only {only}" if only else ""
    command += " --unpinned" if unpinned else ""
    if quick:
        plan = plan.quick()
        command += " --quick"
    console = Console(stderr=markdown)
    console.print(f"seed {seed}")
    cpus = Cpus.available()
    if unpinned:
        every = cpus.server | cpus.client
        cpus = Cpus(every, every)
    with tempfile.TemporaryDirectory() as folder, pinned(cpus.client):
        try:
            programs = compile_programs(pathlib.Path(folder))
        except CompilerError as error:
            raise click.ClickException(str(error)) from error
        with Progress(console) as progress:
            run = Run(plan, contenders, programs, cpus, progress.tell)
            progress.expect(run.turns)
            results = run.go()
    report = Report(results, contenders, cpus.describe(), command, plan, run.timelines)
    files = report.write(output)
    if markdown:
        print(report.markdown())
    else:
        report.print(console)
    console.print("written: " + ", ".join(map(str, files)), soft_wrap=True)
    sys.exit(0 if report.all_kept() else 1)


if __name__ == "__main__":
    main()
