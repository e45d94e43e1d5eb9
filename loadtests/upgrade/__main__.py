"""Is a connection lost while a new process takes over the sockets of `glb serve`?

    python -m loadtests.upgrade

TCP and Unix sockets, WSGI and streams; each is replaced by SIGUSR2 under load. Then new processes
crash, exit, are killed and hang, and the old one serves on. Servers and clients are processes of
their own, on loopback. Exit status 0 only if every promise was measured and kept.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import click
from rich.console import Console

from loadtests.frame.figures import Results
from loadtests.frame.process import Cpus
from loadtests.frame.progress import Progress
from loadtests.lossless.answers import Answer, Scenario
from loadtests.lossless.report import Report
from loadtests.lossless.words import KINDS

from .upgrades import Failures, Upgrades


@click.command(help=__doc__)
@click.option("--times", type=click.IntRange(1), default=20, show_default=True, help="Upgrades.")
@click.option("--rate", type=click.FloatRange(1), default=500, show_default=True, help="A second.")
@click.option(
    "--hubs", type=click.IntRange(1, 16), multiple=True, default=(1, 4), show_default=True
)
@click.option("--quick", is_flag=True, help="Small numbers, to try it: no figures to quote.")
@click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="Write what was measured to this file.",
)
@click.option("--markdown", is_flag=True, help="Print Markdown.")
def main(
    times: int,
    rate: float,
    hubs: tuple[int, ...],
    quick: bool,
    file: pathlib.Path | None,
    markdown: bool,
) -> None:
    if not sys.platform.startswith("linux"):
        raise click.ClickException(f"needs Linux (/proc, prctl), this is {sys.platform}")
    command = f"python -m loadtests.upgrade --times {times} --rate {rate:g}"
    if quick:
        times, rate, command = 1, 100, "python -m loadtests.upgrade --quick"
    scenarios: list[Scenario] = [
        Upgrades(kind, is_unix, number, times, rate)
        for number in hubs
        for kind in KINDS
        for is_unix in (False, True)
    ]
    scenarios.append(Failures(rate))
    console = Console(stderr=markdown)
    report = _run(scenarios, console, command)
    if file is not None:
        file.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    if markdown:
        print(report.markdown())
    else:
        report.print(console)
    sys.exit(0 if report.all_kept() else 1)


def _run(scenarios: list[Scenario], console: Console, command: str) -> Report:
    results = Results()
    answers: dict[str, Answer] = {}
    seconds: dict[str, float] = {}
    with Progress(console) as progress:
        progress.expect(sum(scenario.steps for scenario in scenarios))
        for scenario in scenarios:
            began = time.monotonic()
            try:
                answers[scenario.name] = scenario.run(progress.tell)
            except Exception as error:  # the others go on: a run takes minutes
                results.fail(scenario.name, f"{type(error).__name__}: {error}")
            seconds[scenario.name] = time.monotonic() - began
    return Report(results, (), Cpus.available().describe(), command, answers, seconds)


if __name__ == "__main__":
    main()
