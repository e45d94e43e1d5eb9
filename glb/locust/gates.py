"""Gates: what a load test has to keep, or its exit status is 1."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from typing import Any, Final

from .measure import Figures

__all__ = ["add_options", "are_set", "misses"]

log: Final = logging.getLogger(__name__)


def add_options(parser: Any) -> None:
    """Add the gates to locust's command line."""
    group = parser.add_argument_group("Gates (glb): the exit status is 1 if one is missed")
    for flag, kind, metavar, text in (
        (
            "--balance-min-jain",
            _number(float, 0, 1),
            "<0 to 1>",
            "Jain's index of the clones' turns may be this at least: 1 if all are equal, 1/N if "
            "one of N has everything",
        ),
        (
            "--balance-max-spread",
            _number(int, 0),
            "<turns>",
            "The clone with the most turns may have so many more than the one with the fewest; "
            "1 is exact round robin",
        ),
        (
            "--max-fail-ratio",
            _number(float, 0, 1),
            "<0 to 1>",
            "This part of the requests may fail at most; it also decides what failures mean to "
            "the exit status, in the place of --exit-code-on-error",
        ),
        (
            "--max-p99",
            _number(float, 0),
            "<ms>",
            "99 of 100 requests have to be answered within so many milliseconds, of which locust "
            "keeps two digits",
        ),
    ):
        name = flag[2:].replace("-", "_").upper()
        group.add_argument(
            flag, type=kind, metavar=metavar, help=text, default=None, env_var=f"LOCUST_{name}"
        )


def are_set(options: Any) -> bool:
    """Return True if there is any gate."""
    return any(getattr(options, name, None) is not None for name in _NAMES)


def misses(options: Any, figures: Figures, total: Any) -> list[str]:
    """Return a line for each gate that is missed: which, and by how much.

    Args:
        options: What `add_options` has parsed.
        figures: The balance.
        total: locust's statistics of all requests, a `StatsEntry`.
    """
    found = []
    jain, spread = options.balance_min_jain, options.balance_max_spread
    for flag, limit in (("--balance-min-jain", jain), ("--balance-max-spread", spread)):
        if limit is not None and not figures.turns:
            found.append(f"{flag} {limit:g} is missed: no reply told which clone gave it")
    if jain is not None and figures.turns and figures.jain < jain:
        found.append(
            f"--balance-min-jain {jain:g} is missed by {jain - figures.jain:.3g}: "
            f"Jain's index of {len(figures.clones)} clones is {figures.jain:.6g}"
        )
    if spread is not None and figures.turns and figures.spread > spread:
        found.append(
            f"--balance-max-spread {spread:g} is missed by {figures.spread - spread}: "
            f"turns differ by {figures.spread}"
        )
    ratio = options.max_fail_ratio
    if ratio is not None and (total.num_requests == 0 or total.fail_ratio > ratio):
        found.append(
            f"--max-fail-ratio {ratio:g} is missed by {total.fail_ratio - ratio:.3g}: "
            f"{total.num_failures} of {total.num_requests} requests failed"
            if total.num_requests
            else f"--max-fail-ratio {ratio:g} is missed: there was no request"
        )
    p99 = options.max_p99
    if p99 is not None:
        found += _slow(p99, total)
    return found


def _slow(limit: float, total: Any) -> list[str]:
    if total.num_requests == 0:
        return [f"--max-p99 {limit:g} is missed: there was no request"]
    p99 = total.get_response_time_percentile(0.99)
    if p99 <= limit:
        return []
    return [f"--max-p99 {limit:g} is missed by {p99 - limit:g} ms: p99 is {p99:g} ms"]


_NAMES: Final = ("balance_min_jain", "balance_max_spread", "max_fail_ratio", "max_p99")


def _number(
    kind: Callable[[str], float], least: float, most: float | None = None
) -> Callable[[str], float]:
    """Return what reads a number of *kind*, *least* to *most*."""
    words = "a whole number" if kind is int else "a number"
    words += f", {least:g} or more" if most is None else f", {least:g} to {most:g}"

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = least - 1
        # Also if it is no number at all: nothing compares with that.
        if not least <= value or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {words}, got {text!r}")
        return value

    return read
