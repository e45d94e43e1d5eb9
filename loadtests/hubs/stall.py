"""A hub that was blocked for a while, and what became of the connections made meanwhile."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from loadtests.bench.servers.blocking import ANY_HUB, ORDERS_COME_FROM
from loadtests.frame.client import Answer

from .figures import spread

#: So shortly before the hub is back a connection may be its own: it is handed to it then, and
#: the client reads the answer a moment later. As long as a client may have to wait at all.
BACK_NANOSECONDS: Final = 50_000_000

#: So long a hub that was blocked is on probation, and a margin: see `CALM_SECONDS` of
#: `glb.accept.watchdog`. Its turns are counted before that, too; they are exact only then.
TRUSTED_NANOSECONDS: Final = 1_200_000_000

#: How often a hub is asked for. With exact turns the fourth time is the last, beside a load; a
#: race may go on for longer.
ATTEMPTS: Final = 200

#: When the answer of the hub that was blocked is given up, in seconds.
GIVE_UP_SECONDS: Final = 10


@dataclass(frozen=True)
class Stall:
    """*hub* was blocked from *began* to *ended*, in nanoseconds of `time.monotonic_ns`."""

    hub: int
    began: int
    ended: int


@dataclass(frozen=True)
class Timeline:
    """*stall*, and *answers* of a load on a server of *hubs* hubs and *clones* clones."""

    stall: Stall
    answers: Sequence[Answer] = field(repr=False)
    hubs: int
    clones: int

    def longest_wait_ms(self) -> float:
        """Return the longest that any connection waited that met the stall."""
        stall = self.stall
        met = [one for one in self.answers if one.due < stall.ended and one.answered > stall.began]
        return max((one.answered - one.due for one in met), default=0) / 1e6

    def waited_for_it(self) -> int:
        """Count the connections made meanwhile that the blocked hub has answered after all."""
        stall = self.stall
        last = stall.ended - BACK_NANOSECONDS
        return sum(stall.began <= one.due < last and self._is_its(one) for one in self.answers)

    def turns_after(self) -> int:
        """Count the connections that the hub has served of those that were made afterwards."""
        return sum(self._is_its(one) for one in self._after(0))

    def share_after(self) -> float:
        """Return that count by what each hub ought to have: 1 is a fair share."""
        after = self._after(0)
        return self.turns_after() * self.hubs / len(after) if after else 0

    def spread_after(self) -> int | None:
        """Return by how much the turns of the clones differ when the hub is trusted again.

        ``None``, if the load has ended before.
        """
        after = [one.clone for one in self._after(TRUSTED_NANOSECONDS)]
        counts = [after.count(clone) for clone in range(self.clones)]
        return spread(counts) if len(after) >= self.clones else None

    def points(self) -> list[tuple[float, float]]:
        """Return when each connection was due, in s after the stall began, and its wait in ms."""
        began = self.stall.began
        return [((one.due - began) / 1e9, (one.answered - one.due) / 1e6) for one in self.answers]

    def _after(self, nanoseconds: int) -> list[Answer]:
        return [one for one in self.answers if one.due >= self.stall.ended + nanoseconds]

    def _is_its(self, answer: Answer) -> bool:
        return answer.clone % self.hubs == self.stall.hub


def block(port: int, hub: int | None) -> Stall:
    """Have *hub* blocked, any if it is ``None``, and return when it is over.

    Raises:
        RuntimeError: *hub* got none of many connections.
    """
    order = b"%d" % (ANY_HUB if hub is None else hub)
    for _ in range(ATTEMPTS):
        with socket.socket() as sock:
            sock.settimeout(GIVE_UP_SECONDS)
            sock.bind((ORDERS_COME_FROM, 0))
            sock.connect(("127.0.0.1", port))
            sock.sendall(order)
            reply = b""
            while piece := sock.recv(64):
                reply += piece
        if reply != b"no\n":
            return Stall(*map(int, reply.split()))
    raise RuntimeError(f"hub {hub} got none of {ATTEMPTS} connections")
