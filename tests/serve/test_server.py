"""`glb.server.StreamServer`: exact turns, and every promise of gevent's."""

from __future__ import annotations

import contextvars
import errno
import gc
import inspect
import logging
import os
import socket as native_socket
import ssl
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import gevent.server
import gevent.ssl
import gevent.tests
import pytest
from gevent import socket
from gevent.event import Event
from gevent.pool import Group, Pool

import glb
from glb.accept.registry import entries
from glb.net import sockets
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from ..conftest import open_descriptors
from ..support.engine import admission_of, clones_of, entry_of
from ..support.failing import REFUSALS, failing_accepts
from ..support.helpers import (
    Holder,
    Recorder,
    ask,
    close_all,
    connect,
    is_refused,
    let_hub_turn,
    loop_iterations,
    receive_all,
    turns,
    wait_until,
)
from ..support.tls import client_context, server_context

LOCAL = ("127.0.0.1", 0)


def reply_ok(sock: Any, _peer: Any) -> None:
    sock.sendall(b"ok")


def fail(*_: object) -> Any:
    raise LookupError("on purpose")


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, type[BaseException]]]:
    """The errors that the hub has reported: (context, type)."""
    found: list[tuple[Any, type[BaseException]]] = []
    monkeypatch.setattr(
        gevent.get_hub(),
        "handle_error",
        lambda context, kind, *_: found.append((context, kind)),
    )
    return found


# -- exact turns --------------------------------------------------------------------------------


@pytest.mark.usefixtures("by_turns_and_by_loops")
@pytest.mark.parametrize("clones", [1, 4, 7, 256])
@pytest.mark.parametrize("concurrency", [1, 2, 4, 64])
def test_connections_go_round_in_exact_turn(clones: int, concurrency: int) -> None:
    """Clone 0, 1, ..., N-1, 0, 1, ... without one exception, however many at a time."""
    recorder = Recorder()
    connections = max(3 * clones, 200)
    with StreamServer(LOCAL, recorder, clones=clones) as server:
        server.start()
        waiting = iter(range(connections))

        def client() -> None:
            for _ in waiting:
                ask(server.address)

        gevent.joinall([gevent.spawn(client) for _ in range(concurrency)], raise_error=True)
    assert recorder.order == turns(clones, connections)


@pytest.mark.usefixtures("by_turns_and_by_loops")
def test_connections_that_waited_before_the_start_are_served_in_turn() -> None:
    """A full accept queue is dealt out in the order of the queue."""
    recorder = Recorder()
    with StreamServer(LOCAL, recorder, clones=7) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(50)]
        server.start()
        assert [int(receive_all(client)) for client in clients] == turns(7, 50)
        close_all(clients)


@pytest.mark.usefixtures("by_turns_and_by_loops")
def test_servers_that_share_an_address_make_one_ring() -> None:
    """Three servers' clones have turns in the order in which they began to wait."""
    recorders = [Recorder() for _ in range(3)]
    first = StreamServer(LOCAL, recorders[0], clones=2, reuse_port=True)
    first.start()
    others = [
        StreamServer(first.address, recorder, clones=count, reuse_port=True)
        for recorder, count in zip(recorders[1:], (3, 2), strict=True)
    ]
    for server in others:
        server.start()
    (entry,) = entries()
    assert (entry.clones, entry.ready, entry.shared) == (7, 7, True)
    served: list[tuple[int, int]] = []
    for number, recorder in enumerate(recorders):
        recorder.order = _Tagged(number, served)
    for _ in range(70):
        ask(first.address)
    assert served == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)] * 10
    for server in (first, *others):
        server.stop()


class _Tagged(list[int]):
    """A recorder's order that also says, in one list for all, which recorder it is of."""

    def __init__(self, number: int, served: list[tuple[int, int]]) -> None:
        super().__init__()
        self._number, self._served = number, served

    def append(self, index: int) -> None:
        self._served.append((self._number, index))


def test_a_second_server_needs_reuse_port() -> None:
    """Without it, a second server gets EADDRINUSE as with gevent, and nothing is left."""
    with StreamServer(LOCAL, reply_ok) as server:
        server.start()
        second = StreamServer(server.address, reply_ok, reuse_port=True)
        before = open_descriptors()
        with pytest.raises(OSError, match=str(server.address[1])) as raised:
            second.start()
        assert raised.value.errno == errno.EADDRINUSE
        assert open_descriptors() == before


def test_a_server_and_accept_loops_share_a_ring() -> None:
    """A hand-written loop on a `glb.bind` listener takes its turns among a server's clones."""
    recorder = Recorder()
    with (
        StreamServer(LOCAL, recorder, clones=2, reuse_port=True) as server,
    ):
        server.start()
        listener = glb.bind(server.address, reuse_port=True)

        def loop() -> None:
            while True:
                connection, _ = listener.accept()
                recorder.order.append(9)
                connection.close()

        greenlet = gevent.spawn(loop)
        let_hub_turn()
        for _ in range(9):
            ask(server.address)
        greenlet.kill()
        listener.close()
    assert recorder.order == [0, 1, 9] * 3


def test_least_connections_takes_the_least_loaded_clone() -> None:
    """A clone that holds a connection is passed over while another holds none."""
    holder = Holder()
    with StreamServer(LOCAL, holder, clones=3, policy="least_connections") as server:
        server.start()
        clients = [connect(server.address) for _ in range(3)]
        holder.wait_for(3)
        clients.append(connect(server.address))
        holder.wait_for(4)
        assert [clone.active for clone in server.clone_stats()] == [2, 1, 1]
        server.pause_clone(1)
        clients.append(connect(server.address))
        holder.wait_for(5)
        server.resume_clone(1)
        assert [clone.active for clone in server.clone_stats()] == [2, 1, 2]
        clients.append(connect(server.address))
        holder.wait_for(6)
        assert [clone.active for clone in server.clone_stats()] == [2, 2, 2]
        holder.release()
        assert [receive_all(client) for client in clients] == [b"done"] * 6
        close_all(clients)


def test_a_policy_goes_with_the_server_that_wished_it() -> None:
    """After a stop, or a start that failed half way, the address takes another."""
    with glb.bind(LOCAL, reuse_port=True) as listener:

        def server(policy: str) -> StreamServer:
            return StreamServer(listener.address, reply_ok, reuse_port=True, policy=policy, hubs=2)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(glb.Listener, "dup", fail)
            with pytest.raises(LookupError):
                server("least_connections").start()
        for policy in ("round_robin", "least_connections"):
            with server(policy) as started:
                started.start()
        assert entries()[0].clones == 1


def test_an_address_has_one_policy() -> None:
    """A server that asks for another than there is gets a ValueError, and nothing is left."""
    with StreamServer(LOCAL, reply_ok, reuse_port=True, policy="round_robin") as server:
        server.start()
        other = StreamServer(server.address, reply_ok, reuse_port=True, policy="least_connections")
        with pytest.raises(ValueError, match=r"'round_robin'.*'least_connections'"):
            other.start()
        assert entries()[0].clones == 4


# -- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"clones": 0}, ValueError),
        ({"clones": -3}, ValueError),
        ({"clones": "four"}, TypeError),
        ({"clones": 2.0}, TypeError),
        ({"clones": True}, TypeError),
        ({"policy": "fastest"}, ValueError),
        ({"policy": 7}, TypeError),
        ({"backlog": -1}, ValueError),
        ({"backlog": "many"}, TypeError),
        ({"spawn": -2}, ValueError),
        ({"spawn": 2.5}, TypeError),
        ({"spawn": Group()}, TypeError),
        ({"handle": "not callable"}, TypeError),
        ({"handler_factory": lambda _: None}, TypeError),  # and a handle
    ],
)
def test_a_wrong_argument_is_named_and_leaves_nothing(
    arguments: dict[str, Any], kind: type[Exception]
) -> None:
    """The text has the value; a listener that was to be handed in is still the caller's."""
    with glb.bind(LOCAL) as listener:
        value = next(iter(arguments.values()))
        arguments = {"handle": reply_ok, **arguments}
        with pytest.raises(kind) as raised:
            StreamServer(listener, **arguments)
        assert repr(value) in str(raised.value) or "reply_ok" in str(raised.value)
        assert listener.fileno() >= 0


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        (StreamServer, "clone", ": did you mean 'clones'?"),
        (WSGIServer, "max_bodies", ": did you mean 'max_body'?"),
        (StreamServer, "zzz", ""),
    ],
)
def test_an_argument_that_there_isnt_is_named(
    kind: type[StreamServer], name: str, hint: str
) -> None:
    """It is not taken for one of TLS; a listener that was to be handed in is the caller's."""
    wrong: dict[str, Any] = {name: 4}
    with glb.bind(LOCAL) as listener:
        with pytest.raises(TypeError) as raised:
            kind(listener, reply_ok, **wrong)
        assert str(raised.value) == f"{kind.__name__} has no argument {name!r}{hint}"
        assert listener.fileno() >= 0


def test_arguments_of_tls_are_gevents() -> None:
    """Each that gevent's `wrap_socket` has is taken; a context takes what it takes."""
    server = StreamServer(LOCAL, reply_ok, certfile="c", keyfile="k", ciphers=None)
    assert server.ssl_args == {
        "certfile": "c",
        "keyfile": "k",
        "ciphers": None,
        "server_side": True,
    }
    names = [*inspect.signature(gevent.ssl.wrap_socket).parameters][1:]
    assert StreamServer(LOCAL, reply_ok, **dict.fromkeys(names)).ssl_args.keys() == {*names}
    context = SimpleNamespace(wrap_socket=reply_ok)
    server = StreamServer(LOCAL, reply_ok, ssl_context=context, own=1)
    assert server.ssl_args == {"own": 1, "server_side": True}


@pytest.mark.parametrize("listener", [("127.0.0.1", 70000), "nonsense", None, b"x:1", [1, 2], 3.5])
def test_a_wrong_address_is_named(listener: Any) -> None:
    """Bad addresses are refused by the constructor, with the value in the text."""
    with pytest.raises((TypeError, ValueError)) as raised:
        StreamServer(listener, reply_ok)
    assert repr(listener) in str(raised.value)


def test_a_bind_that_fails_leaves_nothing() -> None:
    """An address that isn't ours is an OSError with the address in it, at start."""
    server = StreamServer(("192.0.2.1", 0), reply_ok)
    with pytest.raises(OSError, match=r"192\.0\.2\.1") as raised:
        server.start()
    assert raised.value.errno == errno.EADDRNOTAVAIL
    assert not server.started
    assert server.closed


def test_running_out_of_descriptors_half_way_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When the third hub's clone can't be made, the others and the socket are closed again."""
    made: list[Any] = []
    duplicate = sockets.duplicate

    def run_out(sock: Any) -> int:
        if len(made) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(sock)
        return duplicate(sock)

    monkeypatch.setattr(sockets, "duplicate", run_out)
    before = open_descriptors()
    with pytest.raises(OSError, match=r"can't open 4 clones: Too many open files"):
        StreamServer(LOCAL, reply_ok, hubs=4).start()
    assert entries() == []
    assert open_descriptors() == before


# -- listeners ----------------------------------------------------------------------------------


def test_a_gevent_socket_can_be_handed_in() -> None:
    """A bound socket is accepted as listener, and closed to its last duplicate."""
    listener = socket.socket()
    listener.bind(LOCAL)
    listener.listen()
    address = listener.getsockname()
    recorder = Recorder()
    server = StreamServer(listener, recorder)
    server.start()
    for _ in range(8):
        ask(address)
    server.stop()
    assert recorder.order == turns(4, 8)
    assert is_refused(address)
    assert listener.fileno() == -1


def test_a_blocking_native_socket_can_be_handed_in() -> None:
    """A socket of the standard library, with a timeout even, never blocks the hub."""
    listener = native_socket.create_server(LOCAL)
    listener.settimeout(5)
    address = listener.getsockname()
    with StreamServer(listener, reply_ok) as server:
        server.start()
        assert [ask(address) for _ in range(5)] == [b"ok"] * 5
    assert is_refused(address)


def test_a_listener_can_be_handed_in() -> None:
    """A `glb.Listener` becomes the first clone, and is closed with the server."""
    listener = glb.bind(LOCAL, reuse_port=True)
    server = StreamServer(listener, reply_ok, clones=3)
    server.start()
    assert entries()[0].clones == 3
    assert ask(listener.address) == b"ok"
    server.stop()
    assert listener.fileno() == -1
    assert entries() == []


def test_a_listener_that_was_closed_is_refused() -> None:
    """The error has its address."""
    with glb.bind(LOCAL) as listener:
        where = listener.address
    with pytest.raises(OSError, match=f"the listener on .*{where[1]}.* is closed"):
        StreamServer(listener, reply_ok)
    assert entries() == []


def test_a_socket_handed_in_is_closed_although_never_started() -> None:
    """As with gevent, the server owns what it was given."""
    listener = socket.socket()
    listener.bind(LOCAL)
    StreamServer(listener, reply_ok).close()
    assert listener.fileno() == -1


def test_an_ssl_socket_is_refused() -> None:
    """As gevent: TLS is wrapped around connections, not around the listener."""
    context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with (
        socket.socket() as plain,
        context.wrap_socket(plain, server_side=True) as wrapped,
        pytest.raises(TypeError, match="not SSLSocket"),
    ):
        StreamServer(wrapped, reply_ok)


def test_a_datagram_socket_is_refused() -> None:
    """Nothing can be accepted from it; gevent would spin."""
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(LOCAL)
        server = StreamServer(datagrams, reply_ok)
        with pytest.raises(TypeError, match="stream socket"):
            server.start()
        server.close()


def test_a_socket_of_the_users_own_making_is_served() -> None:
    """An overridden `get_listener` is honoured."""

    class Own(StreamServer):
        @classmethod
        def get_listener(cls, address: Any, backlog: Any = None, family: Any = None) -> Any:
            listener = socket.socket(family)
            listener.bind(address)
            listener.listen(backlog)
            return listener

    with Own(LOCAL, reply_ok) as server:
        server.start()
        assert ask(server.address) == b"ok"
    assert is_refused(server.address)


def test_a_socket_made_in_init_socket_is_served() -> None:
    """The door for it in gevent: an overridden `init_socket` that sets the socket itself."""

    class Own(StreamServer):
        def init_socket(self) -> None:
            self.socket = socket.socket()
            self.socket.bind(LOCAL)
            self.socket.listen()
            self.address = self.socket.getsockname()
            self._handle = self.handle

    recorder = Recorder()
    with Own(LOCAL, recorder, clones=3) as server:
        server.start()
        for _ in range(6):
            ask(server.address)
    assert recorder.order == turns(3, 6)
    assert is_refused(server.address)


def test_a_start_that_fails_closes_what_the_users_own_hook_made() -> None:
    """A plain socket of `get_listener` is not left bound."""
    made: list[socket.socket] = []

    class Own(StreamServer):
        @classmethod
        def get_listener(cls, address: Any, backlog: Any = None, family: Any = None) -> Any:
            listener = socket.socket(family)
            listener.bind(address)
            listener.listen(backlog)
            made.append(listener)
            return listener

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glb.Listener, "dup", fail)
        with pytest.raises(LookupError):
            Own(LOCAL, reply_ok, hubs=2).start()
    assert made[0].fileno() == -1


def test_clones_can_be_set_until_the_start() -> None:
    """Subclasses set attributes behind the constructor."""
    server = StreamServer(LOCAL, Recorder())
    server.clones = 3
    with server:
        server.start()
        assert [ask(server.address) for _ in range(4)] == [b"0", b"1", b"2", b"0"]
    server.clones = 0
    with pytest.raises(ValueError, match="got 0"):
        server.start()


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
def test_connections_send_small_replies_at_once(address: str) -> None:
    """TCP_NODELAY is inherited from the listening socket, unless `nodelay` says no."""

    def handle(sock: Any, _peer: Any) -> None:
        sock.sendall(b"%d" % sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    for nodelay, expected in ((None, True), (True, True), (False, False)):
        with StreamServer(address, handle, nodelay=nodelay) as server:
            server.start()
            assert bool(int(ask(server.address))) is expected


def test_ipv6_and_unix_addresses_are_served(tmp_path: Path) -> None:
    """The address attribute is the one really bound, as gevent's."""
    with StreamServer("[::1]:0", reply_ok) as server:
        server.start()
        assert ask(server.address) == b"ok"
        assert (server.server_host, server.server_port) == server.address[:2]
    path = str(tmp_path / "socket")
    with StreamServer(f"unix:{path}", reply_ok) as server:
        server.start()
        assert server.address == path
        assert (server.server_host, server.server_port) == (None, None)
        assert ask(path) == b"ok"
    assert not os.path.exists(path)


def test_tls_is_served_in_turn() -> None:
    """Any TLS argument turns it on, as in gevent; turns stay exact."""
    with StreamServer(LOCAL, Recorder(), ssl_context=server_context()) as server:
        server.start()
        context = client_context()
        for turn in turns(4, 8):
            with context.wrap_socket(connect(server.address)) as client:
                assert receive_all(client) == b"%d" % turn


def test_repr_shows_what_gevents_shows() -> None:
    """Address, descriptor and handler."""
    with StreamServer(LOCAL, reply_ok) as server:
        assert repr(server).startswith("<StreamServer at 0x")
        server.start()
        assert f"address=127.0.0.1:{server.server_port}" in str(server)
        assert f"fileno={server.socket.fileno()}" in str(server)


# -- handlers -----------------------------------------------------------------------------------


def test_each_clone_can_have_its_own_handler() -> None:
    """`handler_factory` is called once a clone, in order, when the server first accepts."""
    asked: list[int] = []

    def factory(index: int) -> Any:
        asked.append(index)
        return lambda sock, _: sock.sendall(b"shard %d" % index)

    with StreamServer(LOCAL, handler_factory=factory, clones=3) as server:
        server.init_socket()
        assert asked == []
        server.start()
        assert asked == [0, 1, 2]
        assert [ask(server.address) for _ in range(4)] == [
            b"shard 0",
            b"shard 1",
            b"shard 2",
            b"shard 0",
        ]
        server.stop_accepting()
        server.start_accepting()
        assert asked == [0, 1, 2]


def test_a_handler_factory_that_fails_closes_the_server() -> None:
    """Its error comes out of start, and nothing is left."""

    def factory(index: int) -> Any:
        if index == 2:
            raise LookupError("no shard 2")
        return reply_ok

    server = StreamServer(LOCAL, handler_factory=factory)
    with pytest.raises(LookupError):
        server.start()
    assert server.closed
    assert entries() == []
    with pytest.raises(TypeError, match="callable, got None for clone 0"):
        StreamServer(LOCAL, handler_factory=lambda _: None).start()  # type: ignore[arg-type, return-value]  # what it refuses


def test_a_server_closed_while_handlers_are_made_stays_closed() -> None:
    """A factory may wait, for a connection of its own; start then ends as if it never was."""
    proceed = Event()

    def factory(_index: int) -> Any:
        proceed.wait()
        return reply_ok

    server = StreamServer(LOCAL, handler_factory=factory, clones=2)
    starting = [gevent.spawn(server.start), gevent.spawn(server.start_accepting)]
    let_hub_turn()
    server.stop()
    proceed.set()
    gevent.joinall(starting)
    assert server.closed
    assert entries() == []


def test_started_twice_while_handlers_are_made_is_started_once() -> None:
    """The second start finds it done."""
    proceed = Event()

    def factory(_index: int) -> Any:
        proceed.wait()
        return reply_ok

    with StreamServer(LOCAL, handler_factory=factory, clones=2) as server:
        server.init_socket()
        starting = [gevent.spawn(server.start_accepting) for _ in range(2)]
        let_hub_turn()
        proceed.set()
        gevent.joinall(starting, raise_error=True)
        assert entries()[0].ready == 2
        assert ask(server.address) == b"ok"


def test_a_handler_is_never_another_clones(
    reported: list[tuple[Any, type[BaseException]]],
) -> None:
    """A `do_handle` that hides the clone gets an error, not whichever handler."""

    class Hiding(StreamServer):
        def do_handle(self, *args: Any) -> None:
            sock, _peer = args
            gevent.spawn(self._handle, *args).rawlink(lambda _: sock.close())

    with Hiding(LOCAL, handler_factory=lambda _: reply_ok) as server:
        server.start()
        with connect(server.address):
            wait_until(lambda: bool(reported))
    assert [kind for _, kind in reported] == [RuntimeError]


def test_a_clone_of_one_server_is_no_clone_of_another() -> None:
    """A handler of one server that calls another's gets that one's own idea of turns."""

    def inner(index: int) -> Any:
        return lambda *_: index

    other = StreamServer(LOCAL, handler_factory=inner, clones=2)
    clones_of(other).renew_handlers()
    failed: list[str] = []

    def handle(sock: Any, peer: Any) -> None:
        with pytest.raises(RuntimeError) as raised:
            other.handle(sock, peer)
        failed.append(str(raised.value))

    with StreamServer(LOCAL, handle, clones=5) as server:
        server.start()
        for _ in range(5):
            ask(server.address)
    assert len(failed) == 5


def test_a_class_attribute_makes_handlers_too() -> None:
    """What the constructor takes can be said by a subclass."""

    class Sharded(StreamServer):
        clones = 2

        @staticmethod
        def handler_factory(index: int) -> Any:
            return lambda sock, _: sock.sendall(b"%d" % index)

    with Sharded(LOCAL) as server:
        server.start()
        assert [ask(server.address) for _ in range(4)] == [b"0", b"1", b"0", b"1"]


def test_current_clone_is_the_clone_that_serves() -> None:
    """Index and server, in the handler alone."""
    seen: list[Any] = []
    with StreamServer(LOCAL, lambda *_: seen.append(glb.current_clone()), clones=2) as server:
        server.start()
        ask(server.address)
        ask(server.address)
        assert [(clone.index, clone.server) for clone in seen] == [(0, server), (1, server)]
    assert glb.current_clone() is None


@pytest.mark.parametrize("spawn", ["default", gevent.spawn, gevent.spawn_raw, None, 3, Pool(3)])
def test_each_form_of_spawn_serves_in_turn(spawn: Any) -> None:
    """As gevent takes them; `None` runs handlers in the hub."""
    recorder = Recorder()
    with StreamServer(LOCAL, recorder, spawn=spawn) as server:
        server.start()
        for _ in range(10):
            ask(server.address)
    assert recorder.order == turns(4, 10)


def test_spawn_none_runs_in_the_hub_where_blocking_is_an_error(
    reported: list[tuple[Any, type[BaseException]]],
) -> None:
    """The handler gets gevent's AssertionError, and the server goes on after a pause."""
    ran_in: list[Any] = []

    def handle(_sock: Any, _peer: Any) -> None:
        ran_in.append(gevent.getcurrent())
        if len(ran_in) == 1:
            gevent.sleep(1)

    with StreamServer(LOCAL, handle, spawn=None) as server:
        server.start()
        assert ask(server.address) == b""
        assert ask(server.address) == b""
    assert ran_in == [gevent.get_hub()] * 2
    assert [kind for _, kind in reported] == [gevent.exceptions.BlockingSwitchOutError]


def test_handlers_start_in_the_order_of_their_connections() -> None:
    """The first client in the accept queue is handled first."""
    started: list[int] = []
    with StreamServer(LOCAL, lambda _, peer: started.append(peer[1])) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(150)]
        server.start()
        wait_until(lambda: len(started) == 150)
        assert started == [client.getsockname()[1] for client in clients]
        close_all(clients)


def test_set_handle_changes_the_handler() -> None:
    """From the next start on, as gevent."""
    with StreamServer(LOCAL, reply_ok) as server:
        server.set_handle(lambda sock, _: sock.sendall(b"other"))
        server.start()
        assert ask(server.address) == b"other"


def test_stats_count_what_became_of_each_connection(
    reported: list[tuple[Any, type[BaseException]]],
) -> None:
    """Accepted is the sum of active, completed and failed."""
    proceed = Event()

    def handle(sock: Any, _peer: Any) -> None:
        what = sock.recv(1)
        if what == b"x":
            raise ValueError("on purpose")
        if what == b"w":
            proceed.wait()

    with StreamServer(LOCAL, handle, clones=2) as server:
        server.start()
        ask(server.address, b"x")
        ask(server.address, b"c")
        waiting = connect(server.address)
        waiting.sendall(b"w")
        wait_until(lambda: server.clone_stats()[0].active == 1)
        assert [tuple(clone) for clone in server.clone_stats()] == [
            (0, 2, 1, 0, 1, True, 0, "accepting"),
            (1, 1, 0, 1, 0, True, 0, "accepting"),
        ]
        proceed.set()
        receive_all(waiting)
        waiting.close()
        assert [kind for _, kind in reported] == [ValueError]
    assert [tuple(clone) for clone in server.clone_stats()] == [
        (0, 2, 0, 1, 1, False, 0, "stopped"),
        (1, 1, 0, 1, 0, False, 0, "stopped"),
    ]


def test_a_spawn_that_runs_handlers_itself_counts_once(
    reported: list[tuple[Any, type[BaseException]]],
) -> None:
    """A handler that raises in it has failed, once."""

    def handle(_sock: Any, _peer: Any) -> None:
        raise ValueError("on purpose")

    with StreamServer(LOCAL, handle, clones=1, spawn=lambda run, *args: run(*args)) as server:
        server.start()
        assert ask(server.address) == b""
        assert tuple(server.clone_stats()[0])[:5] == (0, 1, 0, 0, 1)
    assert [kind for _, kind in reported] == [ValueError]


def test_a_handler_that_never_runs_is_no_load() -> None:
    """A spawn that sheds load does not turn least_connections away from the clone."""
    shed = iter([True])

    def spawn(*args: Any) -> Any:
        if next(shed, False):
            args[3][0].close()
            return None
        return gevent.spawn(*args)

    recorder = Recorder()
    with StreamServer(LOCAL, recorder, clones=2, spawn=spawn, policy="least_connections") as server:
        server.start()
        for _ in range(5):
            ask(server.address)
    assert recorder.order == [1, 0, 1, 0]


def test_a_handler_that_changes_its_context_is_closed_like_any() -> None:
    """Nothing that it does to its greenlet keeps its connection open."""
    kept: list[Any] = []

    def handle(sock: Any, _peer: Any) -> None:
        kept.append(sock)
        gevent.getcurrent().gr_context = contextvars.Context()
        glb.model.clone.CURRENT.set(None)

    with StreamServer(LOCAL, handle, clones=1) as server:
        server.start()
        assert ask(server.address) == b""
        assert server.clone_stats()[0].completed == 1
    assert kept[0].fileno() == -1


# -- pausing ------------------------------------------------------------------------------------


def test_a_paused_clone_is_passed_over() -> None:
    """It comes back at the end of the line."""
    recorder = Recorder()
    with StreamServer(LOCAL, recorder, clones=3) as server:
        server.start()
        ask(server.address)
        server.pause_clone(1)
        server.pause_clone(1)
        for _ in range(4):
            ask(server.address)
        assert [clone.ready for clone in server.clone_stats()] == [True, False, True]
        server.resume_clone(1)
        server.resume_clone(1)
        for _ in range(4):
            ask(server.address)
    assert recorder.order == [0, 2, 0, 2, 0, 2, 0, 1, 2]


def test_with_all_clones_paused_the_server_lives() -> None:
    """`serve_forever` waits for a clone to come back, with nothing else on the loop."""
    program = """if True:
        import gevent, signal
        from glb.server import StreamServer
        server = StreamServer(("127.0.0.1", 0), print, clones=2)
        server.start()
        server.pause_clone(0)
        server.pause_clone(1)
        gevent.signal_handler(signal.SIGALRM, server.stop)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        server.serve_forever()
        try:
            gevent.get_hub().switch()
        except gevent.exceptions.LoopExit:
            print("nothing is left")
    """
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert (result.stdout, result.stderr) == ("nothing is left\n", "")


def test_with_all_clones_paused_clients_wait() -> None:
    """Nothing is taken from the kernel, and no client is refused."""
    recorder = Recorder()
    with StreamServer(LOCAL, recorder, clones=2) as server:
        server.pause_clone(0)
        server.start()
        server.pause_clone(1)
        client = connect(server.address)
        let_hub_turn()
        assert recorder.order == []
        assert entries()[0].ready == 0
        server.resume_clone(1)
        assert receive_all(client) == b"1"
        client.close()


@pytest.mark.parametrize(
    ("index", "kind"), [(2, ValueError), (-1, ValueError), ("0", TypeError), (None, TypeError)]
)
def test_pausing_no_clone_is_an_error(index: Any, kind: type[Exception]) -> None:
    """With the value in the text."""
    server = StreamServer(LOCAL, reply_ok, clones=2)
    with pytest.raises(kind, match=repr(index)):
        server.pause_clone(index)
    with pytest.raises(kind, match=repr(index)):
        server.resume_clone(index)


# -- full ---------------------------------------------------------------------------------------


def test_a_full_pool_leaves_connections_in_the_kernel() -> None:
    """It takes as many as have room; the rest wait, cost nothing, and are served in turn."""
    holder = Holder()
    with StreamServer(LOCAL, holder, spawn=3, clones=2) as server:
        server.start()
        clients = [connect(server.address) for _ in range(8)]
        holder.wait_for(3)
        let_hub_turn()
        assert sum(clone.accepted for clone in server.clone_stats()) == 3
        assert [clone.ready for clone in server.clone_stats()] == [False, False]
        assert loop_iterations(0.05) < 30  # one that spins has thousands
        holder.release()
        assert [receive_all(client) for client in clients] == [b"done"] * 8
        assert [clone.accepted for clone in server.clone_stats()] == [4, 4]
        close_all(clients)


def test_one_pool_bounds_two_servers() -> None:
    """A pool that two servers share is full for both, and both come back by themselves."""
    pool, holder = Pool(2), Holder()
    with (
        StreamServer(LOCAL, holder, spawn=pool) as one,
        StreamServer(LOCAL, holder, spawn=pool) as other,
    ):
        one.start()
        other.start()
        clients = [connect(server.address) for server in (one, other) for _ in range(4)]
        holder.wait_for(2)
        let_hub_turn()
        assert len(pool) == 2
        assert loop_iterations(0.05) < 30  # one that spins has thousands
        holder.release()
        assert [receive_all(client) for client in clients] == [b"done"] * 8
        close_all(clients)


def test_a_full_server_does_not_hold_up_another_on_its_address() -> None:
    """Its clones leave the ring together; the other server's get the turns."""
    holder, recorder = Holder(), Recorder()
    with (
        StreamServer(LOCAL, holder, spawn=1, clones=3, reuse_port=True) as small,
    ):
        small.start()
        with StreamServer(small.address, recorder, clones=2, reuse_port=True) as large:
            large.start()
            held = connect(small.address)
            holder.wait_for(1)
            for _ in range(10):
                ask(small.address)
            assert recorder.order == turns(2, 10)
            holder.release()
            assert receive_all(held) == b"done"
            held.close()
            wait_until(lambda: small.clone_stats()[0].ready)
            # Each of its turns fills it again, so it comes back behind both of the others.
            replies = [ask(small.address) for _ in range(9)]
            assert replies.count(b"done") == 3


def test_an_overridden_full_is_asked_and_comes_back() -> None:
    """A `full` of the user's own bounds handlers, and is asked again as they end."""

    class Bounded(StreamServer):
        running = 0

        def full(self) -> bool:
            return self.running >= 2

        def handle(self, sock: Any, peer: Any) -> None:
            self.running += 1
            try:
                holder(sock, peer)
            finally:
                self.running -= 1

    holder = Holder()
    with Bounded(LOCAL, clones=3) as server:
        server.max_accept = 1  # a handler has to start before it counts
        server.start()
        clients = [connect(server.address) for _ in range(6)]
        holder.wait_for(2)
        let_hub_turn()
        assert sum(clone.accepted for clone in server.clone_stats()) == 2
        holder.release()
        assert [receive_all(client) for client in clients] == [b"done"] * 6
        close_all(clients)


def test_overridden_start_and_stop_accepting_are_called() -> None:
    """As gevent's are: on start, when the pool is full, when it has room, and on close."""
    called: list[str] = []

    class Watched(StreamServer):
        def start_accepting(self) -> None:
            called.append("start")
            super().start_accepting()

        def stop_accepting(self) -> None:
            called.append("stop")
            super().stop_accepting()

    holder = Holder()
    with Watched(LOCAL, holder, spawn=1) as server:
        server.start()
        client = connect(server.address)
        holder.wait_for(1)
        let_hub_turn()
        assert called == ["start", "stop"]
        holder.release()
        assert receive_all(client) == b"done"
        client.close()
        wait_until(lambda: called == ["start", "stop", "start"])
    assert called[-1] == "stop"


def test_a_full_that_changes_its_mind_by_itself_is_asked_again() -> None:
    """Nothing says when; so it is asked after `min_delay`, doubling up to `max_delay`."""

    class Moody(StreamServer):
        answers = iter([True, True, True])

        def full(self) -> bool:
            return next(self.answers, False)

    with Moody(LOCAL, reply_ok) as server:
        server.min_delay = 0.001
        server.delay = 0.001
        server.start()
        assert ask(server.address) == b"ok"


# -- hooks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_accept", [100, 2, 1])
@pytest.mark.parametrize("waiting", [1, 5])
def test_hooks_are_called_as_often_as_gevents(max_accept: int, waiting: int) -> None:
    """`full`, `do_read` and `do_handle`, for a wake-up that finds *waiting* connections."""

    def calls_of(kind: Any) -> list[str]:
        called: list[str] = []

        class Watched(kind):  # type: ignore[misc]  # whichever it is
            def full(self) -> bool:
                called.append("full")
                return False

            def do_read(self) -> Any:
                called.append("read")
                return super().do_read()

            def do_handle(self, *args: Any) -> None:
                called.append("handle")
                super().do_handle(*args)

        server = Watched(LOCAL, reply_ok)
        server.max_accept = max_accept
        server.init_socket()
        clients = [connect(server.address) for _ in range(waiting)]
        server.start()
        for client in clients:
            receive_all(client)
        let_hub_turn()
        server.stop()
        close_all(clients)
        return called

    assert calls_of(StreamServer) == calls_of(gevent.server.StreamServer)


def test_an_overridden_do_read_is_honoured_whatever_it_returns() -> None:
    """Its value is the handler's arguments; nothing means that no client waits."""
    handled: list[Any] = []

    class Reader(StreamServer):
        def do_read(self) -> Any:
            read: Any = super().do_read()
            if read is None:
                return None
            sock, peer = read
            sock.close()
            return ("a", "b", "c") if len(handled) % 2 else (peer,)

        def do_close(self, *args: Any) -> None:
            assert args == handled[-1]

    with Reader(LOCAL, lambda *args: handled.append(args)) as server:
        server.start()
        for count in range(1, 5):
            connect(server.address).close()
            wait_until(lambda count=count: len(handled) == count)  # type: ignore[misc]
    assert handled[1] == handled[3] == ("a", "b", "c")
    assert [clone.completed for clone in server.clone_stats()] == [1, 1, 1, 1]


def test_max_accept_counts_a_wake_up_of_the_process() -> None:
    """Four clones take no more between two turns of the hub than one would."""
    taken = [0]

    class Counting(StreamServer):
        def do_handle(self, *args: Any) -> None:
            taken[-1] += 1
            super().do_handle(*args)

    with Counting(LOCAL, reply_ok, clones=4) as server:
        server.max_accept = 3
        server.init_socket()
        clients = [connect(server.address) for _ in range(10)]
        check = gevent.get_hub().loop.check()
        check.start(lambda: taken.append(0))
        server.start()
        for client in clients:
            receive_all(client)
        check.stop()
        check.close()
        close_all(clients)
    assert [count for count in taken if count] == [3, 3, 3, 1]


def test_max_accept_must_be_positive() -> None:
    """As in gevent."""

    class Idle(StreamServer):
        max_accept = 0

    with pytest.raises(ValueError, match="max_accept"):
        Idle(LOCAL, reply_ok)


# -- errors -------------------------------------------------------------------------------------


def test_a_spawn_error_pauses_once_is_reported_and_survived(
    reported: list[tuple[Any, type[BaseException]]],
) -> None:
    """The context is gevent's, the client is closed, and the next one is served."""
    failures = iter([True])

    def spawn(*args: Any) -> Any:
        if next(failures, False):
            raise MemoryError("no greenlet")
        return gevent.spawn(*args)

    with StreamServer(LOCAL, reply_ok, spawn=spawn) as server:
        server.start()
        first = connect(server.address)
        assert receive_all(first) == b""
        assert [clone.ready for clone in server.clone_stats()] == [False] * 4
        assert reported == [(((first.getsockname(),), server), MemoryError)]
        assert ask(server.address) == b"ok"
        assert [clone.failed for clone in server.clone_stats()] == [1, 0, 0, 0]
        first.close()


def test_an_unknown_accept_error_pauses_once_is_reported_and_survived(
    reported: list[tuple[Any, type[BaseException]]],
) -> None:
    """The server is the context, as in gevent; its clones come back together."""

    class Failing(StreamServer):
        failures = iter([RuntimeError("do_read's own")])

        def do_read(self) -> Any:
            for error in self.failures:
                raise error
            return super().do_read()

    with Failing(LOCAL, reply_ok) as server:
        server.start()
        assert ask(server.address) == b"ok"
        assert reported == [(server, RuntimeError)]


def test_running_out_of_room_is_one_pause_and_one_line(
    caplog: pytest.LogCaptureFixture, reported: list[tuple[Any, type[BaseException]]]
) -> None:
    """EMFILE, many times over: one log line with the server in it, no traceback, all served."""

    class Starved(StreamServer):
        min_delay = 0.001
        max_delay = 0.004
        failures = iter([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE])
        delays: list[float] = []  # noqa: RUF012  # one server, one list

        def do_read(self) -> Any:
            for number in self.failures:
                self.delays.append(self.delay)
                raise OSError(number, os.strerror(number))
            return super().do_read()

    with caplog.at_level(logging.INFO, "glb"), Starved(LOCAL, reply_ok, clones=8) as server:
        server.start()
        clients = [connect(server.address) for _ in range(20)]
        assert [receive_all(client) for client in clients] == [b"ok"] * 20
        close_all(clients)
    assert server.delays == [0.001, 0.002, 0.004, 0.004, 0.004]
    (record,) = caplog.records
    assert str(server.server_port) in record.getMessage()
    assert "Too many open files" in record.getMessage()
    assert reported == []


@pytest.mark.parametrize("number", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK])
def test_a_fatal_accept_error_closes_the_whole_server_once(
    number: int,
    caplog: pytest.LogCaptureFixture,
    reported: list[tuple[Any, type[BaseException]]],
) -> None:
    """It is reported with the server as context, and serve_forever ends."""

    class Broken(StreamServer):
        def do_read(self) -> Any:
            raise OSError(number, os.strerror(number))

    server = Broken(LOCAL, reply_ok)
    serving = gevent.spawn(server.serve_forever)
    wait_until(lambda: server.started)
    # A native one, whose connect() is done before the hub turns.
    client = native_socket.create_connection(("127.0.0.1", server.server_port or 0))
    serving.get()
    assert server.closed
    assert not server.started
    assert is_refused(server.address)
    assert [context for context, _ in reported] == [server]
    assert [record.name for record in caplog.records] == ["glb"]
    client.close()


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_an_accept_that_is_refused_is_reported_once_and_paused_for(
    number: int, reported: list[tuple[Any, type[BaseException]]]
) -> None:
    """The connection stays in the queue, pauses grow, and when the fault ends it is served."""
    delays: list[float] = []

    class Refused(StreamServer):
        min_delay = 0.001
        max_delay = 0.004

        def do_read(self) -> Any:
            if len(delays) < 5:
                delays.append(self.delay)
                raise OSError(number, os.strerror(number))
            return super().do_read()

    with Refused(LOCAL, reply_ok) as server:
        server.start()
        assert ask(server.address) == b"ok"
        assert delays == [0.001, 0.002, 0.004, 0.004, 0.004]
        assert [context for context, _ in reported] == [server]


def test_a_second_episode_of_refusals_is_reported_again(
    reported: list[tuple[Any, type[BaseException]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ends when nothing has failed for a while; another errno is news within it."""
    now = [100.0]
    monkeypatch.setattr("glb.serve.admission.monotonic", lambda: now[0])
    with StreamServer(LOCAL, reply_ok) as server:
        server.start()
        with failing_accepts(entry_of(server), None) as fault:
            for seconds, code, expected in (
                (0, errno.EIO, 1),
                (0, errno.EIO, 1),
                (0, errno.EPERM, 2),
                (10, errno.EPERM, 3),
            ):
                now[0] += seconds
                fault.code, fault.left = code, 2
                assert ask(server.address) == b"ok"
                assert len(reported) == expected


def test_a_mistaken_value_of_do_read_stops_no_other_server(
    reported: list[tuple[Any, type[BaseException]]],
) -> None:
    """One server's wrong value, or an OSError without errno, pauses that server alone."""

    class Wrong(StreamServer):
        def do_read(self) -> Any:
            if not reported:
                return 5
            raise OSError

    recorder = Recorder()
    with Wrong(LOCAL, reply_ok, clones=1, reuse_port=True) as wrong:
        wrong.start()
        with StreamServer(wrong.address, recorder, clones=1, reuse_port=True) as right:
            right.start()
            while len(reported) < 2:
                assert ask(wrong.address) == b"0"
                gevent.sleep(0.001)
    assert [kind for _, kind in reported][:2] == [TypeError, OSError]


def test_a_peer_that_left_is_passed_over() -> None:
    """ECONNABORTED is neither reported nor paused for."""

    class Aborting(StreamServer):
        failures = iter([errno.ECONNABORTED, errno.ENETDOWN, errno.EPROTO])

        def do_read(self) -> Any:
            for number in self.failures:
                raise OSError(number, os.strerror(number))
            return super().do_read()

    with Aborting(LOCAL, Recorder()) as server:
        server.start()
        assert ask(server.address) == b"0"


# -- starting and stopping ----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "hub", "handler", "thread of callbacks"])
def test_close_refuses_at_once_and_has_closed_every_clone(where: str) -> None:
    """From the hub, from a handler, anywhere, and twice."""
    before = open_descriptors()
    done = Event()

    def close(*_: Any) -> None:
        server.close()
        server.close()
        assert entries() == []
        assert native_connect_is_refused(server.address)
        done.set()

    server = StreamServer(LOCAL, close, spawn=None if where == "hub" else "default")
    server.start()
    if where == "here":
        close()
    elif where == "thread of callbacks":
        gevent.get_hub().loop.run_callback(close)
    else:
        client = connect(server.address)
        receive_all(client)
        client.close()
    done.wait()
    assert server.closed
    let_hub_turn()
    assert open_descriptors() == before


@pytest.mark.parametrize(("hubs", "index"), [(1, 0), (2, 0), (2, 1), (4, 3)])
@pytest.mark.parametrize("way", ["number", "socket"])
def test_stop_closes_all_when_a_clone_was_closed_behind_its_back(
    way: str, index: int, hubs: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The address is free, nothing stays open, and one line says so."""
    before = open_descriptors()
    server = StreamServer(LOCAL, reply_ok, clones=4, hubs=hubs)
    server.start()
    listener: Any = clones_of(server).listeners[index]
    clone = listener._sock
    if way == "number":
        os.close(clone.fileno())
    else:
        clone.close()
    server.stop()
    assert (server.closed, server.started, entries()) == (True, False, [])
    assert is_refused(server.address)
    glb.bind(server.address).close()
    wait_until(lambda: open_descriptors().keys() <= before.keys())
    expected = ["Bad file descriptor"] if way == "number" else []
    assert [record.name for record in caplog.records] == ["glb"] * len(expected)
    assert all(text in caplog.text for text in expected)
    server.start()
    assert ask(server.address) == b"ok"
    server.stop()


def test_resize_closes_all_that_go_when_one_was_closed_behind_its_back() -> None:
    """The others that go are closed as well, and those that stay serve."""
    recorder = Recorder()
    with StreamServer(LOCAL, recorder, clones=4) as server:
        server.start()
        clones_of(server).listeners[2].close()
        server.resize(2)
        assert entry_of(server).clones == 2
        assert [ask(server.address) for _ in range(4)] == [b"0", b"1"] * 2


@pytest.mark.parametrize("hubs", [1, 4])
def test_clones_cost_no_descriptors(hubs: int) -> None:
    """1,024 of them cost as many as one for each hub does, in exact turn, and so after a resize."""
    many, recorder = 1024, Recorder()
    before = len(open_descriptors())
    with StreamServer(LOCAL, recorder, clones=hubs, hubs=hubs, patience=60) as few:
        few.start()
        expected = len(open_descriptors()) - before
    with StreamServer(LOCAL, recorder, clones=many, hubs=hubs, patience=60) as server:
        server.start()
        assert len(open_descriptors()) - before == expected
        assert expected <= 8 or hubs > 1
        assert entries()[0].clones == many
        assert [int(ask(server.address)) for _ in range(many + 1)] == [*range(many), 0]
        server.resize(hubs)
        assert (entries()[0].clones, len(open_descriptors()) - before) == (hubs, expected)
        server.resize(many)
        assert (entries()[0].clones, len(open_descriptors()) - before) == (many, expected)
    assert entries() == []


def test_a_server_that_is_forgotten_unclosed_frees_its_address() -> None:
    """Its clones have no descriptors that would; its listener warns, as ever."""

    def forget() -> Any:
        server = StreamServer(LOCAL, reply_ok, clones=3)
        server.init_socket()
        address = server.address
        del server
        gc.collect()
        return address

    with pytest.warns(ResourceWarning, match="unclosed listener"):
        address = forget()
    assert (entries(), is_refused(address)) == ([], True)


def native_connect_is_refused(address: Any) -> bool:
    with native_socket.socket() as client:
        return client.connect_ex(address) == errno.ECONNREFUSED


def test_stop_accepting_takes_nothing_more_until_started_again() -> None:
    """Clients wait; starting twice is once; room in the pool does not undo it."""
    recorder = Recorder()
    with StreamServer(LOCAL, recorder, spawn=2) as server:
        server.start()
        ask(server.address)
        server.stop_accepting()
        clients = [connect(server.address) for _ in range(3)]
        admission_of(server).on_room(None)
        let_hub_turn()
        assert recorder.order == [0]
        server.start_accepting()
        server.start_accepting()
        assert [receive_all(client) for client in clients] == [b"1", b"2", b"3"]
        close_all(clients)


def test_a_stop_during_a_pause_lasts() -> None:
    """The end of a pause, or of fullness, does not undo its owner's stop."""
    failures = iter([True])

    def spawn(*args: Any) -> Any:
        if next(failures, False):
            raise MemoryError
        return gevent.spawn(*args)

    hub = gevent.get_hub()
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "handle_error", lambda *_: None)
        with StreamServer(LOCAL, recorder, spawn=spawn) as server:
            server.start()
            ask(server.address)
            server.stop_accepting()
            waiting = connect(server.address)
            assert admission_of(server)._timer is None  # nothing is left that could end the stop
            let_hub_turn()
            assert recorder.order == []
            server.start_accepting()
            assert receive_all(waiting) == b"1"
            waiting.close()


def test_a_server_starts_again_on_the_same_port() -> None:
    """With its handler, its spawn and its pool, whichever way they were given."""
    for spawn in ("default", None, 2, gevent.spawn_raw):
        server = StreamServer(LOCAL, reply_ok, spawn=spawn)
        server.start()
        address = server.address
        assert ask(address) == b"ok"
        server.stop()
        assert is_refused(address)
        server.start()
        assert server.address == address
        assert ask(address) == b"ok"
        assert sum(clone.accepted for clone in server.clone_stats()) == 2
        server.stop()


def test_a_handler_that_is_the_servers_own_method_starts_again() -> None:
    """However it was given."""

    class Own(StreamServer):
        def __init__(self) -> None:
            super().__init__(LOCAL, self.serve_one)

        def serve_one(self, sock: Any, peer: Any) -> None:
            reply_ok(sock, peer)

    server = Own()
    for _ in range(2):
        server.start()
        assert ask(server.address) == b"ok"
        server.stop()


def test_a_server_that_stopped_in_a_turn_starts_again() -> None:
    """A handler in the hub may close its server; the next start is a fresh one."""

    def handle(sock: Any, _peer: Any) -> None:
        sock.sendall(b"bye")
        server.close()

    server = StreamServer(LOCAL, handle, spawn=None)
    for _ in range(3):
        server.start()
        assert ask(server.address) == b"bye"
        assert server.closed


def test_a_stopped_server_can_be_collected() -> None:
    """Nothing on the loop, in the registry or in a pool holds it."""
    pool = Pool(1)
    server = StreamServer(LOCAL, reply_ok, spawn=pool)
    server.start()
    ask(server.address)
    server.stop()
    gone = weakref.ref(server)
    del server
    let_hub_turn()
    gc.collect()
    assert gone() is None
    assert len(pool) == 0


def test_a_server_that_leaves_others_on_its_address_can_be_collected() -> None:
    """The ring that goes on without it forgets it, and lets the hub go when it may."""
    recorder = Recorder()
    with StreamServer(LOCAL, recorder, clones=2, reuse_port=True) as stays:
        stays.start()
        server = StreamServer(stays.address, reply_ok, clones=2, reuse_port=True)
        server.start()
        for _ in range(3):
            ask(stays.address)
        server.stop()
        gone = weakref.ref(server)
        del server
        let_hub_turn()
        gc.collect()
        assert gone() is None
        for _ in range(4):
            ask(stays.address)
        assert recorder.order == [0, 1, 0, 1, 0, 1]


def test_a_server_that_was_never_started_can_be_collected() -> None:
    """And leaves nothing."""
    gone = weakref.ref(StreamServer(LOCAL, reply_ok))
    gc.collect()
    assert gone() is None


def test_serve_forever_ends_with_stop() -> None:
    """As in gevent."""
    server = StreamServer(LOCAL, reply_ok)
    serving = gevent.spawn(server.serve_forever)
    wait_until(lambda: server.started)
    assert ask(server.address) == b"ok"
    server.stop()
    serving.get()


@pytest.mark.parametrize("hubs", [1, 2])
@pytest.mark.parametrize("timeout", ["1", -1, float("nan"), True])
def test_a_stop_for_no_time_is_refused(hubs: int, timeout: Any) -> None:
    """The error has the value in it, and the server goes on."""
    with StreamServer(LOCAL, reply_ok, hubs=hubs) as server:
        server.start()
        with pytest.raises((TypeError, ValueError), match=f"timeout must be .*{timeout!r}"):
            server.stop(timeout)
        assert server.started
        assert ask(server.address) == b"ok"


def test_stop_waits_for_the_pool() -> None:
    """And kills what is left at the timeout, as in gevent."""
    holder = Holder()
    server = StreamServer(LOCAL, holder, spawn=5)
    server.start()
    client = connect(server.address)
    holder.wait_for(1)
    server.stop(timeout=0.01)
    assert receive_all(client) == b""
    assert server.clone_stats()[0][1:5] == (1, 0, 0, 1)
    client.close()


def test_init_socket_then_fork_then_start_accepting() -> None:
    """The parent binds, the child accepts: what pre-forking servers do."""
    server = StreamServer(LOCAL, Recorder(), clones=3)
    server.init_socket()
    read_end, write_end = os.pipe()
    child = gevent.os.fork()
    if not child:
        status = 1
        try:
            server.start_accepting()
            os.write(write_end, b"accepting")
            wait_until(lambda: sum(clone.completed for clone in server.clone_stats()) == 6)
            status = 0
        finally:
            os._exit(status)
    try:
        assert os.read(read_end, 9) == b"accepting"
        assert [ask(server.address) for _ in range(6)] == [b"%d" % turn for turn in turns(3, 6)]
        assert os.WEXITSTATUS(gevent.os.waitpid(child, 0)[1]) == 0
    finally:
        os.close(read_end)
        os.close(write_end)
        server.close()
        gevent.sleep(0.01)  # gevent ends its watcher for the child


def test_a_server_in_a_native_threads_hub_works() -> None:
    """Made, run and stopped there; the main hub is not involved."""
    addresses: list[Any] = []
    failed: list[BaseException] = []
    started, finish = threading.Event(), threading.Event()

    def run() -> None:
        try:
            server = StreamServer(LOCAL, Recorder(), clones=3)
            server.start()
            addresses.append(server.address)
            started.set()
            while not finish.is_set():
                gevent.sleep(0.001)
            server.stop()
        except BaseException as error:
            failed.append(error)
        finally:
            started.set()
            gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    replies = [ask(addresses[0]) for _ in range(7)]
    finish.set()
    thread.join()
    assert failed == []
    assert replies == [b"%d" % turn for turn in turns(3, 7)]


@pytest.mark.usefixtures("by_turns_and_by_loops")
@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_clones_serve_in_turn() -> None:
    """And leave no descriptor."""
    recorder = Recorder()
    with StreamServer(LOCAL, recorder, clones=1000) as server:
        server.start()
        for _ in range(1010):
            ask(server.address)
    assert recorder.order == turns(1000, 1010)
