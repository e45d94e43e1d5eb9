"""Hints: a line on stderr, once each, when ``glb run`` can't do anything for a program.

* The program listens on addresses, and shares none: it sets no SO_REUSEPORT, and has no server of
  gevent's. So there are no turns to take.
* The program starts itself again, in another process, as the autoreloaders of Flask, Django and
  others do. Some start it as this one was started, by glb, and some without it.

Source: ``werkzeug._reloader``, ``django.utils.autoreload`` and ``tornado.autoreload``, for how they
start the program again.
"""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final

import click
import gevent
from gevent.socket import socket as GeventSocket

from ..accept.exclusions import is_excluded
from ..accept.registry import entries
from ..model.address import Address
from ..net.sockets import bound_address
from . import console

__all__ = ["SHARE_SECONDS", "Hints"]

# Programs that open an address several times do so at once.
SHARE_SECONDS: Final = 1.0


class Hints:
    """Watches the program of this process. Once a process, before it runs.

    Args:
        program: Its file, or its module's name.
        say: Takes a line.
    """

    def __init__(self, program: str, say: Callable[[str], object] | None = None) -> None:
        self._program: Final = program
        self._say: Final = say or _to_stderr
        self._has_said = False  # of addresses: once
        self._listening: list[tuple[str, weakref.ref[Any]]] = []
        self._timer: Any = None
        self._has_said_again = False
        self._undo: list[tuple[Any, str, Any]] = []

    def start(self) -> None:
        """Watch what the program opens and starts from now on."""
        listen, init = GeventSocket.listen, subprocess.Popen.__init__

        def listens(sock: Any, *args: Any) -> None:
            listen(sock, *args)
            self.listened(sock)

        def starts(popen: Any, args: Any, *more: Any, **options: Any) -> None:
            self.started(args)
            init(popen, args, *more, **options)

        self._put(GeventSocket, "listen", listens)
        self._put(subprocess.Popen, "__init__", starts)
        for name in ("execv", "execve"):
            self._put(os, name, self._executing(getattr(os, name)))
        atexit.register(self._look_at_exit)

    def stop(self) -> None:
        """Watch no more."""
        while self._undo:
            setattr(*self._undo.pop())
        atexit.unregister(self._look_at_exit)
        self._end_timer()

    def _put(self, where: Any, name: str, value: Any) -> None:
        self._undo.append((where, name, getattr(where, name)))
        setattr(where, name, value)

    def _executing(self, original: Any) -> Any:
        def execute(path: Any, argv: Any, *env: Any, **more: Any) -> Any:
            self.started(argv)
            return original(path, argv, *env, **more)

        return execute

    # -- addresses -----------------------------------------------------------------------------

    def listened(self, sock: Any) -> None:
        """Note that *sock* listens, and look a moment later whether an address is shared."""
        if self._has_said or sock.family not in {socket.AF_INET, socket.AF_INET6} or entries():
            return
        if is_excluded(Address(sock.family, sock.getsockname())):
            return
        self._listening.append((str(bound_address(sock)), weakref.ref(sock)))
        if len(self._listening) == 1:
            self._timer = gevent.get_hub().loop.timer(SHARE_SECONDS, ref=False)
            self._timer.start(self._look)

    def _look_at_exit(self) -> None:
        # What is closed by now may have been shared: a program that is done has closed it all.
        self._listening = [
            (where, ref)
            for where, ref in self._listening
            if (sock := ref()) is not None and sock.fileno() >= 0
        ]
        self._look()

    def _look(self) -> None:
        self._end_timer()
        listening, self._listening = [where for where, _ in self._listening], []
        if listening and not entries():
            self._has_said = True
            self._say(
                f"glb: no address is shared, so there are no turns: the program listens on"
                f" {' and '.join(listening)} without SO_REUSEPORT, and has no gevent server"
            )

    def _end_timer(self) -> None:
        timer, self._timer = self._timer, None
        # The program may have listened in another thread, whose loop is its own, or gone.
        if timer is not None and timer.loop is gevent.get_hub().loop:
            timer.stop()
            timer.close()

    # -- processes -----------------------------------------------------------------------------

    def started(self, command: Any) -> None:
        """Say so, if *command* is this program again."""
        if not self._has_said_again and self._is_it_again(command):
            self._has_said_again = True
            words = [*map(os.fsdecode, command)]
            # Werkzeug repeats the command line of this process, Django and Tornado don't.
            is_ours = any(os.path.basename(each) == "glb" for each in words)
            what = "under glb, too" if is_ours else "without glb: turn its reloader off"
            line = console.one_line(" ".join(words))
            self._say(
                f"glb: the program starts itself again, by {line!r}; that process runs {what}"
            )

    def _is_it_again(self, command: Any) -> bool:
        if not isinstance(command, Sequence) or isinstance(command, (str, bytes)):
            return False
        try:
            interpreter, *words = map(os.fsdecode, command)
        except (TypeError, ValueError):
            return False
        names = {self._program, sys.argv[0]}
        paths = {os.path.realpath(each) for each in names}
        return _is_python(interpreter) and any(
            each in names or os.path.realpath(each) in paths for each in words
        )


def _is_python(path: str) -> bool:
    return path == sys.executable or os.path.basename(path).startswith("python")


def _to_stderr(line: str) -> None:
    # A program may have closed it.
    if sys.stderr is not None and not sys.stderr.closed:
        click.echo(line, err=True)
