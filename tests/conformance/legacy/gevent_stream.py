"""`gevent.server.StreamServer`: echoes one line."""

from common import HOST, Copy, main
from gevent import socket
from gevent.server import StreamServer


def handle(sock: socket.socket, _peer: object) -> None:
    with sock.makefile("rb") as lines:
        sock.sendall(lines.readline())


def open_copy(_index: int, port: int) -> Copy:
    server = StreamServer((HOST, port), handle)
    server.start()
    return Copy(server.server_port, server.serve_forever, server.stop)


if __name__ == "__main__":
    main(open_copy, copies=1)
