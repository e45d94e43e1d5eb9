"""Settings of HTTP: limits of requests, and timeouts of clients and applications."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from ..model.forwarded import TrustedProxies
from ..model.limits import check_count, check_seconds
from .durations import Durations
from .head import Limits

__all__ = ["RequestTimeout", "Settings"]


class RequestTimeout(BaseException):  # as gevent's Timeout
    """The time for a request is over: raised where its application waits.

    It is no `Exception`, so that an ``except Exception`` lets it through. If the application
    catches it and replies, that is the reply.

    Attributes:
        seconds: The timeout.
    """

    #: The status of the reply, if nothing was sent yet.
    status: Final = "503 Service Unavailable"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the request took longer than {seconds:g} s")
        self.seconds: Final = seconds

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers of that reply."""
        # A client that came back sooner would probably wait as long for nothing.
        seconds = str(math.ceil(self.seconds))
        return [("Connection", "close"), ("Content-Length", "0"), ("Retry-After", seconds)]


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
        request_timeout: How long a request may take, in seconds, from the end of its head to the
            end of its reply; ``None`` is for ever. After that, up to half as much later and no
            more than 2 seconds, `RequestTimeout` is raised where the application waits. The reply
            is a 503, or, if a part of another one was sent, the connection is closed; the log has
            the greenlet's stack. A connection that was upgraded has no timeout, nor has one that
            began while this was ``None``.
        request_histogram: Whether to count how long requests take, for `glb.admin`. Read when the
            server starts.
        durations: What was counted.
        forwarded_allow_ips: Addresses and networks of proxies whose X-Forwarded-For, -Proto and
            -Host, or Forwarded, hold; ``"unix"`` is any Unix socket, ``"*"`` every address. The
            environ, `client_address` and the log then show the client, without the hops that may
            be forged. ``None`` leaves the fields as they come. Read when the server starts.
        trusted_proxies: The same, as it was when the server started.
    """

    limits: Limits = Limits()
    needs_host: bool = False
    # waitress has the same.
    max_body: int | None = 1 << 30
    body_timeout: float | None = None
    send_timeout: float | None = None
    request_timeout: float | None = None
    request_histogram: bool = False
    durations: Durations | None = None
    forwarded_allow_ips: Iterable[str] | str | None = None
    trusted_proxies: TrustedProxies | None = None

    def _check_settings(self) -> None:
        """Check the attributes, which a program may have set.

        Raises:
            TypeError, ValueError: A setting has the wrong type or value.
        """
        if not isinstance(self.limits, Limits):
            raise TypeError(f"limits must be glb.http.head.Limits, got {self.limits!r}")
        for name in ("line", "field", "head", "fields"):
            check_count(f"limits.{name}", getattr(self.limits, name))
        if self.max_body is not None:
            check_count("max_body", self.max_body)
        for name in ("body_timeout", "send_timeout", "request_timeout"):
            check_seconds(name, getattr(self, name))
        if self.request_histogram and self.durations is None:
            self.durations = Durations()
        networks = self.forwarded_allow_ips
        self.trusted_proxies = None if networks is None else TrustedProxies(networks)
