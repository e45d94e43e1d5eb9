"""The rolling deploy, and what clients saw of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from loadtests.lossless.answers import Answer, Promise

from .balancers import Balancer
from .network import Host
from .service import GIVE_UP_SECONDS, WEB, Service

__all__ = ["Deploy"]

#: In the first quarter of slow start a host gets at most this part of an equal share. An eighth is
#: what a weight that rises evenly comes to; without slow start it is 1.
SLOW_START_SHARE: Final = 0.8


@dataclass(frozen=True)
class Reply:
    """When it came, in seconds, and from where."""

    when: float
    host: str
    process: int


@dataclass
class Seen:
    """What all clients saw."""

    fates: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    replies: list[Reply] = field(default_factory=list)

    def add(self, found: Any) -> None:
        self.fates.update(found["fates"])
        self.seconds = max(self.seconds, found["seconds"])
        self.replies += [Reply(*each) for each in found["replies"]]

    def processes(self) -> Counter[str]:
        """Return how many processes of each host have replied."""
        return Counter(host for host, _ in {(each.host, each.process) for each in self.replies})

    def share(self, process: int, seconds: float) -> float:
        """Return what part of an equal share *process* had in its first *seconds*."""
        # Without a reply it has no share: that one is missing is a promise of its own.
        first = min((each.when for each in self.replies if each.process == process), default=0)
        own = [
            each.process == process for each in self.replies if first <= each.when < first + seconds
        ]
        return sum(own) / len(own) * len(self.processes()) if own else 0.0


class Deploy:
    """Replaces each of *services*, one after the other, while *clients* put load on *balancer*."""

    def __init__(
        self,
        services: Sequence[Service],
        balancer: Balancer,
        clients: Sequence[Host],
        requests: int,
        rate: float,
    ) -> None:
        self._services: Final = services
        self._balancer: Final = balancer
        self._clients: Final = clients
        self._requests: Final = requests
        self._rate: Final = rate
        self._statuses: Final[list[int]] = []
        self._started: Final[list[int]] = []

    def run(self) -> Answer:
        """Deploy all again and again, until so many requests have been due: at least once."""
        seen = Seen()
        rounds = 0
        with self._load(seen):
            began = time.monotonic()
            while rounds == 0 or (time.monotonic() - began) * self._rate < self._requests:
                for service in self._services:
                    self._replace(service)
                rounds += 1
        return self._answer(seen, rounds)

    def _replace(self, service: Service) -> None:
        self._statuses.append(service.stop())
        service.start()
        service.wait_ready()
        self._balancer.wait_up(WEB, [service.host])
        if not self._balancer.tells_weight:
            time.sleep(self._balancer.slow_start)
        self._started.append(service.pid)

    @contextmanager
    def _load(self, seen: Seen) -> Iterator[None]:
        program = (sys.executable, "-m", f"{__package__}.clients", self._balancer.host.address)
        rate = str(self._rate / len(self._clients))
        processes = [host.start(*program, rate, is_asked=True) for host in self._clients]
        try:
            for host, process in zip(self._clients, processes, strict=True):
                assert process.stdout is not None
                if process.stdout.readline() != b"ready\n":
                    raise RuntimeError(f"clients ended; {host.last_words()}")
            yield
        finally:
            for host, process in zip(self._clients, processes, strict=True):
                try:
                    out, _ = process.communicate(timeout=GIVE_UP_SECONDS)  # ends its input
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    out, _ = process.communicate()
                if not out:
                    raise RuntimeError(f"clients ended; {host.last_words()}")
                seen.add(json.loads(out))

    def _answer(self, seen: Seen, rounds: int) -> Answer:
        lost = {fate: count for fate, count in seen.fates.items() if fate != "good"}
        processes = seen.processes()
        early = self._balancer.slow_start / 4
        shares = [seen.share(process, early) for process in self._started]
        promises = [
            Promise("requests that failed", sum(lost.values())),
            Promise("requests", seen.fates.total(), self._requests, is_floor=True),
            Promise(
                "processes of a host that replied",
                min(processes[service.host.name] for service in self._services),
                rounds + 1,
                is_floor=True,
            ),
            Promise("ends with a status but 0", sum(status != 0 for status in self._statuses)),
            Promise("part of an equal share as slow start begins", max(shares), SLOW_START_SHARE),
        ]
        notes = [
            ("requests a second", f"{seen.fates.total() / seen.seconds:,.0f}"),
            ("seconds of a deploy of all", f"{seen.seconds / rounds:.1f}"),
            *((f"failed: {fate}", f"{count:,}") for fate, count in lost.items()),
        ]
        question = (
            f"Is a request lost in a rolling deploy of all hosts behind {self._balancer.version()}?"
        )
        return Answer(question, promises, notes)
