"""A request has its time, and when that is over its client learns it, and the log where it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final

import gevent
import pytest
from gevent.event import Event

from glb.http.head import Limits
from glb.hubs.greenlet_pool import handlers_here
from glb.pywsgi import RequestTimeout, WSGIHandler, WSGIServer
from glb.serve.sweep import NEVER

from ..fuzz.pages import ByHooks
from ..support.helpers import (
    Clock,
    close_all,
    connect,
    let_hub_turn,
    receive_all,
    wait_until,
)
from ..support.tls import client_context, server_context

ANY = ("127.0.0.1", 0)
LOOPS: Final[dict[str, Any]] = {"lean": WSGIHandler, "by hooks": ByHooks}
SHORT: Final = 0.02

GET: Final = b"GET /slow?x=1 HTTP/1.1\r\nHost: a\r\n\r\n"
WEBSOCKET: Final = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
OURS: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n"
    b"Retry-After: 1\r\nDate: "
)


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Any:
    """A handler class that is served by each of the loops."""
    return LOOPS[request.param]


def waits_for_ever(_environ: dict[str, Any], _start_response: Any) -> Any:
    Event().wait()


def ok(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def slow_or_ok(environ: dict[str, Any], start_response: Any) -> Any:
    application = waits_for_ever if environ["PATH_INFO"] == "/slow" else ok
    return application(environ, start_response)


class Served:
    """A server, whose requests have a time, with what went wrong.

    Attributes:
        errors: That were reported.
    """

    def __init__(self, application: Any, loop: Any = WSGIHandler, **options: Any) -> None:
        self.errors: list[Any] = []
        options = {"clones": 2, "request_timeout": SHORT, **options}
        self.server = WSGIServer(
            ANY, application, log=None, error_log=None, handler_class=loop, **options
        )
        self.server.start()

    def __enter__(self) -> Served:
        self._patch = pytest.MonkeyPatch()
        hub = gevent.get_hub()
        self._patch.setattr(hub, "handle_error", lambda *args: self.errors.append(args))
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()
        self._patch.undo()

    def ask(self, data: bytes = GET) -> bytes:
        """Send *data*, and return all that comes until the connection is closed."""
        with connect(self.server.address) as client:
            client.sendall(data)
            return receive_all(client)

    @property
    def timeouts(self) -> dict[str, int]:
        """Those that were counted, by kind."""
        workers = self.server.glb_engine.workers
        total = sum((worker.timeouts for worker in workers), start=type(workers[0].timeouts)())
        return {kind: count for kind, count in total.items() if count}


def timed(deadlines: Any) -> int:
    """Return how many requests have a deadline."""
    return sum(task.until not in (None, NEVER) for task in deadlines._tasks)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "longer than" in each.getMessage()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of deadlines. Timers have the loop's own."""
    clock = Clock()
    monkeypatch.setattr("glb.serve.sweep.monotonic", clock)
    return clock


# -- what the client gets -----------------------------------------------------------------------


def test_a_client_that_was_sent_nothing_gets_a_503(
    loop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It says when to come again. One line has the request, its client, and where it was."""
    with caplog.at_level(logging.WARNING, "glb"), Served(waits_for_ever, loop) as served:
        reply = served.ask()
        assert reply.startswith(OURS)
        assert reply.endswith(b"\r\n\r\n")
        assert (served.errors, served.timeouts) == ([], {"request": 1})
        (line,) = told(caplog)
    assert line.startswith("'GET /slow?x=1 HTTP/1.1' from ('127.0.0.1', ")
    assert "has taken longer than 0.02 s, and is ended. It was at:" in line
    assert "in waits_for_ever" in line


def test_requests_that_are_late_together_have_one_stack_in_the_log(
    loop: Any, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has its line, and one that waits elsewhere a stack of its own."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/other":
            Event().wait()
        waits_for_ever(environ, start_response)

    paths = ["/same/1", "/other", "/same/2"]
    with caplog.at_level(logging.WARNING, "glb"), Served(application, loop) as served:
        (worker,) = served.server.glb_engine.workers
        clients = [connect(served.server.address) for _ in paths]
        for path, client in zip(paths, clients, strict=True):
            client.sendall(GET.replace(b"/slow?x=1", path.encode()))
        wait_until(lambda: timed(worker.deadlines) == len(paths))
        clock.now += SHORT
        for client in clients:
            assert receive_all(client).startswith(OURS)
        close_all(clients)
    lines = told(caplog)
    assert [line.split()[1] for line in lines] == paths
    assert ["in waits_for_ever" in line for line in lines] == [True, False, False]
    assert ["It was at:" in line for line in lines] == [True, True, False]
    first = lines[0].partition(" has taken")[0]
    assert lines[2].endswith(f" It was where this one was: {first}")


def test_a_client_that_was_sent_a_part_is_let_go(
    loop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It sees that the reply isn't whole. The result is closed."""
    closed: list[bool] = []

    class Parts:
        def __iter__(self) -> Iterator[bytes]:
            yield b"part"
            Event().wait()

        def close(self) -> None:
            closed.append(True)

    def application(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return Parts()

    with caplog.at_level(logging.WARNING, "glb"), Served(application, loop) as served:
        reply = served.ask()
        assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
        assert reply.endswith(b"\r\n\r\n4\r\npart\r\n")
        assert (closed, served.errors, served.timeouts) == ([True], [], {"request": 1})
        assert len(told(caplog)) == 1


def test_early_hints_leave_room_for_a_503(loop: Any) -> None:
    """They are no part of the reply; nor is ``100 Continue``."""

    def application(environ: dict[str, Any], _start_response: Any) -> Any:
        environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload")])
        Event().wait()

    with Served(application, loop) as served:
        _, _, reply = served.ask().partition(b"\r\n\r\n")
        assert reply.startswith(OURS)


def test_what_follows_on_the_connection_is_not_served(loop: Any) -> None:
    """It was sent before the client knew."""
    calls: list[str] = []

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        calls.append(environ["PATH_INFO"])
        return slow_or_ok(environ, start_response)

    with Served(application, loop) as served:
        reply = served.ask(GET.replace(b"/slow?x=1", b"/") + GET + GET)
        assert [reply[9:12], reply.count(b"HTTP/1.1 ")] == [b"200", 2]
        assert reply.partition(b"\r\n\r\nok")[2].startswith(OURS)
    assert calls == ["/", "/slow"]


def test_a_client_that_is_silent_within_a_body_gets_a_503(loop: Any) -> None:
    """Where ``body_timeout`` doesn't end it before; what it sends later doesn't hide the reply."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input"].read()
        return ok(environ, start_response)

    with Served(application, loop) as served, connect(served.server.address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        reply = client.recv(1000)
        assert reply.startswith(OURS)
        client.sendall(bytes(100000))
        assert receive_all(client) == b""


def test_a_client_that_takes_nothing_is_let_go(loop: Any) -> None:
    """Where ``send_timeout`` doesn't end it before."""
    ended = Event()

    class Handler(loop):  # type: ignore[misc]  # a class that is not known
        def _close(self) -> None:
            super()._close()
            ended.set()

    def application(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(1 << 26))])
        return [bytes(1 << 26)]

    with Served(application, Handler) as served, connect(served.server.address) as client:
        client.sendall(GET)
        assert ended.wait(10)
        assert (served.errors, served.timeouts) == ([], {"request": 1})


@pytest.mark.parametrize("hubs", [1, 2])
def test_requests_of_all_hubs_have_their_time(hubs: int) -> None:
    """Also where TLS is spoken."""
    options: dict[str, Any] = {"hubs": hubs, "clones": hubs, "ssl_context": server_context()}
    theirs = client_context()
    with Served(waits_for_ever, **options) as served:

        def ask() -> bytes:
            client = connect(served.server.address)
            with theirs.wrap_socket(client) as secured:
                secured.sendall(GET)
                return receive_all(secured)

        replies = [gevent.spawn(ask) for _ in range(2 * hubs)]
        assert [each.get()[:12] for each in replies] == [b"HTTP/1.1 503"] * 2 * hubs
        assert served.timeouts == {"request": 2 * hubs}


# -- what the application meets -----------------------------------------------------------------


def test_an_application_may_reply_by_itself(loop: Any) -> None:
    """It catches what no ``except Exception`` does."""

    def application(_environ: dict[str, Any], start_response: Any) -> Any:
        try:
            try:
                Event().wait()
            except Exception:
                pytest.fail("it is no Exception")
        except RequestTimeout as error:
            start_response("504 Gateway Timeout", [("Content-Length", "4")])
            return [b"%.2f" % error.seconds]

    with Served(application, loop) as served, connect(served.server.address) as client:
        for _ in range(2):
            client.sendall(GET)
            reply = b""
            while not reply.endswith(b"0.02"):
                reply += client.recv(1000)
            assert reply.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
        assert served.timeouts == {"request": 2}


def test_an_application_that_goes_on_is_ended_again(loop: Any) -> None:
    """Each time as much later, until it goes."""
    caught: list[RequestTimeout] = []

    def application(_environ: dict[str, Any], _start_response: Any) -> Any:
        while True:
            try:
                Event().wait()
            except RequestTimeout as error:
                caught.append(error)
                if len(caught) == 3:
                    raise

    with Served(application, loop) as served:
        assert served.ask().startswith(OURS)
        assert (len(caught), served.errors) == (3, [])


def test_a_close_that_hangs_is_ended_too(loop: Any) -> None:
    """The first timeout ends what the application does, the second its end."""

    class Hanging:
        def __iter__(self) -> Iterator[bytes]:
            Event().wait()
            yield b""

        def close(self) -> None:
            Event().wait()

    def application(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return Hanging()

    with Served(application, loop) as served:
        assert served.ask().startswith(OURS)
        assert (served.errors, served.timeouts) == ([], {"request": 2})


@pytest.mark.parametrize("name", ["run_application", "handle_one_response"])
def test_methods_of_the_programs_own_may_let_it_through(name: str) -> None:
    """Or meet it: the client gets the same."""

    def wait(_handler: Any) -> None:
        Event().wait()

    handler_class = type("Handler", (WSGIHandler,), {name: wait})
    with Served(ok, handler_class) as served:
        assert served.ask().startswith(OURS)
        assert served.errors == []


# -- what has no such end -----------------------------------------------------------------------


def let_time_pass(clock: Clock, server: WSGIServer) -> None:
    """Have each hub look twice, a thousand seconds apart."""
    for worker in server.glb_engine.workers:
        deadlines = worker.deadlines
        assert deadlines is not None
        for _ in range(2):
            deadlines._look(SHORT)
            clock.now += 1000
        deadlines._look(SHORT)
    let_hub_turn()


def test_a_connection_that_waits_for_a_request_has_no_time(loop: Any, clock: Clock) -> None:
    """It is another timeout's."""
    with Served(ok, loop) as served, connect(served.server.address) as client:
        for _ in range(2):
            client.sendall(GET)
            assert client.recv(1000).endswith(b"ok")
            let_time_pass(clock, served.server)
        assert served.timeouts == {}


def switching(environ: dict[str, Any], start_response: Any) -> Any:
    start_response("101 Switching Protocols", [("Upgrade", "websocket")])(b"")
    environ["wsgi.input"].read(1)
    return [b"bye"]


def taking(environ: dict[str, Any], _start_response: Any) -> Any:
    sock = environ["wsgi.input"].raw._sock
    sock.sendall(b"HTTP/1.1 101 \r\n\r\n")
    sock.recv(1)
    sock.sendall(b"bye")
    return []


@pytest.mark.parametrize("application", [switching, taking])
def test_a_websocket_has_no_time(application: Any, loop: Any, clock: Clock) -> None:
    """However it has come to be one."""
    with Served(application, loop) as served, connect(served.server.address) as client:
        client.sendall(WEBSOCKET)
        assert client.recv(1000).startswith(b"HTTP/1.1 101 ")
        let_time_pass(clock, served.server)
        assert served.timeouts == {}
        client.sendall(b"x")
        assert receive_all(client) == b"bye"


def test_a_handler_in_the_hub_has_no_time() -> None:
    """Nothing can wait there."""
    server = WSGIServer(ANY, ok, log=None, spawn=None, clones=1, request_timeout=SHORT)
    server.init_socket()
    with connect((server.server_host, server.server_port)) as client:
        client.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        server.start()  # it is all there, so that the handler need not wait for it
        assert receive_all(client).endswith(b"ok")
        (worker,) = server.glb_engine.workers
        assert worker.deadlines is not None
        assert len(worker.deadlines) == 0
    server.stop()


def test_the_end_of_a_body_has_a_time_of_its_own(loop: Any, clock: Clock) -> None:
    """The reply was sent: the request is not late when its body is read away."""
    replied = Event()

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        yield from ok(environ, start_response)
        replied.set()

    with Served(application, loop) as served, connect(served.server.address) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12")
        assert replied.wait(10)
        let_time_pass(clock, served.server)
        client.sendall(b"345" + GET)
        reply = b""
        while reply.count(b"ok") < 2:
            reply += client.recv(1000)
        assert served.timeouts == {}


# -- what is left -------------------------------------------------------------------------------


def test_the_next_requests_have_all_their_time() -> None:
    """Of other clients, whose handlers may run in the same greenlet."""
    with Served(slow_or_ok) as served:
        for _ in range(5):
            assert served.ask().startswith(OURS)
            quick = GET.replace(b"/slow", b"/").replace(
                b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"
            )
            assert [served.ask(quick)[-2:] for _ in range(5)] == [b"ok"] * 5
        assert (served.errors, served.timeouts) == ([], {"request": 5})
        (worker,) = served.server.glb_engine.workers
        assert worker.deadlines is not None
        wait_until(lambda: len(worker.deadlines or ()) == 0)


def test_handlers_run_in_recycled_greenlets_as_without(loop: Any) -> None:
    """Nothing of a request's time refers to one: not even when it was over."""
    with Served(slow_or_ok, loop) as served:
        handlers = handlers_here()
        quick = GET.replace(b"/slow", b"/").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        served.ask(quick)  # the proof is given, or not, before the first one runs
        if not handlers.proof.is_given:
            pytest.skip(handlers.proof.reason)
        for data in (quick, GET, quick, GET):
            begun = len(handlers.all)
            served.ask(data)
            wait_until(lambda: served.server.active == 0 and len(handlers) == len(handlers.all))
            assert len(handlers.all) == begun


@pytest.mark.parametrize("hubs", [1, 2])
def test_a_drain_waits_for_the_end_of_their_time(hubs: int) -> None:
    """Requests that hang are replied to, and nothing is killed."""
    arrived: list[object] = []

    def application(*_: object) -> Any:
        arrived.append(None)
        Event().wait()

    with Served(application, hubs=hubs, request_timeout=0.1) as served:
        clients = [connect(served.server.address) for _ in range(2)]
        for client in clients:
            client.sendall(GET)
        wait_until(lambda: len(arrived) == 2)
        report = served.server.drain(30)
        assert (report.finished, report.closed_idle, report.killed) == (2, 0, 0)
        for client in clients:
            assert receive_all(client).startswith(OURS)
            client.close()


def test_a_program_may_change_it_at_any_time(loop: Any, clock: Clock) -> None:
    """For a request that is under way, too."""
    begun, go_on = Event(), Event()

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        begun.set()
        go_on.wait()
        return ok(environ, start_response)

    with Served(application, loop) as served, connect(served.server.address) as client:
        client.sendall(GET)
        assert begun.wait(10)
        served.server.request_timeout = None
        let_time_pass(clock, served.server)
        go_on.set()
        assert client.recv(1000).endswith(b"ok")
        assert served.timeouts == {}


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"request_timeout": 0}, ValueError, "request_timeout must be more than 0 seconds, got 0"),
        ({"request_timeout": "1"}, TypeError, "request_timeout must be a number of seconds"),
        ({"limits": 100}, TypeError, "limits must be glb.http.head.Limits, got 100"),
        ({"limits": Limits(fields=0)}, ValueError, "limits.fields must be 1 or more, got 0"),
        ({"limits": Limits(line=True)}, TypeError, "limits.line must be a whole number, got True"),
    ],
)
def test_a_wrong_value_is_refused(
    options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    """With the value in the error."""
    with pytest.raises(kind, match=text):
        WSGIServer(ANY, ok, **options)


def test_limits_may_be_given_to_the_constructor() -> None:
    """As other settings."""
    with Served(ok, limits=Limits(fields=1)) as served:
        assert served.ask(GET.replace(b"\r\n\r\n", b"\r\nA: b\r\n\r\n"))[9:12] == b"431"
