"""The scenarios of `loadtests`, run by the real locust, without a web page, for a second each.

locust is never imported here: it patches the process that does. A run has ended when no process
holds its output any more, so none of them leaves a server or a worker behind.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from loadtests.frame.worker import Worker

from ..support.ports import free_port

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        importlib.util.find_spec("locust") is None, reason="needs locust: pip install glb[locust]"
    ),
]

LOADTESTS: Final = Path(__file__).parents[2] / "loadtests" / "locust"

#: How long a run may take that takes two to five seconds, alone on a machine.
RUN_SECONDS: Final = 100

LOAD: Final = ("--headless", "-u", "20", "-r", "20", "-t", "1s", "--only-summary")

EXACT: Final = re.compile(r"\d+ turns of 4 clones: exact")


@dataclass
class Run:
    """What a run left."""

    status: int
    output: str
    folder: Path

    def server(self) -> Any:
        """Return what the server counted, as the scenario wrote it."""
        return json.loads((self.folder / "server.json").read_text())

    def csv_turns(self) -> dict[str, int]:
        with (self.folder / "run_balance.csv").open(newline="") as file:
            return {row["clone"]: int(row["turns"]) for row in csv.DictReader(file)}

    def json_turns(self) -> dict[str, int]:
        balance = json.loads((self.folder / "balance.json").read_text())
        return {str(clone["clone"]): clone["turns"] for clone in balance["clones"]}


@contextlib.contextmanager
def start(scenario: str, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Start locust in *folder*, in a session of its own that is ended in any case."""
    command = [sys.executable, "-m", "locust", "-f", str(LOADTESTS / f"{scenario}.py"), *options]
    child = subprocess.Popen(
        command,
        # What locust itself is warned of is not the question.
        env={**os.environ, "PYTHONDEVMODE": "", "PYTHONWARNINGS": "ignore"},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def finish(child: subprocess.Popen[str]) -> tuple[int, str]:
    """Return exit status and output of *child*, when all that it started has ended, too."""
    try:
        output, _ = child.communicate(timeout=RUN_SECONDS)
    except subprocess.TimeoutExpired as error:
        child.kill()
        pytest.fail(f"it hangs: {(error.output or b'')[-3000:]!r}")
    return child.returncode, output


def run(scenario: str, folder: Path, *options: str, load: Sequence[str] = LOAD) -> Run:
    reports = ("--csv", "run", "--balance-json", "balance.json", "--server-stats", "server.json")
    with start(scenario, folder, *load, *reports, *options) as child:
        return Run(*finish(child), folder)


def assert_agreement(of: Run) -> None:
    """Check that CSV, JSON and the server have the same numbers, and that there are some."""
    server = of.server()
    assert sum(server["accepted"].values()) > 0
    assert of.csv_turns() == of.json_turns() == server["accepted"], of.output[-3000:]
    assert server["agree"] and "they agree" in of.output


# -- balance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--hubs", "4")], ids=["one_hub", "four_hubs"])
def test_turns_of_glb_are_exact_and_counts_agree(options: tuple[str, ...], tmp_path: Path) -> None:
    """The exit status is 0, and client and server have counted the same."""
    found = run("balance", tmp_path, *options)
    assert found.status == 0, found.output[-3000:]
    assert EXACT.search(found.output)
    assert_agreement(found)
    counts = found.server()["accepted"].values()
    assert max(counts) - min(counts) <= 1


def test_racing_servers_fail_by_their_balance(tmp_path: Path) -> None:
    """The exit status is 1, and a line has the gate; counts agree all the same."""
    found = run("balance", tmp_path, "--server", "racing")
    assert found.status == 1, found.output[-3000:]
    assert "--balance-min-jain 0.999 is missed by" in found.output
    assert "--balance-max-spread 1 is missed by" in found.output
    assert_agreement(found)


def test_a_gate_of_the_command_line_goes_before_the_scenarios(tmp_path: Path) -> None:
    """Gates that allow any balance give exit status 0 for racing servers."""
    gates = ("--balance-min-jain", "0", "--balance-max-spread", "1000000")
    found = run("balance", tmp_path, "--server", "racing", *gates)
    assert found.status == 0, found.output[-3000:]


def test_counts_agree_with_two_processes(tmp_path: Path) -> None:
    """Those of all workers are the server's to the last connection."""
    port = str(free_port())  # locust can't be asked which one it got
    ports = ("--master-port", port, "--master-bind-port", port)
    found = run("balance", tmp_path, "--processes", "2", *ports)
    assert found.status == 0, found.output[-3000:]
    assert EXACT.search(found.output)
    assert_agreement(found)


def test_counts_agree_with_a_master_and_two_workers(tmp_path: Path) -> None:
    """Workers that were started by themselves learn the server's address from the master."""
    port = str(free_port())  # locust can't be asked which one it got
    with (
        start("balance", tmp_path, "--worker", "--master-port", port) as first,
        start("balance", tmp_path, "--worker", "--master-port", port) as second,
    ):
        found = run(
            "balance", tmp_path,
            "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port,
            "--expect-workers", "2",
        )  # fmt: skip
        assert found.status == 0, found.output[-3000:]
        for worker in (first, second):
            status, output = finish(worker)
            assert status == 0, output[-3000:]
            assert "server of its own" not in output
    assert EXACT.search(found.output)
    assert_agreement(found)


# -- the server -------------------------------------------------------------------------------


def test_no_server_outlives_its_locust(tmp_path: Path) -> None:
    """It ends when locust is killed: no process is left that holds the output."""
    with start("tcp", tmp_path, "--headless", "-u", "5", "-r", "5") as child:
        assert child.stdout is not None
        for line in child.stdout:
            if "All users spawned" in line:
                break
        child.kill()
        status, output = finish(child)
    assert status == -9
    assert "exit code" not in output


def test_a_scenario_loads_the_host_that_it_is_given(tmp_path: Path) -> None:
    """It starts no server then; and of two protocols it speaks the host's."""
    with Worker("loadtests.workers", stderr=None) as server:
        host = f"http://127.0.0.1:{server.ask('open', kind='http')}"
        found = run("keepalive", tmp_path, "--host", host)
        accepted = {str(clone): count for clone, count in enumerate(server.ask("accepted"))}
    assert found.status == 0, found.output[-3000:]
    assert "server of its own" not in found.output
    assert not (tmp_path / "server.json").exists()
    assert found.json_turns() == accepted
    assert sum(accepted.values()) == 20


# -- the other scenarios ----------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("scenario", ["tcp", "http", "keepalive", "blocked_hub"])
def test_a_scenario_runs_as_it_stands(scenario: str, tmp_path: Path) -> None:
    """From any folder, with a server of its own, of which all counts agree."""
    found = run(scenario, tmp_path)
    assert found.status == 0, found.output[-3000:]
    assert "Traceback" not in found.output
    assert_agreement(found)


def test_http_as_a_locustfile_hides_no_module() -> None:
    """The standard library's `http` is what it was, whatever locust names the file."""
    program = (
        "import sys; from locust.util.load_locustfile import load_locustfile; "
        "load_locustfile(sys.argv[1]); import http.cookiejar; from http import HTTPStatus"
    )
    command = [sys.executable, "-c", program, str(LOADTESTS / "http.py")]
    assert subprocess.run(command, timeout=RUN_SECONDS, check=False).returncode == 0


@pytest.mark.thorough
def test_churn_leaves_no_connection_unaccounted_for(tmp_path: Path) -> None:
    """The server has accepted all served clients, and at most all that reset."""
    found = run("churn", tmp_path)
    assert found.status == 0, found.output[-3000:]
    server = found.server()
    assert server["agree"]
    assert server["given_up"] > 0
    lost = sum(server["accepted"].values()) - sum(server["turns"].values())
    assert 0 <= lost <= server["given_up"]
    assert re.search(r"of them reset: 0 failures", found.output)


@pytest.mark.thorough
def test_rolls_under_load_fail_no_client(tmp_path: Path) -> None:
    """The server was rolled, and all turns were exact."""
    found = run("roll", tmp_path, "-t", "2s")
    assert found.status == 0, found.output[-3000:]
    assert re.search(r"rolled [1-9]\d* times: 0 failures", found.output)
    assert EXACT.search(found.output)
    assert_agreement(found)


@pytest.mark.thorough
def test_a_server_that_cant_be_rolled_fails_the_run(tmp_path: Path) -> None:
    """Without a roll, no failure would prove nothing."""
    found = run("roll", tmp_path, "--server", "gevent", "-t", "2s")
    assert found.status == 1, found.output[-3000:]
    assert "gevent's own servers can't be rolled" in found.output


@pytest.mark.thorough
def test_a_spike_comes_and_goes(tmp_path: Path) -> None:
    """There are few users, then as many as said, then few, and then an end."""
    found = run("spike", tmp_path, "-t", "4s", "-u", "40", "-r", "100")
    assert found.status == 0, found.output[-3000:]
    assert re.findall(r"updating to (\d+) users", found.output) == ["10", "40", "10"]
    assert_agreement(found)


@pytest.mark.thorough
def test_a_comparison_has_a_line_for_each_server(tmp_path: Path) -> None:
    """Both servers were loaded, each as it is, and times of both are shown."""
    found = run("compare", tmp_path, "--server", "racing")
    assert found.status == 0, found.output[-3000:]
    for name in ("gevent", "glb"):
        line = rf"{name}: [1-9]\d* requests, 0 failures, \d+ a second, median [\d.]+ ms, p90 "
        assert re.search(line, found.output), found.output[-3000:]
    assert [*found.server()["accepted"]] == ["gevent.0", *(f"glb.{clone}" for clone in range(4))]
    assert_agreement(found)
