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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from loadtests.bench.servers.job import Job
from loadtests.bench.servers.patched import GEVENT, GLB, GLB_SOCKETS
from loadtests.frame.client import Load, exchange
from loadtests.frame.experiment import Experiment, Limit, Question, Shown, size
from loadtests.frame.experiment import Plan as AnyPlan
from loadtests.frame.figures import CPU, ERRORS, FAIRNESS, OUT_OF_ORDER
from loadtests.frame.process import Contender, Cpus, Server

#: What a program may cost that has no use for glb, beside its cost under gevent's patch.
COST_MAX: Final = 1.03

#: Connections before the first turn: what is imported and specialised late is by then.
WARM_UP: Final = 300

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
ECHO: Final = Contender("echo", "what sends back what comes", "streams:glb_echo")


def _group(program: str, copies: int, *sides: str) -> list[Contender]:
    group, places = (f"{program}-{copies}", copies) if copies > 1 else (program, 0)
    what = f"{PROGRAMS[program]}, {copies} copies" if places else PROGRAMS[program]
    is_http = program in ("http", "selects")
    return [
        Contender(
            f"{group}-{side}", f"{what}: {SIDES[side][0]}", f"patched:{program}", copies, places,
            is_http=is_http, options=(SIDES[side][1],),
        )
        for side in sides
    ]  # fmt: skip


#: What is compared: a program, in one copy or several, under each patch; by its name. In several
#: those that have a listener. What the order is with one is no question.
GROUPS: Final = {name: _group(name, 1, *SIDES) for name in PROGRAMS}
COPIED: Final = {f"{name}-4": _group(name, 4, "gevent", "glb") for name in [*PROGRAMS][:-1]}


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
    every = tuple(one for group in (GROUPS | COPIED).values() for one in group)
    numbers = Plan
    settle_seconds = 0.01  # a third of what is usual: turns are many, and each end weighs as much
    promised = (
        *(
            Limit(f"{name}-{side}", CPU, COST_MAX, f"{name}-gevent")
            for name in GROUPS
            for side in ("glb-sockets", "glb")
        ),
        *(Limit(f"{name}-glb", OUT_OF_ORDER, 0) for name in COPIED),
    )
    shown = tuple(
        Shown(name, group, figures, (CPU,), (f"{name}-gevent",))
        for groups, figures in ((GROUPS, (ERRORS,)), (COPIED, (OUT_OF_ORDER, FAIRNESS, ERRORS)))
        for name, group in groups.items()
    )

    # In a round each group has its own processes: how a process happens to lie in memory is worth
    # a percent or two, and stays for its life. There the sides take turns, several each, in an
    # order that is shuffled anew: how fast the machine is changes within seconds. A ratio is that
    # of two sides in one turn, and a turn in which another process had the machine doesn't count
    # among so many.
    def questions(self) -> Iterator[Question]:
        # Of all servers: the order of names in dictionaries is worth a percent, by chance.
        os.environ["PYTHONHASHSEED"] = "0"
        turns = min(self.plan.turns, self.plan.connections)
        with self.start(ECHO, cpus=Cpus(self.cpus.client, self.cpus.client)) as echo:

            def ask(server: Server, count: int) -> Load:
                one, many = server.contender, self.plan.concurrency
                if one.program != "patched:clients":
                    return self.client.close(server.port, count, many, http=one.is_http)
                answered = int(exchange(server.port, f"{echo.port} {count}")[0])
                return Load(answered, count - answered, 0, 0, 0, 0, 0)

            def begin(server: Server) -> None:
                if ask(server, WARM_UP).count < WARM_UP / 2:
                    raise RuntimeError(f"doesn't answer: {server.last_words()}")

            def turn(one: Contender, server: Server) -> None:
                load = self.load(server, lambda: ask(server, self.plan.connections // turns))
                self.results.add(one.name, {CPU: load.price})

            for number in range(1, self.plan.rounds + 1):
                for name, group in self.shuffled([*(GROUPS | COPIED).items()]):
                    yield Question(f"{name}, round {number}", group, turn, turns, begin=begin)
                    copies = COPIED.get(name, ())
                    yield Question("order", copies, self.order, 1, Job.ORDER, is_fresh=True)


main = Monkey.command(__doc__)

if __name__ == "__main__":
    main()
