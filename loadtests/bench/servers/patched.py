"""Programs of the standard library that were written for threads, under a monkey patch.

Each makes *number* copies of its server, in a thread each, on one address: with more than one,
by SO_REUSEPORT. The last argument says whose patch it is: "gevent" is gevent's alone, "glb-sockets"
glb's without its servers, and "glb" all of glb's. It comes before everything else is imported.
"""

from __future__ import annotations

import sys

if sys.argv[-1] == "gevent":
    import gevent.monkey

    gevent.monkey.patch_all()
else:
    import glb.monkey

    glb.monkey.patch_all(servers=sys.argv[-1] == "glb")

import http.server as httpd
import select
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from typing import Any, Final

from .job import BACKLOG, REPLY, Job, announce, take_orders

HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"

#: SO_LINGER of clients. They are away without a trace: what waits for its end, minutes later, would
#: slow the others' rounds.
AT_ONCE: Final = struct.pack("ii", 1, 0)


def _program(run: Callable[[Any, bytes], None]) -> Callable[..., None]:
    """Return the program that runs *run* for each copy, with its listener and its reply."""

    def program(job: Job, number: int, _how: str) -> None:
        port, copies = 0, []
        for index in range(number):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if number > 1:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(BACKLOG)
            port = listener.getsockname()[1]
            reply = REPLY if job is Job.REPLY else b"%d\n" % index
            copies.append(threading.Thread(target=run, args=(listener, reply)))
        for thread in copies:
            thread.start()
        announce(port)
        copies[0].join()

    return program


def _serve(server: Any, listener: Any, reply: bytes) -> None:
    # One that was made without a listener of its own: all programs here have theirs alike.
    server.socket.close()
    server.socket = listener
    server.server_address = listener.getsockname()
    server.server_name, server.server_port = server.server_address
    server.daemon_threads = True
    server.reply = reply
    server.serve_forever()


@_program
def threads(listener: Any, reply: bytes) -> None:
    """Accept in a loop, and start a thread for each connection."""

    def serve(connection: Any) -> None:
        with connection:
            connection.sendall(reply)

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


class StreamHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.server.reply)  # type: ignore[attr-defined]  # `_serve` sets it


class PageHandler(httpd.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # the standard library's
        reply = self.server.reply  # type: ignore[attr-defined]  # as above
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_args: Any) -> None:
        pass


@_program
def socketservers(listener: Any, reply: bytes) -> None:
    _serve(socketserver.ThreadingTCPServer(("127.0.0.1", 0), StreamHandler, False), listener, reply)


@_program
def http(listener: Any, reply: bytes) -> None:
    server = httpd.ThreadingHTTPServer(("127.0.0.1", 0), PageHandler, False)
    _serve(server, listener, reply)


@_program
def selects(listener: Any, body: bytes) -> None:
    """Loop on `select.select`, with a listener that doesn't block, and its connections."""
    reply = HEAD % len(body) + body
    listener.setblocking(False)
    connections: set[Any] = set()
    while True:
        readable, _, _ = select.select([listener, *connections], [], [])
        for sock in readable:
            if sock is listener:
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:
                    continue  # another copy's by now
                connection.setblocking(False)
                connections.add(connection)
            else:
                connections.discard(sock)
                with sock:
                    sock.recv(4096)
                    sock.sendall(reply)


def clients(_job: Job, _number: int, _how: str) -> None:
    """Connect, send, receive, close: as often, and to the port, as each order says."""

    def ask(port: str, count: str) -> int:
        answered = 0
        for _ in range(int(count)):
            with socket.create_connection(("127.0.0.1", int(port))) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
                connection.sendall(REPLY)
                answered += connection.recv(100).endswith(REPLY)
        return answered

    take_orders(ask)
