"""What does the load client cost: how much of what a bare client does is left to a locust user?

    python -m loadtests.client_cost

--only echo: connections/s of `EchoUser` in locust's own runner, with all that listens to its
events, beside a bare gevent loop that does the same: connect, send, receive, close. --only http:
requests/s of locust's FastHttpUser without `glb.locust`, and with it, where the clone is read from
each reply's header. Each is in a process of its own, and the server on another CPU if there is one.
Printed are the medians of the ratios, round by round, of what is done in a second, and for the same
CPU, beside what is promised. Exit status 0 only if that was kept.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from loadtests.frame.client import exchange
from loadtests.frame.experiment import Experiment, Limit, Question, Shown, size
from loadtests.frame.experiment import Plan as AnyPlan
from loadtests.frame.figures import CPU, RATE
from loadtests.frame.process import Contender, Cpus, Server

_users: Final = functools.partial(Contender, program="locusts:users", needs="locust")
ECHO: Final = (
    Contender("echo-bare", "a bare gevent loop", "locusts:bare"),
    _users("echo-user", "EchoUser", options=("echo", "glb.locust")),
)
HTTP: Final = (
    _users("http-bare", "FastHttpUser", options=("http",)),
    _users("http-glb", "FastHttpUser with glb.locust", options=("http", "glb.locust")),
)


@dataclass(frozen=True)
class Plan(AnyPlan):
    rounds: int = size(15, 2, "In which each client has its turn.")
    seconds: float = size(0.7, 0.3, "Of a turn.")
    concurrency: int = size(100, words="Users at a time.")


class ClientCost(Experiment[Plan]):
    name = "client_cost"
    every = (*ECHO, *HTTP)
    numbers = Plan

    # Of two that wait for the server both are as fast as it is: then the CPU tells what is left.
    promised = (
        Limit("echo-user", RATE, 0.6, "echo-bare"),
        Limit("echo-user", CPU, 1 / 0.6, "echo-bare"),
        Limit("http-glb", RATE, 0.8, "http-bare"),
        Limit("http-glb", CPU, 1 / 0.8, "http-bare"),
    )

    shown = (
        Shown("A connection, and an echo", ECHO, (), (RATE, CPU), ("echo-bare",)),
        Shown("A request, kept alive", HTTP, (), (RATE, CPU), ("http-bare",)),
    )

    def questions(self) -> Iterator[Question]:
        # Clients are what is measured, and are where servers are otherwise.
        there = Cpus(self.cpus.client, self.cpus.client)
        for kind, clients in (("echo", ECHO), ("http", HTTP)):
            with self.start(
                Contender(kind, "the server", f"streams:glb_{kind}", 4), cpus=there
            ) as one:
                self._order = f"{one.port} {self.plan.seconds} {self.plan.concurrency}"
                yield Question(kind, clients, self._turn, self.plan.rounds)

    def _turn(self, one: Contender, client: Server) -> None:
        rate, price = map(float, exchange(client.port, self._order))
        self.results.add(one.name, {RATE: rate, CPU: price})


main = ClientCost.command(__doc__)

if __name__ == "__main__":
    main()
