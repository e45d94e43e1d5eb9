"""What `loadtests.soak` finds, and that it finds anything: short runs, and planted faults."""

from __future__ import annotations

import sys
import time
from typing import Any

import gevent
import pytest

from loadtests.chaos.clients import Client, Crowd
from loadtests.chaos.life import Plan
from loadtests.chaos.run import strange
from loadtests.chaos.tally import Tally
from loadtests.chaos.work import CRASH, Marks, Planned, Work
from loadtests.frame.traffic import RACED, Fate, Request
from loadtests.soak import soak

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc"),
]

# A servers' process with faults: it keeps a descriptor of some connections, forgets a clone, and
# takes one for another's reply.
FAULTY = """
import os
from glb.accept.ring import Ring
from loadtests.chaos.work import Work
from loadtests.frame.worker import serve
from loadtests.soak import COMMANDS
answer, rotate = Work._answer, Ring.rotate
turns = []

def leaking(self, request, marks):
    if request.number % 20 == 3:
        os.dup(0)
    if request.number % 20 == 4:
        request = type(request)(request.number + 1, request.size, request.verb)
    return answer(self, request, marks)

def forgetful(self, team, member):
    rotate(self, team, member)
    turns.append(member)
    if len(turns) == 30:
        team.line.pop(member, None)

Work._answer, Ring.rotate = leaking, forgetful
serve(COMMANDS)
"""


@pytest.mark.parametrize(("times", "is_kept"), [(0, False), (1, True), (2, False)])
def test_a_planned_crash_is_reported_once(times: int, is_kept: bool) -> None:
    """Not at all, or twice, is a violation."""
    tally = Tally(0.0)
    work = Work(tally)
    with pytest.raises(Planned, match="7") as caught:
        work._answer(Request(7, 0, CRASH), Marks())
    for _ in range(times):
        work.reported[caught.value.args[0]] += 1
    work.check_reports()
    assert tally.answer("").is_kept is is_kept


def test_what_is_not_planned_is_strange() -> None:
    """Each line on standard error, but for stacks and for what is tolerated."""
    error = "Traceback (most recent call last):\n  File\nKeyError: 7\n"
    assert strange(f"{error}\n{error}") == {"KeyError: 7": 2}
    warning = "x.py:1: ResourceWarning: unclosed <socket>"
    assert [*strange(f"{error}{warning}", ["KeyError"])] == [warning]


def test_nothing_is_served_twice() -> None:
    """A request that begins again is a violation."""
    tally = Tally(0.0)
    work = Work(tally)
    for number in (1, 2, 1):
        with pytest.raises(Planned):
            work._answer(Request(number, 0, CRASH), Marks())
    assert tally.violated == {"nothing is served twice": 1}


@pytest.mark.parametrize("fate", ["closed", "reset", "another's", "broken", "given up"])
@pytest.mark.parametrize("is_struck", [False, True])
def test_each_fate_of_a_client_is_judged(fate: str, is_struck: bool) -> None:
    """Lost and mixed-up ones count; what is forgiven, or closed between two requests, does not."""
    tally = Tally(0.0)
    crowd = Crowd(Plan(), tally, {"stream": 0}, 0.01, ("closed", "reset") if is_struck else ())

    def end(_client: Client) -> None:
        if fate == "given up":
            gevent.sleep(10)
        raise Fate(fate)

    def race(_client: Client) -> None:
        raise Fate(RACED)

    crowd.come("ends", end)
    crowd.come("races", race)
    crowd.come("does nothing", lambda _: None)
    crowd.leave()
    is_kept = is_struck and fate in ("closed", "reset")
    assert tally.answer("").is_kept is is_kept
    assert tally.counts[f"clients: ends: {fate}"] == tally.counts["clients: races: raced"] == 1


def test_a_report_keeps_the_actions_around_what_it_has_found() -> None:
    """With their times, and in their order: what was over seconds before has no part in it."""
    began = time.monotonic() - 40
    tally = Tally(began)
    server: dict[str, Any] = Tally(began).to_json()
    events = [
        (1.0, 2.0, "long over"),
        (18.5, 18.6, "just before"),
        (10.0, 30.0, "goes on"),
        (25.0, 26.0, "after it"),
        (30.5, 39.0, "before what the server found"),
    ]
    server["events"] = [[began + one, began + other, what] for one, other, what in events]
    server["found"] = [[began + 20, began + 21, "FOUND"]]
    tally.add(server)
    tally.hold("a client is served", False, "request 7", began + 35)
    answer = tally.answer("Does it?")
    assert [line.partition("s: ")[2] for line in answer.lines] == [
        "goes on",
        "just before",
        "FOUND",
        "before what the server found",
        "VIOLATED: a client is served: request 7",
    ]
    assert not answer.is_kept
    assert Tally(began).answer("").lines == []


@pytest.mark.parametrize("hubs", [1, 2])
def test_a_short_run_finds_nothing(hubs: int) -> None:
    """All at once for a few seconds: nothing is violated, and no client lost."""
    tally = soak(Plan(seconds=3, hubs=hubs, seed=hubs))
    assert (tally.violated, tally.found) == ({}, [])
    assert tally.counts["clients: asks and reads: good"] > 50
    assert tally.checked["each look comes to its end"] >= 2
    assert sum(what.startswith("done: ") for what in tally.counts) >= 5


def test_planted_faults_are_found() -> None:
    """A leak of descriptors, a clone that stands nowhere, another's reply."""
    plan = Plan(seconds=2, seed=1, kinds=["stream"], trouble=False)
    tally = soak(plan, (sys.executable, "-c", FAULTY))
    for invariant in (
        "descriptors: other",
        "end: no descriptor is left",
        "a clone stands in line once if it is ready, and otherwise doesn't",
        "nothing is served twice",
        "a client has its own reply, in time",
    ):
        assert tally.violated[invariant] > 0, invariant
    assert any("another's" in what for *_, what in tally.found)
