"""The heartbeat: a worker notifies its arbiter only while all of its hubs turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("gunicorn")

from glb.gunicorn.heartbeat import Heartbeat


class Hub:
    """A hub worker that answers when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.is_gone = False

    def send(self, call: Callable[[], object]) -> bool:
        if self.is_gone:
            return False
        self.calls.append(call)
        return True

    def turn(self) -> None:
        for call in self.calls:
            call()
        self.calls.clear()


def made(*hubs: Hub) -> Heartbeat:
    workers: Any = hubs
    return Heartbeat(workers)


def test_it_beats_while_all_hubs_turn() -> None:
    """The first time nothing was asked yet."""
    hubs = Hub(), Hub()
    heartbeat = made(*hubs)
    for _ in range(3):
        assert heartbeat.has_ticked()
        for hub in hubs:
            hub.turn()


def test_one_stalled_hub_stops_it_and_it_goes_on_by_itself() -> None:
    """That the others turn doesn't help; when the hub turns again, all is well."""
    stalled, other = Hub(), Hub()
    heartbeat = made(stalled, other)
    assert heartbeat.has_ticked()
    other.turn()
    assert not heartbeat.has_ticked()
    assert not heartbeat.has_ticked()
    assert len(stalled.calls) == 1  # and it isn't asked again and again
    stalled.turn()
    assert heartbeat.has_ticked()
    assert len(other.calls) == 1


def test_a_hub_that_has_ended_is_not_waited_for() -> None:
    """As in a drain, whose hubs end one after the other."""
    ended, other = Hub(), Hub()
    heartbeat = made(ended, other)
    assert heartbeat.has_ticked()
    ended.is_gone = True
    other.turn()
    assert heartbeat.has_ticked()
    other.turn()
    assert heartbeat.has_ticked()
