"""What is served: its replies have the generation of the process, and the clone.

A process fails as the file ``fate`` of its directory says, if there is one.
"""

from __future__ import annotations

import os
import pathlib
import signal
import time
from typing import Any, Final

import gevent

import glb
from loadtests.lossless.words import reply

__all__ = ["application", "handle"]

#: How long a handler is at work, in seconds.
SECONDS: Final = float(os.environ.get("LOADTEST_SECONDS", "0.02"))

#: How many processes came before this one. The next one inherits the environment.
GENERATION: Final = int(os.environ.get("LOADTEST_GENERATION", "-1")) + 1
os.environ["LOADTEST_GENERATION"] = str(GENERATION)


def _meet(fate: str) -> None:
    if fate == "crashes":
        raise RuntimeError("a fault in the new version")
    if fate == "exits":
        os._exit(0)
    if fate == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "hangs":
        time.sleep(3600)


_fate = pathlib.Path("fate")
if _fate.exists():
    _meet(_fate.read_text())


def handle(sock: Any, _peer: Any) -> None:
    try:
        if sock.recv(100):
            gevent.sleep(SECONDS)
            sock.sendall(reply(GENERATION, glb.current_clone()))
    except OSError:
        pass  # the client has reset it, which is its affair


def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    gevent.sleep(SECONDS)
    body = reply(GENERATION, environ.get("glb.clone"))
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
