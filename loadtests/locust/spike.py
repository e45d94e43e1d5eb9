"""Does a server that has twenty times the users at once serve them all, and recover?

    locust -f loadtests/locust/spike.py --headless [-u 200] [-r 100] [-t 20s]

Ten users for a quarter of the time, then -u of them for half of it, and ten again.
"""

from typing import Any

from locust import LoadTestShape
from scenario import Scenario, Want

from glb.locust import EchoUser

FEW_USERS = 10
MANY_USERS = 200
USERS_A_SECOND = 100  # locust warns of more
RUN_SECONDS = 20

scenario = Scenario(Want("echo"), gates={"max_fail_ratio": 0})


class Spike(LoadTestShape):
    """Few users, many, few."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options: Any = self.runner.environment.parsed_options
        most = options.num_users or MANY_USERS
        part = self.get_run_time() / (options.run_time or RUN_SECONDS)
        users = most if 1 / 4 <= part < 3 / 4 else min(FEW_USERS, most)
        return (users, options.spawn_rate or USERS_A_SECOND) if part < 1 else None


class Client(EchoUser):
    """Connects, has a line echoed, and closes."""
