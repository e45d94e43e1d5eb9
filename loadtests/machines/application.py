"""What the hosts serve: each reply has the client's address, and which process it is from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import glb
from loadtests.frame.traffic import SLOW, Request, reply
from loadtests.target.servers import echo, page

HOST = os.environ["HOST"]


def _label(clone: int | None) -> bytes:
    assert clone is not None
    return f"{HOST}.{int(clone)}".encode()


def application(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Reply with ``address:port host pid``; what is slow takes half a second."""
    if environ["PATH_INFO"] == "/":  # locust's
        return page(_label(environ["glb.clone"]))(environ, start_response)
    request = Request.decode(environ["PATH_INFO"])
    if request.verb == SLOW:
        time.sleep(0.5)
    client = f"{environ['REMOTE_ADDR']}:{environ['REMOTE_PORT']}"
    body = reply(request, client, HOST, os.getpid())
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def handle(sock: Any, peer: object) -> None:
    """Echo each line, after the clone's name."""
    echo(_label(glb.current_clone()))(sock, peer)
