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
import logging
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import gevent.pywsgi
from gevent import getcurrent
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
from gevent.socket import socket as GeventSocket

from .balance import Policy
from .clones import current_clone
from .connection import Connection, say_goodbye
from .gate import Gate
from .server import StreamServer
from .waiting import Wait, Waiting, has_ended

__all__ = [
    "Environ",
    "LoggingLogAdapter",
    "SecureEnviron",
    "WSGIHandler",
    "WSGISecureEnviron",
    "WSGIServer",
]


log: Final = logging.getLogger("glb")

_http_client: Final[Any] = http.client  # whose limits are not in the stubs

# Headers that every parser reads in one way: on each line a name, a colon, a value.
_PLAIN_HEADERS: Final = re.compile(r"(?:[!-9;-~]+:[^\r\n]*\r?\n)*\r?\n")
_HEADER: Final = re.compile(r"([!-9;-~]+):[ \t]*([^\r\n]*)")

_CONTENT_LENGTH: Final = re.compile(r"^content-length[ \t]*:([^\r\n]*)", re.MULTILINE)

# Up to so many bytes a body is copied behind its head: 0.2 us for 16 KiB, where the send that
# it saves takes 5 us (CPython 3.11, loopback). A larger one rarely leaves in one send anyhow.
SMALL_BODY_BYTES: Final = 16384

# As it was made: a program may put its own there, to see each request.
_FORMAT_REQUEST: Final = GeventWSGIHandler.format_request


_TIMED_OUT: Final = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class _Module(ModuleType):
    """A module in which a program may set gevent's limit as in ``gevent.pywsgi``."""

    @property
    def MAX_REQUEST_LINE(self) -> int:  # noqa: N802  # gevent's name
        limit: int = gevent.pywsgi.MAX_REQUEST_LINE  # type: ignore[attr-defined]  # not in the stubs
        return limit

    @MAX_REQUEST_LINE.setter
    def MAX_REQUEST_LINE(self, limit: int) -> None:  # noqa: N802  # as above
        gevent.pywsgi.MAX_REQUEST_LINE = limit  # type: ignore[attr-defined]  # as above


sys.modules[__name__].__class__ = _Module


class SilentClientError(ValueError):
    """A client did not go on with its request."""


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
    code: Any
    close_connection: Any
    headers_sent: bool

    # Whether some of the reply may have left: before a send, as an error may strike after it.
    _has_left: bool = False
    _collected: bytearray | None = None
    _has_served: bool = False
    _is_timed: bool = False
    _is_in_head: bool = False
    _is_in_line: bool = False
    # What it looks at before each request, if its server is one of ours.
    _gate: Gate | None = None
    _waiting: Waiting | None = None
    _waits: dict[object, Wait] | None = None
    _greenlet: Any = None

    def handle(self) -> None:
        server: Any = self.server
        rfile = self.rfile
        if isinstance(server, StreamServer):
            self._gate = server._gate
            if type(rfile) is io.BufferedReader:
                self._wait_by(server.waiting_here)
        # What costs time with each request is there only where it is needed.
        is_secured = type(self.socket) is not Connection and hasattr(self.socket, "_sslobj")
        if is_secured:
            self.__dict__["handle_one_request"] = self._handle_one_and_say_goodbye
        try:
            super().handle()
        finally:
            if is_secured:
                del self.__dict__["handle_one_request"]  # it would be a cycle
            waiting = self._waiting
            if waiting is not None:
                self.__dict__.pop("read_requestline", None)
                waiting.leave(self._greenlet)
                self._greenlet = None  # or an error's traceback keeps it, and it keeps the error
                if self._is_timed:
                    del self.__dict__["read_request"]
                    waiting.leave_head()
            # Its descriptor is closed. What is left in a cycle would be closed by whatever thread
            # collects it, which must not touch this one's watchers.
            try:
                rfile.close()
            except Exception:
                log.debug("can't close what requests were read from", exc_info=True)

    def _wait_by(self, waiting: Waiting | None) -> None:
        if waiting is not None:
            self._waiting, self._waits = waiting, waiting.waits
            self._greenlet = getcurrent()
            if type(self).read_requestline is not WSGIHandler.read_requestline:
                self.__dict__["read_requestline"] = self._read_programs_requestline
            self._is_timed = waiting.timeout is not None
            if self._is_timed:
                self.__dict__["read_request"] = self._read_request_in_time

    @property
    def _is_ending(self) -> bool:
        gate = self._gate
        return gate is not None and gate.is_ending and gate.server.is_ending(current_clone())

    def _handle_one_and_say_goodbye(self) -> Any:
        result = type(self).handle_one_request(self)
        sock = self.socket
        if result is None and sock is not None and (self._is_ending or has_ended(sock)):
            say_goodbye(sock)
        return result

    def read_requestline(self) -> str:
        if self._waits is not None and not self._is_in_line and not self._wait_for_request():
            return ""
        # Read now, as gevent does: a program may set it.
        line: bytes = self.rfile.readline(gevent.pywsgi.MAX_REQUEST_LINE)  # type: ignore[attr-defined]  # not in the stubs
        return line.decode("latin-1")

    def _read_programs_requestline(self) -> Any:
        # Of a subclass that has its own, which may ask for ours.
        if not self._wait_for_request():
            return ""
        self._is_in_line = True
        try:
            return type(self).read_requestline(self)
        finally:
            self._is_in_line = False

    def _wait_for_request(self) -> bool:
        """Return when something of a request is there; ``False`` if none will come."""
        waiting, waits, greenlet = self._waiting, self._waits, self._greenlet
        assert waiting is not None and waits is not None, "it has both or neither"
        if self._has_served and self._is_ending and not self._has_come():
            return False  # the reply before had not said so; what has come is served
        if self._has_served and waiting.timeout is None and not waiting.watchers:
            waits[greenlet] = (self.socket, 0.0, self._has_served)
        else:
            waiting.enter(self.socket, greenlet, has_served=self._has_served)
        try:
            first = self.rfile.peek(1)  # which waits, if nothing is there
        except BaseException:
            del waits[greenlet]
            del greenlet  # or the error's traceback keeps it, and it keeps the error
            raise
        del waits[greenlet]
        if not first or greenlet in waiting.told:
            return False  # perhaps with a part of a request, which it won't get the rest of
        self._has_served = True
        if self._is_timed:
            self._is_in_head = True
            waiting.enter_head(self.socket)
        return True

    def _has_come(self) -> bool:
        """Whether something of a request is there, in a buffer or in the kernel, or may be."""
        sock: Any = self.socket
        if not isinstance(sock, GeventSocket):
            return True  # a wrapper of the program's own: it is told to end while it waits
        timeout = sock.gettimeout()
        sock.settimeout(0.0)
        try:
            return bool(self.rfile.peek(1))
        except OSError:  # TLS's word for: not now
            return False
        finally:
            sock.settimeout(timeout)

    def _read_request_in_time(self, raw_requestline: str) -> Any:
        if not self._is_in_head:  # a `read_requestline` of the program's own
            return type(self).read_request(self, raw_requestline)
        self._is_in_head = False
        assert self._waiting is not None, "it has a timeout"
        try:
            result = type(self).read_request(self, raw_requestline)
        finally:
            is_over = self._waiting.leave_head()
            if is_over:  # what there was of it reads as if it were whole, and must not be served
                raise SilentClientError("the client was silent within the head of a request")
        return result

    def _handle_client_error(self, ex: Exception) -> Any:
        if isinstance(ex, SilentClientError):
            return "408", _TIMED_OUT
        return super()._handle_client_error(ex)  # type: ignore[misc]  # not in the stubs

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
        if "content-length" in lower:
            _check_lengths(lower)
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
        self._has_left = False
        gate = self._gate
        if gate is None:
            pass
        elif self.code == 101:
            gate.server.has_upgraded(self.socket)
        elif gate.is_ending and self._is_ending:
            self.close_connection = True
            headers = [each for each in self.response_headers if each[0].lower() != b"connection"]
            self.response_headers = [*headers, (b"Connection", b"close")]
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
            self._has_left = True
            super()._sendall(data)  # type: ignore[misc]  # as above
        else:
            self._collected += data

    def _send_error_response_if_possible(self, error_code: int) -> None:
        # gevent looks at how much has left, and counts that when it has.
        if self.headers_sent and self._has_left:
            self.close_connection = True
        else:
            super()._send_error_response_if_possible(error_code)  # type: ignore[misc]  # as above

    def log_request(self) -> None:
        # gevent makes the line, and throws it away. Another `format_request` may keep it.
        is_read = type(self.server.log) is not _NoopLog
        if is_read or type(self).format_request is not _FORMAT_REQUEST:
            super().log_request()


def _check_lengths(head: str) -> None:
    # gevent's input would look for the end of such a body, or of its next line, for ever: once
    # the client has closed, a readline() of the application's never comes back.
    for length in _CONTENT_LENGTH.findall(head):
        try:
            is_too_long = int(length) > sys.maxsize
        except ValueError:
            continue  # gevent refuses it
        if is_too_long:
            raise ValueError(f"Content-Length must be {sys.maxsize} or less, got {length!r}")


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
        self._gevents_wrap = self.__dict__.get("wrap_socket")  # a subclass may have its own

    def set_handle(self, handle: Callable[..., object] | None) -> None:
        # Here the handler is the one that speaks HTTP, and the clones' are its applications.
        BaseServer.set_handle(self, handle)  # type: ignore[arg-type]  # gevent takes None

    def set_environ(self, environ: dict[str, Any] | None = None) -> None:
        super().set_environ(environ)
        self._is_threads_told = "wsgi.multithread" in (environ or {})
        self._is_threads_ours = False

    def update_environ(self) -> None:
        super().update_environ()
        # With one hub it is what a program has set, which may be after `set_environ`.
        if not self._is_threads_told and (self.hubs > 1 or self._is_threads_ours):
            self._is_threads_ours = self.hubs > 1
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
