"""Are all hosts behind a load balancer deployed without one failed request?

    python -m loadtests.machines [deploy] [locust] --balancer haproxy --requests 10000 --rate 300

Three hosts in network namespaces run `glb serve` behind HAProxy or Envoy, with the configuration of
docs/many-machines.md. deploy: all are replaced, one after the other, while clients on two more
hosts make requests; each reply must be a 200 with the client's own address. locust: a master and
two workers, on three hosts; the turns of all clones may differ by 1. Exit status 0 only if every
promise was kept.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence

import click

from loadtests.lossless.answers import Answer

from .balancers import BALANCERS, Balancer
from .deploy import Deploy
from .network import Network, enter, is_entered
from .service import WEB, start_all
from .swarm import SCENARIOS, Swarm, is_installed

WHAT = ("deploy", "locust")

#: Of a quick run: its checks take 0.2.
QUICK_DELAY_SECONDS = 0.8

#: How many seconds each scenario of locust has.
LOCUST_SECONDS, LOCUST_QUICK_SECONDS = 10, 1


@click.command(help=__doc__)
@click.argument("what", nargs=-1, type=click.Choice(WHAT))
@click.option("--balancer", type=click.Choice([*BALANCERS]), default="haproxy", show_default=True)
@click.option(
    "--requests",
    type=click.IntRange(1, 1_000_000),
    default=10_000,
    show_default=True,
    help="All hosts are deployed again and again, until so many were made: at least once.",
)
@click.option("--rate", type=click.FloatRange(1, 2000), default=300, show_default=True)
@click.option(
    "--scenario",
    "scenarios",
    type=click.Choice([*SCENARIOS]),
    multiple=True,
    help="Of locust: one, or several. All that the balancer can, if none is given.",
)
@click.option(
    "--drain-delay",
    type=click.FloatRange(0, 60),
    help="In place of the page's: with 0, requests fail.",
)
@click.option("--quick", is_flag=True, help="Shorter times than the page has: to try it.")
def main(
    what: tuple[str, ...],
    balancer: str,
    requests: int,
    rate: float,
    scenarios: tuple[str, ...],
    drain_delay: float | None,
    quick: bool,
) -> None:
    program = BALANCERS[balancer]
    if not is_entered():
        _enter(program)
    chosen = what or (WHAT if is_installed() else WHAT[:1])
    kinds = {WEB} if "deploy" in chosen else set()
    names = _scenarios(scenarios, program) if "locust" in chosen else []
    kinds |= {SCENARIOS[name].kind for name in names}
    delay = drain_delay if drain_delay is not None else QUICK_DELAY_SECONDS if quick else None
    changes = {} if delay is None else {"drain-delay = 5.0": f"drain-delay = {delay}"}
    loop = os.environ.get("GEVENT_LOOP", "gevent's default loop")
    print(f"Python {platform.python_version()}, {loop}", flush=True)
    answers: list[Answer] = []
    with Network() as network:
        webs = [network.host(f"web{number}", f"10.0.0.1{number}") for number in (1, 2, 3)]
        front = network.host("balancer", "10.0.0.2")
        loads = [network.host(f"load{number}", f"10.0.0.2{number}") for number in range(3)]
        services = {kind: start_all(kind, webs, changes) for kind in kinds}
        behind = program(front, quick)
        for kind in kinds:
            behind.wait_up(kind, webs)
        if "deploy" in chosen:
            answers.append(Deploy(services[WEB], behind, loads[1:], requests, rate).run())
        if names:
            seconds = LOCUST_QUICK_SECONDS if quick else LOCUST_SECONDS
            answers.append(Swarm(behind, loads[0], loads[1:]).run(names, seconds))
    for table in (table for answer in answers for table in answer.tables()):
        print(table.text())
    sys.exit(0 if all(answer.is_kept for answer in answers) else 1)


def _enter(program: type[Balancer]) -> None:
    if program.find() is None:
        raise click.ClickException(f"{program.name} isn't installed")
    try:
        enter(["-m", str(__package__), *sys.argv[1:]])
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None


def _scenarios(asked: Sequence[str], program: type[Balancer]) -> list[str]:
    if not is_installed():
        raise click.ClickException("locust isn't installed")
    for name in asked:
        if SCENARIOS[name].kind not in program.kinds:
            raise click.ClickException(f"{name} is of no kind that {program.file} has")
    return [*asked] or [name for name in SCENARIOS if SCENARIOS[name].kind in program.kinds]


if __name__ == "__main__":
    main()
