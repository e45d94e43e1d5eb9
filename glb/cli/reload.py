"""Reloads: the newest state of a target, rolled into its server."""

from __future__ import annotations

import gevent
from gevent.event import Event

from ..server import StreamServer
from . import console
from .target import Target, TargetError
from .watcher import POLL_SECONDS, Watcher

__all__ = ["Reloads"]


class Reloads:
    """Rolls the newest state of *target* into *server*, after each `ask`.

    One reload at a time: any number of calls during one bring one more after it. It works within
    its context; with *is_watched* it also reloads when the source changes.
    """

    def __init__(self, server: StreamServer, target: Target, is_watched: bool = False) -> None:
        self._server = server
        self._target = target
        self._watcher = Watcher(target.files, self.ask, POLL_SECONDS)
        self._watcher.note()  # changes count from the load on
        self._is_watched = is_watched
        self._asked = Event()
        self._is_over = False
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def ask(self) -> None:
        """Begin a reload, or one more after the current one."""
        self._asked.set()

    def __enter__(self) -> None:
        self._greenlet = gevent.spawn(self._run)
        if self._is_watched:
            self._watcher.start()

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._watcher.stop()
        if self._greenlet is not None:
            self._greenlet.kill()

    def _run(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            self._reload()

    def _reload(self) -> None:
        name = self._target.name
        try:
            try:
                handle = self._target.reload()
            finally:
                # The new files, before the log has a line and the program's author repairs one.
                self._watcher.note()
            # It doesn't wait for connections, and ends none: an old handler may go on as long as
            # its client stays, and must not hold up the next reload.
            report = self._server.roll(handle, wait=False)
        except BaseException as error:  # of any kind: the old one serves on
            if self._is_over:  # it is the kill
                raise
            # The signal of a Ctrl-C has its own handler, and this greenlet is killed only at the
            # end. So these come from the module, as any other error.
            if isinstance(error, (KeyboardInterrupt, gevent.GreenletExit)):
                error = TargetError(self._target.reason(error))
            reason = error if isinstance(error, TargetError) else f"{type(error).__name__}: {error}"
            line = console.one_line(f"can't reload {name!r}: {reason}")
            console.tell("%s; the old one goes on serving", line)
        else:
            console.tell("reloaded %r (%s)", name, console.count(len(report.clones), "clone"))
