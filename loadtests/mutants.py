"""Do both loops of the HTTP handler read the same of requests that were tampered with?

    python -m loadtests.mutants --requests 1000000

Requests of many kinds, mutated or not, are sent one behind the other, in pieces, on connections
of which each is served twice: by the lean loop, and by the loop for handlers that override one of
gevent's methods. Both must call the application with the same, reply the same bytes, and report no
error of their own; and the replies on a connection must be as many as the requests that were
served, and one more if the last one was refused. Exit status 0 only if that is so.
"""

from __future__ import annotations

import random
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import click
import gevent

from glb.http.body import ClientLeft
from glb.net.connection import Connection, PlainSocket
from glb.pywsgi import WSGIHandler, WSGIServer

#: Requests on a connection, at most.
PIPELINED_MAX: Final = 4

#: How much of what is sent is as it should be: after a mutant a connection mostly ends.
SOUND: Final = 0.5

_DATE: Final = re.compile(rb"Date: [^\r]*\r\n")
# Of several faults in a head the one is named that was seen first, which depends on the pieces.
_REFUSAL: Final = re.compile(
    rb"HTTP/1\.1 (400 B|414 R|431 R)[^\r]*\r\nConnection: close\r\nContent-l"
)
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d\d\d) [^\r\n]*\r\n")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)

_TEMPLATES: Final = (
    b"GET /list HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /chunks?a=b HTTP/1.1\r\nHost: a:80\r\nAccept: */*\r\nX-Y: z\r\n\r\n",
    b"HEAD /list HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://b/list HTTP/1.1\r\nHost: a\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /list HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST /all HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello\nworld",
    b"POST /lines HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello\nworld",
    b"POST /some HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello\nworld",
    b"POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello\nworld",
    b"POST /all HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST /some HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'3;a=b\r\nhel\r\n2;c="d"\r\nlo\r\n0\r\nX: y\r\n\r\n',
    b"PUT /all HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /none HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"POST /all HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /error HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /longer HTTP/1.1\r\nHost: a\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n",
    b"GET /shorter HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /empty HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
)

_BITS: Final = (
    *(
        bytes([each])
        for each in (*range(33), 34, 35, 37, 40, 44, 47, 58, 59, 61, 92, 127, 128, 255)
    ),
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\n\n",
        b" ",
        b"0",
        b"1",
        b"-1",
        b"+5",
        b"5",
        b"ffffffffffffffff",
    ),
    *(
        b"Content-Length: 0\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 50\r\n",
        b"Host: b\r\n",
    ),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding : x\r\n",
    ),
    *(b"Connection: close\r\n", b"Connection: Upgrade\r\n", b"Upgrade: h2c\r\n", b"Expect: x\r\n"),
    *(b" folded\r\n", b"no colon\r\n", b": no name\r\n", b"X_Y: z\r\n", b"HTTP/1.0", b"HTTP/2.0"),
    *(
        b"GET ",
        b"HEAD ",
        b"CONNECT ",
        b"/",
        b"//",
        b"*",
        b"http://",
        b"%0d%0a",
        b"\x85",
        b"\xc3\xa9",
    ),
    b"a" * 9000,
)


def application(environ: dict[str, Any], start_response: Any) -> Any:
    """Do what the path says, and tell in the reply what it was asked."""
    path, body = environ["PATH_INFO"], environ["wsgi.input"]
    seen = environ["seen"]
    call = [environ["REQUEST_METHOD"], path, environ["QUERY_STRING"], environ.get("HTTP_HOST")]
    seen.append(call)
    is_upgrade = not environ["wsgi.input_terminated"]
    if is_upgrade or "none" in path:
        pass
    elif "some" in path:
        call.append(body.read(2))
    elif "line" in path:
        call.append([*body])
    else:
        call.append(body.read())
    headers = [("X-Method", environ["REQUEST_METHOD"])]
    if "error" in path:
        raise Planned
    if "longer" in path:
        start_response("200 OK", [*headers, ("Content-Length", "3")])
        return [b"hello"]
    if "shorter" in path:
        start_response("200 OK", [*headers, ("Content-Length", "7")])
        return iter([b"hello"])
    start_response("200 OK", headers)
    if "chunk" in path:
        return iter([b"he", b"", b"llo"])
    return [] if "empty" in path else [repr(call).encode("latin-1", "replace")]


class Planned(Exception):  # noqa: N818  # it is no error, it was planned
    """What the application raises when it is asked to."""


class ByHooks(WSGIHandler):
    """A handler that overrides one of gevent's methods, and changes nothing."""

    def get_environ(self) -> dict[str, Any]:
        return super().get_environ()


class Log:
    """An error log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> None:
        self.lines.append(text)


class Server(WSGIServer):
    """A server that was not started: its handlers are called directly.

    Attributes:
        seen: The calls of the application for the connection of the running greenlet.
        reported: What gevent would have written to stderr.
    """

    def __init__(self) -> None:
        self.errors = Log()
        self.reported: list[Any] = []
        self.seen: list[Any] = []
        environ = {"SERVER_NAME": "a", "SERVER_PORT": "80"}
        super().__init__(
            ("127.0.0.1", 0), application, log=None, error_log=self.errors, environ=environ
        )

    def get_environ(self) -> dict[str, Any]:
        return {**super().get_environ(), "seen": self.seen}


@dataclass
class Found:
    """What one loop made of a connection."""

    reply: bytes = b""
    seen: list[Any] = field(default_factory=list)
    reported: list[Any] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


def serve(server: Server, handler_class: Any, pieces: list[bytes]) -> Found:
    """Have *handler_class* serve a connection on which *pieces* come, and then its end."""
    near, far = socket.socketpair()
    near.setblocking(False)
    found = Found()
    server.seen, server.errors.lines, server.reported = found.seen, found.log, found.reported
    connection = Connection.on(PlainSocket(far.family, far.type, far.proto, far.detach()))
    handler = handler_class(connection, ("127.0.0.1", 1), server)
    handler._log_error = lambda kind, error, _trace: report(found, kind, error)
    greenlet = gevent.spawn(handler.handle)
    for piece in pieces:
        send(near, piece)
        gevent.sleep(0)
    near.shutdown(socket.SHUT_WR)
    greenlet.join(10)
    if not greenlet.dead:
        found.reported.append("hangs")
        greenlet.kill()
    elif greenlet.exception is not None:
        found.reported.append(repr(greenlet.exception))
    connection.close()
    parts = []
    while True:
        try:
            data = near.recv(1 << 20)
        except ConnectionResetError:
            break
        if not data:
            break
        parts.append(data)
    near.close()
    found.reply = b"".join(parts)
    return found


def send(sock: socket.socket, data: bytes) -> None:
    """Send all that the other side takes; after its end nothing."""
    try:
        sock.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        pass


def report(found: Found, kind: Any, error: Any) -> None:
    if not issubclass(kind, (Planned, ClientLeft)):
        found.reported.append(f"{kind.__name__}: {error}")


def replies_in(data: bytes) -> Iterator[tuple[int, bool]]:
    """Yield status of each reply, and whether it is the application's.

    Raises:
        ValueError: The replies' framing is broken.
    """
    place = 0
    while place < len(data):
        match = _STATUS.match(data, place)
        end = data.find(b"\r\n\r\n", place)
        if match is None or end < 0:
            raise ValueError(f"no reply at {data[place : place + 60]!r}")
        status, head = int(match[1]), data[place : end + 4]
        place = end + 4
        length = _LENGTH.search(head)
        is_ours = b"\r\nX-Method: " in head
        if status == 100:
            continue
        if b"\r\nX-Method: HEAD\r\n" in head or status in {204, 304}:
            pass
        elif b"\r\nTransfer-Encoding: chunked\r\n" in head:
            while True:
                line = data.find(b"\r\n", place)
                size = int(data[place:line], 16)
                place = line + 4 + size
                if not size:
                    break
        elif length is not None:
            place = min(len(data), place + int(length[1]))
        else:
            place = len(data)
        yield status, is_ours


def mutate(request: bytes, dice: random.Random) -> bytes:
    """Return *request* with a few changes."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        place = dice.randrange(len(request) + 1)
        how = dice.randrange(6)
        if how == 0:
            request = request[:place] + dice.choice(_BITS) + request[place:]
        elif how == 1:
            request = request[:place] + dice.choice(_BITS) + request[place + 1 :]
        elif how == 2:
            request = request[:place] + request[place + dice.randrange(1, 4) :]
        elif how == 3:
            lines = request.split(b"\r\n")
            lines.insert(dice.randrange(len(lines)), dice.choice(lines))
            request = b"\r\n".join(lines)
        elif how == 4:
            lines = request.split(b"\r\n")
            lines.insert(min(1, len(lines)), dice.choice(_BITS).removesuffix(b"\r\n"))
            request = b"\r\n".join(lines)
        else:
            other = dice.choice(_TEMPLATES)
            request = request[:place] + other[dice.randrange(len(other)) :]
    return request


def make(dice: random.Random) -> tuple[int, list[bytes]]:
    """Return how many requests a connection has, and the pieces in which they come."""
    count = dice.randrange(1, PIPELINED_MAX + 1)
    data = b""
    for _ in range(count):
        request = dice.choice(_TEMPLATES)
        data += request if dice.random() < SOUND else mutate(request, dice)
    cuts = sorted({dice.randrange(len(data)) for _ in range(dice.choice((0, 0, 1, 2, 5)))} | {0})
    return count, [data[a:b] for a, b in zip(cuts, [*cuts[1:], len(data)], strict=True) if a < b]


def comparable(reply: bytes) -> bytes:
    """Return *reply* without what may differ."""
    return _REFUSAL.sub(b"refused", _DATE.sub(b"", reply))


def faults_of(lean: Found, hooks: Found) -> Iterator[str]:
    """Yield what is wrong with what both loops made of one connection."""
    for name, found in (("lean", lean), ("hooks", hooks)):
        if found.reported:
            yield f"{name} reports {found.reported}"
        try:
            replies = [*replies_in(found.reply)]
        except ValueError as error:
            yield f"{name}: {error}"
            continue
        more = len(replies) - len(found.seen)
        # The application is called, and the client has left in the body; or one was refused.
        if more not in {-1, 0, 1} or (more == 1 and (replies[-1][1] or replies[-1][0] < 400)):
            yield f"{name}: {len(found.seen)} calls, replies {replies}"
    if lean.seen != hooks.seen:
        yield f"lean was asked {lean.seen}, hooks {hooks.seen}"
    if comparable(lean.reply) != comparable(hooks.reply):
        yield f"lean replied {lean.reply!r}, hooks {hooks.reply!r}"
    if len(lean.log) != len(hooks.log):
        yield f"lean's log has {lean.log}, hooks' {hooks.log}"


@click.command(help=__doc__)
@click.option("--requests", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--seed", type=int, help="Of all that is chosen. Printed if not given.")
def main(requests: int, seed: int | None) -> None:
    if seed is None:
        seed = random.randrange(10**6)
        click.echo(f"seed {seed}")
    dice = random.Random(seed)
    server = Server()
    done = wrong = 0
    statuses: Counter[int] = Counter()
    while done < requests:
        count, pieces = make(dice)
        done += count
        lean = serve(server, WSGIHandler, pieces)
        hooks = serve(server, ByHooks, pieces)
        faults = [*faults_of(lean, hooks)]
        if faults:
            wrong += 1
            if wrong <= 10:
                click.echo(f"WRONG {pieces!r}\n  " + "\n  ".join(faults))
        else:
            statuses.update(status for status, _ in replies_in(lean.reply))
    told = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
    click.echo(f"{done:,} requests, replies {told}; {wrong:,} connections wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
