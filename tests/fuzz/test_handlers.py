"""Both loops of the HTTP handler, and gevent's handler, are asked the same.

Each example is a connection: its pieces are served by one handler, and then by the other. Both
must call the application with the same, and reply, log and report the same. A campaign of a
million mutated requests is

    GLB_FUZZ_EXAMPLES=50000 python -m pytest tests/fuzz/test_handlers.py -k mutants
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import gevent
import gevent.pywsgi
import pytest
from gevent import socket
from hypothesis import given, note
from hypothesis import strategies as st

from glb.net.connection import Connection, PlainSocket
from glb.pywsgi import WSGIHandler, WSGIServer

from ..http.test_handler import parse_replies
from ..support.helpers import receive_all
from .mutants import make, mutate
from .pages import ByHooks, plain, recorded
from .test_servers import (
    ANY,
    EXAMPLE_SECONDS,
    HTTP_ERRORS,
    PLACES_OF_CUTS,
    Reports,
    application,
    cut,
    fuzz,
    listening_in,
    malformed,
    nameless,
)

pytestmark = [
    pytest.mark.thorough,
    # Where an example fails that is large, this warning would be all that is shown of it.
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),
]

#: So many are an example of mutants: hypothesis needs as long for an example as they do for one.
CONNECTIONS: Final = 8

# Of several faults in one head, which is found first depends on how it came, as does how much of
# the head there is.
_REFUSED: Final = re.compile(
    rb"HTTP/1\.1 (?:400|414|431|505) [A-Z][A-Za-z ]*\r\nConnection: close\r\n"
    rb"Content-length: 0\r\n\r\n\Z"
)
_REFUSED_IN_LOG: Final = re.compile(
    r"Invalid request \(from \):.*|\".*\" (?:400|414|431|505) \d+(?=\n\Z)"
)


@dataclass
class Found:
    """What a handler made of a connection. What differs each time is left out."""

    reply: bytes
    log: str
    seen: list[dict[str, Any]] = field(default_factory=list)  # by the application
    reported: list[Any] = field(default_factory=list)
    printed: list[Any] = field(default_factory=list)


class Server:
    """One that was not started: its handlers are called directly."""

    def __init__(
        self,
        told: Reports,
        application: Any,
        handler_class: Any,
        server_class: Any = WSGIServer,
    ) -> None:
        self._told: Final = told
        self._handler_class: Final = handler_class
        self._seen: Final[list[dict[str, Any]]] = []
        self._lines: Final[list[str]] = []
        self._server: Final = server_class(
            ANY,
            recorded(application, self._seen.append),
            log=self,
            error_log=self,
            environ={"SERVER_NAME": "a", "SERVER_PORT": "80"},
        )

    def write(self, line: str) -> None:
        """Log a *line*."""
        self._lines.append(line)

    def serve(self, pieces: list[bytes]) -> Found:
        """Serve a connection on which *pieces* come, and then its end."""
        for some in (self._told, self._seen, self._lines):
            some.clear()
        near, far = socket.socketpair()
        sock: Any = far
        if issubclass(self._handler_class, WSGIHandler):
            sock = Connection.on(PlainSocket(far.family, far.type, far.proto, far.detach()))
        with near, gevent.Timeout(EXAMPLE_SECONDS, RuntimeError("the example hangs")):
            handling = gevent.spawn(self._handle, sock)
            reading = gevent.spawn(receive_all, near)
            for piece in pieces:
                with suppress(ConnectionError):  # it takes no more
                    near.sendall(piece)
                # Until the handler waits for more: what it has read by then is no chance.
                gevent.idle()
            with suppress(OSError):
                near.shutdown(socket.SHUT_WR)
            handling.get()
            reply = re.sub(rb"\r\nDate: [^\r]*GMT", b"", reading.get())
        log = re.sub(r"\[\d+-\d\d-\d\d [^]]*\]| [\d.]+$", "", "".join(self._lines), flags=re.M)
        told = self._told
        return Found(reply, nameless(log), [*self._seen], [*told.reported], [*told.printed])

    def _handle(self, sock: Any) -> None:
        try:
            self._handler_class(sock, ("127.0.0.1", 1), self._server).handle()
        finally:
            sock.close()


def check_step(found: Found) -> None:
    """Assert that each request has a whole reply; a refusal may follow, or the last is cut."""
    methods = [call["REQUEST_METHOD"].encode("latin-1") for call in found.seen]
    # If the client has left in the body, nothing is behind the word that it may send that.
    reply = found.reply.removesuffix(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        rest = parse_replies(reply, methods)
    except (AssertionError, ValueError):
        # The last one's body was not what it should be: it is refused, or has left.
        rest = parse_replies(reply, methods[:-1])
        if found.seen[-1]["PATH_INFO"].startswith("/short/"):
            assert len(re.findall(rb"HTTP/1\.1 [2-5]", b"".join(rest))) <= 1
            return
    for refusal in rest:
        head, end, body = refusal.partition(b"\r\n\r\n")
        assert end
        assert body in {b"", b"Internal Server Error"}
        assert re.match(rb"HTTP/1\.1 [45]", head)
        assert b"\r\nConnection: close" in head


def compare(told: Reports, application: Any) -> Callable[[list[bytes]], None]:
    """Return what has both loops serve pieces, and asserts that they do it alike and in step."""
    servers = [Server(told, application, each) for each in (WSGIHandler, ByHooks)]

    def run(pieces: list[bytes]) -> None:
        found = []
        for server in servers:
            found.append(server.serve(pieces))
            told.check(expected=HTTP_ERRORS)
            check_step(found[-1])
        lean, hooks = (
            replace(
                each,
                reply=_REFUSED.sub(b"refused", each.reply),
                log=_REFUSED_IN_LOG.sub("refused", each.log),
            )
            for each in found
        )
        assert lean == hooks

    return run


def test_both_loops_answer_malformed_requests_alike() -> None:
    """The lean one and the one by hooks: the same bytes, lines and reports, and no tracebacks."""
    with listening_in() as told:
        run = compare(told, application)
        pieces = st.builds(cut, malformed(), PLACES_OF_CUTS)
        fuzz(150)(given(pieces)(run))()


def connections(seed: int) -> list[list[bytes]]:
    dice = random.Random(seed)
    return [make(dice) for _ in range(CONNECTIONS)]


def test_both_loops_read_mutants_alike() -> None:
    """Sound requests of all kinds, and such that were tampered with, one behind the other."""
    with listening_in() as told:
        run = compare(told, plain)

        @fuzz(100)
        @given(st.builds(connections, st.integers(0, 2**64 - 1)))
        def run_all(some: list[list[bytes]]) -> None:
            for pieces in some:
                note(f"pieces = {pieces}")
                run(pieces)

        run_all()


class Other(ByHooks):
    """Serves another page."""

    def get_environ(self) -> dict[str, Any]:
        return {**super().get_environ(), "PATH_INFO": "/ignore"}


def test_what_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the application saw, what was replied, and a reply too many or too few."""
    with listening_in() as told:
        run = compare(told, plain)
        get = b"GET /echo/a HTTP/1.1\r\nHost: a\r\n\r\n"
        run([get, get])
        found = Server(told, plain, WSGIHandler).serve([get, get])
        assert len(found.seen) == 2
        for reply in (found.reply * 2, b"", found.reply + b"x", found.reply[20:]):
            with pytest.raises((AssertionError, ValueError)):
                check_step(replace(found, reply=reply))
        monkeypatch.setitem(globals(), "ByHooks", Other)
        with pytest.raises(AssertionError):
            compare(told, plain)([get])


def test_a_seed_makes_the_same_again() -> None:
    """What was found can be looked at; and mutants differ from what they were."""
    assert connections(5) == connections(5)
    dice = random.Random(5)
    assert any(mutate(b"GET / HTTP/1.1\r\n\r\n", dice)[:3] != b"GET" for _ in range(20))


# -- beside gevent ---------------------------------------------------------------------------------

_sound_headers = st.sampled_from(
    [
        *(b"Host: x", b"A_B: 1", b"A-B: 2", b"A-B:3 \t", b"Cookie: a=1", b"Cookie: b=2"),
        *(
            b"Content-Type: multipart/form-data; boundary=x",
            b"A: \xe4\xff",
            b"Expect: 100-continue",
        ),
        *(b"B: " + b"b" * 9000, b"Upgrade-Insecure-Requests: 1"),
    ]
)


@st.composite
def sound(draw: Any) -> bytes:
    """Requests that gevent reads as they are meant."""
    data = b""
    for _ in range(draw(st.integers(1, 3))):
        method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE"]))
        path = draw(
            st.sampled_from(
                [b"/", b"/some", b"/none", b"/line", b"/raise", b"/parts", b"/%e4?x=%2f"]
            )
        )
        lines = [b"%b %b HTTP/1.1" % (method, path)]
        lines += draw(st.lists(_sound_headers, max_size=4, unique=True))
        if path in {b"/some", b"/none"}:
            # Ours closes then: the client may leave out the body, and gevent would wait for it.
            lines = [line for line in lines if not line.startswith(b"Expect:")]
        body = draw(st.sampled_from([b"", b"hello", b"a\nb\r\nc", b"x" * 9000]))
        framing = draw(st.sampled_from(["length", "chunked", "none"]))
        if framing == "chunked" and path in {b"/some", b"/none"}:
            framing = "length"  # the connection ends if the end of such a body has not come
        if framing == "length":
            lines.append(b"Content-Length: %d" % len(body))
        elif framing == "chunked":
            lines.append(b"Transfer-Encoding: chunked")
            size = max(draw(st.integers(1, 9000)), len(body) // 20)  # gevent's reader is slow
            chunks = [body[at : at + size] for at in range(0, len(body), size)]
            body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks)
            body += b"0\r\n\r\n"
        else:
            body = b""
        data += b"\r\n".join([*lines, b"", b""]) + body
    return data


def test_sound_requests_are_answered_as_by_gevent() -> None:
    """The same bytes and log, but that the last reply of a connection says so."""
    with listening_in() as told:
        servers = [
            Server(told, application, gevent.pywsgi.WSGIHandler, gevent.pywsgi.WSGIServer),
            Server(told, application, WSGIHandler),
        ]

        @fuzz(100)
        @given(st.builds(cut, sound(), PLACES_OF_CUTS))
        def run(pieces: list[bytes]) -> None:
            expected, ours = (
                replace(
                    found,
                    reply=found.reply.replace(b"Connection: close\r\n", b""),
                    log=re.sub(r" \d+$", "", found.log, flags=re.MULTILINE),
                )
                for found in (server.serve(pieces) for server in servers)
            )
            assert ours == expected

        run()
