"""The echo server of the `selectors` documentation: one thread, many connections, no blocking."""

import selectors
import socket

from common import HOST, Copy, main


class Server:
    def __init__(self, copy: int, port: int) -> None:
        self.copy = copy
        self.listener = socket.create_server((HOST, port), reuse_port=True)
        self.listener.setblocking(False)
        self.wake_up, self.woken = socket.socketpair()
        self.running = True

    def serve(self) -> None:
        with selectors.DefaultSelector() as self.selector:
            self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
            self.selector.register(self.woken, selectors.EVENT_READ, self.end)
            while self.running:
                for key, mask in self.selector.select():
                    key.data(key.fileobj, mask)
        for each in (self.listener, self.wake_up, self.woken):
            each.close()

    def accept(self, listener: socket.socket, _mask: int) -> None:
        conn, _peer = listener.accept()
        conn.setblocking(False)
        self.selector.register(conn, selectors.EVENT_READ, self.read)

    def read(self, conn: socket.socket, _mask: int) -> None:
        if line := conn.recv(1000):
            conn.send(b"%d %s" % (self.copy, line))
            conn.shutdown(socket.SHUT_WR)  # and then wait for the client's end
        else:
            self.selector.unregister(conn)
            conn.close()

    def end(self, _woken: socket.socket, _mask: int) -> None:
        self.running = False

    def stop(self) -> None:
        self.wake_up.send(b"x")


def open_copy(index: int, port: int) -> Copy:
    server = Server(index, port)
    return Copy(server.listener.getsockname()[1], server.serve, server.stop)


if __name__ == "__main__":
    main(open_copy)
