"""`tests.support.own_network`: what a run binds is no other process's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ..support import own_network


@pytest.mark.skipif(not own_network.is_own(), reason="needs the right to make a network")
def test_a_run_has_a_network_of_its_own_and_children_may_leave_it() -> None:
    """They are in another one then."""
    look = [sys.executable, "-c", "import os; print(os.readlink('/proc/self/ns/net'))"]
    outside, inside = (
        subprocess.run(
            look, capture_output=True, text=True, check=True, preexec_fn=each
        ).stdout.strip()
        for each in (own_network.leave, None)
    )
    assert inside == os.readlink("/proc/self/ns/net") != outside
