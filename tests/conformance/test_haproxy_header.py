"""HAProxy's header is read: of both versions, in front of plain servers and of TLS."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket

import glb
from glb.server import StreamServer

from ..support.helpers import connect, receive_all, wait_until
from ..support.tls import server_context

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
ANY = ("127.0.0.1", 0)

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(HAPROXY is None, reason="needs haproxy"),
]

CONFIG = """
global
  log stdout local0
defaults
  mode tcp
  timeout connect 5s
  timeout client 20s
  timeout server 20s
frontend front
  bind {front}
  default_backend back
backend back
  option tcp-check
  server one {back} {options} check inter 50ms
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(ANY)
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def haproxy(folder: Path, port: int, options: str) -> Iterator[tuple[str, int]]:
    """Run HAProxy in front of *port*; yield where it listens."""
    front = free_port()
    config = folder / "haproxy.cfg"
    text = CONFIG.format(front=f"127.0.0.1:{front}", back=f"127.0.0.1:{port}", options=options)
    config.write_text(text)
    with subprocess.Popen(
        [str(HAPROXY), "-db", "-f", str(config)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield "127.0.0.1", front
        finally:
            process.kill()


def answers(address: Any) -> bool:
    try:
        with connect(address) as client:
            client.sendall(b"ready?")
            return client.recv(6) == b"ready?"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("v1", "send-proxy check-send-proxy"),
        ("v2", "send-proxy-v2 check-send-proxy"),
        ("any", "send-proxy-v2 set-proxy-v2-tlv-fmt(0xE1) %[fc_pp_authority] check-send-proxy"),
        ("v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id check-send-proxy"),
        ("any", "send-proxy check-send-proxy ssl verify none"),
        ("v2", "send-proxy-v2 check-send-proxy ssl verify none"),
    ],
)
def test_the_handler_meets_haproxys_client(version: Any, options: str, tmp_path: Path) -> None:
    """Each with its own address; HAProxy's checks find a server that is up."""
    if "set-proxy-v2-tlv-fmt" in options:
        out = subprocess.run([str(HAPROXY), "-v"], capture_output=True, text=True, check=True)
        if not any(f"version {each}" in out.stdout for each in ("2.9", "3.")):
            pytest.skip("needs HAProxy 2.9")
    peers: dict[bytes, Any] = {}
    headers: list[Any] = []

    def handle(sock: Any, peer: Any) -> None:
        headers.append(glb.proxied(sock))
        data = sock.recv(100)
        if data:
            peers[data] = peer
            sock.sendall(data)

    tls: dict[str, Any] = {"ssl_context": server_context()} if " ssl" in options else {}
    server = StreamServer(ANY, handle, clones=2, proxy_protocol=version, **tls)
    server.start()
    port: Any = server.address[1]
    with haproxy(tmp_path, port, options) as front:
        wait_until(lambda: answers(front))
        own: dict[bytes, Any] = {}
        for number in range(6):
            with connect(front) as client:
                name = b"%d" % number
                own[name] = client.getsockname()
                client.sendall(name)
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == name
        if "send-proxy-v2" in options:  # the line of version 1 has HAProxy's own for its checks
            wait_until(lambda: any(each is not None and each.is_local for each in headers))
    gevent.idle()
    server.stop()
    del peers[b"ready?"]
    assert peers == own
    assert all(each is not None for each in headers)
