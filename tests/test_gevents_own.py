"""gevent's own tests pass with our classes in the place of gevent's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import runpy, sys
import gevent.pywsgi, gevent.server, glb.pywsgi, glb.server
gevent.server.StreamServer = glb.server.StreamServer
gevent.pywsgi.WSGIServer = glb.pywsgi.WSGIServer
module, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module("gevent.tests." + module, run_name="__main__", alter_sys=True)
"""


# Every socket that is made or accepted in the child is a `Connection`, also under monkey
# patching. gevent's SSLSocket stays what it is: it takes a connection over, and is none.
RUN_WITH_CONNECTIONS = """
import atexit, runpy, sys
import gevent._socket3, gevent.socket, gevent.ssl, glb.connection
made = []
class Connection(glb.connection.Connection):
    __slots__ = ()
    def __init__(self, *args, **options):
        made.append(1)
        super().__init__(*args, **options)
for module in gevent._socket3, gevent.socket:
    module.socket = module.SocketType = Connection
atexit.register(lambda: print("made", len(made), "connections", file=sys.stderr))
module, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module("gevent.tests." + module, run_name="__main__", alter_sys=True)
"""

# As gevent runs them.
RUN_UNCHANGED = """
import runpy, sys
module, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module("gevent.tests." + module, run_name="__main__", alter_sys=True)
"""


def run(program: str, module: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, module],
        # Warnings of gevent's tests, which run without development mode, are not ours.
        env={**os.environ, "PYTHONDEVMODE": ""},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def failures(result: subprocess.CompletedProcess[str]) -> set[str]:
    """Return the names of the tests that failed."""
    return set(re.findall(r"^(?:FAIL|ERROR): (.+)$", result.stderr, re.MULTILINE))


@pytest.mark.parametrize(
    "module", ["test__server", "test__server_pywsgi", "test__pywsgi", "test__backdoor"]
)
def test_gevents_own_tests_pass_with_our_servers(module: str) -> None:
    """Whole modules, unchanged, with 4 clones to a server."""
    result = run(RUN, module)
    assert result.returncode == 0, result.stderr[-4000:]
    ran = re.search(r"Ran (\d+) tests", result.stderr)
    assert ran is not None
    assert int(ran[1]) >= 10


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
