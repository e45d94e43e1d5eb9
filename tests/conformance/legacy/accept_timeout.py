"""An accept loop that looks five times a second whether it is still wanted."""

import socket

from common import HOST, Copy, main


class Server:
    def __init__(self, copy: int, port: int) -> None:
        self.copy = copy
        self.running = True
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.listener.settimeout(0.2)
        self.listener.bind((HOST, port))
        self.listener.listen(50)

    def serve(self) -> None:
        while self.running:
            try:
                conn, _peer = self.listener.accept()
            except socket.timeout:  # noqa: UP041  # that was its name
                continue
            conn.settimeout(10)
            with conn:
                conn.sendall(b"%d %s" % (self.copy, conn.recv(1000)))
        self.listener.close()

    def stop(self) -> None:
        self.running = False


def open_copy(index: int, port: int) -> Copy:
    server = Server(index, port)
    return Copy(server.listener.getsockname()[1], server.serve, server.stop)


if __name__ == "__main__":
    main(open_copy)
