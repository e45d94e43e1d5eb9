"""What is measured of a contender, beside the figures of the frame."""

from __future__ import annotations

from typing import Final

from loadtests.frame.figures import (
    CLIENT_BUSY,
    CPU,
    ERRORS,
    EXACT,
    OPEN_P99,
    RATE,
    SERVER_BUSY,
    Figure,
)

__all__ = ["CLIENT_BUSY", "CPU", "ERRORS", "EXACT", "OPEN_P99", "RATE", "SERVER_BUSY", "spread"]

SPREAD: Final = Figure("spread", "most less fewest connections of a clone")
LONGEST_WAIT: Final = Figure("longest_wait", "longest wait while a hub is blocked", "ms", 1)
LOST: Final = Figure("lost", "connections without an answer")
WAITED_FOR_IT: Final = Figure("waited_for_it", "made meanwhile, and answered by the blocked hub")
TURNS_AFTER: Final = Figure("turns_after", "turns of the hub that was blocked, afterwards")
SHARE_AFTER: Final = Figure("share_after", "the same, of what a hub ought to have", "", 2)
SPREAD_AFTER: Final = Figure("spread_after", "most less fewest turns of a clone, afterwards")
OPEN_P50: Final = Figure("open_p50", "p50 in the open loop", "us")
OPEN_CPU: Final = Figure("open_cpu", "CPU a connection in the open loop", "us", 1)


def spread(counts: list[int]) -> int:
    """Return by how much *counts* differ: the turns of clones, by 1 at most if they are exact."""
    return max(counts) - min(counts)
