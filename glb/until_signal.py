"""Servers of a program of one's own, until a signal: one call that starts, serves and drains."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Final

import gevent
from gevent import get_hub
from gevent.baseserver import BaseServer
from gevent.event import Event

from .model.limits import check_seconds
from .serve.controls import Controls

__all__ = ["serve_until_signal"]

# As `glb serve --drain-timeout`.
DRAIN_SECONDS: Final = 30.0


def serve_until_signal(
    *servers: Any,
    timeout: float | None = DRAIN_SECONDS,
    drain_delay: float = 0.0,
    signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
) -> int | None:
    """Start *servers*, serve until SIGTERM or SIGINT, and drain all of them at a time.

    A second signal ends them at once. When it returns all are stopped, and the signals have the
    handlers that they had.

    Args:
        servers: Of `glb.server` and `glb.pywsgi`; those that have started go on. Gevent's own
            may be among them: these are stopped, with *timeout*, when the others drain.
        timeout: How many seconds connections in use have from the first signal on, after
            *drain_delay*; ``None`` is as long as they take.
        drain_delay: How many seconds they go on accepting after the first signal, while they
            are draining outwardly: see `StreamServer.drain`.
        signals: Numbers of those that end them.

    Returns:
        The first signal. ``None`` if a server has closed by itself, because its listener is broken,
        say: then the others were drained.

    Raises:
        TypeError, ValueError: An argument has the wrong type or value. Nothing was started.
        RuntimeError: This isn't the main thread, which alone gets signals.
        OSError: A server can't start. All are closed, those that had started before as well.

    Switches:
        While serving. A kill, or another exception, stops the servers at once.

    Example::

        server = WSGIServer(":8000", application, clones=4)
        glb.serve_until_signal(server, timeout=30, drain_delay=5)
    """
    if not servers:
        raise ValueError("servers must be one server or more, got none")
    for each in servers:
        if not isinstance(each, BaseServer):
            raise TypeError(
                "servers must be glb's or gevent's, one an argument, and timeout a keyword,"
                f" got {each!r}"
            )
    check_seconds("timeout", timeout, may_be_zero=True)
    check_seconds("drain_delay", drain_delay, may_be_zero=True, may_be_none=False)
    if not get_hub().main_hub:
        raise RuntimeError("serve_until_signal must be called in the main thread")
    ending = _Ending(servers, timeout, drain_delay)
    with _heeded(signals, ending.signalled):
        try:
            for each in servers:
                if not each.started:
                    each.start()
        except BaseException:
            ending.stop()
            raise
        ending.wait()
    return ending.first


class _Ending:
    """How *servers* end: each step is one of this hub."""

    def __init__(self, servers: Sequence[Any], timeout: float | None, drain_delay: float) -> None:
        self._servers: Final = servers
        self._timeout: Final = timeout
        self._drain_delay: Final = drain_delay
        self._is_asked: Final = Event()
        self._is_urgent: Final = Event()
        #: The signal that came first.
        self.first: int | None = None

    def signalled(self, number: int) -> None:
        if self.first is None:
            self.first = number
            self._is_asked.set()
        else:
            self._is_urgent.set()

    def wait(self) -> None:
        """Return when all servers have ended."""
        watching = [gevent.spawn(self._watch, each) for each in self._servers]
        hastening = gevent.spawn(self._hasten)
        try:
            self._is_asked.wait()
            draining = [gevent.spawn(self._drain, each) for each in self._servers]
            gevent.joinall(draining, raise_error=True)
        except BaseException:
            self.stop()
            raise
        finally:
            gevent.joinall(watching)
            hastening.kill()

    def stop(self) -> None:
        """End all of them at once."""
        gevent.joinall([gevent.spawn(each.stop, 0) for each in self._servers])

    def _watch(self, each: Any) -> None:
        is_ours = isinstance(each, Controls)
        if each.started and is_ours:  # or it would begin again
            each.serve_forever()
        elif each.started:  # gevent's method kills its handlers, a second after it was closed
            each._stop_event.wait()
        self._is_asked.set()

    def _hasten(self) -> None:
        self._is_urgent.wait()
        self.stop()

    def _drain(self, server: Any) -> None:
        if isinstance(server, Controls):
            server.drain(self._timeout, delay=self._drain_delay if self.first else 0.0)
        else:
            gevent.sleep(self._drain_delay if self.first else 0.0)
            if self._timeout is None:  # gevent's is then `stop_timeout`, a second
                server.close()
                if server.pool:
                    server.pool.join()
            server.stop(self._timeout)


@contextlib.contextmanager
def _heeded(signals: Sequence[int], call: Any) -> Iterator[None]:
    """Have *call* called in this hub with the number of each of *signals* that comes."""
    before = {number: signal.getsignal(number) for number in signals}
    watchers = []
    try:
        for number in signals:
            watchers.append(gevent.signal_handler(number, call, number))
        yield
    finally:
        for watcher in watchers:
            watcher.cancel()
        for number, handler in before.items():
            # The loop has left the default, or the program has a watcher of its own there, of which
            # Python doesn't know. ``None`` is a handler that Python didn't set.
            if handler is not None and handler is not signal.SIG_DFL:
                signal.signal(number, handler)
