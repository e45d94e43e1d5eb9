"""The life of the servers' process: it serves, is in trouble, is at rest, and ends.

An experiment derives its own `Life`, which says what its servers are and what the trouble is, and
puts what `commands` returns into ``COMMANDS``: `loadtests.frame.worker` runs them.
"""

from __future__ import annotations

import json
import logging
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from gevent.hub import Hub
from gevent.monkey import get_original
from gevent.util import print_run_info

from .checks import Checks, watch_moves
from .service import Service
from .tally import Tally
from .work import Planned, Work


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        clones: How many clones a server begins with.
        kinds: What is spoken, "stream" or "http"; each has an address.
        policy: Which ready clone is next, by the names of `glb.model.policy.Policy`.
        seconds: For how long clients come, if they do by the clock.
        rate: How many do so, a second, at all addresses together.
        trouble: Whether anything is done to servers.
        began: When the run did, on `time.monotonic`'s clock.
    """

    seed: int = 0
    hubs: int = 1
    clones: int = 4
    kinds: Sequence[str] = ("stream", "http")
    policy: str = "round_robin"
    seconds: float = 60.0
    rate: float = 150.0
    trouble: bool = True
    began: float = field(default_factory=monotonic)


class Life(logging.Handler):
    """What the process does, from its start to its end. It has what glb logs, too."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan: Final = plan
        self.tally: Final = Tally(plan.began)
        self.work: Final = Work(self.tally)
        self.dice: Final = random.Random(plan.seed)
        self.services: Final = [Service(self, kind) for kind in plan.kinds]
        self.checks: Final = Checks(self)
        watch_moves(self.tally)
        self._watch_reports()
        logging.getLogger("glb").addHandler(self)
        signal.signal(signal.SIGUSR2, lambda *_: self._say_stuck())

    # -- what experiments say -------------------------------------------------------------------

    def arguments(self, dice: random.Random) -> tuple[dict[str, Any], str]:
        """Return the arguments of another server, and what to call them."""
        return {"hubs": self.plan.hubs, "clones": self.plan.clones}, "no limit"

    def is_planned(self, error: object) -> bool:
        """Note *error*, which gevent or Python reports; return ``False`` if it must not be."""
        if isinstance(error, Planned):
            self.work.reported[error.args[0]] += 1
        return isinstance(error, Planned)

    def emit(self, record: logging.LogRecord) -> None:
        """Count what glb logs: only that there is no room is what it is meant to."""
        message = record.getMessage()
        self.tally.act("a line in the log")
        self.tally.hold("nothing is logged but a lack of room", "can't accept" in message, message)

    def steady(self) -> AbstractContextManager[Any]:
        """Within it the process isn't out of descriptors on purpose."""
        return nullcontext()

    def end_trouble(self) -> None:
        """Let what goes on come to its end, and leave the servers as they are meant to be."""

    # -- what the command asks for --------------------------------------------------------------

    def serve(self) -> dict[str, int]:
        """Start servers. Return the ports, by kind."""
        for service in self.services:
            service.add(self.dice)
        return {each.kind: each.address[1] for each in self.services}

    def rest(self) -> None:
        """Do no more to the servers, and look at what must hold while nothing goes on."""
        self.end_trouble()
        self.checks.look_at_rest()
        self.checks.look()

    def end(self) -> dict[str, Any]:
        """End all servers, look at what must be left, and return what was found."""
        self.end_trouble()
        for service in self.services:
            service.retire_all()
        # By now all that was done is over, and only this greenlet there.
        self.checks.look_at_end()
        self.work.check_reports()
        return self.tally.to_json()

    # -- steps ----------------------------------------------------------------------------------

    def _say_stuck(self) -> None:
        servers = [server for service in self.services for server in service.servers]
        states = [(each, each.state, each.active) for each in servers]
        self.tally.hold("nothing is stuck", False, states)
        print_run_info(file=sys.stderr)
        print(json.dumps(self.tally.to_json()), flush=True)

    def _watch_reports(self) -> None:
        # What isn't planned goes to standard error, and there what is of one thread after another.
        lock = get_original("_thread", "RLock")()
        report = Hub.print_exception

        def print_exception(hub: Hub, context: object, kind: Any, error: Any, trace: Any) -> None:
            if not self.is_planned(error):
                with lock:
                    report(hub, context, kind, error, trace)

        def unless_planned(hook: Callable[[Any], object]) -> Callable[[Any], object]:
            return lambda found: self.is_planned(found.exc_value) or hook(found)

        Hub.print_exception = print_exception  # type: ignore[method-assign, assignment]  # to watch
        sys.unraisablehook = unless_planned(sys.unraisablehook)
        threading.excepthook = unless_planned(threading.excepthook)


def commands(kind: type[Life]) -> dict[str, Callable[..., Any]]:
    """Return the commands of a process with a life of that *kind*: one for its methods."""
    lives: list[Life] = []
    return {
        "begin": lambda **plan: lives.append(kind(Plan(**plan))),
        "have": lambda it, **arguments: getattr(lives[0], it)(**arguments),
    }
