"""What people see while a run goes on."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

__all__ = ["Progress"]


class Progress:
    """Tells each step: on a terminal in a bar, elsewhere the parts of the run, a line each.

    It is drawn between the turns, never during one: it would have the client's CPU. Use it in
    a ``with``.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""
        self._bar = Bar(
            TextColumn("{task.description:45}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", start=True)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bar.stop()

    def expect(self, steps: int) -> None:
        """There will be *steps* of them."""
        self._bar.update(self._task, total=steps, completed=-1)

    def tell(self, step: str) -> None:
        """Show that *step*, "part: contender", begins."""
        part = step.partition(":")[0]
        if not self._console.is_terminal and part != self._said:
            print(part, file=sys.stderr)
            self._said = part
        self._bar.update(self._task, description=step, advance=1, refresh=True)
