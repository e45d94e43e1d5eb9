"""What glb tells about itself: plain data, a snapshot each."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["CloneStats", "EntryStats"]


class CloneStats(NamedTuple):
    """What one clone of a server has done.

    ``accepted`` is the sum of ``active``, ``completed``, ``failed`` and of the handlers
    that were spawned and have not run yet.

    Attributes:
        index: The clone, 0 to N-1.
        accepted: Connections that it was given.
        active: Handlers that run now.
        completed: Handlers that returned.
        failed: Handlers that raised or were killed, and connections for which none could
            be spawned.
        ready: Whether it waits for a connection now.
        hub: The hub on which it lives, 0 to M-1; 0 is the one that started the server.
    """

    index: int  # type: ignore[assignment]  # tuple.index is of no use here
    accepted: int
    active: int
    completed: int
    failed: int
    ready: bool
    hub: int = 0


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
