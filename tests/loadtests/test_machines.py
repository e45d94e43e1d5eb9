"""What `loadtests.machines` finds: short runs, and what it changes in the page's files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests import machines
from loadtests.frame.traffic import Visit
from loadtests.machines import BALANCERS, STREAM, WEB, share, write

from ..support.helpers import run_load_test

ROOT = Path(__file__).parents[2]

#: When, in seconds, and from which process.
REPLIES = [(0, "old"), (5, "new"), (6, "old"), (7, "old"), (8, "old"), (9, "new")]

#: A run with a host, on which a process writes and waits. It ends when it is killed.
ENTERS = """
from loadtests.machines import enter
enter(["-c", '''
import subprocess, sys
from loadtests.machines import Host, set_up
set_up("10.0.0.2")
host = Host("web1", "10.0.0.11")
subprocess.Popen([*host.enters, "sh", "-c", "echo a host is there; sleep 60"])
sys.stdin.read()
'''])
"""

thorough = [pytest.mark.process, pytest.mark.thorough]


def needs_hosts(*programs: str) -> None:
    """Skip where there can be none."""
    for program in programs:
        if shutil.which(program, path=machines.PATH) is None:
            pytest.skip(f"needs {program}")
    try:
        machines.unsharing()
    except RuntimeError as error:
        pytest.skip(str(error))


class TestHosts:
    pytestmark = thorough

    def test_no_request_is_lost_while_all_hosts_are_replaced(self) -> None:
        """Each reply is a 200 with the client's own address, by PROXY protocol v2."""
        needs_hosts("haproxy")
        # Python's development mode makes starts slow, of which there are ten.
        options = ("deploy", "--quick", "--requests", "500", "--rate", "150")
        status, printed = run_load_test("machines", *options, PYTHONDEVMODE="")
        assert status == 0, printed

    def test_nothing_is_left_of_runs_that_are_killed(self) -> None:
        """Two at a time, with the same names: their hosts' processes are ended by the kernel."""
        needs_hosts()
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
        before = write(balancer.file, tmp_path, {}).read_text()
        changed = {**balancer.changes, **balancer.quick}
        assert write(balancer.file, tmp_path, changed).read_text() != before


def test_a_change_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    """So is a file that the page doesn't have."""
    with pytest.raises(ValueError, match=r"has no 'drain-delay = 1' in glb.toml"):
        write("glb.toml", tmp_path, {"drain-delay = 1": "drain-delay = 2"})
    with pytest.raises(ValueError, match=r"has no block that is nginx.conf"):
        write("nginx.conf", tmp_path, {})


def test_where_there_can_be_no_hosts_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program isn't there, or the machine refuses: both are told in words."""
    refuses = ("sh", "-c", "echo 'unshare failed: Operation not permitted' >&2; exit 1")
    monkeypatch.setattr(machines, "UNSHARE", refuses)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/bin/true")
    with pytest.raises(RuntimeError) as refused:
        machines.unsharing()
    allows = "this machine doesn't allow network namespaces: "
    assert str(refused.value) == f"{allows}unshare failed: Operation not permitted"
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="needs the program 'unshare'"):
        machines.unsharing()


def test_a_share_is_a_part_of_an_equal_one() -> None:
    """From the first reply of a process on; it has none without a reply."""
    replies = [Visit(0, 0, when * 10**9, "good", ("", "", who)) for when, who in REPLIES]
    assert share(replies, "new", 4, 3) == 0.75
    assert share(replies, "new", 1, 3) == 3.0
    assert share(replies, "other", 4, 3) == 0.0
