"""What a terminal shows: all of rich is here.

Where stdout is no terminal there are no escape codes: tables come as plain text, a running
server tells of itself in log lines.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, TextIO, cast

import gevent
from rich.console import Console
from rich.live import Live
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ..server import StreamServer
from .demo import Outcome

__all__ = [
    "STDERR",
    "count",
    "is_live",
    "make_console",
    "one_line",
    "outcomes",
    "progress",
    "shown",
    "tell",
]

log: Final = logging.getLogger("glb")

# Often enough to follow, seldom enough to read.
REFRESH_SECONDS: Final = 0.5


class _Stderr:
    """``sys.stderr`` as it is at the moment: above a live table something stands in for it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


STDERR: Final = cast("TextIO", _Stderr())


def make_console() -> Console:
    """Return stdout. Variables such as FORCE_COLOR don't make a terminal of a file."""
    return Console(force_terminal=sys.stdout.isatty())


def is_live(console: Console) -> bool:
    """Tell whether *console* can show what changes in place."""
    return console.is_terminal and not console.is_dumb_terminal


@contextlib.contextmanager
def progress(console: Console, steps: int, hide: bool) -> Iterator[Callable[[], object]]:
    """Show a progress bar on a terminal, and yield what to call after each step."""
    hide = hide or not is_live(console)
    with Progress(console=console, transient=True, disable=hide) as bar:
        task = bar.add_task("connecting", total=steps)
        yield lambda: bar.advance(task)


def outcomes(found: dict[str, Outcome]) -> Table:
    """Return a table of who served how many, a column for each server."""
    table = Table("", show_footer=True)
    table.columns[0].footer = "order\nJain's index"
    for name, outcome in found.items():
        order = "exact" if outcome.is_exact else "not exact"
        table.add_column(name, f"{order}\n{outcome.jain:.3f}", justify="right")
    served = [outcome.served for outcome in found.values()]
    for clone, counts in enumerate(zip(*served, strict=True)):
        table.add_row(f"clone {clone}", *map(str, counts))
    return table


def _clones(server: StreamServer, title: str) -> Table:
    table = Table(title=Text(title), caption="Ctrl-C ends it" if server.started else "ended")
    names = ["clone", "accepted", "active", "completed", "failed", "state"]
    for name in names if server.hubs == 1 else [*names, "hub"]:
        table.add_column(name, justify="right")
    for stats in server.clone_stats():
        cells = [*map(str, stats[:5]), stats.state, str(stats.hub)]
        table.add_row(*cells[: len(table.columns)])
    return table


@contextlib.contextmanager
def shown(
    server: StreamServer, title: str, console: Console | None, level: str = "info"
) -> Iterator[None]:
    """Tell of *server* in the meantime: a live table on *console*, else a line at each end.

    Lines below *level*, one of logging's in any case, are left out.
    """
    handler = logging.StreamHandler(STDERR)
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    # Of our own logger alone: what the program that is served does with the others is its
    # own business.
    log.addHandler(handler)
    log.propagate, propagate = False, log.propagate
    log.disabled, disabled = False, log.disabled  # see `tell`
    log.setLevel(level.upper())
    try:
        with _logged(server, title) if console is None else _live(server, title, console):
            yield
    finally:
        log.setLevel(logging.NOTSET)
        log.propagate = propagate
        log.disabled = disabled
        log.removeHandler(handler)


def tell(text: str, *args: object) -> None:
    """Put a line in the log: on stderr while a server is shown, above its table."""
    # A program that configures logging disables, by default, each logger that is there before.
    log.disabled = False
    log.info(text, *args)


@contextlib.contextmanager
def _live(server: StreamServer, title: str, console: Console) -> Iterator[None]:
    # A greenlet refreshes, not rich's thread: the counts belong to this one. Prints to
    # stderr come out above the table, unless they go to a file.
    with Live(
        _clones(server, title),
        console=console,
        auto_refresh=False,
        redirect_stderr=sys.stderr.isatty(),
    ) as live:

        def refresh() -> None:
            live.update(_clones(server, title), refresh=True)

        def refresh_often() -> None:
            while True:
                refresh()
                gevent.sleep(REFRESH_SECONDS)

        refresher = gevent.spawn(refresh_often)
        try:
            yield
        finally:
            refresher.kill()
            refresh()


@contextlib.contextmanager
def _logged(server: StreamServer, title: str) -> Iterator[None]:
    log.info("%s", title)
    try:
        yield
    finally:
        stats = server.clone_stats()
        log.info(
            "stopped after %d connections, %d failed; by clone: %s",
            sum(clone.accepted for clone in stats),
            sum(clone.failed for clone in stats),
            " ".join(str(clone.accepted) for clone in stats),
        )


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"
