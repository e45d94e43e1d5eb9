"""Connections that have had a reply, and are idle now."""

from __future__ import annotations

import socket
import struct
from typing import Final

from loadtests.frame.client import REQUEST, REQUEST_AND_CLOSE

from .servers.job import REPLY

#: SO_LINGER with which a socket is closed by a reset: neither side keeps a TIME_WAIT.
RESET: Final = struct.pack("ii", 1, 0)

#: Connections that are made, and asked, together: it would take minutes one after the other. Fewer
#: than the accept queue holds.
AT_A_TIME: Final = 64

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
            while (missing := self._count - len(self._connections)) > 0:
                some = [self._connect() for _ in range(min(missing, AT_A_TIME))]
                if self._is_http:
                    _ask(some, REQUEST)
                _listen(some, whole=not self._is_http)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: object, *_exc: object) -> None:
        try:
            if self._is_http and kind is None:
                for index in range(0, self._count, AT_A_TIME):
                    some = self._connections[index : index + AT_A_TIME]
                    _ask(some, REQUEST_AND_CLOSE)
                    _listen(some)
        finally:
            self._close()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port), REPLY_MAX_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._connections.append(connection)
        return connection

    def _close(self) -> None:
        for connection in self._connections:
            connection.close()


def _ask(connections: list[socket.socket], request: str) -> None:
    for connection in connections:
        try:
            connection.sendall(request.encode())
        except OSError as error:
            raise RuntimeError(f"an idle connection broke: {error}") from error


def _listen(connections: list[socket.socket], *, whole: bool = False) -> None:
    # The application's body ends each reply, and is all of it over TCP.
    for connection in connections:
        reply = b""
        while not reply.endswith(REPLY):
            try:
                piece = connection.recv(4096)
            except OSError as error:
                raise RuntimeError(f"an idle connection broke: {error}") from error
            if not piece:
                raise RuntimeError(f"an idle connection was closed after {reply!r}")
            reply += piece
        if not (reply == REPLY if whole else reply.startswith(b"HTTP/1.1 200 ")):
            raise RuntimeError(f"an idle connection had another reply: {reply!r}")
