"""`FastWorker`: gunicorn's processes, and glb's HTTP in them.

gunicorn's settings for HTTP become those of `glb.pywsgi`. What it can't do is refused at the start,
by the setting's name, so that no setting is without effect silently.

Source: gunicorn's ``http/message.py``, ``http/wsgi.py`` and ``workers/ggevent.py``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, Final

from gevent import GreenletExit
from gunicorn.glogging import Logger
from gunicorn.http.wsgi import base_environ
from gunicorn.workers.ggevent import VERSION

from ..http.head import Limits
from ..http.measured import MeasuredHandler
from ..model.forwarded import TrustedProxies
from ..pywsgi import WSGIServer
from ..server import StreamServer
from .refusals import refused
from .worker import Worker

__all__ = ["FastWorker"]

# gunicorn's own bounds of its limits.
_LINE_MOST: Final = 8190
_LINE_UNLIMITED: Final = 1 << 20
_FIELDS_MOST: Final = 32768
_FIELD_DEFAULT: Final = 8190

#: gunicorn's words for the versions of the PROXY protocol, and ours. It had a flag before 24.1.
_PROXY_VERSIONS: Final[dict[object, Any]] = {
    False: None,
    True: "v1",
    "off": None,
    "v1": "v1",
    "v2": "v2",
    "auto": "any",
}


class FastWorker(Worker):
    """`Worker` over `glb.pywsgi.WSGIServer`: no code of gunicorn's runs for a request.

    A subclass may set ``wsgi_handler``, a class of handlers as gevent's, as it may with gunicorn's
    ``GeventPyWSGIWorker``. ``handle`` and ``handle_request`` are not called.
    """

    server_class = WSGIServer
    #: Of a program's own; ``None`` is one that writes gunicorn's logs.
    wsgi_handler: Any = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:  # noqa: ARG003  # gunicorn's arguments
        """Refuse, at gunicorn's start, what it can't do.

        Raises:
            RuntimeError: gunicorn prints it, and ends.
        """
        cls._check_numbers(cfg)
        refusals = "; ".join(refused(cfg))
        if refusals:
            raise RuntimeError(f"{cls.__name__} can't do {refusals}: use glb.gunicorn.Worker")

    def make_server(self, sock: Any) -> StreamServer:
        cfg = self.cfg
        handler = self.wsgi_handler
        is_logged = handler is not None or writes_access_log(cfg, self.log)
        server = WSGIServer(
            sock,
            gunicorns_application(self),
            log=self.log if is_logged else None,
            error_log=self.log,
            handler_class=handler or (_LoggingHandler if is_logged else _Handler),
            environ=self._environ(),
            proxy_protocol=_PROXY_VERSIONS[cfg.proxy_protocol],
            # A peer without an address is always gunicorn's friend.
            proxy_allow_ips=[*cfg.proxy_allow_ips, "unix"],
            first_byte_timeout=cfg.keepalive or None,
            **self.server_options(),
        )
        server.limits = limits_of(cfg)
        server.max_body = None  # as gunicorn, which has no limit
        return server

    def server_options(self) -> dict[str, Any]:
        options = super().server_options()
        if self.variables.request_timeout is not None:
            options["request_timeout"] = self.variables.request_timeout
        return options

    def _environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = base_environ(self.cfg)
        environ.update({"wsgi.multithread": True, "SERVER_SOFTWARE": VERSION})
        if self.cfg.sendfile is not False:
            del environ["wsgi.file_wrapper"]  # glb's own has the kernel send files
        return environ


def limits_of(cfg: Any) -> Limits:
    """Return gunicorn's limits of a request's head as ours."""
    line, fields, field = (
        cfg.limit_request_line,
        cfg.limit_request_fields,
        cfg.limit_request_field_size,
    )
    line = min(line, _LINE_MOST) if line else _LINE_UNLIMITED
    fields = fields if 0 < fields < _FIELDS_MOST else _FIELDS_MOST
    field = field if field > 0 else _FIELD_DEFAULT
    return Limits(line, field, fields * (field + 2) + 4, fields)


def writes_access_log(cfg: Any, log: Any) -> bool:
    """Whether *log* has a use for each request; gunicorn's own has none without these."""
    return type(log) is not Logger or bool(
        cfg.accesslog
        or cfg.logconfig
        or cfg.logconfig_dict
        or getattr(cfg, "logconfig_json", None)
        or (cfg.syslog and not cfg.disable_redirect_access_to_syslog)
    )


# -- what gunicorn does around an application -------------------------------------------------


def gunicorns_application(worker: Any) -> Callable[..., Any]:
    """Return *worker*'s application, with what gunicorn itself does for each request."""
    application, cfg, most = worker.wsgi, worker.cfg, worker.max_requests
    secure = {
        f"HTTP_{name.upper().replace('-', '_')}": value
        for name, value in cfg.secure_scheme_headers.items()
    }
    trusts = TrustedProxies([*cfg.forwarded_allow_ips, "unix"]).trusts
    trusts = functools.lru_cache(maxsize=1024)(trusts)
    prefix = os.environ.get("SCRIPT_NAME", "")
    is_kept = bool(cfg.keepalive)

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        worker.nr += 1
        if worker.nr >= most and worker.alive:
            worker.log.info("Autorestarting worker after current request.")
            worker.alive = False
        if not (is_kept and worker.alive):
            start_response = _closing(start_response)
        if not environ.keys().isdisjoint(secure) and trusts(environ.get("REMOTE_ADDR", "")):
            schemes = {
                "https" if environ[name] == value else "http"
                for name, value in secure.items()
                if name in environ
            }
            if len(schemes) > 1:
                return _contradicted(start_response)
            environ["wsgi.url_scheme"] = schemes.pop()
        if prefix:
            _split_path(environ, prefix)
        return application(environ, start_response)

    return serve


def _closing(start_response: Callable[..., Any]) -> Callable[..., Any]:
    def closing(status: str, headers: Any, exc_info: Any = None) -> Any:
        kept = [each for each in headers if each[0].lower() != "connection"]
        if len(kept) == len(headers):  # else it may be an upgrade
            headers = [*headers, ("Connection", "close")]
        return start_response(status, headers, exc_info)

    return closing


def _contradicted(start_response: Callable[..., Any]) -> list[bytes]:
    text = b"Contradictory scheme headers\n"
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))]
    start_response("400 Bad Request", [*headers, ("Connection", "close")])
    return [text]


def _split_path(environ: dict[str, Any], prefix: str) -> None:
    path = environ["PATH_INFO"]
    if not path.startswith(prefix):
        raise ValueError(f"the path {path!r} does not start with SCRIPT_NAME, {prefix!r}")
    environ["SCRIPT_NAME"], environ["PATH_INFO"] = prefix, path[len(prefix) :]


# -- what gunicorn logs -----------------------------------------------------------------------


class _Handler(MeasuredHandler):
    """A handler whose errors are in gunicorn's log."""

    __slots__ = ()

    def _log_error(self, t: Any, v: Any, tb: Any) -> None:
        if not issubclass(t, GreenletExit):
            log = self.server.error_log
            log.error("Error handling request %s", self.requestline, exc_info=(t, v, tb))


class _LoggingHandler(_Handler):
    """A handler whose requests are in gunicorn's access log, too."""

    __slots__ = ()

    def log_request(self) -> None:
        environ, head = self.environ, self._head
        if environ is not None and head is not None:
            status = self._orig_status or self.status or "000"
            reply = SimpleNamespace(
                status=status if isinstance(status, str) else status.decode("latin-1"),
                headers=[_as_text(each) for each in self.response_headers or ()],
                sent=self.body_bytes(),
                response_length=self._left,
            )
            request = SimpleNamespace(headers=[_as_name(each) for each in head.fields.items()])
            took = timedelta(seconds=max(0.0, self.time_finish - self.time_start))
            self.server.log.access(reply, request, environ, took)
        self._forget()


# They override what is said of a request, and not how one is read.
_Handler._is_lean = _LoggingHandler._is_lean = True


def _as_text(field: tuple[Any, Any]) -> tuple[str, str]:
    name, value = (each if isinstance(each, str) else each.decode("latin-1") for each in field)
    return name, value


def _as_name(field: tuple[str, str]) -> tuple[str, str]:
    key, value = field
    return key.removeprefix("HTTP_").replace("_", "-"), value
