"""Drains: no new connections, what is in flight finishes, what is idle is closed."""

from __future__ import annotations

import gc
import logging
import threading
from typing import Any
from weakref import WeakSet

import gevent
import gevent.ssl
import gevent.tests
import pytest
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool

import glb
from glb.hubs.signals import ask as run_there
from glb.hubs.threads import HubThread
from glb.model.states import State
from glb.model.stats import DrainReport
from glb.pywsgi import WSGIHandler, WSGIServer
from glb.serve.drain_worker import DrainPlan
from glb.server import StreamServer

from ..support.engine import admission_of, callers_of, idle_here, workers_of
from ..support.helpers import (
    Holder,
    Looks,
    SkippingClock,
    ask,
    close_all,
    connect,
    http_get,
    is_refused,
    let_hub_turn,
    receive_all,
    wait_until,
)
from ..support.tls import client_context, server_context

LOCAL = ("127.0.0.1", 0)
NEVER = 1000  # so that no hub counts as stalled, however busy the machine is
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"

on_one_and_two_hubs = pytest.mark.parametrize("hubs", [1, 2])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SkippingClock:
    """The clock by which connections are closed."""
    return SkippingClock(monkeypatch)


class Application:
    """Replies at once, but for what is slow: that waits until it may."""

    def __init__(self) -> None:
        self.may_reply = threading.Event()
        self.begun = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        path = environ["PATH_INFO"]
        self.begun += 1
        if path == "/slow":
            while not self.may_reply.is_set():
                gevent.sleep(0.001)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]


def request(client: socket.socket, data: bytes = GET) -> bytes:
    """Send *data*, and return the whole reply to it."""
    client.sendall(data)
    reply = b""
    while b"\r\n\r\nok" not in reply:
        received = client.recv(1000)
        assert received, "the connection was closed before the reply"
        reply += received
    return reply


def start_with_client(server: StreamServer) -> socket.socket:
    """Start *server*, and return a client that a handler has begun to serve."""
    server.start()
    client = connect(server.address)
    wait_until(lambda: server.active == 1)
    return client


def begin_drain(server: StreamServer, timeout: float | None = 10) -> Any:
    """Return the greenlet in which *server* drains, from when it does so."""
    draining = gevent.spawn(server.drain, timeout)
    wait_until(lambda: server.is_draining)
    return draining


def counts(report: DrainReport | None) -> tuple[int, int, int]:
    """Return *report* without the time."""
    assert report is not None
    return report[:3]


# -- HTTP -------------------------------------------------------------------------------------


@on_one_and_two_hubs
def test_requests_in_flight_finish_and_idle_connections_are_closed(hubs: int) -> None:
    """200s for clients that asked, which say that they are the last; a clean end for idle ones."""
    application = Application()
    server = WSGIServer(LOCAL, application, clones=3, hubs=hubs, patience=NEVER, log=None)
    server.start()
    idle = [connect(server.address) for _ in range(5)]
    for client in idle:
        assert b"Connection: close" not in request(client)
    busy = [connect(server.address) for _ in range(4)]
    for client in busy:
        client.sendall(SLOW)
    wait_until(lambda: application.begun == 9)
    draining = gevent.spawn(server.drain, 10)
    for client in idle:
        assert client.recv(100) == b""
    assert server.is_draining and server.state is State.DRAINING
    assert {clone.state for clone in server.clone_stats()} == {"draining"}
    assert is_refused(server.address)
    application.may_reply.set()
    for client in busy:
        reply = receive_all(client)
        assert reply.startswith(b"HTTP/1.1 200 OK") and reply.endswith(b"ok")
        assert b"Connection: close\r\n" in reply
    assert counts(draining.get()) == (4, 5, 0)
    assert (server.state.value, server.active) == ("stopped", 0)
    close_all(idle + busy)


def test_an_applications_own_connection_header_gives_way() -> None:
    """There is one Connection header, whatever the application wishes."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/drain":
            draining.append(gevent.spawn(server.drain, 10))
            wait_until(lambda: server.is_draining)
        start_response("200 OK", [("Content-Length", "2"), ("Connection", "keep-alive")])
        return [b"ok"]

    draining: list[Any] = []
    server = WSGIServer(LOCAL, application, clones=1, log=None)
    server.start()
    client = connect(server.address)
    assert b"Connection: keep-alive\r\n" in request(client)
    client.sendall(GET.replace(b"GET /", b"GET /drain"))
    reply = receive_all(client)
    assert reply.count(b"Connection:") == 1 and b"Connection: close\r\n" in reply
    assert counts(draining[0].get()) == (1, 0, 0)
    client.close()


def test_a_request_that_has_come_before_the_close_is_served() -> None:
    """A request in the socket's buffer when the drain begins is in flight."""
    application = Application()
    application.may_reply.set()
    server = WSGIServer(LOCAL, application, clones=1, log=None)
    server.start()
    client = connect(server.address)
    request(client)
    wait_until(lambda: idle_here(server) is not None and len(idle_here(server)) == 1)
    client._sock.send(GET)  # type: ignore[attr-defined]  # gevent's  # and no turn of the hub in between
    report = server.drain(10)
    reply = receive_all(client)
    assert reply.endswith(b"ok") and b"Connection: close\r\n" in reply
    assert counts(report) == (1, 0, 0)
    client.close()


def assert_silent_one_stays(
    server: WSGIServer, looks: Looks, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    """One of two clients has left; the drain leaves the other alone until *seconds* are none."""
    wait_until(lambda: server.active == 1)
    looks.wait()
    assert server.active == 1
    monkeypatch.setattr(f"glb.serve.drain_worker.{seconds}", 0.0)


def test_a_client_that_has_just_connected_has_time_for_a_first_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A new client has no reason to think that it might be closed."""
    looks = Looks(monkeypatch)
    monkeypatch.setattr("glb.serve.drain_worker.FIRST_REQUEST_SECONDS", 1000.0)
    application = Application()
    application.may_reply.set()
    server = WSGIServer(LOCAL, application, clones=2, log=None)
    server.start()
    speaks, silent = connect(server.address), connect(server.address)
    wait_until(lambda: server.active == 2)
    draining = begin_drain(server)
    looks.wait()
    assert b"Connection: close\r\n" in request(speaks)
    assert_silent_one_stays(server, looks, monkeypatch, "FIRST_REQUEST_SECONDS")
    assert silent.recv(10) == b""
    assert counts(draining.get()) == (1, 1, 0)
    close_all([speaks, silent])


@pytest.mark.parametrize("hubs", [1, 2])
def test_a_busy_kept_alive_client_learns_of_the_end_by_a_reply(
    monkeypatch: pytest.MonkeyPatch, hubs: int
) -> None:
    """Its connection isn't closed while its next request may be on the way."""
    looks = Looks(monkeypatch)
    monkeypatch.setattr("glb.serve.drain_worker.NOTICE_SECONDS", 1000.0)
    application = Application()
    application.may_reply.set()
    server = WSGIServer(LOCAL, application, clones=2, hubs=hubs, log=None)
    server.start()
    busy, silent = connect(server.address), connect(server.address)
    for client in (busy, silent):
        assert b"Connection: close\r\n" not in request(client)
    draining = begin_drain(server)
    looks.wait()
    assert b"Connection: close\r\n" in request(busy)
    assert busy.recv(10) == b""
    assert_silent_one_stays(server, looks, monkeypatch, "NOTICE_SECONDS")
    assert silent.recv(10) == b""
    assert counts(draining.get()) == (1, 1, 0)
    close_all([busy, silent])


def test_a_notice_is_no_longer_than_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of what handlers have, at most; and replies have announced the end during a delay."""
    monkeypatch.setattr("glb.serve.drain_worker.NOTICE_SECONDS", 4.0)
    assert DrainPlan(None, kill=True).notice == 4
    assert DrainPlan(2, kill=True).notice == 1
    assert DrainPlan(None, kill=True, delay=1).notice == 3
    assert DrainPlan(None, kill=True, delay=9).notice == 0


def test_a_handler_class_of_gevents_own_drains_by_requests_and_deadline() -> None:
    """Its idle connections are not known: they end at the deadline."""
    from gevent.pywsgi import WSGIHandler as GeventWSGIHandler

    application = Application()
    server = WSGIServer(LOCAL, application, clones=1, log=None, handler_class=GeventWSGIHandler)
    server.start()
    client = connect(server.address)
    request(client)
    assert counts(server.drain(0.1)) == (0, 0, 1)
    assert client.recv(10) == b""
    client.close()


def test_our_handler_class_serves_gevents_own_server() -> None:
    """It asks a server that knows nothing of drains for nothing."""
    import gevent.pywsgi

    server = gevent.pywsgi.WSGIServer(LOCAL, Application(), handler_class=WSGIHandler, log=None)
    server.start()
    assert http_get(server.address) == b"ok"
    server.stop()


def test_tls_connections_get_their_close_notify() -> None:
    """Idle or busy, the client can tell the end from a cut."""
    serving, asking = server_context(), client_context()
    application = Application()
    server = WSGIServer(LOCAL, application, clones=2, log=None, ssl_context=serving)
    server.start()

    def secured() -> Any:
        return asking.wrap_socket(connect(server.address), suppress_ragged_eofs=False)

    idle, busy = secured(), secured()
    request(idle)
    busy.sendall(SLOW)
    wait_until(lambda: application.begun == 2)
    draining = gevent.spawn(server.drain, 10)
    assert idle.recv(10) == b""  # a cut would raise
    application.may_reply.set()
    assert receive_all(busy).endswith(b"ok")
    assert counts(draining.get()) == (1, 1, 0)
    close_all([idle, busy])


# -- streams ----------------------------------------------------------------------------------


@on_one_and_two_hubs
@pytest.mark.parametrize("spawn", ["default", 10, "pool", "gevent"])
def test_what_remains_at_the_deadline_is_killed(hubs: int, spawn: Any) -> None:
    """Whatever runs the handlers: it is counted, closed, and gone when the drain returns."""
    if spawn == "pool":
        if hubs > 1:
            return  # a pool belongs to one hub
        spawn = Pool(10)
    elif spawn == "gevent":
        spawn = gevent.spawn
    ended = []

    def handle(sock: Any, _peer: Any) -> None:
        try:
            sock.sendall(b"x")
            gevent.sleep(60)
        finally:
            ended.append(True)

    server = StreamServer(LOCAL, handle, clones=2, hubs=hubs, patience=NEVER, spawn=spawn)
    server.start()
    clients = [connect(server.address) for _ in range(3)]
    for client in clients:
        assert client.recv(1) == b"x"
    assert counts(server.drain(0.05)) == (0, 0, 3)
    assert len(ended) == 3 and server.active == 0
    for client in clients:
        assert client.recv(1) == b""
    close_all(clients)


@on_one_and_two_hubs
def test_streams_that_say_when_they_are_idle_are_closed_then(hubs: int) -> None:
    """A handler in `glb.idle` reads the end of the stream; one that works goes on."""
    may_go_on = threading.Event()
    working = []

    def handle(sock: Any, _peer: Any) -> None:
        while True:
            with glb.idle():
                line = sock.recv(100)
            if not line:
                sock.sendall(b"bye")
                return
            if line == b"work":
                working.append(True)
                while not may_go_on.is_set():
                    gevent.sleep(0.001)
            sock.sendall(line)

    server = StreamServer(LOCAL, handle, clones=2, hubs=hubs, patience=NEVER)
    server.start()
    idle, busy = connect(server.address), connect(server.address)
    idle.sendall(b"a")
    assert idle.recv(10) == b"a"
    busy.sendall(b"work")
    wait_until(lambda: bool(working))
    draining = gevent.spawn(server.drain, 10)
    assert receive_all(idle) == b"bye"
    may_go_on.set()
    assert receive_all(busy) == b"workbye"
    # The second was idle again before it was closed.
    assert counts(draining.get()) == (0, 2, 0)
    close_all([idle, busy])


def test_streams_without_spread_are_left_to_finish() -> None:
    """A stream in flight is not closed unless `spread` says so; its client ends it."""
    server = StreamServer(LOCAL, lambda sock, _: sock.sendall(sock.recv(10)), clones=2)
    client = start_with_client(server)
    draining = begin_drain(server)
    client.sendall(b"in time")
    assert receive_all(client) == b"in time"
    assert counts(draining.get()) == (1, 0, 0)
    client.close()


@on_one_and_two_hubs
def test_spread_closes_long_lived_connections_one_after_another(hubs: int) -> None:
    """Evenly over the window, in whatever order; no handler is killed."""
    server = StreamServer(LOCAL, lambda sock, _: sock.recv(10), clones=4, hubs=hubs, patience=NEVER)
    server.start()
    clients = [connect(server.address) for _ in range(8)]
    wait_until(lambda: server.active == 8)
    began = gevent.get_hub().loop.now()
    ends: list[float] = []

    def watch(client: socket.socket) -> None:
        assert client.recv(10) == b""
        gevent.get_hub().loop.update_now()
        ends.append(gevent.get_hub().loop.now() - began)

    watchers = [gevent.spawn(watch, client) for client in clients]
    report = server.drain(10, spread=0.4)
    gevent.joinall(watchers, raise_error=True)
    assert counts(report) == (0, 8, 0)
    for place, end in enumerate(sorted(ends)):
        assert end >= 0.05 * place - 0.01
    assert report.seconds >= 0.3
    close_all(clients)


def test_spread_closes_upgraded_connections_of_http() -> None:
    """A websocket is a stream; a reply that streams is not."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/ws":
            write = start_response(
                "101 Switching Protocols", [("Upgrade", "x"), ("Connection", "Upgrade")]
            )
            write(b"")
            assert environ["wsgi.input"].read(1) == b""
            return []
        start_response("200 OK", [("Content-Length", "2")])
        busy.set()
        may_reply.wait()
        return [b"ok"]

    busy, may_reply = Event(), Event()
    server = WSGIServer(LOCAL, application, clones=2, log=None)
    server.start()
    upgraded, streams = connect(server.address), connect(server.address)
    upgraded.sendall(b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
    assert b"101 Switching" in upgraded.recv(1000)
    streams.sendall(GET)
    busy.wait()
    draining = gevent.spawn(server.drain, 10, spread=0.1)
    assert receive_all(upgraded) == b""
    gevent.sleep(0.15)
    may_reply.set()
    assert receive_all(streams).endswith(b"ok")
    assert counts(draining.get()) == (1, 1, 0)
    close_all([upgraded, streams])


# -- the address ------------------------------------------------------------------------------


@on_one_and_two_hubs
def test_a_drain_serves_the_accept_queue_first(hubs: int) -> None:
    """The last server of an address empties the accept queue before it leaves."""
    server = StreamServer(
        LOCAL, lambda sock, _: sock.sendall(b"ok"), clones=2, hubs=hubs, patience=NEVER
    )
    server.start()
    server.stop_accepting()
    clients = [connect(server.address) for _ in range(20)]
    server.start_accepting()
    report = server.drain(10)
    assert [receive_all(client) for client in clients] == [b"ok"] * 20
    assert report.killed == 0
    close_all(clients)


def test_without_linger_the_address_is_free_at_once() -> None:
    """A client in the queue is reset then, as by any server that closes."""
    server = StreamServer(LOCAL, lambda sock, _: sock.sendall(b"ok"), clones=2)
    server.start()
    server.stop_accepting()
    client = connect(server.address)
    assert counts(server.drain(10, linger=0)) == (0, 0, 0)
    assert is_refused(server.address)
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()


def test_linger_is_bounded_where_no_clone_accepts() -> None:
    """All paused by their owner: the queue is not emptied, and the drain ends all the same."""
    server = StreamServer(LOCAL, lambda sock, _: sock.sendall(b"ok"), clones=1)
    server.start()
    server.pause_clone(0)
    client = connect(server.address)
    assert server.drain(10, linger=0.05).seconds < 5
    client.close()


def test_a_unix_socket_lets_no_client_in_while_its_queue_is_emptied(tmp_path: Any) -> None:
    """All clients that were let in are served, and the path is free."""
    path = str(tmp_path / "socket")
    server = StreamServer(f"unix:{path}", lambda sock, _: sock.sendall(b"ok"), clones=2)
    server.start()
    server.stop_accepting()
    clients = [connect(path) for _ in range(5)]
    server.start_accepting()
    server.drain(10)
    assert [receive_all(client) for client in clients] == [b"ok"] * 5
    assert is_refused(path)
    close_all(clients)


@on_one_and_two_hubs
def test_a_second_server_takes_over(hubs: int) -> None:
    """On a shared address the queue is the next server's, with all turns: no client is lost."""
    first = StreamServer(
        LOCAL,
        lambda sock, _: sock.sendall(b"1"),
        clones=2,
        hubs=hubs,
        patience=NEVER,
        reuse_port=True,
    )
    first.start()
    assert [ask(first.address) for _ in range(2)] == [b"1"] * 2
    second = StreamServer(
        first.address,
        lambda sock, _: sock.sendall(b"2"),
        clones=2,
        hubs=hubs,
        patience=NEVER,
        reuse_port=True,
    )
    second.start()
    first.stop_accepting()
    second.stop_accepting()
    clients = [connect(first.address) for _ in range(10)]
    second.start_accepting()
    first.drain(10)
    assert [receive_all(client) for client in clients] == [b"2"] * 10
    assert [ask(second.address) for _ in range(2)] == [b"2"] * 2
    second.drain(10)
    close_all(clients)


# -- a full server ----------------------------------------------------------------------------

FULL_OF = 4

#: Each way in which a server is full with so many connections: its hubs, and its arguments.
WAYS_TO_BE_FULL: dict[str, tuple[int, Any]] = {
    "number": (1, lambda: {"spawn": FULL_OF}),
    "number, 2 hubs": (2, lambda: {"spawn": FULL_OF}),
    "pool": (1, lambda: {"spawn": Pool(FULL_OF)}),
    "most": (1, lambda: {"max_connections": FULL_OF}),
    "most, 2 hubs": (2, lambda: {"max_connections": FULL_OF}),
    "most, fresh greenlets": (1, lambda: {"max_connections": FULL_OF, "spawn": gevent.spawn}),
    "clone": (1, lambda: {"max_connections_per_clone": FULL_OF // 2}),
    "clone, 2 hubs": (2, lambda: {"max_connections_per_clone": FULL_OF // 2}),
}

full_in_each_way = pytest.mark.parametrize("way", [*WAYS_TO_BE_FULL])


def begin_lingering(server: StreamServer, timeout: float | None = None) -> Any:
    """Return the greenlet in which *server* drains, which waits for room as long as it takes."""
    draining = gevent.spawn(server.drain, timeout, linger=1000)
    wait_until(lambda: server.is_draining)
    return draining


@full_in_each_way
@pytest.mark.parametrize("kind", ["stream", "http", "tls"])
def test_a_full_server_closes_idle_connections_and_serves_the_queue(way: str, kind: str) -> None:
    """Room comes at once, the whole queue is served, and the server drains from the beginning."""
    hubs, make_arguments = WAYS_TO_BE_FULL[way]
    states: list[State] = []

    def handle(sock: Any, _peer: Any) -> None:
        while True:
            with glb.idle():
                data = sock.recv(100)
            if not data:
                return
            states.append(server.state)
            sock.sendall(b"ok")

    def application(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        states.append(server.state)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    arguments = {**make_arguments(), "clones": 2, "hubs": hubs, "patience": NEVER}
    serving, asking = server_context(), client_context()
    if kind == "tls":
        arguments["ssl_context"] = serving
    server: StreamServer
    if kind == "http":
        server = WSGIServer(LOCAL, application, log=None, **arguments)
    else:
        server = StreamServer(LOCAL, handle, **arguments)
    server.start()

    def speak(client: socket.socket) -> tuple[Any, bytes]:
        """Ask on *client*, and read the reply, which comes when the server has room."""
        if kind == "tls":
            client = asking.wrap_socket(client, suppress_ragged_eofs=False)
        if kind == "http":
            return client, request(client)
        client.sendall(b"x")
        return client, client.recv(100)

    idle = [speak(connect(server.address))[0] for _ in range(FULL_OF)]
    workers = workers_of(server)
    wait_until(lambda: sum(len(each.idle or ()) for each in workers) == FULL_OF)
    wait_until(lambda: server.state is State.FULL)
    waiting = [connect(server.address) for _ in range(3 * FULL_OF)]
    asks = [gevent.spawn(speak, client) for client in waiting]
    draining = begin_lingering(server)
    for client in idle:
        assert client.recv(100) == b""
    served = []
    for each in asks:
        client, reply = each.get()
        assert reply.endswith(b"ok") and (kind != "http" or b"Connection: close\r\n" in reply)
        assert client.recv(100) == b""  # a clean end, once it has its reply
        served.append(client)
    report = draining.get()
    assert (report.finished + report.closed_idle, report.killed) == (4 * FULL_OF, 0)
    assert report.closed_idle >= FULL_OF
    assert states[FULL_OF:] == [State.DRAINING] * 3 * FULL_OF
    assert (server.state, server.active) == (State.STOPPED, 0)
    close_all([*idle, *served])


@full_in_each_way
def test_a_full_server_that_drains_is_not_ready(way: str) -> None:
    """Its state and its clones' say so while it waits for room, and when it has some."""
    hubs, make_arguments = WAYS_TO_BE_FULL[way]
    arguments = {**make_arguments(), "clones": 2, "hubs": hubs, "patience": NEVER}
    may_end = threading.Event()

    def handle(sock: Any, _peer: Any) -> None:
        seen.append((server.is_ready, [(each.ready, each.state) for each in server.clone_stats()]))
        while not may_end.is_set():
            gevent.sleep(0.001)
        sock.sendall(b"ok")

    seen: list[Any] = []
    server = StreamServer(LOCAL, handle, **arguments)
    server.start()
    busy = [connect(server.address) for _ in range(FULL_OF)]
    wait_until(lambda: len(seen) == FULL_OF and server.state is State.FULL)
    late = connect(server.address)
    draining = begin_lingering(server)
    del seen[:]
    assert not server.is_ready
    may_end.set()
    assert [receive_all(client) for client in (*busy, late)] == [b"ok"] * (FULL_OF + 1)
    assert seen == [(False, [(False, "draining")] * 2)]
    assert counts(draining.get()) == (FULL_OF + 1, 0, 0)
    close_all([*busy, late])


@on_one_and_two_hubs
@pytest.mark.parametrize("kind", ["stream", "http"])
def test_a_client_that_is_accepted_late_has_a_second_from_then_on(
    hubs: int, kind: str, clock: SkippingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the drain has waited for room by then; and no longer than that."""
    looks = Looks(monkeypatch)
    application = Application()

    def handle(sock: Any, _peer: Any) -> None:
        while True:
            with glb.idle():
                data = sock.recv(100)
            if not data:
                return
            application({"PATH_INFO": "/slow" if data == SLOW else "/"}, lambda *_: None)
            sock.sendall(b"\r\n\r\nok")

    arguments: Any = {"clones": 2, "hubs": hubs, "patience": NEVER, "max_connections": 2}
    server: StreamServer
    if kind == "http":
        server = WSGIServer(LOCAL, application, log=None, **arguments)
    else:
        server = StreamServer(LOCAL, handle, **arguments)
    server.start()
    busy = [connect(server.address) for _ in range(2)]
    for client in busy:
        client.sendall(SLOW)
    wait_until(lambda: application.begun == 2 and server.state is State.FULL)
    late, silent = connect(server.address), connect(server.address)
    draining = begin_lingering(server)
    clock.skip(500)
    application.may_reply.set()
    for client in busy:
        assert receive_all(client).endswith(b"ok")
    workers = workers_of(server)
    wait_until(lambda: sum(len(each.idle or ()) for each in workers) == 2)
    looks.wait()
    clock.skip(50)
    looks.wait()
    assert request(late).endswith(b"ok")
    assert late.recv(10) == b""
    looks.wait()
    assert server.active == 1
    clock.skip(51)
    assert silent.recv(10) == b""
    assert draining.get().killed == 0
    close_all([*busy, late, silent])


def test_a_client_that_connected_before_has_a_second_from_the_drain_on(
    clock: SkippingClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser that has connected in advance is closed then, however long ago that was."""
    looks = Looks(monkeypatch)

    def handle(sock: Any, _peer: Any) -> None:
        with glb.idle():
            sock.recv(100)

    server = StreamServer(LOCAL, handle, clones=1)
    client = start_with_client(server)
    wait_until(lambda: idle_here(server) is not None and len(idle_here(server)) == 1)
    clock.skip(500)
    draining = begin_drain(server, None)
    clock.skip(50)
    looks.wait()
    assert server.active == 1
    clock.skip(51)
    assert client.recv(10) == b""
    assert counts(draining.get()) == (0, 1, 0)
    client.close()


@on_one_and_two_hubs
def test_the_deadline_holds_while_a_full_server_waits_for_room(hubs: int) -> None:
    """What is in flight then is killed, and counted; what waits in the queue is reset."""
    server = StreamServer(
        LOCAL, lambda *_: gevent.sleep(60), clones=2, hubs=hubs, patience=NEVER, spawn=2
    )
    server.start()
    busy = [connect(server.address) for _ in range(2)]
    wait_until(lambda: server.state is State.FULL and server.active == 2)
    waiting = connect(server.address)
    assert counts(server.drain(0.05, linger=1000)) == (0, 0, 2)
    assert server.active == 0
    with pytest.raises(ConnectionResetError):
        waiting.recv(1)
    close_all([*busy, waiting])


@on_one_and_two_hubs
@pytest.mark.parametrize("how", ["stop", "close", "kill"])
def test_a_full_server_that_waits_for_room_can_be_ended(
    hubs: int, how: str, clock: SkippingClock
) -> None:
    """A stop kills what is in flight; a close, and a kill of the drain, leave it to finish."""
    may_end = threading.Event()

    def handle(sock: Any, _peer: Any) -> None:
        while not may_end.is_set():
            gevent.sleep(0.001)
        sock.sendall(b"end")

    server = StreamServer(LOCAL, handle, clones=2, hubs=hubs, patience=NEVER, spawn=2)
    server.start()
    busy = [connect(server.address) for _ in range(2)]
    # It is full, too, while one is on its way to the other hub.
    wait_until(lambda: server.state is State.FULL and server.active == 2)
    waiting = connect(server.address)
    draining = begin_lingering(server, 500)
    if how == "stop":
        server.stop(0)
        assert counts(draining.get()) == (0, 0, 2)
    elif how == "close":
        server.close()
        assert counts(draining.get()) == (0, 0, 0)
    else:
        draining.kill()
    assert server.state is State.STOPPED and glb.registry.entries() == []
    if how != "stop":
        clock.skip(1000)  # past the deadline of what was called off
        gevent.sleep(0.05)  # in which it would have looked several times
        assert server.active == 2
    may_end.set()
    ends = [receive_all(client) for client in busy]
    assert ends == ([b""] * 2 if how == "stop" else [b"end"] * 2)
    wait_until(lambda: server.active == 0)
    wait_until(lambda: not any(worker.watched for worker in workers_of(server)))
    close_all([*busy, waiting])


@pytest.mark.parametrize("spawn", ["default", "number", "gevent"])
def test_what_killed_handlers_held_is_freed_as_they_end(spawn: str) -> None:
    """Without the garbage collector, which would look through thousands again and again."""

    class Held:
        pass

    def handle(_sock: Any, _peer: Any) -> None:
        held = Held()
        helds.add(held)
        gevent.sleep(60)

    ways: dict[str, Any] = {"default": "default", "number": 10, "gevent": gevent.spawn}
    helds: WeakSet[Held] = WeakSet()
    server = StreamServer(LOCAL, handle, clones=2, spawn=ways[spawn])
    server.start()
    clients = [connect(server.address) for _ in range(5)]
    wait_until(lambda: len(helds) == 5)
    gc.disable()
    try:
        assert counts(server.drain(0)) == (0, 0, 5)
        wait_until(lambda: server.active == 0)
        let_hub_turn()
        assert not helds
    finally:
        gc.enable()
    close_all(clients)


# -- with a delay -----------------------------------------------------------------------------


@on_one_and_two_hubs
def test_until_a_delay_is_over_clients_are_served(hubs: int, clock: SkippingClock) -> None:
    """New ones and old ones, each with the word that its reply is the last; idle ones stay."""
    application = Application()
    server = WSGIServer(LOCAL, application, clones=2, hubs=hubs, patience=NEVER, log=None)
    server.start()
    old, idle, busy = (connect(server.address) for _ in range(3))
    for client in (old, idle):
        assert b"Connection: close" not in request(client)
    draining = gevent.spawn(server.drain, 10, delay=500)
    wait_until(lambda: server.is_draining)
    assert (server.state, server.is_ready) == (State.DRAINING, False)
    for client in (old, connect(server.address), connect(server.address)):
        client.sendall(GET)
        assert b"Connection: close\r\n" in receive_all(client)
        client.close()
    busy.sendall(SLOW)
    wait_until(lambda: application.begun == 6)
    clock.skip(499)
    assert http_get(server.address) == b"ok"
    clock.skip(1)
    assert idle.recv(100) == b""
    wait_until(lambda: is_refused(server.address))
    application.may_reply.set()
    assert receive_all(busy).endswith(b"ok")
    report = draining.get()
    assert report.killed == 0
    assert report.finished >= 1
    close_all([idle, busy])


@on_one_and_two_hubs
def test_the_time_of_the_handlers_begins_after_the_delay(hubs: int, clock: SkippingClock) -> None:
    """It is the same with a delay as without."""
    server = StreamServer(
        LOCAL, lambda *_: gevent.sleep(1000), clones=2, hubs=hubs, patience=NEVER, spawn=5
    )
    client = start_with_client(server)
    draining = gevent.spawn(server.drain, 100, delay=100)
    wait_until(lambda: server.is_draining)
    clock.skip(150)
    wait_until(lambda: server.glb_engine.admission.turns is None)
    let_hub_turn()
    assert not draining.ready()
    clock.skip(60)
    assert counts(draining.get()) == (0, 0, 1)
    client.close()


@pytest.mark.parametrize("way", ["stop", "close", "kill", "hastened stop"])
@on_one_and_two_hubs
def test_a_delay_can_be_cut_short(hubs: int, way: str) -> None:
    """By all that ends a drain."""
    server = StreamServer(LOCAL, lambda *_: gevent.sleep(1000), clones=2, hubs=hubs, spawn=5)
    client = start_with_client(server)
    draining = gevent.spawn(server.drain, None if way == "stop" else 5000, delay=5000)
    wait_until(lambda: server.is_draining)
    if way == "close":
        server.close()
    elif way == "kill":
        draining.kill()
    else:
        server.stop(0)
    draining.join(20)
    assert draining.ready()
    assert is_refused(server.address)
    server.stop(0)
    assert server.state is State.STOPPED
    client.close()


# -- calls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timeout", "spread", "linger", "delay"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", True])
def test_bad_numbers_are_refused_and_it_goes_on_serving(name: str, value: Any) -> None:
    """The error has the value in it, and nothing has changed."""
    with StreamServer(LOCAL, lambda sock, _: sock.sendall(b"ok"), clones=1) as server:
        server.start()
        with pytest.raises((TypeError, ValueError), match=f"{name} must be .* got {value!r}"):
            server.drain(**{name: value})
        assert server.state is State.ACCEPTING and ask(server.address) == b"ok"


def test_a_server_that_was_never_started_drains() -> None:
    """There is nothing to do, with a socket or without."""
    server = StreamServer(LOCAL, lambda *_: None)
    assert counts(server.drain()) == (0, 0, 0)
    server.init_socket()
    assert counts(server.drain()) == (0, 0, 0)
    assert server.state is State.STOPPED and glb.registry.entries() == []


@on_one_and_two_hubs
def test_a_drained_server_starts_again(hubs: int) -> None:
    """As after a stop."""
    server = StreamServer(
        LOCAL, lambda sock, _: sock.sendall(b"ok"), clones=2, hubs=hubs, patience=NEVER
    )
    for _ in range(3):
        server.start()
        assert ask(server.address) == b"ok"
        assert server.drain(10).killed == 0


def test_stop_drains_if_asked() -> None:
    """With gevent's stop_timeout, and the drain's report."""
    application = Application()
    with WSGIServer(LOCAL, application, clones=1, log=None) as server:
        server.start()
        client = connect(server.address)
        request(client)
        assert server.stop() is None  # gevent's: an idle connection is served on
        assert request(client).endswith(b"ok")
        client.close()
        server.start()
        client = connect(server.address)
        request(client)
        report = server.stop(drain=True)
        assert counts(report) == (0, 1, 0)
        assert client.recv(1) == b""
        client.close()


def test_two_drains_are_one() -> None:
    """The later call waits for the same end, and gets the same report."""
    holder = Holder()
    server = StreamServer(LOCAL, holder, clones=1)
    client = start_with_client(server)
    drains = [gevent.spawn(server.drain, 10) for _ in range(3)]
    wait_until(lambda: server.is_draining)
    holder.release()
    first, *others = gevent.joinall(drains, raise_error=True)
    assert counts(first.value) == (1, 0, 0)
    assert all(other.value == first.value for other in others)
    client.close()


def test_serve_forever_returns_when_all_is_drained_and_not_before() -> None:
    """And its own stop kills no handler, pool or not."""
    may_reply = Event()

    def handle(sock: Any, _peer: Any) -> None:
        may_reply.wait()
        sock.sendall(b"ok")

    server = StreamServer(LOCAL, handle, clones=1, spawn=5)
    serving = gevent.spawn(server.serve_forever, 0)
    wait_until(lambda: server.started)
    client = connect(server.address)
    wait_until(lambda: server.active == 1)
    draining = begin_drain(server)
    gevent.sleep(0.01)
    assert not serving.ready()
    may_reply.set()
    assert receive_all(client) == b"ok"
    serving.get()
    assert counts(draining.get()) == (1, 0, 0)
    client.close()


@on_one_and_two_hubs
def test_a_stop_hastens_a_drain(hubs: int) -> None:
    """A second signal does not want to wait."""
    server = StreamServer(
        LOCAL, lambda *_: gevent.sleep(60), clones=2, hubs=hubs, patience=NEVER, spawn=5
    )
    client = start_with_client(server)
    draining = begin_drain(server, None)
    server.stop(0)
    assert counts(draining.get()) == (0, 0, 1)
    assert (server.state.value, server.active) == ("stopped", 0)
    assert client.recv(1) == b""
    client.close()


@pytest.mark.parametrize("spawn", ["default", gevent.spawn, 5])
@on_one_and_two_hubs
def test_a_handler_that_drains_its_own_server_does_not_wait_for_itself(
    spawn: Any, hubs: int
) -> None:
    """A command to shut down is answered when all others are done."""

    def handle(sock: Any, _peer: Any) -> None:
        if sock.recv(1) == b"d":
            report = server.drain(10)
            sock.sendall(b"%d %d %d" % counts(report))
        else:
            sock.sendall(b"ok")

    server = StreamServer(LOCAL, handle, clones=hubs, hubs=hubs, patience=NEVER, spawn=spawn)
    server.start()
    other = connect(server.address)
    wait_until(lambda: server.active == 1)
    commands = [connect(server.address) for _ in range(hubs)]
    commands[0].sendall(b"d")
    wait_until(lambda: server.is_draining)
    for client in (other, *commands[1:]):
        client.sendall(b"x")
        assert receive_all(client) == b"ok"
    assert receive_all(commands[0]) == b"%d 0 0" % hubs
    wait_until(lambda: server.active == 0)
    close_all([other, *commands])


def test_a_drain_from_another_thread() -> None:
    """Any thread may drain, and waits for the handlers of the server's own hub."""
    application = Application()
    server = WSGIServer(LOCAL, application, clones=1, log=None)
    server.start()
    client, busy = connect(server.address), connect(server.address)
    request(client)
    busy.sendall(SLOW)
    wait_until(lambda: application.begun == 2)
    thread = HubThread("drains").start()
    wait_for_report = run_there(thread.send, lambda: server.drain(10))
    assert client.recv(1) == b""
    application.may_reply.set()
    assert receive_all(busy).endswith(b"ok")
    assert counts(wait_for_report(None)) == (1, 1, 0)
    thread.end()
    assert thread.wait(10)
    close_all([client, busy])


def test_a_killed_drain_leaves_a_closed_server() -> None:
    """Nothing is left half done: the server is stopped, and its handlers are left to finish."""
    holder = Holder()
    server = StreamServer(LOCAL, holder, clones=1)
    client = start_with_client(server)
    draining = begin_drain(server, None)
    draining.kill()
    assert server.state is State.STOPPED and glb.registry.entries() == []
    holder.release()
    assert receive_all(client) == b"done"
    client.close()


def test_nothing_undoes_a_drain() -> None:
    """Neither gevent's hook, nor room in a pool, nor the end of a pause."""
    holder = Holder()
    server = StreamServer(LOCAL, holder, clones=2, spawn=1)
    client = start_with_client(server)
    draining = begin_drain(server)
    server.start_accepting()
    server.resume_clone(0)
    admission_of(server).accept_again()
    assert server.state is State.DRAINING
    holder.release()
    assert counts(draining.get()) == (1, 0, 0)
    client.close()


def test_a_connection_on_its_way_to_another_hub_is_served() -> None:
    """It was accepted, so no other process that has the socket can serve it."""
    may_go_on = threading.Event()
    blocked = threading.Event()

    def handle(sock: Any, _peer: Any) -> None:
        if not blocked.is_set():
            blocked.set()
            may_go_on.wait()
        sock.sendall(b"served")

    # The socket of a program that forks: the other process goes on, and its queue is not emptied.
    shared = socket.create_server(("127.0.0.1", 0))
    server = StreamServer(shared.dup(), handle, clones=2, hubs=2, policy="first", patience=30)
    server.start()
    server.pause_clone(0)
    clients = [connect(server.address)]
    wait_until(blocked.is_set)
    clients.append(connect(server.address))
    wait_until(lambda: admission_of(server).expected == 1)
    draining = gevent.spawn(server.drain, 10, linger=0)
    gevent.idle()
    assert admission_of(server).expected == 1
    waiting = connect(server.address)  # it stays in the queue
    may_go_on.set()
    assert [receive_all(client) for client in clients] == [b"served"] * 2
    assert counts(draining.get()) == (2, 0, 0)
    sock, _ = shared.accept()
    close_all([*clients, waiting, sock, shared])


def test_a_clone_that_joins_a_drain_that_accepts_nothing_accepts() -> None:
    """The address is open for it as before."""
    listener = glb.bind(("127.0.0.1", 0), reuse_port=True)
    listener.entry.accept_nothing()
    other = glb.bind(listener.getsockname(), reuse_port=True)
    client = connect(listener.getsockname())
    sock, _ = other.accept()
    close_all([client, sock, listener, other])


def test_a_hub_that_is_blocked_is_logged_and_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by stop: the deadline holds, though a thread can't be killed."""
    monkeypatch.setattr("glb.serve.drain.KILL_SECONDS", 0.05)
    may_end = threading.Event()
    blocked = threading.Event()

    def handle(_sock: Any, _peer: Any) -> None:
        if glb.current_clone() == 1:
            blocked.set()
            may_end.wait()

    server = StreamServer(LOCAL, handle, clones=2, hubs=2)
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    wait_until(blocked.is_set)
    with caplog.at_level(logging.ERROR, "glb"):
        server.drain(0.05)
    assert any("is blocked" in record.getMessage() for record in caplog.records)
    may_end.set()
    wait_until(lambda: server.active == 0)
    close_all(clients)


# -- what a hostile reading found -----------------------------------------------------------------


@on_one_and_two_hubs
def test_two_handlers_that_drain_at_once_get_the_same_report(hubs: int) -> None:
    """A command to shut down that comes twice: neither waits for the other."""

    def handle(sock: Any, _peer: Any) -> None:
        sock.recv(1)
        both.append(True)
        while len(both) < 2:
            gevent.sleep(0.001)
        sock.sendall(b"%d %d %d" % counts(server.drain()))

    both: list[bool] = []
    server = StreamServer(LOCAL, handle, clones=2, hubs=hubs, patience=NEVER)
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    for client in clients:
        client.sendall(b"x")
    first, second = (receive_all(client) for client in clients)
    assert first == second == b"0 0 0"
    wait_until(lambda: server.active == 0)
    close_all(clients)


@on_one_and_two_hubs
def test_an_application_that_drains_its_server_ends_its_own_connection(hubs: int) -> None:
    """Its reply says so, though the drain is over by then."""

    def application(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        server.drain(10)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    server = WSGIServer(LOCAL, application, clones=2, hubs=hubs, patience=NEVER, log=None)
    server.start()
    client = connect(server.address)
    client.sendall(GET)
    assert b"Connection: close\r\n" in receive_all(client)
    wait_until(lambda: server.active == 0)
    client.close()


def test_drains_of_two_threads_are_one() -> None:
    """A thread that has nothing else to do waits for it, too, without gevent's LoopExit."""
    holder = Holder()
    server = StreamServer(LOCAL, holder, clones=1)
    client = start_with_client(server)
    threads = [HubThread("glb test").start() for _ in range(2)]
    answers = [run_there(thread.send, lambda: server.drain(10)) for thread in threads]
    wait_until(lambda: len(callers_of(server)) == 2)
    holder.release()
    reports = [answer(None) for answer in answers]
    assert reports[0] == reports[1] and counts(reports[0]) == (1, 0, 0)
    for thread in threads:
        thread.end()
        assert thread.wait(10)
    client.close()


def test_a_handler_that_resists_its_kill_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One finishes, one is killed, one goes on for a while: the report has each of them once."""
    monkeypatch.setattr("glb.serve.drain_worker.KILL_SECONDS", 0.05)
    let_go = Event()

    def handle(sock: Any, _peer: Any) -> None:
        what = sock.recv(1)
        if what == b"f":
            wait_until(lambda: server.is_draining)
        elif what == b"k":
            gevent.sleep(60)
        else:
            try:
                gevent.sleep(60)
            except gevent.GreenletExit:
                let_go.wait()

    server = StreamServer(LOCAL, handle, clones=1)
    server.start()
    clients = [connect(server.address) for _ in range(3)]
    for client, what in zip(clients, (b"f", b"k", b"r"), strict=True):
        client.sendall(what)
    wait_until(lambda: server.active == 3)
    assert counts(server.drain(0.1)) == (1, 0, 2)
    let_go.set()
    wait_until(lambda: server.active == 0)
    close_all(clients)


def test_a_start_in_the_middle_says_why_not() -> None:
    """And the drain goes on."""
    holder = Holder()
    server = StreamServer(LOCAL, holder, clones=1)
    client = start_with_client(server)
    draining = begin_drain(server)
    with pytest.raises(RuntimeError, match="is draining: it can start when that is over"):
        server.init_socket()
    holder.release()
    assert counts(draining.get()) == (1, 0, 0)
    client.close()


def test_a_close_and_a_start_in_the_middle_are_not_undone() -> None:
    """The drain that was called off closes nothing that came after it, and kills no handler."""
    holder = Holder()
    server = StreamServer(LOCAL, holder, clones=1)
    client = start_with_client(server)
    draining = begin_drain(server, None)
    server.close()
    assert counts(draining.get()) == (0, 0, 0)
    server.start()
    later = connect(server.address)
    wait_until(lambda: server.active == 2)
    assert server.state is State.ACCEPTING
    holder.release()
    assert receive_all(client) == receive_all(later) == b"done"
    server.stop()
    close_all([client, later])


def test_a_hook_that_fails_ends_the_drain_for_all() -> None:
    """Its error comes out once, and the next drain doesn't wait for this one."""

    class Failing(StreamServer):
        is_failing = False

        def stop_accepting(self) -> None:
            super().stop_accepting()
            if self.is_failing:
                raise LookupError("on purpose")

    server = Failing(LOCAL, lambda *_: None, clones=1)
    server.start()
    server.is_failing = True
    with pytest.raises(LookupError, match="on purpose"):
        server.drain(10)
    server.is_failing = False
    assert server.state is State.STOPPED
    assert counts(server.drain(10)) == (0, 0, 0)


def test_a_client_that_never_shakes_hands_has_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS or not: without a deadline it would hold the drain for ever."""
    looks = Looks(monkeypatch)
    monkeypatch.setattr("glb.serve.drain_worker.FIRST_REQUEST_SECONDS", 1000.0)
    server = WSGIServer(LOCAL, Application(), clones=1, log=None, ssl_context=server_context())
    client = start_with_client(server)
    draining = begin_drain(server)
    looks.wait()
    assert server.active == 1
    monkeypatch.setattr("glb.serve.drain_worker.FIRST_REQUEST_SECONDS", 0.0)
    assert counts(draining.get()) == (0, 1, 0)
    assert b"HTTP" not in receive_all(client)  # an alert, if anything
    client.close()


def test_a_request_that_comes_during_a_streamed_reply_is_served() -> None:
    """The head had not said that it was the last, so the client may have gone on."""
    may_end, begun = Event(), []

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        begun.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/stream":
            yield b"begin"
            may_end.wait()
        yield b"end"

    server = WSGIServer(LOCAL, application, clones=1, log=None)
    server.start()
    client = connect(server.address)
    client.sendall(GET.replace(b"GET /", b"GET /stream"))
    assert b"begin" in client.recv(1000)
    client.sendall(GET)
    draining = begin_drain(server)
    may_end.set()
    rest = receive_all(client)
    assert begun == ["/stream", "/"]
    assert b"Connection: close\r\n" in rest and rest.count(b"end") == 2
    assert counts(draining.get()) == (1, 0, 0)
    client.close()


def test_a_spawn_that_takes_its_time_is_overtaken_by_the_deadline() -> None:
    """What it begins later is closed already, and its handler never runs."""
    served = []
    later: list[Any] = []
    server = StreamServer(
        LOCAL, lambda *_: served.append(True), clones=1, spawn=lambda *call: later.append(call)
    )
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    wait_until(lambda: len(later) == 2)
    assert counts(server.drain(0.05)) == (0, 0, 2)
    assert [client.recv(1) for client in clients] == [b"", b""]
    for call, *args in later:
        call(*args)
    assert (served, server.active) == ([], 0)
    close_all(clients)


def test_connections_of_the_last_time_are_drained_as_well() -> None:
    """Gevent's stop leaves them; a start and a drain later they are idle still, and closed."""
    application = Application()
    server = WSGIServer(LOCAL, application, clones=1, log=None)
    server.start()
    client = connect(server.address)
    request(client)
    server.stop()
    server.start()
    server.roll(application)  # which waits for no idle client
    assert counts(server.drain()) == (0, 1, 0)
    assert client.recv(1) == b""
    client.close()


def test_what_is_no_socket_is_left_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    """A connection of the program's own kind keeps the others from nothing."""

    class Jobs(StreamServer):
        def do_read(self) -> Any:
            found = super().do_read()
            return None if found is None else ((found[0], "job"), found[1])

        def do_close(self, job: Any, *_: Any) -> None:
            job[0].close()

    server = Jobs(LOCAL, lambda *_: gevent.sleep(60), clones=1)
    client = start_with_client(server)
    with caplog.at_level(logging.ERROR, "glb"):
        assert counts(server.drain(0.2, spread=0.05)) == (0, 0, 1)
    assert "can't end the connection" in caplog.text
    assert client.recv(1) == b""
    client.close()


def test_a_handlers_cleanup_is_not_cut_short() -> None:
    """It is killed once, also if other handlers are to end, and take their time."""
    told: list[str] = []

    def handle(sock: Any, _peer: Any) -> None:
        if sock.recv(1) == b"i":
            with glb.idle():
                sock.recv(1)
            gevent.sleep(60)
        try:
            gevent.sleep(60)
        except gevent.GreenletExit:
            gevent.sleep(0.15)
            told.append("cleaned up")
            raise

    server = StreamServer(LOCAL, handle, clones=1)
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    for client, what in zip(clients, (b"i", b"k"), strict=True):
        client.sendall(what)
    wait_until(lambda: idle_here(server) is not None and len(idle_here(server)) == 1)
    server.drain(0.1)
    assert told == ["cleaned up"]
    close_all(clients)


def test_a_tls_stream_that_sends_is_not_cut_by_spread() -> None:
    """Only its reading ends; all that it sends arrives, and then the goodbye."""
    serving, asking = server_context(), client_context()

    def handle(sock: Any, _peer: Any) -> None:
        sock.sendall(b"begin ")
        assert sock.recv(1) == b""
        sock.sendall(b"end")

    server = StreamServer(LOCAL, handle, clones=1, ssl_context=serving)
    server.start()
    client = asking.wrap_socket(connect(server.address), suppress_ragged_eofs=False)
    assert client.recv(6) == b"begin "
    assert counts(server.drain(10, spread=0.05)) == (0, 1, 0)
    assert receive_all(client) == b"end"
    client.close()


def test_a_handler_class_with_a_line_reader_of_its_own_drains_as_ours() -> None:
    """A PROXY protocol's, say: it is asked when something has come."""

    class Handler(WSGIHandler):
        lines: list[str] = []  # noqa: RUF012  # one class, one list

        def read_requestline(self) -> str:
            self.lines.append(super().read_requestline())
            return self.lines[-1]

    server = WSGIServer(LOCAL, Application(), clones=1, log=None, handler_class=Handler)
    server.start()
    client = connect(server.address)
    request(client)
    assert counts(server.drain()) == (0, 1, 0)
    assert client.recv(1) == b""
    assert Handler.lines == ["GET / HTTP/1.1\r\n"]
    client.close()


def test_a_start_on_a_hub_of_its_own_is_refused() -> None:
    """That thread is about to end; nothing has changed."""

    def handle(sock: Any, _peer: Any) -> None:
        if glb.current_clone() == 1:
            server.close()
            with pytest.raises(RuntimeError, match="can't start on a hub of its own"):
                server.start()
            sock.sendall(b"refused")

    server = StreamServer(LOCAL, handle, clones=2, hubs=2, patience=NEVER)
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    assert [receive_all(client) for client in clients] == [b"", b"refused"]
    server.stop()
    server.start()
    assert server.state is State.ACCEPTING
    server.stop()
    close_all(clients)


@on_one_and_two_hubs
def test_a_close_in_the_middle_kills_no_handler(hubs: int) -> None:
    """On any hub: as close() promises, handlers finish."""
    slow = threading.Event()

    def handle(sock: Any, _peer: Any) -> None:
        while not slow.is_set():
            gevent.sleep(0.001)
        sock.sendall(b"end")

    server = StreamServer(LOCAL, handle, clones=2, hubs=hubs, patience=NEVER)
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    wait_until(lambda: server.active == 2)
    draining = begin_drain(server, None)
    server.close()
    draining.get()
    slow.set()
    assert [receive_all(client) for client in clients] == [b"end"] * 2
    close_all(clients)
