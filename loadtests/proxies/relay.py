"""The connections between a proxy and the server, recorded.

Each has an address of its own on loopback, by which the application tells them apart.
"""

from __future__ import annotations

import contextlib
import io
import socket as native
import struct
from dataclasses import dataclass, field
from typing import Any, Final

import gevent
from gevent.pool import Pool
from gevent.server import StreamServer
from gevent.socket import SHUT_WR, create_connection

__all__ = ["Line", "Relay"]

#: A server that has no client left on a connection closes it by then.
CLOSE_SECONDS: Final = 20.0


@dataclass
class Line:
    """One connection.

    Attributes:
        sent: What the proxy has sent.
        answered: What the server has.
        ended_by: Which of them has ended it first: ``"proxy"``, ``"proxy's reset"``, or the
            server in the same words.
        is_closed: Whether the server has, in time.
    """

    sent: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)
    ended_by: str = ""
    is_closed: bool = False

    def file(self) -> io.BytesIO:
        """Return what the proxy has sent until now, to read."""
        return io.BytesIO(bytes(self.sent))


class Relay:
    """Passes on what a proxy and a server say, and keeps it.

    Args:
        number: Its own, of its addresses.
        port: The server's.
    """

    def __init__(self, number: int, port: int) -> None:
        self._number: Final = number
        self._target: Final = ("127.0.0.1", port)
        #: By the addresses from which the server sees them.
        self.lines: Final[dict[str, Line]] = {}
        # A pool, so that its end can be waited for.
        self._server: Final = StreamServer(
            ("127.0.0.1", 0), self._handle, backlog=1024, spawn=Pool()
        )
        self._server.start()
        self.port: Final[int] = self._server.server_port

    def end(self) -> None:
        """Return when all connections are closed; the proxy has ended before."""
        self._server.stop(timeout=2 * CLOSE_SECONDS)

    def _handle(self, proxy: Any, _peer: object) -> None:
        count = len(self.lines) + 1
        address = f"127.{self._number}.{count >> 8}.{count & 255}"
        line = self.lines[address] = Line()
        server = create_connection(self._target, source_address=(address, 0))
        for each in (proxy, server):
            each.setsockopt(native.IPPROTO_TCP, native.TCP_NODELAY, 1)
        back = gevent.spawn(self._pass, line, server, proxy, line.answered, "server")
        self._pass(line, proxy, server, line.sent, "proxy")
        with gevent.Timeout(CLOSE_SECONDS, False):
            back.join()
            line.is_closed = True
        back.kill()
        server.close()
        proxy.close()

    def _pass(self, line: Line, source: Any, to: Any, record: bytearray, name: str) -> None:
        while True:
            try:
                data = source.recv(65536)
            except OSError:
                # The other side is to see it as it would without us.
                line.ended_by = line.ended_by or f"{name}'s reset"
                for each in (source, to):
                    _reset(each)
                return
            if not data:
                line.ended_by = line.ended_by or name
                with contextlib.suppress(OSError):
                    to.shutdown(SHUT_WR)
                return
            record += data
            try:
                to.sendall(data)
            except OSError:
                return  # what it has said before it left is read by the other direction


def _reset(sock: Any) -> None:
    with contextlib.suppress(OSError):
        sock.setsockopt(native.SOL_SOCKET, native.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
