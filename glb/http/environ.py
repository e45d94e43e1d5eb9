"""What an environ tells beside the head of its request."""

from __future__ import annotations

import base64
from typing import Any, Final

from .head import Head

__all__ = ["as_fields", "tls_variables"]

_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
}


def as_fields(head: Head) -> bytes:
    lines = head.lines
    if head.target[0] != "/" and "HTTP_HOST" in head.fields:
        lines = [each for each in lines if each[:5].lower() != "host:"]
        lines = [f"Host: {head.fields['HTTP_HOST']}", *lines]
    if head.is_chunked:
        lines = [each for each in lines if each[:15].lower() != "content-length:"]
    return "".join(f"{each}\r\n" for each in [*lines, ""]).encode("latin-1")


def tls_variables(sock: Any) -> dict[str, str]:
    """Return what the environ tells of a TLS connection, by the names of Apache's mod_ssl."""
    cipher = sock.cipher()
    found = {
        "HTTPS": "on",
        "SSL_PROTOCOL": sock.version() or "",
        "SSL_CIPHER": cipher[0] if cipher else "",
        "SSL_CLIENT_VERIFY": "NONE",
    }
    certificate = sock.getpeercert()
    if certificate:
        found["SSL_CLIENT_VERIFY"] = "SUCCESS"
        found["SSL_CLIENT_S_DN"] = _name_of(certificate.get("subject", ()))
        found["SSL_CLIENT_I_DN"] = _name_of(certificate.get("issuer", ()))
        found["SSL_CLIENT_M_SERIAL"] = certificate.get("serialNumber", "")
        found["SSL_CLIENT_V_START"] = certificate.get("notBefore", "")
        found["SSL_CLIENT_V_END"] = certificate.get("notAfter", "")
        encoded = base64.encodebytes(sock.getpeercert(binary_form=True)).decode("ascii")
        found["SSL_CLIENT_CERT"] = (
            f"-----BEGIN CERTIFICATE-----\n{encoded}-----END CERTIFICATE-----\n"
        )
    return found


def _name_of(parts: Any) -> str:
    # RFC 2253, most specific first, by the short names that are in use.
    pairs = [pair for part in reversed(parts) for pair in part]
    return ",".join(f"{_SHORT.get(name, name)}={value}" for name, value in pairs)
