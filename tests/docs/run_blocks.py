"""Run blocks of pages in this process, each as a program of its own; JSON on stdin has them.

What serves for ever, or until a signal, starts here, is asked by a client, and stops.
Ports are any free one. A block whose framework isn't installed is passed over, and named.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import Any, Final

import gevent
from gevent import socket
from gevent.baseserver import BaseServer

import glb
import glb.cli.target
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

#: Of the groups of dependencies that not every environment has.
FRAMEWORKS: Final = {"flask", "flask_socketio", "django", "locust"}

HERE: Final = os.getcwd()
LOCAL: Final = ("127.0.0.1", 0)
PORTS: Final = re.compile(r"(?<=[ :])(?:8000|9000)(?=[\")])")


def ask(server: Any) -> None:
    """Be a client of *server*, and check that it serves."""
    request = b"hello\n"
    if isinstance(server, WSGIServer):
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    port = server.socket.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        reply = b""
        # A server that speaks first, and doesn't read, resets what it was sent.
        with contextlib.suppress(ConnectionResetError):
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(65536):
                reply += part
    assert reply, "no reply"
    assert request == b"hello\n" or reply.startswith(b"HTTP/1.1 200 "), reply


def serve_once(server: Any) -> None:
    """Take the place of `serve_forever`."""
    server.start()
    try:
        ask(server)
        failed = sum(each.failed for each in server.clone_stats())
        assert failed == 0, f"{failed} handlers have failed"
    finally:
        server.stop(timeout=10)


def serve_each_once(*servers: Any, **_options: Any) -> None:
    """Take the place of `glb.serve_until_signal`."""
    for each in servers:
        serve_once(each)


@contextlib.contextmanager
def passing_over(what: str) -> Iterator[None]:
    try:
        yield
    except (ModuleNotFoundError, glb.cli.target.TargetError) as error:
        missing = re.search(r"No module named '(\w+)", str(error))
        if missing is None or missing[1] not in FRAMEWORKS:
            raise
        print(f"{what}: passed over, needs {missing[1]}")


def run(page: str, line: int, text: str) -> None:
    where = f"{page}:{line}"
    program = PORTS.sub("0", text)
    with passing_over(where):
        exec(compile(program, where, "exec"), {"__name__": "__main__"})
    assert glb.registry.entries() == [], f"the program at {where} leaves an address open"


def serve(target: str, files: dict[str, str]) -> None:
    """Load *target* as ``glb serve`` does, and serve it to a client."""
    with tempfile.TemporaryDirectory() as folder, passing_over(target):
        for name, text in files.items():
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(text)
        os.chdir(folder)
        loaded = glb.cli.target.Target(target)
        handle = loaded.load()
        server: StreamServer
        if loaded.is_wsgi:
            server = WSGIServer(LOCAL, handle, log=None)
        else:
            server = StreamServer(LOCAL, handle)
        serve_once(server)
    sys.modules.pop(target.partition(":")[0], None)  # another page has one of that name
    os.chdir(HERE)


def main() -> int:
    """Run all, and return the exit status."""
    glb.serve_until_signal = serve_each_once
    BaseServer.serve_forever = serve_once  # type: ignore[method-assign,assignment]  # of this process
    status = 0
    with gevent.Timeout(50):
        for page, given in json.load(sys.stdin).items():
            try:
                for line, text in given["blocks"]:
                    run(page, line, text)
                for target in given["targets"]:
                    serve(target, given["files"])
            except Exception:
                print(f"{page}:", traceback.format_exc(), sep="\n", file=sys.stderr)
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
