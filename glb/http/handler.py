"""The handler of a connection's requests.

`WSGIHandler` is gevent's, as far as programs see it: the same constructor, the same methods that a
subclass may override, the same attributes while a request is served. It reads requests by
`glb.http.head` and `glb.http.body`, and frames replies by `glb.http.reply`.

There are two loops over the requests of a connection. The *lean* one, for handlers that override
none of gevent's methods, reads heads directly from the socket, and makes a buffer only when a body
has to be read. The other one calls each method as gevent calls it. After the head both use the same
methods.

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

from gevent import Timeout, getcurrent
from gevent.pywsgi import OldMessage

# By name, and now: programs may replace gevent's by ours later.
from gevent.pywsgi import WSGIHandler as GeventWSGIHandler

from ..model.forwarded import FIELDS, AmbiguousHopsError, TrustedProxies
from ..net.connection import Connection, say_goodbye
from ..serve.idle import has_ended
from .answers import Answerer
from .body import READ_BYTES, Body
from .environ import as_fields, tls_variables
from .head import BadRequest, Head, find_end, parse
from .reading import DISCARD_SECONDS
from .reply import ReplyHead, as_lines
from .settings import Settings
from .stream import RawStream

__all__ = ["WSGIHandler"]

log: Final = logging.getLogger("glb")

# A client that still sends when its connection is closed gets a reset, and many clients then report
# the reset and not the reply. So its bytes are read away for so long. nginx and Apache have 30 s.
# It is less here, as a server that drains waits for it.
LINGER_SECONDS: Final = 5.0

# A head of at most so many bytes is kept for the next one on its connection. Browsers send 500 to
# 1,500.
_KNOWN_MAX_BYTES: Final = 2048

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class WSGIHandler(Answerer):
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
            self._is_lean = False  # type: ignore[misc]  # this one's
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
            if server.durations is not None:
                self._durations = server.durations.table_here()
        engine = getattr(server, "glb_engine", None)
        waiting = worker = None
        if engine is not None:
            self._admission = engine.admission
            worker = engine.workers.here
        if worker is not None:
            waiting = worker.idle
        if waiting is not None and (self._is_lean or type(self.rfile) is io.BufferedReader):
            self._waiting = waiting
            self._greenlet = getcurrent()
            self._is_timed = waiting.timeout is not None
        seconds = self._settings.request_timeout
        if seconds is not None and worker is not None:
            self._enter_deadlines(worker.deadlines, seconds)
        try:
            if self._is_lean:
                self._serve_lean()
            else:
                self._serve_by_hooks()
        finally:
            if self._task is not None and worker is not None:
                worker.deadlines.leave(self._task)
                self._task = None
            if waiting is not None and self._greenlet is not None:
                waiting.leave(self._greenlet)
                self._greenlet = None  # else it and an error's traceback keep each other
                if self._is_timed:
                    waiting.leave_head()
            self._close()

    def _serve_lean(self) -> None:
        server, settings = self.server, self._settings
        respond = self.handle_one_response if self._task is None else self._respond
        data: bytes | None = None
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
                line = (data or self._rest).partition(b"\n")[0].decode("latin-1")
                self._refuse(self._handle_client_error(error), line)
                break
            except OSError:
                break  # a reset, say: no reply can be sent
            # An idle connection must be small.
            self._known = head if len(head.rest) <= _KNOWN_MAX_BYTES else None
            del head
            data = None
            self.application = server.application
            respond()
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
                self._refuse(result, self.requestline)
            elif self._is_secured:
                self._say_goodbye()
            break

    def _close(self) -> None:
        sock = self.socket
        raw, rfile = self._raw, self.rfile
        try:
            if sock is not None:
                self._close_socket(sock)
        finally:
            # As gevent, since an error may keep the handler.
            self.socket = self.rfile = self.wsgi_input = self.environ = None
            self._plain = self._raw = self._body = None
            # The descriptor is closed. The garbage collector could close the files in another
            # thread, which must not touch this one's watchers.
            if rfile is not None:
                for each in (rfile, raw):
                    try:
                        if each is not None:
                            each.close()
                    except Exception:
                        log.debug("can't close what requests were read from", exc_info=True)

    def _close_socket(self, sock: Any) -> None:
        # Unread data makes the kernel reset the connection, and the client may lose the reply. So
        # it is read away, for a while.
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
                sock._wait(sock._read_event)  # also if more is there: the hub has other turns
                if not plain.recv(READ_BYTES):
                    return

    def _say_goodbye(self) -> None:
        sock = self.socket
        if sock is not None and (self._is_ending or has_ended(sock)):
            say_goodbye(sock)

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
        try:
            self.environ = self.get_environ()
        except BadRequest as error:
            return self._handle_client_error(error)
        self.application = self.server.application
        self._respond()
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
        # Of a subclass that has its own, which may call ours.
        if self._waiting is not None and not self._wait_for_request():
            return ""
        self._is_in_line = True
        try:
            return self.read_requestline()
        finally:
            self._is_in_line = False

    def _read_request_in_time(self, line: str) -> Any:
        try:
            return self.read_request(line)
        finally:
            if self._is_in_head:
                self._leave_head()

    def read_request(self, raw_requestline: str) -> Any:
        """Read the head of a request, whose first line is *raw_requestline*.

        Raises:
            BadRequest: It is refused. The error isn't reported: it is the client's.
        """
        limits = self._limits_now
        data = raw_requestline.encode("latin-1")
        most = len(data) + limits.head + 2
        line = data
        find_end(data, 0, limits)  # no request: it is refused at its first line
        while line not in {b"\r\n", b"\n"}:
            if not line.endswith(b"\n"):
                raise BadRequest("the client left within the head of a request")
            line = self.rfile.readline(most - len(data) + 1)
            data += line
            if len(data) > most:
                find_end(data, 0, limits)  # another fault comes first
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
        """Set gevent's attributes by *head*."""
        self._head = head
        self.requestline = head.line
        self.command = head.method
        self.request_version = head.version
        self.content_length = head.length
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
        self.close_connection = not head.is_persistent
        if self._is_lean:
            return
        self.path = f"{head.path}?{head.query}" if head.query else head.path
        self.headers = self.MessageClass(io.BytesIO(as_fields(head)), 0)
        if getattr(self.headers, "status", ""):
            raise BadRequest(f"invalid headers: {self.headers.status!a}")

    def MessageClass(self, rfile: Any, *_args: Any) -> Any:  # noqa: N802  # gevent's name
        """Return the fields of a checked head, as gevent has them."""
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
        if self._connected is not None:
            self.client_address = self._connected  # it was the last request's client
        env: dict[str, Any] = super().get_environ()
        if self._head is None:  # a `read_request` of the program's own
            return env
        self._add_ours(env, self._head)
        self._add_input(env, self._head)
        return env

    def _make_environ(self, head: Head) -> dict[str, Any]:
        # As gevent's method, without steps that are done already.
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
                # As gevent: the program's own value stands before it.
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
        """Add the keys that gevent's environ hasn't."""
        env["RAW_URI"] = env["REQUEST_URI"] = head.target
        if head.version == "HTTP/1.1":
            env["wsgi.early_hints"] = self._send_early_hints
        if self._is_secured:
            if self._tls is None:
                self._tls = tls_variables(self.socket)
            env.update(self._tls)
        proxies = self._settings.trusted_proxies
        if proxies is not None:
            self._take_forwarded(env, proxies)

    def _take_forwarded(self, env: dict[str, Any], proxies: TrustedProxies) -> None:
        """Have *env* and `client_address` show the client in front of the proxies."""
        if self._connected is None:
            self._connected = self.client_address
        peer = self._connected
        try:
            found = proxies.look(str(peer[0]) if isinstance(peer, tuple) else "", env)
        except AmbiguousHopsError as error:
            raise BadRequest(str(error)) from None
        for key in FIELDS:
            env.pop(key, None)
        env.update(found.fields)
        self.client_address = peer
        if found.client is not None:
            self.client_address = (found.client, 0)
            env["REMOTE_ADDR"] = found.client
            env.pop("REMOTE_PORT", None)  # no proxy sends it
        if found.scheme is not None:
            env["wsgi.url_scheme"] = found.scheme
        if found.host is not None:
            env["HTTP_HOST"] = found.host

    def _add_input(self, env: dict[str, Any], head: Head) -> None:
        self._body = None
        self._has_read_body = True
        upgrade = head.upgrade
        # gevent's own test for it, and one for the most usual protocol.
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
                self._time_body(self._raw)
        self._body = self.wsgi_input = env["wsgi.input"] = body

    def _send_continue(self) -> None:
        if not self.headers_sent:
            self._send_raw(_CONTINUE)

    def _send_early_hints(self, headers: Iterable[tuple[str, str]]) -> None:
        """Send *headers* to the client ahead of the reply, as ``103 Early Hints``."""
        if self.headers_sent:
            raise self.ApplicationError("early hints come before the reply")
        hints = ReplyHead("200 OK", headers)
        if hints.length is not None or hints.connection is not None:
            raise ValueError(f"early hints have no Content-Length or Connection, got {headers!r}")
        self._send_raw(b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % as_lines(hints.fields))
