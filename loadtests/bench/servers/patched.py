"""Programs of the standard library that were written for threads, under a monkey patch.

Each makes *number* copies of its server, in a thread each, on one address: with more than one,
by SO_REUSEPORT. The last argument says whose patch it is, or which part of it; it comes before
everything else is imported.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from .job import BACKLOG, REPLY, Job, announce, take_orders

#: Whose patch: gevent's alone; glb's, without its servers; all of glb's.
GEVENT: Final = "gevent"
GLB_SOCKETS: Final = "glb-sockets"
GLB: Final = "glb"

HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def _patch(how: str) -> None:
    if how == GEVENT:
        import gevent.monkey

        gevent.monkey.patch_all()
    else:
        import glb.monkey

        glb.monkey.patch_all(servers=how == GLB)


def _run_copies(job: Job, number: int, run: Callable[[Any, bytes], None]) -> None:
    """Listen *number* times on one port, and *run* each listener in a thread, with its reply."""
    import socket
    import threading

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


def threads(job: Job, number: int, how: str) -> None:
    """Run a loop that accepts, and starts a thread for each connection."""
    _patch(how)
    import threading

    def serve(connection: Any, reply: bytes) -> None:
        with connection:
            connection.sendall(reply)

    def run(listener: Any, reply: bytes) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, reply), daemon=True).start()

    _run_copies(job, number, run)


def socketservers(job: Job, number: int, how: str) -> None:
    """Run `socketserver.ThreadingTCPServer`."""
    _patch(how)
    import socketserver

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    def run(listener: Any, reply: bytes) -> None:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(reply)

        _serve(Server(("127.0.0.1", 0), Handler, False), listener)

    _run_copies(job, number, run)


def http(job: Job, number: int, how: str) -> None:
    """Run `http.server.ThreadingHTTPServer`."""
    _patch(how)
    import http.server

    def run(listener: Any, reply: bytes) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # the standard library's
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_args: Any) -> None:
                pass

        _serve(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, False), listener)

    _run_copies(job, number, run)


def _serve(server: Any, listener: Any) -> None:
    # One that was made without a listener of its own: all programs here have theirs alike.
    server.socket.close()
    server.socket = listener
    server.server_address = listener.getsockname()
    server.server_name, server.server_port = server.server_address
    server.serve_forever()


def selects(job: Job, number: int, how: str) -> None:
    """Run a loop on `select.select`, with a listener that doesn't block, and its connections."""
    _patch(how)
    import select

    def run(listener: Any, body: bytes) -> None:
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

    _run_copies(job, number, run)


def clients(_job: Job, _number: int, how: str) -> None:
    """Connect, send, receive, close: as often, and to the port, as each order says."""
    _patch(how)
    import socket
    import struct

    # Away without a trace: what waits for its end, minutes later, would slow the others' rounds.
    at_once = struct.pack("ii", 1, 0)

    def ask(port: str, count: str) -> int:
        answered = 0
        for _ in range(int(count)):
            with socket.create_connection(("127.0.0.1", int(port))) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                connection.sendall(REPLY)
                answered += connection.recv(100).endswith(REPLY)
        return answered

    take_orders(ask)
