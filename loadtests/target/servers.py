"""The servers that are loaded: glb's, gevent's own, and gevent's racing for one socket.

Each reply tells its clone as ``<clone>/<clones>``, or ``<name>.<clone>`` if the server has a name:
a stream's before the line that it echoes, an HTTP reply's in the header ``X-Glb-Clone``. Nothing
here is monkey-patched, so `time.sleep` blocks the hub.
"""

from __future__ import annotations

import dataclasses
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import gevent.pywsgi
import gevent.server
from gevent import socket

import glb.pywsgi
import glb.server

__all__ = ["PROTOCOLS", "SERVERS", "Plan", "Served", "serve"]

Handler = Callable[..., Any]

ANY_PORT: Final = ("127.0.0.1", 0)

#: A request may not hold up the server for longer, in milliseconds: longer than any patience,
#: and short enough that the server still ends in time.
MAX_BLOCK_MS: Final = 1000

PIECE_BYTES: Final = 1 << 16


def echo(label: bytes) -> Callable[[Any, object], None]:
    """Return a stream's handler that answers each line by itself, after *label*."""

    def handle(sock: Any, _peer: object) -> None:
        rest = b""
        try:
            while data := sock.recv(PIECE_BYTES):
                *lines, rest = (rest + data).split(b"\n")
                if lines:
                    sock.sendall(b"".join(b"%b %b\n" % (label, line) for line in lines))
        except OSError:
            pass  # the client has left, which churn.py's are asked to

    return handle


def page(label: bytes) -> Callable[[Mapping[str, Any], Handler], Iterable[bytes]]:
    """Return a WSGI application; ``/block?ms=50`` blocks its hub for so long first."""
    header = ("X-Glb-Clone", label.decode())

    def application(environ: Mapping[str, Any], start_response: Handler) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/block":
            asked = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"]))
            time.sleep(min(MAX_BLOCK_MS, max(0.0, float(asked.get("ms", 50)))) / 1000)
        body = b"%b\n" % label
        start_response("200 OK", [header, ("Content-Length", str(len(body)))])
        return [body]

    return application


@dataclass(frozen=True)
class Plan:
    """What a server is to be.

    Attributes:
        protocol: One of `PROTOCOLS`.
        name: What its clones' names begin with, if there is something to tell them from.
        clones: How many.
        hubs, patience: As `glb.server.StreamServer` has them.
    """

    protocol: str
    name: str | None
    clones: int
    hubs: int
    patience: float | None

    def name_of(self, clone: int) -> str:
        return str(clone) if self.name is None else f"{self.name}.{clone}"

    def handler(self, clone: int) -> Handler:
        """Return the handler, or the application, of *clone*."""
        name = self.name_of(clone)
        label = f"{name}/{self.clones}" if self.name is None else name
        return HANDLERS[self.protocol](label.encode())


class Served(ABC):
    """A server that runs."""

    @property
    @abstractmethod
    def address(self) -> tuple[str, int]: ...

    @abstractmethod
    def stats(self) -> list[dict[str, Any]]:
        """Return what each clone has done: ``name`` and ``accepted`` at least."""

    @abstractmethod
    def roll(self) -> None:
        """Give each clone a new handler, one after another."""


class Balanced(Served):
    """A server of glb's."""

    def __init__(self, plan: Plan) -> None:
        self._plan: Final = plan
        options: dict[str, Any] = {
            "clones": plan.clones,
            "hubs": plan.hubs,
            "patience": plan.patience,
            "handler_factory": plan.handler,
        }
        if plan.protocol == "http":
            self._server: glb.server.StreamServer = glb.pywsgi.WSGIServer(
                ANY_PORT, log=None, **options
            )
        else:
            self._server = glb.server.StreamServer(ANY_PORT, **options)
        self._server.start()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._server.address[:2]
        return host, port

    def stats(self) -> list[dict[str, Any]]:
        return [
            {"name": self._plan.name_of(each.index), **each._asdict()}
            for each in self._server.clone_stats()
        ]

    def roll(self) -> None:
        self._server.roll(handler_factory=self._plan.handler)


class Racing(Served):
    """Servers of gevent's own, on descriptors of one socket. One of them alone is plain gevent."""

    def __init__(self, plan: Plan) -> None:
        self._plan: Final = plan
        self._accepted: Final = [0] * plan.clones
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(ANY_PORT)
            listener.listen(socket.SOMAXCONN)
            self._address: Final[tuple[str, int]] = listener.getsockname()
            self._servers: Final = [
                self._start(listener.dup(), index) for index in range(plan.clones)
            ]

    def _start(self, listener: Any, index: int) -> gevent.server.StreamServer:
        handler = self._plan.handler(index)
        if self._plan.protocol == "http":
            server = gevent.pywsgi.WSGIServer(listener, handler, log=None)
        else:
            server = gevent.server.StreamServer(listener, handler)
        handle = server.do_handle

        def count(*connection: Any) -> None:
            self._accepted[index] += 1
            handle(*connection)

        server.do_handle = count
        server.start()
        return server

    @property
    def address(self) -> tuple[str, int]:
        return self._address

    def stats(self) -> list[dict[str, Any]]:
        return [
            {"name": self._plan.name_of(index), "accepted": accepted}
            for index, accepted in enumerate(self._accepted)
        ]

    def roll(self) -> None:
        raise NotImplementedError("gevent's own servers can't be rolled")


def alone(plan: Plan) -> Racing:
    return Racing(dataclasses.replace(plan, clones=1))


HANDLERS: Final[Mapping[str, Callable[[bytes], Handler]]] = {"stream": echo, "http": page}

PROTOCOLS: Final[Sequence[str]] = [*HANDLERS]

MAKERS: Final[Mapping[str, Callable[[Plan], Served]]] = {
    "glb": Balanced,
    "gevent": alone,
    "racing": Racing,
}

SERVERS: Final[Sequence[str]] = [*MAKERS]


def serve(server: str, plan: Plan) -> Served:
    """Return a server that has started, one of `SERVERS`."""
    return MAKERS[server](plan)
