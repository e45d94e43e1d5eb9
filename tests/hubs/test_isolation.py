"""Whatever handlers leave behind, no other handler meets any of it: many of them, at random.

``GLB_FUZZ_CONNECTIONS`` is how many, ``GLB_FUZZ_HUBS`` on how many hubs, and ``GLB_FUZZ_SEED``
repeats a run: ``python -m loadtests.isolation`` sets them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import gevent
import pytest
from gevent.hub import Hub
from gevent.pool import Pool

from glb.hubs import signals
from glb.hubs.greenlet_pool import PROOF
from glb.server import StreamServer
from loadtests.chaos.service import what_is_left

from ..support.helpers import comes_true, connect, let_hub_turn, wait_until
from ..support.traces import Fuzz
from .test_greenlet_pool import (
    LOCAL,
    alive,
    created,  # noqa: F401  # a fixture
    talk,
    tracer_is_not_counted,  # noqa: F401  # a fixture
)

CONNECTIONS: Final = int(os.environ.get("GLB_FUZZ_CONNECTIONS", "3000"))
SEED: Final = os.environ.get("GLB_FUZZ_SEED") or str(random.randrange(10**9))
HUBS: Final = os.environ.get("GLB_FUZZ_HUBS")
#: What a test does within its 60 seconds on any machine, and what there is memory for: all that
#: handlers leave is kept until its end.
ROUND: Final = 5000
ROUNDS: Final = max(4, math.ceil(CONNECTIONS / ROUND))

#: More than a wake-up takes, few enough that each turn of the hub has several.
AT_ONCE: Final = 32
#: Handlers of a bounded server: fewer than there are clients.
BOUND: Final = 12

END_SECONDS: Final = 30.0

#: So many kinds of faults are shown.
SHOWN: Final = 20


class Handler:
    """A `Fuzz` for each hub: nothing of one is of another thread's."""

    def __init__(self, seed: str) -> None:
        self.server: Any = None
        self.fuzzes: dict[Any, Fuzz] = {}
        self._seed = seed

    def __call__(self, sock: Any, peer: Any) -> object:
        hub: Any = gevent.get_hub()
        if hub not in self.fuzzes:
            fuzz = self.fuzzes[hub] = Fuzz(f"{self._seed}-{len(self.fuzzes)}")
            fuzz.server = self.server
            hub.handle_error = fuzz.report
        return self.fuzzes[hub](sock, peer)

    def count(self, what: str) -> int:
        return sum(getattr(fuzz, what) for fuzz in [*self.fuzzes.values()])  # others may come

    def end(self) -> None:
        """Let go of all that was kept, each in its own hub."""
        threads = [worker.thread for worker in self.server.glb_engine.workers]
        senders = {thread.hub: thread.send for thread in threads if thread is not None}
        ends = {hub: partial(_end, fuzz) for hub, fuzz in self.fuzzes.items()}
        answers = [signals.ask(senders[hub], end) for hub, end in ends.items() if hub in senders]
        for hub in ends.keys() - senders.keys():
            assert hub is gevent.get_hub()
            ends[hub]()
        assert all(answer(END_SECONDS) for answer in answers)


def _end(fuzz: Fuzz) -> bool:
    fuzz.end()
    return True  # `None` is no answer


@pytest.fixture
def handler(request: pytest.FixtureRequest) -> Iterator[Handler]:
    yield Handler(f"{SEED}-{request.node.callspec.params['turn']}")
    gevent.get_hub().__dict__.pop("handle_error", None)


def come(address: Any, count: int, dice: random.Random) -> None:
    """Have *count* clients come in bursts, so that a wake-up of the server has several."""

    def answer() -> None:
        with contextlib.suppress(ConnectionError):  # its handler may have ended before the answer
            talk(connect(address))

    clients, burst = Pool(AT_ONCE), 0

    def has_room() -> bool:
        return clients.free_count() >= burst

    while count:
        burst = min(count, dice.choice((1, 1, 2, 5, AT_ONCE // 2, AT_ONCE)))
        wait_until(has_room)
        for _ in range(burst):
            clients.spawn(answer)
        count -= burst
    clients.join(raise_error=True)


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_a_handler_meets_nothing_of_anothers(
    turn: int,
    handler: Handler,
    created: list[None],  # noqa: F811  # the fixture
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each greenlet is as a fresh one; it is used again if nothing is left, and only then."""
    connections = math.ceil(CONNECTIONS / ROUNDS)
    hubs = int(HUBS or 1 + turn // 2 % 2)
    spawn: Any = ("default", BOUND)[turn % 2]
    printed: list[str] = []
    monkeypatch.setattr(Hub, "print_exception", lambda _, *what: printed.append(repr(what)))
    print(f"\nGLB_FUZZ_CONNECTIONS={CONNECTIONS} GLB_FUZZ_SEED={SEED}, turn {turn}")
    with StreamServer(LOCAL, handler, clones=max(3, hubs), hubs=hubs, spawn=spawn) as server:
        handler.server = server
        server.start()
        come(server.address, connections, random.Random(f"{SEED}-{turn}"))
        wait_until(lambda: handler.count("done") == connections)
        handler.end()
        let_hub_turn()
        comes_true(lambda: not what_is_left(server))
        left = what_is_left(server)
        stats = server.clone_stats()
    let_hub_turn()
    counts: Counter[str] = Counter()
    for fuzz in handler.fuzzes.values():
        fuzz.look()
        counts += fuzz.counts
    print(f"{connections} connections on {hubs} hubs with {spawn=}, {len(created)} greenlets")
    print(", ".join(f"{what}: {count}" for what, count in sorted(counts.items())))
    faults = [fault for fuzz in handler.fuzzes.values() for fault in fuzz.faults]
    # The first of each kind: with the connection it says what was found there.
    firsts = {fault.partition(": ")[2]: fault for fault in reversed(faults)}
    print(*[*firsts.values()][:SHOWN], sep="\n")
    assert faults == []
    assert left == []
    assert sum(clone.accepted for clone in stats) == connections == handler.count("begun")
    assert sum(clone.completed + clone.failed for clone in stats) == connections
    # So many may run at a time, on each hub; and some that wait to be looked at.
    most = 2 * AT_ONCE * hubs + handler.count("spoiled")
    assert len(created) <= most if PROOF.is_given else PROOF.reason, f"{most} are enough: {PROOF}"
    assert printed == []
    logged = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert all("handlers run in fresh greenlets" in each for each in logged), logged
    assert alive() == 0
