"""Workers of gunicorn's in this process, without an arbiter and without a fork."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from gevent import socket
from gunicorn.config import Config

from glb.gunicorn.variables import Variables
from glb.gunicorn.worker import Worker
from glb.server import StreamServer

OK = b"HTTP/1.1 200 OK"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Log:
    """gunicorn's logger, as far as a worker needs it: it keeps what it is to log."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.accesses: list[tuple[Any, Any, Any, Any]] = []

    def _say(self, text: object, *args: object, **_: object) -> None:
        self.lines.append(str(text) % args if args else str(text))

    info = warning = error = critical = exception = _say

    def debug(self, *_: object) -> None:
        """These are for gunicorn's developers."""

    def log(self, _level: int, text: object, *args: object, **_: object) -> None:
        self._say(text, *args)

    def access(self, reply: Any, request: Any, environ: Any, took: Any) -> None:
        self.accesses.append((reply, request, environ, took))


def config(**settings: Any) -> Any:
    """Return gunicorn's settings; those that aren't given are what they are by default."""
    made = Config()
    for name, value in settings.items():
        if isinstance(value, float):  # a test waits for less than gunicorn's whole seconds
            made.settings[name].value = value
        else:
            made.set(name, value)
    return made


@contextlib.contextmanager
def serving(
    kind: type[Worker],
    application: Callable[..., Any],
    *,
    clones: int = 2,
    hubs: int = 1,
    request_timeout: float | None = None,
    **settings: Any,
) -> Iterator[tuple[Any, StreamServer]]:
    """Serve *application* by a worker of *kind*; yield the worker and its server."""
    worker: Any = kind(1, os.getppid(), [], None, 15, config(**settings), Log())
    try:
        worker.variables = Variables(clones, hubs, request_timeout)
        worker.wsgi = application
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        server = worker.make_server(listener)
        server.patience = 30.0  # a machine that is busy with other tests passes no hub over
        server.start()
        try:
            yield worker, server
        finally:
            server.drain(5, linger=0)
    finally:
        worker.tmp.close()


def reply_of(client: socket.socket) -> bytes:
    """Return the next reply on *client*: one with Content-Length, or all until the end."""
    data = b""
    while True:
        head, found, body = data.partition(b"\r\n\r\n")
        if found:
            length = next(
                (
                    int(line.partition(b":")[2])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ),
                None,
            )
            if length is not None and len(body) >= length:
                return data
        more = client.recv(65536)
        if not more:
            return data
        data += more


def tell_clone(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Reply with the number of the clone."""
    import glb

    body = b"%d" % (glb.current_clone() or 0)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
