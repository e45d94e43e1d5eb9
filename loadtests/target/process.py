"""A server in a process of its own, which ends with the process that started it."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import threading
from typing import Any, Final

import gevent

__all__ = ["Target"]

ROOT: Final = pathlib.Path(__file__).parents[2]

#: How long an answer may take, in seconds: a roll waits for the handlers that are at work.
ANSWER_SECONDS: Final = 30.0

#: So long the server has to end by itself, before it is killed, in seconds.
END_SECONDS: Final = 5.0


class Target:
    """A process of `loadtests.target`, which serves from now on until `end`.

    It ends with this process too, however this one ends: its standard input is ours to hold.
    Greenlets may share a target.

    Args:
        options: Of its command line.
    """

    def __init__(self, **options: object) -> None:
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        self._process: Final = subprocess.Popen(
            [sys.executable, "-m", __package__, *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self._lock: Final = threading.Lock()
        try:
            host, port = self._answer()["address"]
        except BaseException:
            self.end()
            raise
        self.address: Final[tuple[str, int]] = (host, port)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stats(self) -> list[dict[str, Any]]:
        """Return what each clone has done, by `name`: at least `accepted`."""
        return list(self._ask("stats"))

    def roll(self) -> None:
        """Have all clones rolled; return when they are.

        Raises:
            RuntimeError: This kind of server can't be, or it has ended.
        """
        self._ask("roll")

    def _ask(self, do: str) -> Any:
        with self._lock:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps({"do": do}).encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError as error:
                raise RuntimeError(f"the server, process {self.pid}, has ended") from error
            answer = self._answer()
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        late = RuntimeError(f"the server, process {self.pid}, doesn't answer")
        with gevent.Timeout(ANSWER_SECONDS, late):
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server, process {self.pid}, has ended")
        return json.loads(line)

    def end(self) -> None:
        """End it, by the end of its input, or by force. Twice is once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already, with an order unread
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
