"""The server's process: ``python -m loadtests.proxies.application SERVER HANDLER HUBS CALLS``.

It prints its port, and serves until standard input ends. Into the file *CALLS* it writes what its
application saw, a call a line, as JSON. Only `loadtests.proxies` starts it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import parse_qs

import gevent
import gevent.pywsgi
from gevent import get_hub

import glb.pywsgi

from . import websockets
from .words import DIRECT, digest, reply_body

__all__ = ["CLONES", "MAX_BODY", "STOP_SECONDS"]

CLONES: Final = 4

#: In bytes. A request that announces more gets a 413.
MAX_BODY: Final = 400_000

STOP_SECONDS: Final = 10.0

PIECE_BYTES: Final = 1000


class HooksHandler(glb.pywsgi.WSGIHandler):
    """Overrides a method of gevent's, so that the requests are read by the other loop."""

    def get_environ(self) -> dict[str, Any]:
        environ = super().get_environ()
        environ["proxies.hook"] = True
        return environ


class LimitedServer(glb.pywsgi.WSGIServer):
    """glb's, with a limit for bodies."""

    max_body = MAX_BODY


class Application:
    """Replies as the path asks for: ``/KIND/TOKEN?size=N``.

    Args:
        calls: The descriptor of the file to write to.
    """

    def __init__(self, calls: int) -> None:
        self._calls: Final = calls
        self._kinds: Final[dict[str, Callable[..., Any]]] = {
            "stream": self._stream,
            "slow": self._slow,
            "writer": self._writer,
            "long": self._long,
            "short": self._short,
            "hints": self._hints,
            "file": self._file,
            "204": self._without_body,
            "304": self._without_body,
        }

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        kind, _, rest = environ["PATH_INFO"].removeprefix(DIRECT).removeprefix("/").partition("/")
        token = rest.partition("/")[0]
        call = {
            "line": environ["REMOTE_ADDR"],
            "method": environ["REQUEST_METHOD"],
            "path": environ["PATH_INFO"],
            "query": environ["QUERY_STRING"],
            "from": environ.get("HTTP_X_FORWARDED_FOR"),
            "host": environ.get("HTTP_HOST"),
            "token": token,
            "wanted": _wanted(kind),
            "read": None,
            "error": None,
        }
        if kind == "websocket" and environ.get("HTTP_SEC_WEBSOCKET_KEY"):
            self._tell(call)
            return self._websocket(environ, start_response, token)
        try:
            call["read"] = read = digest(_read(environ, kind))
        except OSError as error:
            call["error"] = type(error).__name__
            raise
        finally:
            self._tell(call)
        size = int(parse_qs(environ["QUERY_STRING"]).get("size", ["100"])[0])
        body = reply_body(token, read, size)
        headers = [("X-Token", token), ("Content-Type", "text/plain")]
        make = self._kinds.get(kind)
        if make is not None:
            return make(environ, start_response, headers, body)
        headers.append(("Content-Length", str(len(body))))
        if kind == "close":
            headers.append(("Connection", "close"))
        start_response("401 Unauthorized" if kind == "early" else "200 OK", headers)
        return [body]

    def _tell(self, call: dict[str, Any]) -> None:
        # One write a line: hubs don't mix theirs.
        os.write(self._calls, json.dumps(call).encode() + b"\n")

    def _stream(
        self, _environ: Any, start_response: Any, headers: Any, body: bytes
    ) -> Iterator[bytes]:
        start_response("200 OK", headers)
        for place in range(0, len(body), PIECE_BYTES):
            yield body[place : place + PIECE_BYTES]
            gevent.sleep(0)

    def _slow(
        self, _environ: Any, start_response: Any, headers: Any, body: bytes
    ) -> Iterator[bytes]:
        gevent.sleep(0.02)
        start_response("200 OK", headers)
        for place in range(0, len(body), PIECE_BYTES):
            yield body[place : place + PIECE_BYTES]
            gevent.sleep(0.002)

    def _writer(self, _environ: Any, start_response: Any, headers: Any, body: bytes) -> list[bytes]:
        write = start_response("200 OK", headers)
        half = len(body) // 2
        write(body[:half])
        write(body[half:])
        return []

    def _long(self, _environ: Any, start_response: Any, headers: Any, body: bytes) -> list[bytes]:
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"]

    def _short(self, _environ: Any, start_response: Any, headers: Any, body: bytes) -> list[bytes]:
        start_response("200 OK", [*headers, ("Content-Length", str(len(body) + 50))])
        return [body]

    def _hints(self, environ: Any, start_response: Any, headers: Any, body: bytes) -> list[bytes]:
        early_hints = environ.get("wsgi.early_hints")
        if early_hints is not None:
            early_hints([("Link", "</style.css>; rel=preload")])
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        return [body]

    def _file(self, environ: Any, start_response: Any, headers: Any, body: bytes) -> Any:
        file = tempfile.TemporaryFile()  # noqa: SIM115  # the wrapper closes it
        file.write(body)
        file.seek(0)
        start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
        wrap = environ.get("wsgi.file_wrapper", lambda each: each)
        return wrap(file)

    def _without_body(
        self, environ: Any, start_response: Any, headers: Any, body: bytes
    ) -> list[bytes]:
        if "/304/" in environ["PATH_INFO"]:
            # RFC 9110, 15.4.5: the length is that of a 200.
            start_response(
                "304 Not Modified", [*headers, ("ETag", '"x"'), ("Content-Length", str(len(body)))]
            )
        else:
            start_response("204 No Content", headers)
        return []

    def _websocket(self, environ: Any, start_response: Any, token: str) -> list[bytes]:
        # By the socket, as programs do that were written for gevent.
        answer = websockets.accept(environ["HTTP_SEC_WEBSOCKET_KEY"])
        headers = [
            ("X-Token", token),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", answer),
        ]
        start_response("101 Switching Protocols", headers)(b"")
        sock = environ["wsgi.input"].raw._sock
        with sock.makefile("rb") as file:
            while (message := websockets.read_frame(file)) is not None:
                sock.sendall(websockets.frame(*message))
                if message[0] == websockets.CLOSE:
                    break
        return []


def _wanted(kind: str) -> str:
    """Return how much of the body is read: ``"all"``, ``"part"``, or ``"none"``."""
    if kind in {"ignore", "early", "websocket"}:
        return "none"
    return "part" if kind == "part" else "all"


def _read(environ: dict[str, Any], kind: str) -> bytes:
    wanted, body = _wanted(kind), environ["wsgi.input"]
    # As PEP 3333 has it: no more than Content-Length says.
    size = -1 if "HTTP_TRANSFER_ENCODING" in environ else int(environ.get("CONTENT_LENGTH") or 0)
    if wanted == "none":
        return b""
    if wanted == "part":
        data: bytes = body.read(10 if size < 0 else min(10, size))
    elif kind == "stream" and size < 0:
        data = b"".join(body)
    else:
        data = body.read(size)
    return data


def main(server: str, handler: str, hubs: str, calls: str) -> None:
    application = Application(os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    address = ("127.0.0.1", 0)
    serving: Any
    if server == "gevent":
        serving = gevent.pywsgi.WSGIServer(address, application, backlog=1024, log=None)
    else:
        serving = LimitedServer(
            address,
            application,
            log=None,
            handler_class=HooksHandler if handler == "hooks" else None,
            clones=CLONES,
            hubs=int(hubs),
        )
    serving.start()
    print(serving.server_port, flush=True)
    get_hub().threadpool.apply(sys.stdin.read)
    serving.stop(timeout=STOP_SECONDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
