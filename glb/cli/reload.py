"""Reloads: the newest version of a target, rolled into its server."""

from __future__ import annotations

from collections.abc import Sequence

import gevent
from gevent.event import Event

from ..server import StreamServer
from . import console
from .supervisor import Supervisor
from .target import Target, TargetError
from .watcher import POLL_SECONDS, Watcher

__all__ = ["Reloads"]


class Reloads:
    """Rolls the newest version of *target* into *servers* at each `ask`.

    There is one reload at a time; any number of `ask`s during one makes one more after it. It works
    within its context. With *is_watched* a change of the source asks as well.
    """

    def __init__(
        self,
        servers: Sequence[StreamServer],
        target: Target,
        is_watched: bool = False,
        supervisor: Supervisor | None = None,
    ) -> None:
        self._servers = servers
        self._target = target
        self._supervisor = supervisor or Supervisor()
        self._watcher = Watcher(target.files, self.ask, POLL_SECONDS)
        self._watcher.note()  # a change is one of what was just loaded
        self._is_watched = is_watched
        self._asked = Event()
        self._is_over = False
        self._greenlet: gevent.Greenlet[[], None] | None = None

    def ask(self) -> None:
        """Have a reload begin, or one more after the one that is under way."""
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
            self._supervisor.reloading(f"reloading {self._target.name}")
            self._reload()
            self._supervisor.ready()

    def _reload(self) -> None:
        name = self._target.name
        try:
            try:
                handle = self._target.reload()
            finally:
                # The new files, before the log has the error and an author repairs one.
                self._watcher.note()
            # Without a wait, and without an end to any connection: an old handler may go on as long
            # as its client stays, and must not hold up the next reload.
            reports = [each.roll(handle, wait=False) for each in self._servers]
        except BaseException as error:  # whatever it is, the old one serves, and is asked again
            if self._is_over:  # it is the kill
                raise
            # A Ctrl-C is a signal that is handled elsewhere, and this greenlet is killed at the
            # end alone: so these are of the module's making, as any other error is.
            if isinstance(error, (KeyboardInterrupt, gevent.GreenletExit)):
                error = TargetError(self._target.reason(error))
            reason = error if isinstance(error, TargetError) else f"{type(error).__name__}: {error}"
            line = console.one_line(f"can't reload {name!r}: {reason}")
            console.tell("%s; the old one goes on serving", line)
        else:
            clones = sum(len(each.clones) for each in reports)
            console.tell("reloaded %r (%s)", name, console.count(clones, "clone"))
