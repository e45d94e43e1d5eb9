"""A header of the PROXY protocol is read as its specification has it, or refused."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxyprotocol.result import ProxyResultUnknown
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from glb.model.proxy_header import HeaderError, HeaderReader, ProxyHeader, Version, _crc32c

from ..support.examples import examples

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
ENDS_4 = struct.pack("!4s4sHH", bytes([1, 2, 3, 4]), bytes([5, 6, 7, 8]), 9, 65535)


def read(data: bytes, version: Version = "any") -> tuple[ProxyHeader, bytes]:
    """Return the header that begins *data*, and what is behind it."""
    reader = HeaderReader(version)
    place = 0
    while size := reader.wanted:
        reader.feed(data[place : place + size])
        place += size
    assert reader.header is not None
    return reader.header, data[place:]


def is_refused(data: bytes, match: str, version: Version = "any") -> None:
    with pytest.raises(HeaderError, match=match) as caught:
        read(data, version)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def binary(command: int, kind: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(body)) + body


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


# -- version 1 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        (b"TCP4 1.2.3.4 5.6.7.8 0 65535", (("1.2.3.4", 0), ("5.6.7.8", 65535))),
        (b"TCP6 ::1 FE80::a 1 2", (("::1", 1, 0, 0), ("fe80::a", 2, 0, 0))),
        (
            b"TCP6 " + b" ".join([b"ffff:" * 7 + b"ffff"] * 2) + b" 65535 65535",
            ((":".join(["ffff"] * 8), 65535, 0, 0),) * 2,
        ),
        (b"UNKNOWN", None),
        (b"UNKNOWN 1.2.3.4 5.6.7.8 1 2", None),
        (b"UNKNOWN " + b"\xff" * 91, None),
    ],
)
def test_a_line_is_read(line: bytes, ends: object) -> None:
    """And nothing behind it, whatever that is."""
    for behind in (b"", b"GET / HTTP/1.1\r\n", b"\r\n"):
        header, rest = read(b"PROXY " + line + b"\r\n" + behind)
        assert header == ProxyHeader(1, ends)  # type: ignore[arg-type]  # of the table
        assert rest == behind


@pytest.mark.parametrize(
    "line",
    [
        b"TCP4 1.2.3.4 5.6.7.8 1",
        b"TCP4 1.2.3.4 5.6.7.8 1 2 3",
        b"TCP4 1.2.3.4 5.6.7.8 1 65536",
        b"TCP4 1.2.3.4 5.6.7.8 01 2",
        b"TCP4 1.2.3.4 5.6.7.8 +1 2",
        b"TCP4 1.2.3.4 5.6.7.8 -1 2",
        b"TCP4 1.2.3.4 5.6.7.8  1 2",
        b"TCP4 1.2.3.4 5.6.7.8 1 2 ",
        b"TCP4 1.2.3.4\t5.6.7.8 1 2",
        b"TCP4 01.2.3.4 5.6.7.8 1 2",
        b"TCP4 1.2.3.256 5.6.7.8 1 2",
        b"TCP4 1.2.3 5.6.7.8 1 2",
        b"TCP4 ::1 ::1 1 2",
        b"TCP6 1.2.3.4 5.6.7.8 1 2",
        b"TCP6 fe80::1%lo ::1 1 2",
        b"TCP6 1:::2 ::1 1 2",
        b"tcp4 1.2.3.4 5.6.7.8 1 2",
        b"UDP4 1.2.3.4 5.6.7.8 1 2",
        b"UNKNOWNX",
        b"TCP4 \xb2.2.3.4 5.6.7.8 1 2",
        b"UNKNOWN \r x",
        b"UNKNOWN \n x",
    ],
)
def test_another_line_is_refused(line: bytes) -> None:
    """Its spaces, its zeros and its case are as they are written down."""
    is_refused(b"PROXY " + line + b"\r\n", "version 1|address of|a port")


def test_a_line_has_107_bytes_at_most() -> None:
    """With its end. One without an end isn't waited for longer than that."""
    line = b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n"
    assert len(line) == 107
    assert read(line)[0].ends is None
    is_refused(line[:-2] + b"x\r\n", "within 107 bytes|version 1")
    is_refused(b"PROXY UNKNOWN " + b"x" * 1000, "within 107 bytes")
    is_refused(b"PROXY UNKNOWN\n", "version 1")


# -- version 2 ----------------------------------------------------------------------------------


def test_addresses_of_each_family_are_read() -> None:
    """And nothing behind them."""
    header, rest = read(binary(0x21, 0x11, ENDS_4) + b"GET")
    assert header == ProxyHeader(2, (("1.2.3.4", 9), ("5.6.7.8", 65535)))
    assert rest == b"GET"
    six = struct.pack("!16s16sHH", bytes(15) + b"\1", bytes([0xFE, 0x80, *[0] * 13, 2]), 1, 2)
    header, _ = read(binary(0x21, 0x21, six))
    assert header.ends == (("::1", 1, 0, 0), ("fe80::2", 2, 0, 0))
    paths = struct.pack("!108s108s", b"/run/a", b"\0abstract")
    header, _ = read(binary(0x21, 0x31, paths))
    assert header.ends == (b"/run/a", b"\0abstract")


@pytest.mark.parametrize("kind", [0x00, 0x01, 0x02, 0x12, 0x10])
@pytest.mark.parametrize("is_local", [False, True])
def test_what_is_not_said_leaves_the_connections_own_addresses(kind: int, is_local: bool) -> None:
    """A balancer's own check, an unknown family, and datagrams, which are none of ours."""
    header, rest = read(binary(0x20 if is_local else 0x21, kind, ENDS_4) + b"x")
    assert (header.ends, header.is_local, rest) == (None, is_local, b"x")


@pytest.mark.parametrize("body", [b"", b"\xff" * 3, b"\3\0\4abcd"])
def test_what_a_check_says_besides_is_not_looked_at(body: bytes) -> None:
    """Any family, any length."""
    for kind in (0x00, 0x11, 0xFF):
        assert read(binary(0x20, kind, body))[0] == ProxyHeader(2, None, is_local=True)


def test_tlvs_are_read() -> None:
    """In their order, repeated ones and empty ones, too."""
    tlvs = [
        (1, b"h2"),
        (2, b"example.org"),
        (4, b""),
        (5, bytes(128)),
        (0xE0, b"x" * 300),
        (2, b""),
    ]
    body = ENDS_4 + b"".join(tlv(*each) for each in tlvs)
    header, _ = read(binary(0x21, 0x11, body))
    assert header.tlvs == tuple(tlvs)
    assert header.tlv(2) == b"example.org"
    assert header.tlv(0x20) is None


def test_a_checksum_is_checked() -> None:
    """Over the whole header, its own four bytes being zero; wherever it stands."""
    for before, behind in ((b"", b""), (tlv(1, b"h2"), tlv(4, bytes(9)))):
        body = ENDS_4 + before + tlv(3, bytes(4)) + behind
        place = 16 + len(ENDS_4 + before) + 3
        data = binary(0x21, 0x11, body)
        right = _crc32c(data).to_bytes(4, "big")
        data = data[:place] + right + data[place + 4 :]
        assert read(data)[0].tlv(3) == right
        is_refused(data[:17] + bytes([data[17] ^ 1]) + data[18:], "checksum")


def test_a_checksum_is_castagnolis() -> None:
    """RFC 3720, B.4, and the usual value to check with."""
    assert _crc32c(b"123456789") == 0xE3069283
    assert _crc32c(bytes(32)) == 0x8A9136AA


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (binary(0x11, 0x11, ENDS_4), "0x11"),
        (binary(0x22, 0x11, ENDS_4), "0x22"),
        (binary(0x21, 0x41, ENDS_4), "0x41"),
        (binary(0x21, 0x13, ENDS_4), "0x13"),
        (binary(0x21, 0x11, ENDS_4[:-1]), "12 bytes, got 11"),
        (binary(0x21, 0x21, ENDS_4), "36 bytes, got 12"),
        (binary(0x21, 0x31, ENDS_4), "216 bytes, got 12"),
        (binary(0x21, 0x11, ENDS_4 + b"\1"), "TLV"),
        (binary(0x21, 0x11, ENDS_4 + b"\1\0"), "TLV"),
        (binary(0x21, 0x11, ENDS_4 + b"\1\0\2x"), "TLV"),
        (binary(0x21, 0x11, ENDS_4 + tlv(3, b"abc")), "4 bytes, got 3"),
        (binary(0x21, 0x11, ENDS_4 + tlv(5, bytes(129))), "128 bytes or less, got 129"),
    ],
)
def test_another_header_of_version_2_is_refused(data: bytes, match: str) -> None:
    """With the value in the error."""
    is_refused(data, match)


# -- both ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2", "any"])
@pytest.mark.parametrize(
    "data", [b"G", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"\r\n\r\nGET", b"PROXX", b"proxy "]
)
def test_what_can_be_no_header_is_refused_at_once(data: bytes, version: Version) -> None:
    """At its first byte that no header has."""
    reader = HeaderReader(version)
    with pytest.raises(HeaderError, match="no header"):
        reader.feed(data)


def test_the_other_version_is_refused() -> None:
    """A server says which one may come."""
    is_refused(b"PROXY UNKNOWN\r\n", "no header", "v2")
    is_refused(binary(0x20, 0, b""), "no header", "v1")


@pytest.mark.parametrize(
    "data", [b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", binary(0x21, 0x11, ENDS_4)]
)
def test_a_header_that_ends_early_is_none(data: bytes) -> None:
    """Wherever it was cut."""
    for size in range(len(data)):
        is_refused(data[:size], "ended early")


# -- beside another reader ----------------------------------------------------------------------

FOUR = st.tuples(st.ip_addresses(v=4), st.integers(0, 65535))
SIX = st.tuples(st.ip_addresses(v=6), st.integers(0, 65535))
TLVS = st.lists(
    st.tuples(st.sampled_from([1, 2, 4, 0x20, 0x30, 0xE0]), st.binary(max_size=20)), max_size=3
)


@st.composite
def sent(draw: st.DrawFn) -> bytes:
    """Return a header that a balancer could send."""
    source, target = draw(st.tuples(FOUR, FOUR) | st.tuples(SIX, SIX))
    family = "TCP4" if source[0].version == 4 else "TCP6"
    if draw(st.booleans()):
        line = f"PROXY {family} {source[0]} {target[0]} {source[1]} {target[1]}\r\n"
        return draw(st.sampled_from([line, "PROXY UNKNOWN\r\n", "PROXY UNKNOWN x\r\n"])).encode()
    ends = source[0].packed + target[0].packed + struct.pack("!HH", source[1], target[1])
    body = ends + b"".join(tlv(*each) for each in draw(TLVS))
    if draw(st.booleans()):
        place = 16 + len(body) + 3
        data = binary(0x21, 0x11 if family == "TCP4" else 0x21, body + tlv(3, bytes(4)))
        return data[:place] + _crc32c(data).to_bytes(4, "big")
    return binary(draw(st.sampled_from([0x20, 0x21])), 0x11 if family == "TCP4" else 0x21, body)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return one of which some bytes are others, are missing, or are there twice."""
    data = bytearray(draw(sent()))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data) - 1))
        kind = draw(st.integers(0, 2))
        if kind == 0:
            data[place] = draw(st.integers(0, 255))
        elif kind == 1 and len(data) > 1:
            del data[place]
        else:
            data.insert(place, data[place])
    return bytes(data)


@given(data=sent())
@settings(max_examples=examples(300), deadline=None)
def test_what_a_balancer_sends_is_read(data: bytes) -> None:
    """All of it, and no byte more."""
    assert read(data + b"behind")[1] == b"behind"


@pytest.mark.thorough
@given(data=mutated())
@settings(max_examples=examples(1500), deadline=None)
def test_what_is_read_is_what_another_reader_reads(data: bytes) -> None:
    """PyPI's `proxy-protocol` accepts more; what both accept, both understand alike."""
    try:
        header, rest = read(data)
    except HeaderError:
        return
    data = data[: len(data) - len(rest)]
    if header.is_local or (header.version == 2 and data[13] & 15 != 1):
        return  # it reads TLVs of a check, and takes datagrams
    found: Any = (ProxyProtocolV1() if header.version == 1 else ProxyProtocolV2()).unpack(data)
    if header.ends is None:
        assert isinstance(found, ProxyResultUnknown)
        return
    for ours, theirs in zip(header.ends, (found.source, found.dest), strict=True):
        assert not isinstance(ours, bytes)
        assert (ipaddress.ip_address(ours[0]), ours[1]) == theirs


@given(st.binary(max_size=300), st.sampled_from(["v1", "v2", "any"]))
def test_nothing_but_a_refusal_comes_of_any_bytes(data: bytes, version: Version) -> None:
    """Behind what looks like a beginning, too."""
    for start in (b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"):
        try:
            header, _ = read(start + data, version)
        except HeaderError:
            continue
        assert header.version in {1, 2}
