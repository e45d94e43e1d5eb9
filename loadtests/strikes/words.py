"""What clients ask, and how they know a reply as theirs."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

__all__ = ["TOKEN_LENGTH", "Kind", "Mixed", "is_whole", "request", "tokens"]

_TOKEN: Final = re.compile(rb"<[0-9a-f]{16}>")
TOKEN_LENGTH: Final = 18

#: What a server says whose handler was struck.
_STRUCK: Final = (b"HTTP/1.1 400 ", b"HTTP/1.1 500 ")


class Kind(str, Enum):
    """What a server speaks."""

    STREAM = "stream"
    HTTP = "http"


class Mixed(Exception):  # noqa: N818  # a name for what was read, and no error of ours
    """A client has read what isn't its own."""


def request(kind: Kind, token: bytes) -> bytes:
    """Return what a client sends to have *token* back."""
    if kind is Kind.STREAM:
        return token
    return b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % token


def tokens(data: bytes) -> list[bytes]:
    """Return the tokens in *data*."""
    return _TOKEN.findall(data)


def is_whole(kind: Kind, token: bytes, data: bytes) -> bool:
    """Whether *data* is the whole reply to *token*; ``False`` if it may become so.

    Raises:
        Mixed: It is something else.
        ConnectionError: The handler was struck, and the server says so.
    """
    if any(each != token for each in tokens(data)):
        raise Mixed(f"{data!r} was read for {token!r}")
    if kind is Kind.STREAM:
        if not token.startswith(data):
            raise Mixed(f"{data!r} was read for {token!r}")
        return data == token
    if data.startswith(_STRUCK):
        raise ConnectionError(data[:12])
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    if not head.startswith(b"HTTP/1.1 200 ") or not token.startswith(body):
        raise Mixed(f"{data!r} was read for {token!r}")
    return body == token
