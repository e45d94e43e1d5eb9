"""The server's process, as the command sees it: what it answers, and its errors."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

from loadtests.frame.process import Process, ProcessError

from .plan import Plan

__all__ = ["ANSWER_SECONDS", "Program", "unexpected_errors"]

#: The server's process in a run.
SERVER: Final = (sys.executable, "-W", "always::ResourceWarning", "-m", "loadtests.soak.server")

#: What it does takes no longer, or it is stuck, and ends by itself, before that.
ANSWER_SECONDS: Final = 60.0

_TRACEBACK: Final = "Traceback (most recent call last):"
_PLANNED: Final = re.compile(r"\S*\bPlanned: request (\d+)")
#: What Python, gevent or an event loop say of what must not be.
_BAD: Final = re.compile(
    r"ResourceWarning|RuntimeWarning|Exception ignored|Fatal|Assertion|LoopExit"
)


class Program(Process):
    """A server's process.

    Args:
        command: What runs it, beside its plan.
    """

    end_seconds: ClassVar[float] = 0.0  # it is over, or it is stuck

    def __init__(self, plan: Plan, command: Sequence[str] = SERVER) -> None:
        super().__init__([*command, plan.to_json()])

    def answer(self) -> Any:
        """Return what it prints next.

        Raises:
            ProcessError: It has ended, or was silent for too long. Then its errors have the stacks
                of its threads.
        """
        try:
            return json.loads(self.line(ANSWER_SECONDS))
        except ProcessError:
            if self.is_running():
                self.signal(signal.SIGUSR1)
                time.sleep(0.5)
            raise


def unexpected_errors(text: str, crashed: Iterable[int]) -> Counter[str]:
    """Return what *text*, of standard error, says beside what was planned, and how often.

    Each handler that has *crashed*, by the number of its request, must be reported once.
    """
    found: Counter[str] = Counter()
    lines = text.splitlines()
    told = [int(match[1]) for match in map(_PLANNED.fullmatch, lines) if match]
    twice = {number for number, times in Counter(told).items() if times > 1}
    missing = {*crashed} - {*told}
    strange = {*told} - {*crashed}
    for numbers, what in ((twice, "told twice"), (missing, "not told"), (strange, "not planned")):
        if numbers:
            found[f"crashes {what}, as of request {min(numbers)}"] += len(numbers)
    for at, line in enumerate(lines):
        if line.strip() == _TRACEBACK:
            end = at + 1
            while end < len(lines) and lines[end].startswith((" ", "\t")):
                end += 1
            if end == len(lines) or not _PLANNED.fullmatch(lines[end]):
                found["\n".join(lines[at : end + 1])] += 1
        elif _BAD.search(line):
            found[line] += 1
    return found
