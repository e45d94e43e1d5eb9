"""How much of everything: the options of the command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

#: Rate of the open loop, connections/s. An eighth of what plain gevent can do: what is
#: measured is how promptly it answers, not how long its queue grows.
OPEN_RATE: Final = 1000


@dataclass(frozen=True)
class Plan:
    """The numbers of a run."""

    rounds: int = 7
    connections: int = 10_000
    concurrency: int = 64
    open_seconds: float = 1.5
    keep_seconds: float = 1.0
    keep_concurrency: int = 16
    memory_repeats: int = 3
    crowd: int = 10_000
    crowd_repeats: int = 5
    seed: int = 0

    def quick(self) -> Plan:
        """Return a plan that only tries whether everything works."""
        return replace(
            self,
            rounds=2,
            connections=2000,
            open_seconds=0.5,
            memory_repeats=1,
            crowd=min(self.crowd, 1000),
            crowd_repeats=1,
        )
