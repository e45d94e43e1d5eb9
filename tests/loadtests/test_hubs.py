"""What `loadtests.hubs` makes of what it sees: the arithmetic, without a server."""

from __future__ import annotations

from typing import Final

from loadtests.frame.client import Served
from loadtests.frame.figures import ERRORS, Figure
from loadtests.hubs.__main__ import (
    LONGEST_WAIT,
    SHARE_AFTER,
    SPREAD_AFTER,
    TURNS_AFTER,
    WAITED_FOR_IT,
    Hubs,
    Stall,
)

MS: Final = 1_000_000

# 4 hubs, 8 clones. Hub 2 is blocked from 1 s to 2 s; a connection each 10 ms takes 1 ms.
STALL: Final = Stall(2, 1000 * MS, 2000 * MS)


def _found(*seen: Served) -> dict[Figure, float]:
    return STALL.figures(seen, hubs=4, clones=8)


def _served(due_ms: int, wait_ms: int, clone: int) -> Served:
    return Served(due_ms * MS, (due_ms + wait_ms) * MS, clone)


def test_longest_wait_is_of_what_met_the_stall() -> None:
    """What was over before it began, or came after its end, is another matter."""
    before, after = _served(900, 90, 0), _served(2000, 80, 1)
    on_its_way, meanwhile = _served(990, 20, 3), _served(1500, 7, 4)
    found = _found(before, on_its_way, meanwhile, after)
    assert found[LONGEST_WAIT] == 20
    assert _found(before, after)[LONGEST_WAIT] == 0


def test_what_waited_for_the_blocked_hub_is_counted() -> None:
    """Clones 2 and 6 live there; what is made just before it is back may be its own."""
    for clone in (2, 6):
        assert _found(_served(1500, 501, clone))[WAITED_FOR_IT] == 1
    assert _found(_served(1500, 501, 3))[WAITED_FOR_IT] == 0
    assert _found(_served(999, 10, 2), _served(1990, 11, 2))[WAITED_FOR_IT] == 0


def test_turns_after_it_was_back_are_counted() -> None:
    """A fair share is as many as each hub has."""
    after = [_served(2000 + 10 * index, 1, index % 8) for index in range(160)]
    figures = (TURNS_AFTER, SHARE_AFTER, SPREAD_AFTER)
    found = _found(*after)
    assert [found[each] for each in figures] == [40, 1, 0]
    found = _found(*(one for one in after if one.clone not in (2, 6)))
    assert [found[each] for each in figures] == [0, 0, 5]


def test_a_load_that_ends_early_has_no_turns_afterwards() -> None:
    """Then a promise about them is not measured, and not kept."""
    found = _found(_served(1500, 1, 0))
    assert (found[TURNS_AFTER], found[SHARE_AFTER]) == (0, 0)
    assert SPREAD_AFTER not in found


def test_what_holds_always_is_judged_by_the_worst_round() -> None:
    """A median would forgive one lost connection in three rounds, and turns that didn't come."""
    run = Hubs(Hubs.every)
    for lost, wait, turns in ((0, 3, 50), (0, 4, 0), (1, 60, 50)):
        run.results.add("stall-4", {ERRORS: lost, LONGEST_WAIT: wait, TURNS_AFTER: turns})
    found = {
        limit.figure: (promise.measured, promise.is_kept)
        for limit, promise in zip(run.promised, run.promises(), strict=True)
        if limit.contender == "stall-4"
    }
    assert found[ERRORS] == (1, False)
    assert found[LONGEST_WAIT] == (60, False)
    assert found[TURNS_AFTER] == (0, False)
    assert found[SPREAD_AFTER] == (None, False)
