"""Is a connection lost while the handlers of a server are replaced, again and again?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from .answers import Promise
from .kinds import Found, Loaded, Pair
from .load import Change


@dataclass(frozen=True)
class Rolls(Loaded):
    """*rolls* of *clones*, under *rate* connections/s of which each has a handler for a while."""

    name: ClassVar[str] = "rolls"

    rolls: int = 20

    def question(self) -> str:
        return (
            f"Is a connection lost while handlers are rolled? {self.rolls} rolls of {self.clones} "
            f"clones, {self.rate:g}/s"
        )

    def ask(self, pair: Pair, title: str, found: Found) -> None:
        changes = []
        with self.loaded(pair, title, found) as load:
            for number in range(1, self.rolls + 1):
                time.sleep(self.pause_seconds)
                changes.append(Change(**pair.server.ask("roll"), generation=number))
            time.sleep(self.pause_seconds)
        accepted = pair.server.ask("accepted")
        old, new = load.old_and_new(changes)
        slowest = max(change.ms for change in changes)
        found.promises += [
            Promise(f"{title}: made after a roll, old handler's", load.stale(changes)),
            Promise(f"{title}: clones' turns differ by", max(accepted) - min(accepted), 1),
        ]
        found.notes += [
            (f"{title}: during rolls, old and new handler's", f"{old:,}, {new:,}"),
            (f"{title}: the longest roll, ms", f"{slowest:.0f}"),
        ]
