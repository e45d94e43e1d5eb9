"""Rolls: handlers and the number of clones change while the server serves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.pool import Pool

import glb
from glb.hubs.signals import ask as run_there
from glb.hubs.threads import HubThread
from glb.model.states import State
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from ..support.engine import acceptors_of, clones_of, idle_here, workers_of
from ..support.helpers import (
    Looks,
    SkippingClock,
    ask,
    close_all,
    connect,
    http_get,
    receive_all,
    turns,
    wait_until,
)

LOCAL = ("127.0.0.1", 0)
NEVER = 1000  # so that no hub counts as stalled, however busy the machine is
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

on_one_and_two_hubs = pytest.mark.parametrize("hubs", [1, 2])

Handle = Callable[[Any, Any], object]


def reply(word: bytes) -> Handle:
    """Return a handler that replies its word, and its clone."""

    def handle(sock: Any, _peer: Any) -> None:
        sock.sendall(word + str(glb.current_clone()).encode())

    return handle


def application(word: bytes) -> Any:
    """Return an application that replies its word, and its clone."""

    def apply(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"%b%d" % (word, environ["glb.clone"])]

    return apply


class Slow:
    """A handler that waits until it may end."""

    def __init__(self, word: bytes = b"slow") -> None:
        self.word = word
        self.begun = 0
        self.may_end = threading.Event()

    def __call__(self, sock: Any, _peer: Any) -> None:
        self.begun += 1
        while not self.may_end.is_set():
            gevent.sleep(0.001)
        sock.sendall(self.word)


# -- handlers ---------------------------------------------------------------------------------


@on_one_and_two_hubs
@pytest.mark.parametrize("spawn", ["default", 20, "pool", "gevent"])
def test_a_replaced_clone_keeps_its_place_and_its_counts(hubs: int, spawn: Any) -> None:
    """Turns stay exact over the change; the others keep their handler."""
    if spawn == "pool":
        if hubs > 1:
            return  # a pool belongs to one hub
        spawn = Pool(20)
    elif spawn == "gevent":
        spawn = gevent.spawn
    with StreamServer(
        LOCAL, reply(b"a"), clones=4, hubs=hubs, patience=NEVER, spawn=spawn
    ) as server:
        server.start()
        assert [ask(server.address) for _ in range(5)] == [b"a0", b"a1", b"a2", b"a3", b"a0"]
        report = server.replace_clone(2, reply(b"b"))
        assert report[:3] == (0, 0, 0)
        assert [ask(server.address) for _ in range(4)] == [b"a1", b"b2", b"a3", b"a0"]
        wait_until(lambda: server.active == 0)
        assert [clone.completed for clone in server.clone_stats()] == [3, 2, 2, 2]


@on_one_and_two_hubs
def test_what_is_in_flight_finishes_with_the_old_handler(hubs: int) -> None:
    """The roll waits for it, clone after clone; new connections get the new one at once."""
    slow = Slow()
    with StreamServer(LOCAL, slow, clones=2, hubs=hubs, patience=NEVER) as server:
        server.start()
        clients = [connect(server.address) for _ in range(4)]
        wait_until(lambda: slow.begun == 4)
        rolling = gevent.spawn(server.roll, reply(b"new"))
        # The first clone waits for its old handlers, so the second is what it was.
        wait_until(lambda: acceptors_of(server)[0].handle is not slow)
        assert ask(server.address) == b"new0"
        assert not rolling.ready()
        slow.may_end.set()
        assert [receive_all(client) for client in clients] == [b"slow"] * 4
        report = rolling.get()
        assert report.clones[0][:3] == (2, 0, 0)
        assert [ask(server.address) for _ in range(2)] == [b"new1", b"new0"]
        close_all(clients)


@on_one_and_two_hubs
def test_what_takes_longer_than_its_time_is_killed(hubs: int) -> None:
    """Only the old one's: a new handler that runs at the deadline is not touched."""
    old, new = Slow(b"old"), Slow(b"new")
    with StreamServer(LOCAL, old, clones=hubs, hubs=hubs, patience=NEVER) as server:
        server.start()
        clients = [connect(server.address) for _ in range(hubs)]
        wait_until(lambda: old.begun == hubs)
        rolling = gevent.spawn(server.roll, new, timeout=0.2)
        wait_until(lambda: acceptors_of(server)[0].handle is new)
        later = connect(server.address)
        wait_until(lambda: new.begun == 1)
        report = rolling.get()
        assert [clone[:3] for clone in report.clones] == [(0, 0, 1)] * hubs
        assert [receive_all(client) for client in clients] == [b""] * hubs
        new.may_end.set()
        assert receive_all(later) == b"new"
        close_all([*clients, later])


def test_a_roll_that_does_not_wait_leaves_the_old_handler_to_itself() -> None:
    """All clones have the new one at once, nothing is closed or killed."""
    slow = Slow()
    with StreamServer(LOCAL, slow, clones=2) as server:
        server.start()
        client = connect(server.address)
        wait_until(lambda: slow.begun == 1)
        report = server.roll(reply(b"new"), wait=False)
        assert [clone[:3] for clone in report.clones] == [(0, 0, 0)] * 2
        assert [ask(server.address) for _ in range(2)] == [b"new1", b"new0"]
        slow.may_end.set()
        assert receive_all(client) == b"slow"
        client.close()


@on_one_and_two_hubs
def test_streams_that_are_idle_are_closed(hubs: int) -> None:
    """They would be the old handler's for as long as their clients like."""

    def old(sock: Any, _peer: Any) -> None:
        while True:
            with glb.idle():
                line = sock.recv(100)
            if not line:
                return
            sock.sendall(line)

    with StreamServer(LOCAL, old, clones=2, hubs=hubs, patience=NEVER) as server:
        server.start()
        clients = [connect(server.address) for _ in range(4)]
        for client in clients:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        report = server.roll(reply(b"new"))
        assert [clone[:3] for clone in report.clones] == [(0, 2, 0), (0, 2, 0)]
        assert [client.recv(1) for client in clients] == [b""] * 4
        assert ask(server.address) == b"new0"
        close_all(clients)


@on_one_and_two_hubs
def test_kept_alive_connections_get_the_new_application_with_their_next_request(
    hubs: int,
) -> None:
    """None is closed, and no request is lost."""
    with WSGIServer(
        LOCAL, application(b"old"), clones=2, hubs=hubs, patience=NEVER, log=None
    ) as server:
        server.start()
        clients = [connect(server.address) for _ in range(4)]

        def ask_all() -> list[bytes]:
            replies = []
            for client in clients:
                client.sendall(GET)
                received = client.recv(1000)
                assert b"Connection: close" not in received
                replies.append(received.rpartition(b"\r\n\r\n")[2])
            return replies

        assert ask_all() == [b"old0", b"old1"] * 2
        report = server.roll(application(b"new"))
        assert [clone[:3] for clone in report.clones] == [(0, 0, 0)] * 2
        assert ask_all() == [b"new0", b"new1"] * 2
        server.replace_clone(1, application(b"newer"))
        assert ask_all() == [b"new0", b"newer1"] * 2
        close_all(clients)


def test_a_request_in_flight_keeps_its_application_to_the_end() -> None:
    """The roll waits for the request, and not for the connection, which stays."""
    may_reply, begun = Event(), Event()

    def old(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.set()
        may_reply.wait()
        start_response("200 OK", [])
        return [b"old"]

    with WSGIServer(LOCAL, old, clones=1, log=None) as server:
        server.start()
        client = connect(server.address)
        client.sendall(GET)
        begun.wait()
        rolling = gevent.spawn(server.roll, application(b"new"))
        gevent.idle()
        assert http_get(server.address) == b"new0"
        assert not rolling.ready()
        may_reply.set()
        assert client.recv(1000).endswith(b"old")
        assert rolling.get().clones[0][:3] == (1, 0, 0)
        client.sendall(GET)
        assert client.recv(1000).endswith(b"new0")
        client.close()


def test_a_factory_makes_all_handlers_before_the_first_changes() -> None:
    """If it fails for the last one, nothing has changed."""
    made = []

    def factory(index: int) -> Handle:
        made.append(index)
        if index == 2:
            raise LookupError("no handler for 2")
        return reply(b"new")

    with StreamServer(LOCAL, reply(b"old"), clones=3) as server:
        server.start()
        with pytest.raises(LookupError, match="no handler for 2"):
            server.roll(handler_factory=factory)
        assert made == [0, 1, 2]
        assert [ask(server.address) for _ in range(3)] == [b"old0", b"old1", b"old2"]
        server.roll(handler_factory=lambda index: reply(b"f%d-" % index))
        assert [ask(server.address) for _ in range(3)] == [b"f0-0", b"f1-1", b"f2-2"]
        server.stop()
        server.start()
        assert ask(server.address) == b"f0-0"


def test_a_rolled_server_keeps_its_handlers_over_a_restart() -> None:
    """As set_handle's are kept; those of one clone, too."""
    with StreamServer(LOCAL, reply(b"a"), clones=2) as server:
        server.start()
        server.roll(reply(b"b"))
        server.replace_clone(1, reply(b"c"))
        server.stop()
        server.start()
        assert [ask(server.address) for _ in range(2)] == [b"b0", b"c1"]
        server.set_handle(reply(b"d"))
        server.stop()
        server.start()
        assert [ask(server.address) for _ in range(2)] == [b"d0", b"d1"]


def test_a_stopped_server_can_be_rolled() -> None:
    """It serves with the new one when it starts."""
    server = StreamServer(LOCAL, reply(b"a"), clones=2)
    server.roll(reply(b"b"))
    with server:
        server.start()
        assert ask(server.address) == b"b0"
        server.stop()
        server.roll(handler_factory=lambda _: reply(b"c"))
        server.start()
        assert ask(server.address) == b"c0"


def test_a_paused_clone_is_replaced_and_stays_paused() -> None:
    """Only its owner resumes it."""
    with StreamServer(LOCAL, reply(b"a"), clones=2) as server:
        server.start()
        server.pause_clone(0)
        server.roll(reply(b"b"))
        assert [clone.state for clone in server.clone_stats()] == ["paused", "accepting"]
        assert ask(server.address) == b"b1"
        server.resume_clone(0)
        assert {ask(server.address), ask(server.address)} == {b"b0", b"b1"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give a handler or a handler_factory"),
        ({"handle": reply(b""), "handler_factory": reply}, "give a handler or a handler_factory"),
        ({"handle": 3}, "handle must be callable, got 3"),
        ({"handler_factory": 3}, "handler_factory must be callable, got 3"),
        ({"handler_factory": lambda _: 3}, "handler_factory must return a callable, got 3"),
        ({"handle": reply(b""), "timeout": -1}, "timeout must be 0 seconds or more, got -1"),
        ({"handle": reply(b""), "timeout": "1"}, "timeout must be a number of seconds, got '1'"),
    ],
)
def test_bad_rolls_are_refused(arguments: dict[str, Any], message: str) -> None:
    """The error has the value in it, and the old handlers go on."""
    with StreamServer(LOCAL, reply(b"old"), clones=2) as server:
        server.start()
        with pytest.raises((TypeError, ValueError), match=message):
            server.roll(**arguments)
        assert [ask(server.address) for _ in range(2)] == [b"old0", b"old1"]


@pytest.mark.parametrize("index", [-1, 2, "0", None])
def test_there_is_no_such_clone(index: Any) -> None:
    """As for pause_clone."""
    with StreamServer(LOCAL, reply(b"old"), clones=2) as server:
        server.start()
        with pytest.raises((TypeError, ValueError), match=f"clone must be .*{index!r}"):
            server.replace_clone(index, reply(b"new"))


def test_a_roll_within_a_handler_does_not_wait_for_itself() -> None:
    """A command to roll is answered by the old handler."""

    def handle(sock: Any, _peer: Any) -> None:
        server.roll(reply(b"new"))
        sock.sendall(b"rolled")

    with StreamServer(LOCAL, handle, clones=2) as server:
        server.start()
        assert ask(server.address) == b"rolled"
        assert ask(server.address) == b"new1"


def test_changes_wait_for_each_other() -> None:
    """One at a time, in the order in which they came."""
    slow = Slow()
    with StreamServer(LOCAL, slow, clones=1) as server:
        server.start()
        client = connect(server.address)
        wait_until(lambda: slow.begun == 1)
        changes: list[Any] = [
            gevent.spawn(server.roll, reply(b"b")),
            gevent.spawn(server.resize, 2),
            gevent.spawn(server.roll, reply(b"c")),
        ]
        gevent.idle()
        assert not any(change.ready() for change in changes)
        slow.may_end.set()
        gevent.joinall(changes, raise_error=True)
        assert [ask(server.address) for _ in range(2)] == [b"c0", b"c1"]
        assert receive_all(client) == b"slow"
        client.close()


def test_a_roll_from_another_thread() -> None:
    """It waits for the handlers of the server's hub."""
    slow = Slow()
    with StreamServer(LOCAL, slow, clones=2) as server:
        server.start()
        client = connect(server.address)
        wait_until(lambda: slow.begun == 1)
        thread = HubThread("rolls").start()
        wait = run_there(thread.send, lambda: server.roll(reply(b"new")))
        wait_until(lambda: bool(workers_of(server)[0].watched))
        slow.may_end.set()
        report = wait(None)
        assert report is not None
        assert [clone[:3] for clone in report.clones] == [(1, 0, 0), (0, 0, 0)]
        thread.end()
        assert thread.wait(10)
        assert receive_all(client) == b"slow"
        client.close()


def test_a_drain_ends_a_roll() -> None:
    """What the roll waits for is the drain's, too."""
    slow = Slow()
    server = StreamServer(LOCAL, slow, clones=2)
    server.start()
    client = connect(server.address)
    wait_until(lambda: slow.begun == 1)
    rolling = gevent.spawn(server.roll, reply(b"new"))
    gevent.idle()
    assert server.drain(0.05)[:3] == (0, 0, 1)
    rolling.get()
    assert receive_all(client) == b""
    client.close()


# -- clones -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("by_turns_and_by_loops")
@on_one_and_two_hubs
def test_turns_stay_exact_as_clones_come_and_go(hubs: int) -> None:
    """New ones come behind those that are there; the rest keep their order."""
    with StreamServer(LOCAL, reply(b""), clones=2, hubs=hubs, patience=NEVER) as server:
        server.start()
        order = [int(ask(server.address)) for _ in range(4)]
        server.resize(5)
        order += [int(ask(server.address)) for _ in range(10)]
        assert order == [*turns(2, 4), *turns(5, 10)]
        assert (server.clones, len(server.clone_stats())) == (5, 5)
        server.resize(3)
        assert [int(ask(server.address)) for _ in range(6)] == turns(3, 6)
        assert glb.registry.entries()[0].clones == 3
        server.resize(4)
        assert [int(ask(server.address)) for _ in range(4)] == turns(4, 4)
        wait_until(lambda: server.active == 0)
        # A clone that comes back has its counts.
        assert [clone.completed for clone in server.clone_stats()] == [7, 7, 5, 3]


@on_one_and_two_hubs
def test_a_clone_that_goes_is_drained(hubs: int) -> None:
    """Its handlers finish; the report has them alone."""
    slow = Slow()
    with StreamServer(LOCAL, slow, clones=4, hubs=hubs, patience=NEVER) as server:
        server.start()
        clients = [connect(server.address) for _ in range(8)]
        wait_until(lambda: slow.begun == 8)
        shrinking = gevent.spawn(server.resize, 2)
        wait_until(lambda: server.clones == 2)
        leaving = [*clones_of(server).gone.values()]
        assert {acceptor.state for acceptor in leaving} == {State.DRAINING}
        wait_until(lambda: all(worker.watched for worker in workers_of(server)))
        assert not shrinking.ready()
        slow.may_end.set()
        assert [receive_all(client) for client in clients] == [b"slow"] * 8
        assert shrinking.get()[:3] == (4, 0, 0)
        assert {acceptor.own for acceptor in leaving} == {State.STOPPED}
        close_all(clients)


def test_a_clone_that_goes_closes_idle_connections_and_says_so_on_busy_ones() -> None:
    """Of its own clones' connections alone."""
    may_reply, begun = Event(), []

    def apply(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            begun.append(int(environ["glb.clone"]))
            may_reply.wait()
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    with WSGIServer(LOCAL, apply, clones=2, log=None) as server:
        server.start()
        idle = [connect(server.address) for _ in range(2)]
        for client in idle:
            client.sendall(GET)
            assert client.recv(1000).endswith(b"ok")
        busy = [connect(server.address) for _ in range(2)]
        for client in busy:
            client.sendall(GET.replace(b"/ ", b"/slow "))
        wait_until(lambda: sorted(begun) == [0, 1])
        shrinking = gevent.spawn(server.resize, 1)
        assert idle[1].recv(1) == b""
        may_reply.set()
        assert b"Connection: close" not in busy[0].recv(1000)
        assert b"Connection: close" in receive_all(busy[1])
        assert shrinking.get()[:3] == (1, 1, 0)
        idle[0].sendall(GET)
        assert idle[0].recv(1000).endswith(b"ok")
        close_all(idle + busy)


def test_what_a_goer_still_does_at_the_deadline_is_killed() -> None:
    """And nothing of those that stay."""
    slow = Slow()
    with StreamServer(LOCAL, slow, clones=2) as server:
        server.start()
        clients = [connect(server.address) for _ in range(2)]
        wait_until(lambda: slow.begun == 2)
        assert server.resize(1, timeout=0.05)[:3] == (0, 0, 1)
        assert receive_all(clients[1]) == b""
        slow.may_end.set()
        assert receive_all(clients[0]) == b"slow"
        close_all(clients)


def test_no_client_in_the_accept_queue_is_lost_when_clones_go() -> None:
    """The queue is the address's."""
    with StreamServer(LOCAL, reply(b""), clones=4) as server:
        server.start()
        server.stop_accepting()
        clients = [connect(server.address) for _ in range(10)]
        server.resize(1)
        server.start_accepting()
        assert [receive_all(client) for client in clients] == [b"0"] * 10
        close_all(clients)


def test_new_clones_get_their_handlers_from_the_factory() -> None:
    """Called with their indices; if it fails, nothing has changed."""

    def factory(index: int) -> Handle:
        if index > 3:
            raise LookupError("no more")
        return reply(b"f%d-" % index)

    with StreamServer(LOCAL, clones=1, handler_factory=factory) as server:
        server.start()
        server.resize(3)
        assert [ask(server.address) for _ in range(3)] == [b"f0-0", b"f1-1", b"f2-2"]
        with pytest.raises(LookupError, match="no more"):
            server.resize(6)
        assert (server.clones, glb.registry.entries()[0].clones) == (3, 3)
        assert [ask(server.address) for _ in range(3)] == [b"f0-0", b"f1-1", b"f2-2"]


def test_a_resized_server_starts_again_as_large() -> None:
    """Also one that was resized while it was stopped."""
    server = StreamServer(LOCAL, reply(b""), clones=1)
    server.resize(2)
    with server:
        server.start()
        assert [int(ask(server.address)) for _ in range(4)] == turns(2, 4)
        server.resize(3)
        server.stop()
        server.start()
        assert [int(ask(server.address)) for _ in range(6)] == turns(3, 6)
        server.stop()
        server.resize(1)
        server.start()
        assert [int(ask(server.address)) for _ in range(2)] == [0, 0]


@on_one_and_two_hubs
def test_a_clone_that_is_back_while_its_handlers_end_keeps_its_counts(hubs: int) -> None:
    """The server was closed and started; the resize that waited for the clone's end leaves it."""
    slow = Slow()
    with StreamServer(LOCAL, slow, clones=4, hubs=hubs, patience=NEVER) as server:
        server.start()
        clients = [connect(server.address) for _ in range(4)]
        wait_until(lambda: slow.begun == 4)
        shrinking = gevent.spawn(server.resize, 2)
        wait_until(lambda: all(worker.watched for worker in workers_of(server)))
        server.close()
        server.clones = 4
        server.start()
        slow.may_end.set()
        assert [receive_all(client) for client in clients] == [b"slow"] * 4
        shrinking.get()
        assert [ask(server.address) for _ in range(4)] == [b"slow"] * 4
        wait_until(lambda: server.active == 0)
        assert [clone.completed for clone in server.clone_stats()] == [2] * 4
        close_all(clients)


@pytest.mark.parametrize("clones", [0, -1, 1, "4", None, 2.0, True])
def test_bad_sizes_are_refused(clones: Any) -> None:
    """There is at least one clone a hub."""
    with StreamServer(LOCAL, reply(b""), clones=2, hubs=2, patience=NEVER) as server:
        server.start()
        with pytest.raises((TypeError, ValueError), match=f"clones must be .*got {clones!r}"):
            server.resize(clones)
        assert (server.clones, glb.registry.entries()[0].clones) == (2, 2)


@on_one_and_two_hubs
def test_a_server_grows_without_a_free_descriptor(
    hubs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone costs none."""
    with StreamServer(LOCAL, reply(b""), clones=2, hubs=hubs, patience=NEVER) as server:
        server.start()

        def fail(_sock: object) -> int:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("glb.net.sockets.duplicate", fail)
        server.resize(8)
        monkeypatch.undo()
        assert (server.clones, glb.registry.entries()[0].clones) == (8, 8)
        assert [int(ask(server.address)) for _ in range(16)] == turns(8, 16)


def test_sixteen_and_back_many_times() -> None:
    """Nothing is left behind, and the counts add up."""
    with StreamServer(LOCAL, reply(b""), clones=1) as server:
        server.start()
        for size in [16, 1] * 5:
            server.resize(size)
            assert [int(ask(server.address)) for _ in range(size)] == turns(size, size)
        assert glb.registry.entries()[0].clones == 1


# -- what a hostile reading found -----------------------------------------------------------------


def test_a_subclass_whose_handler_is_a_method_is_rolled() -> None:
    """The clones that are not reached yet go on with the method."""

    class Server(StreamServer):
        def handle(self, sock: Any, _peer: Any) -> None:
            sock.sendall(b"method")

    with Server(LOCAL, clones=3) as server:
        server.start()
        server.replace_clone(1, reply(b"new"))
        assert [ask(server.address) for _ in range(3)] == [b"method", b"new1", b"method"]
        server.stop()
        server.start()
        assert [ask(server.address) for _ in range(3)] == [b"method", b"new1", b"method"]


@pytest.mark.parametrize("clones", [1, 4])
@pytest.mark.parametrize("hubs", [1, 3])
def test_another_number_after_a_roll_keeps_the_handlers(clones: int, hubs: int) -> None:
    """Also on another number of hubs; a clone that is new has the last one's."""
    with StreamServer(LOCAL, reply(b"old"), clones=2, patience=NEVER) as server:
        server.start()
        server.roll(reply(b"new"))
        server.stop()
        if clones >= hubs:
            server.hubs = hubs
        server.resize(clones)
        server.start()
        got = [ask(server.address) for _ in range(clones)]
        assert got == [b"new%d" % index for index in range(clones)]
        assert [clone.accepted for clone in server.clone_stats()] == [1] * clones


def test_handlers_of_the_last_time_are_counted_where_they_were() -> None:
    """A stop that leaves them, another number of clones, and a start."""
    old = Slow()
    with StreamServer(LOCAL, old, clones=2) as server:
        server.start()
        client = connect(server.address)
        wait_until(lambda: old.begun == 1)
        server.stop()
        server.resize(3)
        server.start()
        assert server.active == 1
        old.may_end.set()
        assert receive_all(client) == b"slow"
        wait_until(lambda: server.active == 0)
        later = connect(server.address)
        assert receive_all(later) == b"slow"
        wait_until(lambda: server.active == 0)
        close_all([client, later])


def test_a_roll_of_a_stopped_server_of_two_hubs_waits_for_nothing() -> None:
    """Its second hub is gone."""
    server = StreamServer(LOCAL, reply(b"a"), clones=2, hubs=2, patience=NEVER)
    server.start()
    server.stop()
    server.roll(reply(b"b"))
    with server:
        server.start()
        assert ask(server.address) == b"b0"


def test_a_close_in_the_middle_of_a_roll_ends_it() -> None:
    """On each hub; and the next change is possible."""
    slow = Slow()
    server = StreamServer(LOCAL, slow, clones=2, hubs=2, patience=NEVER)
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    wait_until(lambda: slow.begun == 2)
    rolling = gevent.spawn(server.roll, reply(b"b"))
    gevent.idle()
    server.close()
    slow.may_end.set()
    rolling.get()
    assert [receive_all(client) for client in clients] == [b"slow"] * 2
    server.roll(reply(b"c"))
    close_all(clients)


@on_one_and_two_hubs
def test_two_handlers_that_roll_at_once_wait_for_none_of_each_other(hubs: int) -> None:
    """The second change comes after the first."""

    def handle(sock: Any, _peer: Any) -> None:
        both.append(True)
        while len(both) < 2:
            gevent.sleep(0.001)
        server.roll(reply(b"new"))
        sock.sendall(b"rolled")

    both: list[bool] = []
    with StreamServer(LOCAL, handle, clones=2, hubs=hubs, patience=NEVER) as server:
        server.start()
        clients = [connect(server.address) for _ in range(2)]
        assert [receive_all(client) for client in clients] == [b"rolled"] * 2
        assert ask(server.address) == b"new0"
        close_all(clients)


def test_a_client_that_has_sent_nothing_yet_gets_the_new_handler() -> None:
    """A connection without its first byte has no handler yet, and is not closed."""

    def new(sock: Any, peer: Any) -> None:
        sock.recv(1)
        reply(b"new")(sock, peer)

    with StreamServer(LOCAL, reply(b"old"), clones=2, first_byte_timeout=60) as server:
        server.start()
        clients = [connect(server.address) for _ in range(2)]
        wait_until(lambda: idle_here(server) is not None and len(idle_here(server)) == 2)
        report = server.roll(new)
        assert [clone[:3] for clone in report.clones] == [(0, 0, 0)] * 2
        for client in clients:
            client.sendall(b"x")
        assert [receive_all(client) for client in clients] == [b"new0", b"new1"]
        close_all(clients)


@on_one_and_two_hubs
def test_a_client_that_connects_during_a_roll_has_a_second_for_its_first_request(
    hubs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on, however long an earlier clone takes; one that was there has it only once."""
    clock, looks = SkippingClock(monkeypatch), Looks(monkeypatch)
    may_end = threading.Event()
    begun = []

    def handle(sock: Any, _peer: Any) -> None:
        with glb.idle():
            data = sock.recv(10)
        begun.append(data)
        while data == b"slow" and not may_end.is_set():
            gevent.sleep(0.001)
        if data:
            sock.sendall(b"old")

    with StreamServer(LOCAL, handle, clones=2, hubs=hubs, patience=NEVER) as server:
        server.start()
        # Turn by turn: the second and the fourth are clone 1's.
        slow, early, other = (connect(server.address) for _ in range(3))
        slow.sendall(b"slow")
        other.sendall(b"x")
        assert receive_all(other) == b"old"
        wait_until(lambda: len(begun) == 2 and server.active == 2)
        roll = gevent.spawn(server.roll, reply(b"new"))
        wait_until(lambda: bool(workers_of(server)[0].watched))
        clock.skip(500)
        late = connect(server.address)
        workers = workers_of(server)
        wait_until(lambda: sum(len(each.idle or ()) for each in workers) == 2)
        assert [each.accepted for each in server.clone_stats()] == [2, 2]
        looks.wait()
        assert server.active == 3
        may_end.set()
        assert receive_all(slow) == b"old"
        assert receive_all(early) == b""
        looks.wait()
        late.sendall(b"first")
        assert receive_all(late) == b"old"
        assert [counts[:3] for counts in roll.get().clones] == [(1, 0, 0), (1, 1, 0)]
        close_all([slow, early, other, late])


@on_one_and_two_hubs
def test_a_timeout_in_the_middle_of_a_change_leaves_nothing(hubs: int) -> None:
    """No watcher, no lock, nothing that is watched: the hub can end, and the next change begins."""
    slow = Slow()
    with StreamServer(LOCAL, slow, clones=4, hubs=hubs, patience=NEVER) as server:
        server.start()
        clients = [connect(server.address) for _ in range(4)]
        wait_until(lambda: slow.begun == 4)
        for change in (lambda: server.resize(hubs), lambda: server.roll(reply(b"new"))):
            with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
                change()
        slow.may_end.set()
        assert [receive_all(client) for client in clients] == [b"slow"] * 4
        server.resize(4)
        wait_until(lambda: not any(worker.watched for worker in workers_of(server)))
        close_all(clients)
