"""glb's `StreamServer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import glb
from glb.server import StreamServer

from .blocking import BLOCK_MICROSECONDS, ORDERS_COME_FROM, obey, usleep
from .job import BACKLOG, REPLY, Job, announce


def _handler(job: Job, hubs: int = 1) -> Callable[[Any, Any], None]:
    def reply(sock: Any, _peer: Any) -> None:
        sock.sendall(REPLY)

    def tell(sock: Any, _peer: Any) -> None:
        sock.sendall(f"{glb.current_clone()}\n".encode())

    def wait(sock: Any, _peer: Any) -> None:
        sock.sendall(REPLY)
        sock.recv(1)

    def block(sock: Any, _peer: Any) -> None:
        usleep(BLOCK_MICROSECONDS)
        sock.sendall(REPLY)

    def tell_or_obey(sock: Any, peer: Any) -> None:
        if peer[0] == ORDERS_COME_FROM:
            clone = glb.current_clone()
            assert clone is not None, "in a handler"
            obey(sock, clone % hubs)
        else:
            tell(sock, peer)

    return {
        Job.REPLY: reply,
        Job.ORDER: tell,
        Job.IDLE: wait,
        Job.BLOCK: block,
        Job.STALL: tell_or_obey,
    }[job]


def clones(job: Job, number: int) -> None:
    server = StreamServer(("127.0.0.1", 0), _handler(job), backlog=BACKLOG, clones=number)
    server.start()
    announce(server.server_port)
    server.serve_forever()


def hubs(job: Job, number: int, count: str, policy: str) -> None:
    """Run *number* clones on *count* hubs."""
    server = StreamServer(
        ("127.0.0.1", 0),
        _handler(job, int(count)),
        backlog=BACKLOG,
        clones=number,
        hubs=int(count),
        policy=policy,
    )
    server.start()
    announce(server.server_port)
    server.serve_forever()
