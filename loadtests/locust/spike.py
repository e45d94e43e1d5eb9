"""Does a server that has twenty times the users at once serve them all, and recover?

    locust -f loadtests/locust/spike.py --headless [-u 200] [-r 100] [-t 20s]

Ten users for a quarter of the time, then -u of them for half of it, and ten again.
"""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # wherever locust is run

from typing import Any

from locust import LoadTestShape, events

from glb.locust import EchoUser
from loadtests.target.scenario import Scenario, Want

FEW_USERS = 10
MANY_USERS = 200
USERS_A_SECOND = 100  # locust warns of more
RUN_SECONDS = 20

scenario = Scenario(Want("stream"), gates={"max_fail_ratio": 0})


@events.init.add_listener
def set_defaults(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    options.num_users = options.num_users or MANY_USERS
    options.spawn_rate = options.spawn_rate or USERS_A_SECOND
    options.run_time = options.run_time or RUN_SECONDS


class Spike(LoadTestShape):
    """Few users, many, few."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        options: Any = self.runner.environment.parsed_options
        part = self.get_run_time() / options.run_time
        if part >= 1:
            return None
        users = options.num_users if 1 / 4 <= part < 3 / 4 else min(FEW_USERS, options.num_users)
        return users, options.spawn_rate


class Client(EchoUser):
    """Connects, has a line echoed, and closes."""
