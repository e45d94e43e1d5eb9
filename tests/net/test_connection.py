"""A connection is gevent's socket for every purpose; it makes its watchers when it needs them."""

from __future__ import annotations

import array
import copy
import ctypes
import errno
import io
import os
import pickle
import select as native_select
import socket as native_socket
import ssl
import struct
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.ssl
import gevent.tests
import pytest
from gevent import select, socket
from gevent._socketcommon import cancel_wait_ex
from gevent.exceptions import ConcurrentObjectUseError

import glb
from glb.net.connection import Connection

from ..conftest import open_descriptors
from ..support.helpers import connect, let_hub_turn, receive_all, wait_until
from ..support.tls import client_context, server_context

ANY = ("127.0.0.1", 0)
KINDS: tuple[Any, ...] = (socket.socket, Connection)

# More than a pair of Unix sockets holds unread.
LARGE = bytes(range(256)) * 8192

# RST in place of FIN.
RESETTING = struct.pack("ii", 1, 0)

# What a test does with one kind of socket.
Use = Callable[[Any], object]


@pytest.fixture(params=KINDS, ids=["gevent", "ours"])
def kind(request: pytest.FixtureRequest) -> Any:
    """The class, gevent's and ours: what a test says holds for both."""
    return request.param


@pytest.fixture
def pair(kind: Any) -> Iterator[tuple[Any, Any]]:
    """Two ends of a Unix connection: one of the *kind*, and its peer."""
    end, peer = pair_of(kind)
    with end, peer:
        yield end, peer


@pytest.fixture
def tcp(kind: Any) -> Iterator[tuple[Any, Any]]:
    """Two ends of a TCP connection: the accepted one, of the *kind*, and its peer."""
    end, peer = tcp_of(kind)
    with end, peer:
        yield end, peer


def pair_of(kind: Any) -> tuple[Any, Any]:
    first, second = native_socket.socketpair()
    end = kind(first.family, first.type, first.proto, fileno=first.detach())
    return end, socket.socket(second.family, second.type, second.proto, fileno=second.detach())


def tcp_of(kind: Any) -> tuple[Any, Any]:
    with native_socket.create_server(ANY) as listener:
        peer = connect(listener.getsockname())
        descriptor, _ = listener._accept()  # type: ignore[attr-defined]  # not in the stubs
    return kind(listener.family, listener.type, listener.proto, fileno=descriptor), peer


def outcome(use: Use, *args: Any) -> object:
    """Return the result of *use*, or the facts of its error."""
    try:
        return use(*args)
    except Exception as error:
        return type(error), getattr(error, "errno", None), str(error)


def is_the_same_for_both(use: Use) -> Any:
    """Assert that *use* ends in the same way with gevent's class and with ours; return how."""
    expected, ours = (outcome(use, kind) for kind in KINDS)
    assert ours == expected
    return ours


def fill(sock: Any) -> int:
    """Send until not one byte more goes out without waiting; return how many did."""
    count = 0
    while True:
        try:
            count += sock._sock.send(LARGE)
        except BlockingIOError:
            return count


def receive(sock: Any, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        data = sock.recv(count - len(received))
        assert data, "the peer closed too early"
        received += data
    return bytes(received)


def is_waiting_to_read(sock: Any) -> bool:
    return sock._read_event.callback is not None


def is_waiting_to_write(sock: Any) -> bool:
    return sock._write_event.callback is not None


def spawn_reader(sock: Any) -> Any:
    """Return a greenlet that waits in ``sock.recv()``."""
    reader = gevent.spawn(outcome, sock.recv, 100)
    wait_until(lambda: is_waiting_to_read(sock))
    return reader


def spawn_writer(sock: Any) -> Any:
    """Return a greenlet that waits in ``sock.sendall()``."""
    fill(sock)
    writer = gevent.spawn(outcome, sock.sendall, b"more")
    wait_until(lambda: is_waiting_to_write(sock))
    return writer


def made(connection: Any) -> tuple[bool, bool]:
    """Return if it has made its watcher for reading, and the one for writing."""
    return connection._reading is not None, connection._writing is not None


# -- watchers -----------------------------------------------------------------------------------


def test_a_connection_is_gevents_socket() -> None:
    """For isinstance, of which libraries make their way."""
    assert issubclass(Connection, socket.socket)
    with Connection() as connection:
        assert isinstance(connection, socket.socket)


def test_a_connection_that_never_waits_has_no_watcher() -> None:
    """Accepted, read, answered and closed."""
    with glb.bind(ANY) as listener, connect(listener.address) as client:
        client.sendall(b"question")
        connection, peer = listener.accept()
        assert type(connection) is Connection
        assert peer == client.getsockname()
        assert select.select([connection], [], [], 10)[0]
        assert connection.recv(100) == b"question"
        connection.sendall(b"answer")
        assert made(connection) == (False, False)
        connection.close()
        assert receive_all(client) == b"answer"
        assert made(connection) == (False, False)


def test_asking_for_what_it_is_makes_no_watcher() -> None:
    """Nor do options, timeouts, files and copies."""
    end, peer = pair_of(Connection)
    with end, peer:
        repr(end)
        end.settimeout(1)
        end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert (end.fileno() >= 0, end.closed, end.getblocking()) == (True, False, True)
        with end.makefile("rwb") as file:
            file.write(b"x")
        with end.dup() as copied:
            assert made(copied) == (False, False)
        assert made(end) == (False, False)


def test_the_first_wait_makes_the_watcher_it_needs_and_the_next_uses_it_again() -> None:
    """One for reading, one for writing."""
    end, peer = pair_of(Connection)
    with end, peer:
        watchers = []
        for _ in range(2):
            reader = gevent.spawn(end.recv, 1)
            wait_until(lambda: end._reading is not None and is_waiting_to_read(end))
            assert made(end) == (True, False)
            watchers.append(end._reading)
            peer.sendall(b"x")
            assert reader.get() == b"x"
        assert watchers[0] is watchers[1]
    end, peer = pair_of(Connection)
    with end, peer:
        full = fill(end)
        writer = gevent.spawn(end.sendall, b"more")
        wait_until(lambda: end._writing is not None and is_waiting_to_write(end))
        assert made(end) == (False, True)
        assert receive(peer, full + 4).endswith(b"more")
        writer.get()


@pytest.mark.parametrize("way", ["close", "detach"])
def test_closing_drops_the_watchers(way: str) -> None:
    """And none is made afterwards."""
    end, peer = pair_of(Connection)
    with peer:
        reader = spawn_reader(end)
        peer.sendall(b"x")
        assert reader.get() == b"x"
        descriptor = getattr(end, way)()
        if descriptor is not None:
            os.close(descriptor)
        assert made(end) == (False, False)
        assert (end._read_event, end._write_event) == (None, None)


# -- making one ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        (),
        (socket.AF_INET,),
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_INET, socket.SOCK_DGRAM),
        (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP),
        (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK),
        (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC),
        (-1, -1, -1),
        (9999,),
        (socket.AF_INET, 9999),
        ("inet",),
        (-1, -1, -1, -1),
        (-1, -1, -1, 9999),
        (socket.AF_INET, socket.SOCK_STREAM, 0, 9999),
    ],
)
def test_the_arguments_are_gevents(args: tuple[Any, ...]) -> None:
    """What is made is the same, and so is the error."""

    def use(kind: Any) -> object:
        with kind(*args) as sock:
            timeouts = (sock.timeout, sock.gettimeout(), sock.getblocking())
            kernels = os.get_blocking(sock.fileno()), os.get_inheritable(sock.fileno())
            kinds = (sock.family, sock.type, sock.proto, type(sock.family), type(sock.type))
            return timeouts, kernels, kinds

    is_the_same_for_both(use)


def test_a_descriptor_gives_family_type_and_protocol() -> None:
    """Family, type and protocol need not be said."""

    def use(kind: Any) -> object:
        with native_socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as plain:
            descriptor = os.dup(plain.fileno())
        with kind(fileno=descriptor) as sock:
            assert sock.fileno() == descriptor
            assert not os.get_blocking(descriptor)
            return sock.family, sock.type, sock.proto

    assert is_the_same_for_both(use) == (socket.AF_UNIX, socket.SOCK_DGRAM, 0)


def test_the_default_timeout_is_taken(kind: Any) -> None:
    """As it was when the socket was made."""
    socket.setdefaulttimeout(7)
    try:
        end, peer = pair_of(kind)
    finally:
        socket.setdefaulttimeout(None)
    with end, peer:
        assert (end.timeout, end.gettimeout()) == (7, 7)


def test_one_that_could_not_be_made_can_be_looked_at(kind: Any) -> None:
    """As reports of errors do, which show the objects of a traceback."""
    half_made = kind.__new__(kind)
    with pytest.raises(OSError, match="family"):
        half_made.__init__(9999)
    assert "RecursionError" not in repr(half_made)


def test_it_can_listen_and_connect(kind: Any) -> None:
    """Not only connections that were accepted."""
    with kind() as listener, kind() as client, kind() as refused:
        listener.bind(ANY)
        listener.listen(1)
        accepting = gevent.spawn(listener.accept)
        wait_until(lambda: is_waiting_to_read(listener))
        assert client.connect_ex(listener.getsockname()) == 0
        accepted, peer = accepting.get()
        with accepted:
            assert peer == client.getsockname()
            assert accepted.getpeername() == client.getsockname()
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
        address = listener.getsockname()
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            refused.connect(address)


# -- sending and receiving ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg"])
def test_receiving_waits(pair: tuple[Any, Any], how: str) -> None:
    """Each call, until there is something; and has the end of the stream as empty."""
    end, peer = pair

    def read() -> bytes:
        buffer = bytearray(10)
        got = getattr(end, how)(buffer if how.endswith("_into") else 10)
        got = got[0] if isinstance(got, tuple) else got
        return bytes(buffer[:got]) if isinstance(got, int) else got

    reader = gevent.spawn(read)
    wait_until(lambda: is_waiting_to_read(end))
    peer.sendall(b"data")
    assert reader.get() == b"data"
    peer.close()
    assert read() == b""


def test_receiving_into_several_buffers_waits(pair: tuple[Any, Any]) -> None:
    """recvmsg_into()."""
    end, peer = pair
    first, second = bytearray(2), bytearray(2)
    reader = gevent.spawn(end.recvmsg_into, [first, second])
    wait_until(lambda: is_waiting_to_read(end))
    peer.sendall(b"data")
    assert reader.get()[0] == 4
    assert first + second == b"data"


@pytest.mark.parametrize("how", ["send", "sendmsg", "sendall"])
def test_sending_waits(pair: tuple[Any, Any], how: str) -> None:
    """Each call, until there is room: also when not one byte goes out at first."""
    end, peer = pair
    full = fill(end)
    writer = gevent.spawn(getattr(end, how), [b"data"] if how == "sendmsg" else b"data")
    wait_until(lambda: is_waiting_to_write(end))
    assert receive(peer, full) == (LARGE * (full // len(LARGE) + 1))[:full]
    assert writer.get() == (None if how == "sendall" else 4)
    assert peer.recv(10) == b"data"


def test_descriptors_can_be_passed(pair: tuple[Any, Any]) -> None:
    """With sendmsg() and recvmsg()."""
    end, peer = pair
    with socket.socket() as passed:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [passed.fileno()]))
        end.sendmsg([b"x"], [rights])
        data, ancillary, _, _ = peer.recvmsg(1, socket.CMSG_LEN(4))
        assert data == b"x"
        (received,) = array.array("i", ancillary[0][2])
        assert os.fstat(received).st_ino == os.fstat(passed.fileno()).st_ino
        os.close(received)


class _Bytes(bytes):
    pass


@pytest.mark.parametrize(
    "data",
    [
        b"bytes",
        bytearray(b"bytearray"),
        memoryview(b"memoryview"),
        memoryview(array.array("i", [1, 2, 3])),
        memoryview(b"a-b-c-d")[::2],
        array.array("d", [1.0, 2.0]),
        (ctypes.c_char * 4).from_buffer_copy(b"four"),
        _Bytes(b"subclass"),
        LARGE,
        bytearray(LARGE),
        memoryview(LARGE),
        (ctypes.c_char * len(LARGE)).from_buffer_copy(LARGE),
        "text",
        5,
        None,
        [1, 2],
    ],
    ids=lambda data: (
        f"{type(data).__name__}-{len(bytes(data)) if data else 0}"
        if not isinstance(data, (str, list))
        else type(data).__name__
    ),
)
def test_sendall_takes_what_gevents_takes(data: Any) -> None:
    """Whatever has bytes, of any size; and the receiver gets them all in order."""

    def use(kind: Any) -> object:
        end, peer = pair_of(kind)
        with end, peer:
            receiving = gevent.spawn(receive_all, peer)
            try:
                returned = end.sendall(data)
            finally:
                end.close()
                received = receiving.get()
            return returned, received

    got = is_the_same_for_both(use)
    if not isinstance(data, (str, int, list)) and data is not None and not _is_strided(data):
        assert got == (None, bytes(data))


def _is_strided(data: Any) -> bool:
    return isinstance(data, memoryview) and not data.contiguous


@pytest.mark.parametrize("data", [b"", bytearray(), memoryview(b""), array.array("i")])
def test_sendall_of_nothing_sends_nothing(pair: tuple[Any, Any], data: Any) -> None:
    """Not even to a full peer does it wait."""
    end, _ = pair
    fill(end)
    end.setblocking(False)
    assert not end.sendall(data)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_sendall_waits_for_a_slow_reader(pair: tuple[Any, Any], make: Any) -> None:
    """More than the buffers hold: it waits, and goes on where it was."""
    end, peer = pair
    writer = gevent.spawn(end.sendall, make(LARGE))
    wait_until(lambda: is_waiting_to_write(end))
    assert receive(peer, len(LARGE)) == LARGE
    assert writer.get() is None


def test_a_bytearray_cant_be_resized_while_it_is_sent(pair: tuple[Any, Any]) -> None:
    """What leaves is what there was; afterwards it is free."""
    end, peer = pair
    data = bytearray(LARGE)
    writer = gevent.spawn(end.sendall, data)
    wait_until(lambda: is_waiting_to_write(end))
    with pytest.raises(BufferError):
        data.extend(b"x")
    receive(peer, len(LARGE))
    writer.get()
    data.extend(b"x")


@pytest.mark.parametrize("make", [bytes, memoryview])
def test_flags_reach_the_kernel(tcp: tuple[Any, Any], make: Any) -> None:
    """Urgent data is read as such."""
    end, peer = tcp
    end.sendall(make(b"!"), socket.MSG_OOB)
    wait_until(lambda: bool(select.select([], [], [peer], 0)[2]))
    assert peer.recv(1, socket.MSG_OOB) == b"!"


def test_two_cant_wait_for_the_same(pair: tuple[Any, Any]) -> None:
    """The second gets gevent's error, and the first goes on waiting."""
    end, peer = pair
    reader = spawn_reader(end)
    with pytest.raises(ConcurrentObjectUseError):
        end.recv(1)
    writer = spawn_writer(end)
    with pytest.raises(ConcurrentObjectUseError):
        end.sendall(b"x")
    peer.close()
    assert reader.get() in (b"", (ConnectionResetError, errno.ECONNRESET, str_of(104)))
    assert writer.get()[1] in (errno.EPIPE, errno.ECONNRESET)


def str_of(number: int) -> str:
    return str(OSError(number, os.strerror(number)))


def test_a_killed_reader_leaves_the_socket_usable(pair: tuple[Any, Any]) -> None:
    """The next one waits and reads."""
    end, peer = pair
    spawn_reader(end).kill()
    reader = spawn_reader(end)
    peer.sendall(b"x")
    assert reader.get() == b"x"


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_a_peer_that_resets_is_a_reset_then_a_broken_pipe(make: Any) -> None:
    """In the order in which gevent raises them."""

    def use(kind: Any) -> object:
        end, peer = tcp_of(kind)
        with end:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETTING)
            peer.close()
            return [outcome(end.sendall, make(b"x")) for _ in range(2)], end.recv(1)

    assert is_the_same_for_both(use) == (
        [
            (ConnectionResetError, errno.ECONNRESET, str_of(errno.ECONNRESET)),
            (BrokenPipeError, errno.EPIPE, str_of(errno.EPIPE)),
        ],
        b"",
    )


@pytest.mark.parametrize("does", ["read", "write"])
def test_a_peer_that_resets_ends_waiting_calls(tcp: tuple[Any, Any], does: str) -> None:
    """In recv() and in sendall()."""
    end, peer = tcp
    waiter = spawn_reader(end) if does == "read" else spawn_writer(end)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETTING)
    peer.close()
    assert waiter.get()[1] == errno.ECONNRESET


def test_sending_after_shutdown_is_a_broken_pipe(pair: tuple[Any, Any]) -> None:
    """shutdown() ends one way, or both, for the peer as well; a waiting greenlet sees EBADF."""
    end, peer = pair
    writer = spawn_writer(end)
    end.shutdown(socket.SHUT_WR)
    assert writer.get()[1] == errno.EBADF
    with pytest.raises(BrokenPipeError):
        end.sendall(b"x")
    peer.sendall(b"x")
    assert end.recv(1) == b"x"
    reader = spawn_reader(end)
    end.shutdown(socket.SHUT_RD)
    assert reader.get()[1] == errno.EBADF
    assert end.recv(1) == b""
    end.shutdown(socket.SHUT_RDWR)


# -- timeouts -----------------------------------------------------------------------------------


def test_a_timeout_ends_receiving(pair: tuple[Any, Any]) -> None:
    """And what comes later can still be read."""
    end, peer = pair
    end.settimeout(0.01)
    assert end.gettimeout() == 0.01
    with pytest.raises(TimeoutError, match=r"^timed out$"):
        end.recv(1)
    peer.sendall(b"x")
    assert end.recv(1) == b"x"
    assert receive_line(end, peer) == b"line\n"


def receive_line(end: Any, peer: Any) -> bytes:
    with end.makefile("rb") as file:
        peer.sendall(b"line\n")
        line: bytes = file.readline()
        return line


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("is_full", [False, True])
def test_a_timeout_ends_sending(pair: tuple[Any, Any], make: Any, is_full: bool) -> None:
    """Whether a part left before or nothing."""
    end, _ = pair
    if is_full:
        fill(end)
    end.settimeout(0.01)
    with pytest.raises(TimeoutError, match=r"^timed out$"):
        end.sendall(make(LARGE))


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_a_timeout_that_is_long_enough_changes_nothing(pair: tuple[Any, Any], make: Any) -> None:
    """All leaves, in parts."""
    end, peer = pair
    end.settimeout(30)
    writer = gevent.spawn(end.sendall, make(LARGE))
    wait_until(lambda: is_waiting_to_write(end))
    assert receive(peer, len(LARGE)) == LARGE
    writer.get()


@pytest.mark.parametrize("value", ["soon", -1, float("nan"), None, 0, 0.0, 1, 1.5, True])
def test_timeouts_are_read_as_gevents(value: Any) -> None:
    """And what is none is the same error."""

    def use(kind: Any) -> object:
        with kind() as sock:
            returned = outcome(sock.settimeout, value)
            return returned, repr(sock.gettimeout()), sock.getblocking(), sock.type

    is_the_same_for_both(use)


def test_one_that_does_not_block_says_so(pair: tuple[Any, Any]) -> None:
    """Nothing to read, or no room: an error at once."""
    end, peer = pair
    end.setblocking(False)
    assert end.gettimeout() == 0.0
    with pytest.raises(BlockingIOError):
        end.recv(1)
    assert end.send(LARGE) < len(LARGE)
    fill(end)
    for data in (b"x", bytearray(b"x"), memoryview(b"x")):
        with pytest.raises(BlockingIOError):
            end.sendall(data)
    with pytest.raises(BlockingIOError):
        end.send(b"x")
    peer.sendall(b"x")
    assert end.recv(1) == b"x"
    end.setblocking(True)
    assert end.gettimeout() is None
    spawn_reader(end).kill()


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_sendall_of_more_than_fits_fails_as_gevents_where_it_must_not_wait(make: Any) -> None:
    """A part has left, as much as there was room for."""

    def use(kind: Any) -> object:
        end, peer = pair_of(kind)
        with peer:
            end.setblocking(False)
            error = outcome(end.sendall, make(LARGE))
            end.close()
            return error, LARGE.startswith(receive_all(peer))

    is_the_same_for_both(use)


# -- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffering", [None, -1, 0, 1, 4096])
def test_a_binary_file_reads_and_writes(pair: tuple[Any, Any], buffering: int | None) -> None:
    """Unbuffered, too; it waits for what is not there yet."""
    end, peer = pair
    with end.makefile("rb", buffering) as reading, end.makefile("wb", buffering) as writing:
        reader = gevent.spawn(reading.readline)
        wait_until(lambda: is_waiting_to_read(end))
        peer.sendall(b"line\nrest")
        assert reader.get() == b"line\n"
        assert reading.read(4) == b"rest"
        writing.write(b"reply")
        writing.flush()
        assert peer.recv(10) == b"reply"
    assert not end.closed


def test_a_file_goes_both_ways(pair: tuple[Any, Any]) -> None:
    """Of bytes, and of text."""
    end, peer = pair
    with end.makefile("rwb") as file:
        peer.sendall(b"one\n")
        assert file.readline() == b"one\n"
        file.write(b"two\n")
        file.flush()
        assert peer.recv(10) == b"two\n"
    with end.makefile("rw", encoding="utf-8", newline="\n") as text:
        peer.sendall("drei ß\n".encode())
        assert text.readline() == "drei ß\n"
        assert text.mode == "rw"
        text.write("vier\n")
        text.flush()
        assert peer.recv(10) == b"vier\n"


@pytest.mark.parametrize(
    "args", [("a",), ("r", 0), ("rb", 0), ("wb", 0), ("rwb", 0), ("w",), ("b",), ("", 1)]
)
def test_files_are_of_the_same_kinds(args: tuple[Any, ...]) -> None:
    """By mode and buffering."""

    def use(kind: Any) -> object:
        end, peer = pair_of(kind)
        with end, peer, end.makefile(*args) as file:
            return type(file), file.readable(), file.writable(), getattr(file, "mode", None)

    is_the_same_for_both(use)


def test_a_file_outlives_the_closing_of_its_socket(pair: tuple[Any, Any]) -> None:
    """It goes on reading and waiting; the last one closes the descriptor."""
    end, peer = pair
    descriptor = end.fileno()
    reading, writing = end.makefile("rb"), end.makefile("wb")
    end.close()
    assert end.closed
    assert end.fileno() == descriptor
    reader = gevent.spawn(reading.readline)
    wait_until(lambda: is_waiting_to_read(end))
    peer.sendall(b"late\n")
    assert reader.get() == b"late\n"
    writing.write(b"reply")
    reading.close()
    assert end.fileno() == descriptor
    writing.close()
    assert end.fileno() == -1
    assert descriptor not in open_descriptors()
    assert receive_all(peer) == b"reply"


def test_a_socket_outlives_its_files(pair: tuple[Any, Any]) -> None:
    """Closing a file closes that alone."""
    end, peer = pair
    end.makefile("rb").close()
    raw = end.makefile("rwb", 0)
    raw.close()
    peer.sendall(b"x")
    assert end.recv(1) == b"x"
    with pytest.raises(ValueError, match="closed"):
        raw.read(1)


def test_a_file_can_be_sent(pair: tuple[Any, Any], tmp_path: Path) -> None:
    """sendfile(), more than the buffers hold."""
    end, peer = pair
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    with path.open("rb") as file:
        sender = gevent.spawn(end.sendfile, file, 100)
        assert receive(peer, len(LARGE) - 100) == LARGE[100:]
        assert sender.get() == len(LARGE) - 100


# -- copies and detaching -----------------------------------------------------------------------


def test_dup_makes_another_of_its_class(pair: tuple[Any, Any], kind: Any) -> None:
    """With its timeout; each is closed on its own."""
    end, peer = pair
    end.settimeout(5)
    copied = end.dup()
    with copied:
        assert type(copied) is kind
        assert copied.gettimeout() == 5
        assert copied.fileno() != end.fileno()
        assert not os.get_inheritable(copied.fileno())
        end.close()
        reader = spawn_reader(copied)
        peer.sendall(b"x")
        assert reader.get() == b"x"
        copied.sendall(b"y")
        assert peer.recv(1) == b"y"
    assert peer.recv(1) == b""


def test_fromfd_gives_gevents(pair: tuple[Any, Any]) -> None:
    """A copy of the descriptor."""
    end, peer = pair
    with socket.fromfd(end.fileno(), end.family, end.type) as copied:
        copied.sendall(b"x")
        assert peer.recv(1) == b"x"


@pytest.mark.parametrize("has_waited", [False, True])
def test_detach_leaves_the_descriptor_alone(pair: tuple[Any, Any], has_waited: bool) -> None:
    """It is the caller's; the object is closed."""
    end, peer = pair
    if has_waited:
        spawn_reader(end).kill()
    descriptor = end.fileno()
    assert end.detach() == descriptor
    assert (end.closed, end.fileno(), end.detach()) == (True, -1, -1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        end.recv(1)
    end.close()
    os.write(descriptor, b"alive")
    assert peer.recv(10) == b"alive"
    os.close(descriptor)


def test_detach_ends_waiting_calls(pair: tuple[Any, Any]) -> None:
    """With EBADF; the descriptor lives on."""
    end, peer = pair
    reader, writer = spawn_reader(end), spawn_writer(end)
    descriptor = end.detach()
    assert (reader.get()[1], writer.get()[1]) == (errno.EBADF, errno.EBADF)
    peer.sendall(b"alive")
    assert os.read(descriptor, 10) == b"alive"
    os.close(descriptor)


# -- closing ------------------------------------------------------------------------------------

CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("recv", (1,)),
    ("recv_into", (bytearray(1),)),
    ("recvfrom", (1,)),
    ("recvmsg", (1,)),
    ("send", (b"x",)),
    ("sendall", (b"x",)),
    ("sendall", (bytearray(b"x"),)),
    ("sendall", (memoryview(b"x"),)),
    ("sendall", (b"x", socket.MSG_OOB)),
    ("sendall", (LARGE,)),
    ("sendall", ("text",)),
    ("sendmsg", ([b"x"],)),
    ("getsockname", ()),
    ("getpeername", ()),
    ("getsockopt", (socket.SOL_SOCKET, socket.SO_ERROR)),
    ("setsockopt", (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)),
    ("shutdown", (socket.SHUT_RD,)),
    ("shutdown", (socket.SHUT_RDWR,)),
    ("connect", (("127.0.0.1", 1),)),
    ("connect_ex", (("127.0.0.1", 1),)),
    ("accept", ()),
    ("listen", ()),
    ("bind", (ANY,)),
    ("dup", ()),
    ("fileno", ()),
    ("detach", ()),
    ("close", ()),
    ("gettimeout", ()),
    ("settimeout", (1,)),
    ("get_inheritable", ()),
    ("unheard_of", ()),
]


@pytest.mark.parametrize("has_waited", [False, True])
@pytest.mark.parametrize(("name", "args"), CALLS)
def test_what_is_closed_answers_as_gevents(
    name: str, args: tuple[Any, ...], has_waited: bool
) -> None:
    """The same result, or the same error."""

    def use(kind: Any) -> object:
        end, peer = pair_of(kind)
        with peer:
            if has_waited:
                spawn_reader(end).kill()
            end.close()
            return outcome(lambda _: getattr(end, name)(*args), None)

    is_the_same_for_both(use)


def test_a_closed_connection_keeps_its_family_type_and_protocol(pair: tuple[Any, Any]) -> None:
    """Family, type and protocol; its number is gone."""
    end, _ = pair
    end.close()
    assert (end.family, end.type, end.proto) == (socket.AF_UNIX, socket.SOCK_STREAM, 0)
    assert (end.closed, end.fileno()) == (True, -1)
    assert "[closed]" in repr(end)


def test_closing_twice_is_harmless(pair: tuple[Any, Any]) -> None:
    """The number may be another's by then."""
    end, _ = pair
    descriptor = end.fileno()
    end.close()
    with socket.socket() as next_one:
        assert next_one.fileno() == descriptor
        end.close()
        assert os.fstat(descriptor)


def test_a_with_statement_closes(kind: Any) -> None:
    """Once; also after an error, and after it was closed by hand."""
    with pytest.raises(LookupError), kind() as sock:
        raise LookupError
    assert sock.closed
    with kind() as sock:
        sock.close()
    assert sock.closed


@pytest.mark.parametrize("has_waited", [False, True])
def test_closing_what_was_closed_by_its_number_is_an_error_once(has_waited: bool) -> None:
    """EBADF, as gevent's and the standard library's."""

    def use(kind: Any) -> object:
        end, peer = pair_of(kind)
        with peer:
            if has_waited:
                spawn_reader(end).kill()
            os.close(end.fileno())
            first = outcome(lambda _: end.close(), None)
            return first, end.closed, outcome(lambda _: end.close(), None), end.fileno()

    assert is_the_same_for_both(use) == (
        (OSError, errno.EBADF, str_of(errno.EBADF)),
        True,
        None,
        -1,
    )


@pytest.mark.parametrize("waits", ["read", "write", "both"])
def test_closing_ends_waiting_calls(waits: str) -> None:
    """Reader and writer see EBADF; the descriptor is closed when they have."""

    def use(kind: Any) -> object:
        end, peer = pair_of(kind)
        with peer:
            waiters = [spawn_reader(end)] if waits != "write" else []
            waiters += [spawn_writer(end)] if waits != "read" else []
            descriptor = end.fileno()
            end.close()
            number = end.fileno()
            errors = [waiter.get(timeout=20) for waiter in waiters]
            wait_until(lambda: descriptor not in open_descriptors())
            return errors, number

    errors, number = is_the_same_for_both(use)
    assert number == -1
    assert {error[:2] for error in errors} == {(cancel_wait_ex, errno.EBADF)}


def test_closing_ends_a_call_that_waits_with_a_timeout(pair: tuple[Any, Any]) -> None:
    """EBADF, not the timeout."""
    end, _ = pair
    end.settimeout(60)
    reader = spawn_reader(end)
    end.close()
    assert reader.get()[1] == errno.EBADF


def test_closing_waits_for_another_watcher_of_its_number() -> None:
    """A watcher of its number is woken, and the descriptor is closed after that."""

    def use(kind: Any) -> object:
        end, peer = pair_of(kind)
        woken: list[bool] = []
        with peer:
            descriptor = end.fileno()
            watcher = gevent.get_hub().loop.io(descriptor, 1)

            def wake() -> None:
                woken.append(descriptor in open_descriptors())
                watcher.stop()
                watcher.close()

            watcher.start(wake)
            try:
                gevent.sleep(0)
                end.close()
                is_deferred = descriptor in open_descriptors()
                let_hub_turn()
                return is_deferred, woken, descriptor in open_descriptors(), end.fileno()
            finally:
                watcher.stop()
                watcher.close()

    is_deferred, _, is_left, number = is_the_same_for_both(use)
    assert (is_deferred, is_left, number) == (True, False, -1)


@pytest.mark.parametrize("has_waited", [False, True])
def test_the_peer_sees_the_end_though_nothing_else_happens(has_waited: bool) -> None:
    """A watcher of the program has the number, and the loop has no other event. gevent waits."""
    end, peer = pair_of(Connection)
    with peer:
        if has_waited:
            peer.sendall(b"x")
            end._wait(end._read_event)
            assert end.recv(1) == b"x"
        watcher = gevent.get_hub().loop.io(end.fileno(), 1)

        def woken() -> None:
            watcher.stop()
            watcher.close()

        watcher.start(woken)
        gevent.sleep(0)
        gevent.spawn(end.close)
        with gevent.Timeout(5):
            assert peer.recv(1) == b""


def test_one_that_is_collected_unclosed_warns(kind: Any) -> None:
    """As every socket does; the descriptor is closed."""
    end, peer = pair_of(kind)
    descriptor = end.fileno()
    with peer:
        with pytest.warns(ResourceWarning, match="unclosed <socket"):
            del end
        assert descriptor not in open_descriptors()
        assert peer.recv(1) == b""


# -- what else a socket is ----------------------------------------------------------------------


def test_ref_is_both_watchers(pair: tuple[Any, Any]) -> None:
    """Whether waiting keeps the hub alive."""
    end, _ = pair
    assert end.ref is True
    end.ref = False
    assert (end.ref, end._read_event.ref, end._write_event.ref) == (False, False, False)
    end.ref = True
    assert end.ref is True


def test_it_is_shown_as_gevents(kind: Any) -> None:
    """Class, descriptor, family, type, protocol."""
    with kind() as sock:
        sock.bind(ANY)
        shown = repr(sock)
        assert shown.startswith(f"<{kind.__module__}.{kind.__name__} at 0x")
        assert f"fd={sock.fileno()}, " in shown
        assert shown.endswith(f"family={int(sock.family)}, type={int(sock.type)}, proto=0>")


@pytest.mark.parametrize("how", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_cant_be_copied_or_pickled(how: Use) -> None:
    """There is dup() for the one, and nothing for the other."""

    def use(kind: Any) -> object:
        with kind() as sock:
            return how(sock)

    kind_of_error, _, text = is_the_same_for_both(use)
    assert (kind_of_error, text) == (TypeError, "Cannot serialize socket object")


def test_it_can_be_weakly_referenced(kind: Any) -> None:
    """And is gone without references."""
    sock: Any = kind()
    weak = weakref.ref(sock)
    assert (weak(), weakref.ref(sock._sock)()) == (sock, sock._sock)
    sock.close()
    del sock
    assert weak() is None


def test_it_has_no_attributes_but_its_own() -> None:
    """Slots, and what the plain socket has."""

    def use(kind: Any) -> object:
        with kind() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            assert not hasattr(sock, "__dict__")
            with pytest.raises(AttributeError):
                sock.unheard_of = 1
            return (
                outcome(lambda _: sock.unheard_of, None),
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 4),
                outcome(sock.getsockopt, 999999),
                outcome(sock.getpeername),
            )

    is_the_same_for_both(use)


def test_select_and_poll_take_it(pair: tuple[Any, Any]) -> None:
    """By the object and by its number."""
    end, peer = pair
    assert select.select([end], [end], [], 0) == ([], [end], [])
    selecting = gevent.spawn(select.select, [end], [], [], 10)
    poll = select.poll()
    poll.register(end, native_select.POLLIN)
    polling = gevent.spawn(poll.poll, 10_000)
    let_hub_turn()
    assert not selecting.ready()
    assert not polling.ready()
    peer.sendall(b"x")
    assert selecting.get() == ([end], [], [])
    assert polling.get() == [(end.fileno(), native_select.POLLIN)]
    poll.unregister(end)


def test_closing_ends_a_select() -> None:
    """As gevent's does."""

    def use(kind: Any) -> object:
        end, peer = pair_of(kind)
        with peer:
            selecting = gevent.spawn(select.select, [end], [], [], 5)
            let_hub_turn()
            end.close()
            readable, _, _ = selecting.get()
            return readable == [end]

    is_the_same_for_both(use)


# -- TLS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["server", "client"])
def test_tls_takes_it_over(tcp: tuple[Any, Any], side: str) -> None:
    """Both ways, of any size; what was wrapped is detached, and no descriptor is left."""
    server, client = tcp if side == "server" else reversed(tcp)
    shaking = gevent.spawn(server_context().wrap_socket, server, server_side=True)
    descriptor = client.fileno()
    with client_context().wrap_socket(client) as speaking:
        assert (client.closed, client.fileno(), speaking.fileno()) == (True, -1, descriptor)
        with shaking.get() as serving:
            assert (server.closed, server.fileno()) == (True, -1)
            assert isinstance(serving, gevent.ssl.SSLSocket)
            for here, there in ((speaking, serving), (serving, speaking)):
                sending = gevent.spawn(here.sendall, LARGE)
                assert receive(there, len(LARGE)) == LARGE
                sending.get()
            gevent.spawn(speaking.unwrap)
            assert serving.recv(1) == b""


def test_tls_keeps_the_timeout_and_what_has_waited(tcp: tuple[Any, Any]) -> None:
    """A connection that waited before the handshake, as a server of both kinds does."""
    end, peer = tcp
    reader = spawn_reader(end)
    peer.sendall(b"STARTTLS")
    assert reader.get() == b"STARTTLS"
    end.settimeout(20)
    shaking = gevent.spawn(server_context().wrap_socket, end, server_side=True)
    with client_context().wrap_socket(peer) as client, shaking.get() as serving:
        assert serving.gettimeout() == 20
        client.sendall(b"x")
        assert serving.recv(1) == b"x"


def test_a_handshake_that_fails_closes_all(tcp: tuple[Any, Any]) -> None:
    """The error is SSL's, and no descriptor is left."""
    end, peer = tcp
    descriptor = end.fileno()
    peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(ssl.SSLError):
        server_context().wrap_socket(end, server_side=True)
    assert end.closed
    assert descriptor not in open_descriptors()


def test_a_context_that_refuses_leaves_it_open(tcp: tuple[Any, Any]) -> None:
    """Nothing was taken over."""
    end, peer = tcp
    with pytest.raises(ValueError, match="server_hostname"):
        server_context().wrap_socket(end, server_side=True, server_hostname="x")
    assert not end.closed
    end.sendall(b"x")
    assert peer.recv(1) == b"x"


def test_a_file_of_a_wrapped_one_reads(tcp: tuple[Any, Any]) -> None:
    """makefile() on TLS over it, as servers do."""
    end, peer = tcp
    shaking = gevent.spawn(server_context().wrap_socket, end, server_side=True)
    with client_context().wrap_socket(peer) as client, shaking.get() as serving:
        client.sendall(b"line\n")
        with serving.makefile("rb") as file:
            assert isinstance(file, io.BufferedReader)
            assert file.readline() == b"line\n"
