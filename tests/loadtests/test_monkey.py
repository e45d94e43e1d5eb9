"""What `loadtests.monkey` makes of what it sees, and that it sees anything: a tiny run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from loadtests.frame.figures import Results
from loadtests.monkey import figures
from loadtests.monkey.contenders import COPIES, GROUPS, PROGRAMS, SIDES
from loadtests.monkey.plan import Plan
from loadtests.monkey.promises import PROMISES
from loadtests.monkey.report import Report

from ..support.helpers import run_load_test

pytestmark = pytest.mark.process

EVERY = [contender for group in GROUPS for contender in group]


def test_each_promise_is_of_contenders_there_are() -> None:
    """A name with a slip in it would never be measured."""
    names = {contender.name for contender in EVERY}
    assert len(names) == len(EVERY)
    for promise in PROMISES:
        assert promise.contender in names
        assert promise.beside is None or promise.beside in names


def test_what_is_compared_runs_the_same_program() -> None:
    """Contenders of a group differ in the patch alone."""
    for group in GROUPS:
        assert len({(one.program, one.number, one.is_http, one.of) for one in group}) == 1
        assert len({one.side for one in group}) == len(group)
    assert len(GROUPS) == 2 * len(PROGRAMS) - 1  # a client has no copies


def test_ratios_are_of_one_round() -> None:
    """A minute in which the machine is slow is slow for both."""
    results = Results()
    for other, one in ((100, 101), (200, 202), (150, 159)):
        results.add("one", figures.CPU, one)
        results.add("other", figures.CPU, other)
    ratios = results.ratios("one", "other", figures.CPU)
    assert ratios == [1.01, 1.01, 1.06]
    assert figures.quartiles(ratios) == pytest.approx((1.01, 1.035))
    assert figures.quartiles([1.5]) == (1.5, 1.5)


def test_a_price_beyond_the_limit_is_not_kept() -> None:
    """3 % are kept, 4 % are not; and what wasn't measured isn't kept either."""
    results = Results()
    group = GROUPS[0]
    for one, cpu in zip(group, (100, 100, 103, 104), strict=True):
        results.add(one.name, figures.CPU, cpu)
    verdicts = [one.is_kept(results) for one in PROMISES if one.contender.startswith("threads-")]
    assert verdicts == [True, False, None]
    report = Report(results, group, "CPUs", "a command", Plan())
    assert len(report.promises()) == 2  # of contenders that were in the run
    assert not report.all_kept()
    assert (
        "| accept, a thread each: glb's | 104.0 | 1.040 | 1.040 to 1.040 |  |" in report.markdown()
    )


@pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or shutil.which(shlex.split(os.environ.get("CC", "cc"))[0]) is None,
    reason="the client needs Linux and a C compiler",
)
def test_a_tiny_run_measures_everything(tmp_path: Path) -> None:
    """One round, few connections: no figures to quote, but all that there are."""
    plan = ("--rounds", "1", "--connections", "50", "--turns", "1", "--only", "threads")
    status, printed = run_load_test("monkey", *plan, "--seed", "1", "--output", str(tmp_path))
    assert status in (0, 1), printed  # the price is a matter of chance here
    assert "What does the patch cost" in printed
    seen = json.loads((tmp_path / "results.json").read_text())
    contenders = seen["contenders"]
    assert [one["failed"] for one in contenders.values()] == [None] * (len(SIDES) + 2)
    for one in contenders.values():
        assert one["figures"]["cpu"]["median"] > 0
        assert one["figures"]["errors"]["rounds"] == [0]
    assert contenders[f"threads-{COPIES}-glb"]["figures"]["exact"]["rounds"] == [1]
    assert contenders[f"threads-{COPIES}-glb"]["figures"]["fairness"]["rounds"] == [1]
    assert (tmp_path / "results.md").exists()
