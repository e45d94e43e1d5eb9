"""The watcher of source files: it calls when they have changed, and are quiet again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final

import gevent

__all__ = ["POLL_SECONDS", "Watcher"]

# Soon enough after an author saves a file; 500 files cost a thousandth of it. Werkzeug and Django
# poll once a second, too.
POLL_SECONDS: Final = 1.0


class Watcher:
    """Calls *changed* after files have changed, once they are quiet.

    A new file among the watched is no change. One that goes away or comes back is: editors save by
    renaming. Several changes without a quiet period between them are one.

    Args:
        files: Returns the files to watch, each time.
        changed: Called in the watcher's greenlet after a change.
        period: Seconds between two polls, and of a quiet period.
    """

    def __init__(
        self,
        files: Callable[[], Iterable[str]],
        changed: Callable[[], object],
        period: float = POLL_SECONDS,
    ) -> None:
        self._files = files
        self._changed = changed
        self._period = period
        self._stamps: dict[str, object] = {}
        self._is_restless = False
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def start(self) -> None:
        """Begin to watch, in a greenlet of this hub. Twice is harmless."""
        if self._greenlet is None:
            self.poll()
            self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Stop watching. Twice is harmless."""
        greenlet, self._greenlet = self._greenlet, None
        if greenlet is not None:
            greenlet.kill()

    def poll(self) -> None:
        """Check the files once, as `start` does each period."""
        before = self._stamps
        self._stamps = {file: _stamp(file) for file in self._files()}
        if any(before.get(file, stamp) != stamp for file, stamp in self._stamps.items()):
            self._is_restless = True
        elif self._is_restless:
            self._is_restless = False
            self._changed()

    def note(self) -> None:
        """Note the present state of new files among the watched, before the next poll."""
        self._stamps |= {file: _stamp(file) for file in self._files() if file not in self._stamps}

    def _run(self) -> None:
        while True:
            gevent.sleep(self._period)
            self.poll()


def _stamp(file: str) -> object:
    """Return a value that differs after each change, or None if there is no such file."""
    try:
        stat = os.stat(file)
    except OSError:
        return None
    # A file that is renamed into place may be as old and as large as the one before.
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
