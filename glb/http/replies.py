"""How a handler replies: it calls the application, and frames and sends the result.

An application can't break the framing of its connection: what would break it is an error of the
application, or is mended with a line in the log.

Source: gevent's ``pywsgi.py``; PEP 3333; RFC 9112, 6 and 9.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from typing import Any, Final

import gevent.pywsgi

# By name, and now: programs may replace gevent's by ours later.
from gevent.pywsgi import WSGIHandler as GeventWSGIHandler
from gevent.pywsgi import (  # type: ignore[attr-defined]  # not in the stubs
    _InvalidClientInput,
    _NoopLog,
)

from ..net.connection import Connection
from .body import BodyError, ClientLeft
from .durations import BOUNDS, counts_of
from .head import BadRequest
from .reading import RequestReader
from .reply import ReplyHead, as_lines, checked, date
from .settings import RequestTimeout
from .stream import FileWrapper, send_file

__all__ = ["Replier"]

# Up to so many bytes a body is copied behind its head: 0.2 us for 16 KiB, where the send that
# it saves takes 5 us (CPython 3.11, loopback). A larger one rarely leaves in one send anyhow.
SMALL_BODY_BYTES: Final = 16384

# gevent's own: a program may replace it, to see each request.
_FORMAT_REQUEST: Final = GeventWSGIHandler.format_request

# The statuses of replies without a body, or with one that isn't HTTP.
_WITHOUT_BODY: Final = frozenset({101, 204, 304})

_EMPTY_REFUSAL: Final = (("Connection", "close"), ("Content-Length", "0"))


class Replier(RequestReader):
    """The part of a handler that replies to a request."""

    __slots__ = ()

    # -- the application -----------------------------------------------------------------------

    def handle_one_response(self) -> None:  # noqa: PLR0915  # another call costs more
        self.time_start = time.time()
        self.status = self._orig_status = self.code = self.result = self._reply = None
        self.headers_sent = False
        self.response_use_chunked = False
        self.connection_upgraded = False
        self.response_length = 0
        self._has_left = self._has_failed = self._has_logged = False
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
        except RequestTimeout as error:
            self._time_is_up(error)
        except BaseException:
            self._report()
        finally:
            self.time_finish = now = time.time()
            durations = self._durations
            if durations is not None:
                # Each step counts here: it is one for each request.
                try:
                    counts = durations[self.code][self.command]
                except KeyError:
                    counts = counts_of(durations, self.command, self.code)
                seconds = now - self.time_start
                if seconds < 0.0:  # noqa: PLR1730  # the clock was set back; a call costs more
                    seconds = 0.0
                counts[0] += seconds
                if seconds <= BOUNDS[0]:
                    counts[1] += 1
                else:
                    counts[bisect_left(BOUNDS, seconds) + 1] += 1
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
                # This frees what a generator's frame keeps.
                close = None
                self.result = None

    def _run_lean(self) -> None:
        # All steps of gevent's methods in one go, for a reply of one piece.
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
            # Mostly one send is enough.
            try:
                sent = plain.send(whole)
            except OSError:
                sent = 0  # a real error comes again
            if sent == len(whole):
                return
            whole = whole[sent:]
        self._send_raw(whole)

    def process_result(self) -> None:
        result = self.result
        if type(result) is FileWrapper and self._send_file(result):
            self._check_shortfall()
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
        self._check_shortfall()

    def _check_shortfall(self) -> None:
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
            # An iterator would have nothing left to send.
            if hasattr(result, "__len__") and iter(result) is not result:
                length = sum(map(_size_of, result))
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
        # The reply's Connection field must be true.
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
            self.headers_sent = False  # another reply is still possible
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
        """Return the bytes to send for *data*."""
        if not data:
            return b""
        if isinstance(data, str):
            # It is sent as latin-1, with a line in the log.
            self.close_connection = True
            if not self._has_logged:
                self._has_logged = True
                self.log_error("a body must be bytes, got %s", ascii(data[:50]))
            data = data.encode("latin-1")
        elif isinstance(data, memoryview):
            data = bytes(data)  # its length counts items, and they may have several bytes each
        elif not isinstance(data, (bytes, bytearray)):
            raise TypeError(f"a body must be bytes, got {data!a}")
        if self.command == "HEAD":
            return b""
        if self.response_use_chunked:
            return b"%x\r\n%b\r\n" % (len(data), data)
        left = self._left
        if left is not None:
            if len(data) > left:
                # The client has the whole reply, so the connection may stay.
                if not self._has_logged:
                    self._has_logged = True
                    self.log_error(
                        "the reply to %s is longer than its Content-Length, and was cut",
                        ascii(self.requestline),
                    )
                data = data[:left]
            self._left = left - len(data)
        return data

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
            self._count_silence(error)
            self._has_failed = True
            self.status = f"socket error: {error}"
            if self.code is not None and self.code > 0:
                self.code = -self.code
            raise

    def _send_in_time(self, sock: Any, data: Any, seconds: float) -> None:
        # gevent's `sendall` would bound the time of all sends together.
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
        """Have the kernel send the rest of a file; ``False`` if it can't."""
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
            except OSError as error:
                self._count_silence(error)
                self._has_failed = True
                raise
            self.response_length += sent
            self._left = length - sent
        return True

    def _count_silence(self, error: OSError) -> None:
        engine = getattr(self.server, "glb_engine", None)
        if isinstance(error, TimeoutError) and engine is not None:
            engine.count_timeout("send")

    # -- errors --------------------------------------------------------------------------------

    def _handle_client_error(self, ex: Exception) -> Any:
        if not isinstance(ex, (BadRequest, BodyError)):
            return super()._handle_client_error(ex)  # type: ignore[misc]  # not in the stubs
        if self._connected is not None and isinstance(ex, BadRequest):
            self.client_address = self._connected  # it was the last request's client
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
            headers, body = getattr(error_code, "headers", _EMPTY_REFUSAL), b""
        self.status = None
        try:
            self.start_response(status, [*headers])
            self.write(body if isinstance(body, bytes) else body.encode("latin-1"))
        except OSError:
            self.close_connection = True

    def _time_is_up(self, error: RequestTimeout) -> None:
        self.close_connection = True
        self._send_error_response_if_possible(error)

    def log_request(self) -> None:
        # gevent makes the line and drops it. Another `format_request` may keep it.
        is_read = type(self.server.log) is not _NoopLog
        if is_read or type(self).format_request is not _FORMAT_REQUEST:
            super().log_request()


def _size_of(part: Any) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)


def refusal(status: str) -> bytes:
    """Return the whole reply to a request that is refused."""
    if status.startswith("414"):
        status = "414 Request URI Too Long"  # gevent's words
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-length: 0\r\n\r\n".encode("latin-1")
