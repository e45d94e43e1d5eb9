"""gevent's own `StreamServer`: alone, and in the ways people make more of it."""

from __future__ import annotations

import signal
import threading

from gevent import socket
from gevent.server import StreamServer

from .handlers import Handler, handler
from .job import BACKLOG, Job, announce


def _handler(job: Job, index: int) -> Handler:
    return handler(job, lambda: index)


def _listen(port: int, *, reuse_port: bool = False) -> socket.socket:
    # gevent's create_server() makes a socket of the standard library, which blocks.
    listener = socket.socket()
    if reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(BACKLOG)
    return listener


def one(job: Job, _number: int) -> None:
    server = StreamServer(("127.0.0.1", 0), _handler(job, 0), backlog=BACKLOG)
    server.start()
    announce(server.server_port)
    server.serve_forever()


def racing(job: Job, number: int) -> None:
    """Run *number* servers in one hub, each on a descriptor of one listening socket."""
    listener = _listen(0)
    servers = [StreamServer(listener.dup(), _handler(job, index)) for index in range(number)]
    for server in servers:
        server.start()
    announce(listener.getsockname()[1])
    servers[0].serve_forever()


def reuse_port(job: Job, number: int) -> None:
    """Run *number* servers in one hub, each on a socket of its own: the kernel deals by hash."""
    port = 0
    servers = []
    for index in range(number):
        listener = _listen(port, reuse_port=True)
        port = listener.getsockname()[1]
        servers.append(StreamServer(listener, _handler(job, index)))
        servers[-1].start()
    announce(port)
    servers[0].serve_forever()


def threads(job: Job, number: int) -> None:
    """Run *number* threads, each with a hub, and a server on a descriptor of one socket."""
    listener = _listen(0)
    started = threading.Barrier(number + 1)

    def run(index: int) -> None:
        # A gevent socket belongs to the hub of the thread that makes it.
        server = StreamServer(listener.dup(), _handler(job, index))
        server.start()
        started.wait()
        server.serve_forever()

    for index in range(number):
        threading.Thread(target=run, args=(index,), daemon=True).start()
    started.wait()
    announce(listener.getsockname()[1])
    signal.pause()
