"""A process that does what it is asked for, a line of JSON each; from outside, and from inside.

python -m loadtests.frame.worker MODULE

runs the functions in the module's ``COMMANDS``, by name, and ends when standard input does.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import psutil
from gevent.fileobject import FileObjectPosix

from loadtests.bench.servers.job import end_with_parent

from .process import Process

#: How long an answer may take that isn't known to take longer, in seconds.
ANSWER_SECONDS: Final = 30.0


class Worker(Process):
    """A process that runs the ``COMMANDS`` of *module*.

    Args:
        module: Its full name.
        python: What runs it: Python, with options, or with a program before it.
        options: Of `subprocess.Popen`.
    """

    def __init__(
        self,
        module: str,
        cpus: frozenset[int] | None = None,
        *,
        python: Sequence[str] = (sys.executable,),
        **options: Any,
    ) -> None:
        super().__init__([*python, "-m", __name__, module], cpus, **options)

    def ask(self, do: str, *, within: float = ANSWER_SECONDS, **what: Any) -> Any:
        """Have it *do* something, and return what it answers *within* so many seconds.

        Raises:
            ProcessError: It doesn't.
        """
        self.order(do, **what)
        return self.answer(within)

    def order(self, do: str, **what: Any) -> None:
        """Have it *do* something. Each order has an answer, in turn."""
        self.tell(json.dumps({"do": do, **what}))

    def answer(self, within: float = ANSWER_SECONDS) -> Any:
        """Return the next answer. Raises as `ask`."""
        return json.loads(self.line(within))

    def rss_mib(self) -> float:
        """Return its resident memory."""
        return float(psutil.Process(self.pid).memory_info().rss / 2**20)


def commands_of(*things: object) -> dict[str, Callable[..., Any]]:
    """Return all public methods of *things*, by name."""
    return {
        name: getattr(thing, name)
        for thing in things
        for name in dir(thing)
        if not name.startswith("_")
    }


def serve(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Do what is asked for on standard input until it ends; answer on standard output."""
    # A descriptor of its own: gevent makes it non-blocking, and closes it.
    with FileObjectPosix(os.dup(0), "rb") as orders:
        for line in orders:
            order = json.loads(line)
            answer = commands[order.pop("do")](**order)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    end_with_parent()
    serve(importlib.import_module(sys.argv[1]).COMMANDS)
