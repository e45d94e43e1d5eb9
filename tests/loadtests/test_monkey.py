"""What `loadtests.monkey` makes of what it sees, and that it sees anything: a tiny run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from loadtests.frame.figures import CPU
from loadtests.frame.sheet import Sheet
from loadtests.monkey import COPIED, GROUPS, PROGRAMS, SIDES, Monkey

from ..support.helpers import run_load_test

pytestmark = pytest.mark.process


def test_what_is_compared_runs_the_same_program() -> None:
    """Contenders of a group differ in the patch alone."""
    for group in (*GROUPS.values(), *COPIED.values()):
        assert len({(one.program, one.number, one.is_http) for one in group}) == 1
        assert len({one.name for one in group}) == len(group)
        assert {one.options[0] for one in group} >= {"gevent", "glb"}
    assert len(GROUPS) == len(PROGRAMS)
    assert len(COPIED) == len(PROGRAMS) - 1  # a client has no copies


def test_ratios_are_of_one_turn() -> None:
    """A moment in which the machine is slow is slow for both."""
    run = Monkey(GROUPS["threads"])
    for other, one in ((100, 101), (200, 202), (150, 159)):
        run.results.add("threads-gevent", {CPU: other})
        run.results.add("threads-glb", {CPU: one})
    assert [one.measured for one in run.promises()] == [None, 1.01]


def test_a_price_beyond_the_limit_is_not_kept() -> None:
    """3 % are kept, 4 % are not; and what wasn't measured isn't kept either."""
    run = Monkey(GROUPS["threads"])
    for side, cpu in zip(SIDES, (100, 100, 103, 104), strict=True):
        run.results.add(f"threads-{side}", {CPU: cpu})
    answer = run.answer()
    assert [one.is_kept for one in answer.promises] == [True, False]  # of what was in the run
    assert not answer.is_kept
    text = Sheet("a command", "CPUs", {"monkey": answer}).text()
    assert re.search(r"\| accept, a thread each: glb's +\| +104\.0 \| +1\.04 \| +- \|", text)
    assert not any(one.is_kept for one in Monkey(Monkey.every).promises())


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
    seen = json.loads((tmp_path / "results.json").read_text())["answers"]["monkey"]
    assert seen["lines"] == []  # nothing failed
    assert len(seen["details"]["figures"]) == len(SIDES) + 2
    for figures in seen["details"]["figures"].values():
        assert figures["cpu"][0] > 0
        assert figures["errors"] == [0]
    ordered = seen["details"]["figures"]["threads-4-glb"]
    assert (ordered["out_of_order"], ordered["fairness"]) == ([0], [1])
