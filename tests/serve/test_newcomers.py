"""Newcomers: let no new client into an accept queue, and lose none that waits there.

Linux drops the first packet of a handshake then, so the client's kernel tries again a second
later. On the loopback a handshake is over when connect(2) returns, so a client whose socket is
in the state SYN_SENT after it was not let in. One test here waits for that second.
"""

from __future__ import annotations

import _socket
import errno
import socket as native_socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest

import glb
from glb.accept.registry import REGISTRY, Entry
from glb.net import sockets
from glb.server import StreamServer

from ..support.engine import entry_of
from ..support.helpers import ask, close_all, connect, is_refused, receive_all, wait_until

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other kernels have no such filter"
)

LOCAL = ("127.0.0.1", 0)
ESTABLISHED, SYN_SENT = 1, 2  # of <netinet/tcp.h>


@contextmanager
def coming(address: Any) -> Iterator[_socket.socket]:
    """A client that has knocked, and waits for nothing."""
    family = _socket.AF_INET6 if ":" in address[0] else _socket.AF_INET
    with native_socket.socket(family) as client:
        client.setblocking(False)
        assert client.connect_ex(address) in (0, errno.EINPROGRESS)
        yield client


def state_of(client: _socket.socket) -> int:
    """Return the state of its connection, as the kernel has it."""
    state: int = client.getsockopt(_socket.IPPROTO_TCP, native_socket.TCP_INFO, 1)[0]
    return state


def lets_in(address: Any) -> bool:
    """Return whether a client that comes now has a connection at once."""
    with coming(address) as client:
        state = state_of(client)
        assert state in (ESTABLISHED, SYN_SENT)
        return state == ESTABLISHED


@pytest.fixture(params=["127.0.0.1", "::1"])
def listening(request: pytest.FixtureRequest) -> Iterator[native_socket.socket]:
    """A plain socket that listens."""
    family = native_socket.AF_INET6 if ":" in request.param else native_socket.AF_INET
    try:
        sock = native_socket.create_server((request.param, 0), family=family)
    except OSError as error:
        pytest.skip(f"no {request.param} here: {error}")
    with sock:
        sock.setblocking(False)
        yield sock


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A path for a Unix socket, short enough for the 108 bytes of sun_path."""
    monkeypatch.chdir(tmp_path)
    return "app.sock"


# -- the socket ---------------------------------------------------------------------------------


def test_a_newcomer_is_not_let_in(listening: native_socket.socket) -> None:
    """Neither in, nor turned away."""
    address = listening.getsockname()
    assert lets_in(address)
    assert sockets.refuse_newcomers(listening) is True
    assert not lets_in(address)
    sockets.admit_newcomers(listening)
    assert lets_in(address)


def test_a_client_in_the_queue_stays_there(listening: native_socket.socket) -> None:
    """And speaks, and is spoken to, as ever."""
    address = listening.getsockname()
    clients = [connect(address) for _ in range(5)]
    assert sockets.refuse_newcomers(listening) is True
    clients[0].sendall(b"after")
    for client in clients:
        connection, peer = listening.accept()
        with connection:
            assert peer == client.getsockname()
            connection.sendall(b"hello")
        assert client.recv(10) == b"hello"
    with pytest.raises(BlockingIOError):
        listening.accept()
    close_all(clients)


def test_to_refuse_or_admit_twice_is_once(listening: native_socket.socket) -> None:
    """Neither piles up."""
    address = listening.getsockname()
    assert sockets.refuse_newcomers(listening) is True
    assert sockets.refuse_newcomers(listening) is True
    sockets.admit_newcomers(listening)
    assert lets_in(address)
    sockets.admit_newcomers(listening)
    assert lets_in(address)


def test_it_is_the_kernel_sockets_and_not_a_descriptors(listening: native_socket.socket) -> None:
    """A duplicate refuses, too, and may be the one to admit."""
    with native_socket.socket(fileno=sockets.duplicate(listening)) as other:
        assert sockets.refuse_newcomers(other) is True
        assert not lets_in(listening.getsockname())
        sockets.admit_newcomers(listening)
        assert lets_in(other.getsockname())


def test_a_unix_socket_cannot_refuse(path: str) -> None:
    """There is no handshake of which to drop a part; nothing happens."""
    with native_socket.socket(native_socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        assert sockets.refuse_newcomers(sock) is False
        connect(path).close()
        sockets.admit_newcomers(sock)
        connect(path).close()


@pytest.mark.parametrize("platform", ["freebsd14", "darwin", "win32"])
def test_other_systems_cannot_refuse(
    listening: native_socket.socket, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is tried there."""
    monkeypatch.setattr(sys, "platform", platform)
    assert sockets.refuse_newcomers(listening) is False
    assert lets_in(listening.getsockname())


def test_a_kernel_that_does_not_want_to_is_no_error() -> None:
    """A socket that is closed, say."""
    with native_socket.create_server(LOCAL) as sock:
        pass
    assert sockets.refuse_newcomers(sock) is False
    sockets.admit_newcomers(sock)


# -- the entry ----------------------------------------------------------------------------------


def refuse(listener: glb.Listener) -> Entry:
    """Have the entry of *listener* refuse newcomers."""
    entry = listener.entry
    assert entry.refuse_newcomers() is True
    assert not lets_in(entry.address)
    return entry


JOINS: dict[str, Callable[[glb.Listener], glb.Listener]] = {
    "bind": lambda listener: glb.bind_load_balanced(listener.address),
    "dup": lambda listener: listener.dup(),
    "acquire": lambda listener: glb.Listener(REGISTRY.acquire(listener.entry)),
}


@pytest.mark.parametrize("join", JOINS)
def test_a_clone_that_joins_lets_newcomers_in(join: str) -> None:
    """There is a clone to serve them again, in whatever way it joined."""
    with closing(glb.bind_load_balanced(LOCAL)) as listener:
        refuse(listener)
        with closing(JOINS[join](listener)) as other:
            assert other.entry is listener.entry
            assert lets_in(listener.address)
        assert lets_in(listener.address)


@pytest.mark.thorough  # the kernel takes a second
def test_a_client_that_came_before_a_clone_joined_is_served() -> None:
    """Its kernel tries again, a second after the first time."""
    with closing(glb.bind_load_balanced(LOCAL)) as listener:
        refuse(listener)
        began = monotonic()
        with coming(listener.address) as client:
            assert state_of(client) == SYN_SENT
            with closing(glb.bind_load_balanced(listener.address)) as other:
                accepting = gevent.spawn(other.accept)
                connection, peer = accepting.get()
                assert peer == client.getsockname()
                assert monotonic() - began > 0.5
                connection.close()


def test_a_client_in_the_queue_of_an_entry_is_served() -> None:
    """What is refused is the way in, and not clients that are in."""
    with closing(glb.bind_load_balanced(LOCAL)) as listener:
        waiting = [connect(listener.address) for _ in range(3)]
        refuse(listener)
        for client in waiting:
            connection, peer = listener.accept()
            assert peer == client.getsockname()
            connection.close()
        close_all(waiting)


def test_an_entry_may_refuse_again_after_a_clone_joined() -> None:
    """Each time until the next one joins."""
    with closing(glb.bind_load_balanced(LOCAL)) as listener:
        for _ in range(3):
            refuse(listener)
            listener.dup().close()
            assert lets_in(listener.address)


def test_to_leave_does_not_let_newcomers_in() -> None:
    """Fewer are there to serve them, and not more."""
    with closing(glb.bind_load_balanced(LOCAL)) as listener:
        other = listener.dup()
        refuse(listener)
        other.close()
        assert not lets_in(listener.address)


def test_the_end_of_an_entry_frees_its_address_as_ever() -> None:
    """A client is refused by the kernel then, and the next socket there lets all in."""
    with closing(glb.bind_load_balanced(LOCAL)) as listener:
        refuse(listener)
        address = listener.address
    assert is_refused(address)
    with closing(glb.bind_load_balanced(address)):
        assert lets_in(address)


def test_a_closed_entry_refuses_nothing() -> None:
    """There is no way in."""
    with closing(glb.bind_load_balanced(LOCAL)) as listener:
        entry = listener.entry
    assert entry.refuse_newcomers() is False


def test_a_unix_entry_goes_on(path: str) -> None:
    """Its kernel can't."""
    with closing(glb.bind_load_balanced(f"unix:{path}")) as listener:
        assert listener.entry.refuse_newcomers() is False
        with connect(path):
            listener.accept()[0].close()


@pytest.mark.parametrize("shared", [False, True])
def test_a_socket_that_was_handed_in_goes_on_letting_newcomers_in(shared: bool) -> None:
    """It is left as it is: its other owner may accept, too."""
    with native_socket.create_server(LOCAL) as theirs:
        with closing(glb.Listener(REGISTRY.adopt(theirs.fileno(), shared=shared))) as listener:
            assert listener.entry.refuse_newcomers() is False
            assert lets_in(listener.address)
        assert lets_in(theirs.getsockname())


def test_a_socket_that_was_detached_goes_on_letting_newcomers_in() -> None:
    """As one that was handed in."""
    with closing(glb.bind_load_balanced(LOCAL)) as listener:
        other = listener.dup()
        with native_socket.socket(fileno=other.detach()):
            assert listener.entry.refuse_newcomers() is False
            assert lets_in(listener.address)


# -- a server that drains -----------------------------------------------------------------------


class OneByOne:
    """A handler that replies when it is let go on."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_go = 0

    def __call__(self, sock: Any, _peer: Any) -> None:
        self.begun += 1
        number = self.begun
        while self.may_go < number:
            gevent.sleep(0.001)
        sock.sendall(b"%d" % number)


def test_a_drain_serves_the_queue_and_lets_no_newcomer_in() -> None:
    """Of the last server of an address; a client that comes meanwhile tries again later."""
    handle = OneByOne()
    with StreamServer(LOCAL, handle, clones=2, max_connections=1) as server:
        server.start()
        address: Any = server.address
        clients = [connect(address) for _ in range(4)]
        wait_until(lambda: handle.begun == 1)
        entry = entry_of(server)
        draining = gevent.spawn(server.drain, linger=30)
        wait_until(lambda: entry._refuses_newcomers)
        assert not lets_in(address)
        with coming(address) as late:
            handle.may_go = 100
            assert [receive_all(client) for client in clients] == [b"1", b"2", b"3", b"4"]
            report = draining.get()
            assert state_of(late) == SYN_SENT
        assert (report.killed, handle.begun) == (0, 4)
        assert is_refused(address)
        close_all(clients)


def test_a_server_that_joins_a_draining_ones_address_gets_the_newcomers() -> None:
    """A successor that shares the address: no client is turned away."""
    handle = OneByOne()
    with StreamServer(LOCAL, handle, clones=2, max_connections=1, reuse_port=True) as server:
        server.start()
        address: Any = server.address
        clients = [connect(address) for _ in range(2)]
        wait_until(lambda: handle.begun == 1)
        entry = entry_of(server)
        draining = gevent.spawn(server.drain, linger=30)
        wait_until(lambda: entry._refuses_newcomers)
        assert not lets_in(address)
        with StreamServer(address, lambda sock, _: sock.sendall(b"new"), reuse_port=True) as other:
            other.start()
            assert ask(address) == b"new"
            handle.may_go = 100
            replies = [receive_all(client) for client in clients]
            assert (replies[0], replies[1] in (b"2", b"new")) == (b"1", True)
            draining.get()
            assert ask(address) == b"new"
        close_all(clients)


def test_other_servers_of_an_address_keep_it_open_to_newcomers() -> None:
    """A drain of one of them lets the others serve the queue."""
    handle = OneByOne()
    with StreamServer(LOCAL, handle, clones=2, reuse_port=True) as server:
        server.start()
        address: Any = server.address
        with StreamServer(address, lambda sock, _: sock.sendall(b"new"), reuse_port=True) as other:
            first = connect(address)
            wait_until(lambda: handle.begun == 1)
            other.start()
            draining = gevent.spawn(server.drain)
            wait_until(lambda: server.is_draining)
            assert lets_in(address)
            assert ask(address) == b"new"
            handle.may_go = 100
            assert receive_all(first) == b"1"
            draining.get()
            first.close()


def test_the_filter_is_what_the_comment_says() -> None:
    """It drops SYN without ACK, and passes whatever else a header may have."""

    def run(flags: int) -> int:
        accumulator, place = 0, 0
        program = [*struct.iter_unpack("=HBBI", sockets._NO_NEWCOMERS)]
        while True:
            code, if_true, if_false, number = program[place]
            place += 1
            if code == 0x30:
                accumulator = flags if number == 13 else 0
            elif code == 0x54:
                accumulator &= number
            elif code == 0x15:
                place += if_true if accumulator == number else if_false
            else:
                assert code == 0x06
                return int(number)

    syn, ack = 0x02, 0x10
    assert {flags for flags in range(256) if run(flags) == 0} == {
        flags for flags in range(256) if flags & syn and not flags & ack
    }
    assert {run(flags) for flags in range(256)} == {0, 0xFFFFFFFF}
