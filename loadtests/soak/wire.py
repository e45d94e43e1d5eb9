"""The wire: what clients ask, and what they must get, of streams and of HTTP.

A request has a number that no other has, so that a reply that is another's is seen, and a
connection that is served twice.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .plan import Kind

__all__ = ["CHUNK", "Reply", "Request", "Verb", "WireError", "read_reply", "reply"]

#: How much is read at once, in bytes.
CHUNK: Final = 65536


class Verb(enum.Enum):
    """What a handler is to do."""

    REPLY = "reply"
    #: Reply, after it has blocked its hub.
    BLOCK = "block"
    CRASH = "crash"


class WireError(Exception):
    """What came is not what was asked for."""


@dataclass(frozen=True)
class Request:
    """A request: its own *number*, and the *size* of its reply, in bytes."""

    verb: Verb
    number: int
    size: int = 0

    def encode(self, kind: Kind, *, is_last: bool = False) -> bytes:
        if kind is Kind.STREAM:
            return f"{self._words()}\n".encode()
        path = self._words().replace(" ", "/")
        end = "Connection: close\r\n" if is_last else ""
        return f"GET /{path} HTTP/1.1\r\nHost: soak\r\n{end}\r\n".encode()

    def half(self, kind: Kind) -> bytes:
        """Return what a client sends that says no more afterwards."""
        # Of HTTP not even a line: gevent takes one without its end for a request.
        return self.encode(kind)[: 8 if kind is Kind.STREAM else 3]

    def _words(self) -> str:
        return f"{self.verb.value} {self.number} {self.size}"

    @classmethod
    def decode(cls, text: str) -> Request:
        verb, number, size = text.replace("/", " ").split()
        return cls(Verb(verb), int(number), int(size))


@dataclass(frozen=True)
class Reply:
    """The author of a reply: the server's number, the clone, its handler's version."""

    server: int
    clone: int
    version: int
    #: Whether another request may follow.
    goes_on: bool = True


def _body(number: int, size: int) -> bytes:
    piece = b"%016x" % (number * 0x9E3779B97F4A7C15 % 2**64)
    return (piece * (size // len(piece) + 1))[:size]


def reply(request: Request, who: Reply) -> bytes:
    """Return the reply to *request*: a line that says whose it is and how long, and a body."""
    head = f"{request.number} {request.size} {who.server} {who.clone} {who.version}\n"
    return head.encode() + _body(request.number, request.size)


def read_reply(kind: Kind, request: Request, receive: Callable[[], bytes]) -> Reply:
    """Return the reply to *request*.

    Args:
        receive: Returns some bytes, none at the end.

    Raises:
        EOFError: There was none, and the connection has ended.
        WireError: It is another, or not a whole one.
    """
    data = bytearray()

    def more(what: str) -> None:
        chunk = receive()
        if not chunk and not data and what == first:
            raise EOFError
        if not chunk:
            raise WireError(f"the end in {what}, after {len(data)} bytes: {bytes(data[:80])!r}")
        data.extend(chunk)

    goes_on = True
    first = "a line" if kind is Kind.STREAM else "a head"
    if kind is Kind.HTTP:
        while b"\r\n\r\n" not in data:
            more("a head")
        end = data.index(b"\r\n\r\n")
        head = bytes(data[:end])
        if not head.startswith(b"HTTP/1.1 200 "):
            raise WireError(f"another status: {head[:80]!r}")
        goes_on = b"connection: close" not in head.lower()
        del data[: end + 4]
    while b"\n" not in data:
        more("a line")
    line, _, body = data.partition(b"\n")
    try:
        number, size, server, clone, version = map(int, line.split())
    except ValueError as error:
        raise WireError(f"another line: {bytes(line[:80])!r}") from error
    if (number, size) != (request.number, request.size):
        raise WireError(f"the reply of {number}, of {size} bytes, to {request}")
    data = body
    while len(data) < size:
        more("a body")
    if data != _body(number, size):
        raise WireError(f"another body for {request}")
    return Reply(server, clone, version, goes_on)
