"""Endings: how the connections of a server come to their end.

An `Ending` is the plan, the same for all hubs of a server: until when, what is closed before, and
whether the rest is killed. A `Closing` carries out the second part on one hub: it closes what is
idle, all at once or spread over a window, so that thousands of clients don't all come back in
the same moment.

Source: HAProxy's ``hard-stop-after`` and ``close-spread-time``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .waiting import Waiting, close_reading

if TYPE_CHECKING:
    from .acceptor import Acceptor

__all__ = ["Closing", "Ending", "InUse"]

# A client that has just connected has not asked anything yet, and has no reason to think that
# it might be closed: so long for the first request. Longer than a client on another continent
# takes to send it; a browser that connects in advance holds a drain up for no longer than that.
FIRST_REQUEST_SECONDS: Final = 1.0

# How often it is looked for what has become idle meanwhile.
LOOK_SECONDS: Final = 0.05

FOREVER: Final = float("inf")


@dataclass(frozen=True)
class Ending:
    """How the connections that are in use are to end.

    Attributes:
        timeout: How long their handlers have, in seconds; ``None`` is for ever.
        kill: Whether what is left then is killed.
        closes_idle: Whether connections that wait for their client are closed before.
        spread: Over how many seconds that is spread. With more than 0, connections that have
            no requests, but a stream or a websocket, are closed in the same way.
        began: On `time.monotonic`'s clock.
    """

    timeout: float | None
    kill: bool
    closes_idle: bool = False
    spread: float = 0.0
    began: float = field(default_factory=monotonic)

    @property
    def first_request_until(self) -> float:
        """Until when who has just connected may send its first request."""
        if self.timeout is None:
            return self.began + FIRST_REQUEST_SECONDS
        return self.began + min(FIRST_REQUEST_SECONDS, self.timeout / 2)

    @property
    def until(self) -> float:
        """When their time is over, on `time.monotonic`'s clock."""
        return FOREVER if self.timeout is None else self.began + self.timeout


class InUse(NamedTuple):
    """A connection that a handler has."""

    greenlet: Any
    acceptor: Acceptor
    #: The handler's arguments: the connection, and its peer.
    args: Any

    @property
    def sock(self) -> Any:
        """The connection, or the TLS socket that has taken it over."""
        return getattr(self.args[0], "secured", self.args[0])


class Closing:
    """Closes the idle connections of one hub.

    Args:
        waiting: Who waits there for a client.
        find: Returns what is in use there, and may be closed.
        share: Where between two of its own the connections of other hubs are closed: 0 to 1.
    """

    def __init__(
        self,
        ending: Ending,
        waiting: Waiting,
        find: Callable[[], Iterable[InUse]],
        share: float = 0.0,
    ) -> None:
        self.closed = 0
        self._ending: Final = ending
        self._waiting: Final = waiting
        self._find: Final = find
        found = [*find()]
        step = ending.spread / max(1, len(found))
        # Of those that come later nobody waits for a share in the window.
        self._due = {
            each.greenlet: ending.began + step * (place + share) for place, each in enumerate(found)
        }
        self._told: set[object] = set()

    def close_due(self) -> None:
        """Close what is idle, and whose time has come."""
        now = monotonic()
        for each in self._find():
            if each.greenlet not in self._told and self._close_if_due(each, now):
                self._told.add(each.greenlet)
                self.closed += 1

    def _close_if_due(self, in_use: InUse, now: float) -> bool:
        began = self._ending.began
        due = self._due.get(in_use.greenlet, began)
        wait = self._waiting.get(in_use.greenlet)
        if wait is not None:
            if not wait[2]:  # it has served none yet
                due = max(due, self._ending.first_request_until)
            return now >= due and self._waiting.tell(in_use.greenlet)
        if not self._ending.spread or now < due:
            return False
        return in_use.acceptor.server.is_long_lived(in_use.sock) and close_reading(in_use.sock)
