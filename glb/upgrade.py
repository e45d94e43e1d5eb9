"""Upgrades: a new process of the program takes over the listening sockets of this one.

The new process is started with the same arguments, so it has the code, the settings and the
interpreter that are there now. These promises hold, which are tableflip's:

* After an upgrade no old code gets a new connection. The old process finishes what is in flight.
* The new process has time to start. Until it says that it is ready, the old one serves as ever.
* If the new process crashes, exits or hangs before that, the old one serves on.
* One upgrade at a time: there are never more than two processes.

Both have the same kernel sockets. So no connection in an accept queue is lost, and the file of a
Unix socket stays where it is. The new process removes it at its end.

The conversation, on a channel between both (see `glb.net.passed`)::

    old: starts the new process       new: opens its addresses, and finds them passed
    old: waits                        new: serves, says "ready", waits
    old: accepts nothing more,        new: owns the sockets
         says "go", drains

Source: Cloudflare's tableflip; nginx's and gunicorn's SIGUSR2.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import gevent
from gevent.event import Event
from gevent.socket import wait_read

from . import originals
from .accept.inherited import INHERITANCE, Inheritance
from .accept.listener import Listener, bind
from .accept.registry import REGISTRY, Entry
from .model.address import AF_UNIX, parse
from .model.limits import check_seconds
from .net.inherited import Notifier
from .net.passed import GO, NO, READY, Channel, PassedSocket, open_channel, passed_variable
from .originals import monotonic
from .server import StreamServer
from .until_signal import DRAIN_SECONDS, serve_until_signal

__all__ = ["Upgrade", "UpgradeError"]

log: Final = logging.getLogger("glb")

# Longer than a big application takes to be imported. tableflip gives a minute, too.
TIMEOUT_SECONDS: Final = 60.0

# How often a process that was started is looked at, besides what it says.
LOOK_SECONDS: Final = 0.05

# A process that is not to take over has so long after SIGTERM, and gets SIGKILL then.
KILL_SECONDS: Final = 5.0

# A process that has closed its channel is mostly about to end: so long it has, to learn how.
ENDING_SECONDS: Final = 1.0

# posix_spawn(3) can't change the directory. A deployment often is a symbolic link that leads to
# another directory by now, so the new process is to begin there, before Python looks for modules.
# (posix and sys are built in: no module of the program's is found in their place.)
_BEGIN: Final = "import posix, sys; a = sys.argv; posix.chdir(a[1]); posix.execv(a[2], a[2:])"


class UpgradeError(Exception):
    """No other process has taken over. The text says why; this process is as it was."""


class _State(enum.Enum):
    """What the process is in the line of processes.

    ::

        STARTING --ready--> SERVING --start--> UPGRADING --go--> REPLACED
                               ^                   |
                               +------fail---------+
    """

    STARTING = "it isn't ready itself"
    SERVING = ""
    UPGRADING = "an upgrade is under way"
    REPLACED = "another process has taken over"


class Upgrade:
    """Passes the sockets of this process to a new one, and has those of the one before it.

    Make it before anything is bound, and open each address by `listen`. When all serve, call
    `ready`. `start` then starts the next process. `serve_until_signal` does all that.

    Args:
        timeout: How many seconds the new process may take until it is ready.

    Raises:
        TypeError, ValueError: *timeout* is no such number, or the environment has something wrong.

    Example:
        >>> upgrade = Upgrade()
        >>> with upgrade.listen(("127.0.0.1", 0)) as listener:
        ...     upgrade.ready()
    """

    def __init__(
        self, timeout: float = TIMEOUT_SECONDS, *, inheritance: Inheritance = INHERITANCE
    ) -> None:
        check_seconds("timeout", timeout, may_be_none=False)
        inheritance.read()
        self._timeout: Final = timeout
        self._inheritance: Final = inheritance
        self._passed: Final = inheritance.passed
        self._state = _State.SERVING if self._passed is None else _State.STARTING
        # Programs change the directory, and their `sys.argv`.
        self._folder: Final = _folder()
        self._args: Final = sys.orig_argv[1:]
        self._asked: Final[dict[Entry, str]] = {}
        self._received: Final[list[tuple[Entry, PassedSocket]]] = []
        self._is_stopped = False
        self._is_over = Event()
        self._is_over.set()
        # Open until this process ends, so that the next one knows.
        self._to_successor: Channel | None = None

    def listen(
        self, address: object, reuse_port: bool = False, backlog: int | None = None
    ) -> Listener:
        """Return a listener on *address*: the passed one, or a new one, as `glb.bind` does.

        The same address finds the passed socket, as it is written: port 0 the port that the
        process before got for it. *backlog* is for a new one. A server takes it in place of an
        address, and closes it.

        Raises:
            TypeError, ValueError, OSError: As `glb.bind`.
        """
        asked = str(parse(address))
        taken = self._inheritance.take_asked(asked, reuse_port=reuse_port)
        if taken is None:
            listener = bind(address, reuse_port, backlog)
        else:
            listener, passed = taken
            self._received.append((listener.entry, passed))
        self._asked.setdefault(listener.entry, asked)  # others that share it find it by its port
        return listener

    def ready(self) -> None:
        """Tell the process that this one replaces, if any, that it serves; wait for its answer.

        The other process has let go of the sockets then. Those that were not opened again here are
        closed.

        Raises:
            UpgradeError: The other process has given up before, and serves on.

        Switches:
            While waiting: for a moment.
        """
        passed = self._passed
        if passed is None or self._state is not _State.STARTING:
            return
        passed.channel.say(READY)
        word = None
        while word is None:
            word = _hear(passed.channel, LOOK_SECONDS)
        if word == NO:
            raise UpgradeError(f"process {passed.parent} has given up waiting, and serves on")
        # Without a word it has been killed: then no other process has these.
        for entry, each in self._received:
            entry.own(is_ours_alone=each.is_ours_alone, owns_file=each.file is not None)
        for what in self._inheritance.close_rest():
            log.info("%s was passed on, and isn't used any more", what)
        self._state = _State.SERVING

    @property
    def refusal(self) -> str:
        """Why there can't be an upgrade now, for people; ``""`` if `start` may be called."""
        if self._is_stopped:
            return "the process is about to end"
        before = self._passed
        if self._state is _State.SERVING and before and not before.channel.is_closed():
            return f"process {before.parent}, which this one replaces, still drains"
        return self._state.value

    def start(self) -> int:
        """Start the program anew, and pass it the sockets; return its process id when it serves.

        From then on this process accepts nothing more from them, and the caller drains its
        servers. systemd learns the new main process.

        Raises:
            UpgradeError: The new process could not be started, has ended, or wasn't ready in time;
                or there can't be an upgrade now. This process is as it was.

        Switches:
            While waiting. A kill ends the new process.
        """
        if self.refusal:
            raise UpgradeError(self.refusal)
        self._state = _State.UPGRADING
        self._is_over.clear()
        try:
            pid = self._replace()
        except BaseException:
            self._state = _State.SERVING
            raise
        finally:
            self._is_over.set()
        self._state = _State.REPLACED
        return pid

    def stop(self) -> None:
        """Start no more processes. One that was started and isn't ready yet has ended after this.

        Switches:
            Until then.
        """
        self._is_stopped = True
        self._is_over.wait()

    def serve_until_signal(
        self, *servers: StreamServer, timeout: float = DRAIN_SECONDS, drain_delay: float = 0.0
    ) -> int | None:
        """`glb.serve_until_signal`; and SIGUSR2 has a new process take over, and drains *servers*.

        A failed upgrade is a warning in the log.

        Returns:
            The signal that has ended it; ``None`` if another process has taken over.

        Raises:
            UpgradeError: As `ready`. The servers are stopped.

        Switches:
            While serving.
        """
        with contextlib.ExitStack() as stack:
            # First of all: without a handler the signal ends the process.
            for number, call in (
                (signal.SIGUSR2, lambda: self._replace_and_drain(servers, timeout)),
                (signal.SIGTERM, self._refuse),
                (signal.SIGINT, self._refuse),
            ):
                stack.callback(gevent.signal_handler(number, call).cancel)
            stack.callback(self.stop)
            for each in servers:
                stack.callback(each.stop)
                each.start()
            self.ready()
            return serve_until_signal(*servers, timeout=timeout, drain_delay=drain_delay)

    def _refuse(self) -> None:
        self._is_stopped = True

    def _replace_and_drain(self, servers: Sequence[StreamServer], timeout: float) -> None:
        try:
            self.start()
        except UpgradeError as error:
            log.warning("no upgrade: %s; process %d serves on", error, os.getpid())
            return
        gevent.joinall([gevent.spawn(each.drain, timeout) for each in servers])

    # -- the old process -----------------------------------------------------------------------

    def _replace(self) -> int:
        passing = self._to_pass()
        sockets = [_description(entry, asked) for entry, asked in passing.items()]
        ours, theirs = open_channel()
        try:
            try:
                environ = {**os.environ, **passed_variable(theirs, sockets)}
                numbers = [theirs.sock.fileno(), *(each.number for each in sockets)]
                child = _Child(_spawn(self._args, self._folder, environ, numbers))
            finally:
                theirs.close()
            try:
                self._wait_until_ready(child, ours)
            except BaseException:
                ours.say(NO)
                child.end()
                raise
        except BaseException:
            ours.close()
            raise
        # From here on nothing switches greenlets: all the sockets go, or none.
        for entry in passing:
            entry.leave_queue()
        Notifier().send(MAINPID=child.pid)  # before it speaks for itself
        ours.say(GO)
        self._to_successor = ours
        return child.pid

    def _to_pass(self) -> dict[Entry, str | None]:
        found: dict[Entry, str | None] = {
            entry: self._asked.get(entry)
            for entry in REGISTRY
            if entry in self._asked or entry.origin is not None
        }
        for entry in [*self._asked]:
            if entry.is_closed:
                del self._asked[entry]
        return found

    def _wait_until_ready(self, child: _Child, channel: Channel) -> None:
        until = monotonic() + self._timeout
        while True:
            left = until - monotonic()
            word = _hear(channel, min(LOOK_SECONDS, left))
            if word == READY:
                return
            end = child.end_of()
            if end is not None:
                raise UpgradeError(f"process {child.pid} {end} before it was ready")
            if word == b"":
                end = _end_within(child, ENDING_SECONDS) or "has closed its channel"
                raise UpgradeError(f"process {child.pid} {end} before it was ready")
            if self._is_stopped:
                raise UpgradeError(f"process {child.pid} was ended, as this one is about to end")
            if left <= 0:
                raise UpgradeError(f"process {child.pid} wasn't ready after {self._timeout:g} s")


class _Child:
    """A process that was started here. It may become another's child when this one ends."""

    def __init__(self, pid: int) -> None:
        self.pid: Final = pid
        self._end: str | None = None

    def end_of(self) -> str | None:
        """Return how it has ended, for people; ``None`` if it runs."""
        if self._end is None:
            try:
                pid, status = originals.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._end = "has ended"  # a watcher of the program's has learned how
            else:
                if pid:
                    self._end = _how(os.waitstatus_to_exitcode(status))
        return self._end

    def end(self) -> None:
        """End it, and return when it has ended.

        Switches:
            Until then.
        """
        self._signal(signal.SIGTERM)
        _end_within(self, KILL_SECONDS)
        self._signal(signal.SIGKILL)
        _end_within(self, math.inf)

    def _signal(self, number: int) -> None:
        if self.end_of() is None:  # else its id may be another's
            os.kill(self.pid, number)


def _end_within(child: _Child, seconds: float) -> str | None:
    """Wait until *child* has ended, *seconds* at most, and return how; ``None`` if it hasn't."""
    until = monotonic() + seconds
    while (end := child.end_of()) is None and monotonic() < until:
        gevent.sleep(LOOK_SECONDS / 10)
    return end


def _how(code: int) -> str:
    if code >= 0:
        return f"exited with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-code}"


def _description(entry: Entry, asked: str | None) -> PassedSocket:
    file = None
    if entry.pristine.family == AF_UNIX and entry.owns_file and entry.key is not None:
        device, inode = entry.key[1:] if len(entry.key) == 3 else (None, None)
        if isinstance(device, int) and isinstance(inode, int):  # not an abstract name
            file = (device, inode)
    return PassedSocket(
        number=entry.pristine.fileno(),
        asked=asked,
        name=None if entry.origin is None else entry.origin.name,
        is_ours_alone=not entry.outlives_us,
        file=file,
    )


def _spawn(
    args: Sequence[str], folder: str, environ: Mapping[str, str], numbers: Sequence[int]
) -> int:
    """Start Python with *args* in *folder*, with the descriptors *numbers*; return its id."""
    # Not by fork(2), after which handlers of the program would run in the child.
    if environ.get("WATCHDOG_PID") == str(os.getpid()):
        environ = {name: value for name, value in environ.items() if name != "WATCHDOG_PID"}
    if originals.posix_spawn is None:
        raise UpgradeError(f"can't start a process on {sys.platform}: it has no posix_spawn(3)")
    command = [sys.executable, "-S", "-c", _BEGIN, folder, sys.executable, *args]
    try:
        os.stat(folder)
        pid: int = originals.posix_spawn(
            sys.executable,
            command,
            environ,
            # Onto itself: the new process inherits it, and no other that this one starts.
            file_actions=[(os.POSIX_SPAWN_DUP2, each, each) for each in numbers],
        )
    except OSError as error:
        what = error.filename or sys.executable
        raise UpgradeError(f"can't start {what!r}: {error.strerror}") from error
    return pid


def _folder() -> str:
    """Return the directory that the program was started in, as the shell names it if it can."""
    found = os.getcwd()
    named = os.environ.get("PWD", "")
    try:
        return named if os.path.isabs(named) and os.path.samefile(named, found) else found
    except OSError:
        return found


def _hear(channel: Channel, seconds: float) -> bytes | None:
    """Return the next word, and wait *seconds* for it; ``None`` if there is none by then."""
    word = channel.hear()
    if word is None and seconds > 0:
        with contextlib.suppress(TimeoutError):
            wait_read(channel.sock.fileno(), timeout=max(0.001, seconds))
        word = channel.hear()
    return word
