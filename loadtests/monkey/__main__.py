"""What does glb's monkey patch cost a program without use for it, and give the others?

    python -m loadtests.monkey

Programs of the standard library under gevent's patch and under glb's, each in a process of its
own, in interleaved rounds: CPU time a connection, and gevent's patch beside itself, to tell what
is noise. Then four copies on one address, by SO_REUSEPORT: is the order exact? Printed are tables,
and what glb promises beside what was measured; JSON and Markdown are written to a folder. Exit
status 0 only if every promise was measured and kept.
"""

from __future__ import annotations

import click

from loadtests.frame.command import chosen, experiment

from .contenders import GROUPS, PROGRAMS, Group
from .measure import Run
from .plan import Plan

NAMES = [program.name for program in PROGRAMS]


def choose(only: str | None) -> list[Group]:
    names = chosen(only, "program", NAMES)
    return [group for group in GROUPS if group[0].of.name in names]


main = experiment(
    "monkey",
    __doc__,
    Plan(),
    Run,
    choose,
    f"Programs, with commas between: {', '.join(NAMES)}.",
    click.option(
        "--turns",
        type=click.IntRange(1),
        default=Plan().turns,
        show_default=True,
        help="Among which they are divided.",
    ),
    least=10,
)

if __name__ == "__main__":
    main()
