"""What is measured of a contender, beside the figures of the frame. Plain data."""

from __future__ import annotations

from typing import Final

from loadtests.frame.figures import (
    CLIENT_BUSY,
    CPU,
    ERRORS,
    EXACT,
    FAIRNESS,
    OPEN_P99,
    RATE,
    SERVER_BUSY,
    Figure,
)

__all__ = ["CLIENT_BUSY", "CPU", "ERRORS", "EXACT", "FAIRNESS", "OPEN_P99", "RATE", "SERVER_BUSY"]

P50: Final = Figure("p50", "p50", "us")
P99: Final = Figure("p99", "p99", "us")
P999: Final = Figure("p999", "p99.9", "us")
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
