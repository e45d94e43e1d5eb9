"""What becomes of requests in flight, and of idle connections, when a server stops?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from loadtests.frame.sheet import Table

from .answers import Answer, Promise, Tell
from .process import ANSWER_SECONDS, Client, Server

QUESTION: Final = (
    "What becomes of requests in flight, and of idle connections, when a server stops?"
)

GLB: Final = "glb"
OTHERS: Final = ("gevent with a pool", "gevent")

#: What there is to be said of a connection, in the order of the columns.
TRANSPORTS: Final = {False: "HTTP", True: "HTTPS"}


@dataclass(frozen=True)
class Fates:
    """What became of the connections of one server, which ended with its process."""

    slow: Mapping[str, int]
    idle: Mapping[str, int]
    #: From the last reply until `stop` returned, and from its call.
    seconds_after: float
    seconds: float

    @property
    def good(self) -> int:
        return sum(count for fate, count in self.slow.items() if fate.startswith("good"))

    def row(self, title: str) -> tuple[str, str, str, str, str, str]:
        others = [
            f"{count:,} requests {fate}"
            for fate, count in self.slow.items()
            if not fate.startswith("good")
        ]
        others += [
            f"{count:,} idle {fate}" for fate, count in self.idle.items() if fate != "closed"
        ]
        return (
            title,
            f"{self.good:,}",
            f"{self.slow.get('good, and told', 0):,}",
            f"{self.idle.get('closed', 0):,}",
            f"{self.seconds:.2f}",
            ", ".join(others),
        )


@dataclass(frozen=True)
class Drain:
    """``stop(drain=True)`` with *slow* requests in flight, of *slow_seconds*, and *idle* others.

    Beside it gevent's ``stop``. Each server's process ends when that returns, as programs do.
    """

    name: ClassVar[str] = "drain"

    slow: int = 200
    slow_seconds: float = 0.5
    idle: int = 500
    clones: int = 4
    hubs: int = 1
    #: The argument of `stop`. Handlers of gevent's in a pool have as long, idle ones too.
    timeout: float = 5.0
    after_max_seconds: float = 1.0
    #: The servers that stop beside it.
    others: Sequence[str] = OTHERS

    @property
    def steps(self) -> int:
        return len(TRANSPORTS) * (1 + len(self.others))

    def run(self, tell: Tell) -> Answer:
        promises: list[Promise] = []
        notes: list[tuple[str, str]] = []
        rows = []
        details: dict[str, Any] = {}
        for is_tls, title in TRANSPORTS.items():
            for by in (GLB, *self.others):
                tell(f"{self.name}: {by}, {title}")
                fates = self._end(by, is_tls)
                rows.append(fates.row(f"{by}, {title}"))
                details[f"{by}, {title}"] = {"slow": dict(fates.slow), "idle": dict(fates.idle)}
                if by == GLB:
                    promises += self._promises(title, fates)
                    notes.append((f"{title}: stop took, s", f"{fates.seconds:.2f}"))
        head = ("who stops", "good replies", "told close", "clean closes", "s", "others")
        comparison = Table("Beside gevent's stop", head, rows) if self.others else None
        question = (
            f"{QUESTION} {self.slow:,} of {self.slow_seconds:g} s in flight, {self.idle:,} idle"
        )
        return Answer(question, promises, notes, comparison, {"fates": details})

    def _promises(self, title: str, fates: Fates) -> list[Promise]:
        clean = "closed, with close_notify" if title == TRANSPORTS[True] else "closed by EOF"
        told = fates.slow.get("good, and told", 0)
        return [
            Promise(f"{title}: good replies to requests in flight", fates.good, self.slow, True),
            Promise(f"{title}: that tell Connection: close", told, self.slow, True),
            Promise(
                f"{title}: idle ones {clean}", fates.idle.get("closed", 0), self.idle, is_floor=True
            ),
            Promise(
                f"{title}: s from the last reply to the end of stop",
                fates.seconds_after,
                self.after_max_seconds,
            ),
        ]

    def _end(self, by: str, is_tls: bool) -> Fates:
        with Client() as client:
            with Server() as server:
                port = server.ask(
                    "open",
                    kind="http",
                    by=by,
                    clones=self.clones,
                    hubs=self.hubs,
                    is_tls=is_tls,
                    slow_seconds=self.slow_seconds,
                )
                client.ask("hold", port=port, idle=self.idle, slow=self.slow, is_tls=is_tls)
                end = server.ask(
                    "end",
                    after=self.slow,
                    timeout=self.timeout,
                    within=2 * self.timeout + ANSWER_SECONDS,
                )
            seen = client.ask("fates", within=2 * ANSWER_SECONDS)
        return Fates(
            seen["slow"],
            seen["idle"],
            (end["ended"] - end["last_reply"]) / 1e9,
            (end["ended"] - end["began"]) / 1e9,
        )
