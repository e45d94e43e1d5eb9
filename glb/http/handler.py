"""The handler of a connection's requests.

`WSGIHandler` is gevent's, as far as programs see it: the same constructor, the same methods that a
subclass may override, the same attributes while a request is served. It reads requests by
`glb.http.head` and `glb.http.body`, and frames replies by `glb.http.reply`.

There are two loops over the requests of a connection. The *lean* one reads a head from the socket
at once. It is for handlers that override none of gevent's methods, and makes a buffer for a
connection only when a body has to be read. The other one calls each method as gevent calls it. From
the head on both do the same, in the same methods.

Source: gevent's ``pywsgi.py``; PEP 3333.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import socket as _socket
import sys
import time
from collections.abc import Iterable
from typing import Any, ClassVar, Final
from urllib.parse import unquote_to_bytes

import gevent.pywsgi
from gevent import Timeout, getcurrent
from gevent.pywsgi import (  # type: ignore[attr-defined]  # some are not in the stubs
    OldMessage,
    _InvalidClientInput,
    _NoopLog,
)

# By name, and now: programs may put ours in the place of gevent's later.
from gevent.pywsgi import WSGIHandler as GeventWSGIHandler
from gevent.socket import socket as GeventSocket

from ..clones import current_clone
from ..connection import Connection, say_goodbye
from ..waiting import Wait, Waiting, has_ended
from .body import READ_BYTES, Body, BodyError, ClientLeft
from .head import BadRequest, Head, Limits, find_end, parse
from .reply import ReplyHead, date
from .stream import FileWrapper, RawStream, send_file

__all__ = ["WSGIHandler"]

log: Final = logging.getLogger("glb")

# Up to so many bytes a body is copied behind its head: 0.2 us for 16 KiB, where the send that
# it saves takes 5 us (CPython 3.11, loopback). A larger one rarely leaves in one send anyhow.
SMALL_BODY_BYTES: Final = 16384

# A body that the application hasn't read is read away, so that the next request is found. If it is
# longer, or slower, a new connection costs both sides less.
DISCARD_MAX_BYTES: Final = 65536
DISCARD_SECONDS: Final = 1.0

# As it was made: a program may put its own there, to see each request.
_FORMAT_REQUEST: Final = GeventWSGIHandler.format_request

_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
}

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class SilentClientError(BadRequest):
    """A client did not go on with its request."""

    def __init__(self) -> None:
        super().__init__(
            "the client was silent within the head of a request", "408 Request Timeout"
        )


class WSGIHandler(GeventWSGIHandler):
    """gevent's handler of a connection's requests: strict, and with less to do.

    Between two requests the connection is *waiting* (see `glb.waiting`): then it may be closed
    by a server that drains, or when the client is silent for longer than ``first_byte_timeout``.
    A request that is under way when its server drains gets ``Connection: close`` with its reply.

    Attributes:
        limits: How large a head may be. gevent's ``MAX_REQUEST_LINE`` holds as well.
        needs_host: Whether a request of HTTP/1.1 without Host is refused, as RFC 9112 asks for.
        max_body: How long a body may be, in bytes; ``None`` is no limit. Longer ones get a 413.
        body_timeout: How long a client may be silent within a body, in seconds; ``None`` is for
            ever. Then it gets a 408.
        send_timeout: How long a client may take nothing of a reply, in seconds; ``None`` is for
            ever. Then the connection is closed.

    The server's attributes of the same names come first, if it has them.
    """

    limits: Limits = Limits()
    needs_host: bool = False
    max_body: int | None = None
    body_timeout: float | None = None
    send_timeout: float | None = None

    # gevent's, which the stubs leave out.
    socket: Any
    rfile: Any = None
    server: Any
    headers: Any
    result: Any
    environ: Any
    application: Any
    status: Any
    _orig_status: Any
    response_headers: Any
    response_length: int
    response_use_chunked: bool
    provided_date: Any
    provided_content_length: Any
    connection_upgraded: bool
    code: Any
    command: Any
    path: Any
    requestline: Any
    request_version: Any
    close_connection: Any
    content_length: Any
    headers_sent: bool
    client_address: Any
    time_start: float
    time_finish: float
    wsgi_input: Any
    ignored_socket_errors: tuple[int, ...]

    #: Whether it overrides none of gevent's methods.
    _is_lean: ClassVar[bool] = True

    # Of the connection.
    _plain: Any = None  # the plain socket of a `Connection`
    _rest: bytes = b""  # what was read behind the last request
    _has_served = False
    _is_timed = False
    _is_in_head = False
    _is_in_line = False
    _may_have_more = False  # whether what the client sends still is nobody's
    _gate: Any = None
    _waiting: Waiting | None = None
    _waits: dict[object, Wait] | None = None
    _greenlet: Any = None
    _tls: dict[str, str] | None = None
    # Of the request.
    _head: Head | None = None
    _raw: RawStream | None = None
    _body: Body | None = None
    _is_raw = False  # whether the application has the connection itself to read from
    _buffered = 0  # how much of it was there before
    _has_told = False  # whether it is in the log that the body was text
    _has_left = False  # whether some of the reply may have left
    _has_failed = False  # whether a send has
    _left: int | None = None  # what is left of the reply's Content-Length
    _options: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._is_lean = all(
            getattr(cls, name) is getattr(WSGIHandler, name)
            for name, each in vars(GeventWSGIHandler).items()
            if callable(each) and name not in {"__init__", "ApplicationError"}
        )

    def __init__(self, sock: Any, address: Any, server: Any, rfile: Any = None) -> None:
        self.socket = sock
        self.client_address = address
        self.server = server
        if rfile is not None:
            self.rfile = rfile
            self._is_lean = False  # type: ignore[misc]  # of this one
        elif not self._is_lean:
            self._raw = RawStream(sock)
            self.rfile = io.BufferedReader(self._raw)
        elif type(sock) is Connection:
            self._plain = sock._sock

    # -- the connection ------------------------------------------------------------------------

    def handle(self) -> None:
        server = self.server
        for name in ("limits", "needs_host", "max_body", "body_timeout", "send_timeout"):
            given = getattr(server, name, None)
            if given is not None:
                setattr(self, name, given)
        self._gate = getattr(server, "_gate", None)
        waiting = getattr(server, "waiting_here", None)
        if waiting is not None and (self._is_lean or type(self.rfile) is io.BufferedReader):
            self._waiting, self._waits = waiting, waiting.waits
            self._greenlet = getcurrent()
            self._is_timed = waiting.timeout is not None
        try:
            if self._is_lean:
                self._serve_lean()
            else:
                self._serve_by_hooks()
        finally:
            if waiting is not None and self._greenlet is not None:
                waiting.leave(self._greenlet)
                self._greenlet = None  # or an error's traceback keeps it, and it keeps the error
                if self._is_timed:
                    waiting.leave_head()
            self._close()

    def _serve_lean(self) -> None:
        while True:
            self.time_start = time.time()
            self.time_finish = 0
            try:
                limits = self._limits_now
                data = self._receive_head(limits)
                if data is None:
                    break
                head = parse(data, limits, needs_host=self.needs_host)
                self._take(head)
                self.environ = self._make_environ(head)
                del head, data  # an idle connection is to be small
            except BadRequest as error:
                self._refuse(self._handle_client_error(error))
                break
            except OSError:
                break  # a reset, say, isn't interesting here
            self.application = self.server.application
            self.handle_one_response()
            self.environ = self.application = self._head = None
            if self.close_connection:
                break
        if self._is_secured:
            self._say_goodbye()

    def _serve_by_hooks(self) -> None:
        while self.socket is not None:
            self.time_start = time.time()
            self.time_finish = 0
            result = self.handle_one_request()
            if result is True:
                continue
            if result is not None:
                self._refuse(result)
            elif self._is_secured:
                self._say_goodbye()
            break

    def _refuse(self, result: Any) -> None:
        self.status, reply = result
        self._may_have_more = True
        with contextlib.suppress(OSError):
            self._sendall(reply)

    def _close(self) -> None:
        sock = self.socket
        raw, rfile = self._raw, self.rfile
        try:
            if sock is not None:
                self._close_socket(sock)
        finally:
            for name in ("socket", "rfile", "wsgi_input", "environ", "_plain", "_raw", "_body"):
                self.__dict__.pop(name, None)
            # Its descriptor is closed. What is left in a cycle would be closed by whatever thread
            # collects it, which must not touch this one's watchers.
            for each in (rfile, raw):
                try:
                    if each is not None:
                        each.close()
                except Exception:
                    log.debug("can't close what requests were read from", exc_info=True)

    def _close_socket(self, sock: Any) -> None:
        # What a client has sent and nobody has read makes the kernel reset the connection, and
        # the client may lose the reply. So it is read away, for a while.
        plain = getattr(sock, "_sock", None)
        try:
            if plain is not None:
                try:
                    if self._may_have_more:
                        self._linger(sock, plain)
                    else:
                        plain.recv(16384)  # it doesn't block
                finally:
                    plain.close()
            sock.close()
        except OSError:
            pass

    def _linger(self, sock: Any, plain: Any) -> None:
        if getattr(sock, "_sslobj", None) is not None:
            say_goodbye(sock)
        plain.shutdown(_socket.SHUT_WR)
        left = DISCARD_MAX_BYTES * 4
        with Timeout(DISCARD_SECONDS, False):  # type: ignore[arg-type]  # not in the stubs
            while left > 0:
                try:
                    data = plain.recv(READ_BYTES)
                except BlockingIOError:
                    sock._wait(sock._read_event)
                    continue
                if not data:
                    return
                left -= len(data)

    @property
    def _is_secured(self) -> bool:
        return self._plain is None and hasattr(self.socket, "_sslobj")

    def _say_goodbye(self) -> None:
        sock = self.socket
        if sock is not None and (self._is_ending or has_ended(sock)):
            say_goodbye(sock)

    @property
    def _is_ending(self) -> bool:
        gate = self._gate
        return gate is not None and gate.is_ending and bool(gate.server.is_ending(current_clone()))

    @property
    def _limits_now(self) -> Limits:
        # Read now, as gevent does: a program may set it.
        most = gevent.pywsgi.MAX_REQUEST_LINE  # type: ignore[attr-defined]  # not in the stubs
        limits = self.limits
        if most - 2 >= limits.line:
            return limits
        return Limits(most - 2, limits.field, limits.head, limits.fields)

    # -- waiting for a request -----------------------------------------------------------------

    def _receive_head(self, limits: Limits) -> bytes | None:
        """Return the head of the next request, with the end of its last line.

        Returns:
            ``None`` if there will be none.

        Raises:
            BadRequest: It can't become one any more.
            OSError: As recv(2).
        """
        data, self._rest = self._rest, b""
        seen = 0
        while True:
            while data[:2] == b"\r\n":  # RFC 9112, 2.2: after a body some clients send one more
                data = data[2:]
                seen = 0
            end = find_end(data, seen, limits) if data else -1
            if end >= 0:
                if self._is_in_head:
                    self._leave_head()
                self._has_served = True
                self._rest = data[end + 4 :]
                return data[: end + 2]
            seen = len(data)
            if data:
                if self._is_timed and not self._is_in_head:
                    assert self._waiting is not None, "it has the timeout"
                    self._is_in_head = True
                    self._waiting.enter_head(self.socket)
                more = self._receive()
            else:
                more = self._receive_first()
            if not more:
                if self._is_in_head:
                    self._leave_head()
                if not data:
                    return None
                raise BadRequest("the client left within the head of a request")
            data = data + more if data else more

    def _leave_head(self) -> None:
        self._is_in_head = False
        assert self._waiting is not None, "it has the timeout"
        if self._waiting.leave_head():
            # What there was of it reads as if it were whole, and must not be served.
            raise SilentClientError

    def _receive(self) -> bytes:
        plain = self._plain
        if plain is None:
            data: bytes = self.socket.recv(READ_BYTES)
            return data
        while True:
            try:
                data = plain.recv(READ_BYTES)
            except BlockingIOError:
                sock = self.socket
                sock._wait(sock._read_event)
            else:
                return data

    def _receive_first(self) -> bytes:
        """Wait for the client's next request, and return the first bytes of it.

        Returns:
            ``b""`` if there will be none.
        """
        has_served, plain = self._has_served, self._plain
        if not has_served and plain is not None:
            # The first one mostly is there already.
            with contextlib.suppress(BlockingIOError):
                data: bytes = plain.recv(READ_BYTES)
                return data
        waits = self._waits
        if waits is None:
            return self._receive()
        if not self._enter_wait():
            return b""
        try:
            if self._rest:  # it has come since
                data, self._rest = self._rest, b""
                return data
            if plain is not None:  # and mostly there is nothing yet of a later one
                sock = self.socket
                sock._wait(sock._read_event)
            data = self._receive()
        finally:
            del waits[self._greenlet]
        assert self._waiting is not None, "it has both or neither"
        if self._waiting.told and self._greenlet in self._waiting.told:
            return b""  # perhaps with a part of a request, which it won't get the rest of
        return data

    def _enter_wait(self) -> bool:
        """Say that this handler waits; ``False`` if it is not to."""
        waiting, waits = self._waiting, self._waits
        assert waiting is not None and waits is not None, "it has both or neither"
        has_served = self._has_served
        if has_served and self._is_ending and not self._has_come():
            return False  # the reply before had not said so; what has come is served
        if has_served and waiting.timeout is None and not waiting.watchers:
            waits[self._greenlet] = (self.socket, 0.0, True)
        else:
            waiting.enter(self.socket, self._greenlet, has_served=has_served)
        return True

    def _has_come(self) -> bool:
        """Whether something of a request is there, in a buffer or in the kernel, or may be."""
        sock: Any = self.socket
        if not isinstance(sock, GeventSocket):
            return True  # a wrapper of the program's own: it is told to end while it waits
        timeout = sock.gettimeout()
        sock.settimeout(0.0)
        try:
            if self._is_lean:
                self._rest = sock.recv(READ_BYTES)
                return bool(self._rest)
            return bool(self.rfile.peek(1))
        except OSError:  # TLS's word for: not now
            return False
        finally:
            sock.settimeout(timeout)

    # -- gevent's hooks: from the line to the environ --------------------------------------------

    def handle_one_request(self) -> Any:
        if self.rfile.closed:
            return None
        try:
            if type(self).read_requestline is not WSGIHandler.read_requestline:
                line = self._read_programs_requestline()
            else:
                line = self.read_requestline()
        except OSError:
            return None
        if isinstance(line, bytes):  # of an old subclass
            line = line.decode("latin-1")
        self.requestline = line
        if not line:
            return None
        self.response_length = 0
        most: int = gevent.pywsgi.MAX_REQUEST_LINE  # type: ignore[attr-defined]  # not in the stubs
        if len(line) >= most and not line.endswith("\n"):
            return self._handle_client_error(
                BadRequest(f"the request line is longer than {most - 2}", "414 URI Too Long")
            )
        try:
            if not self._read_request_in_time(line):
                return self._handle_client_error(BadRequest("the request was refused"))
        except Exception as error:
            return self._handle_client_error(error)
        self.environ = self.get_environ()
        self.application = self.server.application
        self.handle_one_response()
        if self.close_connection or self.rfile.closed:
            return None
        return True

    def read_requestline(self) -> str:
        if self._waits is not None and not self._is_in_line and not self._wait_for_request():
            return ""
        limit: int = gevent.pywsgi.MAX_REQUEST_LINE  # type: ignore[attr-defined]  # not in the stubs
        while True:
            line: bytes = self.rfile.readline(limit)
            if line != b"\r\n":
                return line.decode("latin-1")

    def _read_programs_requestline(self) -> Any:
        # Of a subclass that has its own, which may ask for ours.
        if self._waits is not None and not self._wait_for_request():
            return ""
        self._is_in_line = True
        try:
            return self.read_requestline()
        finally:
            self._is_in_line = False

    def _wait_for_request(self) -> bool:
        """Return when something of a request is there; ``False`` if none will come."""
        if not self._enter_wait():
            return False
        waiting, waits = self._waiting, self._waits
        assert waiting is not None and waits is not None, "it has both or neither"
        try:
            first = self.rfile.peek(1)  # which waits, if nothing is there
        finally:
            del waits[self._greenlet]
        if not first or self._greenlet in waiting.told:
            return False
        self._has_served = True
        if self._is_timed:
            self._is_in_head = True
            waiting.enter_head(self.socket)
        return True

    def _read_request_in_time(self, line: str) -> Any:
        try:
            return self.read_request(line)
        finally:
            if self._is_in_head:
                self._leave_head()

    def read_request(self, raw_requestline: str) -> bool:
        """Read the head of a request, whose first line is *raw_requestline*.

        Raises:
            BadRequest: It is refused. This is no server's error, and not reported as one.
        """
        self._head = None
        limits = self._limits_now
        data = raw_requestline.encode("latin-1")
        most = len(data) + limits.head + 2
        line = data
        while line not in {b"\r\n", b"\n"}:
            if not line.endswith(b"\n"):
                raise BadRequest("the client left within the head of a request")
            line = self.rfile.readline(most - len(data) + 1)
            data += line
            if len(data) > most:
                find_end(data, 0, limits)  # perhaps a line is too long, or something worse
                raise BadRequest(
                    f"more than {limits.head} bytes of header fields",
                    "431 Request Header Fields Too Large",
                )
        end = find_end(data, 0, limits)
        if end + 4 != len(data):
            raise BadRequest("half a line end in the head")
        head = parse(data[: end + 2], limits, needs_host=self.needs_host)
        self._take(head)
        return True

    def _take(self, head: Head) -> None:
        """Have gevent's attributes say what *head* does."""
        if self.max_body is not None and head.length is not None and head.length > self.max_body:
            raise BadRequest(
                f"a body of {head.length} bytes is longer than {self.max_body}",
                "413 Content Too Large",
            )
        if head.expects and head.expects != "100-continue":
            raise BadRequest(
                f"can't do what is expected: {head.expects!a}", "417 Expectation Failed"
            )
        self._head = head
        self.requestline = head.line
        self.command = head.method
        self.request_version = head.version
        self.content_length = head.length
        self.close_connection = not head.is_persistent
        if self._is_lean:
            return
        self.path = f"{head.path}?{head.query}" if head.query else head.path
        self.headers = self.MessageClass(io.BytesIO(_as_fields(head)), 0)
        if getattr(self.headers, "status", ""):
            raise BadRequest(f"invalid headers: {self.headers.status!a}")

    def MessageClass(self, rfile: Any, *_args: Any) -> Any:  # noqa: N802  # gevent's name
        """Return the fields of a head that was checked, as gevent has them."""
        message = OldMessage()
        for line in rfile.read().decode("latin-1").split("\r\n"):
            if not line:
                break
            name, _, value = line.partition(":")
            message.set_raw(name, value.strip(" \t"))
        message.set_payload("")
        return message

    def get_environ(self) -> dict[str, Any]:
        if self._head is None:  # a `read_request` of the program's own
            return super().get_environ()  # type: ignore[misc, no-any-return]  # not in the stubs
        env: dict[str, Any] = super().get_environ()  # type: ignore[misc]  # as above
        self._add_to(env, self._head)
        self._add_input(env, self._head)
        return env

    def _make_environ(self, head: Head) -> dict[str, Any]:
        # What gevent's method does, without what was done before.
        env: dict[str, Any] = self.server.get_environ()
        env["REQUEST_METHOD"] = head.method
        env["SCRIPT_NAME"] = ""
        path = head.path
        env["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
        env["QUERY_STRING"] = head.query
        env["SERVER_PROTOCOL"] = head.version
        address = self.client_address
        if isinstance(address, tuple):
            env["REMOTE_ADDR"] = str(address[0])
            env["REMOTE_PORT"] = str(address[1])
        fields = head.fields
        if env.keys().isdisjoint(fields):
            env.update(fields)
        else:
            for key, value in fields.items():
                # As gevent: what the program has put there stands before it.
                comma = "; " if "COOKIE" in key else ","
                env[key] = f"{env[key]}{comma}{value}" if key in env else value
        self._add_to(env, head)
        self._add_input(env, head)
        return env

    def _add_to(self, env: dict[str, Any], head: Head) -> None:
        env["RAW_URI"] = env["REQUEST_URI"] = head.target
        if head.version == "HTTP/1.1":
            env["wsgi.early_hints"] = self._send_early_hints
        if self._is_secured:
            if self._tls is None:
                self._tls = tls_variables(self.socket)
            env.update(self._tls)

    def _add_input(self, env: dict[str, Any], head: Head) -> None:
        self._body = None
        upgrade = head.upgrade
        # gevent's own test for it, and one for the protocol that nearly everybody means.
        is_raw = bool(upgrade) and (upgrade == "websocket" or len(head.options) == 1)
        self._is_raw = is_raw
        env["wsgi.input_terminated"] = not is_raw
        if is_raw:
            env["wsgi.input"] = self.wsgi_input = self._open()
            self._buffered = self._count_buffered()
            return
        before = self._send_continue if head.expects else None
        if not head.length and not head.is_chunked:
            if before is None and self._is_lean:
                env["wsgi.input"] = self.wsgi_input = io.BytesIO()
                return
            body = Body(io.BytesIO(), head.length, is_chunked=False, before=before)
            if not self._is_lean:
                body = Body(self.rfile, head.length, is_chunked=False, before=before)
        elif self._is_lean and head.length is not None and head.length <= len(self._rest):
            file = io.BytesIO(self._rest[: head.length])
            self._rest = self._rest[head.length :]
            body = Body(file, head.length, is_chunked=False, before=before)
        else:
            body = Body(
                self._open(),
                head.length,
                is_chunked=head.is_chunked,
                limit=self.max_body,
                before=before,
            )
            if self._raw is not None:
                self._raw.timeout = self.body_timeout
        self._body = self.wsgi_input = env["wsgi.input"] = body

    def _open(self) -> Any:
        """Return what is read from on this connection."""
        if self._is_lean:
            self._raw = RawStream(self.socket, self._rest)
            self._rest = b""
            self.rfile = io.BufferedReader(self._raw)
        return self.rfile

    def _send_continue(self) -> None:
        if not self.headers_sent:
            self._send_raw(_CONTINUE)

    def _send_early_hints(self, headers: Iterable[tuple[str, str]]) -> None:
        """Send *headers* to the client ahead of the reply, as ``103 Early Hints``."""
        if self.headers_sent:
            raise self.ApplicationError("early hints come before the reply")
        hints = ReplyHead("200 OK", headers)
        lines = b"".join([b"%b: %b\r\n" % each for each in hints.fields])
        self._send_raw(b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % lines)

    # -- the application -----------------------------------------------------------------------

    def handle_one_response(self) -> None:
        self.time_start = time.time()
        self.status = None
        self._orig_status = None
        self.code = None
        self.headers_sent = False
        self.result = None
        self.response_use_chunked = False
        self.connection_upgraded = False
        self.response_length = 0
        self._has_left = self._has_failed = self._has_told = False
        self._left = None
        try:
            self.run_application()
        except ClientLeft:
            self.close_connection = True
        except _InvalidClientInput as error:
            self._handle_client_error(error)
            self.close_connection = True
            self._may_have_more = True
            self._send_error_response_if_possible(error)
        except OSError as error:
            if self._has_failed:
                self.close_connection = True
                if error.args and error.args[0] not in self.ignored_socket_errors:
                    self.log_error("can't reply to %r: %s", self.client_address, error)
            else:
                self._report()
        except BaseException:
            self._report()
        finally:
            self.time_finish = time.time()
            self._end_input()
            self.log_request()

    def _report(self) -> None:
        self.handle_error(*sys.exc_info())

    def run_application(self) -> None:
        assert self.result is None
        try:
            self.result = self.application(self.environ, self.start_response)
            self.process_result()
        finally:
            close = getattr(self.result, "close", None)
            try:
                if close is not None:
                    close()
            finally:
                # What a generator's frame keeps is free now.
                close = None
                self.result = None

    def process_result(self) -> None:
        result = self.result
        if type(result) is FileWrapper and self._send_file(result):
            return
        if isinstance(result, (bytes, str)):
            raise TypeError(f"an application returns an iterable of bytes, got {result[:50]!r}")
        for data in result:
            if data:
                self.write(data)
        if not self.headers_sent:
            self.write(b"")
        if self.response_use_chunked and self.command != "HEAD":
            self._sendall(b"0\r\n\r\n")
        if self._left and self.command != "HEAD":
            self.close_connection = True
            self.log_error(
                "the reply to %s is %d bytes shorter than its Content-Length",
                ascii(self.requestline),
                self._left,
            )

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        if exc_info:
            try:
                if self.headers_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.status is not None:
            raise self.ApplicationError("start_response was called before")
        reply = ReplyHead(status, headers)
        if reply.code == 204 and reply.length:
            raise self.ApplicationError(
                f"Invalid Content-Length for 204 response: {str(reply.length)!r} "
                "(must be absent or zero)"
            )
        self.status = reply.line
        self._orig_status = status
        self.code = reply.code
        self.response_headers = reply.fields
        self.provided_date = True if reply.has_date else None
        self.provided_content_length = None if reply.length is None else str(reply.length)
        self._left = reply.length
        self._options = reply.options if reply.connection is not None else frozenset()
        if "close" in self._options:
            self.close_connection = True
        return self.write

    def finalize_headers(self) -> None:
        headers = self.response_headers
        if self.provided_date is None:
            headers.append((b"Date", date()))
        code = self.code
        self.connection_upgraded = code == 101
        if code in {101, 204, 304}:
            self._left = None
            if code == 204 and self.provided_content_length is not None:
                headers = [each for each in headers if each[0].lower() != b"content-length"]
        elif self.provided_content_length is None:
            result = self.result
            if hasattr(result, "__len__"):
                length = sum(len(chunk) for chunk in result)
                if length or self.command != "HEAD":
                    headers.append((b"Content-Length", b"%d" % length))
                    self._left = length
            elif self.request_version == "HTTP/1.0":
                self.close_connection = True
            elif self.command != "HEAD":
                self.response_use_chunked = True
                headers.append((b"Transfer-Encoding", b"chunked"))
        self.response_headers = headers
        self._finish_connection()

    def _finish_connection(self) -> None:
        # What the reply says of the connection is what happens.
        gate = self._gate
        if self.code == 101:
            self.close_connection = True
            upgraded = getattr(self.server, "has_upgraded", None)
            if upgraded is not None:
                upgraded(self.socket)
            return
        if gate is not None and gate.is_ending and self._is_ending:
            self.close_connection = True
        elif not self.close_connection and not self._may_read_on:
            self.close_connection = True
        options = self._options
        if self.close_connection:
            if "close" not in options:
                self._replace_connection(b"close")
        elif self.request_version == "HTTP/1.0" and "keep-alive" not in options:
            self._replace_connection(b"keep-alive")

    def _replace_connection(self, option: bytes) -> None:
        headers = self.response_headers
        if self._options:
            headers = [each for each in headers if each[0].lower() != b"connection"]
        self.response_headers = [*headers, (b"Connection", option)]

    @property
    def _may_read_on(self) -> bool:
        """Whether the next request will be found, as far as is known before the reply."""
        if self._is_raw:
            return not self._is_touched
        body = self._body
        if body is None or body.is_over:
            return True
        if body.is_broken or body.is_awaited:
            return False
        return body.left is None or body.left <= DISCARD_MAX_BYTES

    @property
    def _is_touched(self) -> bool:
        # Of the raw stream: what follows is read as a request only if nobody has read of it.
        raw = self._raw
        return raw is None or raw.is_touched or self._count_buffered() != self._buffered

    def _count_buffered(self) -> int:
        return -1 if self._raw is None else self._raw.count_buffered(self.rfile)

    def write(self, data: Any) -> None:
        if self.code in {204, 304} and data:
            raise self.ApplicationError(f"The {self.code} response must have no body")
        if self.headers_sent:
            self._write(data)
        elif self.status is None:
            raise self.ApplicationError("The application did not call start_response()")
        else:
            self._write_with_headers(data)

    def _write_with_headers(self, data: Any) -> None:
        self.headers_sent = True
        self.finalize_headers()
        head = b"HTTP/1.1 %b\r\n%b\r\n" % (
            self.status,
            b"".join([b"%b: %b\r\n" % each for each in self.response_headers]),
        )
        try:
            data = self._frame(data)
        except BaseException:
            self._sendall(head)  # the client learns that there was a reply, and that it ended early
            raise
        if len(data) <= SMALL_BODY_BYTES:
            self._sendall(head + data)
        else:
            self._sendall(head)
            self._sendall(data)

    def _write(self, data: Any) -> None:
        data = self._frame(data)
        if data:
            self._sendall(data)

    def _frame(self, data: Any) -> Any:
        """Return what goes out for *data*."""
        if not data:
            return b""
        if isinstance(data, str):
            # It goes out as it was meant, with a line in the log.
            self.close_connection = True
            if not self._has_told:
                self._has_told = True
                self.log_error("a body must be bytes, got %s", ascii(data[:50]))
            data = data.encode("latin-1")
        elif not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"a body must be bytes, got {data!a}")
        if self.command == "HEAD":
            return b""
        if self.response_use_chunked:
            return b"%x\r\n%b\r\n" % (len(data), data)
        left = self._left
        if left is not None:
            if len(data) > left:
                self.log_error(
                    "the reply to %s is longer than its Content-Length, and was cut",
                    ascii(self.requestline),
                )
                data = memoryview(data)[:left]
                self.close_connection = True
            self._left = left - len(data)
        return bytes(data) if isinstance(data, memoryview) else data

    def _sendall(self, data: Any) -> None:
        self._has_left = True
        self._send_raw(data)
        self.response_length += len(data)

    def _send_raw(self, data: Any) -> None:
        sock = self.socket
        try:
            if self.send_timeout is None:
                sock.sendall(data)
            else:
                self._send_in_time(sock, data, self.send_timeout)
        except OSError as error:
            self._has_failed = True
            self.status = f"socket error: {error}"
            if self.code is not None and self.code > 0:
                self.code = -self.code
            raise

    def _send_in_time(self, sock: Any, data: Any, seconds: float) -> None:
        # gevent's `sendall` would bound the whole of it.
        view = memoryview(data)
        timeout = sock.gettimeout()
        sock.settimeout(seconds)
        try:
            while view:
                view = view[sock.send(view) :]
        finally:
            if sock.fileno() >= 0:
                sock.settimeout(timeout)

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Have the kernel send a file's rest; ``False`` if it must be read."""
        size = wrapper.size() if self._plain is not None and not self.headers_sent else None
        if size is None or self.status is None or self.code in {101, 204, 304}:
            return False
        length = self._left
        if length is None:
            self._left = length = size
            self.provided_content_length = str(size)
            self.response_headers.append((b"Content-Length", b"%d" % size))
        self.write(b"")
        if self.command != "HEAD" and length:
            self._has_left = True
            try:
                sent = send_file(self.socket, wrapper, min(length, size), self.send_timeout)
            except OSError:
                self._has_failed = True
                raise
            self.response_length += sent
            self._left = length - sent
            if self._left:
                self.close_connection = True
        return True

    def _end_input(self) -> None:
        """Read away what the application hasn't read, so that the next request is found."""
        body, raw = self._body, self._raw
        if raw is not None:
            raw.timeout = None
        if body is not None and not body.is_over:
            if self.close_connection or not self._discard(body):
                self.close_connection = True
                self._may_have_more = True
        elif self._is_raw and self._is_touched:
            self.close_connection = True
        self._body = None
        if self._is_lean and raw is not None:
            if not self.close_connection:
                self._rest = raw.take_rest(self.rfile)
            self._raw = self.rfile = None

    def _discard(self, body: Body) -> bool:
        if body.is_broken or body.is_awaited:
            return False
        try:
            with Timeout(DISCARD_SECONDS, False):  # type: ignore[arg-type]  # not in the stubs
                return body.end(DISCARD_MAX_BYTES)
        except OSError:
            pass
        return False

    # -- errors --------------------------------------------------------------------------------

    def _handle_client_error(self, ex: Exception) -> Any:
        status = getattr(ex, "status", "400 Bad Request")
        if not isinstance(ex, (BadRequest, BodyError)):
            return super()._handle_client_error(ex)  # type: ignore[misc]  # not in the stubs
        self.log_error("Invalid request (from %s): %s", self.client_address, ex)
        return status.partition(" ")[0], refusal(status)

    def _send_error_response_if_possible(self, error_code: Any) -> None:
        if self.headers_sent or self._has_left:
            self.close_connection = True
            return
        if isinstance(error_code, int):
            status, headers, body = gevent.pywsgi._ERRORS[error_code]  # type: ignore[attr-defined]  # not in the stubs
        else:
            status = getattr(error_code, "status", "400 Bad Request")
            headers, body = (("Connection", "close"), ("Content-Length", "0")), b""
        self.status = None
        try:
            self.start_response(status, [*headers])
            self.write(body if isinstance(body, bytes) else body.encode("latin-1"))
        except OSError:
            self.close_connection = True

    def log_request(self) -> None:
        # gevent makes the line, and throws it away. Another `format_request` may keep it.
        is_read = type(self.server.log) is not _NoopLog
        if is_read or type(self).format_request is not _FORMAT_REQUEST:
            super().log_request()


def refusal(status: str) -> bytes:
    """Return the whole reply to a request that is refused."""
    if status.startswith("414"):
        status = "414 Request URI Too Long"  # gevent's words
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-length: 0\r\n\r\n".encode("latin-1")


def _as_fields(head: Head) -> bytes:
    lines = head.lines
    if head.target[0] != "/" and "HTTP_HOST" in head.fields:
        lines = [each for each in lines if each[:5].lower() != "host:"]
        lines = [f"Host: {head.fields['HTTP_HOST']}", *lines]
    if head.is_chunked:
        lines = [each for each in lines if each[:15].lower() != "content-length:"]
    return "".join(f"{each}\r\n" for each in [*lines, ""]).encode("latin-1")


def tls_variables(sock: Any) -> dict[str, str]:
    """Return what the environ tells of a TLS connection, by the names of Apache's mod_ssl."""
    cipher = sock.cipher()
    found = {
        "HTTPS": "on",
        "SSL_PROTOCOL": sock.version() or "",
        "SSL_CIPHER": cipher[0] if cipher else "",
        "SSL_CLIENT_VERIFY": "NONE",
    }
    certificate = sock.getpeercert()
    if certificate:
        found["SSL_CLIENT_VERIFY"] = "SUCCESS"
        found["SSL_CLIENT_S_DN"] = _name_of(certificate.get("subject", ()))
        found["SSL_CLIENT_I_DN"] = _name_of(certificate.get("issuer", ()))
        found["SSL_CLIENT_M_SERIAL"] = certificate.get("serialNumber", "")
        found["SSL_CLIENT_V_START"] = certificate.get("notBefore", "")
        found["SSL_CLIENT_V_END"] = certificate.get("notAfter", "")
        encoded = base64.encodebytes(sock.getpeercert(binary_form=True)).decode("ascii")
        begin, end = ("-----%s CERTIFICATE-----\n" % each for each in ("BEGIN", "END"))
        found["SSL_CLIENT_CERT"] = f"{begin}{encoded}{end}"
    return found


def _name_of(parts: Any) -> str:
    # RFC 2253, most specific first, by the short names that are in use.
    pairs = [pair for part in reversed(parts) for pair in part]
    return ",".join(f"{_SHORT.get(name, name)}={value}" for name, value in pairs)
