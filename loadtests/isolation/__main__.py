"""Does a handler ever meet anything of another's?

    python -m loadtests.isolation --connections 100000 --hubs 4 --seed 1

Handlers leave behind what a handler can leave, and each looks on entry for what is another's.
A tenth of the connections go to a program that keeps every greenlet, and as many to one that keeps
none. Printed is what was found; the exit status is 1 if a handler met anything, a kept greenlet
was used again, or what keeps nothing is not used again and the log doesn't say so.
"""

from __future__ import annotations

import platform
import sys

import click
from gevent import get_hub

from glb.hubs.greenlet_pool import PROOF
from loadtests.frame.command import seed_option, wants_linux

from .trial import Found, Trial

#: So many faults are printed in full.
SHOWN = 10


@click.command(help=__doc__)
@click.option(
    "--connections", type=click.IntRange(1, 1_000_000), default=100_000, show_default=True
)
@click.option("--hubs", type=click.IntRange(1, 16), default=1, show_default=True)
@seed_option()
def main(connections: int, hubs: int, seed: int) -> None:
    wants_linux("epoll")
    loop = type(get_hub().loop).__module__.removeprefix("gevent.")
    mode = ", development mode" if sys.flags.dev_mode else ""
    print(f"Python {platform.python_version()}, {loop}{mode}; {hubs} hubs, seed {seed}", flush=True)
    found = Trial(connections, hubs, seed).run()
    print("\n".join(_lines(found)))
    sys.exit(1 if found.faults else 0)


def _lines(found: Found) -> list[str]:
    again = "yes" if found.is_used_again else f"no: {PROOF.reason}"
    counts = ", ".join(f"{what} {count:,}" for what, count in sorted(found.counts.items()))
    return [
        counts,
        f"{found.connections:,} connections that leave traces, in {found.greenlets:,} greenlets",
        f"{found.keeping:,} connections that keep their greenlet: {found.kept:,} greenlets",
        f"{found.keeping_none:,} connections that keep none: {found.used:,} greenlets",
        f"used again: {again}",
        f"{len(found.faults)} faults, in {found.seconds:.1f} s",
        *found.faults[:SHOWN],
    ]


if __name__ == "__main__":
    main()
