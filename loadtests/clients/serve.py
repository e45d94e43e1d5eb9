"""The servers' process: ``python -m loadtests.clients.serve SERVER HUBS APPLICATION...``.

It serves each application on a port of its own, and prints the ports. When its standard input ends
it prints what the applications saw, as JSON. Only `loadtests.clients` starts it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any, Final
from wsgiref.validate import validator

import gevent
import gevent.pywsgi
from gevent import get_hub, socket

import glb.pywsgi

LOCAL: Final = ("127.0.0.1", 0)

#: Of the environment, beside the fields of the request.
KEYS: Final = {
    *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "CONTENT_TYPE"),
    *("CONTENT_LENGTH", "REMOTE_ADDR", "SERVER_PROTOCOL", "wsgi.input_terminated"),
}


def describe(method: str, read: Callable[[int], bytes]) -> str:
    """Read a body, and return the body of the reply."""
    data = b"".join(iter(lambda: read(65536), b""))
    return f"{method.replace('HEAD', 'GET')} {len(data)} {hashlib.sha256(data).hexdigest()}\n"


def plain() -> Any:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = describe(environ["REQUEST_METHOD"], environ["wsgi.input"].read).encode()
        start_response("200 OK", [("Content-Type", "a/b"), ("Content-Length", str(len(body)))])
        return [body]

    return application


def flask() -> Any:
    from flask import Flask, request  # noqa: PLC0415  # may not be installed

    application = Flask("clients")

    @application.route("/<path:_path>", methods=["GET", "POST"])
    def reply(_path: str) -> str:
        return describe(request.method, request.stream.read)

    return application


def django() -> Any:
    from django.conf import settings  # noqa: PLC0415  # may not be installed
    from django.core.wsgi import get_wsgi_application  # noqa: PLC0415
    from django.http import HttpResponse  # noqa: PLC0415
    from django.urls import re_path  # noqa: PLC0415

    # Django's own `read` gives what a Content-Length says: of a chunked body nothing.
    def reply(request: Any) -> Any:
        return HttpResponse(describe(request.method, request.environ["wsgi.input"].read))

    middleware = ["django.middleware.common.CommonMiddleware"]
    settings.configure(
        ROOT_URLCONF=(re_path("", reply),), ALLOWED_HOSTS=["*"], MIDDLEWARE=middleware
    )
    return get_wsgi_application()


def falcon() -> Any:
    import falcon  # noqa: PLC0415  # may not be installed

    def reply(request: Any, response: Any) -> None:
        response.text = describe(request.method, request.stream.read)

    application = falcon.App()
    application.add_sink(reply)
    return application


def bottle() -> Any:
    import bottle  # noqa: PLC0415  # may not be installed

    application = bottle.Bottle()

    # Bottle's own `body` undoes the chunks once more, which a server has undone already.
    @application.route("/<_path:path>", method=["GET", "POST"])
    def reply(_path: str) -> str:
        return describe(bottle.request.method, bottle.request.environ["wsgi.input"].read)

    return application


APPLICATIONS: Final = {each.__name__: each for each in (plain, flask, django, falcon, bottle)}


def recorded(application: Any, calls: list[tuple[str, str, str]]) -> Any:
    """Return *application*, whose calls are added: path's first part, client's port, environ."""

    def called(environ: dict[str, Any], start_response: Any) -> Any:
        seen = {name: environ[name] for name in environ if name in KEYS or name[:5] == "HTTP_"}
        seen["HTTP_HOST"] = seen.get("HTTP_HOST", "").partition(":")[0]
        client, call = environ["PATH_INFO"].split("/")[1], json.dumps(seen, sort_keys=True)
        calls.append((client, environ["REMOTE_PORT"], call))  # one step: hubs have threads
        return application(environ, start_response)

    return called


class GeventHandler(gevent.pywsgi.WSGIHandler):
    """gevent's, without the bodies that frameworks have for HEAD and leave to the server.

    gevent sends them; clients take them for the beginning of the next reply (RFC 9110, 9.3.2).
    """

    def write(self, data: bytes) -> None:
        super().write(b"" if self.command == "HEAD" else data)


class HooksHandler(glb.pywsgi.WSGIHandler):
    """Overrides a method of gevent's, so that requests are read by the other loop."""

    def get_environ(self) -> dict[str, Any]:
        return super().get_environ()


HANDLERS: Final = {
    "gevent": GeventHandler,
    "glb": glb.pywsgi.WSGIHandler,
    "glb by hooks": HooksHandler,
}


def main(server: str, hubs: str, *names: str) -> None:
    calls: dict[str, list[tuple[str, str, str]]] = {name: [] for name in names}
    servers: list[Any] = []
    for name in names:
        checked = validator(recorded(APPLICATIONS[name](), calls[name]))
        options: dict[str, Any] = {"log": None, "handler_class": HANDLERS[server]}
        if server == "gevent":
            started = gevent.pywsgi.WSGIServer(LOCAL, checked, **options)
            started.init_socket()
            # For its connections too: else clients that don't acknowledge at once wait 40 ms.
            started.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            started = glb.pywsgi.WSGIServer(LOCAL, checked, clones=4, hubs=int(hubs), **options)
        started.start()
        servers.append(started)
    print(json.dumps([each.address[1] for each in servers]), flush=True)
    get_hub().threadpool.apply(sys.stdin.read)  # the hub serves meanwhile
    for started in servers:
        started.stop(5)
    print(json.dumps(calls))


if __name__ == "__main__":
    main(*sys.argv[1:])
