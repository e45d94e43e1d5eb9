"""The servers that are loaded: glb's, gevent's own, and gevent's racing for one socket.

A worker of this module serves a `Want`, and counts what its clones accept. Each reply names its
clone, as ``<clone>/<clones>``, or ``<name>.<clone>`` if the server has a name: a stream's before
the line that it echoes, an HTTP reply's in the header ``X-Glb-Clone``. Nothing there is
monkey-patched, so `time.sleep` blocks the hub.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import gevent.pywsgi
import gevent.server
from gevent import socket

import glb.pywsgi
import glb.server

Handler = Callable[..., Any]

ANY_PORT: Final = ("127.0.0.1", 0)

#: A roll waits for handlers that are at work, and theirs is short here.
ROLL_MAX_SECONDS: Final = 10


def echo(label: bytes) -> Callable[[Any, object], None]:
    """Return a stream's handler that answers each line by itself, after *label*."""

    def handle(sock: Any, _peer: object) -> None:
        rest = b""
        try:
            while data := sock.recv(1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                if lines:
                    sock.sendall(b"".join(b"%b %b\n" % (label, line) for line in lines))
        except OSError:
            pass  # the client has left, which churn.py's are asked to

    return handle


def page(label: bytes) -> Callable[[Mapping[str, Any], Handler], Iterable[bytes]]:
    """Return a WSGI application; ``/block?ms=50`` blocks its hub for so long first."""

    def application(environ: Mapping[str, Any], start_response: Handler) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/block":
            time.sleep(int(environ["QUERY_STRING"].removeprefix("ms=")) / 1000)
        body = b"%b\n" % label
        headers = [("X-Glb-Clone", label.decode()), ("Content-Length", str(len(body)))]
        start_response("200 OK", headers)
        return [body]

    return application


@dataclass(frozen=True)
class Want:
    """A server that is to be.

    Attributes:
        protocol: ``"stream"`` or ``"http"``.
        name: What its clones' names begin with, where there are several servers: ``glb.0``. The
            users that load it have it as their ``target``.
        server: One of `SERVERS`; ``None`` for glb's.
        clones: How many clones or racing servers.
        hubs, patience: As `glb.server.StreamServer` has them.
        roll_seconds: All clones get new handlers, one after another, each so many seconds.
    """

    protocol: str = "stream"
    name: str = ""
    server: str | None = None
    clones: int = 4
    hubs: int = 1
    patience: float | None = None
    roll_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.roll_seconds is not None and self.server not in {None, "glb"}:
            raise ValueError(f"gevent's own servers can't be rolled, got server {self.server!r}")

    def name_of(self, clone: int) -> str:
        return f"{self.name}.{clone}" if self.name else str(clone)

    def handler(self, clone: int) -> Handler:
        """Return the handler, or the application, of *clone*."""
        name = self.name_of(clone)
        label = name if self.name else f"{name}/{self.clones}"
        return {"stream": echo, "http": page}[self.protocol](label.encode())


class Balanced:
    """A server of glb's."""

    def __init__(self, want: Want) -> None:
        self._want: Final = want
        server: type[glb.server.StreamServer] = glb.server.StreamServer
        options: dict[str, Any] = {"hubs": want.hubs, "patience": want.patience}
        if want.protocol == "http":
            server, options["log"] = glb.pywsgi.WSGIServer, None
        self._server: Final = server(
            ANY_PORT, clones=want.clones, handler_factory=want.handler, **options
        )
        self._server.start()
        self.address: Final[Any] = self._server.address
        self._rolls = 0
        if want.roll_seconds is not None:
            # A server that can't be rolled ends, so that its clients fail.
            gevent.spawn(self._roll, want.roll_seconds).link_exception(lambda _: os._exit(1))

    def counts(self) -> dict[str, Any]:
        """Return how often all were rolled, and what each clone has accepted, by its name."""
        stats = self._server.clone_stats()
        accepted = {self._want.name_of(each.index): each.accepted for each in stats}
        return {"accepted": accepted, "rolls": self._rolls}

    def _roll(self, every: float) -> None:
        while True:
            gevent.sleep(every)
            with gevent.Timeout(ROLL_MAX_SECONDS):
                self._server.roll(handler_factory=self._want.handler)
            self._rolls += 1


class Racing:
    """Servers of gevent's own, on descriptors of one socket. One of them alone is plain gevent."""

    def __init__(self, want: Want) -> None:
        names = [want.name_of(clone) for clone in range(want.clones)]
        self._accepted: Final = dict.fromkeys(names, 0)
        with socket.socket() as listener:
            listener.bind(ANY_PORT)
            listener.listen(socket.SOMAXCONN)
            self.address: Final = listener.getsockname()
            for clone, name in enumerate(names):
                handler, sock = want.handler(clone), listener.dup()
                server: Any = gevent.server.StreamServer(sock, handler)
                if want.protocol == "http":
                    server = gevent.pywsgi.WSGIServer(sock, handler, log=None)
                server.do_handle = functools.partial(self._count, name, server.do_handle)
                server.start()

    def counts(self) -> dict[str, Any]:
        return {"accepted": self._accepted, "rolls": 0}

    def _count(self, name: str, handle: Handler, *connection: Any) -> None:
        self._accepted[name] += 1
        handle(*connection)


SERVERS: Final[Mapping[str, Callable[[Want], Balanced | Racing]]] = {
    "glb": Balanced,
    "gevent": lambda want: Racing(dataclasses.replace(want, clones=1)),
    "racing": Racing,
}


def serve(**options: Any) -> str:
    """Start the server of a `Want`, and return its URL."""
    # Ctrl-C in a terminal is locust's, which still asks for the counts then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    want = Want(**options)
    server = SERVERS[want.server or "glb"](want)
    COMMANDS["counts"] = server.counts
    host, port = server.address
    return f"{'http' if want.protocol == 'http' else 'tcp'}://{host}:{port}"


COMMANDS: Final[dict[str, Callable[..., Any]]] = {"serve": serve}
