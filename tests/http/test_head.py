"""A head is read as the grammar has it, or refused."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glb.http import head as module
from glb.http.head import (
    BadRequest,
    Head,
    Limits,
    find_end,
    is_field_value,
    is_token,
    parse,
    without_empty_lines,
)
from glb.pywsgi import WSGIHandler, WSGIServer

from ..support import http_grammar
from ..support.examples import examples
from ..support.helpers import ask

LIMITS = Limits()

Result = Head | tuple[str, str]


def read(data: bytes, limits: Limits = LIMITS, **kwargs: Any) -> Head:
    """Return the head that is in the bytes of a request."""
    end = find_end(data, 0, limits)
    assert end >= 0
    return parse(data[: end + 2], limits, **kwargs)


def refusal(data: bytes, limits: Limits = LIMITS, **kwargs: Any) -> str:
    """Return the status with which the bytes of a request are refused."""
    with pytest.raises(BadRequest) as caught:
        read(data, limits, **kwargs)
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 600
    return caught.value.status.partition(" ")[0]


def read_in_pieces(pieces: Iterable[bytes], limits: Limits = LIMITS) -> Result | None:
    """Return what a connection makes of the bytes of a request; ``None`` if it waits for more."""
    data, seen = b"", 0
    try:
        for piece in pieces:
            data += piece
            end = find_end(data, seen, limits)
            if end >= 0:
                return parse(data[: end + 2], limits)
            seen = len(data)
    except BadRequest as error:
        return (error.status, str(error))
    return None


def attributes_of(result: Result | None) -> object:
    """Return all attributes of a head, or the status of a refusal."""
    if not isinstance(result, Head):
        return result and result[0]
    return {name: getattr(result, name) for name in Head.__slots__}


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def get(*lines: str, first: str = "GET /x HTTP/1.1") -> bytes:
    return "\r\n".join([first, *lines, "", ""]).encode("latin-1")


# -- the request line ---------------------------------------------------------------------------

CONTROLS = [*range(0x20), 0x7F]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /x", "400"),  # HTTP/0.9
        ("GET", "400"),
        (" ", "400"),
        ("GET  /x HTTP/1.1", "400"),
        ("GET /x  HTTP/1.1", "400"),
        ("GET /x HTTP/1.1 ", "400"),
        (" GET /x HTTP/1.1", "400"),
        ("GET\t/x HTTP/1.1", "400"),
        ("GET /x\tHTTP/1.1", "400"),
        ("GET\xa0/x HTTP/1.1", "400"),
        ("GET /x y HTTP/1.1", "400"),
        ("G@T /x HTTP/1.1", "400"),
        ("GET, /x HTTP/1.1", "400"),
        ('"GET" /x HTTP/1.1', "400"),
        ("GÉT /x HTTP/1.1", "400"),
        ("GET /é HTTP/1.1", "400"),
        ("GET /x#y HTTP/1.1", "400"),
        ("GET # HTTP/1.1", "400"),
        ("GET /x http/1.1", "400"),
        ("GET /x HTTP/1.1x", "400"),
        ("GET /x HTTPS/1.1", "400"),
        ("GET /x HTTP/1,1", "400"),
        ("GET /x HTTP/ 1.1", "400"),
        ("GET /x HTTP/1.\xb9", "400"),
        ("GET /x HTTP/", "400"),
        ("GET /x HTTP/11.1", "400"),
        ("GET /x HTTP/1.01", "400"),
        ("GET /x HTTP/0.9", "505"),
        ("GET /x HTTP/1.2", "505"),
        ("GET /x HTTP/1", "505"),
        ("GET /x HTTP/2", "505"),
        ("GET /x HTTP/2.0", "505"),
        ("GET /x HTTP/9.9", "505"),
        ("PRI * HTTP/2.0", "505"),
    ],
)
def test_a_line_that_is_no_request_line_is_refused(line: str, status: str) -> None:
    """At once, and as soon as it has its end: what sent it may wait for a reply."""
    assert refusal(get("Host: a", first=line)) == status
    assert refusal(get(first=line)) == status
    result = read_in_pieces(one_by_one(line.encode("latin-1") + b"\r\n"))
    assert isinstance(result, tuple)
    assert result[0].startswith(status)


@pytest.mark.parametrize("byte", CONTROLS)
@pytest.mark.parametrize(
    "place",
    [
        "G%sT /x HTTP/1.1",
        "%sGET /x HTTP/1.1",
        "GET /%s HTTP/1.1",
        "GET /x HTTP/1.%s1",
        "GET%s/x HTTP/1.1",
    ],
)
def test_a_control_byte_in_the_request_line_is_refused(byte: int, place: str) -> None:
    """Bare CR and bare LF too."""
    assert refusal(get("Host: a", first=place % chr(byte))) == "400"


def test_the_first_fault_is_the_request_lines() -> None:
    """A reply doesn't depend on how much of the head is there when it is seen."""
    data = get("Host: a\x00", "X Y: z", first="GET / HTTP/2.0")
    for pieces in ([data], one_by_one(data), [data[:-1], data[-1:]]):
        result = read_in_pieces(pieces)
        assert isinstance(result, tuple)
        assert result[0] == "505 HTTP Version Not Supported"
    for line in ("G\x00T / HTTP/2.0", "GET /\x7f HTTP/2.0", "GET / HTTP/2.0\x00"):
        assert attributes_of(read_in_pieces([get(first=line)])) == "400 Bad Request"
        assert attributes_of(read_in_pieces(one_by_one(get(first=line)))) == "400 Bad Request"


@pytest.mark.parametrize("method", ["GET", "get", "M-SEARCH", "!#$%&'*+-.^_`|~09azAZ", "CONNECTED"])
def test_a_method_is_any_token(method: str) -> None:
    """In the case in which it was sent."""
    assert read(get(first=f"{method} / HTTP/1.0")).method == method


# -- the target ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "path", "query", "host"),
    [
        ("GET / HTTP/1.1", "/", "", "a"),
        ("GET /? HTTP/1.1", "/", "", "a"),
        ("GET /x?y=1&z? HTTP/1.1", "/x", "y=1&z?", "a"),
        ("GET //x//y HTTP/1.1", "//x//y", "", "a"),
        ("GET /../x HTTP/1.1", "/../x", "", "a"),
        ("GET /%zz%00 HTTP/1.1", "/%zz%00", "", "a"),
        ('GET /"<>\\^`{|} HTTP/1.1', '/"<>\\^`{|}', "", "a"),
        ("GET http://b HTTP/1.1", "/", "", "b"),
        ("GET http://b:80 HTTP/1.1", "/", "", "b:80"),
        ("GET http://b? HTTP/1.1", "/", "", "b"),
        ("GET http://b?c/d HTTP/1.1", "/", "c/d", "b"),
        ("GET HTTPS://b/c?d HTTP/1.1", "/c", "d", "b"),
        ("GET http://[::1]:8/ HTTP/1.1", "/", "", "[::1]:8"),
        ("OPTIONS http://b HTTP/1.1", "/", "", "b"),
        ("OPTIONS * HTTP/1.1", "*", "", "a"),
        ("OPTIONS /x HTTP/1.1", "/x", "", "a"),
        ("CONNECT b:443 HTTP/1.1", "b:443", "", "a"),
        ("CONNECT [::1]:443 HTTP/1.1", "[::1]:443", "", "a"),
        ("CONNECT b HTTP/1.1", "b", "", "a"),
    ],
)
def test_a_target_has_one_of_four_forms(line: str, path: str, query: str, host: str) -> None:
    """Of an absolute one the host counts, whatever Host says."""
    head = read(get("Host: a", first=line))
    assert (head.path, head.query, head.fields["HTTP_HOST"]) == (path, query, host)
    assert head.target == line.split(" ")[1]


@pytest.mark.parametrize(
    "line",
    [
        "GET x HTTP/1.1",
        "GET * HTTP/1.1",
        "OPTIONS ** HTTP/1.1",
        "OPTIONS *?x HTTP/1.1",
        "GET ?x HTTP/1.1",
        "GET b:80 HTTP/1.1",
        "GET foo:bar HTTP/1.1",
        "GET ftp://b/ HTTP/1.1",
        "GET http:/b HTTP/1.1",
        "GET http:// HTTP/1.1",
        "GET http:///x HTTP/1.1",
        "GET http://?x HTTP/1.1",
        "GET http://:80/ HTTP/1.1",
        "GET http://u:p@b/ HTTP/1.1",
        "GET http://b:c/ HTTP/1.1",
        "GET http://[::1/ HTTP/1.1",
        "GET http://b\\c/ HTTP/1.1",
        "CONNECT /x HTTP/1.1",
        "CONNECT / HTTP/1.0",
        "CONNECT b:c HTTP/1.1",
        "CONNECT u@b:1 HTTP/1.1",
        "CONNECT http://b/ HTTP/1.1",
        "CONNECT b/c HTTP/1.1",
    ],
)
def test_a_target_of_another_form_is_refused(line: str) -> None:
    """And one that is not its method's."""
    assert refusal(get("Host: a", first=line)) == "400"


# -- field lines --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "X-Y : z",
        "X-Y\t: z",
        "Host : a",
        "Content-Length : 5",
        "X Y: z",
        ": z",
        ":",
        "X-Y",
        "Host",
        " ",
        "\xa0X: y",
        "X-é: z",
        "X(Y): z",
        "X/Y: z",
        "X@Y: z",
        "[X]: z",
        '"X": z',
        ">From x: y",
        "From x",
        "X\xff: z",
        "X\x85: z",
    ],
)
def test_a_line_without_a_name_and_a_colon_is_refused(line: str) -> None:
    """It is neither left out nor taken for the end of the head."""
    assert refusal(get(line, "Host: a")) == "400"
    assert refusal(get("Host: a", line)) == "400"
    assert refusal(get("Host: a", "X: y", line, "Z: z")) == "400"


@pytest.mark.parametrize("fold", [" y", "\ty", " ", "\t", " Transfer-Encoding: chunked"])
def test_a_folded_line_is_refused(fold: str) -> None:
    """Behind each line there is, the request line among them."""
    assert refusal(get("X: y", fold, "Host: a")) == "400"
    assert refusal(get("Host: a", fold)) == "400"
    assert refusal(get(fold, "Host: a")) == "400"
    assert refusal(get("Transfer-Encoding:", " chunked")) == "400"


@pytest.mark.parametrize("byte", CONTROLS)
def test_a_control_byte_in_a_field_is_refused(byte: int) -> None:
    """HTAB alone may be in a value."""
    for line in (f"X{chr(byte)}Y: z", f"{chr(byte)}X: z", f"X: y{chr(byte)}"):
        assert refusal(get(line, "Host: a") if line[-1] != "\t" else get("X\tY: z")) == "400"
    if byte != 9:
        assert refusal(get(f"X: y{chr(byte)}z", "Host: a")) == "400"
        assert refusal(get(f"X:{chr(byte)}y", "Host: a")) == "400"
    else:
        assert read(get("X: y\tz")).fields == {"HTTP_X": "y\tz"}


@pytest.mark.parametrize(
    "data",
    [
        b"GET /x HTTP/1.1\nHost: a\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\n\n\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\r\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\r\n\nX: y\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: a\r\n\rX: y\r\n\r\n",
        b"GET /x HTTP/1.1\n\r\nHost: a\r\n\r\n",
        b"GET /x HTTP/1.1\r\n\n\r\n\r\n",
        b"\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\rGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /x HTTP/1.1\r\nX: \r\n\r\r\n\r\n",
        b"GET /x HTTP/1.1\r\nX: a\r\rb\n\nc\r\n\r\n",
    ],
)
def test_half_a_line_end_is_refused(data: bytes) -> None:
    """Wherever it is, and however the pairs that it makes are counted."""
    result = read_in_pieces([data])
    assert isinstance(result, tuple), result
    assert (
        attributes_of(read_in_pieces(one_by_one(data)))
        == attributes_of(result)
        == "400 Bad Request"
    )


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("X:", ""),
        ("X: ", ""),
        ("X: \t ", ""),
        ("X:y", "y"),
        ("X: y ", "y"),
        ("X:\t y \t", "y"),
        ("X: y  z", "y  z"),
        ("X: y:z", "y:z"),
        ("X: \xa0y\x85", "\xa0y\x85"),
        ("X: \xff", "\xff"),
        ('X: "y, z"', '"y, z"'),
    ],
)
def test_a_value_is_what_is_between_white_space(line: str, value: str) -> None:
    """Which is SP and HTAB, and no other character that Python strips."""
    assert read(get(line)).fields == {"HTTP_X": value}


def test_names_are_those_of_wsgi() -> None:
    """In any case; Content-Type and Content-Length have no HTTP_ before them."""
    names = get("content-type: a/b", "CONTENT-Length: 5", "x-Y.z: 1", "!#$%&'*+.^`|~9: 2")
    assert read(names).fields == {
        "CONTENT_TYPE": "a/b",
        "CONTENT_LENGTH": "5",
        "HTTP_X_Y.Z": "1",
        "HTTP_!#$%&'*+.^`|~9": "2",
    }


@pytest.mark.parametrize(
    ("lines", "fields"),
    [
        (("X: a", "x: b", "X:"), {"HTTP_X": "a,b,"}),
        (("Cookie: a=1", "Cookie: b=2"), {"HTTP_COOKIE": "a=1; b=2"}),
        (("Content-Type: a/b", "Content-Type: c/d"), {"CONTENT_TYPE": "a/b"}),
    ],
)
def test_fields_of_one_name_are_one(lines: tuple[str, ...], fields: dict[str, str]) -> None:
    """In their order, as gevent has them."""
    assert read(get(*lines)).fields == fields


@pytest.mark.parametrize(
    "line",
    ["X_Y: 1", "X-A_B: 1", "Content_Length: 5", "Transfer_Encoding: chunked", "_: 1", "H_ost: a"],
)
def test_a_name_with_an_underscore_is_left_out(line: str) -> None:
    """It would be taken for another field, which a proxy has set or removed."""
    head = read(get(line, "X-Y: 0", line))
    assert head.fields == {"HTTP_X_Y": "0"}
    assert head.rest.decode("latin-1").split("\r\n") == ["HTTP/1.1", line, "X-Y: 0", line, ""]
    assert (head.length, head.is_chunked) == (None, False)


@pytest.mark.parametrize("line", ["X_Y", "X_Y : z", "X_\x01: z"])
def test_a_name_with_an_underscore_is_held_to_the_grammar(line: str) -> None:
    """Though it is left out."""
    assert refusal(get(line)) == "400"


# -- Host ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a",
        "a:",
        "a:80",
        "A.b-c_d~e",
        "1.2.3.4:5",
        "[::1]",
        "[::1]:80",
        "[v1.a]",
        "a%20b",
        "!$&'()*+,;=",
    ],
)
def test_a_host_is_a_name_or_an_address_and_a_port(host: str) -> None:
    """It may be empty."""
    assert read(get(f"Host: {host}"), needs_host=True).fields == {"HTTP_HOST": host}


@pytest.mark.parametrize(
    "host",
    [
        "a b",
        "a/b",
        "a?b",
        "a#b",
        "u@a",
        "a:b",
        "a:1:2",
        "[::1",
        "::1",
        "[a",
        "[::1]a",
        "[]",
        "a\\b",
        '"a"',
        "é",
        "a\tb",
        "a, b",
        "a:+1",
        "a:\xb2",
    ],
)
def test_another_host_is_refused(host: str) -> None:
    """Also if the target has one."""
    assert refusal(get(f"Host: {host}")) == "400"
    assert refusal(get(f"Host: {host}", first="GET http://b/ HTTP/1.1")) == "400"


def test_two_hosts_are_refused() -> None:
    """Be they the same, or empty."""
    for pair in (("a", "b"), ("a", "a"), ("", ""), ("a", "")):
        assert refusal(get(*(f"Host: {host}" for host in pair))) == "400"
    assert refusal(get("Host: a", "hOST: a")) == "400"


def test_a_missing_host_is_refused_where_it_is_needed() -> None:
    """In HTTP/1.1, also beside an absolute target; HTTP/1.0 has none."""
    assert read(get()).fields == {}
    assert refusal(get(), needs_host=True) == "400"
    assert refusal(get(first="GET http://b/ HTTP/1.1"), needs_host=True) == "400"
    assert read(get(first="GET / HTTP/1.0"), needs_host=True).fields == {}


# -- framing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "length"),
    [
        ("0", 0),
        ("5", 5),
        ("\t5 ", 5),
        ("005", 5),
        ("0" * 30 + "5", 5),
        ("0" * 5000, 0),
        ("0" * 5000 + "5", 5),
        (str(sys.maxsize), sys.maxsize),
    ],
)
def test_a_length_is_digits(value: str, length: int) -> None:
    """As many as there are; an application reads the same number."""
    head = read(get(f"Content-Length: {value}"))
    assert head.length == length
    assert int(head.fields["CONTENT_LENGTH"]) == length


@pytest.mark.parametrize(
    "value",
    [
        "",
        "+5",
        "-5",
        "-0",
        "5.0",
        "0x5",
        "5e1",
        "1_0",
        "5 5",
        "5,5",
        "5, 5",
        "5;",
        '"5"',
        "\xb2",
        "\xbd",
        "\xa05",
        "5\x85",
        "a",
        str(sys.maxsize + 1),
        "9" * 20,
        "9" * 4300,
        "9" * 4301,
        "9" * 60000,
        "0" * 5000 + "9" * 30,
        "x" * 60000,
    ],
)
def test_another_length_is_refused(value: str) -> None:
    """Also one that Python's `int` takes, or refuses with an error of its own."""
    assert refusal(get(f"Content-Length: {value}")) == "400"


def test_two_lengths_are_refused() -> None:
    """Be they the same, or 0."""
    for pair in (("5", "6"), ("5", "5"), ("0", "0"), ("", "5")):
        assert refusal(get(*(f"Content-Length: {value}" for value in pair))) == "400"


@pytest.mark.parametrize("value", ["chunked", "CHUNKED", "Chunked", "chunked \t", "\tchunked"])
def test_a_body_may_be_chunked(value: str) -> None:
    """In any case."""
    head = read(get(f"Transfer-Encoding: {value}"))
    assert (head.is_chunked, head.length, head.is_persistent) == (True, None, True)


@pytest.mark.parametrize(
    "lines",
    [
        ("",),
        ("identity",),
        ("gzip",),
        ("gzip, chunked",),
        ("chunked, gzip",),
        ("chunked, chunked",),
        ("chunked,",),
        (",chunked",),
        ("chunked;q=1",),
        ('"chunked"',),
        ("chunkedx",),
        ("xchunked",),
        ("chun\xadked",),
        ("\xa0chunked",),
        ("chunked\x85",),
        ("chun ked",),
    ],
)
def test_another_transfer_encoding_is_refused(lines: tuple[str, ...]) -> None:
    """With or without a length; HTTP/1.0 has none at all."""
    fields = [f"Transfer-Encoding: {line}" for line in lines]
    assert refusal(get(*fields)) == "501"
    assert refusal(get(*fields, "Content-Length: 5")) == "501"
    assert refusal(get("Content-Length: 5", *fields)) == "501"


def test_two_transfer_encodings_are_refused() -> None:
    """Be they the same."""
    for other in ("chunked", "identity", ""):
        assert refusal(get("Transfer-Encoding: chunked", f"Transfer-Encoding: {other}")) == "400"


def test_a_transfer_encoding_in_http_1_0_is_refused() -> None:
    """No reader of HTTP/1.0 knows it."""
    lines = ("Transfer-Encoding: chunked", "Connection: keep-alive")
    assert refusal(get(*lines, first="POST / HTTP/1.0")) == "400"


@pytest.mark.parametrize("length", ["5", "0", str(sys.maxsize)])
def test_a_length_beside_chunks_is_not_seen(length: str) -> None:
    """And nothing is read behind such a body."""
    pair = ("Transfer-Encoding: chunked", f"Content-Length: {length}")
    for lines in (pair, pair[::-1], (*pair, "Connection: keep-alive")):
        head = read(get(*lines))
        assert (head.is_chunked, head.length, head.is_persistent) == (True, None, False)
        assert "CONTENT_LENGTH" not in head.fields
    assert refusal(get("Transfer-Encoding: chunked", "Content-Length: x")) == "400"


# -- the connection -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "lines", "options", "is_persistent"),
    [
        ("1.1", (), set(), True),
        ("1.1", ("keep-alive",), {"keep-alive"}, True),
        ("1.1", ("close",), {"close"}, False),
        ("1.1", ("Close",), {"close"}, False),
        ("1.1", ("foo , CLOSE\t,",), {"foo", "close"}, False),
        ("1.1", ("keep-alive, close",), {"keep-alive", "close"}, False),
        ("1.1", ("keep-alive", "close"), {"keep-alive", "close"}, False),
        ("1.1", ("closed",), {"closed"}, True),
        ("1.1", ("", " , ,"), set(), True),
        ("1.1", ("Upgrade,",), {"upgrade"}, True),
        ("1.0", (), set(), False),
        ("1.0", ("keep-alive",), {"keep-alive"}, True),
        ("1.0", ("Keep-Alive,",), {"keep-alive"}, True),
        ("1.0", ("close",), {"close"}, False),
        ("1.0", ("foo, keep-alive",), {"foo", "keep-alive"}, False),
        ("1.0", ("keep-alive, close",), {"keep-alive", "close"}, False),
    ],
)
def test_connection_options_are_a_list(
    version: str, lines: tuple[str, ...], options: set[str], is_persistent: bool
) -> None:
    """In any case, and with elements that are empty."""
    fields = [f"Connection: {line}" for line in lines]
    for _ in range(2):  # known and unknown
        head = read(get(*fields, first=f"GET / HTTP/{version}"))
        assert (head.options, head.is_persistent) == (frozenset(options), is_persistent)


@pytest.mark.parametrize(
    ("version", "lines", "expects"),
    [
        ("1.1", (), ""),
        ("1.1", ("100-Continue",), "100-continue"),
        ("1.1", ("100-continue", "x"), "100-continue,x"),
        ("1.0", ("100-continue",), ""),
    ],
)
def test_what_is_expected_is_in_lower_case(
    version: str, lines: tuple[str, ...], expects: str
) -> None:
    """HTTP/1.0 expects nothing."""
    fields = [f"Expect: {line}" for line in lines]
    assert read(get(*fields, first=f"GET / HTTP/{version}")).expects == expects


@pytest.mark.parametrize(
    ("method", "lines", "upgrade"),
    [
        ("GET", ("Connection: upgrade", "Upgrade: WebSocket"), "websocket"),
        ("GET", ("Connection: keep-alive, Upgrade", "Upgrade: a, b"), "a, b"),
        ("GET", ("Connection: upgrade", "Upgrade: x", "Content-Length: 0"), "x"),
        ("GET", ("Connection: upgrade",), ""),
        ("GET", ("Upgrade: x",), ""),
        ("GET", ("Connection: upgraded", "Upgrade: x"), ""),
        ("GET", ("Connection: upgrade", "Upgrade: x", "Content-Length: 1"), ""),
        ("GET", ("Connection: upgrade", "Upgrade: x", "Transfer-Encoding: chunked"), ""),
        ("POST", ("Connection: upgrade", "Upgrade: x"), ""),
        ("get", ("Connection: upgrade", "Upgrade: x"), ""),
    ],
)
def test_an_upgrade_is_what_may_be_one(method: str, lines: tuple[str, ...], upgrade: str) -> None:
    """A GET without a body, which says so twice."""
    assert read(get(*lines, first=f"{method} / HTTP/1.1")).upgrade == upgrade
    assert read(get(first=f"{method} / HTTP/1.0")).upgrade == ""
    assert read(get(*lines[:2], first=f"{method} / HTTP/1.0")).upgrade == ""


# -- limits -------------------------------------------------------------------------------------

SMALL = Limits(line=40, field=30, head=60, fields=4)


def outcomes(data: bytes, limits: Limits) -> str:
    """Return the status of a request, or ``""``, which is the same however it comes."""
    found = {
        result[0].partition(" ")[0] if isinstance(result, tuple) else "" if result else "more"
        for result in (
            read_in_pieces([data], limits),
            read_in_pieces([data[:-1], data[-1:]], limits),
            read_in_pieces([data[:-2], data[-2:]], limits),
            read_in_pieces([data[:-4], data[-4:]], limits),
            read_in_pieces(one_by_one(data), limits),
            read_in_pieces([data + b"GET /next HTTP/1.1\r\n\r\n"], limits),
        )
    }
    assert len(found) == 1, found
    return found.pop()


@pytest.mark.parametrize(
    ("size", "status"), [(39, ""), (40, ""), (41, "414"), (42, "414"), (43, "414"), (80, "414")]
)
def test_a_request_line_is_limited(size: int, status: str) -> None:
    """To so many bytes, without its end."""
    line = "GET /" + "x" * (size - 14) + " HTTP/1.1"
    assert len(line) == size
    assert outcomes(get(first=line), SMALL) == status
    assert outcomes(get("Host: a", first=line), SMALL) == status


@pytest.mark.parametrize(
    ("size", "status"), [(29, ""), (30, ""), (31, "431"), (32, "431"), (50, "431")]
)
def test_a_field_is_limited(size: int, status: str) -> None:
    """To so many bytes, without its end."""
    assert outcomes(get("X: " + "y" * (size - 3)), SMALL) == status
    assert outcomes(get("H: a", "X: " + "y" * (size - 3)), SMALL) == status


@pytest.mark.parametrize(
    ("size", "status"),
    [(58, ""), (59, ""), (60, ""), (61, "431"), (62, "431"), (63, "431"), (64, "431"), (66, "431")],
)
def test_all_fields_together_are_limited(size: int, status: str) -> None:
    """To so many bytes, with their ends."""
    lines = ["X: " + "y" * 20, "Y: " + "z" * 20, "Z: " + "a" * (size - 55)]
    assert sum(len(line) + 2 for line in lines) == size
    assert outcomes(get(*lines), SMALL) == status
    assert outcomes(get(*lines, first="GET /longer-than-the-head HTTP/1.1"), SMALL) == status


@pytest.mark.parametrize(("count", "status"), [(0, ""), (3, ""), (4, ""), (5, "431"), (12, "431")])
def test_fields_are_limited(count: int, status: str) -> None:
    """To so many lines, those with an underscore among them."""
    assert outcomes(get(*["X: y"] * count), SMALL) == status
    assert outcomes(get(*["X_: y"] * count), SMALL) == status


@pytest.mark.parametrize(
    ("line", "field", "fields", "status"),
    [
        (8190, 0, 0, ""),
        (8191, 0, 0, "414"),
        (14, 65534, 1, ""),
        (14, 65535, 1, "431"),
        (8190, 65534, 1, ""),
        (14, 600, 100, ""),
        (14, 4, 100, ""),
        (14, 4, 101, "431"),
        (14, 700, 100, "431"),
    ],
)
def test_the_limits_by_default(line: int, field: int, fields: int, status: str) -> None:
    """Are those of nginx and Apache."""
    data = get(*["X: " + "y" * (field - 3)] * fields, first=f"GET {'/':x<{line - 13}} HTTP/1.1")
    assert (refusal(data) if status else read(data) and "") == status


def test_a_head_that_goes_on_is_refused_at_its_limit() -> None:
    """Nothing is read in vain, whatever it is that has no end."""
    for endless, most in (
        (b"G", SMALL.line + 2),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 1000, 16 + SMALL.head + 5),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100, 16 + SMALL.head + 5),
    ):
        data = (endless * 1000)[:1000]
        for size in range(1, len(data) + 1):
            if read_in_pieces(one_by_one(data[:size]), SMALL) is not None:
                break
        assert size <= most


# -- the end of a head --------------------------------------------------------------------------

GOOD = get("Host: a", "X: " + "y" * 50, "Content-Length: 5", first="POST /x?y HTTP/1.1") + b"hello"
BAD = [
    get("Host: a", "X: y\x00z"),
    get("Host: a", "X: y\rz"),
    get("Host: a", "X: y\nz"),
    get("Host: a\r"),
    get("\nHost: a"),
    get("Host: a", first="GET /\x7f HTTP/1.1"),
]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return *data* in pieces."""
    edges = [0, *sorted(places), len(data)]
    return [data[low:high] for low, high in itertools.pairwise(edges)]


@pytest.mark.parametrize("data", [GOOD, *BAD])
def test_a_head_in_two_pieces_is_the_same(data: bytes) -> None:
    """Wherever it is cut."""
    whole = attributes_of(read_in_pieces([data]))
    assert whole is not None
    for place in range(len(data) + 1):
        assert attributes_of(read_in_pieces(cut(data, [place]))) == whole
    assert attributes_of(read_in_pieces(one_by_one(data))) == whole


@pytest.mark.parametrize("data", BAD)
def test_a_control_byte_is_refused_when_it_comes(data: bytes) -> None:
    """Or, if it was CR, with the byte behind it: the rest of the head may never come."""
    faulty = next(
        at
        for at in range(len(data))
        if data[at] in {0, 0x7F}
        or (data[at] == 10 and data[at - 1] != 13)
        or (data[at - 1] == 13 and data[at] != 10)
    )
    for size in range(len(data)):
        result = read_in_pieces(one_by_one(data[:size]))
        assert (result is not None) == (size > faulty)


def test_a_head_has_an_end_or_none() -> None:
    """What is behind it is not looked at."""
    assert find_end(b"", 0, LIMITS) == -1
    assert find_end(b"GET / HTTP/1.1\r\nHost: a\r\n\r", 0, LIMITS) == -1
    data = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for behind in (b"", b"\x00\n\r\x00", b"\r\n\r\n"):
        for seen in range(len(data)):
            assert find_end(data + behind, seen, LIMITS) == len(data) - 4


class Counting(bytes):
    """Bytes that count how many of them are searched."""

    searched = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        found = super().find(sub, start, *([] if end is None else [end]))
        stop = len(self) if end is None else min(end, len(self))
        type(self).searched += (stop if found < 0 else found) - start
        return found


def test_a_byte_at_a_time_costs_no_search_from_the_beginning() -> None:
    """Of the request line alone, which is short."""
    data = get(*[f"X-{at}: {'y' * 500}" for at in range(90)])
    Counting.searched = 0
    for size in range(1, len(data)):
        assert find_end(Counting(data[:size]), size - 1, LIMITS) == -1
    assert Counting.searched < 30 * len(data)


# -- empty lines --------------------------------------------------------------------------------

COUNTS = pytest.mark.parametrize("count", [0, 1, 2, 3, 30000])


@COUNTS
@pytest.mark.parametrize("behind", [b"", b"\r", b"GET / HTTP/1.1\r\n\r\n"])
def test_empty_lines_before_a_request_are_left_out(count: int, behind: bytes) -> None:
    """However many there are."""
    assert without_empty_lines(b"\r\n" * count + behind) == behind


@COUNTS
@pytest.mark.parametrize("behind", [b"\n", b"\r\r\n", b"\n\r", b"\r\n\n"])
def test_half_an_empty_line_is_refused(count: int, behind: bytes) -> None:
    """It stays there."""
    rest = without_empty_lines(b"\r\n" * count + behind + b"GET / HTTP/1.1\r\n\r\n")
    assert isinstance(read_in_pieces([rest]), tuple)


@given(text=st.text("\r\nG", max_size=12).map(str.encode))
def test_empty_lines_are_left_out_as_one_by_one(text: bytes) -> None:
    """Or there is half a line end, and the request is refused."""
    rest = text
    while rest.startswith(b"\r\n"):
        rest = rest.removeprefix(b"\r\n")
    found = without_empty_lines(text)
    if found != rest:
        assert isinstance(read_in_pieces([found]), tuple)
        assert isinstance(read_in_pieces([rest, b"G\r\n"]), tuple)


def test_a_request_behind_many_empty_lines_is_served() -> None:
    """As is the one behind it."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    with WSGIServer(("127.0.0.1", 0), application, log=None) as server:
        server.start()
        lines = b"\r\n" * 20000
        reply = ask(
            (server.server_host, server.server_port),
            lines + b"GET /one HTTP/1.1\r\n\r\n" + lines + b"GET /two HTTP/1.0\r\n\r\n",
        )
    assert [part[:4] for part in reply.split(b"\r\n\r\n")[1:]] == [b"/one", b"/two"]


class ByHooks(WSGIHandler):
    def get_environ(self) -> Any:
        return super().get_environ()


@pytest.mark.parametrize("handler_class", [WSGIHandler, ByHooks])
@pytest.mark.parametrize(
    ("line", "status"), [(b"GET /", b"400"), (b"PRI * HTTP/2.0", b"505"), (b"HELO x", b"400")]
)
def test_another_protocol_gets_a_reply_to_its_first_line(
    handler_class: Any, line: bytes, status: bytes
) -> None:
    """On both of the handler's paths, and though the client keeps the connection open."""
    with WSGIServer(
        ("127.0.0.1", 0), None, log=None, error_log=None, handler_class=handler_class
    ) as server:
        server.start()
        reply = ask((server.server_host, server.server_port), line + b"\r\n")
    assert reply.startswith(b"HTTP/1.1 " + status)


# -- what is kept -------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """Begin with nothing that is known; return a function that counts."""
    for name in ("_keys", "_hosts", "_options", "_heads"):
        monkeypatch.setattr(module, name, {})
    return lambda: [len(module._keys), len(module._hosts), len(module._options)]


def test_what_is_kept_of_clients_is_bounded(fresh: Callable[[], list[int]]) -> None:
    """By number and by length; and what comes after a flood is kept again."""
    for number in range(3000):
        read(get(f"X-{number}: y", f"Host: h{number}", f"Connection: c{number}"))
        assert max(fresh()) <= 1024
    assert min(fresh()) > 0
    read(get("X-Usual: y", "Host: usual", "Connection: usual"))
    assert "X-Usual" in module._keys
    assert "usual" in module._hosts
    assert "usual" in module._options


def test_long_names_are_not_kept(fresh: Callable[[], list[int]]) -> None:
    """Nor refused ones."""
    long = "x" * 65
    for _ in range(2):
        head = read(get(f"{long}: y", f"Host: {long}", f"Connection: {long}"))
        assert head.fields["HTTP_" + long.upper()] == "y"
    refusal(get("a b: c"))
    refusal(get("H: a", "Host: a b"))
    assert fresh() == [3, 0, 0]  # Host, Connection, H


@pytest.mark.usefixtures("fresh")
def test_whole_heads_are_kept_while_they_are_few_and_short() -> None:
    """What comes after a flood is kept again."""
    for number in range(3000):
        read(get(f"Host: h{number}"))
        assert len(module._heads) <= 1024
    assert b"HTTP/1.1\r\nHost: h2999\r\n" in module._heads
    count = len(module._heads)
    read(get("Host: a", "Accept: " + "x" * 2000))
    assert len(module._heads) == count


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", ["Cookie", "Authorization", "X-Api-Key", "Referer", "X-Unknown"])
def test_heads_with_secrets_are_not_kept(name: str) -> None:
    """Nor with what only looks as if it could be one."""
    read(get("Host: a", f"{name}: secret"))
    assert module._heads == {}


# -- what is said of a refusal ------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        get(first="GET /" + "\xff" * 8000),
        get(first="\x00" * 8000),
        get(first="GET /" + "x" * 9000),
        get(first="X" * 8000 + " * HTTP/1.1"),
        get(first="GET " + "x" * 8000 + " HTTP/1.1"),
        get(first="CONNECT " + "@" * 8000 + " HTTP/1.1"),
        get(first="GET /" + "x" * 8000 + " HTTP/2.0"),
        get("Host: " + "@" * 60000),
        get("X: y", "é" * 60000),
        get("\x1b[31m" * 10000),
        get("Content-Length: " + "\xad" * 60000),
        get("Content-Length: " + "9" * 60000),
        get("Transfer-Encoding: " + "\x9b" * 60000),
        get("X: " + "y" * 70000),
        get("Host: a", "Host: " + "b" * 60000),
    ],
)
def test_what_is_said_of_a_refusal_is_short_and_escaped(data: bytes) -> None:
    """It is for a line of a log, and the client has chosen what is in it."""
    assert refusal(data)  # which looks at what is said
    assert refusal(data) in {"400", "414", "431", "501", "505"}


def test_a_refusal_has_its_value() -> None:
    """So that the log shows what was sent."""
    for line, value in (
        ("Content-Length: 5x", "'5x'"),
        ("Transfer-Encoding: gzip", "'gzip'"),
        ("Host: a b", "'a b'"),
        ("X Y: z", "'X Y: z'"),
    ):
        with pytest.raises(BadRequest) as caught:
            read(get(line))
        assert value in str(caught.value)


# -- small words --------------------------------------------------------------------------------


def test_a_token_is_what_a_name_may_be() -> None:
    """For trailers and replies, too."""
    for name in ("a", "X-Y", "!#$%&'*+-.^_`|~"):
        assert is_token(name)
    for name in ("", "a b", "a:", "é", "a\n", "a\x00", "ĸ", "(a)"):
        assert not is_token(name)


def test_a_value_has_no_control_characters() -> None:
    """But for HTAB."""
    for value in ("", " a\tb ", "é", "\xff", "\x80"):
        assert is_field_value(value)
    for code in CONTROLS:
        assert is_field_value(f"a{chr(code)}b") == (code == 9)
        assert is_field_value(f"a{chr(code)}") == (code == 9)


# -- beside the plain reading -------------------------------------------------------------------

METHODS = st.sampled_from(
    ["GET", "POST", "HEAD", "OPTIONS", "CONNECT", "get", "PRI", "M-X", "G(T", "é", ""]
)
TARGETS = st.sampled_from(
    [
        "/",
        "/x?y=1",
        "*",
        "a:80",
        "a",
        "http://a",
        "http://a:1/x?y",
        "HTTPS://a?b",
        "http://",
        "http://u@a/",
        "http://:1/",
        "//a",
        "x",
        "/#",
        "/é",
        "",
        "/ x",
        "[::1]:1",
        "http://[::1]/",
        "?x",
        "/x??",
        "http://a/?",
        "/\x7f",
    ]
)
VERSIONS = st.sampled_from(
    ["HTTP/1.1"] * 4 + ["HTTP/1.0"] * 3 + ["HTTP/1.2", "HTTP/2.0", "http/1.1", "HTTP/1.", ""]
)
SPACES = st.sampled_from([" "] * 12 + ["  ", "\t", ""])
NAMES = st.sampled_from(
    [
        "Host",
        "host",
        "Content-Length",
        "content-length",
        "Transfer-Encoding",
        "Connection",
        "Cookie",
        "Content-Type",
        "Expect",
        "Upgrade",
        "X",
        "x-y",
        "X_Y",
        "Content_Length",
        "X-Cookie",
        "",
        "X Y",
        "é",
        "X ",
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [
            "",
            "a",
            "a:80",
            "[::1]",
            "a b",
            "a,b",
            "0",
            "5",
            "05",
            "+5",
            "5,5",
            "²",
            "9" * 19,
            "9" * 25,
            "0" * 30,
            "chunked",
            "Chunked",
            "gzip, chunked",
            "chunked,",
            "close",
            "keep-alive",
            "Keep-Alive , x",
            ",",
            "100-continue",
            "upgrade",
            "é",
            "\xa0",
            "a\tb",
            "a\x00",
            "a\r",
            "\x0b5",
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=8),
)
COLONS = st.sampled_from([": "] * 10 + [":", ":\t", ":  ", " :", "", " "])
ENDS = st.sampled_from(["\r\n"] * 30 + ["\n", "\r", "\r\r\n", "\r\n\n", "\r\n ", " \r\n", "\t\r\n"])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """What is a head, or nearly is one."""
    text = draw(METHODS) + draw(SPACES) + draw(TARGETS) + draw(SPACES) + draw(VERSIONS) + draw(ENDS)
    for _ in range(draw(st.integers(0, 5))):
        text += draw(NAMES) + draw(COLONS) + draw(VALUES) + draw(ENDS)
    return text.encode("latin-1")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good head, in which some bytes are others."""
    data = bytearray(
        draw(
            st.sampled_from(
                [
                    b"GET /x?y HTTP/1.1\r\nHost: a:80\r\nConnection: close, x\r\n"
                    b"Cookie: a\r\nCookie: b\r\n",
                    b"POST http://b/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
                    b"Expect: 100-continue\r\n",
                    b"PUT / HTTP/1.0\r\nContent-Length: 10\r\nConnection: keep-alive\r\n"
                    b"X_Y: z\r\nX-Y:\t z \r\n",
                ]
            )
        )
    )
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data) - 1))
        kind = draw(st.integers(0, 3))
        byte = draw(
            st.sampled_from([*b" \t\r\n:;,_-/x1\x00\x0b\x7f\x85\xa0\xff"]) | st.integers(0, 255)
        )
        if kind == 0:
            data[place] = byte
        elif kind == 1:
            data.insert(place, byte)
        elif kind == 2 and len(data) > 1:
            del data[place]
        else:
            end = draw(st.integers(place, min(len(data), place + 30)))
            data[place:place] = data[place:end]
    return bytes(data)


def is_read_as_the_grammar_says(data: bytes, needs_host: bool) -> None:
    """Compare `parse` with the plain reading."""
    try:
        expected = http_grammar.read_head(data, needs_host=needs_host)
    except http_grammar.RefusedError:
        with pytest.raises(BadRequest):
            parse(data, LIMITS, needs_host=needs_host)
        return
    head = parse(data, LIMITS, needs_host=needs_host)
    for name, value in vars(expected).items():
        assert getattr(head, name) == value, name


@pytest.mark.thorough
@given(data=heads(), needs_host=st.booleans())
@example(data=b"GET / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n", needs_host=False)
@example(data=b"CONNECT /x HTTP/1.1\r\nHost: a\r\n", needs_host=True)
@settings(max_examples=examples(1000), deadline=None)
def test_heads_are_read_as_the_grammar_says(data: bytes, needs_host: bool) -> None:
    """Accepted, refused, and understood."""
    if data.endswith(b"\r\n"):  # as `parse` asks for
        is_read_as_the_grammar_says(data, needs_host)


@pytest.mark.thorough
@given(data=mutated(), needs_host=st.booleans())
@settings(max_examples=examples(1500), deadline=None)
def test_mutated_heads_are_read_as_the_grammar_says(data: bytes, needs_host: bool) -> None:
    """Of a good head there is one bad byte, or some, or none."""
    if data.endswith(b"\r\n"):
        is_read_as_the_grammar_says(data, needs_host)


@pytest.mark.thorough
@given(
    first=st.one_of(heads(), mutated()),
    second=st.one_of(heads(), mutated()),
    needs_host=st.tuples(st.booleans(), st.booleans()),
    is_fresh=st.booleans(),
)
@example(
    first=b"GET http://a/ HTTP/1.1\r\nHost: b\r\n",
    second=b"GET / HTTP/1.1\r\nHost: b\r\n",
    needs_host=(True, True),
    is_fresh=True,
)
@settings(max_examples=examples(1500), deadline=None)
def test_fields_that_come_again_are_read_alike(
    first: bytes, second: bytes, needs_host: tuple[bool, bool], is_fresh: bool
) -> None:
    """With another request line, on the same connection or another, they mean what they mean."""

    def read_alone(data: bytes) -> object:
        module._heads.clear()
        return read_after(data, None)

    def read_after(data: bytes, last: Head | None) -> object:
        try:
            return attributes_of(parse(data, LIMITS, needs_host=needs_host[1], last=last))
        except BadRequest as error:
            return (error.status, str(error))

    line, _, _ = second.partition(b"\r\n")
    _, _, fields = first.partition(b"\r\n")
    again = line + b"\r\n" + fields
    if not first.endswith(b"\r\n") or not again.endswith(b"\r\n"):
        return
    expected = read_alone(again)
    module._heads.clear()
    try:
        last = parse(first, LIMITS, needs_host=needs_host[0])
    except BadRequest:
        return
    before = attributes_of(last)
    if is_fresh:
        module._heads.clear()
    assert read_after(again, last) == expected
    assert read_after(again, None) == expected
    assert attributes_of(last) == before


def test_other_limits_are_minded_where_fields_come_again() -> None:
    """They may have been set in between."""
    line, rest = b"GET /" + b"x" * 50, b" HTTP/1.1\r\nHost: a\r\n"
    last = parse(line + rest, LIMITS)
    for limits in (Limits(line=40), Limits(head=5), Limits(fields=0)):
        with pytest.raises(BadRequest):
            parse(line + rest, limits, last=last)


@pytest.mark.thorough
@given(data=st.one_of(heads(), mutated()), places=st.lists(st.integers(0, 200), max_size=8))
@settings(max_examples=examples(500), deadline=None)
def test_pieces_make_the_same_head(data: bytes, places: list[int]) -> None:
    """Or the same refusal."""
    data += b"\r\n" + b"behind\r\n\r\n"
    whole = read_in_pieces([data])
    pieces = read_in_pieces(cut(data, [min(place, len(data)) for place in places]))
    assert attributes_of(pieces) == attributes_of(whole)
