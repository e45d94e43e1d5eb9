"""What a connection takes in memory while its client is silent."""

from __future__ import annotations

import gc
import socket
import sys
import tracemalloc
from contextlib import ExitStack
from typing import Any, Final

import pytest
from gevent.server import StreamServer as GeventServer

from glb.server import StreamServer

from ..support.helpers import wait_until

#: The set of a hub's greenlets grows at 77 and at 307 of them: not while these are weighed.
BEFORE: Final = 100
WEIGHED: Final = 100

# 30 to 330 bytes on CPython 3.11 to 3.15: a context for `current_clone`, and a frame object. On
# 3.10 it is 1,080 with libev and 1,500 with libuv, as each Python function is a C call too.
MORE_THAN_GEVENT: Final = 500 if sys.version_info >= (3, 11) else 1800


def _bytes_each(make_server: Any, **options: Any) -> float:
    """Return the bytes that one more silent connection takes, of those that Python allocates."""
    came = [0]

    def handle(sock: Any, _peer: Any) -> None:
        came[0] += 1
        sock.recv(1)

    with ExitStack() as stack:
        server = make_server(("127.0.0.1", 0), handle, **options)
        stack.callback(server.stop, 1)
        server.start()
        clients = [stack.enter_context(socket.socket()) for _ in range(BEFORE + WEIGHED)]

        def come(some: list[socket.socket]) -> None:
            wanted = came[0] + len(some)
            for client in some:
                client.connect(server.address)
            wait_until(lambda: came[0] == wanted)

        come(clients[:BEFORE])
        gc.collect()
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        come(clients[BEFORE:])
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0]
    return taken / WEIGHED


@pytest.mark.skipif(
    sys.gettrace() is not None, reason="a tracer, as of coverage, allocates for what it traces"
)
def test_an_idle_connection_takes_little_more_memory_than_gevents() -> None:
    """Half a KiB at most, with all that its greenlet keeps: objects, and a copy of the C stack."""
    of_gevent = _bytes_each(GeventServer)
    of_glb = _bytes_each(StreamServer, clones=4)
    assert 0 < of_glb < of_gevent + MORE_THAN_GEVENT
