"""The live table of ``glb serve``, and what is printed above it.

A thread of its own draws it, so that it goes on while hub 0 is stuck. What is written to stdout or
stderr meanwhile, by glb, by the access log or by the program that is served, comes out above the
table: the writer only leaves its lines here, and the same thread prints them.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import gevent
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ..admin.pulse import LOOK_SECONDS, STUCK_SECONDS
from ..admin.watched import Watched
from ..hubs.threads import HubThread
from ..server import StreamServer
from .clone_table import picture

__all__ = ["Above", "live"]

# Often enough to follow, seldom enough to read: so many looks are one picture.
LOOKS_A_PICTURE: Final = 5

# A terminal that takes nothing, or less than comes, must not fill the memory.
MOST_WRITES: Final = 10_000

# A terminal that is stopped (Ctrl-S) doesn't hold up the end.
END_SECONDS: Final = 2.0


class Above:
    """Stands in for stdout and stderr: keeps whole lines until they are taken. From any thread.

    It has no lock: a signal handler, or a finalizer, may write in the middle of another write.
    """

    def __init__(self) -> None:
        self._texts: Final[deque[str]] = deque()
        self._partial = ""
        self._lost = 0

    def write(self, text: str) -> int:
        if len(self._texts) < MOST_WRITES:
            self._texts.append(text)
        else:
            self._lost += 1
        return len(text)

    def take(self, *, is_last: bool = False) -> str:
        """Return the lines that have come since, without their last end; ``""`` is none.

        One thread at a time.
        """
        texts = [self._texts.popleft() for _ in range(len(self._texts))]
        *lines, self._partial = "".join([self._partial, *texts]).split("\n")
        if self._lost:
            lines.append(f"glb: {self._lost} writes more came than a terminal takes")
            self._lost = 0
        if is_last and self._partial:
            lines.append(self._partial)
            self._partial = ""
        return "\n".join(lines)


class _Stream:
    """A stream whose writes go `Above` the table, and whose rest is *file*'s."""

    def __init__(self, file: Any, above: Above) -> None:
        self.rich_proxied_file: Final = file  # rich writes the table there
        self._above: Final = above

    def write(self, text: str) -> int:
        return self._above.write(text)

    def writelines(self, lines: Any) -> None:
        self._above.write("".join(lines))

    def flush(self) -> None:
        """Nothing is kept here."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class _Screen:
    """Draws in its thread."""

    def __init__(
        self,
        live: Live,
        draw: Callable[[bool], Group],
        watched: list[Watched],
        above: Above,
    ) -> None:
        self._live: Final = live
        self._draw: Final = draw
        self._watched: Final = watched
        self._above: Final = above
        self._thread: Final = HubThread("glb console")
        self._drawing: Any = None

    def start(self) -> None:
        self._thread.start()
        self._thread.call(self._begin)

    def end(self) -> None:
        """End the thread, and leave the last picture."""
        self._thread.send(self._end)
        if self._thread.wait(END_SECONDS):
            with contextlib.suppress(OSError):  # the terminal is gone
                self.print(is_last=True)
                self._live.update(self._draw(True), refresh=True)

    def print(self, *, is_last: bool = False) -> None:
        text = self._above.take(is_last=is_last)
        if text:
            found = Text.from_ansi(text) if "\x1b" in text else Text(text)
            self._live.console.print(found, soft_wrap=True)

    # -- in its thread -------------------------------------------------------------------------

    def _begin(self) -> None:
        self._drawing = gevent.spawn(self._run)

    def _end(self) -> None:
        self._drawing.kill(block=False)
        self._thread.end()

    def _run(self) -> None:
        looks = 0
        with contextlib.suppress(OSError):  # the terminal is gone: SIGHUP does the rest
            while True:
                for each in self._watched:
                    each.look()
                self.print()
                if looks % LOOKS_A_PICTURE == 0:
                    self._live.update(self._draw(False), refresh=True)
                looks += 1
                gevent.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def live(
    servers: Mapping[str, StreamServer], title: str, console: Console, stall_limit: float | None
) -> Iterator[None]:
    """Show *servers*, whose keys are their addresses for people, in a table on *console*.

    Args:
        stall_limit: See `glb.cli.console.shown`.
    """
    watched = {
        url: Watched(each, stall_limit or STUCK_SECONDS, is_logged=stall_limit is not None)
        for url, each in servers.items()
    }
    above = Above()

    def draw(is_over: bool) -> Group:
        seen = [{**each.view().as_json(), "address": url} for url, each in watched.items()]
        width, height = console.size
        # The last line stays free: a table that fills the screen would scroll it.
        return picture(seen, title, "ended" if is_over else "Ctrl-C ends it", (width, height - 1))

    stdout, stderr = sys.stdout, sys.stderr
    screen = Live(
        draw(False),
        console=console,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with screen:
        drawer = _Screen(screen, draw, [*watched.values()], above)
        drawer.start()
        sys.stdout = _Stream(stdout, above)
        if stderr is not None and stderr.isatty():
            sys.stderr = _Stream(stderr, above)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = stdout, stderr
            drawer.end()
