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

import click

from loadtests.lossless.answers import Answer

from .balancers import BALANCERS
from .deploy import Deploy
from .network import Network, enter, is_entered, why_not
from .service import Service
from .swarm import SCENARIOS, Swarm, is_installed

WHAT = ("deploy", "locust")

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
    if not is_entered():
        _enter(balancer)
    chosen = what or (WHAT if is_installed() else WHAT[:1])
    delay = drain_delay if drain_delay is not None else 1.0 if quick else None
    changes = {} if delay is None else {"drain-delay = 5.0": f"drain-delay = {delay}"}
    loop = os.environ.get("GEVENT_LOOP", "gevent's default loop")
    print(f"Python {platform.python_version()}, {loop}", flush=True)
    network = Network()
    hosts = [network.host(f"web{number}", f"10.0.0.1{number}") for number in (1, 2, 3)]
    front = network.host("balancer", "10.0.0.2")
    master, *others = (network.host(f"load{number}", f"10.0.0.2{number}") for number in range(3))
    answers: list[Answer] = []
    services = [Service(host, "glb.toml", 9000, changes) for host in hosts]
    for service in services:
        service.start()
    for service in services:
        service.wait_ready()
    program = BALANCERS[balancer](front, quick)
    if "deploy" in chosen:
        program.wait_up("web", hosts)
        answers.append(Deploy(services, program, others, requests, rate).run())
    if "locust" in chosen:
        streams = [Service(host, "stream.toml", 9001, changes) for host in hosts]
        for stream in streams:
            stream.start()
        for stream in streams:
            stream.wait_ready()
        for backend in program.backends.values():
            program.wait_up(backend, hosts)
        can = [name for name, (scheme, _) in SCENARIOS.items() if scheme in program.backends]
        seconds = LOCUST_QUICK_SECONDS if quick else LOCUST_SECONDS
        answers.append(Swarm(program, master, others).run(scenarios or can, seconds))
    for table in (table for answer in answers for table in answer.tables()):
        print(table.text())
    # What runs yet ends with this process.
    sys.exit(0 if all(answer.is_kept for answer in answers) else 1)


def _enter(balancer: str) -> None:
    if BALANCERS[balancer].find() is None:
        raise click.ClickException(f"{balancer} isn't installed")
    if (reason := why_not()) is not None:
        raise click.ClickException(reason)
    enter(str(__package__), sys.argv[1:])


if __name__ == "__main__":
    main()
