"""What a reply says, so that a client knows it as its own."""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["DIRECT", "digest", "reply_body"]

#: Before a target that a proxy passes on without buffers, where it can.
DIRECT: Final = "/direct"


def digest(body: bytes) -> str:
    """Return what tells *body* from another."""
    return f"{len(body)}-{hashlib.sha1(body).hexdigest()[:16]}"


def reply_body(token: str, read: str, size: int) -> bytes:
    """Return *size* bytes: the token, and the digest of what was *read*, again and again."""
    piece = f"<{token} {read}>\n".encode()
    return (piece * (size // len(piece) + 1))[:size]
