"""`socketserver.TCPServer`: one connection at a time; its class says that it shares its port."""

import socket
import socketserver
import sys

from common import HOST, Copy, main, socketserver_copy


class Server(socketserver.TCPServer):
    allow_reuse_port = True
    copy = 0

    if sys.version_info < (3, 11):  # which doesn't know ``allow_reuse_port`` yet

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            super().server_bind()


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        self.wfile.write(b"%d %s" % (self.server.copy, self.rfile.readline()))


def open_copy(index: int, port: int) -> Copy:
    server = Server((HOST, port), Handler)
    server.copy = index
    return socketserver_copy(server)


if __name__ == "__main__":
    main(open_copy)
