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

import contextlib
import io
import logging
import socket as _socket
import time
from collections.abc import Iterable
from typing import Any, ClassVar, Final
from urllib.parse import unquote_to_bytes

import gevent.pywsgi
from gevent import Timeout, getcurrent
from gevent.pywsgi import OldMessage

# By name, and now: programs may put ours in the place of gevent's later.
from gevent.pywsgi import WSGIHandler as GeventWSGIHandler
from gevent.socket import socket as GeventSocket

from ..net.connection import Connection, say_goodbye
from ..serve.idle import has_ended
from .body import READ_BYTES, Body
from .environ import as_fields, tls_variables
from .head import END, BadRequest, Head, Limits, find_end, parse, without_empty_lines
from .replies import DISCARD_SECONDS, Replier
from .reply import ReplyHead, as_lines
from .settings import Settings
from .stream import RawStream

__all__ = ["WSGIHandler"]

log: Final = logging.getLogger("glb")

# A client that still sends when its connection is closed gets a reset, and many clients then report
# that and not the reply. So what it sends is read away for so long, while it comes. nginx does so
# for 30 s and Apache too. It is less here: a server that drains waits for it.
LINGER_SECONDS: Final = 5.0

# So many bytes of a head are kept for the next one on its connection. Browsers send 500 to 1,500.
_KNOWN_MAX_BYTES: Final = 2048

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class SilentClientError(BadRequest):
    """A client did not go on with its request."""

    def __init__(self) -> None:
        super().__init__(
            "the client was silent within the head of a request", "408 Request Timeout"
        )


class WSGIHandler(Replier):
    """gevent's handler of a connection's requests: strict, and with less to do.

    Between two requests the connection is *waiting* (see `glb.serve.idle`): then it may be closed
    by a server that drains, or when the client is silent for longer than ``first_byte_timeout``.
    A request that is under way when its server drains gets ``Connection: close`` with its reply.

    Its limits and timeouts are its server's: see `glb.http.settings`.
    """

    __slots__ = ()

    _is_lean: ClassVar[bool] = True

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
        if type(sock) is Connection:
            self._plain = sock._sock
        else:
            self._is_secured = hasattr(sock, "_sslobj")

    # -- the connection ------------------------------------------------------------------------

    def handle(self) -> None:
        server = self.server
        if isinstance(server, Settings):
            self._settings = server
        engine = getattr(server, "glb_engine", None)
        waiting = None
        if engine is not None:
            self._admission = engine.admission
            waiting = engine.idle_here
        if waiting is not None and (self._is_lean or type(self.rfile) is io.BufferedReader):
            self._waiting = waiting
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
        server, settings = self.server, self._settings
        while True:
            self.time_start = time.time()
            self.time_finish = 0
            limits = self._limits_now
            try:
                data = self._receive_head(limits)
                if data is None:
                    break
                head = parse(data, limits, needs_host=settings.needs_host, last=self._known)
                self._take(head)
                self.environ = self._make_environ(head)
            except BadRequest as error:
                self._refuse(self._handle_client_error(error))
                break
            except OSError:
                break  # a reset, say, isn't interesting here
            # An idle connection is to be small.
            self._known = head if len(head.rest) <= _KNOWN_MAX_BYTES else None
            del head, data
            self.application = server.application
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
            # What it has of the connection, as gevent. An error may keep the handler.
            self.socket = self.rfile = self.wsgi_input = self.environ = None
            self._plain = self._raw = self._body = None
            # Its descriptor is closed. What is left in a cycle would be closed by whatever thread
            # collects it, which must not touch this one's watchers.
            if rfile is not None:
                for each in (rfile, raw):
                    try:
                        if each is not None:
                            each.close()
                    except Exception:
                        log.debug("can't close what requests were read from", exc_info=True)

    def _close_socket(self, sock: Any) -> None:
        # Data of the client that was not read makes the kernel reset the connection, and the client
        # may lose the reply. So it is read away, for a while.
        plain = getattr(sock, "_sock", None)
        with contextlib.suppress(OSError):
            if plain is not None:
                try:
                    if self._may_have_more:
                        self._linger(sock, plain)
                    elif not self._is_lean or self._has_read_body:
                        plain.recv(16384)  # it doesn't block
                finally:
                    plain.close()
            sock.close()

    def _linger(self, sock: Any, plain: Any) -> None:
        if getattr(sock, "_sslobj", None) is not None:
            say_goodbye(sock)
        plain.shutdown(_socket.SHUT_WR)
        sock.settimeout(DISCARD_SECONDS)
        with Timeout(LINGER_SECONDS, False):  # type: ignore[arg-type]  # not in the stubs
            while True:
                sock._wait(sock._read_event)  # also when more is there: others have their turn
                if not plain.recv(READ_BYTES):
                    return

    def _say_goodbye(self) -> None:
        sock = self.socket
        if sock is not None and (self._is_ending or has_ended(sock)):
            say_goodbye(sock)

    @property
    def _limits_now(self) -> Limits:
        # gevent's limit counts the line's end. It is read when it is used, as a program may set it,
        # and holds unless the server has one of its own.
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
            BadRequest: It can't become one any more.
            OSError: As recv(2).
        """
        data, self._rest = self._rest, b""
        seen = 0
        while True:
            if data[:2] == b"\r\n":
                data = without_empty_lines(data)
                seen = 0
            # Mostly all of it comes at once, and is short.
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
        waiting, plain = self._waiting, self._plain
        if not self._has_served and plain is not None:
            # The first one mostly is there already.
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
        if waiting.told and self._greenlet in waiting.told:
            return b""  # perhaps with a part of a request, which it won't get the rest of
        return data

    def _enter_wait(self) -> bool:
        """Say that this handler waits; ``False`` if it is not to."""
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
                return False  # the reply before had not said so; what has come is served
            if waiting.timeout is None and not waiting.watchers:
                waiting.waits[self._greenlet] = (self.socket, 0.0, True)
                return True
        waiting.enter(self.socket, self._greenlet, has_served=self._has_served)
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
        self._head = None
        self.response_length = 0
        most = self._limits_now.line
        if len(line) >= most + 2 and not line.endswith("\n"):
            return self._handle_client_error(
                BadRequest(f"the request line is longer than {most}", "414 URI Too Long")
            )
        try:
            if not self._read_request_in_time(line):
                return self._handle_client_error(BadRequest("the request was refused"))
        except OSError:
            return None  # as in the lean loop
        except Exception as error:
            return self._handle_client_error(error)
        self.environ = self.get_environ()
        self.application = self.server.application
        self.handle_one_response()
        if self._body is not None or self._is_raw:
            self._end_input()  # a `handle_one_response` of the program's own has not
        if self.close_connection or self.rfile.closed:
            return None
        return True

    def read_requestline(self) -> str:
        if self._waiting is not None and not self._is_in_line and not self._wait_for_request():
            return ""
        limit = self._limits_now.line + 2
        while True:
            line: bytes = self.rfile.readline(limit)
            if line != b"\r\n":
                return line.decode("latin-1")

    def _read_programs_requestline(self) -> Any:
        # Of a subclass that has its own, which may ask for ours.
        if self._waiting is not None and not self._wait_for_request():
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
        waiting = self._waiting
        assert waiting is not None, "only then it enters"
        try:
            first = self.rfile.peek(1)  # which waits, if nothing is there
        finally:
            del waiting.waits[self._greenlet]
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

    def read_request(self, raw_requestline: str) -> Any:
        """Read the head of a request, whose first line is *raw_requestline*.

        Raises:
            BadRequest: It is refused. This is no server's error, and not reported as one.
        """
        limits = self._limits_now
        data = raw_requestline.encode("latin-1")
        most = len(data) + limits.head + 2
        line = data
        find_end(data, 0, limits)  # what can't become a request is refused at its first line
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
        head = parse(data[: end + 2], limits, needs_host=self._settings.needs_host)
        self._take(head)
        return True

    def _take(self, head: Head) -> None:
        """Have gevent's attributes say what *head* does."""
        most = self._settings.max_body
        if head.length is not None and most is not None and head.length > most:
            raise BadRequest(
                f"a body of {head.length} bytes is longer than {most}",
                "413 Content Too Large",
            )
        if head.expects and head.expects != "100-continue":
            raise BadRequest(
                f"can't do what is expected: {head.expects[:100]!a}", "417 Expectation Failed"
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
        self.headers = self.MessageClass(io.BytesIO(as_fields(head)), 0)
        if getattr(self.headers, "status", ""):
            raise BadRequest(f"invalid headers: {self.headers.status!a}")

    def MessageClass(self, rfile: Any, *_args: Any) -> Any:  # noqa: N802  # gevent's name
        """Return the fields of a head that was checked, as gevent has them."""
        if type(rfile) is not io.BytesIO:  # a `read_request` of the program's own
            return super().MessageClass(rfile, *_args)
        message = OldMessage()
        for line in rfile.read().decode("latin-1").split("\r\n"):
            if not line:
                break
            name, _, value = line.partition(":")
            message.set_raw(name, value.strip(" \t"))
        message.set_payload("")
        return message

    def get_environ(self) -> dict[str, Any]:
        env: dict[str, Any] = super().get_environ()
        if self._head is None:  # a `read_request` of the program's own
            return env
        self._add_ours(env, self._head)
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
        peer = self._peer
        if peer is None:
            address = self.client_address
            is_known = isinstance(address, tuple)
            peer = self._peer = (str(address[0]), str(address[1])) if is_known else ()
        if peer:
            env["REMOTE_ADDR"], env["REMOTE_PORT"] = peer
        fields = head.fields
        if env.keys().isdisjoint(fields):
            env.update(fields)
        else:
            for key, value in fields.items():
                # As gevent: what the program has put there stands before it.
                comma = "; " if "COOKIE" in key else ","
                env[key] = f"{env[key]}{comma}{value}" if key in env else value
        self._add_ours(env, head)
        if head.length or head.is_chunked or head.expects or "upgrade" in head.options:
            self._add_input(env, head)
        else:
            env["wsgi.input"] = self.wsgi_input = io.BytesIO()
            env["wsgi.input_terminated"] = True
        return env

    def _add_ours(self, env: dict[str, Any], head: Head) -> None:
        """Add what gevent's environ hasn't."""
        env["RAW_URI"] = env["REQUEST_URI"] = head.target
        if head.version == "HTTP/1.1":
            env["wsgi.early_hints"] = self._send_early_hints
        if self._is_secured:
            if self._tls is None:
                self._tls = tls_variables(self.socket)
            env.update(self._tls)

    def _add_input(self, env: dict[str, Any], head: Head) -> None:
        self._body = None
        self._has_read_body = True
        upgrade = head.upgrade
        # gevent's own test for it, and one for the protocol that nearly everybody means.
        is_raw = bool(upgrade) and (upgrade == "websocket" or len(head.options) == 1)
        self._is_raw = is_raw
        env["wsgi.input_terminated"] = not is_raw
        if is_raw:
            env["wsgi.input"] = self._open()
            self.wsgi_input = Body(io.BytesIO(), None, is_chunked=False)
            if self._raw is not None:
                # The head may have come by it.
                self._raw.is_touched = self._raw.is_taken = False
                self._raw.on_taken = getattr(self.server, "has_upgraded", None)
            self._buffered = len(self._peek_buffered())
            return
        before = None
        if head.expects and (head.is_chunked or head.length is not None):
            before = self._send_continue
        if before is None and self._is_lean and not head.length and not head.is_chunked:
            env["wsgi.input"] = self.wsgi_input = io.BytesIO()
            return
        if self._is_lean and head.length is not None and head.length <= len(self._rest):
            file = io.BytesIO(self._rest[: head.length])
            self._rest = self._rest[head.length :]
            body = Body(file, head.length, is_chunked=False, before=before)
        else:
            body = Body(
                self._open(),
                head.length,
                is_chunked=head.is_chunked,
                limit=self._settings.max_body,
                before=before,
            )
            if self._raw is not None:
                self._raw.timeout = self._settings.body_timeout
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
        self._send_raw(b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % as_lines(hints.fields))
