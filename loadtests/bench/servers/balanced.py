"""glb's `StreamServer`; and servers whose replies name the clone, for locust."""

from __future__ import annotations

import contextlib
from typing import Any

import glb
from glb.server import StreamServer

from .job import ADDRESSES, BACKLOG, REPLY, Job, announce, handler, run


def _clone() -> int:
    clone = glb.current_clone()
    assert clone is not None, "in a handler"
    return clone


def clones(job: Job, number: int) -> None:
    _run(job, None, clones=number)


def hubs(job: Job, number: int, count: str, policy: str) -> None:
    """Run *number* clones on *count* hubs."""
    _run(job, int(count), clones=number, hubs=int(count), policy=policy)


def _run(job: Job, count: int | None, **options: Any) -> None:
    handle = handler(job, _clone, count)
    run(StreamServer(("127.0.0.1", 0), handle, backlog=BACKLOG, **options))


def echo(_job: Job, number: int) -> None:
    """Send each line back, after the clone, on one port of several addresses."""

    def handle(sock: Any, _peer: Any) -> None:
        told = b"%d/%d " % (_clone(), number)
        line = b""
        with contextlib.suppress(ConnectionError):  # that is how some leave
            while data := sock.recv(4096):
                line += data
                if line.endswith(b"\n"):
                    sock.sendall(told + line)
                    line = b""

    first = StreamServer((ADDRESSES[0], 0), handle, backlog=BACKLOG, clones=number)
    first.start()
    for address in ADDRESSES[1:]:
        place = (address, first.server_port)
        StreamServer(place, handle, backlog=BACKLOG, clones=number).start()
    announce(first.server_port)
    first.serve_forever()


def http(_job: Job, number: int) -> None:
    """Answer requests, with a header that has the clone."""
    from glb.pywsgi import WSGIServer  # noqa: PLC0415  # the others don't need it

    def answer(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "3"), ("X-Glb-Clone", f"{_clone()}/{number}")])
        return [REPLY]

    run(WSGIServer(("127.0.0.1", 0), answer, backlog=BACKLOG, log=None, clones=number))
