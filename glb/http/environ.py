"""Parts of the environ that gevent's code doesn't make: header lines for it, and TLS."""

from __future__ import annotations

import re
from typing import Any, Final

from .head import Head

__all__ = ["as_fields", "tls_variables"]

_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}

# RFC 4514, 2.4: without escapes a certificate's name could look like another one.
_SPECIAL: Final = re.compile(r'[,+"\\<>;]|^[ #]| \Z')
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def as_fields(head: Head) -> bytes:
    lines = head.rest.decode("latin-1").split("\r\n")[1:-1]
    if head.target[0] != "/" and "HTTP_HOST" in head.fields:
        lines = [each for each in lines if each[:5].lower() != "host:"]
        lines = [f"Host: {head.fields['HTTP_HOST']}", *lines]
    if head.is_chunked:
        lines = [each for each in lines if each[:15].lower() != "content-length:"]
    return "".join(f"{each}\r\n" for each in [*lines, ""]).encode("latin-1")


def tls_variables(sock: Any) -> dict[str, str]:
    """Return the environ's variables about a TLS connection, by the names of Apache's mod_ssl."""
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
        from ssl import DER_cert_to_PEM_cert  # noqa: PLC0415  # only needed with TLS

        found["SSL_CLIENT_CERT"] = DER_cert_to_PEM_cert(sock.getpeercert(binary_form=True))
    return found


def _name_of(parts: Any) -> str:
    # Most specific first, by the usual short names.
    return ",".join("+".join(map(_pair_of, part)) for part in reversed(parts))


def _pair_of(pair: tuple[str, str]) -> str:
    name, value = pair
    value = _CONTROL.sub(lambda found: f"\\{ord(found[0]):02X}", _SPECIAL.sub(r"\\\g<0>", value))
    # As WSGI has it, and mod_ssl: the bytes of UTF-8.
    return f"{_SHORT.get(name, name)}={value}".encode().decode("latin-1")
