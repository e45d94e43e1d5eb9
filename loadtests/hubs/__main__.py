"""What do many hubs buy, and what do they cost, with one server over them?

    python -m loadtests.hubs

Servers of glb with clones on 1 to 16 hubs, and gevent's, each in a process of its own, in
interleaved rounds: is the order exact, which connections wait while a hub is blocked, what do
handlers that block cost, what does a connection cost, and how long does a client wait: --only
order,stall,block,price. Printed are tables, and what glb promises beside what was measured; JSON,
Markdown and a plot are written to a folder. Exit status 0 only if every promise was measured and
kept.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from loadtests.bench.servers.job import (
    ANY_HUB,
    BLOCK_MICROSECONDS,
    ORDERS_COME_FROM,
    STALL_MICROSECONDS,
    Job,
)
from loadtests.frame.client import Load, Served, ask_in_turn, exchange
from loadtests.frame.experiment import Experiment, Limit, Question, size
from loadtests.frame.experiment import Plan as AnyPlan
from loadtests.frame.figures import (
    CLIENT_BUSY,
    CPU,
    ERRORS,
    OPEN_CPU,
    OPEN_P50,
    OPEN_P99,
    OUT_OF_ORDER,
    RATE,
    SERVER_BUSY,
    Figure,
    Results,
)
from loadtests.frame.plot import GLB, Panel, bars
from loadtests.frame.process import Contender, Server
from loadtests.frame.sheet import Table

#: By how much the turns of clones differ: by 1 at most if they are exact. After a stall: when the
#: hub is trusted again.
SPREAD: Final = Figure("spread", "turns differ by", 0, max)
SPREAD_AFTER: Final = Figure("spread_after", "trusted again: turns differ by", 0, max)
#: While a hub is blocked.
LONGEST_WAIT: Final = Figure("longest_wait", "longest wait ms", 1)
WORST_WAIT: Final = Figure("worst_wait", "worst round", 1, max)
WAITED_FOR_IT: Final = Figure("waited_for_it", "waited for it", 0, max)
#: Of the hub when it is back, and of what a hub ought to have.
TURNS_AFTER: Final = Figure("turns_after", "its turns after", 0, min, is_more_better=True)
SHARE_AFTER: Final = Figure("share_after", "x fair share", 2)

#: Rates of the open loops, connections/s. While a hub is blocked, so few that each of a second's
#: connections is one to look at; for the latency as `loadtests.bench` has it.
STALL_RATE: Final = 100
OPEN_RATE: Final = 1000

ORDERED_CONNECTIONS: Final = 800

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
    return Contender(name, f"glb, {title}", "balanced:hubs", clones, clones, options=options)


def _gevent(name: str) -> Contender:
    return Contender(name, "gevent StreamServer", "plain:one", places=1)


#: Their names begin with what is asked of them.
CONTENDERS: Final = (
    _glb("order-4", "4 hubs", 4),
    _gevent("stall-gevent"),
    Contender("stall-racing", "gevent, 4 hubs in 4 threads", "plain:threads", 4, 4),
    _glb("stall-1", "1 hub", 1),
    _glb("stall-4", "4 hubs, hub 2 blocked", 4),
    _glb("stall-4-home", "4 hubs, hub 0 blocked", 4),
    _gevent("block-gevent"),
    _glb("block-1", "1 hub", 1),
    *(_glb(f"block-{hubs}", f"{hubs} hubs", hubs) for hubs in (2, 4, 8, 16)),
    _gevent("price-gevent"),
    _glb("price-1", "1 hub", 1),
    _glb("price-2", "2 hubs", 2),
    _glb("price-2-first", "2 hubs, the first first", 2, "first"),
    _glb("price-4", "4 hubs", 4),
)

#: Which hub is blocked, of how many; and how its waits are drawn: those without long ones on top.
STALLED: Final = {
    "stall-gevent": (0, 1, ""),
    "stall-1": (0, 1, "x tab:red"),
    "stall-racing": (ANY_HUB, 4, "+ 0.45"),
    "stall-4": (2, 4, f". {GLB}"),
    "stall-4-home": (0, 4, ""),
}


@dataclass(frozen=True)
class Plan(AnyPlan):
    #: What is counted there doesn't become better by a median.
    stall_rounds: int = size(3, 1, "Of order and blocked hubs, where the worst round counts.")
    connections: int = size(10_000, 2000, "In a round, for each contender.", least=100)
    concurrency: int = size(64, words="Connections at a time.")
    open_seconds: float = size(4.0, 0.5)
    block_seconds: float = size(2.0, 0.5)
    #: How long the load goes on when the hub is back.
    stall_after_seconds: float = size(2.5, 1.5)


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
        found: dict[Figure, float] = dict.fromkeys(
            (LONGEST_WAIT, WORST_WAIT), max(waits, default=0)
        )
        found[WAITED_FOR_IT] = its([one for one in seen if self.began <= one.due < last])
        found[TURNS_AFTER] = its(after)
        found[SHARE_AFTER] = its(after) * hubs / len(after) if after else 0
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


class Hubs(Experiment[Plan]):
    name = "hubs"
    every = CONTENDERS
    numbers = Plan
    settle_seconds = 0.15  # glb's watchdog looks around for 0.1 s more, which is part of the price
    promised = (
        Limit("order-4", OUT_OF_ORDER, 0),
        Limit("order-4", SPREAD, 1),
        *(
            Limit(name, figure, limit)
            for name in ("stall-4", "stall-4-home")
            for figure, limit in (
                (WORST_WAIT, 50),
                (ERRORS, 0),
                (WAITED_FOR_IT, 0),
                (TURNS_AFTER, 1),
                (SPREAD_AFTER, 1),
            )
        ),
        Limit("block-16", RATE, 13, "block-1"),
        Limit("price-2", CPU, 1.6, "price-1"),
        Limit("price-2-first", CPU, 1.1, "price-1"),
        Limit("price-2", OPEN_P99, 2, "price-1"),
        Limit("price-4", OPEN_P99, 2, "price-1"),
    )

    #: Of each contender that was asked about stalls, of the last round.
    _seen: dict[str, tuple[Stall, Sequence[Served]]]

    def questions(self) -> Iterator[Question]:
        self._seen = {}
        rounds, few = self.plan.rounds, self.plan.stall_rounds
        some = self.named("order-")
        yield Question("order", some, self._order, few, Job.ORDER, is_fresh=True)
        some = self.named("stall-")
        yield Question(
            "stall", some, self._stall, few, Job.STALL, lambda one: ask_in_turn(one.port, 160)
        )
        for name, turn, job, warm_up in (
            ("block", self._block, Job.BLOCK, 160),
            ("price", self._price, Job.REPLY, 2000),
        ):
            begin = functools.partial(self.warm_up, count=warm_up)
            yield Question(name, self.named(f"{name}-"), turn, rounds, job, begin)

    def _order(self, one: Contender, server: Server) -> None:
        self.results.note_order(one.name, ask_in_turn(server.port, ORDERED_CONNECTIONS), one.places)
        load = self._close(server, ORDERED_CONNECTIONS, is_noted=True)
        clones = [each.clone for each in load.connections]
        self.results.add(one.name, {SPREAD: spread(clones, one.places)})

    def _stall(self, one: Contender, server: Server) -> None:
        hub, hubs, _ = STALLED[one.name]
        seconds = STALL_BEFORE_SECONDS + STALL_MICROSECONDS / 1e6 + self.plan.stall_after_seconds
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(self._open, server, seconds, STALL_RATE, is_noted=True)
            time.sleep(STALL_BEFORE_SECONDS)
            stall = block(server.port, hub)
            seen = loading.result().connections
        self._seen[one.name] = stall, seen
        self.results.add(one.name, stall.figures(seen, hubs, one.places))

    def _block(self, one: Contender, server: Server) -> None:
        # As many as take as long, if hubs do what they could.
        hubs = int(one.options[0]) if one.options else 1
        count = round(BLOCK_RATE * hubs * self.plan.block_seconds)
        self.results.add(one.name, self._close(server, count).rate())

    def _price(self, one: Contender, server: Server) -> None:
        load = self._close(server, self.plan.connections)
        found = {**load.rate(), CPU: load.price}
        load = self._open(server, self.plan.open_seconds, OPEN_RATE)
        found |= {OPEN_P50: load.p50, OPEN_P99: load.p99, OPEN_CPU: load.price}
        self.results.add(one.name, found)

    def _close(self, server: Server, count: int, *, is_noted: bool = False) -> Load:
        port, many = server.port, self.plan.concurrency
        return self.load(server, lambda: self.client.close(port, count, many, is_noted=is_noted))

    def _open(self, server: Server, seconds: float, rate: float, *, is_noted: bool = False) -> Load:
        port = server.port
        return self.load(server, lambda: self.client.open(port, seconds, rate, is_noted=is_noted))

    def tables(self) -> Iterator[Table]:
        block, price = self.named("block-"), self.named("price-")
        figures: tuple[Figure, ...] = (OUT_OF_ORDER, SPREAD, ERRORS)
        title = (
            f"Is the order exact? {ORDERED_CONNECTIONS} connections one after another, and "
            f"{self.plan.concurrency} at a time; the worst round"
        )
        yield self.table(title, self.named("order-"), figures)
        figures = LONGEST_WAIT, WORST_WAIT, ERRORS, WAITED_FOR_IT
        figures += TURNS_AFTER, SHARE_AFTER, SPREAD_AFTER
        title = f"Which connections wait while a hub is blocked for 1 s? {STALL_RATE}/s"
        yield self.table(title, self.named("stall-"), figures)
        title = f"If every handler blocks its hub for {BLOCK_MICROSECONDS / 1000:g} ms"
        figures = SERVER_BUSY, ERRORS
        yield self.table(title, block, figures, compared=(RATE,), beside=("block-1",))
        title = "What does a connection cost the server: accept, reply, close"
        figures = SERVER_BUSY, CLIENT_BUSY, ERRORS
        yield self.table(title, price, figures, compared=(CPU, RATE), beside=("price-1",))
        title = f"How long does a client wait, at {OPEN_RATE:,} connections/s?"
        both = OPEN_P99, OPEN_CPU
        yield self.table(title, price, (OPEN_P50,), compared=both, beside=("price-1",))

    def panels(self) -> Sequence[Sequence[Panel]]:
        block, price = self.named("block-"), self.named("price-")
        milliseconds = BLOCK_MICROSECONDS // 1000
        title = f"connections/s, if every handler blocks its hub for {milliseconds} ms"
        return (
            (bars(title, block, RATE), self._draw_waits),
            (
                bars("server's CPU a connection, us", price, CPU),
                bars(f"p99 at {OPEN_RATE:,} connections/s, us", price, OPEN_P99),
            ),
        )

    def _draw_waits(self, axes: Any, _results: Results) -> None:
        axes.set_title(f"waits while a hub is blocked, {STALL_RATE} connections/s", loc="left")
        for one in self.contenders:
            how = STALLED.get(one.name, ("",))[-1]
            if how and one.name in self._seen:
                stall, seen = self._seen[one.name]
                due = [(each.due - stall.began) / 1e9 for each in seen]
                waits = [(each.answered - each.due) / 1e6 for each in seen]
                marker, colour = how.split()
                axes.plot(due, waits, marker, color=colour, markersize=5, label=one.title)
        # From a tenth of a millisecond to a second: nothing else shows both.
        axes.set_yscale("log")
        axes.set_yticks([0.1, 1, 10, 100, 1000], ["0.1 ms", "1 ms", "10 ms", "100 ms", "1 s"])
        axes.set_ylabel("wait for the answer")
        axes.set_xlabel("when the connection was due, s after the hub was blocked")
        axes.legend(frameon=False)


main = Hubs.command(__doc__)

if __name__ == "__main__":
    main()
