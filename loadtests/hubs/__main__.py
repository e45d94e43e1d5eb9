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

import click

from loadtests.frame.command import CONCURRENCY, QUICK, chosen, experiment

from .contenders import CONTENDERS, Contender, Question
from .measure import Run
from .plan import Plan


def choose(only: str | None) -> list[Contender]:
    names = chosen(only, "question", [question.value for question in Question])
    return [one for one in CONTENDERS if one.question.value in names]


main = experiment(
    "hubs",
    __doc__,
    Plan(),
    Run,
    choose,
    "Questions, with commas between: order, stall, block, price.",
    click.option(
        "--stall-rounds",
        type=click.IntRange(1),
        default=Plan().stall_rounds,
        show_default=True,
        help="Of order and blocked hubs, where the worst round counts.",
    ),
    CONCURRENCY,
    click.option("--unpinned", is_flag=True, help="Servers and client may both use every CPU."),
    QUICK,
)

if __name__ == "__main__":
    main()
