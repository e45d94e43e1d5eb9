"""How much of everything: the options of the command, and rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from loadtests.bench.servers.blocking import BLOCK_MICROSECONDS, STALL_MICROSECONDS

from .contenders import Question

#: Rates of the open loops, connections/s. While a hub is blocked, so few that each of a second's
#: connections is one to look at; for the latency as `loadtests.bench` has it.
STALL_RATE: Final = 100
OPEN_RATE: Final = 1000

ORDERED_CONNECTIONS: Final = 800

#: What a hub could do at best, if each of its handlers blocks it: connections/s.
BLOCK_RATE: Final = 1e6 / BLOCK_MICROSECONDS

#: The load goes on for so long before a hub is blocked.
STALL_BEFORE_SECONDS: Final = 1.0

#: Connections before the first round, 16 at a time.
WARM_UP: Final = {Question.STALL: 160, Question.BLOCK: 160, Question.PRICE: 2000}


@dataclass(frozen=True)
class Plan:
    """The numbers of a run."""

    rounds: int = 7
    #: Of order and stall: what is counted there doesn't become better by a median.
    stall_rounds: int = 3
    connections: int = 10_000
    concurrency: int = 64
    open_seconds: float = 4.0
    block_seconds: float = 2.0
    #: How long the load goes on when the hub is back.
    stall_after_seconds: float = 2.5
    seed: int = 0

    def quick(self) -> Plan:
        """Return a plan that only tries whether everything works."""
        return Plan(2, 1, 2000, self.concurrency, 0.5, 0.5, 1.5, self.seed)

    @property
    def stall_seconds(self) -> float:
        return STALL_BEFORE_SECONDS + STALL_MICROSECONDS / 1e6 + self.stall_after_seconds

    def rounds_of(self, question: Question) -> int:
        is_timed = question in (Question.BLOCK, Question.PRICE)
        return self.rounds if is_timed else self.stall_rounds
