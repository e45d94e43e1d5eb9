"""Seats: waiting, polling and asking for a clone's connections, each exact, alone and mixed."""

from __future__ import annotations

import errno
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

import glb
from glb import polls
from glb.descriptor import Descriptor
from glb.listener import Listener
from glb.registry import REGISTRY
MOST_REFUSALS = 2

from .adopting import ANY, accept_now, errno_of, queued
from .helpers import ask, close_all, connect, let_hub_turn, turns, wait_until
from .test_listener import in_child, wait_for_child

Serve = Callable[[Listener, bytes], None]


@pytest.fixture
def clones() -> Iterator[list[Listener]]:
    """Four clones of a new address."""
    first = glb.bind_load_balanced(ANY)
    every = [first, *(glb.bind_load_balanced(first.address) for _ in range(3))]
    yield every
    close_all(every)


@pytest.fixture
def running() -> Iterator[list[gevent.Greenlet[..., Any]]]:
    """Greenlets that are killed after the test."""
    greenlets: list[gevent.Greenlet[..., Any]] = []
    yield greenlets
    gevent.killall(greenlets)
    greenlets.clear()  # what killed them has a traceback, and that has their bells
    let_hub_turn()


def reply(clone: Listener, text: bytes) -> None:
    conn, _ = clone.accept()
    with conn:
        conn.sendall(text)


def wait_and_serve(clone: Listener, text: bytes) -> None:
    while True:
        reply(clone, text)


def poll_and_serve(clone: Listener, text: bytes) -> None:
    while True:
        assert polls.select([clone], [], [])[0] == [clone]
        assert len(clone._sock.seats._pocket) == 1
        reply(clone, text)


def start(
    running: list[gevent.Greenlet[..., Any]], call: Callable[..., Any], clone: Listener, *args: Any
) -> gevent.Greenlet[..., Any]:
    """Spawn *call*, which waits for a turn of *clone*, and let it come to that."""
    before = clone.entry.turns.ready
    greenlet = gevent.spawn(call, clone, *args)
    running.append(greenlet)
    wait_until(lambda: greenlet.ready() or clone.entry.turns.ready > before)
    return greenlet


def poll(clone: Listener, timeout: float | None = None) -> bool:
    """Tell whether *clone* is readable."""
    return bool(polls.select([clone], [], [], timeout)[0])


# -- each alone, and mixed --------------------------------------------------------------------


@pytest.mark.parametrize(
    "ways",
    [
        [wait_and_serve] * 4,
        [poll_and_serve] * 4,
        [wait_and_serve, poll_and_serve] * 2,
        [poll_and_serve, poll_and_serve, wait_and_serve, wait_and_serve],
    ],
    ids=["wait", "poll", "each in turn", "two and two"],
)
def test_who_waits_and_who_polls_take_exact_turns(
    ways: list[Serve], clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """Whichever way a clone's connections are wanted, the order is 0, 1, 2, 3, 0, ..."""
    for index, (way, clone) in enumerate(zip(ways, clones, strict=True)):
        start(running, way, clone, b"%d" % index)
    assert [int(ask(clones[0].address)) for _ in range(21)] == turns(4, 21)
    assert REGISTRY.entries()[0].accepted == 21


@pytest.mark.parametrize("is_polling", [False, True])
def test_turns_are_exact_when_all_clients_come_at_once(
    is_polling: bool, clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """A queue that is full of clients is dealt out in turn too.

    A poller that has been told is ready again when it polls again. In which order the loop lets
    them is its own affair: so each has one of each four.
    """
    served: dict[Any, int] = {}

    def serve(clone: Listener, index: int) -> None:
        while True:
            if is_polling:
                polls.select([clone], [], [])
            conn, peer = clone.accept()
            served[peer] = index
            conn.close()

    for index, clone in enumerate(clones):
        start(running, serve, clone, index)
    clients = [queued(clones[0]) for _ in range(20)]
    order = [each.getsockname() for each in clients]
    wait_until(lambda: len(served) == 20)
    close_all(clients)
    found = [served[client] for client in order]
    if is_polling:
        found = [clone for start in range(0, 20, 4) for clone in sorted(found[start : start + 4])]
    assert found == turns(4, 20)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
@pytest.mark.parametrize("way", [accept_now, lambda clone: poll(clone, 0) and accept_now(clone)])
def test_who_asks_takes_exact_turns(
    way: Callable[[Listener], bool], order: list[int], clones: list[Listener]
) -> None:
    """In whatever order they ask: first come is first served, once for each connection."""
    assert [way(clone) for clone in clones] == [False] * 4  # they stand in line now
    served = []
    for _ in range(9):
        with queued(clones[0]):
            served += [index for index in order if way(clones[index])]
    assert served == turns(4, 9)
    assert REGISTRY.entries()[0].accepted == 9


@pytest.mark.parametrize("way", [wait_and_serve, poll_and_serve])
def test_who_asks_goes_behind_who_waits(
    way: Serve, clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """A connection on its way to who waits, or polls, is not for who asks at that moment."""
    start(running, way, clones[0], b"mine")
    client = queued(clones[0])
    assert [accept_now(clone) for clone in clones[1:]] == [False] * 3
    assert [poll(clone, 0) for clone in clones[2:]] == [False] * 2
    with client:
        client.settimeout(10)
        wait_until(lambda: clones[0].entry.turns.accepted == 1)
        let_hub_turn()
        assert client.recv(10) == b"mine"


def test_waiting_polling_and_asking_are_exact_among_each_other(
    clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """Two who wait and poll share all; when they have stopped, the two who ask do."""
    for index, way in enumerate((wait_and_serve, poll_and_serve)):
        start(running, way, clones[index], b"%d" % index)
    served = []
    for _ in range(4):
        served.append(int(ask(clones[0].address)))
        assert [accept_now(clone) for clone in clones[2:]] == [False] * 2
    gevent.killall(running)
    let_hub_turn()
    assert [accept_now(clone) for clone in clones[2:]] == [False] * 2  # they stand in line now
    for _ in range(4):
        with queued(clones[0]):
            served += [index for index in (3, 2) if accept_now(clones[index])]
    assert served == [0, 1, 0, 1, 2, 3, 2, 3]
    assert REGISTRY.entries()[0].accepted == 8


def test_greenlets_that_wait_on_one_clone_share_its_turns(
    clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """Longest waiting first, one for each turn of the clone."""
    start(running, reply, clones[0], b"first")
    running.append(gevent.spawn(reply, clones[0], b"second"))
    start(running, reply, clones[1], b"other")
    assert [ask(clones[0].address) for _ in range(3)] == [b"first", b"other", b"second"]


def test_a_clone_is_told_of_one_connection_at_a_time(
    clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """Who has been told, and hasn't accepted yet, is passed over until it has."""
    released = Event()

    def serve(clone: Listener, text: bytes) -> None:
        while poll(clone):
            if clone is clones[0]:
                released.wait()
            reply(clone, text)

    for index, clone in enumerate(clones[:2]):
        start(running, serve, clone, b"%d" % index)
    with connect(clones[0].address) as kept:
        wait_until(lambda: len(clones[0]._sock.seats._pocket) == 1)
        assert [ask(clones[0].address) for _ in range(3)] == [b"1"] * 3
        assert len(clones[0]._sock.seats._pocket) == 1
        released.set()
        assert kept.recv(10) == b"0"
    # The other has waited longer by now.
    assert [ask(clones[0].address) for _ in range(4)] == [b"1", b"0", b"1", b"0"]


# -- who stops --------------------------------------------------------------------------------


def accept_within(clone: Listener, timeout: float | None) -> bytes:
    """Accept and reply, or return nothing when *timeout* is over."""
    clone.settimeout(timeout)
    try:
        conn, _ = clone.accept()
    except TimeoutError:
        return b""
    with conn:
        conn.sendall(b"0")
    return b"0"


def poll_within(clone: Listener, timeout: float | None) -> bytes:
    return accept_within(clone, None) if poll(clone, timeout) else b""


@pytest.mark.parametrize("way", [accept_within, poll_within])
@pytest.mark.parametrize(
    ("is_away", "expected"), [(False, [b"0", b"1"]), (True, [b"1", b"0"])], ids=["back", "away"]
)
def test_a_place_is_kept_for_who_is_back_at_once(
    way: Callable[[Listener, float | None], bytes],
    is_away: bool,
    expected: list[bytes],
    clones: list[Listener],
    running: list[gevent.Greenlet[..., Any]],
) -> None:
    """Time over and waiting again is no absence; with a turn of the hub between, it is one."""
    ready: list[int] = []
    is_back = Event()

    def serve(clone: Listener) -> None:
        assert way(clone, 0.01) == b""
        if is_away:
            let_hub_turn()
        ready.append(clone.entry.turns.ready)
        is_back.set()
        way(clone, None)

    start(running, serve, clones[0])
    start(running, reply, clones[1], b"1")
    is_back.wait()
    let_hub_turn()
    assert ready == [1 if is_away else 2]
    assert [ask(clones[0].address) for _ in range(2)] == expected


@pytest.mark.parametrize("way", [Listener.accept, poll])
def test_who_is_killed_leaves_its_place(
    way: Callable[[Listener], object],
    clones: list[Listener],
    running: list[gevent.Greenlet[..., Any]],
) -> None:
    """A poller, or who waits, that ends in any way is not ready any more."""
    greenlet = start(running, way, clones[0])
    start(running, reply, clones[1], b"1")
    greenlet.kill()
    let_hub_turn()
    assert clones[0].entry.turns.ready == 1
    assert ask(clones[0].address) == b"1"


def test_who_stops_asking_is_passed_over(clones: list[Listener]) -> None:
    """After exactly `MOST_REFUSALS` refusals, with a connection there, the next one gets it."""
    first, second = clones[:2]
    assert not accept_now(first)
    assert [accept_now(second) for _ in range(10)] == [False] * 10  # nothing is there yet
    with queued(first):
        asked = [accept_now(second) for _ in range(MOST_REFUSALS + 1)]
    assert asked == [False] * MOST_REFUSALS + [True]
    with queued(first):
        assert accept_now(second)


@pytest.mark.parametrize("leave", [Listener.close, lambda clone: clone.shutdown(socket.SHUT_RD)])
def test_who_closes_is_not_waited_for_among_who_asks(
    leave: Callable[[Listener], None], clones: list[Listener]
) -> None:
    """The next who asks gets the connection at once."""
    assert [accept_now(clone) for clone in clones] == [False] * 4
    leave(clones[0])
    with queued(clones[1]):
        assert accept_now(clones[1])


# -- the pocket -------------------------------------------------------------------------------


def drop(listeners: list[Listener]) -> None:
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031  # either may drop it
        del listeners[0]
        gc.collect()


LEAVES = {
    "close": lambda listeners: listeners[0].close(),
    "shutdown": lambda listeners: listeners[0].shutdown(socket.SHUT_RDWR),
    "detach": lambda listeners: os.close(listeners[0].detach()),
    "collection": drop,
}


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize("way", ["wait", "poll", "ask"])
def test_a_pockets_connection_goes_to_the_next_clone(way: str, leave: Any) -> None:
    """Told of, and not accepted: no client is lost with the clone, and none counted twice."""
    first = glb.bind_load_balanced(ANY)
    other = glb.bind_load_balanced(first.address)
    listeners = [first]
    del first
    try:
        gevent.spawn(poll, listeners[0])
        let_hub_turn()
        with connect(other.address) as client:
            wait_until(lambda: len(listeners[0]._sock.seats._pocket) == 1)
            let_hub_turn()
            leave(listeners)
            let_hub_turn()
            assert other.entry.turns.accepted == 0
            if way == "poll":
                assert poll(other)
            other.settimeout(0 if way == "ask" else None)
            conn, peer = other.accept()
            with conn:
                assert peer == client.getsockname()
                conn.sendall(b"kept")
                assert client.recv(10) == b"kept"
        assert other.entry.turns.accepted == 1
    finally:
        close_all([*listeners, other])


def test_the_last_clone_takes_its_pocket_with_it() -> None:
    """There is nobody else: the client is told, as by a kernel socket that closes."""
    with glb.bind_load_balanced(ANY) as clone:
        greenlet = gevent.spawn(poll, clone)
        let_hub_turn()
        client = connect(clone.address)
        assert greenlet.get()
    with client:
        assert client.recv(1) == b""


# -- errors -----------------------------------------------------------------------------------


def test_an_error_of_accept_is_told_to_who_polls(
    clones: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is woken, and its accept raises what the kernel said; the other clones go on."""
    broken = OSError(errno.EINVAL, "broken")

    def take(self: Descriptor) -> Any:
        if self is clones[0]._sock:
            raise broken
        return real(self)

    real = Descriptor.take
    monkeypatch.setattr(Descriptor, "take", take)
    greenlet = gevent.spawn(poll, clones[0])
    let_hub_turn()
    with connect(clones[0].address) as client:
        assert greenlet.get()
        with pytest.raises(OSError, match="broken") as caught:
            clones[0].accept()
        assert caught.value is broken
        conn, peer = clones[1].accept()
        assert peer == client.getsockname()
        conn.close()


def test_out_of_descriptors_a_poller_is_told_later(
    clones: list[Listener], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client stays in the accept queue until there is room, and nobody else is told."""
    failures = [OSError(errno.EMFILE, "too many"), OSError(errno.EMFILE, "too many")]

    def take(self: Descriptor) -> Any:
        if failures:
            raise failures.pop()
        return real(self)

    real = Descriptor.take
    monkeypatch.setattr(Descriptor, "take", take)
    told: list[int] = []

    def serve(clone: Listener, index: int) -> None:
        poll(clone)
        told.append(index)

    greenlets = [gevent.spawn(serve, clone, index) for index, clone in enumerate(clones[:2])]
    let_hub_turn()
    with caplog.at_level(logging.CRITICAL, "glb"), connect(clones[0].address):
        wait_until(lambda: bool(told))
        let_hub_turn()
        assert (told, failures) == ([0], [])
        clones[0].accept()[0].close()
    gevent.killall(greenlets)


def test_a_poll_that_cannot_have_a_bell_leaves_nothing(
    clones: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE is the poller's; the clone isn't ready, and can be polled again."""

    def fail() -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("glb.sockets._open_bell", fail)
        with pytest.raises(OSError, match="Too many") as caught:
            poll(clones[0])
    assert errno_of(caught.value) == "EMFILE"
    assert clones[0].entry.turns.ready == 0
    assert not poll(clones[0], 0.001)


# -- threads, and forks -----------------------------------------------------------------------


def test_a_poller_in_another_thread_takes_turns_with_this_one(
    clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """Each thread has a hub of its own, and the ring is one."""
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            for _ in range(3):
                poll_and_reply(clones[1])
        except BaseException as error:
            failed.append(error)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    def poll_and_reply(clone: Listener) -> None:
        assert poll(clone)
        reply(clone, b"1")

    start(running, wait_and_serve, clones[0], b"0")
    thread = threading.Thread(target=serve)
    thread.start()
    order = []
    for _ in range(3):
        wait_until(lambda: clones[0].entry.turns.ready == 2 or bool(failed))
        order.append(ask(clones[0].address))
        wait_until(lambda: clones[0].entry.turns.ready == 2 or bool(failed))
        order.append(ask(clones[0].address))
    wait_until(lambda: not thread.is_alive())
    thread.join()
    assert failed == []
    assert order == [b"0", b"1"] * 3


def test_a_poller_in_another_thread_is_told_when_the_clone_closes() -> None:
    """It wakes, whoever closes, and accepts nothing any more."""
    clone = glb.bind_load_balanced(ANY)
    told: list[Any] = []

    def look() -> None:
        try:
            told.append(poll(clone))
            clone.accept()
        except OSError as error:
            told.append(error.errno)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=look)
    thread.start()
    wait_until(lambda: clone.entry.turns.ready == 1 or bool(told))
    clone.close()
    wait_until(lambda: not thread.is_alive())
    thread.join()
    assert told == [True, errno.EBADF]


def test_a_forked_child_has_an_empty_pocket_and_a_bell_of_its_own() -> None:
    """What the parent was told of is the parent's; what the child rings, only the child hears."""
    clone = glb.bind_load_balanced(ANY)
    with connect(clone.address) as client:
        assert poll(clone)
        assert len(clone._sock.seats._pocket) == 1

        def child() -> None:
            assert not poll(clone, 0)
            with connect(clone.address), connect(clone.address) as second:
                assert poll(clone)
                clone.accept()[0].close()
                conn, peer = clone.accept()
                assert peer == second.getsockname()
                conn.close()
            assert not poll(clone, 0)
            clone.close()

        wait_for_child(in_child(child))
        assert poll(clone, 0)
        conn, peer = clone.accept()
        with conn:
            assert peer == client.getsockname()
            conn.sendall(b"mine")
            assert client.recv(10) == b"mine"
        assert not poll(clone, 0)
    clone.close()
    let_hub_turn()
