"""What people see while a run goes on."""

from __future__ import annotations

import sys
import time

__all__ = ["Progress"]


class Progress:
    """Tells each step: on a terminal in one line, elsewhere the parts of the run, a line each.

    It is written between the turns, never during one: it would have the client's CPU.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._said = ""

    def tell(self, step: str) -> None:
        """Show that *step*, "part: contender", begins."""
        if sys.stderr.isatty():
            seconds = time.monotonic() - self._began
            print(f"\r\x1b[2K{seconds:6.0f} s  {step}", end="", file=sys.stderr, flush=True)
        elif (part := step.partition(":")[0]) != self._said:
            self._said = part
            print(part, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line away."""
        if sys.stderr.isatty():
            print("\r\x1b[2K", end="", file=sys.stderr)
