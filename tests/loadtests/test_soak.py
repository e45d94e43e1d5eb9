"""What `loadtests.soak` finds, and that it finds anything: short runs, and planted faults."""

from __future__ import annotations

import json
import sys
import time

import pytest

from loadtests.soak.load import Behaviour, Outcome, Result
from loadtests.soak.plan import Kind, Plan
from loadtests.soak.program import unexpected_errors
from loadtests.soak.report import Report, quantile
from loadtests.soak.run import run
from loadtests.soak.wire import Reply, Request, Verb, WireError, read_reply, reply

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc"),
]

CRASH = """\
Traceback (most recent call last):
  File "work.py", line 1, in handle
    raise Planned("request 7")
loadtests.soak.work.Planned: request 7
2026-01-01T00:00:00Z <HandlerGreenlet at 0x1> failed with Planned
"""

# A server's process with faults: it keeps a descriptor of some connections, forgets a clone, and
# takes one for another's reply.
FAULTY = """
import os, sys
from glb.accept.ring import Ring
from loadtests.soak import server, work
answer, rotate = work.Work._answer, Ring.rotate
turns = []

def leaking(self, request, *who):
    if request.number % 20 == 3:
        os.dup(0)
    if request.number % 20 == 4:
        request = type(request)(request.verb, request.number + 1, request.size)
    return answer(self, request, *who)

def forgetful(self, team, member):
    rotate(self, team, member)
    turns.append(member)
    if len(turns) == 30:
        team.line.pop(member, None)

work.Work._answer, Ring.rotate = leaking, forgetful
server.main()
"""


def test_a_planned_crash_is_told_of_once() -> None:
    """Not at all, twice, or with another error around it, is a violation."""
    assert not unexpected_errors(CRASH, [7])
    assert [*unexpected_errors("", [7])] == ["crashes not told, as of request 7"]
    assert [*unexpected_errors(2 * CRASH, [7])] == ["crashes told twice, as of request 7"]
    assert [*unexpected_errors(CRASH, [])] == ["crashes not planned, as of request 7"]
    strange = "Traceback (most recent call last):\n  File\nKeyError: 7"
    assert unexpected_errors(f"{CRASH}{strange}\nmore\n{strange}", [7]) == {strange: 2}
    warning = "x.py:1: ResourceWarning: unclosed <socket>"
    assert [*unexpected_errors(f"{warning}\nGET / 200", ())] == [warning]


@pytest.mark.parametrize("kind", Kind)
def test_a_reply_is_read_as_a_whole(kind: Kind) -> None:
    """Another's reply, or a cut one, differs from one that never came."""
    request = Request(Verb.REPLY, 5, 100)
    body = reply(request, Reply(1, 2, 3))
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    whole = body if kind is Kind.STREAM else head + body

    def read(data: bytes, asked: Request = request) -> Reply:
        pieces = [data[at : at + 7] for at in range(0, len(data), 7)]
        return read_reply(kind, asked, lambda: pieces.pop(0) if pieces else b"")

    assert read(whole) == Reply(1, 2, 3)
    for wrong in (whole[:-1], whole[:-1] + b"!", whole[: len(whole) - len(body) + 2], whole[:1]):
        with pytest.raises(WireError):
            read(wrong)
    with pytest.raises(WireError):
        read(whole, Request(Verb.REPLY, 6, 100))
    with pytest.raises(EOFError):
        read(b"")


def test_requests_are_read_as_they_were_sent() -> None:
    """In a path as in a line."""
    request = Request(Verb.BLOCK, 12, 34)
    path = request.encode(Kind.HTTP).split()[1].decode()
    assert Request.decode(path) == Request.decode(request.encode(Kind.STREAM).decode()) == request
    plan = Plan(seed=5, kinds=("http",))
    assert Plan.from_json(plan.to_json()) == plan


def test_a_report_is_kept_only_if_nothing_is_wrong() -> None:
    """Lost, failed and missing clients count; closed or late ones do not."""

    def kept(
        *results: Result, violated: dict[str, int] | None = None, errors: tuple[str, ...] = ()
    ) -> bool:
        outcome = Outcome()
        outcome.counts.update((Behaviour.GOOD, each) for each in results)
        server = {"violated": violated or {}, "details": {}}
        report = Report(Plan(), "", outcome, server, dict.fromkeys(errors, 1), ())
        is_kept: bool = json.loads(report.to_json())["kept"]
        assert report.is_kept is is_kept
        return is_kept

    assert kept(Result.SERVED, Result.CLOSED, Result.LATE, Result.DONE)
    assert not kept()
    assert not kept(Result.SERVED, Result.LOST)
    assert not kept(Result.SERVED, Result.FAILED)
    assert not kept(Result.SERVED, violated={"an invariant": 1})
    assert not kept(Result.SERVED, errors=("Traceback",))


def test_a_report_keeps_the_actions_around_what_it_has_found() -> None:
    """With their times, and in their order: what was over seconds before has no part in it."""
    outcome = Outcome()
    outcome.lost("a client", began=time.monotonic())
    began = outcome.found_at[0][0] - 20
    until = outcome.found_at[0][1] - began
    events = [
        (1.0, 2.0, "long over"),
        (18.5, 18.6, "just before"),
        (10.0, 30.0, "goes on"),
        (until + 1, until + 2, "after it"),
        (39.0, 40.0, "before what the server found"),
    ]
    server = {"violated": {}, "details": {}, "began": began, "events": events, "found_at": [41.0]}
    report = Report(Plan(), "", outcome, server, {}, ())
    assert [what for *_, what in report.last_actions] == [
        "goes on",
        "just before",
        "FOUND: a client was not served",
        "before what the server found",
        "FOUND by the server",
    ]
    assert len(json.loads(report.to_json())["last_actions"]) == 5
    assert Report(Plan(), "", Outcome(), {**server, "found_at": []}, {}, ()).last_actions == []


def test_quantiles_are_samples() -> None:
    """None of nothing."""
    assert quantile([], 0.5) is None
    assert [quantile([3, 1, 2], share) for share in (0, 0.5, 0.99, 1)] == [1, 2, 3, 3]


@pytest.mark.parametrize("hubs", [1, 2])
def test_a_short_run_finds_nothing(hubs: int) -> None:
    """All at once for a few seconds: nothing is violated, and no client lost."""
    report = run(Plan(seconds=3, hubs=hubs, seed=hubs))
    assert report.violations == {}
    assert report.outcome.counts[Behaviour.GOOD, Result.SERVED] > 50
    assert report.server["checked"]["REGISTRY.check()"] >= 2
    assert len(report.server["done"]) >= 5


def test_planted_faults_are_found() -> None:
    """A leak of descriptors, a clone that stands nowhere, another's reply."""
    server = (sys.executable, "-c", FAULTY)
    report = run(Plan(seconds=2, seed=1, kinds=("stream",), actions=False), server=server)
    violated = report.server["violated"]
    for invariant in (
        "descriptors: other",
        "end: no descriptor is left",
        "who is ready stands in line once, who isn't doesn't",
        "nothing is served twice",
    ):
        assert violated[invariant] > 0, invariant
    assert report.outcome.of(Result.FAILED) > 0
    assert not report.is_kept
