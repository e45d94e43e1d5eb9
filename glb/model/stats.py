"""Statistics and reports: plain data, a snapshot each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

__all__ = [
    "PAUSE_REASONS",
    "TIMEOUT_KINDS",
    "CloneStats",
    "DrainReport",
    "EntryStats",
    "RollReport",
    "jain",
]

#: What was waited for when time was up: the header of the PROXY protocol, TLS's handshake, a
#: client's first byte, the rest of a request's head, another request (or the end of `glb.idle`),
#: the rest of a body, the application, or a client that takes its reply.
TIMEOUT_KINDS: Final = (
    "proxy_header",
    "handshake",
    "first_byte",
    "head",
    "idle",
    "body",
    "request",
    "send",
)

#: Why a server accepts nothing for a while: its handlers are as many as they may be, its rate is
#: used up, no descriptor or memory is left, or a handler could not be started.
PAUSE_REASONS: Final = ("full", "rate", "out_of_room", "error")


class CloneStats(NamedTuple):
    """What one clone of a server has done.

    ``accepted`` is the sum of ``active``, ``completed``, ``failed`` and of what a ``spawn`` of the
    program's own was given and has not run yet, unless its own ``do_handle``, or its accept loop,
    kept connections.

    Attributes:
        index: The clone, 0 to N-1.
        accepted: Connections that it was given.
        active: Connections whose handler runs, or is certain to.
        completed: Handlers that returned.
        failed: Handlers that raised or were killed, and connections for which none could
            be spawned.
        ready: Whether it waits for a connection now.
        hub: The hub on which it lives, 0 to M-1; 0 is the one that started the server.
        state: What it does about new connections: ``"stopped"``, ``"accepting"``, ``"full"``,
            ``"backing off"``, ``"paused"`` or ``"draining"``; see `glb.model.states`.
    """

    index: int  # type: ignore[assignment]  # tuple.index is of no use here
    accepted: int
    active: int
    completed: int
    failed: int
    ready: bool
    hub: int = 0
    state: str = "accepting"


class DrainReport(NamedTuple):
    """What became of the connections that were in use when a drain began.

    Attributes:
        finished: Those whose handlers have ended by themselves; HTTP connections with their reply.
        closed_idle: Those that were closed while idle, between two requests, or by ``spread``.
        killed: Those whose handlers were killed at the deadline.
        seconds: How long it took.
    """

    finished: int
    closed_idle: int
    killed: int
    seconds: float

    @classmethod
    def total(cls, reports: Iterable[DrainReport], seconds: float) -> DrainReport:
        """Return the sums of *reports*, which took *seconds* together."""
        parts = [*reports]
        return cls(
            sum(each.finished for each in parts),
            sum(each.closed_idle for each in parts),
            sum(each.killed for each in parts),
            seconds,
        )


class RollReport(NamedTuple):
    """What became of the connections of a server that was rolled.

    Attributes:
        clones: Each clone's, by index.
        seconds: How long all of it took.
    """

    clones: tuple[DrainReport, ...]
    seconds: float


class EntryStats(NamedTuple):
    """What the registry knows of one open address.

    Attributes:
        address: The address really bound, as ``getsockname()`` gives it.
        clones: Open clones.
        ready: Clones that wait for a connection now.
        accepted: Connections given to its clones since it was opened.
        shared: Whether a later `glb.bind_load_balanced` of the address joins it.
    """

    address: Any
    clones: int
    ready: int
    accepted: int
    shared: bool


def jain(counts: Sequence[int]) -> float:
    """Return Jain's fairness index: 1 when all are equal, 1/N when one has everything.

    Example:
        >>> jain([250, 250, 250, 250]), jain([1000, 0, 0, 0])
        (1.0, 0.25)
    """
    squares = sum(count * count for count in counts)
    return sum(counts) ** 2 / (len(counts) * squares) if squares else 1.0
