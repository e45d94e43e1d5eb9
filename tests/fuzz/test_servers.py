"""Servers under malformed input and clients that vanish: a proper request is served properly.

Each example is a list of clients and the order in which their steps come, often several before
the server has a look. hypothesis finds them, and prints what fails; ``GLB_FUZZ_EXAMPLES`` is how
many there are of each kind.
"""

from __future__ import annotations

import io
import logging
import os
import re
import socket as native_socket
import struct
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from contextvars import ContextVar
from itertools import pairwise
from typing import Any, Final

import gevent
import gevent.hub
import gevent.local
import gevent.pywsgi
import pytest
from gevent import socket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import glb
from glb.accept.registry import REGISTRY
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from ..conftest import open_descriptors
from ..support.helpers import close_all, comes_true
from .mutants import mutate
from .pages import Planned

pytestmark = [
    pytest.mark.thorough,
    # Where an example fails that is large, this warning would be all that is shown of it.
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),
]

ANY = ("127.0.0.1", 0)
CLONES: Final = 3
# No hub is taken for a stalled one, however busy the machine: see test_server_hubs.
NEVER: Final = 30.0
EXAMPLE_SECONDS: Final = 10.0

RESET: Final = struct.pack("ii", 1, 0)


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=int(os.environ.get("GLB_FUZZ_EXAMPLES", examples)),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


# -- what is reported of errors -------------------------------------------------------------------


class Reports:
    """What gevent's hubs report, what is printed besides, and what glb logs.

    The errors themselves are not kept: they would keep sockets.
    """

    def __init__(self) -> None:
        #: By hubs.
        self.reported: list[tuple[type[BaseException], str]] = []
        #: By `traceback.print_exc`, which gevent's pywsgi calls for odd requests.
        self.printed: list[tuple[type[BaseException], str]] = []
        self.stderr = io.StringIO()
        self.logged: list[str] = []
        #: How many reports were of handlers' ends; the others are of requests.
        self.ended = 0

    def clear(self) -> None:
        self.reported.clear()
        self.printed.clear()
        self.logged.clear()
        self.stderr.seek(0)
        self.stderr.truncate()

    def check(self, *, expected: tuple[type[BaseException], ...]) -> None:
        """Nothing was reported but *expected* errors."""
        assert [each for each in self.reported if not issubclass(each[0], expected)] == []
        assert self.printed == []
        assert (self.stderr.getvalue(), self.logged) == ("", [])


def nameless(text: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\('127\.0\.0\.1', \d+\)|<.*?>: ", "", text)


@contextmanager
def listening_in() -> Iterator[Reports]:
    """Have what is reported in any thread."""
    told = Reports()

    def report(_hub: object, context: object, kind: Any, error: object, _tb: object) -> None:
        told.reported.append((kind, nameless(str(error))))
        told.ended += not isinstance(context, dict)  # then it is a request's environ

    def print_exc() -> None:
        kind, error, _ = sys.exc_info()
        assert kind is not None
        told.printed.append((kind, nameless(str(error))))

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.logged.append(record.getMessage())

    handler = Handler()
    logging.getLogger("glb").addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stderr(told.stderr):
            patch.setattr(gevent.hub.Hub, "print_exception", report)
            patch.setattr(traceback, "print_exc", print_exc)
            yield told
    finally:
        logging.getLogger("glb").removeHandler(handler)


# -- what is served -------------------------------------------------------------------------------

# Whose connection it is: nothing of one may be seen by the next.
MARK: ContextVar[object] = ContextVar("mark")
LOCAL = gevent.local.local()


# libuv has each until it is closed, and doesn't notice that its memory was freed.
LATE: list[tuple[Any, gevent.Timeout]] = []


def close_those_that_came() -> None:
    hub: Any = gevent.get_hub()
    for late in [*LATE]:
        if late[0] is hub and not late[1].pending:
            LATE.remove(late)
            late[1].close()


def check_mark(mark: object, *, is_local: bool) -> None:
    """Leave *mark* for the next connection to find, which it mustn't."""
    assert MARK.get(mark) == mark
    MARK.set(mark)
    if is_local:
        assert LOCAL.__dict__.setdefault("mark", mark) == mark


def application(environ: dict[str, Any], start_response: Any) -> Any:
    """Reply what was asked, and by which clone, if that is asked."""
    path, body = environ["PATH_INFO"], environ["wsgi.input"]
    check_mark(environ["REMOTE_PORT"], is_local="local" in path)
    if path.startswith("/raise"):
        raise Planned(path)
    if path.startswith("/clone"):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d %b" % (environ["glb.clone"], path.encode() + body.read())]
    if path.startswith("/some"):
        read: object = body.read(3)
    elif path.startswith("/none"):
        read = None
    elif path.startswith("/line"):
        read = [body.readline(), *body]
    else:
        read = body.read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    seen = {
        name: value
        for name, value in environ.items()
        if name.startswith(("HTTP_", "CONTENT_", "PATH", "QUERY", "REQUEST_METHOD", "SERVER_PROT"))
    }
    told = repr((sorted(seen.items()), read)).encode()
    return iter([told[:9], b"", told[9:]]) if path.startswith("/parts") else [told]


def by_line(sock: Any, peer: Any) -> None:
    """Send each line back, with the clone's index before it; some lines ask for trouble."""
    check_mark(peer, is_local=False)
    rest = b""
    while data := sock.recv(50):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line == b"raise":
                raise Planned
            if line == b"exit":
                raise gevent.GreenletExit
            if line == b"close":
                sock.close()
                return
            if line == b"shut":
                sock.shutdown(socket.SHUT_RDWR)
            if line == b"local":
                check_mark(peer, is_local=True)
            if line == b"late":
                # Comes when this handler is done, perhaps, and must hit no other.
                close_those_that_came()
                LATE.append((gevent.get_hub(), gevent.Timeout.start_new(0.002, Planned)))
            if line == b"kill":
                gevent.spawn(gevent.kill, gevent.getcurrent())
                if not rest:
                    return
            clone = glb.current_clone()
            assert clone is not None
            sock.sendall(b"%d %b\n" % (clone, line))


# -- clients --------------------------------------------------------------------------------------


class Client:
    """A connection that is made step by step, and without a switch."""

    def __init__(self, address: Any, parts: list[bytes], end: str) -> None:
        self._address = address
        self._parts = parts
        self._end = end
        self._sock: Any = None
        #: Which of the server's connections it is.
        self.ordinal = -1

    def steps(self) -> list[Callable[[], None]]:
        sends = [lambda part=part: self._send(part) for part in self._parts]
        return [*sends, self._finish]

    def connect(self, ordinal: int) -> None:
        self.ordinal = ordinal
        plain = native_socket.create_connection(self._address, 10)
        self._sock = socket.socket(plain.family, plain.type, plain.proto, plain.detach())
        self._sock.settimeout(10)

    def _send(self, part: bytes) -> None:
        try:
            self._sock.sendall(part)
        except ConnectionError:
            pass  # the server has seen enough

    def _finish(self) -> None:
        if self._end == "reset":
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._sock.close()
        elif self._end == "close":
            self._sock.close()
        elif self._end == "half":
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the server has closed it

    def receive(self) -> bytes:
        """Return all that comes, until the server closes or resets."""
        parts = []
        try:
            while data := self._sock.recv(65536):
                parts.append(data)
        except ConnectionError:
            pass  # it had not read all; what it has sent before has arrived
        return b"".join(parts)

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()


class Good(Client):
    """Asks as one should, and looks at the reply."""

    def __init__(self, address: Any, asked: Request, places: list[int], *, is_http: bool) -> None:
        data, self._expected = asked
        super().__init__(address, cut(data, places), "half")
        self._is_http = is_http

    def check(self) -> None:
        reply = self.receive()
        clone = self.ordinal % CLONES
        if self._is_http:
            head, _, body = reply.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert body == b"%d %b" % (clone, self._expected)
        else:
            assert reply == b"".join(
                b"%d %b\n" % (clone, line) for line in self._expected.splitlines()
            )


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Return *data* in parts; places are permille."""
    borders = sorted({len(data) * place // 1000 for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(borders)]


# -- what is drawn --------------------------------------------------------------------------------

PLACES_OF_CUTS = st.lists(st.integers(0, 1000), max_size=3)
_ends = st.sampled_from(["reset", "close", "half", "stay"])

_methods = st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"get", b"", b"G\0T"])
_paths = st.sampled_from(
    [
        *(b"/", b"/some", b"/none", b"/line", b"/raise", b"/parts", b"/local", b"*", b""),
        *(b"//x?y=z#f", b"http://h/a", b"/%00%zz%e4", b"/\xe4\xff", b"/a b"),
        *(b"x" * 9000, b"/" + b"y" * 8100),
    ]
)
_versions = st.sampled_from(
    [b"HTTP/1.1"] * 6
    + [b"HTTP/1.0", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1", b"HTTP/1.x", b"HTTP/1.-1"]
    + [b"http/1.1", b"HTTP/1.1.1", b"HTTP/\xb2.1", b"", b"FTP/1.1", b"HTTP/1.99999999999999999999"]
)
_start_lines = st.one_of(
    st.tuples(_methods, _paths, _versions).map(b" ".join),
    st.sampled_from([b"", b"GET /", b"POST /", b" ", b"\0", b"GET  /  HTTP/1.1", b"\x16\x03\x01"]),
    st.binary(max_size=20),
)
_lengths = st.sampled_from(
    [
        *(b"0", b"3", b"5", b"11", b"-1", b"+5", b" 5 ", b"5, 5", b"0x5", b"1_0", b"", b"many"),
        *(b"5.0", b"\xb2", b"-" + b"0" * 9, b"1000000"),
        *(b"9" * 18, b"9" * 30, b"9" * 5000),
    ]
)
_header_lines = st.one_of(
    _lengths.map(b"Content-Length: ".__add__),
    st.sampled_from(
        [
            b"Host: x",
            b"Connection: close",
            b"Connection: keep-alive",
            b"Connection: Upgrade, close",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: Chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: identity",
            b"Transfer-Encoding : chunked",
            b"Expect: 100-continue",
            b"Upgrade: websocket",
            b"Connection: upgrade\r\nUpgrade: websocket",
            b"Content-Type: multipart/form-data; boundary=x",
            b"A_B: 1",
            b"A-B: 2",
            b"Proxy: evil",
            b" folded",
            b"no colon",
            b": no name",
            b"N\0L: n\0l",
            b"A: lone\rCR",
            b"\xc3\xa4: \xff",
            b"From me",
            b"A: " + b"a" * 65600,
            b"\r\n".join([b"A: 1"] * 101),
        ]
    ),
)
_bodies = st.one_of(
    st.sampled_from(
        [
            b"",
            b"hello",
            b"hello world",
            b"a\nb\r\nc",
            b"5\r\nhello\r\n0\r\n\r\n",
            b"5;x=y\r\nhello\r\n0\r\nTrailer: 1\r\n\r\n",
            b"5\nhello\n0\n\n",
            b"5\r\nhello",
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"-5\r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"g\r\nhello\r\n0\r\n\r\n",
            b"\r\n5\r\nhello\r\n",
            b"f" * 40 + b"\r\nhello\r\n0\r\n\r\n",
            b"7" * 16 + b"\r\nhello\r\n0\r\n\r\n",
            b"f" * 16 + b"\r\nhello\r\n0\r\n\r\n",
            b"5;" + b"x" * 9000 + b"\r\nhello\r\n0\r\n\r\n",
            b"0\r\nBad Trailer\0: 1\r\n\r\n",
            b"0\r\nT: " + b"x" * 9000 + b"\r\n\r\n",
            b"1\r\na\r\n" * 50 + b"0\r\n\r\n",
        ]
    ),
    st.binary(max_size=30),
)


_sound_lines = st.builds(
    lambda method, path: b"%b %b HTTP/1.1" % (method, path),
    st.sampled_from([b"GET", b"POST", b"HEAD"]),
    st.sampled_from([b"/", b"/some", b"/none", b"/line", b"/raise", b"/parts", b"/local"]),
)


@st.composite
def messages(draw: Any) -> bytes:
    """What has the shape of a request, more or less."""
    end: bytes = draw(st.sampled_from([b"\r\n"] * 5 + [b"\n", b"\r"]))
    lines = [draw(st.one_of(_start_lines, _sound_lines, _sound_lines))]
    lines += draw(st.lists(_header_lines, max_size=4))
    lines += draw(
        st.sampled_from([[], [], [b"Content-Length: 11"], [b"Transfer-Encoding: chunked"]])
    )
    body: bytes = draw(_bodies)
    return end.join([*lines, b"", b""]) + body


@st.composite
def malformed(draw: Any) -> bytes:
    """One message, or several in a row; perhaps not all of it, or changed."""
    data = b"".join(draw(st.lists(messages(), min_size=1, max_size=3)))
    return data if draw(st.booleans()) else mutate(data, draw(st.randoms()))


_lines = st.lists(
    st.one_of(
        st.sampled_from([b"raise", b"exit", b"close", b"shut", b"local", b"late", b"kill"]),
        st.binary(max_size=60),
    ),
    max_size=4,
).map(b"\n".join)

_tokens = st.text("abc/.", max_size=5).map(lambda text: b"/clone" + text.encode())


Request = tuple[bytes, bytes]  # and what is to come back


def _get(path: bytes) -> Request:
    return b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path, path


def _post(path: bytes) -> Request:
    head = b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (path, len(path))
    return head + path, path * 2


_good_requests = st.builds(lambda make, path: make(path), st.sampled_from([_get, _post]), _tokens)
_good_lines = st.lists(
    st.sampled_from([b"one", b"another", b"x" * 70]), min_size=1, max_size=3
).map(lambda lines: (b"\n".join([*lines, b""]),) * 2)

#: What a client asks, with what is to come back if it asks properly; the cuts; its end.
Drawn = tuple[Request | bytes, list[int], str]
#: The clients; then which is to make a step, and whether the server has a turn after it.
Play = tuple[list[Drawn], list[tuple[int, bool]]]


def plays(good: Any, bad: Any) -> st.SearchStrategy[Play]:
    asks = st.one_of(good, bad, bad)
    clients = st.lists(st.tuples(asks, PLACES_OF_CUTS, _ends), min_size=1, max_size=8)
    return st.tuples(clients, st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=40))


# -- the play -------------------------------------------------------------------------------------


class Stage:
    """A server, and what is known of it."""

    def __init__(self, server: Any, told: Reports, *, is_http: bool, is_bounded: bool) -> None:
        self.server = server
        self.told = told
        self.is_http = is_http
        #: Whether a client that stays may keep others from being served.
        self.is_bounded = is_bounded
        #: How many connections were made.
        self.connections = 0
        #: Handlers that ended by `gevent.GreenletExit`, which isn't reported.
        self.exits = 0

    def begin(self) -> None:
        """Take up what is so: the last example may have failed."""
        stats = self.server.clone_stats()
        self.connections = sum(each.accepted for each in stats)
        self.told.ended = sum(each.failed for each in stats)
        self.exits = 0
        self.told.clear()

    def cast(self, drawn: list[Drawn]) -> list[Client]:
        clients: list[Client] = []
        for asked, places, end in drawn:
            if isinstance(asked, bytes):
                clients.append(Client(self.server.address, cut(asked, places), end))
            else:
                clients.append(Good(self.server.address, asked, places, is_http=self.is_http))
        return clients

    def connect(self, client: Client) -> None:
        client.connect(self.connections)
        self.connections += 1

    def steps_of(self, client: Client) -> list[Callable[[], None]]:
        return [lambda: self.connect(client), *client.steps()]

    def play(self, drawn: Play, clients: list[Client], *, to_the_end: bool) -> None:
        """Let *clients* make their steps in the order that was drawn, and perhaps the rest."""
        steps = [self.steps_of(client) for client in clients]
        if not self.is_bounded:
            for client, theirs in zip(clients, steps, strict=True):
                theirs.extend([client.check] if isinstance(client, Good) else [])
        for which, has_turn in drawn[1]:
            theirs = steps[which % len(steps)]
            if theirs:
                theirs.pop(0)()
            if has_turn:
                gevent.sleep(0)
        for theirs in steps if to_the_end else ():
            for step in theirs:
                step()

    def run(self, drawn: Play, expected: tuple[type[BaseException], ...]) -> None:
        """Play it, and look whether all is as before."""
        self.begin()
        before = open_descriptors()
        clients = self.cast(drawn[0])
        with gevent.Timeout(EXAMPLE_SECONDS, RuntimeError("the example hangs")):
            try:
                self.play(drawn, clients, to_the_end=True)
                if self.is_bounded:
                    close_all(client for client in clients if not isinstance(client, Good))
                    for client in clients:
                        if isinstance(client, Good):
                            client.check()
            finally:
                close_all(clients)
            self.check(before)
        self.told.check(expected=expected)

    def check(self, before: dict[int, str]) -> None:
        """Nothing is left of any client, the counts add up, and it serves on."""
        comes_true(lambda: self.is_quiet() and open_descriptors() == before)
        stats = self.server.clone_stats()
        assert open_descriptors() == before
        assert self.is_quiet(), (self.connections, self.told.ended, self.exits, stats)
        # Exact turns, whatever came of each.
        assert [each.accepted for each in stats] == [
            len(range(index, self.connections, CLONES)) for index in range(CLONES)
        ]
        (entry,) = glb.registry.entries()
        assert (entry.clones, entry.ready, entry.accepted) == (CLONES, CLONES, self.connections)
        REGISTRY.check()

    def is_quiet(self) -> bool:
        stats = self.server.clone_stats()
        return (
            sum(each.accepted for each in stats) == self.connections
            and all(each.accepted == each.completed + each.failed for each in stats)
            and all(each.active == 0 and each.ready for each in stats)
            and sum(each.failed for each in stats) == self.told.ended + self.exits
        )


# Requests of any shape are no errors of the program.
HTTP_ERRORS: Final = (Planned,)
LINE_ERRORS: Final = (Planned, OSError)

PLACES: Final[dict[str, dict[str, Any]]] = {
    "one hub": {},
    "two hubs": {"hubs": 2},
    "bounded": {"spawn": 2},
    "bounded, two hubs": {"spawn": 2, "hubs": 2},
    "fresh greenlets": {"spawn": gevent.spawn},
}


@contextmanager
def wsgi_stage(**arguments: Any) -> Iterator[Stage]:
    log = io.StringIO()
    with listening_in() as told:
        server = WSGIServer(
            ANY, application, log=log, error_log=log, clones=CLONES, patience=NEVER, **arguments
        )
        with server:
            server.start()
            yield Stage(server, told, is_http=True, is_bounded="spawn" in arguments)


@contextmanager
def stream_stage(**arguments: Any) -> Iterator[Stage]:
    def handle(sock: Any, peer: Any) -> None:
        try:
            by_line(sock, peer)
        except gevent.GreenletExit:
            stage.exits += 1
            raise

    with listening_in() as told:
        server = StreamServer(ANY, handle, clones=CLONES, patience=NEVER, **arguments)
        stage = Stage(server, told, is_http=False, is_bounded="spawn" in arguments)
        with server:
            server.start()
            yield stage


@pytest.mark.parametrize("places", PLACES)
def test_good_requests_are_served_among_malformed_ones(places: str) -> None:
    """Each gets its reply, by the clone whose turn it is, and nothing is left of the others."""
    with wsgi_stage(**PLACES[places]) as stage:

        @fuzz(25)
        @given(plays(_good_requests, malformed()))
        def run(play: Play) -> None:
            stage.run(play, HTTP_ERRORS)

        run()


@pytest.mark.parametrize("places", PLACES)
def test_good_lines_are_served_among_clients_that_vanish(places: str) -> None:
    """Whatever becomes of a handler is its own end, and is counted and reported once."""
    with stream_stage(**PLACES[places]) as stage:

        @fuzz(25)
        @given(plays(_good_lines, _lines))
        def run(play: Play) -> None:
            stage.run(play, LINE_ERRORS)

        run()


# -- the end in the middle ------------------------------------------------------------------------


@pytest.mark.parametrize("places", ["one hub", "bounded", "two hubs", "bounded, two hubs"])
def test_a_server_that_is_stopped_among_its_clients_leaves_nothing(places: str) -> None:
    """Neither a descriptor nor a handler, however many are connected; and it starts again."""

    @fuzz(8)
    @given(plays(_good_lines, _lines))
    def run(play: Play) -> None:
        before = open_descriptors()
        with stream_stage(**PLACES[places]) as stage:
            stage.is_bounded = True
            server, clients = stage.server, stage.cast(play[0])
            with gevent.Timeout(EXAMPLE_SECONDS, RuntimeError("the example hangs")):
                try:
                    stage.play(play, clients, to_the_end=False)
                    server.stop(0)
                    assert glb.registry.entries() == []
                    # As gevent's, it waits for handlers that are in a pool; and for all, if
                    # there are several hubs.
                    if places != "one hub":
                        assert all(each.active == 0 for each in server.clone_stats())
                finally:
                    close_all(clients)
                assert comes_true(lambda: open_descriptors() == before)
                assert all(
                    each.accepted == each.completed + each.failed for each in server.clone_stats()
                )
                server.start()
                stage.begin()
                good = stage.cast([((b"one\n", b"one\n"), [], "half") for _ in range(CLONES)])
                stage.connections = 0
                stage.play(([], []), good, to_the_end=True)
                for each in good:
                    assert isinstance(each, Good)
                    each.check()
                    each.close()
        assert open_descriptors() == before
        stage.told.check(expected=LINE_ERRORS)

    run()
