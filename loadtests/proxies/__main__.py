"""Does an application see through HAProxy and nginx what the proxy sent?

    python -m loadtests.proxies --requests 5000 --handler hooks --hubs 2 --seed 1

Clients send each proxy thousands of requests: uploads, websockets, replies that come early, what a
proxy and a server may read in two ways, and requests within requests. What the application saw is
compared with what the proxy sent, which is recorded between the two. Printed is what was found; the
exit status is 1 if a request was seen otherwise, a reply was another's, or anything was lost or
left open.
"""

from __future__ import annotations

import json
import os
import platform
import random
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import click
import gevent

from loadtests.frame.command import seed_option, wants_linux
from loadtests.frame.process import Process

from .checks import SMUGGLED, compare
from .clients import Clients, Tally
from .exchanges import KINDS, Maker
from .installed import PROXIES, Proxy, version
from .messages import read_request
from .relay import Relay

#: The server's process in a run.
SERVER = (sys.executable, "-m", "loadtests.proxies.application")

#: So many faults are printed in full.
SHOWN = 10

#: The second octets of addresses on loopback: of clients, and of connections to the server.
CLIENTS, LINES = 100, 200

END_SECONDS = 60.0


@click.command(help=__doc__)
@click.option(
    "--requests", type=click.IntRange(1, 100_000), default=5000, show_default=True, help="A proxy."
)
@click.option("--clients", type=click.IntRange(1, 100), default=8, show_default=True)
@click.option("--hubs", type=click.IntRange(1, 8), default=1, show_default=True)
@seed_option()
@click.option("--server", type=click.Choice(["glb", "gevent"]), default="glb", show_default=True)
@click.option(
    "--handler",
    type=click.Choice(["lean", "hooks"]),
    default="lean",
    show_default=True,
    help="hooks overrides one of gevent's methods: requests are read by the other loop.",
)
@click.option(
    "--proxy",
    "names",
    type=click.Choice([*PROXIES]),
    multiple=True,
    help="One of them, or several. All, if none is given.",
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice([*KINDS]),
    multiple=True,
    help="Of requests: one, or several. All, if none is given.",
)
@click.option("--counts", is_flag=True, help="Print how each kind of exchange went.")
def main(
    requests: int,
    clients: int,
    hubs: int,
    seed: int,
    server: str,
    handler: str,
    names: tuple[str, ...],
    kinds: tuple[str, ...],
    counts: bool,
) -> None:
    wants_linux("all of 127.0.0.0/8")
    versions = {name: version(name) for name in names or PROXIES}
    missing = sorted({PROXIES[name] for name, found in versions.items() if found is None})
    for program in missing:
        print(f"{program}: passed over, it isn't installed")
    there = [name for name, found in versions.items() if found is not None]
    if not there:
        raise click.ClickException("no proxy is installed: apt-get install haproxy nginx")
    loop = os.environ.get("GEVENT_LOOP", "gevent's default loop")
    print(
        f"Python {platform.python_version()}, {loop}, {server}, {handler} handler; "
        f"{hubs} hubs, seed {seed}\n{', '.join(f'{name}: {versions[name]}' for name in there)}",
        flush=True,
    )
    load = Load(requests, clients, kinds or tuple(KINDS), seed)
    faults = run(there, (server, handler, str(hubs)), load, counts)
    smuggled = sum(SMUGGLED in fault for fault in faults)
    print(f"{len(faults)} faults, of which {smuggled} are smuggled requests")
    for fault in sorted(faults, key=_place)[:SHOWN]:
        print(fault[:1000])
    sys.exit(1 if faults else 0)


def _place(fault: str) -> int:
    # The gravest first; and what was recorded tells more than what a client has seen.
    return 0 if SMUGGLED in fault else 1 if " and the server: " in fault else 2


@dataclass
class Load:
    """What clients send.

    Attributes:
        requests: So many to each proxy.
        at_once: So many clients at a time.
        kinds: Of requests.
        seed: Of all that is chosen.
    """

    requests: int
    at_once: int
    kinds: tuple[str, ...]
    seed: int


def run(names: list[str], plan: tuple[str, str, str], load: Load, counts: bool) -> list[str]:
    """Print what was seen, and return the faults. *plan* is for the server's process."""
    tally = Tally()
    began = monotonic()
    with tempfile.TemporaryDirectory() as folder:
        calls_file = Path(folder, "calls")
        with Process([*SERVER, *plan, str(calls_file)]) as process:
            port = int(process.line(END_SECONDS))
            relays = _send(names, port, load, tally, Path(folder))
            if status := process.status(END_SECONDS):
                tally.faults.append(f"the server has ended with status {status}")
            words = process.said()
        calls = defaultdict(list)
        for text in calls_file.read_text().splitlines():
            call = json.loads(text)
            calls[call["line"]].append(call)
    _compare(relays, calls, tally)
    _look_at_words(words, tally)
    if counts:
        for what, count in sorted(tally.counts.items()):
            print(f"{count:7,} {what}")
    print(f"{len(tally.asked):,} requests of clients, in {monotonic() - began:.0f} s")
    return tally.faults


def _send(names: list[str], port: int, load: Load, tally: Tally, folder: Path) -> dict[str, Relay]:
    relays: dict[str, Relay] = {}
    proxies: list[Proxy] = []
    try:
        for number, name in enumerate(names):
            home = folder / name
            home.mkdir()
            relays[name] = relay = Relay(LINES + number, port)
            proxy = Proxy(name, relay.port, home)
            proxies.append(proxy)
            maker = Maker(random.Random(f"{load.seed} {name}"), is_nginx=name == "nginx")
            clients = Clients(name, CLIENTS + number, proxy.port, maker, load.kinds, tally)
            clients.second_head = _learn_head(clients, maker, relay)
            clients.run(load.requests, load.at_once)
            if not proxy.is_running:
                tally.faults.append(f"{name} has ended")
    finally:
        for proxy in proxies:
            # In a thread: the relays go on meanwhile.
            gevent.get_hub().threadpool.apply(proxy.end)
        for relay in relays.values():
            relay.end()
    return relays


def _learn_head(clients: Clients, maker: Maker, relay: Relay) -> int:
    """Return how large the head of an attack's second request is behind the proxy."""
    clients.ask(maker.second())
    for line in relay.lines.values():
        request = read_request(line.file())
        if request is not None:
            return request.head_size
    raise RuntimeError("the proxy has sent nothing")


def _compare(
    relays: dict[str, Relay], calls: dict[str, list[dict[str, Any]]], tally: Tally
) -> None:
    for name, relay in relays.items():
        requests = most = 0
        for address, line in relay.lines.items():
            count = compare(name, line, calls.pop(address, []), tally)
            requests += count
            most = max(most, count)
        print(
            f"{name}: {requests:,} requests to the server, over {len(relay.lines):,} connections, "
            f"up to {most} on one"
        )
    for address, others in calls.items():
        tally.faults.append(f"{len(others)} calls on no connection of ours, from {address}")


def _look_at_words(words: str, tally: Tally) -> None:
    lines = [line for line in words.splitlines() if line.strip()]
    print(f"{len(lines):,} lines on the server's standard error")
    at = next((place for place, line in enumerate(lines) if "Traceback" in line), None)
    if at is not None:
        tally.faults.append("the server said: " + " | ".join(lines[at : at + 30]))


if __name__ == "__main__":
    main()
