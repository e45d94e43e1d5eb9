"""A picture. Bars of a figure: its medians, with lines from the least round to the greatest."""

from __future__ import annotations

import importlib.util
import itertools
import math
import pathlib
import statistics
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Final

from .figures import Figure, Results
from .process import Contender

GLB: Final = "tab:blue"
OTHER: Final = "0.65"
COLUMNS: Final = 3

#: From so many times the least on, the axis is a logarithm's: one bad moment of the machine is a
#: hundred times the median of p99.
FAR_APART: Final = 50

#: Draws into axes, which are matplotlib's.
Panel = Callable[[Any, Results], None]


def draw(file: pathlib.Path, heading: str, panels: Sequence[Panel], results: Results) -> None:
    """Draw *panels* into *file*, with *heading* below; if there are any, and matplotlib."""
    if not panels or importlib.util.find_spec("matplotlib") is None:
        return
    import matplotlib as mpl  # noqa: PLC0415  # it may be missing
    from matplotlib.figure import Figure as Picture  # noqa: PLC0415  # as above

    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    rows = math.ceil(len(panels) / COLUMNS)
    picture = Picture(figsize=(18, 4 * rows + 1), layout="constrained")
    for axes, panel in itertools.zip_longest(picture.subplots(rows, COLUMNS).flat, panels):
        if panel is None:
            axes.set_axis_off()
        else:
            panel(axes, results)
    picture.supxlabel("\n".join(textwrap.wrap(heading, 150)), fontsize=8, color="0.3")
    picture.savefig(file, dpi=110)


def bars(title: str, contenders: Sequence[Contender], figure: Figure) -> Panel:
    def panel(axes: Any, results: Results) -> None:
        axes.set_title(textwrap.fill(title, 60), loc="left")
        shown = [one for one in contenders if results.of(one.name, figure)]
        if not shown:
            axes.set_axis_off()
            return
        samples = [results.of(one.name, figure) for one in shown]
        medians = [statistics.median(some) for some in samples]
        below = [median - min(some) for median, some in zip(medians, samples, strict=True)]
        above = [max(some) - median for median, some in zip(medians, samples, strict=True)]
        axes.barh(
            [one.title for one in shown],
            medians,
            xerr=(below, above),
            color=[GLB if "glb" in one.title else OTHER for one in shown],
            error_kw={"ecolor": "0.25", "elinewidth": 1, "capsize": 2},
        )
        for index, (median, more) in enumerate(zip(medians, above, strict=True)):
            text, place = f" {median:,.{figure.digits}f}", (median + more, index)
            axes.annotate(text, place, va="center", xytext=(3, 0), textcoords="offset points")
        axes.invert_yaxis()
        if max(map(max, samples)) > FAR_APART * min(map(min, samples)):
            axes.set_xscale("log")
        else:
            axes.locator_params(axis="x", nbins=5)
        axes.margins(x=0.2)

    return panel
