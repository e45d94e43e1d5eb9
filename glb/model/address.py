"""Addresses: read what people write, and find out if two spellings are one place.

`parse` reads every form that gevent's servers take, with gevent's own rules for the address
family, and ``unix:/path``. Nothing is looked up and nothing is opened
here; `glb.net.sockets` does that.

Source: ``gevent.baseserver.parse_address``; ip(7), ipv6(7), unix(7).
"""

from __future__ import annotations

import _socket
import operator
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

__all__ = ["Address", "Key", "parse"]

AF_INET: Final[int] = _socket.AF_INET
AF_INET6: Final[int] = getattr(_socket, "AF_INET6", -1)
# -1 is no family at all: where a platform has no Unix sockets nothing equals it, and the
# kernel's door refuses it with EAFNOSUPPORT.
AF_UNIX: Final[int] = getattr(_socket, "AF_UNIX", -1)

MAX_PORT: Final = 65535
_MAPPED_PREFIX: Final = b"\0" * 10 + b"\xff\xff"

#: Equal for two addresses that are one place: see `key_of`.
Key: TypeAlias = tuple[object, ...]


@dataclass(frozen=True)
class Address:
    """An address that was read but not yet bound.

    Attributes:
        family: ``AF_INET``, ``AF_INET6`` or ``AF_UNIX``.
        sockaddr: What bind(2) is given: ``(host, port)`` with up to two numbers more for
            IPv6, or the path of a Unix socket.
    """

    family: int
    sockaddr: Any

    @property
    def port(self) -> int | None:
        """The port asked for, 0 for any, or ``None`` for a Unix socket."""
        return None if self.family == AF_UNIX else self.sockaddr[1]

    def __str__(self) -> str:
        if self.family == AF_UNIX:
            return f"unix:{_printable_path(self.sockaddr)}"
        host, port = self.sockaddr[:2]
        return f"[{host}]:{port}" if self.family == AF_INET6 else f"{host}:{port}"


def _printable_path(path: str | bytes) -> str:
    text = path.decode("utf-8", "backslashreplace") if isinstance(path, bytes) else path
    return "@" + text[1:] if text.startswith("\0") else text


def parse(value: object) -> Address:
    """Return the address that *value* spells.

    Args:
        value: One of ``(host, port)``, ``(host, port, flowinfo[, scope_id])`` for IPv6,
            ``"host:port"``, ``"[v6 host]:port"``, ``":port"``, ``"*:port"``, a port number
            alone (``8000`` or ``"8000"``: every interface, IPv6), ``"unix:/path"`` or, for
            Linux's abstract names, ``"unix:@name"``. *port* is 0 to 65535; 0 lets the
            kernel choose.

    Raises:
        TypeError: *value*, its host or its port has the wrong type.
        ValueError: The type is right and the content isn't. Both texts have the value.

    Switches:
        Never; a host name is not looked up here.

    Example:
        >>> parse("[::1]:80").sockaddr
        ('::1', 80)
        >>> str(parse("unix:/run/app.sock"))
        'unix:/run/app.sock'

    Source:
        ``gevent.baseserver.parse_address``, and gevent's choice of family: an empty host
        in a tuple, or no host at all, is IPv6 (and so, on most systems, IPv4 as well).
    """
    if isinstance(value, Address):
        return value
    if isinstance(value, tuple):
        return _parse_tuple(value)
    if isinstance(value, str):
        return _parse_text(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return Address(AF_INET6, ("", _port(value, value)))
    raise TypeError(f"address must be a tuple, a string or a port number, got {value!r}")


def _parse_tuple(value: tuple[object, ...]) -> Address:
    if not 2 <= len(value) <= 4:
        raise ValueError(f"address must have 2 to 4 parts, (host, port, ...), got {value!r}")
    host = _host(value[0], value)
    port = _port(value[1], value)
    family = AF_INET6 if not host or ":" in host else AF_INET
    if family == AF_INET and len(value) > 2:
        raise ValueError(f"an IPv4 address must have 2 parts, (host, port), got {value!r}")
    return Address(family, (host, port, *(_uint32(part, value) for part in value[2:])))


def _parse_text(text: str) -> Address:
    if text.startswith("unix:"):
        return Address(AF_UNIX, _unix_path(text))
    if "://" in text:
        raise ValueError(f"address must have no scheme, got {text!r}")
    if ":" not in text:
        return Address(AF_INET6, ("", _port_text(text, text)))
    host, _, port = text.rpartition(":")
    family = AF_INET
    if host.startswith("[") and host.endswith("]"):
        family, host = AF_INET6, host[1:-1]
    elif ":" in host:
        raise ValueError(f"an IPv6 host must stand in brackets, as in '[::1]:80', got {text!r}")
    return Address(family, ("" if host == "*" else _host(host, text), _port_text(port, text)))


def _unix_path(text: str) -> str:
    path = text[len("unix:") :]
    if path.startswith("@"):
        path = "\0" + path[1:]
    if len(path.lstrip("\0")) == 0 or "\0" in path[1:]:
        raise ValueError(f"a Unix socket must have a path without NUL in it, got {text!r}")
    return path


def _host(host: object, value: object) -> str:
    if isinstance(host, (bytes, bytearray)):
        try:
            host = bytes(host).decode("ascii")
        except UnicodeDecodeError as error:
            raise ValueError(f"host must be ASCII when given as bytes, got {value!r}") from error
    if not isinstance(host, str):
        raise TypeError(f"host must be a string, got {host!r} in {value!r}")
    if "\0" in host:
        raise ValueError(f"host must not have NUL in it, got {value!r}")
    return host


def _port_text(text: str, value: object) -> int:
    try:
        number = int(text)
    except ValueError as error:
        what = f"port must be a number, got {text!r} in {value!r}"
        if text == value:
            what = f"address must be host:port, :port, a port number or unix:/path, got {value!r}"
        raise ValueError(what) from error
    return _port(number, value)


def _port(port: object, value: object) -> int:
    number = _whole(port, "port", value)
    if not 0 <= number <= MAX_PORT:
        raise ValueError(f"port must be 0 to {MAX_PORT}, got {value!r}")
    return number


def _uint32(number: object, value: object) -> int:
    number = _whole(number, "flowinfo and scope_id", value)
    if not 0 <= number < 1 << 32:
        raise ValueError(f"flowinfo and scope_id must be 0 to {(1 << 32) - 1}, got {value!r}")
    return number


def _whole(number: object, what: str, value: object) -> int:
    def refuse(cause: BaseException | None = None) -> NoReturn:
        raise TypeError(f"{what} must be a whole number, got {number!r} in {value!r}") from cause

    if isinstance(number, bool):
        refuse()
    try:
        return operator.index(number)  # type: ignore[arg-type]  # the except is for the wrong ones
    except TypeError as error:
        refuse(error)


def unmap(address: Address) -> Address:
    """Return *address* with an IPv4 address in IPv6 clothes (``::ffff:1.2.3.4``) undressed.

    Both reach the same sockets, so they have to be one address. *address* must be numeric.
    """
    if address.family == AF_INET6:
        packed = _packed(address.family, address.sockaddr[0])
        if packed.startswith(_MAPPED_PREFIX):
            host = _socket.inet_ntop(AF_INET, packed[len(_MAPPED_PREFIX) :])
            return Address(AF_INET, (host, address.sockaddr[1]))
    return address


def key_of(address: Address) -> Key:
    """Return the key of a numeric IP *address*: equal for the spellings of one place.

    The scope counts, because ``fe80::1`` of two interfaces are two places; the flow label
    does not. Wildcards are places of their own: what the kernel says when ``0.0.0.0:80``
    meets ``127.0.0.1:80`` stands.
    """
    address = unmap(address)
    host, port, *rest = address.sockaddr
    scope = rest[1] if len(rest) > 1 else 0
    return (address.family, _packed(address.family, host), port, scope)


def _packed(family: int, host: str) -> bytes:
    # getsockname() and getaddrinfo() give the zone of a link-local address twice: behind
    # a percent sign, which inet_pton does not read, and as scope_id, which the key has.
    return _socket.inet_pton(family, host.partition("%")[0])
