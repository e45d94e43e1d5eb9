"""What a handler is told of the clients behind a balancer's header."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import gevent

import glb
from glb.server import StreamServer

from .helpers import connect, receive_all, wait_until
from .tls import server_context

ANY = ("127.0.0.1", 0)


def answers(address: Any) -> bool:
    try:
        with connect(address) as client:
            client.sendall(b"ready?")
            return client.recv(6) == b"ready?"
    except OSError:
        return False


def ask_through(
    balancer: Callable[[int], AbstractContextManager[Any]],
    version: Any,
    *,
    tls: bool,
    is_over: Callable[[list[Any]], bool] = lambda _: True,
) -> list[Any]:
    """Have six clients ask a server behind *balancer*; check that it meets each one's address.

    Args:
        balancer: Starts one in front of a port; what it yields is its address.
        version: Of the headers that the server reads.
        is_over: Called with the headers until it returns True.

    Returns:
        The headers of all connections.
    """
    peers: dict[bytes, Any] = {}
    headers: list[Any] = []

    def handle(sock: Any, peer: Any) -> None:
        headers.append(glb.proxied(sock))
        data = sock.recv(100)
        if data:
            peers[data] = peer
            sock.sendall(data)

    more: dict[str, Any] = {"ssl_context": server_context()} if tls else {}
    server = StreamServer(ANY, handle, clones=2, proxy_protocol=version, **more)
    server.start()
    port: Any = server.address[1]
    with balancer(port) as front:
        wait_until(lambda: answers(front))
        own: dict[bytes, Any] = {}
        for number in range(6):
            with connect(front) as client:
                name = b"%d" % number
                own[name] = client.getsockname()
                client.sendall(name)
                assert receive_all(client) == name
        wait_until(lambda: is_over(headers))
    gevent.idle()
    server.stop()
    del peers[b"ready?"]
    assert peers == own
    return headers
