"""Originals: neither a frozen clock nor a monkey patch of the program reaches glb."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

import glb
from glb import originals
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from ..support.helpers import connect, wait_until

CLOCKS = ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "perf_counter_ns")

# What freezegun does to a process: it replaces the functions of the module `time`, and each
# attribute of a loaded module that is one of them. (freezegun 1.5.5, `_freeze_time.start`.)
FREEZE = """
import sys, time
def freeze(clocks, moment):
    changed = []
    fakes = {id(getattr(time, name)): (lambda: moment) for name in clocks}
    for module in [*sys.modules.values()]:
        for name, value in [*getattr(module, "__dict__", {}).items()]:
            if id(value) in fakes:
                changed.append((module, name, value))
                setattr(module, name, fakes[id(value)])
    return changed
"""


# What a program does that serves for a while, and then ends when nothing is left to do.
SERVE_AND_END = """
import os, sys
patch, end = sys.argv[1:]
if patch == "gevent":
    import gevent.monkey; gevent.monkey.patch_all()
elif patch == "glb":
    import glb.monkey; glb.monkey.patch_all()
import gevent, gevent.socket
import glb
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

LATE_SECONDS = 20

def is_over(what):
    if end == "wait":
        is_over = gevent.wait(timeout=LATE_SECONDS)
    else:
        is_over = gevent.get_hub().join(timeout=LATE_SECONDS)
    assert is_over is True, what

def ask(address):
    with gevent.socket.create_connection(address) as client:
        client.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        while client.recv(1000):
            pass

def page(environ, start_response):
    start_response("200 OK", [])
    return [b"hi"]

def handle(sock, peer):
    sock.recv(1000)
    sock.sendall(b"hi")

for hubs in (1, 2):
    for make in (
        lambda **options: StreamServer(("127.0.0.1", 0), handle, **options),
        lambda **options: WSGIServer(("127.0.0.1", 0), page, log=None, **options),
    ):
        for stop in ("stop", "drain"):
            server = make(**({} if hubs == 1 else {"hubs": 2}))
            server.start()
            for _ in range(4):
                ask(server.address)
            getattr(server, stop)(timeout=10)
            is_over((server, stop, hubs))

def accept(clone):
    with clone:
        with clone.accept()[0] as sock:
            handle(sock, None)

first = glb.bind_load_balanced(("127.0.0.1", 0))
address = first.getsockname()
second = glb.bind_load_balanced(address)
accepting = [gevent.spawn(accept, each) for each in (first, second)]
for _ in accepting:
    ask(address)
gevent.joinall(accepting)
is_over("listeners")
"""


@pytest.mark.process
@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
@pytest.mark.parametrize("patch", ["", "gevent", "glb"])
@pytest.mark.parametrize("end", ["wait", "join"])
def test_nothing_holds_the_loop_after_a_stop(end: str, patch: str, loop: str) -> None:
    """`gevent.wait` and `Hub.join` come back at once, of whatever has served."""
    subprocess.run(
        [sys.executable, "-c", SERVE_AND_END, patch, end],
        check=True,
        timeout=120,
        env={**os.environ, "GEVENT_LOOP": loop},
    )


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    names: dict[str, Any] = {}
    exec(FREEZE, names)
    changed = names["freeze"](CLOCKS, 1_700_000_000)
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)


def test_a_frozen_clock_stops_the_programs_time_alone() -> None:
    """The test's own clock stands still, and glb's goes on."""
    before = originals.monotonic()
    with frozen():
        assert time.monotonic() == 1_700_000_000
        assert before <= originals.monotonic() < before + 60
    assert abs(time.monotonic() - originals.monotonic()) < 60  # one clock


def test_a_clock_frozen_before_the_import_is_found_out() -> None:
    """Glb may be imported by a test that has frozen the clock already."""
    if not hasattr(time, "clock_gettime"):
        pytest.skip("no clock below time.monotonic() on this platform")
    program = FREEZE + (
        "reals = [time.monotonic]\n"
        f"freeze({CLOCKS!r}, 1_700_000_000)\n"
        "import glb, glb.originals\n"
        "assert time.monotonic() == 1_700_000_000\n"
        "assert reals[0]() <= glb.originals.monotonic() <= reals[0]()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_drain_waits_for_its_timeout_under_a_frozen_clock() -> None:
    """A handler that ends in time isn't killed, and one that doesn't is."""
    began, may_end = Event(), Event()

    def handle(_sock: object, _peer: object) -> None:
        began.set()
        may_end.wait()

    with frozen():
        server = StreamServer(("127.0.0.1", 0), handle)
        server.start()
        with connect(server.address):
            assert began.wait(10)
            draining = gevent.spawn(server.drain, timeout=30)
            gevent.sleep(0.01)
            assert not draining.ready()
            may_end.set()
            report = draining.get(timeout=10)
            assert (report.killed, report.finished) == (0, 1)
        may_end.clear()
        began.clear()
        server = StreamServer(("127.0.0.1", 0), handle)
        server.start()
        with connect(server.address):
            assert began.wait(10)
            assert gevent.spawn(server.drain, timeout=0.1).get(timeout=10).killed == 1


def test_a_rate_refills_under_a_frozen_clock() -> None:
    """What is beyond the rate waits, and is served then."""
    with frozen():
        server = StreamServer(("127.0.0.1", 0), lambda sock, _: sock.sendall(b"hi"), accept_rate=50)
        server.start()
        with gevent.Timeout(20):
            for _ in range(10):
                with connect(server.address) as client:
                    assert client.recv(2) == b"hi"
        server.stop()


def test_a_first_byte_timeout_ends_under_a_frozen_clock() -> None:
    """A client that sends nothing is hung up on."""
    with frozen():
        server = WSGIServer(("127.0.0.1", 0), print, log=None, first_byte_timeout=0.05)
        server.start()
        with gevent.Timeout(20), connect(server.address) as client:
            assert client.recv(1) == b""
        server.stop()


def test_a_stalled_hub_gives_its_connections_back_under_a_frozen_clock() -> None:
    """The hub that turns serves what the other one lets lie."""
    may_go: Any = originals.Lock()
    may_go.acquire()

    def handle(sock: Any, _peer: object) -> None:
        if glb.current_clone() == 1:
            with may_go:  # natively: its hub is stalled
                pass
        sock.sendall(b"hi")

    def ask() -> bytes:
        with connect(server.address) as client:
            return bytes(client.recv(2))

    with frozen():
        server = StreamServer(("127.0.0.1", 0), handle, hubs=2, clones=2)
        server.start()
        try:
            asking = [gevent.spawn(ask) for _ in range(8)]
            wait_until(lambda: sum(each.ready() for each in asking) >= 7)
        finally:
            may_go.release()
        assert [each.get(timeout=10) for each in asking] == [b"hi"] * 8
        server.stop()
