"""HandOver: the next clone on several hubs, and where each connection is at any time."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from glb.accept.handover import QUICK_TAKES, HandOver
from glb.accept.protocols import PendingConnection, Turn
from glb.accept.ring import Team
from glb.accept.turns import PATIENCE_SECONDS
from glb.model.accept_errors import Episode
from glb.model.policy import Policy

from ..support.examples import examples


class FakeMember:
    """A clone that counts what is on its way to it."""

    context = "a test"
    failures = Episode()
    is_not_reclaimable = False
    runs_at_once = accepts_itself = False
    max_accept = 100

    def __init__(self, dispatcher: FakeDispatcher, team: Team[Any], name: str) -> None:
        self.dispatcher: Any = dispatcher
        self.team = team
        self.name = name
        self.load = 0
        self.expected = 0

    def has_room(self) -> bool:
        return True

    def next_delay(self) -> float:
        raise NotImplementedError

    def deliver(self, plain: Any, address: Any, moves: int | None = None) -> bool:
        raise NotImplementedError

    def accept_failed(self, error: BaseException) -> Turn:
        raise NotImplementedError

    def take(self, handed: PendingConnection) -> bool:
        raise NotImplementedError

    def wants(self, error: OSError) -> bool:
        raise NotImplementedError

    def broken(self, error: OSError) -> None:
        raise NotImplementedError

    def may_expect_locked(self) -> bool:
        return True

    def expect_locked(self) -> None:
        self.expected += 1

    def unexpect_locked(self) -> None:
        assert self.expected > 0
        self.expected -= 1

    def __repr__(self) -> str:
        return self.name


class FakeDispatcher:
    """One hub's part, whose hub turns when the test says so."""

    is_watchdog = False
    is_here = True

    def __init__(self, name: str = "hub", *, members: int = 0, thread: int = 1) -> None:
        self.name = name
        self.thread = thread
        self.accepted = 0
        #: Whether a server has its clones here.
        self.servers: dict[Team[Any], None] = {}
        self.inbox: deque[PendingConnection] = deque()
        self.handed_to: dict[Any, None] = {}
        self.singles: Team[Any] = Team()
        self.admitted: dict[Team[Any], None] = {self.singles: None}
        self.has_turns = True
        self.stalled_at: float | None = None
        self.tried_at = self.quick = 0
        self.is_dead = False
        self.is_watching = False
        self.is_paused = False
        self.is_ticking = False
        self.woken = self.looked = self.armed = 0
        #: What its handlers have not begun.
        self.jobs: list[PendingConnection] = []
        #: A server's clones.
        self.team: Team[Any] = Team(admitted=False)
        if members:
            self.servers[self.team] = None
        self.is_abandoned = False
        self.members = [FakeMember(self, self.team, f"{name}.{n}") for n in range(members)]

    @property
    def thread_of_its_own(self) -> Any:
        return None

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        self.is_abandoned = True

    @property
    def has_jobs(self) -> bool:
        return bool(self.jobs)

    def reclaim_jobs(self) -> list[PendingConnection]:
        jobs, self.jobs = self.jobs, []
        return jobs

    def send(self, call: Callable[[], object]) -> bool:
        call()
        return True

    def run(self, call: Callable[[], object]) -> None:
        call()

    def wake_locked(self) -> None:
        self.woken += 1

    def look_locked(self) -> None:
        self.looked += 1

    def later(self, delay: float, call: Callable[[], object]) -> bool:
        raise AssertionError("nothing here takes time")

    def arm_locked(self) -> None:
        self.armed += 1

    def __repr__(self) -> str:
        return self.name


def turns_of(*dispatchers: FakeDispatcher) -> HandOver:
    """Return turns of *dispatchers*, whose clones have joined hub by hub and are admitted."""
    turns = HandOver(threading.RLock())
    for dispatcher in dispatchers:
        add(turns, dispatcher)
    for index in range(max((len(each.members) for each in dispatchers), default=0)):
        for dispatcher in dispatchers:
            if index < len(dispatcher.members):
                turns.join(dispatcher.members[index])
    turns.admit([(each, each.team) for each in dispatchers if each.members])
    return turns


def add(turns: HandOver, dispatcher: FakeDispatcher) -> None:
    with turns.lock:
        turns.add_locked(dispatcher, dispatcher)


def two_hubs(members: int = 2) -> tuple[HandOver, FakeDispatcher, FakeDispatcher]:
    first, second = FakeDispatcher("a", members=members), FakeDispatcher("b", members=members)
    return turns_of(first, second), first, second


def with_watchdog(turns: HandOver) -> FakeDispatcher:
    watchdog = FakeDispatcher("watchdog")
    watchdog.is_watchdog = True
    with turns.lock:
        turns.add_watchdog_locked(watchdog, watchdog)
    return watchdog


def give(turns: HandOver, number: Any, giver: FakeDispatcher) -> str:
    """Hand connection *number* out, and return the clone that got it."""
    handed = PendingConnection(number, None)
    is_own = turns.hand(handed, giver)
    if handed.member is None:
        return "none"
    assert is_own == (handed.member.dispatcher is giver)
    if is_own:
        handed.member.unexpect_locked()
    return str(handed.member)


def numbers(line: Any) -> list[int]:
    return [handed.sock for handed in line]


# -- handing out -----------------------------------------------------------------------------


def test_turns_go_round_over_all_hubs() -> None:
    """The clone that has waited longest is next, whichever hub it lives on or which accepts."""
    turns, first, second = two_hubs()
    givers = [first, first, second, first, second, second, first, second]
    order = [give(turns, number, giver) for number, giver in enumerate(givers)]
    assert order == ["a.0", "b.0", "a.1", "b.1"] * 2


def test_what_is_anothers_lies_in_its_inbox_and_its_giver_wakes_it() -> None:
    """It is expected there. The giver notes the hub, and wakes it when its batch ends."""
    turns, first, second = two_hubs(1)
    give(turns, 1, first)
    assert (first.woken, second.woken) == (0, 0)
    give(turns, 2, first)
    give(turns, 3, first)
    give(turns, 4, first)
    assert numbers(second.inbox) == [2, 4]
    assert second.members[0].expected == 2
    assert (first.woken, second.woken) == (0, 0)
    assert (first.handed_to, second.handed_to) == ({second: None}, {})


def test_a_connection_without_a_clone_waits_and_wakes_the_leader() -> None:
    """It isn't lost: the leader is woken, and takes the oldest first."""
    turns, first, second = two_hubs()
    turns.suspend([(each, each.team) for each in (first, second)])
    assert [give(turns, number, second) for number in (1, 2, 3)] == ["none"] * 3
    assert first.woken == 3
    # The one that couldn't be given was in the accept queue before those behind it.
    assert numbers(turns.waiting) == [3, 2, 1]
    taken = [turns.take_waiting() for _ in range(4)]
    assert [each and each.sock for each in taken] == [3, 2, 1, None]


def test_what_is_given_back_goes_to_the_next() -> None:
    """Before all that waits already, and its clone expects it no more."""
    turns, first, second = two_hubs(1)
    give(turns, 1, first)
    give(turns, 2, first)
    turns.waiting.append(PendingConnection(3, None))
    handed = second.inbox.popleft()
    turns.give_back(handed)
    assert second.members[0].expected == 0
    assert numbers(turns.waiting) == [2, 3]
    assert first.woken == 1


def test_what_is_handed_out_arms_the_watchdog() -> None:
    """No connection is in an inbox without the watchdog."""
    turns, first, _ = two_hubs(1)
    watchdog = FakeDispatcher("watchdog")
    with turns.lock:
        turns.add_watchdog_locked(watchdog, watchdog)
    give(turns, 1, first)
    assert watchdog.armed == 0
    give(turns, 2, first)
    assert watchdog.armed == 1


def test_each_has_the_tick_at_which_it_was_handed_out() -> None:
    """That is how the watchdog knows how long it lies."""
    turns, first, second = two_hubs(1)
    for number in range(4):
        turns.clock = number
        give(turns, number, first)
    assert [handed.clock for handed in second.inbox] == [1, 3]


# -- stalled hubs ----------------------------------------------------------------------------


def test_what_a_stalled_hub_let_lie_waits_in_the_order_it_had() -> None:
    """Jobs were taken up before what is in the inbox; both go before what waited since."""
    turns, first, second = two_hubs(2)
    for number in range(6):
        give(turns, number, first)
    assert numbers(second.inbox) == [1, 3, 5]
    taken_up = second.inbox.popleft()
    taken_up.member.unexpect_locked()
    second.jobs.append(taken_up)
    turns.waiting.append(PendingConnection(9, None))
    with turns.lock:
        turns.reclaim_locked(second)
    assert numbers(turns.waiting) == [1, 3, 5, 9]
    assert (turns.taken_back, second.jobs, len(second.inbox)) == (3, [], 0)
    assert [handed.moves for handed in turns.waiting] == [1, 1, 1, 0]
    assert [member.expected for member in second.members] == [0, 0]


def test_a_withdrawn_hub_is_passed_over_until_it_is_restored() -> None:
    """Then its clones stand behind all others, in the order in which they joined."""
    turns, first, second = two_hubs(2)
    give(turns, 0, first)
    with turns.lock:
        turns.stall_locked(first)
    assert (first.has_turns, first.stalled_at is None, turns.ready) == (False, False, 2)
    assert [give(turns, number, second) for number in range(3)] == ["b.0", "b.1", "b.0"]
    with turns.lock:
        turns.restore_locked(first)
    first.stalled_at = None  # off probation
    assert [give(turns, number, second) for number in range(4)] == ["b.1", "b.0", "a.1", "a.0"]


def test_a_server_that_starts_on_a_withdrawn_hub_waits_with_it() -> None:
    """It is admitted as soon as the hub turns again, and not before."""
    turns, first, second = two_hubs(1)
    with turns.lock:
        turns.stall_locked(second)
    turns.suspend([(second, second.team)])
    turns.admit([(second, second.team)])
    assert turns.ready == 1
    assert [give(turns, number, first) for number in range(2)] == ["a.0", "a.0"]
    with turns.lock:
        turns.restore_locked(second)
    assert [give(turns, number, first) for number in range(2)] == ["a.0", "b.0"]


def test_a_server_that_stopped_meanwhile_does_not_come_back_with_its_hub() -> None:
    """What the server says of its clones holds, and what the hub says does, too."""
    turns, first, second = two_hubs(1)
    with turns.lock:
        turns.stall_locked(second)
    turns.suspend([(second, second.team)])
    with turns.lock:
        turns.restore_locked(second)
    assert [give(turns, number, first) for number in range(2)] == ["a.0", "a.0"]


def test_a_hub_on_probation_has_one_at_a_time() -> None:
    """The next connection is its own only when it has taken up the last."""
    turns, first, second = two_hubs(2)
    with turns.lock:
        turns.stall_locked(second)
        turns.restore_locked(second)
    assert [give(turns, number, first) for number in range(5)] == [
        "a.0",
        "a.1",
        "b.0",
        "a.0",
        "a.1",
    ]
    assert not second.has_turns
    second.inbox.popleft().member.unexpect_locked()
    with turns.lock:
        turns.restore_locked(second)
    assert [give(turns, number, first) for number in range(4)] == ["a.0", "a.1", "b.1", "a.0"]


def test_a_hub_that_is_quick_often_enough_is_trusted_again() -> None:
    """Each time within a tick; one that took longer, or a stall, and it begins anew."""
    turns, first, second = two_hubs(1)
    turns.clock = 5

    def serve_one(ticks: int) -> None:
        while not second.inbox:
            give(turns, 1, first)
        second.inbox.popleft().member.unexpect_locked()
        turns.clock += ticks
        with turns.lock:
            turns.restore_locked(second)

    def stall() -> None:
        with turns.lock:
            turns.stall_locked(second)
            turns.restore_locked(second)

    for begin_anew in (stall, lambda: serve_one(ticks=1), stall):
        turns.clock += 1
        if second.stalled_at is None:
            stall()
        begin_anew()
        for _ in range(QUICK_TAKES):
            assert second.stalled_at is not None
            serve_one(ticks=0)
        assert second.stalled_at is not None
        serve_one(ticks=0)
        assert second.stalled_at is None


def test_restoring_a_hub_that_has_turns_changes_nothing() -> None:
    """A hub that was never withdrawn keeps its place in the line."""
    turns, first, second = two_hubs(1)
    with turns.lock:
        turns.restore_locked(second)
        turns.restore_locked(first)
    assert [give(turns, number, first) for number in range(2)] == ["a.0", "b.0"]


# -- hubs come and go ------------------------------------------------------------------------


def test_what_lies_in_the_inbox_of_a_hub_that_goes_is_the_others() -> None:
    """So is the lead; its clones have no turns, and what it accepted still counts."""
    turns, first, second = two_hubs(1)
    first.accepted = 5
    give(turns, 0, second)
    assert numbers(first.inbox) == [0]
    with turns.lock:
        turns.remove_locked(first)
    assert turns.leader is second
    assert second.woken > 0
    assert numbers(turns.waiting) == [0]
    assert (turns.accepted, turns.ready) == (5, 1)
    assert [give(turns, number, second) for number in (1, 2)] == ["b.0", "b.0"]


def test_removing_a_dispatcher_twice_is_harmless() -> None:
    """A dispatcher closes once, however often it is asked to."""
    turns, first, _ = two_hubs(1)
    with turns.lock:
        turns.remove_locked(first)
        turns.remove_locked(first)
    assert len(turns.dispatchers) == 1


def test_dead_hubs_are_forgotten() -> None:
    """Only those; the connections in their inboxes go to others."""
    turns, first, second = two_hubs(1)
    give(turns, 0, first)
    give(turns, 1, first)
    second.is_dead = True
    with turns.lock:
        turns.forget_dead_locked()
    assert list(turns.dispatchers) == [first]
    assert numbers(turns.waiting) == [1]


def test_what_a_dead_hub_had_not_begun_is_the_others() -> None:
    """It is before what lay in the inbox, and counts as accepted there no more."""
    turns, first, second = two_hubs(1)
    give(turns, 0, first)
    give(turns, 1, first)
    second.accepted = 5
    second.jobs.append(PendingConnection(7, None))
    second.is_dead = True
    with turns.lock:
        turns.remove_locked(second)
    assert (numbers(turns.waiting), second.jobs, turns.accepted) == ([7, 1], [], 4)


def test_a_hub_that_lives_keeps_what_it_has_taken_up() -> None:
    """It leaves this address alone, and its handlers begin."""
    turns, _, second = two_hubs(1)
    second.accepted = 5
    second.jobs.append(PendingConnection(7, None))
    with turns.lock:
        turns.remove_locked(second)
    assert (numbers(turns.waiting), numbers(second.jobs), turns.accepted) == ([], [7], 5)


def test_the_last_hub_that_goes_leaves_no_leader() -> None:
    """And the next that comes has the lead."""
    turns, first, second = two_hubs(1)
    with turns.lock:
        turns.remove_locked(first)
        turns.remove_locked(second)
    assert turns.leader is None
    newcomer = FakeDispatcher("c")
    add(turns, newcomer)
    assert turns.leader is newcomer


def test_the_watchdog_takes_the_duty_of_plain_listeners() -> None:
    """A thread that loops over accept turns only there: it can't accept for others."""
    first = FakeDispatcher("a")
    turns = turns_of(first)
    listener = FakeMember(first, first.singles, "listener")
    watchdog = with_watchdog(turns)
    assert turns.leader is first
    turns.join(listener)
    assert turns.leader is watchdog
    assert turns.find_fit_locked() is None


def test_a_server_keeps_the_duty_from_the_watchdog() -> None:
    """Its hub turns; and when the lead is free again, it is the one that is fit."""
    turns, first, second = two_hubs(1)
    watchdog = with_watchdog(turns)
    with turns.lock:
        turns.assign_locked(watchdog)
    assert turns.find_fit_locked() is first
    with turns.lock:
        turns.stall_locked(first)
    assert turns.find_fit_locked() is second
    with turns.lock:
        turns.restore_locked(first)
    assert turns.find_fit_locked() is second
    with turns.lock:
        turns.remove_locked(watchdog)
    assert turns.watchdog is None
    assert turns.leader is not watchdog


def test_the_watchdog_relieves_a_hub_whose_last_server_goes() -> None:
    """As soon as another hub is ready: a thread with plain listeners can't accept for others."""
    turns, first, second = two_hubs(1)
    watchdog = with_watchdog(turns)
    turns.suspend([(second, second.team)])
    first.servers = {}
    turns.drop([(first, first.team)])
    assert turns.leader is first
    turns.admit([(second, second.team)])
    assert turns.leader is watchdog
    assert turns.find_fit_locked() is second


@pytest.mark.parametrize("reason", ["withdrawn", "on probation", "no server", "the watchdog"])
def test_a_hub_that_is_not_fit_does_not_take_the_lead(reason: str) -> None:
    """Only a hub that turns, is trusted, and turns also when no greenlet waits for a connection."""
    turns, first, second = two_hubs(1)
    assert turns.find_fit_locked() is first
    first.has_turns = reason != "withdrawn"
    first.stalled_at = 1.0 if reason == "on probation" else None
    first.servers = {} if reason == "no server" else {first.team: None}
    first.is_watchdog = reason == "the watchdog"
    assert turns.find_fit_locked() is second


def test_when_the_hub_on_duty_goes_the_watchdog_has_the_duty() -> None:
    """And not the next hub: whether that turns, only the watchdog can see."""
    turns, first, second = two_hubs(1)
    watchdog = with_watchdog(turns)
    with turns.lock:
        turns.remove_locked(first)
    assert (turns.leader, watchdog.woken) == (watchdog, 1)
    assert [give(turns, number, watchdog) for number in range(2)] == ["b.0", "b.0"]
    assert numbers(second.inbox) == [0, 1]


def test_a_pause_anywhere_means_no_clone_is_ready() -> None:
    """There is one kernel, and it was out of room a moment ago."""
    turns, _, second = two_hubs(2)
    assert (turns.is_paused, turns.ready) == (False, 4)
    second.is_paused = True
    assert (turns.is_paused, turns.ready) == (True, 0)


# -- policies --------------------------------------------------------------------------------


def test_first_fills_the_first_hub_with_a_ready_clone() -> None:
    """Turns go round there; the next hub has them while the first has no ready clone."""
    turns, first, second = two_hubs(2)
    turns.join_settings(Policy.FIRST, None, "here")
    assert [give(turns, number, first) for number in range(3)] == ["a.0", "a.1", "a.0"]
    with turns.lock:
        turns.stall_locked(first)
    assert [give(turns, number, first) for number in range(3)] == ["b.0", "b.1", "b.0"]
    with turns.lock:
        turns.restore_locked(first)
    first.stalled_at = None  # off probation
    turns.leave(first.members[1])
    assert [give(turns, number, second) for number in range(2)] == ["a.0", "a.0"]
    turns.leave(first.members[0])
    assert give(turns, 9, second) == "b.1"


def test_least_connections_looks_at_all_hubs() -> None:
    """Of equals it is the one that has waited longest."""
    turns, first, second = two_hubs(2)
    turns.join_settings(Policy.LEAST_CONNECTIONS, None, "here")
    first.members[0].load = second.members[0].load = 1
    assert [give(turns, number, first) for number in range(3)] == ["a.1", "b.1", "a.1"]
    turns.leave_settings(Policy.LEAST_CONNECTIONS, None)
    assert turns.policy is None


# -- wishes ----------------------------------------------------------------------------------


def test_an_address_has_one_patience() -> None:
    """As long as a server asks for it; another is refused with both values and the address."""
    turns, _, _ = two_hubs()
    found = [turns.patience]
    turns.join_settings(None, 0.25, "here")
    turns.join_settings(None, 0.25, "here")
    turns.join_settings(None, None, "here")
    with pytest.raises(ValueError, match=r"patience must be 0\.25.*'here'.*got 0\.5"):
        turns.join_settings(None, 0.5, "here")
    turns.leave_settings(None, 0.25)
    turns.leave_settings(None, None)
    found.append(turns.patience)
    turns.leave_settings(None, 0.25)
    found.append(turns.patience)
    turns.join_settings(None, 0.5, "here")
    found.append(turns.patience)
    assert found == [PATIENCE_SECONDS, 0.25, PATIENCE_SECONDS, 0.5]


@pytest.mark.parametrize(("policy", "patience"), [(Policy.FIRST, 0.5), (Policy.ROUND_ROBIN, 0.25)])
def test_of_what_was_refused_nothing_is_kept(policy: Policy, patience: float) -> None:
    """The server that leaves after it takes the last settings along, as if no other had asked."""
    turns, _, _ = two_hubs()
    turns.join_settings(Policy.FIRST, 0.25, "here")
    with pytest.raises(ValueError, match="must be"):
        turns.join_settings(policy, patience, "here")
    assert (turns.policy, turns.patience) == (Policy.FIRST, 0.25)
    turns.leave_settings(Policy.FIRST, 0.25)
    assert (turns.policy, turns.patience) == (None, PATIENCE_SECONDS)
    turns.join_settings(policy, patience, "here")
    assert (turns.policy, turns.patience) == (policy, patience)


# -- the end ---------------------------------------------------------------------------------


def pipe() -> tuple[Any, Any]:
    """Return both ends of a pipe, each the only owner of its descriptor, as sockets are."""
    reading, writing = os.pipe()
    return open(reading, "rb", buffering=0), open(writing, "wb", buffering=0)


def test_a_close_closes_what_waits() -> None:
    """And whatever comes back after it; no other code has the descriptors."""
    turns, first, second = two_hubs(1)
    reading, writing = pipe()
    turns.waiting.append(PendingConnection(reading, None))
    give(turns, -1, first)
    give(turns, writing, first)
    with turns.lock:
        turns.close_locked()
        assert reading.closed and not writing.closed
        turns.remove_locked(second)
    assert writing.closed and not turns.waiting


def test_a_forked_child_keeps_its_own_hub_alone() -> None:
    """What is on its way is the parent's; the child's copies are closed, and its clones ready."""
    first = FakeDispatcher("a", members=1, thread=1)
    second = FakeDispatcher("b", members=1, thread=2)
    turns = turns_of(first, second)
    watchdog = FakeDispatcher("watchdog", thread=3)
    pipes = [pipe() for _ in range(3)]
    first.jobs.append(PendingConnection(pipes[2][0], None))
    second.jobs.append(PendingConnection(pipes[2][1], None))
    with turns.lock:
        turns.add_watchdog_locked(watchdog, watchdog)
        give(turns, pipes[0][0], first)
        give(turns, pipes[0][1], first)
        give(turns, pipes[1][0], second)
        turns.waiting.append(PendingConnection(pipes[1][1], None))
        turns.stall_locked(first)
        turns.keep_thread_locked(1)
    pipes[0][0].close()  # `first` had taken it up
    assert all(each.closed for each in (pipes[0][1], *pipes[1], *pipes[2]))
    assert list(turns.dispatchers) == [first]
    assert turns.watchdog is None
    assert turns.leader is first
    assert [member.expected for member in (*first.members, *second.members)] == [0, 0]
    assert turns.next_locked() is first.members[0]
    assert [each.is_abandoned for each in (first, second, watchdog)] == [False, True, True]


# -- a model ---------------------------------------------------------------------------------

HUBS = st.integers(0, 2)
CLONES = st.integers(0, 2)
POLICIES = st.sampled_from([None, Policy.ROUND_ROBIN, Policy.LEAST_CONNECTIONS, Policy.FIRST])


class TurnsMachine(RuleBasedStateMachine):
    """HandOver beside a plain record: since when each clone waits, where each connection is."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = HandOver(threading.RLock())
        self.hubs = [FakeDispatcher(f"hub{n}", members=2) for n in range(3)]
        for hub in self.hubs:
            hub.members.append(FakeMember(hub, hub.singles, f"{hub.name}.single"))
        self.present: list[FakeDispatcher] = []
        self.withdrawn: set[FakeDispatcher] = set()
        self.is_admitted: dict[Team[Any], bool] = {}
        self.policy: Policy | None = None
        # Since when each ready clone waits, and each team has turns.
        self.count = 0
        self.joined: dict[FakeMember, int] = {}
        self.since: dict[Team[Any], int] = {}
        self.accepted = 0
        self.served: list[int] = []
        for hub in self.hubs:
            self.come(hub)

    def now(self) -> int:
        self.count += 1
        return self.count

    def come(self, hub: FakeDispatcher) -> None:
        hub.accepted, hub.is_dead = 0, False
        hub.singles, hub.team = Team(), Team(admitted=False)
        hub.admitted, hub.has_turns, hub.stalled_at = {hub.singles: None}, True, None
        for member in hub.members:
            member.team = hub.singles if member is hub.members[-1] else hub.team
        add(self.turns, hub)
        self.present.append(hub)
        self.is_admitted.update({hub.singles: True, hub.team: False})
        self.since.update({hub.singles: 0, hub.team: 0})

    def has_turn(self, hub: FakeDispatcher, team: Team[Any]) -> bool:
        return hub in self.present and hub not in self.withdrawn and self.is_admitted[team]

    def waits_since(self, member: FakeMember) -> tuple[int, int]:
        joined = self.joined[member]
        return (max(joined, self.since[member.team]), joined)

    def line(self) -> list[FakeMember]:
        ready = [each for each in self.joined if self.has_turn(each.dispatcher, each.team)]
        return sorted(ready, key=self.waits_since)

    def expected_next(self) -> FakeMember | None:
        line = self.line()
        if self.policy is Policy.LEAST_CONNECTIONS:
            return min(line, key=lambda member: member.load, default=None)
        if self.policy is Policy.FIRST:
            for hub in self.present:
                for member in line:
                    if member.dispatcher is hub:
                        return member
        return line[0] if line else None

    def withdraw(self, hub: FakeDispatcher) -> None:
        self.withdrawn.add(hub)

    def hand(self, handed: PendingConnection, giver: FakeDispatcher) -> None:
        member = self.expected_next()
        is_own = self.turns.hand(handed, giver)
        if member is None:
            assert not is_own and self.turns.waiting[0] is handed
            return
        assert handed.member is member
        self.joined[member] = self.now()
        assert is_own == (member.dispatcher is giver)
        if is_own:
            self.take_up(handed)
        elif member.dispatcher.stalled_at is not None:
            self.withdraw(member.dispatcher)

    def take_up(self, handed: PendingConnection) -> None:
        handed.member.unexpect_locked()
        handed.member.dispatcher.accepted += 1
        handed.member.dispatcher.jobs.append(handed)

    # -- connections --

    @rule(hub=HUBS)
    def accept(self, hub: int) -> None:
        giver = self.hubs[hub]
        if self.turns.next_locked() is not None and giver in self.present:
            self.accepted += 1
            self.hand(PendingConnection(self.accepted, None), giver)

    @rule(hub=HUBS, count=st.integers(1, 3))
    def deal_what_waits(self, hub: int, count: int) -> None:
        giver = self.hubs[hub]
        for _ in range(count):
            if self.turns.next_locked() is not None and giver in self.present:
                handed = self.turns.take_waiting()
                if handed is not None:
                    self.hand(handed, giver)

    @rule(hub=HUBS)
    def turn(self, hub: int) -> None:
        dispatcher = self.hubs[hub]
        if dispatcher.inbox:
            self.take_up(dispatcher.inbox.popleft())
        if not dispatcher.inbox and dispatcher in self.present:
            if not dispatcher.has_turns:
                now = self.now()
                for team in dispatcher.admitted:
                    self.since[team] = now
            with self.turns.lock:
                self.turns.restore_locked(dispatcher)
            self.withdrawn.discard(dispatcher)

    @rule(hub=HUBS)
    def begin(self, hub: int) -> None:
        dispatcher = self.hubs[hub]
        if dispatcher.jobs:
            handed = dispatcher.jobs.pop(0)
            handed.member.load += 1
            self.served.append(handed.sock)

    @rule(hub=HUBS)
    def cannot_take(self, hub: int) -> None:
        dispatcher = self.hubs[hub]
        if dispatcher.inbox:
            handed = dispatcher.inbox.popleft()
            self.turns.give_back(handed)
            assert self.turns.waiting[0] is handed

    @rule(hub=HUBS)
    def take_back(self, hub: int) -> None:
        dispatcher = self.hubs[hub]
        if dispatcher in self.present:
            lying = numbers([*dispatcher.jobs, *dispatcher.inbox, *self.turns.waiting])
            with self.turns.lock:
                self.turns.reclaim_locked(dispatcher)
            assert numbers(self.turns.waiting) == lying

    @rule(hub=HUBS)
    def stall(self, hub: int) -> None:
        dispatcher = self.hubs[hub]
        if dispatcher in self.present:
            with self.turns.lock:
                self.turns.stall_locked(dispatcher)
            self.withdraw(dispatcher)

    @rule(hub=HUBS)
    def trust(self, hub: int) -> None:
        if self.hubs[hub].has_turns:
            self.hubs[hub].stalled_at = None

    # -- readiness --

    @rule(hub=HUBS, clone=CLONES)
    def join(self, hub: int, clone: int) -> None:
        member = self.hubs[hub].members[clone]
        if member.dispatcher in self.present:
            self.turns.join(member)
            if member not in self.joined:
                self.joined[member] = self.now()

    @rule(hub=HUBS, clone=CLONES)
    def leave(self, hub: int, clone: int) -> None:
        member = self.hubs[hub].members[clone]
        self.turns.leave(member)
        self.joined.pop(member, None)

    @rule(hubs=st.sets(HUBS, min_size=1))
    def admit(self, hubs: set[int]) -> None:
        places = [
            (hub, hub.team) for hub in map(self.hubs.__getitem__, hubs) if hub in self.present
        ]
        now = self.now()
        for hub, team in places:
            if hub not in self.withdrawn and not self.is_admitted[team]:
                self.since[team] = now
            self.is_admitted[team] = True
        self.turns.admit(places)

    @rule(hubs=st.sets(HUBS, min_size=1))
    def suspend(self, hubs: set[int]) -> None:
        places = [
            (hub, hub.team) for hub in map(self.hubs.__getitem__, hubs) if hub in self.present
        ]
        for _, team in places:
            self.is_admitted[team] = False
        self.turns.suspend(places)

    @rule(policy=POLICIES)
    def wish(self, policy: Policy | None) -> None:
        self.turns.leave_settings(self.policy, None)
        self.turns.join_settings(policy, None, "here")
        self.policy = policy

    # -- hubs --

    @precondition(lambda self: len(self.present) > 1)
    @rule(hub=HUBS)
    def go(self, hub: int) -> None:
        dispatcher = self.hubs[hub]
        if dispatcher in self.present and not dispatcher.jobs:
            with self.turns.lock:
                self.turns.remove_locked(dispatcher)
            self.gone(dispatcher)

    @precondition(lambda self: len(self.present) > 1)
    @rule(hub=HUBS)
    def die(self, hub: int) -> None:
        dispatcher = self.hubs[hub]
        if dispatcher in self.present:
            lying = numbers([*dispatcher.jobs, *dispatcher.inbox, *self.turns.waiting])
            dispatcher.is_dead = True
            with self.turns.lock:
                self.turns.forget_dead_locked()
            assert numbers(self.turns.waiting) == lying
            self.gone(dispatcher)

    def gone(self, dispatcher: FakeDispatcher) -> None:
        self.present.remove(dispatcher)
        self.withdrawn.discard(dispatcher)
        for member in dispatcher.members:
            self.joined.pop(member, None)

    @rule(hub=HUBS)
    def come_back(self, hub: int) -> None:
        if self.hubs[hub] not in self.present:
            self.come(self.hubs[hub])

    # -- what always holds --

    @invariant()
    def nothing_is_lost_and_nothing_is_twice(self) -> None:
        places = [*self.served, *numbers(self.turns.waiting)]
        for hub in self.hubs:
            places += numbers([*hub.inbox, *hub.jobs])
        assert sorted(places) == list(range(1, self.accepted + 1))

    @invariant()
    def accepted_is_what_was_taken_up_and_not_back(self) -> None:
        assert self.turns.accepted == len(self.served) + sum(len(hub.jobs) for hub in self.hubs)

    @invariant()
    def expected_connections_are_in_an_inbox(self) -> None:
        for hub in self.hubs:
            for member in hub.members:
                assert member.expected == sum(each.member is member for each in hub.inbox)
            assert all(handed.member.dispatcher is hub for handed in hub.inbox)

    @invariant()
    def order_is_by_longest_wait_and_without_the_withdrawn(self) -> None:
        line = self.line()
        assert list(self.turns.ring.ready()) == line
        assert self.turns.ready == len(line)
        assert all(member.dispatcher.has_turns for member in line)
        assert {hub for hub in self.present if not hub.has_turns} == self.withdrawn
        assert self.turns.next_locked() is self.expected_next()

    @invariant()
    def the_leader_is_present(self) -> None:
        assert self.turns.leader in self.present


@pytest.mark.thorough
def test_turns_are_those_of_a_plain_record() -> None:
    """After every step of any program: nothing lost or twice, the order, the clones passed over."""
    run_state_machine_as_test(
        TurnsMachine,
        settings=settings(
            deadline=None,
            database=None,
            print_blob=True,
            max_examples=examples(100),
            stateful_step_count=40,
        ),
    )
