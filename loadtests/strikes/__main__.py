"""Does a server go on after signals whose handlers raise?

    python -m loadtests.strikes --signals 500 --hubs 4 --seed 1

A process serves streams and HTTP; signals strike its main thread at random moments, and their
handler raises. After each, new clients are to be served within two seconds; each client reads its
own words or is closed; no thread closes a descriptor of another's; and in the end all is as it was.
It prints what it found; the exit status is 1 if anything was not so.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections import Counter
from time import monotonic
from typing import Any

import click

from loadtests.frame.command import seed_option, wants_linux
from loadtests.frame.process import Process, ProcessError

from .clients import Clients
from .server import LAST_SIGNAL
from .words import Kind

#: The servers' process in a run.
SERVER = (sys.executable, "-m", "loadtests.strikes.server")

#: So many faults are printed in full.
SHOWN = 10

#: A server that was deaf so often is not asked again. One that is deaf once stays so, as a rule.
DEAF = {"glb": 3, "gevent": 1}

#: On libuv, when another hub wakes one whose watcher was struck and is not started again yet.
GEVENT_SAYS = (
    "WARNING: gevent: Unhandled error with no watcher",
    "RuntimeError: cannot use from_handle() on NULL pointer",
)

WARM_UP_SECONDS = 0.5
END_SECONDS = 60.0

#: What is found of a server that says nothing.
NOTHING: dict[str, Any] = {"faults": [], "lines": []}


@click.command(help=__doc__)
@click.option("--signals", type=click.IntRange(1, 100_000), default=500, show_default=True)
@click.option("--hubs", type=click.IntRange(1, 8), default=1, show_default=True)
@seed_option()
@click.option("--server", type=click.Choice([*DEAF]), default="glb", show_default=True)
@click.option(
    "--anywhere", is_flag=True, help="Strike gevent's loop as well where it is Python: on libuv."
)
@click.option("--lines", is_flag=True, help="Print each line that was struck.")
def main(signals: int, hubs: int, seed: int, server: str, anywhere: bool, lines: bool) -> None:
    wants_linux("epoll, /proc")
    loop = os.environ.get("GEVENT_LOOP", "gevent's default loop")
    print(
        f"Python {platform.python_version()}, {loop}, {server}; {hubs} hubs, seed {seed}",
        flush=True,
    )
    where = "anywhere" if anywhere else "not in the loop"
    faults = run(signals, seed, (server, str(hubs), where), lines)
    print(f"{len(faults)} faults")
    for fault in faults[:SHOWN]:
        print(fault[:200])
    sys.exit(1 if faults else 0)


def run(signals: int, seed: int, plan: tuple[str, str, str], lines: bool) -> list[str]:
    """Print what was seen, and return the faults. *plan* is for the server's process."""
    told, tells = os.pipe()
    with (
        open(told, "rb"),
        open(tells, "wb"),
        Process([*SERVER, *plan, str(tells)], pass_fds=[tells]) as process,
    ):
        clients, found = _strike(process, told, signals, seed, DEAF[plan[0]])
        try:
            status = process.status(END_SECONDS)
        except ProcessError as error:
            clients.faults.append(str(error))
            status = 0
        said = process.said()
    _tell(clients, found)
    if lines:
        for number, line in enumerate(found["lines"], 1):
            print(f"struck {number}: {line}")
    if status:
        clients.faults.append(f"the server has ended with status {status}")
    return [*clients.faults, *found["faults"], *_strange(said)]


def _strike(
    process: Process, told: int, signals: int, seed: int, deaf: int
) -> tuple[Clients, dict[str, Any]]:
    # What the clients have seen, and what the server has found in the end.
    ports = {Kind(kind): port for kind, port in json.loads(process.line(END_SECONDS)).items()}
    clients = Clients(ports, process.pid, told, seed)
    clients.warm_up(WARM_UP_SECONDS)
    process.tell("strike")
    process.line(END_SECONDS)
    try:
        clients.strike(signals, deaf)
        clients.leave()
        return clients, _end(process)
    except (ConnectionRefusedError, ProcessError):
        clients.faults.append(f"it doesn't listen after {clients.signals} signals")
    return clients, NOTHING


def _end(process: Process) -> dict[str, Any]:
    # A signal that strikes anything but the main greenlet is lost.
    until = monotonic() + END_SECONDS
    while True:
        try:
            process.line(0.2)  # it is over
            break
        except ProcessError:
            if monotonic() > until or not process.is_running():
                raise
            process.signal(LAST_SIGNAL)
    try:
        found: dict[str, Any] = json.loads(process.line(END_SECONDS))
    except ProcessError:
        return NOTHING
    return found


def _strange(errors: str) -> list[str]:
    # What was said beside tracebacks of what struck.
    said = Counter(line for line in errors.splitlines() if not line.startswith((" ", "Traceback")))
    for line in GEVENT_SAYS:
        if times := said.pop(line, 0):
            print(f"gevent said {times} times: {line}")
    return [
        f"said {times} times: {line}"
        for line, times in said.items()
        if line and "StruckError" not in line
    ]


def _tell(clients: Clients, found: dict[str, Any]) -> None:
    where = ", ".join(f"{count} in {place}" for place, count in found.get("where", {}).items())
    spared = f"; gevent's loop was spared {found['spared']} times" if found.get("spared") else ""
    print(f"{clients.signals} signals struck: {where}{spared}")
    if where:
        caught = ", ".join(f"{count} {kind}" for kind, count in found["caught"].items()) or "none"
        print(f"reached the main greenlet: {caught}; {found['reported']} were reported")
    counts = ", ".join(f"{count:,} {how}" for how, count in sorted(clients.counts.items()))
    print(f"clients: {counts}; the longest wait was {1000 * clients.longest:.0f} ms")
    print(f"served again after a signal: {1000 * clients.longest_after:.0f} ms at most")
    if clients.deaf_after:
        print(f"deaf after so many signals: {clients.deaf_after}")


if __name__ == "__main__":
    main()
