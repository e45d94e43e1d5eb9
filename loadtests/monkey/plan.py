"""How much of everything: the options of the command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Connections at a time. So few that the kernel's queues stay short; so many that a server finds
#: several ready when it wakes, as with a load.
CONCURRENCY: Final = 16

ORDERED_CONNECTIONS: Final = 200


@dataclass(frozen=True)
class Plan:
    """The numbers of a run."""

    rounds: int = 9
    #: Of each contender in a round, in all its turns.
    connections: int = 4000
    #: Of each contender in a round.
    turns: int = 20
    seed: int = 0
