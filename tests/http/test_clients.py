"""HTTP as other people's programs see it: clients, frameworks, and libraries for websockets."""

from __future__ import annotations

import hashlib
import http.client
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.validate import validator

import gevent
import pytest
from gevent import socket
from gevent.pywsgi import WSGIServer as GeventWSGIServer

from glb.http.body import DISCARD_MAX_BYTES, Body
from glb.pywsgi import WSGIHandler, WSGIServer

from ..support.helpers import connect, receive_all

LOCAL = ("127.0.0.1", 0)
UPLOAD_BYTES = 16 << 20  # more than the kernel's buffers and what a reply to an unread body reads

Application = Callable[[dict[str, Any], Any], Any]


class Hooked(WSGIHandler):
    """A subclass, for which each of gevent's hooks is called."""

    def get_environ(self) -> dict[str, Any]:
        return super().get_environ()


@pytest.fixture(
    params=[(WSGIServer, WSGIHandler), (WSGIServer, Hooked), (GeventWSGIServer, WSGIHandler)],
    ids=["stock", "hooked", "gevent's server"],
)
def serve(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[Application], Any]]:
    """Start a server of an application; at the end there is nothing in its log."""
    server_class, handler_class = request.param
    servers = []
    log = io.StringIO()

    def start(application: Application) -> Any:
        server = server_class(
            LOCAL, application, log=None, error_log=log, handler_class=handler_class
        )
        servers.append(server)
        server.start()
        return server.address

    yield start
    for server in servers:
        server.stop()
    assert log.getvalue() == ""
    assert capsys.readouterr().err == ""


@contextmanager
def client_of(address: Any) -> Iterator[http.client.HTTPConnection]:
    """The standard library's client, on a socket that lets the hub turn."""
    client = http.client.HTTPConnection(*address)
    client.sock = connect(address)
    client.auto_open = False
    try:
        yield client
    finally:
        client.close()


def read_head(sock: Any) -> bytes:
    """Return what comes until the end of a head, byte for byte no further."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        more = sock.recv(1)
        assert more, data
        data += more
    return data


# -- wsgiref.validate ---------------------------------------------------------------------------


def summing(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Read the body in all the ways that there are, and reply with what it was."""
    body = environ["wsgi.input"]
    data = body.read(3) + body.readline() + b"".join(body.readlines(10))
    data += b"".join(body)
    while more := body.read(65536):
        data += more
    reply = f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(reply)))])
    return [reply]


@pytest.mark.parametrize("is_chunked", [False, True])
def test_the_standards_checker_finds_nothing_in_a_body(serve: Any, is_chunked: bool) -> None:
    """`wsgiref.validate` sees environ, input, errors and calls; the body is what was sent."""
    data = b"one\ntwo and more\n" * 9000
    with client_of(serve(validator(summing))) as client:
        for _ in range(2):
            if is_chunked:
                parts = (data[start : start + 50000] for start in range(0, len(data), 50000))
                client.request("POST", "/a%20b?c=%20", parts, encode_chunked=True)
            else:
                client.request("POST", "/a%20b?c=%20", data)
            reply = client.getresponse()
            assert reply.read() == f"{len(data)} {hashlib.sha256(data).hexdigest()}".encode()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["length", "chunks", "writes", "not modified", "nothing"])
def test_the_standards_checker_finds_nothing_in_a_reply(serve: Any, method: str, kind: str) -> None:
    """Whole, in parts, written, and without a body; HEAD has the same head, and GET after it."""

    def application(_environ: dict[str, Any], start_response: Any) -> Any:
        text = [("Content-Type", "text/plain")]
        if kind == "length":
            start_response("200 OK", [*text, ("Content-Length", "2")])
        elif kind == "writes":
            write = start_response("200 OK", text)
            write(b"o")
            return [b"k"]
        elif kind == "not modified":
            start_response("304 Not Modified", [("ETag", '"x"')])
            return []
        elif kind == "nothing":
            start_response("204 No Content", [])
            return []
        else:
            start_response("200 OK", text)
        return iter([b"o", b"", b"k"])

    with client_of(serve(validator(application))) as client:
        for each in (method, "GET", method):
            client.request(each, "/")
            reply = client.getresponse()
            has_body = each == "GET" and kind in {"length", "chunks", "writes"}
            assert reply.read() == (b"ok" if has_body else b"")
            assert not reply.will_close or reply.getheader("Content-Length") is None


# -- uploads that the application doesn't read --------------------------------------------------


def refusing(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("403 Forbidden", [("Content-Length", "2")])
    return [b"no"]


def test_a_reply_in_the_midst_of_a_chunked_body_says_close(serve: Any) -> None:
    """How much comes is not known, so the client must not send its next request behind it."""
    with connect(serve(refusing)) as client:
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
        )
        assert b"\r\nConnection: close\r\n" in read_head(client)
        client.sendall(b"0\r\n\r\n")
        assert receive_all(client) == b"no"


def test_a_chunked_body_that_has_come_whole_keeps_the_connection(serve: Any) -> None:
    """Also if the application, like Django and Bottle, knows no chunked bodies."""
    request = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    with connect(serve(refusing)) as client:
        for _ in range(2):
            client.sendall(request)
            assert b"connection" not in read_head(client).lower()
            assert client.recv(2) == b"no"


@pytest.mark.parametrize(
    ("data", "ends"),
    [
        (b"1\r\na\r\n0\r\n\r\n", True),
        (b"1\r\na\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n", True),
        (b"1;a=b\r\na\r\n0\r\n\r\n", True),
        (b"", False),
        (b"1\r\na\r\n", False),
        (b"1\r\na\r\n0\r\n\r", False),
        (b"5\r\na", False),
        (b"nonsense\r\n", False),
        (b"1\r\nab\r\n0\r\n\r\n", False),
    ],
)
def test_a_look_ahead_finds_the_end_and_reads_nothing(data: bytes, ends: bool) -> None:
    """The next bytes show whether the body ends there; the body itself is where it was."""
    body = Body(io.BytesIO(b"2\r\nxy\r\n0\r\n\r\n"), None, is_chunked=True)
    assert body.read(0) == b""
    assert body.ends_in(data) is ends
    assert not body.is_broken and not body.is_over
    assert body.read() == b"xy"
    assert body.is_over


def test_a_look_ahead_begins_within_a_chunk() -> None:
    """Of a body of which a part was read, the rest is looked at."""
    body = Body(io.BytesIO(b"5\r\nhello\r\n0\r\n\r\n"), None, is_chunked=True)
    assert body.read(2) == b"he"
    assert body.ends_in(b"llo\r\n0\r\n\r\n")
    assert not body.ends_in(b"lloo\r\n0\r\n\r\n")
    assert body.read() == b"llo"


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_client_that_still_sends_gets_the_early_reply(serve: Any, is_chunked: bool) -> None:
    """It is not reset, so it can send all, and then read: many clients look for no reply before."""
    assert UPLOAD_BYTES > 4 * DISCARD_MAX_BYTES
    framing = f"Content-Length: {UPLOAD_BYTES}"
    if is_chunked:
        framing = "Transfer-Encoding: chunked"
    part = b"x" * 65536
    with connect(serve(refusing)) as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
        for _ in range(UPLOAD_BYTES // len(part)):
            client.sendall(b"%x\r\n%b\r\n" % (len(part), part) if is_chunked else part)
        reply = receive_all(client)
        assert reply.startswith(b"HTTP/1.1 403 ") and reply.endswith(b"\r\n\r\nno")


def test_a_client_that_sends_without_end_leaves_the_hub_to_others(serve: Any) -> None:
    """While what it sends is read away, others are served."""
    address = serve(refusing)
    with connect(address) as endless:
        endless.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        read_head(endless)

        def send() -> None:
            while True:
                endless.sendall(b"x" * 65536)

        sending = gevent.spawn(send)
        try:
            for _ in range(5):
                with client_of(address) as client:
                    client.request("GET", "/")
                    assert client.getresponse().read() == b"no"
            assert not sending.dead
        finally:
            sending.kill()


# -- websockets ---------------------------------------------------------------------------------

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
)


def take_socket(environ: dict[str, Any]) -> Any:
    """As simple-websocket does it, for Flask-Sock and Flask-SocketIO."""
    assert environ["SERVER_SOFTWARE"].startswith("gevent")
    return environ["wsgi.input"].raw._sock.dup()


def test_an_application_that_took_the_socket_has_replied_by_itself(serve: Any) -> None:
    """It returns nothing and has called no start_response; nothing follows what it has sent."""

    def application(environ: dict[str, Any], _start_response: Any) -> list[bytes]:
        with take_socket(environ) as sock:
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\nhello")
            assert sock.recv(100) == b"bye"
        return []

    with connect(serve(application)) as client:
        client.sendall(UPGRADE)
        read_head(client)
        assert client.recv(5) == b"hello"
        client.sendall(b"bye")
        assert receive_all(client) == b""


@pytest.mark.parametrize("handler_class", [WSGIHandler, Hooked])
def test_a_socket_that_was_taken_is_a_stream_for_a_server_that_drains(handler_class: Any) -> None:
    """Its application reads the end of the stream, as that of any websocket does."""

    def application(environ: dict[str, Any], _start_response: Any) -> list[bytes]:
        with take_socket(environ) as sock:
            sock.sendall(b"hello")
            assert sock.recv(100) == b""
            sock.sendall(b"bye")
        return []

    server = WSGIServer(LOCAL, application, log=None, handler_class=handler_class)
    server.start()
    with connect(server.address) as client:
        client.sendall(UPGRADE)
        assert client.recv(5) == b"hello"
        draining = gevent.spawn(server.drain, 60, spread=0.1)
        assert receive_all(client) == b"bye"
        report = draining.get()
        assert report is not None and report[:3] == (0, 1, 0)


def test_a_request_behind_a_websocket_is_not_read() -> None:
    """Once the application has the socket, nothing on it is HTTP, whatever it looks like."""
    calls = []

    def application(environ: dict[str, Any], _start_response: Any) -> list[bytes]:
        calls.append(environ["PATH_INFO"])
        with take_socket(environ) as sock:
            sock.sendall(b"x")
        return []

    with WSGIServer(LOCAL, application, log=None) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(UPGRADE + b"GET /admin HTTP/1.1\r\nHost: x\r\n\r\n")
            assert receive_all(client) == b"x"
    assert calls == ["/"]


@pytest.mark.parametrize("handler_class", [WSGIHandler, Hooked])
def test_an_error_behind_a_websocket_is_reported_and_not_sent(
    handler_class: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A 500 would be in the midst of whatever the application speaks there."""

    def application(environ: dict[str, Any], _start_response: Any) -> list[bytes]:
        with take_socket(environ) as sock:
            sock.sendall(b"hello")
        raise RuntimeError("behind a websocket")

    with WSGIServer(LOCAL, application, log=None, handler_class=handler_class) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(UPGRADE)
            assert receive_all(client) == b"hello"
    assert capsys.readouterr().err.count("RuntimeError: behind a websocket") == 1


def test_an_upgrade_that_is_not_taken_up_is_a_request_like_any_other(serve: Any) -> None:
    """The connection stays, if nothing has touched the input."""
    with connect(serve(refusing)) as client:
        for _ in range(2):
            client.sendall(UPGRADE)
            assert b"connection" not in read_head(client).lower()
            assert client.recv(2) == b"no"


# -- downloads ----------------------------------------------------------------------------------


def test_one_connection_serves_all_that_a_client_asks(serve: Any) -> None:
    """A download, HEAD before GET, and many small ones, all kept alive."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        if environ["PATH_INFO"] == "/large":
            return (b"x" * 65536 for _ in range(64))
        return [b"small"]

    with client_of(serve(application)) as client:
        assert isinstance(client.sock, socket.socket)
        for path, size in (("/large", 64 * 65536), ("/", 5)) * 3:
            for method in ("HEAD", "GET"):
                client.request(method, path)
                reply = client.getresponse()
                assert len(reply.read()) == (size if method == "GET" else 0)
        for _ in range(100):
            client.request("GET", "/")
            assert client.getresponse().read() == b"small"
