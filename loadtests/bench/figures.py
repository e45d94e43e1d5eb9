"""What was measured of each contender, by round, and its ratios to others. Plain data."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Figure:
    """One thing that is measured: its name in the JSON, what people read, its unit."""

    name: str
    title: str
    unit: str = ""
    digits: int = 0


RATE: Final = Figure("rate", "connections/s", "/s")
CPU: Final = Figure("cpu", "CPU a connection", "us", 1)
P50: Final = Figure("p50", "p50", "us")
P99: Final = Figure("p99", "p99", "us")
P999: Final = Figure("p999", "p99.9", "us")
OPEN_P99: Final = Figure("open_p99", "p99 in the open loop", "us")
SERVER_BUSY: Final = Figure("server_busy", "server's CPU", "%")
CLIENT_BUSY: Final = Figure("client_busy", "client's CPU", "%")
ERRORS: Final = Figure("errors", "errors")
KEEP_P50: Final = Figure("keep_p50", "kept alive, p50 of 1 connection", "us")
KEEP_RATE: Final = Figure("keep_rate", "kept alive, requests/s", "/s")
KEEP_CPU: Final = Figure("keep_cpu", "kept alive, CPU a request", "us", 1)
BROWSER_CPU: Final = Figure("browser_cpu", "10 headers, CPU a connection", "us", 1)
KEEP_BROWSER_CPU: Final = Figure(
    "keep_browser_cpu", "kept alive, 10 headers, CPU a request", "us", 1
)
ALONE_CPU: Final = Figure("alone_cpu", "CPU a request without idle connections", "us", 1)
CROWD_CPU: Final = Figure("crowd_cpu", "CPU a request with idle connections", "us", 1)
CROWD: Final = Figure("crowd", "CPU a request, with idle connections by without", "", 3)
CALLS: Final = Figure("calls", "system calls", "", 1)
CLONE_KIB: Final = Figure("clone_kib", "memory a clone", "KiB", 1)
IDLE_KIB: Final = Figure("idle_kib", "memory an idle connection", "KiB", 1)
FAIRNESS: Final = Figure("fairness", "fairness", "", 3)
EXACT: Final = Figure("exact", "exact order")


@dataclass
class Results:
    """Samples of each contender's figures, in the order of the rounds.

    What is measured in the rounds has one sample a round, so sample *i* of two contenders is
    of one minute of one machine: ratios are taken there, and then the median of them. A
    contender that broke has a reason in *failed* and no samples.
    """

    samples: dict[str, dict[Figure, list[float]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, contender: str, figure: Figure, sample: float) -> None:
        self.samples.setdefault(contender, {}).setdefault(figure, []).append(sample)

    def fail(self, contender: str, reason: str) -> None:
        self.failed[contender] = reason
        self.samples.pop(contender, None)

    def of(self, contender: str, figure: Figure) -> list[float]:
        return self.samples.get(contender, {}).get(figure, [])

    def median(self, contender: str, figure: Figure) -> float | None:
        """Return the median, or ``None`` if it was not measured."""
        samples = self.of(contender, figure)
        return statistics.median(samples) if samples else None

    def ratio(self, contender: str, beside: str, figure: Figure) -> float | None:
        """Return the median over the rounds of *contender*'s figure by *beside*'s."""
        pairs = zip(self.of(contender, figure), self.of(beside, figure), strict=False)
        ratios = [one / other for one, other in pairs if other]
        return statistics.median(ratios) if ratios else None


def fairness(counts: list[int]) -> float:
    """Return Jain's index of *counts*: 1 if all are alike, 1/n if one has everything."""
    return sum(counts) ** 2 / (len(counts) * sum(count**2 for count in counts))
