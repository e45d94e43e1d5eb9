"""What a terminal shows.

Where stdout is no terminal there are no escape codes: tables come as plain text, a running
server tells of itself in log lines.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TextIO, cast

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..server import StreamServer
from .demo import Outcome

__all__ = [
    "STDERR",
    "count",
    "is_live",
    "log",
    "make_console",
    "one_line",
    "outcomes",
    "progress",
    "shown",
    "tell",
]

log: Final = logging.getLogger("glb")


class _Stderr:
    """``sys.stderr`` as it is at the moment: above a live table something stands in for it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


STDERR: Final = cast("TextIO", _Stderr())


def make_console() -> Console:
    """Return stdout. Variables such as FORCE_COLOR don't make a terminal of a file."""
    # Python has none if it was closed before the start.
    return Console(force_terminal=sys.stdout is not None and sys.stdout.isatty())


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
    """Return a table of how many each served, a column for each server."""
    table = Table("", show_footer=True)
    table.columns[0].footer = "order\nJain's index"
    for name, outcome in found.items():
        order = "exact" if outcome.is_exact else "not exact"
        table.add_column(name, f"{order}\n{outcome.jain:.3f}", justify="right")
    served = [outcome.served for outcome in found.values()]
    for clone, counts in enumerate(zip(*served, strict=True)):
        table.add_row(f"clone {clone}", *map(str, counts))
    return table


@contextlib.contextmanager
def shown(
    servers: Mapping[str, StreamServer],
    title: str,
    console: Console | None,
    level: str = "info",
    stall_limit: float | None = None,
) -> Iterator[None]:
    """Show *servers* while the context lasts: a live table on *console*, else a line at each end.

    Their keys are their addresses, for people. Lines below *level*, a name of logging's in any
    case, are left out. A hub that does not turn for *stall_limit* is logged; with ``None`` it
    isn't, because an administration does so.
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
        if console is None:
            shown_so = _logged(servers, title)
        else:
            from .live import live  # noqa: PLC0415  # it imports gevent.pywsgi, see `serve._load`

            shown_so = live(servers, title, console, stall_limit)
        with shown_so:
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
def _logged(servers: Mapping[str, StreamServer], title: str) -> Iterator[None]:
    log.info("%s", title)
    try:
        yield
    finally:
        for url, server in servers.items():
            stats = server.clone_stats()
            log.info(
                "stopped%s after %d connections, %d failed; by clone: %s",
                f" {url}" if len(servers) > 1 else "",
                sum(clone.accepted for clone in stats),
                sum(clone.failed for clone in stats),
                " ".join(str(clone.accepted) for clone in stats),
            )


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def count(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"
