"""Stream servers: gevent's own, alone and in the ways people make more of it; and glb's."""
# ruff: noqa: PLC0415  # gevent's don't need glb

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from gevent import socket
from gevent.server import StreamServer

from .job import (
    ANY_HUB,
    BACKLOG,
    BLOCK_MICROSECONDS,
    LIBC,
    ORDERS_COME_FROM,
    REPLY,
    STALL_MICROSECONDS,
    Job,
    announce,
    run,
)


def _handler(job: Job, clone: Callable[[], int], hubs: int = 1 << 16) -> Callable[..., None]:
    """Return the handler for *job*. *clone* tells which one runs; it is on one of *hubs*."""

    def handle(sock: Any, peer: Any) -> None:
        if job is Job.BLOCK:
            LIBC.usleep(BLOCK_MICROSECONDS)
        if job is Job.STALL and peer[0] == ORDERS_COME_FROM:
            sock.sendall(_obey(int(sock.recv(16)), clone() % hubs))
        elif job in (Job.ORDER, Job.STALL):
            sock.sendall(b"%d\n" % clone())
        else:
            sock.sendall(REPLY)
        if job is Job.IDLE:
            sock.recv(1)

    # What costs the most: nothing is asked there that others don't ask.
    return handle if job is not Job.REPLY else lambda sock, _peer: sock.sendall(REPLY)


def _obey(wanted: int, hub: int) -> bytes:
    """Block *hub*, which this is, if it is the *wanted* one; return when that was."""
    if wanted not in (hub, ANY_HUB):
        return b"no\n"
    began = time.monotonic_ns()
    LIBC.usleep(STALL_MICROSECONDS)
    return b"%d %d %d\n" % (hub, began, time.monotonic_ns())


def _server(listener: socket.socket, job: Job, index: int = 0) -> StreamServer:
    return StreamServer(listener, _handler(job, lambda: index))


def _listen(port: int = 0, *, reuse_port: bool = False) -> socket.socket:
    # gevent's create_server() makes a socket of the standard library, which blocks.
    listener = socket.socket()
    if reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(BACKLOG)
    return listener


def racing(job: Job, number: int) -> None:
    """Run *number* servers in one hub, each on a descriptor of one listening socket."""
    listener = _listen()
    run(*(_server(listener.dup(), job, index) for index in range(number)))


def reuse_port(job: Job, number: int) -> None:
    """Run *number* servers in one hub, each on a socket of its own: the kernel deals by hash."""
    port, servers = 0, []
    for index in range(number):
        listener = _listen(port, reuse_port=True)
        port = listener.getsockname()[1]
        servers.append(_server(listener, job, index))
    run(*servers)


def threads(job: Job, number: int) -> None:
    """Run *number* threads, each with a hub, and a server on a descriptor of one socket."""
    listener = _listen()
    started = threading.Barrier(number + 1)

    def serve(index: int) -> None:
        # A gevent socket belongs to the hub of the thread that makes it.
        server = _server(listener.dup(), job, index)
        server.start()
        started.wait()
        server.serve_forever()

    for index in range(number):
        threading.Thread(target=serve, args=(index,), daemon=True).start()
    started.wait()
    announce(listener.getsockname()[1])
    signal.pause()


def _clone() -> int:
    import glb

    clone = glb.current_clone()
    assert clone is not None, "in a handler"
    return clone


def glb(job: Job, number: int, hubs: str = "1", policy: str = "round_robin") -> None:
    """Run *number* clones on so many *hubs*."""
    from glb.server import StreamServer

    handle, place = _handler(job, _clone, int(hubs)), ("127.0.0.1", 0)
    run(StreamServer(place, handle, backlog=BACKLOG, clones=number, hubs=int(hubs), policy=policy))
