"""What does glb's monkey patch cost a program without use for it, and give the others?

    python -m loadtests.monkey

Programs of the standard library under gevent's patch and under glb's, each in a process of its
own, in interleaved rounds: CPU time a connection, and gevent's patch beside itself, to tell what
is noise. Then four copies on one address, by SO_REUSEPORT: is the order exact?
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Final

from loadtests.bench.servers.job import Job
from loadtests.frame.client import GIVE_UP_SECONDS, Load, Mode
from loadtests.frame.experiment import Experiment, Limit, Question, Shown, Size
from loadtests.frame.figures import CPU, ERRORS, FAIRNESS, OUT_OF_ORDER
from loadtests.frame.process import Contender, Server
from loadtests.frame.worker import Worker

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
    "gevent": ("gevent's", "gevent"),
    "again": ("gevent's, again", "gevent"),
    "glb-sockets": ("glb's, without servers", "glb-sockets"),
    "glb": ("glb's", "glb"),
}


def _group(program: str, copies: int, *sides: str) -> list[Contender]:
    group, what = program, PROGRAMS[program]
    if copies > 1:
        group, what = f"{program}-{copies}", f"{what}, {copies} copies"
    is_http = program in ("http", "selects")
    return [
        Contender(
            f"{group}-{side}", f"{what}: {SIDES[side][0]}", f"patched:{program}", copies,
            is_http=is_http, options=(SIDES[side][1],),
        )
        for side in sides
    ]  # fmt: skip


#: What is compared: a program, in one copy or several, under each patch; by its name. In several
#: those that have a listener. What the order is with one is no question.
GROUPS: Final = {name: _group(name, 1, *SIDES) for name in PROGRAMS}
COPIED: Final = {f"{name}-4": _group(name, 4, "gevent", "glb") for name in [*PROGRAMS][:-1]}


class Monkey(Experiment):
    name = "monkey"
    every = tuple(one for group in (GROUPS | COPIED).values() for one in group)
    sizes = (
        Size("rounds", 9, 2),  # each with processes of its own
        Size("connections", 4000, 400),  # of each contender in a round
        # So few that the kernel's queues stay short; so many that a server finds several ready when
        # it wakes, as with a load.
        Size("concurrency", 16, 16),
        Size("turns", 20, 4),  # among which they are divided
    )
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
        # What `clients` talk to. It has no patch, and runs where the client does.
        with Worker("loadtests.workers", self.cpus.client) as echo:
            self._echo_port = echo.ask("open", kind="echo")
            for number in range(1, self.plan.rounds + 1):
                for name, group in self.shuffled([*(GROUPS | COPIED).items()]):
                    title = f"{name}, round {number}"
                    yield Question(title, group, self._turn, turns, warm_up=WARM_UP)
                    copies = COPIED.get(name, ())
                    yield Question("order", copies, self.order, job=Job.ORDER)

    def put(self, server: Server, mode: Mode, **how: Any) -> Load:
        if server.contender.program != "patched:clients":
            return super().put(server, mode, **how)
        # It puts load on what sends back.
        server.tell(f"{self._echo_port} {how['count']}")
        answered = int(server.line(GIVE_UP_SECONDS))
        return Load(answered, how["count"] - answered, 0, 0, 0, 0, 0)

    def _turn(self, one: Contender, server: Server) -> None:
        count = self.plan.connections // min(self.plan.turns, self.plan.connections)
        self.results.add(one.name, {CPU: self.load(server, "close", count=count).price})


main = Monkey.command(__doc__)

if __name__ == "__main__":
    main()
