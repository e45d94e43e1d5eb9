"""`WSGIServer`: gevent's, with clones.

Change the import and say how many::

    from glb.pywsgi import WSGIServer

    WSGIServer(("127.0.0.1", 8000), application, clones=4).serve_forever()

Everything of `gevent.pywsgi.WSGIServer` holds, and everything of `glb.server.StreamServer`. The
other public names of `gevent.pywsgi` are here too, so that its import can be changed as a whole.
"""

from __future__ import annotations

import http.client
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from gevent.baseserver import BaseServer
from gevent.pywsgi import (  # type: ignore[attr-defined]  # some are not in the stubs
    Environ,
    LoggingLogAdapter,
    OldMessage,
    SecureEnviron,
    WSGISecureEnviron,
    _NoopLog,
    headers_factory,
)

# By name, and now: programs may put ours in the place of gevent's later.
from gevent.pywsgi import WSGIHandler as GeventWSGIHandler
from gevent.pywsgi import WSGIServer as GeventWSGIServer

from .balance import Policy
from .clones import current_clone
from .connection import say_goodbye
from .server import StreamServer
from .waiting import Waiting

__all__ = [
    "Environ",
    "LoggingLogAdapter",
    "SecureEnviron",
    "WSGIHandler",
    "WSGISecureEnviron",
    "WSGIServer",
]


_http_client: Final[Any] = http.client  # whose limits are not in the stubs

# Headers that every parser reads in one way: on each line a name, a colon, a value.
_PLAIN_HEADERS: Final = re.compile(r"(?:[!-9;-~]+:[^\r\n]*\r?\n)*\r?\n")
_HEADER: Final = re.compile(r"([!-9;-~]+):[ \t]*([^\r\n]*)")

# Up to so many bytes a body is copied behind its head: 0.2 us for 16 KiB, where the send that
# it saves takes 5 us (CPython 3.11, loopback). A larger one rarely leaves in one send anyhow.
SMALL_BODY_BYTES: Final = 16384

# As it was made: a program may put its own there, to see each request.
_FORMAT_REQUEST: Final = GeventWSGIHandler.format_request


class WSGIHandler(GeventWSGIHandler):
    """gevent's handler of a connection's requests, with less to do for small ones.

    Head and small body leave in one ``send``, plain headers are read without a parser for
    mail, and no line is written for an access log that nobody reads.

    Between two requests the connection is *waiting* (see `glb.waiting`): then it may be closed
    by a server that drains, or when the client is silent for longer than ``first_byte_timeout``.
    A request that is under way when its server drains gets ``Connection: close`` with its reply.
    """

    # gevent's, which the stubs leave out.
    socket: Any
    rfile: Any
    server: Any
    response_headers: Any

    _collected: bytearray | None = None
    _has_served: bool = False

    def handle(self) -> None:
        waiting = self._waiting
        try:
            super().handle()
        finally:
            if waiting is not None:
                waiting.leave_head()

    @property
    def _waiting(self) -> Waiting | None:
        # It may serve a server of gevent's own.
        return getattr(self.server, "waiting_here", None)

    @property
    def _is_ending(self) -> bool:
        is_ending = getattr(self.server, "is_ending", None)
        return is_ending is not None and is_ending(current_clone())

    def handle_one_request(self) -> Any:
        result = super().handle_one_request()
        self._has_served = True
        if result is True and self._is_ending:
            result = None
        if result is None and self.socket is not None and self._is_ending:
            say_goodbye(self.socket)
        return result

    def read_requestline(self) -> str:
        waiting, rfile = self._waiting, self.rfile
        if waiting is None or type(rfile) is not io.BufferedReader:
            return str(super().read_requestline())
        waiting.enter(self.socket, has_served=self._has_served)
        try:
            first = rfile.peek(1)  # which waits, if nothing is there
        finally:
            waiting.leave()
        if not first:
            return ""
        waiting.enter_head(self.socket)
        return str(super().read_requestline())

    def read_request(self, raw_requestline: str) -> Any:
        try:
            return super().read_request(raw_requestline)
        finally:
            waiting = self._waiting
            if waiting is not None:
                waiting.leave_head()

    def finalize_headers(self) -> None:
        super().finalize_headers()
        upgrades = getattr(self.server, "has_upgraded", None)
        if self.code == 101 and upgrades is not None:
            upgrades(self.socket)
        elif self._is_ending:
            self.close_connection = True
            self.response_headers = [
                header for header in self.response_headers if header[0].lower() != b"connection"
            ]
            self.response_headers.append((b"Connection", b"close"))

    def MessageClass(self, rfile: Any, *args: Any) -> Any:  # noqa: N802  # gevent's name
        """Read the headers of a request. The result, and any error, is as gevent's."""
        lines = []
        line = None
        # The limits and the ends are http.client's.
        while line not in {b"\r\n", b"\n", b""}:
            line = rfile.readline(_http_client._MAXLINE + 1)
            lines.append(line)
            if len(line) > _http_client._MAXLINE or len(lines) > _http_client._MAXHEADERS:
                break
        data = b"".join(lines)
        text = data.decode("latin-1")
        lower = text.lower()
        if (
            len(lines) <= _http_client._MAXHEADERS
            and _PLAIN_HEADERS.fullmatch(text)
            # The parser looks into these, for parts.
            and "multipart/" not in lower
            and "message/" not in lower
        ):
            message = OldMessage()
            for name, value in _HEADER.findall(text):
                message.set_raw(name, value)
            message.set_payload("")
            return message
        return headers_factory(io.BytesIO(data), *args)

    def _write_with_headers(self, data: bytes) -> None:
        # Anything else that gevent lets through, or fails on with the head sent, does so there.
        if not isinstance(data, (bytes, bytearray)) or len(data) > SMALL_BODY_BYTES:
            super()._write_with_headers(data)  # type: ignore[misc]  # not in the stubs
            return
        self._collected = bytearray()
        try:
            super()._write_with_headers(data)  # type: ignore[misc]  # as above
        finally:
            collected, self._collected = self._collected, None
        self._sendall(collected)

    def _sendall(self, data: bytes | bytearray) -> None:
        if self._collected is None:
            super()._sendall(data)  # type: ignore[misc]  # as above
        else:
            self._collected += data

    def log_request(self) -> None:
        # gevent makes the line, and throws it away. Another `format_request` may keep it.
        is_read = type(self.server.log) is not _NoopLog
        if is_read or type(self).format_request is not _FORMAT_REQUEST:
            super().log_request()


if TYPE_CHECKING or not issubclass(GeventWSGIServer, StreamServer):

    class _Both(StreamServer, GeventWSGIServer):
        """gevent's server, on ours."""

else:
    # A program put our StreamServer in the place of gevent's before gevent.pywsgi was first
    # imported: then it is the base of gevent's server already.
    _Both = GeventWSGIServer


class WSGIServer(_Both):
    """A WSGI server whose connections go round its clones in exact turn.

    The arguments are gevent's, and those of `glb.server.StreamServer`; *handler_factory*
    makes each clone its own **application**, in place of *application*. Turns are taken by
    connections: the requests of a kept-alive connection are one clone's.

    ``environ["glb.clone"]`` is the `glb.Clone` that serves the request: its index, a number
    that knows its server.
    """

    handler_class: Any = WSGIHandler

    has_streams: bool = False

    # Connections that don't speak HTTP any more.
    _upgraded: WeakSet[Any]

    def __init__(
        self,
        listener: Any,
        application: Callable[..., Any] | None = None,
        backlog: int | None = None,
        spawn: Any = "default",
        log: Any = "default",
        error_log: Any = "default",
        handler_class: Any = None,
        environ: dict[str, Any] | None = None,
        *,
        clones: int | None = None,
        reuse_port: bool | None = None,
        handler_factory: Callable[[int], Callable[..., Any]] | None = None,
        policy: Policy | str | None = None,
        hubs: int | None = None,
        patience: float | None = None,
        nodelay: bool | None = None,
        max_connections: int | None = None,
        max_connections_per_clone: int | None = None,
        accept_rate: float | None = None,
        handshake_timeout: float | None = None,
        first_byte_timeout: float | None = None,
        **ssl_args: Any,
    ) -> None:
        self._take_arguments(application, backlog, spawn, handler_factory, policy, nodelay)
        self._take_limits(
            max_connections=max_connections,
            max_connections_per_clone=max_connections_per_clone,
            accept_rate=accept_rate,
            handshake_timeout=handshake_timeout,
            first_byte_timeout=first_byte_timeout,
        )
        self._upgraded = WeakSet()
        self._take_places(spawn, clones, hubs, patience, reuse_port)
        if self.handler_factory is not None:
            application = self._apply_by_clone
        GeventWSGIServer.__init__(
            self,
            listener,
            application,
            backlog,
            spawn,
            log,
            error_log,
            handler_class,
            environ,
            **ssl_args,
        )

    def set_handle(self, handle: Callable[..., object] | None) -> None:
        # Here the handler is the one that speaks HTTP, and the clones' are its applications.
        BaseServer.set_handle(self, handle)  # type: ignore[arg-type]  # gevent takes None

    def set_environ(self, environ: dict[str, Any] | None = None) -> None:
        super().set_environ(environ)
        self._is_threads_told = "wsgi.multithread" in (environ or {})

    def update_environ(self) -> None:
        super().update_environ()
        if not self._is_threads_told:
            self.environ["wsgi.multithread"] = self.hubs > 1

    def handle_by_clone(self) -> bool:
        if self.application != self._apply_by_clone:
            for acceptor in self._acceptors:
                acceptor.handle = self.application
            self.application = self._apply_by_clone
        return False  # each request asks for its application

    def has_upgraded(self, sock: Any) -> None:
        """*sock* speaks another protocol from now on, for as long as it likes."""
        self._upgraded.add(sock)

    def is_long_lived(self, sock: Any) -> bool:
        return sock in self._upgraded

    def _apply_by_clone(self, environ: dict[str, Any], start_response: Any) -> Any:
        # By the environ, for a handler class that runs applications in another greenlet.
        return self._handler_of(environ.get("glb.clone"))(environ, start_response)

    def init_socket(self) -> None:
        StreamServer.init_socket(self)
        self.update_environ()

    def get_environ(self) -> dict[str, Any]:
        environ = super().get_environ()
        environ["glb.clone"] = current_clone()
        return environ
