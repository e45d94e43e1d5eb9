"""Is a connection lost while clones come and go?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from .answers import Promise
from .kinds import Found, Loaded, Pair
from .load import spread


@dataclass(frozen=True)
class Resize(Loaded):
    """*times* from *few* clones to *many* and back, under *rate* connections/s."""

    name: ClassVar[str] = "resize"

    times: int = 20
    few: int = 1
    many: int = 16
    pause_seconds: float = 0.25

    def options(self) -> dict[str, Any]:
        return {**super().options(), "clones": max(self.few, self.hubs)}

    def question(self) -> str:
        few = max(self.few, self.hubs)
        return (
            f"Is a connection lost while clones come and go? {few} -> {self.many} -> {few}, "
            f"{self.times} times, {self.rate:g}/s"
        )

    def ask(self, pair: Pair, title: str, found: Found) -> None:
        spreads, seconds = [], []

        def resize(clones: int) -> Any:
            began = time.monotonic()
            counts = pair.server.ask("resize", clones=clones)
            seconds.append(time.monotonic() - began)
            time.sleep(self.pause_seconds)
            return counts

        with self.loaded(pair, title, found):
            for _ in range(self.times):
                _, then = resize(self.many)
                # What each was given from when there were many of them until there are few.
                before, _ = resize(max(self.few, self.hubs))
                spreads.append(spread(then, before))
        found.promises.append(
            Promise(f"{title}: turns of {self.many} clones differ by", max(spreads), 1)
        )
        found.notes.append((f"{title}: the longest resize, ms", f"{max(seconds) * 1e3:.0f}"))
