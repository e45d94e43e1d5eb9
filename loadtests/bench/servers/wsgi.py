"""One WSGI application, on gevent's server, glb's, and gunicorn's gevent worker.

Each server is imported where it is started: gunicorn's worker is the one to patch first.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

from .job import BACKLOG, REPLY, Job, announce


def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(REPLY)))]
    start_response("200 OK", headers)
    return [REPLY]


def on_gevent(_job: Job, _number: int) -> None:
    from gevent.pywsgi import WSGIServer

    server = WSGIServer(("127.0.0.1", 0), application, backlog=BACKLOG, log=None)
    server.start()
    announce(server.server_port)
    server.serve_forever()


def on_glb(_job: Job, number: int) -> None:
    from glb.pywsgi import WSGIServer

    server = WSGIServer(("127.0.0.1", 0), application, backlog=BACKLOG, log=None, clones=number)
    server.start()
    announce(server.server_port)
    server.serve_forever()


def on_gunicorn(_job: Job, _number: int) -> None:
    import gunicorn.config
    from gunicorn.app import wsgiapp

    # gunicorn doesn't tell its port, so it is given its listener.
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.set_inheritable(True)
    announce(listener.getsockname()[1])
    options = f"-k gevent -w 1 -b fd://{listener.detach()} --backlog {BACKLOG} --log-level warning"
    sys.argv = ["gunicorn", *options.split(), f"{__name__}:application"]
    if hasattr(gunicorn.config, "ControlSocketDisable"):  # a thread in the arbiter, since 25
        sys.argv.insert(1, "--no-control-socket")
    wsgiapp.run()
