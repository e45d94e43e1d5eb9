"""A program may take the socket of an upgrade from ``wsgi.input``, and speak there itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glb.pywsgi import WSGIHandler, WSGIServer

from ..support.helpers import connect, receive_all

UPGRADE = b"GET /%b HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


class Hooked(WSGIHandler):
    """Overrides a method of gevent's, so that the requests are read by the other loop."""

    def get_environ(self) -> dict[str, Any]:
        return super().get_environ()


HANDLERS = pytest.mark.parametrize("handler_class", [WSGIHandler, Hooked])


def talk(
    application: Callable[[dict[str, Any], Any], Any], handler_class: Any, *said: bytes
) -> bytes:
    """Return all that a server of *application* replies to a client."""
    server = WSGIServer(("127.0.0.1", 0), application, log=None, handler_class=handler_class)
    server.start()
    try:
        client = connect(server.address)
        for each in said:
            client.sendall(each)
        replies = receive_all(client)
        client.close()
    finally:
        server.stop(timeout=5)
    return replies


@HANDLERS
def test_a_program_that_replies_on_the_socket_starts_no_response(
    handler_class: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is sent behind its own words, and nothing is reported; the connection is closed."""

    def application(environ: dict[str, Any], _start_response: Any) -> list[bytes]:
        sock = environ["wsgi.input"].raw._sock
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\nhello, bye")
        return []

    replies = talk(application, handler_class, UPGRADE % b"first")
    assert replies == b"HTTP/1.1 101 Switching Protocols\r\n\r\nhello, bye"
    assert capfd.readouterr().err == ""


@HANDLERS
def test_a_connection_whose_socket_was_taken_is_closed_behind_the_reply(handler_class: Any) -> None:
    """What the program has read there is not known: what follows would be read as a request."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert environ["PATH_INFO"] == "/first"
        assert environ["wsgi.input"].raw._sock is not None
        start_response("400 Bad Request", [("Content-Length", "0")])
        return []

    replies = talk(application, handler_class, UPGRADE % b"first", UPGRADE % b"second")
    assert replies.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in replies


@HANDLERS
def test_a_declined_upgrade_whose_socket_was_not_taken_keeps_its_connection(
    handler_class: Any,
) -> None:
    """The next request is served."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        headers = [("Content-Length", "0")]
        if environ["PATH_INFO"] == "/second":
            headers.append(("Connection", "close"))
        start_response("200 OK", headers)
        return []

    replies = talk(application, handler_class, UPGRADE % b"first", UPGRADE % b"second")
    assert replies.count(b"HTTP/1.1 200 ") == 2
