"""`http.server` over TLS: its listener is wrapped, as the recipes say."""

import socket
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from common import HOST, Copy, main, socketserver_copy


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    copy = 0

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:  # the name is http.server's
        page = f"{self.server.copy} {self.path}".encode()
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(page)


def open_copy(index: int, port: int) -> Copy:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    httpd = Server((HOST, port), Handler)
    httpd.copy = index
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    return socketserver_copy(httpd)


if __name__ == "__main__":
    main(open_copy)
