"""Requests and replies are byte for byte gevent's, with less done for small ones."""

from __future__ import annotations

import errno
import functools
import http.client
import io
import re
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import gevent.pywsgi
import gevent.ssl
import gevent.tests
import pytest
from gevent import socket
from gevent.pywsgi import WSGIHandler as GeventWSGIHandler
from gevent.pywsgi import headers_factory  # type: ignore[attr-defined]  # not in the stubs
from hypothesis import example, given, settings
from hypothesis import strategies as st

import glb.pywsgi
from glb.http.replies import SMALL_BODY_BYTES
from glb.pywsgi import WSGIHandler, WSGIServer

from .helpers import connect, receive_all

ANY = ("127.0.0.1", 0)

Application = Callable[[dict[str, Any], Any], Any]

# -- headers ------------------------------------------------------------------------------------

# `MessageClass` uses nothing of the handler.
read_as_glb = functools.partial(WSGIHandler.MessageClass, object.__new__(WSGIHandler))


def told(message: Any) -> object:
    """Return all that can be told of the headers that were read."""
    parts = message.get_payload()
    state = {
        name: value for name, value in vars(message).items() if name not in {"_payload", "defects"}
    }
    return (
        type(message),
        [*message.raw_items()],
        state,
        [type(defect) for defect in message.defects],
        [told(part) for part in parts] if isinstance(parts, list) else parts,
        message.status,
        [*message.headers],
        message.typeheader,
        [(name, message.getheader(name), message.get_all(name)) for name in message],
        message.getheader("no such name", "default"),
        (message.get_content_type(), message.get_content_charset(), message.get_params()),
        outcome(message.as_string),
    )


def outcome(use: Callable[..., object], *args: Any) -> object:
    try:
        return use(*args)
    except Exception as error:
        return type(error), str(error)


def read(factory: Any, data: bytes) -> object:
    """Return what *factory* makes of *data*, and how much of it was consumed."""
    stream = io.BytesIO(data)
    result = outcome(lambda: told(factory(stream, 0)))
    return result, stream.tell()


LONG = b"x" * (http.client._MAXLINE - 4)  # type: ignore[attr-defined]  # not in the stubs

BLOCKS = {
    "nothing": b"",
    "none": b"\r\n",
    "none, bare": b"\n",
    "one": b"Host: x\r\n\r\n",
    "bare ends": b"Host: x\nAccept: y\n\n",
    "mixed ends": b"Host: x\r\nAccept: y\n\r\n",
    "more after it": b"Host: x\r\n\r\nbody\r\n\r\n",
    "duplicated": b"A: 1\r\na: 2\r\nB: 3\r\nA: 4\r\n\r\n",
    "no value": b"A:\r\nB: \r\nC:\t \r\n\r\n",
    "spaces around": b"A: \t 1 \t \r\n\r\n",
    "no space": b"A:1\r\nB::2\r\nC: :\r\n\r\n",
    "space before colon": b"A : 1\r\nB\t: 2\r\n\r\n",
    "space in name": b"A B: 1\r\nC: 2\r\n\r\n",
    "folded": b"A: 1\r\n 2\r\n\t3\r\nB: 4\r\n\r\n",
    "folded at first": b" A: 1\r\nB: 2\r\n\r\n",
    "folded into nothing": b"A:\r\n 1\r\n\r\n",
    "blank but for a space": b"A: 1\r\n \r\nB: 2\r\n\r\n",
    "no colon": b"A: 1\r\nB\r\nC: 3\r\n\r\n",
    "no colon at first": b"A\r\nB: 2\r\n\r\n",
    "empty name": b": 1\r\nA: 2\r\n\r\n",
    "only a colon": b":\r\n\r\n",
    "From line": b"From me\r\nA: 1\r\n\r\n",
    "From line with a colon": b"From me: you\r\nA: 1\r\n\r\n",
    "From line later": b"A: 1\r\nFrom me\r\nB: 2\r\n\r\n",
    "From last": b"A: 1\r\nFrom x\r\n\r\n",
    "From header": b"From: me\r\n\r\n",
    "bare CR in a value": b"A: 1\rB: 2\r\nC: 3\r\n\r\n",
    "bare CR at the end": b"A: 1\r\r\nB: 2\r\n\r\n",
    "bare CR for an end": b"A: 1\r\r\n",
    "CR alone": b"\r",
    "CRs": b"\r\r\n\r\n",
    "NUL": b"A: \x00\r\nB\x00: 1\r\n\r\n",
    "latin-1 value": "A: ä\xff\x80\r\n\r\n".encode("latin-1"),
    "latin-1 name": "Ä: 1\r\nB: 2\r\n\r\n".encode("latin-1"),
    "vertical tab": b"A: 1\x0bB: 2\r\n\r\n",
    "form feed": b"A: \x0c1\x0c\r\n\r\n",
    "separators": b"A: 1\x1cB: 2\x1dC: 3\x1eD: 4\x1f\r\n\r\n",
    "next line": b"A: 1\x85B: 2\xa0\r\n\r\n",
    "separators in names": b"A\x0b: 1\r\n\x0cB: 2\r\n\x1cC: 3\r\n\x85D: 4\r\n\r\n",
    "delete": b"A\x7f: 1\r\n\r\n",
    "odd names": b"!#$%&'*+-.^_`|~\"(),/;<=>?@[\\]{}: 1\r\n\r\n",
    "type": b'Content-Type: text/html; charset=utf-8; x="a;b"\r\n\r\n',
    "multipart": b'Content-Type: multipart/form-data; boundary="x"\r\n\r\n--x\r\n',
    "multipart, no boundary": b"Content-Type: multipart/mixed\r\n\r\n",
    "multipart, odd": b"Content-Type: MultiPart/Mixed; boundary=x\r\nA: 1\r\n\r\n",
    "multipart, encoded": b"Content-Type: multipart/mixed; boundary=x\r\n"
    b"Content-Transfer-Encoding: base64\r\n\r\n",
    "multipart, folded": b"Content-Type:\r\n multipart/mixed; boundary=x\r\n\r\n",
    "multipart, spaced": b"Content-Type: multipart /mixed\r\n\r\n",
    "multipart elsewhere": b"Accept: multipart/mixed\r\nReferer: /message/1\r\n\r\n",
    "message": b"Content-Type: message/rfc822\r\n\r\n",
    "message, odd": b"content-type:MESSAGE/RFC822\r\n\r\n",
    "delivery status": b"Content-Type: message/delivery-status\r\n\r\n",
    "message, partial": b"Content-Type: message/partial\r\n\r\n",
    "two types": b"Content-Type: text/plain\r\nContent-Type: multipart/mixed\r\n\r\n",
    "bad type": b"Content-Type: multipart\r\n\r\n",
    "encoded words": b"A: =?utf-8?q?x?=\r\nB*: utf-8''x\r\n\r\n",
    "no end": b"A: 1\r\n",
    "no end of a line": b"A: 1\r\nB: 2",
    "no end of a name": b"A: 1\r\nB",
    "half an end": b"A: 1\r\n\r",
    "100 lines": b"A: 1\r\n" * 99 + b"\r\n",
    "101 lines": b"A: 1\r\n" * 100 + b"\r\n",
    "102 lines": b"A: 1\r\n" * 101 + b"\r\n",
    "100 lines, no end": b"A: 1\r\n" * 100,
    "longest line": b"A:" + LONG + b"\r\n\r\n",
    "one byte too long": b"A: " + LONG + b"\r\n\r\n",
    "two bytes too long": b"A:  " + LONG + b"\r\nB: 1\r\n\r\n",
    "much too long": b"A: " + LONG * 2 + b"\r\n\r\n",
    "too long at last": b"A: 1\r\nB: " + LONG + b"\r\n\r\n",
    "too long and no end": b"A: " + LONG,
    "long in all": (b"A: " + b"x" * 1000 + b"\r\n") * 90 + b"\r\n",
    "border of the parser's blocks": b"A: " + b"x" * (8192 - 4) + b"\r\nB: 1\r\n\r\n",
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
def test_headers_of_every_shape_are_gevents(block: bytes) -> None:
    """The same items, defects and status, or the same error; as many bytes are consumed."""
    assert read(read_as_glb, block) == read(headers_factory, block)


_names = st.one_of(
    st.sampled_from(
        [b"Host", b"host", b"Content-Type", b"Content-Length", b"X", b"", b"A B", b"From me"]
    ),
    st.text("!-9Aaz~_\t \x00\x0b\x7f\x80\x85\xff", max_size=4).map(lambda t: t.encode("latin-1")),
)
_separators = st.sampled_from([b": ", b":", b":\t ", b" : ", b"::", b"", b" "])
_values = st.one_of(
    st.sampled_from(
        [
            b"",
            b"value",
            b"multipart/mixed; boundary=x",
            b"Multipart/Form-Data",
            b"message/rfc822",
            b"message/delivery-status",
            b"text/plain; charset=latin-1",
            b"base64",
        ]
    ),
    st.text(alphabet=st.characters(max_codepoint=255, exclude_characters="\n"), max_size=12).map(
        lambda text: text.encode("latin-1")
    ),
)
_ends = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b""])
_lines = st.one_of(
    st.tuples(_names, _separators, _values, _ends).map(b"".join),
    st.tuples(st.sampled_from([b" ", b"\t", b"From ", b"--x", b""]), _values, _ends).map(b"".join),
    st.sampled_from([b"Host: x\r\n", b"Accept: */*\r\n", b"\r\n", b"\n"]),
    st.integers(1, 40).map(lambda count: b"A: " + b"x" * count + b"\r\n"),
)
_blocks = st.one_of(
    st.tuples(
        st.lists(_lines, max_size=8), st.sampled_from([b"\r\n", b"\n", b"", b"\r\n\r\nbody"])
    ).map(lambda drawn: b"".join(drawn[0]) + drawn[1]),
    # What mostly comes: plain ones, where the short way is taken.
    st.lists(
        st.tuples(st.sampled_from([b"A", b"Host", b"x-y"]), _separators, _values), max_size=5
    ).map(lambda drawn: b"".join(b"".join(line) + b"\r\n" for line in drawn) + b"\r\n"),
    st.binary(max_size=60),
)


@settings(max_examples=600, deadline=None)
@given(_blocks, st.sampled_from([65536, 65536, 20, 2]), st.sampled_from([100, 100, 3, 1, 0]))
@example(b"A: 1234567890123456\r\n\r\n", 20, 100)
@example(b"A: 123456789012345\r\n\r\n", 20, 100)
@example(b"A: 12345678901234567890\r\n\r\n", 20, 1)
@example(b"A: 1\r\nB: 2\r\n\r\n", 65536, 3)
@example(b"A: 1\r\nB: 2\r\nC: 3\r\n\r\n", 65536, 3)
def test_whatever_is_sent_is_read_as_gevent_reads_it(block: bytes, line: int, lines: int) -> None:
    """Also when a program has changed http.client's limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.client, "_MAXLINE", line)
        patch.setattr(http.client, "_MAXHEADERS", lines)
        assert read(read_as_glb, block) == read(headers_factory, block)


def test_plain_headers_are_read_without_the_parser() -> None:
    """That is what it is for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glb.pywsgi.headers_factory", None)
        message = read_as_glb(io.BytesIO(b"Host: x\r\nAccept:  */*\r\n\r\n"), 0)
        assert message.items() == [("Host", "x"), ("Accept", "*/*")]
        with pytest.raises(TypeError, match="NoneType"):
            read_as_glb(io.BytesIO(b"Host: x\r\n folded\r\n\r\n"), 0)


@pytest.mark.parametrize("error", [OSError(errno.ECONNRESET, "reset"), TimeoutError("late")])
def test_a_stream_that_fails_raises_its_own_error(error: OSError) -> None:
    """The very one, as from gevent's."""

    class Failing:
        def readline(self, _limit: int) -> bytes:
            raise error

    for factory in (headers_factory, read_as_glb):
        with pytest.raises(type(error)) as raised:
            factory(Failing(), 0)
        assert raised.value is error


# -- replies ------------------------------------------------------------------------------------


class _Recording:
    """A connection that keeps what each call to ``sendall`` was given."""

    def __init__(self, sock: Any, sent: list[bytes]) -> None:
        self._recorded = sock
        self._sent = sent

    def sendall(self, data: Any, *flags: int) -> None:
        self._sent.append(bytes(data))
        self._recorded.sendall(data, *flags)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorded, name)


class Served:
    """What came of a request: the reply, the log, the errors, and the sends it took."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.reply = b""
        self.log = io.StringIO()
        self.error_log = io.StringIO()
        self.errors: list[tuple[Any, str]] = []

    def told(self) -> object:
        """Return all but how often was sent."""
        lines = [re.sub(r" \[[^]]*\]", "", line) for line in self.log.getvalue().splitlines()]
        return (
            undated(self.reply),
            [re.sub(r"[0-9.]+$", "", line) for line in lines],
            re.sub(r"<.*?>|[0-9]+", "", self.error_log.getvalue()),
            self.errors,
        )


def undated(reply: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*GMT", b"\r\nDate: then", reply)


def serve(
    kind: Any,
    application: Application,
    request: bytes,
    talk: Callable[[Any], bytes] = receive_all,
    **arguments: Any,
) -> Served:
    """Serve one connection with a server of *kind*, and return what came of it.

    Args:
        talk: Has the client's connection, and returns the reply.
    """
    served = Served()

    class Handler(kind.handler_class):  # type: ignore[misc]  # a class that is not known
        def __init__(self, sock: Any, *args: Any) -> None:
            super().__init__(_Recording(sock, served.sent), *args)

    def handle_error(_context: object, kind_of_error: Any, error: Any, _traceback: Any) -> None:
        served.errors.append((kind_of_error, str(error)))

    server = kind(
        ANY,
        application,
        log=served.log,
        error_log=served.error_log,
        handler_class=Handler,
        **arguments,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gevent.get_hub(), "handle_error", handle_error)
        server.start()
        try:
            with connect((server.server_host, server.server_port)) as client:
                client.sendall(request)
                served.reply = talk(client)
            server.pool.join(20) if server.pool is not None else None
        finally:
            server.stop()
    return served


def is_as_gevents(application: Application, request: bytes, **arguments: Any) -> Served:
    """Assert that reply, log and errors are as with gevent's server; return ours."""
    expected = serve(gevent.pywsgi.WSGIServer, application, request, **arguments)
    ours = serve(WSGIServer, application, request, **arguments)
    assert ours.told() == expected.told()
    return ours


GET_1_0 = b"GET / HTTP/1.0\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n0\r\n\r\n"
)
PIPELINED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2 + GET
REQUESTS = {
    "HTTP/1.0": GET_1_0,
    "HTTP/1.1": GET,
    "HEAD": HEAD,
    "POST": POST,
    "chunked": CHUNKED,
    "pipelined": PIPELINED,
}


def small(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"small"]


def several(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [])
    return [b"one", b"", b"two", b"three"]


def with_length(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [("Content-Length", "5"), ("Date", "long ago")])
    return iter([b"small"])


def with_write(_environ: dict[str, Any], start_response: Any) -> Any:
    write = start_response("200 OK", [])
    write(b"one")
    write(b"two")
    return []


def with_write_of_nothing(_environ: dict[str, Any], start_response: Any) -> Any:
    write = start_response("200 OK", [])
    write(b"")
    return [b"late"]


def generated(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"one"
    yield b""
    yield b"two"


def empty(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [])
    return []


def generated_empty(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield from ()


def no_content(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("204 No Content", [])
    return []


def not_modified(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("304 Not Modified", [("ETag", "x")])
    return [b""]


def closes(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("404 Not Found", [("Connection", "close")])
    return [b"gone"]


def echoes(environ: dict[str, Any], start_response: Any) -> Any:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [b"got ", body]


def as_buffers(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [])
    return [bytearray(b"one"), memoryview(b"two")]


def largest_small(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [])
    return [b"x" * SMALL_BODY_BYTES]


def smallest_large(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [])
    return [b"x" * (SMALL_BODY_BYTES + 1)]


def small_then_large(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"x"
    yield b"y" * 300_000


def starts_again(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [("X", "first")])
    try:
        raise LookupError
    except LookupError as error:
        start_response("503 Busy", [("X", "second")], (LookupError, error, error.__traceback__))
    return [b"sorry"]


SOUND: list[Application] = [
    small,
    several,
    with_length,
    with_write,
    with_write_of_nothing,
    generated,
    empty,
    generated_empty,
    no_content,
    not_modified,
    closes,
    echoes,
    as_buffers,
    largest_small,
    smallest_large,
    small_then_large,
    starts_again,
]


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("application", SOUND)
def test_replies_are_byte_for_byte_gevents(application: Application, request_name: str) -> None:
    """And so are the lines of the log, with the length of the reply."""
    served = is_as_gevents(application, REQUESTS[request_name])
    assert not served.errors
    assert b"".join(served.sent) == served.reply


@pytest.mark.parametrize(
    ("application", "request_", "sends"),
    [
        (small, GET, 1),
        (small, GET_1_0, 1),
        (small, HEAD, 1),
        (small, POST, 1),
        (small, PIPELINED, 3),
        (several, GET, 3),
        (with_length, GET, 1),
        (with_write, GET_1_0, 2),
        (with_write, GET, 3),  # the end of the chunks goes on its own
        (generated, GET_1_0, 2),
        (generated, GET, 3),
        (empty, GET, 1),
        (generated_empty, GET_1_0, 1),
        (no_content, GET, 1),
        (not_modified, GET, 1),
        (largest_small, GET, 1),
        (smallest_large, GET, 2),
    ],
)
def test_head_and_small_body_leave_in_one_send(
    application: Application, request_: bytes, sends: int
) -> None:
    """What is large is not copied: it goes behind its head."""
    served = serve(WSGIServer, application, request_)
    assert len(served.sent) == sends
    if application is smallest_large:
        assert served.sent[0].endswith(b"\r\n\r\n")


# -- what goes wrong ----------------------------------------------------------------------------


def fails_at_once(_environ: dict[str, Any], _start_response: Any) -> Any:
    raise LookupError("at once")


def fails_after_start(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [])
    raise LookupError("after start_response")


def fails_before_the_first_part(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    if start_response:
        raise LookupError("before the first part")
    yield b""


def fails_in_the_middle(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"one"
    raise LookupError("in the middle")


def fails_in_the_middle_of_a_length(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [("Content-Length", "100")])(b"one")
    raise LookupError("in the middle")


def never_starts(_environ: dict[str, Any], _start_response: Any) -> Any:
    return [b"one"]


def never_starts_and_has_none(_environ: dict[str, Any], _start_response: Any) -> Any:
    return []


def returns_none(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [])


def returns_text(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [])
    return ["text"]


def returns_a_string(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [])
    return "text"


def generates_text(_environ: dict[str, Any], start_response: Any) -> Iterator[Any]:
    start_response("200 OK", [])
    yield "text"


def generates_text_later(_environ: dict[str, Any], start_response: Any) -> Iterator[Any]:
    start_response("200 OK", [])
    yield b"one"
    yield "text"


def writes_text(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [("Content-Length", "4")])("text")
    return []


def has_a_body_with_204(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("204 No Content", [])
    return [b"body"]


def has_a_length_with_304(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("304 Not Modified", [("Content-Length", "4")])
    return []


def has_a_bad_status(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("OK", [])
    return [b"one"]


def has_a_split_header(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [("X", "a\r\nY: b")])
    return [b"one"]


def has_a_header_of_bytes(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [(b"X", b"a")])
    return [b"one"]


def has_a_header_beyond_latin_1(_environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [("X", "\u20ac")])
    return [b"one"]


def starts_again_too_late(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"one"
    try:
        raise LookupError("too late")
    except LookupError as error:
        start_response("503 Busy", [], (LookupError, error, error.__traceback__))


UNSOUND: list[Application] = [
    fails_at_once,
    fails_after_start,
    fails_before_the_first_part,
    fails_in_the_middle,
    fails_in_the_middle_of_a_length,
    never_starts,
    returns_none,
    has_a_body_with_204,
    has_a_length_with_304,
    has_a_bad_status,
    has_a_split_header,
    has_a_header_of_bytes,
    has_a_header_beyond_latin_1,
    starts_again_too_late,
    generates_text_later,
]


@pytest.mark.parametrize("request_name", ["HTTP/1.0", "HTTP/1.1", "pipelined"])
@pytest.mark.parametrize("application", UNSOUND)
def test_applications_that_fail_are_answered_as_by_gevent(
    application: Application, request_name: str
) -> None:
    """The same bytes, the same lines in the logs, the same errors reported."""
    assert is_as_gevents(application, REQUESTS[request_name]).errors


def test_an_application_that_says_nothing_gets_no_reply() -> None:
    """Nothing to send is no error for gevent."""
    served = is_as_gevents(never_starts_and_has_none, GET)
    assert (served.reply, served.errors) == (b"", [])


@pytest.mark.parametrize("request_", [GET_1_0, GET], ids=["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize(
    "application", [returns_text, returns_a_string, generates_text, writes_text]
)
def test_a_body_of_text_is_an_error_but_still_http(
    application: Application, request_: bytes
) -> None:
    """Whatever the client gets begins with a status line, as from gevent."""
    expected = serve(gevent.pywsgi.WSGIServer, application, request_)
    ours = serve(WSGIServer, application, request_)
    assert expected.reply.startswith(b"HTTP/1.1 ")
    assert ours.reply.startswith(b"HTTP/1.1 ")
    assert [kind for kind, _ in ours.errors] == [kind for kind, _ in expected.errors]


@pytest.mark.parametrize("size", [2, SMALL_BODY_BYTES + 1])
def test_no_second_reply_follows_one_that_has_left(size: int) -> None:
    """An error may strike after the send and before the count: the connection is closed."""

    class Struck(WSGIHandler):
        def _sendall(self, data: Any) -> None:
            super()._sendall(data)
            if self._collected is None and data.endswith(b"x"):
                self.response_length = 0
                raise LookupError("on purpose")

    def application(_environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", str(size))])
        return [b"x" * size]

    class Server(WSGIServer):
        handler_class = Struck

    served = serve(Server, application, GET)
    assert served.reply.endswith(b"\r\n\r\n" + b"x" * size)
    assert [kind for kind, _ in served.errors] == [LookupError]


def test_an_error_page_leaves_in_one_send() -> None:
    """Head and body of the 500."""
    served = serve(WSGIServer, fails_at_once, GET)
    assert len(served.sent) == 1
    assert served.reply.startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + LONG + b"xx\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: 1\r\n" * 101 + b"\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: 1\r\n folded\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nA_B: 1\r\nA-B: 2\r\nA-B: 3\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: \xe4\x85\x0b\r\nConnection: close\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 3\r\nConnection: close\r\n\r\n--x",
        b"HEAD / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnot hex\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nshort",
    ],
)
def test_odd_requests_are_answered_as_by_gevent(request_: bytes) -> None:
    """What the application sees of the headers is in the reply."""

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        body = environ["wsgi.input"].read()
        start_response("200 OK", [])
        seen = {name: environ[name] for name in environ if name.startswith(("HTTP_", "CONTENT_"))}
        return [repr((sorted(seen.items()), body)).encode()]

    def talk(client: Any) -> bytes:
        client.shutdown(socket.SHUT_WR)
        return receive_all(client)

    # Where gevent prints a traceback: too many headers are not a ValueError.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gevent.pywsgi.traceback.print_exc", lambda: None)
        is_as_gevents(application, request_, talk=talk)


@pytest.mark.parametrize("body", [b"small", b"x" * 3_000_000], ids=["small", "large"])
@pytest.mark.parametrize("as_generator", [False, True])
def test_a_client_that_is_gone_is_no_error(body: bytes, as_generator: bool) -> None:
    """EPIPE and ECONNRESET end the connection, without a report."""
    results: list[object] = []
    for kind in (gevent.pywsgi.WSGIServer, WSGIServer):
        entered, proceed = gevent.event.Event(), gevent.event.Event()

        def application(
            _environ: dict[str, Any],
            start_response: Any,
            entered: gevent.event.Event = entered,
            proceed: gevent.event.Event = proceed,
        ) -> Any:
            entered.set()
            proceed.wait()
            start_response("200 OK", [])
            return iter([body, body]) if as_generator else [body, body]

        def talk(
            client: Any,
            entered: gevent.event.Event = entered,
            proceed: gevent.event.Event = proceed,
        ) -> bytes:
            entered.wait()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            proceed.set()
            return b""

        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        served = serve(kind, application, request, talk, spawn=1)
        results.append((served.errors, served.error_log.getvalue(), served.log.getvalue() != ""))
    assert results[0] == results[1]
    assert results[1] == ([], "", True)


def test_an_error_that_is_not_the_clients_is_reported() -> None:
    """What a subclass does not ignore, as gevent's."""
    results = []
    for kind in (gevent.pywsgi.WSGIServer, WSGIServer):

        class Handler(kind.handler_class):  # type: ignore[misc, name-defined]  # not known
            def _sendall(self, data: Any) -> None:
                raise OSError(errno.ENOBUFS, "no room")

        class Server(kind):  # type: ignore[misc, valid-type]  # not known either
            handler_class = Handler

        served = serve(Server, small, GET)
        results.append(served.told())
    assert results[0] == results[1]


# -- talking in the middle ----------------------------------------------------------------------


def test_a_client_that_waits_is_told_to_continue() -> None:
    """Expect: 100-continue, before the reply and only if the body is read."""
    request = (
        b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    )

    def talk(client: Any) -> bytes:
        first: bytes = client.recv(25)
        assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        return first + receive_all(client)

    served = is_as_gevents(echoes, request, talk=talk)
    assert len(served.sent) == 3
    assert served.reply.endswith(b"\r\n\r\ngot hello")


def test_an_upgraded_connection_is_the_applications() -> None:
    """101: the head has left when write() returns, and the socket is free for another protocol."""
    request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nframe"

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response(
            "101 Switching Protocols", [("Upgrade", "websocket"), ("Connection", "Upgrade")]
        )
        write(b"")
        frame = environ["wsgi.input"].read(5)
        environ["test.socket"].sendall(b"raw:" + frame)
        write(b"written")
        return []

    class Environ:
        """Gives the application its socket, as handlers for websockets do."""

        def get_environ(self) -> dict[str, Any]:
            environ: dict[str, Any] = super().get_environ()  # type: ignore[misc]  # a mixin
            environ["test.socket"] = self.socket  # type: ignore[attr-defined]  # a mixin
            self.close_connection = True
            return environ

    results = []
    for kind in (gevent.pywsgi.WSGIServer, WSGIServer):

        class Server(kind):  # type: ignore[misc, valid-type]  # not known
            handler_class = type("Handler", (Environ, kind.handler_class), {})

        served = serve(Server, application, request)
        results.append(served.told())
    assert results[0] == results[1]
    assert results[1][0].endswith(b"\r\n\r\nraw:framewritten")  # type: ignore[index]  # a tuple


def test_each_part_leaves_when_it_is_yielded() -> None:
    """The first with the head; nothing is kept back for the next."""
    proceed = gevent.event.Event()

    def application(_environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        proceed.wait()
        yield b"second"

    def talk(client: Any) -> bytes:
        reply = b""
        while not reply.endswith(b"first"):
            reply += client.recv(1000)
        proceed.set()
        return reply + receive_all(client)

    assert serve(WSGIServer, application, GET_1_0, talk).reply.endswith(b"firstsecond")


def test_tls_has_the_same_replies() -> None:
    """And small ones in one record."""
    here = Path(gevent.tests.__file__).parent
    serving = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(here / "server.crt", here / "server.key")
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def talk(client: Any) -> bytes:
        with context.wrap_socket(client) as wrapped:
            wrapped.sendall(GET)
            return receive_all(wrapped)

    for application in (small, smallest_large, generated):
        served = is_as_gevents(application, b"", talk=talk, ssl_context=serving)
        assert served.reply.startswith(b"HTTP/1.1 200 OK\r\n")
        if application is small:
            assert len(served.sent) == 1


# -- the log ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [gevent.pywsgi.WSGIServer, WSGIServer], ids=["gevent", "ours"])
def test_a_line_is_made_for_who_reads_it(kind: Any) -> None:
    """A log of any kind; and a subclass that makes its own, whatever the log."""
    made: list[str] = []

    class Formatting(kind.handler_class):  # type: ignore[misc]  # not known
        def format_request(self) -> str:
            made.append(self.requestline)
            return "mine"

    class Logging(kind.handler_class):  # type: ignore[misc]  # not known
        def log_request(self) -> None:
            made.append("logged")

    log = io.StringIO()
    for handler_class, into, expected in (
        (Formatting, None, ["GET / HTTP/1.0"]),
        (Formatting, log, ["GET / HTTP/1.0"]),
        (Logging, None, ["logged"]),
    ):
        made.clear()
        with kind(ANY, small, log=into, handler_class=handler_class) as server:
            server.start()
            with connect((server.server_host, server.server_port)) as client:
                client.sendall(GET_1_0)
                receive_all(client)
        assert made == expected
    assert log.getvalue() == "mine\n"


def test_no_line_is_made_for_a_log_that_nobody_reads() -> None:
    """log=None is gevent's way to have none."""
    made: list[float] = []

    class Clock:
        """`format_request` asks for the time of day, once a line."""

        @staticmethod
        def now() -> Any:
            made.append(time.time())
            return _datetime.now()

    from gevent.pywsgi import datetime as _datetime  # type: ignore[attr-defined]  # not in stubs

    for log, lines in ((None, 0), (io.StringIO(), 1)):
        made.clear()
        with pytest.MonkeyPatch.context() as patch, WSGIServer(ANY, small, log=log) as server:
            patch.setattr("gevent.pywsgi.datetime", Clock)
            server.start()
            with connect(server.address) as client:
                client.sendall(GET_1_0)
                assert receive_all(client).endswith(b"small")
        assert len(made) == lines


def test_a_log_with_levels_gets_the_same_lines() -> None:
    """A logger is wrapped by gevent; the wrapper is a log like any other."""

    class Logger:
        def __init__(self) -> None:
            self.lines: list[str] = []

        def log(self, _level: int, message: str, *args: Any) -> None:
            self.lines.append(message % args if args else message)

    results = []
    kinds: list[Any] = [gevent.pywsgi.WSGIServer, WSGIServer]
    for kind in kinds:
        logger = Logger()
        with kind(ANY, small, log=logger) as server:
            server.start()
            with connect((server.server_host, server.server_port)) as client:
                client.sendall(GET)
                receive_all(client)
        results.append([re.sub(r" \[.*?\]|[0-9.]+$", "", line.rstrip()) for line in logger.lines])
    assert results[0] == results[1]
    assert len(results[1]) == 1


# -- other handlers -----------------------------------------------------------------------------


def test_a_handler_of_gevents_own_still_serves() -> None:
    """Unchanged: head and body in two sends, and the same bytes."""
    served = Served()

    class Handler(GeventWSGIHandler):
        def __init__(self, sock: Any, *args: Any) -> None:
            recording: Any = _Recording(sock, served.sent)
            super().__init__(recording, *args)

    with WSGIServer(ANY, small, log=served.log, handler_class=Handler) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(PIPELINED)
            reply = receive_all(client)
    assert undated(reply) == undated(serve(WSGIServer, small, PIPELINED).reply)
    assert len(served.sent) == 6
    assert len(served.log.getvalue().splitlines()) == 3


def test_ours_serves_a_server_of_gevents() -> None:
    """The handler asks nothing of the server that gevent's doesn't."""

    class Server(gevent.pywsgi.WSGIServer):
        handler_class = WSGIHandler

    served = serve(Server, small, GET)
    assert len(served.sent) == 1
    assert undated(served.reply) == undated(serve(WSGIServer, small, GET).reply)
    assert glb.pywsgi.WSGIHandler is WSGIServer.handler_class
