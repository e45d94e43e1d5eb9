"""The supervisor's side: what systemd and a pid file learn of a service.

systemd learns when the process serves, reloads, is replaced and ends, and a few times a minute that
all of its hubs turn, if its unit has a watchdog.

Source: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Final

import gevent

from ..hubs.signals import ask
from ..net.inherited import Notifier
from ..server import StreamServer

__all__ = ["PidFile", "Supervisor", "check_pid_file"]


def check_pid_file(path: str) -> None:
    """Raise ValueError if a file can't be made at *path*."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(f"can't write {path!r}: there is no folder {folder!r}")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"can't write {path!r}: the folder {folder!r} may not be written to")


class PidFile:
    """A file with the id of the process that serves. *path* ``None`` is none."""

    def __init__(self, path: str | None) -> None:
        self._path: Final = None if path is None else os.path.abspath(path)

    def write(self) -> None:
        """Write this process's id. Another process never reads a part of it.

        Raises:
            OSError: It can't be written.
        """
        if self._path is None:
            return
        beside = f"{self._path}.{os.getpid()}"
        with open(beside, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
        os.replace(beside, self._path)

    def remove(self) -> None:
        """Remove it, unless it has another process's id by now."""
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            with open(self._path, encoding="ascii", errors="replace") as file:
                is_mine = file.read().strip() == str(os.getpid())
            if is_mine:
                os.unlink(self._path)


class Supervisor:
    """Tells systemd how the service is. Without systemd it tells nothing."""

    def __init__(self, notifier: Notifier | None = None) -> None:
        self._notifier: Final = notifier or Notifier()
        self._is_replaced = False
        #: A line for operators, while all is well.
        self.status = ""

    def ready(self, status: str = "") -> None:
        """Tell that it serves, for the first time or again; *status* instead of the usual line."""
        if not self._is_replaced:
            self._notifier.ready(status or self.status)

    def reloading(self, status: str) -> None:
        """Tell that something new is taken up; `ready` is to follow."""
        if not self._is_replaced:
            self._notifier.reloading(status)

    def stopping(self, status: str) -> None:
        """Tell that the service ends."""
        if not self._is_replaced:
            self._notifier.stopping(status)

    def replaced(self) -> None:
        """Another process is the service: tell nothing more, which would be taken for its words."""
        self._is_replaced = True

    @contextlib.contextmanager
    def watching(self, servers: Sequence[StreamServer]) -> Iterator[None]:
        """In this block, tell systemd's watchdog that all hubs of *servers* turn, while they do."""
        seconds = self._notifier.watchdog_seconds
        if seconds is None:
            yield
            return
        greenlet = gevent.spawn(self._feed, servers, seconds)
        try:
            yield
        finally:
            greenlet.kill()

    def _feed(self, servers: Sequence[StreamServer], seconds: float) -> None:
        while not self._is_replaced:
            # Each hub has to come to a call. One that never does ends the process's time.
            for server in servers:
                for worker in server.glb_engine.workers:
                    dispatcher = worker.dispatcher
                    if dispatcher is not None and not dispatcher.is_here:
                        ask(dispatcher.send, _nothing, lambda each=dispatcher: each.is_dead)(None)  # type: ignore[misc]  # bound now
            self._notifier.alive()
            gevent.sleep(seconds)


def _nothing() -> None:
    pass
