"""States: whether a server, or one clone of it, takes connections, and why not.

::

                                     room again
                    .----------------------------------------------.
                    v         no room for one more                 |
    STOPPED ---> ACCEPTING ----------------------------------->  FULL
       ^   start  ^ |  ^ '-- accept or spawn failed, rate -.       |
       |          | |  |                                   v       |
       |   resume | |  '---- delay over -------------- BACKING_OFF |
       |          | | pause                                |       |
       |          | v                                      |       |
       |         PAUSED <---------------- pause -----------+-------'
       |
       |<--- stop, close: from any of them
       |
       '--- all are done, or killed --- DRAINING <--- drain: from any of them

``FULL`` and ``BACKING_OFF`` end by themselves. ``PAUSED`` is a clone's, and only ``resume_clone``
ends it. ``STOPPED`` ends only by a start: room in a pool does not undo it. ``DRAINING`` always
ends in ``STOPPED``.

The last server of an address that drains first serves the accept queue. Until then it moves
between ``ACCEPTING``, ``FULL`` and ``BACKING_OFF`` as before, so that it takes connections as room
comes. It shows ``DRAINING`` from the first moment on.

This module is plain data.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["MOVES", "State", "before", "of_clone", "of_server"]


class State(enum.Enum):
    """What a server, or a clone, does about new connections."""

    STOPPED = "stopped"
    ACCEPTING = "accepting"
    FULL = "full"
    BACKING_OFF = "backing off"
    PAUSED = "paused"
    DRAINING = "draining"


#: Where each state leads to. No other move happens.
MOVES: Final[Mapping[State, frozenset[State]]] = {
    State.STOPPED: frozenset({State.ACCEPTING, State.DRAINING, State.STOPPED}),
    State.ACCEPTING: frozenset(State),
    State.FULL: frozenset(State) - {State.FULL, State.BACKING_OFF},
    State.BACKING_OFF: frozenset(State) - {State.FULL, State.BACKING_OFF},
    State.PAUSED: frozenset({State.ACCEPTING, State.PAUSED, State.DRAINING, State.STOPPED}),
    State.DRAINING: frozenset({State.STOPPED}),
}

#: The states that end by themselves.
PAUSES: Final = (State.FULL, State.BACKING_OFF)


def before(state: State) -> frozenset[State]:
    """Return the states that lead to *state*."""
    return frozenset(each for each, then in MOVES.items() if state in then)


def of_server(own: State, clones: Iterable[State]) -> State:
    """Return the state of a server: its *own*, or full if its *clones* are.

    Clones that are paused, or whose accept loop has ended, don't count.

    Example:
        >>> of_server(State.ACCEPTING, [State.FULL, State.FULL])
        <State.FULL: 'full'>
    """
    if own is State.ACCEPTING and {*clones} - {State.PAUSED, State.STOPPED} == {State.FULL}:
        return State.FULL
    return own


def of_clone(own: State, servers: State) -> State:
    """Return the state of a clone: its *own*, within its *servers*.

    Example:
        >>> of_clone(State.PAUSED, State.ACCEPTING), of_clone(State.PAUSED, State.STOPPED)
        (<State.PAUSED: 'paused'>, <State.STOPPED: 'stopped'>)
    """
    if State.DRAINING in (own, servers):
        return State.DRAINING
    return servers if servers is State.STOPPED or own is State.ACCEPTING else own
