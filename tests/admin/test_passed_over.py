"""Turns that pass over a clone are counted, by the reason why it was not ready."""

from __future__ import annotations

from glb.admin.passed_over import PassedOver
from glb.model.stats import CloneStats


def clone(
    index: int, accepted: int, state: str = "accepting", ready: bool | None = None
) -> CloneStats:
    is_ready = state == "accepting" if ready is None else ready
    return CloneStats(index, accepted, 0, accepted, 0, is_ready, 0, state)


def test_nothing_passes_over_clones_that_are_ready() -> None:
    """Counts may differ by one within a round, and by any number from before."""
    seen = PassedOver()
    assert seen.look([clone(0, 7), clone(1, 2)]) == [{}, {}]
    assert seen.look([clone(0, 17), clone(1, 11)]) == [{}, {}]


def test_a_paused_clone_is_passed_over_until_it_is_ready() -> None:
    """What it got before it was paused, since the last look, was no turn that passed it over."""
    seen = PassedOver()
    seen.look([clone(0, 10), clone(1, 10)])
    assert seen.look([clone(0, 15), clone(1, 12, "paused")]) == [{}, {"paused": 3}]
    assert seen.look([clone(0, 20), clone(1, 12, "paused")]) == [{}, {"paused": 8}]
    assert seen.look([clone(0, 22), clone(1, 13)]) == [{}, {"paused": 9}]
    assert seen.look([clone(0, 40), clone(1, 31)]) == [{}, {"paused": 9}]


def test_each_reason_has_its_own_count() -> None:
    """One after the other, and the same again."""
    seen = PassedOver()
    seen.look([clone(0, 0), clone(1, 0)])
    for accepted, state, ready, found in [
        (2, "accepting", False, {"stalled": 2}),
        (5, "full", False, {"stalled": 5}),
        (9, "full", False, {"stalled": 5, "full": 4}),
        (9, "accepting", True, {"stalled": 5, "full": 4}),
    ]:
        assert seen.look([clone(0, accepted), clone(1, 0, state, ready)], {0})[1] == found
    seen.look([clone(0, 10), clone(1, 1)])
    found = seen.look([clone(0, 13), clone(1, 1, "full")])[1]
    assert found == {"stalled": 5, "full": 7}


def test_a_clone_whose_hub_turns_is_busy_and_not_stalled() -> None:
    """Its accept loop does something else, say."""
    seen = PassedOver()
    seen.look([clone(0, 0), clone(1, 0)])
    assert seen.look([clone(0, 2), clone(1, 0, ready=False)]) == [{}, {"busy": 2}]


def test_a_server_that_takes_nothing_passes_over_no_clone() -> None:
    """All of its clones are full, drain or are stopped together."""
    seen = PassedOver()
    for state in ("accepting", "full", "draining", "stopped"):
        assert seen.look([clone(0, 5, state), clone(1, 3, state)]) == [{}, {}]


def test_resized_servers_are_counted_on() -> None:
    """New clones have missed nothing; what is known of the others stays."""
    seen = PassedOver()
    seen.look([clone(0, 0), clone(1, 0)])
    seen.look([clone(0, 4, "paused"), clone(1, 6)])
    assert seen.look([clone(0, 4), clone(1, 6)]) == [{"paused": 2}, {}]
    assert seen.look([clone(0, 4), clone(1, 6), clone(2, 0)]) == [{"paused": 2}, {}, {}]
    assert seen.look([clone(0, 4)]) == [{"paused": 2}]
