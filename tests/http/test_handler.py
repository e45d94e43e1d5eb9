"""What `glb.http` promises to clients and applications, asked of both loops of the handler.

The lean loop is for handlers that override nothing of gevent's, the other calls each of gevent's
methods. Both are asked everything, and what they reply, log and report must be the same.
"""

from __future__ import annotations

import array
import contextlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import gevent
import gevent.pywsgi
import gevent.ssl
import gevent.tests
import pytest
from gevent import socket
from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler as GeventWSGIHandler
from hypothesis import given
from hypothesis import strategies as st

import glb.http.handler
import glb.http.reading
import glb.http.replies
from glb.http.head import Limits
from glb.http.stream import FileWrapper, send_file
from glb.pywsgi import WSGIHandler, WSGIServer

from ..fuzz.pages import ByHooks
from ..fuzz.test_servers import fuzz
from ..support.helpers import connect, let_hub_turn, receive_all, wait_until
from ..support.tls import client_context, server_context

ANY = ("127.0.0.1", 0)
LOOPS: Final[dict[str, Any]] = {"lean": WSGIHandler, "by hooks": ByHooks}

Application = Callable[[dict[str, Any], Any], Any]


# -- asking both --------------------------------------------------------------------------------


class Served:
    """What came of a connection.

    Attributes:
        reply: All that the client got, with one and the same Date.
        calls: The application's requests: method and target.
        lines: Of the error log, without the client's port.
        errors: That were reported: kind and text.
    """

    def __init__(self) -> None:
        self.reply = b""
        self.calls: list[tuple[str, str]] = []
        self.lines: list[str] = []
        self.errors: list[tuple[type[BaseException], str]] = []

    @property
    def heads(self) -> list[bytes]:
        """The heads of replies, where no body holds one."""
        return re.findall(rb"HTTP/1\.1 .*?\r\n\r\n", self.reply, re.DOTALL)

    @property
    def statuses(self) -> list[int]:
        return [int(each[9:12]) for each in self.heads]

    @property
    def body(self) -> bytes:
        """Of the only reply."""
        assert len(self.heads) == 1, self.reply
        return self.reply.partition(b"\r\n\r\n")[2]

    def outcome(self) -> object:
        return self.reply, self.calls, self.lines, self.errors


def end_and_receive(client: Any) -> bytes:
    """Send no more, and return all that comes."""
    client.shutdown(socket.SHUT_WR)
    return receive_all(client)


def serve(
    handler_class: Any,
    application: Application,
    data: bytes,
    talk: Callable[[Any], bytes] = end_and_receive,
    server_class: Any = WSGIServer,
    ssl_context: Any = None,
    **settings: Any,
) -> Served:
    """Serve one connection, on which *data* comes, and return what came of it."""
    served, error_log = Served(), io.StringIO()

    def recorded(environ: dict[str, Any], start_response: Any) -> Any:
        target = environ.get("RAW_URI", environ["PATH_INFO"])  # gevent has none
        served.calls.append((environ["REQUEST_METHOD"], target))
        return application(environ, start_response)

    def handle_error(_context: object, kind: Any, error: Any, _traceback: Any) -> None:
        served.errors.append((kind, str(error)))

    tls = {} if ssl_context is None else {"ssl_context": ssl_context}
    pool = Pool()
    server = server_class(
        ANY,
        recorded,
        log=None,
        error_log=error_log,
        handler_class=handler_class,
        spawn=pool,
        **tls,
    )
    for name, value in settings.items():
        setattr(server, name, value)
    with pytest.MonkeyPatch.context() as patch, server:
        patch.setattr(gevent.get_hub(), "handle_error", handle_error)
        server.start()
        with connect((server.server_host, server.server_port)) as client:
            if data:
                client.sendall(data)
            served.reply = re.sub(rb"\r\nDate: [^\r]*GMT", b"\r\nDate: now", talk(client))
        pool.join()
    lines = re.sub(r"'127\.0\.0\.1', \d+", "peer", error_log.getvalue()).splitlines()
    served.lines = [re.sub(r"^<.*?>: ", "", each) for each in lines]
    return served


def alike(application: Application, data: bytes, *args: Any, **settings: Any) -> Served:
    """Assert that both loops do the same, and return what they do."""
    lean, hooks = (
        serve(handler_class, application, data, *args, **settings)
        for handler_class in LOOPS.values()
    )
    assert lean.outcome() == hooks.outcome()
    return lean


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Any:
    """A handler class that is served by each of the loops."""
    return LOOPS[request.param]


def ok(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]


def reads(environ: dict[str, Any], start_response: Any) -> Any:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [b"<%b>" % body]


def replies(
    status: str = "200 OK", headers: list[tuple[Any, Any]] | None = None, body: Any = (b"body",)
) -> Application:
    """Return an application that replies so. A body that is callable makes one."""

    def application(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, [*(headers or [])])
        return body() if callable(body) else body

    return application


GET: Final = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
SECOND: Final = b"GET /second HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSE: Final = b"\r\nConnection: close\r\n"


def request(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([*lines, b"Host: x", b"", b""]) + body


# -- upgrades -----------------------------------------------------------------------------------

WEBSOCKET: Final = (b"Connection: Upgrade", b"Upgrade: websocket")


def replies_its_input(environ: dict[str, Any], start_response: Any) -> Any:
    stream = environ["wsgi.input"]
    is_raw = hasattr(stream, "raw")
    assert environ["wsgi.input_terminated"] is not is_raw
    start_response("200 OK", [])
    return [b"raw" if is_raw else b"<%b>" % stream.read()]


@pytest.mark.parametrize(
    ("lines", "is_raw"),
    [
        ([b"GET / HTTP/1.1", *WEBSOCKET], True),
        ([b"GET / HTTP/1.1", b"Connection: keep-alive, upgrade", b"Upgrade: WebSocket"], True),
        ([b"GET / HTTP/1.1", b"Connection: upgrade", b"Upgrade: other/1"], True),
        ([b"GET / HTTP/1.1", *WEBSOCKET, b"Content-Length: 0"], True),
        ([b"GET / HTTP/1.1", b"Connection: upgrade"], False),
        ([b"GET / HTTP/1.1", b"Upgrade: websocket"], False),
        ([b"GET / HTTP/1.1", b"Connection: close", b"Upgrade: websocket"], False),
        ([b"POST / HTTP/1.1", *WEBSOCKET], False),
        ([b"HEAD / HTTP/1.1", *WEBSOCKET], False),
        ([b"GET / HTTP/1.0", *WEBSOCKET], False),
        ([b"GET / HTTP/1.1", *WEBSOCKET, b"Content-Length: 5"], False),
        ([b"GET / HTTP/1.1", *WEBSOCKET, b"Transfer-Encoding: chunked"], False),
    ],
)
def test_only_an_upgrade_has_the_raw_stream(lines: list[bytes], is_raw: bool) -> None:
    """GET of HTTP/1.1 with both fields and without a body; all others have their body alone."""
    body = b""
    if b"Content-Length: 5" in lines:
        body = b"hello"
    elif b"Transfer-Encoding: chunked" in lines:
        body = b"5\r\nhello\r\n0\r\n\r\n"
    served = alike(replies_its_input, request(*lines, body=body) + SECOND)
    content = b"raw" if is_raw else b"<hello>" if body else b"<>"
    if not lines[0].startswith(b"HEAD"):
        assert (b"\r\n\r\n" + content in served.reply) is True
    # None of them swallows what comes behind it.
    if b"HTTP/1.0" not in lines[0] and b"Connection: close" not in lines:
        assert served.calls[1:] == [("GET", "/second")]


def test_a_101_ends_http_on_its_connection() -> None:
    """The following bytes are never read as a request."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response(
            "101 Switching Protocols", [("Upgrade", "x"), ("Connection", "Upgrade")]
        )
        write(b"")
        write(b"raw " + environ["wsgi.input"].read(5))
        return []

    served = alike(application, request(b"GET / HTTP/1.1", *WEBSOCKET, body=b"frame" + SECOND))
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n"
    assert served.reply == head + b"Date: now\r\n\r\nraw frame"
    assert len(served.calls) == 1


@pytest.mark.parametrize("reads_before", [True, False])
def test_a_raw_stream_that_was_read_from_ends_its_connection(reads_before: bool) -> None:
    """If the reply is no 101: where the next request begins, only the application knows."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        if reads_before:
            environ["wsgi.input"].read(1)
        start_response("200 OK", [("Content-Length", "2")])
        yield b"o"
        environ["wsgi.input"].read(1)
        yield b"k"

    served = alike(application, request(b"GET / HTTP/1.1", *WEBSOCKET) + b"GE" + SECOND)
    assert (len(served.calls), served.statuses) == (1, [200])
    assert (CLOSE in served.reply) is reads_before


def test_a_raw_stream_that_was_let_alone_ends_nothing() -> None:
    """A server that doesn't upgrade goes on in HTTP, as h2c clients expect."""
    data = request(b"GET / HTTP/1.1", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c")
    served = alike(ok, data + data + SECOND)
    assert served.statuses == [200, 200, 200]
    assert CLOSE not in served.reply


def test_a_websocket_takes_the_socket_from_the_raw_stream() -> None:
    """As simple-websocket: it replies on the socket itself, and never calls start_response."""

    def application(environ: dict[str, Any], _start_response: Any) -> Any:
        assert environ["SERVER_SOFTWARE"].startswith("gevent")
        sock = environ["wsgi.input"].raw._sock.dup()
        try:
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
            while data := sock.recv(100):
                sock.sendall(data.upper())
        finally:
            sock.close()
        return []

    def talk(client: Any) -> bytes:
        reply = b""
        while not reply.endswith(b"\r\n\r\n"):
            reply += client.recv(1000)
        client.sendall(b"frame")
        return reply + end_and_receive(client)

    served = alike(application, request(b"GET / HTTP/1.1", *WEBSOCKET), talk)
    assert served.reply.endswith(b"\r\n\r\nFRAME")
    assert (served.lines, served.errors) == ([], [])


def test_gevent_websockets_handler_makes_its_own_reply() -> None:
    """What it sets in start_response holds: no length, no Date, no chunks; it uses the socket."""

    class Handler(WSGIHandler):
        def run_application(self) -> None:
            if self.environ.get("HTTP_UPGRADE") != "websocket":
                super().run_application()
                return
            self.environ["wsgi.websocket"] = self
            self.result = []
            self.start_response(
                "101 Switching Protocols", [("Upgrade", "websocket"), ("Connection", "Upgrade")]
            )
            self.write("")
            self.socket.sendall(b"raw:" + self.rfile.read(5))

        def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
            write = super().start_response(status, headers, exc_info)
            if self.environ.get("wsgi.websocket"):
                self.provided_content_length = False
                self.response_use_chunked = False
                self.close_connection = True
                self.provided_date = True
            return write

    data = request(b"GET / HTTP/1.1", *WEBSOCKET, body=b"frame" + SECOND)
    served = serve(Handler, ok, data)
    assert served.reply == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        b"raw:frame"
    )
    assert (served.lines, served.errors) == ([], [])
    assert serve(Handler, ok, GET + SECOND).outcome() == alike(ok, GET + SECOND).outcome()


# -- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", [50, 20000])
@pytest.mark.parametrize("is_gevents", [False, True])
def test_a_request_line_may_be_as_long_as_a_program_says(
    line: int, is_gevents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By gevent's limit, which counts the line's end, or by the server's."""
    if is_gevents:
        monkeypatch.setattr(gevent.pywsgi, "MAX_REQUEST_LINE", line + 2)
    settings = {} if is_gevents else {"limits": Limits(line=line)}
    for size, status in ((line, 200), (line + 1, 414)):
        target = b"/" + b"x" * (size - len(b"GET / HTTP/1.1"))
        for split in (False, True):  # in one segment, or in two

            def talk(client: Any, rest: bytes = b"Host: x\r\n\r\n", split: bool = split) -> bytes:
                if split:
                    let_hub_turn()
                client.sendall(rest)
                return end_and_receive(client)

            served = alike(ok, b"GET %b HTTP/1.1\r\n" % target, talk, **settings)
            assert served.statuses == [status]


@pytest.mark.parametrize(
    ("limits", "lines", "status"),
    [
        (Limits(fields=2), [b"A: 1"], 200),
        (Limits(fields=2), [b"A: 1", b"B: 2"], 431),
        (Limits(field=10), [b"A: " + b"x" * 7], 200),
        (Limits(field=10), [b"A: " + b"x" * 8], 431),
        (Limits(head=29), [b"A: " + b"x" * 15], 200),
        (Limits(head=29), [b"A: " + b"x" * 16], 431),
    ],
)
def test_fields_may_be_as_many_and_as_long_as_a_server_says(
    limits: Limits, lines: list[bytes], status: int
) -> None:
    """More of them are refused, and the application isn't asked."""
    served = alike(ok, request(b"GET / HTTP/1.1", *lines), limits=limits)
    assert served.statuses == [status]
    assert len(served.calls) == (status == 200)


def test_a_server_may_ask_for_a_host() -> None:
    """RFC 9112, 3.2. HTTP/1.0 needs none."""
    data = b"GET / HTTP/1.1\r\n\r\n"
    assert alike(ok, data).statuses == [200]
    served = alike(ok, data, needs_host=True)
    assert (served.statuses, served.calls) == ([400], [])
    assert alike(ok, b"GET / HTTP/1.0\r\n\r\n", needs_host=True).statuses == [200]


# -- bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        request(
            b"POST / HTTP/1.1",
            b"Content-Length: 35",
            body=b"GET /mine HTTP/1.1\r\nHost: xxxxx\r\n\r\n",
        ),
        request(b"POST / HTTP/1.1", b"Content-Length: 65536", body=b"x" * 65536),
        request(
            b"POST / HTTP/1.1",
            b"Transfer-Encoding: chunked",
            body=b"5;a=b\r\nhello\r\n0\r\nT: 1\r\n\r\n",
        ),
    ],
    ids=["short", "the longest", "chunked"],
)
@pytest.mark.parametrize("reads_some", [0, 3])
def test_an_unread_body_is_read_away(sent: bytes, reads_some: int) -> None:
    """The next request is what follows it."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["RAW_URI"] == "/":
            environ["wsgi.input"].read(reads_some)
        return ok(environ, start_response)

    served = alike(application, sent + SECOND)
    assert served.statuses == [200, 200]
    assert served.calls == [("POST", "/"), ("GET", "/second")]


def test_a_long_unread_body_ends_the_connection() -> None:
    """The reply says so. More than 64 KiB cost both sides more than a connection."""
    sent = request(b"POST / HTTP/1.1", b"Content-Length: 65537", body=b"x" * 65537)
    served = alike(ok, sent + SECOND)
    assert (served.statuses, len(served.calls)) == ([200], 1)
    assert CLOSE in served.reply


@pytest.mark.parametrize("status", [200, 500])
def test_a_reply_does_not_wait_for_a_body(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that never comes is waited for after it, and not for long."""
    monkeypatch.setattr(glb.http.reading, "DISCARD_SECONDS", 0.05)

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        if status == 500:
            raise LookupError
        return ok(environ, start_response)

    served = alike(
        application, request(b"POST / HTTP/1.1", b"Content-Length: 100", body=b"x"), receive_all
    )
    assert served.statuses == [status]
    assert (CLOSE in served.reply) is (status == 500)


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        ([b"Content-Length: 10", b"0123456789"], [200, 200]),
        ([b"Content-Length: 11", b"01234567890"], [413]),
        ([b"Transfer-Encoding: chunked", b"5\r\n01234\r\n5\r\n01234\r\n0\r\n\r\n"], [200, 200]),
        ([b"Transfer-Encoding: chunked", b"5\r\n01234\r\n6\r\n012345\r\n0\r\n\r\n"], [413]),
        ([b"Transfer-Encoding: chunked", b"fffffff\r\n"], [413]),
    ],
)
def test_a_body_longer_than_the_limit_is_a_413(body: list[bytes], statuses: list[int]) -> None:
    """Before anything of what is too long is read."""
    data = request(b"POST / HTTP/1.1", body[0], body=body[1])
    served = alike(reads, data + SECOND, max_body=10)
    assert served.statuses == statuses
    assert len(served.lines) == (statuses == [413])
    assert (CLOSE in served.reply) is (statuses == [413])
    if body[0].startswith(b"Content-Length: 11"):
        assert served.calls == []  # it isn't even asked


def test_any_body_is_short_enough_without_a_limit() -> None:
    """``None`` is no limit."""
    data = request(b"POST / HTTP/1.1", b"Content-Length: 5", body=b"hello")
    assert alike(reads, data, max_body=None).body == b"<hello>"


@pytest.mark.parametrize(
    "start",
    [
        [b"Content-Length: 10", b"hello"],
        [b"Transfer-Encoding: chunked", b""],
        [b"Transfer-Encoding: chunked", b"5\r\nhel"],
        [b"Transfer-Encoding: chunked", b"5\r\nhello"],
        [b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n"],
    ],
)
def test_a_client_that_is_silent_within_a_body_gets_a_408(start: list[bytes]) -> None:
    """After ``body_timeout`` seconds, wherever it has stopped."""
    data = request(b"POST / HTTP/1.1", start[0], body=start[1])
    served = alike(reads, data, receive_all, body_timeout=0.05)
    assert served.statuses == [408]
    assert CLOSE in served.reply
    assert len(served.lines) == 1
    assert "silent for 0.05 s within the body" in served.lines[0]


def test_the_time_for_a_body_is_a_body_s() -> None:
    """A kept connection may be silent for longer."""

    def talk(client: Any) -> bytes:
        reply: bytes = client.recv(1000)
        gevent.sleep(0.15)
        client.sendall(SECOND)
        return reply + end_and_receive(client)

    data = request(b"POST / HTTP/1.1", b"Content-Length: 5", body=b"hello")
    assert alike(reads, data, talk, body_timeout=0.05).statuses == [200, 200]


def test_an_application_may_handle_what_a_body_raises() -> None:
    """It is an OSError. The connection ends, since nothing on it can be found any more."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        with pytest.raises(OSError, match="chunk must begin with its size"):
            environ["wsgi.input"].read()
        return ok(environ, start_response)

    data = request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"x\r\n")
    served = alike(application, data + SECOND)
    assert (served.statuses, len(served.calls)) == ([200], 1)
    assert CLOSE in served.reply


@pytest.mark.parametrize("as_file", [False, True])
def test_a_client_that_takes_nothing_is_let_go(as_file: bool, loop: Any, tmp_path: Path) -> None:
    """After ``send_timeout`` seconds without progress, with one line, and no report."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1 << 26)

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(1 << 26))])
        if as_file:
            return environ["wsgi.file_wrapper"](large.open("rb"))
        return [bytes(1 << 26)]

    ended = Event()

    class Handler(loop):  # type: ignore[misc]  # a class that is not known
        def _close(self) -> None:
            super()._close()
            ended.set()

    def talk(_client: Any) -> bytes:
        assert ended.wait(10)
        return b""

    served = serve(Handler, application, GET, talk, send_timeout=0.05)
    assert served.errors == []
    assert served.lines == ["can't reply to (peer): timed out"]


# -- Expect -------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [b"100-continue", b"100-Continue", b"100-CONTINUE"])
def test_a_client_that_waits_is_asked_to_go_on_when_its_body_is_read(word: bytes) -> None:
    """Once, and in any case of letters."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        first = environ["wsgi.input"].read(1)
        body = first + environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [body]

    def talk(client: Any) -> bytes:
        first: bytes = client.recv(25)
        client.sendall(b"hello" + SECOND)
        return first + end_and_receive(client)

    data = request(b"POST / HTTP/1.1", b"Expect: " + word, b"Content-Length: 5")
    served = alike(application, data, talk)
    assert served.statuses == [100, 200, 200]
    assert served.reply.count(b"100 Continue\r\n\r\n") == 1


def test_a_client_that_waits_for_nothing_is_not_asked_to_go_on() -> None:
    """Without a body, in HTTP/1.0, and behind the reply, where it would be taken for another."""

    def replies_first(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        yield b"o"
        environ["wsgi.input"].read()
        yield b"k"

    expect = b"Expect: 100-continue"
    for data, application in (
        (request(b"GET / HTTP/1.1", expect), reads),
        (request(b"POST / HTTP/1.0", expect, b"Content-Length: 5", body=b"hello"), reads),
        (
            request(b"POST / HTTP/1.1", expect, b"Content-Length: 5", body=b"hello"),
            replies_first,
        ),
    ):
        assert alike(application, data).statuses == [200]


def test_a_body_that_was_not_asked_for_may_not_come() -> None:
    """So the connection ends. If it was sent at once, it is there, and is read away."""
    data = request(b"POST / HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 5")
    waiting = alike(ok, data, receive_all)
    assert waiting.statuses == [200]
    assert CLOSE in waiting.reply
    sent = alike(ok, data + b"hello" + SECOND)
    assert (sent.statuses, CLOSE in sent.reply) == ([200, 200], False)


@pytest.mark.parametrize("word", [b"200-ok", b"100-continue, x", b"x"])
def test_another_expectation_is_a_417(word: bytes) -> None:
    """RFC 9110, 10.1.1. The application isn't asked."""
    served = alike(ok, request(b"POST / HTTP/1.1", b"Expect: " + word) + SECOND)
    assert (served.statuses, served.calls) == ([417], [])
    assert CLOSE in served.reply


# -- replies ------------------------------------------------------------------------------------

BODIES: Final[dict[str, Any]] = {
    "list": [b"bo", b"dy"],
    "generated": lambda: iter([b"bo", b"dy"]),
    "nothing": [],
    "generated nothing": lambda: iter([]),
    "file": lambda: FileWrapper(io.BytesIO(b"body")),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("headers", [[], [("Content-Length", "4")]])
def test_a_reply_to_head_has_no_body(body: str, headers: list[tuple[str, str]]) -> None:
    """Whatever the application makes. The connection stays in step."""
    head = request(b"HEAD / HTTP/1.1")
    served = alike(replies(headers=headers, body=BODIES[body]), head + head)
    assert b"".join(served.heads) == served.reply
    assert served.statuses == [200, 200]
    assert (CLOSE in served.reply, b"chunked" in served.reply) == (False, False)
    assert served.reply.count(b"Content-Length: 4\r\n") == (2 if headers or body == "list" else 0)
    assert (served.lines, served.errors) == ([], [])


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_some_replies_have_no_body(status: str) -> None:
    """Neither one nor a frame for one; and a body for them is an error of the application."""
    served = alike(replies(status, body=BODIES["generated nothing"]), GET + SECOND)
    assert b"".join(served.heads) == served.reply
    assert b"chunked" not in served.reply
    assert b"Content-Length" not in served.reply
    served = alike(replies(status, body=[b"body"]), GET + SECOND)
    assert served.statuses == [500]
    assert len(served.errors) == 1


def test_a_204_has_no_length_and_a_304_may() -> None:
    """RFC 9110, 8.6."""
    none = alike(replies("204 No Content", [("Content-Length", "0")], []), GET)
    assert b"Content-Length" not in none.reply
    some = alike(replies("304 Not Modified", [("Content-Length", "7")], []), GET + SECOND)
    assert some.reply.count(b"Content-Length: 7\r\n") == 2


@pytest.mark.parametrize("body", ["list", "generated", "file"])
def test_a_body_longer_than_its_length_is_cut(body: str) -> None:
    """Nothing of it is read as the next reply. The log says so, once."""
    served = alike(replies(headers=[("Content-Length", "3")], body=BODIES[body]), GET)
    assert served.body == b"bod"
    assert served.lines == [
        "the reply to 'GET / HTTP/1.1' is longer than its Content-Length, and was cut"
    ]
    assert served.errors == []


def test_a_reply_that_is_cut_leaves_the_connection_to_the_next() -> None:
    """It is whole for the client; behind a proxy the next request is another client's."""
    served = alike(replies(headers=[("Content-Length", "3")], body=[b"body"]), GET + SECOND)
    assert len(served.calls) == 2
    assert [part[:3] for part in served.reply.split(b"\r\n\r\n")[1:]] == [b"bod", b"bod"]
    assert CLOSE not in served.reply


@pytest.mark.parametrize("body", ["list", "generated", "nothing", "file"])
def test_a_body_shorter_than_its_length_ends_the_connection(body: str) -> None:
    """The client waits for the rest of this one, and not for the next."""
    served = alike(replies(headers=[("Content-Length", "9")], body=BODIES[body]), GET + SECOND)
    assert served.body == (b"" if body == "nothing" else b"body")
    assert len(served.calls) == 1
    (line,) = served.lines
    assert f"{9 - len(served.body)} bytes shorter than its Content-Length" in line


@pytest.mark.parametrize("fields", [(), (b"Connection: keep-alive",)])
def test_http_1_0_ends_a_body_of_no_length_with_the_connection(fields: tuple[bytes, ...]) -> None:
    """It knows no chunks; and the reply says so."""
    data = request(b"GET / HTTP/1.0", *fields)
    served = alike(replies(body=BODIES["generated"]), data + data)
    assert (served.body, len(served.calls)) == (b"body", 1)
    assert CLOSE in served.reply
    kept = alike(replies(body=[b"body"]), data + data)
    assert len(kept.calls) == 1 + len(fields)
    assert kept.reply.count(b"Connection: keep-alive") == 2 * len(fields)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200 OK", [("Transfer-Encoding", "chunked")]),
        ("200 OK", [("transfer-encoding", "identity")]),
        ("200 OK", [("Keep-Alive", "timeout=5")]),
        ("200 OK", [("Trailer", "X")]),
        ("200 OK", [("TE", "trailers")]),
        ("200 OK", [("Proxy-Authenticate", "Basic")]),
        ("200 OK", [("X", "a\r\nY: b")]),
        ("200 OK", [("X", "a\nb")]),
        ("200 OK", [("X", "a\0b")]),
        ("200 OK", [("X", "a\x7fb")]),
        ("200 OK", [("X", "\u20ac")]),
        ("200 OK", [("X", b"a")]),
        ("200 OK", [("X", None)]),
        ("200 OK", [(b"X", "a")]),
        ("200 OK", [("X Y", "a")]),
        ("200 OK", [("X:", "a")]),
        ("200 OK", [("", "a")]),
        ("200 OK", [("X\r\n", "a")]),
        ("200 OK", [("\xe4", "a")]),
        ("200 OK", [("Content-Length", "-1")]),
        ("200 OK", [("Content-Length", "1_0")]),
        ("200 OK", [("Content-Length", "4"), ("content-length", "5")]),
        ("200 OK", [("Content-Length", "4, 4")]),
        ("OK", []),
        ("200\r\nX: y", []),
        ("2000 OK", []),
        ("99 Low", []),
        ("100 Continue", []),
        ("103 Early Hints", []),
        ("200 O\0K", []),
        (b"200 OK", []),
        (200, []),
        ("204 No Content", [("Content-Length", "4")]),
    ],
)
def test_what_would_break_the_framing_is_a_500(status: Any, headers: Any) -> None:
    """With one report; and the connection is as good as before."""
    served = alike(replies(status, headers), GET)
    assert served.reply == (
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        b"Content-Length: 21\r\nDate: now\r\n\r\nInternal Server Error"
    )
    assert len(served.errors) == 1
    assert served.lines == []


def test_start_response_is_called_once() -> None:
    """Or again with an error, before the head has left: that is PEP 3333."""

    def twice(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        start_response("201 Created", [])
        return [b"body"]

    assert alike(twice, GET).statuses == [500]

    def in_error(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "100"), ("Connection", "close"), ("A", "b")])
        try:
            raise LookupError
        except LookupError as error:
            start_response("501 Sorry", [], (LookupError, error, error.__traceback__))
        return [b"body"]

    served = alike(in_error, GET)
    assert (served.statuses, served.body) == ([501], b"body")
    assert b"\r\nA: b" not in served.reply

    def too_late(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"some"
        try:
            raise LookupError("the first")
        except LookupError as error:
            start_response("501 Sorry", [], (LookupError, error, error.__traceback__))

    served = alike(too_late, GET + SECOND)
    assert (served.statuses, len(served.calls)) == ([200], 1)
    assert served.errors == [(LookupError, "the first")]
    assert not served.reply.endswith(b"0\r\n\r\n")  # so that the client knows


@pytest.mark.parametrize("body", [[], [b"body"], BODIES["generated nothing"]])
def test_an_application_that_never_starts_a_reply_is_a_500(body: Any) -> None:
    """Even if it has nothing to say."""
    served = alike(lambda _environ, _start: body() if callable(body) else body, GET)
    assert served.statuses == [500]
    assert [text for _, text in served.errors] == ["The application did not call start_response()"]


@pytest.mark.parametrize("body", [b"body", "body"])
def test_a_body_that_is_one_string_is_a_500(body: Any) -> None:
    """It is no iterable of bytes. Of `bytes`, each part would be a number."""
    served = alike(replies(body=body), GET)
    assert served.statuses == [500]
    assert served.errors == [
        (TypeError, f"an application returns an iterable of bytes, got {body!r}")
    ]


@pytest.mark.parametrize("body", [["body"], lambda: iter(["body"])])
def test_text_is_sent_whole_and_logged_once(body: Any) -> None:
    """And it is the last reply on its connection, and says so."""
    served = alike(replies(headers=[("Content-Length", "4")], body=body), GET + SECOND)
    assert (served.body, CLOSE in served.reply) == (b"body", True)
    assert len(served.lines) == 1
    assert served.errors == []


WORDS: Final = memoryview(array.array("I", [0x61616161, 0x62626262]))


@pytest.mark.parametrize(
    ("body", "length"), [([WORDS], None), (lambda: iter([WORDS]), None), ([WORDS], 8), ([WORDS], 3)]
)
def test_a_view_is_as_long_as_its_bytes(body: Any, length: int | None) -> None:
    """Its ``len`` counts items, which may have several bytes each."""
    headers = [] if length is None else [("Content-Length", str(length))]
    served = alike(replies(headers=headers, body=body), GET + SECOND)
    whole = b"aaaabbbb"[:length]
    is_chunked = callable(body)
    expected = b"8\r\n%b\r\n0\r\n\r\n" % whole if is_chunked else whole
    head, _, rest = served.reply.partition(b"\r\n\r\n")
    assert is_chunked or b"Content-Length: %d" % len(whole) in head
    assert rest == expected + head + b"\r\n\r\n" + expected


def test_an_iterator_that_has_a_length_is_sent_whole() -> None:
    """Its parts can be counted only once, by those that are sent."""

    class Counted:
        def __init__(self) -> None:
            self._parts = iter([b"one", b"two"])

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Counted:
            return self

        def __next__(self) -> bytes:
            return next(self._parts)

    served = alike(replies(body=Counted), GET)
    assert served.body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


@pytest.mark.parametrize("part", [7, None, 1.5])
def test_a_part_of_another_kind_is_an_error(part: Any) -> None:
    """The client sees that the reply is not whole."""
    served = alike(replies(body=lambda: iter([b"some", part or [1]])), GET + SECOND)
    assert (served.statuses, len(served.calls)) == ([200], 1)
    assert not served.reply.endswith(b"0\r\n\r\n")
    assert [kind for kind, _ in served.errors] == [TypeError]


def test_an_error_in_the_first_part_is_a_500_if_nothing_has_left() -> None:
    """Also where the length of the body is asked for."""
    served = alike(replies(body=[7]), GET)
    assert served.statuses == [500]
    assert [kind for kind, _ in served.errors] == [TypeError]


@pytest.mark.parametrize("value", ["close", "Close", "CLOSE", "x, close", "close , x"])
def test_a_reply_that_closes_is_the_last(value: str) -> None:
    """In any case of letters, and in a list."""
    served = alike(replies(headers=[("Connection", value)]), GET + SECOND)
    assert (served.statuses, len(served.calls)) == ([200], 1)
    assert f"\r\nConnection: {value}\r\n".encode() in served.reply
    assert served.reply.lower().count(b"connection:") == 1


@pytest.mark.parametrize(
    "data",
    [
        request(b"GET / HTTP/1.1", b"Connection: close"),
        request(b"GET / HTTP/1.1", b"Connection: x, Close"),
        request(b"GET / HTTP/1.0"),
        request(
            b"POST / HTTP/1.1",
            b"Content-Length: 3",
            b"Transfer-Encoding: chunked",
            body=b"0\r\n\r\n",
        ),
    ],
)
@pytest.mark.parametrize("value", [None, "keep-alive"])
def test_the_last_reply_says_that_it_is_the_last(data: bytes, value: str | None) -> None:
    """Once, whatever the application says."""
    headers = [] if value is None else [("Connection", value)]
    served = alike(replies(headers=headers), data + SECOND)
    assert len(served.calls) == 1
    assert CLOSE in served.reply
    assert served.reply.lower().count(b"connection:") == 1


@pytest.mark.parametrize("error", [BrokenPipeError(32, "mine"), ConnectionResetError(104, "mine")])
def test_an_error_of_the_applications_own_pipe_is_reported(error: OSError) -> None:
    """It looks as if the client had left, but the client is there, and gets a 500."""

    def application(_environ: dict[str, Any], _start_response: Any) -> Any:
        raise error

    served = alike(application, GET)
    assert served.statuses == [500]
    assert [kind for kind, _ in served.errors] == [type(error)]


class Closing:
    """A body that counts how often it is closed."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts
        self.closed = 0

    def __iter__(self) -> Iterator[Any]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    ("status", "headers", "parts", "data"),
    [
        ("200 OK", [], [b"body"], GET),
        ("200 OK", [], [b"body"], request(b"HEAD / HTTP/1.1")),
        ("200 OK", [], [b"body", LookupError("on purpose")], GET),
        ("200 OK", [], [LookupError("on purpose")], GET),
        ("200 OK", [], ["text"], GET),
        ("200 OK", [], [7], GET),
        ("200 OK", [("Content-Length", "2")], [b"body"], GET),
        ("200 OK", [("Content-Length", "9")], [b"body"], GET),
        ("204 No Content", [], [b"body"], GET),
        (None, [], [], GET),
    ],
)
def test_a_body_is_closed_once(
    loop: Any, status: str | None, headers: Any, parts: list[Any], data: bytes
) -> None:
    """Whatever becomes of the reply."""
    body = Closing(parts)

    def application(_environ: dict[str, Any], start_response: Any) -> Any:
        if status is not None:
            start_response(status, headers)
        return body

    serve(loop, application, data)
    assert body.closed == 1


def test_a_body_is_closed_if_the_client_has_left(loop: Any) -> None:
    """And that is no error."""
    body = Closing([b"x" * 3_000_000] * 3)
    entered, proceed = Event(), Event()

    def application(_environ: dict[str, Any], start_response: Any) -> Any:
        entered.set()
        proceed.wait()
        start_response("200 OK", [])
        return body

    def talk(client: Any) -> bytes:
        entered.wait()
        reset(client)
        proceed.set()
        return b""

    served = serve(loop, application, GET, talk)
    assert (body.closed, served.lines, served.errors) == (1, [], [])


def reset(client: Any) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


# -- quiet --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "lines"),
    [
        (b"", 0),
        (b"\r\n", 0),
        (GET + b"\r\n", 0),
        (b"G", 1),
        (b"GET / HTTP/1.1\r\nHost", 1),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 1),
        (request(b"POST / HTTP/1.1", b"Content-Length: 9", body=b"hello"), 0),
        (request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"5\r\nhel"), 0),
        (request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"zz\r\n"), 1),
    ],
)
@pytest.mark.parametrize("resets", [False, True])
def test_a_client_that_leaves_costs_one_line_at_most(sent: bytes, lines: int, resets: bool) -> None:
    """With its address; and no report."""
    entered = Event()

    def talk(client: Any) -> bytes:
        gevent.sleep(0)
        if not resets:
            return end_and_receive(client)
        with contextlib.suppress(OSError):
            reset(client)
        return b""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        entered.set()
        return reads(environ, start_response)

    for handler_class in LOOPS.values():
        served = serve(handler_class, application, sent, talk)
        assert served.errors == []
        assert len(served.lines) <= 1
        if not resets:
            assert len(served.lines) == lines
        assert all("(from (peer))" in each for each in served.lines)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /\x1b[2J HTTP/1.1\r\n\r\n",
        b"GET /\xe2\x80\xae HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\x1b[31m: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \x85\x1b[0m\r\n\r\n",
        b"GET / HTTP/1.1\r\nExpect: \xe2\x80\xae\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: \x9b31m\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n",
        request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"5;\x9b31m\r\n"),
    ],
)
def test_what_a_client_sends_is_escaped_in_the_log(sent: bytes) -> None:
    """It can't move a terminal's cursor, nor add a line."""
    for handler_class in LOOPS.values():
        served = serve(handler_class, reads, sent)
        (line,) = served.lines
        assert line.isascii()
        assert line.isprintable()


# -- files --------------------------------------------------------------------------------------


@pytest.fixture
def sent_files(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of files that the kernel was asked to send."""
    sizes: list[int] = []

    def recorded(sock: Any, wrapper: Any, size: int, timeout: Any) -> int:
        sizes.append(size)
        return send_file(sock, wrapper, size, timeout)

    monkeypatch.setattr("glb.http.replies.send_file", recorded)
    return sizes


def of_file(
    make: Callable[[], Any], headers: list[tuple[str, str]] | None = None, status: str = "200 OK"
) -> Application:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response(status, headers or [])
        return environ["wsgi.file_wrapper"](make())

    return application


def real_file(content: bytes = b"0123456789", start: int = 0) -> Any:
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the reply closes it
    file.write(content)
    file.seek(start)
    return file


@pytest.mark.parametrize("length", [None, 10])
def test_a_file_is_sent_by_the_kernel(length: int | None, sent_files: list[int]) -> None:
    """With its length in the head, and the connection stays in step."""
    headers = [] if length is None else [("Content-Length", str(length))]
    served = alike(of_file(real_file, headers), GET + SECOND)
    assert served.reply.count(b"\r\n\r\n0123456789") == 2
    assert served.reply.count(b"Content-Length: 10\r\n") == 2
    assert sent_files == [10, 10] * 2
    assert (CLOSE in served.reply, served.lines, served.errors) == (False, [], [])


def test_a_large_file_comes_whole(sent_files: list[int]) -> None:
    """In as many steps as the client takes."""
    content = os.urandom(3_000_000)
    served = alike(of_file(lambda: real_file(content)), GET)
    assert served.body == content
    assert sent_files == [len(content)] * 2


def test_a_file_is_sent_from_where_it_stands() -> None:
    """That is how ranges are sent; with a length as far as it says."""
    rest = alike(of_file(lambda: real_file(start=4)), GET)
    assert rest.body == b"456789"
    headers = [("Content-Length", "3"), ("Content-Range", "bytes 4-6/10")]
    part = alike(of_file(lambda: real_file(start=4), headers, "206 Partial Content"), GET + SECOND)
    assert part.reply.count(b"\r\n\r\n456") == 2
    assert part.reply.count(b"456789") == 0
    assert (part.lines, CLOSE in part.reply) == ([], False)


def test_a_file_shorter_than_its_length_ends_the_connection() -> None:
    """As any other body, and the log says so."""
    served = alike(of_file(real_file, [("Content-Length", "11")]), GET + SECOND)
    assert (served.body, len(served.calls)) == (b"0123456789", 1)
    assert served.lines == [
        "the reply to 'GET / HTTP/1.1' is 1 bytes shorter than its Content-Length"
    ]


def test_a_file_s_head_is_that_of_the_file(sent_files: list[int]) -> None:
    """HEAD has its length and nothing else."""
    head = request(b"HEAD / HTTP/1.1")
    served = alike(of_file(real_file), head + head)
    assert b"".join(served.heads) == served.reply
    assert served.reply.count(b"Content-Length: 10\r\n") == 2
    assert sent_files == []


@pytest.mark.parametrize("data", [GET + SECOND, request(b"GET / HTTP/1.0") + SECOND])
def test_what_is_no_real_file_is_read(data: bytes, sent_files: list[int]) -> None:
    """Of HTTP/1.0 it ends with the connection."""

    class Unreal:
        """It has a descriptor that can't be sent from."""

        def __init__(self) -> None:
            self._file = io.BytesIO(b"0123456789")

        def read(self, size: int) -> bytes:
            return self._file.read(size)

        def fileno(self) -> int:
            raise io.UnsupportedOperation("fileno")

    for make in (lambda: io.BytesIO(b"0123456789"), Unreal):
        served = alike(of_file(make), data)
        assert served.reply.count(b"0123456789") == len(served.calls)
        assert len(served.calls) == (1 if b"1.0" in data else 2)
    assert sent_files == []


def test_an_empty_file_is_an_empty_body() -> None:
    """The connection stays in step."""
    served = alike(of_file(lambda: real_file(b"")), GET + SECOND)
    assert served.statuses == [200, 200]
    assert served.reply.replace(b"0\r\n\r\n", b"") == b"".join(served.heads)


def test_a_file_is_closed_with_its_reply(loop: Any) -> None:
    """Sent by the kernel or not, whole or not."""
    files: list[Any] = []

    def make() -> Any:
        files.append(real_file())
        return files[-1]

    serve(loop, of_file(make), GET + request(b"HEAD / HTTP/1.1"))
    serve(loop, of_file(make, [("Content-Length", "3")]), GET)
    serve(loop, of_file(make, [("Transfer-Encoding", "x")]), GET)
    assert [each.closed for each in files] == [True, True, True]


def test_a_file_is_read_for_tls(sent_files: list[int]) -> None:
    """The kernel can't encrypt it."""
    serving, context = server_context(), client_context()

    def talk(client: Any) -> bytes:
        with context.wrap_socket(client) as wrapped:
            wrapped.sendall(GET + request(b"GET / HTTP/1.1", b"Connection: close"))
            return receive_all(wrapped)

    served = alike(of_file(real_file), b"", talk, ssl_context=serving)
    assert served.reply.count(b"0123456789") == 2
    assert sent_files == []


def test_both_loops_do_the_same_over_tls() -> None:
    """Bodies, pipelines, refusals."""
    serving, context = server_context(), client_context()
    posted = request(b"POST / HTTP/1.1", b"Content-Length: 5", body=b"hello")

    for data in (
        posted + posted + request(b"GET / HTTP/1.1", b"Connection: close"),
        posted + b"bad\r\n\r\n",
        request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\nzz\r\n"),
    ):

        def talk(client: Any, data: bytes = data) -> bytes:
            with context.wrap_socket(client) as wrapped:
                wrapped.sendall(data)
                return receive_all(wrapped)

        served = alike(reads, b"", talk, ssl_context=serving)
        assert served.statuses
        assert served.errors == []


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        (GET, b"This port speaks TLS: use https://.\r\n"),
        (b"\x16\x03\x01\x00\x05hello", b""),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b""),
    ],
)
def test_what_is_no_tls_costs_one_line(sent: bytes, reply: bytes) -> None:
    """With the address. A browser with an "http:" link to a TLS port shows what to do."""

    def talk(client: Any) -> bytes:
        try:
            return end_and_receive(client)
        except ConnectionResetError:
            assert not reply
            return b""

    for handler_class in LOOPS.values():
        served = serve(handler_class, ok, sent, talk, ssl_context=server_context())
        assert (served.calls, served.errors) == ([], [])
        assert served.reply.endswith(reply)
        assert not reply or served.reply.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        (line,) = served.lines
        assert line.startswith("TLS handshake with (peer) failed: ")
        assert line.isascii()


# -- early hints, and the environ -----------------------------------------------------------------


def test_early_hints_come_before_the_reply() -> None:
    """As gunicorn has them: ``environ["wsgi.early_hints"]`` is called with headers."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        hint = environ["wsgi.early_hints"]
        hint([("Link", "</a>; rel=preload"), ("Link", "</b>; rel=preload")])
        hint([])
        for name, value in [
            ("Link", "a\r\nb"),
            ("A B", "c"),
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "4"),
            ("Connection", "close"),
        ]:
            with pytest.raises(ValueError, match=r"."):
                hint([(name, value)])
        start_response("200 OK", [])
        return [b"body"]

    served = alike(application, GET)
    assert served.reply == (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nLink: </b>; rel=preload\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 4\r\n\r\nbody"
    )
    assert served.errors == []


def test_early_hints_are_refused_behind_the_reply() -> None:
    """They would be a part of its body."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "4")])
        yield b"bo"
        with pytest.raises(AssertionError, match="before the reply"):
            environ["wsgi.early_hints"]([("Link", "x")])
        yield b"dy"

    assert alike(application, GET).body == b"body"


def test_http_1_0_has_no_early_hints() -> None:
    """RFC 9110, 15.2: a server sends it no 1xx."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        assert "wsgi.early_hints" not in environ
        return ok(environ, start_response)

    assert alike(application, request(b"GET / HTTP/1.0")).statuses == [200]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"GET /a%2Fb%20c?d=%e4 HTTP/1.1", ("/a%2Fb%20c?d=%e4", "/a/b c", "d=%e4", "x")),
        (b"GET //a/../b HTTP/1.1", ("//a/../b", "//a/../b", "", "x")),
        (b"GET /? HTTP/1.1", ("/?", "/", "", "x")),
        (b"GET http://y:8/a?b HTTP/1.1", ("http://y:8/a?b", "/a", "b", "y:8")),
        (b"GET HTTP://y HTTP/1.1", ("HTTP://y", "/", "", "y")),
        (b"OPTIONS * HTTP/1.1", ("*", "*", "", "x")),
    ],
)
def test_the_target_is_in_the_environ_as_it_was_sent(
    line: bytes, expected: tuple[str, ...]
) -> None:
    """RAW_URI and REQUEST_URI, beside what it means."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        assert environ["REQUEST_URI"] == environ["RAW_URI"]
        start_response("200 OK", [])
        names = ("RAW_URI", "PATH_INFO", "QUERY_STRING", "HTTP_HOST")
        return [repr(tuple(environ[name] for name in names)).encode()]

    assert alike(application, request(line)).body == repr(expected).encode()


def test_both_loops_make_the_same_environ() -> None:
    """Each key and value, but for the connection's own."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        seen = {
            name: value
            for name, value in environ.items()
            if isinstance(value, (str, bool, tuple)) and name not in {"REMOTE_PORT", "SERVER_PORT"}
        }
        return [repr((sorted(seen.items()), sorted(environ))).encode()]

    for data in (
        GET,
        request(b"GET / HTTP/1.0", b"Connection: keep-alive"),
        request(b"POST /%e4?a=b HTTP/1.1", b"Content-Length: 1", b"Content-Type: x", body=b"y"),
        request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        request(b"POST / HTTP/1.1", b"Content-Length: 9", b"Transfer-Encoding: chunked")
        + b"0\r\n\r\n",
        request(b"GET / HTTP/1.1", b"Cookie: a=1", b"Cookie: b=2", b"A: 1", b"A: 2", b"B_C: 3"),
        request(b"GET http://y/ HTTP/1.1", *WEBSOCKET),
    ):
        assert b"REQUEST_METHOD" in alike(application, data).body


# -- gevent's hooks -------------------------------------------------------------------------------

HOOKS: Final = sorted(
    name
    for name, each in vars(GeventWSGIHandler).items()
    if callable(each) and not name.startswith("_") and name not in {"ApplicationError"}
)


def test_a_handler_that_overrides_nothing_is_lean() -> None:
    """What is no method of gevent's may be changed."""

    class Mine(WSGIHandler):
        ignored_socket_errors = (1, 2)

        class ApplicationError(AssertionError): ...

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.mine = True

        def another(self) -> None: ...

    assert WSGIHandler._is_lean
    assert Mine._is_lean


@pytest.mark.parametrize("name", HOOKS)
def test_a_handler_that_overrides_a_hook_is_not_lean(name: str) -> None:
    """Whether it does so itself, by a parent, or by what is mixed in."""
    hook = {name: lambda self, *args: getattr(super(type(self), self), name)(*args)}
    itself: Any = type("Itself", (WSGIHandler,), hook)
    child: Any = type("Child", (itself,), {})
    mixed: Any = type("Mixed", (type("Mixin", (), hook), WSGIHandler), {})
    assert [each._is_lean for each in (itself, child, mixed)] == [False] * 3


MANY: Final = {
    "get": GET + SECOND,
    "post": request(b"POST / HTTP/1.1", b"Content-Length: 5", body=b"hello") + SECOND,
    "chunked": request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked")
    + b"5\r\nhello\r\n0\r\n\r\n"
    + SECOND,
    "HTTP/1.0": request(b"GET / HTTP/1.0"),
    "HEAD": request(b"HEAD / HTTP/1.1") + SECOND,
    "refused": GET + b"bad\r\n\r\n",
    "cut": GET + b"GET / HTT",
    "fails": request(b"GET /fail HTTP/1.1"),
    "upgrade": request(b"GET / HTTP/1.1", *WEBSOCKET) + SECOND,
    "nothing": b"",
}


def reads_or_fails(environ: dict[str, Any], start_response: Any) -> Any:
    if environ["PATH_INFO"] == "/fail":
        raise LookupError("on purpose")
    return ok(environ, start_response)


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_that_changes_nothing_changes_nothing(name: str) -> None:
    """Any one of them, alone: the same bytes, lines and reports."""
    original = getattr(WSGIHandler, name)
    called: list[str] = []

    def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        called.append(name)
        return original(self, *args, **kwargs)

    handler_class = type("Handler", (WSGIHandler,), {name: hook})
    for data in MANY.values():
        ours = serve(handler_class, reads_or_fails, data)
        assert ours.outcome() == serve(WSGIHandler, reads_or_fails, data).outcome()
    assert called


@pytest.mark.parametrize("case", sorted(set(MANY) - {"refused", "cut", "upgrade", "HEAD"}))
def test_hooks_are_called_as_gevent_calls_them(case: str) -> None:
    """In the same order and with as many arguments."""

    def recording(base: Any, called: list[tuple[str, int]]) -> Any:
        def record(name: str) -> Any:
            def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
                called.append((name, len(args)))
                return getattr(base, name)(self, *args, **kwargs)

            return hook

        names = set(HOOKS) - {"MessageClass", "__init__"}
        return type("Recording", (base,), {name: record(name) for name in names})

    calls: list[list[tuple[str, int]]] = []
    for base, server_class in (
        (GeventWSGIHandler, gevent.pywsgi.WSGIServer),
        (WSGIHandler, WSGIServer),
    ):
        calls.append([])

        handler_class = recording(base, calls[-1])
        serve(handler_class, reads_or_fails, MANY[case], server_class=server_class)
    # Where nothing comes any more, there is no line to read.
    if calls[0][-1] == ("read_requestline", 0):
        del calls[0][-1]
    assert calls[1] == calls[0]
    assert len(calls[0]) >= (2 if case == "nothing" else 6)


def test_a_hook_reads_from_rfile_as_with_gevent() -> None:
    """A `read_requestline` that looks at the stream first, as gevent's own test has one."""

    class Handler(WSGIHandler):
        def read_requestline(self) -> str:
            first = self.rfile.read(7)
            if first[:1] == b"<":
                self.socket.sendall(b"policy")
                return ""
            line: bytes = first + self.rfile.readline()
            return line.decode("latin-1")

    assert serve(Handler, ok, b"<policy-file-request/>\0").reply == b"policy"
    assert serve(Handler, ok, GET).outcome() == alike(ok, GET).outcome()


POST: Final = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"


class OwnRequest(WSGIHandler):
    """A handler whose `read_request` is the program's own, and doesn't ask for ours: gevent's."""

    read_request = GeventWSGIHandler.read_request


class OwnEnviron(WSGIHandler):
    """A handler whose `get_environ` is the program's own, and reads bodies by itself."""

    def get_environ(self) -> dict[str, Any]:
        env: dict[str, Any] = self.server.get_environ()
        env.update(REQUEST_METHOD=self.command, PATH_INFO=self.path)
        env["wsgi.input"] = self.wsgi_input = self.rfile
        return env


def test_a_request_that_a_program_reads_itself_is_followed_by_the_next() -> None:
    """Its body is read away by gevent's code, as with gevent."""
    served = serve(OwnRequest, ok, POST + b"\r\nhello" + SECOND + GET)
    assert served.calls == [("POST", "/"), ("GET", "/second"), ("GET", "/")]
    assert served.errors == []


@pytest.mark.parametrize("option", [b"upgrade", b"Upgrade\r\nUpgrade: websocket"])
def test_a_raw_stream_of_a_program_that_reads_requests_itself_is_the_last(option: bytes) -> None:
    """Gevent hands it out for a request with a body, too: what follows is no request for sure."""

    def reads_five(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input"].read(5)
        return ok(environ, start_response)

    data = POST + b"Connection: " + option + b"\r\n\r\nhello"
    served = serve(OwnRequest, reads_five, data + SECOND)
    assert served.calls == [("POST", "/")]


def test_an_environ_of_a_program_that_has_a_body_is_the_last() -> None:
    """Nothing shows where the program has left it. The reply says so."""
    served = serve(OwnEnviron, ok, GET + POST + b"\r\nhello" + SECOND)
    assert served.calls == [("GET", "/"), ("POST", "/")]
    assert served.reply.count(CLOSE) == 1
    assert served.errors == []


@pytest.mark.parametrize("names", [("response",), ("request",), ("response", "request")])
def test_gevents_own_loops_leave_no_body_in_front_of_the_next_request(names: tuple[str]) -> None:
    """A program may have copied one of them."""
    copied = {f"handle_one_{each}": vars(GeventWSGIHandler)[f"handle_one_{each}"] for each in names}
    copied_handler = type("Copied", (WSGIHandler,), copied)
    upgrade = GET[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    served = serve(copied_handler, ok, POST + b"\r\nhello" + upgrade + SECOND)
    assert served.calls == [("POST", "/"), ("GET", "/"), ("GET", "/second")]
    assert served.errors == []


def test_a_handler_on_a_file_of_its_own_is_not_lean() -> None:
    """It is the fourth argument of gevent's."""

    class Server(WSGIServer):
        def handle(self, sock: Any, address: Any) -> None:
            handler = WSGIHandler(sock, address, self, sock.makefile("rb"))
            assert not handler._is_lean
            handler.handle()

    served = serve(WSGIHandler, reads, GET + SECOND, server_class=Server)
    assert served.outcome() == alike(reads, GET + SECOND).outcome()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/2.0\r\nA: \0\r\n\r\n", 505),
        (b"GET /\0 HTTP/2.0\r\nA: b\r\n\r\n", 400),
        (b"GET / HTTP/2.0\nA: b\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n" + b"A: b\r\n" * 20000 + b"\r\n", 505),
        (b"\nGET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b"\0 HTTP/1.1\r\n\r\n", 414),
        (b"GET /" + b"x" * 9000 + b"\n HTTP/1.1\r\n\r\n", 414),
    ],
)
def test_of_two_faults_the_first_counts(data: bytes, status: int) -> None:
    """Both loops refuse with the same reply."""
    lean, hooks = (serve(each, ok, data) for each in LOOPS.values())
    assert lean.reply == hooks.reply
    assert lean.statuses == [status]


def test_what_unicode_calls_blank_is_of_a_value() -> None:
    """Both loops leave out spaces and tabs around it (RFC 9110, 5.5), and neither NEL nor NBSP."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return [repr((environ["HTTP_A"], environ["CONTENT_TYPE"])).encode()]

    lines = (b"GET / HTTP/1.1", b"A: \t\x85a\xa0 \t", b"Content-Type: \xa0b\x85 ")
    served = alike(application, request(*lines))
    assert served.body == repr(("\x85a\xa0", "\xa0b\x85")).encode()


# -- anything -----------------------------------------------------------------------------------


def parse_replies(reply: bytes, methods: list[bytes]) -> list[bytes]:
    """Return what is left of *reply* behind a whole reply to each of *methods*; as a list."""
    for method in methods:
        status = 100
        while 100 <= status < 200:
            head, end, reply = reply.partition(b"\r\n\r\n")
            assert end, (head, methods)
            status = int(head[9:12])
        fields = {
            name.lower(): value
            for name, _, value in (line.partition(b": ") for line in head.split(b"\r\n")[1:])
        }
        if method == b"HEAD" or status in {204, 304}:
            continue
        if fields.get(b"transfer-encoding") == b"chunked":
            size = -1
            while size:
                line, _, reply = reply.partition(b"\r\n")
                size = int(line, 16)
                assert reply[size : size + 2] == b"\r\n"
                reply = reply[size + 2 :]
        elif b"content-length" in fields:
            size = int(fields[b"content-length"])
            assert len(reply) >= size
            reply = reply[size:]
        else:
            assert fields[b"connection"] == b"close"
            reply = b""
    return [reply] if reply else []


_statuses = st.sampled_from(
    ["200 OK", "200", "404 Not Found", "204 No Content", "304 Not Modified", "500 Sorry", "2 x"]
)
_fields = st.lists(
    st.sampled_from(
        [
            ("Content-Length", "0"),
            ("Content-Length", "4"),
            ("Content-Length", "9"),
            ("Connection", "close"),
            ("Connection", "Keep-Alive"),
            ("Transfer-Encoding", "chunked"),
            ("Date", "long ago"),
            ("A", "b"),
            ("A", "b\r\nHTTP/1.1 200 OK"),
        ]
    ),
    max_size=3,
)
_parts = st.lists(
    st.sampled_from(
        [
            *(b"", b"body", b"x" * 20000, bytearray(b"ab"), memoryview(b"cd")),
            *("text", "\u20ac", 7, "again"),
            *(LookupError("planned"), BrokenPipeError(32, "planned")),
        ]
    ),
    max_size=3,
)
_shapes = st.sampled_from(["list", "generator", "write", "file", "none", "string"])
_asked = st.sampled_from(
    [
        GET,
        request(b"HEAD / HTTP/1.1"),
        request(b"GET / HTTP/1.0", b"Connection: keep-alive"),
        request(b"POST / HTTP/1.1", b"Content-Length: 5", body=b"hello"),
        request(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", body=b"1\r\nx\r\n0\r\n\r\n"),
    ]
)


def acts(status: str, fields: list[tuple[str, str]], parts: list[Any], shape: str) -> Application:
    """Return an application that does so, sound or not."""

    def application(_environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response(status, [*fields])

        def generate() -> Iterator[Any]:
            for part in parts:
                if isinstance(part, Exception):
                    raise type(part)(*part.args)
                if part == "again":
                    start_response("201 Again", [])
                yield part

        if shape == "generator":
            return generate()
        if shape == "write":
            for part in generate():
                write(part)
            return []
        if shape == "file":
            whole = b"".join(part for part in parts if isinstance(part, bytes))
            return FileWrapper(real_file(whole))
        return None if shape == "none" else "string" if shape == "string" else list(generate())

    return application


def test_whatever_applications_do_both_loops_do_the_same_and_in_step() -> None:
    """A whole reply to each request but the last, which may be cut where the connection ends."""

    @fuzz(150)
    @given(_statuses, _fields, _parts, _shapes, st.lists(_asked, min_size=1, max_size=3))
    def run(
        status: str,
        fields: list[tuple[str, str]],
        parts: list[Any],
        shape: str,
        asked: list[bytes],
    ) -> None:
        served = alike(acts(status, fields, parts, shape), b"".join(asked))
        methods = [method.encode() for method, _ in served.calls]
        assert 1 <= len(methods) <= len(asked)
        try:
            rest = parse_replies(served.reply, methods)
        except (AssertionError, ValueError):
            (last,) = parse_replies(served.reply, methods[:-1])
            assert last.startswith(b"HTTP/1.1 ")
            assert last.count(b"HTTP/1.1 ") == 1
        else:
            assert rest == []
            # A fault behind the head can only be logged.
            is_told = CLOSE.lower() in served.reply.lower() or served.lines or served.errors
            assert is_told or len(methods) == len(asked)

    run()


def test_no_handler_is_left_waiting(loop: Any) -> None:
    """After any of these the server has no handler, and its clones are ready."""
    server = WSGIServer(ANY, reads_or_fails, log=None, error_log=None, handler_class=loop)
    with pytest.MonkeyPatch.context() as patch, server:
        patch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
        server.start()
        for data in MANY.values():
            with connect(server.address) as client:
                client.sendall(data)
                end_and_receive(client)
        wait_until(lambda: all(each.active == 0 for each in server.clone_stats()))
