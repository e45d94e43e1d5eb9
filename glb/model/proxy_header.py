"""The header of the PROXY protocol: what a load balancer says of the client in front of it.

A header is the first thing on a connection, and names its client. Every byte that the
specification doesn't allow is refused: what follows could be read as something else.

Rules that always hold:

- `HeaderReader` never asks for a byte behind the header, which is another protocol's already.
- It fails at the first byte with which no header can begin, so that a client without a
  balancer learns nothing, and is not waited for.

Source: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, sections 2.1 and 2.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final, Literal

__all__ = ["HeaderError", "HeaderReader", "ProxyHeader", "SocketAddress", "Version"]

Version = Literal["v1", "v2", "any"]

#: As `socket.getpeername` has it; a Unix socket's is as in the header, without the zeros behind it.
SocketAddress = tuple[str, int] | tuple[str, int, int, int] | bytes

_START_1: Final = b"PROXY "
_MOST_1: Final = 107
_START_2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED_2: Final = Struct("!12sBBH")

_LINE: Final = re.compile(
    r"PROXY (?:(TCP4|TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+)"
    r" (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})|UNKNOWN(?: [^\r\n]*)?)\r\n"
)

# By the number of the family: how an address and a port, or a path, are in the header.
_ENDS: Final = {1: Struct("!4s4sHH"), 2: Struct("!16s16sHH"), 3: Struct("!108s108s")}
_LOCAL, _PROXY = 0x20, 0x21
_UNIX: Final = 3
_STREAM, _DATAGRAM = 1, 2

_CRC32C: Final = 0x03
_UNIQUE_ID: Final = 0x05
_UNIQUE_ID_MOST: Final = 128


class HeaderError(ValueError):
    """What came is no header of the PROXY protocol that may be served."""


@dataclass(frozen=True)
class ProxyHeader:
    """What a balancer said.

    Attributes:
        version: Of the protocol, 1 or 2.
        ends: The client's address and the one that it connected to; ``None`` if the balancer
            doesn't say, as for its own checks: then the connection's own are right.
        tlvs: What it says besides (version 2): type and value of each, in their order.
        is_local: Whether the connection is the balancer's own.
    """

    version: int
    ends: tuple[SocketAddress, SocketAddress] | None
    tlvs: tuple[tuple[int, bytes], ...] = ()
    is_local: bool = False

    def tlv(self, kind: int) -> bytes | None:
        """Return the value of the first TLV of type *kind*; ``None`` if there is none."""
        return next((value for each, value in self.tlvs if each == kind), None)


class HeaderReader:
    """Reads a header as it comes.

    ``while (size := reader.wanted): reader.feed(sock.recv(size))`` reads it and nothing behind it;
    then `header` is there.

    Args:
        version: Which may come: ``"v1"``, ``"v2"`` or ``"any"``.
    """

    def __init__(self, version: Version) -> None:
        self._starts: Final = {
            "v1": (_START_1,),
            "v2": (_START_2,),
            "any": (_START_1, _START_2),
        }[version]
        self._data = b""
        self.header: ProxyHeader | None = None

    @property
    def wanted(self) -> int:
        """How many bytes more the header has at least; 0 if it is there."""
        have = len(self._data)
        if self.header is not None:
            return 0
        if have < len(_START_2):  # there is no shorter line, either
            return len(_START_2) - have
        if self._data.startswith(_START_1):
            return 1
        return max(0, _FIXED_2.size + int.from_bytes(self._data[14:16], "big") - have)

    def count(self, peeked: bytes) -> int:
        """Return how many of the bytes that are there belong to the header, as far as is known."""
        is_line = self._data.startswith(_START_1)
        end = peeked.find(b"\n") + 1 if is_line else self.wanted
        return min(end or len(peeked), len(peeked))

    def feed(self, data: bytes) -> None:
        """Take *data*: as much as is `wanted`, or more of a line up to its first LF.

        Raises:
            HeaderError: It is none, or one that may not be served.
        """
        if not data:
            raise HeaderError(f"the header ended early: {_excerpt(self._data)}")
        self._data = data = self._data + data
        if not any(data[: len(each)] == each[: len(data)] for each in self._starts):
            raise HeaderError(f"no header of the PROXY protocol: {_excerpt(data)}")
        if data.startswith(_START_1):
            if b"\n" in data:
                self.header = _read_line(data)
            elif len(data) >= _MOST_1:
                raise HeaderError(f"no line end within {_MOST_1} bytes: {_excerpt(data)}")
        elif len(data) > len(_START_2) and data[12] not in {_LOCAL, _PROXY}:
            raise HeaderError(f"version and command must be 0x20 or 0x21, got {data[12]:#04x}")
        elif self.wanted == 0:
            self.header = _read_binary(data)


def _read_line(data: bytes) -> ProxyHeader:
    match = _LINE.fullmatch(data.decode("latin-1"))
    if match is None or len(data) > _MOST_1:
        raise HeaderError(f"no header of version 1: {_excerpt(data)}")
    family, *hosts = match.group(1, 2, 3)
    if family is None:
        return ProxyHeader(1, None)
    kind = IPv4Address if family == "TCP4" else IPv6Address
    try:
        source, target = (kind(host) for host in hosts)
    except ValueError as error:
        raise HeaderError(f"an address of {family} in {_excerpt(data)}: {error}") from None
    ports = int(match[4]), int(match[5])
    if max(ports) > 0xFFFF:
        raise HeaderError(f"a port must be 65535 or less, got {max(ports)}")
    return ProxyHeader(1, (_end(source, ports[0]), _end(target, ports[1])))


def _read_binary(data: bytes) -> ProxyHeader:
    _, command, kind, _ = _FIXED_2.unpack_from(data)
    if command == _LOCAL:
        return ProxyHeader(2, None, is_local=True)  # whatever else it says is not to be looked at
    family, protocol = kind >> 4, kind & 15
    if family > max(_ENDS) or protocol > _DATAGRAM:
        raise HeaderError(f"family and protocol must be 0x00 to 0x32, got {kind:#04x}")
    ends = _ENDS.get(family)
    body = data[_FIXED_2.size :]
    if ends is None:
        # Then nothing is said of how long an address is, and so of where a TLV begins.
        return ProxyHeader(2, None)
    if len(body) < ends.size:
        raise HeaderError(f"addresses of {ends.size} bytes, got {len(body)}")
    tlvs = tuple(_read_tlvs(data, _FIXED_2.size + ends.size))
    if protocol != _STREAM:
        return ProxyHeader(2, None, tlvs)
    parts = ends.unpack_from(body)
    if family == _UNIX:
        return ProxyHeader(2, (parts[0].rstrip(b"\0"), parts[1].rstrip(b"\0")), tlvs)
    of = IPv4Address if family == 1 else IPv6Address
    source, target, source_port, target_port = parts
    pair = (_end(of(source), source_port), _end(of(target), target_port))
    return ProxyHeader(2, pair, tlvs)


def _read_tlvs(data: bytes, place: int) -> Iterator[tuple[int, bytes]]:
    while place < len(data):
        end = place + 3 + int.from_bytes(data[place + 1 : place + 3], "big")
        if place + 3 > len(data) or end > len(data):
            raise HeaderError(f"a TLV goes beyond the header's end: {data[place : place + 20]!r}")
        kind, value = data[place], data[place + 3 : end]
        if kind == _CRC32C:
            _check_sum(data, place + 3, value)
        elif kind == _UNIQUE_ID and len(value) > _UNIQUE_ID_MOST:
            raise HeaderError(f"a unique id has {_UNIQUE_ID_MOST} bytes or less, got {len(value)}")
        yield kind, value
        place = end


def _check_sum(data: bytes, place: int, value: bytes) -> None:
    if len(value) != 4:
        raise HeaderError(f"a checksum has 4 bytes, got {len(value)}")
    expected = _crc32c(data[:place] + b"\0\0\0\0" + data[place + 4 :])
    if int.from_bytes(value, "big") != expected:
        raise HeaderError(f"the checksum must be {expected:#010x}, got 0x{value.hex()}")


def _crc32c(data: bytes) -> int:
    # Castagnoli's polynomial, which the standard library hasn't. Balancers may send it.
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _end(address: IPv4Address | IPv6Address, port: int) -> SocketAddress:
    host = str(address)
    return (host, port) if address.version == 4 else (host, port, 0, 0)


def _excerpt(data: bytes) -> str:
    return repr(data if len(data) <= _MOST_1 else data[:_MOST_1] + b"...")
