"""Is a client refused, reset or kept waiting while a server is rolled once a second?

    locust -f loadtests/locust/roll.py --headless -u 100 -r 50 -t 20s

Each of its clones gets another handler, one after another, under load. Promised are 0 failures.
"""

import logging
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # wherever locust is run

import gevent
from gevent.event import Event
from locust import events

from glb.locust import EchoUser
from loadtests.target.scenario import Scenario, Want

EVERY_SECONDS = 1

log = logging.getLogger(__name__)


class Roller:
    """Rolls the scenario's server while a test runs."""

    def __init__(self) -> None:
        self.rolls = 0
        self._end = Event()
        self._greenlet: gevent.Greenlet | None = None

    def start(self, environment: Any, **_: Any) -> None:
        self.rolls = 0
        if scenario.targets:  # which no worker has
            self._end.clear()
            self._greenlet = gevent.spawn(self._run, environment)

    def stop(self, **_: Any) -> None:
        if self._greenlet is not None:
            # Not killed: the answer that it may be waiting for would be taken for the next one's.
            self._end.set()
            self._greenlet.join()

    def _run(self, environment: Any) -> None:
        while not self._end.wait(EVERY_SECONDS):
            try:
                scenario.targets[0].roll()
            except RuntimeError as error:
                log.error("can't roll the server: %s", error)
                environment.process_exit_code = 1
                return
            self.rolls += 1


def answer(environment: Any) -> Iterator[str]:
    failures = environment.stats.total.num_failures
    yield f"rolled {roller.rolls} times: {failures} failures; promised: 0"


roller = Roller()
events.test_start.add_listener(roller.start)
events.test_stop.add_listener(roller.stop)
scenario = Scenario(Want("stream"), gates={"max_fail_ratio": 0}, answer=answer)


class Client(EchoUser):
    """Connects, has a line echoed, and closes."""
