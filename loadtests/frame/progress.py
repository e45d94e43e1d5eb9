"""What people see while a run goes on."""

from __future__ import annotations

import sys


class Progress:
    """Tells each step: on a terminal in one line, elsewhere the parts of the run, a line each.

    It is written between the turns, never during one: it would have the client's CPU.
    """

    _said = ""

    def tell(self, step: str) -> None:
        """Show that *step*, "part: contender", begins."""
        part = step.partition(":")[0]
        if sys.stderr.isatty():
            print(f"\r\x1b[2K{step}", end="", file=sys.stderr, flush=True)
        elif part != self._said:
            print(part, file=sys.stderr, flush=True)
        self._said = part
