"""How a handler waits for requests and reads them: heads, and the rest of bodies.

Source: gevent's ``pywsgi.py``; RFC 9112.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from typing import Any, Final

import gevent.pywsgi
from gevent import Timeout
from gevent.socket import socket as GeventSocket

from ..serve.sweep import NEVER
from .attributes import HandlerAttributes
from .body import DISCARD_MAX_BYTES, READ_BYTES, Body
from .head import END, BadRequest, Limits, find_end, without_empty_lines
from .stream import RawStream

__all__ = ["DISCARD_SECONDS", "RequestReader", "SilentClientError"]

# For so many seconds the rest of a body is read away, which the application hasn't read.
DISCARD_SECONDS: Final = 1.0


class SilentClientError(BadRequest):
    """A client was silent within the head of a request."""

    def __init__(self) -> None:
        super().__init__(
            "the client was silent within the head of a request", "408 Request Timeout"
        )


class RequestReader(HandlerAttributes):
    """The part of a handler that reads from its connection."""

    __slots__ = ()

    @property
    def _limits_now(self) -> Limits:
        # gevent's limit counts the line's end. A program may set it at any time. It holds unless
        # the server has one of its own.
        line: int = gevent.pywsgi.MAX_REQUEST_LINE - 2  # type: ignore[attr-defined]  # not in the stubs
        limits = self._settings.limits
        if line == limits.line or limits.line != Limits.line:
            return limits
        return Limits(line, limits.field, limits.head, limits.fields)

    # -- waiting for a request -----------------------------------------------------------------

    def _receive_head(self, limits: Limits) -> bytes | None:
        """Return the head of the next request, with the end of its last line.

        Returns:
            ``None`` if there will be none.

        Raises:
            BadRequest: It is none.
            OSError: As recv(2).
        """
        data, self._rest = self._rest, b""
        seen = 0
        try:
            while True:
                if data[:2] == b"\r\n":
                    data = without_empty_lines(data)
                    seen = 0
                # Mostly it comes at once, and is short.
                end = -1 if seen else data.find(END)
                if data and not 0 <= end <= limits.line:
                    end = find_end(data, seen, limits)
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
        except BadRequest:
            self._rest = data  # for the log
            raise

    def _headers(self) -> Iterator[tuple[str, str]]:
        """Yield the fields of the environ. gevent's would strip NEL and NBSP."""
        if self._head is None:  # a `read_request` of the program's own
            yield from super()._headers()  # type: ignore[misc]  # the stubs have none
            return
        for line in self.headers.headers:
            name, _, value = line.partition(":")
            key = name.replace("-", "_").upper()
            if "_" not in name and key not in {"CONTENT_TYPE", "CONTENT_LENGTH"}:
                yield f"HTTP_{key}", value.strip(" \t\r\n")

    def _leave_head(self) -> None:
        self._is_in_head = False
        assert self._waiting is not None, "it has the timeout"
        if self._waiting.leave_head():
            # The part that has come looks like a whole one, and must not be served.
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
        waiting, plain = self._waiting, self._plain
        if not self._has_served and plain is not None:
            # Mostly the first one is there already.
            try:
                data: bytes = plain.recv(READ_BYTES)
            except BlockingIOError:
                pass
            else:
                return data
        if waiting is None:
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
            del waiting.waits[self._greenlet]
        if waiting.ended and self._greenlet in waiting.ended:
            return b""  # perhaps with a part of a request, whose rest won't come
        return data

    def _enter_wait(self) -> bool:
        """Register that this handler waits; return ``False`` if it must not."""
        waiting = self._waiting
        assert waiting is not None, "only then it enters"
        if self._has_served:
            admission = self._admission
            if (
                admission is not None
                and admission.is_ending
                and self._is_ending
                and not self._has_come()
            ):
                return False  # the last reply did not announce it: what has come is served
            if waiting.timeout is None and not waiting.watchers:
                waiting.waits[self._greenlet] = (self.socket, 0.0, True)
                return True
        waiting.enter(self.socket, self._greenlet, has_served=self._has_served)
        return True

    def _has_come(self) -> bool:
        """Return True if a part of a request may be there, in a buffer or in the kernel."""
        sock: Any = self.socket
        if not isinstance(sock, GeventSocket):
            return True  # a wrapper of the program's own: it can be ended while it waits
        timeout = sock.gettimeout()
        sock.settimeout(0.0)
        try:
            if self._is_lean:
                self._rest = sock.recv(READ_BYTES)
                return bool(self._rest)
            return bool(self.rfile.peek(1))
        except OSError:  # TLS has nothing now
            return False
        finally:
            sock.settimeout(timeout)

    def _wait_for_request(self) -> bool:
        """Return when a part of a request is there; ``False`` if none will come."""
        if not self._enter_wait():
            return False
        waiting = self._waiting
        assert waiting is not None, "only then it enters"
        try:
            first = self.rfile.peek(1)  # which waits, if nothing is there
        finally:
            del waiting.waits[self._greenlet]
        if not first or self._greenlet in waiting.ended:
            return False
        self._has_served = True
        if self._is_timed:
            self._is_in_head = True
            waiting.enter_head(self.socket)
        return True

    # -- the body ------------------------------------------------------------------------------

    def _open(self) -> Any:
        """Return the file that reads from this connection."""
        if self._is_lean:
            self._raw = RawStream(self.socket, self._rest)
            self._rest = b""
            self.rfile = io.BufferedReader(self._raw)
        return self.rfile

    def _time_body(self, raw: RawStream) -> None:
        raw.timeout = self._settings.body_timeout
        engine = getattr(self.server, "glb_engine", None)
        if raw.timeout is not None and engine is not None:
            raw.on_silence = functools.partial(engine.count_timeout, "body")

    @property
    def _may_read_on(self) -> bool:
        """True if the end of this request, and so the next one, can be found after the reply."""
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
        # Only the client knows the length of a chunked one; and a client that waits for 100
        # Continue may never send its body.
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
        # Then a reply would get into the middle of the application's own protocol.
        return self._is_raw and self._raw is not None and self._raw.is_taken

    def _peek_buffered(self) -> bytes:
        return b"" if self._raw is None else self._raw.peek_buffered(self.rfile)

    def _end_input(self) -> None:
        """Read away the rest of the body, so that the next request is found."""
        if self._task is not None:
            self._task.until = NEVER  # the reply was sent, and this has a time of its own
        body, raw = self._body, self._raw
        if raw is not None:
            raw.timeout = raw.on_taken = raw.on_silence = None
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
        # By a `get_environ` of the program's own: how much of the body was read isn't known.
        head = self._head
        is_announced = head is not None and (head.is_chunked or bool(head.length))
        return is_announced and self._body is None

    def _end_gevents_input(self) -> None:
        # After a `read_request` of the program's own: gevent's code has read the request.
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
