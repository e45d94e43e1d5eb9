"""A run of scenarios, from start to end."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console

from loadtests.frame.command import show
from loadtests.frame.figures import Results
from loadtests.frame.process import Cpus
from loadtests.frame.progress import Progress

from .answers import Answer, Scenario
from .report import Report

__all__ = ["conduct"]


def conduct(
    scenarios: Sequence[Scenario], command: str, file: pathlib.Path | None, *, markdown: bool
) -> NoReturn:
    """Run *scenarios*, print what was seen, and exit: with 0 if every promise was kept.

    Args:
        command: Which ran it.
        file: Gets it as JSON.
        markdown: Print it as Markdown.
    """
    console = Console(stderr=markdown)
    report = _run(scenarios, console, command)
    if file is not None:
        file.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    show(report, console, markdown=markdown)
    sys.exit(0 if report.all_kept() else 1)


def _run(scenarios: Sequence[Scenario], console: Console, command: str) -> Report:
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
