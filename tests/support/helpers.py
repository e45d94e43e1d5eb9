"""Clients and recorders that the tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

import glb
from glb.hubs.threads import _running
from glb.serve.drain_worker import DrainWorker


def connect(address: Any, timeout: float = 10) -> socket.socket:
    """Return a connection to *address*, an IP tuple or a Unix path."""
    if isinstance(address, (str, bytes)):
        family = socket.AF_UNIX
    else:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    client = socket.socket(family)
    client.settimeout(timeout)
    try:
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def ask(address: Any, request: bytes = b"") -> bytes:
    """Connect, send *request*, and return all that comes back."""
    with connect(address) as client:
        if request:
            client.sendall(request)
        return receive_all(client)


def receive_all(client: socket.socket) -> bytes:
    """Return what *client* receives until the other side closes."""
    parts = []
    while data := client.recv(65536):
        parts.append(data)
    return b"".join(parts)


def http_get(address: Any, path: str = "/") -> bytes:
    """Return the body of the reply to one HTTP request on a connection of its own."""
    reply = ask(address, f"GET {path} HTTP/1.0\r\n\r\n".encode())
    return reply.partition(b"\r\n\r\n")[2]


def is_refused(address: Any) -> bool:
    """Return whether no socket listens on *address*."""
    while True:
        try:
            connect(address, timeout=3).close()
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except (ConnectionResetError, TimeoutError):
            # We stood in an accept queue that was closed before our `connect` looked, or a server
            # that empties its queue let nothing in: ask again.
            continue
        return False


class Recorder:
    """A handler that keeps the order in which clones got connections.

    It replies with the clone's index, so that clients know it as well.
    """

    def __init__(self) -> None:
        self.order: list[int] = []

    def __call__(self, sock: Any, _peer: Any) -> None:
        clone = glb.current_clone()
        assert clone is not None
        self.order.append(clone.index)
        sock.sendall(b"%d" % clone)


class Holder:
    """A handler that holds its connections until they are released.

    Attributes:
        held: How many it holds now.
    """

    def __init__(self) -> None:
        self.held = 0
        self.served = 0
        self._changed = Event()
        self._release = Event()

    def __call__(self, sock: Any, _peer: Any) -> None:
        self.held += 1
        self._changed.set()
        self._release.wait()
        self.held -= 1
        self.served += 1
        sock.sendall(b"done")

    def wait_for(self, count: int) -> None:
        """Wait until *count* connections are held."""
        while self.held < count:
            self._changed.clear()
            self._changed.wait()

    def release(self) -> None:
        """Let go of all, and of those to come."""
        self._release.set()


class Clock:
    """A clock that stands until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class SkippingClock:
    """A clock that goes on, and can skip time. A first request has 100 s by it, instead of one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._skipped = 0.0
        for module in ("drain", "drain_worker", "rolling", "idle"):
            monkeypatch.setattr(f"glb.serve.{module}.monotonic", self)
        monkeypatch.setattr("glb.serve.drain_worker.FIRST_REQUEST_SECONDS", 100.0)

    def __call__(self) -> float:
        return monotonic() + self._skipped

    def skip(self, seconds: float) -> None:
        self._skipped += seconds


class Looks:
    """Counts how often a drain, or a roll, looks for what is to be closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._count = 0
        close_due = DrainWorker._close_due

        def counted(watch: DrainWorker) -> None:
            close_due(watch)
            self._count += 1

        monkeypatch.setattr(DrainWorker, "_close_due", counted)

    def wait(self) -> None:
        """Wait until each of two hubs has begun to look since, and is done with it."""
        enough = self._count + 4
        wait_until(lambda: self._count >= enough)


def wait_until(holds: Callable[[], bool]) -> None:
    """Let the hub turn until *holds* does; the test's own timeout is the bound."""
    while not holds():
        gevent.sleep(0.001)


def comes_true(holds: Callable[[], bool], seconds: float = 10) -> bool:
    """Let the hub turn until *holds* does, but no longer than *seconds*: for what hung once."""
    deadline = monotonic() + seconds
    while not holds():
        if monotonic() > deadline:
            return False
        gevent.sleep(0.001)
    return True


def let_hub_turn() -> None:
    """Let everything run that can run now: a hint that nothing more will happen."""
    for _ in range(5):
        gevent.sleep(0)
        gevent.idle()


def call_in(hub: Any, call: Callable[[], object]) -> None:
    """Have *call* called in *hub*: this thread's, or that of one of glb's threads.

    gevent's own `run_callback_threadsafe` may crash on libuv, if the other hub turns.
    """
    threads = [thread for thread in [*_running] if thread.hub is hub]
    if threads:
        assert threads[0].send(call)
    else:
        assert hub is gevent.get_hub()
        hub.loop.run_callback(call)


def loop_iterations(seconds: float) -> int:
    """Return how often the hub's loop goes round in *seconds* with nothing to do."""
    count = 0

    def turn() -> None:
        nonlocal count
        count += 1

    watcher = gevent.get_hub().loop.check()
    watcher.start(turn)
    try:
        gevent.sleep(seconds)
    finally:
        watcher.stop()
        watcher.close()
    return count


# A load test whose servers' process runs a program of the test's.
_WITH_SERVER = """
import sys
from loadtests.{name} import __main__ as command
command.SERVER = (sys.executable, "-c", {server!r})
command.main()
"""


def run_load_test(
    name: str, *options: str, program: str = "", server: str = "", **environ: str
) -> tuple[int, str]:
    """Run a load test in its own process; return its exit status and what it printed.

    Args:
        name: In `loadtests`.
        program: Is run in its place, with its options.
        server: A program that is run in place of its servers' process.
        environ: Variables that differ from this process's.
    """
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    if server:
        program = _WITH_SERVER.format(name=name, server=server)
    done = subprocess.run(
        [sys.executable, *(("-c", program) if program else ("-m", f"loadtests.{name}")), *options],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=55,
        check=False,
    )
    return done.returncode, done.stdout


def turns(clones: int, connections: int, first: int = 0) -> list[int]:
    """Return exact round robin: what the order has to be."""
    return [(first + count) % clones for count in range(connections)]


def close_all(sockets: Iterable[Any]) -> None:
    for each in sockets:
        each.close()
