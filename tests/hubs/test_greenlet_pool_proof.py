"""`glb.hubs.greenlet_pool.Proof`: a kept greenlet is never used again, whatever watches."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import greenlet
import pytest
from gevent import getcurrent

import glb
from glb.hubs import greenlet_pool
from glb.hubs.greenlet_pool import PROOF, HandlerGreenlet, Handlers, Proof
from glb.hubs.proof import count

from ..support.traces import BY_TRACER
from .test_greenlet_pool import (
    COUNTING,
    tracer_is_not_counted,  # noqa: F401  # a fixture
)

#: What a program may have in it that sees each greenlet, each frame or each object.
WATCHERS: dict[str, str] = {
    "nothing": "",
    "sys.settrace": "sys.settrace(trace)",
    "sys.settrace that keeps frames": "sys.settrace(trace_and_keep)",
    "sys.setprofile": "sys.setprofile(lambda *_: None)",
    "cProfile": "import cProfile; global profile; profile = cProfile.Profile(); profile.enable()",
    "tracemalloc": "import tracemalloc; tracemalloc.start(10)",
    "greenlet.settrace": "greenlet.settrace(lambda event, args: None)",
    "greenlet.settrace that keeps the last": "greenlet.settrace(lambda _, a: last.append(a))",
    "greenlet.settrace that keeps all": "greenlet.settrace(lambda event, args: all_.append(args))",
    "spawn callback that keeps all": "gevent.Greenlet.add_spawn_callback(all_.append)",
    "garbage collection": "gc.set_threshold(1)",
    "lists of all objects": "gevent.spawn(look_at_all)",
    "gevent's monitor thread": "gevent.config.monitor_thread = True",
}
if hasattr(sys, "monitoring"):
    WATCHERS["sys.monitoring"] = """
m = sys.monitoring
m.use_tool_id(3, "tests")
events = m.events.LINE, m.events.CALL, m.events.PY_START, m.events.PY_RETURN, m.events.INSTRUCTION
for each in events:
    m.register_callback(3, each, lambda *_: None)
m.set_events(3, sum(events))
"""
if importlib.util.find_spec("coverage"):
    WATCHERS["coverage"] = """
import coverage
coverage.Coverage(data_file=None, config_file=False).start()
"""
    if sys.version_info < (3, 14):  # newer ones are measured in a way that knows no greenlets
        WATCHERS["coverage of greenlets"] = """
import coverage
coverage.Coverage(data_file=None, config_file=False, concurrency="greenlet").start()
"""

PROGRAM = """
import collections, gc, logging, sys
import gevent, gevent.socket, greenlet
from gevent import getcurrent
import glb.hubs.greenlet_pool, glb.server

logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
all_, last, frames = [], collections.deque([], 1), []

def trace(frame, event, arg):
    return trace

def trace_and_keep(frame, event, arg):
    frames.append(frame)
    del frames[:-100]
    return trace_and_keep

def look_at_all():
    while is_watching:
        found = [each for each in gc.get_objects() if isinstance(each, greenlet.greenlet)]
        gevent.sleep(0.02)  # it has them while others are parked and go on
        del found
        gevent.sleep(0.001)

def watch():
    {watch}

def handle(sock, peer):
    what = sock.recv(1)
    if what in b"KW":
        kept.append(getcurrent())
    if what in b"wW":
        gevent.sleep(0)
    sock.sendall(b"ok")

def talk(what, times):
    def one():
        with gevent.socket.create_connection(server.address) as sock:
            sock.sendall(what)
            while sock.recv(10): pass
    for _ in range(times):
        one()
    gevent.joinall([gevent.spawn(one) for _ in range(times)], raise_error=True)

kept = []
is_watching, profile = True, None

if {is_early}:
    watch()
with glb.server.StreamServer(("127.0.0.1", 0), handle, hubs={hubs}) as server:
    server.start()
    talk(b"n", 20)
    if not {is_early}:
        watch()
    for _ in range(2):
        for what in (b"n", b"K", b"w", b"W"):
            before = len(kept)
            talk(what, 20)
            if what in b"KW":
                assert len(kept) == before + 40, (what, len(kept) - before)
        assert len({{*map(id, kept)}}) == len(kept), "a greenlet that was kept served again"
    for _ in range(2000):  # other hubs end theirs when they turn
        if all(each.dead for each in kept):
            break
        gevent.sleep(0.005)
    assert all(each.dead for each in kept), "a greenlet that was kept goes on"
is_watching = False
if profile is not None:
    profile.disable()
sys.settrace(None); sys.setprofile(None)
# Of those that nothing keeps, as few as run at a time; or the log says that there are more.
alive = 0
original = glb.hubs.greenlet_pool.HandlerGreenlet.__init__
def init(self, handlers):
    global alive
    alive += 1
    original(self, handlers)
glb.hubs.greenlet_pool.HandlerGreenlet.__init__ = init
with glb.server.StreamServer(("127.0.0.1", 0), handle, hubs={hubs}) as server:
    server.start()
    for _ in range(100):
        with gevent.socket.create_connection(server.address) as sock:
            sock.sendall(b"n")
            while sock.recv(10): pass
print("used again" if alive < 10 else "always fresh", glb.hubs.greenlet_pool.PROOF.is_given)
"""


def run_child(program: str, **environ: str) -> str:
    """Run *program* in a Python of its own; return what it printed."""
    root = str(Path(glb.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


@pytest.mark.process
@pytest.mark.parametrize("is_early", [True, False], ids=["from the start", "later"])
@pytest.mark.parametrize("watcher", WATCHERS)
def test_a_kept_greenlet_is_never_used_again(watcher: str, is_early: bool) -> None:
    """Under tracers, profilers, coverage and what lists all objects; or the log says it is off."""
    hubs = 2 if is_early else 1
    watch = "\n    ".join(WATCHERS[watcher].strip().splitlines()) or "pass"
    printed = run_child(PROGRAM.format(watch=watch, is_early=is_early, hubs=hubs))
    assert "used again" in printed or "handlers run in fresh greenlets" in printed, printed
    if watcher in ("nothing", "tracemalloc", "garbage collection") and not BY_TRACER:
        assert "used again True" in printed, printed


@pytest.mark.process
@pytest.mark.skipif(bool(BY_TRACER), reason="coverage refers to each greenlet")
def test_this_interpreter_uses_greenlets_again() -> None:
    """CPython 3.10 to 3.15, with and without development mode: the trial ends well."""
    program = """
import gevent, glb.hubs.greenlet_pool, sys
gevent.get_hub().loop.run_callback(glb.hubs.greenlet_pool.PROOF.give, gevent.get_hub())
gevent.sleep(0)
assert glb.hubs.greenlet_pool.PROOF.is_given is True, glb.hubs.greenlet_pool.PROOF
"""
    for mode in ("", "1"):
        run_child(program, PYTHONDEVMODE=mode)


# -- interpreters that count in another way -------------------------------------------------------


def give(proof: Proof) -> None:
    """Let *proof* try, in the hub, as a server does."""
    hub: Any = gevent.get_hub()
    hub.loop.run_callback(proof.give, hub)
    gevent.sleep(0)
    gevent.sleep(0)  # the log is written in a greenlet


def count_otherwise(patch: pytest.MonkeyPatch, counts: Callable[[list[Any]], int]) -> None:
    for module in COUNTING:
        patch.setattr(module, "count", counts)


@pytest.fixture
def proof(monkeypatch: pytest.MonkeyPatch) -> Proof:
    """One that has not tried yet, in the place of the process's."""
    mine = Proof(greenlet_pool._Trial)
    monkeypatch.setattr(greenlet_pool, "PROOF", mine)
    return mine


def test_counts_that_do_not_show_a_kept_greenlet_are_refused(
    proof: Proof, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and `PROOF` says why: on such a Python each handler has a fresh greenlet."""
    original = count
    # An untouched one that is parked has 7 or more, so one more makes no difference.
    alone = next(map(sys.getrefcount, [object()]))
    count_otherwise(
        monkeypatch,
        lambda one: alone if one and one[0].dead else min(original(one), 7),
    )
    with caplog.at_level(logging.INFO, "glb"):
        give(proof)
    assert proof.is_given is False
    assert proof.reason == "one that was kept is used again"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert proof.reason in caplog.text


def test_counts_that_vary_are_refused(
    proof: Proof, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Python whose counts mean nothing gives no proof."""
    original = count
    calls = iter(range(1_000_000))
    count_otherwise(
        monkeypatch,
        lambda one: original(one) if one and one[0].dead else original(one) + next(calls) % 2,
    )
    give(proof)
    assert proof.is_given is False
    assert "varies" in proof.reason and proof.reason in caplog.text


def test_a_trial_that_was_watched_is_tried_again(
    proof: Proof, caplog: pytest.LogCaptureFixture
) -> None:
    """What keeps a greenlet of the trial may be gone with the next server."""
    kept: list[Any] = []
    before = greenlet.settrace(lambda _event, args: kept.append(args))
    try:
        with caplog.at_level(logging.DEBUG, "glb"):
            give(proof)
            assert (proof.is_given, "tracer" in proof.reason) == (None, True)
            assert caplog.text.count("handlers run in fresh greenlets") == 1
    finally:
        greenlet.settrace(before)
    give(proof)
    assert (proof.is_given, proof.reason) == (True, "")


def test_nothing_of_a_trial_is_left(proof: Proof) -> None:
    """No greenlet, no callback, no timer."""
    give(proof)
    assert proof.is_given is True
    gevent.sleep(0)
    gc.collect()
    trials = [each for each in gc.get_objects() if isinstance(each, Handlers)]
    assert not [each for each in trials if type(each) is not Handlers]


def test_a_greenlet_that_is_known_before_its_first_job_serves_once(proof: Proof) -> None:
    """The first count would have the stranger in it, and never show that it stayed."""
    give(proof)
    hub: Any = gevent.get_hub()
    mine = Handlers(hub, proof)
    mine._users = 1
    served: list[int] = []
    kept: list[Any] = []

    def run(*_: object) -> None:
        served.append(id(getcurrent()))

    def see(each: object) -> None:
        if isinstance(each, HandlerGreenlet):
            kept.append(each)

    gevent.Greenlet.add_spawn_callback(see)
    try:
        for _ in range(5):
            mine.spawn(run, run, run, ())
        gevent.sleep(0)
    finally:
        gevent.Greenlet.remove_spawn_callback(see)
    assert len({*served}) == len(served) == len(kept) == 5
    assert all(each.dead for each in kept) and len(mine) == 0


def test_a_greenlet_that_is_found_while_it_is_parked_serves_no_more(proof: Proof) -> None:
    """A list of all objects, say, has it: what its owner does with it is not the next one's."""
    give(proof)
    hub: Any = gevent.get_hub()
    mine = Handlers(hub, proof)
    mine._users = 1
    served: list[int] = []

    def run(*_: object) -> None:
        served.append(id(getcurrent()))

    mine.spawn(run, run, run, ())
    gevent.sleep(0)
    found = [mine._parked[0]]
    mine.spawn(run, run, run, ())
    gevent.sleep(0)
    assert found[0].dead and served[0] == id(found[0]) != served[1]
    assert len(mine) == 1
    mine.end_parked()


def test_the_process_proved_it() -> None:
    """The rest of the tests recycle, unless something watches all of them."""
    give(PROOF)
    assert PROOF.is_given is True, PROOF
