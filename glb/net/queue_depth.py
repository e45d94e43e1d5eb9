"""How many connections wait in a listening socket's accept queue, and how many may.

The kernel is asked, so that it is exact also where several processes share the queue.

Source: tcp(7), TCP_INFO, whose tcpi_unacked and tcpi_sacked are the two for a listening socket;
sock_diag(7), UNIX_DIAG_RQLEN.
"""

from __future__ import annotations

import _socket
import os
import struct
from typing import Any, Final, NamedTuple

from .sockets import ask_sock_diag

__all__ = ["QueueDepth", "queue_depth"]

_TCP_LISTEN: Final = 10
_TCP_INFO: Final = struct.Struct("8x6I")  # up to tcpi_sacked

_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_UDIAG_SHOW_RQLEN: Final = 0x10
_UNIX_DIAG_RQLEN: Final = 4
_HEADER: Final = struct.Struct("=IHHII")
# Family, protocol, padding, states, inode, what to show, and a cookie that is none.
_REQUEST: Final = struct.Struct("=BBHIIIII")
_REPLY_BYTES: Final = 16
_ATTRIBUTE: Final = struct.Struct("=HH")


class QueueDepth(NamedTuple):
    """Connections in an accept queue: how many wait, and how many may."""

    depth: int
    limit: int


def queue_depth(sock: Any) -> QueueDepth | None:
    """Return how full the accept queue of *sock* is; ``None`` where the kernel doesn't tell.

    Args:
        sock: A listening socket: TCP or Unix.
    """
    try:
        if sock.family == getattr(_socket, "AF_UNIX", None):
            return _of_unix(sock)
        return _of_tcp(sock)
    except (OSError, struct.error):
        return None


def _of_tcp(sock: Any) -> QueueDepth | None:
    kind = getattr(_socket, "TCP_INFO", None)
    if kind is None:
        return None
    info = sock.getsockopt(_socket.IPPROTO_TCP, kind, _TCP_INFO.size)
    *_, depth, limit = _TCP_INFO.unpack(info)
    return QueueDepth(depth, limit) if info[0] == _TCP_LISTEN else None


def _of_unix(sock: Any) -> QueueDepth | None:
    inode = os.fstat(sock.fileno()).st_ino
    none = 0xFFFFFFFF
    request = _REQUEST.pack(_socket.AF_UNIX, 0, 0, none, inode, _UDIAG_SHOW_RQLEN, none, none)
    size = _HEADER.size + len(request)
    reply = ask_sock_diag(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request)
    length, kind, *_ = _HEADER.unpack_from(reply)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None  # an error
    place = _HEADER.size + _REPLY_BYTES
    while place < length:
        size, attribute = _ATTRIBUTE.unpack_from(reply, place)
        if attribute == _UNIX_DIAG_RQLEN:
            return QueueDepth(*struct.unpack_from("=II", reply, place + _ATTRIBUTE.size))
        place += max((size + 3) & ~3, _ATTRIBUTE.size)
    return None
