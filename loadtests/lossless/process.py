"""A process that does what it is asked for, seen from outside."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final

import psutil

from loadtests.frame import process
from loadtests.frame.process import Cpus

__all__ = ["ANSWER_SECONDS", "Client", "Process", "Server", "Worker"]

#: How long an answer may take that isn't known to take longer, in seconds.
ANSWER_SECONDS: Final = 30.0


class Process(process.Process):
    """A process, and what it takes and complains of."""

    def descriptors(self) -> int:
        """Return how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def rss_mib(self) -> float:
        """Return its resident memory."""
        return float(psutil.Process(self.pid).memory_info().rss / 2**20)

    def tracebacks(self) -> int:
        """Count the tracebacks that it wrote to its standard error."""
        return sum(line.startswith("Traceback ") for line in self.complaints())

    def log_lines(self) -> list[str]:
        """Return the lines that glb's log has written."""
        # Without a handler logging writes the bare message, which tells of a server first.
        return [line for line in self.complaints() if "can't accept" in line]


class Worker(Process):
    """A process of `loadtests.lossless.worker`."""

    def __init__(self, module: str, cpus: frozenset[int]) -> None:
        super().__init__([sys.executable, "-m", f"{__package__}.worker", module], cpus)

    def ask(self, do: str, *, within: float = ANSWER_SECONDS, **what: Any) -> Any:
        """Have it *do* something, and return what it answers *within* so many seconds.

        Raises:
            RuntimeError: It doesn't.
        """
        self.order(do, **what)
        return self.answer(within)

    def order(self, do: str, **what: Any) -> None:
        """Have it *do* something. Each order has an answer, in turn."""
        self.tell(json.dumps({"do": do, **what}))

    def answer(self, within: float = ANSWER_SECONDS) -> Any:
        """Return the next answer. Raises as `ask`."""
        return json.loads(self.line(within))


class Server(Worker):
    """A process of servers."""

    def __init__(self) -> None:
        super().__init__("servers", Cpus.available().server)


class Client(Worker):
    """A process of clients."""

    def __init__(self) -> None:
        super().__init__("clients", Cpus.available().client)
