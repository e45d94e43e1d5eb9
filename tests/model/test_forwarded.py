"""The client of a request is the first hop, from the server, that is no trusted proxy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glb.model.forwarded import AmbiguousHopsError, Forwarded, TrustedProxies

PROXIES = TrustedProxies(["10.0.0.0/8", "fd00::/8", "192.0.2.1"])
PEER = "10.0.0.1"


def look(peer: str = PEER, **fields: str) -> Forwarded:
    """Return what holds of *fields*, whose names are those of the environ, in small letters."""
    return PROXIES.look(peer, {f"HTTP_{key.upper()}": value for key, value in fields.items()})


@pytest.mark.parametrize(
    ("hops", "client", "kept"),
    [
        ("1.2.3.4", "1.2.3.4", "1.2.3.4"),
        ("6.6.6.6, 1.2.3.4", "1.2.3.4", "1.2.3.4"),
        ("6.6.6.6,1.2.3.4,10.9.9.9,192.0.2.1", "1.2.3.4", "1.2.3.4, 10.9.9.9, 192.0.2.1"),
        ("10.1.1.1, 1.2.3.4", "1.2.3.4", "1.2.3.4"),
        ("10.1.1.1, 10.2.2.2", "10.1.1.1", "10.1.1.1, 10.2.2.2"),
        ("2001:db8::1, fd00::1", "2001:db8::1", "2001:db8::1, fd00::1"),
        ("[2001:DB8::1]:99, ::ffff:10.0.0.3", "2001:db8::1", "[2001:DB8::1]:99, ::ffff:10.0.0.3"),
        ("1.2.3.4:5678", "1.2.3.4", "1.2.3.4:5678"),
        ("6.6.6.6, unknown, 10.1.1.1", None, "unknown, 10.1.1.1"),
        ("6.6.6.6, , 10.1.1.1", None, ", 10.1.1.1"),
        ("6.6.6.6, 1.2.3.4 x", None, "1.2.3.4 x"),
    ],
)
def test_the_client_is_the_nearest_hop_that_is_not_trusted(
    hops: str, client: str | None, kept: str
) -> None:
    """What stands before it is cut off: any client may have written it."""
    found = look(x_forwarded_for=hops)
    assert found == Forwarded(client, None, None, {"HTTP_X_FORWARDED_FOR": kept})


@pytest.mark.parametrize("peer", ["1.2.3.4", "2001:db8::1", "", "not an address"])
def test_nothing_holds_that_comes_from_elsewhere(peer: str) -> None:
    """No field is left, so that an application can't be deceived by one."""
    found = look(
        peer, x_forwarded_for="6.6.6.6", x_forwarded_proto="https", forwarded="for=6.6.6.6"
    )
    assert found == Forwarded(None, None, None, {})


def test_all_and_unix_sockets_may_be_trusted() -> None:
    """Each by a word of its own."""
    assert TrustedProxies(["*"]).trusts("6.6.6.6")
    assert TrustedProxies(["*"]).trusts("")
    assert TrustedProxies(["unix"]).trusts("")
    assert not TrustedProxies(["unix"]).trusts("6.6.6.6")
    assert not TrustedProxies([]).trusts("127.0.0.1")
    assert TrustedProxies([" 127.0.0.1 "]).trusts("127.0.0.1")
    assert TrustedProxies(["127.0.0.1"]).trusts("::ffff:127.0.0.1")


@pytest.mark.parametrize(
    "wrong", ["", "10.0.0.0/33", "10.0.0.1/8", "localhost", "1.2.3", "fd00::/x"]
)
def test_what_is_no_network_is_refused(wrong: str) -> None:
    """With the value in the error."""
    with pytest.raises(ValueError, match="a proxy must be an address, a network") as caught:
        TrustedProxies(["127.0.0.1", wrong])
    assert f"got {wrong!r}" in str(caught.value)


def test_what_has_no_networks_is_refused() -> None:
    """With the value in the error."""
    with pytest.raises(TypeError, match="proxies must be a string or several, got 10"):
        TrustedProxies(10)  # type: ignore[arg-type]  # that is the point


def test_a_network_with_a_hosts_bits_has_a_hint() -> None:
    """With the network that was meant."""
    with pytest.raises(ValueError, match=r"got '10\.0\.0\.1/8': did you mean 10\.0\.0\.0/8\?"):
        TrustedProxies("10.0.0.1/8")


@pytest.mark.parametrize(
    ("protos", "hops", "scheme"),
    [
        ("https", "1.2.3.4", "https"),
        ("HTTPS", "1.2.3.4", "https"),
        ("wss", "1.2.3.4", "https"),
        ("http, https", "1.2.3.4", "https"),
        ("http, https, http", "6.6.6.6, 1.2.3.4, 10.1.1.1", "https"),
        ("https", "6.6.6.6, 1.2.3.4, 10.1.1.1", "https"),
        ("gopher", "1.2.3.4", None),
        ("", "1.2.3.4", None),
    ],
)
def test_the_scheme_is_the_clients(protos: str, hops: str, scheme: str | None) -> None:
    """Of a list as long as the hops' it is the one of its hop; else the nearest proxy's."""
    assert look(x_forwarded_for=hops, x_forwarded_proto=protos).scheme == scheme


@pytest.mark.parametrize(
    ("host", "expected"),
    [("a.example:8443", "a.example:8443"), ("[::1]:1", "[::1]:1"), ("a b", None), ("a/b", None)],
)
def test_the_host_is_one_or_none(host: str, expected: str | None) -> None:
    """What can't be a host is not handed on as one."""
    assert look(x_forwarded_for="1.2.3.4", x_forwarded_host=host).host == expected


def test_a_list_of_hosts_has_one_for_each_hop() -> None:
    """What stands before the client's is cut off."""
    found = look(x_forwarded_for="6.6.6.6, 1.2.3.4, 10.1.1.1", x_forwarded_host="bad, good, inner")
    assert found.host == "good"
    assert found.fields["HTTP_X_FORWARDED_HOST"] == "good, inner"


@pytest.mark.parametrize(
    ("value", "client", "scheme", "host", "kept"),
    [
        ("for=1.2.3.4", "1.2.3.4", None, None, "for=1.2.3.4"),
        (
            'for=6.6.6.6, FOR="[2001:db8::1]:80";Proto=https;host="a.b:1";by=10.0.0.9,for=10.1.1.1',
            "2001:db8::1",
            "https",
            "a.b:1",
            'for="[2001:db8::1]:80";proto=https;host="a.b:1";by=10.0.0.9, for=10.1.1.1',
        ),
        ("for=6.6.6.6, for=unknown;proto=http", None, "http", None, "for=unknown;proto=http"),
        ("for=6.6.6.6, for=_hidden", None, None, None, "for=_hidden"),
        ("for=6.6.6.6, proto=https", None, "https", None, "proto=https"),
        ('for="1.2.3.4\\"\\\\"', None, None, None, 'for="1.2.3.4\\"\\\\"'),
    ],
)
def test_forwarded_is_read(
    value: str, client: str | None, scheme: str | None, host: str | None, kept: str
) -> None:
    """RFC 7239: pairs, quoted or not, of one element for each hop."""
    assert look(forwarded=value) == Forwarded(client, scheme, host, {"HTTP_FORWARDED": kept})


@pytest.mark.parametrize(
    "before", ['x="', "for=6.6.6.6 y", "=;=", 'for="6.6.6.6\\', "for=6.6.6.6;;"]
)
def test_what_a_client_broke_does_not_hide_what_proxies_say(before: str) -> None:
    """They have written behind it."""
    found = look(forwarded=f"{before}, for=1.2.3.4, for=10.1.1.1")
    assert found.client == "1.2.3.4"
    assert found.fields == {"HTTP_FORWARDED": "for=1.2.3.4, for=10.1.1.1"}


def test_two_clients_are_refused() -> None:
    """The proxies write one of the two fields, and the other one is the client's own."""
    with pytest.raises(AmbiguousHopsError, match=r"'6\.6\.6\.6'.*'1\.2\.3\.4'"):
        look(x_forwarded_for="6.6.6.6", forwarded="for=1.2.3.4")
    assert look(x_forwarded_for="1.2.3.4", forwarded='for="1.2.3.4:80"').client == "1.2.3.4"


@given(
    forged=st.text(st.characters(min_codepoint=9, max_codepoint=255), max_size=60),
    proxies=st.lists(st.integers(0, 255).map("10.1.1.{}".format), max_size=3),
    is_standard=st.booleans(),
)
def test_nothing_that_a_client_sends_moves_it(
    forged: str, proxies: list[str], is_standard: bool
) -> None:
    """Its address is what the first trusted proxy has written, or nothing is known."""
    if is_standard:
        value = ", ".join([forged, "for=1.2.3.4", *(f"for={each}" for each in proxies)])
        found = look(forwarded=value).client
        assert found in {None, "1.2.3.4", *proxies}
    else:
        value = ", ".join([forged, "1.2.3.4", *proxies])
        assert look(x_forwarded_for=value).client == "1.2.3.4"
