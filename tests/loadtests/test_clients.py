"""What `loadtests.clients` finds, and that it finds anything: short runs, and planted faults."""

from __future__ import annotations

import pytest

from ..support.helpers import run_load_test

pytestmark = [pytest.mark.process, pytest.mark.thorough]

SHORT = ("--client", "http.client", "--application", "plain")

# The servers' process with a fault of glb's, before its `main`; and what starts that one.
SERVER = """
import sys
from glb.http.body import Body
from glb.pywsgi import WSGIHandler, WSGIServer
from loadtests.http import serve
{fault}
serve.main(*sys.argv[1:])
"""
PROGRAM = """
import sys
from loadtests import {name} as command
command.SERVER = (sys.executable, "-c", {server!r})
command.main()
"""

# An application gets less than was sent.
LOSES = """
read = Body.read
Body.read = lambda self, size=None: read(self, size)[:-1]
"""

# A connection is closed behind each reply.
CLOSES = """
end = WSGIHandler._end_input
def end_all(self):
    end(self)
    self.close_connection = True
WSGIHandler._end_input = end_all
"""

# Only the checker sees it.
NO_VERSION = """
environ = WSGIServer.get_environ
WSGIServer.get_environ = lambda self: {**environ(self), "wsgi.version": None}
"""


def with_fault(name: str, fault: str) -> str:
    """Return a program: the load test *name*, of servers with a *fault*."""
    return PROGRAM.format(name=name, server=SERVER.format(fault=fault))


@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
def test_a_short_run_finds_nothing(loop: str) -> None:
    """Of all clients and applications that are installed; the others are named."""
    clients = ("curl", "ab", "h2load", "requests", "httpx", "aiohttp", "http.client")
    options = [part for name in clients for part in ("--client", name)]
    status, printed = run_load_test("clients", "--requests", "20", *options, GEVENT_LOOP=loop)
    assert (status, "\n0 faults, in " in printed) == (0, True), printed
    assert "\nglb by hooks 2 hubs: " in printed
    assert all(f"{name} " in printed for name in (*clients, "plain", "django"))


@pytest.mark.parametrize(
    ("fault", "found"),
    [(LOSES, "clients saw"), (CLOSES, "applications saw"), (NO_VERSION, "AssertionError")],
    ids=["a byte less", "a close without a word", "no version"],
)
def test_what_differs_is_found(fault: str, found: str) -> None:
    """By the client, by the application, or by the checker; and not under gevent's server."""
    status, printed = run_load_test("clients", *SHORT, program=with_fault("clients", fault))
    assert status == 1, printed
    assert "\ngevent 1 hubs: 4 things seen by clients, 0 faults\n" in printed
    assert found in printed


def test_what_is_not_installed_is_named() -> None:
    """And is no fault."""
    status, printed = run_load_test("clients", *SHORT, "--client", "curl", PATH="")
    assert (status, "curl is not installed" in printed) == (0, True), printed
