"""werkzeug's `make_server` on a listener that was made before: it copies the descriptor."""

import socket
from typing import Any

from common import HOST, Copy, main
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response


def application_of(copy: int) -> Any:
    @Request.application
    def application(request: Request) -> Response:
        return Response(f"{copy} {request.path}", headers={"Connection": "close"})

    return application


def open_copy(index: int, port: int) -> Copy:
    listener = socket.create_server((HOST, port), reuse_port=True)
    port = listener.getsockname()[1]
    server = make_server(HOST, port, application_of(index), threaded=True, fd=listener.fileno())

    def stop() -> None:
        server.shutdown()
        server.server_close()
        listener.close()

    return Copy(port, server.serve_forever, stop)


if __name__ == "__main__":
    main(open_copy)
