"""Bars of one figure: the medians, with lines from the least round to the greatest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final

from .figures import Figure, Results
from .process import Contender

__all__ = ["GLB", "OTHER", "bars"]

GLB: Final = "tab:blue"
OTHER: Final = "0.65"


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
    samples = [results.of(one.name, figure) for one in shown]
    medians = [statistics.median(some) for some in samples]
    spread = (
        [median - min(some) for median, some in zip(medians, samples, strict=True)],
        [max(some) - median for median, some in zip(medians, samples, strict=True)],
    )
    axes.barh(
        [one.title for one in shown],
        medians,
        xerr=spread,
        color=[GLB if "glb" in one.title else OTHER for one in shown],
        error_kw={"ecolor": "0.25", "elinewidth": 1, "capsize": 2},
    )
    for index, (median, some) in enumerate(zip(medians, samples, strict=True)):
        text = f" {median:,.{figure.digits}f}"
        axes.annotate(
            text, (max(some), index), va="center", xytext=(3, 0), textcoords="offset points"
        )
    axes.invert_yaxis()
    if log:
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.2)
