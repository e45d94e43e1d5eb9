"""Accept waiters and readiness: accepting and polling, each exact, alone and mixed."""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

import glb
from glb.accept import readiness
from glb.accept.listener import Listener
from glb.accept.readiness import Readiness
from glb.accept.readiness_event import ReadinessEvent, ReadinessWatcher
from glb.accept.registry import REGISTRY
from glb.monkey import selectors as polls

from ..conftest import open_descriptors
from ..net.test_sockets import descriptor_limit
from ..support.adopting import ANY, accept_now, errno_of, opened, queued, sockets_patched
from ..support.helpers import ask, close_all, connect, let_hub_turn, turns, wait_until
from .test_registry import Child

Serve = Callable[[Any, bytes], None]


@pytest.fixture
def clones() -> Iterator[list[Listener]]:
    """Four clones of a new address."""
    first = glb.bind_load_balanced(ANY)
    every = [first, *(glb.bind_load_balanced(first.address) for _ in range(3))]
    yield every
    close_all(every)


@pytest.fixture
def programs() -> Iterator[list[Any]]:
    """Four clones of a program's own: these stand in line when they ask."""
    with sockets_patched():
        first = opened()
        every = [first, *(opened(first.getsockname()) for _ in range(3))]
        yield every
        close_all(every)
        let_hub_turn()


@pytest.fixture
def running() -> Iterator[list[gevent.Greenlet[..., Any]]]:
    """Greenlets that are killed after the test."""
    greenlets: list[gevent.Greenlet[..., Any]] = []
    yield greenlets
    gevent.killall(greenlets)
    greenlets.clear()  # what killed them has a traceback, and that has their events
    let_hub_turn()


def readiness_of(clone: Any) -> Readiness:
    found: Readiness = clone._sock.readiness
    return found


def reply(clone: Any, text: bytes) -> None:
    conn, _ = clone.accept()
    with conn:
        conn.sendall(text)


def wait_and_serve(clone: Any, text: bytes) -> None:
    while True:
        reply(clone, text)


def poll_and_serve(clone: Any, text: bytes) -> None:
    while True:
        assert polls.select([clone], [], [])[0] == [clone]
        assert len(readiness_of(clone).pending) == 1
        reply(clone, text)


def ask_and_serve(clone: Any, text: bytes) -> None:
    clone.settimeout(0)
    while True:
        try:
            reply(clone, text)
        except BlockingIOError:
            gevent.sleep(0.001)


def look_and_serve(clone: Any, text: bytes) -> None:
    while True:
        if poll(clone, 0):
            reply(clone, text)
        gevent.sleep(0.001)


def start(
    running: list[gevent.Greenlet[..., Any]], call: Callable[..., Any], clone: Any, *args: Any
) -> gevent.Greenlet[..., Any]:
    """Spawn *call*, which waits for a turn of *clone*, and let it come to that."""
    turns = readiness_of(clone).entry.turns
    before = turns.ready
    greenlet = gevent.spawn(call, clone, *args)
    running.append(greenlet)
    wait_until(lambda: greenlet.ready() or turns.ready > before)
    return greenlet


def poll(clone: Any, timeout: float | None = None) -> bool:
    """Return whether *clone* is readable."""
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
def test_waiting_and_polling_clones_take_exact_turns(
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

    A poller that has got one is ready again when it polls again. The loop chooses the order
    of that, so each has one of each four.
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


WAYS = {
    "ask": [ask_and_serve] * 4,
    "look": [look_and_serve] * 4,
    "all": [wait_and_serve, poll_and_serve, ask_and_serve, look_and_serve],
    "all, askers first": [ask_and_serve, look_and_serve, poll_and_serve, wait_and_serve],
    "wait or ask": [wait_and_serve, ask_and_serve] * 2,
}


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
def test_waiting_polling_and_asking_are_exact_among_each_other(
    ways: list[Serve], programs: list[Any], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """A program that polls on stands in line as one that waits, from the first connection on."""
    for index, (way, clone) in enumerate(zip(ways, programs, strict=True)):
        start(running, way, clone, b"%d" % index)
    address = programs[0].getsockname()
    assert [int(ask(address)) for _ in range(21)] == turns(4, 21)
    assert REGISTRY.entries()[0].accepted == 21


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
@pytest.mark.parametrize("way", [accept_now, lambda clone: poll(clone, 0) and accept_now(clone)])
def test_programs_that_poll_without_waiting_take_exact_turns(
    way: Callable[[Any], bool], order: list[int], programs: list[Any]
) -> None:
    """In whatever order they poll: first come is first served, once for each connection."""
    assert [way(clone) for clone in programs] == [False] * 4  # they stand in line now
    served = []
    for _ in range(9):
        with queued(programs[0]):
            served += [index for index in order if way(programs[index])]
    assert served == turns(4, 9)
    assert REGISTRY.entries()[0].accepted == 9


def test_a_connection_stays_pending_for_the_clone_that_has_the_turn(programs: list[Any]) -> None:
    """A poll meanwhile leaves it pending for the clone whose turn it is, and gets none."""
    assert [accept_now(clone) for clone in programs[:2]] == [False] * 2
    with queued(programs[0]):
        assert not accept_now(programs[1])
        assert [len(readiness_of(clone).pending) for clone in programs] == [1, 0, 0, 0]
        assert accept_now(programs[0])


def test_a_listener_asks_without_standing_in_line(clones: list[Listener]) -> None:
    """It takes what is there at that moment, and keeps nothing from the others."""
    for asking in (clones[0], clones[2], clones[0]):
        assert [accept_now(clone) for clone in clones] == [False] * 4
        assert clones[0].entry.turns.ready == 0
        with queued(clones[0]):
            assert [accept_now(asking), accept_now(clones[1])] == [True, False]


def test_a_question_has_the_place_of_the_poll_before_it(
    clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """It goes before a poller that came later, once: its turn sends it to the end of the line."""
    first, second = clones[:2]
    assert not poll(first, 0.001)
    start(running, poll_and_serve, second, b"1")
    with queued(first):
        assert accept_now(first)
    with queued(first) as client:
        assert not accept_now(first)
        wait_until(lambda: first.entry.turns.accepted == 2)
        let_hub_turn()
        assert client.recv(1) == b"1"


def test_a_question_that_finds_a_connection_is_a_turn(clones: list[Listener]) -> None:
    """Clones that were polled apart: the one that asks goes to the end, behind one passed over."""
    assert [poll(clone, 0.001) for clone in clones] == [False] * 4
    with queued(clones[0]):
        assert accept_now(clones[1])
    order = []
    for _ in range(5):
        with queued(clones[0]):
            (told,) = polls.select(clones, [], [], 0)[0]
            assert accept_now(told)
        order.append(clones.index(told))
    assert order == [2, 3, 0, 1, 2]


def test_a_clone_polled_with_time_is_ready_only_during_the_poll(programs: list[Any]) -> None:
    """An accept that would block, as after each poll, isn't a wish for the next connection."""
    first, second = programs[:2]
    assert not poll(first, 0.001)
    assert [accept_now(first), accept_now(second)] == [False] * 2
    assert readiness_of(first).entry.turns.ready == 1
    with queued(first):
        assert accept_now(second)
    with queued(first):
        assert accept_now(second)


@pytest.mark.parametrize("way", [wait_and_serve, poll_and_serve])
def test_a_poll_without_waiting_goes_behind_a_waiting_clone(
    way: Serve, clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """A connection on its way to a clone that waits, or polls, is not for another's poll then."""
    start(running, way, clones[0], b"mine")
    client = queued(clones[0])
    assert [accept_now(clone) for clone in clones[1:]] == [False] * 3
    assert [poll(clone, 0) for clone in clones[2:]] == [False] * 2
    with client:
        client.settimeout(10)
        wait_until(lambda: clones[0].entry.turns.accepted == 1)
        let_hub_turn()
        assert client.recv(10) == b"mine"


def test_greenlets_that_wait_on_one_clone_share_its_turns(
    clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """Longest waiting first, one for each turn of the clone."""
    start(running, reply, clones[0], b"first")
    running.append(gevent.spawn(reply, clones[0], b"second"))
    start(running, reply, clones[1], b"other")
    assert [ask(clones[0].address) for _ in range(3)] == [b"first", b"other", b"second"]


def test_a_poller_gets_one_connection_at_a_time(
    clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """A clone that has got one, and hasn't accepted yet, is passed over until it has."""
    released = Event()

    def serve(clone: Listener, text: bytes) -> None:
        while poll(clone):
            if clone is clones[0]:
                released.wait()
            reply(clone, text)

    for index, clone in enumerate(clones[:2]):
        start(running, serve, clone, b"%d" % index)
    with connect(clones[0].address) as kept:
        wait_until(lambda: len(clones[0]._sock.readiness.pending) == 1)
        assert [ask(clones[0].address) for _ in range(3)] == [b"1"] * 3
        assert len(clones[0]._sock.readiness.pending) == 1
        released.set()
        assert kept.recv(10) == b"0"
    # The other has waited longer by now.
    assert [ask(clones[0].address) for _ in range(4)] == [b"1", b"0", b"1", b"0"]


# -- clones that stop -------------------------------------------------------------------------


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


@pytest.mark.parametrize("is_passed_over", [False, True], ids=["kept", "passed over"])
@pytest.mark.parametrize("way", [accept_within, poll_within])
def test_a_place_is_kept_unless_it_was_passed_over(
    way: Callable[[Listener, float | None], bytes],
    is_passed_over: bool,
    clones: list[Listener],
    running: list[gevent.Greenlet[..., Any]],
) -> None:
    """However long a poller that was out of time is away: what counts is the turns meanwhile."""
    is_away, comes_back = Event(), Event()

    def serve(clone: Listener) -> None:
        assert way(clone, 0.01) == b""
        is_away.set()
        comes_back.wait()
        way(clone, None)

    address, ring = clones[0].address, clones[0].entry.turns
    running.append(gevent.spawn(serve, clones[0]))
    # Its time may be over before these have come.
    running += [gevent.spawn(reply, clones[index], b"%d" % index) for index in (1, 2)]
    is_away.wait()
    let_hub_turn()
    assert ring.ready == 2
    order = [ask(address)] if is_passed_over else []
    comes_back.set()
    wait_until(lambda: ring.ready == 3 - is_passed_over)
    order += [ask(address) for _ in range(3 - is_passed_over)]
    assert order == ([b"1", b"2", b"0"] if is_passed_over else [b"0", b"1", b"2"])


def test_places_are_kept_by_many_loops_with_time_limits(
    clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """As of `socketserver`'s polls: whichever is away for a moment, turns are exact."""
    times = [0] * 4

    def serve(clone: Listener, index: int) -> None:
        while True:
            if poll(clone, 0.001 * (1 + index)):
                reply(clone, b"%d" % index)
            times[index] += 1

    for index, clone in enumerate(clones):
        start(running, serve, clone, index)
    order = []
    for count in range(12):
        wait_until(lambda: min(times) > 3 * count)  # noqa: B023  # it is called here and now
        wait_until(lambda: clones[0].entry.turns.ready == 4)
        order.append(int(ask(clones[0].address)))
    assert order == turns(4, 12)


@pytest.mark.parametrize("way", [Listener.accept, poll])
def test_a_killed_accept_or_poll_leaves_its_place(
    way: Callable[[Listener], object],
    clones: list[Listener],
    running: list[gevent.Greenlet[..., Any]],
) -> None:
    """A clone whose poll or accept ends in any way is not ready any more."""
    greenlet = start(running, way, clones[0])
    start(running, reply, clones[1], b"1")
    greenlet.kill()
    let_hub_turn()
    assert clones[0].entry.turns.ready == 1
    assert ask(clones[0].address) == b"1"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time at which clones are polled without waiting, in seconds: its first element."""
    now = [1000.0]
    monkeypatch.setattr(readiness, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (0.0, readiness.POLLING_MIN_SECONDS),
        (0.001, readiness.POLLING_MIN_SECONDS),
        (0.1, 0.1 * readiness.POLLING_INTERVALS),
        (0.3, 0.3 * readiness.POLLING_INTERVALS),
        (30.0, readiness.POLLING_MAX_SECONDS),
    ],
)
def test_a_polling_program_is_waited_for_by_its_polling_interval(
    interval: float, expected: float, clock: list[float], programs: list[Any]
) -> None:
    """So many of its own intervals, neither too short for a busy one nor too long for a client."""
    for _ in range(2):
        assert not accept_now(programs[0])
        clock[0] += interval
    assert readiness_of(programs[0])._patience_seconds == pytest.approx(expected)


def test_a_program_that_stops_polling_is_passed_over(
    clock: list[float], programs: list[Any]
) -> None:
    """Its connection is there until then, and the next ones' afterwards; it is out of line."""
    first, second = programs[:2]
    for _ in range(2):
        assert [accept_now(clone) for clone in (first, second)] == [False] * 2
    pending = readiness_of(first).pending
    with queued(first):
        assert not accept_now(second)
        assert len(pending) == 1
        clock[0] += readiness.POLLING_MIN_SECONDS * 0.9
        gevent.sleep(readiness.POLLING_MIN_SECONDS * 1.5)  # it has been looked into meanwhile
        assert len(pending) == 1
        clock[0] += readiness.POLLING_MIN_SECONDS * 0.2
        wait_until(lambda: not pending)
        assert [accept_now(second), accept_now(first)] == [True, False]
    assert readiness_of(first).entry.turns.accepted == 1
    with queued(first):  # it is the second's turn again: the one that came back is behind
        assert [accept_now(first), accept_now(second)] == [False, True]


def test_a_program_that_goes_on_polling_keeps_its_connection(
    clock: list[float], programs: list[Any]
) -> None:
    """Each poll without time finds it, however long it goes on."""
    first, second = programs[:2]
    assert [poll(clone, 0) for clone in (first, second)] == [False] * 2
    with queued(first):
        assert not poll(second, 0)
        for _ in range(3):
            clock[0] += 5
            assert poll(first, 0)
            let_hub_turn()
        assert accept_now(first)


@pytest.mark.parametrize("leave", [socket.socket.close, lambda sock: sock.shutdown(socket.SHUT_RD)])
def test_a_closed_clone_among_polling_ones_is_not_waited_for(
    leave: Callable[[Any], None], programs: list[Any]
) -> None:
    """The next that polls gets the connection at once."""
    assert [accept_now(clone) for clone in programs] == [False] * 4
    leave(programs[0])
    with queued(programs[1]):
        assert accept_now(programs[1])


# -- pending connections ---------------------------------------------------------------------


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
def test_a_pending_connection_goes_to_the_next_clone(way: str, leave: Any) -> None:
    """Polled, and not accepted: no client is lost with the clone, and none counted twice."""
    first = glb.bind_load_balanced(ANY)
    other = glb.bind_load_balanced(first.address)
    listeners = [first]
    del first
    try:
        gevent.spawn(poll, listeners[0])
        let_hub_turn()
        with connect(other.address) as client:
            wait_until(lambda: len(listeners[0]._sock.readiness.pending) == 1)
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


def test_the_last_clone_takes_its_pending_connection_with_it() -> None:
    """There is no other clone: the client sees the end, as of a kernel socket that closes."""
    with glb.bind_load_balanced(ANY) as clone:
        greenlet = gevent.spawn(poll, clone)
        let_hub_turn()
        client = connect(clone.address)
        assert greenlet.get()
    with client:
        assert client.recv(1) == b""


@pytest.mark.parametrize("is_reported", [True, False])
def test_a_connection_stays_with_a_poll_that_returned_and_not_with_a_killed_one(
    is_reported: bool, clones: list[Listener], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """A poll that returned has reported it. One that ended otherwise has not."""
    polled = readiness_of(clones[0])
    seat = polled.begin_poll(is_waiting=True)
    start(running, reply, clones[1], b"1")
    with connect(clones[0].address) as client:
        wait_until(lambda: len(polled.pending) == 1)
        polled.end_poll(seat, is_waiting=True, is_reported=is_reported)
        if is_reported:
            let_hub_turn()
            clones[0].accept()[0].close()
            assert client.recv(10) == b""
        else:
            assert client.recv(10) == b"1"
    assert clones[0].entry.turns.accepted == 1
    assert not poll(clones[0], 0)


# -- shared waiters -----------------------------------------------------------------------------


def test_an_accept_on_a_copy_ends_with_that_copy_alone(
    programs: list[Any], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """Others that have waiters in common with it wait on, and share its turns until the last."""
    clone = programs[0]
    copy = clone.dup()
    assert copy._sock.waiters is clone._sock.waiters
    by_copy = start(running, copy.accept.__func__, copy)
    running.append(gevent.spawn(reply, clone, b"clone"))
    let_hub_turn()
    copy.close()
    with pytest.raises(OSError, match=r"closed|descriptor") as caught:
        by_copy.get()
    assert errno_of(caught.value) == "EBADF"
    assert ask(programs[1].getsockname()) == b"clone"


def test_copies_have_one_turn_one_pending_connection_and_one_event(
    programs: list[Any], running: list[gevent.Greenlet[..., Any]]
) -> None:
    """Both wake, either accepts; the others have a turn each."""
    clone, other = programs[:2]
    with clone.dup() as copy:
        greenlets = [start(running, poll, clone)]
        running.append(gevent.spawn(poll, copy))
        let_hub_turn()
        start(running, reply, other, b"other")
        with connect(clone.getsockname()) as client:
            assert [greenlets[0].get(), running[1].get()] == [True, True]
            clone.close()
            assert poll(copy, 0)
            conn, peer = copy.accept()
            conn.close()
            assert peer == client.getsockname()
        assert ask(other.getsockname()) == b"other"


# -- readiness events ------------------------------------------------------------------------


def watched(
    event: ReadinessEvent, *args: object, pass_events: bool = False
) -> tuple[ReadinessWatcher, list[Any]]:
    """Return a watcher that watches *event*, and its calls."""
    told: list[Any] = []
    watcher = ReadinessWatcher(event, gevent.get_hub())
    watcher.start(lambda *given: told.append(given), *args, pass_events=pass_events)
    return watcher, told


def test_an_event_is_seen_once_a_start() -> None:
    """Setting it twice is once; a watcher that starts then is called again, in the hub's turn."""
    event = ReadinessEvent(REGISTRY.lock)
    watcher, told = watched(event, "a", 1)
    let_hub_turn()
    assert told == []
    for _ in range(2):
        event.change(is_set=True)
    assert told == []  # not before the hub turns
    let_hub_turn()
    assert told == [("a", 1)]
    event.change(is_set=False)
    event.change(is_set=True)
    let_hub_turn()
    assert told == [("a", 1)]
    watcher.start(told.append, "again")
    let_hub_turn()
    assert told == [("a", 1), "again"]


def test_an_event_that_is_set_already_is_seen() -> None:
    """By each watcher that starts; with what a loop's watcher would pass."""
    event = ReadinessEvent(REGISTRY.lock)
    event.change(is_set=True)
    found = [watched(event, 5, pass_events=True)[1], watched(event)[1]]
    let_hub_turn()
    assert found == [[(1, 5)], [()]]  # 1 is the loop's READ


def test_an_event_that_is_cleared_again_is_not_seen() -> None:
    """A greenlet has fetched what there was before the hub turned; the next change is seen."""
    event = ReadinessEvent(REGISTRY.lock)
    _, told = watched(event)
    event.change(is_set=True)
    event.change(is_set=False)
    let_hub_turn()
    assert told == []
    event.change(is_set=True)
    let_hub_turn()
    assert told == [()]


@pytest.mark.parametrize("end", [ReadinessWatcher.stop, ReadinessWatcher.close])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_stopped_watcher_is_not_called(
    end: Callable[[ReadinessWatcher], None], is_late: bool
) -> None:
    """Also if it was set a moment before; twice is harmless, and other watchers are called."""
    event = ReadinessEvent(REGISTRY.lock)
    (watcher, told), (_, others) = watched(event), watched(event)
    if not is_late:
        end(watcher)
    event.change(is_set=True)
    end(watcher)
    end(watcher)
    let_hub_turn()
    assert (told, others) == ([], [()])


def test_the_end_of_an_event_is_seen_once() -> None:
    """By all watchers, set or not; one that goes on at a closed clone isn't called for ever."""
    event = ReadinessEvent(REGISTRY.lock)
    watcher, told = watched(event)
    event.end()
    event.change(is_set=False)
    assert event.is_over
    assert event.is_set
    let_hub_turn()
    assert told == [()]
    watcher.start(told.append, "again")
    let_hub_turn()
    assert told == [()]


def test_an_event_costs_no_descriptor() -> None:
    """Nor does its watcher, which keeps the loop alive until it is called, as gevent's do."""
    hub = gevent.get_hub()
    before = (open_descriptors(), hub.loop.activecnt)
    event = ReadinessEvent(REGISTRY.lock)
    found = [watched(event) for _ in range(10)]
    assert open_descriptors() == before[0]
    event.change(is_set=True)
    let_hub_turn()
    assert [told for _, told in found] == [[()]] * 10
    let_hub_turn()  # libuv closes watchers then
    assert (open_descriptors(), hub.loop.activecnt) == before


def test_an_event_is_seen_in_the_hub_of_its_watcher() -> None:
    """Whichever thread rings it."""
    event = ReadinessEvent(REGISTRY.lock)
    threads: list[int] = []
    watcher = ReadinessWatcher(event, gevent.get_hub())
    watcher.start(lambda: threads.append(threading.get_ident()))

    def ring() -> None:
        with REGISTRY.lock:
            event.change(is_set=True)

    thread = threading.Thread(target=ring)
    thread.start()
    thread.join()
    assert threads == []
    wait_until(lambda: bool(threads))
    assert threads == [threading.get_ident()]


# -- errors -----------------------------------------------------------------------------------


def test_an_error_of_accept_reaches_the_poller(
    clones: list[Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is woken, and its accept raises what the kernel said; the other clones go on."""
    broken = OSError(errno.EINVAL, "broken")

    entry = clones[0].entry

    def accept() -> Any:
        if entry.turns.next_locked() in clones[0]._sock.waiters.hubs:
            raise broken
        return real()

    real = entry.accept
    monkeypatch.setattr(entry, "accept", accept)
    greenlet = gevent.spawn(poll, clones[0])
    let_hub_turn()
    with connect(clones[0].address) as client:
        assert greenlet.get()
        with pytest.raises(OSError, match="broken") as caught:
            clones[0].accept()
        assert (errno_of(caught.value), caught.value.strerror) == ("EINVAL", "broken")
        conn, peer = clones[1].accept()
        assert peer == client.getsockname()
        conn.close()


def test_out_of_descriptors_a_poller_wakes_later(
    clones: list[Listener], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client stays in the accept queue until there is room, and no other poller wakes."""
    failures = [OSError(errno.EMFILE, "too many"), OSError(errno.EMFILE, "too many")]

    def accept() -> Any:
        if failures:
            raise failures.pop()
        return real()

    real = clones[0].entry.accept
    monkeypatch.setattr(clones[0].entry, "accept", accept)
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


def test_polling_needs_no_descriptor(clones: list[Listener]) -> None:
    """Where there is none left, it answers all the same."""
    with descriptor_limit(0):
        assert not poll(clones[0], 0.001)
        assert not poll(clones[0], 0)


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


def test_a_poller_in_another_thread_wakes_when_the_clone_closes() -> None:
    """It wakes, whichever thread closes, and accepts nothing any more."""
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


def test_a_close_wakes_no_hub_that_is_destroyed_meanwhile() -> None:
    """Libuv would crash. The poller's hub goes as it wakes, while the clone closes still."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(200):
            test_a_poller_in_another_thread_wakes_when_the_clone_closes()
    finally:
        sys.setswitchinterval(interval)


def test_a_forked_child_has_no_pending_connection_and_an_event_of_its_own() -> None:
    """The pending connection is the parent's; an event that the child sets wakes only the child."""
    clone = glb.bind_load_balanced(ANY)
    with connect(clone.address) as client:
        assert poll(clone)
        assert len(clone._sock.readiness.pending) == 1

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

        assert Child(child).answer() == "None"
        assert poll(clone, 0)
        conn, peer = clone.accept()
        with conn:
            assert peer == client.getsockname()
            conn.sendall(b"mine")
            assert client.recv(10) == b"mine"
        assert not poll(clone, 0)
    clone.close()
    let_hub_turn()
