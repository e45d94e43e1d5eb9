"""The watchdog: no connection waits for a hub that is stalled.

Hubs are blocked by native events, as C code blocks them. Most tests are the clock themselves:
with a patience of 30 s nothing happens but at the ticks that they make.
"""

from __future__ import annotations

import errno
import socket as native_socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import GreenletExit, socket
from gevent.pool import Pool

import glb
from glb.accept import watchdog as watchdog_module
from glb.accept.dispatcher import Dispatcher
from glb.accept.listener import Listener
from glb.accept.registry import REGISTRY, entries
from glb.accept.watchdog import (
    CALM_SECONDS,
    LATE_TICKS,
    PROBATION_SECONDS,
    QUIET_TICKS,
    SLOW_TICKS,
    Watchdog,
)
from glb.hubs.threads import HubThread
from glb.model.states import State
from glb.net.connection import Connection
from glb.originals import native_ident
from glb.server import StreamServer

from ..support.engine import admission_of, entry_of, turns_of, workers_of
from ..support.helpers import (
    ask,
    call_in,
    close_all,
    comes_true,
    connect,
    let_hub_turn,
    receive_all,
    turns,
    wait_until,
)

LOCAL = ("127.0.0.1", 0)

#: Hubs are stalled soon. There is no upper bound to what a loaded machine takes for it.
SHORT = 0.01
#: The test makes the ticks itself.
NEVER = 30.0


class Blocking:
    """A handler that blocks its hub natively on some clones, and replies its clone.

    Attributes:
        where: The clones whose next handler blocks.
        served: The clones that have begun, in order.
    """

    def __init__(self, *where: int) -> None:
        self.where = set(where)
        self.served: list[int] = []
        self.inside = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, sock: Any, _peer: Any) -> None:
        clone = glb.current_clone()
        assert clone is not None
        self.served.append(clone.index)
        if clone in self.where:
            self.where.discard(clone)
            self.inside.set()
            assert self.go_on.wait(20)
        sock.sendall(b"%d" % clone)


@contextmanager
def serving(handle: Any, kind: type[StreamServer] = StreamServer, **more: Any) -> Iterator[Any]:
    """Start a server on two hubs, whose handler greenlets have all run once."""
    server = kind(LOCAL, handle, **{"hubs": 2, "clones": 2, "patience": NEVER, **more})
    where: set[int] = getattr(handle, "where", set())
    kept, blocked = set(where), where
    blocked.clear()
    try:
        server.start()
        for _ in range(2 * server.clones):
            ask(server.address)
        wait_until(lambda: sum(each.completed for each in server.clone_stats()) >= server.clones)
        handle.served.clear()
        blocked.update(kept)
        yield server
    finally:
        if hasattr(handle, "go_on"):
            handle.go_on.set()
        server.stop()


def watchdog_of(server: StreamServer) -> Watchdog:
    turns = turns_of(server)
    assert turns is not None and isinstance(turns.watchdog, Watchdog)
    return turns.watchdog


def look(watchdog: Watchdog, after: float) -> None:
    """Make the watchdog look around, in its own thread, as if it did *after* times its patience."""
    watchdog._ticked_at = time.monotonic() - after * watchdog.turns.patience
    watchdog._tick()


def tick(watchdog: Watchdog, count: int = 1, after: float = 1) -> None:
    """Make the watchdog look around *count* times."""
    for _ in range(count):
        watchdog.thread_of_its_own.call(lambda: look(watchdog, after))


def has_one(line: Collection[object]) -> bool:
    return len(line) == 1


def _block(inside: threading.Event, go_on: threading.Event) -> None:
    inside.set()
    go_on.wait(20)


@contextmanager
def blocked(hub: Any) -> Iterator[None]:
    """Block *hub*, another thread's, between two of its callbacks."""
    inside, go_on = threading.Event(), threading.Event()
    call_in(hub, lambda: _block(inside, go_on))
    assert inside.wait(10)
    try:
        yield
    finally:
        go_on.set()


def hub_of(server: StreamServer, index: int) -> Any:
    thread = workers_of(server)[index].thread
    assert thread is not None
    return thread.hub


def native_connect(address: Any) -> native_socket.socket:
    """Connect without this thread's hub."""
    return native_socket.create_connection(address, 20)


def native_ask(address: Any) -> bytes:
    """Connect, and return all that comes back, without a turn of this thread's hub."""
    with native_connect(address) as client:
        return client.recv(100)


def leader(server: StreamServer) -> Any:
    assert turns_of(server) is not None
    return turns_of(server).leader


# -- wake-ups --------------------------------------------------------------------------------


def wake_ups_of(dispatcher: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of how many connections were in the inbox at each wake-up by this thread."""
    found: list[int] = []
    wake, here = Dispatcher.wake_locked, native_ident()

    def record(self: Dispatcher) -> None:
        if self is dispatcher and native_ident() == here:
            found.append(len(self.inbox))
        wake(self)

    monkeypatch.setattr(Dispatcher, "wake_locked", record)
    return found


def test_a_hub_is_woken_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections of the batch are for its clones, which are all there by then."""
    handle = Blocking()
    with serving(handle) as server:
        found = wake_ups_of(workers_of(server)[1].dispatcher, monkeypatch)
        with blocked(hub_of(server, 1)):
            clients = [native_connect(server.address) for _ in range(8)]
            wait_until(lambda: bool(found))
        assert found == [4]
        wait_until(lambda: len(handle.served) == 8)  # also of this hub, which a client now blocks
        assert sorted(receive_all(client) for client in clients) == [b"0"] * 4 + [b"1"] * 4
        assert found == [4]
        close_all(clients)


def test_a_batch_that_ends_by_an_error_wakes_hubs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was handed out before is handled before the report, and the others after the pause."""
    count = iter(range(100))
    handle = Blocking()
    with serving(handle) as server:
        found = wake_ups_of(workers_of(server)[1].dispatcher, monkeypatch)
        reports: list[int] = []

        entry = entry_of(server)
        accept = entry.accept

        def fail_at_third() -> Any:
            if next(count) == 2:
                raise LookupError("on purpose")
            return accept()

        monkeypatch.setattr(entry, "accept", fail_at_third)
        monkeypatch.setattr(gevent.get_hub(), "handle_error", lambda *_: reports.append(len(found)))
        with blocked(hub_of(server, 1)):
            clients = [native_connect(server.address) for _ in range(4)]
            wait_until(lambda: bool(reports))
            assert (found[:1], reports) == ([1], [1])
        wait_until(lambda: len(handle.served) == 4)
        assert sorted(receive_all(client) for client in clients) == [b"0"] * 2 + [b"1"] * 2
        close_all(clients)


class Noting(Blocking):
    """Notes how many wake-ups there have been when a handler of the first clone begins."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []
        self.noted: list[int] = []

    def __call__(self, sock: Any, peer: Any) -> None:
        if glb.current_clone() == 0:
            self.noted.append(len(self.found))
        super().__call__(sock, peer)


def test_a_handler_within_the_turn_begins_when_other_hubs_are_woken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that blocks the hub that accepts keeps no connection of another hub waiting."""
    handle = Noting()
    with serving(handle, spawn=None) as server:
        assert ask(server.address) == b"0"
        handle.noted.clear()
        handle.found = wake_ups_of(workers_of(server)[1].dispatcher, monkeypatch)
        clients = [native_connect(server.address) for _ in range(2)]
        wait_until(lambda: len(handle.served) == 3)
        assert [receive_all(client) for client in clients] == [b"1", b"0"]
        assert (handle.found, handle.noted) == ([1], [1])
        close_all(clients)


def test_a_greenlet_that_goes_on_within_the_turn_does_so_when_other_hubs_are_woken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same of a loop over ``accept``, in a hub that accepts for a server's clone too."""
    kind = type("Shared", (StreamServer,), {"reuse_port": True})
    handle = Blocking()
    with serving(handle, kind) as server, glb.bind_load_balanced(server.address) as listener:
        noted: list[int] = []

        def accept() -> None:
            listener.accept()[0].close()
            noted.append(len(found))

        server.pause_clone(0)
        greenlet = gevent.spawn(accept)
        let_hub_turn()
        found = wake_ups_of(workers_of(server)[1].dispatcher, monkeypatch)
        clients = [native_connect(server.address) for _ in range(2)]
        greenlet.join(20)
        wait_until(lambda: len(handle.served) == 1)
        assert (found, noted) == ([1], [1])
        close_all(clients)


# -- a hub that is stalled -------------------------------------------------------------------


def test_a_stalled_hub_has_what_it_was_handed_taken_back() -> None:
    """The other hub serves it; the stalled one serves nothing but what it has begun."""
    handle = Blocking(1)
    with serving(handle, patience=SHORT) as server:
        server.pause_clone(0)
        client = connect(server.address)
        wait_until(handle.inside.is_set)
        server.resume_clone(0)
        assert [ask(server.address) for _ in range(8)] == [b"0"] * 8
        assert handle.served == [1] + [0] * 8
        assert not server.clone_stats()[1].ready
        assert turns_of(server).taken_back > 0
        handle.go_on.set()
        assert receive_all(client) == b"1"
        client.close()


def test_a_hub_that_comes_back_has_its_turns_again() -> None:
    """At once, one at a time; and the counts are as if nothing had been."""
    handle = Blocking(1)
    with serving(handle, patience=SHORT) as server:
        before = entries()[0].accepted
        server.pause_clone(0)
        client = connect(server.address)
        wait_until(handle.inside.is_set)
        server.resume_clone(0)
        assert [ask(server.address) for _ in range(4)] == [b"0"] * 4
        handle.go_on.set()
        assert receive_all(client) == b"1"
        client.close()
        wait_until(lambda: ask(server.address) == b"1")
        served = len(handle.served)
        wait_until(lambda: entries()[0].accepted - before == served)
        wait_until(lambda: server.clone_stats()[1].ready)
        wait_until(lambda: admission_of(server).expected == 0)
        assert not turns_of(server).waiting


def test_connections_in_an_inbox_are_taken_back_in_their_order() -> None:
    """They are the first that the other hub serves, and each is served once."""
    handle = Blocking()
    with serving(handle) as server, blocked(hub_of(server, 1)):
        server.pause_clone(0)
        clients = [connect(server.address) for _ in range(5)]
        inbox = workers_of(server)[1].dispatcher.inbox
        wait_until(lambda: len(inbox) == 5)
        server.resume_clone(0)
        tick(watchdog_of(server), 4)
        assert [receive_all(client) for client in clients] == [b"0"] * 5
        assert turns_of(server).taken_back == 5
        assert [each.failed for each in server.clone_stats()] == [0, 0]
        close_all(clients)
    assert handle.served == [0] * 5


def test_jobs_that_have_not_begun_are_taken_back() -> None:
    """One handler blocks: those of the same batch behind it are served by the other hub."""
    handle = Blocking(1)
    with serving(handle) as server:
        server.pause_clone(0)
        with blocked(hub_of(server, 1)):
            clients = [connect(server.address) for _ in range(5)]
            inbox = workers_of(server)[1].dispatcher.inbox
            wait_until(lambda: len(inbox) == 5)
        wait_until(handle.inside.is_set)
        assert not inbox
        server.resume_clone(0)
        tick(watchdog_of(server), 4)
        assert [receive_all(client) for client in clients[1:]] == [b"0"] * 4
        assert handle.served == [1, 0, 0, 0, 0]
        handle.go_on.set()
        assert receive_all(clients[0]) == b"1"
        close_all(clients)
        wait_until(lambda: workers_of(server)[1].active == 0)
        completed = [each.completed for each in server.clone_stats()]
        assert [each.accepted for each in server.clone_stats()] == completed


def test_the_first_jobs_of_all_are_taken_back_as_any() -> None:
    """A hub's first handler may be the one that blocks: those behind it are safe all the same."""
    handle = Blocking(1)
    with StreamServer(LOCAL, handle, hubs=2, clones=2, patience=NEVER) as server:
        server.start()
        handlers = [worker.handlers for worker in workers_of(server)]
        wait_until(lambda: all(each is not None for each in handlers))
        server.pause_clone(0)
        dispatcher = workers_of(server)[1].dispatcher
        assert dispatcher is not None
        with blocked(hub_of(server, 1)):
            clients = [connect(server.address) for _ in range(3)]
            wait_until(lambda: len(dispatcher.inbox) == 3)
        wait_until(handle.inside.is_set)
        server.resume_clone(0)
        tick(watchdog_of(server), 4)
        replies = [receive_all(client) for client in clients[1:]]
        handle.go_on.set()
        assert receive_all(clients[0]) == b"1"
        assert replies == [b"0"] * 2
        close_all(clients)


@pytest.mark.parametrize("policy", ["round_robin", "first"])
def test_jobs_of_the_hub_on_duty_are_taken_back_though_the_watchdog_slept(policy: str) -> None:
    """It need not have seen them come: what a hub accepts for itself is looked after, too."""
    handle = Blocking(0)
    with serving(handle, policy=policy, patience=SHORT) as server:
        if policy == "round_robin":
            server.pause_clone(1)
        watchdog = watchdog_of(server)
        wait_until(lambda: not watchdog.is_ticking)
        replies: list[bytes] = []
        slow, is_slow = threading.Event(), threading.Event()
        watchdog.send(lambda: _block(is_slow, slow))
        assert is_slow.wait(10)
        first = native_connect(server.address)
        others = [native_connect(server.address) for _ in range(2)]

        def collect() -> None:
            # The main hub is blocked now, and the watchdog has been too slow to see anything.
            assert handle.inside.wait(10)
            slow.set()
            server.resume_clone(1)
            for client in others:
                client.settimeout(3)
                try:
                    replies.append(client.recv(10))
                except TimeoutError:
                    replies.append(b"no reply came")
            handle.go_on.set()

        thread = threading.Thread(target=collect)
        thread.start()
        wait_until(lambda: not thread.is_alive())
        thread.join()
        last = first.recv(10)
        close_all([first, *others])
        assert (replies, last) == ([b"1", b"1"], b"0")


def test_the_hub_on_duty_may_be_stalled() -> None:
    """Connections are accepted and served by others while this thread's hub does not turn."""
    handle = Blocking()
    with serving(handle, patience=SHORT) as server:
        assert leader(server) is workers_of(server)[0].dispatcher
        assert [native_ask(server.address) for _ in range(8)] == [b"1"] * 8
        assert leader(server) is watchdog_of(server)
        assert not server.clone_stats()[0].ready
        wait_until(lambda: ask(server.address) == b"0")


def test_with_all_hubs_stalled_the_first_that_comes_back_takes_what_waits() -> None:
    """No client is lost meanwhile; hubs that are still stalled get nothing."""
    handle = Blocking(1)
    with serving(handle, patience=SHORT) as server:
        server.pause_clone(0)
        first = connect(server.address)
        wait_until(handle.inside.is_set)
        server.resume_clone(0)
        clients = [native_connect(server.address) for _ in range(6)]
        turns = turns_of(server)
        while turns.next_locked() is not None:  # natively: this hub is stalled, too
            threading.Event().wait(0.001)
        assert handle.served == [1]
        handle.go_on.set()
        assert [client.recv(10) for client in clients] == [b"1"] * 6
        assert handle.served == [1] * 7
        assert receive_all(first) == b"1"
        close_all([first, *clients])


def test_of_two_stalled_hubs_the_one_that_comes_back_serves_alone() -> None:
    """The other is passed over as long as it is away."""
    handle = Blocking(1, 2)
    with serving(handle, hubs=3, clones=3, patience=SHORT) as server:
        server.pause_clone(0)
        clients = [connect(server.address), connect(server.address)]
        wait_until(lambda: sorted(handle.served)[:2] == [1, 2] or len(handle.served) == 2)
        server.resume_clone(0)
        assert [ask(server.address) for _ in range(6)] == [b"0"] * 6
        handle.go_on.set()
        assert sorted(receive_all(client) for client in clients) == [b"1", b"2"]
        close_all(clients)


def test_a_closed_server_lets_no_client_wait_for_a_stalled_hub() -> None:
    """What was on its way there is closed: the client hears of it at once."""
    handle = Blocking()
    with serving(handle) as server, blocked(hub_of(server, 1)):
        server.pause_clone(0)
        client = connect(server.address)
        inbox = workers_of(server)[1].dispatcher.inbox
        wait_until(lambda: len(inbox) == 1)
        server.close()
        assert client.recv(10) == b""
        client.close()
    assert handle.served == []


def test_a_second_server_serves_what_was_on_its_way_to_a_closed_one() -> None:
    """On a shared address no client is lost by a close, on whichever hub it was."""
    handle = Blocking()
    with serving(handle, reuse_port=True) as server:
        other = StreamServer(
            server.address, lambda sock, _: sock.sendall(b"other"), clones=1, reuse_port=True
        )
        with blocked(hub_of(server, 1)):
            server.pause_clone(0)
            client = connect(server.address)
            inbox = workers_of(server)[1].dispatcher.inbox
            wait_until(lambda: len(inbox) == 1)
            other.start()
            server.close()
        assert receive_all(client) == b"other"
        client.close()
        other.stop()
    assert handle.served == []


# -- ways to run handlers --------------------------------------------------------------------


class OwnRead(StreamServer):
    def do_read(self) -> Any:
        return super().do_read()


class OwnHandle(StreamServer):
    def do_handle(self, *args: Any) -> None:
        super().do_handle(*args)


class OwnAccept(StreamServer):
    """Its `do_read` knows nothing of hubs, and accepts by itself."""

    def do_read(self) -> Any:
        sock: Any = self.socket
        try:
            number, address = sock._accept()
        except BlockingIOError:
            return None
        return socket.socket(fileno=number), address


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (StreamServer, {"spawn": gevent.spawn}),
        (StreamServer, {"spawn": None}),
        (StreamServer, {"spawn": 50}),
        (OwnRead, {}),
        (OwnHandle, {}),
        (OwnAccept, {}),
    ],
)
def test_each_way_to_run_handlers_survives_a_stalled_hub(
    kind: type[StreamServer], arguments: dict[str, Any]
) -> None:
    """All are served, each once, and by the hub that turns."""
    handle = Blocking(1)
    with serving(handle, kind, patience=SHORT, **arguments) as server:
        server.pause_clone(0)
        client = connect(server.address)
        wait_until(handle.inside.is_set)
        server.resume_clone(0)
        clients = [connect(server.address) for _ in range(10)]
        assert [receive_all(each) for each in clients] == [b"0"] * 10
        handle.go_on.set()
        assert receive_all(client) == b"1"
        close_all([client, *clients])
        wait_until(lambda: ask(server.address) == b"1")
    assert handle.served[:11] == [1] + [0] * 10


@pytest.mark.parametrize("kind", [OwnRead, OwnHandle])
def test_a_server_that_starts_handlers_by_itself_gets_one_connection_at_a_time(
    kind: type[StreamServer],
) -> None:
    """So that all others of a batch are in the inbox still when one blocks."""
    handle = Blocking(1)
    with serving(handle, kind) as server:
        server.pause_clone(0)
        with blocked(hub_of(server, 1)):
            clients = [connect(server.address) for _ in range(4)]
            inbox = workers_of(server)[1].dispatcher.inbox
            wait_until(lambda: len(inbox) == 4)
        wait_until(handle.inside.is_set)
        assert len(inbox) == 3
        server.resume_clone(0)
        tick(watchdog_of(server), 4)
        assert [receive_all(client) for client in clients[1:]] == [b"0"] * 3
        handle.go_on.set()
        assert receive_all(clients[0]) == b"1"
        close_all(clients)


def test_what_is_handled_out_of_turn_stays_where_it_is() -> None:
    """It wasn't handed there: its handler runs once, on that hub, when that turns again."""
    handle = Blocking()
    with serving(handle) as server:
        dispatcher = workers_of(server)[1].dispatcher
        ours, theirs = native_socket.socketpair()
        # As one that came by a turn.
        connection = Connection(theirs.family, theirs.type, theirs.proto, theirs.detach())
        inside, go_on = threading.Event(), threading.Event()

        def handle_and_block() -> None:
            server.do_handle(connection, "a peer")
            _block(inside, go_on)

        workers_of(server)[1].thread.send(handle_and_block)
        assert inside.wait(10)
        server.pause_clone(0)
        client = connect(server.address)
        wait_until(partial(has_one, dispatcher.inbox))
        server.resume_clone(0)
        tick(watchdog_of(server), 5)
        assert receive_all(client) == b"0"
        assert (turns_of(server).taken_back, handle.served) == (1, [0])
        assert not dispatcher.has_turns
        go_on.set()
        ours.settimeout(10)
        assert ours.recv(10) == b"0"  # counted for the first clone
        close_all([ours, client])
        assert handle.served == [0, 0]
        wait_until(lambda: workers_of(server)[1].active == 0)
        assert [each.active for each in server.clone_stats()] == [0, 0]
        wait_until(lambda: bool(dispatcher.has_turns))


def test_what_the_first_hub_handles_out_of_turn_is_not_another_ones() -> None:
    """It is counted for the first clone, but was never accepted for it: it stays."""
    handle = Blocking()
    with serving(handle) as server:
        ours, theirs = native_socket.socketpair()
        connection = Connection(theirs.family, theirs.type, theirs.proto, theirs.detach())
        server.do_handle(connection, "a peer")
        tick(watchdog_of(server), 5)  # natively: this hub does not turn
        assert not workers_of(server)[0].dispatcher.has_turns
        assert (turns_of(server).taken_back, handle.served) == (0, [])
        wait_until(lambda: handle.served == [0])
        assert ours.recv(10) == b"0"
        ours.close()
        wait_until(lambda: workers_of(server)[0].active == 0)


def test_a_pool_that_filled_up_on_the_way_gives_the_connection_back() -> None:
    """Others serve it; and the server goes on as soon as there is room in its pool again."""
    handle = Blocking()
    pools: list[Pool] = []

    def start(address: Any) -> StreamServer:
        pools.append(Pool(1))
        other = StreamServer(
            address, lambda sock, _: sock.sendall(b"x"), spawn=pools[0], clones=1, reuse_port=True
        )
        other.start()
        return other

    with serving(handle, reuse_port=True) as server:
        thread = HubThread("glb test").start()
        other: StreamServer = thread.call(lambda: start(server.address))
        try:
            server.pause_clone(0)
            server.pause_clone(1)
            assert ask(server.address) == b"x"
            wait_until(lambda: len(pools[0]) == 0 and other.clone_stats()[0].ready)
            inside, go_on = threading.Event(), threading.Event()

            def block_and_fill() -> None:
                _block(inside, go_on)
                pools[0].spawn(gevent.sleep, 1000)

            thread.send(block_and_fill)
            assert inside.wait(10)
            client = connect(server.address)
            inbox = workers_of(other)[0].dispatcher.inbox
            wait_until(partial(has_one, inbox))
            go_on.set()
            wait_until(lambda: other.state is State.FULL)
            server.resume_clone(1)
            assert receive_all(client) == b"1"
            client.close()
            server.pause_clone(1)
            thread.send(lambda: pools[0].kill(block=False))
            assert ask(server.address) == b"x"
            assert (
                admission_of(other).expected,
                [each.accepted for each in other.clone_stats()],
            ) == (
                0,
                [2],
            )
        finally:
            thread.call(other.close)
            thread.end()
            assert thread.wait(None)


def test_a_bound_is_no_trap_for_what_was_taken_back() -> None:
    """With all room promised to a stalled hub, there is room again when that is taken back."""
    handle = Blocking()
    with serving(handle, spawn=1) as server, blocked(hub_of(server, 1)):
        server.pause_clone(0)
        first = connect(server.address)
        inbox = workers_of(server)[1].dispatcher.inbox
        wait_until(lambda: len(inbox) == 1)
        server.resume_clone(0)
        second = connect(server.address)
        let_hub_turn()
        tick(watchdog_of(server), 4)
        is_served = comes_true(lambda: handle.served == [0, 0])
        close_all([first, second])
        assert is_served


# -- the watchdog's clock ---------------------------------------------------------------------


def test_a_hub_has_two_ticks_to_take_up_what_it_was_handed() -> None:
    """At the first it may just have come; at the second it lies there for a whole one."""
    handle = Blocking()
    with serving(handle) as server, blocked(hub_of(server, 1)):
        watchdog = watchdog_of(server)
        wait_until(lambda: watchdog._timer is not None or not watchdog.is_ticking)
        server.pause_clone(0)
        client = connect(server.address)
        dispatcher = workers_of(server)[1].dispatcher
        wait_until(lambda: len(dispatcher.inbox) == 1)
        wait_until(lambda: watchdog._timer is not None)
        server.resume_clone(0)
        tick(watchdog)
        assert dispatcher.has_turns and len(dispatcher.inbox) == 1
        tick(watchdog)
        assert not dispatcher.has_turns
        assert receive_all(client) == b"0"
        client.close()


def ticks_that_count(watchdog: Watchdog, afters: Iterable[float]) -> list[float]:
    """Make ticks, each so many times the patience after the last; return those that counted."""
    found = []
    for after in afters:
        before = watchdog.turns.clock
        tick(watchdog, after=after)
        if watchdog.turns.clock != before:
            found.append(after)
    return found


def test_of_late_ticks_only_some_count() -> None:
    """The whole process may have been stopped; a few in a row are the rule here. One resets it."""
    handle = Blocking()
    with serving(handle) as server:
        watchdog = watchdog_of(server)
        tick(watchdog)
        late = [1.6 + 0.1 * count for count in range(LATE_TICKS)]
        assert ticks_that_count(watchdog, late) == late[-1:]
        assert ticks_that_count(watchdog, late) == late[-1:]
        assert ticks_that_count(watchdog, late[:-1]) == []
        assert ticks_that_count(watchdog, [1.4]) == [1.4]
        assert ticks_that_count(watchdog, late[:-1]) == []
        assert ticks_that_count(watchdog, late[-1:]) == late[-1:]


def test_a_tick_that_makes_up_for_a_late_one_is_passed_over() -> None:
    """It is too soon after that to show anything, and the next one is in time."""
    handle = Blocking()
    with serving(handle) as server:
        watchdog = watchdog_of(server)
        tick(watchdog)
        assert ticks_that_count(watchdog, [0.1, 0.4, 0.6, 0.4, 1]) == [0.6, 1]
        late = [1.6, 0.4] * LATE_TICKS
        assert ticks_that_count(watchdog, late) == [1.6]


def test_late_ticks_withdraw_no_hub_until_they_count() -> None:
    """A hub in a process that was stopped for so long has not stalled."""
    handle = Blocking()
    with serving(handle) as server, blocked(hub_of(server, 1)):
        watchdog = watchdog_of(server)
        server.pause_clone(0)
        client = connect(server.address)
        dispatcher = workers_of(server)[1].dispatcher
        wait_until(lambda: len(dispatcher.inbox) == 1 and watchdog._timer is not None)
        server.resume_clone(0)
        tick(watchdog)
        tick(watchdog, LATE_TICKS - 1, after=100)
        assert dispatcher.has_turns and len(dispatcher.inbox) == 1
        tick(watchdog, after=100)
        assert not dispatcher.has_turns
        assert receive_all(client) == b"0"
        client.close()


class Stepping:
    """A handler that blocks the second hub, each time until it may go on."""

    def __init__(self) -> None:
        self.served: list[int] = []
        self.is_blocking = False
        self.step = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, sock: Any, _peer: Any) -> None:
        clone = glb.current_clone()
        assert clone is not None
        self.served.append(clone.index)
        if self.is_blocking and clone == 1:
            while not self.step.acquire(timeout=0.005) and not self.go_on.is_set():
                pass
        sock.sendall(b"%d" % clone)


@contextmanager
def stepping(kind: type[StreamServer], count: int) -> Iterator[tuple[Any, Stepping, Any]]:
    """Give the second hub *count* connections at once, of which it has begun the first."""
    handle = Stepping()
    with serving(handle, kind) as server:
        server.pause_clone(0)
        handle.is_blocking = True
        with blocked(hub_of(server, 1)):
            clients = [connect(server.address) for _ in range(count)]
            inbox = workers_of(server)[1].dispatcher.inbox
            wait_until(lambda: len(inbox) == count)
        wait_until(lambda: handle.served == [1])
        server.resume_clone(0)
        # From here on, whatever went before.
        tick(watchdog_of(server))
        assert turns_of(server).taken_back == 0
        yield server, handle, clients
        handle.go_on.set()
        replies = [receive_all(client) for client in clients]
        assert sorted(replies) == sorted(b"%d" % each for each in handle.served)
        close_all(clients)


def go_on(handle: Stepping) -> None:
    """Let the hub begin its next handler."""
    count = handle.served.count(1)
    handle.step.release()
    wait_until(lambda: handle.served.count(1) == count + 1)


@pytest.mark.parametrize("kind", [StreamServer, OwnHandle])
def test_a_hub_that_goes_on_slowly_is_let_alone_for_some_ticks(kind: type[StreamServer]) -> None:
    """What is there is begun not much later than elsewhere; after that it is taken back."""
    many = 4 * SLOW_TICKS
    with stepping(kind, many) as (server, handle, _):
        watchdog, dispatcher = watchdog_of(server), workers_of(server)[1].dispatcher
        ticks = 0
        while turns_of(server).taken_back == 0:
            go_on(handle)
            tick(watchdog)
            ticks += 1
            assert dispatcher.has_turns == (turns_of(server).taken_back == 0)
        assert SLOW_TICKS <= ticks <= 2 * SLOW_TICKS
        assert turns_of(server).taken_back == many - 1 - ticks
        assert handle.served[: ticks + 1] == [1] * (ticks + 1)
        wait_until(lambda: len(handle.served) == many)
        assert handle.served[ticks + 1 :] == [0] * (many - 1 - ticks)


@pytest.mark.parametrize("kind", [StreamServer, OwnHandle])
def test_a_hub_that_is_slow_but_through_in_time_keeps_all(kind: type[StreamServer]) -> None:
    """A connection is moved for the time it lies, and not for a hub that is at work."""
    with stepping(kind, SLOW_TICKS) as (server, handle, _):
        for _ in range(SLOW_TICKS - 1):
            go_on(handle)
            tick(watchdog_of(server))
        assert (turns_of(server).taken_back, handle.served) == (0, [1] * SLOW_TICKS)
        tick(watchdog_of(server), 2 * SLOW_TICKS)
        assert turns_of(server).taken_back == 0
        assert workers_of(server)[1].dispatcher.has_turns


@pytest.mark.parametrize("kind", [StreamServer, OwnHandle])
def test_a_hub_that_goes_on_no_more_loses_all_at_once(kind: type[StreamServer]) -> None:
    """It was let alone as long as it moved: one that doesn't has one tick, and no more."""
    with stepping(kind, 3 * SLOW_TICKS) as (server, handle, _):
        go_on(handle)
        tick(watchdog_of(server))
        assert turns_of(server).taken_back == 0
        tick(watchdog_of(server))
        assert turns_of(server).taken_back == 3 * SLOW_TICKS - 2


def test_a_connection_that_no_other_hub_can_take_stays_in_its_inbox() -> None:
    """Its hub may be back first; it is withdrawn, and as soon as another is ready, that has it."""
    handle = Blocking()
    with serving(handle) as server, blocked(hub_of(server, 1)):
        watchdog, dispatcher = watchdog_of(server), workers_of(server)[1].dispatcher
        server.pause_clone(0)
        clients = [connect(server.address) for _ in range(2)]
        wait_until(lambda: len(dispatcher.inbox) == 2)
        tick(watchdog, 5)
        assert (dispatcher.has_turns, turns_of(server).taken_back) == (False, 0)
        assert len(dispatcher.inbox) == 2
        server.resume_clone(0)
        tick(watchdog)
        assert (len(dispatcher.inbox), turns_of(server).taken_back) == (0, 2)
        assert [receive_all(client) for client in clients] == [b"0"] * 2
        close_all(clients)


def test_what_was_taken_back_may_lie_twice_as_long_each_time() -> None:
    """Where all hubs are slow it comes to rest, instead of going round for ever."""
    handle = Blocking()
    with (
        serving(handle, hubs=3, clones=3) as server,
        blocked(hub_of(server, 1)),
        blocked(hub_of(server, 2)),
    ):
        watchdog = watchdog_of(server)
        server.pause_clone(0)
        one, two = (workers_of(server)[index].dispatcher for index in (1, 2))
        client = connect(server.address)
        wait_until(lambda: len(one.inbox) + len(two.inbox) == 1)
        lying = []
        for _ in range(4):
            (at,) = (each for each in (one, two) if each.inbox)
            other = two if at is one else one
            # All seem to be back in time.
            with turns_of(server).lock:
                other.stalled_at = None
                turns_of(server).restore_locked(other)
            count = 0
            while at.inbox:
                tick(watchdog)
                count += 1
                assert count < 100
            wait_until(partial(has_one, other.inbox))
            lying.append(count)
        assert lying == [2, 3, 5, 9]
        server.resume_clone(0)
        tick(watchdog, 17)
        assert receive_all(client) == b"0"
        client.close()


def test_it_sleeps_when_there_is_nothing_to_see_and_wakes_with_what_is_handed_on() -> None:
    """An idle process has no ticks; the first connection that goes to another hub starts them."""
    handle = Blocking()
    with serving(handle) as server:
        watchdog = watchdog_of(server)
        tick(watchdog, QUIET_TICKS + 3)
        assert (watchdog.is_ticking, watchdog._timer) == (False, None)
        assert watchdog.is_watching
        for _ in range(2):
            ask(server.address)
        wait_until(lambda: watchdog.is_ticking and watchdog._timer is not None)
        wait_until(lambda: not watchdog.is_watching)


def test_asleep_it_sees_a_connection_that_waits_for_the_hub_on_duty() -> None:
    """With nothing handed to any hub, and this one not turning, the client is served."""
    handle = Blocking()
    with serving(handle, patience=SHORT) as server:
        watchdog = watchdog_of(server)
        wait_until(lambda: not watchdog.is_ticking)
        assert native_ask(server.address) == b"1"


def test_the_duty_is_given_back_when_all_is_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before `CALM_SECONDS` without a stall, and to the first hub, which is trusted again."""
    handle = Blocking()
    with serving(handle) as server:
        watchdog, home = watchdog_of(server), workers_of(server)[0].dispatcher
        now = monotonic()
        monkeypatch.setattr(watchdog_module, "monotonic", lambda: now)
        client = native_connect(server.address)
        tick(watchdog, 5)
        assert leader(server) is watchdog
        assert (home.has_turns, home.stalled_at is None) == (False, False)
        assert client.recv(10) == b"1"
        client.close()
        wait_until(lambda: home.has_turns)
        now += CALM_SECONDS
        tick(watchdog)
        assert leader(server) is watchdog
        now += 0.001
        home.stalled_at = now
        tick(watchdog)
        assert leader(server) is not home
        turns_of(server).assign_locked(watchdog)
        now += PROBATION_SECONDS + 0.001
        tick(watchdog)
        assert leader(server) is home
        assert sorted(ask(server.address) for _ in range(4)) == [b"0", b"0", b"1", b"1"]


def test_a_hub_is_trusted_again_after_its_probation(monkeypatch: pytest.MonkeyPatch) -> None:
    """That begins anew with each stall, and goes on while the hub isn't back."""
    handle = Blocking()
    with serving(handle) as server:
        watchdog, dispatcher = watchdog_of(server), workers_of(server)[1].dispatcher
        now = monotonic()
        monkeypatch.setattr(watchdog_module, "monotonic", lambda: now)
        with blocked(hub_of(server, 1)):
            with turns_of(server).lock:
                turns_of(server).stall_locked(dispatcher)
            dispatcher.stalled_at = now
            now += 2 * PROBATION_SECONDS
            tick(watchdog)
            assert (dispatcher.has_turns, dispatcher.stalled_at is None) == (False, False)
        wait_until(lambda: dispatcher.has_turns)
        dispatcher.stalled_at = now
        now += PROBATION_SECONDS
        tick(watchdog)
        assert dispatcher.stalled_at is not None
        now += 0.001
        tick(watchdog)
        assert (dispatcher.has_turns, dispatcher.stalled_at) == (True, None)


def test_a_hub_on_probation_is_handed_one_at_a_time() -> None:
    """It has the next when the handler of the last has begun; meanwhile others serve."""
    handle = Blocking()
    with serving(handle) as server:
        dispatcher = workers_of(server)[1].dispatcher
        dispatcher.stalled_at = monotonic()
        with blocked(hub_of(server, 1)):
            clients = [connect(server.address) for _ in range(5)]
            wait_until(lambda: len(handle.served) == 4)
            assert (len(dispatcher.inbox), handle.served) == (1, [0] * 4)
            assert not dispatcher.has_turns
        assert sorted(receive_all(client) for client in clients) == [b"0"] * 4 + [b"1"]
        close_all(clients)
        wait_until(lambda: bool(dispatcher.has_turns))
        assert dispatcher.stalled_at is not None


def test_a_tick_after_the_close_finds_nothing_and_says_nothing() -> None:
    """Its timer may be due before it learns of the end."""
    handle = Blocking()
    reported: list[type[BaseException]] = []
    with serving(handle) as server:
        watchdog = watchdog_of(server)
        watchdog.hub.handle_error = lambda _context, kind, *_: reported.append(kind)
        inside, go_on = threading.Event(), threading.Event()

        def late() -> None:
            inside.set()
            go_on.wait(10)
            look(watchdog, 1)

        watchdog.send(late)
        assert inside.wait(10)
        server.close()
        go_on.set()
        thread = watchdog.thread_of_its_own
        assert thread.wait(10)
    assert reported == []


def test_one_watchdog_is_for_all_servers_of_an_address(caplog: pytest.LogCaptureFixture) -> None:
    """It ends with the last, and no call waits for it before; its thread's name has the address."""
    handle = Blocking()
    with serving(handle, reuse_port=True) as server:
        other = StreamServer(server.address, handle, hubs=3, reuse_port=True, patience=NEVER)
        other.start()
        found = [each.name for each in threading.enumerate() if "watchdog" in each.name]
        assert found == [f"glb watchdog of {server.address!r}"]
        thread = watchdog_of(server).thread_of_its_own
        server.stop()
        assert watchdog_of(other).thread_of_its_own is thread
        assert len([ask(other.address) for _ in range(6)]) == 6
        other.stop()
        assert thread.wait(10)
    assert caplog.records == []


# -- plain listeners in several threads ------------------------------------------------------


class Thread:
    """A native thread that loops over `accept` on a clone of *first*, and replies its number."""

    def __init__(self, first: Listener, number: int, served: list[int]) -> None:
        self.thread = HubThread(f"glb test {number}").start()
        self.number = number
        self.served = served
        self.listener = self.thread.call(first.dup)
        self.greenlet: Any = None
        self.ended_by: int | None = None

    def start(self) -> None:
        """Begin to accept; the ring has it when this returns."""
        ready = entries()[0].ready
        self.greenlet = self.thread.call(lambda: gevent.spawn(self.loop))
        wait_until(lambda: entries()[0].ready == ready + 1)

    def loop(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError as error:  # closed, or the test's own timeout
                self.ended_by = error.errno
                return
            self.served.append(self.number)
            with connection:
                connection.sendall(b"%d" % self.number)

    def end(self) -> None:
        self.thread.call(self.listener.close)
        wait_until(lambda: self.greenlet is None or self.greenlet.dead)
        assert self.ended_by in (errno.EBADF, None)
        self.thread.end()
        assert self.thread.wait(None)


@contextmanager
def threads(count: int, patience: float = NEVER) -> Iterator[tuple[Listener, list[Thread]]]:
    """Accept in *count* native threads, which began to wait in the order of their numbers."""
    served: list[int] = []
    with glb.bind(LOCAL, reuse_port=True) as first:
        first.entry.turns.patience = patience
        started = [Thread(first, number, served) for number in range(count)]
        try:
            for each in started:
                each.start()
            yield first, started
        finally:
            for each in started:
                each.end()


def entry_watchdog(listener: Listener) -> Watchdog:
    found = listener.entry.turns.watchdog
    assert isinstance(found, Watchdog)
    return found


@pytest.mark.parametrize("count", [2, 5])
def test_plain_listeners_of_several_threads_take_exact_turns(count: int) -> None:
    """0, 1, ..., N-1, 0, 1, ... over native threads, each with its hub."""
    with threads(count) as (first, started):
        replies = []
        for _ in range(20 * count):
            wait_until(lambda: entries()[0].ready == count)
            replies.append(int(ask(first.address)))
        assert replies == started[0].served == turns(count, 20 * count)


@pytest.mark.parametrize("count", [1, 2])
def test_threads_that_do_nothing_but_accept_go_on_for_ever(count: int) -> None:
    """No greenlet but their own, no timer: their hubs wait for what others accept for them."""
    served: list[int] = []
    ended_by: list[object] = []
    with glb.bind(LOCAL, reuse_port=True) as first:
        # A second hub in any case, so that it isn't theirs that watches the socket.
        ours = gevent.spawn(first.accept)
        let_hub_turn()
        listeners: list[Listener] = []

        def work(number: int) -> None:
            listener = first.dup()
            listeners.append(listener)
            try:
                while True:
                    connection, _ = listener.accept()
                    served.append(number)
                    with connection:
                        connection.sendall(b"%d" % number)
            except BaseException as error:  # LoopExit, for one
                ended_by.append(getattr(error, "errno", error))
            finally:
                listener.close()
                gevent.get_hub().destroy(destroy_loop=True)

        workers = []
        for number in range(count):
            workers.append(threading.Thread(target=work, args=(number,)))
            workers[-1].start()
            wait_until(lambda: entries()[0].ready == len(workers) + 1 or bool(ended_by))
        ours.kill()
        for turn in range(10 * count):
            wait_until(lambda: entries()[0].ready == count or bool(ended_by))
            assert ended_by == []
            assert ask(first.address) == b"%d" % (turn % count)
        for listener in listeners:
            listener.close()
        for worker in workers:
            wait_until(lambda worker=worker: not worker.is_alive())  # type: ignore[misc]  # its own
            worker.join()
    assert ended_by == [errno.EBADF] * count


def test_a_thread_that_does_not_turn_is_passed_over() -> None:
    """Its connection is taken back, and it has its turn when it is back."""
    with threads(2) as (first, started):
        with blocked(started[0].thread.hub):
            clients = [connect(first.address) for _ in range(2)]
            assert receive_all(clients[1]) == b"1"
            wait_until(lambda: entries()[0].ready == 1)
            tick(entry_watchdog(first), 5)
            assert receive_all(clients[0]) == b"1"
            close_all(clients)
        wait_until(lambda: entries()[0].ready == 2)
        assert sorted(ask(first.address) for _ in range(2)) == [b"0", b"1"]


@pytest.mark.parametrize("error", [GreenletExit(), TimeoutError("timed out")])
def test_what_is_on_its_way_to_a_waiter_that_is_gone_is_the_next_ones(
    error: BaseException,
) -> None:
    """Killed or timed out: the connection is passed on, and served once."""
    with threads(2) as (first, started):
        inside, go_on = threading.Event(), threading.Event()
        gone = started[0]

        def block_and_go() -> None:
            inside.set()
            assert go_on.wait(10)
            gone.greenlet.throw(error)

        gone.thread.send(block_and_go)
        assert inside.wait(10)
        client = connect(first.address)
        (inbox,) = (
            each.inbox
            for each in first.entry.turns.dispatchers.values()
            if each.thread == gone.thread.ident
        )
        wait_until(lambda: len(inbox) == 1)
        go_on.set()
        assert receive_all(client) == b"1"
        client.close()
        wait_until(lambda: gone.greenlet.dead)
        assert gone.served == [1]


def test_a_connection_whose_accept_was_killed_waits_for_the_next_accept() -> None:
    """It is the next accept's, in any thread, also of one that doesn't wait."""
    for is_waiting in (True, False):
        with threads(1) as (first, (only,)):
            inside, go_on = threading.Event(), threading.Event()

            def block_and_go(
                inside: threading.Event = inside,
                go_on: threading.Event = go_on,
                only: Thread = only,
            ) -> None:
                inside.set()
                assert go_on.wait(10)
                only.greenlet.throw(GreenletExit())

            # A second hub, so that there is a watchdog which accepts.
            other = gevent.spawn(first.accept)
            let_hub_turn()
            other.kill()
            only.thread.send(block_and_go)
            assert inside.wait(10)
            client = connect(first.address)
            waiting = first.entry.turns.waiting
            (inbox,) = (
                each.inbox
                for each in first.entry.turns.dispatchers.values()
                if each.thread == only.thread.ident
            )
            wait_until(partial(has_one, inbox))
            go_on.set()
            wait_until(partial(has_one, waiting))
            if not is_waiting:
                first.settimeout(0)
            connection, peer = first.accept()
            assert peer == client.getsockname()
            close_all([connection, client])


def test_a_thread_that_ends_leaves_what_was_on_its_way_to_others() -> None:
    """Its hub is destroyed with a connection in its inbox: the other thread serves that."""
    with threads(2) as (first, started):
        gone = started[0]
        with blocked(gone.thread.hub):
            client = connect(first.address)
            (inbox,) = (
                each.inbox
                for each in first.entry.turns.dispatchers.values()
                if each.thread == gone.thread.ident
            )
            wait_until(lambda: len(inbox) == 1)
            gone.listener.close()
        assert receive_all(client) == b"1"
        client.close()


def test_a_server_accepts_for_plain_listeners_of_other_threads() -> None:
    """They are in one ring with its clones, and their turns are exact."""
    served: list[int] = []

    def handle(sock: Any, _peer: Any) -> None:
        served.append(10 + int(glb.current_clone() or 0))
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle, clones=2, reuse_port=True, patience=NEVER) as server:
        server.start()
        with glb.bind(server.address, reuse_port=True) as first:
            started = [Thread(first, number, served) for number in range(2)]
            for each in started:
                each.start()
            assert leader(server) is workers_of(server)[0].dispatcher
            for _ in range(20):
                wait_until(lambda: entries()[0].ready == 4)
                ask(server.address)
            for each in started:
                each.end()
    assert served == [10, 11, 0, 1] * 5


def test_there_is_no_watchdog_for_one_hub() -> None:
    """One server, or listeners of one thread: no thread but this one."""
    count = threading.active_count()
    with StreamServer(LOCAL, lambda sock, _: sock.sendall(b"ok"), reuse_port=True) as server:
        server.start()
        with glb.bind(server.address, reuse_port=True) as listener:
            greenlet = gevent.spawn(listener.accept)
            ask(server.address)
            assert listener.entry.turns.watchdog is None
            assert threading.active_count() == count
            greenlet.kill()


def test_without_room_for_a_watchdog_an_accept_fails_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error is the accept's in the second hub; the first one goes on."""

    def refuse(*_: object) -> Any:
        raise RuntimeError("can't start new thread")

    with glb.bind(LOCAL, reuse_port=True) as first:
        greenlet = gevent.spawn(first.accept)
        let_hub_turn()
        thread = HubThread("glb test").start()
        monkeypatch.setattr(Watchdog, "start", refuse)
        failures: list[str] = []

        def accept() -> None:
            try:
                first.accept()
            except RuntimeError as error:
                failures.append(str(error))

        waiting: Callable[[], Any] = thread.call(lambda: gevent.spawn(accept)).ready
        wait_until(waiting)
        assert failures == ["can't start new thread"]
        assert len(first.entry.turns.dispatchers) == 1
        with connect(first.address):
            connection, _ = greenlet.get()
            connection.close()
        thread.end()
        assert thread.wait(None)
    assert not [*REGISTRY]
