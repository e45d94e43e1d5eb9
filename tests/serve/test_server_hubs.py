"""Servers over several hubs: one ring, one bound, one beginning and one end.

Nothing here is about hubs that are stalled (see test_watchdog): with a patience of 30 s no busy
machine makes one look so.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket as native_socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import gevent.server
import gevent.ssl
import gevent.tests
import pytest
from gevent import socket
from gevent.hub import Hub
from gevent.pool import Pool

import glb
from glb.accept.registry import entries
from glb.accept.turns import PATIENCE_SECONDS
from glb.hubs import threads as hubs_module
from glb.hubs.greenlet_pool import Handlers
from glb.model.states import State
from glb.originals import native_ident
from glb.pywsgi import WSGIServer
from glb.serve import accept_loop
from glb.serve.clone_set import CloneSet
from glb.serve.engine import Engine
from glb.server import StreamServer, default_accept_loop

from ..accept.test_dispatcher import fill
from ..conftest import hub_threads, open_descriptors
from ..support.engine import acceptors_of, admission_of, entry_of, turns_of, workers_of
from ..support.failing import REFUSALS, failing_accepts
from ..support.helpers import (
    ask,
    close_all,
    comes_true,
    connect,
    http_get,
    is_refused,
    let_hub_turn,
    receive_all,
    turns,
    wait_until,
)
from ..support.tls import client_context, server_context
from .test_hubs_process import FORKS, FORKS_BY, tell

LOCAL = ("127.0.0.1", 0)
NEVER = 30.0


def state_of(server: StreamServer) -> State:
    """Return it as it is now: what it was before says nothing."""
    return server.state


def serve(handle: Any = None, *, address: Any = LOCAL, **more: Any) -> StreamServer:
    """Return a server on two hubs, not started."""
    arguments: dict[str, Any] = {"hubs": 2, "clones": 2, "patience": NEVER, **more}
    if handle is None and "handler_factory" not in arguments:
        handle = Recorder()
    return StreamServer(address, handle, **arguments)


class Recorder:
    """A handler that keeps which clones served, and in which threads."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.threads: dict[int, set[int]] = {}

    def __call__(self, sock: Any, _peer: Any) -> None:
        clone = glb.current_clone()
        assert clone is not None
        self.order.append(clone.index)
        self.threads.setdefault(clone.index, set()).add(native_ident())
        sock.sendall(b"%d" % clone)


class Holder:
    """A handler that holds its connections, on any hub, until they are released."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.killed: list[int] = []
        self.released = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, sock: Any, _peer: Any) -> None:
        clone = glb.current_clone()
        assert clone is not None
        with self._lock:
            self.begun.append(clone.index)
        try:
            while not self.released.is_set():
                gevent.sleep(0.002)
        except gevent.GreenletExit:
            self.killed.append(clone.index)
            raise
        sock.sendall(b"done")

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.begun) >= count)


def active(server: StreamServer) -> list[int]:
    return [each.active for each in server.clone_stats()]


def threads_have_ended(before: list[str]) -> bool:
    return hub_threads() == before


# -- exact turns --------------------------------------------------------------------------------


@pytest.mark.usefixtures("by_turns_and_by_loops")
def test_connections_go_round_all_hubs_in_exact_turn() -> None:
    """0 to 7 over four hubs, 800 times without one exception."""
    recorder = Recorder()
    with serve(recorder, hubs=4, clones=8) as server:
        server.start()
        replies = [int(ask(server.address)) for _ in range(800)]
    assert replies == turns(8, 800)
    assert Counter(recorder.order) == dict.fromkeys(range(8), 100)


@pytest.mark.usefixtures("by_turns_and_by_loops")
@pytest.mark.parametrize("hubs", [2, 3, 4])
def test_many_clients_at_once_are_dealt_out_evenly(hubs: int) -> None:
    """Each clone has as many as any other, give or take the round that isn't over."""
    recorder = Recorder()
    with serve(recorder, hubs=hubs, clones=8) as server:
        server.start()
        waiting = iter(range(500))

        def client() -> None:
            for _ in waiting:
                ask(server.address)

        gevent.joinall([gevent.spawn(client) for _ in range(64)], raise_error=True)
        accepted = [each.accepted for each in server.clone_stats()]
    assert sum(accepted) == len(recorder.order) == 500
    assert max(accepted) - min(accepted) <= 1


@pytest.mark.usefixtures("by_turns_and_by_loops")
def test_a_full_accept_queue_is_dealt_out_in_turn() -> None:
    """Clients that waited before the start are served in the order of the queue."""
    with serve(hubs=3, clones=7) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(50)]
        server.start()
        assert [int(receive_all(client)) for client in clients] == turns(7, 50)
        close_all(clients)


def test_a_clone_lives_on_one_hub() -> None:
    """Clone i on hub i modulo M; hub 0 is this thread's, each other one has its own."""
    recorder = Recorder()
    with serve(recorder, hubs=3, clones=7) as server:
        server.start()
        for _ in range(21):
            ask(server.address)
        assert [each.hub for each in server.clone_stats()] == [0, 1, 2, 0, 1, 2, 0]
        home = native_ident()
        idents = [home, *(each.thread.ident for each in workers_of(server)[1:] if each.thread)]
        assert len(set(idents)) == 3
        assert recorder.threads == {clone: {idents[clone % 3]} for clone in range(7)}


def test_threads_are_named_after_their_hub_and_server() -> None:
    """One for each hub but the first, and the watchdog's; none when the server has stopped."""
    server = serve(hubs=3, clones=3)
    before = hub_threads()
    server.start()
    assert sorted(set(hub_threads()) - set(before)) == [
        f"glb hub 1 of {server.address!r}",
        f"glb hub 2 of {server.address!r}",
        f"glb watchdog of {server.address!r}",
    ]
    server.stop()
    assert hub_threads() == before


@pytest.mark.usefixtures("by_turns_and_by_loops")
def test_a_wsgi_server_goes_round_all_hubs() -> None:
    """The environment has the clone, and says that there are several threads."""

    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [f"{environ['glb.clone']} {environ['wsgi.multithread']}".encode()]

    with WSGIServer(LOCAL, application, hubs=4, clones=8, patience=NEVER, log=None) as server:
        server.start()
        replies = [http_get(server.address) for _ in range(40)]
    assert replies == [b"%d True" % turn for turn in turns(8, 40)]


def test_a_wsgi_server_of_one_hub_has_one_thread() -> None:
    """As gevent's says."""

    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [str(environ["wsgi.multithread"]).encode()]

    with WSGIServer(LOCAL, application, log=None) as server:
        server.start()
        assert http_get(server.address) == b"False"


def test_two_servers_on_several_hubs_make_one_ring() -> None:
    """Clones of both have turns in the order in which they began to wait."""
    order: list[tuple[str, int]] = []

    def handler(name: str) -> Any:
        def handle(sock: Any, _peer: Any) -> None:
            order.append((name, int(glb.current_clone() or 0)))
            sock.sendall(b"ok")

        return handle

    with serve(handler("a"), reuse_port=True) as first:
        first.start()
        with serve(handler("b"), address=first.address, reuse_port=True, hubs=3, clones=3) as other:
            other.start()
            for _ in range(20):
                ask(first.address)
    assert order == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)] * 4


def test_a_second_server_may_be_another_hubs() -> None:
    """It has one hub, in a native thread, and is in the ring of the first."""
    recorder = Recorder()
    with serve(recorder, reuse_port=True) as first:
        first.start()
        started, finish = threading.Event(), threading.Event()

        def work() -> None:
            with serve(recorder, address=first.address, hubs=1, reuse_port=True) as other:
                other.start()
                started.set()
                while not finish.is_set():
                    gevent.sleep(0.002)
            gevent.get_hub().destroy(destroy_loop=True)

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(started.is_set)
        assert entries()[0].ready == 4
        replies = [int(ask(first.address)) for _ in range(20)]
        finish.set()
        wait_until(lambda: not thread.is_alive())
        thread.join()
        assert entries()[0].ready == 2
        assert [int(ask(first.address)) for _ in range(4)] == [0, 1, 0, 1]
    assert replies == [0, 1] * 10
    assert [len(recorder.threads[clone]) for clone in (0, 1)] == [2, 2]


# -- policies -----------------------------------------------------------------------------------


def test_first_goes_to_the_first_hub_alone() -> None:
    """Its clones take turns; the others have nothing to do."""
    with serve(hubs=2, clones=4, policy="first") as server:
        server.start()
        assert [int(ask(server.address)) for _ in range(12)] == [0, 2] * 6


def test_first_spills_when_the_first_hub_has_no_clone_that_is_ready() -> None:
    """And comes back as soon as it has."""
    with serve(hubs=3, clones=6, policy="first") as server:
        server.start()
        server.pause_clone(0)
        server.pause_clone(3)
        assert [int(ask(server.address)) for _ in range(4)] == [1, 4, 1, 4]
        server.pause_clone(1)
        server.pause_clone(4)
        assert [int(ask(server.address)) for _ in range(4)] == [2, 5, 2, 5]
        server.resume_clone(3)
        assert [int(ask(server.address)) for _ in range(2)] == [3, 3]


def test_first_spills_when_the_first_hub_is_stalled() -> None:
    """The client is served while the main thread does not turn its hub."""
    with serve(hubs=2, clones=2, policy="first", patience=0.01) as server:
        server.start()
        assert ask(server.address) == b"0"
        address: Any = server.address
        with native_socket.create_connection(address, 20) as client:
            assert client.recv(10) == b"1"


def test_least_connections_looks_at_all_hubs() -> None:
    """The next goes where the fewest handlers run, on whichever hub."""
    holder = Holder()
    with serve(holder, hubs=2, clones=4, policy="least_connections") as server:
        server.start()
        clients = []
        for count in range(1, 9):
            clients.append(connect(server.address))
            holder.wait_for(count)
        assert active(server) == [2, 2, 2, 2]
        server.pause_clone(2)
        clients.append(connect(server.address))
        holder.wait_for(9)
        server.resume_clone(2)
        for count in range(10, 13):
            clients.append(connect(server.address))
            holder.wait_for(count)
        assert active(server) == [3, 3, 3, 3]
        holder.released.set()
        assert [receive_all(client) for client in clients] == [b"done"] * 12
        close_all(clients)


# -- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"hubs": 0}, ValueError),
        ({"hubs": -1}, ValueError),
        ({"hubs": "two"}, TypeError),
        ({"hubs": 2.0}, TypeError),
        ({"hubs": True}, TypeError),
        ({"clones": 1, "hubs": 2}, ValueError),
        ({"patience": 0}, ValueError),
        ({"patience": -0.5}, ValueError),
        ({"patience": float("inf")}, ValueError),
        ({"patience": float("nan")}, ValueError),
        ({"patience": "soon"}, TypeError),
        ({"patience": True}, TypeError),
        ({"spawn": Pool(3), "hubs": 2}, ValueError),
    ],
)
def test_a_wrong_argument_is_named_and_leaves_nothing(
    arguments: dict[str, Any], kind: type[Exception]
) -> None:
    """The text has the value; a listener that was to be handed in is still the caller's."""
    before, threads = open_descriptors(), threading.active_count()
    with glb.bind(LOCAL) as listener:
        value = next(iter(arguments.values()))
        with pytest.raises(kind) as raised:
            StreamServer(listener, lambda *_: None, **arguments)
        assert repr(value) in str(raised.value)
        assert listener.fileno() >= 0
    assert (open_descriptors(), threading.active_count()) == (before, threads)


def test_a_pool_that_is_set_later_is_refused_as_well() -> None:
    """It belongs to one hub, however it came."""
    server = serve()
    with pytest.raises(ValueError, match="Pool"):
        server.set_spawn(Pool(3))
    server.close()


def test_there_are_at_least_as_many_clones_as_hubs() -> None:
    """4 by default; more hubs make more clones, and a number of one's own is kept."""
    handle = Recorder()
    found = [
        StreamServer(LOCAL, handle, hubs=1).clones,
        StreamServer(LOCAL, handle, hubs=3).clones,
        StreamServer(LOCAL, handle, hubs=6).clones,
        StreamServer(LOCAL, handle, hubs=3, clones=5).clones,
    ]
    assert found == [4, 4, 6, 5]


def test_hubs_and_patience_can_be_class_attributes() -> None:
    """As all that gevent's servers take."""

    class Server(StreamServer):
        hubs = 3
        clones = 3
        patience = NEVER

    with Server(LOCAL, Recorder()) as server:
        server.start()
        assert [each.hub for each in server.clone_stats()] == [0, 1, 2]
        assert turns_of(server) is not None and turns_of(server).patience == NEVER
        assert [int(ask(server.address)) for _ in range(6)] == turns(3, 6)


def test_hubs_can_be_set_until_the_start() -> None:
    """The bound holds then, too."""
    holder = Holder()
    with StreamServer(LOCAL, holder, spawn=2, clones=2, patience=NEVER) as server:
        server.hubs = 2
        server.start()
        clients = [connect(server.address) for _ in range(4)]
        holder.wait_for(2)
        let_hub_turn()
        begun = len(holder.begun)
        holder.released.set()
        replies = [receive_all(client) for client in clients]
        close_all(clients)
    assert replies == [b"done"] * 4
    assert begun == 2


def test_a_thread_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the start's; threads that were started end, and a later start works."""
    server = serve(hubs=4, clones=4)
    before, threads = open_descriptors(), hub_threads()
    real = hubs_module._start_native
    count = 0

    def refuse_third(name: str, run: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            raise RuntimeError("can't start new thread")
        return real(name, run)

    with monkeypatch.context() as patch:
        patch.setattr("glb.hubs.threads._start_native", refuse_third)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            server.start()
    assert server.closed
    wait_until(lambda: hub_threads() == threads)
    wait_until(lambda: open_descriptors() == before)
    assert entries() == []
    server.start()
    assert [int(ask(server.address)) for _ in range(8)] == turns(4, 8)
    server.stop()


def test_one_patience_is_for_all_servers_of_an_address() -> None:
    """Another is refused, with both values; nothing of the server is left, nor of its wish."""
    with serve(reuse_port=True, patience=0.25) as first:
        first.start()
        before = open_descriptors()
        with (
            serve(address=first.address, reuse_port=True, hubs=1, patience=0.5) as other,
            pytest.raises(ValueError, match=r"0\.25.*127\.0\.0\.1.*0\.5"),
        ):
            other.start()
        assert (open_descriptors(), entries()[0].clones) == (before, 2)
        turns = turns_of(first)
        assert turns is not None and turns.patience == 0.25
        with serve(address=first.address, reuse_port=True, hubs=1) as other:
            other.patience = None
            other.start()
            first.stop()
            assert turns.patience == PATIENCE_SECONDS
            assert ask(other.address) == b"0"


# -- a bound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [1, 2, 5])
def test_a_number_bounds_the_whole_server(bound: int) -> None:
    """Not each hub; those that are on their way count, and the others wait in the kernel."""
    holder = Holder()
    with serve(holder, hubs=3, clones=6, spawn=bound) as server:
        server.start()
        clients = [connect(server.address) for _ in range(bound + 4)]
        holder.wait_for(bound)
        for _ in range(5):
            let_hub_turn()
            assert sum(active(server)) <= bound
        assert len(holder.begun) == bound
        assert sum(each.accepted for each in server.clone_stats()) == bound
        assert not any(each.ready for each in server.clone_stats())
        assert (server.pool.full(), server.pool.free_count(), len(server.pool)) == (True, 0, bound)
        holder.released.set()
        assert [receive_all(client) for client in clients] == [b"done"] * (bound + 4)
        close_all(clients)
        wait_until(lambda: len(server.pool) == 0)
        assert server.pool.free_count() == bound


def test_what_is_on_its_way_counts_and_room_that_was_promised_is_given() -> None:
    """A connection that is both on its way and begun takes one place, not two, in the end."""
    holder = Holder()
    inside, go_on = threading.Event(), threading.Event()
    with serve(holder, spawn=3) as server:
        server.start()
        home = native_ident()
        real = server.do_handle

        def do_handle(*args: Any) -> None:
            real(*args)
            if native_ident() != home:
                inside.set()
                go_on.wait(10)

        server.do_handle = do_handle  # type: ignore[method-assign]  # held open in its middle
        clients = [connect(server.address)]
        holder.wait_for(1)
        clients.append(connect(server.address))
        wait_until(inside.is_set)
        clients.append(connect(server.address))
        let_hub_turn()
        go_on.set()
        comes_true(lambda: len(holder.begun) == 3)
        begun = len(holder.begun)
        holder.released.set()
        replies = [receive_all(client) for client in clients]
        close_all(clients)
    assert replies == [b"done"] * 3
    assert begun == 3


@pytest.mark.usefixtures("by_turns_and_by_loops")
def test_under_load_a_bound_is_never_passed() -> None:
    """Nor is a client forgotten, with handlers of several threads that end at any time."""
    lock = threading.Lock()
    now = most = 0

    def handle(sock: Any, _peer: Any) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        gevent.sleep(0.001)
        with lock:
            now -= 1
        sock.sendall(b"ok")

    with serve(handle, hubs=3, clones=6, spawn=4) as server:
        server.start()
        waiting = iter(range(200))

        def client() -> None:
            for _ in waiting:
                assert ask(server.address) == b"ok"

        gevent.joinall([gevent.spawn(client) for _ in range(32)], raise_error=True)
        assert admission_of(server).expected == 0
    assert most <= 4


# -- a pause, and waiting for its end -----------------------------------------------------------


@contextmanager
def serving_alone(server: StreamServer) -> Iterator[list[BaseException]]:
    """Run `serve_forever` in a native thread that does nothing else; what it raised is listed."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            server.serve_forever()
        except BaseException as error:  # LoopExit, for one
            raised.append(error)
        finally:
            server.close()
            gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(lambda: server.state is State.ACCEPTING or bool(raised))
        yield raised
    finally:
        server.close()
        wait_until(lambda: not thread.is_alive())
        thread.join()


def silence(hub: Any, monkeypatch: pytest.MonkeyPatch) -> list[type[BaseException]]:
    """Let *hub* report to a list, which is returned."""
    found: list[type[BaseException]] = []
    monkeypatch.setattr(hub, "handle_error", lambda _context, kind, *_: found.append(kind))
    return found


def test_a_server_that_is_full_does_not_end() -> None:
    """Its first hub has nothing to wait for but the end of a handler on another one."""
    holder = Holder()
    server = serve(holder, spawn=1)
    before = hub_threads()
    with serving_alone(server) as raised:
        server.pause_clone(0)
        client = connect(server.address)
        holder.wait_for(1)
        server.resume_clone(0)
        second = connect(server.address)
        wait_until(lambda: server.state is State.FULL or bool(raised))
        for _ in range(20):
            gevent.sleep(0.001)
        assert raised == []
        holder.released.set()
        assert receive_all(client) == receive_all(second) == b"done"
        close_all([client, second])
    assert raised == []
    wait_until(lambda: threads_have_ended(before))


def test_a_server_that_backs_off_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the timer is another hub's, and all that its first one waits for."""

    class Failing(StreamServer):
        min_delay = 0.05
        failures = 1

        def do_handle(self, *args: Any) -> None:
            if self.failures:
                self.failures -= 1
                args[0].close()
                raise LookupError("on purpose")
            super().do_handle(*args)

    server = Failing(LOCAL, Recorder(), hubs=2, clones=2, patience=NEVER)
    before = hub_threads()
    with serving_alone(server) as raised:
        thread = workers_of(server)[1].thread
        assert thread is not None
        reported = silence(thread.hub, monkeypatch)
        server.pause_clone(0)
        client = connect(server.address)
        wait_until(lambda: server.state is State.BACKING_OFF or bool(raised))
        assert ask(server.address) == b"1"
        client.close()
        assert reported == [LookupError]
    assert raised == []
    wait_until(lambda: threads_have_ended(before))


def test_a_server_whose_clones_are_all_paused_does_not_end() -> None:
    """Its first hub watches nothing, and waits until one is resumed."""
    server = serve()
    before = hub_threads()
    with serving_alone(server) as raised:
        server.pause_clone(0)
        server.pause_clone(1)
        client = connect(server.address)
        for _ in range(20):
            gevent.sleep(0.001)
        assert raised == []
        server.resume_clone(1)
        assert receive_all(client) == b"1"
        client.close()
    assert raised == []
    wait_until(lambda: threads_have_ended(before))


@pytest.mark.parametrize("hubs", [1, 2])
def test_room_does_not_undo_what_the_owner_stopped(hubs: int) -> None:
    """Stopped while it was full, it stays so when its handlers end, until it is started."""
    holder = Holder()
    with serve(holder, hubs=hubs, spawn=1) as server:
        server.start()
        clients = [connect(server.address) for _ in range(2)]
        holder.wait_for(1)
        wait_until(lambda: server.state is State.FULL)
        server.stop_accepting()
        holder.released.set()
        assert receive_all(clients[0]) == b"done"
        wait_until(lambda: len(server.pool) == 0)
        admission_of(server).look_for_room_soon()
        let_hub_turn()
        assert (server.state, len(holder.begun)) == (State.STOPPED, 1)
        server.start_accepting()
        assert receive_all(clients[1]) == b"done"
        close_all(clients)


@pytest.mark.parametrize("hubs", [1, 2])
def test_a_pause_that_is_over_does_not_undo_what_the_owner_did(
    hubs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer that comes late ends its own pause: no stop after it, and no other pause."""
    silence(gevent.get_hub(), monkeypatch)
    with serve(hubs=hubs) as server:
        server.min_delay = server.delay = 1000
        server.start()
        admission_of(server).back_off(None, LookupError("on purpose"))
        paused, state = admission_of(server)._episode, server.state
        assert state is State.BACKING_OFF
        server.stop_accepting()
        admission_of(server).accept_again(paused)
        assert state_of(server) is State.STOPPED
        server.start_accepting()
        admission_of(server).back_off(None, LookupError("on purpose"))
        admission_of(server).accept_again(paused)
        assert state_of(server) is State.BACKING_OFF
        admission_of(server).accept_again(admission_of(server)._episode)
        assert state_of(server) is State.ACCEPTING
        assert ask(server.address) == b"0"


@pytest.mark.parametrize("what", ["full", "failed"])
def test_a_stop_in_the_middle_of_a_turn_is_not_taken_for_a_pause(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another hub finds no room, or fails, when the owner has just stopped it: that holds."""
    with serve(spawn=1, hubs=2) as server:
        server.start()
        server.min_delay = server.delay = 0
        thread = workers_of(server)[1].thread
        assert thread is not None
        silence(thread.hub, monkeypatch)
        real = server.stop_accepting

        def stop_accepting() -> None:
            # The hook of the pause comes after the owner's own call.
            monkeypatch.undo()
            real_thread = threading.Thread(target=server.stop_accepting)
            real_thread.start()
            real_thread.join()
            real()

        monkeypatch.setattr(server, "stop_accepting", stop_accepting)
        silence(thread.hub, monkeypatch)
        if what == "full":
            thread.call(admission_of(server).found_full)
        else:
            thread.call(lambda: admission_of(server).back_off(None, LookupError("on purpose")))
        for _ in range(5):
            let_hub_turn()
        assert server.state is State.STOPPED
        server.start_accepting()
        assert ask(server.address) == b"0"


# Clone 1's only handler, on hub 1, takes all the room there is; then hub 0 forks.
FORK_WHILE_PAUSED = (
    FORKS
    + """
def child():
    write_line(questions, json.dumps([server.state.value, ask(3), ready()]))

def hold(sock, peer):
    if glb.current_clone() == 1 and not released.is_set():
        held.set()
        while not released.is_set():
            gevent.sleep(0.001)
    handle(sock, peer)

held, released = threading.Event(), threading.Event()
server = StreamServer(("127.0.0.1", 0), hold, clones=2, hubs=2, spawn=1, patience=30)
server.start()
server.pause_clone(0)
client = socket.create_connection(server.address, 20)
while not held.is_set():
    gevent.sleep(0.001)
server.resume_clone(0)
waiting = socket.create_connection(server.address, 20)
while server.state.value != "full":
    gevent.sleep(0.001)
waiting.close()
report["before"] = server.state.value
wait = fork(child)
report["child"] = json.loads(read_line(questions))
report["status"] = wait()
released.set()
report["asked"] = ask(2)
client.recv(100)
client.close()
server.stop()
print(json.dumps(report))
"""
)


@pytest.mark.parametrize("how", FORKS_BY)
def test_a_forked_child_is_not_full_of_its_parents_handlers(how: str) -> None:
    """They aren't there, so no end of theirs would ever make room."""
    report = tell(FORK_WHILE_PAUSED, how)
    assert report["before"] == "full"
    state, (order, is_own), ready = report["child"]
    assert (state, order, is_own, ready) == ("accepting", [0] * 3, True, [True, False])
    assert report["status"] == 0
    assert report["asked"][1]


# -- clones -------------------------------------------------------------------------------------


def test_clones_are_paused_and_resumed_from_the_first_hub() -> None:
    """Wherever they live; a clone that comes back is at the end of the line."""
    with serve(hubs=2, clones=4) as server:
        server.start()
        server.pause_clone(1)
        assert [each.ready for each in server.clone_stats()] == [True, False, True, True]
        assert [int(ask(server.address)) for _ in range(6)] == [0, 2, 3, 0, 2, 3]
        server.resume_clone(1)
        assert [int(ask(server.address)) for _ in range(8)] == [0, 2, 3, 1, 0, 2, 3, 1]
        assert [each.accepted for each in server.clone_stats()] == [4, 2, 4, 4]
        for index in range(4):
            server.pause_clone(index)
        client = connect(server.address)
        let_hub_turn()
        server.resume_clone(3)
        assert receive_all(client) == b"3"
        client.close()


def guards_look(server: StreamServer) -> None:
    """Have each hub's guard look: one that has seen no change since is looked through."""
    for worker in workers_of(server):
        for _ in range(3):
            if worker.thread is None:
                worker.dispatcher._look_over()
            else:
                worker.thread.call(worker.dispatcher._look_over)


@pytest.mark.parametrize("looks", ["before they stand in line", "after"])
@pytest.mark.parametrize("loop", [None, default_accept_loop], ids=["", "by loops"])
def test_a_guard_that_looks_while_clones_come_changes_no_turn(
    loop: Any, looks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be due while a thousand clones are made, and has no clone stand in line too soon."""
    add_loops = CloneSet.add_loops
    server = serve(accept_loop=loop, clones=4)

    def add_and_look(clones: CloneSet, *args: Any) -> None:
        if looks == "after":
            add_loops(clones, *args)
        guards_look(server)
        if looks != "after":
            add_loops(clones, *args)

    monkeypatch.setattr(CloneSet, "add_loops", add_and_look)
    with server:
        server.start()
        order = [int(ask(server.address)) for _ in range(8)]
        server.resize(9)
        order += [int(ask(server.address)) for _ in range(18)]
    assert order == [*turns(4, 8), *turns(9, 18)]


def test_a_loop_whose_turn_comes_before_it_was_started_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The callback that starts the loops of a hub may be behind what that was handed already."""
    monkeypatch.setattr(accept_loop, "_start_each", lambda _loops: None)
    with serve(accept_loop=default_accept_loop, clones=4) as server:
        server.start()
        assert [int(ask(server.address)) for _ in range(8)] == turns(4, 8)


def test_clones_are_paused_from_a_handler_of_another_hub() -> None:
    """A server's methods may be called in any of its threads."""

    def handle(sock: Any, _peer: Any) -> None:
        clone = glb.current_clone()
        assert clone is not None
        if clone == 1:
            clone.server.pause_clone(0)
        sock.sendall(b"%d" % clone)

    with serve(handle, hubs=2, clones=3) as server:
        server.start()
        assert [int(ask(server.address)) for _ in range(6)] == [0, 1, 2, 1, 2, 1]


def test_stats_count_what_became_of_each_connection() -> None:
    """By clone, whichever hub it lives on."""

    def handle(sock: Any, _peer: Any) -> None:
        if glb.current_clone() == 1:
            gevent.get_hub().handle_error = lambda *_: None  # type: ignore[method-assign]  # quiet
            raise LookupError("on purpose")
        sock.sendall(b"ok")

    with serve(handle, hubs=2, clones=2) as server:
        server.start()
        for _ in range(6):
            ask(server.address)
        wait_until(lambda: not any(active(server)))
        assert [tuple(each) for each in server.clone_stats()] == [
            (0, 3, 0, 3, 0, True, 0, "accepting"),
            (1, 3, 0, 0, 3, True, 1, "accepting"),
        ]
        assert entries()[0].accepted == 6
        assert entries()[0].ready == 2


def test_each_clone_can_have_its_own_handler() -> None:
    """A factory makes them all in the thread that starts the server."""
    made: list[int] = []

    def factory(index: int) -> Any:
        made.append(native_ident())
        return lambda sock, _: sock.sendall(b"handler %d" % index)

    with serve(handler_factory=factory, hubs=3, clones=5) as server:
        server.start()
        replies = [ask(server.address) for _ in range(10)]
    assert replies == [b"handler %d" % turn for turn in turns(5, 10)]
    assert made == [native_ident()] * 5


def test_the_loop_is_the_threads_own() -> None:
    """`server.loop` in a handler is the loop in which that runs."""
    found: dict[int, bool] = {}

    def handle(sock: Any, _peer: Any) -> None:
        clone = glb.current_clone()
        assert clone is not None
        found[clone.index] = clone.server.loop is gevent.get_hub().loop
        sock.sendall(b"ok")

    with serve(handle, hubs=3, clones=3) as server:
        server.start()
        for _ in range(3):
            ask(server.address)
        assert server.loop is gevent.get_hub().loop
    assert found == {0: True, 1: True, 2: True}


@pytest.mark.parametrize("spawn", ["default", 10, None, gevent.spawn])
def test_each_form_of_spawn_serves_in_turn(spawn: Any) -> None:
    """On every hub, in that hub's thread."""
    recorder = Recorder()
    with serve(recorder, hubs=3, clones=6, spawn=spawn) as server:
        server.start()
        assert [int(ask(server.address)) for _ in range(24)] == turns(6, 24)
    assert all(len(threads) == 1 for threads in recorder.threads.values())


# -- addresses ----------------------------------------------------------------------------------


def test_tls_is_served_on_every_hub() -> None:
    """Turns stay exact."""
    with serve(hubs=3, clones=3, ssl_context=server_context()) as server:
        server.start()
        context = client_context()
        for turn in turns(3, 9):
            with context.wrap_socket(connect(server.address)) as client:
                assert receive_all(client) == b"%d" % turn


def test_ipv6_and_unix_addresses_are_served(tmp_path: Path) -> None:
    """On every hub; a Unix socket's file is gone with the server."""
    with serve(address="[::1]:0") as server:
        server.start()
        assert [int(ask(server.address)) for _ in range(4)] == [0, 1, 0, 1]
    path = str(tmp_path / "socket")
    with serve(address=f"unix:{path}") as server:
        server.start()
        assert [int(ask(path)) for _ in range(4)] == [0, 1, 0, 1]
    assert not os.path.exists(path)


def test_a_listener_that_was_handed_in_is_the_first_clone() -> None:
    """It is served on all hubs, and closed with the server."""
    listener = native_socket.create_server(LOCAL)
    with serve(hubs=2, clones=4, address=listener) as server:
        server.start()
        assert [int(ask(server.address)) for _ in range(8)] == turns(4, 8)
    assert is_refused(server.address)
    assert listener.fileno() == -1


# -- the end ------------------------------------------------------------------------------------


def test_stop_waits_for_handlers_on_all_hubs() -> None:
    """They finish what they do; then all threads have ended."""
    holder = Holder()
    server = serve(holder, hubs=3, clones=3)
    before = hub_threads()
    server.start()
    clients = [connect(server.address) for _ in range(3)]
    holder.wait_for(3)
    stopping = gevent.spawn(server.stop, 20)
    wait_until(lambda: server.closed)
    assert is_refused(server.address)
    assert not stopping.ready()
    holder.released.set()
    stopping.get()
    assert [receive_all(client) for client in clients] == [b"done"] * 3
    assert holder.killed == []
    assert threads_have_ended(before)
    close_all(clients)


@pytest.mark.parametrize("spawn", ["default", 10, gevent.spawn])
def test_stop_kills_handlers_that_take_too_long(
    spawn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """On every hub, when its timeout is over; their clients see the end, all threads end."""
    holder = Holder()
    server = serve(holder, hubs=3, clones=3, spawn=spawn)
    before = hub_threads()
    server.start()
    clients = [connect(server.address) for _ in range(3)]
    holder.wait_for(3)
    server.stop(0.01)
    assert sorted(holder.killed) == [0, 1, 2]
    assert [receive_all(client) for client in clients] == [b""] * 3
    assert threads_have_ended(before)
    assert [each.failed for each in server.clone_stats()] == [1, 1, 1]
    assert caplog.records == []
    close_all(clients)


def test_a_thread_that_is_blocked_is_left_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line has its name, and it ends by itself when its handler lets it."""
    monkeypatch.setattr("glb.serve.drain.KILL_SECONDS", 0.01)
    go_on, inside = threading.Event(), threading.Event()

    def handle(_sock: Any, _peer: Any) -> None:
        if glb.current_clone() == 1:
            inside.set()
            go_on.wait(20)

    server = serve(handle)
    before = hub_threads()
    server.start()
    ask(server.address)
    client = connect(server.address)
    wait_until(inside.is_set)
    server.stop(0.01)
    (record,) = caplog.records
    assert "glb hub 1 of" in record.getMessage() and record.levelno == logging.ERROR
    go_on.set()
    wait_until(lambda: threads_have_ended(before))
    client.close()


def test_a_stopped_server_starts_again() -> None:
    """On the same port, with new threads, in exact turn, as often as one likes."""
    server = serve(hubs=3, clones=3)
    before = hub_threads()
    for _ in range(3):
        server.start()
        assert [int(ask(server.address)) for _ in range(6)] == turns(3, 6)
        server.stop()
        assert threads_have_ended(before)
    assert [each.accepted for each in server.clone_stats()] == [6, 6, 6]


def test_accepting_stops_and_starts_on_all_hubs() -> None:
    """Clients wait in the accept queue meanwhile; nothing of the threads changes."""
    with serve(hubs=2, clones=4) as server:
        server.start()
        assert int(ask(server.address)) == 0
        threads = hub_threads()
        server.stop_accepting()
        clients = [connect(server.address) for _ in range(3)]
        let_hub_turn()
        assert sum(each.accepted for each in server.clone_stats()) == 1
        server.start_accepting()
        assert [int(receive_all(client)) for client in clients] == [1, 2, 3]
        assert hub_threads() == threads
        close_all(clients)


def test_close_lets_handlers_finish_and_then_the_threads_end() -> None:
    """No call waits for that, and nothing is killed; the address is free at once."""
    holder = Holder()
    server = serve(holder, hubs=3, clones=3)
    before = hub_threads()
    hubs = len([name for name in before if name.startswith("glb hub")])
    server.start()
    clients = [connect(server.address) for _ in range(3)]
    holder.wait_for(3)
    server.close()
    assert is_refused(server.address)
    let_hub_turn()
    assert len([name for name in hub_threads() if name.startswith("glb hub")]) == hubs + 2
    holder.released.set()
    assert [receive_all(client) for client in clients] == [b"done"] * 3
    wait_until(lambda: threads_have_ended(before))
    assert holder.killed == []
    close_all(clients)


def test_threads_of_a_closed_server_end_although_it_started_again() -> None:
    """They wait for their own handlers, not for those of the next time."""
    holder = Holder()
    server = serve(holder)
    before = len(hub_threads())
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    holder.wait_for(2)
    server.close()
    server.start()
    assert comes_true(lambda: len(hub_threads()) == before + 3)  # the old watchdog ends as well
    holder.released.set()
    assert [receive_all(client) for client in clients] == [b"done"] * 2
    close_all(clients)
    comes_true(lambda: len(hub_threads()) == before + 2)
    threads = len(hub_threads())
    server.stop()
    assert threads == before + 2


def test_the_end_of_an_old_thread_leaves_new_handlers_alone() -> None:
    """It waits for what it has itself; what began after the restart goes on."""
    old, new = Holder(), Holder()
    handlers = [old]
    server = serve(lambda *args: handlers[-1](*args))  # noqa: PLW0108  # the last one changes
    before = len(hub_threads())
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    old.wait_for(2)
    server.close()
    handlers.append(new)
    server.start()
    others = [connect(server.address) for _ in range(4)]
    new.wait_for(4)
    assert comes_true(lambda: len(hub_threads()) == before + 3)  # the old watchdog ends as well
    old.released.set()
    assert [receive_all(client) for client in clients] == [b"done"] * 2
    wait_until(lambda: len(hub_threads()) == before + 2)
    assert sorted(new.begun) == [0, 0, 1, 1]
    assert (len(workers_of(server)), [each.active for each in workers_of(server)]) == (2, [2, 2])
    new.released.set()
    assert [receive_all(client) for client in others] == [b"done"] * 4
    assert (old.killed, new.killed) == ([], [])
    close_all([*clients, *others])
    server.stop()
    assert len(hub_threads()) == before


def test_a_blocked_thread_that_ends_late_kills_nothing_of_the_next_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was left behind by a stop, with its handlers to be killed; the server runs again."""
    monkeypatch.setattr("glb.serve.drain.KILL_SECONDS", 0.01)
    go_on, inside = threading.Event(), threading.Event()
    holder = Holder()

    def handle(sock: Any, peer: Any) -> None:
        if glb.current_clone() == 1 and not inside.is_set():
            inside.set()
            assert go_on.wait(20)
        else:
            holder(sock, peer)

    server = serve(handle)
    before = len(hub_threads())
    server.start()
    server.pause_clone(0)
    client = connect(server.address)
    wait_until(inside.is_set)
    server.stop(0.01)
    server.resume_clone(0)
    server.start()
    others = [connect(server.address) for _ in range(4)]
    holder.wait_for(4)
    assert comes_true(lambda: len(hub_threads()) == before + 3)
    go_on.set()
    wait_until(lambda: len(hub_threads()) == before + 2)
    holder.released.set()
    assert [receive_all(other) for other in others] == [b"done"] * 4
    assert holder.killed == []
    close_all([client, *others])
    server.stop()
    assert len(hub_threads()) == before
    assert len(caplog.records) == 1  # of the thread that was left


def test_stopping_after_a_close_kills_what_is_left() -> None:
    """`stop` of a closed server still waits for its handlers and its threads."""
    holder = Holder()
    server = serve(holder)
    before = hub_threads()
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    holder.wait_for(2)
    server.close()
    server.stop(0.01)
    assert sorted(holder.killed) == [0, 1]
    assert threads_have_ended(before)
    close_all(clients)


def test_a_server_that_was_never_started_stops() -> None:
    """There is nothing to wait for."""
    server = serve()
    server.stop()
    server.close()
    assert server.closed


@pytest.mark.parametrize("clone", [0, 1])
def test_a_handler_may_stop_its_server(clone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any hub: all other handlers are killed at the end of the timeout, on every hub."""
    monkeypatch.setattr("glb.serve.drain_worker.KILL_SECONDS", 0.05)
    killed: list[int] = []
    begun: list[int] = []

    def handle(_sock: Any, _peer: Any) -> None:
        current = glb.current_clone()
        assert current is not None
        begun.append(current.index)
        if current == clone and len(begun) == 3:
            current.server.stop(0.01)
        try:
            gevent.sleep(1000)
        except gevent.GreenletExit:
            killed.append(current.index)
            raise

    server = serve(handle, hubs=3, clones=3)
    before = hub_threads()
    server.start()
    clients = []
    for index in [each for each in range(3) if each != clone]:
        for other in range(3):
            if other != index:
                server.pause_clone(other)
        server.resume_clone(index)
        clients.append(connect(server.address))
        wait_until(lambda: len(begun) == len(clients))
        for other in range(3):
            server.resume_clone(other)
    for other in range(3):
        if other != clone:
            server.pause_clone(other)
    clients.append(connect(server.address))
    wait_until(lambda: server.closed)
    others = [each for each in range(3) if each != clone]
    comes_true(lambda: {*others} <= {*killed} and threads_have_ended(before))
    found = sorted(each for each in killed if each != clone)
    server.stop(0.01)  # whatever is left
    wait_until(lambda: threads_have_ended(before) and server.active == 0)
    assert found == [each for each in range(3) if each != clone]
    close_all(clients)


def test_a_foreign_thread_may_close_a_server() -> None:
    """One without a hub: the address is free, `serve_forever` returns, all threads end."""
    server = serve(hubs=3, clones=3)
    before = hub_threads()
    serving = gevent.spawn(server.serve_forever)
    wait_until(lambda: server.started)
    assert [int(ask(server.address)) for _ in range(3)] == [0, 1, 2]
    thread = threading.Thread(target=server.close)
    thread.start()
    wait_until(lambda: not thread.is_alive())
    thread.join()
    assert is_refused(server.address)
    serving.get()
    wait_until(lambda: threads_have_ended(before))


def test_serve_forever_ends_when_another_hub_stops_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler there closes it, and the program goes on, however soon its hub hears of it."""
    home, closing = native_ident(), threading.Event()
    left, real_left, real_forget = (
        threading.Event(),
        Engine._left,
        StreamServer.stop_accepting,
    )

    def leave(self: Engine, *args: Any) -> None:
        if native_ident() == home:
            assert closing.wait(5)
        real_left(self, *args)
        if native_ident() == home:
            left.set()

    def forget_later(self: StreamServer) -> None:
        closing.set()
        assert left.wait(5)
        real_forget(self)

    def handle(sock: Any, _peer: Any) -> None:
        clone = glb.current_clone()
        assert clone is not None
        sock.sendall(b"ok")
        if clone == 1:
            clone.server.close()

    monkeypatch.setattr(Engine, "_left", leave)
    server = serve(handle)
    before = hub_threads()
    serving = gevent.spawn(server.serve_forever)
    wait_until(lambda: server.started)
    monkeypatch.setattr(StreamServer, "stop_accepting", forget_later)
    for _ in range(2):
        ask(server.address)
    serving.join(10)
    has_ended = serving.ready()
    serving.kill()
    assert has_ended
    assert closing.is_set() and left.is_set()
    wait_until(lambda: threads_have_ended(before))


def test_a_close_from_another_thread_in_the_middle_of_a_turn_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The descriptor is gone when it accepts: the server was closed, and that is all."""
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(
        gevent.get_hub(), "handle_error", lambda _context, kind, *_: reported.append(kind)
    )
    server = serve()
    before = hub_threads()
    server.start()
    real = server.do_read

    def do_read() -> Any:
        thread = threading.Thread(target=server.close)
        thread.start()
        thread.join()
        return real()

    server.do_read = do_read  # type: ignore[method-assign]  # held open in its middle
    with socket.socket() as client:
        client.connect_ex(server.address)
    wait_until(lambda: server.closed)
    wait_until(lambda: threads_have_ended(before))
    assert (reported, caplog.records) == ([], [])


def test_system_exit_in_a_handler_ends_the_program_from_any_hub() -> None:
    """It is raised in the main hub's main greenlet; the server serves on until then."""

    def handle(sock: Any, _peer: Any) -> None:
        if glb.current_clone() == 1:
            raise SystemExit(3)
        sock.sendall(b"ok")

    with serve(handle) as server:
        server.start()
        assert ask(server.address) == b"ok"
        client = connect(server.address)
        with pytest.raises(SystemExit) as raised:
            wait_until(lambda: False)
        assert raised.value.code == 3
        client.close()
        assert ask(server.address) == b"ok"


def test_a_broken_listener_closes_the_server_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On all of its hubs, with one line; no clone is given a turn again."""
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(
        gevent.get_hub(), "handle_error", lambda _context, kind, *_: reported.append(kind)
    )
    server = serve(hubs=3, clones=3)
    before = hub_threads()
    server.start()

    def accept() -> Any:
        raise OSError(errno.EINVAL, "Invalid argument")

    with monkeypatch.context() as patch:
        patch.setattr(entry_of(server), "accept", accept)
        for index in (0, 2):
            server.pause_clone(index)
        with socket.socket() as client:
            client.connect_ex(server.address)
        wait_until(lambda: server.closed)
    wait_until(lambda: threads_have_ended(before))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_an_accept_that_is_refused_on_several_hubs_is_one_report(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever hub accepts pauses, and all are served in turn when the fault is over."""
    reported: list[tuple[object, type[BaseException]]] = []
    monkeypatch.setattr(
        Hub, "handle_error", lambda _self, context, kind, *_: reported.append((context, kind))
    )
    with serve(hubs=2, clones=4) as server:
        server.min_delay = server.delay = 0.001
        server.max_delay = 0.004
        server.start()
        assert ask(server.address) == b"0"
        with failing_accepts(entry_of(server), number) as fault:
            clients = [connect(server.address) for _ in range(4)]
            wait_until(lambda: fault.calls >= 5)
            fault.code = None
            assert [receive_all(client) for client in clients] == [b"1", b"2", b"3", b"0"]
            close_all(clients)
        assert reported == [(server, type(OSError(number, "x")))]


def test_a_refusal_that_is_fatal_to_the_program_closes_the_server_of_several_hubs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """``fatal_errors`` is gevent's, and means the same on each hub."""
    monkeypatch.setattr(Hub, "handle_error", lambda *_: None)

    class Strict(StreamServer):
        fatal_errors = (errno.EIO,)

    server = Strict(LOCAL, Recorder(), hubs=2, clones=4, patience=NEVER)
    server.start()
    assert ask(server.address) == b"0"
    with failing_accepts(entry_of(server), errno.EIO), socket.socket() as client:
        client.connect_ex(server.address)
        wait_until(lambda: server.closed and bool(caplog.records))
    assert len(caplog.records) == 1


def test_a_listener_that_two_hubs_find_broken_is_one_report(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both may be in the middle of a turn; the next start counts anew."""
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(Hub, "handle_error", lambda _self, _, kind, *__: reported.append(kind))
    server = serve(hubs=2, clones=2)
    for count in (1, 2):
        server.start()
        for _ in range(2):
            admission_of(server).fail(OSError(errno.EINVAL, "broken"))
        assert server.closed
        wait_until(lambda count=count: len(caplog.records) == count)  # type: ignore[misc]  # its default
        assert reported == [OSError] * count


def test_what_is_broken_but_not_fatal_ends_no_clone_of_several_hubs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """EOPNOTSUPP, for which gevent pauses: each clone has its turns again afterwards."""
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(Hub, "handle_error", lambda _self, _, kind, *__: reported.append(kind))
    with serve(hubs=2, clones=4) as server:
        server.min_delay = server.delay = 0.001
        server.start()
        entry = entry_of(server)
        with failing_accepts(entry, errno.EOPNOTSUPP) as fault, connect(server.address) as client:
            wait_until(lambda: fault.calls >= 8)
            fault.code = None
            assert receive_all(client)
        assert sorted(ask(server.address) for _ in range(4)) == [b"0", b"1", b"2", b"3"]
        assert reported == [OSError]


def test_out_of_descriptors_on_several_hubs_is_one_pause_and_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The kernel's own EMFILE: clients wait, and are served when there is room."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    hoard: list[native_socket.socket] = []
    with serve(hubs=4, clones=8) as server:
        server.start()
        for _ in range(8):
            ask(server.address)
        before = sum(each.accepted for each in server.clone_stats())
        clients = [socket.socket() for _ in range(20)]
        try:
            highest = max(client.fileno() for client in clients)
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, limits[1]))
            fill(hoard)
            for client in clients:
                client.connect(server.address)
            wait_until(lambda: len(caplog.records) > 0)
            for _ in range(50):
                gevent.sleep(0.001)
            assert sum(each.accepted for each in server.clone_stats()) == before
            close_all(hoard)
            replies = [int(client.recv(10)) for client in clients]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            close_all([*hoard, *clients])
    assert replies == turns(8, 20)
    assert len(caplog.records) == 1


def test_a_promise_that_was_lost_is_taken_back_though_nothing_else_has_changed() -> None:
    """An exception strikes a hub at rest between an inbox and its count: the guard finds that."""
    with StreamServer(("127.0.0.1", 0), close_at_once, clones=4, hubs=2) as server:
        server.start()
        worker, acceptor = workers_of(server)[0], acceptors_of(server)[0]
        for _ in range(3):
            worker.look_over()  # all is right
        with acceptor.dispatcher.turns.lock:
            acceptor.expect_locked()
        assert (acceptor.in_flight, admission_of(server).expected) == (1, 1)
        for _ in range(3):
            worker.look_over()
        assert (acceptor.in_flight, admission_of(server).expected) == (0, 0)


@pytest.mark.parametrize("spawn", ["default", 5])
def test_what_is_closed_as_an_exception_strikes_is_not_handled(
    spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection whose handler waits has one owner: it is closed, counted as failed, and over."""
    hub: Any = gevent.get_hub()
    handled: list[object] = []
    original = Handlers.spawn

    def strike_after_it(self: Handlers, *args: Any) -> None:
        monkeypatch.setattr(Handlers, "spawn", original)
        self.spawn(*args)
        raise LookupError("on purpose")

    monkeypatch.setattr(hub, "handle_error", lambda *_: None)
    monkeypatch.setattr(Handlers, "spawn", strike_after_it)
    handle = lambda sock, _peer: handled.append(sock.recv(1))  # noqa: E731  # shorter than a function
    with StreamServer(("127.0.0.1", 0), handle, clones=2, spawn=spawn) as server:
        server.min_delay = server.delay = 0.001
        server.start()
        assert ask(server.address) == b""
        assert ask(server.address, b"b") == b""
        assert handled == [b"b"]
        stats = server.clone_stats()
        assert [sum(each.failed for each in stats), server.active] == [1, 0]


def close_at_once(_sock: Any, _peer: Any) -> None:
    pass
