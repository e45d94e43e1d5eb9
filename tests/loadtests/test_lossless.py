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

from loadtests.chaos.clients import Client, Crowd
from loadtests.chaos.life import Plan
from loadtests.chaos.tally import Tally
from loadtests.frame.traffic import (
    Fate,
    Request,
    Traffic,
    Visit,
    new_request,
    parse,
    percentile,
    read_reply,
    reply,
)
from loadtests.frame.worker import Worker
from loadtests.lossless.__main__ import NAMES, play
from loadtests.lossless.stage import Load, Stage, spread
from loadtests.workers import Clients

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


def loaded(*visits: tuple[int, int, str, int]) -> Load:
    """Return a load of visits that have no number."""
    load = Load()
    load.visits = [Visit(0, came, left, fate, (str(gen),)) for came, left, fate, gen in visits]
    return load


# -- the arithmetic -----------------------------------------------------------------------------


def test_a_client_that_came_after_a_change_and_met_the_old_handler_is_stale() -> None:
    """A client that came during it may get either."""
    changes = [(10, 20), (30, 40)]
    load = loaded(
        (5, 15, "good", 0),  # there as it began
        (12, 25, "good", 0),  # during it
        (21, 26, "good", 0),  # stale
        (35, 45, "good", 1),
        (41, 46, "good", 1),  # stale
        (41, 47, "good", 2),
        (42, 48, "reset", -1),
    )
    assert load.stale(changes) == 2


def test_each_loss_is_one_of_three() -> None:
    """Reset, refused, or whatever else is no good reply."""
    fates = ["good", "good", "refused", "reset", "reset", "late", "closed", "broken"]
    bad, good = Stage(), Stage()
    bad.judge(loaded(*((0, 1, fate, 0) for fate in fates)), "here")
    assert [promise.measured for promise in bad.promises] == [2, 1, 3]
    assert not any(promise.is_kept for promise in bad.promises)
    good.judge(loaded((0, 1, "good", 0)), "here")
    assert all(promise.is_kept for promise in good.promises)


def test_turns_are_those_from_then_to_now() -> None:
    """What was before doesn't count."""
    assert spread([9, 2, 5], [11, 4, 8]) == 1


def test_a_percentile_is_one_of_the_values() -> None:
    """The least that so many percent don't exceed; there is none of nothing."""
    assert [percentile([3, 1, 2, 4], each) for each in (0, 25, 50, 99, 100)] == [1, 1, 2, 4, 4]
    assert percentile([], 50) is None


# -- that it sees what is lost ------------------------------------------------------------------


def read(data: bytes, request: Request, *, is_http: bool) -> Any:
    """Return the reply that *data* is, byte by byte."""
    pieces = iter([data[at : at + 1] for at in range(len(data))])
    return read_reply(lambda: next(pieces, b""), request, is_http=is_http)


@pytest.mark.parametrize("size", [0, 100])
def test_a_reply_is_whole_or_none(size: int) -> None:
    """Anything less has a name; so has anything more, or another's."""
    request, other = new_request(size=size), new_request(size=size)
    assert Request.decode(request.encode(is_http=False).decode()) == request
    assert Request.decode(request.encode(is_http=True).decode().split()[1]) == request
    body = reply(request, 3, "web1.2")
    length = b"Content-Length: %d\r\n" % len(body)
    ok = b"HTTP/1.1 200 OK\r\n"
    close = b"Connection: close\r\n"
    assert read(body, request, is_http=False) == (("3", "web1.2"), False)
    for more, is_last in ((b"\r\n", False), (close + b"\r\n", True)):
        found = read(ok + length + more + body, request, is_http=True)
        assert found == (("3", "web1.2"), is_last)
    for data, is_http, fate in (
        (b"", False, "closed"),
        (body[:-1], False, "broken"),
        (reply(other), False, "another's"),
        (b"\n" + body, False, "another's"),
        (b"", True, "closed"),
        (ok + length, True, "broken"),
        (ok + length + b"\r\n" + body[:-1], True, "broken"),
        (ok + b"\r\n" + body, True, "another length"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", True, "HTTP/1.1 503 Busy"),
    ):
        with pytest.raises(Fate) as caught:
            read(data, request, is_http=is_http)
        assert caught.value.name == fate
    with pytest.raises(Fate, match="another body"):
        parse(body + b"x", request, is_http=False)


class ResetWithin:
    """A kept connection whose peer resets it after some *pieces* of a later reply."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = iter(pieces)

    def recv(self, _size: int) -> bytes:
        for piece in self._pieces:
            return piece
        raise ConnectionResetError(104, "Connection reset by peer")

    def sendall(self, _data: bytes) -> None: ...

    def setsockopt(self, *_option: object) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize(("pieces", "fate"), [([], "raced"), ([b"HTTP/1.1 ", b"200"], "broken")])
def test_a_reset_within_a_later_reply_is_a_loss(pieces: list[bytes], fate: str) -> None:
    """Before its first byte it is a race; after that the client has lost a reply."""
    traffic = Traffic()
    assert traffic._ask(0, ResetWithin(*pieces), True, False, False) is None
    assert [visit.fate for visit in traffic.depart()["visits"]] == [fate]
    client = Client(Crowd(Plan(), Tally(0.0), {"http": 0}, 1.0), "http", 0.0)
    client.sock, client.replies = ResetWithin(*pieces), 1
    with pytest.raises(Fate) as caught:
        client.ask("reply", 0)
    assert caught.value.name == fate


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
        request = Request.decode(sock.recv(100).decode())
        sock.sendall((b"", b"", b"1", reply(request, 1))[end])


def _serve(handle: Callable[[Any, Any], None]) -> tuple[gevent.server.StreamServer, int]:
    server = gevent.server.StreamServer(("127.0.0.1", 0), handle)
    server.start()
    assert server.server_port is not None
    return server, server.server_port


def fates_of(port: int, count: int) -> Any:
    traffic = Traffic()
    traffic.arrive(port, 200, is_http=False)
    traffic.come(count)
    return {visit.fate for visit in traffic.depart()["visits"]}


def test_each_loss_has_its_name() -> None:
    """Resets, ends without a reply, parts of one; and refusals, without a listener."""
    server, port = _serve(Careless())
    try:
        assert fates_of(port, 20) == {"good", "broken", "closed", "reset"}
    finally:
        server.stop()
    assert fates_of(port, 4) == {"refused"}


def test_a_client_without_an_end_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without a reply is stuck; a client that breaks ends the process."""
    monkeypatch.setattr("loadtests.frame.traffic.GIVE_UP_SECONDS", -1.0)
    traffic = Traffic()
    traffic._open[7] = 1
    assert traffic.depart()["visits"] == [(7, 1, 0, "stuck", ())]
    traffic._spawn(lambda: None, "one argument too many")
    gevent.sleep(0)
    with pytest.raises(TypeError):
        traffic.depart()


def test_a_kept_connection_that_ends_unasked_is_no_failure() -> None:
    """One that ends with a later request on its way is raced; with the first, it is a loss."""
    ends: list[Any] = []

    def handle(sock: Any, _peer: Any) -> None:
        asked, end = sock.recv(1000), len(ends) % 3
        if end > 0:
            body = reply(Request.decode(asked.decode().split()[1]))
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        if end > 1:
            sock.recv(1000)
        ends.append(sock)  # which is closed now

    server, port = _serve(handle)
    try:
        traffic = Traffic()
        traffic.keep(port, 1, 0.001, 1)
        wait_until(lambda: len(ends) >= 9)
        found = traffic.depart()
    finally:
        server.stop()
    fates = [visit.fate for visit in found["visits"]]
    assert {*fates} == {"good", "raced", "closed"}
    assert fates.count("good") >= 5
    assert fates.count("closed") >= 3
    assert found["counts"]["met the end"] >= 1
    assert found["counts"]["connected"] >= 9


def test_another_address_than_the_clients_own_is_a_failure() -> None:
    """It is the first word of the reply, where the application is asked for it."""

    def handle(sock: Any, peer: Any) -> None:
        request = Request.decode(sock.recv(1000).decode())
        sock.sendall(reply(request, "{}:{}".format(*peer) if request.number % 2 else "10.0.0.1:1"))

    server, port = _serve(handle)
    try:
        traffic = Traffic()
        traffic.arrive(port, 200, is_http=False, names_us=True)
        traffic.come(4)
        visits = traffic.depart()["visits"]
    finally:
        server.stop()
    assert {(visit.number % 2, visit.fate) for visit in visits} == {
        (0, "another's address"),
        (1, "good"),
    }


def test_resets_are_resets() -> None:
    """A handler that waits for them sees it, whether its client has sent anything or not."""
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
        fates = Clients().reset_many(port, 8, is_http=False, seconds=0.001)
        wait_until(lambda: len(seen) == 8)
    finally:
        server.stop()
    assert fates == {}


def test_gevents_stop_loses_what_is_in_flight() -> None:
    """So the measure sees it: `gevent` stops, its process ends, and no reply is sent."""
    sizes: dict[str, Any] = {"slow": 3, "slow_seconds": 5, "idle": 2, "timeout": 1.0}
    answer = play("drain", lambda _: None, is_quick=True, others=["gevent"], **sizes)
    (table,) = answer.tables
    rows = {row[0]: row for row in table.rows}
    assert [*rows] == ["glb, HTTP", "gevent, HTTP", "glb, HTTPS", "gevent, HTTPS"]
    assert rows["gevent, HTTP"][1] == "0"
    assert rows["gevent, HTTP"][5].startswith("3 ")


def test_a_process_that_ends_is_told_of() -> None:
    """With its last words, and not by a wait that has no end."""
    with Worker("loadtests.workers") as server:
        server.order("open", kind="nonsense")
        with pytest.raises(RuntimeError, match=r"has ended: AttributeError: .*'nonsense'"):
            server.answer()


# -- tiny runs ----------------------------------------------------------------------------------


# Those are left out that need a compiler, and the one that the command is tried with.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ELSEWHERE])
def test_a_tiny_run_keeps_all_promises(name: str) -> None:
    """Few connections: no figures to quote, but the promises are the same."""
    told: list[str] = []
    answer = play(name, told.append, is_quick=True)
    assert [each for each in answer.promises if not each.is_kept] == []
    assert told == [name]
    assert answer.is_kept


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
    assert [each["kept"] for each in found["answers"]["exhaustion"]["promises"]] == [True] * 4
