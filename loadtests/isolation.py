"""Does a handler ever meet anything of another's?

    python -m loadtests.isolation --connections 100000 --hubs 4 --seed 1

Handlers leave behind what a handler can leave (references, links, timeouts, attributes, locals,
context variables, kills on their way), and each looks on entry whether its greenlet is as fresh as
one of gevent's: it is `tests/hubs/test_isolation.py`, as often as is asked for. The exit status is
1 if a handler met anything, a kept greenlet was used again, or one that kept nothing was not, and
glb doesn't say why.
"""

from __future__ import annotations

import os
import pathlib
import sys

import click
import pytest

from .frame.command import command_line, seed_option, wants_linux

CAMPAIGN = pathlib.Path(__file__).parent.parent / "tests" / "hubs" / "test_isolation.py"


@click.command(help=__doc__)
@click.option("--connections", type=click.IntRange(1, 1_000_000), default=100_000)
@click.option("--hubs", type=click.IntRange(1, 16), default=1, show_default=True)
@seed_option()
@click.pass_context
def main(context: click.Context, connections: int, hubs: int, seed: int) -> None:
    wants_linux("/proc")
    print(command_line(context, "isolation"), file=sys.stderr, flush=True)
    numbers = {"CONNECTIONS": connections, "HUBS": hubs, "SEED": seed}
    os.environ.update({f"GLB_FUZZ_{name}": str(value) for name, value in numbers.items()})
    sys.exit(pytest.main(["-q", "-s", "--rootdir", str(CAMPAIGN.parents[2]), str(CAMPAIGN)]))


if __name__ == "__main__":
    main()
