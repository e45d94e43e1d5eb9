"""A server in a process of its own, which ends with the process that started it."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any, ClassVar, Final

from loadtests.frame.process import Process

__all__ = ["Target"]

#: How long an answer may take, in seconds: a roll waits for the handlers that are at work.
ANSWER_SECONDS: Final = 30.0


class Target(Process):
    """A process of `loadtests.target`, which serves from now on until `end`.

    It ends with this process too, however this one ends: its standard input is ours to hold.
    Greenlets may share a target.

    Args:
        options: Of its command line.
    """

    end_seconds: ClassVar[float] = 5.0

    def __init__(self, **options: object) -> None:
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        # What it complains of is for the terminal.
        super().__init__([sys.executable, "-m", __package__, *given], stderr=None)
        self._lock: Final = threading.Lock()
        try:
            host, port = self._answer()["address"]
        except BaseException:
            self.end()
            raise
        self.address: Final[tuple[str, int]] = (host, port)

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
            self.tell(json.dumps({"do": do}))
            answer = self._answer()
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def _answer(self) -> Any:
        return json.loads(self.line(ANSWER_SECONDS))
