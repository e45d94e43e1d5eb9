"""A proxy shares a connection among its clients: what one of them does costs no other a reply."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import Event

from glb.http import handler
from glb.pywsgi import WSGIHandler, WSGIServer

from ..support.helpers import connect, receive_all

Application = Callable[[dict[str, Any], Any], Any]


class Hooked(WSGIHandler):
    """Overrides a method of gevent's, so that the requests are read by the other loop."""

    def get_environ(self) -> dict[str, Any]:
        return super().get_environ()


HANDLERS = pytest.mark.parametrize("handler_class", [WSGIHandler, Hooked])

SECOND = b"GET /second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@contextmanager
def serving(application: Application, handler_class: Any, **arguments: Any) -> Iterator[WSGIServer]:
    """Serve *application* by *handler_class*."""
    server = WSGIServer(
        ("127.0.0.1", 0), application, log=None, handler_class=handler_class, **arguments
    )
    server.start()
    try:
        yield server
    finally:
        server.stop(timeout=5)


def has_read(client: Any, end: bytes) -> bytes:
    """Return what *client* receives until *end*."""
    data = b""
    while not data.endswith(end):
        more = client.recv(65536)
        assert more, data
        data += more
    return data


def says_more(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "3")])
    return [b"one", b" and more"] if environ["PATH_INFO"] == "/first" else [b"two"]


@HANDLERS
def test_a_reply_that_is_cut_leaves_the_connection_open(handler_class: Any) -> None:
    """Its end is where its head says, and the next request may be on its way."""
    lines: list[str] = []

    class Log:
        def write(self, text: str) -> None:
            lines.append(text)

    with serving(says_more, handler_class, error_log=Log()) as server:
        client = connect(server.address)
        client.sendall(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n")
        first = has_read(client, b"\r\n\r\none")
        client.sendall(SECOND)
        second = receive_all(client)
        client.close()
    assert b"Connection: close" not in first
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")
    assert second.endswith(b"\r\n\r\ntwo")
    assert any("was cut" in line for line in lines)


def reads_nothing(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "3")])
    return [b"one"]


UPLOAD = b"POST /first HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@HANDLERS
def test_a_chunked_body_without_an_end_in_sight_is_the_last_request(handler_class: Any) -> None:
    """The reply says so: what closes without a word takes another's request with it."""
    with serving(reads_nothing, handler_class) as server:
        client = connect(server.address)
        client.sendall(UPLOAD + b"5\r\nhello\r\n")
        reply = receive_all(client)
        client.close()
    assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in reply


@HANDLERS
def test_a_chunked_body_that_has_come_whole_is_read_away(handler_class: Any) -> None:
    """The request behind it is served."""
    with serving(reads_nothing, handler_class) as server:
        client = connect(server.address)
        client.sendall(UPLOAD + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n" + SECOND)
        replies = receive_all(client)
        client.close()
    first, _, second = replies.partition(b"\r\n\r\none")
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close" not in first
    assert second.startswith(b"HTTP/1.1 200 OK\r\n")


@HANDLERS
def test_text_for_a_body_is_the_last_reply_and_says_so(handler_class: Any) -> None:
    """A program's mistake closes the connection, which no proxy is to use again."""

    def says_text(_environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return ["text"]

    with serving(says_text, handler_class, error_log=None) as server:
        client = connect(server.address)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        reply = receive_all(client)
        client.close()
    assert b"\r\nConnection: close\r\n" in reply
    assert reply.endswith(b"\r\n\r\ntext")


@HANDLERS
@pytest.mark.parametrize("part", ["head", "body"])
def test_a_reset_within_a_request_is_reported_by_nothing(
    handler_class: Any, part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The application's read fails, and neither its traceback nor a line is printed."""
    begun, over = Event(), Event()
    seen: list[BaseException] = []

    def reads(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.set()
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            seen.append(error)
            raise
        start_response("200 OK", [])
        return []

    class Watched(handler_class):  # type: ignore[misc]  # a class by parameter
        def handle(self) -> None:
            try:
                super().handle()
            finally:
                over.set()

    # `handle` is a method of gevent's, but the connection's, and not a request's.
    Watched._is_lean = handler_class._is_lean
    with serving(reads, Watched, error_log=None) as server:
        client = connect(server.address)
        if part == "head":
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nX-A:")
            gevent.sleep(0)
        else:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
            assert begun.wait(5)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert over.wait(5)
    assert len(seen) == (part == "body")
    assert capfd.readouterr().err == ""


@HANDLERS
def test_a_refused_upload_gets_its_reply_however_long_it_is(
    handler_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that still sends isn't reset, or its client would get a 502 in place of the 413."""
    monkeypatch.setattr(handler, "DISCARD_SECONDS", 20.0)  # a busy machine may need them

    class Limited(WSGIServer):
        max_body = 10

    body = bytes(20_000_000)  # more than the kernel holds, so that the server must read
    server = Limited(
        ("127.0.0.1", 0), reads_nothing, log=None, error_log=None, handler_class=handler_class
    )
    server.start()
    try:
        client = connect(server.address)
        client.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        reply = receive_all(client)
        client.close()
    finally:
        server.stop(timeout=5)
    assert reply.startswith(b"HTTP/1.1 413 ")
