"""A service: the servers of one ``glb serve``, one for each address, from its start to its end.

They share a process, a target and the signals: SIGINT and SIGTERM drain them all, and a second one
ends them at once; SIGHUP reloads the target; SIGUSR1 reopens the access log; SIGUSR2 has a new
process take over, and drains them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import gevent

from ..accept.inherited import INHERITANCE
from ..server import StreamServer
from ..upgrade import Upgrade, UpgradeError
from . import console
from .reload import Reloads
from .supervisor import PidFile, Supervisor

if TYPE_CHECKING:
    from ..admin import Admin
    from .access_log import AccessLog

__all__ = ["Service"]


class Streams(StreamServer):
    """A server of streams that reports its clients' faults in a line each, as that of WSGI does."""

    def handshake_failed(self, sock: Any, peer: Any, error: OSError) -> bool:
        reason = getattr(error, "reason", None) or error
        console.log.warning("TLS handshake with %a failed: %s", peer, reason)
        return True


class Service:
    """Servers that begin and end together.

    Args:
        servers: One at least, not started yet.
        drain_timeout: How long handlers in flight have after the first signal, in seconds.
        drain_delay: How long they go on accepting before that, in seconds.
        upgrade: What starts the next process.
    """

    def __init__(
        self,
        servers: Sequence[StreamServer],
        drain_timeout: float,
        drain_delay: float,
        upgrade: Upgrade,
        pid_file: PidFile,
    ) -> None:
        self.servers: Final = servers
        self._drain_timeout: Final = drain_timeout
        self._drain_delay: Final = drain_delay
        self._signals: list[int] = []
        self._reloads: Reloads | None = None
        self._log: AccessLog | None = None
        self._upgrade: Final = upgrade
        self._pid_file: Final = pid_file
        self._is_replaced = False
        self.supervisor: Final = Supervisor()
        #: What answers beside the servers, if anything.
        self.admin: Admin | None = None

    def bind(self) -> None:
        """Bind each address, and handle signals from then on; nothing is accepted yet.

        Raises:
            OSError: One can't be bound. Then none is.
        """
        with self._undone_on_failure():
            for each in self.servers:
                each.init_socket()
        # Before a client or a reader of the first line may send one, and until the process is
        # gone: a second one must not turn a clean end into a kill.
        for number in (signal.SIGINT, signal.SIGTERM):
            gevent.signal_handler(number, self._end, number)
        if hasattr(signal, "SIGHUP"):
            gevent.signal_handler(signal.SIGHUP, self._on_hangup, _terminal())
            gevent.signal_handler(signal.SIGUSR1, self._reopen)
            gevent.signal_handler(signal.SIGUSR2, self._replace)

    def start(self) -> None:
        """Accept from now on.

        Raises:
            OSError: It can't. The addresses are free again.
        """
        with self._undone_on_failure():
            for each in self.servers:
                each.start()

    def close(self) -> None:
        """Free the addresses, whether their servers have started or not. Twice is harmless."""
        for each in self.servers:
            each.close()

    @contextlib.contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def run(
        self,
        shown: contextlib.AbstractContextManager[None],
        reloads: Reloads | None,
        log: AccessLog | None,
    ) -> int:
        """Serve until a signal, and return 0; or until a server has closed itself, and return 1.

        Args:
            shown: The context of the table, or of the log's lines.
            reloads: SIGHUP asks it, if there is a target.
            log: SIGUSR1 reopens it, if there is one.
        """
        self._reloads, self._log = reloads, log
        with shown, reloads or contextlib.nullcontext(), self._supervised():
            try:
                self._begin()
            except (UpgradeError, OSError) as error:
                console.tell("%s", error)
                self._each("drain", self._drain_timeout)
                return 1
            ends = [gevent.spawn(self._serve, each) for each in self.servers]
            gevent.wait(ends, count=1)
            if not self._signals and not self._is_replaced:
                # A supervisor would not notice that one address is gone. At status 1 it restarts.
                self._each("drain", self._drain_timeout)
            for each in ends:
                each.get()
        return 0 if self._signals or self._is_replaced else 1

    @contextlib.contextmanager
    def _supervised(self) -> Iterator[None]:
        with self.supervisor.watching(self.servers):
            try:
                yield
            finally:
                # The process that takes over writes its own, at this moment perhaps.
                if not self._is_replaced:
                    self._pid_file.remove()

    def _begin(self) -> None:
        """Tell all that watch the process that it serves, the one that it replaces first."""
        self._upgrade.ready()
        for what in INHERITANCE.close_rest():
            console.tell("%s is inherited, and no --bind names it: closed", what)
        self._pid_file.write()
        if not self._signals:
            self.supervisor.ready()

    def _serve(self, server: StreamServer) -> None:
        if (
            not self._signals and not self._is_replaced
        ):  # it may be over already, and would begin again
            server.serve_forever()

    def _end(self, number: int) -> None:
        self._signals.append(number)
        if len(self._signals) > 1:
            self._each("stop", 0)  # a second one doesn't wait
            return
        if self._is_replaced:
            return  # it drains already, for as long as it may
        self.supervisor.stopping("draining")
        self._upgrade.stop()
        if self._drain_delay:
            seconds = self._drain_delay
            console.tell("not ready any more; new clients are served for %g s still", seconds)
        active = sum(each.active for each in self.servers)
        if active:
            some, seconds = console.count(active, "connection"), self._drain_timeout
            console.tell("draining %s, for %g s at most; again to end at once", some, seconds)
        self._each("drain", self._drain_timeout, delay=self._drain_delay)

    def _each(self, name: str, timeout: float, **options: float) -> None:
        """Call a method of all servers at a time, and wait for all."""
        calls: list[Callable[..., object]] = [getattr(each, name) for each in self.servers]
        gevent.joinall([gevent.spawn(call, timeout, **options) for call in calls])

    def _on_hangup(self, terminal: int | None) -> None:
        if terminal is not None and not os.isatty(terminal):
            # Its window was closed: the signal has its first meaning. A server that is to outlive
            # its terminal doesn't write to it.
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGHUP)
        elif self._reloads is None:
            console.tell("nothing to reload: there is no TARGET")
            self.supervisor.reloading("nothing to reload")
            self.supervisor.ready()
        else:
            self._reloads.ask()

    def _replace(self) -> None:
        refusal = self._upgrade.refusal
        if refusal:
            console.tell("no upgrade: %s", refusal)
            return
        console.tell("starting a new process, which is to take over")
        self.supervisor.reloading("starting a new process")
        try:
            pid = self._upgrade.start()
        except UpgradeError as error:
            line = console.one_line(f"no upgrade: {error}; process {os.getpid()} serves on")
            console.tell("%s", line)
            if not self._signals:
                self.supervisor.ready(line)
            return
        self._is_replaced = True
        self.supervisor.replaced()
        if self.admin is not None:
            self.admin.stop()
        console.tell("process %d serves now; process %d drains", pid, os.getpid())
        self._each("drain", self._drain_timeout)

    def _reopen(self) -> None:
        log = self._log
        if log is None or log.is_stdout:
            console.tell("nothing to reopen: --access-log names no file")
            return
        try:
            log.reopen()
        except OSError as error:
            reason = error.strerror
            console.tell("can't reopen %s: %s; the old one goes on", log.path, reason)
        else:
            console.tell("reopened %s", log.path)


def _terminal() -> int | None:
    """Return the descriptor of the terminal that is written to, if it is one."""
    # stdout may be closed, by now or from the start on, or no file.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        descriptor = sys.stdout.fileno()
        if os.isatty(descriptor):
            return descriptor
    return None
