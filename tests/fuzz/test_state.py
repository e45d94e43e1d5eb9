"""Registry, ring and turns as state machines, whose steps are done in greenlets and threads.

One step at a time, in whatever thread hypothesis picks, beside a model; and then several at once,
after which the rules have to hold. ``GLB_FUZZ_EXAMPLES`` is how many programs of each kind.
"""

from __future__ import annotations

import errno
import gc
import os
import queue
import random
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.threadpool import ThreadPool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

import glb
from glb.accept.handover import HandOver
from glb.accept.listener import Listener, bind
from glb.accept.registry import REGISTRY, Registry, Share
from glb.accept.ring import Team
from glb.model.address import parse
from glb.model.policy import Policy

from ..accept.test_turns import FakeDispatcher, FakeMember, add
from ..conftest import open_descriptors
from ..support.helpers import comes_true, connect, receive_all

pytestmark = pytest.mark.thorough

STEP_SECONDS = 10.0


def fuzz(examples: int, **more: Any) -> settings:
    return settings(
        max_examples=int(os.environ.get("GLB_FUZZ_EXAMPLES", examples)),
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
        **more,
    )


# -- the registry ---------------------------------------------------------------------------------


def outcome(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """Return what *function* returns or raises: a thread pool would report what it raises."""
    try:
        return function(), None
    except Exception as error:
        return None, error.with_traceback(None)


class Places:
    """Where a step may be done: here, in another greenlet, or in one of two native threads.

    Each thread has a hub, which turns only while a step is done there.
    """

    NAMES = ("here", "greenlet", "thread 0", "thread 1")

    def __init__(self) -> None:
        self._pools = [ThreadPool(1), ThreadPool(1)]

    def do(self, where: str, function: Callable[[], Any]) -> Any:
        """Return what *function* returns or raises there; this hub turns meanwhile."""
        with gevent.Timeout(STEP_SECONDS, RuntimeError(f"the step hangs {where}")):
            if where == "here":
                return function()
            if where == "greenlet":
                result, error = gevent.spawn(outcome, function).get()
            else:
                result, error = self._pools[int(where[-1])].apply(outcome, (function,))
        if error is not None:
            raise error
        return result

    def let_all_hubs_turn(self) -> None:
        for where in self.NAMES:
            self.do(where, lambda: gevent.sleep(0))

    def close(self) -> None:
        for pool in self._pools:
            pool.kill()


class Kept:
    """The owner of a listener: nothing else has a reference to it."""

    def __init__(self, listener: Listener, entry: Opened) -> None:
        self.listener: Listener | None = listener
        self.entry = entry
        self.is_open = True


class Opened:
    """The model of an entry."""

    def __init__(self, address: Any, *, shared: bool) -> None:
        self.address = address
        self.shared = shared
        self.listeners = self.shares = self.accepted = 0

    @property
    def clones(self) -> int:
        return self.listeners + self.shares


WHERE = st.sampled_from(Places.NAMES)


class AnywhereMachine(RuleBasedStateMachine):
    """Listeners are opened, joined, used and closed, each step wherever it happens to be done."""

    kept = Bundle("kept")
    shares = Bundle("shares")

    #: Set for a run.
    places: Places
    host: str

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Opened] = []
        self.all_kept: list[Kept] = []
        self.all_shares: list[Share] = []
        self.before = sockets_open()

    # -- the model --

    def keep(self, listener: Listener, entry: Opened) -> Kept:
        entry.listeners += 1
        kept = Kept(listener, entry)
        self.all_kept.append(kept)
        return kept

    def keep_new(self, listener: Listener, *, shared: bool) -> Kept:
        entry = Opened(listener.address, shared=shared)
        self.entries.append(entry)
        return self.keep(listener, entry)

    def count_out(self, kept: Kept) -> None:
        if kept.is_open:
            kept.is_open = False
            kept.entry.listeners -= 1
            self.look_for_the_last(kept.entry)

    def look_for_the_last(self, entry: Opened) -> None:
        if entry.clones == 0 and entry in self.entries:
            self.entries.remove(entry)

    def opened_at(self, address: Any) -> Opened | None:
        return next((entry for entry in self.entries if entry.address == address), None)

    def refused(self, number: int, where: str, function: Callable[[], Any]) -> None:
        with pytest.raises(OSError, match=r"in use|closed") as caught:
            self.places.do(where, function)
        assert caught.value.errno == number

    # -- opening --

    @rule(target=kept, where=WHERE, shared=st.booleans())
    def open_new(self, where: str, shared: bool) -> Kept:
        listener = self.places.do(where, lambda: bind((self.host, 0), reuse_port=shared))
        return self.keep_new(listener, shared=shared)

    @rule(target=kept, where=WHERE, other=kept, shared=st.booleans())
    def open_at(self, where: str, other: Kept, shared: bool) -> Any:
        address = other.entry.address
        entry = self.opened_at(address)

        def open_it() -> Listener:
            return bind(address, reuse_port=shared)

        if entry is None:
            return self.keep_new(self.places.do(where, open_it), shared=shared)
        if not (shared and entry.shared):
            self.refused(errno.EADDRINUSE, where, open_it)
            return multiple()
        return self.keep(self.places.do(where, open_it), entry)

    @rule(target=kept, where=WHERE, other=kept)
    def dup(self, where: str, other: Kept) -> Any:
        if other.listener is None:
            return multiple()
        if not other.is_open:
            self.refused(errno.EBADF, where, other.listener.dup)
            return multiple()
        return self.keep(self.places.do(where, other.listener.dup), other.entry)

    @rule(target=shares, where=WHERE, other=kept)
    def acquire(self, where: str, other: Kept) -> Any:
        if other.listener is None:
            return multiple()
        entry = other.listener.entry
        if entry.is_closed:
            assert other.entry not in self.entries
            self.refused(errno.EBADF, where, lambda: REGISTRY.acquire(entry))
            return multiple()
        share = self.places.do(where, lambda: REGISTRY.acquire(entry))
        other.entry.shares += 1
        self.all_shares.append(share)
        return (share, other.entry)

    # -- use --

    @rule(where=WHERE, kept=kept)
    def accept(self, where: str, kept: Kept) -> None:
        """A client gets its reply, wherever its listener accepts it."""
        if kept.listener is None:
            return
        if not kept.is_open:
            self.refused(errno.EBADF, where, kept.listener.accept)
            return

        def serve(listener: Listener) -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"served")

        with connect(kept.entry.address) as client:
            kept.entry.accepted += 1
            self.places.do(where, lambda: serve(kept.listener))  # type: ignore[arg-type]  # it is open
            assert receive_all(client) == b"served"

    @precondition(lambda self: self.all_kept)
    @rule(where=WHERE, kept=kept)
    def close_while_it_waits(self, where: str, kept: Kept) -> None:
        """An `accept` that waits ends, wherever it is closed."""
        if kept.listener is None or not kept.is_open:
            return
        waiting = gevent.spawn(outcome, kept.listener.accept)
        gevent.sleep(0)
        self.places.do(where, kept.listener.close)
        self.count_out(kept)
        with gevent.Timeout(STEP_SECONDS, RuntimeError("it was not woken")):
            result, error = waiting.get()
        assert result is None
        assert isinstance(error, OSError) and error.errno == errno.EBADF

    # -- closing --

    @rule(where=WHERE, kept=kept)
    def close(self, where: str, kept: Kept) -> None:
        # Closed ones are drawn as well: closing twice is harmless.
        if kept.listener is not None:
            self.places.do(where, kept.listener.close)
            self.count_out(kept)

    @rule(where=WHERE, kept=kept, in_a_cycle=st.booleans())
    def lose(self, where: str, kept: Kept, in_a_cycle: bool) -> None:
        """It is collected, and warns if it was open."""

        def forget() -> None:
            listener, kept.listener = kept.listener, None
            if in_a_cycle:
                cycle: list[Any] = [listener]
                cycle.append(cycle)
                del cycle
            del listener
            if in_a_cycle:
                gc.collect()

        was_lost = kept.listener is None
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            self.places.do(where, forget)
        unclosed = [each for each in warned if "unclosed listener" in str(each.message)]
        assert len(unclosed) == (kept.is_open and not was_lost)
        self.count_out(kept)

    @rule(where=WHERE, share=consumes(shares), times=st.integers(1, 2))
    def release(self, where: str, share: tuple[Share, Opened], times: int) -> None:
        for _ in range(times):
            self.places.do(where, lambda: REGISTRY.release(share[0]))
        self.all_shares.remove(share[0])
        share[1].shares -= 1
        self.look_for_the_last(share[1])

    # -- what holds after each step --

    @invariant()
    def entries_are_the_models(self) -> None:
        REGISTRY.check()
        assert [(each.address, each.clones, each.shared) for each in glb.registry.entries()] == [
            (each.address, each.clones, each.shared) for each in self.entries
        ]
        assert [each.accepted for each in glb.registry.entries()] == [
            each.accepted for each in self.entries
        ]

    @invariant()
    def addresses_are_as_free_as_the_model_says(self) -> None:
        for address in {kept.entry.address for kept in self.all_kept}:
            opened = self.opened_at(address)
            found = REGISTRY.find(parse(address))
            assert (found is not None) == (opened is not None and opened.shared)
            with socket.socket() as probe:
                # Connections may linger there, and they are not in the way of a listener.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                number = outcome_of_bind(probe, address)
                assert number == (None if opened is None else errno.EADDRINUSE)

    @invariant()
    def descriptors_are_the_models(self) -> None:
        """One for the registry, and one for each listener: of each entry's own socket."""
        # Another thread's hub has to look away from what was closed here.
        expected = Counter(1 + each.listeners for each in self.entries)

        def holds() -> bool:
            return Counter(self.sockets_here().values()) == expected

        assert comes_true(holds, STEP_SECONDS), (self.sockets_here(), expected)

    def teardown(self) -> None:
        for kept in self.all_kept:
            if kept.listener is not None:
                kept.listener.close()
        for share in self.all_shares:
            REGISTRY.release(share)
        assert comes_true(lambda: not self.sockets_here(), STEP_SECONDS)

    def sockets_here(self) -> Counter[str]:
        """Return how many descriptors lead to each socket that was opened here."""
        self.places.let_all_hubs_turn()
        return sockets_open() - self.before


def sockets_open() -> Counter[str]:
    """Return how many descriptors lead to each socket of this process."""
    return Counter(what for what in open_descriptors().values() if what.startswith("socket:"))


def outcome_of_bind(probe: Any, address: Any) -> int | None:
    try:
        probe.bind(address)
    except OSError as error:
        return error.errno
    return None


@pytest.fixture
def places() -> Iterator[Places]:
    made = Places()
    yield made
    made.close()


@pytest.fixture
def host() -> str:
    """A loopback address at which no other process is given a port by chance."""
    pid = os.getpid()
    return f"127.{128 + (pid >> 16) % 64}.{(pid >> 8) % 256}.{pid % 254 + 1}"


def test_any_program_counts_as_the_model_does_wherever_its_steps_are_done(
    places: Places, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each: entries, counts, addresses and descriptors are the model's."""
    monkeypatch.setattr(AnywhereMachine, "places", places, raising=False)
    monkeypatch.setattr(AnywhereMachine, "host", host, raising=False)
    run_state_machine_as_test(AnywhereMachine, settings=fuzz(30, stateful_step_count=25))


# -- turns ----------------------------------------------------------------------------------------


class Hands:
    """Native threads that do one step at a time, while all the others wait."""

    def __init__(self, count: int) -> None:
        self._jobs: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(count)]
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, args=(jobs,), daemon=True) for jobs in self._jobs
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, jobs: queue.SimpleQueue[Any]) -> None:
        while (function := jobs.get()) is not None:
            self._done.put(outcome(function))

    def do(self, which: int, function: Callable[[], Any]) -> Any:
        self._jobs[which].put(function)
        result, error = self._done.get(timeout=STEP_SECONDS)
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        for jobs in self._jobs:
            jobs.put(None)
        for thread in self._threads:
            thread.join(STEP_SECONDS)
            assert not thread.is_alive()


HUBS = st.integers(0, 2)
MEMBERS = st.integers(0, 3)
HAND = st.integers(0, 2)


class LineMachine(RuleBasedStateMachine):
    """HandOver beside one list, in which the longest waiting is first.

    Each of three hubs has a server's team and that of single listeners; it may be withdrawn.
    """

    #: Set for a run.
    hands: Hands

    def __init__(self) -> None:
        super().__init__()
        self.turns = HandOver(threading.RLock())
        self.policy: Policy | None = None
        self.hubs: list[Any] = []
        #: All that wait or are away, longest waiting first.
        self.line: list[FakeMember] = []
        #: Those that left, may come back to their place, and weren't passed over.
        self.away: dict[FakeMember, int] = {}
        #: Those without a place to keep: passed over, or their team was admitted since.
        self.placeless: set[FakeMember] = set()
        #: When each in the line began to wait, or had its last turn.
        self.joined: dict[FakeMember, int] = {}
        self.count = 0
        #: Teams that are to have turns, and those that have, if their hub has.
        self.wished: set[Team[Any]] = set()
        self.admitted: set[Team[Any]] = set()
        for index in range(3):
            hub: Any = FakeDispatcher(f"hub{index}", members=2)
            hub.members += [FakeMember(hub, hub.singles, f"hub{index}.s{n}") for n in range(2)]
            for load, member in enumerate(hub.members):
                member.load = (load + index) % 3
            add(self.turns, hub)
            self.hubs.append(hub)
            self.wished.add(hub.singles)
            self.admitted.add(hub.singles)

    # -- the model --

    def ready(self) -> list[FakeMember]:
        return [each for each in self.line if each.team in self.admitted and each not in self.away]

    def expected_next(self) -> FakeMember | None:
        ready = self.ready()
        if self.policy is Policy.LEAST_CONNECTIONS:
            return min(ready, key=lambda member: member.load, default=None)
        if self.policy is Policy.FIRST:
            ready.sort(key=lambda member: self.hubs.index(member.dispatcher))
        return next(iter(ready), None)

    def to_the_end(self, member: FakeMember) -> None:
        if member in self.line:
            self.line.remove(member)
        self.line.append(member)
        self.away.pop(member, None)
        self.placeless.discard(member)

    def begins_to_wait(self, member: FakeMember) -> None:
        self.to_the_end(member)
        self.count += 1
        self.joined[member] = self.count

    def was_served(self, member: FakeMember) -> None:
        for passed in self.line[: self.line.index(member)]:
            self.pass_over(passed)
        self.begins_to_wait(member)

    def pass_over(self, member: FakeMember) -> None:
        if member in self.away:
            del self.away[member]
            self.line.remove(member)
        else:
            self.placeless.add(member)

    def admit_in_model(self, teams: set[Team[Any]]) -> None:
        """Behind all that wait, all of them in the order in which they joined."""
        coming = teams - self.admitted
        self.admitted |= coming
        theirs = [each for each in self.line if each.team in coming]
        for member in sorted(theirs, key=self.joined.__getitem__):
            if member in self.away:
                self.pass_over(member)
            else:
                self.to_the_end(member)
                self.placeless.add(member)

    # -- the steps --

    @rule(hand=HAND, hub=HUBS, member=MEMBERS)
    def join(self, hand: int, hub: int, member: int) -> None:
        standing = self.hubs[hub].members[member]
        self.hands.do(hand, lambda: self.turns.join(standing))
        if standing not in self.line or standing in self.away:
            self.begins_to_wait(standing)

    @rule(hand=HAND, hub=HUBS, member=MEMBERS)
    def leave(self, hand: int, hub: int, member: int) -> None:
        standing = self.hubs[hub].members[member]
        place = self.hands.do(hand, lambda: self.turns.leave(standing))
        if standing not in self.line or standing in self.away:
            assert place is None
            return
        # A place that was lost is returned all the same, unless a seating has taken it.
        if place is None:
            assert standing in self.placeless
        if standing in self.placeless:
            self.line.remove(standing)
            self.placeless.discard(standing)
        else:
            self.away[standing] = place

    @precondition(lambda self: self.away)
    @rule(hand=HAND, which=st.integers(0, 11))
    def come_back(self, hand: int, which: int) -> None:
        """To the place it had: no member behind it has had a turn."""
        standing, place = [*self.away.items()][which % len(self.away)]
        self.hands.do(hand, lambda: self.turns.join(standing, place))
        del self.away[standing]

    @rule(hands=st.lists(HAND, min_size=1, max_size=8))
    def take_turns(self, hands: list[int]) -> None:
        def take() -> FakeMember | None:
            with self.turns.lock:
                member = self.turns.next_locked()
                if member is not None:
                    self.turns.rotate(member.team, member)
            return member  # type: ignore[no-any-return]  # it is of any kind

        for hand in hands:
            expected = self.expected_next()
            assert self.hands.do(hand, take) is expected
            if expected is not None:
                self.was_served(expected)

    @rule(hand=HAND, hub=HUBS, member=MEMBERS)
    def take_another_turn(self, hand: int, hub: int, member: int) -> None:
        """Of a member that hasn't the turn, and perhaps isn't ready."""
        standing = self.hubs[hub].members[member]
        self.hands.do(hand, lambda: self.turns.rotate(standing.team, standing))
        if standing in self.line and standing not in self.away:
            self.was_served(standing)

    @rule(hand=HAND, hubs=st.lists(HUBS, min_size=1, unique=True))
    def admit(self, hand: int, hubs: list[int]) -> None:
        places = [(self.hubs[hub], self.hubs[hub].team) for hub in hubs]
        self.hands.do(hand, lambda: self.turns.admit(places))
        self.wished.update(team for _, team in places)
        self.admit_in_model({team for hub, team in places if hub.has_turns})

    @rule(hand=HAND, hubs=st.lists(HUBS, min_size=1, unique=True))
    def suspend(self, hand: int, hubs: list[int]) -> None:
        places = [(self.hubs[hub], self.hubs[hub].team) for hub in hubs]
        self.hands.do(hand, lambda: self.turns.suspend(places))
        self.wished.difference_update(team for _, team in places)
        self.admitted.difference_update(team for _, team in places)

    @rule(hand=HAND, hub=HUBS)
    def drop(self, hand: int, hub: int) -> None:
        """A server is closed; another one comes in its place, whose clones have not joined."""
        dropped = self.hubs[hub]
        team = dropped.team
        self.hands.do(hand, lambda: self.turns.drop([(dropped, team)]))
        self.line = [each for each in self.line if each.team is not team]
        for member in dropped.members[:2]:
            self.away.pop(member, None)
            self.placeless.discard(member)
        self.wished.discard(team)
        self.admitted.discard(team)
        dropped.team = Team(admitted=False)
        for member in dropped.members[:2]:
            member.team = dropped.team

    @rule(hand=HAND, hub=HUBS)
    def withdraw(self, hand: int, hub: int) -> None:
        def stall() -> None:
            with self.turns.lock:
                self.turns.stall_locked(self.hubs[hub])

        self.hands.do(hand, stall)
        self.admitted.difference_update((self.hubs[hub].team, self.hubs[hub].singles))

    @rule(hand=HAND, hub=HUBS)
    def restore(self, hand: int, hub: int) -> None:
        def turn() -> None:
            with self.turns.lock:
                self.turns.restore_locked(self.hubs[hub])

        had_turns = self.hubs[hub].has_turns
        self.hands.do(hand, turn)
        if not had_turns:
            self.admit_in_model(self.wished & {self.hubs[hub].team, self.hubs[hub].singles})

    @rule(hand=HAND, policy=st.sampled_from([None, *Policy]))
    def wish(self, hand: int, policy: Policy | None) -> None:
        before, self.policy = self.policy, policy
        self.hands.do(hand, lambda: self.turns.leave_settings(before, None))
        self.hands.do(hand, lambda: self.turns.join_settings(policy, None, "here"))

    @invariant()
    def line_is_the_models(self) -> None:
        with self.turns.lock:
            assert [*self.turns.ring.ready()] == self.ready()
            assert len(self.turns.ring) == len(self.ready())
        assert self.turns.ready == len(self.ready())
        assert self.turns.is_anybody_ready == bool(self.ready())


class AskedLineMachine(LineMachine):
    """The same, asked after each step whose turn it is: the ring mends itself as it is asked."""

    @invariant()
    def next_is_the_models(self) -> None:
        with self.turns.lock:
            assert self.turns.next_locked() is self.expected_next()


@pytest.fixture
def hands() -> Iterator[Hands]:
    made = Hands(3)
    yield made
    made.close()


@pytest.mark.parametrize("machine", [LineMachine, AskedLineMachine])
def test_the_next_is_the_longest_waiting_whichever_thread_asks(
    machine: type[LineMachine], hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step the line is the model's; with a policy it is the one that this says."""
    monkeypatch.setattr(LineMachine, "hands", hands, raising=False)
    run_state_machine_as_test(machine, settings=fuzz(60, stateful_step_count=40))


# -- at once --------------------------------------------------------------------------------------

SEEDS = st.integers(0, 2**32 - 1)


@contextmanager
def switching_often() -> Iterator[None]:
    """Let threads take turns at the interpreter after a few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def race(*runs: Callable[[], object]) -> None:
    """Have all of *runs* done, each in a thread, from one moment on."""
    start = threading.Barrier(len(runs))
    errors: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            start.wait(STEP_SECONDS)
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in runs]
    with switching_often():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(STEP_SECONDS)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


@given(seeds=st.lists(SEEDS, min_size=2, max_size=4))
@fuzz(15)
def test_turns_hold_together_when_all_threads_use_them(seeds: list[int]) -> None:
    """Then each clone that joined last stands there once, and turns go round exactly."""
    turns = HandOver(threading.RLock())
    hubs: list[Any] = [FakeDispatcher(f"hub{n}", members=3) for n in range(len(seeds))]
    for hub in hubs:
        hub.members += [FakeMember(hub, hub.singles, f"{hub.name}.s{n}") for n in range(2)]
        add(turns, hub)
    #: What each thread did last with its own members and team.
    joined: set[FakeMember] = set()

    def use(hub: Any, seed: int) -> None:
        rng = random.Random(seed)
        places: dict[FakeMember, int | None] = {}
        for _ in range(150):
            member = rng.choice(hub.members)
            what = rng.randrange(7)
            if what in {0, 1}:
                turns.join(member, places.pop(member, None) if what else None)
                joined.add(member)
            elif what == 2:
                places[member] = turns.leave(member)
                joined.discard(member)
            elif what == 3:
                turns.admit([(hub, hub.team)])
            elif what == 4:
                turns.suspend([(hub, hub.team)])
            else:
                with turns.lock:  # of any hub's
                    first = turns.next_locked()
                    if first is not None:
                        turns.rotate(first.team, first)

    race(
        *(lambda hub=hub, seed=seed: use(hub, seed) for hub, seed in zip(hubs, seeds, strict=True))
    )
    turns.admit([(hub, hub.team) for hub in hubs])
    with turns.lock:
        line = [*turns.ring.ready()]
        assert Counter(line) == Counter(joined)
        taken = []
        for _ in range(2 * len(line)):
            first = turns.next_locked()
            turns.rotate(first.team, first)
            taken.append(first)
        assert taken == line * 2


@given(seeds=st.lists(SEEDS, min_size=2, max_size=4))
@fuzz(10)
def test_the_registry_holds_together_when_all_threads_use_it(seeds: list[int]) -> None:
    """Then it has as many shares of each address as the threads have kept, and frees the rest."""
    registry = Registry()
    before = open_descriptors()
    places = [parse((f"127.66.{os.getpid() % 256}.{n}", 0)) for n in (1, 2)]
    # What is open all the time gives its address a port; one of the two may be closed by chance.
    first = [registry.open(place, None, shared=True) for place in places]
    addresses = [parse(share.entry.address) for share in first]
    registry.release(first.pop())
    kept: list[list[Share]] = [[] for _ in seeds]

    def use(mine: list[Share], seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            what = rng.randrange(5)
            if what in {0, 1}:
                mine.append(
                    registry.open(rng.choice(addresses), rng.choice([None, 5]), shared=True)
                )
            elif what == 2 and mine:
                mine.append(registry.acquire(rng.choice(mine).entry))
            elif mine:
                share = mine.pop(rng.randrange(len(mine)))
                registry.release(share)
                registry.release(share)
            if what == 4:
                registry.check()

    race(
        *(
            lambda mine=mine, seed=seed: use(mine, seed)
            for mine, seed in zip(kept, seeds, strict=True)
        )
    )
    registry.check()
    shares = [*first, *(share for mine in kept for share in mine)]
    assert {each.address: each.clones for each in registry.entries()} == Counter(
        share.entry.address for share in shares
    )
    for share in shares:
        registry.release(share)
    assert registry.entries() == []
    assert open_descriptors() == before
