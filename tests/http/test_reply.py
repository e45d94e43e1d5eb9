"""What an application says goes out as it is, or is an error where it is said."""

from __future__ import annotations

import email.utils
import sys
import time
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glb.http import reply as module
from glb.http.reply import ReplyHead, checked, date

from ..support.examples import examples

CONTROLS = [*range(0x20), 0x7F]

# -- statuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        ("200 OK", 200, b"200 OK"),
        ("200 ", 200, b"200 "),
        ("200", 200, b"200 "),
        ("404 Not  Found\t!", 404, b"404 Not  Found\t!"),
        ("299 \xe9\xff", 299, b"299 \xe9\xff"),
        ("101 Switching Protocols", 101, b"101 Switching Protocols"),
        ("999 x", 999, b"999 x"),
        ("500 " + "x" * 1000, 500, b"500 " + b"x" * 1000),
    ],
)
def test_a_status_is_a_code_and_a_reason(status: str, code: int, line: bytes) -> None:
    """Without a reason the space before it is there."""
    for _ in range(2):  # known and unknown
        reply = ReplyHead(status, [])
        assert (reply.code, reply.line) == (code, line)


@pytest.mark.parametrize(
    "status",
    [
        "",
        "20",
        "2000",
        "2000 OK",
        "20 OK",
        "OK",
        " 200 OK",
        "200OK",
        "200-OK",
        "200\tOK",
        "-20 OK",
        "+20 OK",
        "2.0 OK",
        "020 OK",
        "000 OK",
        "\xb2\xb2\xb2 OK",
        "100 Continue",
        "102 Processing",
        "103 Early Hints",
        "199 x",
        "200 \u0100",
        "200 \u2028",
        "\uff12\uff10\uff10 OK",
    ]
    + [f"200 O{chr(code)}K" for code in CONTROLS if code != 9]
    + [f"200 OK{chr(code)}" for code in CONTROLS if code != 9],
)
def test_another_status_is_refused(status: str) -> None:
    """Interim ones among them, which are no reply."""
    with pytest.raises(ValueError, match="status"):
        ReplyHead(status, [])


@pytest.mark.parametrize(
    "status", [None, 200, b"200 OK", bytearray(b"200 OK"), ["200 OK"], ("200", "OK")]
)
def test_a_status_of_another_type_is_refused(status: Any) -> None:
    """PEP 3333: a native string; the error says what there was."""
    with pytest.raises(UnicodeError, match="native string") as found:
        ReplyHead(status, [])
    assert found.value.args[1:] == (status,)


# -- fields -------------------------------------------------------------------------------------


def test_fields_go_out_as_they_are() -> None:
    """In their order and case, each as often as it is there."""
    headers = [("X-b", "1"), ("x-A", ""), ("X-b", "2"), ("Set-Cookie", "a; b"), ("X", " y\t")]
    for _ in range(2):
        for given_as in (headers, tuple(headers), iter(headers), [[*each] for each in headers]):
            reply = ReplyHead("200 OK", given_as)
            assert reply.fields == [
                (b"X-b", b"1"),
                (b"x-A", b""),
                (b"X-b", b"2"),
                (b"Set-Cookie", b"a; b"),
                (b"X", b" y\t"),
            ]
            assert (reply.length, reply.has_date, reply.connection) == (None, False, None)


def test_strings_of_a_programs_own_type_are_strings() -> None:
    """Frameworks have some that are safe for HTML."""

    class Safe(str):
        __slots__ = ()

    reply = ReplyHead(Safe("200 OK"), [(Safe("X"), Safe("y"))])
    assert (reply.line, reply.fields) == (b"200 OK", [(b"X", b"y")])


@pytest.mark.parametrize(
    "name",
    ["", " ", "X ", " X", "X:", "X Y", "X\tY", "é", "X(", "X/Y", '"X"', "X\u0100", "\u212a"]
    + [f"X{chr(code)}" for code in CONTROLS],
)
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    """Each time."""
    for _ in range(2):
        with pytest.raises(ValueError, match="name"):
            ReplyHead("200 OK", [(name, "y")])


@pytest.mark.parametrize("code", CONTROLS)
def test_a_control_character_in_a_value_is_refused(code: int) -> None:
    """But for HTAB: no value can begin another line."""
    for value in (f"a{chr(code)}b", f"{chr(code)}a", f"a{chr(code)}", f"a\r\n{chr(code)}X: y"):
        if code == 9 and "\n" not in value:
            assert ReplyHead("200 OK", [("X", value)]).fields == [(b"X", value.encode())]
            continue
        with pytest.raises(ValueError, match="header value"):
            ReplyHead("200 OK", [("X", value)])


@pytest.mark.parametrize(
    ("name", "value"), [(b"X", "y"), ("X", b"y"), (1, "y"), ("X", 1), ("X", None), (None, "y")]
)
def test_a_field_of_another_type_is_refused(name: Any, value: Any) -> None:
    """PEP 3333: native strings."""
    with pytest.raises(UnicodeError, match="native string"):
        ReplyHead("200 OK", [("A", "b"), (name, value)])


@pytest.mark.parametrize("value", ["\u0100", "\U0001f600", "\ud800", "a\u2028b"])
def test_a_value_that_is_not_latin_1_is_refused(value: str) -> None:
    """It can't be sent; all of Latin-1 can."""
    with pytest.raises(UnicodeError, match="latin1"):
        ReplyHead("200 OK", [("X", value)])
    every = "".join(map(chr, [*range(0x20, 0x7F), *range(0x80, 0x100)]))
    assert ReplyHead("200 OK", [("X", every)]).fields == [(b"X", every.encode("latin-1"))]


@pytest.mark.parametrize(
    "name",
    [
        "Transfer-Encoding",
        "transfer-encoding",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Proxy-Authenticate",
        "PROXY-AUTHORIZATION",
    ],
)
def test_fields_of_one_connection_are_not_the_applications(name: str) -> None:
    """PEP 3333 has the server say them; and that the name is refused isn't forgotten."""
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{name}.*hop-by-hop"):
            ReplyHead("200 OK", [("X", "y"), (name, "chunked")])


# -- what is read of them -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "length"), [("0", 0), ("5", 5), ("005", 5), (str(sys.maxsize), sys.maxsize)]
)
def test_a_length_is_digits(value: str, length: int) -> None:
    """And goes out as it was said."""
    for name in ("Content-Length", "content-length"):
        reply = ReplyHead("200 OK", [(name, value)])
        assert reply.length == length
        assert reply.fields == [(name.encode(), value.encode())]


@pytest.mark.parametrize(
    "value", ["", " 5", "5 ", "+5", "-5", "1_0", "5.0", "0x5", "five", "5, 5", "\xb2", "9" * 5000]
)
def test_another_length_is_refused(value: str) -> None:
    """Also one that `int` takes."""
    with pytest.raises(ValueError, match=r"Content-Length|limit"):
        ReplyHead("200 OK", [("Content-Length", value)])


@pytest.mark.parametrize("pair", [("5", "6"), ("5", "5"), ("0", "0")])
def test_two_lengths_are_refused(pair: tuple[str, str]) -> None:
    """In any case of the name."""
    with pytest.raises(ValueError, match="Content-Length twice"):
        ReplyHead("200 OK", [("Content-Length", pair[0]), ("content-length", pair[1])])


@pytest.mark.parametrize(
    ("values", "connection", "options"),
    [
        ((), None, set()),
        (("close",), "close", {"close"}),
        (("Close",), "Close", {"close"}),
        (("Foo , CLOSE\t",), "Foo , CLOSE\t", {"foo", "close"}),
        (("Upgrade", "close"), "Upgrade, close", {"upgrade", "close"}),
        (("closed",), "closed", {"closed"}),
        (("", ","), ", ,", set()),
    ],
)
def test_connection_options_are_a_list(
    values: tuple[str, ...], connection: str | None, options: Collection[str]
) -> None:
    """Of all fields of the name."""
    reply = ReplyHead("200 OK", [("connection", value) for value in values])
    assert (reply.connection, reply.options) == (connection, frozenset(options))
    assert len(reply.fields) == len(values)


def test_a_date_is_seen() -> None:
    """In any case, so that there is no other one."""
    assert ReplyHead("200 OK", [("dAtE", "never")]).has_date
    assert not ReplyHead("200 OK", [("X-Date", "never"), ("Dates", "")]).has_date


def test_what_is_known_of_programs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number and by length; and what comes after many is kept again."""
    monkeypatch.setattr(module, "_names", {})
    monkeypatch.setattr(module, "_statuses", {})
    for number in range(3000):
        ReplyHead(f"200 {number}", [(f"X-{number}", "")])
        assert max(len(module._names), len(module._statuses)) <= 1024
    ReplyHead("200 last", [("X-Last", "")])
    assert "X-Last" in module._names
    assert "200 last" in module._statuses
    size = len(module._names), len(module._statuses)
    ReplyHead("200 " + "x" * 65, [("X" * 65, "")])
    assert size == (len(module._names), len(module._statuses))


def test_heads_that_come_again_are_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of few values: the list may be another one, or change. What is refused is refused."""
    monkeypatch.setattr(module, "_known", {})
    headers = [("Content-Type", "text/plain"), ("Content-Length", "3")]
    first = checked("200 OK", headers)
    assert checked("200 OK", [*headers]) is first
    headers[1] = ("Content-Length", "4")
    second = checked("200 OK", headers)
    assert (first.length, second.length) == (3, 4)
    assert second.start == b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n"
    assert checked("404 No", headers).code == 404
    for wrong in (("Content-Length", 4), ("Content-Length", "four"), ("Server", "a\r\nb: c")):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"."):
                checked("200 OK", [headers[0], wrong])
    pairs: Any = [["Content-Type", "text/plain"], ["Content-Length", "3"]]
    for given_as in (pairs, iter(pairs), tuple(headers)):
        assert checked("200 OK", given_as).start.startswith(b"HTTP/1.1 200 OK\r\nContent-Type:")


def test_heads_that_come_again_are_few_and_short_and_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What comes after many is kept again."""
    monkeypatch.setattr(module, "_known", {})
    for header in (
        ("Set-Cookie", "secret"),
        ("Location", "/secret"),
        ("X-Any", "1"),
        ("Vary", "x" * 600),
    ):
        checked("200 OK", [("Content-Type", "text/plain"), header])
        assert module._known == {}
    for number in range(3000):
        checked("200 OK", [("Content-Length", str(number))])
        assert len(module._known) <= 1024
    assert ("200 OK", ("Content-Length", "2999")) in module._known


@given(
    status=st.text(st.characters(max_codepoint=0x110), max_size=9).map("200 ".__add__)
    | st.text(max_size=6),
    name=st.text(st.characters(max_codepoint=0x110), max_size=5),
    value=st.text(st.characters(max_codepoint=0x110), max_size=9),
)
@settings(max_examples=examples(500), deadline=None)
def test_nothing_adds_a_line(status: str, name: str, value: str) -> None:
    """What isn't refused makes two lines that can be read back."""
    try:
        reply = ReplyHead(status, [(name, value)])
    except ValueError:
        return
    [(sent, content)] = reply.fields
    text = b"HTTP/1.1 %b\r\n%b: %b\r\n" % (reply.line, sent, content)
    first, second, last = text.decode("latin-1").split("\r\n")
    assert first.partition(" ")[2].rstrip(" ") == status.rstrip(" ")
    assert tuple(second.split(": ", 1)) == (name, value)
    assert last == ""
    assert text.count(b"\r") == text.count(b"\n") == 2


# -- dates --------------------------------------------------------------------------------------


def test_a_date_is_as_http_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On each day and in each month, of a clock that goes on, back, or not at all."""
    clock = 784111777.0
    monkeypatch.setattr(time, "time", lambda: clock)
    assert date() == b"Sun, 06 Nov 1994 08:49:37 GMT"  # RFC 9110, 5.6.7
    assert date() is date()
    clock += 0.999
    assert date() is date()
    assert date() == b"Sun, 06 Nov 1994 08:49:37 GMT"
    clock += 0.001
    assert date() == b"Sun, 06 Nov 1994 08:49:38 GMT"
    start = clock
    moments = [start + day * 86400 * 3.7 for day in range(300)]
    moments += [0, 951782400, 1709164799, 4102444800, 253402300799]
    for clock in [*moments, *reversed(moments), start]:
        assert date().decode() == email.utils.formatdate(int(clock), usegmt=True)


def test_a_date_goes_on_after_a_frozen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the program's may have frozen the time."""
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 4102444800.5)
        assert date() == b"Fri, 01 Jan 2100 00:00:00 GMT"
    before = int(time.time())
    found = email.utils.parsedate_to_datetime(date().decode()).timestamp()
    assert before <= found <= time.time()
