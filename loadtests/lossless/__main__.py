"""Is a connection lost while a server of glb is rolled, resized, replaced or stopped?

    python -m loadtests.lossless [SCENARIO ...]

Scenarios: rolls, resize, takeover, drain, resets, silent, exhaustion, memory; all of them, if none
is given. Servers and clients are processes of their own, on loopback. Printed are tables: what glb
promises beside what was measured. Exit status 0 only if every promise was measured and kept.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import click
from rich.console import Console

from loadtests.frame.command import (
    MARKDOWN,
    QUICK,
    allow_descriptors,
    command_line,
    json_option,
    show,
    wants_linux,
)
from loadtests.frame.figures import Results
from loadtests.frame.process import Cpus
from loadtests.frame.progress import Progress

from .answers import Answer, Scenario
from .report import Report
from .scenarios import SCENARIOS, all_scenarios


@click.command(help=__doc__)
@click.argument("names", metavar="[SCENARIO]...", nargs=-1, type=click.Choice(SCENARIOS))
@click.option(
    "--hubs", type=click.IntRange(1, 16), default=1, show_default=True, help="Of servers."
)
@QUICK
@json_option("Write what was measured to this file.")
@MARKDOWN
@click.pass_context
def main(
    context: click.Context,
    names: tuple[str, ...],
    hubs: int,
    quick: bool,
    file: pathlib.Path | None,
    markdown: bool,
) -> None:
    wants_linux("/proc, CPU affinity")
    allow_descriptors()  # 2,000 silent clients have more than the 1,024 that are usual
    measures = all_scenarios(hubs)
    chosen = [measures[name] for name in SCENARIOS if name in (names or SCENARIOS)]
    scenarios = [each.quick if quick else each.full for each in chosen]
    console = Console(stderr=markdown)
    report = _run(scenarios, console, command_line(context, "lossless"))
    if file is not None:
        file.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    show(report, console, markdown=markdown)
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
