"""What `loadtests.isolation` finds, and that it finds anything: short runs, and planted faults."""

from __future__ import annotations

import sys

import pytest

from ..support.helpers import run_load_test

pytestmark = [
    pytest.mark.process,
    pytest.mark.thorough,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs epoll"),
]

# Nothing that a handler leaves is a reason not to use its greenlet again.
BLIND = """
from glb.hubs import greenlet_pool as handlers
from loadtests.isolation.__main__ import main
handlers.Proof.holds = lambda self, one: True
handlers.HandlerGreenlet._is_bare = lambda self: True
give = handlers.Proof.give
def give_anyway(self, hub):
    give(self, hub)
    self.is_given = True
handlers.Proof.give = give_anyway
main()
"""

# Nothing is used again, and the log doesn't say so.
SILENT = """
from glb.hubs import greenlet_pool as handlers
from loadtests.isolation.__main__ import main
def refuse(self, hub):
    self.is_given = False
handlers.Proof.give = refuse
main()
"""


def run(program: str = "", hubs: int = 1) -> tuple[int, str]:
    """Return the exit status of a run, and what it printed."""
    plan = ("--connections", "600", "--hubs", str(hubs), "--seed", "1")
    return run_load_test("isolation", *plan, program=program)


@pytest.mark.parametrize("hubs", [1, 2])
def test_a_short_run_finds_nothing(hubs: int) -> None:
    """Each handler is fresh, what is kept is not used again, and what is not kept is."""
    status, printed = run(hubs=hubs)
    assert (status, "\n0 faults, in " in printed) == (0, True), printed
    assert "600 connections that leave traces" in printed
    assert "60 connections that keep their greenlet: 60 greenlets" in printed
    assert "used again: yes" in printed


def test_greenlets_that_are_used_again_too_soon_are_found() -> None:
    """What earlier handlers left is met by later ones, and there are fewer than were kept."""
    status, printed = run(BLIND)
    assert status == 1, printed
    assert "assert" in printed  # a handler that was not fresh, and what it looked at
    assert "60 connections that keep their greenlet: " in printed
    assert "60 connections that keep their greenlet: 60 greenlets" not in printed


def test_greenlets_that_are_never_used_again_are_found() -> None:
    """If the log doesn't say why."""
    status, printed = run(SILENT)
    assert status == 1, printed
    assert "the log doesn't say so" in printed
