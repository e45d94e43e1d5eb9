"""Whose request it is, where proxies in front say so: X-Forwarded-For and its like, and Forwarded.

Each proxy adds the address that it got the request from. What proxies of our own have added is
true; what stands before that may be forged. So the hops are walked
from the nearest one: the first that is no trusted proxy is the client, and what is left of it is
cut off.

Source: RFC 7239; the forwarded_allow_ips of gunicorn and uvicorn; nginx's real_ip_recursive.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

__all__ = ["FIELDS", "AmbiguousHopsError", "Forwarded", "TrustedProxies"]

_FOR: Final = "HTTP_X_FORWARDED_FOR"
_PROTO: Final = "HTTP_X_FORWARDED_PROTO"
_HOST: Final = "HTTP_X_FORWARDED_HOST"
_FORWARDED: Final = "HTTP_FORWARDED"

#: What is looked at, by the keys of the environ.
FIELDS: Final = (_FOR, _PROTO, _HOST, _FORWARDED)

_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
_AUTHORITY: Final = re.compile(r"(?:\[[0-9A-Fa-fv:.]+\]|[A-Za-z0-9\-._~%]+)(?::[0-9]*)?")
_NAME: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PAIR: Final = re.compile(rf'\s*({_NAME})=({_NAME}|"(?:[^"\\]|\\.)*")\s*(;|,|$)', re.ASCII)

_Address = IPv4Address | IPv6Address


class AmbiguousHopsError(ValueError):
    """Forwarded and X-Forwarded-For name two clients: one of them was not written by a proxy."""


@dataclass(frozen=True)
class Forwarded:
    """What trusted proxies say of a request.

    Attributes:
        client: The client's address; ``None`` if the peer of the connection is the client, or if
            a trusted proxy says that it doesn't know.
        scheme: ``"http"`` or ``"https"``, as the client sent it; ``None`` if no proxy says so.
        host: As the client sent it, in the same way.
        fields: The fields of the environ that were looked at, without what may be forged.
    """

    client: str | None
    scheme: str | None
    host: str | None
    fields: Mapping[str, str]


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        hint = ""
        with contextlib.suppress(ValueError):
            hint = f": did you mean {ip_network(text, strict=False)}?"
        what = "an address, a network as 10.0.0.0/8, 'unix' or '*'"
        raise ValueError(f"a proxy must be {what}, got {text!r}{hint}") from None


class TrustedProxies:
    """The addresses of proxies whose word counts.

    Args:
        networks: Addresses, or networks as ``10.0.0.0/8``; a string has them between commas.
            ``"*"`` is every address, and ``"unix"`` whatever comes by a Unix socket.

    Raises:
        TypeError, ValueError: One of them is none of these; the error has it.
    """

    def __init__(self, networks: Iterable[str] | str) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._is_any = False
        self._has_unix = False
        if not isinstance(networks, Iterable):
            raise TypeError(f"proxies must be a string or several, got {networks!r}")
        for each in networks.split(",") if isinstance(networks, str) else networks:
            if not isinstance(each, str):
                raise TypeError(f"an address or a network must be a string, got {each!r}")
            text = each.strip()
            if text == "*":
                self._is_any = self._has_unix = True
            elif text == "unix":
                self._has_unix = True
            else:
                self._networks.append(_network(text))

    def trusts(self, host: str) -> bool:
        """Whether *host*, an address in text, is a proxy's; ``""`` is a Unix socket's."""
        if not host:
            return self._has_unix
        if self._is_any:
            return True
        address = _parse(host)
        return address is not None and any(
            address in each for each in self._networks if each.version == address.version
        )

    def look(self, peer: str, environ: Mapping[str, str]) -> Forwarded:
        """Return what of *environ*'s fields holds for a request that came from *peer*.

        Raises:
            AmbiguousHopsError: Two fields name two clients.
        """
        if not self.trusts(peer):
            return Forwarded(None, None, None, {})
        fields: dict[str, str] = {}
        by_x = self._walk(_split(environ.get(_FOR, "")))
        found = _read_forwarded(environ.get(_FORWARDED, ""))
        by_standard = self._walk([each.get("for", "") for each in found])
        if by_x and by_standard and _bare(by_x[0]) != _bare(by_standard[0]):
            raise AmbiguousHopsError(
                f"X-Forwarded-For says {by_x[0]!r}, and Forwarded {by_standard[0]!r}"
            )
        scheme = host = None
        if by_x:
            fields[_FOR] = ", ".join(by_x)
        if by_standard:
            kept = found[-len(by_standard) :]
            fields[_FORWARDED] = ", ".join(map(_written, kept))
            scheme, host = kept[0].get("proto"), kept[0].get("host")
        for key in (_PROTO, _HOST):
            values = _split(environ.get(key, ""))
            if values:
                # One a hop, as the addresses; or one that the nearest proxy has set.
                place = -len(by_x) if by_x and len(values) >= len(by_x) > 1 else -1
                fields[key] = ", ".join(values[place:])
                if key == _PROTO:
                    scheme = scheme or values[place]
                else:
                    host = host or values[place]
        client = by_x or by_standard
        return Forwarded(
            _bare(client[0]) if client else None,
            _SCHEMES.get((scheme or "").lower()),
            host if host is not None and _AUTHORITY.fullmatch(host) else None,
            fields,
        )

    def _walk(self, hops: list[str]) -> list[str]:
        # From the nearest: up to the first that is no trusted proxy.
        place = len(hops)
        while place:
            place -= 1
            host = _bare(hops[place])
            if host is None or not self.trusts(host):
                break
        return hops[place:]


def _split(value: str) -> list[str]:
    return [each.strip(" \t") for each in value.split(",")] if value else []


def _parse(host: str) -> _Address | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def _bare(node: str) -> str | None:
    """Return the address of a node, which may have a port; ``None`` if it says none."""
    if node.startswith("["):
        node = node[1:].partition("]")[0]
    elif node.count(":") == 1:
        node = node.partition(":")[0]
    address = _parse(node)
    return None if address is None else str(address)


def _read_forwarded(value: str) -> list[dict[str, str]]:
    elements: list[dict[str, str]] = [{}]
    place = 0
    while place < len(value):
        match = _PAIR.match(value, place)
        if match is None:
            # What is before it has no clear parts: the nearest proxies' come behind.
            place = value.find(",", place) + 1
            elements = [{}]
            if not place:
                return []
            continue
        name, text, end = match.groups()
        if text.startswith('"'):
            text = re.sub(r"\\(.)", r"\1", text[1:-1])
        elements[-1][name.lower()] = text
        place = match.end()
        if end == ",":
            elements.append({})
    return elements if value else []


def _written(element: Mapping[str, str]) -> str:
    return ";".join(
        f"{name}={text}" if re.fullmatch(_NAME, text) else f'{name}="{_quoted(text)}"'
        for name, text in element.items()
    )


def _quoted(text: str) -> str:
    return re.sub(r'(["\\])', r"\\\1", text)
