"""What `loadtests.machines` finds: short runs, and what it changes in the page's files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.machines import network
from loadtests.machines.balancers import BALANCERS, HAProxy
from loadtests.machines.network import why_not
from loadtests.machines.page import file_of_page, write
from loadtests.machines.service import STREAM, WEB

from ..support.helpers import run_load_test

ROOT = Path(__file__).parents[2]

#: A run with a host, on which a process writes and waits. It ends when it is killed.
ENTERS = """
from loadtests.machines.network import enter
enter(["-c", '''
import subprocess, sys
from loadtests.machines.network import Network
with Network() as network:
    network.host("web1", "10.0.0.11")
    subprocess.Popen(["ip", "netns", "exec", "web1", "sh", "-c", "echo a host is there; sleep 60"])
    sys.stdin.read()
'''])
"""

thorough = [pytest.mark.process, pytest.mark.thorough]


def needs_hosts() -> None:
    """Skip where there can be none."""
    if HAProxy.find() is None:
        pytest.skip("needs haproxy")
    if (reason := why_not()) is not None:
        pytest.skip(reason)


class TestHosts:
    pytestmark = thorough

    def test_no_request_is_lost_while_all_hosts_are_replaced(self) -> None:
        """Each reply is a 200 with the client's own address, by PROXY protocol v2."""
        needs_hosts()
        # Python's development mode makes starts slow, of which there are ten.
        options = ("deploy", "--quick", "--requests", "500", "--rate", "150")
        status, printed = run_load_test("machines", *options, PYTHONDEVMODE="")
        assert status == 0, printed

    def test_nothing_is_left_of_runs_that_are_killed(self) -> None:
        """Two at a time, with the same names: their hosts' processes are ended by the kernel."""
        if (reason := why_not()) is not None:
            pytest.skip(reason)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        runs = [
            subprocess.Popen(
                [sys.executable, "-c", ENTERS],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(2)
        ]
        for each in runs:
            assert each.stdout is not None and each.stdout.readline() == b"a host is there\n"
        for each in runs:
            each.kill()
            # The host's process has the pipe too, so its end shows that this process has ended.
            rest, _ = each.communicate()
            assert rest == b""


def test_the_page_has_each_file_and_what_runs_change(tmp_path: Path) -> None:
    """A run would change nothing in a page that was written anew."""
    for kind in (WEB, STREAM):
        assert "drain-delay = 5.0\n" in write(kind.file, tmp_path, {}).read_text()
    for balancer in BALANCERS.values():
        changed = {**balancer.changes, **balancer.quick}
        assert write(balancer.file, tmp_path, changed).read_text() != file_of_page(balancer.file)


def test_a_change_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    """So is a file that the page doesn't have."""
    with pytest.raises(ValueError, match=r"has no 'drain-delay = 1' in glb.toml"):
        write("glb.toml", tmp_path, {"drain-delay = 1": "drain-delay = 2"})
    with pytest.raises(ValueError, match=r"has no block that is nginx.conf"):
        file_of_page("nginx.conf")


def test_where_there_can_be_no_hosts_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program isn't there, or the machine refuses: both are told in words."""
    refuses = ("sh", "-c", "echo 'unshare failed: Operation not permitted' >&2; exit 1")
    monkeypatch.setattr(network, "_UNSHARE", refuses)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/bin/true")
    allows = "this machine doesn't allow network namespaces: "
    assert why_not() == f"{allows}unshare failed: Operation not permitted"
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert why_not() == "needs the program 'unshare' (Debian's util-linux, iproute2)"
