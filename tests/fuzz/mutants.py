"""Requests that were tampered with."""

from __future__ import annotations

import random
from typing import Final

from .messages import KINDS, Kind, Maker

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

_WAYS: Final = ("insert", "replace", "remove", "repeat a line", "add a line", "splice", "cut")


def mutate(request: bytes, dice: random.Random) -> bytes:
    """Return *request* with a few changes."""
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        place, bit = dice.randrange(len(request) + 1), dice.choice(_BITS)
        lines, how = request.split(CRLF), dice.choice(_WAYS)
        if how == "repeat a line":
            lines.insert(dice.randrange(len(lines)), dice.choice(lines))
            request = CRLF.join(lines)
        elif how == "add a line":
            request = CRLF.join([lines[0], bit.removesuffix(CRLF), *lines[1:]])
        elif how == "splice":
            other = _one(dice)
            request = request[:place] + other[dice.randrange(len(other)) :]
        elif how == "cut":
            request = request[:place]
        else:
            end = place + {"insert": 0, "replace": 1, "remove": dice.randrange(1, 4)}[how]
            request = request[:place] + (b"" if how == "remove" else bit) + request[end:]
    return request


def make(dice: random.Random) -> list[bytes]:
    """Return the pieces in which a few requests come on a connection, mutated or not."""
    data = b""
    for _ in range(dice.randrange(1, PIPELINED_MAX + 1)):
        request = _one(dice)
        data += request if dice.random() < SOUND else mutate(request, dice)
    return Maker(dice).pieces(data)


def _one(dice: random.Random) -> bytes:
    made = Maker(dice, most=BODY_MAX).make(dice.choice(SENT))
    return made.head + made.tail
