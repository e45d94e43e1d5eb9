"""Upgrades of `glb serve`, in small: the promises of the load test."""

from __future__ import annotations

import pytest

from loadtests.lossless.answers import Scenario
from loadtests.upgrade.upgrades import Failures, Upgrades

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    "scenario",
    [
        Upgrades("http", is_unix=True, hubs=2, times=2, rate=100, pause_seconds=0.05),
        Upgrades("reply", is_unix=False, hubs=1, times=1, rate=100, pause_seconds=0.05),
        Failures(rate=100, timeout=1.5),
    ],
    ids=["WSGI", "stream", "failures"],
)
def test_nothing_is_lost(scenario: Scenario) -> None:
    """0 reset, refused or lost; a process that fails leaves the old one serving."""
    told: list[str] = []
    answer = scenario.run(told.append)
    assert [each for each in answer.promises if not each.is_kept] == []
    assert len(told) == scenario.steps
