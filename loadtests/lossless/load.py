"""A load in the meantime, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from .answers import Promise
from .process import ANSWER_SECONDS, Client
from .words import percentile

__all__ = ["Change", "Load", "Visit", "loaded", "spread"]

#: Nothing changes before so many have been served.
WARM_UP: Final = 20


@dataclass(frozen=True)
class Visit:
    """One connection: when it came and when it was over, in ns; its fate, and its server."""

    came: int
    left: int
    fate: str
    generation: int
    clone: int


@dataclass(frozen=True)
class Change:
    """A change of a server, with which *generation* began; in ns."""

    began: int
    ended: int
    generation: int = 0

    @property
    def ms(self) -> float:
        return (self.ended - self.began) / 1e6


@dataclass
class Load:
    """What became of one load."""

    visits: Sequence[Visit] = field(default=(), repr=False)

    def fates(self) -> Counter[str]:
        return Counter(visit.fate for visit in self.visits)

    def stale(self, changes: Sequence[Change]) -> int:
        """Count the clients that came after a change was over, and got the handler of before."""
        return sum(
            visit.fate == "good"
            and any(
                visit.came > change.ended and visit.generation < change.generation
                for change in changes
            )
            for visit in self.visits
        )

    def old_and_new(self, changes: Sequence[Change]) -> tuple[int, int]:
        """Count the clients during a change, by the handler that replied."""
        old = new = 0
        for change in changes:
            for visit in self.visits:
                if visit.came < change.ended and visit.left > change.began:
                    old += visit.generation == change.generation - 1
                    new += visit.generation == change.generation
        return old, new

    def promises(self, where: str) -> list[Promise]:
        """Return that none was lost."""
        fates = self.fates()
        others = sum(fates.values()) - fates["good"] - fates["refused"] - fates["reset"]
        return [
            Promise(f"{where}: connections reset", fates["reset"]),
            Promise(f"{where}: refused", fates["refused"]),
            Promise(f"{where}: without a good reply, otherwise", others),
        ]

    def notes(self, where: str) -> list[tuple[str, str]]:
        waits = [(visit.left - visit.came) / 1e6 for visit in self.visits]
        others = {fate: count for fate, count in self.fates().items() if fate != "good"}
        percentiles = ", ".join(f"{percentile(waits, each) or 0:.1f}" for each in (50, 99, 100))
        notes = [
            (f"{where}: connections", f"{len(self.visits):,}"),
            (f"{where}: p50, p99, longest, ms", percentiles),
        ]
        return [*notes, (f"{where}: fates", f"{others}")] if others else notes


@contextmanager
def loaded(client: Client, port: int | str, rate: float, *, is_http: bool) -> Iterator[Load]:
    """Have *client* put a load on *port* in the block; what became of it is there after it."""
    load = Load()
    client.ask("arrive", port=port, rate=rate, is_http=is_http)
    client.ask("come", count=WARM_UP)
    yield load
    load.visits = [Visit(*each) for each in client.ask("depart", within=ANSWER_SECONDS)]


def spread(before: Sequence[int], after: Sequence[int]) -> int:
    """Return by how much the turns differ that clones had: by 1 at most if they are exact."""
    turns = [late - early for early, late in zip(before, after, strict=True)]
    return max(turns) - min(turns)
