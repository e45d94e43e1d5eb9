"""The socket as a file to read from, and files that go out whole."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import itertools
import os
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from hypothesis import given, settings
from hypothesis import strategies as st

from glb.http.body import BodyError
from glb.http.stream import SEND_FILE_BYTES, FileWrapper, RawStream, send_file
from glb.pywsgi import WSGIHandler, WSGIServer

from ..support.examples import examples
from ..support.helpers import ask, receive_all
from .test_environ import needs_certificates, tls_pair


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        theirs.settimeout(10)
        yield ours, theirs


# -- the raw stream -----------------------------------------------------------------------------


def test_what_was_read_before_comes_first(pair: tuple[Any, Any]) -> None:
    """In as many parts as it takes, and nothing is received meanwhile."""
    ours, theirs = pair
    theirs.sendall(b"more")
    raw = RawStream(ours, b"rest")
    assert [raw.read(3), raw.read(3), raw.read(3), raw.read(3)] == [b"res", b"t", b"mor", b"e"]
    theirs.close()
    assert raw.read(3) == b""


def test_a_stream_is_a_file_for_a_buffered_reader(pair: tuple[Any, Any]) -> None:
    """It has the descriptor, and doesn't own the socket."""
    ours, theirs = pair
    raw = RawStream(ours, b"a\n")
    assert raw.readable()
    assert not raw.writable()
    assert not raw.seekable()
    assert raw.fileno() == ours.fileno()
    with io.BufferedReader(raw) as reader:
        theirs.sendall(b"b\nc")
        assert [reader.readline(), reader.readline(), reader.read(1)] == [b"a\n", b"b\n", b"c"]
    assert raw.closed
    theirs.sendall(b"d")
    assert ours.recv(1) == b"d"


def test_a_touch_is_a_read(pair: tuple[Any, Any]) -> None:
    """And to count what is buffered is none."""
    ours, _ = pair
    raw = RawStream(ours, b"rest")
    with io.BufferedReader(raw) as reader:
        told = [(len(raw.peek_buffered(reader)), raw.is_touched)]
        assert reader.read(1) == b"r"
        told += [(3, raw.is_touched), (len(raw.peek_buffered(reader)), raw.is_touched)]
    assert told == [(4, False), (3, True), (3, True)]


def test_to_count_what_is_buffered_receives_nothing(pair: tuple[Any, Any]) -> None:
    """Not even what has come; and it can be read after that."""
    ours, theirs = pair
    theirs.sendall(b"come")
    raw = RawStream(ours)
    with io.BufferedReader(raw) as reader:
        for _ in range(2):
            assert len(raw.peek_buffered(reader)) == 0
        assert reader.read(2) == b"co"
        assert len(raw.peek_buffered(reader)) == 2
        assert reader.read(2) == b"me"
        assert len(raw.peek_buffered(reader)) == 0
        theirs.close()
        assert reader.read(1) == b""


def test_what_is_behind_a_body_is_taken(pair: tuple[Any, Any]) -> None:
    """From the buffer and from before it, and nothing is received for it."""
    ours, theirs = pair
    theirs.sendall(b"later")
    rest = b"x" * 20000  # more than the buffer holds
    raw = RawStream(ours, b"body" + rest)
    with io.BufferedReader(raw) as reader:
        assert reader.read(4) == b"body"
        assert raw.take_rest(reader) == rest
    assert ours.recv(5) == b"later"
    with io.BufferedReader(RawStream(ours)) as reader:
        assert reader.raw.take_rest(reader) == b""


class Pieces:
    """A socket from which bytes come in pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def recv_into(self, buffer: Any) -> int:
        if not self.pieces:
            return 0
        data = self.pieces[0][: len(buffer)]
        self.pieces[0] = self.pieces[0][len(buffer) :]
        if not self.pieces[0]:
            del self.pieces[0]
        buffer[: len(data)] = data
        return len(data)


@given(
    size=st.integers(0, 60),
    rest=st.integers(0, 30),
    places=st.lists(st.integers(0, 60), max_size=5),
    buffer=st.sampled_from([1, 4, 16, 8192]),
    reads=st.lists(st.integers(0, 20), max_size=6),
)
@settings(max_examples=examples(300), deadline=None)
def test_no_byte_is_lost(
    size: int, rest: int, places: list[int], buffer: int, reads: list[int]
) -> None:
    """What is read, what is taken, and what is still in the socket is all that came."""
    data = bytes(range(size))
    rest = min(rest, size)
    edges = [rest, *sorted(min(max(place, rest), size) for place in places), size]
    sock = Pieces([data[low:high] for low, high in itertools.pairwise(edges) if high > low])
    raw = RawStream(sock, data[:rest])
    with io.BufferedReader(raw, buffer) as reader:
        read = b""
        for count in reads:
            read += reader.read1(count)
            known = len(raw.peek_buffered(reader))
        taken = raw.take_rest(reader)
    assert read + taken + b"".join(sock.pieces) == data
    if reads:
        assert len(taken) == known


def test_a_silent_client_is_refused(pair: tuple[Any, Any]) -> None:
    """After the stream's time, whatever the socket's is, which stays as it was."""
    ours, theirs = pair
    for timeout in (None, 0.0, 10.0):
        ours.settimeout(timeout)
        raw = RawStream(ours)
        raw.timeout = 0.005
        with pytest.raises(BodyError, match=r"silent for 0\.005 s") as caught:
            raw.read(1)
        assert caught.value.status == "408 Request Timeout"
        assert ours.gettimeout() == timeout
        theirs.sendall(b"x")
        assert raw.read(1) == b"x"
        assert ours.gettimeout() == timeout


def test_without_a_time_the_sockets_own_counts(pair: tuple[Any, Any]) -> None:
    """And its error is the program's."""
    ours, _ = pair
    ours.settimeout(0.005)
    with pytest.raises(TimeoutError):
        RawStream(ours).read(1)


@needs_certificates
def test_a_silent_client_with_tls_is_refused() -> None:
    """TLS has errors of its own."""
    with tls_pair(ssl.CERT_NONE, has_certificate=False) as (server, client):
        raw = RawStream(server)
        raw.timeout = 0.005
        with pytest.raises(BodyError) as caught:
            raw.read(1)
        assert caught.value.status == "408 Request Timeout"
        client.sendall(b"x")
        assert raw.read(1) == b"x"


# -- files --------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(CONTENT)
    return found


def test_a_file_is_read_in_blocks(path: Path) -> None:
    """From where it is, and closed with the reply."""
    for size in (1, 1000, len(CONTENT), len(CONTENT) + 1):
        with path.open("rb") as file:
            file.seek(5)
            wrapper = FileWrapper(file, size)
            blocks = [*wrapper]
            assert b"".join(blocks) == CONTENT[5:]
            assert {len(block) for block in blocks[:-1]} <= {size}
            wrapper.close()
            assert file.closed


def test_what_can_not_be_closed_has_no_close() -> None:
    """PEP 3333: `close` is there if the file has it."""

    class Readable:
        def read(self, size: int) -> bytes:
            return b""

    assert not hasattr(FileWrapper(Readable()), "close")
    assert [*FileWrapper(Readable())] == []


def test_the_kernel_can_send_a_regular_file(path: Path) -> None:
    """From where it is, however it is buffered."""
    for mode, buffering in (("rb", -1), ("rb", 0), ("r+b", -1)):
        with path.open(mode, buffering) as file:
            assert FileWrapper(file).size() == len(CONTENT)
            file.read(1000)
            assert FileWrapper(file).size() == len(CONTENT) - 1000
    with tempfile.TemporaryFile() as temporary:
        temporary.write(CONTENT)
        temporary.seek(1)
        assert FileWrapper(temporary).size() == len(CONTENT) - 1


OTHERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: io.TextIOWrapper(_at(path, 0)),
    "in memory": lambda path: io.BytesIO(path.read_bytes()),
    "at its end": lambda path: _at(path, len(CONTENT)),
    "behind its end": lambda path: _at(path, len(CONTENT) + 1),
    "a device": lambda _: _at(Path("/dev/null"), 0),
    "compressed": lambda path: _compressed(path, gzip.open),
    "compressed otherwise": lambda path: _compressed(path, bz2.open),
    "compressed, buffered": lambda path: io.BufferedReader(_compressed(path, gzip.open)),
    "of another class": lambda path: Capitals(path),  # noqa: PLW0108  # it is below
}


def _at(path: Path, place: int) -> Any:
    file = io.BufferedReader(io.FileIO(path))
    file.seek(place)
    return file


def _compressed(path: Path, opened: Any) -> Any:
    with opened(path.with_suffix(".z"), "wb") as file:
        file.write(CONTENT)
    return opened(path.with_suffix(".z"), "rb")


class Capitals(io.FileIO):
    def read(self, size: int | None = -1) -> bytes:
        return (super().read(size) or b"").upper()


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_read(path: Path, kind: str) -> None:
    """The bytes behind their descriptor aren't those that they give, or there is none."""
    with OTHERS[kind](path) as file:
        assert FileWrapper(file).size() is None
    assert FileWrapper(file).size() is None  # nor when it is closed


def test_a_pipe_is_read() -> None:
    """It has no size."""
    reading, writing = os.pipe()
    os.close(writing)
    with open(reading, "rb") as file:
        assert FileWrapper(file).size() is None


def test_a_closed_file_is_no_file(path: Path) -> None:
    """It is an error of the application's, where it is read."""
    with path.open("rb") as file:
        pass
    assert FileWrapper(file).size() is None
    with pytest.raises(ValueError, match="closed"):
        next(iter(FileWrapper(file)))


# -- sendfile -----------------------------------------------------------------------------------


def sent(pair: tuple[Any, Any], path: Path, place: int, size: int) -> tuple[int, bytes]:
    """Return how much was sent, and what the other end got."""
    ours, theirs = pair
    with path.open("rb") as file:
        file.seek(place)
        receiving = gevent.spawn(receive_all, theirs)
        count = send_file(ours, FileWrapper(file), size, 10)
        ours.shutdown(socket.SHUT_WR)
        return count, receiving.get()


@pytest.mark.parametrize(
    ("place", "size", "expected"),
    [
        (0, len(CONTENT), CONTENT),
        (7, len(CONTENT) - 7, CONTENT[7:]),
        (7, 5, CONTENT[7:12]),
        (0, len(CONTENT) + 100, CONTENT),
        (len(CONTENT) - 1, 10, CONTENT[-1:]),
        (0, 0, b""),
    ],
)
@pytest.mark.parametrize("works", [True, False])
def test_a_part_of_a_file_is_sent(
    pair: tuple[Any, Any],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: int,
    size: int,
    expected: bytes,
    works: bool,
) -> None:
    """No more than there is, and by reading where the file system can't do otherwise."""
    if not works:

        def sendfile(*_: Any) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

        monkeypatch.setattr(os, "sendfile", sendfile)
    assert sent(pair, path, place, size) == (len(expected), expected)


def test_a_large_file_is_sent_as_the_client_takes_it(pair: tuple[Any, Any], path: Path) -> None:
    """In more parts than one, each of which finds the buffers full."""
    large = os.urandom(1 << 16) * 40
    assert len(large) > 2 * SEND_FILE_BYTES
    path.write_bytes(large)
    assert sent(pair, path, 1, len(large) - 1) == (len(large) - 1, large[1:])


def test_a_client_that_takes_nothing_ends_it(pair: tuple[Any, Any], path: Path) -> None:
    """After a time; and the socket's own stays."""
    ours, _ = pair
    path.write_bytes(bytes(1 << 24))
    with path.open("rb") as file, pytest.raises(TimeoutError):
        send_file(ours, FileWrapper(file), 1 << 24, 0.005)
    assert ours.gettimeout() == 10
    ours.settimeout(0.005)
    with path.open("rb") as file, pytest.raises(TimeoutError):
        send_file(ours, FileWrapper(file), 1 << 24, None)
    assert ours.gettimeout() == 0.005


@pytest.mark.parametrize("code", [errno.EPIPE, errno.EIO])
def test_another_error_is_raised(
    pair: tuple[Any, Any], path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """One that reading would not mend."""
    ours, theirs = pair
    if code == errno.EPIPE:
        theirs.close()
    else:

        def sendfile(*_: Any) -> int:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "sendfile", sendfile)
    with path.open("rb") as file, pytest.raises(OSError, match=os.strerror(code)):
        send_file(ours, FileWrapper(file), 5, None)


def test_an_error_behind_a_part_is_raised(
    pair: tuple[Any, Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent is not sent again."""
    ours, theirs = pair
    real = os.sendfile
    calls: list[int] = []

    def sendfile(out: int, number: int, place: int, size: int) -> int:
        calls.append(place)
        if len(calls) > 1:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(out, number, place, min(size, 3))

    monkeypatch.setattr(os, "sendfile", sendfile)
    with path.open("rb") as file, pytest.raises(OSError, match="Invalid"):
        send_file(ours, FileWrapper(file), 10, None)
    ours.close()
    assert receive_all(theirs) == CONTENT[:3]
    assert calls == [0, 3]


# -- as replies ---------------------------------------------------------------------------------


class ByHooks(WSGIHandler):
    def get_environ(self) -> Any:
        return super().get_environ()


@pytest.mark.parametrize("handler_class", [WSGIHandler, ByHooks])
def test_a_reply_is_what_the_file_gives(path: Path, handler_class: Any) -> None:
    """Sent by the kernel or read: a compressed one, one of /proc, one that is empty, a part."""
    opened: list[Any] = []
    open_by_path: dict[str, Callable[[], Any]] = {
        "/plain": lambda: _at(path, 0),
        "/part": lambda: _at(path, 100),
        "/compressed": lambda: _compressed(path, gzip.open),
        "/end": lambda: _at(path, len(CONTENT)),
        "/proc": lambda: _at(Path("/proc/version"), 0),
        "/memory": lambda: io.BytesIO(CONTENT),
    }
    expected = {
        "/plain": CONTENT,
        "/part": CONTENT[100:],
        "/compressed": CONTENT,
        "/end": b"",
        "/proc": Path("/proc/version").read_bytes(),
        "/memory": CONTENT,
    }

    def application(environ: dict[str, Any], start_response: Any) -> Any:
        opened.append(open_by_path[environ["PATH_INFO"]]())
        start_response("200 OK", [])
        return FileWrapper(opened[-1], 1000)

    with WSGIServer(("127.0.0.1", 0), application, log=None, handler_class=handler_class) as server:
        server.start()
        address = (server.server_host, server.server_port)
        for name, content in expected.items():
            reply = ask(address, f"GET {name} HTTP/1.0\r\n\r\n".encode())
            assert reply.partition(b"\r\n\r\n")[2] == content
            reply = ask(address, f"HEAD {name} HTTP/1.0\r\n\r\n".encode())
            assert reply.partition(b"\r\n\r\n")[2] == b""
    assert all(file.closed for file in opened)
