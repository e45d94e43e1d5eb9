"""Bottle with its own server, the one on `wsgiref`: each copy is a `Bottle` that runs."""

import queue
import socket
import threading
from wsgiref.simple_server import WSGIServer

import bottle
from common import HOST, Copy, main


def make_app(copy: int) -> bottle.Bottle:
    app = bottle.Bottle()

    @app.get("/<path:path>")
    def page(path: str) -> str:
        return f"{copy} /{path}"

    return app


def open_copy(index: int, port: int) -> Copy:
    opened: queue.Queue[WSGIServer] = queue.Queue()

    class Server(WSGIServer):
        request_queue_size = 64

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            super().server_bind()

        def server_activate(self) -> None:
            super().server_activate()
            opened.put(self)

    options = {"server": "wsgiref", "host": HOST, "port": port, "quiet": True}
    running = threading.Thread(
        target=make_app(index).run, kwargs={**options, "server_class": Server}
    )
    running.start()
    server = opened.get()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return Copy(server.server_port, running.join, stop)


if __name__ == "__main__":
    main(open_copy)
