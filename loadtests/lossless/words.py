"""What servers and clients say to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

__all__ = [
    "BYE",
    "GREETING",
    "KINDS",
    "NOTED",
    "SLOW",
    "STREAM_REQUEST",
    "http_request",
    "parse",
    "percentile",
    "reply",
]

#: What a client of a stream says.
STREAM_REQUEST: Final = b"who?\n"

#: The greeting of a stream's handler, which waits for its client to leave.
GREETING: Final = b"!"

BYE: Final = "Connection: close\r\n"

#: Requests of this path are slow, and those of paths that begin so are noted by the server.
SLOW: Final = "/slow"
NOTED: Final = "/noted/"

#: Servers that reply, as `servers` and as people call them.
KINDS: Final = {"reply": "StreamServer", "http": "WSGIServer"}


def http_request(path: str, *, is_last: bool) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: lossless\r\n{BYE if is_last else ''}\r\n".encode()


def reply(generation: int, clone: int | None) -> bytes:
    """Return what a handler says: of which generation it is, and whose clone's."""
    return b"%d %d\n" % (generation, -1 if clone is None else clone)


def parse(body: bytes) -> tuple[int, int] | None:
    """Return generation and clone of a reply; ``None`` if it isn't one, or not a whole one."""
    words = body.split()
    if len(words) != 2 or not body.endswith(b"\n"):
        return None
    try:
        return int(words[0]), int(words[1])
    except ValueError:
        return None


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return what so many percent of *values* are at most; ``None`` of none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
