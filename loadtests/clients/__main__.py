"""Do clients and applications see of each other what they see under gevent's WSGIServer?

    python -m loadtests.clients --requests 200

Clients (curl, ab, h2load, wrk, requests, httpx, aiohttp) ask applications (Flask, Django, Falcon,
Bottle), each within wsgiref.validate, under gevent's server and under glb's with 4 clones, by
each of its loops. What isn't installed is left out, and named. The exit status is 1 if a client or
an application saw something else than under gevent, a reply was no 2xx, or a server wrote to its
standard error.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from time import monotonic
from typing import Any, Final, NamedTuple

import click

from loadtests.frame.process import Process

from .programs import CLIENTS, HOW_OFTEN_IS_CHANCE, version
from .serve import APPLICATIONS

#: The servers' process in a run.
SERVER = (sys.executable, "-m", "loadtests.clients.serve")

#: (server, hubs). The others are compared with the first.
SERVERS: Final = (("gevent", "1"), ("glb", "1"), ("glb", "2"), ("glb by hooks", "2"))

END_SECONDS: Final = 30.0

#: Of a difference so much is printed.
SHOWN: Final = 1500

# What a client saw of a reply that is no 2xx, or of an error.
_BAD: Final = re.compile(r"\((?!2)\d+, |HTTP/1\.1 (?!2|100)\d|Non-2xx|[1-9]\d* [345]xx")


class Seen(NamedTuple):
    """What was seen under one server, by client and application.

    Attributes:
        clients: What a client saw.
        applications: Each call, how often it was made, and how many connections there were.
        said: What the server wrote to its standard error.
    """

    clients: dict[str, Any]
    applications: dict[str, Any]
    said: str


def look(server: tuple[str, str], applications: list[str], clients: list[str], count: int) -> Seen:
    """Let all *clients* ask all *applications*, and return what was seen."""
    seen = Seen({}, {}, "")
    with Process([*SERVER, *server, *applications]) as process:
        ports = json.loads(process.line(END_SECONDS))
        for (name, port), client in product(zip(applications, ports, strict=True), clients):
            url = f"http://127.0.0.1:{port}/{client}/"
            seen.clients[f"{client} to {name}"] = _ask(client, url, count)
        process.close_input()
        printed = process.line(END_SECONDS)
        for (name, calls), client in product(json.loads(printed).items(), clients):
            times = Counter(call for its_client, _, call in calls if its_client == client)
            ports = {port for its_client, port, _ in calls if its_client == client}
            told = sorted(times) if client in HOW_OFTEN_IS_CHANCE else times
            seen.applications[f"{client} to {name}"] = told, len(ports)
        process.status(END_SECONDS)
        return seen._replace(said=process.said())


def faults_of(seen: Seen, gevents: Seen) -> Iterator[str]:
    """Yield what is wrong: by itself, and beside what was seen under gevent's server."""
    if seen.said:
        yield f"the server said {seen.said}"
    for which, found in seen.clients.items():
        if not found or _BAD.search(repr(found)):
            yield f"{which}: {found}"
    for side in ("clients", "applications"):
        ours, wanted = getattr(seen, side), getattr(gevents, side)
        for which in {**wanted, **ours}:
            if ours.get(which) != wanted.get(which):
                yield f"{which}, {side} saw {ours.get(which)}\n  not {wanted.get(which)}"


def _ask(client: str, url: str, count: int) -> list[Any]:
    try:
        return [*CLIENTS[client](url, str(count))]
    except Exception as error:  # a client that fails has seen that
        return [(0, repr(error))]


def _installed(names: tuple[str, ...]) -> list[str]:
    """Print the versions of those that are installed, and return them."""
    versions = {name: version(name) for name in names}
    print(", ".join(f"{name} {found or 'is not installed'}" for name, found in versions.items()))
    return [name for name, found in versions.items() if found is not None]


@click.command(help=__doc__)
@click.option("--requests", type=click.IntRange(10, 10_000), default=200, show_default=True)
@click.option("--client", "clients", type=click.Choice([*CLIENTS]), multiple=True)
@click.option("--application", "applications", type=click.Choice([*APPLICATIONS]), multiple=True)
def main(requests: int, clients: tuple[str, ...], applications: tuple[str, ...]) -> None:
    began, faults = monotonic(), 0
    print(f"Python {platform.python_version()}, {os.environ.get('GEVENT_LOOP', 'default loop')}")
    asking = _installed(clients or (*CLIENTS,))
    asked = _installed(applications or (*APPLICATIONS,))
    first = None
    for server in SERVERS:
        seen = look(server, asked, asking, requests)
        first = first or seen
        found = [*faults_of(seen, first)]
        faults += len(found)
        calls = sum(map(len, seen.clients.values()))
        print(f"{' '.join(server)} hubs: {calls} things seen by clients, {len(found)} faults")
        for fault in found:
            print(fault if len(fault) < SHOWN else fault[:SHOWN] + " ...", flush=True)
    print(f"{faults} faults, in {monotonic() - began:.0f} s")
    sys.exit(1 if faults or not asking or not asked else 0)


if __name__ == "__main__":
    main()
