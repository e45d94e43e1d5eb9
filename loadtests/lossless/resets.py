"""What is left of clients that reset their connections, and are the others served?"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from .answers import Promise
from .kinds import Found, OfEachKind, Pair
from .process import Server
from .words import KINDS

QUESTION: Final = "What is left of clients that reset their connections?"

#: So long, at most, for the last handlers to end, in seconds.
SETTLE_SECONDS: Final = 5.0

#: Before descriptors are counted: what the first connections bring stays.
WARM_UP: Final = 20

#: So many in one order, so that each has its answer in time.
PART: Final = 5_000


@dataclass(frozen=True)
class Resets(OfEachKind):
    """*resets* of them among *good* ones, half of each with either server."""

    name: ClassVar[str] = "resets"

    resets: int = 50_000
    good: int = 5_000
    #: How long a handler works; a client that resets during it waits as long.
    handler_seconds: float = 0.002

    def options(self) -> dict[str, Any]:
        return {**super().options(), "seconds": self.handler_seconds}

    def question(self) -> str:
        return f"{QUESTION} {self.resets:,}, among {self.good:,} good ones"

    def ask(self, pair: Pair, title: str, found: Found) -> None:
        server = pair.server
        good = self.good // len(KINDS)
        self._reset(pair, WARM_UP, WARM_UP)
        before, earlier = _settled(server, 0), server.tracebacks()
        began = time.monotonic()
        fates = self._reset(pair, self.resets // len(KINDS), good)
        seconds = time.monotonic() - began
        left = _settled(server, before) - before
        found.promises += [
            Promise(f"{title}: good ones not served", good - fates["good"]),
            Promise(f"{title}: descriptors left", left),
            Promise(f"{title}: tracebacks", server.tracebacks() - earlier),
        ]
        accepted = sum(server.ask("accepted"))
        found.notes.append((f"{title}: accepted, of all", f"{accepted:,}"))
        found.notes.append((f"{title}: seconds", f"{seconds:.1f}"))
        others = {fate: count for fate, count in fates.items() if fate != "good"}
        if others:
            found.notes.append((f"{title}: fates", str(others)))

    def _reset(self, pair: Pair, resets: int, good: int) -> Counter[str]:
        fates: Counter[str] = Counter()
        parts = -(-resets // PART)
        for part in range(parts):
            fates += Counter(
                pair.client.ask(
                    "reset",
                    port=pair.port,
                    resets=_share(resets, part, parts),
                    good=_share(good, part, parts),
                    is_http=pair.is_http,
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
