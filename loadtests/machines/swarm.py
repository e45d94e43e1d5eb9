"""locust: a master and workers on hosts of their own, against the balancer."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.lossless.answers import Answer, Promise

from .balancers import Balancer
from .network import ROOT, Host
from .service import GIVE_UP_SECONDS, STREAM, WEB, Kind

__all__ = ["SCENARIOS", "Swarm", "is_installed"]

#: Turns of all clones differ by no more, if the balancer goes round the hosts exactly.
EXACT: Final = ("--balance-max-spread", "1")

#: Of what can't be exact.
FAIR: Final = ("--balance-min-jain", "0.98")


@dataclass(frozen=True)
class Scenario:
    """A locustfile that takes a server which isn't its own: what it loads, its gates and users."""

    file: str
    kind: Kind
    gates: tuple[str, ...] = EXACT
    users: tuple[str, ...] = ()


SCENARIOS: Final = {
    "http": Scenario("http.py", WEB),
    # Each request of a kept connection goes to the next host, and its first alone is a turn.
    "keepalive-http": Scenario("keepalive.py", WEB, (), ("HttpClient",)),
    "balance": Scenario("balance.py", STREAM),
    "tcp": Scenario("tcp.py", STREAM),
    # A connection that is reset before its reply had a turn too, of a clone that isn't known.
    "churn": Scenario("churn.py", STREAM, FAIR),
    "keepalive-tcp": Scenario("keepalive.py", STREAM, EXACT, ("TcpClient",)),
}


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
        scenario = SCENARIOS[name]
        file = ROOT / "loadtests" / "locust" / scenario.file
        locust = (sys.executable, "-m", "locust", "-f", str(file), *scenario.users)
        load = ("--headless", "-u", "24", "-r", "24", "-t", f"{seconds}s", "--only-summary")
        host = scenario.kind.front.format(self._balancer.host.address)
        lead = ("--master", "--expect-workers", str(len(self._workers)), "--host", host)
        is_fair = scenario.gates == EXACT and not self._balancer.is_exact
        gates = ("--max-fail-ratio", "0", *(FAIR if is_fair else scenario.gates))
        follow = ("--worker", "--master-host", self._master.address)
        before = self._master.said.stat().st_size if self._master.said.exists() else 0
        processes = [
            self._master.start(*locust, *lead, *load, *gates),
            *(each.start(*locust, *follow) for each in self._workers),
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
        words = self._master.said.read_bytes()[before:].decode(errors="replace")
        balances = re.findall(r"^.*\d+ turns of \d+ clones: .*$", words, re.MULTILINE)
        if not balances:
            raise RuntimeError(f"locust tells of no balance; {words}")
        return status, balances[-1]
