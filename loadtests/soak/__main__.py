"""Does a server keep its invariants when everything goes wrong at once?

    python -m loadtests.soak --seconds 60

It runs for a given time: clients that come and go, reset before they are accepted, stop in the
middle of a request, read in drips, crash handlers; clones that are paused, replaced, rolled and
resized; servers that fill up, stop accepting, run out of descriptors, and are taken over by
others; children that are forked and close their copies. Once a second every invariant is checked,
and in the end everything must be as it was before. It prints tables of all that was done and found.
Exit status 0 only if no invariant was violated, and no proper request lost.
"""

from __future__ import annotations

import pathlib
import sys

import click
from rich.console import Console

from glb.model.policy import Policy
from loadtests.frame.command import command_line, json_option, seed_option, wants_linux

from .plan import Kind, Plan
from .run import run

DEFAULTS = Plan()


@click.command(help=__doc__)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=DEFAULTS.seconds,
    show_default=True,
    help="For how long clients come.",
)
@click.option("--clones", type=click.IntRange(1), default=DEFAULTS.clones, show_default=True)
@click.option("--hubs", type=click.IntRange(1), default=DEFAULTS.hubs, show_default=True)
@click.option(
    "--kind",
    type=click.Choice([*(each.value for each in Kind), "both"]),
    default="both",
    show_default=True,
    help="What is spoken.",
)
@click.option(
    "--rate",
    type=click.FloatRange(1, 2000),
    default=DEFAULTS.rate,
    show_default=True,
    help="Clients a second; now and then many more.",
)
@click.option(
    "--policy",
    type=click.Choice([each.value for each in Policy]),
    default=DEFAULTS.policy,
    show_default=True,
)
@seed_option()
@json_option("File for all that was found.")
@click.pass_context
def main(
    context: click.Context,
    seconds: float,
    clones: int,
    hubs: int,
    kind: str,
    rate: float,
    policy: str,
    seed: int,
    file: pathlib.Path | None,
) -> None:
    wants_linux("/proc")
    if clones < hubs:
        raise click.BadParameter(f"{hubs} hubs need as many clones, got {clones}")
    kinds = tuple(each.value for each in Kind) if kind == "both" else (kind,)
    plan = Plan(seconds, rate, clones, hubs, kinds, seed, policy)
    console = Console()
    console.print(f"seed {seed}")
    report = run(plan, command_line(context, "soak"))
    report.print(console)
    if file is not None:
        file.write_text(report.to_json() + "\n")
        console.print(f"written: {file}", soft_wrap=True)
    sys.exit(0 if report.is_kept else 1)


if __name__ == "__main__":
    main()
