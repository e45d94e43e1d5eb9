"""The ring: exact turns, compared step by step with a plain list."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from glb.accept.ring import Ring, Team

from ..support.examples import examples
from ..support.helpers import turns


def ring_of(*members: object) -> tuple[Ring[Any], Team[Any]]:
    """Return a ring with one admitted team of *members*, which joined in this order."""
    ring: Ring[Any] = Ring()
    team: Team[Any] = Team()
    for member in members:
        ring.join(team, member)
    return ring, team


def take_turn(ring: Ring[Any], team: Team[Any]) -> Any:
    """Return the member that had the turn, and send it to the end."""
    member = ring.first()
    ring.rotate(team, member)
    return member


def order(ring: Ring[Any]) -> list[Any]:
    return list(ring.ready())


# -- one team -------------------------------------------------------------------------------


def test_an_empty_ring_gives_no_turn() -> None:
    """No clone is ready, so no turn is given."""
    ring: Ring[str] = Ring()
    assert ring.first() is None
    assert order(ring) == []
    assert len(ring) == 0


@pytest.mark.parametrize("clones", [1, 2, 4, 256])
def test_turns_go_round_exactly(clones: int) -> None:
    """While all are ready it is 0, 1, ..., N-1, 0, 1, ... without exception."""
    ring, team = ring_of(*range(clones))
    taken = [take_turn(ring, team) for _ in range(3 * clones + 1)]
    assert taken == turns(clones, 3 * clones + 1)


def test_asking_gives_no_turn() -> None:
    """`first` and `ready` change nothing, however often they are asked."""
    ring, _ = ring_of("a", "b")
    assert [ring.first() for _ in range(3)] == ["a", "a", "a"]
    assert order(ring) == order(ring) == ["a", "b"]


def test_joining_twice_keeps_the_place() -> None:
    """A member in line neither gains nor loses by joining again."""
    ring, team = ring_of("a", "b")
    ring.join(team, "a")
    assert order(ring) == ["a", "b"]
    assert len(ring) == 2


def test_a_member_that_left_is_passed_over_and_comes_back_last() -> None:
    """A clone that was not ready waits behind all that are."""
    ring, team = ring_of("a", "b", "c")
    ring.leave(team, "a")
    assert order(ring) == ["b", "c"]
    ring.join(team, "a")
    assert order(ring) == ["b", "c", "a"]


def test_leaving_twice_is_harmless() -> None:
    """Nor need a clone have joined at all."""
    ring, team = ring_of("a", "b")
    ring.leave(team, "a")
    ring.leave(team, "a")
    ring.leave(team, "stranger")
    assert order(ring) == ["b"]


def test_rotation_works_from_any_place() -> None:
    """A policy may take another than the first; that one goes to the end as well."""
    ring, team = ring_of("a", "b", "c")
    ring.rotate(team, "b")
    assert order(ring) == ["a", "c", "b"]


def test_rotating_a_member_that_left_does_not_add_it() -> None:
    """A clone that left during its turn stays away."""
    ring, team = ring_of("a")
    ring.rotate(team, "b")
    assert order(ring) == ["a"]


def test_the_last_to_leave_empties_the_ring() -> None:
    """And the first that joins then is first."""
    ring, team = ring_of("a")
    ring.leave(team, "a")
    assert ring.first() is None
    ring.join(team, "b")
    assert ring.first() == "b"


# -- teams ----------------------------------------------------------------------------------


def test_an_unadmitted_team_is_passed_over_as_one() -> None:
    """A full server leaves the ring in one step, and its neighbours go on."""
    ring, team = ring_of("a1", "a2")
    other: Team[Any] = Team()
    ring.join(other, "b1")
    ring.suspend(team)
    assert ring.first() == "b1"
    assert order(ring) == ["b1"]
    assert len(ring) == 1


def test_a_team_comes_back_behind_all_that_wait_in_the_order_it_kept() -> None:
    """Its clones keep their order among themselves, and have waited since now."""
    ring, team = ring_of("a1", "a2", "a3")
    take_turn(ring, team)
    other: Team[Any] = Team()
    ring.suspend(team)
    ring.join(other, "b1")
    ring.join(other, "b2")
    ring.admit(team)
    assert order(ring) == ["b1", "b2", "a2", "a3", "a1"]


def test_seating_twice_keeps_the_places() -> None:
    """A team that is admitted already doesn't fall behind."""
    ring, team = ring_of("a1", "a2")
    other: Team[Any] = Team()
    ring.join(other, "b1")
    ring.admit(team)
    assert order(ring) == ["a1", "a2", "b1"]


def test_unseating_twice_is_once() -> None:
    """One `admit` brings a team back, however often it was sent away."""
    ring, team = ring_of("a1")
    ring.suspend(team)
    ring.suspend(team)
    assert ring.first() is None
    ring.admit(team)
    assert ring.first() == "a1"


def test_a_member_of_an_unadmitted_team_has_no_turn_until_it_is_admitted() -> None:
    """Clones of a server that has not started wait with it, in the order in which they came."""
    ring: Ring[str] = Ring()
    team: Team[str] = Team(admitted=False)
    ring.join(team, "a1")
    ring.join(team, "a2")
    assert (ring.first(), order(ring), len(ring)) == (None, [], 0)
    ring.admit(team)
    assert (ring.first(), order(ring), len(ring)) == ("a1", ["a1", "a2"], 2)


def test_a_member_that_leaves_a_suspended_team_does_not_come_back_with_it() -> None:
    """A clone that was paused while its server was full stays paused."""
    ring, team = ring_of("a1", "a2")
    ring.suspend(team)
    ring.leave(team, "a1")
    ring.admit(team)
    assert order(ring) == ["a2"]


def test_an_empty_team_can_be_admitted() -> None:
    """It has turns from its first clone on, at that clone's place."""
    ring, _ = ring_of("a1")
    empty: Team[Any] = Team(admitted=False)
    ring.admit(empty)
    assert order(ring) == ["a1"]
    ring.join(empty, "b1")
    assert order(ring) == ["a1", "b1"]


def test_teams_go_round_as_one_ring() -> None:
    """Clones of two servers on one address take turns by how long each has waited."""
    ring: Ring[str] = Ring()
    teams: dict[str, Team[str]] = {"a": Team(), "b": Team()}
    for member in ("a1", "b1", "a2", "b2", "b3"):
        ring.join(teams[member[0]], member)
    taken = []
    for _ in range(10):
        first = ring.first()
        assert first is not None
        ring.rotate(teams[first[0]], first)
        taken.append(first)
    assert taken == ["a1", "b1", "a2", "b2", "b3"] * 2


# -- places ---------------------------------------------------------------------------------


def test_leaving_returns_the_place() -> None:
    """``None`` of a member that wasn't there, or has left already; each place is another."""
    ring, team = ring_of("a", "b")
    places = [ring.leave(team, "a"), ring.leave(team, "b")]
    assert None not in places
    assert places[0] != places[1]
    assert [ring.leave(team, member) for member in ("a", "b", "stranger")] == [None] * 3


@pytest.mark.parametrize("behind", ["none", "a newcomer"])
def test_a_member_that_left_without_a_turn_gets_its_place_back(behind: str) -> None:
    """Before all that came later, and behind all that waited longer."""
    ring, team = ring_of("a", "b", "c")
    place = ring.leave(team, "b")
    expected = ["a", "b", "c"]
    if behind == "a newcomer":
        ring.join(team, "d")
        expected.append("d")
    assert take_turn(ring, team) == "a"  # the one that is served was before it
    ring.join(team, "b", place)
    assert order(ring) == [*expected[1:], "a"]


def test_a_member_that_was_passed_over_comes_back_last() -> None:
    """A member behind it had a turn meanwhile: its place is gone, as without one."""
    ring, team = ring_of("a", "b", "c")
    place = ring.leave(team, "a")
    assert take_turn(ring, team) == "b"
    ring.join(team, "a", place)
    assert order(ring) == ["c", "b", "a"]


def test_a_place_is_lost_to_another_team_as_to_its_own() -> None:
    """Teams are one line: a member behind it in another one has passed it over as well."""
    ring, team = ring_of("a1", "a2")
    other: Team[Any] = Team()
    ring.join(other, "b1")
    kept, lost = ring.leave(team, "a2"), ring.leave(team, "a1")
    ring.join(team, "a2", kept)
    assert order(ring) == ["a2", "b1"]
    kept = ring.leave(team, "a2")
    assert take_turn(ring, other) == "b1"
    ring.join(team, "a1", lost)
    ring.join(team, "a2", kept)
    assert order(ring) == ["b1", "a1", "a2"]


def test_a_team_that_was_admitted_again_passes_over_as_any() -> None:
    """It is behind all that waited then, and its turn is one behind them."""
    ring, team = ring_of("a1", "a2")
    other: Team[Any] = Team()
    ring.join(other, "b1")
    ring.suspend(team)
    ring.admit(team)
    assert order(ring) == ["b1", "a1", "a2"]
    place = ring.leave(other, "b1")
    assert take_turn(ring, team) == "a1"
    ring.join(other, "b1", place)
    assert order(ring) == ["a2", "a1", "b1"]


def test_a_member_in_line_has_no_use_for_a_place() -> None:
    """It neither gains nor loses by joining with one."""
    ring, team = ring_of("a", "b", "c")
    place = ring.leave(team, "a")
    ring.join(team, "a")
    ring.join(team, "a", place)
    assert order(ring) == ["b", "c", "a"]


@pytest.mark.parametrize("teams", [1, 3])
@given(back=st.permutations(range(12)), asks=st.booleans())
@settings(deadline=None, database=None, max_examples=examples(60))
def test_many_come_back_in_any_order_to_their_places(
    teams: int, back: list[int], asks: bool
) -> None:
    """The line is as if no member had left, whether it is asked for in between or not."""
    ring: Ring[int] = Ring()
    groups: list[Team[int]] = [Team() for _ in range(teams)]
    for member in range(12):
        ring.join(groups[member % teams], member)
    for member in range(4):  # 4 stand at the end then
        ring.rotate(groups[member % teams], member)
    before = order(ring)
    places = {member: ring.leave(groups[member % teams], member) for member in range(12)}
    assert (ring.first(), len(ring)) == (None, 0)
    there: set[int] = set()
    for member in back:
        ring.join(groups[member % teams], member, places[member])
        there.add(member)
        if asks:
            assert order(ring) == [each for each in before if each in there]
            assert ring.first() == order(ring)[0]
    assert (order(ring), len(ring)) == (before, 12)
    taken = []
    for _ in range(24):
        first = ring.first()
        assert first is not None
        ring.rotate(groups[first % teams], first)
        taken.append(first)
    assert taken == before * 2


# -- what a turn costs ----------------------------------------------------------------------


class Counted:
    """A member that counts how often the ring looks at it or at its like."""

    looks = 0

    def __hash__(self) -> int:
        Counted.looks += 1
        return id(self)

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return self is other


def calls_of(function: Callable[[], object]) -> int:
    """Return how many functions, Python's and C's, *function* calls."""
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return calls


def cost_of(step: str, clones: int) -> tuple[int, int]:
    """Return the calls, and the looks at members, of one *step* among so many *clones*."""
    members = [Counted() for _ in range(clones)]
    ring, team = ring_of(*members)
    other: Team[Any] = Team()
    ring.join(other, Counted())
    ring.rotate(team, members[0])
    newcomer = Counted()

    def turn() -> None:
        ring.rotate(team, ring.first())

    def reseat() -> None:
        ring.suspend(team)
        ring.first()
        ring.admit(team)
        ring.first()

    steps: dict[str, Callable[[], object]] = {
        "turn": turn,
        "join": lambda: ring.join(team, newcomer),
        "leave": lambda: ring.leave(team, members[-1]),
        "reseat": reseat,
    }
    Counted.looks = 0
    calls = calls_of(steps[step])
    return calls, Counted.looks


@pytest.mark.parametrize("step", ["turn", "join", "leave", "reseat"])
def test_a_step_costs_the_same_whatever_n(step: str) -> None:
    """Calls and looks at members are counted, as time can't be: 3 clones cost as 3,000 do."""
    assert cost_of(step, 3) == cost_of(step, 300) == cost_of(step, 3000)


# -- a model --------------------------------------------------------------------------------

MEMBERS = st.integers(0, 4)
TEAMS = st.integers(0, 2)


class RingMachine(RuleBasedStateMachine):
    """The ring beside a list of (waits since, team, member), sorted anew for each question."""

    def __init__(self) -> None:
        super().__init__()
        self.ring: Ring[tuple[int, int]] = Ring()
        self.teams: list[Team[tuple[int, int]]] = [Team(), Team(), Team(admitted=False)]
        self.admitted = [True, True, False]
        #: In the order in which they came to wait.
        self.line: list[tuple[int, int]] = []

    def expected(self) -> list[tuple[int, int]]:
        return [member for member in self.line if self.admitted[member[0]]]

    def send_to_end(self, member: tuple[int, int]) -> None:
        self.line.remove(member)
        self.line.append(member)

    @rule(team=TEAMS, number=MEMBERS)
    def join(self, team: int, number: int) -> None:
        member = (team, number)
        self.ring.join(self.teams[team], member)
        if member not in self.line:
            self.line.append(member)

    @rule(team=TEAMS, number=MEMBERS)
    def leave(self, team: int, number: int) -> None:
        member = (team, number)
        self.ring.leave(self.teams[team], member)
        if member in self.line:
            self.line.remove(member)

    @rule(team=TEAMS, number=MEMBERS)
    def rotate_any(self, team: int, number: int) -> None:
        member = (team, number)
        self.ring.rotate(self.teams[team], member)
        if member in self.line:
            self.send_to_end(member)

    @precondition(lambda self: self.expected())
    @rule(count=st.integers(1, 12))
    def take_turns(self, count: int) -> None:
        for _ in range(count):
            member = self.ring.first()
            assert member == self.expected()[0]
            assert member is not None
            self.ring.rotate(self.teams[member[0]], member)
            self.send_to_end(member)

    @rule(team=TEAMS)
    def admit(self, team: int) -> None:
        self.ring.admit(self.teams[team])
        if not self.admitted[team]:
            self.admitted[team] = True
            for member in [member for member in self.line if member[0] == team]:
                self.send_to_end(member)

    @rule(team=TEAMS)
    def suspend(self, team: int) -> None:
        self.ring.suspend(self.teams[team])
        self.admitted[team] = False

    @rule()
    def ask_for_the_first(self) -> None:
        # The invariants ask `ready` first, and `first` mends the heap as it looks. Asked in
        # between and not after every step, it finds a heap that lags behind by many.
        assert self.ring.first() == next(iter(self.expected()), None)

    @invariant()
    def order_is_the_models(self) -> None:
        assert list(self.ring.ready()) == self.expected()
        assert len(self.ring) == len(self.expected())
        assert [team.admitted for team in self.teams] == self.admitted

    @invariant()
    def heap_lists_each_team_once_and_never_ahead(self) -> None:
        listed = [team for _, team in self.ring._by_wait]
        assert len(set(map(id, listed))) == len(listed)
        for count, team in self.ring._by_wait:
            assert team.listed
            assert not team.line or count <= team.waits_since
        for team in self.teams:
            assert not (team.admitted and team.line) or team in listed


class AskingRingMachine(RingMachine):
    """The same, with `first` asked after every step."""

    @invariant()
    def first_is_the_models(self) -> None:
        assert self.ring.first() == next(iter(self.expected()), None)


class PlacesMachine(RingMachine):
    """The same, with a list in which a member that left without a turn keeps its place.

    Turns are given to the first alone, and all teams are admitted: as clones stand in one ring.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Members that left and weren't passed over; their places in `line` are still theirs.
        self.away: set[tuple[int, int]] = set()
        #: What `leave` returned, until it is used.
        self.places: dict[tuple[int, int], int | None] = {}
        super().admit(2)

    def expected(self) -> list[tuple[int, int]]:
        return [member for member in super().expected() if member not in self.away]

    def is_there(self, member: tuple[int, int]) -> bool:
        return member in self.line and member not in self.away

    def pass_over(self, member: tuple[int, int]) -> None:
        """Members that are away and were before *member*, which is served, lose their places."""
        before = self.line[: self.line.index(member)]
        for each in self.away.intersection(before):
            self.forget(each)

    def forget(self, member: tuple[int, int]) -> None:
        if member in self.away:
            self.away.remove(member)
            self.line.remove(member)

    @rule(team=TEAMS, number=MEMBERS)
    def join(self, team: int, number: int) -> None:
        self.forget((team, number))
        super().join(team, number)

    @rule(team=TEAMS, number=MEMBERS)
    def leave(self, team: int, number: int) -> None:
        member = (team, number)
        place = self.ring.leave(self.teams[team], member)
        assert (place is not None) is self.is_there(member)
        if place is not None:
            self.away.add(member)
            self.places[member] = place

    @precondition(lambda self: self.places)
    @rule(which=st.integers(0, 14))
    def come_back(self, which: int) -> None:
        member = [*self.places][which % len(self.places)]
        place = self.places.pop(member)
        if not self.is_there(member):
            self.ring.join(self.teams[member[0]], member, place)
            if member in self.away:
                self.away.remove(member)
            else:
                self.line.append(member)

    @precondition(lambda self: self.expected())
    @rule(which=st.integers(0, 14))
    def one_of_them_leaves(self, which: int) -> None:
        there = self.expected()
        self.leave(*there[which % len(there)])

    @rule(team=TEAMS, number=MEMBERS)
    def rotate_any(self, team: int, number: int) -> None:
        """Never: it would be out of turn."""

    @precondition(lambda self: self.expected())
    @rule(count=st.integers(1, 12))
    def take_turns(self, count: int) -> None:
        for _ in range(count):
            self.pass_over(self.expected()[0])
            super().take_turns(1)

    @rule(team=TEAMS)
    def admit(self, team: int) -> None:
        """Never: all are admitted."""

    @rule(team=TEAMS)
    def suspend(self, team: int) -> None:
        """Never: all are admitted."""

    @invariant()
    def heap_lists_each_team_once_and_never_ahead(self) -> None:
        if not self.ring._is_stale:  # else it is made anew before it is asked
            super().heap_lists_each_team_once_and_never_ahead()


@pytest.mark.thorough
@pytest.mark.parametrize("machine", [RingMachine, AskingRingMachine, PlacesMachine])
def test_turns_are_those_of_a_plain_list(machine: type[RingMachine]) -> None:
    """After every step of any program, order, first and length are the list's."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            deadline=None,
            database=None,
            print_blob=True,
            max_examples=examples(150),
            stateful_step_count=40,
        ),
    )


def test_a_kept_place_is_first_if_it_is_before_all_that_are_ready() -> None:
    """And in an empty line; a place that was passed over is none."""
    ring: Ring[str] = Ring()
    team: Team[str] = Team()
    places = {}
    for name in "abc":
        ring.join(team, name)
    for name in "ab":
        places[name] = ring.leave(team, name)
    assert [ring.is_first(place) for place in (places["a"], places["b"], None)] == [1, 1, 0]
    ring.join(team, "a", places["a"])
    assert not ring.is_first(places["b"])
    ring.rotate(team, "a")
    assert ring.is_first(places["b"])
    ring.rotate(team, "c")
    assert not ring.is_first(places["b"])
    ring.leave(team, "a")
    ring.leave(team, "c")
    assert not ring.is_first(places["b"])


def test_a_turn_outside_the_line_passes_over_the_places_before_it() -> None:
    """It counts as a turn in line, and gives the place at the end."""
    ring: Ring[str] = Ring()
    team: Team[str] = Team()
    places = []
    for name in "abc":
        ring.join(team, name)
        places.append(ring.leave(team, name))
    ring.join(team, "d")
    end = ring.serve(places[1])
    assert [ring.is_first(place) for place in (*places, end)] == [False, False, True, False]
    assert ring.serve(None) > end
    assert ring.is_first(places[2])


def test_a_dropped_team_is_forgotten() -> None:
    """No turn, no place in the heap, and the order of the others is as it was."""
    ring: Ring[str] = Ring()
    gone: Team[str] = Team()
    others: list[Team[str]] = [Team() for _ in range(5)]
    for number, team in enumerate(others):
        ring.join(team, f"a{number}")
        ring.join(gone, f"gone{number}")
        ring.join(team, f"b{number}")
    reference = weakref.ref(gone)
    ring.drop(gone)
    del gone
    assert reference() is None
    assert list(ring.ready()) == [f"{half}{number}" for number in range(5) for half in "ab"]
    assert ring.first() == "a0"
