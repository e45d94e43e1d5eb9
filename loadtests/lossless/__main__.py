"""Is a connection lost while a server of glb is rolled, resized, replaced or stopped?

    python -m loadtests.lossless [SCENARIO ...]

All of them, if none is given. Servers and clients are processes of their own, on loopback. Printed
are tables: what glb promises beside what was measured. Exit status 0 only if every promise was
measured and kept.
"""

from __future__ import annotations

import pathlib
from functools import partial

import click

from loadtests.frame.command import (
    MARKDOWN,
    QUICK,
    allow_descriptors,
    command_line,
    conduct,
    json_option,
    wants_linux,
)
from loadtests.frame.process import Cpus

from .scenarios import NAMES, first_line, play

QUESTIONS = "\n".join(f"{name:11}{first_line(scenario)}" for name, scenario in NAMES.items())


@click.command(help=f"{__doc__}\n\n\b\n{QUESTIONS}")
@click.argument("names", metavar="[SCENARIO]...", nargs=-1, type=click.Choice([*NAMES]))
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
    chosen = {
        name: partial(play, name, hubs=hubs, is_quick=quick)
        for name in NAMES
        if name in (names or NAMES)
    }
    heading = f"Over loopback; {Cpus.available().describe()}"
    command = command_line(context, "lossless")
    conduct(command, chosen, heading, markdown=markdown, file=file)


if __name__ == "__main__":
    main()
