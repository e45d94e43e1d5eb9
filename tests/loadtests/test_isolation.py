"""What `loadtests.isolation` finds, and that it finds anything: short runs, and planted faults."""

from __future__ import annotations

import sys

import pytest

from loadtests.chaos.tally import Tally
from loadtests.isolation import isolate

pytestmark = [
    pytest.mark.process,
    pytest.mark.thorough,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc"),
]

# Nothing that a handler leaves is a reason not to use its greenlet again.
BLIND = """
from glb.hubs import greenlet_pool as handlers
handlers.Proof.holds = lambda self, one: True
handlers.HandlerGreenlet._is_bare = lambda self: True
give = handlers.Proof.give
def give_anyway(self, hub):
    give(self, hub)
    self.is_given = True
handlers.Proof.give = give_anyway
"""

# Nothing is used again, and the log doesn't say so.
SILENT = """
from glb.hubs import greenlet_pool as handlers
def refuse(self, hub):
    self.is_given = False
handlers.Proof.give = refuse
"""

# Nothing is used again, although it may be.
WASTEFUL = """
from glb.hubs import greenlet_pool as handlers
give = handlers.Proof.give
def give_and_waste(self, hub):
    give(self, hub)
    handlers.HandlerGreenlet._is_bare = lambda self: False
handlers.Proof.give = give_and_waste
"""

SERVERS = """
{fault}
from loadtests.frame.worker import serve
from loadtests.isolation import COMMANDS
serve(COMMANDS)
"""


def run(fault: str = "", hubs: int = 1) -> Tally:
    """Return what was found of 600 connections to servers with a *fault*."""
    return isolate(600, hubs, 1, (sys.executable, "-c", SERVERS.format(fault=fault)))


@pytest.mark.parametrize("hubs", [1, 2])
def test_a_short_run_finds_nothing(hubs: int) -> None:
    """Each handler is fresh, what is kept is not used again, and what is not kept is."""
    tally = run(hubs=hubs)
    assert (tally.violated, tally.found) == ({}, [])
    assert tally.counts["connections"] == 600 > tally.counts["greenlets"] > 0


def test_greenlets_that_are_used_again_too_soon_are_found() -> None:
    """What earlier handlers left is met by later ones, and so are greenlets that were kept."""
    tally = run(BLIND)
    met = [what for *_, what in tally.found if "a handler meets nothing of another's" in what]
    assert any("assert" in what for what in met), tally.found  # and what it looked at


def test_greenlets_that_are_never_used_again_are_found() -> None:
    """If the log doesn't say why; or all is proved, and they aren't in spite of that."""
    assert run(SILENT).violated["or the log says that it isn't"]
    assert run(WASTEFUL).violated["a greenlet without a trace is used again"]
