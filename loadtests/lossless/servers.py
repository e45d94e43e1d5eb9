"""What server processes do: a server of glb's or gevent's, and what becomes of it."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final

import gevent
import gevent.pywsgi
import gevent.tests
from gevent.pool import Pool

import glb
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from .words import GREETING, NOTED, SLOW, reply

__all__ = ["COMMANDS"]

#: gevent brings a test certificate.
CERTIFICATES: Final = Path(gevent.tests.__file__ or "").parent

#: A pool that is there so that `stop` waits for its handlers.
POOL_SIZE: Final = 10_000


class Servers:
    """One server at a time, or two while one takes over from the other."""

    def __init__(self) -> None:
        self.server: Any = None
        self.generation = 0
        #: How long a handler is at work, in seconds; and one that is slow.
        self.seconds = self.slow_seconds = 0.0
        #: Slow requests that have begun, and when the last was answered.
        self.slow_begun = 0
        self.slow_ended_ns = 0
        #: The paths of those that are noted.
        self.noted: set[str] = set()
        self._make: Callable[[Any], Any]

    def open(
        self,
        kind: str,
        *,
        by: str = "glb",
        clones: int = 4,
        hubs: int = 1,
        is_tls: bool = False,
        reuse_port: bool = False,
        seconds: float = 0.0,
        slow_seconds: float = 0.0,
        descriptors: int | None = None,
    ) -> int:
        """Start a server, of *kind* "http" or a stream's: "reply", "hold", "echo". Return its port.

        With *descriptors* the process may open so many more.
        """
        self.generation, self.seconds, self.slow_seconds = 0, seconds, slow_seconds
        self.slow_begun = self.slow_ended_ns = 0
        options: dict[str, Any] = {}
        if is_tls:
            options["certfile"] = str(CERTIFICATES / "server.crt")
            options["keyfile"] = str(CERTIFICATES / "server.key")
        if by == "glb":
            options.update(clones=clones, hubs=hubs, reuse_port=reuse_port)
        elif by == "gevent with a pool":
            options["spawn"] = Pool(POOL_SIZE)
        server_class: Any = StreamServer
        if kind == "http":
            options["log"] = None
            server_class = WSGIServer if by == "glb" else gevent.pywsgi.WSGIServer

        def make(address: Any) -> Any:
            return server_class(address, self._handler(kind), **options)

        self._make = make
        self.server = make(("127.0.0.1", 0))
        self.server.start()
        if descriptors is not None:
            used = len(os.listdir("/proc/self/fd"))
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + descriptors, most))
        return int(self.server.server_port)

    def roll(self) -> dict[str, int]:
        """Give the server another handler; tell when that began and when it was over."""
        self.generation += 1
        kind = "http" if isinstance(self.server, WSGIServer) else "reply"
        began = monotonic_ns()
        self.server.roll(self._handler(kind))
        return {"began": began, "ended": monotonic_ns()}

    def resize(self, clones: int) -> list[list[int]]:
        """Have so many clones; return what each had accepted, before and after."""
        before = self.accepted()
        self.server.resize(clones)
        return [before, self.accepted()]

    def accepted(self) -> list[int]:
        """Return how many connections each clone was given."""
        return [each.accepted for each in self.server.clone_stats()]

    def take_over(self) -> dict[str, Any]:
        """Have another server start on the same address, and this one drain."""
        self.generation += 1
        old, address = self.server, self.server.address
        began = monotonic_ns()
        self.server = self._make(address)
        self.server.start()
        report = old.drain()
        return {"began": began, "ended": monotonic_ns(), **report._asdict()}

    def begun_of(self, paths: Sequence[str]) -> list[str]:
        """Return those of *paths* that an application was asked for."""
        return [path for path in paths if path in self.noted]

    def end(self, after: int, timeout: float) -> dict[str, Any]:
        """Stop, with a drain if it can, when so many slow requests have begun."""
        with gevent.Timeout(timeout):
            while self.slow_begun < after:
                gevent.sleep(0.001)
        began = monotonic_ns()
        if isinstance(self.server, StreamServer):
            report = self.server.stop(timeout, drain=True)
        else:
            report = self.server.stop(timeout)
        ended = monotonic_ns()
        return {
            "began": began,
            "ended": ended,
            "last_reply": self.slow_ended_ns,
            "report": None if report is None else report._asdict(),
        }

    def close(self) -> None:
        """Close it, as it is."""
        self.server.stop(0)

    # -- handlers -----------------------------------------------------------------------------

    def _handler(self, kind: str) -> Callable[..., Any]:
        generation = self.generation

        def answer(sock: Any, _peer: Any) -> None:
            try:
                if sock.recv(100):
                    gevent.sleep(self.seconds)
                    sock.sendall(reply(generation, glb.current_clone()))
            except OSError:
                pass  # the client has reset it, which is its affair

        def hold(sock: Any, _peer: Any) -> None:
            try:
                sock.sendall(GREETING)
                sock.recv(1)
            except OSError:
                pass  # as above

        def echo(sock: Any, _peer: Any) -> None:
            sock.sendall(sock.recv(1))

        def apply(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            path = environ["PATH_INFO"]
            if path.startswith(NOTED):
                self.noted.add(path)
            if path == SLOW:
                self.slow_begun += 1
                gevent.sleep(self.slow_seconds)
                self.slow_ended_ns = monotonic_ns()
            else:
                gevent.sleep(self.seconds)
            body = reply(generation, environ.get("glb.clone"))
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]

        kinds = {"reply": answer, "hold": hold, "echo": echo, "http": apply}
        return kinds[kind]


_servers: Final = Servers()

COMMANDS: Final[Mapping[str, Callable[..., Any]]] = {
    each.__name__: each
    for each in (
        _servers.open,
        _servers.roll,
        _servers.resize,
        _servers.accepted,
        _servers.take_over,
        _servers.begun_of,
        _servers.end,
        _servers.close,
    )
}
