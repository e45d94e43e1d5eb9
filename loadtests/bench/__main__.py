"""What does a connection cost with glb, beside other servers with the same job?

    python -m loadtests.bench

Servers that accept, send a small fixed reply and close, and HTTP servers, each in a process of
its own, in interleaved rounds. Printed are tables, and what glb promises beside what was
measured; JSON, Markdown and a plot are written to a folder. Exit status 0 only if every
promise was measured and kept.
"""

from __future__ import annotations

import pathlib
import random
import resource
import sys
import tempfile
from dataclasses import replace

import click
from rich.console import Console

from loadtests.frame.client import CompilerError, compile_programs
from loadtests.frame.process import Contender, Cpus, pinned
from loadtests.frame.progress import Progress

from .contenders import CONTENDERS
from .measure import Plan, Run
from .report import Report

DEFAULTS = Plan()

#: What a server and the command have open beside idle connections, at most.
OTHER_DESCRIPTORS = 256


def _chosen(only: str | None) -> list[Contender]:
    if only is None:
        return list(CONTENDERS)
    names = [name.strip() for name in only.split(",")]
    for name in names:
        if not any(_is_called(contender, name) for contender in CONTENDERS):
            known = ", ".join(contender.name for contender in CONTENDERS)
            raise click.BadParameter(f"no contender {name!r}; there are {known}")
    return [one for one in CONTENDERS if any(_is_called(one, name) for name in names)]


def _is_called(contender: Contender, name: str) -> bool:
    return contender.name == name or contender.name.startswith(f"{name}-")


@click.command(help=__doc__)
@click.option("--rounds", type=click.IntRange(1), default=DEFAULTS.rounds, show_default=True)
@click.option(
    "--connections",
    type=click.IntRange(100),
    default=DEFAULTS.connections,
    show_default=True,
    help="In a round, for each contender.",
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
    help="Contenders, with commas between; glb is all of glb-N. Ratios want gevent and c, or "
    "wsgi-gevent and wsgi-granian.",
)
@click.option("--quick", is_flag=True, help="Small numbers, to try it: no figures to quote.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    default=pathlib.Path("bench-results"),
    show_default=True,
    help="Folder for the files.",
)
@click.option("--seed", type=int, help="Of the order in the rounds. Printed if not given.")
@click.option("--markdown", is_flag=True, help="Print Markdown, for the README.")
def main(
    rounds: int,
    connections: int,
    concurrency: int,
    only: str | None,
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
        DEFAULTS, rounds=rounds, connections=connections, concurrency=concurrency, seed=seed
    )
    command = f"python -m loadtests.bench --rounds {rounds} --connections {connections}"
    command += f" --concurrency {concurrency} --seed {seed}"
    command += f" --only {only}" if only else ""
    plan = replace(plan, crowd=min(plan.crowd, _allow_descriptors()))
    if quick:
        plan = plan.quick()
        command += " --quick"
    console = Console(stderr=markdown)
    console.print(f"seed {seed}")
    cpus = Cpus.available()
    with tempfile.TemporaryDirectory() as folder, pinned(cpus.client):
        try:
            programs = compile_programs(pathlib.Path(folder))
        except CompilerError as error:
            raise click.ClickException(str(error)) from error
        with Progress(console) as progress:
            installed = [one for one in contenders if one.is_installed()]
            run = Run(plan, installed, programs, cpus, progress.tell)
            progress.expect(run.turns)
            results = run.go()
    absent = [one for one in contenders if one not in installed]
    report = Report(results, contenders, cpus.describe(), command, plan, absent)
    files = report.write(output)
    if markdown:
        print(report.markdown())
    else:
        report.print(console)
    console.print("written: " + ", ".join(map(str, files)), soft_wrap=True)
    sys.exit(0 if report.all_kept() else 1)


def _allow_descriptors() -> int:
    """Allow as many as may be; return how many idle connections there may be."""
    # A server with 1,024 clones and its connections has more than the 1,024 that are usual.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return max(1, most - OTHER_DESCRIPTORS)


if __name__ == "__main__":
    main()
