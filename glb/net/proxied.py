"""The header of the PROXY protocol, read from a connection before anything else is.

What it said of a connection is kept for as long as the connection is: see `header_of`.
"""

from __future__ import annotations

import _socket
from typing import Any, Final
from weakref import WeakKeyDictionary

from gevent import Timeout

from ..model.proxy_header import HeaderError, HeaderReader, ProxyHeader, Version

__all__ = [
    "HEADER_SECONDS",
    "LateHeaderError",
    "hand_header_on",
    "header_of",
    "read_header",
    "remember_header",
]

#: A balancer sends it with its first packet; the specification asks for 3 s and more, in case that
#: is lost.
HEADER_SECONDS: Final = 3.0

_PEEKED_BYTES: Final = 4096

_headers: Final[WeakKeyDictionary[Any, ProxyHeader]] = WeakKeyDictionary()


class LateHeaderError(HeaderError):
    """It has not come in time."""


def read_header(sock: Any, version: Version, seconds: float = HEADER_SECONDS) -> ProxyHeader:
    """Return the header at the beginning of a connection. What is behind it stays to be read.

    Args:
        sock: A cooperative socket, of which nothing was read yet.
        version: Which may come.

    Raises:
        HeaderError: There is none, or not within *seconds*.
        OSError: As recv(2).

    Switches:
        While it isn't there.
    """
    reader = HeaderReader(version)
    late = LateHeaderError(f"no header of the PROXY protocol within {seconds:g} s")
    with Timeout(seconds, late):
        while reader.wanted:
            peeked = sock.recv(_PEEKED_BYTES, _socket.MSG_PEEK)
            reader.feed(sock.recv(reader.count(peeked)) if peeked else b"")
    assert reader.header is not None, "no more is wanted"
    return reader.header


def remember_header(sock: Any, header: ProxyHeader) -> None:
    """Keep what was said of *sock*'s connection for `header_of`."""
    _headers[sock] = header


def header_of(sock: Any) -> ProxyHeader | None:
    """Return what a balancer said of *sock*'s connection; ``None`` if nothing was read of it.

    Args:
        sock: What the handler was called with.
    """
    return _headers.get(sock)


def hand_header_on(sock: Any, secured: Any) -> None:
    """Have what was said of *sock*'s connection be found by the TLS socket on it as well."""
    header = _headers.get(sock)
    if header is not None:
        _headers[secured] = header
