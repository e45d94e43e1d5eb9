"""The server's process: `python -m loadtests.soak.server PLAN`. Started by the soak alone.

It prints its ports as JSON, and reads commands from standard input, a word a line:

    rest  does no more to the servers, looks at what must hold while nothing goes on, says so
    end   ends all servers, looks at what must be left, prints what it has found, and ends

So it does when standard input is at its end. Once a second it looks at what must hold always.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import logging
import os
import random
import signal
import sys
import time
from typing import Any, Final

import gevent
import gevent.socket
from gevent.hub import Hub
from gevent.monkey import get_original
from gevent.util import print_run_info

from glb.model.states import State

from .actions import Actions
from .checks import Checks, watch_moves
from .plan import Kind, Plan
from .service import Service
from .tally import Tally
from .work import Versions, Work

__all__ = ["Life", "main"]

#: How often it is looked at everything.
LOOK_SECONDS: Final = 1.0

#: So long for actions to come to their end, and for all servers: nothing takes so long.
STUCK_SECONDS: Final = 40.0


def report_one_at_a_time() -> None:
    """Keep what is reported by one hub apart from what is by another, on standard error."""
    lock = get_original("_thread", "RLock")()
    report = Hub.print_exception

    def report_alone(hub: Hub, context: object, kind: Any, error: Any, trace: Any) -> None:
        with lock:
            report(hub, context, kind, error, trace)

    Hub.print_exception = report_alone  # type: ignore[method-assign, assignment]  # to have it alone


class _Log(logging.Handler):
    """Counts what glb logs: only that there is no room is what it is meant to."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self._tally.act("a line in the log")
        self._tally.hold("nothing is logged but a lack of room", "can't accept" in message, message)


class Life:
    """What the process does, from its start to its end."""

    def __init__(self, plan: Plan) -> None:
        self._plan: Final = plan
        self.tally: Final = Tally()
        report_one_at_a_time()
        self._moves: Final = watch_moves(self.tally)
        self._log: Final = _Log(self.tally)
        versions = Versions()
        work = Work(self.tally, versions)
        self._services: Final = [
            Service(plan, Kind(kind), work, versions, self.tally) for kind in plan.kinds
        ]
        self._actions: Final = Actions(plan, self._services, work, versions, self.tally)
        self._checks: Final = Checks(plan, self._services, self.tally, self._actions.steady)
        self._began = time.monotonic()
        self._looks: Any = None

    def run(self) -> None:
        """Live, and print what was found."""
        logging.getLogger("glb").addHandler(self._log)
        dice = random.Random(self._plan.seed)
        for service in self._services:
            service.add(dice)
        print(json.dumps({each.kind.value: each.address[1] for each in self._services}), flush=True)
        self._looks = gevent.spawn(self._look_again_and_again)
        if self._plan.actions:
            self._actions.start()
        if _next_word() == "rest":
            self._within("rest", self._rest)
            print(json.dumps("at rest"), flush=True)
            _next_word()
        self._within("end", self._end)
        print(json.dumps(self._left()), flush=True)

    def _look_again_and_again(self) -> None:
        while True:
            gevent.sleep(LOOK_SECONDS)
            try:
                self._checks.look(time.monotonic() - self._began)
            except Exception as error:
                self.tally.hold("each look comes to its end", False, repr(error))

    def _rest(self) -> None:
        self._actions.end()
        self._checks.look_at_rest()

    def _end(self) -> None:
        self._actions.end()
        self._looks.kill()
        self._looks = None
        ends = [
            gevent.spawn(service.retire, server, "drain")
            for service in self._services
            for server in service.staying
        ]
        gevent.joinall(ends, raise_error=True)
        for service in self._services:
            service.forget()

    def _left(self) -> dict[str, Any]:
        # By now all that was done is over, and only this greenlet there.
        left = self._checks.look_at_end()
        self.tally.hold("no handler is killed", not self.tally.served["killed"])
        return {
            **self.tally.to_json(),
            "moves": dict(self._moves),
            "samples": self._checks.samples,
            "left": left,
        }

    def _within(self, what: str, step: Any) -> None:
        # If a soak hangs, standard error shows where.
        print_info = functools.partial(print_run_info, file=sys.stderr)
        watchdog = gevent.spawn_later(STUCK_SECONDS, self._say_stuck, what, print_info)
        try:
            step()
        finally:
            watchdog.kill()

    def _say_stuck(self, what: str, print_info: Any) -> None:
        states = [
            (server, server.state, server.active, server.glb_engine.admission.expected)
            for service in self._services
            for server in service.servers
            if server.state is not State.STOPPED or server.active
        ]
        self.tally.hold("nothing is stuck", False, f"{what}: {states}")
        print(f"stuck: {what}: {states}", file=sys.stderr)
        print_info()
        print(json.dumps({**self.tally.to_json(), "moves": dict(self._moves)}), flush=True)
        os._exit(1)


def _next_word() -> str:
    # Without a file object, which would be one more descriptor's, or the threadpool.
    word = b""
    while not word.endswith(b"\n"):
        gevent.socket.wait_read(0)
        byte = os.read(0, 1)
        if not byte:
            break
        word += byte
    return word.decode().strip()


def main() -> None:
    faulthandler.register(signal.SIGUSR1)
    Life(Plan.from_json(sys.argv[1])).run()


if __name__ == "__main__":
    main()
