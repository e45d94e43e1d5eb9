"""`wsgiref.simple_server.make_server` with a server class that shares its port."""

import socket
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIServer, make_server

from common import HOST, Copy, main, socketserver_copy


class Server(WSGIServer):
    request_queue_size = 64

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


def application_of(copy: int) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{copy} {environ['PATH_INFO']}".encode()]

    return application


def open_copy(index: int, port: int) -> Copy:
    return socketserver_copy(make_server(HOST, port, application_of(index), server_class=Server))


if __name__ == "__main__":
    main(open_copy)
