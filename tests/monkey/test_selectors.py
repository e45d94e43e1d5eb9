"""Selectors: each way of polling a clone reports a connection on its turn, and no other."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import selectors as native_selectors
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import gevent.server
import pytest
from gevent import select, selectors, socket
from gevent.event import Event
from gevent.select import POLLIN, POLLNVAL, POLLOUT  # type: ignore[attr-defined]  # not in the stubs
from hypothesis import given, settings
from hypothesis import strategies as st

import glb
from glb.accept.registry import REGISTRY

from ..support.adopting import ANY, accept_now, bound, errno_of, opened, queued, sockets_patched
from ..support.examples import examples
from ..support.helpers import ask, close_all, connect, let_hub_turn, turns, wait_until

READ = native_selectors.EVENT_READ
WRITE = native_selectors.EVENT_WRITE
COPIES = 4


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    with sockets_patched():
        yield


def clones_of_a_program() -> list[Any]:
    """Return sockets that listen on one address, as a program opens them."""
    first = opened()
    return [first, *(opened(first.getsockname()) for _ in range(COPIES - 1))]


def listeners() -> list[Any]:
    """Return as many of glb's own."""
    first = glb.bind(ANY, reuse_port=True)
    return [first, *(glb.bind(first.address, reuse_port=True) for _ in range(COPIES - 1))]


@pytest.fixture(params=[clones_of_a_program, listeners])
def clones(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Clones of one address, of either kind."""
    made: list[Any] = request.param()
    yield made
    close_all(made)
    let_hub_turn()


@contextmanager
def polling(*polled: Any) -> Iterator[Any]:
    """Yield a selector that has *polled* registered for reading."""
    with selectors.GeventSelector() as selector:
        for each in polled:
            selector.register(each, READ)
        yield selector


# Each way returns the ready objects, as they were given. A timeout is in seconds.


def by_select(polled: list[Any], timeout: float | None = None) -> list[Any]:
    readable, writable, exceptional = select.select(polled, [], [], timeout)
    assert [*writable, *exceptional] == []
    return [*readable]


def by_poll(polled: list[Any], timeout: float | None = None) -> list[Any]:
    poll = select.poll()
    meant = {}
    for each in polled:
        poll.register(each, POLLIN)
        meant[each if isinstance(each, int) else each.fileno()] = each
    found = poll.poll(None if timeout is None else timeout * 1000)
    assert {flags for _, flags in found} <= {POLLIN}
    return [meant[number] for number, _ in found]


def by_selector(polled: list[Any], timeout: float | None = None) -> list[Any]:
    with polling(*polled) as selector:
        found = selector.select(timeout)
    assert {events for _, events in found} <= {READ}
    return [key.fileobj for key, _ in found]


Way = Callable[..., list[Any]]
WAYS = [by_select, by_poll, by_selector]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


def ready() -> int:
    return REGISTRY.entries()[0].ready


def start(call: Callable[..., Any], *args: Any) -> gevent.Greenlet[..., Any]:
    """Spawn *call*, which polls, and let it come to that."""
    before = ready()
    greenlet = gevent.spawn(call, *args)
    wait_until(lambda: greenlet.ready() or ready() > before)
    return greenlet


def end(greenlets: list[gevent.Greenlet[..., Any]]) -> None:
    gevent.killall(greenlets)
    greenlets.clear()  # what killed them has a traceback, and that has their watchers
    let_hub_turn()


def reply(clone: Any, text: bytes) -> None:
    conn, _ = clone.accept()
    with conn:
        conn.sendall(text)


# -- turns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [lambda each: each, lambda each: each.fileno()])
def test_only_the_clone_whose_turn_it_is_wakes(
    names: Callable[[Any], Any], way: Way, clones: list[Any]
) -> None:
    """One connection wakes one poller, with what it gave: an object or a number."""
    told: list[int] = []

    def look(index: int) -> None:
        polled = names(clones[index])
        assert way([polled]) == [polled]
        told.append(index)

    greenlets = [start(look, index) for index in range(COPIES)]
    clients = []
    for count in range(1, COPIES + 1):
        clients.append(connect(clones[0].getsockname()))
        wait_until(lambda: len(told) == count)  # noqa: B023  # it is called here and now
        let_hub_turn()
        assert told == [*range(count)]
        assert [greenlet.successful() for greenlet in greenlets] == [
            index < count for index in range(COPIES)
        ]
    assert [accept_now(clone) for clone in clones] == [True] * COPIES
    close_all(clients)


def test_loops_that_poll_and_accept_take_exact_turns(way: Way, clones: list[Any]) -> None:
    """As `socketserver` does: it neither spins nor hangs in accept."""
    polls = [0] * COPIES

    def serve(index: int) -> None:
        while True:
            assert way([clones[index]]) == [clones[index]]
            polls[index] += 1
            reply(clones[index], b"%d" % index)

    greenlets = [start(serve, index) for index in range(COPIES)]
    assert [int(ask(clones[0].getsockname())) for _ in range(22)] == turns(COPIES, 22)
    assert polls == [6, 6, 5, 5]
    end(greenlets)


def test_one_poller_of_all_clones_gets_each_in_turn(way: Way, clones: list[Any]) -> None:
    """A single loop over several sockets of one address has exact turns as well."""
    order: list[int] = []

    def serve() -> None:
        while True:
            for clone in way(clones):
                order.append(clones.index(clone))
                reply(clone, b"%d" % order[-1])

    greenlets = [start(serve)]
    address = clones[0].getsockname()
    assert [int(ask(address)) for _ in range(10)] == order == turns(COPIES, 10)
    end(greenlets)


def test_two_ways_of_polling_share_the_turns(clones: list[Any]) -> None:
    """Select, poll and selectors are one ring, with greenlets in accept."""

    def serve(index: int) -> None:
        while True:
            if index < len(WAYS):
                WAYS[index]([clones[index]])
            reply(clones[index], b"%d" % index)

    greenlets = [start(serve, index) for index in range(COPIES)]
    assert [int(ask(clones[0].getsockname())) for _ in range(9)] == turns(COPIES, 9)
    end(greenlets)


def test_a_readable_clone_stays_readable_until_it_accepts(way: Way, clones: list[Any]) -> None:
    """As a kernel socket that stays readable: with time and without."""
    with connect(clones[0].getsockname()):
        for timeout in (None, 10, 0):
            assert way([clones[0]], timeout) == [clones[0]]
        assert [accept_now(clone) for clone in clones] == [True, False, False, False]
    assert REGISTRY.entries()[0].accepted == 1


# -- time -------------------------------------------------------------------------------------


def test_a_poll_whose_time_is_over_returns_nothing(way: Way, clones: list[Any]) -> None:
    """And the clone is not ready any more."""
    assert way(clones, 0.001) == []
    let_hub_turn()
    assert ready() == 0


def asked(way: Way, clone: Any) -> bool:
    """Poll *clone* with no time. A selector finds it in one round, and returns it in the next."""
    if way is not by_selector:
        return bool(way([clone], 0))
    with polling(clone) as selector:
        first = selector.select(0)
        gevent.sleep(0.001)
        return bool(first or selector.select(0))


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no clone is polled too seldom to keep its place."""
    monkeypatch.setattr("glb.accept.readiness.POLLING_MIN_SECONDS", 30)
    monkeypatch.setattr("glb.accept.readiness.POLLING_MAX_SECONDS", 30)


def test_polls_without_time_take_turns(
    way: Way, clones: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polls now and then are served in the order of their first polls."""
    be_patient(monkeypatch)
    assert [asked(way, clone) for clone in clones] == [False] * COPIES
    order = []
    for _ in range(6):
        with queued(clones[0]):
            for index in (3, 0, 1, 2):
                if asked(way, clones[index]):
                    order.append(index)
                    assert accept_now(clones[index])
    assert order == turns(COPIES, 6)


def test_a_poll_without_time_does_not_get_what_others_wait_for(way: Way, clones: list[Any]) -> None:
    """It stands in line behind those that wait already."""
    greenlet = start(reply, clones[0], b"0")
    client = queued(clones[0])
    assert way(clones[1:], 0) == []
    with client:
        greenlet.join()
        client.settimeout(10)
        assert client.recv(1) == b"0"


def test_a_negative_time_is_as_gevent_has_it(clones: list[Any]) -> None:
    """An error of select, for ever in poll, and none at all in a selector."""
    with pytest.raises(ValueError, match="non-negative"):
        select.select([clones[0]], [], [], -1)
    assert by_selector([clones[1]], -1) == []  # it has asked, and stands in line
    greenlet = start(by_poll, [clones[0]], -1)
    assert REGISTRY.entries()[0].ready == 2
    clones[1].close()
    with connect(clones[0].getsockname()):
        assert greenlet.get() == [clones[0]]
        assert accept_now(clones[0])


# -- one loop over all clones -----------------------------------------------------------------


class Loop:
    """A loop over clones that don't block, as the event loops have it.

    Attributes:
        found: By which clone each client was accepted, by the client's address.
    """

    def __init__(self, way: str, clones: list[Any]) -> None:
        self.clones = clones
        self.found: dict[Any, int] = {}
        self._way = way
        self._selector = selectors.GeventSelector()
        #: Always writable.
        self._busy, self._other = socket.socketpair()
        for clone in clones:
            clone.settimeout(0)
            self._selector.register(clone, READ)

    def close(self) -> None:
        self._selector.close()
        self._busy.close()
        self._other.close()

    def poll(self, timeout: float | None, *, is_busy: bool = False) -> list[Any]:
        """Return the clones that are readable, polled beside a ready descriptor if *is_busy*."""
        busy = [self._busy] if is_busy else []
        if self._way == "select":
            readable, writable, _ = select.select(self.clones, busy, [], timeout)
            assert writable in ([], busy)
            return [*readable]
        if self._way == "poll":
            poll = select.poll()
            for each in self.clones:
                poll.register(each, POLLIN)
            for each in busy:
                poll.register(each, POLLOUT)
            told = poll.poll(None if timeout is None else timeout * 1000)
            by_number = {each.fileno(): each for each in self.clones}
            return [by_number[number] for number, _ in told if number in by_number]
        for each in busy:
            self._selector.register(each, WRITE)
        keys = [key for key, _ in self._selector.select(timeout)]
        for each in busy:
            self._selector.unregister(each)
        return [key.fileobj for key in keys if key.fileobj in self.clones]

    def accept(self, clone: Any) -> bool:
        """Accept from *clone*; return True if there was a connection."""
        try:
            conn, peer = clone.accept()
        except BlockingIOError:
            return False
        conn.close()
        assert peer not in self.found, "it was served twice"
        self.found[peer] = self.clones.index(clone)
        return True

    def turn(
        self, timeout: float | None, *, is_busy: bool = False, is_greedy: bool = False
    ) -> None:
        """Poll once, and accept from the ready ones, until nothing is left if *is_greedy*."""
        for clone in self.poll(timeout, is_busy=is_busy):
            assert self.accept(clone), "it was woken for nothing"
            while is_greedy and self.accept(clone):
                pass

    def serve(self, clients: list[Any], timeout: float, **how: bool) -> list[int]:
        """Turn until all *clients* are accepted; return by which clones."""
        peers = [client.getsockname() for client in clients]
        for _ in range(10 * len(clients)):
            if self.found.keys() >= {*peers}:
                break
            self.turn(timeout, **how)
        close_all(clients)
        return [self.found[peer] for peer in peers]


LOOPS = ["select", "poll", "selector"]


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest, clones: list[Any]) -> Iterator[Loop]:
    made = Loop(request.param, clones)
    yield made
    made.close()


@pytest.mark.parametrize("is_greedy", [False, True], ids=["once", "until EAGAIN"])
def test_a_loop_that_waits_now_and_then_takes_exact_turns(
    loop: Loop, is_greedy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll without time takes the place in line of the polls with time before it."""
    be_patient(monkeypatch)
    order = []
    for _ in range(2 * COPIES + 1):
        loop.turn(0.001, is_greedy=is_greedy)
        client = queued(loop.clones[0])
        loop.turn(0, is_greedy=is_greedy)
        order += loop.serve([client], 0.01, is_greedy=is_greedy)
    assert order == turns(COPIES, 2 * COPIES + 1)


@pytest.mark.parametrize("timeout", [0, 0.001, 5])
@pytest.mark.parametrize("is_busy", [False, True], ids=["alone", "beside a ready descriptor"])
def test_a_loop_that_accepts_until_there_is_nothing_more_takes_one_each(
    loop: Loop, timeout: float, is_busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that is full of clients is dealt out exactly, in the order of their coming."""
    be_patient(monkeypatch)
    loop.turn(0.001)
    clients = [queued(loop.clones[0]) for _ in range(5 * COPIES + 1)]
    order = loop.serve(clients, timeout, is_busy=is_busy, is_greedy=True)
    assert order == turns(COPIES, 5 * COPIES + 1)


@pytest.mark.parametrize("timeout", [0, 0.001, None])
def test_a_clone_beside_a_ready_descriptor_is_found_at_once(
    loop: Loop, timeout: float | None
) -> None:
    """By the first poll after the client has come, as by gevent's; and never for nothing."""
    for count in range(2 * COPIES):
        assert loop.poll(timeout, is_busy=True) == []
        with queued(loop.clones[0]):
            (told,) = loop.poll(timeout, is_busy=True)
            assert loop.accept(told)
        assert told is loop.clones[count % COPIES]


def test_a_loop_with_one_clone_left_finds_the_next_at_once(loop: Loop) -> None:
    """A clone that is no longer polled, or closed, or shut down, is not waited for."""
    loop.turn(0.001)
    loop._way = "select"  # of those that are listed
    *others, kept = loop.clones
    others[0].close()
    others[1].shutdown(socket.SHUT_RDWR)
    loop.clones = [kept]
    loop.turn(0.001)
    clients = [queued(kept) for _ in range(3)]
    assert loop.poll(0) == [kept]
    assert [loop.accept(kept) for _ in range(4)] == [True] * 3 + [False]
    close_all(clients)
    loop.clones = [*others, kept]
    for other in others:
        with contextlib.suppress(OSError):
            loop._selector.unregister(other)


def test_a_clone_that_joins_a_loop_goes_before_those_that_had_turns(loop: Loop) -> None:
    """One clone was polled alone and had a turn; then all are polled."""
    loop._way = "select"  # of those that are listed
    every = loop.clones
    loop.clones = every[:1]
    assert loop.serve([queued(every[0])], 5) == [0]
    loop.clones = every
    order = [loop.serve([queued(every[0])], 5)[0] for _ in range(COPIES)]
    assert order == turns(COPIES, COPIES, first=1)


def test_a_clone_whose_mates_are_closed_finds_the_next_at_once(loop: Loop) -> None:
    """They were polled with it a moment ago, and stood before it."""
    loop.turn(0.001)
    *others, last = loop.clones
    others[0].shutdown(socket.SHUT_RDWR)
    close_all(others[1:])
    with queued(last):
        assert loop.accept(last)


def test_a_clone_that_is_asked_and_no_longer_polled_is_given_what_comes(loop: Loop) -> None:
    """At the third question: one between two polls is refused for the mates' sake."""
    loop.turn(0.001)
    last = loop.clones[-1]
    with queued(last):
        assert [loop.accept(last) for _ in range(3)] == [False, False, True]


def test_a_clone_that_waits_after_a_poll_has_no_mates(loop: Loop) -> None:
    """It is not polled any more, and the next connection goes to it."""
    loop.turn(0.001)
    last = loop.clones[-1]
    last.settimeout(10)
    greenlet = start(reply, last, b"mine")
    assert ask(last.getsockname()) == b"mine"
    greenlet.get()
    assert last._sock.readiness._mates == []


def test_a_loop_that_is_away_is_passed_over(loop: Loop) -> None:
    """While it works, another clone has all connections; then turns go on behind that one."""
    other = glb.bind(loop.clones[0].getsockname(), reuse_port=True)
    address = other.address
    loop.turn(0.001)

    def serve() -> None:
        for _ in range(4):
            reply(other, b"other")

    greenlet = start(serve)
    assert [ask(address) for _ in range(3)] == [b"other"] * 3
    wait_until(lambda: ready() == 1)
    clients = [queued(other) for _ in range(COPIES + 2)]
    peers = [client.getsockname() for client in clients]
    while len(loop.found) < COPIES + 1:
        loop.turn(0.001, is_greedy=True)
    assert [loop.found.get(peer) for peer in peers] == [None, *turns(COPIES, COPIES), 0]
    greenlet.get()
    close_all([*clients, other])


def test_a_selector_does_not_report_later_what_was_accepted_meanwhile(clones: list[Any]) -> None:
    """An event that was set between two polls is not seen any more."""
    clone = clones[0]
    with polling(clone) as selector:
        for _ in range(3):  # from then on it stands in line between two polls
            assert selector.select(0) == []
        with queued(clone):
            wait_until(lambda: len(clone._sock.readiness.pending) == 1)
            let_hub_turn()
            assert accept_now(clone)
        for timeout in (0, 0.001):
            assert selector.select(timeout) == []


def test_a_selector_may_lose_a_clone_while_it_selects(clones: list[Any]) -> None:
    """Unregistered by another greenlet: the clone is not reported, and the other is."""
    with polling(*clones[:2]) as selector:
        greenlet = start(selector.select, 5)
        selector.unregister(clones[0])
        clients = [queued(clones[0]) for _ in range(2)]
        assert [key.fileobj for key, _ in greenlet.get()] == [clones[1]]
        close_all(clients)


STEPS: st.SearchStrategy[list[Any]] = st.lists(
    st.one_of(
        st.just("a client comes"),
        st.builds(
            dict,
            timeout=st.sampled_from([0, 0.001, 0.002]),
            is_busy=st.booleans(),
            is_greedy=st.booleans(),
        ),
    ),
    max_size=30,
)


@pytest.mark.parametrize("way", LOOPS)
@given(steps=STEPS)
@settings(max_examples=examples(60), deadline=None, database=None, print_blob=True)
def test_turns_of_one_loop_are_exact_in_any_program(way: str, steps: list[Any]) -> None:
    """However it polls and accepts, the clients' clones are 0, 1, 2, 3, 0, ...; none is lost."""
    loop = Loop(way, clones_of_a_program())
    clients: list[Any] = []
    try:
        for step in steps:
            if step == "a client comes":
                clients.append(queued(loop.clones[0]))
            else:
                loop.turn(**step)
        assert loop.serve(clients, 0.001) == turns(COPIES, len(clients))
        assert REGISTRY.entries()[0].accepted == len(clients)
    finally:
        close_all([*clients, loop, *loop.clones])
        let_hub_turn()


LOOPED = st.lists(
    st.tuples(
        st.sampled_from(LOOPS),
        st.sets(st.integers(0, COPIES - 1), min_size=1),
        st.lists(st.tuples(st.sampled_from([0, 0.001, 0.002]), st.booleans()), min_size=1),
    ),
    min_size=1,
    max_size=3,
)


@given(looped=LOOPED, clients=st.integers(1, 12))
@settings(max_examples=examples(60), deadline=None, database=None, print_blob=True)
def test_several_loops_lose_nothing(looped: list[Any], clients: int) -> None:
    """Whichever clones each polls, and however: every client is served by one, and once."""
    clones = clones_of_a_program()
    loops = [Loop(way, [clones[each] for each in sorted(which)]) for way, which, _ in looped]

    def run(loop: Loop, hows: list[tuple[float, bool]]) -> None:
        for timeout, is_greedy in itertools.cycle(hows):
            for clone in loop.poll(timeout, is_busy=not timeout):
                # Another loop may have it already, that polls the clone too.
                while loop.accept(clone) and is_greedy:
                    pass
            gevent.sleep(0)

    greenlets = [
        gevent.spawn(run, loop, how) for loop, (*_, how) in zip(loops, looped, strict=True)
    ]
    connected = [connect(clones[0].getsockname()) for _ in range(clients)]
    peers = sorted(client.getsockname() for client in connected)
    try:
        wait_until(
            lambda: (
                sum(len(loop.found) for loop in loops) == clients
                or any(greenlet.ready() for greenlet in greenlets)
            )
        )
        assert sorted(peer for loop in loops for peer in loop.found) == peers
    finally:
        end(greenlets)
        close_all([*connected, *loops, *clones])
        let_hub_turn()


# -- the end ----------------------------------------------------------------------------------


def test_a_clone_that_closes_wakes_its_pollers(way: Way, clones: list[Any]) -> None:
    """Its accept raises EBADF then. The others poll on."""
    greenlet, other = start(way, [clones[0]]), start(way, [clones[1]])
    clones[0].close()
    assert greenlet.get() == [clones[0]] if way is not by_poll else len(greenlet.get()) == 1
    with pytest.raises(OSError, match=r"closed|descriptor") as caught:
        clones[0].accept()
    assert errno_of(caught.value) == "EBADF"
    let_hub_turn()
    assert not other.ready()
    other.kill()
    del other


def test_a_clone_that_is_shut_down_wakes_its_pollers(way: Way, clones: list[Any]) -> None:
    """EINVAL, as the kernel's accept says, and it stays readable; the others go on."""
    greenlet = start(way, [clones[0]])
    clones[0].shutdown(socket.SHUT_RDWR)
    assert greenlet.get() == way([clones[0]]) == way([clones[0]], 0) == [clones[0]]
    with pytest.raises(OSError, match=r"shut down|Invalid") as caught:
        clones[0].accept()
    assert errno_of(caught.value) == "EINVAL"
    greenlet = start(reply, clones[1], b"1")
    assert ask(clones[1].getsockname()) == b"1"
    greenlet.get()


def test_a_poll_that_is_killed_leaves_the_ring(way: Way, clones: list[Any]) -> None:
    """The clone isn't ready then, and keeps no connection from the others."""
    end([start(way, [clones[0]])])
    assert ready() == 0
    greenlet = start(reply, clones[1], b"1")
    assert ask(clones[1].getsockname()) == b"1"
    greenlet.get()


# -- beside others ----------------------------------------------------------------------------


def test_other_descriptors_are_polled_as_ever(way: Way, clones: list[Any]) -> None:
    """A pipe beside clones wakes the poll when it is readable, and the clones keep their turns."""
    reader, writer = os.pipe()
    try:
        greenlet = start(way, [clones[0], reader, clones[1]])
        os.write(writer, b"x")
        assert greenlet.get() == [reader]
        let_hub_turn()
        assert ready() == 0
        os.read(reader, 1)
        assert way([clones[0], reader], 0.001) == []
    finally:
        os.close(reader)
        os.close(writer)


def test_a_clone_is_not_ready_while_it_is_polled_for_writing(clones: list[Any]) -> None:
    """A listening socket is never writable, and a poll for that gets no turn."""
    clone = clones[0]
    poll = select.poll()
    poll.register(clone, POLLOUT)
    with selectors.GeventSelector() as selector:
        selector.register(clone, WRITE)
        assert select.select([], [clone], [], 0.001) == ([], [], [])
        assert (poll.poll(1), selector.select(0.001)) == ([], [])
        greenlets: list[gevent.Greenlet[..., Any]] = [
            gevent.spawn(select.select, [], [clone], []),
            gevent.spawn(poll.poll),
            gevent.spawn(selector.select),
        ]
        let_hub_turn()
        assert ready() == 0
        end(greenlets)


def test_a_clone_polled_for_both_is_ready_for_reading_alone(clones: list[Any]) -> None:
    """As the kernel's."""
    clone = clones[0]
    poll = select.poll()
    poll.register(clone)
    with selectors.GeventSelector() as selector, connect(clone.getsockname()):
        selector.register(clone, READ | WRITE, "data")
        assert select.select([clone], [clone], [clone], 10) == ([clone], [], [])
        assert poll.poll(10_000) == [(clone.fileno(), POLLIN)]
        ((key, events),) = selector.select(10)
        assert (key.fileobj, key.data, events) == (clone, "data", READ)
        assert accept_now(clone)


def test_what_gevent_refuses_is_refused_in_its_words(clones: list[Any]) -> None:
    """No descriptor, closed, or reported as not open: error and ring are as before."""
    gone = fcntl.fcntl(0, fcntl.F_DUPFD, 900)  # a number that no clone will get
    os.close(gone)
    for wrong in ("text", gone, object()):
        with pytest.raises((TypeError, ValueError, OSError)) as ours:
            select.select([clones[0], wrong], [], [], 1)
        with pytest.raises(ours.type) as gevents:
            select.select([0, wrong], [], [], 1)
        assert str(ours.value) == str(gevents.value)
    poll = select.poll()
    poll.register(clones[0], POLLIN)
    poll.register(gone, POLLIN)
    assert poll.poll(1) == [(gone, POLLNVAL)]
    let_hub_turn()
    assert ready() == 0


def test_any_iterable_can_be_selected(clones: list[Any]) -> None:
    """Once, as a generator can be gone through."""
    with connect(clones[0].getsockname()):
        assert select.select((each for each in clones[:1]), iter(()), [], 10)[0] == clones[:1]
        assert accept_now(clones[0])


def test_a_clone_polled_twice_is_returned_twice_each_time_as_it_was_given(
    clones: list[Any],
) -> None:
    """An object and its number, in one list; ready already, since libuv wakes with one alone."""
    polled = [clones[0], clones[0].fileno(), clones[0]]
    with connect(clones[0].getsockname()):
        assert select.select(clones[:1], [], [], 10)[0] == clones[:1]
        assert select.select(polled, [], [], 10)[0] == polled
        assert accept_now(clones[0])


# -- gevent's own servers -----------------------------------------------------------------------


@contextmanager
def server_on(clone: Any, handle: Callable[..., Any]) -> Iterator[gevent.server.StreamServer]:
    """Start gevent's own server on *clone*; it has stopped afterwards."""
    server = gevent.server.StreamServer(clone, handle)
    assert type(server).__module__ == "gevent.server"
    server.start()
    try:
        yield server
    finally:
        server.stop()
        let_hub_turn()


def test_gevents_server_is_ready_while_it_accepts() -> None:
    """From its start to its stop: without a connection it stands in line already."""
    with opened() as clone, opened(clone.getsockname()) as other:
        with server_on(clone, print) as server:
            assert ready() == 1
            server.stop_accepting()
            assert ready() == 0
            with queued(other):
                assert accept_now(other)
            server.start_accepting()
            server.start_accepting()
            assert ready() == 2  # the other has asked
            other.close()
            assert ready() == 1
        assert REGISTRY.entries() == []


def test_gevents_server_takes_turns_with_all_others_from_the_first_on() -> None:
    """Accepts, polls and two servers: 0, 1, 2, 3, 0, ..."""
    first = opened()
    clones = [first, *(opened(first.getsockname()) for _ in range(COPIES - 1))]
    address = first.getsockname()

    def serve(index: int) -> None:
        while True:
            if index == 1:
                by_select([clones[index]])
            reply(clones[index], b"%d" % index)

    def handle(sock: Any, _: object) -> None:
        sock.sendall(b"0")

    with server_on(first, handle):
        greenlets = [start(serve, index) for index in (1, 2)]
        with server_on(clones[3], lambda sock, _: sock.sendall(b"3")):
            assert ready() == COPIES
            assert [int(ask(address)) for _ in range(21)] == turns(COPIES, 21)
        end(greenlets)
    close_all(clones)


def test_gevents_server_that_is_full_is_passed_over() -> None:
    """Its pool is full: it isn't in line until there is room, and no client waits for it."""
    released = Event()
    with opened() as clone, opened(clone.getsockname()) as other:
        address = clone.getsockname()

        def handle(sock: Any, _: object) -> None:
            released.wait()
            sock.sendall(b"server")

        server = gevent.server.StreamServer(clone, handle, spawn=1)
        server.start()
        with connect(address) as client:
            wait_until(lambda: ready() == 0)

            def serve() -> None:
                for _ in range(3):
                    reply(other, b"other")

            greenlet = start(serve)
            assert [ask(address) for _ in range(2)] == [b"other"] * 2
            released.set()
            assert client.recv(10) == b"server"
            wait_until(lambda: ready() == 2)
            assert [ask(address) for _ in range(2)] == [b"other", b"server"]
            greenlet.get()
        server.stop()
        let_hub_turn()


def test_gevents_server_on_no_clone_is_as_ever() -> None:
    """A socket of the kernel's own, and a listener that it opens itself."""
    with socket.socket() as sock:
        sock.bind(ANY)
        sock.listen()
        for listener in (sock, ANY):
            with server_on(listener, lambda conn, _: conn.sendall(b"plain")) as server:
                assert ask(server.address) == b"plain"
                assert REGISTRY.entries() == []


# -- selectors that are kept ------------------------------------------------------------------


def test_a_selector_that_is_kept_reports_each_turn(clones: list[Any]) -> None:
    """One select after the other, as `socketserver.serve_forever` does, with a time limit."""

    def serve(index: int) -> None:
        with polling(clones[index]) as selector:
            while True:
                if selector.select(0.005):
                    reply(clones[index], b"%d" % index)

    greenlets = [start(serve, index) for index in range(COPIES)]
    assert [int(ask(clones[0].getsockname())) for _ in range(14)] == turns(COPIES, 14)
    end(greenlets)


def test_a_selector_may_change_what_it_looks_at(clones: list[Any]) -> None:
    """Unregistered, registered again, modified: each select sees what is registered then."""
    with polling(clones[0]) as selector, connect(clones[0].getsockname()) as client:
        assert [key.fileobj for key, _ in selector.select(10)] == [clones[0]]
        selector.unregister(clones[0])
        assert selector.select(0.001) == []
        selector.register(clones[0], WRITE)
        assert selector.select(0.001) == []
        selector.modify(clones[0], READ, "again")
        ((key, events),) = selector.select(10)
        assert (key.data, events) == ("again", READ)
        conn, peer = clones[0].accept()
        conn.close()
        assert peer == client.getsockname()
        assert selector.select(0.001) == []
        selector.unregister(clones[0])


def test_two_selectors_on_one_clone_both_wake() -> None:
    """They share its turn; one of them accepts, and the other waits on."""
    with opened() as clone, polling(clone) as first, polling(clone) as second:
        greenlets = [gevent.spawn(each.select, 5) for each in (first, second)]
        let_hub_turn()
        with connect(clone.getsockname()):
            assert [len(each.get()) for each in greenlets] == [1, 1]
            assert [accept_now(clone) for _ in range(2)] == [True, False]
        assert (first.select(0.001), second.select(0.001)) == ([], [])


@pytest.mark.parametrize("is_first", [True, False])
def test_a_socket_that_was_registered_before_it_listens_gets_turns(is_first: bool) -> None:
    """Its descriptor has come to lead to another kernel socket meanwhile."""
    with opened() as other:
        sock = bound(ANY if is_first else other.getsockname())
        with sock, polling(sock) as selector:
            selector.select(0.001)
            sock.listen()
            for _ in range(3):
                with connect(sock.getsockname()):
                    assert [key.fileobj for key, _ in selector.select(10)] == [sock]
                    assert accept_now(sock)
            assert selector.select(0.001) == []
            selector.unregister(sock)


def test_a_selector_that_outlives_its_clone_reports_its_end() -> None:
    """Closed while registered: the select returns, and nothing of it is left."""
    sock = opened()
    with polling(sock) as selector:
        greenlet = start(selector.select)
        sock.close()
        ((key, _),) = greenlet.get()
        assert key.fileobj is sock


def test_a_closed_selector_says_so_as_gevents_does(clones: list[Any]) -> None:
    """The error is gevent's."""
    with polling(clones[0]) as selector:
        pass
    with pytest.raises(TypeError, match="NoneType"):
        selector.select(0)
    with sockets_unpatched(), pytest.raises(TypeError, match="NoneType"):
        selector.select(0)


@contextmanager
def sockets_unpatched() -> Iterator[None]:
    glb.monkey.restore()
    try:
        yield
    finally:
        glb.monkey.patch._patch_sockets()
