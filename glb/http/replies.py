"""How a reply is made: the application is called, and what it returns is framed and sent.

`Replier` is the part of gevent's handler that does so. What an application does can't break the
framing of its connection: what could is an error of the application, or is mended and told in the
log.

Source: gevent's ``pywsgi.py``; PEP 3333; RFC 9112, 6 and 9.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

import gevent.pywsgi
from gevent import Timeout

# By name, and now: programs may put ours in the place of gevent's later.
from gevent.pywsgi import WSGIHandler as GeventWSGIHandler
from gevent.pywsgi import (  # type: ignore[attr-defined]  # not in the stubs
    _InvalidClientInput,
    _NoopLog,
)

from ..model.clone import current_clone
from ..net.connection import Connection
from ..serve.idle import IdleConnections
from .body import DISCARD_MAX_BYTES, Body, BodyError, ClientLeft
from .head import BadRequest, Head
from .reply import ReplyHead, as_lines, checked, date
from .settings import Settings
from .stream import FileWrapper, RawStream, send_file

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Replier"]

# Up to so many bytes a body is copied behind its head: 0.2 us for 16 KiB, where the send that
# it saves takes 5 us (CPython 3.11, loopback). A larger one rarely leaves in one send anyhow.
SMALL_BODY_BYTES: Final = 16384

# So long, in seconds, a body that the application hasn't read is read away.
DISCARD_SECONDS: Final = 1.0

# As it was made: a program may put its own there, to see each request.
_FORMAT_REQUEST: Final = GeventWSGIHandler.format_request

# Those statuses are of no reply with a body, or of none that is HTTP's.
_WITHOUT_BODY: Final = frozenset({101, 204, 304})

_EMPTY_REFUSAL: Final = (("Connection", "close"), ("Content-Length", "0"))


class Replier(GeventWSGIHandler):
    """The part of a handler that has a request and makes its reply."""

    # They are read and set much faster than the attributes of an object that has so many, and take
    # less memory. A subclass may have other attributes, and may do without our constructor.
    __slots__ = (
        "_admission",
        "_body",
        "_buffered",
        "_greenlet",
        "_has_failed",
        "_has_left",
        "_has_read_body",
        "_has_served",
        "_has_told",
        "_head",
        "_is_in_head",
        "_is_in_line",
        "_is_raw",
        "_is_secured",
        "_is_timed",
        "_known",
        "_left",
        "_may_have_more",
        "_options",
        "_orig_status",
        "_peer",
        "_plain",
        "_raw",
        "_reply",
        "_rest",
        "_settings",
        "_tls",
        "_waiting",
        "application",
        "client_address",
        "close_connection",
        "code",
        "command",
        "connection_upgraded",
        "content_length",
        "environ",
        "headers",
        "headers_sent",
        "path",
        "provided_content_length",
        "provided_date",
        "request_version",
        "requestline",
        "response_headers",
        "response_length",
        "response_use_chunked",
        "result",
        "rfile",
        "server",
        "socket",
        "status",
        "time_finish",
        "time_start",
        "wsgi_input",
    )

    #: Whether it overrides none of gevent's methods.
    _is_lean: ClassVar[bool]

    # gevent's, which the stubs leave out.
    socket: Any
    rfile: Any
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

    # Of the connection.
    _plain: Any  # the plain socket of a `Connection`
    _settings: Settings | type[Settings]
    _rest: bytes  # what was read behind the last request
    _may_have_more: bool  # whether the client may still send what will not be served
    _admission: Any
    _is_secured: bool  # whether it speaks TLS
    _has_read_body: bool  # some clients send a line end behind one
    _has_served: bool
    _is_timed: bool
    _is_in_head: bool
    _is_in_line: bool
    _waiting: IdleConnections | None
    _greenlet: Any
    _tls: dict[str, str] | None
    _known: Head | None  # that of the last request
    _peer: Any  # address and port, as the environ has them; empty on a Unix socket
    # Of the request.
    _head: Head | None
    _raw: RawStream | None
    _body: Body | None
    _is_raw: bool  # whether the application has the connection itself to read from
    _buffered: int  # how much of it was there before
    _has_told: bool  # whether the log has a line about its body
    _has_left: bool  # whether some of the reply may have left
    _has_failed: bool  # whether a send has
    _left: int | None  # what is left of the reply's Content-Length
    _options: frozenset[str]
    _reply: ReplyHead | None

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """Make one with nothing of a connection or a request yet."""
        self = super().__new__(cls)
        self.socket = self.client_address = self.server = self.rfile = self._plain = None
        self._admission = self._waiting = self._greenlet = self._tls = self._peer = None
        self.requestline = self.command = self.path = self.request_version = self.environ = None
        self.application = self.wsgi_input = self._head = self._raw = self._body = None
        self._reply = self._known = None
        self.status = self._orig_status = self.code = self.result = self.response_headers = None
        self.provided_date = self.provided_content_length = self._left = None
        self.time_start = self.time_finish = self.content_length = self._buffered = 0
        self.response_length = 0
        self.close_connection = self._may_have_more = self._is_secured = False
        self._has_read_body = self._has_served = self._is_timed = self._is_in_head = False
        self._is_in_line = self._is_raw = self.headers_sent = self.response_use_chunked = False
        self.connection_upgraded = self._has_told = self._has_left = self._has_failed = False
        self._settings = Settings
        self._rest = b""
        self.headers = GeventWSGIHandler.headers
        self._options = frozenset()
        return self

    @property
    def _is_ending(self) -> bool:
        admission = self._admission
        return (
            admission is not None
            and admission.is_ending
            and bool(self.server.glb_engine.is_ending(current_clone()))
        )

    # -- the application -----------------------------------------------------------------------

    def handle_one_response(self) -> None:
        self.time_start = time.time()
        self.status = self._orig_status = self.code = self.result = self._reply = None
        self.headers_sent = False
        self.response_use_chunked = False
        self.connection_upgraded = False
        self.response_length = 0
        self._has_left = self._has_failed = self._has_told = False
        self._left = None
        try:
            if self._is_lean:
                self._run_lean()
            else:
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
            if self._body is not None or self._raw is not None or not self._is_lean:
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

    def _run_lean(self) -> None:
        # What the methods do that a subclass may override, in one go, for a reply that is whole.
        result = self.application(self.environ, self.start_response)
        if type(result) is list and len(result) == 1:
            data, reply, admission = result[0], self._reply, self._admission
            if (
                reply is not None
                and type(data) is bytes
                and 0 < len(data) <= SMALL_BODY_BYTES
                and (reply.length is None or reply.length == len(data))
                and not self.headers_sent
                and reply.code not in _WITHOUT_BODY
                and reply.connection is None
                and self.command != "HEAD"
                and self.request_version == "HTTP/1.1"
                and self._body is None
                and self._raw is None
                and (admission is None or not admission.is_ending)
            ):
                self.headers_sent = self._has_left = True
                self._send_whole(reply, data)
                return
        self.result = result
        try:
            self.process_result()
        finally:
            try:
                if hasattr(result, "close"):
                    result.close()
            finally:
                self.result = None

    def _send_whole(self, reply: ReplyHead, data: bytes) -> None:
        ours = [reply.start]
        if not reply.has_date:
            ours.append(b"Date: %b\r\n" % date())
        if reply.length is None:
            ours.append(b"Content-Length: %d\r\n" % len(data))
        if self.close_connection:
            ours.append(b"Connection: close\r\n")
        ours += b"\r\n", data
        whole = b"".join(ours)
        self.response_length = len(whole)
        plain, settings = self._plain, self._settings
        if plain is not None and settings.send_timeout is None:
            # Mostly all goes at once.
            try:
                sent = plain.send(whole)
            except OSError:
                sent = 0  # if it was an error, it comes again
            if sent == len(whole):
                return
            whole = whole[sent:]
        self._send_raw(whole)

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
            if self.status is None and self._is_taken:
                return  # the application has replied by itself
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
        reply = checked(status, headers)
        if reply.code == 204 and reply.length:
            raise self.ApplicationError(
                f"Invalid Content-Length for 204 response: {str(reply.length)!r} "
                "(must be absent or zero)"
            )
        self._reply = reply
        self.status = reply.line
        self._orig_status = status
        self.code = reply.code
        self.response_headers = [*reply.fields]
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
        if code in _WITHOUT_BODY:
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
        admission = self._admission
        if self.code == 101:
            self.close_connection = True
            upgraded = getattr(self.server, "has_upgraded", None)
            if upgraded is not None:
                upgraded(self.socket)
            return
        if (admission is not None and admission.is_ending and self._is_ending) or (
            not self.close_connection and not self._may_read_on
        ):
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
        if body is None:
            return not self._is_read_otherwise
        if body.is_over:
            return True
        if body.is_broken:
            return False
        if body.left is not None and not body.is_awaited:
            return body.left <= DISCARD_MAX_BYTES
        # Of a chunked one the client alone knows how long it is; and one that waits for a word
        # before it sends a body may never send it.
        return self._is_all_here(body)

    def _is_all_here(self, body: Body) -> bool:
        return body.rfile is not self.rfile or body.ends_in(self._peek_buffered())

    @property
    def _is_touched(self) -> bool:
        # A request can follow on a raw stream only if the application has read none of it.
        raw = self._raw
        return raw is None or raw.is_touched or len(self._peek_buffered()) != self._buffered

    @property
    def _is_taken(self) -> bool:
        # Then a reply to it would be in the midst of whatever the application speaks there.
        return self._is_raw and self._raw is not None and self._raw.is_taken

    def _peek_buffered(self) -> bytes:
        return b"" if self._raw is None else self._raw.peek_buffered(self.rfile)

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
        try:
            if data and isinstance(data, str):
                self.close_connection = True  # see `_frame`; its head is to say so
            self.finalize_headers()
        except BaseException:
            self.headers_sent = False  # there is a reply to be had still
            raise
        head = b"HTTP/1.1 %b\r\n%b\r\n" % (self.status, as_lines(self.response_headers))
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
                # It is whole for the client, so the connection may stay.
                if not self._has_told:
                    self._has_told = True
                    self.log_error(
                        "the reply to %s is longer than its Content-Length, and was cut",
                        ascii(self.requestline),
                    )
                data = memoryview(data)[:left]
            self._left = left - len(data)
        return bytes(data) if isinstance(data, memoryview) else data

    def _sendall(self, data: Any) -> None:
        self._has_left = True
        self._send_raw(data)
        self.response_length += len(data)

    def _send_raw(self, data: Any) -> None:
        sock, seconds = self.socket, self._settings.send_timeout
        try:
            if seconds is None:
                sock.sendall(data)
            else:
                self._send_in_time(sock, data, seconds)
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
        is_plain = type(self.socket) is Connection
        size = wrapper.size() if is_plain and not self.headers_sent else None
        if size is None or self.status is None or self.code in _WITHOUT_BODY:
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
                sent = send_file(
                    self.socket, wrapper, min(length, size), self._settings.send_timeout
                )
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
            raw.timeout = raw.on_taken = None
        if body is not None and not body.is_over:
            if self.close_connection or not self._discard(body):
                self.close_connection = True
                self._may_have_more = True
        elif (self._is_raw and self._is_touched) or self._is_read_otherwise:
            self.close_connection = True
        elif self._head is None:
            self._end_gevents_input()
        self._body = None
        self._is_raw = False
        if self._is_lean and raw is not None:
            if not self.close_connection:
                self._rest = raw.take_rest(self.rfile)
            self._raw = self.rfile = None

    @property
    def _is_read_otherwise(self) -> bool:
        # By a `get_environ` of the program's own: nothing tells where its body was left.
        head = self._head
        is_announced = head is not None and (head.is_chunked or bool(head.length))
        return is_announced and self._body is None

    def _end_gevents_input(self) -> None:
        # Of a `read_request` of the program's own: gevent's code has read the request.
        if not self.environ.get("wsgi.input_terminated", True):
            self.close_connection = True
        elif not self.close_connection:
            try:
                self.wsgi_input._discard()
            except (AttributeError, OSError):  # an input of the program's own, or a broken one
                self.close_connection = True

    def _discard(self, body: Body) -> bool:
        if body.is_broken or (body.is_awaited and not self._is_all_here(body)):
            return False
        try:
            with Timeout(DISCARD_SECONDS, False):  # type: ignore[arg-type]  # not in the stubs
                return body.end(DISCARD_MAX_BYTES)
        except OSError:
            pass
        return False

    # -- errors --------------------------------------------------------------------------------

    def _handle_client_error(self, ex: Exception) -> Any:
        if not isinstance(ex, (BadRequest, BodyError)):
            return super()._handle_client_error(ex)  # type: ignore[misc]  # not in the stubs
        self.log_error("Invalid request (from %s): %s", self.client_address, ex)
        return ex.status.partition(" ")[0], refusal(ex.status)

    def _send_error_response_if_possible(self, error_code: Any) -> None:
        if self.headers_sent or self._has_left or self._is_taken:
            self.close_connection = True
            return
        if isinstance(error_code, int):
            status, headers, body = gevent.pywsgi._ERRORS[error_code]  # type: ignore[attr-defined]  # not in the stubs
        else:
            status = getattr(error_code, "status", "400 Bad Request")
            headers, body = _EMPTY_REFUSAL, b""
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
