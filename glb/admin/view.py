"""Views: the state of a server at one moment, read from any thread, also while hubs are stuck."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from ..accept.handover import HandOver
from ..model.states import State
from ..model.stats import CloneStats
from ..net.queue_depth import QueueDepth, queue_depth
from ..net.sockets import bound_address
from ..serve.hub_worker import HubWorker
from .passed_over import STALLED, PassedOver
from .pulse import Pulse

__all__ = ["SHOWN_STATES", "ServerView", "stalled_hubs", "view"]

#: Those of a clone, as people see them.
SHOWN_STATES: Final = (*(each.value for each in State), STALLED)


@dataclass(frozen=True)
class ServerView:
    """A server at one moment.

    Attributes:
        address: As a URL has it, or ``unix:/path``.
        state: See `glb.model.states`.
        active: Connections for which a handler runs, or is about to.
        queue: Of its accept queue; ``None`` where the kernel doesn't tell, or it is closed.
        clones: By index.
        pulses: Of its hubs, by index.
        passed_over: By clone: turns that it did not get, by reason.
        timeouts: How often time was up, by hub and kind: see `glb.model.stats.TIMEOUT_KINDS`.
        pauses: How often it accepted nothing for a while, by `glb.model.stats.PAUSE_REASONS`.
        taken_back: Connections that were taken back from a hub that was stalled, by hub.
        durations: Of its requests, if it counts them; see `glb.http.durations`.
    """

    address: str
    state: State
    active: int
    queue: QueueDepth | None
    clones: list[CloneStats]
    pulses: list[Pulse]
    passed_over: list[dict[str, int]]
    timeouts: list[dict[str, int]] = field(default_factory=list)
    pauses: dict[str, int] = field(default_factory=dict)
    taken_back: list[int] = field(default_factory=list)
    durations: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        clones = []
        for clone, turns in zip(self.clones, self.passed_over, strict=True):
            state, stuck = self.shown(clone)
            shown = {"shown_state": state, "stalled_seconds": stuck, "passed_over": turns}
            clones.append({**clone._asdict(), **shown})
        is_stalled = {each["shown_state"] for each in clones} == {STALLED}
        return {
            "address": self.address,
            "state": self.state.value,
            "shown_state": STALLED if is_stalled else self.state.value,
            "active": self.active,
            "accept_queue": None if self.queue is None else self.queue._asdict(),
            "hubs": [
                {
                    "index": index,
                    "lag_seconds": round(pulse.lag, 6),
                    "is_stalled": pulse.is_stalled,
                    "stalled_at": pulse.place,
                    "stalls": pulse.stalls,
                }
                for index, pulse in enumerate(self.pulses)
            ],
            "clones": clones,
        }

    def shown(self, clone: CloneStats) -> tuple[str, float]:
        """Return the state of *clone* as people see it, one of `SHOWN_STATES`.

        While its hub is stuck, it is stalled; and for how many seconds.
        """
        stuck = 0.0
        if clone.hub < len(self.pulses) and clone.state != State.STOPPED.value:
            stuck = round(self.pulses[clone.hub].seconds_stuck, 3)
        shown = STALLED if stuck else clone.state
        return shown, stuck


def view(
    server: Any, pulses: list[Pulse], passed_over: PassedOver, last_address: str
) -> ServerView:
    """Return the view of *server* now.

    Args:
        last_address: Its address in the last view: a closed server has none.
    """
    address, queue = last_address, None
    sock = getattr(server, "socket", None)
    with contextlib.suppress(OSError):
        if sock is not None and sock.fileno() >= 0:
            address = str(bound_address(sock))
            queue = queue_depth(sock)
    engine, clones = server.glb_engine, server.clone_stats()
    workers, turns = [*engine.workers], engine.admission.turns
    pauses = Counter(engine.admission.pauses)
    if turns is not None:
        pauses.update(turns.pauses)
    durations = getattr(server, "durations", None)  # of HTTP alone
    return ServerView(
        address,
        server.state,
        server.active,
        queue,
        clones,
        pulses,
        passed_over.look(clones, stalled_hubs(server)),
        timeouts=[worker.timeouts.copy() for worker in workers],
        pauses=pauses,
        taken_back=[_taken_back(turns, worker) for worker in workers],
        durations={} if durations is None else durations.total(),
    )


def stalled_hubs(server: Any) -> set[int]:
    """Return the indexes of *server*'s hubs that don't turn."""
    return {each.index for each in server.glb_engine.workers if not each.is_ready}


def _taken_back(turns: HandOver | None, worker: HubWorker) -> int:
    dispatcher = worker.dispatcher
    if turns is None or dispatcher is None:
        return 0
    return turns.taken_back_from[dispatcher.thread]
