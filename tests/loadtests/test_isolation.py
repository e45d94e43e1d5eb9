"""What `loadtests.isolation` finds, and that it finds anything: short runs, and planted faults."""

from __future__ import annotations

import sys

import pytest

from ..support.helpers import run_load_test

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

# Nothing is used again, and glb doesn't say why.
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

CAMPAIGN = """
{fault}
from loadtests.isolation import main
main()
"""


def run(fault: str = "", hubs: int = 1) -> str:
    """Return what is said of 3000 connections to servers with a *fault*; nothing is well."""
    words = f"--connections 3000 --hubs {hubs} --seed 1".split()
    status, said = run_load_test("isolation", *words, program=CAMPAIGN.format(fault=fault))
    assert status in (0, 1), said
    return said if status else ""


def test_a_short_run_finds_nothing() -> None:
    """Each handler is fresh, what is kept is not used again, and what is not kept is."""
    assert run(hubs=3) == ""


def test_greenlets_that_are_used_again_too_soon_are_found() -> None:
    """What earlier handlers left is met by later ones, and so are greenlets that were kept."""
    found = run(BLIND)
    assert "assert weakref.getweakrefcount(greenlet) == BY_TRACER" in found  # what it looked at
    assert "its greenlet is another's as well" in found


def test_greenlets_that_are_never_used_again_are_found() -> None:
    """If glb doesn't say why; or all is proved, and they aren't in spite of that."""
    assert "are enough: <Proof is_given=False reason=''>" in run(SILENT)
    assert "are enough: <Proof is_given=True reason=''>" in run(WASTEFUL)
