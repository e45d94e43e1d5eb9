"""`glb.serve.accept_loop`: a greenlet a clone, over a listener of its own."""

from __future__ import annotations

import errno
import gc
import re
import socket as native_socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.pool import Pool

import glb
from glb.accept.registry import entries
from glb.pywsgi import WSGIServer
from glb.serve import accept_loop
from glb.server import StreamServer, default_accept_loop

from ..conftest import hub_threads, open_descriptors
from ..support.engine import acceptors_of, entry_of, turns_of, workers_of
from ..support.failing import failing_accepts
from ..support.helpers import (
    Holder,
    ask,
    close_all,
    connect,
    http_get,
    is_refused,
    let_hub_turn,
    receive_all,
    turns,
    wait_until,
)
from ..support.tls import client_context, server_context

LOCAL = ("127.0.0.1", 0)
NEVER = 30.0  # of patience

on_one_and_four_hubs = pytest.mark.parametrize("hubs", [1, 4])


def tell(sock: Any, _peer: object) -> None:
    """Reply the clone that serves."""
    sock.sendall(b"%d" % (glb.current_clone() or -1))


class Loop:
    """An accept loop that replies its clone, and keeps what became of it."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.ended: list[tuple[int, int | None]] = []
        self.listeners: dict[int, glb.Listener] = {}
        self.hubs: dict[int, Any] = {}

    def __call__(self, listener: glb.Listener, clone: glb.Clone) -> None:
        self.began.append(int(clone))
        self.listeners[int(clone)] = listener
        self.hubs[int(clone)] = gevent.get_hub()
        try:
            while True:
                sock, _ = listener.accept()
                with sock:
                    sock.sendall(b"%d" % clone)
        except OSError as error:
            self.ended.append((int(clone), error.errno))
            raise


def serve(loop: Any, handle: Any = None, **more: Any) -> StreamServer:
    arguments: dict[str, Any] = {"patience": NEVER, **more}
    return StreamServer(LOCAL, handle, accept_loop=loop, **arguments)


def replies(server: StreamServer, count: int) -> list[int]:
    return [int(ask(server.address)) for _ in range(count)]


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, type[BaseException]]]:
    """What gevent reports in this hub: (context, type)."""
    found: list[tuple[Any, type[BaseException]]] = []
    monkeypatch.setattr(
        gevent.get_hub(), "handle_error", lambda context, kind, *_: found.append((context, kind))
    )
    return found


# -- what runs --------------------------------------------------------------------------------


@on_one_and_four_hubs
def test_each_clone_has_a_greenlet_and_a_listener_on_its_hub(hubs: int) -> None:
    """The listeners are clones of the address, each with a descriptor; turns are exact."""
    loop = Loop()
    with serve(loop, clones=8, hubs=hubs) as server:
        server.start()
        assert replies(server, 24) == turns(8, 24)
        assert sorted(loop.began) == [*range(8)]
        assert len({each.fileno() for each in loop.listeners.values()}) == 8
        assert all(type(each) is glb.Listener for each in loop.listeners.values())
        assert len({id(each) for each in loop.hubs.values()}) == hubs
        (entry,) = entries()
        assert (entry.clones, entry.ready, entry.accepted) == (8, 8, 24)
        assert [each.accepted for each in server.clone_stats()] == [3] * 8
        assert all(each.ready for each in server.clone_stats())
    assert sorted(loop.ended) == [(clone, errno.EBADF) for clone in range(8)]


def test_a_subclass_may_have_the_loop_as_a_method() -> None:
    """As gevent's ``handle``; it is bound, and needs no handler."""

    class Own(StreamServer):
        greeting = b"own "

        def accept_loop(self, listener: glb.Listener, clone: glb.Clone) -> None:
            while True:
                sock, _ = listener.accept()
                with sock:
                    sock.sendall(self.greeting + b"%d" % clone)

    with Own(LOCAL, clones=2) as server:
        server.start()
        assert [ask(server.address) for _ in range(4)] == [b"own 0", b"own 1"] * 2


def test_a_loop_that_is_set_later_is_used_from_the_next_start_on() -> None:
    """And one that is taken away no longer."""
    with StreamServer(LOCAL, tell, clones=2) as server:
        server.start()
        server.accept_loop = loop = Loop()
        assert replies(server, 2) == [0, 1]
        server.stop()
        assert loop.began == []
        server.start()
        assert replies(server, 2) == [0, 1]
        server.stop()
        assert loop.began == [0, 1]
        server.accept_loop = None
        server.start()
        assert replies(server, 2) == [0, 1]
        assert loop.began == [0, 1]


@on_one_and_four_hubs
def test_clone_handle_does_what_the_server_does(hubs: int) -> None:
    """The handler of the clone, the counts, the close."""
    made: list[int] = []

    def handler_of(index: int) -> Callable[..., None]:
        made.append(index)

        def handle(sock: Any, _peer: object) -> None:
            clone = glb.current_clone()
            sock.sendall(b"handler %d, clone %d" % (index, -1 if clone is None else clone))
            if index == 1:
                raise gevent.GreenletExit

        return handle

    with serve(default_accept_loop, handler_factory=handler_of, clones=4, hubs=hubs) as server:
        server.start()
        assert [ask(server.address) for _ in range(8)] == [
            b"handler %d, clone %d" % (turn, turn) for turn in turns(4, 8)
        ]
        wait_until(lambda: server.active == 0)
        found = [(each.accepted, each.completed, each.failed) for each in server.clone_stats()]
        assert found == [(2, 2, 0), (2, 0, 2), (2, 2, 0), (2, 2, 0)]
    assert made == [0, 1, 2, 3]


def test_gevents_do_handle_counts_for_the_loops_clone() -> None:
    """In the greenlet of a loop it needs no `glb.Clone.handle`, also when the loop has waited."""

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        while True:
            args = listener.accept()
            gevent.sleep(0)
            clone.server.do_handle(*args)

    with serve(loop, tell, clones=3) as server:
        server.start()
        assert replies(server, 6) == turns(3, 6)
        wait_until(lambda: server.active == 0)
        assert [each.completed for each in server.clone_stats()] == [2, 2, 2]


def test_greenlets_of_a_loop_may_accept_and_handle() -> None:
    """They share the clone's turns."""

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        gevent.joinall(
            [gevent.spawn(default_accept_loop, listener, clone) for _ in range(3)],
            raise_error=True,
        )

    with serve(loop, tell, clones=2) as server:
        server.start()
        let_hub_turn()
        assert replies(server, 8) == turns(2, 8)
        assert [each.accepted for each in server.clone_stats()] == [4, 4]


def test_a_wsgi_server_has_its_application_behind_the_loop() -> None:
    """With `environ`'s clone."""

    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"%d" % environ["glb.clone"]]

    server = WSGIServer(
        LOCAL, application, log=None, clones=3, accept_loop=default_accept_loop, hubs=3
    )
    with server:
        server.start()
        assert [int(http_get(server.address)) for _ in range(6)] == turns(3, 6)


def test_tls_is_the_servers_behind_clone_handle_and_the_loops_own_otherwise() -> None:
    """`accept()` returns the plain connection."""

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        if clone == 0:
            default_accept_loop(listener, clone)
        server: Any = clone.server
        while True:
            sock, _ = listener.accept()
            with server.wrap_socket(sock, **server.ssl_args) as secured:
                secured.sendall(b"1")

    with serve(loop, tell, clones=2, ssl_context=server_context()) as server:
        server.start()
        for turn in turns(2, 4):
            with client_context().wrap_socket(connect(server.address)) as client:
                assert int(client.recv(10)) == turn


# -- turns ------------------------------------------------------------------------------------


def test_a_loop_that_is_not_in_accept_is_passed_over() -> None:
    """And is at the end of the line when it comes back."""
    may_go, busy = Event(), Event()

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"%d" % clone)
            if clone == 1 and not may_go.is_set():
                busy.set()
                may_go.wait()

    with serve(loop, clones=3) as server:
        server.start()
        assert replies(server, 5) == [0, 1, 2, 0, 2]
        assert [each.ready for each in server.clone_stats()] == [True, False, True]
        may_go.set()
        wait_until(lambda: server.clone_stats()[1].ready)
        assert replies(server, 6) == [0, 2, 1] * 2


@on_one_and_four_hubs
def test_a_paused_clone_waits_in_accept(hubs: int) -> None:
    """Its loop sees nothing of that."""
    loop = Loop()
    with serve(loop, clones=4, hubs=hubs) as server:
        server.start()
        assert replies(server, 4) == [0, 1, 2, 3]
        server.pause_clone(2)
        assert replies(server, 6) == [0, 1, 3] * 2
        server.resume_clone(2)
        assert replies(server, 4) == [0, 1, 3, 2]
        assert loop.ended == []


def test_a_loop_that_polls_is_counted_and_can_be_paused() -> None:
    """A listener with a timeout of 0 takes nothing while its clone, or all of them, may not."""
    listeners: list[glb.Listener] = []

    def loop(listener: glb.Listener, _clone: glb.Clone) -> None:
        listener.setblocking(False)
        listeners.append(listener)
        Event().wait()

    with serve(loop, clones=1) as server:
        server.start()
        wait_until(lambda: bool(listeners))
        (listener,) = listeners
        clients = [connect(server.address) for _ in range(2)]
        ways: list[tuple[Callable[[], object], Callable[[], object]]] = [
            (lambda: server.pause_clone(0), lambda: server.resume_clone(0)),
            (server.stop_accepting, server.start_accepting),
        ]
        for stop, go_on in ways:
            stop()
            with pytest.raises(BlockingIOError):
                listener.accept()
            go_on()
            listener.accept()[0].close()
        assert server.clone_stats()[0].accepted == 2
        with pytest.raises(BlockingIOError):
            listener.accept()
        close_all(clients)
        server.stop(0)


def test_the_listener_is_its_hubs() -> None:
    """An accept in another thread's hub is refused, and leaves nothing."""
    loop, errors = Loop(), []

    def accept() -> None:
        try:
            loop.listeners[0].accept()
        except RuntimeError as error:
            errors.append(str(error))
        gevent.get_hub().destroy(destroy_loop=True)

    with serve(loop, clones=1) as server:
        server.start()
        wait_until(lambda: bool(loop.listeners))
        thread = threading.Thread(target=accept)
        thread.start()
        thread.join()
        assert replies(server, 2) == [0, 0]
    assert "can't be used on" in errors[0]


def test_a_clone_handles_on_its_hub() -> None:
    """`glb.Clone.handle` elsewhere is refused, and says why; so it is for a clone that isn't."""
    clones: list[glb.Clone] = []

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        clones.append(clone)
        default_accept_loop(listener, clone)

    with serve(loop, tell, clones=2, hubs=2) as server:
        server.start()
        wait_until(lambda: len(clones) == 2)
        (other,) = (each for each in clones if each == 1)
        with pytest.raises(RuntimeError, match="another hub"):
            other.handle("a socket")
        with pytest.raises(RuntimeError, match="no such clone"):
            glb.Clone(2, server).handle("a socket")


def test_dup_gives_a_clone_of_the_programs_own() -> None:
    """It takes turns as well, and outlives the server."""
    copies: list[glb.Listener] = []

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        copies.append(listener.dup())
        default_accept_loop(listener, clone)

    with serve(loop, tell, clones=1) as server:
        server.start()
        wait_until(lambda: bool(copies))
    client = connect(copies[0].address)
    copies[0].accept()[0].close()
    client.close()
    copies[0].close()


def test_a_listener_that_was_handed_in_is_the_first_clones() -> None:
    """A greenlet that waits in it already gets the error of a closed socket."""
    loop, errors = Loop(), []
    listener = glb.bind(LOCAL)

    def accept() -> None:
        try:
            listener.accept()
        except OSError as error:
            errors.append(error.errno)

    waiting = gevent.spawn(accept)
    let_hub_turn()
    with StreamServer(listener, accept_loop=loop, clones=2) as server:
        server.start()
        waiting.join()
        assert replies(server, 4) == turns(2, 4)
        assert loop.listeners[0] is listener
    assert errors == [errno.EBADF]


# -- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limit",
    [
        {"spawn": 3},
        {"spawn": 3, "hubs": 2},
        {"max_connections": 3},
        {"max_connections": 3, "hubs": 2},
        {"max_connections_per_clone": 1, "clones": 3},
        {"max_connections_per_clone": 1, "clones": 3, "hubs": 3},
    ],
)
def test_limits_hold_for_what_the_server_handles(limit: dict[str, Any]) -> None:
    """The rest waits in the accept queue."""
    may_end = threading.Event()
    held: list[object] = []

    def hold(sock: Any, _peer: object) -> None:
        held.append(sock)
        while not may_end.is_set():
            gevent.sleep(0.001)
        sock.sendall(b"done")

    with serve(default_accept_loop, hold, **{"clones": 2, **limit}) as server:
        server.start()
        clients = [connect(server.address) for _ in range(8)]
        wait_until(lambda: len(held) == 3)
        let_hub_turn()
        assert (len(held), server.active, entries()[0].accepted) == (3, 3, 3)
        may_end.set()
        assert [receive_all(client) for client in clients] == [b"done"] * 8
        close_all(clients)


def test_a_handler_that_cant_be_spawned_is_reported_and_pauses_the_server(
    reported: list[tuple[Any, type[BaseException]]],
) -> None:
    """The loop goes on."""
    spawned: list[Any] = []

    def spawn(*args: Any) -> Any:
        spawned.append(args)
        if len(spawned) == 1:
            raise LookupError("on purpose")
        return gevent.spawn(*args)

    with serve(default_accept_loop, tell, clones=1, spawn=spawn) as server:
        server.start()
        assert ask(server.address) == b""
        assert ask(server.address) == b"0"
        ((context, kind),) = reported
        assert (context[1], kind) == (server, LookupError)


def test_a_loop_that_is_killed_as_it_waits_for_room_ends() -> None:
    """`clone.handle` doesn't take the kill for an error of `spawn`; the connection is closed."""
    pool = Pool(1)
    with serve(default_accept_loop, Holder(), clones=1, spawn=pool) as server:
        server.start()
        first = connect(server.address)
        wait_until(lambda: len(pool) == 1)
        # A pool of the program's own may fill up between the accept and the handler.
        server.full = lambda: False  # type: ignore[method-assign]  # as gevent's is replaced
        second = connect(server.address)
        wait_until(lambda: entries()[0].accepted == 2)
        server.stop(0)
        assert receive_all(second) == b""
        close_all([first, second])


def test_errors_of_accept_are_the_servers(
    reported: list[tuple[Any, type[BaseException]]],
) -> None:
    """They pause it, or close it; the loop goes on, or sees that its listener was closed."""
    loop = Loop()
    with serve(loop, clones=2) as server:
        server.start()
        with failing_accepts(entry_of(server), errno.EPERM):
            first = connect(server.address)
            wait_until(lambda: bool(reported))
        assert int(receive_all(first)) in (0, 1)
        assert loop.ended == []
        first.close()
        with failing_accepts(entry_of(server), errno.ENOTSOCK):
            # A native one, whose connect() is done before the hub turns.
            client = native_socket.create_connection(("127.0.0.1", server.server_port or 0))
            wait_until(lambda: server.closed)
        client.close()
        wait_until(lambda: len(loop.ended) == 2)
    assert {context for context, _ in reported} == {server}


# -- the end -----------------------------------------------------------------------------------


@on_one_and_four_hubs
@pytest.mark.parametrize("end", ["stop", "drain", "stop with a drain"])
def test_idle_loops_end_at_once(hubs: int, end: str) -> None:
    """By the error of `accept`, which is not reported; a report counts connections alone."""
    loop = Loop()
    before = hub_threads()
    server = serve(loop, clones=8, hubs=hubs)
    server.start()
    replies(server, 8)
    found = server.drain(NEVER) if end == "drain" else server.stop(NEVER, drain=end != "stop")
    assert found is None or found[:3] == (0, 0, 0)
    assert sorted(loop.ended) == [(clone, errno.EBADF) for clone in range(8)]
    assert is_refused(server.address)
    wait_until(lambda: hub_threads() == before)


@on_one_and_four_hubs
def test_a_server_starts_again_with_new_loops(hubs: int) -> None:
    """As often as one likes; the counts go on."""
    loop = Loop()
    server = serve(loop, clones=4, hubs=hubs)
    for _ in range(5):
        server.start()
        assert replies(server, 4) == [0, 1, 2, 3]
        server.stop()
    assert sorted(loop.began) == sorted([*range(4)] * 5)
    assert [each.accepted for each in server.clone_stats()] == [5] * 4


@on_one_and_four_hubs
@pytest.mark.parametrize("end", ["stop", "drain"])
def test_a_loop_that_does_not_end_is_killed_when_the_time_is_over(hubs: int, end: str) -> None:
    """One that never accepts, too."""
    killed: list[int] = []

    def loop(_listener: glb.Listener, clone: glb.Clone) -> None:
        try:
            while True:
                gevent.sleep(NEVER)
        except gevent.GreenletExit:
            killed.append(int(clone))
            raise

    server = serve(loop, clones=4, hubs=hubs)
    server.start()
    wait_until(lambda: all(len(each.loops) == 4 / hubs for each in workers_of(server)))
    if end == "stop":
        server.stop(0.05)
    else:
        server.drain(0.05, linger=0)
    assert sorted(killed) == [0, 1, 2, 3]


@on_one_and_four_hubs
def test_a_stop_ends_handlers_together_with_loops(hubs: int) -> None:
    """Whatever ``spawn`` is: all that is left when the time is over is killed."""
    holder = Holder()
    with serve(default_accept_loop, holder, clones=4, hubs=hubs) as server:
        server.start()
        client = connect(server.address)
        wait_until(lambda: server.active == 1)
        server.stop(0.01)
        assert server.active == 0
        assert [each.failed for each in server.clone_stats()] == [1, 0, 0, 0]
        client.close()


def test_a_loop_may_use_its_time() -> None:
    """What it has accepted is finished, and what it gives to the server then is handled."""
    may_go, begun = Event(), Event()

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        args = listener.accept()
        begun.set()
        may_go.wait()
        clone.handle(*args)
        default_accept_loop(listener, clone)

    with serve(loop, tell, clones=1) as server:
        server.start()
        client = connect(server.address)
        begun.wait()
        draining = gevent.spawn(server.drain, NEVER)
        wait_until(lambda: server.closed or not entries())
        may_go.set()
        assert receive_all(client) == b"0"
        assert draining.get().killed == 0
        client.close()


def test_a_loop_may_stop_its_server() -> None:
    """It is not waited for, by itself."""
    stopped = Event()

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        listener.accept()[0].close()
        clone.server.stop(NEVER)
        stopped.set()

    for hubs in (1, 2):
        stopped.clear()
        with serve(loop, clones=2, hubs=hubs) as server:
            server.start()
            ask(server.address)
            stopped.wait()
            assert server.closed


@pytest.mark.parametrize("hubs", [1, 2])
def test_a_stop_comes_from_any_thread(hubs: int) -> None:
    """The loops end in their hub."""
    loop = Loop()
    server = serve(loop, clones=2, hubs=hubs)
    server.start()
    replies(server, 2)

    def stop() -> None:
        server.stop(NEVER)
        gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=stop)
    thread.start()
    wait_until(lambda: not thread.is_alive())
    assert sorted(loop.ended) == [(0, errno.EBADF), (1, errno.EBADF)]


def test_a_stop_right_after_the_start_runs_no_loop() -> None:
    """Their greenlets begin with the next turn of the hub."""
    loop = Loop()
    with serve(loop, clones=2) as server:
        server.start()
        server.stop()
    let_hub_turn()
    assert loop.began == []


def test_a_loop_that_an_exception_has_kept_from_beginning_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each hub looks over what is to run there, a few times a second."""
    loop = Loop()
    with serve(loop, clones=2) as server:
        with monkeypatch.context() as patch:
            patch.setattr("glb.serve.engine.start_loops", lambda _: None)
            server.start()
        for acceptor in acceptors_of(server):
            gevent.get_hub().loop.run_callback(acceptor.look_over)
            gevent.get_hub().loop.run_callback(acceptor.look_over)
        assert replies(server, 4) == turns(2, 4)
        assert loop.began == [0, 1]


@on_one_and_four_hubs
def test_resize_ends_loops_and_starts_others(hubs: int) -> None:
    """Those that go get the error; new ones come behind; one that comes back has its counts."""
    loop = Loop()
    with serve(loop, clones=4, hubs=hubs) as server:
        server.start()
        assert replies(server, 4) == [0, 1, 2, 3]
        server.resize(8)
        assert replies(server, 8) == turns(8, 8)
        assert entries()[0].clones == 8
        server.resize(4)
        assert sorted(loop.ended) == [(clone, errno.EBADF) for clone in range(4, 8)]
        assert replies(server, 4) == [0, 1, 2, 3]
        server.resize(5)
        assert replies(server, 5) == turns(5, 5)
        assert [each.accepted for each in server.clone_stats()] == [4, 4, 4, 4, 2]


def test_a_clone_that_comes_again_has_the_loop_of_now() -> None:
    """None, if the server has none any more."""
    with serve(default_accept_loop, tell, clones=2) as server:
        server.start()
        assert replies(server, 2) == [0, 1]
        server.resize(1)
        server.accept_loop = None
        server.resize(2)
        assert sorted(replies(server, 2)) == [0, 1]


def test_resize_kills_the_loops_that_go_and_no_other() -> None:
    """When its time is over."""
    killed: list[int] = []

    def loop(_listener: glb.Listener, clone: glb.Clone) -> None:
        try:
            gevent.sleep(NEVER)
        except gevent.GreenletExit:
            killed.append(int(clone))
            raise

    with serve(loop, clones=4) as server:
        server.start()
        let_hub_turn()
        server.resize(2, timeout=0.01)
        assert sorted(killed) == [2, 3]
        server.stop(0)


def test_growing_without_a_descriptor_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clones that there are go on."""
    loop = Loop()
    with serve(loop, clones=2) as server:
        server.start()
        assert replies(server, 2) == [0, 1]
        before = open_descriptors()
        made: list[Any] = []
        make = glb.Listener.__init__

        def run_out(self: glb.Listener, share: Any) -> None:
            if len(made) == 2:
                glb.accept.registry.REGISTRY.release(share)
                self._closed = True
                raise OSError(errno.EMFILE, "on purpose")
            made.append(self)
            make(self, share)

        with monkeypatch.context() as patch:
            patch.setattr(glb.Listener, "__init__", run_out)
            with pytest.raises(OSError, match=r"can't open 6 clones: on purpose"):
                server.resize(6)
        assert open_descriptors() == before
        assert (entries()[0].clones, len(server.clone_stats())) == (2, 2)
        assert replies(server, 4) == turns(2, 4)


@on_one_and_four_hubs
def test_a_roll_leaves_the_loops_and_loses_nothing(hubs: int) -> None:
    """Fifty times under load, with the new handler each time."""
    loop = Loop()

    def run(listener: glb.Listener, clone: glb.Clone) -> None:
        loop.began.append(int(clone))
        default_accept_loop(listener, clone)

    with serve(run, lambda sock, _: sock.sendall(b"-1"), clones=4, hubs=hubs) as server:
        server.start()
        is_over = False
        served: list[bytes] = []

        def client() -> None:
            while not is_over:
                served.append(ask(server.address))

        clients = [gevent.spawn(client) for _ in range(8)]
        for number in range(50):
            server.roll(lambda sock, _, number=number: sock.sendall(b"%d" % number))
        assert ask(server.address) == b"49"
        is_over = True
        gevent.joinall(clients, raise_error=True)
        assert b"" not in served
        accepted = [each.accepted for each in server.clone_stats()]
        assert sum(accepted) == len(served) + 1
        assert max(accepted) - min(accepted) <= 1
        assert sorted(loop.began) == [0, 1, 2, 3]


# -- loops that end by themselves ---------------------------------------------------------------


@on_one_and_four_hubs
@pytest.mark.parametrize("way", ["return", "raise", "close", "shutdown"])
def test_a_loop_that_ends_takes_its_clone_out_of_the_ring(
    hubs: int,
    way: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is reported, the others go on, and the next start has them all again."""
    is_first = True

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"%d" % clone)
            if clone == 1 and is_first:
                if way == "return":
                    return
                if way == "raise":
                    raise LookupError("on purpose")
                if way == "close":
                    listener.close()
                else:
                    listener.shutdown(0)

    with serve(loop, clones=4, hubs=hubs) as server:
        server.start()
        assert replies(server, 2) == [0, 1]
        wait_until(lambda: server.clone_stats()[1].state == "stopped")
        assert replies(server, 6) == [2, 3, 0] * 2
        server.pause_clone(1)
        server.resume_clone(1)
        assert (server.clone_stats()[1].ready, server.clone_stats()[1].state) == (False, "stopped")
        (record,) = caplog.records
        assert "accept loop of clone 1 has ended" in record.getMessage()
        printed = capsys.readouterr().err
        assert ("LookupError: on purpose" in printed) is (way == "raise")
        assert ("OSError" in printed) is (way in ("close", "shutdown"))
        assert ("<accept loop of <clone 1" in printed) is (way != "return")
        server.stop()
        is_first = False
        server.start()
        assert sorted(replies(server, 4)) == [0, 1, 2, 3]


@on_one_and_four_hubs
@pytest.mark.parametrize("when", ["before", "after", "not any more"])
def test_a_paused_clone_whose_loop_ends_is_paused_after_the_next_start(
    hubs: int, when: str
) -> None:
    """As one is whose loop goes on; and one that was resumed meanwhile is not."""
    begun, end = Event(), Event()

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        if clone == 1 and not begun.is_set():
            begun.set()
            end.wait()
        else:
            default_accept_loop(listener, clone)

    with serve(loop, tell, clones=4, hubs=hubs) as server:
        server.start()
        assert begun.wait(10)
        if when != "after":
            server.pause_clone(1)
        end.set()
        wait_until(lambda: server.clone_stats()[1].state == "stopped")
        if when == "after":
            server.pause_clone(1)
        if when == "not any more":
            server.resume_clone(1)
        server.stop()
        server.start()
        is_paused = when != "not any more"
        assert server.clone_stats()[1].state == ("paused" if is_paused else "accepting")
        ready = [0, 2, 3] if is_paused else [0, 1, 2, 3]
        assert sorted(replies(server, len(ready))) == ready
        server.resume_clone(1)
        assert 1 in replies(server, 4)


@pytest.mark.parametrize("clones", [1, 3])
@pytest.mark.parametrize("hubs", [1, 2])
def test_with_its_last_loop_the_server_closes(
    clones: int, hubs: int, caplog: pytest.LogCaptureFixture
) -> None:
    """`serve_forever` returns, and the address is free; also if all raise at once."""

    def loop(_listener: glb.Listener, _clone: glb.Clone) -> None:
        raise LookupError("on purpose")

    clones = max(clones, hubs)
    errors: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gevent.hub.Hub, "handle_error", lambda *args: errors.append(args[2]))
        server = serve(loop, clones=clones, hubs=hubs)
        server.serve_forever()
    assert errors == [LookupError] * clones
    assert (server.closed, entries()) == (True, [])
    assert is_refused(server.address)
    # Not always the last line: hubs write theirs at the same time.
    last = [each for each in caplog.records if "the server closes" in each.getMessage()]
    assert len(last) == 1
    server.accept_loop = Loop()
    with server:
        server.start()
        assert replies(server, clones) == [*range(clones)]


def test_of_loops_that_end_at_the_same_time_one_is_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each hub has seen its loop end before either of them reports it."""
    both = threading.Barrier(2)
    cancel = accept_loop._LoopWaiters.cancel

    def cancel_together(waiters: Any, make_error: Any) -> None:
        both.wait(NEVER)
        cancel(waiters, make_error)

    monkeypatch.setattr(accept_loop._LoopWaiters, "cancel", cancel_together)
    server = serve(lambda _listener, _clone: None, clones=2, hubs=2)
    server.serve_forever()
    last = [each for each in caplog.records if "the server closes" in each.getMessage()]
    assert len(last) == 1


def test_helpers_of_a_loop_that_ends_get_the_error() -> None:
    """Its listener takes nothing any more, in any greenlet."""
    errors: list[int | None] = []

    def accept(listener: glb.Listener) -> None:
        try:
            listener.accept()
        except OSError as error:
            errors.append(error.errno)

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        if clone == 0:
            gevent.spawn(accept, listener)
            gevent.sleep(0)
            return
        default_accept_loop(listener, clone)

    with serve(loop, tell, clones=2) as server:
        server.start()
        wait_until(lambda: bool(errors))
        assert replies(server, 3) == [1, 1, 1]
    assert errors == [errno.EBADF]


def test_a_connection_on_its_way_to_a_loop_that_is_busy_is_the_next_clones() -> None:
    """Another hub took it for one that comes back at once. Nothing waits for it."""
    busy, may_go = Event(), threading.Event()

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"%d" % clone)
            while clone == 1 and not may_go.is_set():
                gevent.sleep(0.001)

    with serve(loop, clones=2, hubs=2) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(20)]
        server.start()
        served = [int(receive_all(client)) for client in clients]
        assert (served.count(1), served.count(0)) == (1, 19)
        assert [each.accepted for each in server.clone_stats()] == [19, 1]
        assert turns_of(server).accepted == 20
        assert [each.in_flight for each in acceptors_of(server)] == [0, 0]
        may_go.set()
        close_all(clients)
    assert not busy.is_set()


def test_a_stalled_hub_loses_no_connection_of_its_loops() -> None:
    """What it was handed goes to the next clone."""
    stalled, may_go = threading.Event(), threading.Event()

    def loop(listener: glb.Listener, clone: glb.Clone) -> None:
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(b"%d" % clone)
            if clone == 1 and not may_go.is_set():
                stalled.set()
                may_go.wait(NEVER)

    with serve(loop, clones=2, hubs=2, patience=0.01) as server:
        server.start()
        assert replies(server, 8)[2:] == [0] * 6
        assert stalled.is_set()
        may_go.set()
        wait_until(lambda: all(each.ready for each in server.clone_stats()))
        assert sorted(replies(server, 2)) == [0, 1]


@pytest.mark.usefixtures("many_descriptors")
def test_many_loops_on_four_hubs_come_and_go() -> None:
    """1,024 clones: exact turns, and nothing is left."""
    loop = Loop()
    before = open_descriptors()
    server = serve(loop, clones=1024, hubs=4)
    server.start()
    assert replies(server, 1030) == turns(1024, 1030)
    server.stop(NEVER)
    assert len(loop.ended) == 1024
    loop.listeners.clear()
    gc.collect()
    assert open_descriptors().keys() <= before.keys()


def run_python(program: str, *, warnings: str) -> str:
    """Run *program* in a process of its own, which is to end well; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", warnings, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


FORK = """
import gevent, glb, os
from gevent import socket
from glb.serve import accept_loop
from glb.server import StreamServer, default_accept_loop

def ask():
    with socket.create_connection(server.address) as client:
        client.settimeout(20)
        return [int(word) for word in client.recv(100).split()]

def handle(sock, peer):
    sock.sendall(b"%d %d" % (glb.current_clone(), os.getpid()))

for hubs in (1, 2):
    server = StreamServer(
        ("127.0.0.1", 0), handle, clones=4, hubs=hubs, accept_loop=default_accept_loop, patience=20
    )
    server.start()
    assert [ask()[0] for _ in range(8)] == [0, 1, 2, 3] * 2
    is_over, tell = os.pipe()
    pid = gevent.os.fork()
    if not pid:
        os.read(is_over, 1)  # the parent has stopped
        order = [(clone, at) for clone, at in (ask() for _ in range(8))]
        assert order == [(clone, os.getpid()) for clone in range(0, 4, hubs)] * 2 * hubs, order
        server.stop()
        assert not glb.registry.entries()
        os._exit(7)
    server.stop()
    os.write(tell, b"x")
    assert os.waitstatus_to_exitcode(gevent.os.waitpid(pid, 0)[1]) == 7
"""


@pytest.mark.process
def test_a_forked_child_goes_on_with_the_loops_of_the_hub_that_forked() -> None:
    """In exact turn; those of other hubs are gone there, and the parent's end is its own."""
    run_python(FORK, warnings="ignore::DeprecationWarning")


# -- arguments, and the docs ---------------------------------------------------------------------


def test_a_loop_that_cant_be_called_is_refused() -> None:
    """With the value in the text; a listener that was to be handed in is still the caller's."""
    with glb.bind(LOCAL) as listener:
        with pytest.raises(TypeError, match="accept_loop must be callable, got 7"):
            StreamServer(listener, tell, accept_loop=7)  # type: ignore[arg-type]  # on purpose
        assert listener.fileno() >= 0
    server = StreamServer(LOCAL, tell)
    server.accept_loop = 7
    with pytest.raises(TypeError, match="accept_loop must be callable, got 7"):
        server.start()


def test_a_do_read_beside_a_loop_is_refused() -> None:
    """It would never be called. Nothing is left."""

    class Own(StreamServer):
        def do_read(self) -> Any:
            return super().do_read()

    server = Own(LOCAL, tell, accept_loop=default_accept_loop)
    with pytest.raises(TypeError, match="do_read can't accept"):
        server.start()
    assert entries() == []


def test_without_a_handler_clone_handle_says_so(
    reported: list[tuple[Any, type[BaseException]]],
) -> None:
    """The connection is closed, and the loop goes on."""
    with serve(default_accept_loop, clones=1) as server:
        server.start()
        assert ask(server.address) == b""
        assert ask(server.address) == b""
    assert [kind for _, kind in reported] == [TypeError, TypeError]


def test_a_server_without_a_handler_and_a_loop_is_refused_as_gevents() -> None:
    """With the same error."""
    with pytest.raises(TypeError, match="must be provided"):
        StreamServer(LOCAL)


DOCS = (Path(__file__).parents[2] / "docs" / "accept-loops.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)


def test_the_docs_examples_do_what_they_say() -> None:
    """State of a clone's own; and the default loop, as it is there."""
    first, second = BLOCKS
    printed = run_python(first, warnings="error")
    assert printed.splitlines() == [
        f"visitor {count} of clone {clone}" for count in (1, 2) for clone in (0, 1)
    ]
    found: dict[str, Any] = {}
    exec(compile(second, "docs/accept-loops.md", "exec"), found)
    assert found["accept_loop"].__code__.co_code == default_accept_loop.__code__.co_code
    with found["server"] as server:
        server.start()
        assert [ask(server.address) for _ in range(5)] == [
            b"served by clone %d\n" % turn for turn in turns(4, 5)
        ]
