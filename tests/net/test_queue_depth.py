"""The accept queue is as full as the kernel says."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glb.net.queue_depth import queue_depth


@pytest.fixture(params=["tcp", "tcp6", "unix"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """A listening socket with room for 9."""
    kind = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6, "unix": socket.AF_UNIX}[request.param]
    address: Any = {"tcp": ("127.0.0.1", 0), "tcp6": ("::1", 0)}.get(request.param)
    with socket.socket(kind) as sock:
        sock.bind(address or str(tmp_path / "sock"))
        sock.listen(9)
        yield sock


def test_the_queue_is_as_full_as_clients_wait(listener: socket.socket) -> None:
    """Each connection counts until it is accepted."""
    assert queue_depth(listener) == (0, 9)
    clients = []
    for number in range(5):
        client = socket.socket(listener.family)
        client.connect(listener.getsockname())
        clients.append(client)
        assert queue_depth(listener) == (number + 1, 9)
    clients.append(listener.accept()[0])
    assert queue_depth(listener) == (4, 9)
    for each in clients:
        each.close()


def test_a_socket_that_does_not_listen_has_no_queue() -> None:
    """Nor has a closed one."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with socket.socket(family) as sock:
            assert queue_depth(sock) is None
        assert queue_depth(sock) is None
    with socket.socket(socket.AF_UNIX) as sock:
        assert queue_depth(sock) in {None, (0, 0)}
    assert queue_depth(sock) is None
