"""The administration's server: it shows a program's servers over HTTP.

Source: Kubernetes' probes (livez, readyz); Prometheus' exposition; HAProxy's and Envoy's admin
listeners; nginx's ``ngx_drain_connections``, which makes room for a new client.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import gevent
from gevent import getcurrent

from ..hubs.signals import ask
from ..hubs.threads import HubThread
from ..model.limits import check_seconds
from ..model.states import State
from ..net.sockets import bound_address, is_readable
from ..pywsgi import WSGIServer
from ..server import StreamServer
from .page import HEADERS, PAGE
from .pulse import LOOK_SECONDS
from .view import ServerView
from .watched import Watched

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing, from 3.11 on

__all__ = ["Admin"]

_READY: Final = {State.ACCEPTING, State.FULL}
_TEXT: Final = "text/plain; charset=utf-8"
_NO_METRICS: Final = "/metrics needs prometheus_client: pip install 'glb[metrics]'\n"

# A probe gets its answer at once. A client that keeps its connection for longer is no probe.
_CLIENT_SECONDS: Final = 10.0
_MOST_CLIENTS: Final = 100

_Reply = tuple[str, str, bytes]


class Admin:
    """Shows servers over HTTP. It has a thread of its own, and answers while all their hubs hang.

    - ``/``: the servers and their clones, live, for a browser.
    - ``/livez``: 200; 503 if every hub of the servers is stalled: restart the process.
    - ``/readyz``: 200 while each server is accepting or full, else 503: send no new clients.
    - ``/clones``: servers, hubs and clones, as JSON.
    - ``/metrics``: for Prometheus; needs ``pip install 'glb[metrics]'``.

    A hub that does not turn for *stall_limit* is logged, with its thread's stack, once until it
    turns again.

    It has a place for 100 clients. One more takes that of the client whose last request is longest
    ago, so that silent clients keep no probe waiting.

    There is no password and no TLS: bind it where only your own machines can connect.

    Args:
        servers: One server, or several: of `glb.server` or `glb.pywsgi`, started or not.
        address: As `glb.server.StreamServer` takes it: ``"127.0.0.1:9000"``, ``":9000"``,
            ``"unix:/run/admin.sock"``, ...
        stall_limit: Seconds.

    Raises:
        TypeError, ValueError: An argument has the wrong type or value.

    Example:
        >>> from glb.server import StreamServer
        >>> server = StreamServer(("127.0.0.1", 0), lambda sock, peer: None, clones=4)
        >>> with Admin(server, ("127.0.0.1", 0)) as admin:
        ...     server.start()
        ...     url = f"http://127.0.0.1:{admin.address[1]}/readyz"
        ...     server.stop()
    """

    def __init__(
        self,
        servers: StreamServer | Iterable[StreamServer],
        address: object,
        *,
        stall_limit: float = 10.0,
    ) -> None:
        check_seconds("stall_limit", stall_limit, may_be_none=False)
        given = [*servers] if isinstance(servers, Iterable) else [servers]
        for each in given:
            if not isinstance(each, StreamServer):
                raise TypeError(f"servers must be glb's servers, got {each!r}")
        if not given:
            raise ValueError("servers must be one server or more, got none")
        self._watched: Final = [Watched(each, stall_limit) for each in given]
        self._listener: Final = address
        self._thread: HubThread | None = None
        self._server: WSGIServer | None = None
        self._looking: Any = None
        self._metrics = _make_metrics(self._views)
        self._paths: Final[dict[str, Callable[[], _Reply]]] = {
            "/": self._page,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/clones": self._clones,
            "/metrics": self._metrics_page,
        }

    @property
    def address(self) -> Any:
        """The address really bound; ``None`` before `start` and after `stop`."""
        return None if self._server is None else self._server.address

    @property
    def url(self) -> str:
        """The URL of the page; ``""`` before `start` and after `stop`."""
        if self._server is None:
            return ""
        bound = bound_address(self._server.socket)
        return str(bound) if bound.port is None else f"http://{bound}"

    def start(self) -> Self:
        """Begin to answer. Twice is once.

        Raises:
            OSError: The address can't be bound. Nothing is left.

        Switches:
            Until the thread is there, for a millisecond.
        """
        if self._thread is None:
            thread = HubThread("glb admin").start()
            thread.at_exit = self._end
            self._thread = thread
            try:
                ask(thread.send, self._begin)(None)
            except BaseException:
                self.stop()
                raise
        return self

    def stop(self) -> None:
        """Answer no more, and free the address. Twice is harmless.

        Switches:
            Until the thread has ended.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.send(lambda: gevent.spawn(self._end, thread))
            thread.wait(None)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- in its thread -------------------------------------------------------------------------

    def _begin(self) -> None:
        server = _Server(
            self._listener,
            self._reply,
            log=None,
            clones=1,
            first_byte_timeout=_CLIENT_SECONDS,
            send_timeout=_CLIENT_SECONDS,
        )
        server.start()
        self._server = server
        self._looking = gevent.spawn(self._look)

    def _end(self, thread: HubThread | None = None) -> None:
        server, self._server = self._server, None
        if server is not None:
            self._looking.kill()
            server.stop(0)
        thread = thread or self._thread
        if thread is not None:
            thread.end()

    def _look(self) -> None:
        while True:
            for each in self._watched:
                each.look()
            gevent.sleep(LOOK_SECONDS)

    def _views(self) -> list[ServerView]:
        return [each.view() for each in self._watched]

    # -- what it replies -------------------------------------------------------------------------

    def _reply(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["glb.clone"].server.has_asked()
        path = environ["PATH_INFO"]
        make = self._paths.get(path)
        headers = []
        if make is None:
            status, kind = "404 Not Found", _TEXT
            body = "".join(f"{each}\n" for each in self._paths).encode()
        elif environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            status, kind, body = "405 Method Not Allowed", _TEXT, b"GET or HEAD\n"
            headers.append(("Allow", "GET, HEAD"))
        else:
            status, kind, body = make()
        headers += [("Content-Type", kind), ("Content-Length", str(len(body))), *HEADERS]
        headers.append(("Cache-Control", "no-store"))
        start_response(status, headers)
        return [body]

    def _page(self) -> _Reply:
        return "200 OK", "text/html; charset=utf-8", PAGE

    def _livez(self) -> _Reply:
        pulses = [(each, pulse) for each in self._watched for pulse in each.pulses()]
        stalled = [(each, pulse) for each, pulse in pulses if pulse.is_stalled]
        lines = [
            f"{pulse.name} has not turned for {pulse.lag:.1f} s: {pulse.place or 'unknown'}\n"
            for _, pulse in stalled
        ]
        is_dead = bool(pulses) and len(stalled) == len(pulses)
        status = "503 Service Unavailable" if is_dead else "200 OK"
        return status, _TEXT, "".join(["stalled\n" if is_dead else "ok\n", *lines]).encode()

    def _readyz(self) -> _Reply:
        views = self._views()
        is_ready = all(each.state in _READY for each in views)
        status = "200 OK" if is_ready else "503 Service Unavailable"
        lines = [f"{each.address}: {each.state.value}\n" for each in views]
        return status, _TEXT, "".join(lines).encode()

    def _clones(self) -> _Reply:
        found = {"servers": [each.as_json() for each in self._views()]}
        return "200 OK", "application/json", json.dumps(found).encode() + b"\n"

    def _metrics_page(self) -> _Reply:
        if self._metrics is None:
            return "501 Not Implemented", _TEXT, _NO_METRICS.encode()
        return "200 OK", self._metrics.content_type, self._metrics.text()


class _Server(WSGIServer):
    """Closes the client whose last request is longest ago, if there is one too many."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: By the greenlets of their handlers, the longest silent one first.
        self.clients: Final[dict[object, Any]] = {}

    def handle(self, sock: Any, address: Any) -> None:
        if len(self.clients) >= _MOST_CLIENTS:
            self.make_room()
        self.clients[getcurrent()] = sock
        try:
            super().handle(sock, address)
        finally:
            self.clients.pop(getcurrent(), None)

    def make_room(self) -> None:
        """Close the client that was silent for longest."""
        # In a flood of them a probe's request may have come, and its handler be the next to run.
        silent = (each for each, sock in self.clients.items() if not is_readable(sock._sock))
        oldest = self.clients.pop(next(silent, next(iter(self.clients))))
        # The kernel's alone, which ends a wait to read or to write, and raises nothing here.
        with contextlib.suppress(OSError):
            oldest._sock.shutdown(socket.SHUT_RDWR)

    def has_asked(self) -> None:
        """The client of this greenlet's handler has sent a request."""
        sock = self.clients.pop(getcurrent(), None)
        if sock is not None:  # or it was closed
            self.clients[getcurrent()] = sock


def _make_metrics(views: Callable[[], Iterable[ServerView]]) -> Any:
    try:
        from .metrics import Metrics  # noqa: PLC0415  # prometheus_client may not be there
    except ImportError:
        return None
    return Metrics(views)
