"""The limits of HTTP: the options of ``glb serve`` for them, and what holds without one."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from .settings import NOT_NEGATIVE, POSITIVE, SECONDS, option

if TYPE_CHECKING:
    from ..pywsgi import WSGIServer

__all__ = ["HTTP_LIMITS", "http_limits", "set_limits"]

# Within a body or a reply, as nginx's client_body_timeout and send_timeout.
CLIENT_SECONDS: Final = 60

#: The options of the head, and the fields of `glb.http.head.Limits` for them.
_OF_HEAD: Final = {
    "max_request_line": "line",
    "max_field_size": "field",
    "max_head_size": "head",
    "max_fields": "fields",
}

#: The parameters: a stream has no use for them.
HTTP_LIMITS: Final = (
    *_OF_HEAD,
    "max_body",
    "body_timeout",
    "send_timeout",
    "request_timeout",
    "request_histogram",
)

_OPTIONS: Final[tuple[Callable[[Any], Any], ...]] = (
    option(
        "--max-request-line",
        type=POSITIVE,
        help="Bytes of a request's first line; a longer one gets a 414. [default: 8190]",
    ),
    option(
        "--max-field-size",
        type=POSITIVE,
        help="Bytes of one of its header fields; a longer one gets a 431. [default: 65536]",
    ),
    option(
        "--max-head-size",
        type=POSITIVE,
        help="Bytes of all its header fields; more get a 431. [default: 65536]",
    ),
    option(
        "--max-fields",
        type=POSITIVE,
        help="How many header fields it may have; more get a 431. [default: 100]",
    ),
    option(
        "--max-body",
        type=NOT_NEGATIVE,
        help="Bytes of a request's body; a longer one gets a 413; 0 is any. [default: 1 GiB]",
    ),
    option(
        "--body-timeout",
        type=SECONDS,
        help="Seconds that a client may be silent within the body of a request; 0 is for ever."
        " [default: 60]",
    ),
    option(
        "--send-timeout",
        type=SECONDS,
        help="Seconds that a client may take nothing of a reply; 0 is for ever. [default: 60]",
    ),
    option(
        "--request-timeout",
        type=SECONDS,
        help="Seconds that a request may take, with its body and its reply; then it gets a 503, or"
        " its connection is closed if a part of the reply was sent, and the log says where it was;"
        " 0 is for ever. Not for websockets. [default: 0]",
    ),
    option(
        "--request-histogram",
        is_flag=True,
        default=None,
        help="Count how long requests take, for /metrics of --admin.",
    ),
)


def http_limits(command: Any) -> Any:
    """Give *command* these options."""
    for each in reversed(_OPTIONS):
        command = each(command)
    return command


def set_limits(server: WSGIServer, given: SimpleNamespace) -> None:
    """Set the limits of *server*, as they were given."""
    from ..http.head import Limits  # noqa: PLC0415  # its package imports gevent.pywsgi

    server.needs_host = True
    heads = {field: getattr(given, name) for name, field in _OF_HEAD.items()}
    server.limits = Limits(**{name: most for name, most in heads.items() if most is not None})
    for name in ("body_timeout", "send_timeout"):
        seconds = getattr(given, name)
        setattr(server, name, CLIENT_SECONDS if seconds is None else seconds or None)
    if given.max_body is not None:
        server.max_body = given.max_body or None
    server.request_timeout = given.request_timeout or None
    server.request_histogram = bool(given.request_histogram)
