"""`http.server.HTTPServer`, with the socket made by hand."""

import http.server
import socket

from common import HOST, Copy, main, socketserver_copy


def handler_of(copy: int) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is http.server's
            page = f"{copy} {self.path}".encode()
            self.send_response(200)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(page)

    return Handler


def open_copy(index: int, port: int) -> Copy:
    server = http.server.HTTPServer((HOST, port), handler_of(index), bind_and_activate=False)
    server.request_queue_size = 64
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.server_bind()
    server.server_activate()
    return socketserver_copy(server)


if __name__ == "__main__":
    main(open_copy)
