"""What does glb's monkey patch cost a program without use for it, and give the others?

    python -m loadtests.monkey

Programs of the standard library under gevent's patch and under glb's, each in a process of its
own, in interleaved rounds: CPU time a connection, and gevent's patch beside itself, to tell what
is noise. Then four copies on one address, by SO_REUSEPORT: is the order exact? Printed are tables,
and what glb promises beside what was measured; JSON and Markdown are written to a folder. Exit
status 0 only if every promise was measured and kept.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.bench.servers.job import Job
from loadtests.bench.servers.patched import GEVENT, GLB, GLB_SOCKETS
from loadtests.frame.client import Load, exchange
from loadtests.frame.experiment import Experiment, Limit, Question, Shown, size
from loadtests.frame.experiment import Plan as AnyPlan
from loadtests.frame.figures import CPU, ERRORS, FAIRNESS, OUT_OF_ORDER, Figure
from loadtests.frame.process import Contender, Cpus, Server

#: CPU beside the same program's under gevent's patch, in the same round.
RATIO: Final = Figure("ratio", "CPU x gevent's", 3)

#: What a program may cost that has no use for glb.
RATIO_MAX: Final = 1.03

#: Connections before the first turn: what is imported and specialised late is by then.
WARM_UP: Final = 300

COPIES: Final = 4

#: Programs of `loadtests.bench.servers.patched`. The last has no listener under load.
PROGRAMS: Final = {
    "threads": "accept, a thread each",
    "socketservers": "ThreadingTCPServer",
    "http": "ThreadingHTTPServer",
    "selects": "select.select, non-blocking",
    "clients": "create_connection, send, recv",
}

#: Whose patch, and the program's argument for it. What the others are compared with is the first,
#: which is there once more: by how much it differs from itself is what nothing here can resolve.
SIDES: Final = {
    "gevent": ("gevent's", GEVENT),
    "again": ("gevent's, again", GEVENT),
    "glb-sockets": ("glb's, without servers", GLB_SOCKETS),
    "glb": ("glb's", GLB),
}

#: What `clients` talk to. It has no patch, and runs where the client does.
ECHO: Final = Contender("echo", "what sends back what comes", "balanced:echo")


def _contender(program: str, side: str, copies: int) -> Contender:
    title, patch = SIDES[side]
    number, places = (f"-{copies}", copies) if copies > 1 else ("", 0)
    return Contender(
        f"{program}{number}-{side}",
        f"{PROGRAMS[program]}{', 4 copies' if places else ''}: {title}",
        f"patched:{program}",
        copies,
        places,
        is_http=program in ("http", "selects"),
        options=(patch,),
    )


#: What is compared: a program, in one copy or several, under each patch; by its name. In several
#: those that have a listener. What the order is with one is no question.
GROUPS: Final = {
    **{f"{name}": [_contender(name, side, 1) for side in SIDES] for name in PROGRAMS},
    **{
        f"{name}-{COPIES}": [_contender(name, side, COPIES) for side in ("gevent", "glb")]
        for name in PROGRAMS
        if name != "clients"
    },
}


ALONE: Final = [one for group in GROUPS.values() for one in group if not one.places]
COPIED: Final = [one for group in GROUPS.values() for one in group if one.places]


@dataclass(frozen=True)
class Plan(AnyPlan):
    rounds: int = size(9, 2, "Each with processes of its own.")
    connections: int = size(4000, 400, "Of each contender in a round.", least=10)
    #: So few that the kernel's queues stay short; so many that a server finds several ready when it
    #: wakes, as with a load.
    concurrency: int = size(16, words="Connections at a time.")
    turns: int = size(20, 4, "Among which they are divided.")


class Monkey(Experiment[Plan]):
    name = "monkey"
    every = (*ALONE, *COPIED)
    numbers = Plan
    settle_seconds = 0.01  # a third of what is usual: turns are many, and each end weighs as much
    promised = (
        *(
            Limit(f"{name}-{side}", RATIO, RATIO_MAX)
            for name in PROGRAMS
            for side in ("glb-sockets", "glb")
        ),
        *(Limit(f"{name}-glb", OUT_OF_ORDER, 0) for name in GROUPS if name not in PROGRAMS),
    )

    shown = (
        Shown(
            "What does the patch cost a program that has no use for it?",
            ALONE,
            (CPU, RATIO, ERRORS),
        ),
        Shown(
            "What does it give 4 listeners with SO_REUSEPORT?",
            COPIED,
            (OUT_OF_ORDER, FAIRNESS, CPU, RATIO, ERRORS),
        ),
    )

    def __init__(self, plan: Plan, contenders: Sequence[Contender]) -> None:
        super().__init__(plan, contenders)
        self._turns: Final = min(plan.turns, plan.connections)
        self._echo_port = 0
        #: Of the turns of each in this round.
        self.prices: Final[dict[str, list[float]]] = defaultdict(list)

    # In a round each group has its own processes: how a process happens to lie in memory is worth
    # a percent or two, and stays for its life. There the sides take turns, several each, in an
    # order that is shuffled anew: how fast the machine is changes within seconds. A sample is the
    # median of the turns of a side in a round, so that a turn in which another process had the
    # machine doesn't count; a ratio is that of two sides in one round.
    def questions(self) -> Iterator[Question]:
        # Of all servers: the order of names in dictionaries is worth a percent, by chance.
        os.environ["PYTHONHASHSEED"] = "0"
        begin, turn, turns = self._begin, self._turn, self._turns
        with self.start(ECHO, cpus=Cpus(self.cpus.client, self.cpus.client)) as echo:
            self._echo_port = echo.port
            for number in range(1, self.plan.rounds + 1):
                for name in self.shuffled([*GROUPS]):
                    group = GROUPS[name]
                    yield Question(f"{name}, round {number}", group, turn, turns, begin=begin)
                    self.note_prices(f"{name}-gevent")
                    copies = [one for one in group if one.places]
                    yield Question("order", copies, self.order, 1, Job.ORDER, is_fresh=True)

    def note_prices(self, base: str) -> None:
        medians = {
            name: statistics.median(prices)
            for name, prices in self.prices.items()
            if name not in self.results.failed
        }
        for name, price in medians.items():
            self.results.add(name, {CPU: price})
            if base in medians:
                self.results.add(name, {RATIO: price / medians[base]})
        self.prices.clear()

    def _begin(self, server: Server) -> None:
        if self._ask(server, WARM_UP).count < WARM_UP / 2:
            raise RuntimeError(f"doesn't answer: {server.last_words()}")

    def _turn(self, one: Contender, server: Server) -> None:
        count = self.plan.connections // self._turns
        self.prices[one.name].append(self.load(server, lambda: self._ask(server, count)).price)

    def _ask(self, server: Server, count: int) -> Load:
        one = server.contender
        if one.program != "patched:clients":
            return self.client.close(server.port, count, self.plan.concurrency, http=one.is_http)
        answered = int(exchange(server.port, f"{self._echo_port} {count}")[0])
        return Load(answered, count - answered, 0, 0, 0, 0, 0)


main = Monkey.command(__doc__)

if __name__ == "__main__":
    main()
