"""What `loadtests.lossless` makes of what it sees, that it sees losses, and a tiny run of each."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import gevent.server
import pytest

from loadtests.frame.figures import Results
from loadtests.lossless.answers import Answer, Promise
from loadtests.lossless.clients import Arrivals, Fate, Kept, _read_reply, reset
from loadtests.lossless.drain import Drain, Fates
from loadtests.lossless.load import Change, Load, Visit, spread
from loadtests.lossless.process import Server
from loadtests.lossless.report import Report
from loadtests.lossless.scenarios import SCENARIOS, all_scenarios
from loadtests.lossless.words import http_request, parse, percentile, reply

from ..support.helpers import run_load_test, wait_until

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="it needs /proc and CPU affinity"
    ),
]

needs_compiler = pytest.mark.skipif(
    shutil.which(shlex.split(os.environ.get("CC", "cc"))[0]) is None,
    reason="the client needs a C compiler",
)

ELSEWHERE = ("memory", "silent", "exhaustion")


# -- the arithmetic -----------------------------------------------------------------------------


def test_who_came_after_a_change_and_met_the_old_handler_is_stale() -> None:
    """A client that came during it may get either."""
    changes = [Change(10, 20, 1), Change(30, 40, 2)]
    visits = [
        Visit(5, 15, "good", 0, 0),  # there as it began
        Visit(12, 25, "good", 0, 1),  # during it
        Visit(21, 26, "good", 0, 2),  # stale
        Visit(35, 45, "good", 1, 3),
        Visit(41, 46, "good", 1, 0),  # stale
        Visit(41, 47, "good", 2, 1),
        Visit(42, 48, "reset", -1, -1),
    ]
    assert Load(visits).stale(changes) == 2
    assert Load(visits).old_and_new(changes) == (3, 0)


def test_each_loss_is_one_of_three() -> None:
    """Reset, refused, or whatever else is no good reply."""
    fates = ["good", "good", "refused", "reset", "reset", "late", "closed", "broken"]
    promises = Load([Visit(0, 1, fate, -1, -1) for fate in fates]).promises("here")
    assert [promise.measured for promise in promises] == [2, 1, 3]
    assert not any(promise.is_kept for promise in promises)
    assert all(promise.is_kept for promise in Load([Visit(0, 1, "good", 0, 0)]).promises("here"))


def test_turns_are_those_from_then_to_now() -> None:
    """What was before doesn't count."""
    assert spread([9, 2, 5], [11, 4, 8]) == 1


def test_a_percentile_is_one_of_the_values() -> None:
    """The least that so many percent don't exceed; there is none of nothing."""
    assert [percentile([3, 1, 2, 4], each) for each in (0, 25, 50, 99, 100)] == [1, 1, 2, 4, 4]
    assert percentile([], 50) is None


def test_what_was_not_measured_is_not_kept() -> None:
    """A load that broke has kept nothing."""
    assert Promise("it", 0).is_kept
    assert not Promise("it", 1).is_kept
    assert Promise("it", 200, 200, is_floor=True).is_kept
    assert not Promise("it", 199, 200, is_floor=True).is_kept
    assert not Promise("it", None).is_kept
    assert not Promise("it", None, is_floor=True).is_kept


def test_a_run_is_good_if_all_of_it_is() -> None:
    """One that broke is none that was kept."""
    good, bad = Answer("?", [Promise("it", 0)]), Answer("?", [Promise("it", 1)])
    seconds = {"one": 1.0, "other": 2.0}

    def report(other: Answer) -> Report:
        return Report(Results(), (), "CPUs", "a command", {"one": good, "other": other}, seconds)

    assert report(good).all_kept()
    assert not report(bad).all_kept()
    assert "| other | NOT KEPT | 2 |" in report(bad).markdown()
    broken = report(good)
    broken.results.fail("third", "it broke")
    assert not broken.all_kept()
    assert "| third | NOT MEASURED |  |" in broken.markdown()


def test_fates_of_a_stop_are_told_apart() -> None:
    """A request that had no reply, and an idle connection that was cut."""
    slow = {"good, and told": 2, "good": 1, "closed": 4}
    fates = Fates(slow, {"closed": 5, "reset": 6}, 0.1, 0.7)
    row = ("who", "3", "2", "5", "0.70", "4 requests closed, 6 idle reset")
    assert fates.row("who") == row


# -- that it sees what is lost ------------------------------------------------------------------


def test_a_reply_is_whole_or_none() -> None:
    """Anything less has a name."""
    assert parse(reply(3, 2)) == (3, 2)
    assert parse(reply(3, None)) == (3, -1)
    for part in (b"", b"3", b"3 2", b"a b\n", b"1 2 3\n"):
        assert parse(part) is None
    assert b"Connection: close\r\n" in http_request("/", is_last=True)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n"
    for sent, fate in {
        b"": "closed",
        head: "broken",
        head + b"\r\n1 2": "broken",
        b"HTTP/1.1 503 Busy\r\n\r\n": "HTTP/1.1 503 Busy",
    }.items():
        one, other = socket.socketpair()
        with one, other:
            one.sendall(sent)
            one.shutdown(socket.SHUT_WR)
            with pytest.raises(Fate, match=f"^{fate}$"):
                _read_reply(other)
    one, other = socket.socketpair()
    with one, other:
        one.sendall(head + b"Connection: close\r\n\r\n1 2\n")
        assert _read_reply(other) == (b"1 2\n", True)


class Careless:
    """A handler of streams that has an end of its own for each connection, by turns."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, sock: Any, _peer: Any) -> None:
        self.count += 1
        end = self.count % 4
        if end == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return
        sock.recv(100)
        sock.sendall((b"", b"", b"1", b"1 0\n")[end])


def _serve(handle: Callable[[Any, Any], None]) -> tuple[gevent.server.StreamServer, int]:
    server = gevent.server.StreamServer(("127.0.0.1", 0), handle)
    server.start()
    assert server.server_port is not None
    return server, server.server_port


def test_each_loss_has_its_name() -> None:
    """Resets, ends without a reply, parts of one; and refusals, without a listener."""
    server, port = _serve(Careless())
    arrivals = Arrivals()
    try:
        arrivals.start(port, 200, is_http=False)
        arrivals.come(20)
        served = Load([Visit(*each) for each in arrivals.stop()]).fates()
    finally:
        server.stop()
    arrivals.start(port, 200, is_http=False)
    arrivals.come(4)
    refused = Load([Visit(*each) for each in arrivals.stop()]).fates()
    assert set(served) == {"good", "broken", "closed", "reset"}
    assert set(refused) == {"refused"}


def test_who_has_no_end_is_not_left_out() -> None:
    """One whose client broke is none that was served."""
    arrivals = Arrivals()
    arrivals._comes = gevent.spawn(lambda: None)
    arrivals._come_count = 1
    assert [each[2] for each in arrivals.stop()] == ["stuck"]


def test_a_kept_connection_that_ends_unasked_is_no_failure() -> None:
    """One that ends with a request on its way is raced, and the server is asked whose fault."""
    ends: list[Any] = []

    def handle(sock: Any, _peer: Any) -> None:
        sock.recv(1000)
        if len(ends) % 2:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n1 2\n")
        ends.append(sock)  # which is closed now

    server, port = _serve(handle)
    try:
        kept = Kept()
        kept.start(port, 1, 0.001, 1)
        wait_until(lambda: len(ends) >= 6)
        found = kept.stop()
    finally:
        server.stop()
    assert found["failures"] == {}
    assert found["good"] >= 2
    assert len(found["raced"]) >= 3
    assert found["met the end"] >= 1
    assert found["connected"] >= 6


def test_resets_are_resets() -> None:
    """A handler that waits for them sees it; good ones have their reply."""
    seen: list[str] = []

    def handle(sock: Any, _peer: Any) -> None:
        try:
            if sock.recv(100):
                gevent.sleep(0.01)
                sock.recv(1)
                sock.sendall(b"1 0\n")
        except ConnectionResetError:
            seen.append("reset")

    server, port = _serve(handle)
    try:
        fates = reset(port, 8, 0, is_http=False, seconds=0.001)
        wait_until(lambda: len(seen) == 8)
    finally:
        server.stop()
    assert fates == {}


def test_gevents_stop_loses_what_is_in_flight() -> None:
    """So the measure sees it: `gevent` stops, its process ends, and no reply is sent."""
    drain = Drain(slow=3, slow_seconds=5, idle=2, timeout=1)
    fates = drain._end("gevent", is_tls=False)
    assert fates.good == 0
    assert sum(fates.slow.values()) == 3


def test_a_process_that_ends_is_told_of() -> None:
    """With its last words, and not by a wait that has no end."""
    with Server() as server:
        server.order("open", kind="nonsense")
        with pytest.raises(RuntimeError, match="ended: KeyError: 'nonsense'"):
            server.answer()


# -- tiny runs ----------------------------------------------------------------------------------


# Those are left out that need a compiler, and the one that the command is tried with.
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in ELSEWHERE])
def test_a_tiny_run_keeps_all_promises(name: str) -> None:
    """Few connections: no figures to quote, but the promises are the same."""
    told: list[str] = []
    scenario = all_scenarios()[name].quick
    answer = scenario.run(told.append)
    assert [each for each in answer.promises if not each.is_kept] == []
    assert len(told) == scenario.steps
    assert answer.tables()


@needs_compiler
@pytest.mark.parametrize("name", ["memory", "silent"])
def test_a_tiny_run_with_the_c_client(name: str) -> None:
    """As above."""
    test_a_tiny_run_keeps_all_promises(name)


def test_the_command_writes_what_it_found(tmp_path: Path) -> None:
    """Tables on stdout, JSON in the file, the verdict as exit status."""
    file = tmp_path / "found.json"
    status, printed = run_load_test("lossless", "exhaustion", "--quick", "--json", str(file))
    assert status == 0, printed
    assert "Does a server that is out of descriptors come back by itself?" in printed
    found = json.loads(file.read_text())
    assert found["kept"] is True
    assert found["scenarios"]["exhaustion"]["kept"] is True
    assert [each["kept"] for each in found["scenarios"]["exhaustion"]["promises"]] == [True] * 4
