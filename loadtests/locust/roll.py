"""Is a client refused, reset or kept waiting while a server is rolled once a second?

    locust -f loadtests/locust/roll.py --headless -u 100 -r 50 -t 20s

Each of its clones gets another handler, one after another, under load. Promised are 0 failures.
"""

from collections.abc import Iterator
from typing import Any

from scenario import Scenario, Want

from glb.locust import EchoUser


def answer(environment: Any) -> Iterator[str]:
    failures = environment.stats.total.num_failures
    yield f"rolled {scenario.rolls} times: {failures} failures; promised: 0"


scenario = Scenario(Want("echo", roll_seconds=1), gates={"max_fail_ratio": 0}, answer=answer)


class Client(EchoUser):
    """Connects, has a line echoed, and closes."""
