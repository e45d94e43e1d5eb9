"""What do many hubs buy, and what do they cost, with one server over them?

    python -m loadtests.hubs

Servers of glb with clones on 1 to 16 hubs, and gevent's, each in a process of its own, in
interleaved rounds: is the order exact, which connections wait while a hub is blocked, what do
handlers that block cost, what does a connection cost, and how long does a client wait: --only
order,stall,block,price.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from loadtests.bench.servers.job import (
    ANY_HUB,
    BLOCK_MICROSECONDS,
    ORDERS_COME_FROM,
    STALL_MICROSECONDS,
    Job,
)
from loadtests.frame.client import Served, exchange
from loadtests.frame.experiment import LOAD, Experiment, Limit, Question, Shown, Size
from loadtests.frame.figures import BUSY, CPU, ERRORS, OPEN_P99, OUT_OF_ORDER, RATE, Figure
from loadtests.frame.process import Contender, Server

#: By how much the turns of clones differ: by 1 at most if they are exact. After a stall: when the
#: hub is trusted again.
SPREAD: Final = Figure("spread", "turns differ by", 0, max)
SPREAD_AFTER: Final = Figure("spread_after", "trusted again: turns differ by", 0, max)
#: While a hub is blocked.
LONGEST_WAIT: Final = Figure("longest_wait", "longest wait ms", 1, max)
WAITED_FOR_IT: Final = Figure("waited_for_it", "waited for it", 0, max)
#: Of the hub when it is back, and of what a hub ought to have.
TURNS_AFTER: Final = Figure("turns_after", "its turns after", 0, min, is_more_better=True)
SHARE_AFTER: Final = Figure("share_after", "x fair share", 2)
AFTER: Final = (TURNS_AFTER, SHARE_AFTER, SPREAD_AFTER)

#: Connections/s while a hub is blocked: so few that each is one to look at.
STALL_RATE: Final = 100

#: What a hub could do at best, if each of its handlers blocks it: connections/s.
BLOCK_RATE: Final = 1e6 / BLOCK_MICROSECONDS

#: The load goes on for so long before a hub is blocked.
STALL_BEFORE_SECONDS: Final = 1.0

#: So shortly before the hub is back a connection may be its own: it is handed to it then, and
#: the client reads the answer a moment later. As long as a client may have to wait at all.
BACK_NANOSECONDS: Final = 50_000_000

#: So long a hub that was blocked is on probation, and a margin: see `CALM_SECONDS` of
#: `glb.accept.watchdog`. Its turns are counted before that, too; they are exact only then.
TRUSTED_NANOSECONDS: Final = 1_200_000_000

#: How often a hub is asked for. With exact turns the fourth time is the last, beside a load; a
#: race may go on for longer.
ATTEMPTS: Final = 200


def _glb(name: str, title: str, hubs: int, policy: str = "round_robin") -> Contender:
    # Handlers that block want a clone each; other questions are not about their number.
    clones, options = hubs if name.startswith("block-") else 8, (str(hubs), policy)
    return Contender(name, f"glb, {title}", "streams:glb", clones, options=options)


ORDER: Final = (_glb("order-4", "4 hubs", 4),)
STALL: Final = (
    Contender("stall-gevent", "gevent StreamServer", "streams:racing"),
    Contender("stall-racing", "gevent, 4 hubs in 4 threads", "streams:threads", 4),
    _glb("stall-1", "1 hub", 1),
    _glb("stall-4", "4 hubs, hub 2 blocked", 4),
    _glb("stall-4-home", "4 hubs, hub 0 blocked", 4),
)
BLOCK: Final = (
    Contender("block-gevent", "gevent StreamServer", "streams:racing"),
    _glb("block-1", "1 hub", 1),
    *(_glb(f"block-{hubs}", f"{hubs} hubs", hubs) for hubs in (2, 4, 8, 16)),
)
PRICE: Final = (
    Contender("price-gevent", "gevent StreamServer", "streams:racing"),
    _glb("price-1", "1 hub", 1),
    _glb("price-2", "2 hubs", 2),
    _glb("price-2-first", "2 hubs, the first first", 2, "first"),
    _glb("price-4", "4 hubs", 4),
)

#: Which hub is blocked, if it isn't the first.
STALLED: Final = {"stall-racing": ANY_HUB, "stall-4": 2}
BLOCKED: Final = ("stall-4", "stall-4-home")


def hubs_of(one: Contender) -> int:
    return int(one.options[0]) if one.options else one.number


@dataclass(frozen=True)
class Stall:
    """*hub* was blocked from *began* to *ended*, in nanoseconds of `time.monotonic_ns`."""

    hub: int
    began: int
    ended: int

    def figures(self, seen: Sequence[Served], hubs: int, clones: int) -> dict[Figure, float]:
        """Return what became of the connections *seen* on a server of so many hubs and clones."""

        def its(some: Sequence[Served]) -> int:
            return sum(one.clone % hubs == self.hub for one in some)

        waits = [
            (one.answered - one.due) / 1e6
            for one in seen
            if one.due < self.ended and one.answered > self.began
        ]
        last = self.ended - BACK_NANOSECONDS
        after = [one for one in seen if one.due >= self.ended]
        trusted = [one.clone for one in after if one.due >= self.ended + TRUSTED_NANOSECONDS]
        found: dict[Figure, float] = {
            LONGEST_WAIT: max(waits, default=0),
            WAITED_FOR_IT: its([one for one in seen if self.began <= one.due < last]),
            TURNS_AFTER: its(after),
            SHARE_AFTER: its(after) * hubs / len(after) if after else 0,
        }
        if len(trusted) >= clones:  # the load hasn't ended before
            found[SPREAD_AFTER] = spread(trusted, clones)
        return found


def spread(clones: Sequence[int], count: int) -> int:
    """Return how many more turns one of *count* clones has had than another."""
    turns = [clones.count(one) for one in range(count)]
    return max(turns) - min(turns)


def block(port: int, hub: int) -> Stall:
    """Have *hub* blocked, and return when it is over.

    Raises:
        RuntimeError: It got none of many connections.
    """
    for _ in range(ATTEMPTS):
        if (reply := exchange(port, str(hub), source=ORDERS_COME_FROM)) != ["no"]:
            return Stall(*map(int, reply))
    raise RuntimeError(f"hub {hub} got none of {ATTEMPTS} connections")


class Hubs(Experiment):
    name = "hubs"
    every = (*ORDER, *STALL, *BLOCK, *PRICE)
    sizes = (
        *LOAD,
        Size("stall_rounds", 3, 1),  # of order and blocked hubs, where the worst round counts
        Size("open_seconds", 4.0, 0.5),
        Size("block_seconds", 2.0, 0.5),
        Size("stall_after_seconds", 2.5, 1.5),  # how long the load goes on when the hub is back
    )
    settle_seconds = 0.15  # glb's watchdog looks around for 0.1 s more, which is part of the price
    promised = (
        Limit("order-4", OUT_OF_ORDER, 0),
        Limit("order-4", SPREAD, 1),
        *(Limit(name, LONGEST_WAIT, 50) for name in BLOCKED),
        *(Limit(name, figure, 0) for name in BLOCKED for figure in (ERRORS, WAITED_FOR_IT)),
        *(Limit(name, figure, 1) for name in BLOCKED for figure in (TURNS_AFTER, SPREAD_AFTER)),
        Limit("block-16", RATE, 13, "block-1"),
        Limit("price-2", CPU, 1.6, "price-1"),
        Limit("price-2-first", CPU, 1.1, "price-1"),
        Limit("price-2", OPEN_P99, 2, "price-1"),
        Limit("price-4", OPEN_P99, 2, "price-1"),
    )

    shown = (
        Shown("Is the order exact?", ORDER, (OUT_OF_ORDER, SPREAD, ERRORS)),
        Shown(
            "Which connections wait for a hub that is blocked?",
            STALL,
            (WAITED_FOR_IT, *AFTER, ERRORS),
            (LONGEST_WAIT,),
        ),
        Shown("If every handler blocks for 5 ms", BLOCK, BUSY, (RATE,), ("block-1",)),
        Shown("What does a connection cost?", PRICE, BUSY, (CPU, RATE, OPEN_P99), ("price-1",)),
    )

    def questions(self) -> Iterator[Question]:
        rounds, few = self.plan.rounds, self.plan.stall_rounds
        for _ in range(few):
            yield Question("order", ORDER, self._order, job=Job.ORDER)
        yield Question("stall", STALL, self._stall, few, Job.STALL, 160)
        yield Question("block", BLOCK, self._block, rounds, Job.BLOCK, 160)
        yield Question("price", PRICE, self.price, rounds, warm_up=2000)

    def _order(self, one: Contender, server: Server) -> None:
        self.order(one, server)
        load = self.load(server, "close", count=self.plan.connections)
        clones = [each.clone for each in load.connections]
        self.results.add(one.name, {SPREAD: spread(clones, one.number)})

    def _stall(self, one: Contender, server: Server) -> None:
        hub = STALLED.get(one.name, 0)
        seconds = STALL_BEFORE_SECONDS + STALL_MICROSECONDS / 1e6 + self.plan.stall_after_seconds
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(self.load, server, "open", seconds=seconds, rate=STALL_RATE)
            time.sleep(STALL_BEFORE_SECONDS)  # under load: what there is to compare with
            stall = block(server.port, hub)
            seen = loading.result().connections
        self.results.add(one.name, stall.figures(seen, hubs_of(one), one.number))

    def _block(self, one: Contender, server: Server) -> None:
        # As many as take as long, if hubs do what they could.
        count = round(BLOCK_RATE * hubs_of(one) * self.plan.block_seconds)
        self.results.add(one.name, self.load(server, "close", count=count).rate())


main = Hubs.command(__doc__)

if __name__ == "__main__":
    main()
