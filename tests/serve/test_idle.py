"""Idle connections: handlers say when they wait for their client, and silent clients are let go."""

from __future__ import annotations

import _socket
import contextvars
import socket as native_socket
import ssl
import threading
import time
from collections.abc import Iterator
from time import monotonic
from typing import Any

import gevent
import gevent.ssl
import gevent.tests
import pytest
from gevent import get_hub, socket
from gevent.event import Event

import glb
from glb.net.connection import Connection, say_goodbye, wait_for_data
from glb.pywsgi import WSGIServer
from glb.serve import idle as waiting_module
from glb.serve.hub_worker import InUse
from glb.serve.idle import IdleConnections, close_reading, idle
from glb.server import StreamServer

from ..support.engine import workers_of
from ..support.helpers import Clock, close_all, connect, let_hub_turn, receive_all, wait_until
from ..support.tls import client_context, server_context

LOCAL = ("127.0.0.1", 0)
NEVER = 30.0
#: Long enough for a client that answers at once, short enough to be waited for.
SHORT = 0.04

#: A request that is complete, one that has just begun, and one that is nearly there.
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(params=[1, 2])
def hubs(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def connect_tls(address: Any) -> Any:
    """Return a TLS client for which an end without close_notify is an error."""
    return client_context().wrap_socket(connect(address), suppress_ragged_eofs=False)


def serve(handle: Any, *, hubs: int = 1, tls: bool = False, **more: Any) -> StreamServer:
    """Return a server, not started."""
    if hubs > 1:
        more["patience"] = NEVER
    if tls:
        more["ssl_context"] = server_context()
    return StreamServer(LOCAL, handle, hubs=hubs, clones=2, **more)


def http(application: Any = None, *, hubs: int = 1, **more: Any) -> WSGIServer:
    """Return an HTTP server that replies with ``ok``, not started."""

    def reply(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    if hubs > 1:
        more["patience"] = NEVER
    return WSGIServer(LOCAL, application or reply, hubs=hubs, clones=2, log=None, **more)


def echo(sock: Any, _peer: Any) -> None:
    """Reply to what came in `glb.idle`, until the end."""
    while True:
        with idle():
            data = sock.recv(100)
        if not data:
            return
        sock.sendall(data)


def waiting_of(server: StreamServer) -> list[IdleConnections]:
    return [worker.idle for worker in workers_of(server) if worker.idle is not None]


def waits(server: StreamServer) -> int:
    """Return how many of its handlers wait for their client."""
    return sum(map(len, waiting_of(server)))


def timed_out(server: StreamServer) -> int:
    return sum(each.timeouts.total() for each in waiting_of(server))


def failed(server: StreamServer) -> int:
    return sum(each.failed for each in server.clone_stats())


def completed(server: StreamServer) -> int:
    return sum(each.completed for each in server.clone_stats())


def timer_of(waiting: IdleConnections) -> Any:
    """Return its timer as it is now."""
    return waiting._timer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which silence is measured. Timers have the loop's own."""
    clock = Clock()
    monkeypatch.setattr(waiting_module, "monotonic", clock)
    return clock


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """A connection, as a handler has it, and its client."""
    if request.param == "tcp":
        with native_socket.create_server(LOCAL) as listener:
            client = connect(listener.getsockname())
            accepted, _ = listener.accept()
        end = Connection(fileno=accepted.detach())
    else:
        ours, theirs = native_socket.socketpair()
        end = Connection(ours.family, ours.type, ours.proto, ours.detach())
        client = socket.socket(fileno=theirs.detach())
        client.settimeout(10)
    yield end, client
    close_all([end, client])


@pytest.fixture
def tls_pair() -> Iterator[tuple[Any, Any]]:
    """The two ends of TLS, the server's first; the client minds a missing close_notify."""
    ours, theirs = native_socket.socketpair()
    end = Connection(ours.family, ours.type, ours.proto, ours.detach())
    client = socket.socket(fileno=theirs.detach())
    client.settimeout(10)
    shaking = gevent.spawn(server_context().wrap_socket, end, server_side=True)
    speaking = client_context().wrap_socket(client, suppress_ragged_eofs=False)
    serving = shaking.get()
    yield serving, speaking
    close_all([serving, speaking])


# -- idle: outside of handlers ------------------------------------------------------------------


def test_outside_of_a_handler_idle_does_nothing() -> None:
    """It hands errors on."""
    with idle():
        pass
    with pytest.raises(LookupError, match="on purpose"), idle():
        raise LookupError("on purpose")


def test_idle_is_glbs_own_name() -> None:
    """As in the docs."""
    assert glb.idle is idle


# -- idle: in handlers --------------------------------------------------------------------------


def test_a_handler_waits_while_it_is_in_idle(hubs: int) -> None:
    """No sooner, and no longer."""
    with serve(echo, hubs=hubs) as server:
        server.start()
        assert waits(server) == 0
        with connect(server.address) as client:
            wait_until(lambda: waits(server) == 1)
            client.sendall(b"x")
            assert client.recv(10) == b"x"
            wait_until(lambda: waits(server) == 1)
        wait_until(lambda: server.active == 0)
        assert waits(server) == 0


def test_it_is_known_whether_a_connection_has_been_served_before() -> None:
    """By the end of its first wait."""
    inside = Event()
    found: list[object] = []

    def handle(sock: Any, _peer: Any) -> None:
        for _ in range(3):
            with idle():
                (waiting,) = waiting_of(server)
                wait = waiting.get(gevent.getcurrent())
                assert wait is not None and wait[0] is sock
                found.append(wait[2])
        inside.set()

    with serve(handle) as server:
        server.start()
        with connect(server.address):
            inside.wait()
    assert found == [False, True, True]


def test_an_error_ends_the_wait() -> None:
    """It goes on as it came, whether it is the handler's or a kill."""
    caught: list[str] = []
    waited: list[int] = []

    def handle(_sock: Any, _peer: Any) -> None:
        try:
            with idle():
                raise LookupError("on purpose")
        except LookupError as error:
            caught.append(str(error))
        waited.append(waits(server))
        with idle():
            raise gevent.GreenletExit

    with serve(handle) as server:
        server.start()
        with connect(server.address) as client:
            assert receive_all(client) == b""
        assert (caught, waited, waits(server), failed(server)) == (["on purpose"], [0], 0, 1)


def test_an_error_through_nested_blocks_ends_all_waits() -> None:
    """Nothing is left of any of them."""

    def handle(sock: Any, _peer: Any) -> None:
        try:
            with idle(), idle(), idle():
                raise LookupError("on purpose")
        except LookupError:
            sock.sendall(b"%d" % waits(server))

    with serve(handle) as server:
        server.start()
        with connect(server.address) as client:
            assert receive_all(client) == b"0"
        assert waits(server) == 0


def test_the_end_of_an_inner_block_is_not_the_outers() -> None:
    """A handler in `idle` may call what is in `idle`, too."""
    with serve(nested) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            report = server.drain(5)
            assert receive_all(client) == b"end"
        assert (report.closed_idle, report.killed) == (1, 0)


def nested(sock: Any, _peer: Any) -> None:
    with idle():
        pass  # from here on it is one that has been served: its first request isn't waited for
    with idle():
        with idle():
            sock.sendall(sock.recv(1))
        if not sock.recv(1):
            sock.sendall(b"end")


def test_a_greenlet_that_a_handler_spawned_has_no_part_in_it() -> None:
    """It is outside of handlers, as for `glb.current_clone`: nothing ends its read."""

    def handle(sock: Any, _peer: Any) -> None:
        def read() -> Any:
            with idle():
                found.append(waits(server))
                return sock.recv(10)

        sock.sendall(gevent.spawn(read).get())

    found: list[int] = []
    with serve(handle) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(b"x")
            assert receive_all(client) == b"x"
    assert found == [0]


def test_in_a_greenlet_with_its_handlers_context_idle_does_nothing() -> None:
    """It is of the handler's own greenlet."""
    found: list[int] = []

    def handle(sock: Any, _peer: Any) -> None:
        def read() -> Any:
            with idle():
                (waiting,) = waiting_of(server)
                found.append(len(waiting))
                return sock.recv(10)

        assert gevent.spawn(contextvars.copy_context().run, read).get() == b"x"
        sock.sendall(b"end")

    with serve(handle) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(b"x")
            assert receive_all(client) == b"end"
        assert found == [0]


# -- silent clients, by the clock ---------------------------------------------------------------


def wait_in(waiting: IdleConnections, sock: Any) -> gevent.Greenlet[[], tuple[Any, bool]]:
    """Return a greenlet that waits for *sock*'s client: what it reads, and whether it was ended."""

    def wait() -> tuple[Any, bool]:
        waiting.enter(sock, gevent.getcurrent(), has_served=True)
        try:
            data = sock.recv(10)
        finally:
            told = waiting.leave(gevent.getcurrent())
        return data, told

    greenlet = gevent.spawn(wait)
    let_hub_turn()
    assert waiting.get(greenlet) is not None
    return greenlet


def test_a_silent_client_is_let_go_when_its_time_is_over(
    pair: tuple[Any, Any], clock: Clock
) -> None:
    """Not a moment before, and the reader meets the end and no error."""
    waiting = IdleConnections(get_hub(), SHORT)
    reader = wait_in(waiting, pair[0])
    clock.now += SHORT * 0.99
    waiting._look(SHORT)
    let_hub_turn()
    assert not reader.ready()
    clock.now += SHORT * 0.02
    assert reader.get() == (b"", True)
    assert waiting.timeouts.total() == 1
    waiting.close()


def test_the_oldest_is_let_go_first(clock: Clock) -> None:
    """Each has its own time, and the next look is soon enough for the next one."""
    pairs = [native_socket.socketpair() for _ in range(4)]
    ends = [Connection(ours.family, ours.type, ours.proto, ours.detach()) for ours, _ in pairs]
    waiting = IdleConnections(get_hub(), SHORT)
    readers = []
    for end in ends:
        readers.append(wait_in(waiting, end))
        clock.now += SHORT / 4
    for place, reader in enumerate(readers):
        assert reader.get() == (b"", True)
        assert [each.ready() for each in readers] == [each <= place for each in range(4)]
        clock.now += SHORT / 4
    assert (waiting.timeouts.total(), len(waiting)) == (4, 0)
    waiting.close()
    close_all([*ends, *(theirs for _, theirs in pairs)])


def test_a_connection_with_unread_data_is_not_closed(pair: tuple[Any, Any], clock: Clock) -> None:
    """What is there counts, although no handler has read it."""
    end, client = pair
    waiting = IdleConnections(get_hub(), SHORT)
    go_on = Event()

    def wait() -> tuple[Any, bool]:
        waiting.enter(end, gevent.getcurrent(), has_served=True)
        go_on.wait()
        told = waiting.leave(gevent.getcurrent())
        return end.recv(10), told

    client.sendall(b"request")
    reader = gevent.spawn(wait)
    let_hub_turn()
    clock.now += 10 * SHORT
    waiting._look(SHORT)
    assert waiting.timeouts.total() == 0
    go_on.set()
    assert reader.get() == (b"request", False)
    waiting.close()


def test_without_a_timeout_no_connection_is_closed(pair: tuple[Any, Any], clock: Clock) -> None:
    """There is no timer even."""
    waiting = IdleConnections(get_hub())
    reader = wait_in(waiting, pair[0])
    waiting.enter_head(pair[0])
    waiting.leave_head()
    assert waiting._timer is None
    clock.now += 1e9
    let_hub_turn()
    assert not reader.ready()
    pair[1].sendall(b"x")
    assert reader.get() == (b"x", False)


def test_one_timer_serves_all_and_is_gone_when_no_connection_waits(pair: tuple[Any, Any]) -> None:
    """And is back with the next one."""
    end, client = pair
    waiting = IdleConnections(get_hub(), SHORT)
    assert timer_of(waiting) is None
    for _ in range(2):
        reader = wait_in(waiting, end)
        timer = timer_of(waiting)
        assert timer is not None
        waiting.enter(None, gevent.getcurrent(), has_served=False)
        assert timer_of(waiting) is timer
        waiting.leave(gevent.getcurrent())
        client.sendall(b"x")
        assert reader.get() == (b"x", False)
        wait_until(lambda: timer_of(waiting) is None)
    waiting.close()


def test_closing_takes_the_timer_away(pair: tuple[Any, Any]) -> None:
    """Twice is harmless."""
    waiting = IdleConnections(get_hub(), SHORT)
    reader = wait_in(waiting, pair[0])
    waiting.close()
    waiting.close()
    assert waiting._timer is None
    reader.kill()
    assert len(waiting) == 0


def test_a_waiting_connection_is_ended_once(pair: tuple[Any, Any]) -> None:
    """And a connection that doesn't wait is not ended at all."""
    waiting = IdleConnections(get_hub())
    reader = wait_in(waiting, pair[0])
    assert [waiting.tell(reader), waiting.tell(reader)] == [True, False]
    assert waiting.tell(gevent.getcurrent()) is False
    assert reader.get() == (b"", True)
    assert waiting.tell(reader) is False


def test_watchers_hear_of_each_that_begins_to_wait(pair: tuple[Any, Any]) -> None:
    """By its greenlet."""
    waiting = IdleConnections(get_hub())
    heard: list[object] = []
    waiting.watchers.append(heard.append)
    reader = wait_in(waiting, pair[0])
    assert heard == [reader]
    reader.kill()


def test_a_client_that_begins_a_request_is_to_go_on_with_it(
    pair: tuple[Any, Any], clock: Clock
) -> None:
    """Its time begins with the head, and what has come of it is read."""
    end, client = pair
    waiting = IdleConnections(get_hub(), SHORT)

    def read() -> list[Any]:
        waiting.enter(end, gevent.getcurrent(), has_served=False)
        first = end.recv(1)
        assert waiting.leave(gevent.getcurrent()) is False
        waiting.enter_head(end)
        rest = end.recv(100)
        last = end.recv(100)
        waiting.leave_head()
        return [first, rest, last]

    reader = gevent.spawn(read)
    let_hub_turn()
    clock.now += SHORT * 0.9
    client.sendall(b"GET")
    wait_until(lambda: bool(waiting._heads))
    clock.now += SHORT * 0.9
    waiting._look(SHORT)
    let_hub_turn()
    assert not reader.ready()
    clock.now += SHORT * 0.2
    assert reader.get() == [b"G", b"ET", b""]
    assert waiting.timeouts.total() == 1
    waiting.close()


# -- streams: the first byte --------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_silent_client_is_closed(
    hubs: int, tls: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """After its time; no handler is called, and no traceback is printed."""
    called: list[object] = []
    # The handshake is to be over before: a client that is silent in it gets no goodbye.
    seconds = 0.5 if tls else SHORT
    with serve(
        lambda *_: called.append(1), hubs=hubs, tls=tls, first_byte_timeout=seconds
    ) as server:
        server.start()
        began = monotonic()
        with (connect_tls if tls else connect)(server.address) as client:
            # With TLS its end is said, or this raised.
            assert client.recv(10) == b""
            if not tls:  # there the server's time began with its end of the handshake
                assert monotonic() - began >= SHORT * 0.9
        wait_until(lambda: failed(server) == 1)
        assert (called, server.active, timed_out(server)) == ([], 0, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_client_that_has_sent_a_byte_is_served_for_as_long_as_it_likes(
    hubs: int, tls: bool, clock: Clock
) -> None:
    """The handler gets the first byte as well; what comes later is its own business."""
    with serve(read_and_wait, hubs=hubs, tls=tls, first_byte_timeout=SHORT) as server:
        server.start()
        with (connect_tls if tls else connect)(server.address) as client:
            client.sendall(b"hello")
            assert client.recv(10) == b"hello"
            clock.now += 1000
            assert waits(server) == 0
            client.sendall(b"again")
            assert client.recv(10) == b"again"
        wait_until(lambda: completed(server) + failed(server) == 1)
        assert timed_out(server) == 0


def read_and_wait(sock: Any, _peer: Any) -> None:
    while data := sock.recv(100):
        sock.sendall(data)


def test_a_client_that_leaves_at_once_is_left_to_the_handler(hubs: int) -> None:
    """It reads the end of the stream, as it does without a timeout."""
    read: list[bytes] = []

    def handle(sock: Any, _peer: Any) -> None:
        read.append(sock.recv(10))

    with serve(handle, hubs=hubs, first_byte_timeout=NEVER) as server:
        server.start()
        connect(server.address).close()
        wait_until(lambda: completed(server) == 1)
        assert read == [b""]


def test_idle_has_the_same_time(hubs: int) -> None:
    """A client that was served, and is silent then, is let go: its handler reads the end."""
    with serve(echo, hubs=hubs, first_byte_timeout=SHORT) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(b"x")
            assert receive_all(client) == b"x"
        wait_until(lambda: completed(server) == 1)
        assert (timed_out(server), waits(server)) == (1, 0)


def test_a_stalled_hub_costs_no_client_its_request() -> None:
    """What had come when the hub turned again is served, however late it is."""
    with serve(echo, first_byte_timeout=SHORT) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(b"1")
            assert client.recv(1) == b"1"
            wait_until(lambda: waits(server) == 1)
            for word in (b"2", b"3"):
                client.sendall(word)
                time.sleep(2 * SHORT)  # natively: nothing turns
                assert client.recv(1) == word
            assert timed_out(server) == 0


def test_many_silent_clients_leave_nothing(hubs: int) -> None:
    """No wait, no handler, and no timer; descriptors are for the fixture."""
    with serve(echo, hubs=hubs, first_byte_timeout=SHORT) as server:
        server.start()
        clients = [connect(server.address) for _ in range(40)]
        assert [receive_all(client) for client in clients] == [b""] * 40
        wait_until(lambda: server.active == 0)
        assert (timed_out(server), waits(server)) == (40, 0)
        wait_until(lambda: [each._timer for each in waiting_of(server)] == [None] * hubs)
        close_all(clients)


def test_silent_clients_make_room() -> None:
    """Clients behind the limit are served when they are gone."""
    with serve(echo, first_byte_timeout=SHORT, max_connections=2) as server:
        server.start()
        silent = [connect(server.address) for _ in range(2)]
        with connect(server.address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        close_all(silent)


# -- HTTP ---------------------------------------------------------------------------------------


def test_http_closes_a_client_that_asks_nothing(
    hubs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """No reply, no traceback, and the connection is closed."""
    with http(hubs=hubs, first_byte_timeout=SHORT) as server:
        server.start()
        with connect(server.address) as client:
            assert receive_all(client) == b""
        wait_until(lambda: completed(server) == 1)
        assert timed_out(server) == 1
    assert capsys.readouterr().err == ""


def test_http_closes_a_client_that_asks_nothing_more(hubs: int) -> None:
    """A kept-alive connection has its replies, and is closed then."""
    with http(hubs=hubs, first_byte_timeout=SHORT) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(GET * 3)
            reply = receive_all(client)
            assert reply.count(b"200 OK") == 3
            assert b"Connection: close" not in reply
        wait_until(lambda: completed(server) == 1)
        assert (timed_out(server), waits(server)) == (1, 0)


@pytest.mark.parametrize("start", [b"G", b"GET /", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_http_closes_a_client_that_goes_on_too_slowly(hubs: int, start: bytes) -> None:
    """Of a request that was begun, whether in its first line or its headers."""
    called: list[object] = []

    def application(environ: Any, start_response: Any) -> list[bytes]:
        called.append(environ["REQUEST_METHOD"])
        start_response("200 OK", [])
        return [b"it was cut"]

    with http(application, hubs=hubs, first_byte_timeout=SHORT) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(start)
            assert (b"200 OK" in receive_all(client), called) == (False, [])
        wait_until(lambda: server.active == 0)
        assert (timed_out(server), waits(server)) == (1, 0)
        wait_until(lambda: [each._timer for each in waiting_of(server)] == [None] * hubs)


def test_a_byte_now_and_then_is_too_slow() -> None:
    """The time is the whole head's, and does not begin again with each byte."""
    with http(first_byte_timeout=4 * SHORT) as server:
        server.start()
        with connect(server.address) as client:
            is_over = Event()

            def dribble() -> None:
                # As fast as the hub goes round, and without an end.
                client.sendall(b"GET / HTTP/1.1\r\nX: ")
                while not is_over.is_set():
                    try:
                        client.sendall(b"x")
                    except OSError:
                        return
                    gevent.sleep(0.001)

            dribbling = gevent.spawn(dribble)
            try:
                client.recv(1000)
            except ConnectionResetError:
                pass  # our bytes were on their way when it was closed
            is_over.set()
            dribbling.get()
        wait_until(lambda: server.active == 0)
        assert timed_out(server) == 1


def test_http_serves_a_client_that_asks_in_time(hubs: int, clock: Clock) -> None:
    """However long the connection is open already."""
    with http(hubs=hubs, first_byte_timeout=SHORT) as server:
        server.start()
        with connect(server.address) as client:
            for _ in range(5):
                client.sendall(GET)
                assert client.recv(1000).endswith(b"ok")
                clock.now += SHORT * 0.9
        wait_until(lambda: server.active == 0)
        assert timed_out(server) == 0


def test_an_application_has_its_own_time() -> None:
    """While it is at work, or reads the request's body, no time is counted."""
    read: list[bytes] = []
    begun, may_go_on = Event(), Event()

    def application(environ: Any, start_response: Any) -> list[bytes]:
        begun.set()
        may_go_on.wait()
        read.append(environ["wsgi.input"].read())
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    with http(application, first_byte_timeout=SHORT) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
            begun.wait()
            # The timer looks for waits, and there are none.
            wait_until(lambda: waiting_of(server)[0]._timer is None)
            may_go_on.set()
            client.sendall(b"body")
            assert client.recv(1000).endswith(b"ok")
        assert (read, timed_out(server)) == ([b"body"], 0)


def test_https_says_its_end_to_a_silent_client() -> None:
    """A client can tell that nothing was cut off."""
    # The handshake is to be over before: a client that is silent in it gets no goodbye.
    with http(ssl_context=server_context(), first_byte_timeout=0.5) as server:
        server.start()
        with connect_tls(server.address) as client:
            client.sendall(GET)
            assert receive_all(client).count(b"200 OK") == 1


# -- TLS's handshake ----------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "a part"])
def test_a_client_that_is_silent_in_the_handshake_is_closed(
    hubs: int, said: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, counted as failed, with no handler called and no traceback."""
    called: list[object] = []
    with serve(lambda *_: called.append(1), hubs=hubs, tls=True, handshake_timeout=SHORT) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(said)
            assert client.recv(10) == b""
        wait_until(lambda: failed(server) == 1)
        assert (called, server.active) == ([], 0)
    assert capsys.readouterr().err == ""


def test_a_handshake_that_is_done_has_no_time_any_more() -> None:
    """Silence after it is another matter."""
    with serve(read_and_wait, tls=True, handshake_timeout=4 * SHORT) as server:
        server.start()
        with connect_tls(server.address) as client:
            over = Event()
            # A timer that is later than the handshake's.
            get_hub().loop.run_callback(gevent.spawn_later, 5 * SHORT, over.set)
            over.wait()
            client.sendall(b"x")
            assert client.recv(1) == b"x"


def test_a_handshake_that_fails_is_no_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    """It is reported, as ever."""
    with serve(read_and_wait, tls=True, handshake_timeout=NEVER) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            wait_until(lambda: failed(server) == 1)
    assert "SSLError" in capsys.readouterr().err


def test_a_handshake_that_is_killed_leaves_nothing() -> None:
    """By a server that stops: the connection is closed, not left to the collector."""
    with serve(read_and_wait, tls=True, spawn=5) as server:
        server.start()
        with connect(server.address) as client:
            wait_until(lambda: server.active == 1)
            server.stop(0)
            assert client.recv(10) == b""


def test_a_connection_knows_the_tls_that_has_taken_it_over() -> None:
    """By `secured`; and a search for what is in use finds that."""
    found: list[tuple[bool, bool]] = []

    def handle(sock: Any, _peer: Any) -> None:
        (in_use,) = workers_of(server)[0].in_use()
        found.append((in_use.sock is sock, in_use.args[0].secured is sock))
        sock.sendall(b"x")

    with serve(handle, tls=True) as server:
        server.start()
        with connect_tls(server.address) as client:
            assert client.recv(1) == b"x"
    assert found == [(True, True)]


def test_a_plain_connection_is_its_own(pair: tuple[Any, Any]) -> None:
    """It has no `secured` until TLS takes it over."""
    end = pair[0]
    assert not hasattr(end, "secured")
    acceptor: Any = None
    assert InUse(None, acceptor, (end, None)).sock is end


# -- wait_for_data ------------------------------------------------------------------------------


def test_waiting_for_data_takes_none_of_it(pair: tuple[Any, Any]) -> None:
    """It returns when there is some, at once or later."""
    end, client = pair
    waiting = gevent.spawn(wait_for_data, end)
    let_hub_turn()
    assert not waiting.ready()
    client.sendall(b"x")
    waiting.get()
    wait_for_data(end)
    assert end.recv(10) == b"x"


def test_waiting_for_data_ends_with_the_stream(pair: tuple[Any, Any]) -> None:
    """There is nothing more to wait for."""
    end, client = pair
    client.close()
    wait_for_data(end)
    assert end.recv(10) == b""


def test_waiting_for_data_on_what_is_closed_raises(pair: tuple[Any, Any]) -> None:
    """As a read does, whether it was closed before or meanwhile."""
    end = pair[0]
    waiting = gevent.spawn(wait_for_data, end)
    let_hub_turn()
    end.close()
    with pytest.raises(OSError, match=r"closed|Bad file"):
        waiting.get()
    with pytest.raises(OSError, match=r"closed|Bad file"):
        wait_for_data(end)


def test_waiting_for_data_knows_what_tls_has_deciphered(tls_pair: tuple[Any, Any]) -> None:
    """It is not in the kernel any more, and is there all the same."""
    serving, speaking = tls_pair
    speaking.sendall(b"two")
    assert serving.recv(1) == b"t"
    assert serving.pending() == 2
    wait_for_data(serving)
    assert serving.recv(10) == b"wo"


# -- close_reading ------------------------------------------------------------------------------


def test_a_reader_that_waits_meets_the_end(pair: tuple[Any, Any]) -> None:
    """And can still write."""
    end, client = pair
    reader = gevent.spawn(end.recv, 10)
    let_hub_turn()
    assert close_reading(end) is True
    assert reader.get() == b""
    end.sendall(b"bye")
    assert client.recv(10) == b"bye"


def test_what_has_data_is_not_closed(pair: tuple[Any, Any]) -> None:
    """Nothing of it is lost, and what comes later is read as well."""
    end, client = pair
    client.sendall(b"request")
    assert close_reading(end) is False
    assert end.recv(100) == b"request"
    client.sendall(b"another")
    assert end.recv(100) == b"another"


def test_what_its_client_has_left_is_not_closed(pair: tuple[Any, Any]) -> None:
    """The reader meets that end by itself."""
    end, client = pair
    client.close()
    assert close_reading(end) is False
    assert end.recv(10) == b""


def test_what_is_closed_or_reset_is_left_alone(pair: tuple[Any, Any]) -> None:
    """No error comes out."""
    end, client = pair
    if client.family == _socket.AF_INET:
        client.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert close_reading(end) is False
        assert close_reading(end) is False
    end.close()
    assert close_reading(end) is False


def test_gevents_own_sockets_and_plain_ones_can_be_closed() -> None:
    """`glb.idle` takes what a handler has."""
    for kind in (socket.socket, native_socket.socket):
        ours, theirs = native_socket.socketpair()
        with kind(fileno=ours.detach()) as end, theirs:
            assert close_reading(end) is True
            assert end.recv(10) == b""


def test_a_tls_reader_that_waits_meets_the_end_and_can_still_answer(
    tls_pair: tuple[Any, Any],
) -> None:
    """It reads b"" as if the client had left; what it says then is sent, and its goodbye."""
    serving, speaking = tls_pair
    reader = gevent.spawn(serving.recv, 10)
    let_hub_turn()
    assert close_reading(serving) is True
    assert reader.get() == b""
    serving.sendall(b"bye")
    say_goodbye(serving)
    assert speaking.recv(10) == b"bye"
    assert speaking.recv(10) == b""


# -- say_goodbye --------------------------------------------------------------------------------


def test_without_a_goodbye_tls_is_cut(tls_pair: tuple[Any, Any]) -> None:
    """What the next tests are about: the client can't tell whether that was all."""
    serving, speaking = tls_pair
    serving.sendall(b"reply")
    serving.close()
    assert speaking.recv(10) == b"reply"
    # OpenSSL 3.6 answers a cut with an alert. A Unix socket refuses that at once, and Python
    # raises the refusal in the place of the cut.
    with pytest.raises((ssl.SSLEOFError, BrokenPipeError)):
        speaking.recv(10)


def test_with_a_goodbye_tls_has_an_end(tls_pair: tuple[Any, Any]) -> None:
    """After all that was sent before. Twice is harmless, and the peer's is not waited for."""
    serving, speaking = tls_pair
    serving.sendall(b"reply")
    say_goodbye(serving)
    say_goodbye(serving)
    serving.close()
    assert (speaking.recv(10), speaking.recv(10)) == (b"reply", b"")


def test_a_goodbye_to_a_client_that_has_left_is_no_error(tls_pair: tuple[Any, Any]) -> None:
    """Nor to one that was closed here."""
    serving, speaking = tls_pair
    speaking.close()
    say_goodbye(serving)
    serving.close()
    say_goodbye(serving)


def test_a_goodbye_without_tls_sends_nothing(pair: tuple[Any, Any]) -> None:
    """There is none to say."""
    end, client = pair
    say_goodbye(end)
    end.close()
    assert client.recv(10) == b""


def test_a_server_that_drains_says_goodbye(hubs: int) -> None:
    """To clients that are idle, and behind the last word to those that are served."""
    may_go_on = threading.Event()

    def handle(sock: Any, _peer: Any) -> None:
        with idle():
            pass  # from here on it is one that has been served: its first request isn't waited for
        with idle():
            word = sock.recv(1)
        while word == b"w" and not may_go_on.is_set():
            gevent.sleep(0.001)
        sock.sendall(b"reply" if word else b"end")

    with serve(handle, hubs=hubs, tls=True) as server:
        server.start()
        idle_one, working = (connect_tls(server.address) for _ in range(2))
        working.sendall(b"w")
        wait_until(lambda: (server.active, waits(server)) == (2, 1))
        draining = gevent.spawn(server.drain)
        wait_until(lambda: server.is_draining)
        may_go_on.set()
        assert receive_all(working) == b"reply"
        # Its handler can write still, but its client has the goodbye already.
        assert receive_all(idle_one) in (b"", b"end")
        report = draining.get()
        assert (report.closed_idle, report.killed) == (1, 0)
        close_all([idle_one, working])


def test_https_says_goodbye_when_it_drains() -> None:
    """Between two requests, and after the last one."""
    with http(ssl_context=server_context()) as server:
        server.start()
        with connect_tls(server.address) as client:
            client.sendall(GET)
            assert client.recv(1000).endswith(b"ok")
            wait_until(lambda: waits(server) == 1)
            draining = gevent.spawn(server.drain)
            assert receive_all(client) == b""
            report = draining.get()
            assert (report.closed_idle, report.killed) == (1, 0)
