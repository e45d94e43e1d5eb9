"""`select.select` on the listener, twice a second a look at a flag."""

import select
import socket
import threading

from common import HOST, Copy, main


def open_copy(index: int, port: int) -> Copy:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((HOST, port))
    listener.listen(50)
    stopped = threading.Event()

    def serve() -> None:
        while not stopped.is_set():
            readable, _, _ = select.select([listener], [], [], 0.5)
            if listener in readable:
                conn, _peer = listener.accept()
                conn.sendall(b"%d %s" % (index, conn.recv(1000)))
                conn.close()
        listener.close()

    return Copy(listener.getsockname()[1], serve, stopped.set)


if __name__ == "__main__":
    main(open_copy)
