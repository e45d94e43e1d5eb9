"""What `loadtests.hubs` makes of what it sees: the arithmetic, without a server."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from loadtests.frame.client import Answer
from loadtests.frame.figures import Results
from loadtests.frame.old_promise import Promise
from loadtests.hubs import figures
from loadtests.hubs.contenders import CONTENDERS
from loadtests.hubs.promises import PROMISES
from loadtests.hubs.stall import Stall, Timeline

MS: Final = 1_000_000

# 4 hubs, 8 clones. Hub 2 is blocked from 1 s to 2 s; a connection each 10 ms takes 1 ms.
STALL: Final = Stall(2, 1000 * MS, 2000 * MS)


def _timeline(*answers: Answer) -> Timeline:
    return Timeline(STALL, answers, hubs=4, clones=8)


def _answer(due_ms: int, wait_ms: int, clone: int) -> Answer:
    return Answer(due_ms * MS, (due_ms + wait_ms) * MS, clone)


def test_longest_wait_is_of_what_met_the_stall() -> None:
    """What was over before it began, or came after its end, is another matter."""
    before, after = _answer(900, 90, 0), _answer(2000, 80, 1)
    on_its_way, meanwhile = _answer(990, 20, 3), _answer(1500, 7, 4)
    assert _timeline(before, on_its_way, meanwhile, after).longest_wait_ms() == 20
    assert _timeline(before, after).longest_wait_ms() == 0


def test_who_waited_for_the_blocked_hub_is_counted() -> None:
    """Clones 2 and 6 live there; what is made just before it is back may be its own."""
    for clone in (2, 6):
        assert _timeline(_answer(1500, 501, clone)).waited_for_it() == 1
    assert _timeline(_answer(1500, 501, 3)).waited_for_it() == 0
    assert _timeline(_answer(999, 10, 2), _answer(1990, 11, 2)).waited_for_it() == 0


def test_turns_after_it_was_back_are_counted() -> None:
    """A fair share is as many as each hub has."""
    turns = _timeline(*(_answer(2000 + 10 * index, 1, index % 8) for index in range(160)))
    assert (turns.turns_after(), turns.share_after(), turns.spread_after()) == (40, 1, 0)
    none = _timeline(*(one for one in turns.answers if one.clone not in (2, 6)))
    assert (none.turns_after(), none.share_after(), none.spread_after()) == (0, 0, 5)


def test_a_load_that_ends_early_has_no_turns_afterwards() -> None:
    """Then a promise about them is not measured, and not kept."""
    early = _timeline(_answer(1500, 1, 0))
    assert (early.turns_after(), early.share_after(), early.spread_after()) == (0, 0, None)


def test_what_holds_always_is_judged_by_the_worst_round() -> None:
    """A median would forgive one lost connection in three rounds."""
    results = Results()
    for lost in (0, 0, 1):
        results.add("one", figures.LOST, lost)
    always = Promise("nothing is lost", "one", figures.LOST, 0, is_always=True)
    assert (always.measured(results), always.is_kept(results)) == (1, False)
    assert replace(always, is_always=False).is_kept(results) is True
    assert replace(always, limit=1, is_floor=True).measured(results) == 0
    assert replace(always, contender="another").is_kept(results) is None


def test_each_promise_is_of_contenders_there_are() -> None:
    """A name with a slip in it would never be measured."""
    names = {contender.name for contender in CONTENDERS}
    assert len(names) == len(CONTENDERS)
    for promise in PROMISES:
        assert promise.contender in names
        assert promise.beside is None or promise.beside in names
