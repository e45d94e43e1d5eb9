"""What does the load client cost: how much of what a bare client does is left to a locust user?

    python -m loadtests.client_cost

--only echo: connections/s of `EchoUser` in locust's own runner, with all that listens to its
events, beside a bare gevent loop that does the same: connect, send, receive, close. --only http:
requests/s of locust's FastHttpUser without `glb.locust`, and with it, where the clone is read from
each reply's header. Each is in a process of its own, and the server on another CPU if there is one.
Printed are the medians of the ratios, round by round, of what is done in a second, and for the same
CPU, beside what is promised.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Final

from loadtests.frame.client import GIVE_UP_SECONDS
from loadtests.frame.experiment import Experiment, Limit, Question, Shown, Size
from loadtests.frame.figures import CPU, RATE
from loadtests.frame.process import Contender, Server
from loadtests.frame.worker import Worker

#: To one port there are 28,000 local ones, of which Linux's connect(2) first takes every other one,
#: and none again within a second (TIME_WAIT). From some 5,000 connections a second on it would be
#: measured how the kernel looks for a free one; at 14,000 nothing else.
PORTS: Final = 8

_users: Final = functools.partial(Contender, program="locusts:users", needs="locust")
ECHO: Final = (
    Contender("echo-bare", "a bare gevent loop", "locusts:bare"),
    _users("echo-user", "EchoUser", options=("echo", "glb.locust")),
)
HTTP: Final = (
    _users("http-bare", "FastHttpUser", options=("http",)),
    _users("http-glb", "FastHttpUser with glb.locust", options=("http", "glb.locust")),
)


class ClientCost(Experiment):
    name = "client_cost"
    every = (*ECHO, *HTTP)
    sizes = (Size("rounds", 15, 2), Size("seconds", 0.7, 0.3), Size("concurrency", 100, 100))

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
        for clients, kind, scheme in ((ECHO, "echo", "tcp"), (HTTP, "http", "http")):
            with Worker("loadtests.workers", self.cpus.client) as servers:
                ports = [servers.ask("open", kind=kind) for _ in range(PORTS)]
                urls = " ".join(f"{scheme}://127.0.0.1:{port}" for port in ports)
                self._order = f"{self.plan.seconds} {self.plan.concurrency} {urls}"
                yield Question(kind, clients, self._turn, self.plan.rounds)

    def _turn(self, one: Contender, client: Server) -> None:
        client.tell(self._order)
        rate, price = map(float, client.line(self.plan.seconds + GIVE_UP_SECONDS).split())
        self.results.add(one.name, {RATE: rate, CPU: price})


main = ClientCost.command(__doc__)

if __name__ == "__main__":
    main()
