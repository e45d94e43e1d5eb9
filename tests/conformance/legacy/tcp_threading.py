"""`socketserver.ThreadingTCPServer`: a thread for each connection."""

import socket
import socketserver

from common import HOST, Copy, main, socketserver_copy


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 64
    allow_reuse_address = True
    copy = 0

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
