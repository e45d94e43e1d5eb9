"""What do gevent's own server and glb's make of the same load at the same time?

    locust -f loadtests/locust/compare.py --headless -u 100 -r 50 -t 20s

Half of the clients load one, half the other. At the end there is a line for each. Both servers
and locust share the machine, so what they do a second depends on each other; times are what to
compare.
"""

from collections.abc import Iterator
from typing import Any

from locust import task
from scenario import Scenario, Want, times

from glb.locust import TcpUser


def answer(environment: Any) -> Iterator[str]:
    found = {name: environment.stats.get(name, "TCP") for name in ("gevent", "glb")}
    for name, entry in found.items():
        yield (
            f"{name}: {entry.num_requests} requests, {entry.num_failures} failures, "
            f"{entry.total_rps:.0f} a second, {times(entry)}"
        )


scenario = Scenario(
    Want("echo", name="gevent", server="gevent"),
    Want("echo", name="glb", server="glb"),
    gates={"max_fail_ratio": 0},
    answer=answer,
)


class Client(TcpUser):
    """Connects, has a line echoed, and closes."""

    abstract = True
    target: str

    def clone_of(self, reply: bytes) -> bytes:
        return reply.split(b" ", 1)[0]

    @task
    def echo(self) -> None:
        self.client.connect(name=f"{self.target}: connect")
        self.client.request(b"hello\n", name=self.target)


class GeventClient(Client):
    target = "gevent"


class GlbClient(Client):
    target = "glb"
