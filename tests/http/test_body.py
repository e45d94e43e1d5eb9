"""A body is what the client announced: all of it, nothing behind it, or an error."""

from __future__ import annotations

import contextlib
import io
import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from hypothesis import example, given, settings
from hypothesis import strategies as st

from glb.http.body import OVERHEAD_MAX_BYTES, READ_BYTES, Body, BodyError, ClientLeft
from glb.http.stream import RawStream

from ..support import http_grammar
from ..support.examples import examples

BEHIND = b"GET /next HTTP/1.1\r\n\r\n"


class Pieces:
    """A socket from which a client's bytes come in pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [piece for piece in pieces if piece]

    def recv_into(self, buffer: Any) -> int:
        if not self._pieces:
            return 0
        piece = self._pieces.pop(0)
        data, rest = piece[: len(buffer)], piece[len(buffer) :]
        if rest:
            self._pieces.insert(0, rest)
        buffer[: len(data)] = data
        return len(data)


class Recording(io.BytesIO):
    """A file that remembers how much it was asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.asked: list[int] = []

    def read1(self, size: int | None = -1) -> bytes:
        self.asked.append(-1 if size is None else size)
        return super().read1(size)

    def readline(self, size: int | None = -1) -> bytes:
        self.asked.append(-1 if size is None else size)
        return super().readline(size)


def buffered(*pieces: bytes) -> io.BufferedReader:
    return io.BufferedReader(RawStream(Pieces(*pieces)))


def plain(data: bytes, **kwargs: Any) -> Body:
    return Body(io.BytesIO(data), len(data) - len(BEHIND), is_chunked=False, **kwargs)


def chunked(data: bytes, **kwargs: Any) -> Body:
    return Body(io.BytesIO(data), None, is_chunked=True, **kwargs)


def encode(*chunks: bytes) -> bytes:
    """Return a chunked body, without its end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


# -- as a file ----------------------------------------------------------------------------------

TEXT = b"one\n\ntwo two\nthree" + b"\n" + b"x" * 300 + b"\nend"

Make = Callable[[bytes], Body]


def whole(text: bytes) -> Body:
    return plain(text + BEHIND)


def of_a_connection(text: bytes) -> Body:
    return Body(buffered(text[:7], text[7:] + BEHIND), len(text), is_chunked=False)


def in_chunks(text: bytes) -> Body:
    data = encode(text[:2], text[2:9], text[9:]) + b"0\r\n\r\n" + BEHIND
    return Body(buffered(data[:3], data[3:20], data[20:]), None, is_chunked=True)


def a_byte_at_a_time(text: bytes) -> Body:
    data = encode(*(text[at : at + 1] for at in range(len(text)))) + b"0\r\n\r\n" + BEHIND
    return Body(buffered(*(data[at : at + 1] for at in range(len(data)))), None, is_chunked=True)


kinds = pytest.mark.parametrize("make", [whole, of_a_connection, in_chunks, a_byte_at_a_time])


@kinds
@pytest.mark.parametrize("size", [None, -1, -7, len(TEXT), len(TEXT) + 1, 1 << 62])
def test_all_of_it_is_read_at_once(make: Make, size: int | None) -> None:
    """And after that it is empty."""
    body = make(TEXT)
    assert body.read(size) == TEXT
    for _ in range(2):
        assert body.read(size) == body.read(5) == body.readline() == b""
        assert body.readlines() == [*body] == []
    assert body.is_over
    assert not body.is_broken
    assert body.rfile.read() == BEHIND


@kinds
@pytest.mark.parametrize("size", [1, 2, 3, 7, 4096])
def test_a_read_is_short_only_at_the_end(make: Make, size: int) -> None:
    """However it comes."""
    body = make(TEXT)
    expected = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    assert [*iter(lambda: body.read(size), b"")] == expected
    assert body.rfile.read() == BEHIND


@kinds
def test_lines_are_those_of_a_file(make: Make) -> None:
    """By iterating, one by one, all, or in parts."""
    lines = TEXT.splitlines(keepends=True)
    assert [*make(TEXT)] == lines
    assert make(TEXT).readlines() == lines
    body = make(TEXT)
    assert [*iter(body.readline, b"")] == lines
    assert body.rfile.read() == BEHIND
    for size in (1, 2, 5, 299, 400):
        file = io.BytesIO(TEXT)
        body = make(TEXT)
        parts = [*iter(lambda file=file, size=size: file.readline(size), b"")]  # type: ignore[misc]  # defaults that bind
        assert [body.readline(size) for _ in parts] == parts
        assert body.readline(size) == b""
        assert body.rfile.read() == BEHIND


@kinds
def test_enough_lines_are_enough(make: Make) -> None:
    """With a hint, which is in bytes; 0, less or `None` is none."""
    for hint in (None, -1, 0, 1, 4, 5, 6, 13, 100000):
        file, body = io.BytesIO(TEXT), make(TEXT)
        assert body.readlines(hint) == file.readlines(hint)
        assert body.read() == file.read()


@kinds
def test_nothing_is_nothing(make: Make) -> None:
    """0 bytes of a body are no bytes, and leave it as it is."""
    body = make(TEXT)
    assert body.read(0) == body.readline(0) == b""
    assert body.read() == TEXT


@pytest.mark.parametrize("length", [None, 0])
def test_no_body_is_empty(length: int | None) -> None:
    """What is there is the next request's."""
    body = Body(io.BytesIO(BEHIND), length, is_chunked=False)
    assert body.is_over
    assert body.left == 0
    assert body.read() == body.read(5) == body.readline() == b""
    assert body.end(0)
    assert body.rfile.read() == BEHIND


def test_what_is_left_is_known_or_not() -> None:
    """Only the client knows of chunks."""
    body = whole(TEXT)
    assert body.content_length == body.left == len(TEXT)
    body.read(5)
    assert body.left == len(TEXT) - 5
    assert in_chunks(TEXT).left is None
    assert in_chunks(TEXT).content_length is None


def test_a_line_behind_the_end_is_not_this_bodys() -> None:
    """Though the line goes on."""
    body = Body(buffered(b"ab", b"cd\nef"), 3, is_chunked=False)
    assert body.readline() == b"abc"
    assert body.rfile.read() == b"d\nef"
    body = chunked(b"3\r\nabc\r\n2\r\nd\n\r\n0\r\n\r\nef\n")
    assert body.readlines() == [b"abcd\n"]
    assert body.rfile.read() == b"ef\n"


def test_nothing_is_awaited_that_is_not_needed() -> None:
    """What has come is enough for a read of so much, over a real connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"5\r\nab\ncd\r\n3\r\nefg\r\n")
        body = Body(io.BufferedReader(RawStream(ours)), None, is_chunked=True)
        assert body.readline() == b"ab\n"
        assert body.read(2) == b"cd"
        assert body.read(1) == b"e"
        assert body.read(2) == b"fg"
        is_over = [body.is_over]
        theirs.sendall(b"0\r\n\r\n" + BEHIND)
        assert body.read(1) == b""
        assert [*is_over, body.is_over] == [False, True]
        assert body.rfile.read(len(BEHIND)) == BEHIND
        body.rfile.close()


# -- what it costs ------------------------------------------------------------------------------

ANNOUNCED = [
    (b"hello", {"length": 1 << 40, "is_chunked": False}),
    (b"ffffffffff\r\nhello", {"length": None, "is_chunked": True}),
    (b"ffffffffffffffff\r\nhello", {"length": None, "is_chunked": True}),
]


@pytest.mark.parametrize(("data", "kwargs"), ANNOUNCED)
@pytest.mark.parametrize("name", ["read", "readline", "readlines"])
@pytest.mark.parametrize("size", [None, 1 << 39])
def test_what_is_announced_takes_no_memory(
    data: bytes, kwargs: dict[str, Any], name: str, size: int | None
) -> None:
    """Only what has come does."""
    for rfile in (io.BytesIO(data), buffered(data)):
        body = Body(rfile, **kwargs)
        tracemalloc.start()
        try:
            with pytest.raises(ClientLeft):
                getattr(body, name)(size)
            assert tracemalloc.get_traced_memory()[1] < 4 * READ_BYTES
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(("data", "kwargs"), ANNOUNCED)
def test_little_is_asked_for_at_once(data: bytes, kwargs: dict[str, Any]) -> None:
    """Of a file that would make room for it first."""
    for read in (Body.read, Body.readline):
        rfile = Recording(data)
        with pytest.raises(ClientLeft):
            read(Body(rfile, **kwargs))
        assert min(rfile.asked) > 0
        assert max(rfile.asked) <= READ_BYTES


def test_nothing_behind_the_end_is_asked_for() -> None:
    """A file that waits for what it is asked for would wait for the next request."""
    for read in (Body.read, Body.readline, Body.readlines, lambda body: body.end(100)):
        rfile = Recording(b"hello" + BEHIND)
        read(Body(rfile, 5, is_chunked=False))
        assert rfile.asked == [5]


# -- its end ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "limit", "is_over"),
    [
        (0, 5, True),
        (0, 6, True),
        (0, 4, False),
        (0, 0, False),
        (2, 3, True),
        (2, 2, False),
        (5, 0, True),
    ],
)
def test_the_rest_of_a_body_is_read_away(read: int, limit: int, is_over: bool) -> None:
    """Up to a limit; one that is too long is left as it is."""
    body = plain(b"hello" + BEHIND)
    body.read(read)
    assert body.end(limit) == body.is_over == is_over
    assert body.rfile.read() == (BEHIND if is_over else b"hello"[read:] + BEHIND)


@pytest.mark.parametrize(
    ("read", "limit", "is_over"),
    [(0, 7, True), (0, 6, False), (0, 0, False), (3, 4, True), (3, 3, False), (6, 1, True)],
)
def test_the_rest_of_chunks_is_read_away(read: int, limit: int, is_over: bool) -> None:
    """Up to a limit, and with it the trailers."""
    body = chunked(encode(b"he", b"llo", b"!") + b"0\r\nX: y\r\n\r\n" + BEHIND)
    body.read(read)
    assert body.end(limit) == body.is_over == is_over
    if is_over:
        assert body.rfile.read() == BEHIND


def test_a_client_that_waits_for_a_word_gets_it_before_the_first_read() -> None:
    """Once, and not for what is read away."""
    for read in (Body.read, Body.readline, Body.readlines, next, lambda body: body.read(1)):
        words: list[bool] = []
        body = plain(TEXT + BEHIND, before=lambda words=words: words.append(True))
        is_awaited = [body.is_awaited]
        read(body)
        assert words == [True]
        assert [*is_awaited, body.is_awaited] == [True, False]
        body.read()
        assert words == [True]
    body = plain(b"hello" + BEHIND, before=lambda: pytest.fail("it is read away"))
    assert body.end(5)
    assert not body.is_awaited


# -- chunks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "5",
        "05",
        "0000000000000005",
        "5;a",
        "5;a=b",
        "5 ; a",
        "5\t;\ta = b",
        '5;a=""',
        '5;a="b;c\\"d"',
        '5;a="\té\xff"',
        "5;a=b;c;d=e",
        '5;a="\\\\";b',
        "5;!#$%&'*+-.^_`|~=1",
    ],
)
def test_a_chunk_has_a_size_and_extensions(line: str) -> None:
    """In hexadecimal digits of any case."""
    for end in ("0", "00", "0;a=b", '0 ;a="0\t"'):
        text = f"{line}\r\nhello\r\nA\r\n0123456789\r\na\r\n0123456789\r\n{end}\r\n\r\n"
        body = chunked(text.encode("latin-1") + BEHIND)
        assert body.read() == b"hello" + b"0123456789" * 2
        assert body.rfile.read() == BEHIND


@pytest.mark.parametrize(
    "line",
    [
        "",
        " ",
        " 5",
        "5 ",
        "5\t",
        "+5",
        "-5",
        "-0",
        "0x5",
        "5_0",
        "5.0",
        "5h",
        "g",
        "five",
        "\xb2",
        "00000000000000005",
        "10000000000000000",
        "5;",
        "5; ",
        "5;a=",
        "5;=b",
        "5;a=b;",
        "5;;a",
        "5;a b",
        "5;(a)",
        '5;"a"',
        '5;a="b',
        '5;a="b"c',
        '5;a="\\',
        '5;a="\x01"',
        "5;a\x01b",
        "5;a=\x7f",
        "5;\xe9",
        "5;a=\xe9",
        "5,a",
        "5 a",
        "5\x0b",
        "5\x0c;a",
        "5\xa0;a",
        "5\x00",
        "5\r",
        "5;a\r",
        "5;a \r",
    ],
)
def test_a_chunk_of_another_kind_is_refused(line: str) -> None:
    """First or later, last or not; and LF alone is no line end."""
    for before in (b"", encode(b"abc")):
        for size in (line, line.replace("5", "0")):
            for end in (b"\r\n", b"\n"):
                if line[-1:] == "\r" and end == b"\n":
                    continue
                behind = b"hello\r\n0\r\n\r\n" if size == line else b"\r\n"
                data = before + size.encode("latin-1") + end + behind + BEHIND
                is_broken(Body(Recording(data), None, is_chunked=True), "400")


@pytest.mark.parametrize(
    "data",
    [
        b"5\nhello\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhello\r\r\n0\r\n\r\n",
        b"5\r\nhello\n\r\n0\r\n\r\n",
        b"5\r\nhello \r\n0\r\n\r\n",
        b"5\r\nhell\r\n0\r\n\r\n\r\n",
        b"5\r\nhello\r\n\r\n0\r\n\r\n",
        b"5\r\nhello\r\n0\n\r\n",
        b"5\r\nhello\r\n0\r\n\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\r\n\r\n",
    ],
)
def test_a_chunk_ends_where_it_says(data: bytes) -> None:
    """With CRLF, which is looked at before its data is given away."""
    is_broken(Body(Recording(data + BEHIND), None, is_chunked=True), "400")


def is_broken(body: Body, status: str, read: Any = Body.read) -> None:
    """Check that reading *body* is an error, and that nothing more is read after it."""
    with pytest.raises(BodyError) as caught:
        read(body)
    assert isinstance(caught.value, OSError)
    assert caught.value.status.partition(" ")[0] == status
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 600
    assert body.is_broken
    assert not body.is_over
    asked = len(getattr(body.rfile, "asked", ()))
    for again in (Body.read, Body.readline, Body.readlines, next, lambda body: body.end(1 << 20)):
        with pytest.raises(BodyError):
            again(body)
    assert asked == len(getattr(body.rfile, "asked", ()))


# -- trailers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        "X: y",
        "X:",
        "X:\ty \t",
        "X: y\r\nX: z",
        "X-Checksum: é\xff",
        "Expires: 0",
        "x_y: z",
        "Cookie: a",
    ],
)
def test_trailers_are_left_out(lines: str) -> None:
    """Like extensions: nothing that WSGI has could take them."""
    body = chunked(encode(b"hello") + b"0\r\n" + lines.encode("latin-1") + b"\r\n\r\n" + BEHIND)
    assert body.read() == b"hello"
    assert body.rfile.read() == BEHIND


@pytest.mark.parametrize(
    "line",
    [
        "X",
        "X : y",
        " X: y",
        "\tX: y",
        ": y",
        ":",
        "X Y: z",
        "X(: y",
        "é: y",
        "X: y\x00",
        "X: y\rZ: a",
        "X\x01: y",
        "X: \x7f",
        "\r",
        "X: y\r",
    ]
    + [
        f"{name}: 1"
        for name in (
            "Content-Length",
            "content-LENGTH",
            "Transfer-Encoding",
            "Host",
            "Connection",
            "Trailer",
            "TE",
            "Upgrade",
        )
    ]
    + [
        f"{name}: 1"
        for name in ("Authorization", "Content-Type", "Content-Encoding", "Content-Range")
    ],
)
def test_another_trailer_is_refused(line: str) -> None:
    """And one that would say how the message is framed."""
    for before in (b"", b"X: y\r\n"):
        data = encode(b"hello") + b"0\r\n" + before + line.encode("latin-1")
        is_broken(Body(Recording(data + b"\r\n\r\n" + BEHIND), None, is_chunked=True), "400")
        if line[-1] != "\r":
            is_broken(Body(Recording(data + b"\n\r\n" + BEHIND), None, is_chunked=True), "400")


# -- limits -------------------------------------------------------------------------------------

MOST = OVERHEAD_MAX_BYTES


def extended(*sizes: int) -> bytes:
    """Return a chunked body with extensions of such sizes."""
    chunks = b"".join(b"1;" + b"e" * (size - 1) + b"\r\nx\r\n" for size in sizes)
    return chunks + b"0\r\n\r\n" + BEHIND


@pytest.mark.parametrize(
    ("data", "is_read"),
    [
        (extended(MOST - 10), True),
        (extended(*[MOST // 16] * 16), True),
        (extended(*[MOST // 16] * 16, 2), False),
        (extended(MOST // 2, MOST // 2 + 1), False),
        (extended(MOST + 1), False),
        (extended(MOST * 10), False),
        (extended(*[8] * 10000), False),
        (b"1\r\nx\r\n0\r\nX:" + b"y" * (MOST - 4) + b"\r\n\r\n" + BEHIND, True),
        (b"1\r\nx\r\n0\r\nX:" + b"y" * (MOST - 3) + b"\r\n\r\n" + BEHIND, False),
        (b"1\r\nx\r\n0\r\nX:" + b"y" * MOST * 10 + b"\r\n\r\n" + BEHIND, False),
        (b"1\r\nx\r\n0\r\n" + b"X: y\r\n" * (MOST // 6) + b"\r\n" + BEHIND, True),
        (b"1\r\nx\r\n0\r\n" + b"X: y\r\n" * (MOST // 6 + 1) + b"\r\n" + BEHIND, False),
        (b"1;" + b"a" * (MOST - 20) + b"\r\nx\r\n0\r\n" + b"X: y\r\n" * 3 + b"\r\n" + BEHIND, True),
        (
            b"1;" + b"a" * (MOST - 20) + b"\r\nx\r\n0\r\n" + b"X: y\r\n" * 4 + b"\r\n" + BEHIND,
            False,
        ),
    ],
)
def test_what_is_around_the_chunks_is_limited(data: bytes, is_read: bool) -> None:
    """Extensions and trailers together, in all of a body."""
    if is_read:
        body = chunked(data)
        assert set(body.read()) == {ord("x")}
        assert body.rfile.read() == BEHIND
    else:
        # Trailers are fields; gevent's own tests want a 400 for extensions.
        status = "431" if b"\r\n0\r\nX" in data else "400"
        is_broken(Body(Recording(data), None, is_chunked=True), status)


def test_the_end_of_overhead_is_not_awaited() -> None:
    """No more of it is read than the limit."""
    for data in (
        b"1;" + b"e" * MOST * 3,
        b"0\r\nX: " + b"e" * MOST * 3,
        b"0\r\n" + b"X: y\r\n" * MOST,
    ):
        rfile = io.BytesIO(data)
        is_broken(Body(rfile, None, is_chunked=True), "400" if data[:1] == b"1" else "431")
        assert rfile.tell() <= MOST + 10


@pytest.mark.parametrize(
    ("chunks", "is_read"),
    [
        ((b"x" * 10,), True),
        ((b"x" * 11,), False),
        ((b"x" * 5, b"x" * 5), True),
        ((b"x" * 5, b"x" * 6), False),
    ],
)
def test_a_chunked_body_is_limited(chunks: tuple[bytes, ...], is_read: bool) -> None:
    """The chunk that would be too much is not read."""
    data = encode(*chunks) + b"0\r\n\r\n" + BEHIND
    if is_read:
        assert chunked(data, limit=10).read() == b"".join(chunks)
        return
    rfile = Recording(data)
    is_broken(Body(rfile, None, is_chunked=True, limit=10), "413")
    assert rfile.tell() <= len(encode(*chunks[:-1])) + 3
    is_broken(chunked(data, limit=10), "413", lambda body: body.end(100))
    assert chunked(data).read() == b"".join(chunks)  # without a limit


def test_a_size_without_end_is_too_much() -> None:
    """At once, and not when memory ends."""
    for size in (b"ffffffffffffffff", b"7fffffffffffffff", b"b"):
        is_broken(chunked(size + b"\r\nhello", limit=10), "413")


# -- clients that leave, or are silent ----------------------------------------------------------

WHOLE = b"5;a=b\r\nhello\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"


@pytest.mark.parametrize("size", range(len(WHOLE)))
def test_a_client_that_leaves_in_a_chunk_has_left(size: int) -> None:
    """Wherever it was; a chunk that is cut short is no fault of its form."""
    for rfile in (io.BytesIO(WHOLE[:size]), buffered(WHOLE[:size])):
        body = Body(rfile, None, is_chunked=True)
        with pytest.raises(ClientLeft):
            body.read()
        assert body.is_broken
        with pytest.raises(BodyError):
            body.read()


@pytest.mark.parametrize("size", range(5))
@pytest.mark.parametrize("read", [Body.read, Body.readlines, lambda body: body.end(100)])
def test_a_client_that_leaves_in_a_body_has_left(size: int, read: Any) -> None:
    """What has come of it can be read before."""
    body = Body(buffered(b"hello"[:size]), 5, is_chunked=False)
    with pytest.raises(ClientLeft):
        read(body)
    assert body.is_broken
    assert not body.is_over
    body = Body(buffered(b"hello"[:size]), 5, is_chunked=False)
    assert body.read(size) == b"hello"[:size]
    with pytest.raises(ClientLeft, match=f"position {size}"):
        body.read(1)


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    ("sent", "length"),
    [
        (b"", 5),
        (b"hell", 5),
        (b"", None),
        (b"5", None),
        (b"5\r\nhel", None),
        (b"5\r\nhello", None),
        (b"0\r\nX: y\r\n", None),
    ],
)
def test_a_silent_client_is_too_slow(
    pair: tuple[Any, Any], sent: bytes, length: int | None
) -> None:
    """In a part of a body of any kind."""
    ours, theirs = pair
    ours.settimeout(5)
    theirs.sendall(sent)
    raw = RawStream(ours)
    raw.timeout = 0.005
    with io.BufferedReader(raw) as rfile:
        is_broken(Body(rfile, length, is_chunked=length is None), "408")
    assert ours.gettimeout() == 5


def test_a_program_may_stop_waiting(pair: tuple[Any, Any]) -> None:
    """Where the body ends is not known after that: a part of it may have been read."""
    ours, theirs = pair
    theirs.sendall(b"hel")
    with io.BufferedReader(RawStream(ours)) as rfile:
        body = Body(rfile, 5, is_chunked=False)
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.005):
            body.read()
        assert body.is_broken
        with pytest.raises(BodyError):
            body.read()


def test_a_reset_is_an_error_of_the_connection(pair: tuple[Any, Any]) -> None:
    """Which the application gets, and reads nothing more."""
    ours, _ = pair
    with io.BufferedReader(RawStream(ours)) as rfile:
        for length in (5, None):
            body = Body(rfile, length, is_chunked=length is None)
            ours.close()
            with pytest.raises(OSError, match="Bad file descriptor"):
                body.read()
            assert body.is_broken


# -- anything at all ----------------------------------------------------------------------------

TCHARS = "!#$%&'*+-.^_`|~09azAZ"
SPACES = st.sampled_from(["", "", "", " ", "\t", " \t "])
TOKENS = st.text(TCHARS, min_size=1, max_size=4)
QUOTED = st.lists(
    st.sampled_from(["a", " ", "\t", ";", "=", "\xe9", "\xff", '\\"', "\\\\", "\\a", "\\\t", "!"]),
    max_size=5,
).map(lambda parts: '"' + "".join(parts) + '"')


@st.composite
def extensions(draw: st.DrawFn) -> str:
    text = draw(SPACES) + ";" + draw(SPACES) + draw(TOKENS)
    if draw(st.booleans()):
        text += draw(SPACES) + "=" + draw(SPACES) + draw(st.one_of(TOKENS, QUOTED))
    return text


TRAILERS = st.builds(
    lambda name, space, value: f"X{name}:{space}{value}",
    st.text(TCHARS, max_size=3),
    SPACES,
    st.text('az09 \t:\xe9\xff"', max_size=6),
)


@st.composite
def encoded(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Return some data, and a chunked body that carries it."""
    chunks = draw(
        st.lists(st.text("ab\n\r0;", min_size=1, max_size=20).map(str.encode), max_size=6)
    )
    text = b""
    for chunk in [*chunks, b""]:
        size = draw(st.sampled_from(["%x", "%X", "%02x", "%016x"])) % len(chunk)
        line = size + "".join(draw(st.lists(extensions(), max_size=2)))
        text += line.encode("latin-1") + b"\r\n"
        text += chunk + b"\r\n" if chunk else b""
    trailers = draw(st.lists(TRAILERS, max_size=2))
    text += "".join(f"{each}\r\n" for each in trailers).encode("latin-1") + b"\r\n"
    return b"".join(chunks), text


SIZES = st.sampled_from([None, -1, 0, 1, 2, 3, 5, 8, 100])
READS = st.lists(st.tuples(st.sampled_from(["read", "readline", "readlines"]), SIZES), max_size=12)
PLACES = st.lists(st.integers(0, 300), max_size=8)


def in_pieces(data: bytes, places: list[int]) -> io.BufferedReader:
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return buffered(*(data[low:high] for low, high in itertools.pairwise(edges)))


def reads_as_a_file(body: Body, data: bytes, reads: list[tuple[str, int | None]]) -> None:
    file = io.BytesIO(data)
    for name, size in reads:
        assert getattr(body, name)(size) == getattr(file, name)(size)
    assert body.read() == file.read()
    assert body.is_over
    assert not body.is_broken


@given(both=encoded(), reads=READS, places=PLACES, behind=st.sampled_from([b"", b"\r\n", BEHIND]))
@settings(max_examples=examples(200), deadline=None)
def test_chunks_are_read_as_a_file_is(
    both: tuple[bytes, bytes], reads: list[tuple[str, int | None]], places: list[int], behind: bytes
) -> None:
    """However they are cut, and come, and are asked for; and what is behind them is left."""
    data, text = both
    assert http_grammar.read_chunked(text + behind) == (data, behind)
    for rfile in (io.BytesIO(text + behind), in_pieces(text + behind, places)):
        reads_as_a_file(Body(rfile, None, is_chunked=True), data, reads)
        assert rfile.read() == behind


@given(data=st.text("ab\n", max_size=40).map(str.encode), reads=READS, places=PLACES)
@settings(max_examples=examples(200), deadline=None)
def test_a_length_is_read_as_a_file_is(
    data: bytes, reads: list[tuple[str, int | None]], places: list[int]
) -> None:
    """However it comes and is asked for; and what is behind it is left."""
    for rfile in (io.BytesIO(data + BEHIND), in_pieces(data + BEHIND, places)):
        reads_as_a_file(Body(rfile, len(data), is_chunked=False), data, reads)
        assert rfile.read() == BEHIND


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """What was a chunked body before some of its bytes were changed."""
    data = bytearray(draw(encoded())[1] + BEHIND)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data) - 1))
        byte = draw(st.sampled_from([*b'0159afg \t\r\n;="\\:_\x00\x7f\x80']) | st.integers(0, 255))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            data[place] = byte
        elif kind == 1:
            data.insert(place, byte)
        elif kind == 2:
            del data[place]
        else:
            del data[place:]
        if not data:
            break
    return bytes(data)


@pytest.mark.thorough
@given(text=mutated(), places=PLACES, size=st.sampled_from([None, 1, 7]))
@example(text=b"00000000000000001\r\na\r\n0\r\n\r\n", places=[], size=None)
@settings(max_examples=examples(400), deadline=None)
def test_mutated_chunks_are_what_the_grammar_says(
    text: bytes, places: list[int], size: int | None
) -> None:
    """Or an error, where the grammar has one."""
    try:
        expected = http_grammar.read_chunked(text)
    except http_grammar.RefusedError:
        expected = None
    rfile = in_pieces(text, places)
    body = Body(rfile, None, is_chunked=True)
    try:
        found = b"".join(iter(lambda: body.read(size), b""))
    except (BodyError, ClientLeft):
        assert body.is_broken
        assert expected is None
    else:
        assert expected == (found, rfile.read())
    with contextlib.suppress(OSError):
        assert body.read() == b""
