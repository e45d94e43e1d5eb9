"""The results as one picture."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadtests.bench.servers.blocking import BLOCK_MICROSECONDS
from loadtests.frame.figures import Results
from loadtests.frame.plot import GLB, bars, draw, medians_and_spread

from . import figures
from .contenders import Contender, Question
from .plan import BLOCK_RATE, OPEN_RATE, STALL_RATE
from .report import Report
from .stall import Timeline

#: The servers whose waits are drawn, and how: those without long waits on top.
WAITS: Final = (
    ("stall-1", "x", "tab:red"),
    ("stall-racing", "+", "0.45"),
    ("stall-4", ".", GLB),
)


def plot(report: Report, file: pathlib.Path) -> None:
    """Draw lines and bars of the medians, with lines from the least round to the greatest."""
    results, contenders = report.results, report.contenders
    priced = [one for one in contenders if one.question is Question.PRICE]
    blocking = [one for one in contenders if one.question is Question.BLOCK]
    titles = {one.name: one.title for one in contenders}

    def fill(axes: Any) -> None:
        _rates(axes[0][0], results, blocking)
        _waits(axes[0][1], titles, report.timelines)
        bars(axes[1][0], results, priced, figures.CPU, "server's CPU a connection, us")
        title = f"p99 at {OPEN_RATE:,} connections/s, us"
        bars(axes[1][1], results, priced, figures.OPEN_P99, title, log=True)

    draw(file, report.heading(), (14, 9), (2, 2), (1.4, 1), fill)


def _rates(axes: Any, results: Results, contenders: Sequence[Contender]) -> None:
    title = f"connections/s, if every handler blocks its hub for {BLOCK_MICROSECONDS // 1000} ms"
    axes.set_title(title, loc="left")
    shown = [one for one in contenders if results.of(one.name, figures.RATE)]
    ours = [one for one in shown if "glb" in one.title]
    others = [one for one in shown if one not in ours]
    if not ours:
        axes.set_axis_off()
        return
    hubs = [one.hubs for one in ours]
    medians = [statistics.median(results.of(one.name, figures.RATE)) for one in ours]
    ideal = [medians[0] / hubs[0] * count for count in hubs]
    axes.plot(hubs, ideal, "--", color="0.5", label=f"ideal: as many times {ours[0].title}")
    _line(axes, results, ours, "o-", GLB, "glb")
    if others:
        _line(axes, results, others, "x", "tab:red", others[0].title)
    for count, median in zip(hubs, medians, strict=True):
        axes.annotate(
            f"{median:,.0f}", (count, median), xytext=(8, -10), textcoords="offset points"
        )
    axes.set_xlabel("hubs")
    axes.set_ylabel("connections/s")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(hubs, [str(count) for count in hubs])
    ticks = [BLOCK_RATE * count for count in hubs]
    axes.set_yticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.margins(x=0.12)
    axes.legend(frameon=False)


def _line(
    axes: Any,
    results: Results,
    contenders: Sequence[Contender],
    style: str,
    colour: str,
    label: str,
) -> None:
    medians, spread = medians_and_spread(results, contenders, figures.RATE)
    axes.errorbar(
        [one.hubs for one in contenders],
        medians,
        yerr=spread,
        fmt=style,
        color=colour,
        ecolor="0.25",
        capsize=2,
        label=label,
    )


def _waits(
    axes: Any, titles: Mapping[str, str], timelines: Mapping[str, Sequence[Timeline]]
) -> None:
    axes.set_title(f"how long connections wait while a hub is blocked, {STALL_RATE}/s", loc="left")
    seen = [(*one, timelines[one[0]][0]) for one in WAITS if timelines.get(one[0])]
    if not seen:
        axes.set_axis_off()
        return
    stall = seen[-1][-1].stall
    axes.axvspan(0, (stall.ended - stall.began) / 1e9, color="0.93", label="a hub is blocked")
    for name, marker, colour, timeline in seen:
        points = timeline.points()
        axes.plot(
            [at for at, _ in points],
            [wait for _, wait in points],
            marker,
            color=colour,
            markersize=5,
            label=titles[name],
        )
    # From a tenth of a millisecond to a second: nothing else shows both.
    axes.set_yscale("log")
    axes.set_yticks([0.1, 1, 10, 100, 1000], ["0.1 ms", "1 ms", "10 ms", "100 ms", "1 s"])
    axes.set_ylabel("wait for the answer")
    axes.set_xlabel("when the connection was due, s after the hub was blocked")
    axes.legend(frameon=False)
