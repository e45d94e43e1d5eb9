"""locust: a master and workers on hosts of their own, against the balancer."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from loadtests.lossless.answers import Answer, Promise

from .balancers import Balancer
from .network import ROOT, Host
from .service import GIVE_UP_SECONDS

__all__ = ["SCENARIOS", "Swarm", "is_installed"]

#: Turns of all clones differ by no more: connections go round the hosts, and in each host round its
#: clones.
EXACT: Final = ("--balance-max-spread", "1")

#: The locustfiles that take a server which isn't their own: how it is addressed, gates and users.
SCENARIOS: Final = {
    "http": ("http", EXACT),
    # Each request of a kept connection goes to the next host, and its first alone is a turn.
    "keepalive-http": ("http", ("HttpClient",)),
    "balance": ("tcp", EXACT),
    "tcp": ("tcp", EXACT),
    # A connection that is reset before its reply had a turn too, of a clone that isn't known.
    "churn": ("tcp", ("--balance-min-jain", "0.98")),
    "keepalive-tcp": ("tcp", (*EXACT, "TcpClient")),
}

PORTS: Final = {"http": 80, "tcp": 7000}


def is_installed() -> bool:
    # It isn't imported: that would patch the process.
    return importlib.util.find_spec("locust") is not None


class Swarm:
    """Runs locustfiles on *master* and *workers*, against *balancer*."""

    def __init__(self, balancer: Balancer, master: Host, workers: Sequence[Host]) -> None:
        self._balancer: Final = balancer
        self._master: Final = master
        self._workers: Final = workers

    def run(self, names: Sequence[str], seconds: int) -> Answer:
        promises: list[Promise] = []
        notes = []
        for name in names:
            status, balance = self._run(name, seconds)
            promises.append(Promise(f"{name}: exit status", status))
            notes.append((name, balance))
        question = f"Do locust's gates hold through {self._balancer.version()}?"
        return Answer(question, promises, notes)

    def _run(self, name: str, seconds: int) -> tuple[int, str]:
        scheme, options = SCENARIOS[name]
        file = str(Path("loadtests", "locust", f"{name.partition('-')[0]}.py"))
        locust = (sys.executable, "-m", "locust", "-f", str(ROOT / file))
        host = f"{scheme}://{self._balancer.host.address}:{PORTS[scheme]}"
        load = ("--headless", "-u", "24", "-r", "24", "-t", f"{seconds}s", "--only-summary")
        load += ("--max-fail-ratio", "0")
        # A worker passes over what is the master's: gates. Users have to be known to both.
        users = [each for each in options if each.endswith("Client")]
        lead = ("--master", "--expect-workers", str(len(self._workers)), "--host", host)
        processes = [
            self._master.start(*locust, *lead, *load, *options),
            *(
                each.start(*locust, "--worker", "--master-host", self._master.address, *users)
                for each in self._workers
            ),
        ]
        try:
            status = processes[0].wait(GIVE_UP_SECONDS + seconds)
            for process in processes[1:]:
                process.wait(GIVE_UP_SECONDS)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"locust doesn't end; {self._master.last_words()}") from None
        finally:
            for process in processes:
                process.kill()
                process.wait()
        words = self._master.last_words(60)
        balances = re.findall(r"^.*\d+ turns of \d+ clones: .*$", words, re.MULTILINE)
        if not balances:
            raise RuntimeError(f"locust tells of no balance; {words}")
        return status, balances[-1]
