"""All scenarios, by name; and what tries them in a second or two each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .answers import Scenario
from .drain import Drain
from .exhaustion import Exhaustion
from .memory import Memory
from .resets import Resets
from .resize import Resize
from .rolls import Rolls
from .silent import Silent
from .takeover import Takeover

__all__ = ["SCENARIOS", "Measure", "all_scenarios"]


@dataclass(frozen=True)
class Measure:
    """How much of everything a scenario does: in *full*, or *quick*, to try it."""

    full: Scenario
    quick: Scenario


def _all(hubs: int) -> tuple[Measure, ...]:
    return (
        Measure(
            Rolls(hubs=hubs),
            Rolls(rolls=2, hubs=hubs, rate=200, handler_seconds=0.005, pause_seconds=0.05),
        ),
        Measure(
            Resize(hubs=hubs),
            Resize(times=2, hubs=hubs, rate=200, handler_seconds=0.005, pause_seconds=0.05),
        ),
        Measure(
            Takeover(hubs=hubs),
            Takeover(
                times=2,
                hubs=hubs,
                rate=200,
                handler_seconds=0.005,
                pause_seconds=0.05,
                kept=10,
                kept_pause_seconds=0.02,
            ),
        ),
        Measure(
            Drain(hubs=hubs),
            Drain(slow=10, slow_seconds=0.1, idle=20, hubs=hubs, timeout=2, others=()),
        ),
        Measure(Resets(hubs=hubs), Resets(resets=200, good=20, hubs=hubs)),
        Measure(
            Silent(hubs=hubs),
            Silent(
                rounds=1,
                silent=50,
                rate=100,
                windows=1,
                seconds=0.3,
                deadline=1,
                hubs=hubs,
                most_ratio=100,
                slack_seconds=1,
            ),
        ),
        Measure(Exhaustion(hubs=hubs), Exhaustion(rounds=3, clients=30, descriptors=15, hubs=hubs)),
        Measure(Memory(hubs=hubs), Memory(connections=2000, first=500, concurrency=16, hubs=hubs)),
    )


def all_scenarios(hubs: int = 1) -> dict[str, Measure]:
    """Return them, with servers on so many *hubs*."""
    return {each.full.name: each for each in _all(hubs)}


#: Their names, in order.
SCENARIOS: Final = tuple(all_scenarios())
