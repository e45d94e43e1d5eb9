"""What the hosts serve: each reply has the client's address, and which process it is from."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import glb
from loadtests.target.servers import echo

HOST = os.environ["HOST"]


def application(environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Reply ``address:port host pid``; ``/slow`` takes half a second."""
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.5)
    client = f"{environ['REMOTE_ADDR']}:{environ['REMOTE_PORT']}"
    body = f"{client} {HOST} {os.getpid()}\n".encode()
    clone = ("X-Glb-Clone", f"{HOST}.{int(environ['glb.clone'])}")
    start_response("200 OK", [clone, ("Content-Length", str(len(body)))])
    return [body]


def handle(sock: Any, peer: object) -> None:
    """Echo each line, after the clone's name."""
    clone = glb.current_clone()
    assert clone is not None
    echo(f"{HOST}.{int(clone)}".encode())(sock, peer)
