"""What was measured of each contender, by round, its ratios to others, and a picture of it.

With it the figures that more than one experiment has.
"""

from __future__ import annotations

import importlib.util
import math
import pathlib
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .process import Contender


@dataclass(frozen=True)
class Figure:
    """One thing that is measured."""

    #: In the JSON.
    name: str
    #: What people read above it.
    head: str
    digits: int = 0
    #: What counts of the samples of all rounds.
    of_rounds: Callable[[Sequence[float]], float] = statistics.median
    is_more_better: bool = False


RATE: Final = Figure("rate", "connections/s", is_more_better=True)
CPU: Final = Figure("cpu", "CPU us", 1)
P50: Final = Figure("p50", "p50 us")
P99: Final = Figure("p99", "p99 us")
P999: Final = Figure("p999", "p99.9 us")
OPEN_P99: Final = Figure("open_p99", "p99 us on a schedule")
SERVER_BUSY: Final = Figure("server_busy", "server's CPU %")
CLIENT_BUSY: Final = Figure("client_busy", "client's CPU %")
#: Connections and requests without the right answer, in all rounds.
ERRORS: Final = Figure("errors", "errors", 0, sum)
#: How busy a load kept both sides, and what went wrong.
BUSY: Final = (SERVER_BUSY, CLIENT_BUSY, ERRORS)
#: Jain's index: 1 if all places have served as many, 1/n if one of n has everything.
FAIRNESS: Final = Figure("fairness", "fairness (Jain)", 3)
#: Connections that weren't served by the place whose turn it was; the order is exact, or not.
OUT_OF_ORDER: Final = Figure("out_of_order", "out of order %", 2, max)

GLB: Final = "tab:blue"
OTHER: Final = "0.65"
COLUMNS: Final = 3

#: From so many times the least on, the axis is a logarithm's: one bad moment of the machine is a
#: hundred times the median of p99.
FAR_APART: Final = 50

#: What a panel shows: a figure of contenders, below a title.
Bars = tuple[str, Sequence[Contender], Figure]


class Results:
    """Samples of each contender's figures, in the order of the rounds.

    What is measured in the rounds has one sample a round, so sample *i* of two contenders is
    of one minute of one machine: ratios are taken there, and then the median of them. A
    contender that broke has a reason in *failed* and no samples.
    """

    def __init__(self) -> None:
        self.samples: Final[dict[str, dict[Figure, list[float]]]] = defaultdict(dict)
        self.failed: Final[dict[str, str]] = {}

    def add(self, contender: str, samples: Mapping[Figure, float]) -> None:
        """Add a sample of each of some figures."""
        for figure, sample in samples.items():
            self.samples[contender].setdefault(figure, []).append(sample)

    def fail(self, contender: str, reason: str) -> None:
        self.failed[contender] = reason
        self.samples.pop(contender, None)

    def of(self, contender: str, figure: Figure) -> list[float]:
        return self.samples.get(contender, {}).get(figure, [])

    def value(self, contender: str, figure: Figure) -> float | None:
        """Return what counts of the rounds, or ``None`` if it was not measured."""
        samples = self.of(contender, figure)
        return figure.of_rounds(samples) if samples else None

    def ratio(self, contender: str, beside: str, figure: Figure) -> float | None:
        """Return the median of *contender*'s figure by *beside*'s, of each round."""
        pairs = zip(self.of(contender, figure), self.of(beside, figure), strict=False)
        ratios = [one / other for one, other in pairs if other]
        return statistics.median(ratios) if ratios else None

    def note_order(self, contender: str, answers: Sequence[int], places: int) -> None:
        """Add how many of *answers*, the place that gave each, are out of turn; and how fair."""
        due = [0, *((place + 1) % places for place in answers)]
        wrong = sum(one != other for one, other in zip(answers, due, strict=False))
        counts = [answers.count(each) for each in range(places)]
        fairness = sum(counts) ** 2 / (places * sum(count**2 for count in counts))
        self.add(contender, {OUT_OF_ORDER: 100 * wrong / len(answers), FAIRNESS: fairness})


def draw(file: pathlib.Path, heading: str, panels: Sequence[Bars], results: Results) -> None:
    """Draw *panels* into *file*, with *heading* below; if there are any, and matplotlib."""
    if not panels or importlib.util.find_spec("matplotlib") is None:
        return
    import matplotlib as mpl  # noqa: PLC0415  # it may be missing
    from matplotlib.figure import Figure as Picture  # noqa: PLC0415  # as above

    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    rows = math.ceil(len(panels) / COLUMNS)
    picture = Picture(figsize=(18, 4 * rows + 1), layout="constrained")
    for index, panel in enumerate(panels, 1):
        _draw_bars(picture.add_subplot(rows, COLUMNS, index), results, *panel)
    picture.supxlabel("\n".join(textwrap.wrap(heading, 150)), fontsize=8, color="0.3")
    picture.savefig(file, dpi=110)


def _draw_bars(
    axes: Any, results: Results, title: str, contenders: Sequence[Contender], figure: Figure
) -> None:
    axes.set_title(textwrap.fill(title, 60), loc="left")
    samples = [results.of(one.name, figure) for one in contenders]
    values = [figure.of_rounds(some) for some in samples]  # as in the tables
    below = [value - min(some) for value, some in zip(values, samples, strict=True)]
    above = [max(some) - value for value, some in zip(values, samples, strict=True)]
    drawn = axes.barh(
        [one.title for one in contenders],
        values,
        xerr=(below, above),
        color=[GLB if "glb" in one.title else OTHER for one in contenders],
        error_kw={"ecolor": "0.25", "elinewidth": 1, "capsize": 2},
    )
    axes.bar_label(drawn, fmt=f"{{:,.{figure.digits}f}}", padding=3)
    axes.invert_yaxis()
    if max(map(max, samples)) > FAR_APART * min(map(min, samples)):
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.2)
