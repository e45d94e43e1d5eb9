"""Replies to sound requests are gevent's, byte for byte, with less done for small ones.

They differ in three things on purpose: the last reply of a connection says so, a reply to HEAD has
no body, and what would break the framing of the connection is never sent.
"""

from __future__ import annotations

import errno
import http.client
import io
import re
import time
from collections.abc import Callable, Iterator
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
from glb.http.environ import as_fields
from glb.http.head import BadRequest, Limits, find_end, parse
from glb.http.replies import SMALL_BODY_BYTES
from glb.pywsgi import WSGIHandler, WSGIServer

from ..support.examples import examples
from ..support.helpers import connect, receive_all
from ..support.tls import client_context, server_context

ANY = ("127.0.0.1", 0)

Application = Callable[[dict[str, Any], Any], Any]

# -- headers ------------------------------------------------------------------------------------


def read_as_glb(block: bytes) -> Any:
    """Return what handlers have as ``headers`` after a request with *block*.

    Raises:
        BadRequest: It is refused.
    """
    data = b"GET / HTTP/1.1\r\n" + block
    end = find_end(data, 0, Limits())
    if end < 0:
        raise BadRequest("it is no whole head")
    head = parse(data[: end + 2], Limits())
    # It uses nothing of the handler.
    return WSGIHandler.MessageClass(object.__new__(WSGIHandler), io.BytesIO(as_fields(head)), 0)


def fields_of(message: Any) -> object:
    """Return the fields that were read."""
    return (
        type(message),
        # gevent leaves white space at the end of a value to those that read it.
        [(name, value.strip(" \t")) for name, value in message.raw_items()],
        [line.strip() for line in message.headers],
        [(name, message.getheader(name).strip(" \t")) for name in message],
        message.getheader("no such name", "default"),
        (message.get_content_type(), message.get_content_charset()),
    )


def is_refused_or_as_gevents(block: bytes) -> bool:
    """Assert that *block* is read as by gevent, if it is read; return True if it is refused."""
    try:
        message = read_as_glb(block)
    except BadRequest:
        return True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.client, "_MAXHEADERS", 101)  # it counts the empty line as well
        assert fields_of(message) == fields_of(headers_factory(io.BytesIO(block), 0))
    return False


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


SOUND_BLOCKS = {
    *("none", "one", "duplicated", "no value", "spaces around", "no space", "From header"),
    *("latin-1 value", "next line", "type", "multipart", "multipart, no boundary"),
    *("multipart, odd", "multipart, encoded", "multipart, spaced", "multipart elsewhere"),
    *("message", "message, odd", "delivery status", "message, partial", "two types", "bad type"),
    *("encoded words", "100 lines", "101 lines", "more after it"),
    *("longest line", "border of the parser's blocks"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_fields_are_refused_or_read_as_by_gevent(name: str) -> None:
    """The same names and values in the same order, in an object of the same kind."""
    assert is_refused_or_as_gevents(BLOCKS[name]) is (name not in SOUND_BLOCKS)


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


@pytest.mark.thorough
@settings(max_examples=examples(600), deadline=None)
@given(_blocks)
@example(b"A: 1\r\nB: 2\r\nA: 3\r\n\r\n")
def test_whatever_is_read_is_read_as_by_gevent(block: bytes) -> None:
    """What it would read otherwise is refused."""
    is_refused_or_as_gevents(block)


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

    def outcome(self) -> tuple[Any, ...]:
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


CLOSE = b"Connection: close\r\n"


def by_hooks() -> Any:
    """Return a server whose handler overrides a hook of gevent's, and changes nothing by it."""

    class Handler(WSGIHandler):
        def get_environ(self) -> dict[str, Any]:
            return super().get_environ()

    class Server(WSGIServer):
        handler_class = Handler

    return Server


def is_as_gevents(application: Application, request: bytes, **arguments: Any) -> Served:
    """Assert that reply, log and errors are as with gevent's server; return ours.

    But that the last reply of a connection says so, if the application does not.
    """
    expected = serve(gevent.pywsgi.WSGIServer, application, request, **arguments)
    for kind in (by_hooks(), WSGIServer):
        ours = serve(kind, application, request, **arguments)
        assert without_close(ours).outcome() == without_close(expected).outcome()
    return ours


def without_close(served: Served) -> Served:
    """Return *served* as if the last reply had not said that it is the last."""
    bare = Served()
    before, close, after = served.reply.rpartition(CLOSE)
    bare.reply, bare.errors, bare.error_log = before + after, served.errors, served.error_log
    lines = served.log.getvalue().splitlines()
    if close and lines:
        start, length, seconds = lines[-1].rsplit(" ", 2)
        lines[-1] = f"{start} {int(length) - len(close)} {seconds}"
    bare.log.write("\n".join(lines))
    return bare


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


@pytest.mark.parametrize("application", SOUND)
def test_replies_to_head_are_the_head_of_gevents(application: Application) -> None:
    """But what frames a body: gevent sends one (RFC 9110, 9.3.2: it must not)."""
    served = serve(WSGIServer, application, HEAD)
    head, _, body = without_close(served).reply.partition(b"\r\n\r\n")
    expected = without_close(serve(gevent.pywsgi.WSGIServer, application, HEAD))
    expected_head = expected.reply.partition(b"\r\n\r\n")[0]
    for each in (b"\r\nTransfer-Encoding: chunked", b"\r\nContent-Length: 0"):
        expected_head = expected_head.replace(each, b"")
    assert (undated(head + b"\r\n"), body) == (undated(expected_head + b"\r\n"), b"")
    assert len(served.sent) == 1
    assert not served.errors


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
    has_a_header_of_bytes,
    has_a_header_beyond_latin_1,
    starts_again_too_late,
]


@pytest.mark.parametrize("request_name", ["HTTP/1.0", "HTTP/1.1", "pipelined"])
@pytest.mark.parametrize("application", UNSOUND)
def test_applications_that_fail_are_answered_as_by_gevent(
    application: Application, request_name: str
) -> None:
    """The same bytes, the same lines in the logs, the same errors reported."""
    assert is_as_gevents(application, REQUESTS[request_name]).errors


@pytest.mark.parametrize("application", [has_a_bad_status, has_a_split_header])
def test_what_cannot_be_sent_is_a_500_as_by_gevent(application: Application) -> None:
    """The same error is reported, in words that have the value."""
    expected = serve(gevent.pywsgi.WSGIServer, application, PIPELINED)
    ours = serve(WSGIServer, application, PIPELINED)
    assert without_close(ours).outcome()[:3] == without_close(expected).outcome()[:3]
    assert ours.reply.count(b"HTTP/1.1 500 ") == 1
    assert [kind for kind, _ in ours.errors] == [kind for kind, _ in expected.errors]


def test_a_304_may_have_a_length() -> None:
    """RFC 9110, 8.6: that of the reply to a GET without conditions. gevent makes it a 500."""
    served = serve(WSGIServer, has_a_length_with_304, PIPELINED)
    assert served.reply.count(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n") == 3
    assert served.reply.count(b"\r\n\r\n") == 3
    assert served.errors == []


def test_an_application_that_never_starts_a_reply_gets_a_500() -> None:
    """PEP 3333 has it call start_response before its body ends. gevent sends nothing."""
    served = serve(WSGIServer, never_starts_and_has_none, GET)
    assert served.reply.startswith(b"HTTP/1.1 500 ")
    assert [text for _, text in served.errors] == ["The application did not call start_response()"]


@pytest.mark.parametrize("request_", [GET_1_0, GET], ids=["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("application", [returns_text, generates_text, writes_text])
def test_a_body_of_text_is_sent_and_logged(application: Application, request_: bytes) -> None:
    """A whole reply, which is the connection's last, and one line in the log. gevent cuts it."""
    served = serve(WSGIServer, application, request_)
    assert served.reply.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (CLOSE in served.reply, b"text" in served.reply) == (True, True)
    assert served.errors == []
    assert served.error_log.getvalue().endswith("a body must be bytes, got 'text'\n")
    assert served.error_log.getvalue().count("\n") == 1


def test_text_that_comes_later_is_sent_and_logged() -> None:
    """As text that comes at first."""
    served = serve(WSGIServer, generates_text_later, PIPELINED)
    assert served.reply.endswith(b"\r\n\r\n3\r\none\r\n4\r\ntext\r\n0\r\n\r\n")
    assert served.reply.count(b"HTTP/1.1 200 OK") == 1
    assert served.error_log.getvalue().count("a body must be bytes, got 'text'\n") == 1


def test_a_string_for_a_body_is_a_500() -> None:
    """It iterates, but each letter of it would be a chunk."""
    served = serve(WSGIServer, returns_a_string, GET)
    assert served.reply.startswith(b"HTTP/1.1 500 ")
    assert [kind for kind, _ in served.errors] == [TypeError]


@pytest.mark.parametrize("size", [2, SMALL_BODY_BYTES + 1])
def test_no_second_reply_follows_one_that_has_left(size: int) -> None:
    """An error may strike behind the send: the connection is closed."""

    class Struck(WSGIHandler):
        def _sendall(self, data: Any) -> None:
            super()._sendall(data)
            if data.endswith(b"x"):
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


def replies_what_it_sees(environ: dict[str, Any], start_response: Any) -> Any:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    seen = {name: environ[name] for name in environ if name.startswith(("HTTP_", "CONTENT_"))}
    return [repr((sorted(seen.items()), body)).encode()]


def send_and_half_close(client: Any) -> bytes:
    client.shutdown(socket.SHUT_WR)
    return receive_all(client)


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"GET / HTTP/1.1\r\nA_B: 1\r\nA-B: 2\r\nA-B: 3\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: \xe4\xff\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nCookie: a=1\r\nCookie: b=2\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nA:1\r\nB:\r\nC: \t x \t \r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Type: a/b\r\nContent-Type: c/d\r\nConnection: close\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        b"Content-Length: 3\r\nConnection: close\r\n\r\n--x",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n\r\n"
        b"3;a=b\r\nabc\r\n0\r\n\r\n",
    ],
)
def test_odd_but_sound_requests_are_read_as_by_gevent(request_: bytes) -> None:
    """What the application sees of the fields is in the reply."""
    is_as_gevents(replies_what_it_sees, request_, talk=send_and_half_close)


@pytest.mark.parametrize("is_lean", [True, False])
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET\r\n\r\n", b"400 Bad Request"),
        (b"GET /\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/9.9\r\n\r\n", b"505 HTTP Version Not Supported"),
        (
            b"GET / HTTP/1.1\r\nA: " + LONG + b"xx\r\n\r\n",
            b"431 Request Header Fields Too Large",
        ),
        (
            b"GET / HTTP/1.1\r\n" + b"A: 1\r\n" * 101 + b"\r\n",
            b"431 Request Header Fields Too Large",
        ),
        (b"GET / HTTP/1.1\r\nno colon\r\nConnection: close\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nA: 1\r\n folded\r\n\r\n", b"400 Bad Request"),
        (b"GET / HTTP/1.1\r\nA: \xe4\x85\x0b\r\n\r\n", b"400 Bad Request"),
        (b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n", b"400 Bad Request"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400 Bad Request"),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnot hex\r\n",
            b"400 Bad Request",
        ),
    ],
)
def test_what_gevent_reads_in_its_own_way_is_refused(
    request_: bytes, status: bytes, is_lean: bool
) -> None:
    """One reply, which says that it is the last, one line in the logs, and no report."""
    kind = WSGIServer if is_lean else by_hooks()
    served = serve(kind, replies_what_it_sees, request_ + GET, talk=send_and_half_close)
    head, _, body = served.reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %b\r\n" % status)
    assert b"\r\nConnection: close" in head
    assert (body, served.errors) == (b"", [])
    lines = served.error_log.getvalue().splitlines()
    assert len(lines) == 1
    assert "Invalid request (from ('127.0.0.1'," in lines[0]


@pytest.mark.parametrize("is_lean", [True, False])
@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nshort",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsho",
    ],
)
def test_a_client_that_leaves_within_a_body_is_no_error(request_: bytes, is_lean: bool) -> None:
    """It gets no reply, and the error log is quiet. gevent reports an error of the program."""
    kind = WSGIServer if is_lean else by_hooks()
    served = serve(kind, replies_what_it_sees, request_, talk=send_and_half_close)
    assert (served.reply, served.error_log.getvalue(), served.errors) == (b"", "", [])


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


@pytest.mark.parametrize("is_lean", [True, False])
def test_a_send_that_fails_for_another_reason_is_one_line(
    is_lean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither the program's fault nor the client's: the log has it, with the address."""

    def sendall(_sock: Any, _data: Any) -> None:
        raise OSError(errno.ENOBUFS, "no room")

    monkeypatch.setattr(_Recording, "sendall", sendall)
    served = serve(WSGIServer if is_lean else by_hooks(), small, GET)
    assert (served.reply, served.errors) == (b"", [])
    (line,) = served.error_log.getvalue().splitlines()
    assert re.search(r"can't reply to \('127.0.0.1', \d+\): \[Errno 105\] no room$", line)


# -- talking in the middle ----------------------------------------------------------------------


def test_a_client_that_waits_gets_100_continue() -> None:
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
        results.append(served.outcome())
    assert results[0] == results[1]
    assert results[1][0].endswith(b"\r\n\r\nraw:framewritten")


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
    serving, context = server_context(), client_context()

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
def test_a_line_is_made_for_any_log(kind: Any) -> None:
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


def test_no_line_is_made_without_a_log() -> None:
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
        results.append(
            [re.sub(r" \[.*?\]|[0-9]+ [0-9.]+$", "", line.rstrip()) for line in logger.lines]
        )
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
    ours = serve(WSGIServer, small, PIPELINED).reply
    assert undated(reply) == undated(ours.replace(CLOSE, b""))
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
