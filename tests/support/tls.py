"""Contexts of TLS: a server's with the tests' certificate, and a client's that takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gevent import ssl

__all__ = ["client_context", "server_context"]

#: Its key is of P-256: a handshake with gevent's certificate, whose key is of RSA with 4096 bits,
#: takes four times as long, and a run has hundreds. The key is for tests alone.
CERTIFICATES = Path(__file__).parent


def server_context() -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "server.crt", CERTIFICATES / "server.key")
    return context


def client_context() -> Any:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
