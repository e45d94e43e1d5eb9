"""The attributes of a handler, and what they are before its first request.

Source: gevent's ``pywsgi.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

# By name, and now: ours may replace it later.
from gevent.pywsgi import WSGIHandler as GeventWSGIHandler

from ..model.clone import current_clone
from ..serve.idle import IdleConnections
from ..serve.sweep import Task
from .body import Body
from .durations import Table
from .head import Head
from .reply import ReplyHead
from .settings import Settings
from .stream import RawStream

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["HandlerAttributes"]


class HandlerAttributes(GeventWSGIHandler):
    """The attributes of a handler, all there from the beginning.

    A subclass may have other attributes, and may do without our constructor.
    """

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

    # Of the connection.
    _plain: Any  # the plain socket of a `Connection`
    _settings: Settings | type[Settings]
    _rest: bytes  # read already, and behind the last request
    _may_have_more: bool  # the client may still send bytes that will not be served
    _admission: Any
    _is_secured: bool  # it is TLS
    _has_read_body: bool  # some clients send a line end behind one
    _has_served: bool
    _is_timed: bool
    _is_in_head: bool
    _is_in_line: bool
    _waiting: IdleConnections | None
    _task: Task | None  # of its requests, which have a time
    _durations: Table | None  # where they are counted
    _greenlet: Any
    _tls: dict[str, str] | None
    _known: Head | None  # the last request's
    _peer: Any  # address and port, as the environ has them; empty on a Unix socket
    _connected: Any  # the peer's address, once `client_address` may be that of a client behind it
    # Of the request.
    _head: Head | None
    _raw: RawStream | None
    _body: Body | None
    _is_raw: bool  # the application reads from the connection itself
    _buffered: int  # bytes of it that were there before
    _has_logged: bool  # the log has a line about its body
    _has_left: bool  # some of the reply may have left
    _has_failed: bool  # a send has failed
    _left: int | None  # bytes left of the reply's Content-Length
    _options: frozenset[str]
    _reply: ReplyHead | None

    # Slots are read and set much faster than the dictionary of an object with so many attributes,
    # and take less memory.
    __slots__ = (*__annotations__,)

    #: True if the class overrides none of gevent's methods.
    _is_lean: ClassVar[bool]
    ignored_socket_errors: tuple[int, ...]  # of the class

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """Make one that has no connection and no request yet."""
        self = super().__new__(cls)
        self.socket = self.client_address = self.server = self.rfile = self._plain = None
        self._admission = self._waiting = self._greenlet = self._tls = self._peer = None
        self._task = self._durations = None
        self.requestline = self.command = self.path = self.request_version = self.environ = None
        self.application = self.wsgi_input = self._head = self._raw = self._body = None
        self._reply = self._known = self._connected = None
        self.status = self._orig_status = self.code = self.result = self.response_headers = None
        self.provided_date = self.provided_content_length = self._left = None
        self.time_start = self.time_finish = self.content_length = self._buffered = 0
        self.response_length = 0
        self.close_connection = self._may_have_more = self._is_secured = False
        self._has_read_body = self._has_served = self._is_timed = self._is_in_head = False
        self._is_in_line = self._is_raw = self.headers_sent = self.response_use_chunked = False
        self.connection_upgraded = self._has_logged = self._has_left = self._has_failed = False
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
