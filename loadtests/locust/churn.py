"""How many connections a second can come and go, some of them by a reset, without harm to others?

    locust -f loadtests/locust/churn.py --headless -u 100 -r 50 -t 20s

Of ten clients seven have a line echoed and close; the others reset their connection: before they
have sent anything, while the reply is on its way, and after it. Promised are 0 failures, and a
server that has seen no more connections than there were. A client that resets has had a turn as
well, so the server's counts go round exactly, and the clients' don't.
"""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # wherever locust is run

from locust import task

from glb.locust import EchoUser, TcpUser
from loadtests.target.scenario import Scenario, Want

#: What the report calls a connection that is going to be reset.
RESET = "connect, to reset"


def resets(environment: Any) -> int:
    return int(environment.stats.get(RESET, "TCP").num_requests)


def answer(environment: Any) -> Iterator[str]:
    stats = environment.stats
    entries = [stats.get(name, "TCP") for name in ("connect", RESET)]
    connections = sum(each.num_requests for each in entries)
    rate = sum(each.total_rps for each in entries)
    yield (
        f"{connections} connections, {rate:.0f} a second, {resets(environment)} of them reset: "
        f"{stats.total.num_failures} failures; promised: 0"
    )


scenario = Scenario(Want("stream"), gates={"max_fail_ratio": 0}, given_up=resets, answer=answer)


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
