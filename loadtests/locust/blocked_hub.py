"""Does a handler that blocks its hub hold up the clones of the others?

    locust -f loadtests/locust/blocked_hub.py --headless -u 50 -r 50 -t 20s [--hubs 4]

One user of all has its handler block for 50 ms, twice a second; the others want a small page each,
on a connection each. With four hubs they hardly notice: a connection of the blocked hub is
reclaimed after 10 to 20 ms, and only a handler that had begun there has to wait. With ``--hubs 1``
all wait.
"""

from collections.abc import Iterator
from typing import Any

from locust import FastHttpUser, between, constant_throughput, task
from scenario import Scenario, Want, times

BLOCK_MS = 50


def answer(environment: Any) -> Iterator[str]:
    yield (
        f"others waited {times(environment.stats.get('/', 'GET'))}, while a hub was blocked for "
        f"{BLOCK_MS} ms at times; promised: 20 ms more than else, but for those whose handlers "
        "had begun on it"
    )


scenario = Scenario(Want("http", hubs=4), gates={"max_fail_ratio": 0}, answer=answer)


class Blocker(FastHttpUser):
    fixed_count = 1
    wait_time = constant_throughput(2)

    @task
    def block(self) -> None:
        # Between its requests its hub is free, so each goes to another.
        self.client.get(f"/block?ms={BLOCK_MS}", name="/block", headers={"Connection": "close"})


class Other(FastHttpUser):
    # So few that waiting for one another isn't what is measured.
    wait_time = between(0.1, 0.3)

    @task
    def get(self) -> None:
        self.client.get("/", headers={"Connection": "close"})
