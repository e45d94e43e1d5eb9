"""asyncio's servers; and one WSGI application, on gevent's server, glb's, and others.

Each has one worker. All connections of HTTP have TCP_NODELAY: without it, gevent's server, which
sends head and body apart, waits for acknowledgements that Linux delays.

Each is imported where it is started: gunicorn's worker is the one to patch first.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from .job import BACKLOG, REPLY, Job, announce, end_with_parent, run

#: Connections at a time for which uWSGI has room from the beginning.
UWSGI_CORES: Final = 2048

#: More connections than any load here keeps open: at so many, granian stops accepting.
GRANIAN_CONNECTIONS: Final = 20_000


async def _reply() -> None:
    import asyncio

    # A `Protocol`, not streams: a task and two buffers a connection less, and as honest.
    class Reply(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.write(REPLY)
            transport.close()

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Reply, "127.0.0.1", 0, backlog=BACKLOG)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def on_asyncio(_job: Job, _number: int) -> None:
    import asyncio

    asyncio.run(_reply())


def on_uvloop(_job: Job, _number: int) -> None:
    import uvloop

    uvloop.run(_reply())


def application(_environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(REPLY)))]
    start_response("200 OK", headers)
    return [REPLY]


def _listen() -> str:
    # For servers that don't tell their port.
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.set_inheritable(True)
    announce(listener.getsockname()[1])
    return f"fd://{listener.detach()}"


def on_gevent(_job: Job, _number: int) -> None:
    from gevent.pywsgi import WSGIServer

    server = WSGIServer(("127.0.0.1", 0), application, backlog=BACKLOG, log=None)
    server.init_socket()
    # What it accepts inherits it. glb's server does so by itself.
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    run(server)


def on_glb(_job: Job, number: int) -> None:
    from glb.pywsgi import WSGIServer

    run(WSGIServer(("127.0.0.1", 0), application, backlog=BACKLOG, log=None, clones=number))


def on_gunicorn(_job: Job, _number: int, worker: str) -> None:
    import gunicorn.config
    from gunicorn.app import wsgiapp

    options = f"-k {worker} -w 1 -b {_listen()} --backlog {BACKLOG} --log-level warning"
    sys.argv = ["gunicorn", *options.split(), f"{__name__}:application"]
    if hasattr(gunicorn.config, "ControlSocketDisable"):  # a thread in the arbiter, since 25
        sys.argv.insert(1, "--no-control-socket")
    wsgiapp.run()


def on_granian(_job: Job, _number: int) -> None:
    from granian.constants import HTTPModes, Interfaces, RuntimeModes
    from granian.server import Server

    # granian makes its listener itself, and doesn't tell its port. While this socket has one,
    # which others may have as well, the kernel doesn't give it away; only listeners get
    # connections.
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", 0))
    server = Server(
        str(holder.getsockname()[1]),
        port=holder.getsockname()[1],
        interface=Interfaces.WSGI,
        workers=1,
        blocking_threads=1,
        runtime_threads=1,
        runtime_mode=RuntimeModes.st,
        http=HTTPModes.http1,
        backlog=BACKLOG,
        backpressure=GRANIAN_CONNECTIONS,
        log_enabled=False,
    )
    server.serve(target_loader=_load_in_granian)


def _load_in_granian(port: str) -> Callable[..., Any]:
    end_with_parent()  # in its worker; the parent ends with the benchmark
    threading.Thread(target=_announce_when_up, args=(int(port),), daemon=True).start()
    return application


def _announce_when_up(port: int) -> None:
    while socket.socket().connect_ex(("127.0.0.1", port)):
        time.sleep(0.01)  # in a thread: it doesn't tell when it listens
    announce(port)


def on_uwsgi(_job: Job, _number: int) -> None:
    import pyuwsgi

    options = f"--http-socket {_listen()} --gevent {UWSGI_CORES} --tcp-nodelay"
    options += f" --disable-logging --module {__name__}:application"
    pyuwsgi.run(options.split())
