"""`glb.serve_until_signal`: programs of one's own drain at SIGTERM, as real processes."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.server
import pytest
from gevent.event import Event

import glb
from glb.server import StreamServer

from .support.bounds import ENDLESS_SECONDS
from .support.helpers import connect, http_get, is_refused, receive_all, wait_until

ANY = ("127.0.0.1", 0)
ROOT = Path(__file__).parents[1]

PROGRAM = """
import signal, sys
import gevent
import glb
from glb.admin import Admin
from glb.server import StreamServer

def handle(sock, peer):
    try:
        sock.sendall(b"held ")
        sock.recv(1)
        sock.sendall(b"done")
    except OSError:
        pass  # one that only looked whether it is refused

def own(*_): pass

signal.signal(signal.SIGTERM, own)
servers = [StreamServer(("127.0.0.1", 0), handle, clones=2, hubs=hubs) for hubs in HUBS]
admin = Admin(servers, ("127.0.0.1", 0)).start()
def tell():
    ports = [each.address[1] for each in servers]
    print(*ports, admin.address[1], flush=True)
gevent.spawn_later(0.01, tell)
number = glb.serve_until_signal(*servers, timeout=20, drain_delay=DELAY)
admin.stop()
print("ended by", number, [each.started for each in servers],
      signal.getsignal(signal.SIGTERM) is own,
      signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)
"""


class Program:
    """A process, and the addresses of its servers and of its administration."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        line = process.stdout.readline()
        ports = [("127.0.0.1", int(port)) for port in line.split()]
        assert ports, process.communicate()
        *self.addresses, self.admin = ports

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def last_words(self) -> str:
        out, err = self.process.communicate()
        assert (self.process.returncode, err) == (0, "")
        return out


@contextlib.contextmanager
def running(hubs: str, delay: float = 0.0) -> Iterator[Program]:
    code = f"HUBS = [{hubs}]\nDELAY = {delay}\n{PROGRAM}"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        timer = threading.Timer(ENDLESS_SECONDS, process.kill)
        timer.start()
        try:
            yield Program(process)
        finally:
            timer.cancel()
            timer.join()
            process.kill()


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("hubs", ["1", "2, 1"])
def test_a_signal_drains_all_servers(number: signal.Signals, hubs: str) -> None:
    """New clients are refused, what is in flight finishes, and the old handlers are back."""
    with running(hubs) as program:
        clients = [connect(address) for address in program.addresses]
        for client in clients:
            assert client.recv(5) == b"held "
        program.signal(number)
        for address in program.addresses:
            wait_until(lambda address=address: is_refused(address))  # type: ignore[misc]  # mypy
        for client in clients:
            client.sendall(b"x")
            assert receive_all(client) == b"done"
            client.close()
        stopped = [False] * len(clients)
        assert program.last_words() == f"ended by {int(number)} {stopped} True True\n"


@pytest.mark.process
@pytest.mark.parametrize("hubs", ["1", "2, 1"])
def test_a_second_signal_ends_at_once(hubs: str) -> None:
    """With a handler that would go on for long."""
    with running(hubs) as program:
        clients = [connect(address) for address in program.addresses]
        for client in clients:
            assert client.recv(5) == b"held "
        program.signal(signal.SIGTERM)
        wait_until(lambda: is_refused(program.addresses[0]))
        program.signal(signal.SIGTERM)
        assert program.last_words().startswith(f"ended by {int(signal.SIGTERM)} [False")
        for client in clients:
            client.close()


@pytest.mark.process
def test_clients_are_served_for_the_delay() -> None:
    """While the administration says that it isn't ready any more."""
    with running("1", delay=20) as program:
        assert http_get(program.admin, "/readyz").endswith(b": accepting\n")
        program.signal(signal.SIGTERM)
        wait_until(lambda: http_get(program.admin, "/readyz").endswith(b": draining\n"))
        with connect(program.addresses[0]) as client:
            assert client.recv(5) == b"held "
            program.signal(signal.SIGTERM)
            program.last_words()


def serve_one(call: Any, **options: Any) -> tuple[Any, list[StreamServer]]:
    """Serve with two servers, and *call* with them once they have started; return the result."""
    servers = [StreamServer(ANY, lambda *_: None, clones=2) for _ in range(2)]

    def when_started() -> None:
        wait_until(lambda: all(each.started for each in servers))
        call(servers)

    gevent.spawn(when_started)
    return glb.serve_until_signal(*servers, **options), servers


def test_it_ends_when_a_server_has_closed_by_itself() -> None:
    """The others are drained, and there was no signal."""
    found, servers = serve_one(lambda servers: servers[0].close())
    assert found is None
    assert not any(each.started for each in servers)


def test_signals_of_this_process_have_their_handlers_again() -> None:
    """Whatever they were; the first signal is what it returns."""
    heard: list[int] = []

    def hear(number: int, _: object) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGUSR2, hear)
    try:
        found, _ = serve_one(
            lambda _: os.kill(os.getpid(), signal.SIGUSR2), signals=[signal.SIGUSR2]
        )
        assert found == signal.SIGUSR2
        assert signal.getsignal(signal.SIGUSR2) is hear
        assert heard == []
        os.kill(os.getpid(), signal.SIGUSR2)
        wait_until(lambda: heard == [signal.SIGUSR2])
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_watcher_of_the_program_hears_the_next_signal() -> None:
    """Python doesn't know of it, and it was there before."""
    heard: list[str] = []
    watcher = gevent.signal_handler(signal.SIGUSR2, heard.append, "heard")
    try:
        kill = functools.partial(os.kill, os.getpid(), signal.SIGUSR2)
        assert serve_one(lambda _: kill(), signals=[signal.SIGUSR2])[0] == signal.SIGUSR2
        kill()  # which would end the process
        wait_until(lambda: heard == ["heard"] * 2)
    finally:
        watcher.cancel()


@pytest.mark.parametrize("timeout", [None, ENDLESS_SECONDS])
def test_gevents_own_server_has_its_time(timeout: float | None) -> None:
    """Its handlers come to their end, if they are a pool's; not after gevent's one second."""
    ended: list[bytes] = []
    begun = Event()

    def handle(sock: Any, _: object) -> None:
        begun.set()
        ended.append(sock.recv(1))

    server = gevent.server.StreamServer(ANY, handle, spawn=2)
    server.stop_timeout = 0
    server.start()
    client = connect(server.address)
    begun.wait()
    serving = gevent.spawn(
        glb.serve_until_signal, server, timeout=timeout, signals=[signal.SIGUSR2]
    )
    gevent.sleep()
    os.kill(os.getpid(), signal.SIGUSR2)
    wait_until(lambda: server.closed)
    client.sendall(b"x")
    assert serving.get() == signal.SIGUSR2
    client.close()
    assert ended == [b"x"]


def test_gevents_own_servers_may_be_among_them() -> None:
    """They are stopped."""
    servers = [gevent.server.StreamServer(ANY, lambda *_: None), StreamServer(ANY, print)]
    servers[1].start()  # as it is
    gevent.spawn(servers[1].close)
    assert glb.serve_until_signal(*servers) is None
    assert not any(each.started for each in servers)


def test_a_server_that_cant_start_leaves_nothing() -> None:
    """Those that had started are closed."""
    taken = StreamServer(ANY, lambda *_: None)
    taken.start()
    servers = [StreamServer(ANY, print), StreamServer(taken.address, print)]
    with pytest.raises(OSError, match="in use"):
        glb.serve_until_signal(*servers)
    assert not any(each.started for each in servers)
    taken.stop()


def test_a_kill_stops_the_servers() -> None:
    """And the handlers of the signals are the old ones."""
    server = StreamServer(ANY, lambda *_: None)
    before = signal.getsignal(signal.SIGINT)
    serving = gevent.spawn(glb.serve_until_signal, server)
    wait_until(lambda: server.started)
    serving.kill()
    assert not server.started
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("servers", "options", "error"),
    [
        ([], {}, "one server or more"),
        (["x"], {}, "servers must be glb's or gevent's, one an argument, and timeout a keyword"),
        (["x"], {}, ", got 'x'"),
        (None, {"timeout": -1}, "timeout must be 0 seconds or more, got -1"),
        (None, {"drain_delay": "5"}, "drain_delay must be a number of seconds, got '5'"),
        (None, {"drain_delay": None}, "drain_delay must be a number of seconds, got None"),
    ],
)
def test_bad_arguments_start_nothing(servers: Any, options: Any, error: str) -> None:
    """With the value in the error."""
    server = StreamServer(ANY, print)
    with pytest.raises((TypeError, ValueError), match=re.escape(error)):
        glb.serve_until_signal(*([server] if servers is None else servers), **options)
    assert not server.started


def test_it_is_for_the_main_thread() -> None:
    """Which alone gets signals."""
    errors: list[BaseException] = []

    def serve() -> None:
        try:
            glb.serve_until_signal(StreamServer(ANY, print))
        except RuntimeError as error:
            errors.append(error)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
