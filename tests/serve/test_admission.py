"""Admission: limits leave clients in the kernel, in order, and end by themselves.

With a patience of 30 s no busy machine makes a hub look stalled.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from time import monotonic
from typing import Any, ClassVar

import gevent
import pytest
from gevent.event import Event
from gevent.pool import Pool

import glb
from glb.accept.registry import entries
from glb.model.states import State
from glb.pywsgi import WSGIServer
from glb.serve import acceptor as acceptor_module
from glb.serve import admission as gate_module
from glb.server import StreamServer

from ..conftest import open_descriptors
from ..support.engine import admission_of
from ..support.helpers import (
    Clock,
    ask,
    call_in,
    close_all,
    connect,
    http_get,
    is_refused,
    let_hub_turn,
    receive_all,
    turns,
    wait_until,
)

LOCAL = ("127.0.0.1", 0)
NEVER = 30.0

#: Ways to run handlers, each with room for more than the limits here.
SPAWNS: dict[str, Any] = {
    "default": lambda: "default",
    "number": lambda: 50,
    "pool": lambda: Pool(50),
    "gevent.spawn": lambda: gevent.spawn,
}

#: A pool belongs to one hub.
HUBS_AND_SPAWNS = [
    (hubs, spawn) for hubs in (1, 2) for spawn in SPAWNS if hubs == 1 or spawn != "pool"
]


@pytest.fixture(params=[1, 2])
def hubs(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def serve(handle: Any, *, hubs: int = 1, address: Any = LOCAL, **more: Any) -> StreamServer:
    """Return a server, not started."""
    more.setdefault("clones", 4)
    if hubs > 1:
        more.setdefault("patience", NEVER)
    return StreamServer(address, handle, hubs=hubs, **more)


class Holder:
    """A handler, for any hub, that holds connections until it may let so many of them go.

    Attributes:
        peers: The clients' ports, in the order in which their handlers began.
        clones: The clones, in that order.
        most: How many were held at once, at most.
    """

    def __init__(self) -> None:
        self.peers: list[int] = []
        self.clones: list[int] = []
        self.most = 0
        self.may_go = 0
        self._held = 0
        self._lock = threading.Lock()

    def __call__(self, sock: Any, peer: Any) -> None:
        clone = glb.current_clone()
        assert clone is not None
        with self._lock:
            number = len(self.peers)
            self.peers.append(peer[1])
            self.clones.append(clone.index)
            self._held += 1
            self.most = max(self.most, self._held)
        try:
            while self.may_go <= number:
                gevent.sleep(0.001)
            sock.sendall(b"%d" % number)
        finally:
            with self._lock:
                self._held -= 1

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.peers) >= count)

    def release(self) -> None:
        self.may_go = 1 << 30


class ByName:
    """A handler that replies with its clone: at once, or after an ``h`` when it may go."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self._may_go = threading.Event()

    def __call__(self, sock: Any, _peer: Any) -> None:
        clone = glb.current_clone()
        assert clone is not None
        self.order.append(clone.index)
        if sock.recv(1) == b"h":
            while not self._may_go.is_set():
                gevent.sleep(0.001)
        sock.sendall(b"%d" % clone)

    def release(self) -> None:
        self._may_go.set()


def state_of(server: StreamServer) -> State:
    """Return it as it is now: what it was before says nothing."""
    return server.state


def clone_states(server: StreamServer) -> list[str]:
    return [each.state for each in server.clone_stats()]


def accepted(server: StreamServer) -> list[int]:
    return [each.accepted for each in server.clone_stats()]


def wait_for_state(server: StreamServer, state: State) -> None:
    wait_until(lambda: server.state is state)


def ports(clients: list[Any]) -> list[int]:
    return [client.getsockname()[1] for client in clients]


def quick(server: StreamServer) -> int:
    return int(ask(server.address, b"q"))


# -- max_connections ----------------------------------------------------------------------------


@pytest.mark.parametrize(("hubs", "spawn"), HUBS_AND_SPAWNS)
def test_no_more_than_max_connections_at_once(hubs: int, spawn: str) -> None:
    """However handlers run; the rest waits in the kernel, and has its turn in its order."""
    holder = Holder()
    with serve(holder, hubs=hubs, spawn=SPAWNS[spawn](), max_connections=3) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(9)]
        server.start()
        holder.wait_for(3)
        wait_for_state(server, State.FULL)
        for gone in range(1, 7):
            assert (entries()[0].accepted, server.active) == (2 + gone, 3)
            holder.may_go = gone
            holder.wait_for(3 + gone)
            wait_for_state(server, State.FULL)
        holder.release()
        assert [*map(len, map(receive_all, clients))] == [1] * 9
        wait_until(lambda: server.active == 0)
        wait_for_state(server, State.ACCEPTING)
        assert holder.most == 3
        # Those that begin at once may do so on two hubs.
        assert {*holder.peers[:3]} == {*ports(clients[:3])}
        assert holder.peers[3:] == ports(clients[3:])
        assert sum(accepted(server)) == 9
        close_all(clients)


@pytest.mark.parametrize(("hubs", "spawn"), HUBS_AND_SPAWNS)
def test_nothing_is_lost_at_the_limit(hubs: int, spawn: str) -> None:
    """Of many clients at a time each has its reply, and never are there more than may be."""
    holder = Holder()
    holder.release()
    with serve(holder, hubs=hubs, spawn=SPAWNS[spawn](), max_connections=2) as server:
        server.start()
        waiting = iter(range(120))
        replies = []

        def client() -> None:
            for _ in waiting:
                replies.append(int(ask(server.address)))

        gevent.joinall([gevent.spawn(client) for _ in range(16)], raise_error=True)
        assert sorted(replies) == [*range(120)]
        assert holder.most <= 2
        wait_until(lambda: server.active == 0)
        wait_for_state(server, State.ACCEPTING)
        assert Counter(holder.clones) == dict.fromkeys(range(4), 30)


def test_turns_are_exact_at_the_limit(hubs: int) -> None:
    """A pause of all clones costs none of them its place."""
    holder = Holder()
    with serve(holder, hubs=hubs, max_connections=1) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(10)]
        server.start()
        holder.release()
        assert [int(receive_all(client)) for client in clients] == [*range(10)]
        assert holder.clones == turns(4, 10)
        close_all(clients)


def test_a_full_server_says_so(hubs: int) -> None:
    """It and its clones are full, none is ready; and all is as before when there is room."""
    holder = Holder()
    with serve(holder, hubs=hubs, max_connections=1) as server:
        server.start()
        assert (state_of(server), server.is_ready, entries()[0].ready) == (
            State.ACCEPTING,
            True,
            4,
        )
        with connect(server.address) as client:
            wait_for_state(server, State.FULL)
            assert (server.is_ready, entries()[0].ready) == (False, 0)
            assert clone_states(server) == ["full"] * 4
            assert [each.ready for each in server.clone_stats()] == [False] * 4
            holder.release()
            receive_all(client)
        wait_for_state(server, State.ACCEPTING)
        assert (server.is_ready, entries()[0].ready) == (True, 4)
        assert clone_states(server) == ["accepting"] * 4


@pytest.mark.parametrize("make", [lambda: 2, lambda: Pool(2)], ids=["number", "pool"])
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_beside_a_bound_the_smaller_one_holds(make: Any, limit: int) -> None:
    """A pool and a limit, whichever is reached first, or both at once."""
    holder = Holder()
    with serve(holder, spawn=make(), max_connections=limit) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(6)]
        server.start()
        for gone in range(7 - min(2, limit)):
            holder.may_go = gone
            holder.wait_for(gone + min(2, limit))
            wait_for_state(server, State.FULL)
        holder.release()
        assert [int(receive_all(client)) for client in clients] == [*range(6)]
        assert holder.peers == ports(clients)
        assert holder.most == min(2, limit)
        wait_for_state(server, State.ACCEPTING)
        close_all(clients)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_beside_a_bound_over_two_hubs_the_smaller_one_holds(limit: int) -> None:
    """As with one."""
    holder = Holder()
    with serve(holder, hubs=2, spawn=2, max_connections=limit) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(6)]
        server.start()
        holder.wait_for(min(2, limit))
        wait_for_state(server, State.FULL)
        holder.release()
        assert sorted(int(receive_all(client)) for client in clients) == [*range(6)]
        assert holder.most == min(2, limit)
        wait_for_state(server, State.ACCEPTING)
        close_all(clients)


def test_a_pool_that_others_fill_while_the_server_is_at_its_limit() -> None:
    """The server goes on when they leave, although its limit had stopped it."""
    holder, theirs = Holder(), Event()
    pool = Pool(2)
    with serve(holder, spawn=pool, max_connections=1) as server:
        server.start()
        first, second = connect(server.address), connect(server.address)
        holder.wait_for(1)
        wait_for_state(server, State.FULL)
        others: list[Any] = [pool.spawn(theirs.wait)]
        greedy = gevent.spawn(lambda: others.append(pool.spawn(theirs.wait)))
        holder.may_go = 1
        assert receive_all(first) == b"0"
        wait_until(lambda: len(others) == 2)
        let_hub_turn()
        assert (state_of(server), entries()[0].accepted) == (State.FULL, 1)
        theirs.set()
        holder.wait_for(2)
        holder.release()
        assert receive_all(second) == b"1"
        gevent.joinall(others)
        greedy.join()
        close_all([first, second])


def test_a_handler_that_fails_makes_room(capsys: pytest.CaptureFixture[str]) -> None:
    """As one that returns."""

    def handle(_sock: Any, _peer: Any) -> None:
        raise LookupError("on purpose")

    with serve(handle, max_connections=1) as server:
        server.start()
        assert [ask(server.address) for _ in range(3)] == [b""] * 3
        assert sum(each.failed for each in server.clone_stats()) == 3
        wait_for_state(server, State.ACCEPTING)
    assert capsys.readouterr().err.count("LookupError: on purpose") == 3


def test_a_handler_that_is_killed_makes_room(hubs: int) -> None:
    """As one that returns."""
    greenlets: list[Any] = []

    def handle(sock: Any, _peer: Any) -> None:
        greenlets.append(gevent.getcurrent())
        sock.recv(1)

    with serve(handle, hubs=hubs, max_connections=1) as server:
        server.start()
        clients = [connect(server.address) for _ in range(4)]
        for number in range(4):
            wait_until(lambda: len(greenlets) > number)  # noqa: B023  # it is called in this round
            throw = functools.partial(greenlets[number].throw, gevent.GreenletExit)
            call_in(greenlets[number].parent, throw)
            assert receive_all(clients[number]) == b""
        assert sum(each.failed for each in server.clone_stats()) == 4
        close_all(clients)


def test_a_limit_is_each_servers_own(hubs: int) -> None:
    """A full server leaves the shared address to the other one."""
    holder = Holder()
    with serve(holder, hubs=hubs, max_connections=1, reuse_port=True) as full:
        full.start()
        with connect(full.address) as held:
            wait_for_state(full, State.FULL)
            with serve(lambda sock, _: sock.sendall(b"other"), address=full.address) as other:
                other.reuse_port = True
                other.start()
                assert [ask(full.address) for _ in range(6)] == [b"other"] * 6
            holder.release()
            assert receive_all(held) == b"0"


def test_http_connections_are_limited_too(hubs: int) -> None:
    """A kept-alive one counts for as long as it is open."""

    def application(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    with WSGIServer(LOCAL, application, hubs=hubs, max_connections=1, log=None) as server:
        server.start()
        with connect(server.address) as kept:
            kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert kept.recv(1000).endswith(b"ok")
            wait_for_state(server, State.FULL)
            next_one = gevent.spawn(http_get, server.address)
            let_hub_turn()
            assert not next_one.ready()
        assert next_one.get() == b"ok"


# -- max_connections_per_clone ------------------------------------------------------------------


def test_a_full_clone_is_passed_over_and_comes_back_at_the_end(hubs: int) -> None:
    """The whole order, exactly: without it while it is full, and behind all others then."""
    handle = ByName()
    with serve(handle, hubs=hubs, max_connections_per_clone=1) as server:
        server.start()
        with connect(server.address) as held:
            held.sendall(b"h")
            wait_until(lambda: handle.order == [0])
            assert [quick(server) for _ in range(5)] == [1, 2, 3, 1, 2]
            assert clone_states(server) == ["full", "accepting", "accepting", "accepting"]
            assert [each.ready for each in server.clone_stats()] == [False, True, True, True]
            assert entries()[0].ready == 3
            handle.release()
            assert receive_all(held) == b"0"
        wait_until(lambda: clone_states(server) == ["accepting"] * 4)
        assert [quick(server) for _ in range(8)] == [3, 1, 2, 0, 3, 1, 2, 0]
        assert state_of(server) is State.ACCEPTING


@pytest.mark.parametrize(("hubs", "spawn"), HUBS_AND_SPAWNS)
def test_no_clone_has_more_than_it_may(hubs: int, spawn: str) -> None:
    """However handlers run: a queue of clients is dealt out to the limits, and no further."""
    holder = Holder()
    with serve(
        holder, hubs=hubs, clones=3, spawn=SPAWNS[spawn](), max_connections_per_clone=2
    ) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(12)]
        server.start()
        wait_until(lambda: clone_states(server) == ["full"] * 3)
        holder.wait_for(6)
        assert (accepted(server), entries()[0].accepted) == ([2, 2, 2], 6)
        assert (state_of(server), server.is_ready, entries()[0].ready) == (State.FULL, False, 0)
        assert {*holder.peers} == {*ports(clients[:6])}
        for gone in range(1, 7):
            holder.may_go = gone
            holder.wait_for(6 + gone)
            wait_until(lambda: clone_states(server) == ["full"] * 3)
            # The one that had room has the next client.
            assert holder.clones[5 + gone] == holder.clones[gone - 1]
        assert holder.peers[6:] == ports(clients[6:])
        holder.release()
        for client in clients:
            receive_all(client)
        wait_until(lambda: clone_states(server) == ["accepting"] * 3)
        assert (state_of(server), server.is_ready) == (State.ACCEPTING, True)
        assert holder.most == 6
        close_all(clients)


@pytest.mark.usefixtures("by_turns_and_by_loops")
def test_the_order_is_that_in_which_clones_had_room_again(hubs: int) -> None:
    """All were full; the first to have room is the first in turn."""
    holder = Holder()
    with serve(holder, hubs=hubs, clones=2, max_connections_per_clone=1) as server:
        server.start()
        clients = []
        for count in (1, 2):
            clients.append(connect(server.address))
            holder.wait_for(count)
        wait_until(lambda: clone_states(server) == ["full"] * 2)
        clients += [connect(server.address) for _ in range(4)]
        for gone in range(1, 5):
            holder.may_go = gone
            holder.wait_for(2 + gone)
        holder.release()
        assert holder.clones == [0, 1] * 3
        assert holder.peers == ports(clients)
        close_all(clients)


@pytest.mark.parametrize("policy", ["least_connections", "first"])
def test_a_policy_deals_among_those_that_have_room(policy: str, hubs: int) -> None:
    """Each clone gets its two, whatever would have been next."""
    holder = Holder()
    with serve(holder, hubs=hubs, clones=2, policy=policy, max_connections_per_clone=2) as server:
        server.start()
        clients = [connect(server.address) for _ in range(6)]
        wait_until(lambda: clone_states(server) == ["full"] * 2)
        holder.wait_for(4)
        assert accepted(server) == [2, 2]
        holder.release()
        assert sorted(int(receive_all(client)) for client in clients) == [*range(6)]
        close_all(clients)


def test_both_limits_hold(hubs: int) -> None:
    """The server's and its clones': whichever is reached first."""
    holder = Holder()
    with serve(
        holder, hubs=hubs, clones=3, max_connections=4, max_connections_per_clone=2
    ) as server:
        server.start()
        server.pause_clone(2)
        clients = [connect(server.address) for _ in range(8)]
        wait_until(lambda: accepted(server) == [2, 2, 0])
        wait_for_state(server, State.FULL)
        server.resume_clone(2)
        let_hub_turn()
        assert accepted(server) == [2, 2, 0]
        holder.release()
        assert sorted(int(receive_all(client)) for client in clients) == [*range(8)]
        assert holder.most == 4
        close_all(clients)


def test_a_full_clone_is_as_full_after_a_restart(hubs: int) -> None:
    """What it still has from before counts; and its end is room."""
    handle = ByName()
    server = serve(handle, hubs=hubs, clones=2, max_connections_per_clone=1)
    server.start()
    with connect(server.address) as held:
        held.sendall(b"h")
        wait_until(lambda: handle.order == [0])
        assert [quick(server) for _ in range(2)] == [1, 1]
        server.close()
        assert clone_states(server) == ["stopped"] * 2
        server.start()
        assert [quick(server) for _ in range(3)] == [1, 1, 1]
        # A client sees its end a moment before its clone has room again.
        wait_until(lambda: clone_states(server) == ["full", "accepting"])
        handle.release()
        assert receive_all(held) == b"0"
    wait_until(lambda: clone_states(server) == ["accepting"] * 2)
    assert [quick(server) for _ in range(2)] == [1, 0]
    server.stop()


# -- accept_rate --------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which connections are counted. Timers have the loop's own."""
    clock = Clock()
    for module in (gate_module, acceptor_module):
        monkeypatch.setattr(module, "monotonic", clock)
    return clock


@pytest.mark.parametrize(("hubs", "spawn"), HUBS_AND_SPAWNS)
def test_a_server_takes_as_many_as_its_rate_allows(hubs: int, spawn: str, clock: Clock) -> None:
    """A burst at first, and then one for each part of a second, by the count of an exact clock."""
    holder = Holder()
    with serve(holder, hubs=hubs, spawn=SPAWNS[spawn](), accept_rate=80) as server:
        server.init_socket()
        # One more than are taken: a pause ends by itself, and begins again while a client waits.
        clients = [connect(server.address) for _ in range(17)]
        server.start()
        for number, passed in ((8, 0), (9, 1), (10, 1), (13, 3), (16, 3)):
            clock.now += passed / 80
            holder.wait_for(number)
            wait_for_state(server, State.BACKING_OFF)
            assert (entries()[0].accepted, len(holder.peers)) == (number, number)
        # Clones may begin on two hubs at once, but each has had its turn.
        assert accepted(server) == [4, 4, 4, 4]
        holder.release()
        clock.now += 1 / 80
        for client in clients:
            receive_all(client)
        close_all(clients)


def test_a_server_at_its_rate_says_so(hubs: int, clock: Clock) -> None:
    """It and its clones are backing off, which needs nothing from outside."""
    with serve(lambda *_: None, hubs=hubs, accept_rate=10) as server:
        server.start()
        assert state_of(server) is State.ACCEPTING
        assert ask(server.address) == b""
        with connect(server.address) as client:
            # The clock stands, and a client waits, so each pause is followed by another.
            wait_for_state(server, State.BACKING_OFF)
            wait_until(lambda: clone_states(server) == ["backing off"] * 4)
            assert entries()[0].accepted == 1
            clock.now += 1
            assert receive_all(client) == b""
        wait_for_state(server, State.ACCEPTING)
        assert clone_states(server) == ["accepting"] * 4


def test_a_rate_holds_by_the_real_clock(hubs: int) -> None:
    """So many connections, but for the first burst, take their time."""
    with serve(lambda *_: None, hubs=hubs, accept_rate=400) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(60)]
        began = monotonic()
        server.start()
        for client in clients:
            assert receive_all(client) == b""
        assert monotonic() - began >= (60 - 40) / 400 - 1e-6
        assert accepted(server) == [15] * 4
        close_all(clients)


@pytest.mark.usefixtures("clock")
def test_a_rate_begins_anew_with_each_start() -> None:
    """What was taken before the stop is not counted."""
    server = serve(lambda *_: None, accept_rate=10)
    for _ in range(3):
        server.start()
        assert ask(server.address) == b""
        with connect(server.address):
            wait_for_state(server, State.BACKING_OFF)
            assert entries()[0].accepted == 1
            server.stop()
        assert state_of(server) is State.STOPPED


def test_a_rates_pause_ends_only_where_it_began(clock: Clock) -> None:
    """A stop of a server that is backing off is for good."""
    with serve(lambda *_: None, accept_rate=100) as server:
        server.start()
        clients = [connect(server.address) for _ in range(11)]
        wait_for_state(server, State.BACKING_OFF)
        server.stop_accepting()
        assert state_of(server) is State.STOPPED
        clock.now += 10
        turned = Event()
        gevent.spawn_later(0.02, turned.set)  # a later timer than the pause's of 10 ms
        turned.wait()
        assert (state_of(server), entries()[0].accepted) == (State.STOPPED, 10)
        server.start_accepting()
        assert receive_all(clients[-1]) == b""
        close_all(clients)


def test_a_rate_and_a_number_hold_together(clock: Clock) -> None:
    """The end of the one pause is not the end of the other."""
    holder = Holder()
    with serve(holder, accept_rate=20, max_connections=3) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(6)]
        server.start()
        holder.wait_for(2)
        wait_for_state(server, State.BACKING_OFF)
        clock.now += 10
        holder.wait_for(3)
        wait_for_state(server, State.FULL)
        assert entries()[0].accepted == 3
        holder.may_go = 3
        holder.wait_for(4)
        wait_for_state(server, State.BACKING_OFF)
        assert entries()[0].accepted == 4
        holder.release()
        clock.now += 10
        for client in clients:
            receive_all(client)
        assert holder.peers == ports(clients)
        close_all(clients)


# -- where limits come from ---------------------------------------------------------------------


class Limited(StreamServer):
    """A server with limits of its own."""

    max_connections = 5
    max_connections_per_clone = 2
    accept_rate = 1000.0
    handshake_timeout = 3.0
    first_byte_timeout = 4.0


def limits(server: StreamServer) -> tuple[object, ...]:
    return (
        server.max_connections,
        server.max_connections_per_clone,
        server.accept_rate,
        server.handshake_timeout,
        server.first_byte_timeout,
    )


def test_there_are_no_limits_by_default() -> None:
    """As gevent's server has none."""
    server = StreamServer(LOCAL, lambda *_: None)
    assert limits(server) == (None,) * 5


def test_a_class_has_limits_for_all_its_servers() -> None:
    """And an argument is one server's own."""
    assert limits(Limited(LOCAL, lambda *_: None)) == (5, 2, 1000.0, 3.0, 4.0)
    told = Limited(
        LOCAL,
        lambda *_: None,
        max_connections=1,
        max_connections_per_clone=3,
        accept_rate=7,
        handshake_timeout=8,
        first_byte_timeout=9,
    )
    assert limits(told) == (1, 3, 7, 8, 9)
    assert limits(Limited(LOCAL, lambda *_: None)) == (5, 2, 1000.0, 3.0, 4.0)


def test_a_classs_limit_holds() -> None:
    """As an argument does."""

    class One(StreamServer):
        max_connections = 1

    holder = Holder()
    with One(LOCAL, holder) as server:
        server.start()
        clients = [connect(server.address) for _ in range(2)]
        wait_for_state(server, State.FULL)
        holder.release()
        assert [receive_all(client) for client in clients] == [b"0", b"1"]
        assert holder.most == 1
        close_all(clients)


def test_limits_may_be_set_between_a_stop_and_a_start(hubs: int) -> None:
    """The next start has them; and none of those that were taken away."""
    server = serve(Holder(), hubs=hubs)
    for limit in (2, 1, None):
        holder = Holder()
        server.set_handle(holder)
        server.max_connections = limit
        server.start()
        clients = [connect(server.address) for _ in range(5)]
        holder.wait_for(limit or 5)
        if limit is not None:
            wait_for_state(server, State.FULL)
        assert entries()[0].accepted == (limit or 5)
        holder.release()
        for client in clients:
            receive_all(client)
        assert holder.most == (limit or 5)
        close_all(clients)
        server.stop()


def test_a_clones_limit_that_was_taken_away_holds_no_clone_back() -> None:
    """It was full at the stop, and accepts from the next start on."""
    handle = ByName()
    server = serve(handle, clones=2, max_connections_per_clone=1)
    server.start()
    with connect(server.address) as held:
        held.sendall(b"h")
        wait_until(lambda: handle.order == [0])
        assert [quick(server) for _ in range(2)] == [1, 1]
        server.close()
        server.max_connections_per_clone = None
        server.start()
        assert sorted(quick(server) for _ in range(4)) == [0, 0, 1, 1]
        handle.release()
    server.stop()


BAD = [
    ("max_connections", 0, ValueError, "max_connections must be 1 or more, got 0"),
    ("max_connections", True, TypeError, "max_connections must be a whole number, got True"),
    ("max_connections", 1.5, TypeError, "max_connections must be a whole number, got 1.5"),
    (
        "max_connections_per_clone",
        -1,
        ValueError,
        "max_connections_per_clone must be 1 or more, got -1",
    ),
    (
        "max_connections_per_clone",
        "2",
        TypeError,
        "max_connections_per_clone must be a whole number, got '2'",
    ),
    ("accept_rate", 0, ValueError, "accept_rate must be more than 0 connections a second, got 0"),
    (
        "accept_rate",
        float("nan"),
        ValueError,
        "accept_rate must be more than 0 connections a second, got nan",
    ),
    (
        "accept_rate",
        "fast",
        TypeError,
        "accept_rate must be a number of connections a second, got 'fast'",
    ),
    ("handshake_timeout", 0, ValueError, "handshake_timeout must be more than 0 seconds, got 0"),
    (
        "handshake_timeout",
        False,
        TypeError,
        "handshake_timeout must be a number of seconds, got False",
    ),
    (
        "first_byte_timeout",
        float("inf"),
        ValueError,
        "first_byte_timeout must be more than 0 seconds, got inf",
    ),
    (
        "first_byte_timeout",
        [1],
        TypeError,
        "first_byte_timeout must be a number of seconds, got [1]",
    ),
]


@pytest.mark.parametrize(("name", "value", "kind", "text"), BAD)
def test_a_limit_that_is_none_is_refused_before_anything_is_touched(
    name: str, value: Any, kind: type[Exception], text: str
) -> None:
    """The listener that was given is still the caller's, and open."""
    server_class: Any
    with glb.bind_direct(LOCAL) as listener:
        before = open_descriptors()
        for server_class in (StreamServer, WSGIServer):
            with pytest.raises(kind) as caught:
                server_class(listener, lambda *_: None, **{name: value})
            assert str(caught.value) == text
        assert open_descriptors() == before
        connect(listener.address).close()
        listener.accept()[0].close()


@pytest.mark.parametrize(("name", "value", "kind", "text"), BAD)
def test_a_classs_limit_that_is_none_is_refused_too(
    name: str, value: object, kind: type[Exception], text: str
) -> None:
    """In the constructor, as an argument would be."""
    server_class = type("Wrong", (StreamServer,), {name: value})
    with pytest.raises(kind) as caught:
        server_class(LOCAL, lambda *_: None)
    assert str(caught.value) == text


@pytest.mark.parametrize(("name", "value", "kind", "text"), BAD)
def test_a_limit_that_was_set_wrong_is_refused_by_the_start(
    name: str, value: object, kind: type[Exception], text: str
) -> None:
    """Nothing is opened; and with a right one the server starts."""
    server = StreamServer(LOCAL, lambda sock, _: sock.sendall(b"ok"), clones=2)
    server.start()
    address = server.address
    server.stop()
    setattr(server, name, value)
    before = open_descriptors()
    with pytest.raises(kind) as caught:
        server.start()
    assert str(caught.value) == text
    assert (open_descriptors(), entries(), state_of(server)) == (before, [], State.STOPPED)
    assert is_refused(address)
    setattr(server, name, None)
    with server:
        server.start()
        assert ask(server.address) == b"ok"


# -- gevent's hooks -----------------------------------------------------------------------------


class Hooks:
    """What a program adds to a server's class, to know when it accepts."""

    calls: ClassVar[list[str]]

    def start_accepting(self) -> None:
        self.calls.append("start")
        super().start_accepting()  # type: ignore[misc]  # of the server's class

    def stop_accepting(self) -> None:
        self.calls.append("stop")
        super().stop_accepting()  # type: ignore[misc]  # as above


def record(**arguments: Any) -> list[str]:
    """Return the calls of the hooks of a server that is full twice."""
    calls: list[str] = []
    kind: Any = type("Hooked", (Hooks, StreamServer), {"calls": calls})
    holder = Release()
    server = kind(LOCAL, holder, **arguments)
    server.start()
    for number in range(1, 3):
        with connect(server.address) as client:
            holder.wait_for(number)
            wait_until(lambda: calls.count("stop") == number)  # noqa: B023  # in this round
            let_hub_turn()
            holder.let_go()
            assert receive_all(client) == b"done"
        wait_until(lambda: calls.count("start") == number + 1)  # noqa: B023  # as above
        let_hub_turn()
    server.stop()
    return calls


class Release:
    """A handler that holds each connection until it is let go; it needs no clone."""

    def __init__(self) -> None:
        self.begun = self.gone = 0

    def __call__(self, sock: Any, _peer: Any) -> None:
        self.begun += 1
        number = self.begun
        while self.gone < number:
            gevent.sleep(0.001)
        sock.sendall(b"done")

    def wait_for(self, count: int) -> None:
        wait_until(lambda: self.begun >= count)

    def let_go(self) -> None:
        self.gone += 1


# gevent's own has, now and then, a "start" more: its pool's semaphore may call at once.
WHOLE_RECORD = ["start", "stop", "start", "stop", "start", "stop"]


@pytest.mark.parametrize("limit", [{"spawn": 1}, {"max_connections": 1}], ids=repr)
@pytest.mark.parametrize("hubs", [1, 2])
def test_hooks_are_called_once_a_pause(limit: dict[str, int], hubs: int) -> None:
    """At each beginning and end of a pause, and of the server; so gevent's is made."""
    assert record(hubs=hubs, clones=4, **limit) == WHOLE_RECORD


def test_hooks_are_called_once_for_a_pause_by_the_rate(clock: Clock) -> None:
    """The pause is the server's own, like any other."""
    calls: list[str] = []
    kind: Any = type("Hooked", (Hooks, StreamServer), {"calls": calls})
    with kind(LOCAL, lambda *_: None, accept_rate=10) as server:
        server.start()
        admission_of(server).bucket.take(clock.now)
        clock.now += 0.1
        assert calls == ["start"]
        assert ask(server.address) == b""
        # The pause ends by itself, and no client comes that would make another.
        wait_until(lambda: len(calls) == 3)
        let_hub_turn()
        assert (calls, state_of(server)) == (["start", "stop", "start"], State.ACCEPTING)
    assert calls == ["start", "stop", "start", "stop"]


def test_a_clones_limit_is_no_pause_of_the_server() -> None:
    """The hooks are the whole server's, which goes on."""
    calls: list[str] = []
    kind: Any = type("Hooked", (Hooks, StreamServer), {"calls": calls})
    holder = Holder()
    with kind(LOCAL, holder, clones=2, max_connections_per_clone=1) as server:
        server.start()
        clients = [connect(server.address) for _ in range(3)]
        wait_until(lambda: clone_states(server) == ["full"] * 2)
        holder.release()
        assert sorted(int(receive_all(client)) for client in clients) == [0, 1, 2]
        close_all(clients)
        assert calls == ["start"]


def test_hooks_that_do_not_call_on_keep_no_limit_from_holding() -> None:
    """A `stop_accepting` that swallows the pause, and a `start_accepting` that only notes."""

    class Deaf(StreamServer):
        def stop_accepting(self) -> None:
            pass

    holder = Holder()
    with Deaf(LOCAL, holder, max_connections=2) as server:
        server.start()
        clients = [connect(server.address) for _ in range(6)]
        holder.wait_for(2)
        wait_for_state(server, State.FULL)
        holder.release()
        assert [int(receive_all(client)) for client in clients] == [*range(6)]
        assert holder.most == 2
        close_all(clients)


def test_a_hook_may_stop_the_server_at_a_pause() -> None:
    """What the owner does in it stands: there is no way back by itself."""

    class Closing(StreamServer):
        is_closing = False

        def stop_accepting(self) -> None:
            super().stop_accepting()
            if not self.is_closing:
                self.is_closing = True
                self.close()

    holder = Holder()
    server = Closing(LOCAL, holder, max_connections=1)
    server.start()
    with connect(server.address) as client:
        holder.wait_for(1)
        wait_until(lambda: server.closed)
        assert is_refused(server.address)
        holder.release()
        assert receive_all(client) == b"0"
    assert (state_of(server), entries()) == (State.STOPPED, [])
