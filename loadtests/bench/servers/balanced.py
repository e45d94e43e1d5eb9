"""glb's `StreamServer`."""

from __future__ import annotations

import glb
from glb.server import StreamServer

from .handlers import handler
from .job import BACKLOG, Job, announce


def _clone() -> int:
    clone = glb.current_clone()
    assert clone is not None, "in a handler"
    return clone


def clones(job: Job, number: int) -> None:
    server = StreamServer(("127.0.0.1", 0), handler(job, _clone), backlog=BACKLOG, clones=number)
    server.start()
    announce(server.server_port)
    server.serve_forever()


def hubs(job: Job, number: int, count: str, policy: str) -> None:
    """Run *number* clones on *count* hubs."""
    server = StreamServer(
        ("127.0.0.1", 0),
        handler(job, _clone, int(count)),
        backlog=BACKLOG,
        clones=number,
        hubs=int(count),
        policy=policy,
    )
    server.start()
    announce(server.server_port)
    server.serve_forever()
