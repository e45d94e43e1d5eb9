"""Is a connection lost while a server of glb is rolled, resized, replaced or stopped?

    python -m loadtests.lossless [SCENARIO ...]

Scenarios: rolls, resize, takeover, drain, resets, silent, exhaustion, memory; all of them, if none
is given. Servers and clients are processes of their own, on loopback. Printed are tables: what glb
promises beside what was measured. Exit status 0 only if every promise was measured and kept.
"""

from __future__ import annotations

import pathlib

import click

from loadtests.frame.command import (
    MARKDOWN,
    QUICK,
    allow_descriptors,
    command_line,
    json_option,
    wants_linux,
)

from .run import conduct
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
    conduct(scenarios, command_line(context, "lossless"), file, markdown=markdown)


if __name__ == "__main__":
    main()
