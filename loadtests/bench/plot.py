"""The results as one picture."""

from __future__ import annotations

import pathlib
from typing import Any

from loadtests.frame.plot import bars, draw

from . import figures
from .plan import OPEN_RATE
from .report import Report


def plot(report: Report, file: pathlib.Path) -> None:
    """Draw bars of the medians, with lines from the least round to the greatest."""
    results = report.results
    tcp = [one for one in report.contenders if not one.is_http]
    http = [one for one in report.contenders if one.is_http]

    def fill(axes: Any) -> None:
        bars(axes[0][0], results, tcp, figures.RATE, "connections/s (more is better)")
        bars(axes[0][1], results, tcp, figures.CPU, "server's CPU a connection, us")
        # One bad moment of the machine is a hundred times the median here: hence the logarithm.
        title = f"p99 at {OPEN_RATE:,} connections/s, us"
        bars(axes[0][2], results, tcp, figures.OPEN_P99, title, log=True)
        bars(axes[1][0], results, http, figures.CPU, "HTTP: server's CPU a connection, us")
        bars(axes[1][1], results, http, figures.KEEP_CPU, "HTTP kept alive: CPU a request, us")
        title = "HTTP kept alive, 10 headers: CPU, us"
        bars(axes[1][2], results, http, figures.KEEP_BROWSER_CPU, title)

    draw(file, report.heading(), (15, 9), (2, 3), (3, 1.6), fill)
