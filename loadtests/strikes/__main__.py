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
import random
import select
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import IO, Any

import click

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
NOTHING = '{"faults": [], "lines": []}'


@click.command(help=__doc__)
@click.option("--signals", type=click.IntRange(1, 100_000), default=500, show_default=True)
@click.option("--hubs", type=click.IntRange(1, 8), default=1, show_default=True)
@click.option("--seed", type=int, help="Of all that is chosen. Printed if not given.")
@click.option("--server", type=click.Choice([*DEAF]), default="glb", show_default=True)
@click.option(
    "--anywhere", is_flag=True, help="Strike gevent's loop as well where it is Python: on libuv."
)
@click.option("--lines", is_flag=True, help="Print each line that was struck.")
def main(
    signals: int, hubs: int, seed: int | None, server: str, anywhere: bool, lines: bool
) -> None:
    if not sys.platform.startswith("linux"):
        raise click.ClickException(f"needs Linux (epoll, /proc), this is {sys.platform}")
    if seed is None:
        seed = random.SystemRandom().randrange(10_000)
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
    with tempfile.TemporaryFile("w+") as errors, open(told, "rb"), open(tells, "wb"):
        process = subprocess.Popen(
            [*SERVER, *plan, str(tells)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            pass_fds=[tells],
            text=True,
        )
        try:
            clients, found = _strike(process, told, signals, seed, DEAF[plan[0]])
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()
        errors.seek(0)
        said = errors.read()
    _tell(clients, found)
    if lines:
        for number, line in enumerate(found["lines"], 1):
            print(f"struck {number}: {line}")
    if process.returncode:
        clients.faults.append(f"the server has ended with status {process.returncode}")
    return [*clients.faults, *found["faults"], *_strange(said)]


def _strike(
    process: subprocess.Popen[str], told: int, signals: int, seed: int, deaf: int
) -> tuple[Clients, dict[str, Any]]:
    # What the clients have seen, and what the server has found in the end.
    asks, answers = process.stdin, process.stdout
    assert asks is not None and answers is not None, "they are pipes"
    ports = {Kind(kind): port for kind, port in json.loads(answers.readline()).items()}
    clients = Clients(ports, process.pid, told, seed)
    clients.warm_up(WARM_UP_SECONDS)
    _say(asks, "strike")
    answers.readline()
    try:
        clients.strike(signals, deaf)
        clients.leave()
        return clients, json.loads(_end(process))
    except (ConnectionRefusedError, BrokenPipeError):
        clients.faults.append(f"it doesn't listen after {clients.signals} signals")
    return clients, json.loads(NOTHING)


def _end(process: subprocess.Popen[str]) -> str:
    # A signal that strikes anything but the main greenlet is lost.
    answers = process.stdout
    assert answers is not None, "it is a pipe"
    until = monotonic() + END_SECONDS
    while not select.select([answers], [], [], 0.2)[0] and monotonic() < until:
        process.send_signal(LAST_SIGNAL)
    if answers.readline() != "over\n":
        raise BrokenPipeError
    # Read before it is waited for: it is more than a pipe holds.
    watchdog = threading.Timer(END_SECONDS, process.kill)
    watchdog.start()
    said = answers.readline()
    process.wait()
    watchdog.cancel()
    return said or NOTHING


def _say(asks: IO[str], word: str) -> None:
    asks.write(f"{word}\n")
    asks.flush()


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
