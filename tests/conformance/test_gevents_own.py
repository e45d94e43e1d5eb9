"""gevent's own tests pass with our classes in the place of gevent's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Set
from pathlib import Path
from typing import Final

import pytest

from ..support.bounds import ENDLESS_SECONDS

RUN = """
import runpy, sys
import gevent.pywsgi, gevent.server, glb.pywsgi, glb.server
gevent.server.StreamServer = glb.server.StreamServer
gevent.pywsgi.WSGIServer = glb.pywsgi.WSGIServer
gevent.pywsgi.WSGIHandler = glb.pywsgi.WSGIHandler
module, sys.argv = sys.argv[1], sys.argv[1:]
"""


# Our handler has two loops: see `glb.http.handler`. This one is for handlers that override
# something of gevent's.
RUN_BY_HOOKS = """
import runpy, sys
import gevent.pywsgi, gevent.server, glb.pywsgi, glb.server
class Handler(glb.pywsgi.WSGIHandler):
    def get_environ(self):
        return super().get_environ()
assert not Handler._is_lean
gevent.server.StreamServer = glb.server.StreamServer
gevent.pywsgi.WSGIServer = glb.pywsgi.WSGIServer
gevent.pywsgi.WSGIHandler = glb.pywsgi.WSGIServer.handler_class = Handler
module, sys.argv = sys.argv[1], sys.argv[1:]
"""


# Each clone has the default accept loop.
RUN_WITH_LOOPS = """
import atexit, runpy, sys
import gevent.pywsgi, gevent.server, glb.pywsgi, glb.server
ran = []
def accept_loop(listener, clone):
    ran.append(clone)
    glb.server.default_accept_loop(listener, clone)
glb.server.StreamServer.accept_loop = staticmethod(accept_loop)
gevent.server.StreamServer = glb.server.StreamServer
gevent.pywsgi.WSGIServer = glb.pywsgi.WSGIServer
gevent.pywsgi.WSGIHandler = glb.pywsgi.WSGIHandler
atexit.register(lambda: print("loops", len(ran), file=sys.stderr))
module, sys.argv = sys.argv[1], sys.argv[1:]
"""


# Every socket that is made or accepted in the child is a `Connection`, also under monkey
# patching. gevent's SSLSocket stays what it is: it takes a connection over, and is none.
RUN_WITH_CONNECTIONS = """
import atexit, runpy, sys
import gevent._socket3, gevent.socket, gevent.ssl, glb.net.connection
made = []
class Connection(glb.net.connection.Connection):
    __slots__ = ()
    def __init__(self, *args, **options):
        made.append(1)
        super().__init__(*args, **options)
for module in gevent._socket3, gevent.socket:
    module.socket = module.SocketType = Connection
atexit.register(lambda: print("made", len(made), "connections", file=sys.stderr))
module, sys.argv = sys.argv[1], sys.argv[1:]
"""

# Every server has a second hub, in a thread of its own. With "other" all turns are that hub's.
# That connections are served at all, and not how soon, is what gevent's tests ask: so nothing
# is taken back from a hub that a loaded machine lets wait.
RUN_WITH_HUBS = """
import atexit, json, runpy, sys, unittest
import gevent.pywsgi, gevent.server, glb.serve.acceptor, glb.pywsgi, glb.server
Server, Acceptor = glb.server.StreamServer, glb.serve.acceptor.Acceptor
gevent.server.StreamServer = Server
gevent.pywsgi.WSGIServer = glb.pywsgi.WSGIServer
gevent.pywsgi.WSGIHandler = glb.pywsgi.WSGIHandler
Server.hubs, Server.patience = 2, 30
start_accepting, serve, served = Server.start_accepting, Acceptor.serve, [0, 0]
def start_in_the_other(self):
    for clone in range(0, self.clones, 2):
        self.pause_clone(clone)
    start_accepting(self)
def serve_and_count(self, *args):
    served[self.worker.index] += 1
    return serve(self, *args)
Acceptor.serve = serve_and_count
class Loader(unittest.TestLoader):
    def getTestCaseNames(self, case):
        found = super().getTestCaseNames(case)
        return [test for test in found if [case.__name__, test] not in left_out]
where, left_out, module, sys.argv = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[3:]
unittest.defaultTestLoader.__class__ = Loader
if where == "other":
    Server.start_accepting = start_in_the_other
atexit.register(lambda: print("served", *served, file=sys.stderr))
"""

# Where we are stricter than gevent: docs/http.md names each, with the reason. Nothing else of
# gevent's tests of HTTP may fail. module -> (class, test).
STRICTER_THAN_GEVENT: Final = {
    "test__server_pywsgi": {
        (case, "test_server_closes_client_sockets")
        for case in ("TestDefaultSpawn", "TestPoolSpawn", "TestRawSpawn")
    },
    "test__pywsgi": {
        ("ChunkedInputTests", "test_close_before_finished"),
        ("ChunkedInputTests", "test_dirt"),
        ("ChunkedInputTests", "test_short_read_with_content_length"),
        ("ChunkedInputTests", "test_short_read_with_zero_content_length"),
        ("TestConnectionUpgrades", "test_connection_upgrade"),
        ("TestConnectionUpgrades", "test_upgrade_websocket"),
        ("TestContentLength304", "test_err"),
        ("TestHTTPResponseSplitting", "test_newline_in_header_name"),
        ("TestHTTPResponseSplitting", "test_newline_in_header_value"),
        ("TestHTTPResponseSplitting", "test_newline_in_status"),
        ("TestMultiLineHeader", "test_multiline_116"),
    },
}

# What several hubs refuse on purpose: module -> (class, test). Each of these gives its server
# a Pool, which belongs to one hub.
REFUSED_WITH_HUBS: Final = {
    "test__backdoor": {
        (case, test)
        for case in ("Test", "TestUnixSocket")
        for test in (
            "test_banner",
            "test_builtins",
            "test_multi",
            "test_quit",
            "test_switch_exc",
            "test_sys_exit",
        )
    },
}

# What is each hub's own on purpose: module -> (class, test). All of these replace `handle_error`
# of the hub that runs the test, and expect to see there what a handler, or `spawn`, raises; the
# hub of the handler reports it. They are left out: while they run every error is gevent's
# SYSTEM_ERROR, which ends the main greenlet, and that may be in the next test by then. The two
# `test_err` wait for that, instead of the reply: between threads it is a race.
REPORTED_BY_ITS_HUB: Final = {
    "test__server": {
        ("TestDefaultSpawn", "test_error_in_spawn"),
        ("TestDefaultSpawn", "test_invalid_callback"),
        ("TestNoneSpawn", "test_assertion_in_blocking_func"),
        ("TestNoneSpawn", "test_invalid_callback"),
        ("TestPoolSpawn", "test_error_in_spawn"),
        ("TestPoolSpawn", "test_invalid_callback"),
        ("TestRawSpawn", "test_error_in_spawn"),
        ("TestRawSpawn", "test_invalid_callback"),
    },
    "test__server_pywsgi": {
        ("TestDefaultSpawn", "test_error_in_spawn"),
        ("TestDefaultSpawn", "test_invalid_callback"),
        ("TestPoolSpawn", "test_error_in_spawn"),
        ("TestPoolSpawn", "test_invalid_callback"),
        ("TestRawSpawn", "test_error_in_spawn"),
        ("TestRawSpawn", "test_invalid_callback"),
    },
    "test__pywsgi": {
        ("ChunkedInputTests", "test_close_before_finished"),
        ("TestBody304", "test_err"),
        ("TestErrorAfterChunk", "test"),
        ("TestErrorInApplication", "test"),
        # The line is written when the client has its reply already.
        ("TestLogging", "test_status_log"),
        ("TestError_after_start_response", "test"),
        ("TestNonLatin1HeaderFromApplication", "test"),
        ("TestNonLatin1UnicodeHeaderFromApplication", "test"),
        ("TestWrite304", "test_err"),
    },
}

# What isn't so with an accept loop, on purpose: with `spawn=None` it runs the handlers itself, in
# its greenlet, where they may wait. module -> (class, test).
MAY_WAIT_IN_A_LOOP: Final = {
    "test__server": {("TestNoneSpawn", "test_assertion_in_blocking_func")},
}

# What holds on a machine at rest alone: three times 0.1 s are to pass while a request takes 0.5 s.
# What it raises at its end is flaky by gevent's own word.
DEPENDS_ON_THE_MOMENT: Final = {"test_pool_full"}

# As gevent runs them.
RUN_UNCHANGED = """
import runpy, sys
module, sys.argv = sys.argv[1], sys.argv[1:]
"""


# gevent gives each test 2 seconds, or 15 in CI. `test__makefile_ref` has psutil read the machine's
# list of connections ten times in one: half a minute beside tests that open and close thousands.
AS_MAIN = f"""
import gevent.testing
gevent.testing.TestCase.__timeout__ = {ENDLESS_SECONDS}
runpy.run_module("gevent.tests." + module, run_name="__main__", alter_sys=True)
"""


def run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the program, and then a module of gevent's tests."""
    return subprocess.run(
        [sys.executable, "-c", program + AS_MAIN, *args],
        # Warnings of gevent's tests, which run without development mode, are not ours.
        env={**os.environ, "PYTHONDEVMODE": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=5 * ENDLESS_SECONDS,
        check=False,
    )


def run_for(
    expected: set[tuple[str, str]], program: str, *args: str
) -> subprocess.CompletedProcess[str]:
    """Run it, and again, twice at most, if beside the *expected* tests a moment's fails alone."""
    for _ in range(3):
        result = run(program, *args)
        others = {test for _, test in methods(result) ^ expected}
        if not others or others - DEPENDS_ON_THE_MOMENT:
            break
    return result


def failures(result: subprocess.CompletedProcess[str]) -> set[str]:
    """Return the names of the tests that failed."""
    return set(re.findall(r"^(?:FAIL|ERROR): (.+)$", result.stderr, re.MULTILINE))


def methods(result: subprocess.CompletedProcess[str]) -> set[tuple[str, str]]:
    """Return class and name of the tests that failed, and raise if that is not all of it."""
    found = set()
    for name in failures(result):
        # "test (__main__.Class)", and since Python 3.11 "test (__main__.Class.test)"
        test = re.fullmatch(r"(\w+) \(__main__\.(\w+)(?:\.\1)?\)", name)
        assert test is not None, name
        found.add((test[2], test[1]))
    return found


def how_many(result: subprocess.CompletedProcess[str]) -> tuple[int, list[int]]:
    """Return how many tests ran, and how many connections each hub served."""
    ran = re.search(r"^Ran (\d+) tests", result.stderr, re.MULTILINE)
    served = re.search(r"^served (\d+) (\d+)$", result.stderr, re.MULTILINE)
    assert ran is not None, result.stderr[-4000:]
    assert served is not None, result.stderr[-4000:]
    return int(ran[1]), [int(served[1]), int(served[2])]


def run_stricter(
    program: str, *args: str, module: str, left_out: Set[tuple[str, str]] = frozenset()
) -> subprocess.CompletedProcess[str]:
    """Run it, and assert that just those tests of *module* fail that demand what is refused."""
    expected = STRICTER_THAN_GEVENT.get(module, set()) - left_out
    result = run_for(expected, program, *args, module)
    assert methods(result) == expected, result.stderr[-4000:]
    assert result.returncode == bool(expected), result.stderr[-4000:]
    return result


def test_the_docs_name_each_test_that_demands_what_is_refused() -> None:
    """A row of a table for each, and for no other."""
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(test__\w+)`: (.+?) \|", page, re.MULTILINE)
    named = [
        (module, *name.split("."))
        for module, names in rows
        for name in re.findall(r"`([\w.]+)`", names)
    ]
    expected = {
        # Of `test__server_pywsgi` all classes have the same tests.
        (module, test) if module == "test__server_pywsgi" else (module, case, test)
        for module, tests in STRICTER_THAN_GEVENT.items()
        for case, test in tests
    }
    assert sorted(named) == sorted(expected)


@pytest.mark.parametrize(
    "module", ["test__server", "test__server_pywsgi", "test__pywsgi", "test__backdoor"]
)
def test_gevents_own_tests_pass_with_our_servers(module: str) -> None:
    """Whole modules, unchanged, with 4 clones to a server."""
    result = run_stricter(RUN, module=module)
    ran = re.search(r"Ran (\d+) tests", result.stderr)
    assert ran is not None
    assert int(ran[1]) >= 10


@pytest.mark.thorough
@pytest.mark.parametrize("module", ["test__server_pywsgi", "test__pywsgi"])
def test_gevents_own_tests_pass_where_a_handler_overrides_a_hook(module: str) -> None:
    """Whole modules, unchanged, by the loop that calls each of gevent's methods."""
    result = run_stricter(RUN_BY_HOOKS, module=module)
    ran = re.search(r"Ran (\d+) tests", result.stderr)
    assert ran is not None
    assert int(ran[1]) >= 30


@pytest.mark.process
@pytest.mark.parametrize(
    "module", ["test__server", "test__server_pywsgi", "test__pywsgi", "test__backdoor"]
)
def test_gevents_own_tests_pass_with_the_default_accept_loop(module: str) -> None:
    """Whole modules, unchanged, with 4 greenlets to a server."""
    expected = STRICTER_THAN_GEVENT.get(module, set()) | MAY_WAIT_IN_A_LOOP.get(module, set())
    result = run_for(expected, RUN_WITH_LOOPS, module)
    assert methods(result) == expected, result.stderr[-4000:]
    ran = re.search(r"^Ran (\d+) tests", result.stderr, re.MULTILINE)
    loops = re.search(r"^loops (\d+)$", result.stderr, re.MULTILINE)
    assert ran is not None
    assert loops is not None
    assert int(ran[1]) >= 10
    assert int(loops[1]) >= 4 * int(ran[1]) / 2  # some of the tests start no server


@pytest.mark.thorough
@pytest.mark.parametrize("module", ["test__server", "test__server_pywsgi", "test__pywsgi"])
def test_gevents_own_tests_pass_with_two_hubs(module: str) -> None:
    """Whole modules, unchanged, with 4 clones on 2 hubs: all of it, without an exception."""
    result = run_stricter(RUN_WITH_HUBS, "both", "[]", module=module)
    ran, served = how_many(result)
    assert ran >= 30
    assert min(served) > 0


@pytest.mark.thorough
@pytest.mark.parametrize("module", ["test__server", "test__server_pywsgi", "test__pywsgi"])
def test_gevents_own_tests_pass_where_another_thread_serves(module: str) -> None:
    """Every connection is another hub's; left out is what its hub reports itself."""
    left_out = REPORTED_BY_ITS_HUB[module]
    names = json.dumps(sorted(left_out))
    result = run_stricter(RUN_WITH_HUBS, "other", names, module=module, left_out=left_out)
    ran, served = how_many(result)
    assert ran >= 30
    assert served[0] == 0
    assert served[1] > 30


@pytest.mark.parametrize("module", [*REFUSED_WITH_HUBS])
def test_gevents_own_tests_that_two_hubs_refuse(module: str) -> None:
    """Each of them gives a pool, and the error says what to give instead."""
    result = run(RUN_WITH_HUBS, "both", "[]", module)
    tests = REFUSED_WITH_HUBS[module]
    assert methods(result) == tests, result.stderr[-4000:]
    told = re.findall(r"^(\w+): .* as a pool belongs to one", result.stderr, re.MULTILINE)
    assert told == ["ValueError"] * len(tests)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "module",
    [
        "test__backdoor",
        "test__makefile_ref",
        "test__pywsgi",
        "test__refcount",
        "test__select",
        "test__selectors",
        "test__server",
        "test__socket",
        "test__socket_close",
        "test__socket_errors",
        "test__socket_ex",
        "test__socket_send_memoryview",
        "test__socket_timeout",
        "test__socketpair",
        "test__ssl",
    ],
)
def test_gevents_own_tests_pass_with_our_connections(module: str) -> None:
    """Whole modules, unchanged; what fails on this machine fails with gevent's sockets too."""
    result = run(RUN_WITH_CONNECTIONS, module)
    if result.returncode != 0:
        unchanged = run(RUN_UNCHANGED, module)
        new = failures(result) - failures(unchanged)
        assert failures(result) and not new, result.stderr[-4000:]
    ran = re.search(r"Ran (\d+) tests?", result.stderr)
    assert ran is not None
    assert int(ran[1]) >= 1
    made = re.search(r"^made (\d+) connections", result.stderr, re.MULTILINE)
    assert made is not None
    assert int(made[1]) >= 1
