"""Addresses: every spelling is read as gevent reads it, or refused with the value in the text."""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Any

import pytest
from gevent.baseserver import parse_address as gevent_parse_address  # type: ignore[attr-defined]
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glb.model.address import AF_INET, AF_INET6, AF_UNIX, MAX_PORT, Address, key_of, parse, unmap

from ..support.examples import examples

hypothetically = settings(deadline=None, database=None, print_blob=True, max_examples=examples(300))


@pytest.mark.parametrize(
    ("value", "family", "sockaddr"),
    [
        (("127.0.0.1", 80), AF_INET, ("127.0.0.1", 80)),
        (("localhost", 0), AF_INET, ("localhost", 0)),
        (("", 80), AF_INET6, ("", 80)),
        (("::1", 80), AF_INET6, ("::1", 80)),
        (("::1", 80, 7), AF_INET6, ("::1", 80, 7)),
        (("fe80::1", 80, 0, 2), AF_INET6, ("fe80::1", 80, 0, 2)),
        ((b"127.0.0.1", 80), AF_INET, ("127.0.0.1", 80)),
        ((bytearray(b"::1"), 80), AF_INET6, ("::1", 80)),
        ("127.0.0.1:80", AF_INET, ("127.0.0.1", 80)),
        ("example.org:65535", AF_INET, ("example.org", 65535)),
        ("[::1]:80", AF_INET6, ("::1", 80)),
        ("[]:80", AF_INET6, ("", 80)),
        (":80", AF_INET, ("", 80)),
        ("*:80", AF_INET, ("", 80)),
        ("80", AF_INET6, ("", 80)),
        ("0", AF_INET6, ("", 0)),
        (80, AF_INET6, ("", 80)),
        (0, AF_INET6, ("", 0)),
        (65535, AF_INET6, ("", 65535)),
        ("unix:/run/app.sock", AF_UNIX, "/run/app.sock"),
        ("unix:app.sock", AF_UNIX, "app.sock"),
        ("unix:/odd:name", AF_UNIX, "/odd:name"),
        ("unix:@name", AF_UNIX, "\0name"),
    ],
)
def test_every_spelling_is_read(value: object, family: int, sockaddr: object) -> None:
    """Each documented form gives its family and what bind(2) is to be given."""
    assert parse(value) == Address(family, sockaddr)


def test_an_address_is_its_own_spelling() -> None:
    """What was read can be read again."""
    address = parse("127.0.0.1:80")
    assert parse(address) is address


@pytest.mark.parametrize("value", [("::1", 80, 1), ("::1", 80, 1, 2), ("::1", 80)])
def test_sockaddr_keeps_its_length(value: Any) -> None:
    """The optional parts of an IPv6 address are neither added nor lost."""
    assert parse(value).sockaddr == value


hosts = st.one_of(
    st.sampled_from(["", "localhost", "127.0.0.1", "0.0.0.0", "::", "::1", "*", "[::1]", "[]"]),
    st.ip_addresses().map(str),
    st.text(max_size=8),
)
ports = st.one_of(st.integers(-2, MAX_PORT + 2), st.sampled_from([0, 80, MAX_PORT]))
spellings = st.one_of(
    st.tuples(hosts, ports),
    st.tuples(hosts, ports, st.integers(0, 9)),
    st.tuples(hosts, ports, st.integers(0, 9), st.integers(0, 9)),
    st.builds("{}:{}".format, hosts, ports),
    st.builds("[{}]:{}".format, st.ip_addresses(v=6), ports),
    ports,
    ports.map(str),
    st.text(max_size=8),
)


def parse_as_gevent(value: object) -> tuple[int, Any] | None:
    try:
        family, sockaddr = gevent_parse_address(value)
    except (TypeError, ValueError):
        return None
    return family, sockaddr


def parse_as_glb(value: object) -> Address | None:
    try:
        return parse(value)
    except (TypeError, ValueError):
        return None


@hypothetically
@given(spellings)
@example(":80")
@example("*:80")
@example(" 80 ")
@example("٣")
@example(("", 80))
def test_what_both_accept_gevent_reads_the_same(value: object) -> None:
    """Family and sockaddr are gevent's for all that gevent and we accept."""
    ours, gevents = parse_as_glb(value), parse_as_gevent(value)
    if ours is not None and gevents is not None and ours.family != AF_UNIX:
        assert (ours.family, ours.sockaddr) == gevents


@hypothetically
@given(spellings)
def test_what_gevent_refuses_is_refused(value: object) -> None:
    """Nothing but ``unix:`` is read here that gevent can't read."""
    ours = parse_as_glb(value)
    if ours is not None and ours.family != AF_UNIX:
        assert parse_as_gevent(value) is not None


@hypothetically
@given(st.ip_addresses(), st.integers(0, MAX_PORT))
def test_all_that_gevent_can_bind_is_accepted(ip: Any, port: int) -> None:
    """Every numeric address, in each of its spellings, is read as gevent reads it."""
    text = f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
    for value in ((str(ip), port), text, port, str(port), ("", port), f":{port}"):
        read = parse(value)
        assert (read.family, read.sockaddr) == parse_as_gevent(value)


anything = st.one_of(
    spellings,
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(),
    st.binary(max_size=8),
    st.complex_numbers(),
    st.text(),
    st.text(max_size=8).map("unix:".__add__),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(), st.binary()),
        lambda parts: st.lists(parts, max_size=5).map(tuple),
        max_leaves=6,
    ),
)


@hypothetically
@given(anything)
@example(("::1", 80, 1 << 32))
@example(("::1", 80, -1, 0))
@example(("\udcff", 80))
@example((b"\xff", 80))
@example("9" * 5000)
def test_anything_else_is_a_type_error_or_a_value_error(value: object) -> None:
    """Whatever comes in, an `Address` or one of two errors comes out, with the value."""
    address = parse_as_glb(value)
    if address is None:
        with pytest.raises((TypeError, ValueError), match=re.escape(repr(value))):
            parse(value)
    else:
        assert address.family in (AF_INET, AF_INET6, AF_UNIX)
        assert address.port is None or 0 <= address.port <= MAX_PORT
        assert str(address)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        8000.0,
        b"127.0.0.1:80",
        ["127.0.0.1", 80],
        (None, 80),
        (80, "127.0.0.1"),
        ("127.0.0.1", "80"),
        ("127.0.0.1", True),
        ("127.0.0.1", 80.0),
        ("127.0.0.1", None),
        ("::1", 80, 0.0),
        ("::1", 80, 0, None),
        ("::1", 80, False),
    ],
)
def test_a_wrong_type_is_a_type_error(value: object) -> None:
    """What is no host, no port or no address at all is refused by its type."""
    with pytest.raises(TypeError, match=re.escape(repr(value))):
        parse(value)


@pytest.mark.parametrize(
    "value",
    [
        -1,
        65536,
        "-1",
        "65536",
        "",
        "http",
        ":",
        ":http",
        "127.0.0.1:",
        "127.0.0.1:80.0",
        "127.0.0.1:65536",
        ("127.0.0.1", -1),
        ("127.0.0.1", 65536),
        (),
        ("127.0.0.1",),
        ("127.0.0.1", 80, 0),
        ("127.0.0.1", 80, 0, 0),
        ("::1", 80, 0, 0, 0),
        ("::1", 80, -1),
        ("::1", 80, 0, 1 << 32),
        ("local\0host", 80),
        "local\0host:80",
        (b"\xe4", 80),
        "::1:80",
        "::1",
        "[::1",
        "[::1]80",
        "unix:",
        "unix:@",
        "unix:/a\0b",
        "unix:\0",
        "unix:@a\0b",
    ],
)
def test_wrong_content_is_a_value_error(value: object) -> None:
    """The right type with the wrong content is refused, and the text has the value."""
    with pytest.raises(ValueError, match=re.escape(repr(value))):
        parse(value)


def test_a_port_may_be_any_whole_number() -> None:
    """What counts as a number by ``__index__`` counts as a port, and comes out plain."""

    class Number:
        def __index__(self) -> int:
            return 80

    port = parse(("127.0.0.1", Number())).sockaddr[1]
    assert (port, type(port)) == (80, int)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (("127.0.0.1", 80), "127.0.0.1:80"),
        ("[::1]:80", "[::1]:80"),
        (("fe80::1", 80, 0, 2), "[fe80::1]:80"),
        (8000, "[]:8000"),
        ("unix:/run/app.sock", "unix:/run/app.sock"),
        ("unix:@name", "unix:@name"),
    ],
)
def test_str_is_how_people_write_it(value: object, text: str) -> None:
    """``str()`` of an address is a spelling of it."""
    assert str(parse(value)) == text


def test_str_can_show_any_path() -> None:
    """Paths as getsockname() gives them, bytes that are no text among them, can be shown."""
    assert str(Address(AF_UNIX, b"/a\xff")) == "unix:/a\\xff"
    assert str(Address(AF_UNIX, b"\0name")) == "unix:@name"
    assert Address(AF_UNIX, b"/a").port is None


@hypothetically
@given(spellings)
def test_str_is_read_as_the_same_address(value: object) -> None:
    """What ``str()`` writes, `parse` reads as the same place, where a spelling for it exists."""
    address = parse_as_glb(value)
    if address is None:
        return
    if address.family == AF_UNIX:
        assert parse(str(address)) == address
        return
    host, _port, *rest = address.sockaddr
    if not rest and host != "*" and not set("[]:") & set(host):
        assert parse(str(address)) == address


def key(*sockaddr: Any) -> object:
    return key_of(Address(AF_INET6 if ":" in sockaddr[0] else AF_INET, sockaddr))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("::ffff:127.0.0.1", 80), ("127.0.0.1", 80)),
        (("::ffff:7f00:1", 80, 0, 0), ("127.0.0.1", 80)),
        (("::ffff:0.0.0.0", 80), ("0.0.0.0", 80)),
        (("::1", 80), ("0:0:0:0:0:0:0:1", 80)),
        (("::1", 80), ("::1", 80, 0, 0)),
        (("::1", 80, 7, 0), ("::1", 80, 9, 0)),
        (("::1", 80, 7), ("::1", 80)),
        (("fe80::A", 80, 0, 2), ("fe80:0::000a", 80, 5, 2)),
        (("fe80::1%lo", 80, 0, 1), ("fe80::1", 80, 0, 1)),
    ],
)
def test_spellings_of_one_place_have_one_key(one: Any, other: Any) -> None:
    """IPv4 in IPv6 clothes, zeros, letters, and the flow label make no other place."""
    assert key(*one) == key(*other)
    assert hash(key(*one)) == hash(key(*other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("127.0.0.1", 80), ("127.0.0.1", 81)),
        (("127.0.0.1", 80), ("127.0.0.2", 80)),
        (("127.0.0.1", 80), ("0.0.0.0", 80)),
        (("127.0.0.1", 80), ("::1", 80)),
        (("0.0.0.0", 80), ("::", 80)),
        (("::1", 80), ("::", 80)),
        (("::127.0.0.1", 80), ("127.0.0.1", 80)),
        (("fe80::1", 80, 0, 1), ("fe80::1", 80, 0, 2)),
    ],
)
def test_places_that_differ_have_keys_that_differ(one: Any, other: Any) -> None:
    """Port, host, scope and family count; wildcards are places of their own."""
    assert key(*one) != key(*other)


@hypothetically
@given(st.ip_addresses(v=6), st.ip_addresses(v=6), st.integers(0, MAX_PORT))
def test_keys_of_ipv6_are_equal_exactly_for_equal_addresses(
    one: ipaddress.IPv6Address, other: ipaddress.IPv6Address, port: int
) -> None:
    """The key neither splits an address by its spelling nor merges two."""
    assert key(one.compressed, port) == key(one.exploded, port)
    assert (key(one.exploded, port) == key(other.compressed, port)) is (one == other)


@hypothetically
@given(st.ip_addresses(v=4), st.integers(0, MAX_PORT))
def test_a_mapped_address_is_undressed(ip: ipaddress.IPv4Address, port: int) -> None:
    """``::ffff:a.b.c.d`` becomes the IPv4 address, which stays as it is."""
    plain = Address(AF_INET, (str(ip), port))
    mapped = f"::ffff:{ip}"
    assert unmap(Address(AF_INET6, (mapped, port, 0, 0))) == plain
    assert unmap(plain) is plain


def test_other_ipv6_addresses_stay_dressed() -> None:
    """Only the mapped prefix is taken off."""
    for host in ("::", "::1", "::127.0.0.1", "64:ff9b::7f00:1", "fe80::1"):
        address = Address(socket.AF_INET6, (host, 80))
        assert unmap(address) is address
