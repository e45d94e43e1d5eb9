"""The limits of HTTP that ``glb serve`` sets are its server's."""

from __future__ import annotations

import contextlib
import pathlib
import re
from types import SimpleNamespace
from typing import Any

import pytest

import glb
from glb.cli.http_limits import HTTP_LIMITS, set_limits
from glb.cli.serve import ONLY_WSGI, _stream_server, _wsgi_server, serve
from glb.http.head import Limits
from glb.http.settings import Settings
from glb.pywsgi import WSGIServer

from ..support.forks import Forks
from ..support.helpers import connect, http_get, receive_all, wait_until
from ..support.tls import server_context
from .test_commands import ask_raw, assert_refused, forks, serving

__all__ = ["forks"]  # a fixture

GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%b\r\n"

PROGRAM = """
import time

def application(environ, start_response):
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/slow":
        time.sleep(3600)
    return [b"ok"]

def handle(sock, peer):
    pass
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def made_by(*args: str) -> WSGIServer:
    """Return a server with the limits that *args* set."""
    context = serve.make_context("serve", [*args])
    server = WSGIServer(("127.0.0.1", 0), lambda *_: [])
    set_limits(server, SimpleNamespace(**context.params))
    return server


def test_each_option_is_the_servers() -> None:
    """By its own name."""
    server = made_by(
        *("--max-request-line", "1", "--max-field-size", "2", "--max-head-size", "3"),
        *("--max-fields", "4", "--max-body", "5", "--body-timeout", "6", "--send-timeout", "7"),
        *("--request-timeout", "8", "--request-histogram"),
    )
    assert server.limits == Limits(line=1, field=2, head=3, fields=4)
    assert (server.max_body, server.body_timeout, server.send_timeout) == (5, 6, 7)
    assert (server.request_timeout, server.request_histogram) == (8, True)


def test_without_options_clients_may_be_slow_for_a_minute_and_programs_for_ever() -> None:
    """Sizes are the package's own."""
    server = made_by()
    assert (server.limits, server.max_body) == (Settings.limits, Settings.max_body)
    assert (server.body_timeout, server.send_timeout) == (60, 60)
    assert (server.request_timeout, server.request_histogram) == (None, False)
    assert server.needs_host


def test_0_is_no_limit() -> None:
    """Of those that may have none."""
    names = ("max-body", "body-timeout", "send-timeout", "request-timeout")
    server = made_by(*(part for name in names for part in (f"--{name}", "0")))
    found: list[Any] = [getattr(server, name.replace("-", "_")) for name in names]
    assert found == [None] * 4


def test_what_a_server_says_of_clients_is_in_glbs_log(caplog: pytest.LogCaptureFixture) -> None:
    """A TLS handshake that fails, say."""
    given = SimpleNamespace(**serve.make_context("serve", []).params)
    with glb.bind(("127.0.0.1", 0)) as listener:
        given.listeners = [listener]
        server = _wsgi_server(listener, lambda *_: [], given, {}, None)
        assert isinstance(server, WSGIServer)
        server.error_log.write("no luck\n")
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("glb", "WARNING", "no luck")


def test_a_failed_handshake_with_a_stream_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """A port scan is no error of the program's, and has no traceback."""
    given = SimpleNamespace(**serve.make_context("serve", []).params)
    given.listeners = [glb.bind(("127.0.0.1", 0))]
    tls = {"ssl_context": server_context()}
    with _stream_server(given.listeners[0], lambda *_: None, given, tls, None) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                receive_all(client)
    (record,) = caplog.records
    text = r"TLS handshake with \('127\.0\.0\.1', \d+\) failed: HTTP_REQUEST"
    assert record.levelname == "WARNING"
    assert re.fullmatch(text, record.getMessage())


def test_a_stream_has_none_of_them() -> None:
    """Each is refused with one: see the next test for how."""
    assert {*HTTP_LIMITS} <= {*ONLY_WSGI}
    names = {each.name for each in serve.params}
    assert {*HTTP_LIMITS} <= names


@pytest.mark.process
def test_a_stream_refuses_a_request_timeout(folder: pathlib.Path, forks: Forks) -> None:
    """It has no requests."""
    args = ("serve", "program:handle", "--request-timeout", "1")
    assert_refused(forks, args, "--request-timeout from the command line: it is for WSGI", folder)


@pytest.mark.process
@pytest.mark.parametrize("hubs", ["1", "2"])
def test_a_program_that_sleeps_is_ended(hubs: str, folder: pathlib.Path) -> None:
    """The client gets a 503, the log has the stack, and /metrics count both."""
    options = (
        *("--request-timeout", "0.1", "--request-histogram", "--max-fields", "2"),
        *("--hubs", hubs, "--clones", "2", "--admin", "127.0.0.1:0"),
    )
    with serving("program", *options, cwd=folder) as served:
        found = re.search(r", admin on http://127\.0\.0\.1:(\d+)", served.line)
        assert found is not None, served.line
        for _ in range(2):
            reply = ask_raw(served.address, GET.replace(b" / ", b" /slow ") % b"")
            assert reply.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 1\r\n" in reply
        assert ask_raw(served.address, GET % b"A: b\r\n").startswith(b"HTTP/1.1 431 ")
        admin = ("127.0.0.1", int(found[1]))

        def counted() -> list[bytes]:
            return re.findall(rb'_count\{[^}]*code="503"\} (\S+)', http_get(admin, "/metrics"))

        wait_until(lambda: counted() == [b"2.0"])
        kinds = re.findall(rb'kind="request"\} (\S+)', http_get(admin, "/metrics"))
        assert sum(map(float, kinds)) == 2
        status, err = served.end()
    assert status == 0
    assert err.count("\nglb: Invalid request (from ('127.0.0.1', ") == 1
    assert err.count("glb: 'GET /slow HTTP/1.1' from ('127.0.0.1', ") == 2
    assert err.count("in application\n") == 2
    assert err.count('"GET /slow HTTP/1.1" 503 -\n') == 2
    assert err.count('"GET / HTTP/1.1" 431 -\n') == 1
