"""`select.poll` on the listener, twice a second a look at a flag."""

import select
import socket
import threading

from common import HOST, Copy, main


def open_copy(index: int, port: int) -> Copy:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((HOST, port))
    listener.listen(50)
    stopped = threading.Event()

    def serve() -> None:
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        while not stopped.is_set():
            for fd, _event in poller.poll(500):
                if fd == listener.fileno():
                    conn, _peer = listener.accept()
                    conn.sendall(b"%d %s" % (index, conn.recv(1000)))
                    conn.close()
        poller.unregister(listener)
        listener.close()

    return Copy(listener.getsockname()[1], serve, stopped.set)


if __name__ == "__main__":
    main(open_copy)
