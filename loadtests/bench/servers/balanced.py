"""glb's `StreamServer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import glb
from glb.server import StreamServer

from .job import BACKLOG, REPLY, Job, announce


def _handler(job: Job) -> Callable[[Any, Any], None]:
    def reply(sock: Any, _peer: Any) -> None:
        sock.sendall(REPLY)

    def tell(sock: Any, _peer: Any) -> None:
        sock.sendall(f"{glb.current_clone()}\n".encode())

    def wait(sock: Any, _peer: Any) -> None:
        sock.sendall(REPLY)
        sock.recv(1)

    return {Job.REPLY: reply, Job.ORDER: tell, Job.IDLE: wait}[job]


def clones(job: Job, number: int) -> None:
    server = StreamServer(("127.0.0.1", 0), _handler(job), backlog=BACKLOG, clones=number)
    server.start()
    announce(server.server_port)
    server.serve_forever()
