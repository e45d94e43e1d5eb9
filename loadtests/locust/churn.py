"""How many connections a second can come and go, some of them by a reset, without harm to others?

    locust -f loadtests/locust/churn.py --headless -u 100 -r 50 -t 20s

Of ten clients seven have a line echoed and close; the others reset their connection: before they
have sent anything, while the reply is on its way, and after it. Promised are 0 failures, and a
server that has seen no more connections than there were. A client that resets has had a turn as
well, so the server's counts go round exactly, and the clients' don't.
"""

from collections.abc import Iterator
from typing import Any

from locust import task
from scenario import Scenario, Want

from glb.locust import EchoUser, TcpUser

#: What the report calls a connection that is going to be reset.
RESET = "connect, to reset"


def answer(environment: Any) -> Iterator[str]:
    stats = environment.stats
    kept, reset = (stats.get(name, "TCP") for name in ("connect", RESET))
    yield (
        f"{kept.num_requests + reset.num_requests} connections, "
        f"{kept.total_rps + reset.total_rps:.0f} a second, {reset.num_requests} of them reset: "
        f"{stats.total.num_failures} failures; promised: 0"
    )


scenario = Scenario(Want("echo"), gates={"max_fail_ratio": 0}, given_up=RESET, answer=answer)


class Client(EchoUser):
    """Connects, has a line echoed, and closes."""

    weight = 7


class Leaver(TcpUser):
    """Connects, and resets the connection at one time or another."""

    weight = 3

    @task
    def before(self) -> None:
        self.client.connect(name=RESET)
        self.client.abort()

    @task
    def meanwhile(self) -> None:
        self.client.connect(name=RESET)
        self.client.send(b"hello\n")
        self.client.abort()

    @task
    def after(self) -> None:
        self.client.connect(name=RESET)
        self.client.request(b"hello\n")
        self.client.abort()
