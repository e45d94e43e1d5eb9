"""``glb top``: the clones of another process's servers, live, as its administration has them.

It reads and shows them once a second: see `glb.cli.source`.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.live import Live

from . import console
from .clone_table import picture
from .settings import ABOVE_ZERO

if TYPE_CHECKING:
    from .source import Source

__all__ = ["top"]

#: Of a terminal whose keys aren't read, Ctrl-C comes as a signal, and else as one of these.
ENDS: Final = {b"q", b"Q", b"\x03", b"\x04"}


class _Rates:
    """Connections a second, between two answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock: Final = clock
        self._last: dict[str, int] = {}
        self._at = 0.0

    def of(self, servers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return each server's, by its address; those that are seen twice have one."""
        now = self._clock()
        passed, self._at = now - self._at, now
        counts = {
            each["address"]: sum(clone["accepted"] for clone in each["clones"]) for each in servers
        }
        last, self._last = self._last, counts
        return {
            address: max(0, count - last[address]) / passed
            for address, count in counts.items()
            if address in last and passed > 0
        }


@click.command(epilog="Example: glb top 127.0.0.1:9000")
@click.argument("address")
@click.option(
    "--interval",
    type=ABOVE_ZERO,
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.pass_context
def top(context: click.Context, address: str, interval: float) -> None:
    """Show the clones of a server that runs, live.

    ADDRESS is that of 'glb serve --admin', or of a program's glb.admin.Admin: host:port or
    unix:/path. The keys q and Ctrl-C end it. Where stdout is no terminal it is printed once.

    The exit status is 1 if no answer comes, or if the answers stop.
    """
    from .source import Source, UnreadableError  # noqa: PLC0415  # ssl comes with it, see `serve`

    try:
        source = Source(address)
    except (OSError, ValueError) as error:
        raise click.UsageError(str(getattr(error, "strerror", None) or error)) from error
    out = console.make_console()
    try:
        servers = source.read()
        if console.is_live(out):
            with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it is to end
                _show(source, servers, out, interval)
        else:
            out.print(picture(servers, title_of(source), "", (out.width, sys.maxsize)))
    except UnreadableError as error:
        click.echo(f"glb: {error}", err=True)
        context.exit(1)


def title_of(source: Source) -> str:
    """Return the first line of the picture."""
    return f"glb top {source.where}"


def _show(
    source: Source, servers: Sequence[Mapping[str, Any]], out: Console, interval: float
) -> None:
    rates = _Rates(time.monotonic)
    with _keys() as wait, Live(console=out, screen=True, auto_refresh=False) as screen:
        while True:
            note = f"{time.strftime('%H:%M:%S')}  q ends it"
            seen = picture(servers, title_of(source), note, out.size, rates.of(servers))
            screen.update(seen, refresh=True)
            if wait(interval) in ENDS:
                return
            servers = source.read()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], bytes]]:
    """Yield a function that waits for a key, at most so many seconds; ``b""`` is none."""
    import termios  # noqa: PLC0415  # where there is no terminal, there may be no such module
    import tty  # noqa: PLC0415  # as above

    if not sys.stdin.isatty():
        yield _without_keys
        return
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)

    def wait(seconds: float) -> bytes:
        ready, _, _ = select.select([stdin], [], [], seconds)
        # At its end a terminal that was closed is ready, and has nothing.
        return (os.read(stdin, 1) or b"q") if ready else b""

    tty.setcbreak(stdin)
    try:
        yield wait
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _without_keys(seconds: float) -> bytes:
    time.sleep(seconds)  # until the next look: there is no key to wait for
    return b""
