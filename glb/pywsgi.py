"""`WSGIServer`: gevent's, with clones.

Change the import and say how many::

    from glb.pywsgi import WSGIServer

    WSGIServer(("127.0.0.1", 8000), application, clones=4).serve_forever()

Everything of `gevent.pywsgi.WSGIServer` holds, and everything of `glb.server.StreamServer`. The
other public names of `gevent.pywsgi` are here too, so that its import can be changed as a whole.
"""

from __future__ import annotations

import _socket
import contextlib
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import gevent.pywsgi
from gevent.baseserver import BaseServer
from gevent.pywsgi import (
    Environ,
    LoggingLogAdapter,
    SecureEnviron,
    WSGISecureEnviron,
)

# By name, and now: programs may replace gevent's by ours later.
from gevent.pywsgi import WSGIServer as GeventWSGIServer

from ._version import VERSION
from .accept.listener import Listener
from .http.handler import WSGIHandler
from .http.head import Limits
from .http.settings import RequestTimeout, Settings
from .http.stream import FileWrapper
from .model.clone import Clone, current_clone
from .model.policy import Policy
from .model.proxy_header import Version
from .server import StreamServer

__all__ = [
    "Environ",
    "LoggingLogAdapter",
    "RequestTimeout",
    "SecureEnviron",
    "WSGIHandler",
    "WSGISecureEnviron",
    "WSGIServer",
]


_SPEAKS_TLS: Final = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 37\r\n\r\nThis port speaks TLS: use https://.\r\n"
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


if TYPE_CHECKING or not issubclass(GeventWSGIServer, StreamServer):

    class _Both(StreamServer, GeventWSGIServer):
        """gevent's server, on ours."""

else:
    # A program replaced gevent's StreamServer by ours before gevent.pywsgi was first imported: then
    # ours is the base of gevent's server already.
    _Both = GeventWSGIServer


class WSGIServer(Settings, _Both):
    """A WSGI server whose connections go round its clones in exact turn.

    The arguments are gevent's, and those of `glb.server.StreamServer`; *handler_factory*
    makes each clone its own **application**, in place of *application*. Turns are taken by
    connections: the requests of a kept-alive connection are one clone's.

    ``environ["glb.clone"]`` is the `glb.Clone` that serves the request: its index, a number
    that knows its server.

    The arguments from *forwarded_allow_ips* on are the attributes of those names: see
    `glb.http.settings.Settings`, which has more of them. They are read when they are used.
    """

    handler_class: Any = WSGIHandler

    # Programs check that it begins with gevent's name (simple-websocket does).
    base_env: Any = {  # noqa: RUF012  # as gevent's
        **GeventWSGIServer.base_env,
        "SERVER_SOFTWARE": f"gevent/{gevent.__version__} glb/{VERSION}",
        "wsgi.file_wrapper": FileWrapper,
    }

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
        accept_loop: Callable[[Listener, Clone], object] | None = None,
        policy: Policy | str | None = None,
        hubs: int | None = None,
        patience: float | None = None,
        nodelay: bool | None = None,
        max_connections: int | None = None,
        max_connections_per_clone: int | None = None,
        accept_rate: float | None = None,
        handshake_timeout: float | None = None,
        first_byte_timeout: float | None = None,
        proxy_protocol: Version | None = None,
        proxy_allow_ips: Iterable[str] | str | None = None,
        forwarded_allow_ips: Iterable[str] | str | None = None,
        max_body: int | None = None,
        body_timeout: float | None = None,
        send_timeout: float | None = None,
        request_timeout: float | None = None,
        request_histogram: bool | None = None,
        limits: Limits | None = None,
        **ssl_args: Any,
    ) -> None:
        self._take_options(
            application,
            backlog,
            spawn,
            ssl_args,
            clones=clones,
            hubs=hubs,
            handler_factory=handler_factory,
            accept_loop=accept_loop,
            policy=policy,
            reuse_port=reuse_port,
            patience=patience,
            nodelay=nodelay,
            max_connections=max_connections,
            max_connections_per_clone=max_connections_per_clone,
            accept_rate=accept_rate,
            handshake_timeout=handshake_timeout,
            first_byte_timeout=first_byte_timeout,
            proxy_protocol=proxy_protocol,
            proxy_allow_ips=proxy_allow_ips,
            forwarded_allow_ips=forwarded_allow_ips,
            max_body=max_body,
            body_timeout=body_timeout,
            send_timeout=send_timeout,
            request_timeout=request_timeout,
            request_histogram=request_histogram,
            limits=limits,
        )
        self._upgraded = WeakSet()
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

    def _check_limits(self) -> None:
        super()._check_limits()
        self._check_settings()

    def choose_handle(self) -> None:
        self._check_settings()
        super().choose_handle()

    def set_handle(self, handle: Callable[..., object] | None) -> None:
        # Here *handle* speaks HTTP, and the clones' handlers are its applications.
        BaseServer.set_handle(self, handle)  # type: ignore[arg-type]  # gevent takes None

    def set_environ(self, environ: dict[str, Any] | None = None) -> None:
        super().set_environ(environ)
        self._is_multithread_given = "wsgi.multithread" in (environ or {})
        self._is_threads_ours = False

    def update_environ(self) -> None:
        super().update_environ()
        # PEP 3333 wants both. gevent leaves them empty on a Unix socket.
        if not self.environ["SERVER_NAME"]:
            self.environ["SERVER_NAME"] = "localhost"
        if not self.environ["SERVER_PORT"]:
            self.environ["SERVER_PORT"] = "443" if self.ssl_enabled else "80"
        # With one hub the program's value stays, which may be set after `set_environ`.
        if not self._is_multithread_given and (self.hubs > 1 or self._is_threads_ours):
            self._is_threads_ours = self.hubs > 1
            self.environ["wsgi.multithread"] = self.hubs > 1

    def proxy_header_failed(self, sock: Any, peer: Any, error: Exception) -> None:
        self.error_log.write(f"no header of the PROXY protocol from {peer!a}: {error}\n")

    def handshake_failed(self, sock: Any, peer: Any, error: OSError) -> bool:
        # Most are port scans, or browsers with an "http:" link to this port.
        reason = getattr(error, "reason", None) or error
        self.error_log.write(f"TLS handshake with {peer!a} failed: {reason}\n")
        if getattr(error, "reason", None) == "HTTP_REQUEST":
            plain = sock._sock
            with contextlib.suppress(OSError):
                plain.send(_SPEAKS_TLS)
                plain.shutdown(_socket.SHUT_WR)
                plain.recv(16384)  # unread data would reset the connection
        return True

    def handle_by_clone(self) -> bool:
        if self.application != self._apply_by_clone:
            for acceptor in self.glb_engine.clones.acceptors:
                acceptor.handle = self.application
            self.application = self._apply_by_clone
        return False  # each request asks for its application

    def has_upgraded(self, sock: Any) -> None:
        """Note that *sock* speaks another protocol from now on, and may be open for long."""
        self._upgraded.add(sock)

    def is_long_lived(self, sock: Any) -> bool:
        return sock in self._upgraded

    def _apply_by_clone(self, environ: dict[str, Any], start_response: Any) -> Any:
        # By the environ, for a handler class that runs applications in another greenlet.
        handle = self.glb_engine.clones.handler_of(environ.get("glb.clone"))
        return handle(environ, start_response)

    def init_socket(self) -> None:
        StreamServer.init_socket(self)
        self.update_environ()

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = GeventWSGIServer.get_environ(self)
        environ["glb.clone"] = current_clone()
        return environ
