"""`gevent.pywsgi.WSGIServer` with a plain WSGI application."""

from collections.abc import Iterable
from typing import Any

from common import HOST, Copy, main
from gevent.pywsgi import WSGIServer


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode()]


def open_copy(_index: int, port: int) -> Copy:
    server = WSGIServer((HOST, port), application)
    server.start()
    return Copy(server.server_port, server.serve_forever, server.stop)


if __name__ == "__main__":
    main(open_copy, copies=1)
