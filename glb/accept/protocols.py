"""Protocols: what the order of turns asks of clones and hubs, and what it hands to them."""

from __future__ import annotations

import enum
from collections import deque
from typing import Any, Protocol

from ..model.accept_errors import Episode
from .ring import Team

__all__ = [
    "Closable",
    "Dispatcher",
    "Member",
    "PendingConnection",
    "SelfAccepting",
    "Turn",
    "Watchdog",
]


class Turn(enum.Enum):
    """What came of a turn."""

    TAKEN = "a connection was taken from the accept queue"
    EMPTY = "the accept queue is empty"
    PASSED = "the clone was not ready after all, and has left the ring"


class Member(Protocol):
    """A clone in the ring. Called from any thread, but for the last three."""

    @property
    def load(self) -> int: ...
    @property
    def dispatcher(self) -> Dispatcher:
        """Of the hub on which it lives."""

    @property
    def team(self) -> Team[Any]: ...
    @property
    def is_not_reclaimable(self) -> bool:
        """Whether a connection that it takes can't be reclaimed before its handler begins."""

    @property
    def accepts_itself(self) -> bool:
        """Whether code of the program accepts in its turn: a ``do_read`` of a server's own."""

    @property
    def runs_at_once(self) -> bool:
        """Whether a handler, a greenlet or code of the program may run within its turn.

        Other hubs don't wait until that comes back: they are woken before.
        """

    @property
    def context(self) -> object:
        """The server or the listener, for a report."""

    @property
    def max_accept(self) -> int:
        """How many connections a wake-up may take, counting those before this turn."""

    @property
    def failures(self) -> Episode:
        """What was reported already, of errors that are no lack of room."""

    def wants(self, error: OSError) -> bool:
        """Whether `broken` is to have *error*, of whatever kind, rather than a pause follow."""

    def next_delay(self) -> float:
        """How long to pause now, in seconds, growing with each call; negative: don't."""

    def has_room(self) -> bool:
        """Whether it could take one more; if not, it has left the ring."""

    def may_expect_locked(self) -> bool:
        """Whether its own limit lets one more be handed to it; if not, it has left the ring."""

    def expect_locked(self) -> None:
        """A connection was handed to it, and is on its way."""

    def unexpect_locked(self) -> None:
        """One that was on its way has arrived, or won't come."""

    # In its own hub:

    def deliver(self, plain: Any, address: Any, moves: int | None = None) -> bool:
        """Give a connection to its handler or greenlet; ``False`` if it has none any more.

        Args:
            plain: Its plain socket, which is the member's if that can.
            moves: How often it was taken back, of one that was handed over; ``None`` of others.
        """

    def accept_failed(self, error: BaseException) -> Turn:
        """An accept for it has failed, in its turn.

        Raises errors of peers that left and of a lack of room, and of the rest those that it
        can give to no greenlet, and has not reported.
        """

    def take(self, handed: PendingConnection) -> bool:
        """Deliver a connection that was handed over to it; ``False`` if it can't."""

    def broken(self, error: OSError) -> None:
        """An accept for it has failed. It has left the ring, and joins again if it goes on."""


class SelfAccepting(Member, Protocol):
    """A member for which code of the program accepts."""

    def take_turn(self) -> Turn:
        """Accept one connection, and deliver it. Raises as `accept_failed`."""


class Dispatcher(Protocol):
    """One hub's part of an entry; see `glb.accept.dispatcher.Dispatcher`."""

    is_watchdog: bool
    #: What was accepted here, or taken up.
    accepted: int
    #: What was handed to this hub's clones, oldest first.
    inbox: deque[PendingConnection]
    #: Other hubs' dispatchers that it has handed connections to, and not woken yet.
    handed_to: dict[Dispatcher, None]
    #: The teams of servers that have clones here, and are open.
    servers: dict[Team[Any], None]
    #: Its teams that have turns, as far as they know: those of servers that accept, and
    #: `singles`.
    admitted: dict[Team[Any], None]
    singles: Team[Any]
    #: Whether its clones have turns, as far as the hub is concerned.
    has_turns: bool
    #: When it last let something lie, on `time.monotonic`'s clock; ``None``, if it has been
    #: quick for long enough.
    stalled_at: float | None
    #: When it was last handed something since, by `HandOver.clock` of `glb.accept.handover`, and
    #: how often in succession it has begun to handle that before the next tick.
    tried_at: int
    quick: int

    @property
    def thread(self) -> int: ...
    @property
    def is_dead(self) -> bool: ...
    @property
    def is_here(self) -> bool: ...
    @property
    def is_watching(self) -> bool: ...
    @property
    def is_paused(self) -> bool: ...
    def close(self) -> None: ...
    def abandon(self) -> None:
        """Its loop is not run in this process."""

    def reclaim_jobs(self) -> list[PendingConnection]:
        """Take away connections whose handlers have not begun."""

    def send(self, call: Any) -> bool: ...
    def run(self, call: Any) -> None: ...
    def wake_locked(self) -> None:
        """Have its hub look what there is to do."""

    def look_locked(self) -> None:
        """The ring has changed: have its hub watch the socket, if it ought to and doesn't."""


class Watchdog(Dispatcher, Protocol):
    """What takes the lead when a hub is stalled; see `glb.accept.watchdog`."""

    @property
    def thread_of_its_own(self) -> Any: ...

    #: Whether it looks for hubs that are too slow.
    is_ticking: bool

    def arm_locked(self) -> None:
        """Start to look for hubs that are too slow."""

    def later(self, delay: float, call: Any) -> bool:
        """Have *call* called *delay* seconds from now, in a hub that turns. From any thread."""


class Closable(Protocol):
    """The descriptor of a clone, which a fork closes in the child if its thread isn't there."""

    def close_in_child(self) -> None: ...


class PendingConnection:
    """A connection between the accept queue and its handler.

    It has the plain socket, and not the number of its descriptor: the socket object is its only
    owner, whatever refers to it and whatever is raised while it goes from hand to hand.
    """

    __slots__ = ("address", "clock", "member", "moves", "sock")

    def __init__(self, sock: Any, address: Any, moves: int = 0) -> None:
        #: Its plain socket, and its peer.
        self.sock = sock
        self.address = address
        #: The member that it was handed to, and when: see `glb.accept.handover.HandOver.clock`.
        self.member: Any = None
        self.clock = 0
        #: How often it was taken back. Each time it may lie twice as long: where all hubs are
        #: slow, it is to come to rest.
        self.moves = moves
