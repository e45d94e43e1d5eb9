"""What servers count in /metrics is what happened: timeouts, pauses, durations, queues."""

from __future__ import annotations

import errno
import functools
import itertools
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event
from prometheus_client.parser import text_string_to_metric_families

from glb.admin import Admin
from glb.http.durations import BOUNDS, Durations, counts_of
from glb.model.stats import PAUSE_REASONS, TIMEOUT_KINDS
from glb.net.proxied import read_header
from glb.pywsgi import WSGIHandler, WSGIServer
from glb.server import StreamServer

from ..accept import test_watchdog as stalls
from ..fuzz.pages import ByHooks
from ..support.engine import entry_of, workers_of
from ..support.failing import failing_accepts
from ..support.helpers import Holder, ask, close_all, comes_true, connect, receive_all, wait_until
from ..support.tls import server_context
from .test_admin import ANY, Blocking, clients_of, get, samples, seen, started

SHORT = 0.02
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe"
PROMTOOL = shutil.which("promtool")
SS = shutil.which("ss")


def metrics(admin: Admin) -> Callable[..., float]:
    """Return a function that gives the value of a metric now, by its name and labels."""
    return samples(seen(admin, "/metrics")[2])


def name_of(server: StreamServer) -> str:
    return f"127.0.0.1:{server.address[1]}"


# -- timeouts -----------------------------------------------------------------------------------


def reads(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def waits(_environ: dict[str, Any], _start_response: Any) -> Any:
    Event().wait()


def sends(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", str(1 << 26))])
    return [bytes(1 << 26)]


#: Of each kind: the option, the application, what the client sends, and whether it reads.
TIMEOUTS: dict[str, tuple[str, Any, bytes, bool]] = {
    "handshake": ("handshake_timeout", reads, b"", True),
    "first_byte": ("first_byte_timeout", reads, b"", True),
    "head": ("first_byte_timeout", reads, b"GET /", True),
    "idle": ("first_byte_timeout", reads, GET, True),
    "body": ("body_timeout", reads, POST, True),
    "request": ("request_timeout", waits, GET, True),
    "send": ("send_timeout", sends, GET, False),
    "proxy_header": ("", reads, b"PRO", True),
}


@pytest.mark.parametrize("hubs", [1, 2])
@pytest.mark.parametrize("kind", TIMEOUTS)
def test_a_timeout_is_counted_once_by_its_kind(
    kind: str, hubs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And as no other; on the hub where it was."""
    option, application, sent, reads_on = TIMEOUTS[kind]
    options: dict[str, Any] = {option: SHORT} if option else {"proxy_protocol": "v1"}
    if kind == "handshake":
        options["ssl_context"] = server_context()
    read = functools.partial(read_header, seconds=SHORT)
    monkeypatch.setattr("glb.serve.proxied.read_header", read)
    made = WSGIServer(ANY, application, log=None, error_log=None, clones=2, hubs=hubs, **options)
    with started(made) as server, Admin(server, ANY) as admin:
        client = connect(server.address)
        client.sendall(sent)
        if reads_on:
            receive_all(client)
            client.close()
        wait_until(lambda: sum(each.completed + each.failed for each in server.clone_stats()) == 1)
        client.close()
        values, name = metrics(admin), name_of(server)
    for each in TIMEOUT_KINDS:
        for hub in range(hubs):
            found = values("glb_timeouts_total", name, str(hub), each)
            assert found == (each == kind and hub == 0), (each, hub)


def test_each_kind_of_timeout_is_here() -> None:
    """What is added to the metrics is added to these tests."""
    assert {*TIMEOUT_KINDS} == {*TIMEOUTS}


def test_a_server_that_starts_again_counts_on() -> None:
    """On new hubs."""
    server = WSGIServer(ANY, reads, log=None, clones=2, hubs=2, first_byte_timeout=SHORT)
    for times in (1, 2):
        with started(server), Admin(server, ANY) as admin:
            clients = [connect(server.address) for _ in range(2)]
            for client in clients:
                receive_all(client)
                client.close()
            values, name = metrics(admin), name_of(server)
        found = [values("glb_timeouts_total", name, hub, "first_byte") for hub in ("0", "1")]
        assert found == [times] * 2


# -- pauses, and what is taken back ---------------------------------------------------------------


def test_pauses_are_counted_by_their_reason() -> None:
    """Each once, however many clones or connections there are."""
    holder = Holder()
    with (
        started(StreamServer(ANY, holder, clones=3, max_connections=2)) as server,
        Admin(server, ANY) as admin,
    ):

        def pauses() -> dict[str, float]:
            values, name = metrics(admin), name_of(server)
            return {each: values("glb_accept_pauses_total", name, each) for each in PAUSE_REASONS}

        nothing = dict.fromkeys(PAUSE_REASONS, 0)
        assert pauses() == nothing
        clients = [connect(server.address) for _ in range(4)]
        holder.wait_for(2)
        wait_until(lambda: server.state.value == "full")
        assert pauses() == {**nothing, "full": 1}
        holder.release()
        for client in clients:
            receive_all(client)
        close_all(clients)
        full = pauses()["full"]
        with failing_accepts(entry_of(server), errno.EMFILE, 1) as fault:
            client = connect(server.address)
            assert receive_all(client) == b"done"
            client.close()
            assert fault.calls == 1
        assert pauses() == {**nothing, "full": full, "out_of_room": 1}


def test_a_rate_that_is_used_up_is_a_pause() -> None:
    """Until it may go on."""
    with (
        started(StreamServer(ANY, lambda *_: None, clones=2, accept_rate=10.0)) as server,
        Admin(server, ANY) as admin,
    ):
        for _ in range(2):
            ask(server.address)
        assert metrics(admin)("glb_accept_pauses_total", name_of(server), "rate") > 0


def test_a_handler_that_cant_be_started_is_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """As gevent backs off then."""
    fails = [True]

    def spawn(run: Any, *args: Any) -> object:
        if fails:
            fails.clear()
            raise RuntimeError("no room")
        return gevent.spawn(run, *args)

    reported: list[object] = []
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *args: reported.append(args))
    made = StreamServer(ANY, lambda sock, _: sock.sendall(b"x"), clones=1, spawn=spawn)
    made.min_delay = 0.001
    with started(made) as server, Admin(server, ANY) as admin:
        assert ask(server.address) == b""
        assert ask(server.address) == b"x"
        assert metrics(admin)("glb_accept_pauses_total", name_of(server), "error") == 1
    assert len(reported) == 1


def test_what_is_taken_back_is_counted_by_the_hub_that_let_it_lie() -> None:
    """Another one serves it."""
    handle = stalls.Blocking(1)
    with stalls.serving(handle) as server, Admin(server, ANY) as admin:
        server.pause_clone(0)
        with stalls.blocked(stalls.hub_of(server, 1)):
            clients = [connect(server.address) for _ in range(5)]
            inbox = workers_of(server)[1].dispatcher.inbox
            wait_until(lambda: len(inbox) == 5)
        wait_until(handle.inside.is_set)
        server.resume_clone(0)
        stalls.tick(stalls.watchdog_of(server), 4)
        assert [receive_all(client) for client in clients[1:]] == [b"0"] * 4
        values, name = metrics(admin), name_of(server)
        found = [values("glb_connections_taken_back_total", name, hub) for hub in ("0", "1")]
        assert found == [0, 4]
        handle.go_on.set()
        assert receive_all(clients[0]) == b"1"
        close_all(clients)


# -- durations ----------------------------------------------------------------------------------


def replies(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/fail":
        raise RuntimeError("no luck")
    if environ["PATH_INFO"] == "/switch":
        start_response("101 Switching Protocols", [("Upgrade", "x")])(b"")
        return []
    start_response(f"{environ['PATH_INFO'][1:] or 200} X", [("Content-Length", "0")])
    return []


@pytest.mark.parametrize("handler_class", [WSGIHandler, ByHooks])
@pytest.mark.parametrize("hubs", [1, 2])
def test_requests_are_counted_by_method_and_status(hubs: int, handler_class: Any) -> None:
    """Exactly, over all hubs; what clients make up is one method; websockets are not counted."""
    made = WSGIServer(
        ANY,
        replies,
        log=None,
        error_log=None,
        clones=4,
        hubs=hubs,
        handler_class=handler_class,
        request_histogram=True,
    )
    requests = [
        *[b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"] * 3,
        b"POST /404 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"MADE-UP / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"MADE-UP-TOO / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ]
    upgrade = b"GET /switch HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
    with started(made) as server, Admin(server, ANY) as admin:
        for _ in range(4):
            ask(server.address, b"".join(requests))
            ask(server.address, upgrade)
        wait_until(lambda: server.active == 0)
        page = seen(admin, "/metrics")[2]
        name = name_of(server)
    series = "http_server_request_duration_seconds"
    found = {
        tuple(each.labels.values()): each.value
        for family in text_string_to_metric_families(page)
        for each in family.samples
        if each.name == f"{series}_count"
    }
    assert found == {
        (name, "GET", "200"): 12,
        (name, "POST", "404"): 4,
        (name, "_OTHER", "200"): 12,
    }
    values = samples(page)
    assert values(f"{series}_bucket", name, "GET", "200", "+Inf") == 12
    assert 0 < values(f"{series}_sum", name, "GET", "200") < 12 * 10
    buckets = [values(f"{series}_bucket", name, "GET", "200", str(bound)) for bound in BOUNDS]
    assert buckets == sorted(buckets)


def test_nothing_is_counted_unless_it_is_asked_for() -> None:
    """There are no series."""
    with started(WSGIServer(ANY, replies, log=None)) as server, Admin(server, ANY) as admin:
        ask(server.address, LAST)
        assert "request_duration_seconds_count" not in seen(admin, "/metrics")[2]


def test_an_error_is_counted_as_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a reply that was cut off by its status."""
    monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
    made = WSGIServer(ANY, replies, log=None, error_log=None, request_histogram=True)
    with started(made) as server:
        ask(server.address, LAST.replace(b"/ ", b"/fail ", 1))
        assert made.durations is not None
        assert {*made.durations.total()} == {("GET", 500)}


@pytest.mark.parametrize(
    ("seconds", "place"),
    [(-1.0, 0), (0.0, 0), (0.005, 0), (0.0051, 1), (0.01, 1), (1.0, 9), (10.0, 13), (10.1, 14)],
)
def test_a_duration_is_in_the_first_bucket_that_has_room(
    seconds: float, place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upper end is its bucket's own; a clock that is set back makes no time."""
    clock = itertools.chain([0.0, 0.0], itertools.repeat(seconds))
    made = WSGIServer(ANY, replies, log=None, request_histogram=True, clones=1)
    with started(made) as server:
        with monkeypatch.context() as patch:
            patch.setattr("glb.http.replies.time", SimpleNamespace(time=lambda: next(clock)))
            next(clock)
            ask(server.address, LAST)
        assert made.durations is not None
        total, *counts = made.durations.total()["GET", 200]
    assert counts == [each == place for each in range(15)]
    assert total == max(0.0, seconds)


def test_methods_and_statuses_are_few() -> None:
    """However many clients make up; of a reply that was cut off, the status was sent."""
    durations = Durations()
    table = durations.table_here()
    for number in range(100):
        counts_of(table, f"M{number}", 200)[1] += 1
    counts_of(table, "GET", -200)[1] += 1
    counts_of(table, "GET", None)[1] += 1
    counts_of(table, "GET", 101)[1] += 1
    found = {key: counts[1] for key, counts in durations.total().items()}
    assert found == {("_OTHER", 200): 100, ("GET", 200): 1}


# -- seen by others -----------------------------------------------------------------------------


@pytest.fixture
def page() -> str:
    """All metrics of a server that has done something."""
    made = WSGIServer(ANY, replies, log=None, clones=2, hubs=2, request_histogram=True)
    with started(made) as server, Admin(server, ANY) as admin:
        for _ in range(4):
            ask(server.address, LAST)
        wait_until(lambda: server.active == 0)
        return seen(admin, "/metrics")[2]


@pytest.mark.process
@pytest.mark.skipif(PROMTOOL is None, reason="promtool isn't installed")
def test_promtool_finds_no_fault(page: str) -> None:
    """Debian's package *prometheus* has it."""
    assert PROMTOOL is not None
    checked = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stderr) == (0, "")


def series(page: str) -> list[str]:
    return [line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")]


def test_no_series_comes_twice(page: str) -> None:
    """Prometheus would take none of them."""
    names = series(page)
    assert len(names) == len({*names})


def test_servers_on_one_address_have_series_of_their_own() -> None:
    """By the order in which the administration has them; also before they start."""
    first = StreamServer(ANY, lambda *_: None, reuse_port=True)
    first.start()
    second = StreamServer(first.address, lambda *_: None, reuse_port=True)
    second.start()
    unbound = [StreamServer(ANY, lambda *_: None) for _ in range(2)]
    with Admin([first, second, *unbound], ANY) as admin:
        names = series(seen(admin, "/metrics")[2])
    first.stop()
    second.stop()
    assert len(names) == len({*names})
    where = name_of(first)
    for address in (where, f"{where} (2)", "", " (2)"):
        assert f'glb_connections_active{{address="{address}",clone="0",hub="0"}}' in names


@pytest.mark.process
@pytest.mark.skipif(SS is None, reason="ss isn't installed")
def test_the_queue_is_as_deep_as_ss_says() -> None:
    """And as long."""
    assert SS is not None
    with (
        started(StreamServer(ANY, lambda *_: None, backlog=9, clones=1)) as server,
        Admin(server, ANY) as admin,
    ):
        server.pause_clone(0)
        clients = [connect(server.address) for _ in range(4)]
        command = [SS, "-ltnH", f"sport = :{server.address[1]}"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        values = metrics(admin)
        found = [values(f"glb_accept_queue_{each}", name_of(server)) for each in ("depth", "limit")]
        assert found == [int(each) for each in shown[1:3]] == [4, 9]
        close_all(clients)


@pytest.mark.thorough
@pytest.mark.parametrize("hubs", [1, 4])
def test_metrics_come_soon_while_every_hub_is_blocked_for_2_seconds(hubs: int) -> None:
    """In less than 100 ms; the lag is above 1 s by then."""
    handle = Blocking()
    made = StreamServer(ANY, handle, clones=hubs, hubs=hubs)
    found: list[tuple[float, list[float]]] = []

    def watch(admin: Admin, name: str) -> None:
        until, lags = threading.Event(), [0.0]
        try:
            for _ in range(hubs):
                assert handle.blocked.acquire(timeout=10)
            began = time.monotonic()
            while time.monotonic() < began + 2 or min(lags) < 1:
                asked_at = time.monotonic()
                values = samples(get(admin, "/metrics")[2])
                took = time.monotonic() - asked_at
                lags = [values("glb_hub_lag_seconds", name, str(hub)) for hub in range(hubs)]
                found.append((took, lags))
                assert not until.wait(0.05)
        finally:
            handle.go_on.set()

    with started(made) as server, Admin(server, ANY) as admin:
        clients = clients_of(server, hubs)
        thread = threading.Thread(target=watch, args=(admin, name_of(server)))
        thread.start()
        for client in clients:
            client.sendall(b"b")
        assert comes_true(lambda: not thread.is_alive(), 30)
        thread.join()
        close_all(clients)
    assert min(found[-1][1]) > 1
    # Most of them: other programs have the machine, too.
    assert sorted(took for took, _ in found)[len(found) // 2] < 0.1
