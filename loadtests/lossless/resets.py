"""What is left of clients that reset their connections, and are the others served?"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Final

from .answers import Answer, Promise, Tell
from .process import Client, Server
from .words import KINDS

QUESTION: Final = "What is left of clients that reset their connections?"

#: So long, at most, for the last handlers to end, in seconds.
SETTLE_SECONDS: Final = 5.0

#: Before descriptors are counted: what the first connections bring stays.
WARM_UP: Final = 20

#: So many in one order, so that each has its answer in time.
PART: Final = 5_000


@dataclass(frozen=True)
class Resets:
    """*resets* of them among *good* ones, half of each with either server."""

    name: ClassVar[str] = "resets"

    resets: int = 50_000
    good: int = 5_000
    clones: int = 4
    hubs: int = 1
    #: How long a handler works; a client that resets during it waits as long.
    handler_seconds: float = 0.002

    @property
    def steps(self) -> int:
        return len(KINDS)

    def run(self, tell: Tell) -> Answer:
        promises: list[Promise] = []
        notes: list[tuple[str, str]] = []
        resets, good = self.resets // len(KINDS), self.good // len(KINDS)
        with Server() as server, Client() as client:
            for kind, title in KINDS.items():
                tell(f"{self.name}: {title}")
                port = server.ask(
                    "open",
                    kind=kind,
                    clones=self.clones,
                    hubs=self.hubs,
                    seconds=self.handler_seconds,
                )
                self._reset(client, port, kind, WARM_UP, WARM_UP)
                before, earlier = _settled(server, 0), server.tracebacks()
                began = time.monotonic()
                fates = self._reset(client, port, kind, resets, good)
                seconds = time.monotonic() - began
                left = _settled(server, before) - before
                promises += [
                    Promise(f"{title}: good ones not served", good - fates["good"]),
                    Promise(f"{title}: descriptors left", left),
                    Promise(f"{title}: tracebacks", server.tracebacks() - earlier),
                ]
                accepted = sum(server.ask("accepted"))
                notes.append((f"{title}: accepted, of all", f"{accepted:,}"))
                notes.append((f"{title}: seconds", f"{seconds:.1f}"))
                others = {fate: count for fate, count in fates.items() if fate != "good"}
                if others:
                    notes.append((f"{title}: fates", str(others)))
                server.ask("close")
        question = f"{QUESTION} {self.resets:,}, among {self.good:,} good ones"
        return Answer(question, promises, notes)

    def _reset(self, client: Client, port: int, kind: str, resets: int, good: int) -> Counter[str]:
        fates: Counter[str] = Counter()
        parts = -(-resets // PART)
        for part in range(parts):
            fates += Counter(
                client.ask(
                    "reset",
                    port=port,
                    resets=_share(resets, part, parts),
                    good=_share(good, part, parts),
                    is_http=kind == "http",
                    seconds=self.handler_seconds / 2,
                )
            )
        return fates


def _share(count: int, part: int, parts: int) -> int:
    return (part + 1) * count // parts - part * count // parts


def _settled(server: Server, expected: int) -> int:
    """Return how many descriptors *server* has, when they are as *expected*, or no more less."""
    deadline = time.monotonic() + SETTLE_SECONDS
    count, calm = server.descriptors(), 0
    while count > expected and time.monotonic() < deadline:
        time.sleep(0.02)
        before, count = count, server.descriptors()
        calm = calm + 1 if count == before else 0
        if not expected and calm == 5:
            break
    return count
