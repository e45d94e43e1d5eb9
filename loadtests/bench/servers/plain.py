"""gevent's own `StreamServer`: alone, and in the ways people make more of it."""

from __future__ import annotations

import signal
import threading

from gevent import socket
from gevent.server import StreamServer

from .job import BACKLOG, Handler, Job, announce, handler, run


def _handler(job: Job, index: int) -> Handler:
    return handler(job, lambda: index)


def _listen(port: int = 0, *, reuse_port: bool = False) -> socket.socket:
    # gevent's create_server() makes a socket of the standard library, which blocks.
    listener = socket.socket()
    if reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(BACKLOG)
    return listener


def one(job: Job, _number: int) -> None:
    run(StreamServer(("127.0.0.1", 0), _handler(job, 0), backlog=BACKLOG))


def racing(job: Job, number: int) -> None:
    """Run *number* servers in one hub, each on a descriptor of one listening socket."""
    listener = _listen()
    _run_all(job, [listener, *(listener.dup() for _ in range(1, number))])


def reuse_port(job: Job, number: int) -> None:
    """Run *number* servers in one hub, each on a socket of its own: the kernel deals by hash."""
    listener = _listen(reuse_port=True)
    port = listener.getsockname()[1]
    _run_all(job, [listener, *(_listen(port, reuse_port=True) for _ in range(1, number))])


def _run_all(job: Job, listeners: list[socket.socket]) -> None:
    first, *others = (
        StreamServer(each, _handler(job, index)) for index, each in enumerate(listeners)
    )
    for server in others:
        server.start()
    run(first)


def threads(job: Job, number: int) -> None:
    """Run *number* threads, each with a hub, and a server on a descriptor of one socket."""
    listener = _listen()
    started = threading.Barrier(number + 1)

    def serve(index: int) -> None:
        # A gevent socket belongs to the hub of the thread that makes it.
        server = StreamServer(listener.dup(), _handler(job, index))
        server.start()
        started.wait()
        server.serve_forever()

    for index in range(number):
        threading.Thread(target=serve, args=(index,), daemon=True).start()
    started.wait()
    announce(listener.getsockname()[1])
    signal.pause()
