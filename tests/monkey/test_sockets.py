"""Shared sockets: a program's own become clones at `listen`, or stay what they are."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket as native_socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.server
import pytest
from gevent import select, socket, ssl

import glb
from glb.accept import exclusions
from glb.accept.registry import REGISTRY
from glb.monkey import sockets as shared_sockets
from glb.monkey.sockets import SharedSocket
from glb.net import sockets
from glb.net.connection import PlainSocket

from ..conftest import open_descriptors
from ..net.test_sockets import backlog_of, descriptor_limit
from ..support.adopting import (
    ANY,
    accept_now,
    bound,
    errno_of,
    has_ipv6,
    opened,
    queued,
    sockets_patched,
    wait_for_client,
)
from ..support.helpers import (
    Recorder,
    ask,
    close_all,
    connect,
    is_refused,
    let_hub_turn,
    receive_all,
    turns,
    wait_until,
)

CERTIFICATES = Path(gevent.__file__).parent / "tests"
needs_ipv6 = pytest.mark.skipif(not has_ipv6, reason="this machine has no IPv6")
ANY_6 = ("::1", 0)


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    with sockets_patched():
        yield


@pytest.fixture
def first() -> Iterator[socket.socket]:
    """A program's socket that listens with SO_REUSEPORT; closed after the test."""
    with opened() as sock:
        yield sock
    let_hub_turn()


def is_clone(sock: Any) -> bool:
    return isinstance(sock._sock, SharedSocket)


def file_of(sock: Any) -> Any:
    return sockets.file_of(sock.fileno())


def clones() -> list[int]:
    """Return how many clones each open address has, oldest first."""
    return [entry.clones for entry in glb.registry.entries()]


def reply(sock: Any, text: bytes) -> None:
    conn, _ = sock.accept()
    with conn:
        conn.sendall(text)


def orders(copies: list[Any], connections: int) -> list[int]:
    """Return which of *copies*, which all accept in loops, got each of so many connections."""

    def serve(index: int) -> None:
        while True:
            reply(copies[index], b"%d" % index)

    greenlets = []
    for index in range(len(copies)):
        greenlets.append(gevent.spawn(serve, index))
        let_hub_turn()
    order = [int(ask(copies[0].getsockname())) for _ in range(connections)]
    gevent.killall(greenlets)
    return order


class State:
    """What must not have changed: descriptors, the registry, and what a socket stands on."""

    def __init__(self, *socks: Any) -> None:
        self._socks = socks
        self._before = self._now()

    def _now(self) -> tuple[object, ...]:
        plain = [
            (sock._sock, sock.fileno(), sockets.is_idle(sock._sock), file_of(sock))
            for sock in self._socks
        ]
        queues = [entry.backlog for entry in REGISTRY]
        return open_descriptors(), glb.registry.entries(), queues, plain

    def check(self) -> None:
        REGISTRY.check()
        assert self._now() == self._before


# -- becoming a clone -------------------------------------------------------------------------


def test_the_first_becomes_a_clone_as_it_is() -> None:
    """The object, its number and its kernel socket stay; it is an entry of one clone."""
    with bound() as sock:
        number, file = sock.fileno(), file_of(sock)
        plain: Any = sock._sock  # type: ignore[attr-defined]  # not in the stubs
        assert (clones(), is_clone(sock)) == ([], False)
        sock.listen(7)
        assert is_clone(sock)
        assert (sock.fileno(), file_of(sock)) == (number, file)
        assert plain.fileno() == -1
        (entry,) = glb.registry.entries()
        assert (entry.address, entry.clones, entry.shared) == (sock.getsockname(), 1, True)
        with connect(sock.getsockname()) as client:
            conn, peer = sock.accept()
            assert (type(conn), peer) == (socket.socket, client.getsockname())
            assert (conn.gettimeout(), os.get_inheritable(conn.fileno())) == (None, False)
            conn.close()
    assert clones() == []
    assert is_refused(entry.address)


def test_a_later_one_stands_in_under_its_number(first: socket.socket) -> None:
    """Its number leads to the first one's kernel socket; its own is closed, and no more open."""
    with bound(first.getsockname()) as sock:
        number, before = sock.fileno(), open_descriptors()
        sock.settimeout(5)
        sock.listen()
        assert is_clone(sock)
        assert (sock.fileno(), file_of(sock)) == (number, file_of(first))
        assert (sock.gettimeout(), sock.type, sock.family) == (5, first.type, first.family)
        after = open_descriptors()
        assert after.keys() == before.keys()
        assert after[number] == after[first.fileno()] != before[number]
        assert clones() == [2]
    assert clones() == [1]


def test_copies_of_a_program_take_exact_turns(first: socket.socket) -> None:
    """Four sockets on one port: 0, 1, 2, 3, 0, ..."""
    copies = [first, *(opened(first.getsockname()) for _ in range(3))]
    assert orders(copies, 21) == turns(4, 21)
    close_all(copies)


@pytest.mark.parametrize("flag", [True, False])
def test_a_stand_ins_number_is_inherited_as_it_was(flag: bool, first: socket.socket) -> None:
    """What a program has said about its child programs still holds."""
    with bound(first.getsockname()) as sock:
        sock.set_inheritable(flag)
        sock.listen()
        assert sock.get_inheritable() is flag


def test_the_last_close_frees_the_address(first: socket.socket) -> None:
    """Whichever of them it is."""
    address = first.getsockname()
    second = opened(address)
    first.close()
    assert not is_refused(address)
    second.close()
    assert is_refused(address)
    with native_socket.socket() as again:
        again.bind(address)  # without any option


@needs_ipv6
def test_ipv6_sockets_are_clones_of_each_other() -> None:
    """Both only IPv6, or both not, have one entry."""
    one = opened(ANY_6, family=socket.AF_INET6)
    with one, opened(one.getsockname(), family=socket.AF_INET6) as other:
        assert clones() == [2]
        assert orders([one, other], 5) == turns(2, 5)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda host, port: (bytearray(host.encode()), port),
        lambda host, port: (host.encode(), port),
        lambda _, port: ("localhost", port),
        lambda _, port: ("127.1", port),
        lambda host, port: (host, type("Port", (), {"__index__": lambda _: port})()),
    ],
    ids=["bytearray", "bytes", "name", "short", "index"],
)
def test_whatever_names_the_address_joins_it(
    spelling: Callable[[str, int], Any], first: socket.socket
) -> None:
    """What counts is where the kernel has bound it; the same for glb's own entries."""
    with opened(spelling(*first.getsockname())):
        assert clones() == [2]
    listener = glb.bind(ANY, reuse_port=True)
    with listener, opened(spelling(*listener.address)):
        assert clones() == [1, 2]


# -- what is left alone -----------------------------------------------------------------------


def check_left_alone(*socks: Any) -> None:
    """Check that *socks* listen as the kernel's own, beside the entries that there were."""
    for sock in socks:
        assert not is_clone(sock)
        assert not sockets.is_idle(sock._sock)
    assert len({file_of(sock) for sock in socks}) == len(socks)


def test_without_the_option_it_is_nobodys_clone() -> None:
    """A socket that doesn't ask for sharing is the kernel's own."""
    with socket.socket() as sock:
        sock.bind(ANY)
        sock.listen()
        check_left_alone(sock)
        assert clones() == []
        greenlet = gevent.spawn(reply, sock, b"alone")
        assert ask(sock.getsockname()) == b"alone"
        greenlet.get()


@pytest.mark.parametrize("has_option", [(True, False), (False, True), (False, False)])
def test_the_option_missing_on_one_of_two_is_refused(has_option: tuple[bool, bool]) -> None:
    """EADDRINUSE from the kernel's bind, whichever it is, and nothing has changed."""
    with socket.socket() as one, socket.socket() as other:
        for sock, flag in zip((one, other), has_option, strict=True):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, flag)
        one.bind(ANY)
        one.listen()
        state = State(one, other)
        with pytest.raises(OSError, match="in use") as caught:
            other.bind(one.getsockname())
        assert errno_of(caught.value) == "EADDRINUSE"
        state.check()
        assert clones() == ([1] if has_option[0] else [])


def test_the_option_counts_when_it_listens() -> None:
    """Set after bind, it lets later ones bind as the kernel does, and is shared."""
    with socket.socket() as one:
        one.bind(ANY)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.listen()
        assert is_clone(one)
        with opened(one.getsockname()) as other:
            assert orders([one, other], 5) == turns(2, 5)


def test_the_option_taken_back_before_listen_is_no_wish(first: socket.socket) -> None:
    """It is bound beside the clones then; whether it may listen is the kernel's to say."""
    with bound(first.getsockname()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
        with contextlib.suppress(OSError):
            sock.listen()
        assert not is_clone(sock)
        assert clones() == [1]


def test_a_datagram_socket_on_the_same_port_is_no_clone(first: socket.socket) -> None:
    """UDP and TCP have their ports apart, SO_REUSEPORT or not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        udp.bind(first.getsockname())
        with pytest.raises(OSError, match="not supported") as caught:
            udp.listen()
        assert caught.value.errno == errno.EOPNOTSUPP
        assert not is_clone(udp)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"datagram", udp.getsockname())
            assert udp.recv(100) == b"datagram"
        assert clones() == [1]
    greenlet = gevent.spawn(reply, first, b"stream")
    assert ask(first.getsockname()) == b"stream"
    greenlet.get()


def test_a_unix_socket_with_the_option_is_the_kernels(tmp_path: Path) -> None:
    """There it means nothing to us, and a path that is taken is refused."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError:
            pass  # since Linux 6.13
        sock.bind(f"{tmp_path}/app.sock")
        sock.listen()
        check_left_alone(sock)
        assert clones() == []


@needs_ipv6
def test_another_family_is_left_alone() -> None:
    """An IPv4 address in IPv6 clothes is one place, and its sockets are two kinds."""
    with opened() as one, socket.socket(socket.AF_INET6) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        other.bind(("::ffff:127.0.0.1", one.getsockname()[1]))
        state = clones()
        other.listen()
        check_left_alone(other)
        assert clones() == state == [1]
        assert other.getsockname()[0] == "::ffff:127.0.0.1"


@needs_ipv6
def test_mapped_addresses_are_clones_of_each_other() -> None:
    """Alike in all, they share the entry of the address that they mean."""
    with socket.socket(socket.AF_INET6) as one, socket.socket(socket.AF_INET6) as other:
        for sock in (one, other):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        one.bind(("::ffff:127.0.0.1", 0))
        one.listen()
        other.bind(one.getsockname())
        other.listen()
        assert clones() == [2]
        assert (one.family, other.family) == (socket.AF_INET6, socket.AF_INET6)
        greenlet = gevent.spawn(reply, one, b"mapped")
        assert ask(("127.0.0.1", one.getsockname()[1])) == b"mapped"
        greenlet.get()


@needs_ipv6
@pytest.mark.parametrize("v6only", [(0, 1), (1, 0)])
def test_ipv6_only_beside_not_only_is_left_alone(v6only: tuple[int, int]) -> None:
    """The kernel has two sockets there, or refuses, as without glb."""
    with socket.socket(socket.AF_INET6) as one, socket.socket(socket.AF_INET6) as other:
        for sock, flag in zip((one, other), v6only, strict=True):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, flag)
        one.bind(("::", 0))  # of any other address the kernel says that it is IPv6 alone
        one.listen()
        other.bind(one.getsockname())
        other.listen()
        check_left_alone(other)
        assert (is_clone(one), clones()) == (True, [1])


def test_another_interface_is_left_alone(first: socket.socket) -> None:
    """A socket bound to a device gets that device's connections, and no others."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        except PermissionError:
            pytest.skip("may not bind to a device")
        other.bind(first.getsockname())
        other.listen()
        check_left_alone(other)
        assert clones() == [1]
        with socket.socket() as third:
            third.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            third.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
            third.bind(first.getsockname())
            third.listen()
            check_left_alone(other, third)


def test_port_0_is_a_port_of_its_own_each_time() -> None:
    """Two that take any port have two addresses, and two entries."""
    with opened() as one, opened() as other:
        assert one.getsockname() != other.getsockname()
        assert clones() == [1, 1]


def test_what_listens_already_is_left_alone() -> None:
    """A socket that came from elsewhere, with SO_REUSEPORT, listens again as before."""
    with native_socket.create_server(ANY, reuse_port=True) as theirs:
        sock = socket.socket(fileno=os.dup(theirs.fileno()))
        with sock:
            sock.listen(5)
            check_left_alone(sock)
            assert clones() == []


def test_another_hosts_address_is_another_entry() -> None:
    """The same port of 127.0.0.1 and of 127.0.0.2; and of all hosts, if the kernel lets it."""
    with opened() as one:
        port = one.getsockname()[1]
        with opened(("127.0.0.2", port)) as other, opened(("0.0.0.0", port)) as every:
            assert clones() == [1, 1, 1]
            for sock, text in ((one, b"1"), (other, b"2"), (every, b"*")):
                gevent.spawn(reply, sock, text)
            let_hub_turn()
            assert [ask((f"127.0.0.{last}", port)) for last in (3, 2, 1)] == [b"*", b"2", b"1"]


def test_what_is_connected_does_not_listen(first: socket.socket) -> None:
    """The kernel says no, and it is no clone."""
    with opened() as target, bound(first.getsockname()) as sock:
        sock.connect(target.getsockname())
        state = State(first, sock)
        with pytest.raises(OSError, match="Invalid") as caught:
            sock.listen()
        assert errno_of(caught.value) == "EINVAL"
        state.check()
        target.accept()[0].close()


# -- bind without listen ----------------------------------------------------------------------


def test_a_socket_that_binds_a_shared_address_and_connects_is_no_clone(
    first: socket.socket,
) -> None:
    """An outgoing connection from a port that is shared is the kernel's own."""
    with opened() as target, bound(first.getsockname()) as client:
        client.connect(target.getsockname())
        conn, peer = target.accept()
        with conn:
            assert peer == first.getsockname()
            client.sendall(b"out")
            assert conn.recv(10) == b"out"
        assert not is_clone(client)
        assert clones() == [1, 1]


def test_a_socket_that_binds_and_closes_leaves_nothing(first: socket.socket) -> None:
    """Bound alone, it is in no entry and takes no turn."""
    with bound(first.getsockname()) as sock:
        assert (is_clone(sock), clones()) == (False, [1])
        with pytest.raises(OSError, match="Invalid") as caught:
            sock.accept()
        assert errno_of(caught.value) == "EINVAL"
        assert [accept_now(first) for _ in range(1)] == [False]
    assert clones() == [1]


def test_a_bound_socket_keeps_the_address_when_the_clones_are_gone() -> None:
    """It listens then as the first."""
    with opened() as one, bound(one.getsockname()) as sock:
        one.close()
        assert clones() == []
        sock.listen()
        assert (is_clone(sock), clones()) == (True, [1])
        assert orders([sock], 2) == [0, 0]


# -- entries of glb's own ---------------------------------------------------------------------


def test_a_programs_socket_joins_a_listener_of_ours() -> None:
    """`glb.bind`'s has no SO_REUSEPORT, and the kernel refuses; then it is let in, in turn."""
    with glb.bind(ANY, reuse_port=True) as ours, bound(ours.address) as sock:
        assert (is_clone(sock), clones()) == (True, [2])
        assert sock.getsockname() == ours.address
        with pytest.raises(OSError, match="Invalid") as caught:  # as one that doesn't listen
            sock.accept()
        assert errno_of(caught.value) == "EINVAL"
        with queued(sock):
            assert accept_now(ours)
        sock.listen()
        assert orders([ours, sock], 6) == turns(2, 6)
    assert clones() == []


def test_the_kernel_is_asked_before_an_entry_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that the kernel binds, or refuses for another reason, joins nothing."""
    asked: list[Any] = []

    def bind(_: object, address: Any) -> bool:
        asked.append(address)
        return False

    monkeypatch.setattr(shared_sockets, "_join_ours", bind)
    with bound() as free:
        assert asked == []
        with pytest.raises(OSError, match="Invalid") as caught:
            free.bind(ANY)  # bound already
        assert (errno_of(caught.value), asked) == ("EINVAL", [])
        address = free.getsockname()
        with socket.socket() as other, pytest.raises(OSError, match="in use") as caught:
            other.bind(address)
        assert (errno_of(caught.value), asked) == ("EADDRINUSE", [address])


@pytest.mark.parametrize(
    "make",
    [
        lambda: glb.bind_load_balanced(ANY),
        lambda: glb.bind_direct(ANY),
        lambda: native_socket.create_server(ANY),
    ],
    ids=["shared", "direct", "another's"],
)
def test_without_the_option_a_taken_address_is_refused(make: Callable[[], Any]) -> None:
    """EADDRINUSE from any owner, and the socket can still be bound elsewhere."""
    with make() as taken, socket.socket() as sock:
        state = State(sock)
        with pytest.raises(OSError, match="in use") as caught:
            sock.bind(taken.getsockname())
        assert errno_of(caught.value) == "EADDRINUSE"
        state.check()
        sock.bind(ANY)


@pytest.mark.parametrize(
    "make",
    [lambda: glb.bind_direct(ANY), lambda: native_socket.create_server(ANY)],
    ids=["direct", "another's"],
)
def test_with_the_option_an_unshared_address_is_refused(make: Callable[[], Any]) -> None:
    """Only what is open to be shared is joined."""
    with make() as taken, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        state = State(sock)
        with pytest.raises(OSError, match="in use"):
            sock.bind(taken.getsockname())
        state.check()


def test_a_connections_port_is_refused_though_an_entry_was_there() -> None:
    """A user of the port that isn't a listener keeps it, as the kernel has it."""
    with socket.socket() as target, socket.socket() as user:
        target.bind(ANY)
        target.listen()
        user.connect(target.getsockname())
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                sock.bind(user.getsockname())
            assert (is_clone(sock), clones()) == (False, [])


@needs_ipv6
def test_a_socket_unlike_ours_is_refused() -> None:
    """The kernel's EADDRINUSE stands where family or options differ, and nothing is shared."""
    with glb.bind(ANY, reuse_port=True) as ours, socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        state = State(sock)
        with pytest.raises(OSError, match="in use") as caught:
            sock.bind(("::ffff:127.0.0.1", ours.address[1]))
        assert errno_of(caught.value) == "EADDRINUSE"
        state.check()
    with glb.bind(ANY_6, reuse_port=True) as ours, socket.socket(socket.AF_INET6) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        flag = ours.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not flag)
        with pytest.raises(OSError, match="in use"):
            sock.bind(ours.address)
        assert clones() == [1]


def test_ours_may_join_a_programs() -> None:
    """`glb.bind` finds the entry that a program's socket opened."""
    with opened() as sock, glb.bind(sock.getsockname(), reuse_port=True) as ours:
        assert clones() == [2]
        assert orders([sock, ours], 6) == turns(2, 6)


# -- listen again, and backlogs ---------------------------------------------------------------


def queue_of(sock: Any) -> int:
    """Return the accept queue's length as the kernel has it."""
    with native_socket.socket(fileno=os.dup(sock.fileno())) as copy:
        return backlog_of(copy)


def test_each_copy_brings_its_own_queue() -> None:
    """Four sockets of 5 would hold 20 clients without glb: the one that they share does too."""
    with opened(ANY, 5) as one:
        assert queue_of(one) == 5
        with opened(one.getsockname(), 7) as other:
            assert (queue_of(one), queue_of(other)) == (12, 12)
            with opened(one.getsockname()):
                assert queue_of(one) == 12 + shared_sockets.PYTHONS_BACKLOG
            assert [entry.backlog for entry in REGISTRY] == [12 + shared_sockets.PYTHONS_BACKLOG]


def test_listening_again_makes_the_queue_longer_and_never_shorter(first: socket.socket) -> None:
    """All share it. The clone stays one clone."""
    length = queue_of(first)
    for backlog, expected in ((1, length), (length + 50, length + 50), (-5, length + 50)):
        first.listen(backlog)
        assert queue_of(first) == expected
    first.listen()
    assert clones() == [1]
    assert orders([first], 2) == [0, 0]


def test_a_negative_backlog_is_none() -> None:
    """As listen(2) of Python has it."""
    with opened(ANY, -3) as sock:
        assert queue_of(sock) == 0
        assert [entry.backlog for entry in REGISTRY] == [0]


@pytest.mark.parametrize(
    ("args", "error"),
    [(("5",), TypeError), ((1, 2), TypeError), ((5.0,), TypeError), ((2**40,), OverflowError)],
)
@pytest.mark.parametrize("step", ["first", "later", "again", "joined"])
def test_a_backlog_that_cannot_be_is_refused(
    step: str, args: tuple[Any, ...], error: type[Exception], first: socket.socket
) -> None:
    """The error is the plain socket's own, and nothing has changed."""
    with glb.bind(ANY, reuse_port=True) as ours:
        make: dict[str, Callable[[], socket.socket]] = {
            "first": bound,
            "later": lambda: bound(first.getsockname()),
            "again": lambda: opened(first.getsockname()),
            "joined": lambda: bound(ours.address),
        }
        with make[step]() as sock:
            state = State(first, sock)
            with pytest.raises(error):
                sock.listen(*args)
            state.check()
            sock.listen()
            assert is_clone(sock)


# -- shutdown ---------------------------------------------------------------------------------


def check_not_listening(sock: Any) -> None:
    """Check that it takes no connections: accept is EINVAL, and shutdown ENOTCONN."""
    with pytest.raises(OSError, match="Invalid") as caught:
        sock.accept()
    assert errno_of(caught.value) == "EINVAL"
    for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        with pytest.raises(OSError, match="not connected") as caught:
            sock.shutdown(how)
        assert errno_of(caught.value) == "ENOTCONN"


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_a_clone_that_was_shut_down_is_bound_and_no_more(how: int, first: socket.socket) -> None:
    """A kernel socket of its own, as after shutdown(2); no clone; the others go on."""
    with opened(first.getsockname()) as other:
        first.settimeout(5)
        first.set_inheritable(True)
        number, address, before = first.fileno(), first.getsockname(), open_descriptors()
        first.shutdown(how)
        assert (first.fileno(), first.getsockname()) == (number, address)
        assert (first.gettimeout(), first.get_inheritable()) == (5, True)
        assert file_of(first) != file_of(other)
        assert sockets.is_idle(first._sock)  # type: ignore[attr-defined]  # not in the stubs
        assert (is_clone(first), clones()) == (False, [1])
        assert open_descriptors().keys() == before.keys()
        check_not_listening(first)
        assert orders([other], 2) == [0, 0]


def test_a_clone_that_was_shut_down_listens_again(first: socket.socket) -> None:
    """Then it is a clone again, under the same number."""
    with opened(first.getsockname()) as other:
        for _ in range(2):
            number = first.fileno()
            first.shutdown(socket.SHUT_RDWR)
            first.listen()
            assert (first.fileno(), is_clone(first), clones()) == (number, True, [2])
            assert file_of(first) == file_of(other)
            assert orders([first, other], 4) == turns(2, 4)


def test_clients_are_refused_when_all_clones_are_shut_down(first: socket.socket) -> None:
    """As by any address without a listener; the first that listens again is the first."""
    address = first.getsockname()
    with opened(address) as other:
        first.shutdown(socket.SHUT_RDWR)
        assert not is_refused(address)
        other.shutdown(socket.SHUT_RD)
        assert (is_refused(address), clones()) == (True, [])
        other.listen()
        first.listen()
        assert clones() == [2]
        assert orders([other, first], 4) == turns(2, 4)


def test_shutting_down_what_is_written_ends_nothing(first: socket.socket) -> None:
    """A listening socket writes nothing."""
    first.shutdown(socket.SHUT_WR)
    assert (is_clone(first), clones()) == (True, [1])
    assert orders([first], 2) == [0, 0]


@pytest.mark.parametrize(
    ("how", "error"), [(99, OSError), (-1, OSError), ("x", TypeError), (None, TypeError)]
)
def test_a_way_to_shut_down_that_cannot_be_is_refused(
    how: Any, error: type[Exception], first: socket.socket
) -> None:
    """EINVAL, or TypeError, as of the kernel's own; and nothing has changed."""
    state = State(first)
    with pytest.raises(error) as caught:
        first.shutdown(how)
    assert error is TypeError or errno_of(caught.value) == "EINVAL"
    state.check()
    assert orders([first], 2) == [0, 0]


def test_a_shutdown_ends_a_waiting_accept(first: socket.socket) -> None:
    """EINVAL in accept, and what others wait for is theirs."""
    with opened(first.getsockname()) as other:
        greenlet, survivor = gevent.spawn(first.accept), gevent.spawn(reply, other, b"other")
        let_hub_turn()
        first.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError, match="Invalid") as caught:
            greenlet.get()
        assert errno_of(caught.value) == "EINVAL"
        assert ask(other.getsockname()) == b"other"
        survivor.get()


def check_cancelled(sock: Any, other: Any) -> None:
    """Check that *sock*, a clone that was shut down, takes nothing until it listens again."""
    assert is_clone(sock)
    check_not_listening(sock)
    assert orders([other], 2) == [0, 0]
    sock.listen()
    assert sorted(orders([sock, other], 4)) == [0, 0, 1, 1]


def test_copies_are_shut_down_together(first: socket.socket) -> None:
    """As the kernel's are; they stay clones, for they could not all get another socket."""
    with first.dup() as copy, opened(first.getsockname()) as other:
        first.shutdown(socket.SHUT_RDWR)
        assert (is_clone(first), is_clone(copy), clones()) == (True, True, [3])
        check_not_listening(copy)
        check_cancelled(first, other)
        assert accept_now(copy) is False  # it listens as well


def test_without_an_address_of_its_own_it_stays_a_clone() -> None:
    """The kernel binds nothing beside a listener of ours: it is one that takes nothing."""
    with glb.bind(ANY, reuse_port=True) as ours, opened(ours.address) as sock:
        before = open_descriptors()
        sock.shutdown(socket.SHUT_RDWR)
        assert (open_descriptors(), clones()) == (before, [2])
        check_cancelled(sock, ours)


def test_without_a_descriptor_it_stays_a_clone(first: socket.socket) -> None:
    """There is none for a socket of its own; shutting down can't fail."""
    with opened(first.getsockname()) as other:
        with descriptor_limit(0):
            first.shutdown(socket.SHUT_RDWR)
        assert clones() == [2]
        check_cancelled(first, other)


def test_a_clone_does_not_connect(first: socket.socket) -> None:
    """Its kernel socket is others' too. Of one that listens gevent says nothing, of any."""
    with opened() as target, glb.bind(ANY, reuse_port=True) as ours, bound(ours.address) as sock:
        state = State(first, sock)
        assert first.connect_ex(target.getsockname()) in (0, errno.EISCONN)
        with pytest.raises(OSError, match="in use") as caught:
            sock.connect(target.getsockname())
        assert errno_of(caught.value) == "EADDRINUSE"
        assert sock.connect_ex(target.getsockname()) == errno.EADDRINUSE
        state.check()
        target.settimeout(0)
        with pytest.raises(BlockingIOError):
            target.accept()


# -- descriptors ------------------------------------------------------------------------------


def test_a_detached_number_is_a_clone_again_when_it_is_made_a_socket(first: socket.socket) -> None:
    """`detach`, and `socket(fileno=)`, with other clones there: out of the ring and back."""
    with opened(first.getsockname()) as other:
        number = first.detach()
        assert clones() == [1]
        assert orders([other], 2) == [0, 0]
        with socket.socket(fileno=number) as again:
            assert (again.fileno(), is_clone(again), clones()) == (number, True, [2])
            assert orders([other, again], 4) == turns(2, 4)


def test_the_only_one_detached_opens_its_address_again(first: socket.socket) -> None:
    """There is none meanwhile, and a later one joins."""
    address, length = first.getsockname(), queue_of(first)
    number = first.detach()
    assert clones() == []
    with socket.socket(fileno=number) as again:
        assert (is_clone(again), clones()) == (True, [1])
        with opened(address) as other:
            assert queue_of(again) == length + shared_sockets.PYTHONS_BACKLOG
            assert orders([again, other], 4) == turns(2, 4)


def test_a_listen_beside_a_detached_number_joins_its_socket(first: socket.socket) -> None:
    """A program that keeps a number and opens the address again has one kernel socket."""
    address = first.getsockname()
    number = first.detach()
    with opened(address) as other:
        assert file_of(other) == sockets.file_of(number)
        assert clones() == [1]
        with socket.socket(fileno=number) as again:
            assert orders([other, again], 4) == turns(2, 4)


def test_a_detached_number_that_was_closed_is_forgotten(first: socket.socket) -> None:
    """Whatever has it then is what it is."""
    address = first.getsockname()
    number = first.detach()
    os.close(number)
    with socket.socket() as plain:
        assert plain.fileno() == number
        plain.bind(address)
        assert not is_clone(plain)
        with socket.socket(fileno=os.dup(number)) as copy:
            assert not is_clone(copy)
    with opened(address) as sock:
        assert (is_clone(sock), clones()) == (True, [1])
    assert is_refused(address)


def test_a_detached_number_keeps_what_it_was_given(first: socket.socket) -> None:
    """Without other clones, the next object on that number gets the connection of its turn."""
    with pending_client(first) as client:
        number = first.detach()
        with socket.socket(fileno=number) as again:
            conn, peer = again.accept()
            with conn:
                assert peer == client.getsockname()


def test_what_was_given_to_a_number_that_is_detached_is_the_next_ones(
    first: socket.socket,
) -> None:
    """That number may never be used again."""
    with (
        opened(first.getsockname()) as other,
        pending_client(first) as client,
        socket.socket(fileno=first.detach()),
    ):
        conn, peer = other.accept()
        with conn:
            assert peer == client.getsockname()


def test_what_was_given_to_a_number_that_is_closed_ends(first: socket.socket) -> None:
    """As what a kernel's socket has in its queue when it closes; no descriptor is left."""
    with pending_client(first) as client:
        number = first.detach()
        os.close(number)
        with native_socket.socket() as plain, opened():
            assert plain.fileno() == number
            with contextlib.closing(socket.socket(fileno=os.dup(number))):
                socket.socket(fileno=number).detach()
        assert client.recv(1) == b""


@contextlib.contextmanager
def pending_client(clone: Any) -> Iterator[native_socket.socket]:
    """Yield a client whose connection is pending for *clone*, polled and not accepted."""
    select.select([clone], [], [], 0)
    with queued(clone) as client:
        assert select.select([clone], [], [], 0)[0] == [clone]
        yield client


COPIERS: dict[str, Callable[[socket.socket], socket.socket]] = {
    "dup": lambda sock: sock.dup(),
    "fromfd": lambda sock: socket.fromfd(sock.fileno(), sock.family, sock.type),
    "fileno": lambda sock: socket.socket(fileno=sock.fileno()),
}


@pytest.mark.parametrize("make", COPIERS.values(), ids=COPIERS)
def test_copies_share_a_turn(
    make: Callable[[socket.socket], socket.socket], first: socket.socket
) -> None:
    """By `dup`, by `fromfd`, by `socket(fileno=)`: one place in line, with all that wait there."""
    copy = make(first)
    with opened(first.getsockname()) as other:
        assert (is_clone(copy), clones()) == (True, [3])
        assert orders([first, other, copy], 8) == [0, 1, 2, 1] * 2
        if copy.fileno() == first.fileno():
            copy.detach()
        else:
            copy.close()
        assert clones() == [2]
        assert sorted(orders([first, other], 6)) == [0, 0, 0, 1, 1, 1]


def test_a_copy_lives_on_when_the_first_is_closed(first: socket.socket) -> None:
    """The accept waiters are there until the last is closed; a timeout is each object's own."""
    first.settimeout(5)
    with first.dup() as copy, opened(first.getsockname()) as other:
        assert (type(copy), copy.gettimeout()) == (type(first), 5)
        copy.settimeout(None)
        assert (first.gettimeout(), copy.fileno() != first.fileno()) == (5, True)
        first.close()
        assert clones() == [2]
        assert orders([copy, other], 4) == turns(2, 4)


def test_a_connection_that_one_copy_polled_another_accepts(first: socket.socket) -> None:
    """One pending connection, for the first of them that accepts."""
    with first.dup() as copy, opened(first.getsockname()) as other, pending_client(first):
        assert select.select([copy], [], [], 0)[0] == [copy]
        first.close()
        assert [accept_now(each) for each in (other, copy, copy)] == [False, True, False]


@pytest.mark.usefixtures("first")
def test_a_duplicate_of_a_plain_socket_is_plain() -> None:
    """Only clones have clones."""
    with socket.socket() as sock, sock.dup() as copy:
        other = socket.fromfd(sock.fileno(), sock.family, sock.type)
        assert [is_clone(each) for each in (copy, other)] == [False, False]
        assert clones() == [1]
        other.close()


def test_two_objects_on_one_number_are_two_clones(first: socket.socket) -> None:
    """As programs do that pass numbers about; a detach leaves the other a clone."""
    other = socket.socket(fileno=first.fileno())
    assert (is_clone(other), clones()) == (True, [2])
    assert other._sock.waiters is first._sock.waiters  # type: ignore[attr-defined]  # as above
    assert other.detach() == first.fileno()
    assert clones() == [1]
    assert orders([first], 2) == [0, 0]


def test_tls_over_a_listening_clone_has_its_turns(first: socket.socket) -> None:
    """The wrapped socket takes the number over, and with it the place as a clone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / "test_server.crt", CERTIFICATES / "test_server.key")
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    theirs.check_hostname = False
    theirs.verify_mode = ssl.CERT_NONE
    address, number = first.getsockname(), first.fileno()
    copies = [context.wrap_socket(each, server_side=True) for each in (first, opened(address))]
    assert copies[0].fileno() == number
    assert (clones(), [is_clone(each) for each in copies]) == ([2], [True, True])

    def serve(index: int) -> None:
        while True:
            conn, _ = copies[index].accept()
            with conn:
                conn.sendall(b"%d" % index)
                conn.unwrap()

    def ask_tls() -> bytes:
        with theirs.wrap_socket(connect(address)) as client:
            found: bytes = client.recv(10)
            client.unwrap()
            return found

    greenlets = []
    for index in range(2):
        greenlets.append(gevent.spawn(serve, index))
        let_hub_turn()
    assert [int(ask_tls()) for _ in range(5)] == turns(2, 5)
    gevent.killall(greenlets)
    close_all(copies)
    assert clones() == []


# -- excluded addresses -----------------------------------------------------------------------

EXCLUSIONS: dict[str, Callable[[int], Any]] = {
    "tuple": lambda port: ("127.0.0.1", port),
    "text": lambda port: f"127.0.0.1:{port}",
    "name": lambda port: f"localhost:{port}",
    "mapped": lambda port: f"[::ffff:127.0.0.1]:{port}",
    "port": int,
    "port as text": str,
    "every host": lambda port: f":{port}",
    "star": lambda port: f"*:{port}",
    "no host": lambda port: ("", port),
    "bytes": lambda port: (b"127.0.0.1", port),
}


@pytest.mark.parametrize("spelling", EXCLUSIONS.values(), ids=EXCLUSIONS)
def test_an_excluded_address_is_let_alone(spelling: Callable[[int], Any]) -> None:
    """In any form: only the kernel may share it; other addresses are as ever."""
    with native_socket.create_server(ANY, reuse_port=True) as free:
        port = free.getsockname()[1]
        exclusions.exclude(exclusions.exclusions([spelling(port)]))
        with opened(free.getsockname()) as one, opened(free.getsockname()) as other:
            check_left_alone(one, other)
            assert clones() == []
        with opened():
            assert clones() == [1]


@pytest.mark.parametrize("spelling", ["127.0.0.2", "[::1]"])
def test_another_host_of_that_port_is_not_excluded(spelling: str) -> None:
    """Only one without a host is every host's."""
    with bound() as sock:
        exclusions.exclude(
            exclusions.exclusions([f"{spelling}:{sock.getsockname()[1]}", "unix:/run/app.sock"])
        )
        sock.listen()
        assert (is_clone(sock), clones()) == (True, [1])


def test_an_excluded_address_of_ours_is_not_joined() -> None:
    """The kernel's EADDRINUSE stands."""
    with glb.bind(ANY, reuse_port=True) as ours:
        exclusions.exclude(exclusions.exclusions([ours.address]))
        with pytest.raises(OSError, match="in use"):
            bound(ours.address)
        assert clones() == [1]


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (3.5, TypeError, "3.5"),
        ("127.0.0.1:http", ValueError, "http"),
        (("127.0.0.1", 70000), ValueError, "70000"),
        (f"{'x' * 64}:80", ValueError, "x" * 64),
    ],
)
def test_exclusions_are_all_or_none(wrong: Any, error: type[Exception], text: str) -> None:
    """One that is wrong, and the error has its value: the others aren't excluded either."""
    with bound() as sock:
        with pytest.raises(error, match=text):
            exclusions.exclude(exclusions.exclusions([sock.getsockname(), wrong]))
        sock.listen()
        assert (is_clone(sock), exclusions.EXCLUDED) == (True, set())


def test_exclusions_can_be_undone() -> None:
    """Sockets that listen from then on are clones."""
    with bound() as sock:
        exclusions.exclude(exclusions.exclusions([sock.getsockname()]))
        exclusions.exclude_nothing()
        sock.listen()
        assert is_clone(sock)


# -- failing steps ----------------------------------------------------------------------------


def fail(number: int) -> Callable[..., Any]:
    def failing(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return failing


# What each way of becoming a clone does, one after the other.
STEPS = {
    "first": ["adopt"],
    "later": ["stand_in"],
    "joining ours": ["stand_in", "numeric"],
    "dup": ["duplicate"],
}


@pytest.mark.parametrize(("way", "step"), [(way, step) for way in STEPS for step in STEPS[way]])
def test_a_step_that_fails_leaves_all_as_it_was(
    way: str, step: str, first: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is the step's; all is as before, descriptors included, and then it works."""
    with glb.bind(ANY, reuse_port=True) as ours, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if way == "first":
            sock.bind(ANY)
        elif way == "later":
            sock.bind(first.getsockname())
        act: dict[str, Callable[[], Any]] = {
            "first": sock.listen,
            "later": sock.listen,
            "joining ours": lambda: sock.bind(ours.address),
            "dup": lambda: first.dup().close(),
        }
        state = State(first, ours, sock)
        with monkeypatch.context() as patch:
            patch.setattr(sockets, step, fail(errno.EMFILE))
            with pytest.raises(OSError, match=r"open files|in use") as caught:
                act[way]()
        # Of an address that can't be read we know nothing: then the kernel's word stands.
        expected = "EADDRINUSE" if step == "numeric" else "EMFILE"
        assert errno_of(caught.value) == expected
        state.check()
        act[way]()


@pytest.mark.parametrize("way", ["first", "later", "dup", "fromfd"])
def test_out_of_descriptors_nothing_is_half_shared(way: str, first: socket.socket) -> None:
    """EMFILE where a new number is needed; standing in needs none."""
    with bound(first.getsockname() if way == "later" else ANY) as sock:
        act: dict[str, Callable[[], Any]] = {
            "first": sock.listen,
            "later": sock.listen,
            "dup": first.dup,
            "fromfd": lambda: socket.fromfd(first.fileno(), first.family, first.type),
        }
        state = State(first, sock)
        if way == "later":
            with descriptor_limit(0):
                sock.listen()
            assert is_clone(sock)
            return
        with descriptor_limit(0), pytest.raises(OSError, match="open files") as caught:
            act[way]()
        assert errno_of(caught.value) == "EMFILE"
        state.check()
        made = act[way]()
        if made is not None:
            made.close()


def test_a_queue_that_cannot_grow_leaves_the_later_one_as_it_was(
    first: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share is given back; as for one that joined an entry of ours."""
    with bound(first.getsockname()) as sock:
        state = State(first, sock)
        with monkeypatch.context() as patch:
            patch.setattr(REGISTRY, "raise_backlog", fail(errno.ENOBUFS))
            with pytest.raises(OSError, match="buffer") as caught:
                sock.listen()
        assert errno_of(caught.value) == "ENOBUFS"
        state.check()


class Unwilling(PlainSocket):  # type: ignore[misc]  # the stubs leave gevent's out
    """A plain socket of which the kernel says that it can't listen."""

    def listen(self, *_: object) -> None:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def test_a_kernel_that_will_not_listen_leaves_the_first_as_it_was() -> None:
    """Its error, and no entry. A fake: real kernels refuse at bind what they refuse."""
    with bound() as sock:
        plain: Any = sock._sock  # type: ignore[attr-defined]  # not in the stubs
        sock._sock = Unwilling(plain.family, plain.type, plain.proto, plain.detach())  # type: ignore[attr-defined]  # as above
        state = State(sock)
        with pytest.raises(OSError, match="in use") as caught:
            sock.listen()
        assert errno_of(caught.value) == "EADDRINUSE"
        state.check()
        assert clones() == []


def test_an_object_that_cannot_become_a_clone_is_plain(
    first: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`socket(fileno=)` on a clone's number never fails for our sake."""
    with monkeypatch.context() as patch:
        patch.setattr(REGISTRY, "acquire", fail(errno.EMFILE))
        other = socket.socket(fileno=first.fileno())
    assert (is_clone(other), clones()) == (False, [1])
    other.detach()


# -- dropped ----------------------------------------------------------------------------------


@pytest.mark.parametrize("has_accepted", [False, True])
def test_a_clone_that_is_dropped_warns_and_frees_the_address(has_accepted: bool) -> None:
    """As any socket that is not closed: the registry doesn't keep it alive."""
    sock = opened()
    address, number = sock.getsockname(), sock.fileno()
    if has_accepted:
        assert orders([sock], 2) == [0, 0]
        let_hub_turn()
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031  # either may drop it
        del sock
        gc.collect()
    assert (clones(), number in open_descriptors()) == ([], False)
    assert is_refused(address)


def test_a_later_one_that_is_dropped_leaves_the_others(first: socket.socket) -> None:
    """Its share is given back, and the turns are the others'."""
    second = opened(first.getsockname())
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031  # as above
        del second
        gc.collect()
    assert clones() == [1]
    assert orders([first], 2) == [0, 0]


def test_a_file_of_a_clone_keeps_it_open(first: socket.socket) -> None:
    """makefile() counts, as on every socket."""
    address = first.getsockname()
    file = first.makefile("rb")
    first.close()
    assert clones() == [1]
    file.close()
    assert is_refused(address)


# -- accepting --------------------------------------------------------------------------------


def test_time_is_the_clones_own(first: socket.socket) -> None:
    """Timeouts as on a socket of its own, none of it a connection's or another clone's."""
    with opened(first.getsockname()) as other:
        first.settimeout(0.01)
        with pytest.raises(TimeoutError, match="timed out"):
            first.accept()
        first.setblocking(False)
        with pytest.raises(BlockingIOError):
            first.accept()
        assert (first.gettimeout(), other.gettimeout()) == (0, None)
        first.settimeout(5)
        with queued(first):
            conn, _ = first.accept()
            assert conn.gettimeout() is None
            conn.close()


def test_the_default_timeout_is_the_connections_too(first: socket.socket) -> None:
    """socket.setdefaulttimeout() holds for what is accepted."""
    socket.setdefaulttimeout(0.5)
    try:
        with queued(first):
            conn, _ = first.accept()
            assert conn.gettimeout() == 0.5
            conn.close()
    finally:
        socket.setdefaulttimeout(None)


def test_close_ends_a_waiting_accept(first: socket.socket) -> None:
    """EBADF there, and the others go on."""
    with opened(first.getsockname()) as other:
        greenlet, survivor = gevent.spawn(first.accept), gevent.spawn(reply, other, b"other")
        let_hub_turn()
        first.close()
        with pytest.raises(OSError, match="closed") as caught:
            greenlet.get()
        assert errno_of(caught.value) == "EBADF"
        assert ask(other.getsockname()) == b"other"
        survivor.get()
        with pytest.raises(OSError, match=r"descriptor|closed"):
            first.accept()


# -- servers ----------------------------------------------------------------------------------


def test_our_server_on_a_programs_clone_has_one_clone(first: socket.socket) -> None:
    """The program has clones of its own: the server takes turns with them as one."""
    recorder = Recorder()
    server = glb.server.StreamServer(first, recorder)
    server.start()
    assert server.clones == 1
    with opened(server.address) as other:

        def serve() -> None:
            for _ in range(3):
                reply(other, b"other")

        loop = gevent.spawn(serve)
        let_hub_turn()
        order = [ask(server.address) for _ in range(6)]
        loop.get()
        assert order == [b"0", b"other"] * 3
        server.stop()
        assert (first.fileno(), clones()) == (-1, [1])
    assert clones() == []


def test_our_server_may_have_more_clones(first: socket.socket) -> None:
    """An explicit number of clones holds."""
    server = glb.server.StreamServer(first, Recorder(), clones=3)
    server.start()
    assert [int(ask(server.address)) for _ in range(7)] == turns(3, 7)
    server.stop()
    assert clones() == []


def test_gevents_own_servers_on_clones_take_exact_turns(first: socket.socket) -> None:
    """Servers that were not replaced stand in line from their start: the first turn is exact."""
    order: list[int] = []

    def serve(index: int) -> Callable[[Any, Any], None]:
        def handle(sock: Any, _: Any) -> None:
            order.append(index)
            sock.sendall(b"%d" % index)

        return handle

    address = first.getsockname()
    servers = [
        gevent.server.StreamServer(sock, serve(index))
        for index, sock in enumerate([first, *(opened(address) for _ in range(2))])
    ]
    for server in servers:
        server.start()
    let_hub_turn()
    assert [int(ask(address)) for _ in range(13)] == order == turns(3, 13)
    for server in servers:
        server.stop()
    let_hub_turn()
    assert clones() == []


def test_gevents_own_server_stops_and_leaves_the_turns_to_the_others(first: socket.socket) -> None:
    """Its clone is out of the ring when it stops, and the others serve its clients."""
    address = first.getsockname()
    server = gevent.server.StreamServer(first, lambda sock, _: sock.sendall(b"server"))
    server.start()
    assert ask(address) == b"server"
    with opened(address) as other:
        server.stop()
        greenlet = gevent.spawn(reply, other, b"other")
        with connect(address) as client:
            assert receive_all(client) == b"other"
        greenlet.get()
    assert is_refused(address)


def test_a_client_that_waits_is_kept_while_a_clone_is_left(first: socket.socket) -> None:
    """There is one accept queue: closing one clone resets no client."""
    with opened(first.getsockname()) as other, queued(first) as client:
        first.close()
        wait_for_client(other)
        reply(other, b"kept")
        client.settimeout(10)
        assert client.recv(10) == b"kept"
    wait_until(lambda: clones() == [])
