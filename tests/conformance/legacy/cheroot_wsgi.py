"""cheroot's WSGI server, which has an argument for sharing a given port."""

from collections.abc import Callable, Iterable
from typing import Any

from cheroot import wsgi
from common import HOST, Copy, main


def application_of(copy: int) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{copy} {environ['PATH_INFO']}".encode()]

    return application


def open_copy(index: int, port: int) -> Copy:
    server = wsgi.Server(
        (HOST, port), application_of(index), numthreads=3, request_queue_size=64, reuse_port=True
    )
    server.prepare()
    return Copy(port, server.serve, server.stop)


if __name__ == "__main__":
    main(open_copy)
