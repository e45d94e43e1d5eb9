"""`http.server.ThreadingHTTPServer`: a page that says which copy made it."""

import http.server
import socket

from common import HOST, Copy, main, socketserver_copy


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64
    copy = 0

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:  # the name is http.server's
        page = f"{self.server.copy} {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(page)


def open_copy(index: int, port: int) -> Copy:
    server = Server((HOST, port), Handler)
    server.copy = index
    return socketserver_copy(server)


if __name__ == "__main__":
    main(open_copy)
