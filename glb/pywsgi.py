"""`WSGIServer`: gevent's, with clones.

Change the import and say how many::

    from glb.pywsgi import WSGIServer

    WSGIServer(("127.0.0.1", 8000), application, clones=4).serve_forever()

Everything of `gevent.pywsgi.WSGIServer` holds, and everything of `glb.server.StreamServer`. The
other public names of `gevent.pywsgi` are here too, so that its import can be changed as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gevent.baseserver import BaseServer
from gevent.pywsgi import (
    Environ,
    LoggingLogAdapter,
    SecureEnviron,
    WSGIHandler,
    WSGISecureEnviron,
)

# By name, and now: programs may put ours in the place of gevent's later.
from gevent.pywsgi import WSGIServer as GeventWSGIServer

from .balance import Policy
from .clones import current_clone
from .server import StreamServer

__all__ = [
    "Environ",
    "LoggingLogAdapter",
    "SecureEnviron",
    "WSGIHandler",
    "WSGISecureEnviron",
    "WSGIServer",
]


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
        nodelay: bool | None = None,
        **ssl_args: Any,
    ) -> None:
        self._take_arguments(
            application, backlog, spawn, clones, reuse_port, handler_factory, policy, nodelay
        )
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
