"""Connections whose first bytes are a balancer's: see `glb.model.proxy_header`.

The header is read in the handler's greenlet, before TLS, and the handler gets the client's address
in the place of the balancer's. A connection without it is closed, and the handler isn't called.
"""

from __future__ import annotations

from typing import Any

from ..model.forwarded import TrustedProxies
from ..model.proxy_header import HeaderError, Version
from ..net.proxied import LateHeaderError, read_header, remember_header
from .first_byte import wait_as_idle
from .hooks import Handler
from .idle import IdleConnections

__all__ = ["check_version", "handle_proxied"]

_VERSIONS = ("v1", "v2", "any")


def check_version(version: object) -> None:
    """Refuse what is no version of the protocol; ``None`` is one."""
    if version is not None and version not in _VERSIONS:
        raise ValueError(f"proxy_protocol must be one of {', '.join(_VERSIONS)}, got {version!r}")


def handle_proxied(
    server: Any,
    idle: IdleConnections | None,
    balancers: TrustedProxies,
    handle: Handler,
    sock: Any,
    args: tuple[Any, ...],
) -> object:
    """Read the header of *sock*'s connection, and handle the rest by *handle*.

    Args:
        balancers: The addresses that may send one.
        args: What *handle* is called with behind *sock*: the peer's address, first of all.
    """
    version: Version = server.proxy_protocol
    peer, *rest = args
    host = str(peer[0]) if isinstance(peer, tuple) else ""
    try:
        if not balancers.trusts(host):
            raise HeaderError("it is not in proxy_allow_ips")
        header = wait_as_idle(idle, sock, lambda: read_header(sock, version))
    except (HeaderError, OSError) as error:
        if isinstance(error, LateHeaderError):
            server.glb_engine.count_timeout("proxy_header")
        server.proxy_header_failed(sock, peer, error)
        return None
    remember_header(sock, header)
    if header.ends is not None:
        source = header.ends[0]
        # A Unix socket's client has no address in gevent's handlers, either.
        peer = "" if isinstance(source, bytes) else source
    return handle(sock, peer, *rest)
