"""waitress on a socket that it is given."""

import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any

import waitress
from common import HOST, Copy, main


def application_of(copy: int) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        page = f"{copy} {environ['PATH_INFO']}".encode()
        start_response("200 OK", [("Content-Length", str(len(page)))])
        return [page]

    return application


def open_copy(index: int, port: int) -> Copy:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((HOST, port))
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    server = waitress.create_server(application_of(index), sockets=[listener])

    def stop() -> None:
        server.task_dispatcher.shutdown()
        server.trigger.pull_trigger(server.close)  # in its own thread, whose loop ends so

    return Copy(int(server.effective_port), server.run, stop)


if __name__ == "__main__":
    main(open_copy)
