"""As much of a websocket as an echo needs, for both of its ends.

Source: RFC 6455.
"""

from __future__ import annotations

import base64
import hashlib
from typing import IO, Final

__all__ = ["CLOSE", "TEXT", "accept", "frame", "read_frame"]

TEXT: Final = 1
CLOSE: Final = 8

_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept(key: str) -> str:
    """Return the server's answer to a client's *key*."""
    return base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()


def frame(kind: int, data: bytes, mask: bytes = b"") -> bytes:
    """Return a whole message; a client's has a *mask* of four bytes."""
    bit = 0x80 if mask else 0
    size = len(data)
    if size < 126:
        head = bytes((0x80 | kind, bit | size))
    else:
        head = bytes((0x80 | kind, bit | 126)) + size.to_bytes(2, "big")
    return head + mask + _masked(data, mask)


def read_frame(file: IO[bytes]) -> tuple[int, bytes] | None:
    """Return the kind and the data of the next message; ``None`` at the end."""
    head = file.read(2)
    if len(head) < 2:
        return None
    size = head[1] & 0x7F
    if size == 126:
        size = int.from_bytes(file.read(2), "big")
    mask = file.read(4) if head[1] & 0x80 else b""
    return head[0] & 0x0F, _masked(file.read(size), mask)


def _masked(data: bytes, mask: bytes) -> bytes:
    if not mask:
        return data
    return bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
