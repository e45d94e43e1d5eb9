"""The results as one picture."""

from __future__ import annotations

import pathlib
import textwrap
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure as Picture

from loadtests.frame.figures import Results
from loadtests.frame.plot import bars
from loadtests.frame.process import Contender

from . import figures
from .measure import OPEN_RATE


def plot(
    results: Results, contenders: Sequence[Contender], heading: str, file: pathlib.Path
) -> None:
    """Draw bars of the medians, with lines from the least round to the greatest."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    tcp = [one for one in contenders if not one.is_http]
    http = [one for one in contenders if one.is_http]
    picture = Picture(figsize=(15, 9), layout="constrained")
    axes = picture.subplots(2, 3, height_ratios=(3, 1.6))
    bars(axes[0][0], results, tcp, figures.RATE, "connections/s (more is better)")
    bars(axes[0][1], results, tcp, figures.CPU, "server's CPU a connection, us")
    # One bad moment of the machine is a hundred times the median here: hence the logarithm.
    title = f"p99 at {OPEN_RATE:,} connections/s, us"
    bars(axes[0][2], results, tcp, figures.OPEN_P99, title, log=True)
    bars(axes[1][0], results, http, figures.CPU, "HTTP: server's CPU a connection, us")
    bars(axes[1][1], results, http, figures.KEEP_CPU, "HTTP kept alive: CPU a request, us")
    title = "HTTP kept alive, 10 headers: CPU, us"
    bars(axes[1][2], results, http, figures.KEEP_BROWSER_CPU, title)
    picture.supxlabel("\n".join(textwrap.wrap(heading, 150)), fontsize=8, color="0.3")
    picture.savefig(file, dpi=110)
