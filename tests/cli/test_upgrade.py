"""``glb serve`` and SIGUSR2, as real processes."""

from __future__ import annotations

import os
import pathlib
import re
import signal

import pytest

from ..support.helpers import ask, connect, http_get, receive_all, wait_until
from ..support.upgrading import children, reaps
from .test_commands import Served, child, folder, serving, write_version

__all__ = ["folder", "reaps"]  # fixtures

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("reaps")]


def wait_for_line(served: Served, pattern: str) -> re.Match[str]:
    """Return the match of the next line that has *pattern*: both processes write."""
    assert served.process.stderr is not None
    lines = []
    while line := served.process.stderr.readline():
        found = re.search(pattern, line)
        if found is not None:
            return found
        lines.append(line)
    raise AssertionError(f"no line has {pattern!r}: {lines}")


def replace(served: Served, pid: int | None = None) -> int:
    """Have a new process take over from *pid*; return its id."""
    os.kill(pid or served.process.pid, signal.SIGUSR2)
    return int(wait_for_line(served, r"process (\d+) serves now|no upgrade")[1])


def end(pid: int) -> int:
    """End *pid*, and return its status."""
    os.kill(pid, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("hubs", ["1", "2"])
def test_the_new_source_is_served_and_the_old_one_finishes(hubs: str, folder: pathlib.Path) -> None:
    """On the same port, also of port 0; the old process ends with its last connection."""
    write_version(folder, "old")
    with serving("versions:hold", "--hubs", hubs, "--clones", "2", cwd=folder) as served:
        with connect(served.address) as client:
            client.sendall(b"a")
            write_version(folder, "new")
            new = replace(served)
            assert served.process.poll() is None
            with connect(served.address) as other:
                other.sendall(b"b")
                assert b"new" in other.recv(100)
            client.sendall(b"c")
            assert b"old" in receive_all(client)
        assert served.process.wait() == 0
        assert end(new) == 0


def test_all_that_is_bound_goes_over(folder: pathlib.Path) -> None:
    """Unix paths, and the administration's address, which shows the new process alone."""
    args = (
        "--bind",
        f"unix:{folder}/s",
        "--bind",
        "127.0.0.1:0",
        "--admin",
        f"unix:{folder}/admin",
    )
    command = ("-m", "glb", "serve", "program:application", *args)
    with child(*command, cwd=folder) as process:
        served = Served(process)
        new = replace(served)
        assert process.wait() == 0
        for _ in range(3):
            assert http_get(f"{folder}/s").endswith(b"http")
            assert b"accepting" in http_get(f"{folder}/admin", "/readyz")
        assert end(new) == 0
        assert not (folder / "s").exists()
        assert not (folder / "admin").exists()


def test_upgrades_follow_one_another(folder: pathlib.Path) -> None:
    """Each by the process before; while the last one drains there is none."""
    with serving("program:hold", "--pid-file", "pid", cwd=folder) as served:
        with connect(served.address) as client:
            assert client.recv(5) == b"held "
            first = replace(served)
            # It has its answer a moment after the old one has logged it.
            wait_until(lambda: (folder / "pid").read_text() == f"{first}\n")
            os.kill(first, signal.SIGUSR2)
            wait_for_line(
                served, f"no upgrade: process {served.process.pid}, which this one replaces"
            )
            served.process.send_signal(signal.SIGUSR2)
            wait_for_line(served, "no upgrade: another process has taken over")
            client.sendall(b"x")
            assert receive_all(client) == b"most 1"
        assert served.process.wait() == 0
        wait_for_line(served, "stopped after 1 connections")
        second = replace(served, first)
        assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == 0
        assert ask(served.address, b"x") == b"held most 1"
        assert end(second) == 0


def test_a_signal_to_end_calls_an_upgrade_off(folder: pathlib.Path) -> None:
    """The new process is gone when the old one begins to drain."""
    before = children()
    with serving("program:application", cwd=folder) as served:
        (folder / "program.py").write_text("import time\ntime.sleep(60)")
        served.process.send_signal(signal.SIGUSR2)
        wait_for_line(served, "starting a new process")
        served.process.send_signal(signal.SIGTERM)
        wait_for_line(served, "was ended, as this one is about to end")
        assert served.process.wait() == 0
    assert children() == before


def test_a_link_to_the_newest_release_is_followed(folder: pathlib.Path) -> None:
    """The directory is found anew by its name."""
    for release in ("1", "2"):
        (folder / release).mkdir()
        write_version(folder / release, release)
    link = folder / "current"
    link.symlink_to("1")
    with child(
        *("-m", "glb", "serve", "versions:handle", "--bind", "127.0.0.1:0"),
        cwd=link,
        said={"PWD": str(link)},
    ) as process:
        served = Served(process)
        assert ask(served.address) == b"1"
        link.unlink()
        link.symlink_to("2")
        new = replace(served)
        assert ask(served.address) == b"2"
        assert process.wait() == 0
        assert end(new) == 0
