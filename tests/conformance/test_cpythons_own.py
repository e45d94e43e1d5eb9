"""CPython's own tests fare under our patch as they do under gevent's.

Some of them fail or hang under gevent's: they look at what a patch replaces. What counts is what
fails under ours alone, each of three times. A part that matters for listeners is run here, and
all of it with ``GLB_CPYTHON_TESTS=all`` in the environment, in some two minutes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from .cpython_runner import ENDED, STARTED

#: The child imports nothing else before.
pytestmark = pytest.mark.process

#: Every stream socket that is bound then has SO_REUSEPORT, so that those that listen are clones
#: under our patch.
SHARED: Final = """
import socket

def bind(self, address, plain=socket.socket.bind):
    if self.type == socket.SOCK_STREAM and self.family in (socket.AF_INET, socket.AF_INET6):
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return plain(self, address)

socket.socket.bind = bind
"""

PATCHES: Final = {
    "gevent": "import gevent.monkey; gevent.monkey.patch_all()",
    "glb": "import glb.monkey; glb.monkey.patch_all(); assert glb.monkey.is_patched('sockets')",
}
PATCHES_SHARED: Final = {f"{name} shared": patch + SHARED for name, patch in PATCHES.items()}

RUN: Final = """
{patch}
import runpy
runpy.run_module("tests.conformance.cpython_runner", run_name="__main__", alter_sys=True)
"""

#: Of the child. Warnings of CPython's tests under gevent are not ours. Most tests look if a native
#: thread is left, for as long as one is, and gevent's resolver leaves one for as long as this:
#: by default that is 5 s, in the place of which a test takes 0.05 s.
ENVIRONMENT: Final = {"PYTHONDEVMODE": "", "GEVENT_THREADPOOL_IDLE_TASK_TIMEOUT": "0.01"}

#: Modules of CPython's `test`. The last is no longer there since Python 3.12.
WHOLE: Final = (
    "test_socketserver",
    "test_httpservers",
    "test_wsgiref",
    "test_selectors",
    "test_select",
    "test_poll",
    "test_socket",
    "test_asyncore",
)

#: The part that runs if not all do: tests that listen, accept and poll.
CHOSEN: Final = (
    "test_socketserver",
    "test_select",
    "test_poll",
    "test_selectors.DefaultSelectorTestCase",
    "test_httpservers.BaseHTTPServerTestCase",
    "test_httpservers.SimpleHTTPServerTestCase",
    "test_socket.BasicSocketPairTest",
    "test_socket.BasicTCPTest",
    "test_socket.BasicTCPTest2",
    "test_socket.ContextManagersTest",
    "test_socket.CreateServerFunctionalTest",
    "test_socket.CreateServerTest",
    "test_socket.GeneralModuleTests",
    "test_socket.InheritanceTest",
    "test_socket.NetworkConnectionAttributesTest",
    "test_socket.NonBlockingTCPTests",
    "test_socket.NonblockConstantTest",
    "test_socket.RecvmsgSCMRightsStreamTest",
    "test_socket.SendfileUsingSendTest",
    "test_socket.TCPCloserTest",
    "test_socket.TCPTimeoutTest",
    "test_socket.TestExceptions",
    "test_socket.UnbufferedFileObjectClassTestCase",
)

#: What is run with `SHARED`: event loops that accept. The first two are no longer there since
#: Python 3.12.
LOOPS: Final = (
    "test_asyncore",
    "test_asynchat",
    "test_ftplib",
    "test_asyncio.test_streams",
    "test_asyncio.test_server",
    "test_asyncio.test_sock_lowlevel",
)

#: What is not run at all, and why.
LEFT_OUT: Final = {
    "test_poll.PollTests.test_poll_unit_tests": "asks for descriptors that are no longer open, "
    "which gevent's poll never reports: it hangs",
    "test_socketserver.SocketWriterTest.test_write": "sends a signal to a thread by its id, which "
    "is no thread's under gevent: it fails or hangs",
}

#: What is run only with all the others: it takes a second or more, and isn't about listeners. With
#: Python 3.10 `test_poll2` takes 10 s; with 3.13 the last two hang now and then, under gevent's
#: patch too.
SLOW: Final = (
    "test_selectors.DefaultSelectorTestCase.test_select_interrupt_exc",
    "test_selectors.DefaultSelectorTestCase.test_select_interrupt_noraise",
    "test_socket.GeneralModuleTests.test_sendall_interrupted",
    "test_socket.GeneralModuleTests.test_sendall_interrupted_with_timeout",
    "test_socket.SendfileUsingSendTest.testWithTimeoutTriggeredSend",
    "test_socket.TCPTimeoutTest.testInterruptedTimeout",
    "test_socket.UnbufferedFileObjectClassTestCase.testReadAfterTimeout",
    "test_poll.PollTests.test_poll2",
    "test_socketserver.ErrorHandlerTest.test_forking_handled",
    "test_socketserver.ErrorHandlerTest.test_forking_not_handled",
)

#: A run of either may fail by chance: of so many more each has to come out alike.
CONFIRMATIONS: Final = 3

#: More than these are not looked at again: something is broken, and it shows.
CONFIRMED_MAX: Final = 10

#: For one child. A part of a run takes 10 s, all of it 100, and twice that with coverage.
CHILD_MAX_SECONDS: Final = 400

Outcomes = dict[str, str]


def in_one_child(
    patch: str, names: Sequence[str], left_out: Collection[str], journal: Path
) -> tuple[Outcomes, str, bool]:
    """Run *names* until the end, or the first that hangs; return its last words, and if it did."""
    journal.unlink(missing_ok=True)
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            RUN.format(patch={**PATCHES, **PATCHES_SHARED}[patch]),
            str(journal),
        ],
        env={**os.environ, **ENVIRONMENT},
        cwd=Path(__file__).parents[2],
        input=json.dumps({"names": list(names), "left_out": sorted(left_out)}),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=CHILD_MAX_SECONDS,
        check=False,
    )
    lines = journal.read_text().splitlines() if journal.exists() else []
    outcomes = {entry["test"]: entry["outcome"] for entry in map(json.loads, lines)}
    is_done = outcomes.pop("", None) == "done"
    return outcomes, child.stderr[-4000:], is_done


def run(patch: str, names: Sequence[str], left_out: Collection[str], journal: Path) -> Outcomes:
    """Return the outcome of each test under *patch*: one that ends its child has another child."""
    outcomes: Outcomes = {}
    while True:
        some, words, is_done = in_one_child(patch, names, {*left_out, *outcomes}, journal)
        assert is_done or set(some) - set(outcomes), words  # or it would go on for ever
        ended = {test: ENDED for test, outcome in some.items() if outcome == STARTED}
        outcomes.update(some, **ended)
        if is_done:
            return outcomes


def worse(ours: Mapping[str, str], gevents: Mapping[str, str]) -> list[str]:
    """Return the tests that pass under gevent's patch, and not (or not at all) under ours.

    And the fixtures of classes and modules that fail under ours alone: these have no outcome
    if they pass.
    """
    passed = {test for test, outcome in gevents.items() if outcome == "passes"}
    fixtures = {test for test in ours if " " in test} - set(gevents)
    return sorted({test for test in passed if ours.get(test) != "passes"} | fixtures)


def name_of(test: str) -> str:
    """Return what unittest finds *test* by, which may be the fixture of a class."""
    fixture = re.fullmatch(r"\w+ \((.+)\)", test)
    return fixture[1] if fixture else test


def with_prefix(names: Collection[str]) -> list[str]:
    return [f"test.{name}" for name in names]


needs_cpythons_own = pytest.mark.skipif(
    importlib.util.find_spec("test") is None
    or importlib.util.find_spec("test.test_socket") is None,
    reason="CPython's own tests, the package `test`, are not installed with this Python",
)


@needs_cpythons_own
def test_cpythons_own_tests_fare_as_under_gevents_patch(tmp_path: Path) -> None:
    """The same tests in a child under gevent's patch, and in one under ours."""
    left_out = with_prefix(LEFT_OUT)
    if os.environ.get("GLB_CPYTHON_TESTS") == "all":
        names = [one for one in with_prefix(WHOLE) if importlib.util.find_spec(one)]
        at_least = 700
    else:
        names, at_least = with_prefix(CHOSEN), 150
        left_out += with_prefix(SLOW)
    check_nothing_is_worse(tuple(PATCHES), names, left_out, at_least, tmp_path)


@needs_cpythons_own
@pytest.mark.thorough
def test_event_loops_fare_alike_when_all_sockets_are_shared(tmp_path: Path) -> None:
    """A loop that polls a clone among its other descriptors sees what comes, as ever."""
    names = [one for one in with_prefix(LOOPS) if importlib.util.find_spec(one)]
    check_nothing_is_worse(tuple(PATCHES_SHARED), names, (), 100, tmp_path)


def check_nothing_is_worse(
    patches: tuple[str, ...],
    names: Sequence[str],
    left_out: Collection[str],
    at_least: int,
    tmp_path: Path,
) -> None:
    """Run *names* under gevent's patch and ours; of the first, so many have to pass."""
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run, patch, names, left_out, tmp_path / patch) for patch in patches]
        gevents, ours = (one.result() for one in both)
    assert sum(outcome == "passes" for outcome in gevents.values()) >= at_least, gevents
    suspects = worse(ours, gevents)
    told = {test: ours.get(test, "isn't run") for test in suspects}
    print("under our patch alone, at first:", told)
    assert len(suspects) <= CONFIRMED_MAX, told
    confirmed = {test: told[test] for test in suspects if is_worse_always(test, patches, tmp_path)}
    assert confirmed == {}


def is_worse_always(test: str, patches: tuple[str, ...], folder: Path) -> bool:
    """Return True if *test*, alone in its child, is worse under our patch in each of some runs."""
    return all(
        test
        in worse(*(run(each, [name_of(test)], (), folder / each) for each in reversed(patches)))
        for _ in range(CONFIRMATIONS)
    )
