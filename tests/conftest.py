"""What every test can rely on: an empty registry, no thread and no descriptor more than before."""

from __future__ import annotations

import faulthandler
import gc
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import gevent
import hypothesis
import pytest

import glb
from glb.accept.registry import REGISTRY

from .support import own_network
from .support.examples import try_fewer

#: They import locust, which patches the process: test_locust.py runs each in one of its own.
collect_ignore_glob = ["locust/*_checks.py"]

#: How often glb looks for what no event tells of, in seconds, and the notice that idle clients
#: have. Hundreds of tests come to each of these: with its own, which spare a server's CPU, they
#: would wait a tenth of a run.
LOOKS: Final = {
    "glb.serve.drain.CALLERS_LOOK_SECONDS": 0.005,
    "glb.serve.drain.DELAY_LOOK_SECONDS": 0.005,
    "glb.serve.drain_worker.LOOK_SECONDS": 0.005,
    "glb.serve.drain_worker.NOTICE_SECONDS": 0.0,
    "glb.upgrade.LOOK_SECONDS": 0.01,
}

#: After as many seconds in one test, the stack of every thread is printed.
STUCK_SECONDS: Final = 120
#: How often that is put off. pytest's own `faulthandler_timeout` does it for each test, and waits
#: for a thread of C to end each time: 6 ms on a busy machine, a fifth of a run.
PUT_OFF_SECONDS: Final = 30


class Stuck:
    """Prints the stacks of a run in which no test has begun for long, also if it holds the GIL."""

    def __init__(self) -> None:
        # pytest captures what goes to the descriptor 2, but while it is configured.
        self._file: Final = os.fdopen(os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2), "w")
        self._put_off = 0.0

    def put_off(self) -> None:
        now = time.monotonic()
        if now - self._put_off > PUT_OFF_SECONDS:
            self._put_off = now
            faulthandler.dump_traceback_later(STUCK_SECONDS + PUT_OFF_SECONDS, file=self._file)

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()


STUCK: Final = pytest.StashKey[Stuck]()


#: What leaves out thorough tests and those of processes, and examples of the others.
WITHOUT_LONG: Final = "not (thorough or process)"
#: A file all of whose tests are left out then.
ALL_ARE_LONG: Final = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.(thorough|process)\b", re.M)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Don't read a file of which nothing is run: a quarter of what collecting takes."""
    if config.option.markexpr != WITHOUT_LONG or collection_path.suffix != ".py":
        return None
    return ALL_ARE_LONG.search(collection_path.read_text(encoding="utf-8")) is not None or None


def pytest_configure(config: pytest.Config) -> None:
    # Each of pytest-xdist's workers has one, and what starts them has none.
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        own_network.enter()
    config.stash[STUCK] = Stuck()
    # How long an example takes is the machine's affair: in CI there is no deadline either.
    hypothesis.settings.register_profile("patient", deadline=None)
    hypothesis.settings.load_profile("patient")
    if config.option.markexpr == WITHOUT_LONG:
        try_fewer()


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[STUCK].put_off()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[STUCK].close()


def open_descriptors() -> dict[int, str]:
    """Return what each descriptor of this process leads to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listdir() used
            continue
    return found


def hub_threads() -> list[str]:
    """Return the names of glb's native threads."""
    return [each.name for each in threading.enumerate() if each.name.startswith("glb ")]


def end_by_force() -> None:
    """Give back every share of the registry."""
    for entry in REGISTRY:
        for share in [*entry._shares]:
            REGISTRY.release(share)


@pytest.fixture(autouse=True, scope="session")
def collects_only_what_is_new() -> None:
    """Let `gc.collect`, after each test, pass over what was imported: half of a run's time."""
    # Before its first random numbers Hypothesis looks for what refers to them, once, and there are
    # no referrers to be found in what is frozen. (In CI, where its examples aren't random, its
    # first test would be the one to look.)
    hypothesis.given(hypothesis.strategies.none())(lambda _: None)()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def looks_often() -> Iterator[None]:
    """Let servers of this process look often."""
    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in LOOKS.items():
            patch.setattr(name, seconds)
        yield


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Fail a test after which a clone, an address, a thread, a descriptor or a watcher is left."""
    assert glb.registry.entries() == []
    threads_before = hub_threads()  # one test's leak is not the next one's
    hub = gevent.get_hub()
    gevent.sleep(0)
    before = open_descriptors()
    watchers = hub.loop.activecnt
    yield
    REGISTRY.check()
    left_open = glb.registry.entries()
    end_by_force()  # so that one test's leak is not the next one's
    assert left_open == []
    for _ in range(2000):  # a thread that is to end takes a moment
        if len(hub_threads()) <= len(threads_before):
            break
        gevent.sleep(0.001)
    assert hub_threads() == threads_before
    gc.collect()
    for _ in range(50):  # gevent closes a socket that was waited on a turn later
        left = {fd: what for fd, what in open_descriptors().items() if fd not in before}
        if not left and hub.loop.activecnt <= watchers:
            break
        gevent.sleep(0.001)
    gc.freeze()  # what is alive now isn't looked at again: a fifth of a run's time
    assert left == {}
    assert hub.loop.activecnt <= watchers


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let a test have some thousand descriptors: a clone with an accept loop has one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(params=["by turns", "by loops"])
def by_turns_and_by_loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test twice: its servers accept by themselves, and by the default accept loop."""
    from glb.server import StreamServer, default_accept_loop

    if request.param == "by loops":
        monkeypatch.setattr(StreamServer, "accept_loop", staticmethod(default_accept_loop))


@pytest.fixture(autouse=True)
def hangs_fail() -> Iterator[None]:
    """End a test that waits for what never comes."""
    with gevent.Timeout(60, RuntimeError("the test hangs")):
        yield
