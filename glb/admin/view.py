"""What a server is at: read from any thread, while its hubs may be stuck."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from ..model.states import State
from ..model.stats import CloneStats
from ..net.queue_depth import QueueDepth, queue_depth
from ..net.sockets import bound_address
from .pulse import Pulse

__all__ = ["ServerView", "view"]


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
    """

    address: str
    state: State
    active: int
    queue: QueueDepth | None
    clones: list[CloneStats]
    pulses: list[Pulse]

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "address": self.address,
            "state": self.state.value,
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
            "clones": [clone._asdict() for clone in self.clones],
        }


def view(server: Any, pulses: list[Pulse], last_address: str) -> ServerView:
    """Return what *server* is at now.

    Args:
        last_address: What it was bound to when it was last seen: a closed one has none.
    """
    address, queue = last_address, None
    sock = getattr(server, "socket", None)
    with contextlib.suppress(OSError):
        if sock is not None and sock.fileno() >= 0:
            address = str(bound_address(sock))
            queue = queue_depth(sock)
    return ServerView(address, server.state, server.active, queue, server.clone_stats(), pulses)
