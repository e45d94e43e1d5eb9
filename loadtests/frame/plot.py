"""A picture. Bars of a figure: its medians, with lines from the least round to the greatest."""

from __future__ import annotations

import pathlib
import statistics
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure as Picture

from .figures import Figure, Results
from .process import Contender

__all__ = ["GLB", "OTHER", "bars", "draw", "medians_and_spread"]

GLB: Final = "tab:blue"
OTHER: Final = "0.65"


def draw(
    file: pathlib.Path,
    heading: str,
    size: tuple[float, float],
    grid: tuple[int, int],
    heights: Sequence[float],
    fill: Callable[[Any], None],
) -> None:
    """Draw into *file* a picture of *size*, inches, with *heading* below it.

    *fill* gets the axes: a *grid* of so many rows, of these *heights*, and columns.
    """
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    picture = Picture(figsize=size, layout="constrained")
    fill(picture.subplots(*grid, height_ratios=heights))
    picture.supxlabel("\n".join(textwrap.wrap(heading, 150)), fontsize=8, color="0.3")
    picture.savefig(file, dpi=110)


def medians_and_spread(
    results: Results, contenders: Sequence[Contender], figure: Figure
) -> tuple[list[float], tuple[list[float], list[float]]]:
    """Return the median of each, and how far the least and the greatest are from it."""
    samples = [results.of(one.name, figure) for one in contenders]
    medians = [statistics.median(some) for some in samples]
    return medians, (
        [median - min(some) for median, some in zip(medians, samples, strict=True)],
        [max(some) - median for median, some in zip(medians, samples, strict=True)],
    )


def bars(
    axes: Any,
    results: Results,
    contenders: Sequence[Contender],
    figure: Figure,
    title: str,
    *,
    log: bool = False,
) -> None:
    axes.set_title(title, loc="left")
    shown = [one for one in contenders if results.of(one.name, figure)]
    if not shown:
        axes.set_axis_off()
        return
    medians, spread = medians_and_spread(results, shown, figure)
    axes.barh(
        [one.title for one in shown],
        medians,
        xerr=spread,
        color=[GLB if "glb" in one.title else OTHER for one in shown],
        error_kw={"ecolor": "0.25", "elinewidth": 1, "capsize": 2},
    )
    for index, (median, above) in enumerate(zip(medians, spread[1], strict=True)):
        text, place = f" {median:,.{figure.digits}f}", (median + above, index)
        axes.annotate(text, place, va="center", xytext=(3, 0), textcoords="offset points")
    axes.invert_yaxis()
    if log:
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.2)
