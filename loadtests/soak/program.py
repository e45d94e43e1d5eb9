"""The server's process, as the command sees it: starts it, tells it, and reads its errors."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from .plan import Plan

__all__ = ["Program", "ProgramError", "unexpected_errors"]

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


class ProgramError(Exception):
    """The process has not answered."""


class Program:
    """A server's process. Leave it to end it; nothing of it is left then.

    Args:
        folder: Where its errors are written.
        command: What runs it, beside its plan.
    """

    def __init__(self, plan: Plan, folder: Path, command: Sequence[str] = SERVER) -> None:
        self._errors: Final = folder / "stderr.txt"
        self._seen = b""
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, plan.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=Path(__file__).parents[2],
            )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def tell(self, word: str) -> None:
        """Send it the next command. One that has ended ignores it."""
        assert self._process.stdin is not None, "it is a pipe"
        try:
            os.write(self._process.stdin.fileno(), f"{word}\n".encode())
        except BrokenPipeError:
            pass

    def answer(self) -> Any:
        """Return what it prints next.

        Raises:
            ProgramError: It has ended, or was silent for too long. Then its errors have the stacks
                of its threads.
        """
        assert self._process.stdout is not None, "it is a pipe"
        number = self._process.stdout.fileno()
        until = time.monotonic() + ANSWER_SECONDS
        while b"\n" not in self._seen:
            ready, _, _ = select.select([number], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self._process.send_signal(signal.SIGUSR1)
                time.sleep(0.5)
                raise ProgramError(f"the server says nothing for {ANSWER_SECONDS:g} s")
            data = os.read(number, 65536)
            if not data:
                status = self._process.wait()
                raise ProgramError(f"the server has ended with status {status}")
            self._seen += data
        line, _, self._seen = self._seen.partition(b"\n")
        return json.loads(line)

    def status(self) -> int:
        """Return with what it has ended."""
        try:
            return self._process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ProgramError("the server does not end") from error

    def errors(self) -> str:
        """Return what it has written to standard error."""
        return self._errors.read_text(errors="replace")


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
