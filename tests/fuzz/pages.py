"""An application that has a page for all that HTTP allows, and the process that serves it."""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import gevent
import gevent.pywsgi

import glb.pywsgi
from loadtests.frame.worker import commands_of

PIECE_BYTES: Final = 1000

#: A request that announces more gets a 413.
MAX_BODY: Final = 400_000

#: Pages whose bodies `plain` leaves unread. Of "part" it reads ten bytes.
UNREAD: Final = frozenset({"early", "ignore", "websocket"})

#: Of the environment, beside the fields of the request.
KEYS: Final = {
    *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "CONTENT_TYPE"),
    *("CONTENT_LENGTH", "REMOTE_ADDR", "REMOTE_PORT", "SERVER_PROTOCOL", "wsgi.input_terminated"),
}

_STATUSES: Final = {"early": "401 Unauthorized", "204": "204 No Content", "304": "304 Not Modified"}


def recorded(application: Any, tell: Callable[[dict[str, Any]], object]) -> Any:
    """Return *application*, which *tells* of each call."""

    def called(environ: dict[str, Any], start_response: Any) -> Any:
        call = {name: environ[name] for name in environ if name in KEYS or name[:5] == "HTTP_"}
        environ["call"] = call
        try:
            return application(environ, start_response)
        except OSError as error:
            call["error"] = type(error).__name__
            raise
        finally:
            tell(call)

    return called


class Planned(Exception):  # noqa: N818  # it is no error, it was planned
    """What the application raises when it is asked to."""


def page_of(path: str) -> tuple[str, str]:
    """Return the page and the token of ``/PAGE/TOKEN``."""
    _, page, token, *_ = [*path.split("/"), "", ""]
    return page, token


def part_of(page: str, body: bytes) -> bytes:
    """Return what is read of a *body*."""
    return b"" if page in UNREAD else body[:10] if page == "part" else body


def digest(body: bytes) -> str:
    """Return what tells *body* from another."""
    return f"{len(body)}-{hashlib.sha1(body).hexdigest()[:16]}"


def reply_body(token: str, read: str, size: int) -> bytes:
    """Return *size* bytes: the token, and the digest of what was *read*, again and again."""
    piece = f"<{token} {read}>\n".encode()
    return (piece * (size // len(piece) + 1))[:size]


def plain(environ: dict[str, Any], start_response: Any) -> Any:
    """Reply as the path asks for: ``/PAGE/TOKEN?size=N``."""
    page, token = page_of(environ["PATH_INFO"])
    headers = [("X-Token", re.sub("[^0-9a-z]", "", token)), ("Content-Type", "text/plain")]
    headers.append(("X-Method", environ["REQUEST_METHOD"]))
    if page == "websocket" and not environ["wsgi.input_terminated"]:
        return _talk(environ, start_response, headers)
    environ["call"]["read"] = read = digest(_read(environ, page))
    if page == "error":
        raise Planned
    size = int((re.findall(r"^size=([0-9]{1,6})$", environ["QUERY_STRING"]) or [100])[0])
    body = reply_body(token, read, size)
    if page not in {"stream", "slow", "writer", "204"}:
        # RFC 9110, 15.4.5: the length of a 304 is that of a 200.
        headers.append(("Content-Length", str(size + (50 if page == "short" else 0))))
    if page == "close":
        headers.append(("Connection", "close"))
    if page == "304":
        headers.append(("ETag", '"x"'))
    if page == "hints" and "wsgi.early_hints" in environ:
        environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload")])
    begin = partial(start_response, _STATUSES.get(page, "200 OK"), headers)
    if page in {"stream", "slow"}:
        return _pieces(body, begin, 0.002 if page == "slow" else 0.0)
    write = begin()
    if page == "file":
        file = tempfile.TemporaryFile()  # noqa: SIM115  # the wrapper closes it
        file.write(body)
        file.seek(0)
        return environ.get("wsgi.file_wrapper", iter)(file)
    if page == "writer":
        write(body[: size // 2])
        write(body[size // 2 :])
    stolen = [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"] if page == "long" else []
    return [] if page in {"writer", "204", "304"} else [body, *stolen]


def _read(environ: dict[str, Any], page: str) -> bytes:
    # As PEP 3333 has it: no more than Content-Length says.
    size = -1 if "HTTP_TRANSFER_ENCODING" in environ else int(environ.get("CONTENT_LENGTH") or 0)
    if page == "stream" and size:
        lines = [*environ["wsgi.input"]]
        environ["call"]["lines"] = [*map(len, lines)]
        return b"".join(lines)
    if page == "part":
        size = 10 if size < 0 else min(10, size)
    data: bytes = b"" if page in UNREAD else environ["wsgi.input"].read(size)
    return data


def _pieces(body: bytes, begin: Callable[[], object], pause: float) -> Iterator[bytes]:
    gevent.sleep(10 * pause)
    begin()
    for place in range(0, len(body), PIECE_BYTES):
        yield body[place : place + PIECE_BYTES]
        gevent.sleep(pause)


def _talk(environ: dict[str, Any], start_response: Any, headers: Any) -> list[bytes]:
    """Return each line, until one is empty: by the socket, as programs for gevent do."""
    # HAProxy looks at the key and at the answer (RFC 6455, 4.2.2). What is said afterwards is bytes
    # to proxies and servers, and needs nothing of a websocket.
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    answer = base64.b64encode(hashlib.sha1(key.encode("latin-1")).digest()).decode()
    headers += [("Upgrade", "websocket"), ("Connection", "Upgrade")]
    start_response("101 Switching Protocols", [*headers, ("Sec-WebSocket-Accept", answer)])(b"")
    sock = environ["wsgi.input"].raw._sock
    with sock.makefile("rb") as file:
        for line in file:
            sock.sendall(line)
            if line == b"\n":
                break
    return []


# -- servers -------------------------------------------------------------------------------------


class ByHooks(glb.pywsgi.WSGIHandler):
    """Overrides one of gevent's methods and changes nothing: the other loop reads the requests."""

    def get_environ(self) -> dict[str, Any]:
        return super().get_environ()


class Limited(glb.pywsgi.WSGIServer):
    max_body = MAX_BODY


#: What makes a server, by names.
SERVERS: Final[dict[str, Callable[..., Any]]] = {
    "lean": partial(Limited, clones=4),
    "hooks": partial(Limited, clones=4, handler_class=ByHooks),
    "gevent": gevent.pywsgi.WSGIServer,
}


class Serving:
    """The server of a process, and what its application saw."""

    def start(self, name: str, **options: Any) -> int:
        """Start one of `SERVERS`, and return its port."""
        self._calls: list[dict[str, Any]] = []
        application = recorded(plain, self._calls.append)
        self._server = SERVERS[name](("127.0.0.1", 0), application, log=None, **options)
        self._server.start()
        return int(self._server.server_port)

    def stop(self) -> list[dict[str, Any]]:
        """Stop it, and return each call."""
        self._server.stop(timeout=10)
        return self._calls


COMMANDS: Final = commands_of(Serving())
