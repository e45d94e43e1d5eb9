"""What `loadtests.machines` finds: short runs, and what it changes in the page's files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from loadtests.machines.balancers import BALANCERS, HAProxy
from loadtests.machines.network import why_not
from loadtests.machines.page import file_of_page, write
from loadtests.machines.service import STREAM, WEB

from ..support.helpers import run_load_test

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
        """Each reply is a 200 with the client's own address, at 300 requests a second."""
        needs_hosts()
        status, printed = run_load_test("machines", "deploy", "--quick", "--requests", "500")
        assert status == 0, printed

    def test_locusts_gates_hold_through_a_balancer(self) -> None:
        """A master and two workers on hosts of their own; turns of 12 clones differ by 1."""
        needs_hosts()
        if importlib.util.find_spec("locust") is None:
            pytest.skip("needs locust")
        options = ("locust", "--quick", "--scenario", "balance")
        status, printed = run_load_test("machines", *options)
        assert status == 0, printed
        assert " turns of 12 clones: exact" in printed


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
