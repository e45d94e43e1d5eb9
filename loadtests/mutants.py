"""Do both loops of the HTTP handler read the same of requests that were tampered with?

    python -m loadtests.mutants --requests 1000000

Requests of many kinds, mutated or not, are sent one behind the other, in pieces, on connections
of which each is served twice: by the lean loop, and by the loop for handlers that override one of
gevent's methods. Both must call the application with the same, reply the same bytes, and report no
error of their own; and the replies on a connection must be as many as the requests that were
served, and one more if the last one was refused. Exit status 0 only if that is so.
"""

from __future__ import annotations

import io
import random
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import click
import gevent

from glb.http.body import ClientLeft
from glb.net.connection import Connection, PlainSocket
from glb.pywsgi import WSGIHandler, WSGIServer

from .frame.command import seed_option
from .http.messages import KINDS, Kind, Maker, Message, read_message
from .http.serve import ByHooks, Planned, plain, recorded

#: Requests on a connection, at most.
PIPELINED_MAX: Final = 4

#: How much of what is sent is as it should be: after a mutant a connection mostly ends.
SOUND: Final = 0.5

#: In bytes, of a request's body and of a reply's: so that mostly heads are mutated.
BODY_MAX: Final = 20

#: What is sent. The others need a proxy, or a client that waits, or are large.
SENT: Final = (
    *(kind for kind in KINDS if kind.name not in {"attack", "too large", "leaving", "websocket"}),
    *(Kind("error", 3, "error"), Kind("closed", 3, fields=(("Connection: close",),))),
)

_DATE: Final = re.compile(rb"Date: [^\r]*\r\n")
# Of several faults in a head the one is named that was seen first, which depends on the pieces.
_REFUSAL: Final = re.compile(
    rb"HTTP/1\.1 (400 B|414 R|431 R)[^\r]*\r\nConnection: close\r\nContent-l"
)
CRLF: Final = b"\r\n"

_BITS: Final = (
    *(bytes([each]) for each in (*range(33), *b'"#%(,/:;=\\\x7f\x80\xff')),
    *(b"\r\n", b"\r\n\r\n", b"\n\n", b"0", b"1", b"5", b"-1", b"+5", b"f" * 16, b"a" * 9000),
    *(b"Content-Length: 0\r\n", b"Content-Length: 5\r\n", b"Content-Length: 50\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"Host: b\r\n"),
    *(b"Transfer-Encoding : x\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\n"),
    *(b"Upgrade: h2c\r\n", b"Expect: x\r\n", b" folded\r\n", b"no colon\r\n", b": no name\r\n"),
    *(b"X_Y: z\r\n", b"HTTP/1.0", b"HTTP/2.0", b"GET ", b"HEAD ", b"CONNECT "),
    *(b"//", b"*", b"http://", b"%0d%0a", b"\x85", b"\xc3\xa9"),
)


@dataclass
class Found:
    """What one loop made of a connection."""

    reply: bytes = b""
    seen: list[Any] = field(default_factory=list)  # by the application
    reported: list[Any] = field(default_factory=list)
    log: list[str] = field(default_factory=list)


class Server(WSGIServer):
    """A server that was not started: its handlers are called directly."""

    def __init__(self) -> None:
        self.found = Found()
        environ = {"SERVER_NAME": "a", "SERVER_PORT": "80"}
        options: dict[str, Any] = {"log": None, "error_log": self, "environ": environ}
        super().__init__(("127.0.0.1", 0), recorded(plain, self._tell), **options)

    def _tell(self, call: dict[str, Any]) -> None:
        self.found.seen.append(call)

    def _report(self, kind: type[BaseException], error: object, _trace: object) -> None:
        if not issubclass(kind, (Planned, ClientLeft)):
            self.found.reported.append(f"{kind.__name__}: {error}")

    def write(self, line: str) -> None:
        """Log a *line*."""
        self.found.log.append(line)

    def serve(self, handler_class: Any, pieces: list[bytes]) -> Found:
        """Have *handler_class* serve a connection on which *pieces* come, and then its end."""
        near, far = socket.socketpair()
        near.setblocking(False)
        found = self.found = Found()
        connection = Connection.on(PlainSocket(far.family, far.type, far.proto, far.detach()))
        handler = handler_class(connection, ("127.0.0.1", 1), self)
        handler._log_error = self._report
        greenlet = gevent.spawn(handler.handle)
        with near:
            for piece in pieces:
                with suppress(BrokenPipeError, ConnectionResetError):  # it takes no more
                    near.sendall(piece)
                gevent.sleep(0)
            near.shutdown(socket.SHUT_WR)
            greenlet.join(10)
            if not greenlet.dead:
                found.reported.append("hangs")
                greenlet.kill()
            elif greenlet.exception is not None:
                found.reported.append(repr(greenlet.exception))
            connection.close()
            with suppress(ConnectionResetError):
                while data := near.recv(1 << 20):
                    found.reply += data
        return found


def replies_in(data: bytes) -> Iterator[Message]:
    """Yield each final reply, or raise `ValueError` if the replies' framing is broken."""
    # If the client has left in the body, nothing is behind the word that it may send that.
    file = io.BytesIO(data.removesuffix(b"HTTP/1.1 100 Continue\r\n\r\n"))
    while rest := file.getvalue()[(place := file.tell()) :]:
        reply = read_message(file, "")
        if reply is None or (reply.value("transfer-encoding") and not reply.is_whole):
            raise ValueError(f"no reply at {place}: {rest[:60]!r}")
        yield reply


def mutate(request: bytes, dice: random.Random) -> bytes:
    """Return *request* with a few changes."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        place, bit, lines = (
            dice.randrange(len(request) + 1),
            dice.choice(_BITS),
            request.split(CRLF),
        )
        how = dice.choice(("insert", "replace", "remove", "repeat a line", "add a line", "splice"))
        if how == "repeat a line":
            lines.insert(dice.randrange(len(lines)), dice.choice(lines))
            request = CRLF.join(lines)
        elif how == "add a line":
            request = CRLF.join([lines[0], bit.removesuffix(CRLF), *lines[1:]])
        elif how == "splice":
            other = one(dice)
            request = request[:place] + other[dice.randrange(len(other)) :]
        else:
            end = place + {"insert": 0, "replace": 1, "remove": dice.randrange(1, 4)}[how]
            request = request[:place] + (b"" if how == "remove" else bit) + request[end:]
    return request


def one(dice: random.Random) -> bytes:
    made = Maker(dice, most=BODY_MAX).make(dice.choice(SENT))
    return made.head + made.tail


def make(dice: random.Random) -> tuple[int, list[bytes]]:
    """Return how many requests a connection has, and the pieces in which they come."""
    count = dice.randrange(1, PIPELINED_MAX + 1)
    data = b""
    for _ in range(count):
        request = one(dice)
        data += request if dice.random() < SOUND else mutate(request, dice)
    return count, Maker(dice).pieces(data)


def faults_of(lean: Found, hooks: Found) -> Iterator[str]:
    """Yield what is wrong with what both loops made of one connection."""
    for name, found in (("lean", lean), ("hooks", hooks)):
        if found.reported:
            yield f"{name} reports {found.reported}"
        try:
            replies = [(each.code, each.value("x-method")) for each in replies_in(found.reply)]
        except ValueError as error:
            yield f"{name}: {error}"
            continue
        more = len(replies) - len(found.seen)
        # The application is called, and the client has left in the body; or one was refused.
        if more not in {-1, 0, 1} or (more == 1 and (replies[-1][1] or replies[-1][0] < 400)):
            yield f"{name}: {len(found.seen)} calls, replies {replies}"
    if lean.seen != hooks.seen:
        yield f"lean was asked {lean.seen}, hooks {hooks.seen}"
    one, other = (_REFUSAL.sub(b"refused", _DATE.sub(b"", each.reply)) for each in (lean, hooks))
    if one != other:
        yield f"lean replied {lean.reply!r}, hooks {hooks.reply!r}"
    if len(lean.log) != len(hooks.log):
        yield f"lean's log has {lean.log}, hooks' {hooks.log}"


@click.command(help=__doc__)
@click.option("--requests", type=click.IntRange(1), default=10_000, show_default=True)
@seed_option()
def main(requests: int, seed: int) -> None:
    click.echo(f"seed {seed}")
    dice, server, done, wrong = random.Random(seed), Server(), 0, 0
    statuses: Counter[int] = Counter()
    while done < requests:
        count, pieces = make(dice)
        done += count
        lean, hooks = server.serve(WSGIHandler, pieces), server.serve(ByHooks, pieces)
        if faults := [*faults_of(lean, hooks)]:
            wrong += 1
            if wrong <= 10:
                click.echo(f"WRONG {pieces!r}\n  " + "\n  ".join(faults))
        else:
            statuses.update(each.code for each in replies_in(lean.reply))
    told = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
    click.echo(f"{done:,} requests, replies {told}; {wrong:,} connections wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
