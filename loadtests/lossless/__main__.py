"""Is a connection lost while a server of glb is rolled, resized, replaced or stopped?

    python -m loadtests.lossless [SCENARIO ...]

Scenarios: rolls, resize, takeover, drain, resets, silent, exhaustion, memory; all of them, if none
is given. Servers and clients are processes of their own, on loopback. Printed are tables: what glb
promises beside what was measured. Exit status 0 only if every promise was measured and kept.
"""

from __future__ import annotations

import json
import pathlib
import resource
import sys
import time

import click
from rich.console import Console

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
@click.option("--quick", is_flag=True, help="Small numbers, to try it: no figures to quote.")
@click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="Write what was measured to this file.",
)
@click.option("--markdown", is_flag=True, help="Print Markdown, for the README.")
def main(
    names: tuple[str, ...], hubs: int, quick: bool, file: pathlib.Path | None, markdown: bool
) -> None:
    if not sys.platform.startswith("linux"):
        raise click.ClickException(f"needs Linux (/proc, CPU affinity), this is {sys.platform}")
    _allow_descriptors()
    measures = all_scenarios(hubs)
    chosen = [measures[name] for name in SCENARIOS if name in (names or SCENARIOS)]
    scenarios = [each.quick if quick else each.full for each in chosen]
    command = " ".join(["python -m loadtests.lossless", *names])
    command += f" --hubs {hubs}" if hubs > 1 else ""
    command += " --quick" if quick else ""
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


def _allow_descriptors() -> None:
    # 2,000 silent clients have more than the 1,024 that are usual.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    main()
