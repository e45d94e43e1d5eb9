"""``while True: accept()``, and a thread for each connection."""

import socket
import threading

from common import HOST, Copy, main


def answer(conn: socket.socket, copy: int) -> None:
    with conn, conn.makefile("rb") as lines:
        conn.sendall(b"%d %s" % (copy, lines.readline()))


def open_copy(index: int, port: int) -> Copy:
    listener = socket.create_server((HOST, port), reuse_port=True)

    def serve() -> None:
        threads: list[threading.Thread] = []
        while True:
            try:
                conn, _peer = listener.accept()
            except OSError:  # it was shut down
                break
            thread = threading.Thread(target=answer, args=(conn, index))
            thread.start()
            threads = [each for each in threads if each.is_alive()] + [thread]
        for thread in threads:
            thread.join()

    def stop() -> None:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()

    return Copy(listener.getsockname()[1], serve, stop)


if __name__ == "__main__":
    main(open_copy)
