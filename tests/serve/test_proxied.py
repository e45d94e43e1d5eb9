"""Behind a balancer that speaks the PROXY protocol, a handler meets its clients."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent import socket

import glb
from glb.model.proxy_header import ProxyHeader
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from ..support.helpers import connect, receive_all, wait_until
from ..support.tls import client_context, server_context

ANY = ("127.0.0.1", 0)
LINE = b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n"
CHECK = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0"
BINARY = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13" + bytes([1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10])
BINARY += b"\2\0\4host"
GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Seen:
    """A handler that echoes, and keeps what it was called with."""

    def __init__(self) -> None:
        self.peers: list[Any] = []
        self.headers: list[ProxyHeader | None] = []

    def __call__(self, sock: Any, peer: Any) -> None:
        self.peers.append(peer)
        self.headers.append(glb.proxied(sock))
        while data := sock.recv(1000):
            sock.sendall(data)


def exchange(address: Any, data: bytes) -> bytes:
    """Return what comes back."""
    with connect(address) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)


@pytest.mark.parametrize("hubs", [1, 2])
@pytest.mark.parametrize(("version", "header"), [("v1", LINE), ("v2", BINARY), ("any", BINARY)])
def test_a_handler_gets_the_clients_address(version: Any, header: bytes, hubs: int) -> None:
    """And what the balancer says besides; from the connection only what is behind the header."""
    seen = Seen()
    server = StreamServer(ANY, seen, clones=2, hubs=hubs, proxy_protocol=version)
    server.start()
    for _ in range(4):
        assert exchange(server.address, header + b"hello") == b"hello"
    server.stop()
    assert seen.peers == [("1.2.3.4", 9)] * 4
    assert all(each is not None and each.ends is not None for each in seen.headers)
    if header is BINARY:
        assert all(each is not None and each.tlv(2) == b"host" for each in seen.headers)


def test_a_balancers_own_check_has_its_own_address() -> None:
    """It is served as any other."""
    seen = Seen()
    server = StreamServer(ANY, seen, clones=1, proxy_protocol="any")
    server.start()
    with connect(server.address) as client:
        client.sendall(CHECK + b"x")
        assert client.recv(1) == b"x"
        own = client.getsockname()
    server.stop()
    assert seen.peers == [own]
    (header,) = seen.headers
    assert header is not None
    assert header.is_local


@pytest.mark.parametrize(
    "data", [b"", b"GET / HTTP/1.1\r\n\r\n", LINE[:-1], BINARY, b"PROXY TCP4 1.2.3.4 x 9 10\r\n"]
)
def test_a_connection_without_its_header_is_closed(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler isn't called; one line in the log, if that is to have it."""
    caplog.set_level(logging.INFO, "glb")
    seen = Seen()
    server = StreamServer(ANY, seen, clones=1, proxy_protocol="v1")
    server.start()
    with connect(server.address) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        try:
            assert client.recv(100) == b""
        except ConnectionResetError:  # it was closed unread
            pass
    wait_until(lambda: server.active == 0)
    stats = server.clone_stats()
    server.stop()
    assert seen.peers == []
    assert (stats[0].completed, stats[0].failed) == (1, 0)
    (record,) = caplog.records
    assert "no header of the PROXY protocol from ('127.0.0.1', " in record.getMessage()


def test_a_header_from_elsewhere_is_not_read() -> None:
    """Any client could send one."""
    seen = Seen()
    server = StreamServer(
        ANY, seen, clones=1, proxy_protocol="v1", proxy_allow_ips=["10.0.0.0/8", "unix"]
    )
    server.start()
    with pytest.raises((AssertionError, ConnectionResetError)):
        assert exchange(server.address, LINE + b"x") == b"x"
    server.proxy_allow_ips = "127.0.0.0/8"
    server.stop()
    server.start()  # it is read then
    assert exchange(server.address, LINE + b"x") == b"x"
    server.stop()


def test_it_comes_before_tls() -> None:
    """With the certificate's handshake behind it, and the handler's socket knows of it."""
    seen = Seen()
    server = StreamServer(ANY, seen, clones=1, proxy_protocol="any", ssl_context=server_context())
    server.start()
    with connect(server.address) as plain:
        plain.sendall(BINARY)
        with client_context().wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
    server.stop()
    assert seen.peers == [("1.2.3.4", 9)]
    (header,) = seen.headers
    assert header is not None
    assert header.tlv(2) == b"host"


def test_a_unix_sockets_client_has_no_address(tmp_path: Any) -> None:
    """As without a balancer."""
    seen = Seen()
    server = StreamServer(f"unix:{tmp_path}/s", seen, clones=1, proxy_protocol="any")
    server.start()
    for header in (LINE, CHECK):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp_path}/s")
            client.sendall(header + b"x")
            assert client.recv(1) == b"x"
    server.stop()
    assert seen.peers == [("1.2.3.4", 9), ""]


def test_a_drain_ends_a_client_that_sends_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is idle: nothing of it is under way."""
    monkeypatch.setattr("glb.serve.drain_worker.FIRST_REQUEST_SECONDS", 0.05)
    server = StreamServer(ANY, Seen(), clones=1, proxy_protocol="v1")
    server.start()
    with connect(server.address) as client:
        client.sendall(b"PROXY ")
        wait_until(lambda: server.active == 1)
        report = server.drain(timeout=10)
        assert report.killed == 0
        assert client.recv(1) == b""
    server.stop()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"proxy_protocol": "v3"}, "one of v1, v2, any, got 'v3'"),
        ({"proxy_protocol": True}, "one of v1, v2, any, got True"),
        ({"proxy_allow_ips": ["10.0.0.0/33"]}, "got '10.0.0.0/33'"),
        ({"proxy_allow_ips": [10]}, "must be a string, got 10"),
        ({"proxy_protocol": "v1", "spawn": None}, "got spawn=None"),
    ],
)
@pytest.mark.parametrize("kind", [StreamServer, WSGIServer])
def test_bad_arguments_are_refused(
    kind: Callable[..., Any], arguments: dict[str, Any], error: str
) -> None:
    """With the value in the error."""
    with pytest.raises((TypeError, ValueError), match=error):
        kind(ANY, lambda *_: None, **arguments)


def test_an_application_sees_the_client() -> None:
    """And the error log has the client that sent none."""
    environs: list[dict[str, Any]] = []
    errors: list[str] = []

    class Log:
        def write(self, text: str) -> None:
            errors.append(text)

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environs.append(environ)
        start_response("200 OK", [])
        return [b"x"]

    server = WSGIServer(ANY, application, log=None, error_log=Log(), clones=1, proxy_protocol="any")
    server.start()
    assert exchange(server.address, LINE + GET).endswith(b"\r\n\r\nx")
    with connect(server.address) as client:
        client.sendall(GET)
        with pytest.raises((AssertionError, ConnectionResetError)):
            assert client.recv(1000) != b""
    gevent.idle()
    server.stop()
    assert [(each["REMOTE_ADDR"], each["REMOTE_PORT"]) for each in environs] == [("1.2.3.4", "9")]
    (line,) = errors
    assert line.startswith("no header of the PROXY protocol from ('127.0.0.1', ")
    assert line.count("\n") == 1
