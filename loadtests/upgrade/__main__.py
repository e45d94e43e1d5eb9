"""Is a connection lost while a new process takes over the sockets of `glb serve`?

    python -m loadtests.upgrade

TCP and Unix sockets, WSGI and streams; each is replaced by SIGUSR2 under load. Then new processes
crash, exit, are killed and hang, and the old one serves on. Servers and clients are processes of
their own, on loopback. Exit status 0 only if every promise was measured and kept.
"""

from __future__ import annotations

import pathlib

import click

from loadtests.frame.command import QUICK, json_option, wants_linux
from loadtests.lossless.answers import Scenario
from loadtests.lossless.run import conduct
from loadtests.lossless.words import KINDS

from .upgrades import Failures, Upgrades


@click.command(help=__doc__)
@click.option("--times", type=click.IntRange(1), default=20, show_default=True, help="Upgrades.")
@click.option("--rate", type=click.FloatRange(1), default=500, show_default=True, help="A second.")
@click.option(
    "--hubs", type=click.IntRange(1, 16), multiple=True, default=(1, 4), show_default=True
)
@QUICK
@json_option("Write what was measured to this file.")
@click.option("--markdown", is_flag=True, help="Print Markdown.")
def main(
    times: int,
    rate: float,
    hubs: tuple[int, ...],
    quick: bool,
    file: pathlib.Path | None,
    markdown: bool,
) -> None:
    wants_linux("/proc, prctl")
    command = f"python -m loadtests.upgrade --times {times} --rate {rate:g}"
    if quick:
        times, rate, command = 1, 100, "python -m loadtests.upgrade --quick"
    scenarios: list[Scenario] = [
        Upgrades(kind, is_unix, number, times, rate)
        for number in hubs
        for kind in KINDS
        for is_unix in (False, True)
    ]
    scenarios.append(Failures(rate))
    conduct(scenarios, command, file, markdown=markdown)


if __name__ == "__main__":
    main()
