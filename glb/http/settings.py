"""Settings of HTTP: limits of requests, and how long a server waits for clients."""

from __future__ import annotations

from collections.abc import Iterable

from ..model.forwarded import TrustedProxies
from .head import Limits

__all__ = ["Settings"]


class Settings:
    """The HTTP settings of a `glb.pywsgi.WSGIServer`, as attributes.

    Attributes:
        limits: How large the head of a request may be. gevent's ``MAX_REQUEST_LINE`` holds for
            the request line, unless this has another limit for it.
        needs_host: Refuse a request of HTTP/1.1 without Host, as RFC 9112 asks for.
        max_body: How long a body may be, in bytes; ``None`` is no limit. A longer one gets a 413.
        body_timeout: How long a client may be silent within a body, in seconds; ``None`` is for
            ever. After that the reply is a 408.
        send_timeout: How long a client may take nothing of a reply, in seconds; ``None`` is for
            ever. After that the connection is closed.
        forwarded_allow_ips: Addresses and networks of proxies whose X-Forwarded-For, -Proto and
            -Host, or Forwarded, hold; ``"unix"`` is any Unix socket, ``"*"`` every address. The
            environ, `client_address` and the log then show the client, and what may be forged is
            left out. ``None`` leaves the fields as they come. Taken when the server starts.
        trusted_proxies: The same, as it was when the server started.
    """

    limits: Limits = Limits()
    needs_host: bool = False
    # waitress has the same.
    max_body: int | None = 1 << 30
    body_timeout: float | None = None
    send_timeout: float | None = None
    forwarded_allow_ips: Iterable[str] | str | None = None
    trusted_proxies: TrustedProxies | None = None
