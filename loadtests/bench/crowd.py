"""Connections that have had a reply, and are idle now."""

from __future__ import annotations

import socket
import struct
from typing import Final

from .client import REQUEST, REQUEST_AND_CLOSE
from .servers.job import REPLY

#: SO_LINGER with which a socket is closed by a reset: neither side keeps a TIME_WAIT.
RESET: Final = struct.pack("ii", 1, 0)

#: How long a reply may take, in seconds.
REPLY_MAX_SECONDS: Final = 10


class Crowd:
    """*count* idle connections to *port*, in a ``with``; over HTTP, kept-alive ones.

    At the end, each HTTP connection asks once more: a server that had closed it in between was
    not measured with *count* of them.
    """

    def __init__(self, port: int, count: int, *, http: bool) -> None:
        self._port = port
        self._count = count
        self._is_http = http
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Crowd:
        try:
            for _ in range(self._count):
                connection = socket.create_connection(
                    ("127.0.0.1", self._port), timeout=REPLY_MAX_SECONDS
                )
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                self._connections.append(connection)
                if self._is_http:
                    _ask(connection, REQUEST)
                else:
                    _check(connection.recv(len(REPLY)) == REPLY)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        try:
            if self._is_http and kind is None:
                for connection in self._connections:
                    _ask(connection, REQUEST_AND_CLOSE)
        finally:
            self._close()

    def _close(self) -> None:
        for connection in self._connections:
            connection.close()


def _ask(connection: socket.socket, request: str) -> None:
    connection.sendall(request.encode())
    reply = b""
    while not reply.endswith(REPLY):
        piece = connection.recv(4096)
        _check(piece != b"")
        reply += piece
    _check(reply.startswith(b"HTTP/1.1 200 "))


def _check(is_well: bool) -> None:
    if not is_well:
        raise RuntimeError("an idle connection had no whole reply")
