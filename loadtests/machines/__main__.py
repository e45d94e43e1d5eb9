"""Are all hosts behind a load balancer deployed without one failed request?

    python -m loadtests.machines [deploy] [locust] --balancer haproxy --requests 10000 --rate 300

Three hosts in network namespaces run `glb serve` behind HAProxy or Envoy, with the configuration of
docs/many-machines.md. deploy: all are replaced, one after the other, while clients on two more
hosts make requests; each reply must be a 200 with the client's own address. locust: a master and
two workers, on three hosts; the turns of all clones may differ by 1. Exit status 0 only if every
promise was kept.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import click

from loadtests.frame.command import QUICK, Tell, command_line, conduct
from loadtests.frame.process import ROOT, Process
from loadtests.frame.sheet import Answer, Promise
from loadtests.frame.traffic import GOOD, Visit
from loadtests.frame.worker import ANSWER_SECONDS, Worker

from .hosts import BALANCERS, FRONT, GIVE_UP_SECONDS, STREAM, WEB, Site
from .network import ENTERED, PATH, enter

#: So many connections of a host's clients are kept; half of the requests are theirs. Of the others
#: each so manieth takes half a second, and is in flight when its host is stopped.
KEPT: Final = 10
SLOW_EACH: Final = 50

#: In the first quarter of slow start a host gets at most this part of an equal share. An eighth is
#: what a weight that rises evenly comes to; without slow start it is 1.
SLOW_START_SHARE: Final = 0.8


def deploy(tell: Tell, site: Site, requests: int, rate: float) -> Answer:
    """Deploy all again and again, until so many requests have been due: at least once."""
    tell("deploy")
    slow_start = 0.5 if site.is_quick else 10.0  # the page's
    clients = [
        Worker("loadtests.frame.traffic", python=(*host.enters, sys.executable))
        for host in site.loads[1:]
    ]
    each = rate / len(clients) / 2
    to: dict[str, Any] = {"place": (FRONT, 80), "names_us": True}
    for client in clients:
        client.ask("arrive", **to, rate=each, is_http=True, slow_each=SLOW_EACH)
        client.ask("keep", **to, clients=KEPT, pause=KEPT / each)
        client.ask("come", count=20)
    rounds, bad_ends, started, began = 0, 0, [], time.monotonic()
    while rounds == 0 or (time.monotonic() - began) * rate < requests:
        for host in site.webs:
            status, process = site.replace(WEB, host)
            bad_ends += status != 0
            started.append(str(process))
            if not site.balancer.is_exact:
                time.sleep(slow_start)
        rounds += 1
    found = [client.ask("depart", within=2 * ANSWER_SECONDS) for client in clients]
    seconds = time.monotonic() - began
    visits = [Visit(*visit) for some in found for visit in some["visits"]]
    fates = Counter(visit.fate for visit in visits)
    fates["idle, and closed"] = sum(some["counts"].get("met the end", 0) for some in found)
    lost = {fate: count for fate, count in fates.items() if count and fate != GOOD}
    good = [visit for visit in visits if visit.fate == GOOD]
    processes = Counter(host for host, _ in {(*visit.words[1:],) for visit in good})
    least = min(processes[host.name] for host in site.webs)
    most = max(share(good, process, slow_start / 4, len(site.webs)) for process in started)
    return Answer(
        "Is a request lost in a rolling deploy of all hosts?",
        [
            Promise("requests that failed", sum(lost.values())),
            Promise("requests", len(visits), requests, is_floor=True),
            Promise("processes of a host that replied", least, rounds + 1, is_floor=True),
            Promise("ends with a status but 0", bad_ends),
            Promise("part of an equal share as slow start begins", most, SLOW_START_SHARE),
        ],
        [
            ("requests a second", f"{len(visits) / seconds:,.0f}"),
            ("seconds of a deploy of all", f"{seconds / rounds:.1f}"),
            *((f"failed: {fate}", f"{count:,}") for fate, count in lost.items()),
        ],
    )


def share(replies: Sequence[Visit], process: str, seconds: float, hosts: int) -> float:
    """Return what part of an equal share of *hosts* a *process* had in its first *seconds*."""
    # Without a reply it has no share: that one is missing is a promise of its own.
    first = min((each.left for each in replies if each.words[2] == process), default=0)
    early = [each.words[2] for each in replies if 0 <= each.left - first < seconds * 1e9]
    return early.count(process) / len(early) * hosts if early else 0.0


#: Turns of all clones differ by no more, if the balancer goes round the hosts exactly.
EXACT: Final = ("--balance-max-spread", "1")

#: Of what can't be exact.
FAIR: Final = ("--balance-min-jain", "0.98")

#: Locustfiles that take a server which isn't their own: what they load, and their gates.
LOCUSTFILES: Final = {
    "http.py": (WEB, EXACT),
    "balance.py": (STREAM, EXACT),
    # A connection that is reset before its reply had a turn too, of a clone that isn't known.
    "churn.py": (STREAM, FAIR),
}


def locust(tell: Tell, site: Site) -> Answer:
    """Run a master and workers, on hosts of their own, against the balancer."""
    seconds = 1 if site.is_quick else 10
    load = ("--headless", "-u", "24", "-r", "24", "-t", f"{seconds}s", "--only-summary")
    master, *workers = site.loads
    lead = ("--master", "--expect-workers", str(len(workers)), "--max-fail-ratio", "0")
    follow = ("--worker", "--master-host", master.address)
    promises, notes = [], []
    for name, (kind, gates) in LOCUSTFILES.items():
        if kind not in site.balancer.kinds:
            continue
        tell(f"locust: {name}")
        locust = (sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests/locust" / name))
        some = gates if site.balancer.is_exact else FAIR
        command = [*master.enters, *locust, *lead, *load, "--host", kind.front, *some]
        leader = Process(["sh", "-c", 'exec "$@" >&2', "sh", *command])
        others = [Process([*each.enters, *locust, *follow]) for each in workers]
        status, *_ = [each.status(GIVE_UP_SECONDS) for each in (leader, *others)]
        words = leader.said()
        balances = re.findall(r"^.*\d+ turns of \d+ clones: .*$", words, re.MULTILINE)
        if not balances:
            raise RuntimeError(f"locust tells of no balance: {words}")
        promises.append(Promise(f"{name}: exit status", status))
        notes.append((name, balances[-1]))
    return Answer("Do locust's gates hold through the balancer?", promises, notes)


@click.command(help=__doc__)
@click.argument("what", nargs=-1, type=click.Choice(["deploy", "locust"]))
@click.option("--balancer", type=click.Choice([*BALANCERS]), default="haproxy", show_default=True)
@click.option(
    "--requests",
    type=click.IntRange(1, 1_000_000),
    default=10_000,
    show_default=True,
    help="All hosts are deployed again and again, until so many were made: at least once.",
)
@click.option("--rate", type=click.FloatRange(10, 2000), default=300, show_default=True)
@click.option(
    "--drain-delay",
    type=click.FloatRange(0, 60),
    help="In place of the page's: with 0, requests fail.",
)
@QUICK
@click.pass_context
def main(
    context: click.Context,
    what: tuple[str, ...],
    balancer: str,
    requests: int,
    rate: float,
    drain_delay: float | None,
    quick: bool,
) -> None:
    # It isn't imported: that would patch the process.
    has_locust = importlib.util.find_spec("locust") is not None
    for needed, is_there in {
        balancer: shutil.which(balancer, path=PATH),
        "locust": has_locust,
    }.items():
        if not is_there and needed in (balancer, *what):
            raise click.ClickException(f"{needed} isn't installed")
    if ENTERED not in os.environ:
        try:
            enter(["-m", str(__package__), *sys.argv[1:]])
        except RuntimeError as error:
            raise click.ClickException(str(error)) from None
    delay = 0.8 if quick and drain_delay is None else drain_delay  # a quick run's checks take 0.2
    changes = {} if delay is None else {"drain-delay = 5.0": f"drain-delay = {delay}"}
    site = Site(BALANCERS[balancer], changes, quick)
    # locust first: a balancer makes up for what a new process has missed, and then turns differ.
    asks = {
        "locust": lambda tell: locust(tell, site),
        "deploy": lambda tell: deploy(tell, site, requests, rate),
    }
    chosen = [name for name in asks if name in (what or ("deploy", "locust")[: 1 + has_locust])]
    heading = f"Hosts in network namespaces, behind {balancer}"
    conduct(command_line(context, "machines"), {name: asks[name] for name in chosen}, heading)


if __name__ == "__main__":
    main()
