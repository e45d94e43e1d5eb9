"""`Worker`: gunicorn's gevent worker, whose connections glb accepts.

Everything after the accept is gunicorn's own: subclasses override what they override of its
worker, and each of its settings holds.

Source: gunicorn's ``workers/base.py``, ``base_async.py`` and ``ggevent.py``.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Final

import gevent
from gevent.socket import wait_read
from gunicorn import util
from gunicorn.http.wsgi import Response, default_environ
from gunicorn.sock import ssl_context
from gunicorn.workers.ggevent import GeventWorker

from ..model.clone import current_clone
from ..model.stats import DrainReport
from ..serve.drain import LINGER_SECONDS
from ..server import StreamServer
from .following import Following, following_here
from .heartbeat import Heartbeat
from .preloading import finish_in_worker, patch_in_arbiter
from .variables import Variables

__all__ = ["Worker"]

#: For so long before idle connections are closed, in seconds, replies announce the end: a client
#: that is busy on a kept-alive connection learns of it by its next reply. If its connection were
#: closed at once, its next request could meet the end of it on the way.
ANNOUNCE_SECONDS: Final = 0.3

#: How often the arbiter is notified, in seconds; gunicorn's own workers do the same.
NOTIFY_SECONDS: Final = 1.0


class Bound:
    """The listener that gunicorn's code is given: it has a name also when it is closed."""

    def __init__(self, sock: Any) -> None:
        self._sock: Final = sock
        self._name: Final = sock.getsockname()

    def getsockname(self) -> Any:
        return self._name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class WithClone:
    """gunicorn's application: its environ has the clone that serves, as under `glb.pywsgi`."""

    def __init__(self, application: Callable[..., Any]) -> None:
        self._application: Final = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        environ["glb.clone"] = current_clone()
        return self._application(environ, start_response)


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's gevent worker over `glb.server.StreamServer`.

    A subclass may override what it may override of gunicorn's ``GeventWorker``; so a subclass of
    that one can be made one of this, as ``class Mine(TheirWorker, glb.gunicorn.Worker)``.
    """

    #: What the environment says; read in each worker process.
    variables: Variables

    @classmethod
    def setup(cls) -> None:
        """Patch the standard library, if the application is about to be imported here.

        gunicorn calls this in its arbiter, before ``--preload`` imports the application. Without
        that each worker process patches by itself, before it imports it.
        """
        # gunicorn's Config calls this, and passes nothing.
        config = sys._getframe(1).f_locals.get("self")
        if getattr(config, "preload_app", False):
            patch_in_arbiter()

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:  # noqa: ARG003  # gunicorn's arguments
        """Refuse, at gunicorn's start, what no worker could serve by.

        Raises:
            RuntimeError: gunicorn prints it, and ends.
        """
        cls._check_numbers(cfg)
        if cls.server_class is not None:
            raise RuntimeError(
                f"{cls.__name__} has a server_class: make it a subclass of glb.gunicorn.FastWorker,"
                " and give that its wsgi_handler"
            )

    @classmethod
    def _check_numbers(cls, cfg: Any) -> None:
        try:
            Variables.read()
        except ValueError as error:
            raise RuntimeError(str(error)) from error
        most = cfg.worker_connections
        if most < 1:  # gunicorn takes 0, and its worker then serves nothing
            raise RuntimeError(
                f"worker_connections must be 1 or more, got {cfg.worker_connections}"
            )

    # -- gunicorn's steps ----------------------------------------------------------------------

    def init_process(self) -> None:
        # Until gunicorn sets the worker's handlers, behind the patch, the arbiter's would take a
        # SIGTERM here, and lose it: the arbiter then waits for `graceful_timeout`.
        signal.signal(signal.SIGTERM, self.handle_exit)
        # gunicorn asks at its start, and not when it reads its settings again. What is raised here
        # ends it, as an application that can't be imported does.
        self.check_config(self.cfg, self.log)
        super().init_process()

    def patch(self) -> None:
        finish_in_worker()
        super().patch()

    def timeout_ctx(self) -> AbstractContextManager[Any]:
        following = following_here()
        if following is not None and following.is_timed:
            return following
        limit: AbstractContextManager[Any] = super().timeout_ctx()
        if following is None:
            return limit
        following.limit = limit
        return following

    def run(self) -> None:
        self.variables = Variables.read()
        servers = [self.make_server(each) for each in self.sockets]
        for server in servers:
            if self.cfg.workers > 1:
                server.max_accept = 1  # as gunicorn's: what one process takes, no other gets
            server.start()
        workers = (each for server in servers for each in server.glb_engine.workers)
        heartbeat = Heartbeat(workers)
        while self.alive:
            self._beat(heartbeat)
            self._wait_for_signals()
        self._drain(servers, heartbeat)
        # The arbiter may send it once more, to a process that is about to end; and for its last
        # steps the interpreter takes a handler's place by the signal's default.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    # -- serving -------------------------------------------------------------------------------

    def make_server(self, sock: Any) -> StreamServer:
        """Return the server for *sock*, one of gunicorn's listening sockets. It is not started."""
        seconds = self.variables.request_timeout
        if seconds is not None and "handle_request" not in self.__dict__:
            # Around what a subclass may have, too.
            bounded = functools.partial(self._handle_in_time, self.handle_request, seconds)
            self.__dict__["handle_request"] = bounded
        if not isinstance(self.wsgi, WithClone):  # one for all sockets
            self.wsgi: Any = WithClone(self.wsgi)
        handle = functools.partial(self._handle_followed, Bound(sock))
        server = StreamServer(sock, handle, **self.server_options())
        if not self.cfg.is_ssl:
            # One timer for all connections, in place of one for each request. With TLS it would
            # hold for the handshake as well, which gunicorn does not limit.
            server.has_streams = False
            server.first_byte_timeout = self.cfg.keepalive or None
        return server

    def server_options(self) -> dict[str, Any]:
        """Return the arguments of a server that are the same for all kinds of it."""
        options: dict[str, Any] = {
            "clones": self.variables.clones,
            "hubs": self.variables.hubs,
            "max_connections": self.worker_connections,
        }
        if self.cfg.is_ssl:
            options["ssl_context"] = ssl_context(self.cfg)
        return options

    def _handle_followed(self, listener: Bound, sock: Any, address: Any) -> None:
        clone = current_clone()
        idle = None if clone is None else clone.server.glb_engine.idle_here
        following = Following(
            sock,
            idle,
            # gunicorn's own code says so by `timeout_ctx`, but not without keep-alive.
            waits=not self.cfg.keepalive and type(self).handle is GeventWorker.handle,
            follows_replies=self.variables.request_timeout is not None,
        )
        following.begin()
        try:
            self.handle(listener, sock, address)
        finally:
            following.end()

    def _handle_in_time(
        self,
        handle_request: Callable[..., Any],
        seconds: float,
        listener_name: Any,
        req: Any,
        sock: Any,
        addr: Any,
    ) -> Any:
        following = following_here()
        limit = gevent.Timeout(seconds)
        if following is not None:
            following.begin_reply(limit)
        try:
            with limit:
                return handle_request(listener_name, req, sock, addr)
        except gevent.Timeout as error:
            if error is not limit:
                raise
            is_answered = following is None or following.has_sent
            self._late(req, sock, addr, seconds, is_answered=is_answered)
            raise StopIteration from None  # gunicorn's word for the end of a connection
        finally:
            if following is not None:
                following.timeout = None

    def _late(self, req: Any, sock: Any, addr: Any, seconds: float, *, is_answered: bool) -> None:
        what = f"{req.method} {req.uri}"
        self.log.error("%s took longer than GLB_REQUEST_TIMEOUT, %g s", what, seconds)
        if is_answered:
            return  # in part: its client learns by the end of the connection that this was all
        reply = Response(req, sock, self.cfg)
        reply.status, reply.response_length, reply.sent = "503 Service Unavailable", 0, 0
        environ = default_environ(req, sock, self.cfg)
        environ["REMOTE_ADDR"] = addr[0] if isinstance(addr, tuple) else addr
        began = datetime.now()
        util.write_error(sock, 503, "Service Unavailable", "The request took too long.")
        self.log.access(reply, req, environ, datetime.now() - began)

    # -- the end, and until then ---------------------------------------------------------------

    def _beat(self, heartbeat: Heartbeat) -> None:
        if heartbeat.has_ticked():
            self.notify()

    def _wait_for_signals(self) -> None:
        # Python writes a byte for each signal, and gunicorn's reloader for a change.
        wake = self.PIPE[0]
        try:
            wait_read(wake, timeout=NOTIFY_SECONDS)
            os.read(wake, 4096)
        except OSError:  # a TimeoutError is one
            pass

    def _drain(self, servers: list[StreamServer], heartbeat: Heartbeat) -> None:
        # Other processes accept on the same sockets; with --reuse-port they have their own.
        linger = LINGER_SECONDS if self.cfg.reuse_port else 0.0
        # Together no longer than the arbiter waits before it kills.
        delay = min(ANNOUNCE_SECONDS, self.cfg.graceful_timeout / 2)
        timeout = self.cfg.graceful_timeout - delay
        drain = functools.partial(StreamServer.drain, timeout=timeout, linger=linger, delay=delay)
        drains = [gevent.spawn(drain, each) for each in servers]
        while not all(each.ready() for each in drains):
            self._beat(heartbeat)
            gevent.joinall(drains, timeout=NOTIFY_SECONDS)
        reports = [each.value for each in drains if isinstance(each.value, DrainReport)]
        if any(each.killed for each in reports):
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)
