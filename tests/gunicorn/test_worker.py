"""`Worker`: gunicorn's own code behind glb's accept."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

pytest.importorskip("gunicorn")

from glb.gunicorn import FastWorker, Worker
from glb.gunicorn.following import following_here
from glb.model.stats import DrainReport

from ..support.helpers import ask, connect, receive_all
from ..support.tls import CERTIFICATES, client_context, server_context
from .workers import GET, OK, Log, config, reply_of, serving, tell_clone

# gunicorn's own context is gevent's only where the process is patched.
TLS: dict[str, Any] = {
    "certfile": str(CERTIFICATES / "server.crt"),
    "ssl_context": lambda _config, _default: server_context(),
}
KINDS = pytest.mark.parametrize("kind", [Worker, FastWorker])

#: A request that is its connection's last.
LAST = GET[:-2] + b"Connection: close\r\n\r\n"

Start = Callable[..., Any]
Environ = dict[str, Any]


def body_of(reply: bytes) -> bytes:
    return reply.partition(b"\r\n\r\n")[2]


class Gate:
    """An application that waits until it is let go."""

    def __init__(self, text: bytes = b"done") -> None:
        self.begun = Event()
        self.go = Event()
        self.text = text

    def __call__(self, _environ: Environ, start_response: Start) -> list[bytes]:
        self.begun.set()
        self.go.wait()
        start_response("200 OK", [("Content-Length", str(len(self.text)))])
        return [self.text]


@KINDS
@pytest.mark.parametrize("hubs", [1, 2])
def test_connections_go_round_the_clones_in_exact_turn(kind: type[Worker], hubs: int) -> None:
    """The whole order, on one hub and on two."""
    with serving(kind, tell_clone, clones=4, hubs=hubs) as (_, server):
        answers = [body_of(ask(server.address, LAST)) for _ in range(12)]
        assert answers == [b"%d" % (number % 4) for number in range(12)]


@KINDS
def test_the_environ_has_the_clone(kind: type[Worker]) -> None:
    """What `glb serve` has in an environ, an application finds under gunicorn, too."""

    def application(environ: Environ, start_response: Start) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "1")])
        return [b"%d" % environ["glb.clone"]]

    with serving(kind, application, clones=2) as (_, server):
        assert [body_of(ask(server.address, LAST)) for _ in range(4)] == [b"0", b"1", b"0", b"1"]


@KINDS
def test_a_drain_closes_idle_kept_alive_connections_at_once(kind: type[Worker]) -> None:
    """Not at the end of the graceful timeout; gunicorn's own worker holds them that long."""
    with serving(kind, tell_clone, keepalive=100) as (_, server):
        clients = [connect(server.address) for _ in range(5)]
        for client in clients:
            client.sendall(GET)
            assert reply_of(client).startswith(OK)
        report = server.drain(60, linger=0)
        assert report.closed_idle == 5
        assert report.killed == 0
        assert report.seconds < 30
        for client in clients:
            assert client.recv(1) == b""
            client.close()


def test_a_drain_closes_idle_tls_connections_at_once() -> None:
    """TLS's goodbye comes first."""
    with serving(Worker, tell_clone, keepalive=100, **TLS) as (_, server):
        client = client_context().wrap_socket(connect(server.address))
        client.sendall(GET)
        assert reply_of(client).startswith(OK)
        assert server.drain(60, linger=0).closed_idle == 1
        assert client.recv(1) == b""
        client.close()


@KINDS
def test_a_drain_lets_a_request_finish(kind: type[Worker]) -> None:
    """It is whole."""
    gate = Gate()
    with serving(kind, gate, keepalive=100) as (worker, server):
        client = connect(server.address)
        client.sendall(GET)
        gate.begun.wait()
        worker.alive = False
        draining = gevent.spawn(server.drain, 60, linger=0)
        gevent.idle()
        gate.go.set()
        reply = receive_all(client)
        assert body_of(reply) == b"done"
        # gunicorn decides before it calls the application whether to announce the end.
        assert (b"Connection: close" in reply) is (kind is FastWorker)
        report = draining.get()
        assert (report.finished, report.closed_idle, report.killed) == (
            (1, 0, 0) if kind is FastWorker else (0, 1, 0)
        )
        client.close()


def test_half_a_head_is_no_idle_connection() -> None:
    """A drain lets its client send the rest, and serves it."""
    with serving(Worker, tell_clone, keepalive=100) as (_, server):
        client = connect(server.address)
        client.sendall(GET)
        assert reply_of(client).startswith(OK)
        client.sendall(GET[:10])
        idle = server.glb_engine.idle_here
        assert idle is not None
        while not idle._heads:
            gevent.sleep(0)
        draining: gevent.Greenlet[..., DrainReport] = gevent.spawn(server.drain, 60, linger=0)
        while not server.is_draining:
            gevent.sleep(0)
        client.sendall(GET[10:])
        assert reply_of(client).startswith(OK)
        report = draining.get()
        assert report.killed == 0
        client.close()


def test_a_body_that_is_read_late_is_no_idle_connection() -> None:
    """A request that came with the one before it leaves nothing of the wait behind."""
    bodies = []

    def application(environ: Environ, start_response: Start) -> list[bytes]:
        bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", [("Content-Length", "0")])
        return []

    with serving(Worker, application, keepalive=100) as (_, server):
        client = connect(server.address)
        client.sendall(GET + b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
        assert reply_of(client).startswith(OK)
        idle = server.glb_engine.idle_here
        assert idle is not None
        gevent.idle()
        assert len(idle) == 0
        client.sendall(b"body")
        assert reply_of(client).startswith(OK)
        assert bodies == [b"", b"body"]
        client.close()


def test_a_silent_client_is_closed_after_keepalive() -> None:
    """One timer sees to all; a part of a head does not count as a request."""
    with serving(Worker, tell_clone, keepalive=0.05) as (_, server):
        silent, slow = connect(server.address), connect(server.address)
        slow.sendall(GET[:10])
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""
        silent.close()
        slow.close()


def test_a_silent_client_of_tls_is_closed_after_keepalive() -> None:
    """By gunicorn's own timeout, which does not hold for the handshake."""
    with serving(Worker, tell_clone, keepalive=0.05, **TLS) as (_, server):
        assert server.first_byte_timeout is None
        client = client_context().wrap_socket(connect(server.address))
        assert client.recv(1) == b""
        client.close()


def test_without_keepalive_each_reply_is_the_last() -> None:
    """As gunicorn's setting says."""
    with serving(Worker, tell_clone, keepalive=0) as (_, server):
        reply = ask(server.address, GET)
        assert b"Connection: close" in reply


def test_a_drain_closes_a_silent_client_without_keepalive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has a second for its request, here less."""
    monkeypatch.setattr("glb.serve.drain_worker.FIRST_REQUEST_SECONDS", 0.01)
    with serving(Worker, tell_clone, keepalive=0) as (_, server):
        client = connect(server.address)
        while not server.active:
            gevent.sleep(0)
        report = server.drain(60, linger=0)
        assert (report.closed_idle, report.killed) == (1, 0)
        assert client.recv(1) == b""
        client.close()


def test_a_kill_of_an_idle_connection_is_no_error() -> None:
    """Of a quick stop, say: no request is lost by it."""
    with serving(Worker, tell_clone, keepalive=100) as (worker, server):
        client = connect(server.address)
        client.sendall(GET)
        assert reply_of(client).startswith(OK)
        idle = server.glb_engine.idle_here
        assert idle is not None
        while not idle.waits:
            gevent.sleep(0)
        waiting: list[Any] = [*idle.waits]
        gevent.killall(waiting, block=False)
        assert client.recv(1) == b""
        assert worker.log.lines == []
        client.close()


def test_worker_connections_bounds_the_connections() -> None:
    """The next client waits in the accept queue."""
    gate = Gate()
    with serving(Worker, gate, worker_connections=1) as (_, server):
        assert server.max_connections == 1
        first, second = connect(server.address), connect(server.address)
        for client in (first, second):
            client.sendall(LAST)
        gate.begun.wait()
        gevent.idle()
        assert server.active == 1
        gate.go.set()
        assert body_of(receive_all(first)) == body_of(receive_all(second)) == b"done"
        first.close()
        second.close()


# -- a request's time -------------------------------------------------------------------------


def test_a_late_request_gets_a_503_and_a_line_in_both_logs() -> None:
    """Its handler is cut off where it waits."""
    with serving(Worker, Gate(), request_timeout=0.05) as (worker, server):
        reply = ask(server.address, GET)
        assert reply.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert worker.log.lines[-1] == "GET / took longer than GLB_REQUEST_TIMEOUT, 0.05 s"
        ((access, _, environ, _),) = worker.log.accesses
        assert access.status == "503 Service Unavailable"
        assert environ["REMOTE_ADDR"] == "127.0.0.1"


def test_a_late_reply_that_has_begun_is_cut_off() -> None:
    """Nothing is put into the middle of it."""
    never = Event()

    def application(_environ: Environ, start_response: Start) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "9")])
        yield b"begun"
        never.wait()

    with serving(Worker, application, request_timeout=0.05) as (_, server):
        reply = ask(server.address, GET)
        assert reply.startswith(OK)
        assert body_of(reply) == b"begun"


def test_each_request_of_a_connection_has_its_own_time() -> None:
    """The wait between them does not count."""
    limits = []

    def application(environ: Environ, start_response: Start) -> list[bytes]:
        following = following_here()
        assert following is not None
        limits.append(following.timeout)
        assert following.timeout.pending
        return tell_clone(environ, start_response)

    with serving(Worker, application, request_timeout=30, keepalive=100) as (_, server):
        client = connect(server.address)
        for _ in range(2):
            client.sendall(GET)
            assert reply_of(client).startswith(OK)
        client.close()
    assert [each.seconds for each in limits] == [30, 30]
    assert limits[0] is not limits[1]
    assert not limits[0].pending


def test_100_continue_is_no_reply_yet() -> None:
    """A request that is late after it gets its 503."""
    with serving(Worker, Gate(), request_timeout=0.05) as (_, server):
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
        reply = ask(server.address, head)
        assert reply.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 ")


def test_a_websocket_is_not_cut_off() -> None:
    """After the 101, client and application speak as long as they like."""
    pending = []

    def application(environ: Environ, _start_response: Start) -> list[bytes]:
        following = following_here()
        assert following is not None
        sock = environ["gunicorn.socket"]
        pending.append(following.timeout.pending)
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        pending.append(following.timeout.pending)
        while data := sock.recv(10):
            sock.sendall(data)
        return []

    with serving(Worker, application, request_timeout=30) as (worker, server):
        client = connect(server.address)
        client.sendall(GET)
        assert client.recv(100).startswith(b"HTTP/1.1 101 ")
        client.sendall(b"still")
        assert client.recv(100) == b"still"
        client.close()
        assert worker.log.lines == []
    assert pending == [True, False]


def test_anothers_timeout_is_not_taken_for_it() -> None:
    """An application's own is the application's."""
    raised = []

    def application(environ: Environ, start_response: Start) -> list[bytes]:
        try:
            with gevent.Timeout(0.01):
                Event().wait()
        except gevent.Timeout as error:
            raised.append(error)
            raise StopIteration from error  # gunicorn closes the connection
        return tell_clone(environ, start_response)

    with serving(Worker, application, request_timeout=30) as (worker, server):
        assert ask(server.address, GET) == b""
        assert [each.seconds for each in raised] == [0.01]
        assert worker.log.lines == []


# -- subclasses -------------------------------------------------------------------------------


def test_a_subclass_may_override_handle() -> None:
    """As gunicorn_thrift's workers do: their own protocol, with a timeout of their own."""

    class Calls(Worker):
        def handle(self, listener: Any, client: Any, addr: Any) -> None:
            assert listener.getsockname() == client.getsockname()
            assert listener.family == client.family
            client.settimeout(0.2)
            try:
                while data := client.recv(100):
                    client.sendall(data.upper())
            except TimeoutError:
                self.log.warning("Client timeout: %r", addr)
            finally:
                self.nr += 1
                client.close()

    # gunicorn's keepalive is for HTTP, and is over long before.
    with serving(Calls, tell_clone, keepalive=0.004) as (worker, server):
        client, silent = connect(server.address), connect(server.address)
        peers = {f"Client timeout: {each.getsockname()}" for each in (client, silent)}
        for _ in range(2):
            client.sendall(b"hello")
            assert client.recv(100) == b"HELLO"
        for each in (client, silent):
            assert each.recv(100) == b""
            each.close()
        while server.active:
            gevent.sleep(0)
        assert worker.nr == 2
        assert {*worker.log.lines} == peers


def test_a_subclass_may_override_handle_request() -> None:
    """The request's time holds around it."""

    class Mine(Worker):
        seen: list[str]

        def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> Any:
            self.seen = [req.uri]
            return super().handle_request(listener_name, req, sock, addr)

    with serving(Mine, Gate(), request_timeout=0.05) as (worker, server):
        assert ask(server.address, GET).startswith(b"HTTP/1.1 503 ")
        assert worker.seen == ["/"]


def test_a_worker_of_gunicorns_own_becomes_one_of_glbs() -> None:
    """Its overrides come first, and glb's accept stands in for gevent's."""
    from gunicorn.workers.ggevent import GeventWorker

    class Theirs(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
        def handle(self, _listener: Any, client: Any, _addr: Any) -> None:
            client.sendall(b"theirs")

    class Mine(Theirs, Worker):
        pass

    with serving(Mine, tell_clone) as (_, server):
        assert ask(server.address) == b"theirs"


def test_a_connection_of_another_kind_is_left_as_it_is() -> None:
    """It is served, and closed with its handler; what was sent on it isn't known."""
    from gevent import socket

    from glb.gunicorn.following import Following

    ours, other = socket.socketpair()
    following = Following(ours, None, waits=True, follows_replies=True)
    assert type(ours) is socket.socket
    assert following.has_sent
    assert not following.is_timed
    ours.close()
    other.close()


def test_a_worker_with_a_server_class_is_refused() -> None:
    """It is `FastWorker` that has one."""

    class Wrong(Worker):
        server_class = object

    with pytest.raises(RuntimeError, match=r"Wrong has a server_class: .*FastWorker"):
        Wrong.check_config(config(), None)


@KINDS
def test_a_wrong_variable_is_refused_at_the_start(
    kind: type[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gunicorn prints a RuntimeError, and ends."""
    monkeypatch.setenv("GLB_HUBS", "none")
    with pytest.raises(RuntimeError, match="GLB_HUBS must be a whole number"):
        kind.check_config(config(), None)


@KINDS
def test_no_connections_are_refused_at_the_start(kind: type[Worker]) -> None:
    """By gunicorn's name. Its arbiter would start workers for ever, each of which fails."""
    with pytest.raises(RuntimeError, match="worker_connections must be 1 or more, got 0"):
        kind.check_config(config(worker_connections=0), None)


def test_a_worker_that_boots_heeds_a_sigterm() -> None:
    """The arbiter's handler, which a fork leaves in place, would lose it."""

    class Stopped(Worker):
        def patch(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            raise LookupError("so far")

    lost: list[int] = []
    worker: Any = Stopped(1, os.getppid(), [], None, 15, config(), Log())
    before = signal.signal(signal.SIGTERM, lambda number, _: lost.append(number))
    try:
        with pytest.raises(LookupError):
            worker.init_process()
    finally:
        signal.signal(signal.SIGTERM, before)
        worker.tmp.close()
    assert (worker.alive, lost) == (False, [])


def test_the_time_of_a_request_costs_nothing_without_a_limit() -> None:
    """Gunicorn's own method is called, with nothing around it."""
    with serving(Worker, tell_clone) as (worker, server):
        assert "handle_request" not in vars(worker)
        assert ask(server.address, LAST).startswith(OK)
