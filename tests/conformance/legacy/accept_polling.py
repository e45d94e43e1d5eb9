"""Nothing but trying: a non-blocking ``accept()``, and 5 ms of sleep when there is no client."""

import socket
import time

from common import HOST, Copy, main


class Server:
    def __init__(self, copy: int, port: int) -> None:
        self.copy = copy
        self.running = True
        self.listener = socket.create_server((HOST, port), reuse_port=True, backlog=100)
        self.listener.settimeout(0)

    def serve(self) -> None:
        while self.running:
            try:
                conn, _peer = self.listener.accept()
            except BlockingIOError:
                time.sleep(0.005)
                continue
            conn.setblocking(True)
            conn.sendall(b"%d %s" % (self.copy, conn.recv(1000)))
            conn.close()
        self.listener.close()

    def stop(self) -> None:
        self.running = False


def open_copy(index: int, port: int) -> Copy:
    server = Server(index, port)
    return Copy(server.listener.getsockname()[1], server.serve, server.stop)


if __name__ == "__main__":
    main(open_copy)
