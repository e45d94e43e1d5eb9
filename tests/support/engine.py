"""The one door to what stands behind a server: tests that look there come by these.

They are typed loosely: tests know which parts are there in a server that is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glb.accept.registry import Entry
from glb.serve.acceptor import Acceptor
from glb.serve.clone_set import CloneSet
from glb.server import StreamServer


def workers_of(server: StreamServer) -> Sequence[Any]:
    """Return the hub workers of *server*, by hub."""
    return server.glb_engine.workers.all


def admission_of(server: StreamServer) -> Any:
    """Return what says whether the clones of *server* have turns."""
    return server.glb_engine.admission


def turns_of(server: StreamServer) -> Any:
    """Return the turns of the address of *server*; ``None`` if it is closed."""
    return admission_of(server).turns


def clones_of(server: StreamServer) -> CloneSet:
    """Return the clone set of *server*."""
    return server.glb_engine.clones


def acceptors_of(server: StreamServer) -> Sequence[Acceptor]:
    """Return the acceptors of *server*, by clone."""
    return clones_of(server).acceptors


def entry_of(server: StreamServer) -> Entry:
    """Return the registry's entry of the address of *server*, which is open."""
    return clones_of(server).listeners[0].entry


def callers_of(server: StreamServer) -> set[object]:
    """Return the greenlets that wait for handlers of *server* to end."""
    return server.glb_engine.workers.callers


def idle_here(server: StreamServer) -> Any:
    """Return the connections of *server*, on this hub, that wait for their client."""
    return server.glb_engine.idle_here
