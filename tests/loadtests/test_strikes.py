"""What `loadtests.strikes` finds, and that it finds anything: short runs, and planted faults."""

from __future__ import annotations

import sys

import pytest

from loadtests.chaos.tally import Tally
from loadtests.strikes import strike

pytestmark = [
    pytest.mark.process,
    pytest.mark.thorough,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc"),
]

# The servers' process with faults: the guard sees nothing, a client gets another's words, a
# descriptor is closed twice.
NO_GUARD = """
from glb.hubs.guard import Guard
Guard._tick = lambda self: None
"""
MIXES = """
from loadtests.chaos.work import Work
answer, last = Work._answer, []
def mixing(self, request, marks):
    last.append(request)
    is_mixed = request.number % 8 == 7 and len(last) > 1
    return answer(self, last[-2] if is_mixed else request, marks)
Work._answer = mixing
"""
# Once, and nothing is accepted until the watch has met the closed number: between its look and its
# own close() the number could become a connection's, whose handler would then wait for ever.
CLOSES_TWICE = """
import os, stat, time
from glb.net.connection import Connection
close, closed = Connection.close, []
def close_twice(self):
    number = self.fileno()
    close(self)
    if closed:
        return
    time.sleep(0.002)  # by then it is another thread's
    try:
        if stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            closed.append(number)
            time.sleep(0.1)
    except OSError:
        pass
Connection.close = close_twice
"""

SERVERS = """
{fault}
from loadtests.frame.worker import serve
from loadtests.strikes import COMMANDS
serve(COMMANDS)
"""


def run(
    signals: int, monkeypatch: pytest.MonkeyPatch, hubs: int = 1, fault: str = "", loop: str = ""
) -> Tally:
    """Return what was found of servers with a *fault*, on that *loop*."""
    monkeypatch.setenv("GEVENT_LOOP", loop or "libev-cext")
    return strike(signals, hubs, 1, (sys.executable, "-c", SERVERS.format(fault=fault)))


@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
@pytest.mark.parametrize("hubs", [1, 2])
def test_both_servers_serve_on(hubs: int, loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Struck 30 times, no client is left waiting. (What else may be wrong, a longer run tells.)"""
    tally = run(30, monkeypatch, hubs, loop=loop)
    served = "new clients are served after a signal"
    assert (tally.checked[served], tally.violated[served]) == (30, 0), tally.found
    assert sum(count for what, count in tally.counts.items() if "struck: " in what) >= 30


def test_a_server_that_stays_deaf_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is struck until no client is served."""
    tally = run(3000, monkeypatch, fault=NO_GUARD)
    assert tally.violated["new clients are served after a signal"], tally.counts


def test_words_of_another_client_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each client knows its own."""
    tally = run(100, monkeypatch, fault=MIXES)
    assert any("another's" in what for *_, what in tally.found), tally.found


def test_a_descriptor_that_is_closed_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another thread's by then."""
    tally = run(10, monkeypatch, fault=CLOSES_TWICE)
    assert tally.violated["a descriptor is closed by its owner alone"], tally.found
