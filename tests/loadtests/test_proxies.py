"""What `loadtests.proxies` finds, and that it finds anything: short runs, and planted faults."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from loadtests.proxies import PROXIES, find

from ..support.helpers import run_load_test

pytestmark = [
    pytest.mark.process,
    pytest.mark.thorough,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs all of 127.0.0.0/8"),
]

NEEDED = pytest.mark.skipif(
    None in {find(name) for name in PROXIES}, reason="needs haproxy and nginx"
)

# An application gets less than was sent.
LOSES = """
from glb.http.body import Body
read = Body.read
Body.read = lambda self, size=None: read(self, size)[:-1]
"""

# A connection on which a reply has said nothing of its end is closed behind it.
CLOSES = """
from glb.http.handler import WSGIHandler
end = WSGIHandler._end_input
def end_all(self):
    end(self)
    self.close_connection = True
WSGIHandler._end_input = end_all
"""


PROGRAM = """
from loadtests import proxies
proxies.SERVER = "faulty"
proxies.main()
"""


def run(*options: str, program: str = "", **environ: str) -> tuple[int, str]:
    """Return the exit status of a run, and what it printed."""
    return run_load_test("proxies", "--seed", "1", *options, program=program, **environ)


@NEEDED
@pytest.mark.parametrize("hubs", ["1", "2"])
@pytest.mark.parametrize("server", ["lean", "hooks"])
def test_a_short_run_finds_nothing(server: str, hubs: str) -> None:
    """Of all kinds of requests, through each proxy."""
    status, printed = run("--requests", "300", "--server", server, "--hubs", hubs)
    assert (status, "\n0 faults, " in printed) == (0, True), printed
    for name in PROXIES:
        assert f"\n{name}: " in printed


@NEEDED
def test_a_request_in_the_body_of_an_upgrade_is_smuggled_into_gevents_server() -> None:
    """Through both proxies; glb's server reads it as the body that it is."""
    attacks = ("--kind", "attack", "--requests", "40", "--clients", "1")
    status, printed = run(*attacks, "--server", "gevent")
    assert status == 1, printed
    assert "the application saw a smuggled request for " in printed
    assert ", of which 0 are smuggled requests" not in printed
    status, printed = run(*attacks)
    assert (status, "\n0 faults, of which 0 are smuggled requests" in printed) == (0, True), printed


@NEEDED
@pytest.mark.parametrize(
    ("fault", "found"),
    [(LOSES, "another body: "), (CLOSES, "not given to the application: ")],
    ids=["a byte less", "a close without a word"],
)
def test_what_is_lost_is_found(tmp_path: Path, fault: str, found: str) -> None:
    """By what was recorded between the proxy and the server."""
    (tmp_path / "faulty.py").write_text(f"{fault}\nfrom loadtests.http.serve import COMMANDS\n")
    options = ("--requests", "300", "--proxy", "haproxy", "--kind", "upload", "--kind", "plain")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    status, printed = run(*options, program=PROGRAM, PYTHONPATH=path)
    assert status == 1, printed
    assert found in printed


@pytest.mark.skipif(
    None not in {find(name) for name in PROXIES}, reason="haproxy and nginx are installed"
)
def test_a_proxy_that_is_not_installed_is_passed_over() -> None:
    """A line says so."""
    _, printed = run("--requests", "10")
    assert "passed over, it isn't installed" in printed
