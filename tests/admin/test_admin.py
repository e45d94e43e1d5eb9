"""What is seen of servers from outside is what they are, also while their hubs are stuck."""

from __future__ import annotations

import errno
import http.client
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from prometheus_client.parser import text_string_to_metric_families

import glb
from glb.admin import Admin
from glb.admin import server as server_module
from glb.admin.view import SHOWN_STATES
from glb.model.states import State
from glb.model.stats import CloneStats
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from ..support.helpers import ask, close_all, connect, http_get, is_refused, wait_until

ANY = ("127.0.0.1", 0)
ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "operations.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
SOON = 0.05


class Blocking:
    """A handler that blocks its hub natively at the word of its client.

    Attributes:
        blocked: Released by each handler that blocks.
        go_on: Ends the block of all.
    """

    def __init__(self) -> None:
        self.blocked = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, sock: Any, _peer: object) -> None:
        sock.sendall(b"x")
        if sock.recv(1) == b"b":
            self.blocked.release()
            assert self.go_on.wait(20)


@contextmanager
def started(server: StreamServer) -> Iterator[StreamServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def get(admin: Admin, path: str, method: str = "GET") -> tuple[int, str, str]:
    """Return status, type and body of a reply."""
    client = http.client.HTTPConnection("127.0.0.1", admin.address[1], timeout=10)
    try:
        client.request(method, path)
        reply = client.getresponse()
        return reply.status, reply.headers["Content-Type"], reply.read().decode()
    finally:
        client.close()


def in_thread(function: Callable[[], Any]) -> Any:
    """Return what *function* returns in a native thread, while this hub turns."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    wait_until(lambda: not thread.is_alive())
    thread.join()
    return found[0]


def seen(admin: Admin, path: str, method: str = "GET") -> tuple[int, str, str]:
    reply: tuple[int, str, str] = in_thread(lambda: get(admin, path, method))
    return reply


def statistics(clones: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what `clone_stats` has of what ``/clones`` has."""
    return [{name: each[name] for name in CloneStats._fields} for each in clones]


def samples(text: str) -> Callable[..., float]:
    """Return a function that gives the value of a metric on a page, by its name and labels."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            names = (each.name, *each.labels.values())
            found[names] = each.value
    return lambda *names: found[names]


# -- while all is well --------------------------------------------------------------------------


def test_a_server_is_ready_while_it_takes_clients() -> None:
    """Not before it has started, nor once it drains or has stopped."""
    server = StreamServer(ANY, lambda *_: None, clones=2)
    with Admin(server, ANY) as admin:
        assert seen(admin, "/readyz")[0] == 503
        with started(server):
            status, kind, body = seen(admin, "/readyz")
            assert (status, kind) == (200, "text/plain; charset=utf-8")
            assert body == f"127.0.0.1:{server.address[1]}: accepting\n"
            assert seen(admin, "/livez")[::2] == (200, "ok\n")
        status, _, body = seen(admin, "/readyz")
        assert (status, body.partition(": ")[2]) == (503, "stopped\n")
        assert seen(admin, "/livez")[0] == 200


def test_a_server_that_is_full_is_ready() -> None:
    """What comes waits in the accept queue; a restart would be no help."""
    server = StreamServer(ANY, Blocking(), clones=1, max_connections=1)
    with started(server), Admin(server, ANY) as admin:
        client = connect(server.address)
        assert client.recv(1) == b"x"
        wait_until(lambda: server.state.value == "full")
        assert seen(admin, "/readyz")[::2] == (200, f"127.0.0.1:{server.address[1]}: full\n")
        client.close()


def test_several_servers_are_ready_together() -> None:
    """One that isn't makes all of them unready, and is named."""
    servers = [StreamServer(ANY, lambda *_: None), WSGIServer(ANY, lambda *_: [], log=None)]
    with started(servers[0]), Admin(servers, ANY) as admin:
        assert seen(admin, "/readyz")[0] == 503
        with started(servers[1]):
            assert seen(admin, "/readyz")[0] == 200
            found = json.loads(seen(admin, "/clones")[2])["servers"]
            ports = [each["address"].rpartition(":")[2] for each in found]
            assert ports == [str(each.address[1]) for each in servers]


@pytest.mark.parametrize("hubs", [1, 2])
def test_clones_and_metrics_count_exactly(hubs: int) -> None:
    """As `clone_stats` does."""
    server = StreamServer(ANY, lambda sock, _: sock.sendall(b"x"), clones=4, hubs=hubs)
    with started(server), Admin(server, ANY) as admin:
        server.pause_clone(3)
        for _ in range(30):
            assert ask(server.address) == b"x"
        wait_until(lambda: sum(each.completed for each in server.clone_stats()) == 30)
        (found,) = json.loads(seen(admin, "/clones")[2])["servers"]
        assert statistics(found["clones"]) == [each._asdict() for each in server.clone_stats()]
        for clone in found["clones"]:
            assert clone["shown_state"] == clone["state"]
            assert clone["stalled_seconds"] == 0
        assert (found["state"], found["active"]) == ("accepting", 0)
        assert [each["index"] for each in found["hubs"]] == [*range(hubs)]
        values = samples(seen(admin, "/metrics")[2])
        address = f"127.0.0.1:{server.address[1]}"
        for each in server.clone_stats():
            labels = (address, str(each.index), str(each.hub))
            for name in ("accepted", "completed", "failed"):
                assert values(f"glb_connections_{name}_total", *labels) == getattr(each, name)
            assert values("glb_connections_active", *labels) == 0
            for state in ("accepting", "paused", "full", "stopped"):
                assert values("glb_clone_state", *labels, state) == (each.state == state)
        assert (
            values(
                "process_open_fds",
            )
            > 0
        )


def test_the_accept_queue_is_as_deep_as_clients_wait() -> None:
    """And as long as the backlog."""
    server = StreamServer(ANY, lambda *_: None, backlog=7, clones=1)
    with started(server), Admin(server, ANY) as admin:
        server.pause_clone(0)
        clients = [connect(server.address) for _ in range(3)]
        address = f"127.0.0.1:{server.address[1]}"
        values = samples(seen(admin, "/metrics")[2])
        assert values("glb_accept_queue_depth", address) == 3
        assert values("glb_accept_queue_limit", address) == 7
        close_all(clients)


def test_what_is_asked_otherwise_is_refused() -> None:
    """HEAD has no body; what is unknown gets a list of what there is."""
    server = StreamServer(ANY, lambda *_: None)
    with Admin(server, ANY) as admin:
        assert seen(admin, "/livez", "HEAD")[::2] == (200, "")
        assert seen(admin, "/livez", "POST")[0] == 405
        status, _, body = seen(admin, "/nothing")
        assert (status, body.split()) == (404, ["/", "/livez", "/readyz", "/clones", "/metrics"])


def test_a_unix_socket_will_do(tmp_path: Any) -> None:
    """For both."""
    server = StreamServer(f"unix:{tmp_path}/s", lambda *_: None, clones=1)
    with started(server), Admin(server, f"unix:{tmp_path}/a") as admin:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(admin.address)
            client.sendall(b"GET /clones HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            reply = b"".join(iter(lambda: client.recv(65536), b""))
        (found,) = json.loads(reply.partition(b"\r\n\r\n")[2])["servers"]
        assert found["address"] == f"unix:{tmp_path}/s"
        assert found["accept_queue"]["depth"] == 0


def test_the_docs_have_each_metric() -> None:
    """With its labels, in their order."""
    server = StreamServer(ANY, lambda *_: None, clones=1)
    with started(server), Admin(server, ANY) as admin:
        page = text_string_to_metric_families(seen(admin, "/metrics")[2])
        found = {
            (each.name, ", ".join(each.labels))
            for family in page
            for each in family.samples
            if each.name.startswith("glb_")
        }
    assert found == {*re.findall(r"^\| `(glb_\w+)` \| ([\w, ]+) \|", DOCS, re.MULTILINE)}


def test_the_docs_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """At other ports."""
    program, *_ = PROGRAMS
    seen_ready: list[bool] = []
    names: dict[str, Any] = {}

    def serve_forever(server: StreamServer) -> None:
        with started(server):
            seen_ready.append(http_get(server.address) == b"hi\n")

    monkeypatch.setattr(WSGIServer, "serve_forever", serve_forever)
    for port in (":8000", ":9000"):
        assert program.count(port) == 1
        program = program.replace(port, ":0")
    exec(program, names)
    assert seen_ready == [True]


def test_the_docs_program_that_drains_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a signal, which is one that ends nothing else here."""
    (program,) = [each for each in PROGRAMS if "serve_until_signal" in each]
    serve, replies = glb.serve_until_signal, []

    def serve_some(server: WSGIServer, **options: Any) -> None:
        def ask_and_end() -> None:
            wait_until(lambda: server.started)
            replies.append(http_get(("127.0.0.1", server.address[1])))
            os.kill(os.getpid(), signal.SIGUSR2)
            os.kill(os.getpid(), signal.SIGUSR2)

        gevent.spawn(ask_and_end)
        assert serve(server, **options, signals=[signal.SIGUSR2]) == signal.SIGUSR2
        assert not server.started

    monkeypatch.setattr(glb, "serve_until_signal", serve_some)
    exec(program.replace(":8000", ":0").replace("drain_delay=5", "drain_delay=0.01"), {})
    assert replies == [b"hi\n"]


# -- what the docs say of signals and states ----------------------------------------------------


def rows_of(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its head."""
    text = DOCS.partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    lines = [each for each in text.splitlines() if each.startswith("|")][2:]
    return [[cell.strip() for cell in each.strip("|").split("|")] for each in lines]


def test_the_docs_have_each_signal_that_is_heeded() -> None:
    """And what SIGWINCH does, which other servers heed."""
    heeded = {
        name
        for path in (ROOT / "glb" / "cli").glob("*.py")
        for name in re.findall(r"signal\.(SIG[A-Z]+[12]?)\b", path.read_text())
    }
    assert {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"} <= heeded
    told = {name for row in rows_of("Signals") for name in row[0].split(", ")}
    assert heeded | {"SIGUSR2", "SIGWINCH"} <= told


def test_the_docs_have_each_state() -> None:
    """With what /readyz makes of a server in it."""
    told = {row[0].strip("*"): row[2] for row in rows_of("States")}
    assert {*told} == {*SHOWN_STATES}
    for state in State:
        # Paused is a clone's, and its server accepts.
        is_ready = state in server_module._READY or state is State.PAUSED
        assert told[state.value] == ("200" if is_ready else "503")


# -- while hubs are stuck -----------------------------------------------------------------------


def clients_of(server: StreamServer, count: int) -> list[Any]:
    """Return clients that are served by one clone after the other."""
    clients = []
    for _ in range(count):
        client = connect(server.address)
        assert client.recv(1) == b"x"
        clients.append(client)
    return clients


@pytest.mark.parametrize("hubs", [1, 2])
def test_it_answers_while_every_hub_is_stuck(hubs: int, caplog: pytest.LogCaptureFixture) -> None:
    """And says which, for how long, and where; the log does so once. Then all is well again."""
    handle = Blocking()
    server = StreamServer(ANY, handle, clones=hubs, hubs=hubs)
    found: dict[str, Any] = {}

    def watch() -> None:
        try:
            for _ in range(hubs):
                assert handle.blocked.acquire(timeout=10)
            until = threading.Event()
            while get(admin, "/livez")[0] == 200:
                assert not until.wait(0.01)
            found["livez"] = get(admin, "/livez")
            found["clones"] = json.loads(get(admin, "/clones")[2])
            found["metrics"] = samples(get(admin, "/metrics")[2])
        finally:
            handle.go_on.set()

    with started(server), Admin(server, ANY, stall_limit=SOON) as admin:
        clients = clients_of(server, hubs)
        thread = threading.Thread(target=watch)
        thread.start()
        for client in clients:
            client.sendall(b"b")
        wait_until(lambda: not thread.is_alive())
        thread.join()
        wait_until(lambda: seen(admin, "/livez")[::2] == (200, "ok\n"))
        address = f"127.0.0.1:{server.address[1]}"
        close_all(clients)
    assert found["livez"][0] == 503
    for index in range(hubs):
        assert f"hub {index} of {address} has not turned for " in found["livez"][2]
        assert found["metrics"]("glb_hub_lag_seconds", address, str(index)) > SOON
        assert found["metrics"]("glb_hub_stalls_total", address, str(index)) == 1
    assert found["livez"][2].count("in wait") == hubs
    for each in found["clones"]["servers"][0]["hubs"]:
        assert each["is_stalled"]
        assert each["stalled_at"].endswith("in wait")
        assert each["lag_seconds"] > SOON
    # A loaded machine may hold up a hub in another way, before and after.
    lines = [each.getMessage() for each in caplog.records if "self.go_on.wait" in each.getMessage()]
    assert len(lines) == hubs
    assert all("in __call__" in each for each in lines)


@pytest.mark.parametrize("hubs", [2, 4])
def test_one_stuck_hub_is_shown_and_no_reason_to_restart(
    hubs: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler never returns: its hub and place are in /livez, /clones and the log, in time."""
    handle = Blocking()
    # So long that no other hub is taken for a stuck one, on a machine with much to do.
    server = StreamServer(ANY, handle, clones=hubs, hubs=hubs, patience=0.1)
    with started(server), Admin(server, ANY, stall_limit=0.5) as admin:
        clients = clients_of(server, hubs)
        clients[1].sendall(b"b")  # the second is on the hub with number 1
        assert handle.blocked.acquire(timeout=10)
        blocked_at = monotonic()

        def seen_now() -> dict[str, Any]:
            (found,) = json.loads(seen(admin, "/clones")[2])["servers"]
            return dict(found)

        def stalled() -> list[bool]:
            return [each["is_stalled"] for each in seen_now()["hubs"]]

        wait_until(lambda: stalled() == [index == 1 for index in range(hubs)])
        assert monotonic() - blocked_at < 10  # the limit, two looks of 0.1 s, and a busy machine
        status, _, body = seen(admin, "/livez")
        assert status == 200
        assert body.startswith("ok\nhub 1 of ")
        assert body.endswith("in wait\n")
        found, values = seen_now(), samples(seen(admin, "/metrics")[2])
        assert found["hubs"][1]["stalled_at"].endswith("in wait")
        for clone in found["clones"]:
            assert clone["state"] == "accepting"
            assert clone["shown_state"] == ("stalled" if clone["hub"] == 1 else "accepting")
            assert (clone["stalled_seconds"] > 0) == (clone["hub"] == 1)
            labels = (found["address"], str(clone["index"]), str(clone["hub"]))
            states = {each: values("glb_clone_state", *labels, each) for each in SHOWN_STATES}
            assert [each for each in states if states[each]] == [clone["shown_state"]]
        (line,) = [each.getMessage() for each in caplog.records]
        assert line.startswith("hub 1 of ")
        assert "in __call__" in line  # the handler's
        # The others are served, and what passes over the clone of the stuck hub is counted.
        for _ in range(3 * (hubs - 1)):
            clients += clients_of(server, 1)
        assert not server.clone_stats()[1].ready
        # To one turn for each time that it was away: see `glb.admin.passed_over`.
        assert seen_now()["clones"][1]["passed_over"] in ({"stalled": 2}, {"stalled": 3})
        handle.go_on.set()
        wait_until(lambda: stalled() == [False] * hubs)
        wait_until(lambda: seen_now()["clones"][1]["shown_state"] == "accepting")
        # To one turn for each time that it was away: see `glb.admin.passed_over`.
        assert seen_now()["clones"][1]["passed_over"] in ({"stalled": 2}, {"stalled": 3})
        close_all(clients)


# -- beginning and end --------------------------------------------------------------------------


def test_twice_is_once_and_the_address_is_free_afterwards() -> None:
    """It may be started again."""
    admin = Admin(StreamServer(ANY, lambda *_: None), ANY)
    assert admin.address is None
    admin.stop()
    for _ in range(2):
        assert admin.start() is admin.start()
        address = admin.address
        assert seen(admin, "/livez")[0] == 200
        admin.stop()
        admin.stop()
        assert admin.address is None
        assert is_refused(address)


def test_a_server_that_is_started_again_is_watched_again() -> None:
    """On other hubs, and at another port."""
    server = StreamServer(ANY, lambda sock, _: sock.sendall(b"x"), clones=2, hubs=2)
    with Admin(server, ANY, stall_limit=SOON) as admin:
        for _ in range(2):
            with started(server):
                (found,) = json.loads(seen(admin, "/clones")[2])["servers"]
                assert found["address"] == f"127.0.0.1:{server.address[1]}"
                wait_until(
                    lambda: len(json.loads(seen(admin, "/clones")[2])["servers"][0]["hubs"]) == 2
                )


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET /livez HT", id="a part of a head"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", id="a request"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3000, id="more than it reads"),
    ],
)
def test_a_probe_does_not_wait_for_a_place(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the client does that has the last one: it is closed."""
    monkeypatch.setattr(server_module, "_MOST_CLIENTS", 1)
    monkeypatch.setattr(server_module, "_CLIENT_SECONDS", 1000.0)
    with Admin(StreamServer(ANY, lambda *_: None), ANY) as admin:
        inside: Any = admin._server
        client = connect(admin.address)
        client.sendall(sent)
        wait_until(lambda: len(inside.clients) == 1)
        assert seen(admin, "/livez")[::2] == (200, "ok\n")
        wait_until(lambda: inside.active == 0)
        client.close()


def connect_in_turn(admin: Admin, count: int) -> list[Any]:
    """Connect *count* times, each when the one before has its place."""
    inside: Any = admin._server
    clients: list[Any] = []
    for _ in range(count):
        clients.append(connect(admin.address))
        wait_until(lambda: len(inside.clients) == len(clients))
    return clients


def test_a_new_client_has_the_place_of_the_one_that_was_silent_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not of one that has asked since; so there is a bound for how many there are."""
    monkeypatch.setattr(server_module, "_MOST_CLIENTS", 3)
    with Admin(StreamServer(ANY, lambda *_: None), ANY) as admin:
        inside: Any = admin._server
        clients = connect_in_turn(admin, 3)
        clients[0].sendall(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert clients[0].recv(1000).startswith(b"HTTP/1.1 200 OK")
        clients.append(connect(admin.address))
        assert clients[1].recv(1) == b""
        wait_until(lambda: inside.active == 3)
        clients += [connect(admin.address) for _ in range(9)]
        assert [clients[place].recv(1) for place in (2, 0, 3)] == [b""] * 3
        wait_until(lambda: inside.active == 3)
        close_all(clients)


def test_a_client_whose_request_has_come_keeps_its_place() -> None:
    """Its handler is about to run, though the client has been silent for longest until now."""
    with Admin(StreamServer(ANY, lambda *_: None), ANY) as admin:
        inside: Any = admin._server
        clients = connect_in_turn(admin, 2)
        is_inside, has_sent = threading.Event(), threading.Event()

        def make_room() -> None:
            is_inside.set()
            assert has_sent.wait(10)
            inside.make_room()

        assert admin._thread is not None
        admin._thread.send(make_room)
        assert is_inside.wait(10)
        clients[0].sendall(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        has_sent.set()
        assert clients[0].recv(1000).startswith(b"HTTP/1.1 200 OK")
        assert clients[1].recv(1) == b""
        close_all(clients)


def test_an_address_that_is_taken_leaves_nothing() -> None:
    """The error is bind's."""
    server = StreamServer(ANY, lambda *_: None)
    with started(server):
        admin = Admin(server, server.address)
        with pytest.raises(OSError, match=r"in use") as caught:
            admin.start()
        assert caught.value.errno == errno.EADDRINUSE
        assert admin.address is None


@pytest.mark.parametrize(
    ("servers", "limit", "error"),
    [
        ([], 1.0, "one server or more"),
        ([None], 1.0, "got None"),
        (["x"], 1.0, "got 'x'"),
        (7, 1.0, "servers must be glb's servers, got 7"),
        (None, 0, "more than 0 seconds, got 0"),
        (None, "1", "number of seconds, got '1'"),
        (None, None, "number of seconds, got None"),
    ],
)
def test_bad_arguments_are_refused(servers: Any, limit: Any, error: str) -> None:
    """With the value in the error."""
    given = StreamServer(ANY, lambda *_: None) if servers is None else servers
    with pytest.raises((TypeError, ValueError), match=error):
        Admin(given, ANY, stall_limit=limit)


def test_without_prometheus_client_all_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of metrics says what is missing."""
    monkeypatch.delitem(sys.modules, "glb.admin.metrics", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with Admin(StreamServer(ANY, lambda *_: None), ANY) as admin:
        assert seen(admin, "/livez")[0] == 200
        status, _, body = seen(admin, "/metrics")
        assert (status, body) == (
            501,
            "/metrics needs prometheus_client: pip install 'glb[metrics]'\n",
        )


def test_the_access_log_is_not_written(caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    """Probes come each second."""
    caplog.set_level(logging.DEBUG)
    with Admin(StreamServer(ANY, lambda *_: None), ANY) as admin:
        assert seen(admin, "/livez")[0] == 200
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
