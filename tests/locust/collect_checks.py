"""Real runs of locust: what is counted, what is written, and the exit status."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support.ports import free_port

ENDLESS_SECONDS = 120

#: Users whose requests name their clone, some in each way; no server is needed for that.
LOCUSTFILE = """
import itertools, types
import gevent
from locust import User, constant, events, task
import glb.locust

numbers = itertools.count()

@glb.locust.clone_of
def from_reply(response, request_type, name, start_time, **_):
    return response if isinstance(response, bytes) else None

@events.test_start.add_listener
def begin(**_):
    print("begun", flush=True)

class Asks(User):
    wait_time = constant(0.005)

    @task
    def ask(self):
        gevent.sleep(0.05)  # in the middle of which a run ends
        number = next(numbers)
        clone = "%d/4" % (number % 4)
        told = {
            0: {"context": {"glb_clone": clone}, "response": None},
            1: {"context": {}, "response": types.SimpleNamespace(headers={"X-Glb-Clone": clone})},
            2: {"context": {}, "response": clone.encode()},
        }[number % 3]
        error = ConnectionResetError("gone") if FAILS and number % 10 == 0 else None
        self.environment.events.request.fire(
            request_type="ASK", name="ask", response_time=5, response_length=3, exception=error,
            start_time=0, url=None, **told,
        )
"""


class Locust:
    """Processes of locust, in a folder of their own."""

    def __init__(self, folder: Path, *, fails: bool = False) -> None:
        self.folder = folder
        (folder / "locustfile.py").write_text(f"FAILS = {fails}\n{LOCUSTFILE}")
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "locust", *args],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def start_run(self, *args: str, seconds: str = "1s") -> subprocess.Popen[str]:
        """Begin a short run of eight users, whose reports are files of the folder."""
        return self.start(
            *("--headless", "-u", "8", "-r", "8", "-t", seconds, "--only-summary"),
            *(
                "--csv",
                "run",
                "--html",
                "run.html",
                "--balance-json",
                "run.json",
                "--json-file",
                "locust",
                *args,
            ),
        )

    def run(self, *args: str, seconds: str = "1s") -> tuple[int, str]:
        """Return the exit status of a run, and what it said."""
        return self.end_of(self.start_run(*args, seconds=seconds))

    @staticmethod
    def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
        said, _ = process.communicate(timeout=ENDLESS_SECONDS)
        return process.returncode, said

    def found(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return found

    def requests(self) -> int:
        """Return how many locust itself has counted: its CSV is short of the last."""
        entries = json.loads((self.folder / "locust.json").read_text())
        return sum(entry["num_requests"] for entry in entries)

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def locust(tmp_path: Path) -> Iterator[Locust]:
    made = Locust(tmp_path)
    yield made
    made.end()


def check_all_told(locust: Locust, said: str, workers: int = 1) -> None:
    """JSON, CSV, page and console have what locust has counted; no worker's round is torn."""
    found = locust.found()
    turns = [each["turns"] for each in found["clones"]]
    assert sum(turns) == found["turns"] == locust.requests() > 0
    # Each worker goes round by itself, and ends in the middle of a round.
    assert found["spread"] == max(turns) - min(turns) <= workers
    with (locust.folder / "run_balance.csv").open() as file:
        assert [int(row["turns"]) for row in csv.DictReader(file)] == turns
    assert f"\n{found['turns']} turns of 4 clones: " in said
    page = (locust.folder / "run.html").read_text()
    assert page.count("glb-balance-report") == 1
    assert f">{found['turns']} turns of 4 clones: " in page
    # On a slow machine locust's own writer may find its file closed already, and say so.
    assert [each for each in said.split("Traceback")[1:] if "in stats_writer" not in each] == []


def test_a_run_is_counted_to_the_last_request(locust: Locust) -> None:
    """In each way of naming a clone, and users finish their requests."""
    status, said = locust.run(
        *("--balance-max-spread", "1", "--balance-min-jain", "0.9"), seconds="2s"
    )
    assert status == 0, said
    check_all_told(locust, said)
    seconds = [each["seconds"] for each in locust.found()["history"]]
    assert len(seconds) >= 2  # one a second, of two, and late where the machine is slow
    assert seconds == sorted(seconds)
    assert sum(locust.found()["history"][-1]["turns"].values()) == locust.found()["turns"]


def test_stats_that_are_reset_are_ours_too(locust: Locust) -> None:
    """What users did while they were spawned is forgotten, as locust forgets it."""
    status, said = locust.run("-u", "4", "-r", "4", "--reset-stats")
    assert status == 0, said
    assert locust.found()["turns"] == locust.requests() > 0


def test_one_environment_after_another(locust: Locust) -> None:
    """A program that uses locust as a library has each run counted once."""
    (locust.folder / "program.py").write_text(
        "from locustfile import Asks\n"
        "from locust import events\n"
        "from locust.env import Environment\n"
        "import gevent, glb.locust\n"
        "for _ in range(3):\n"
        "    environment = Environment(user_classes=[Asks], events=events)\n"
        "    runner = environment.create_local_runner()\n"
        "    events.init.fire(environment=environment, runner=runner, web_ui=None)\n"
        "    runner.start(2, 2)\n"
        "    gevent.sleep(0.3)\n"
        "    runner.quit()\n"
        "    assert glb.locust.MEASURE.figures().turns == environment.stats.num_requests > 0\n"
    )
    program = subprocess.run(
        [sys.executable, "program.py"],
        cwd=locust.folder,
        capture_output=True,
        text=True,
        timeout=ENDLESS_SECONDS,
        check=False,
    )
    assert program.returncode == 0, program.stderr


def test_processes_are_counted_together(locust: Locust) -> None:
    """The master waits for the last report of each worker; a gate that is missed is the run's."""
    port = str(free_port())
    status, said = locust.run(
        *("--processes", "2", "--master-bind-port", port, "--master-port", port),
        *("--max-p99", "4"),
    )
    assert status == 1
    assert "--max-p99 4 is missed by 1 ms: p99 is 5 ms" in said
    check_all_told(locust, said, workers=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_master_counts_all_and_ends_its_workers(
    locust: Locust, number: signal.Signals
) -> None:
    """The gates are judged by the whole run, up to where it came."""
    port = str(free_port())
    master = locust.start_run(
        *("--master", "--master-bind-port", port, "--expect-workers", "2"),
        *("--balance-max-spread", "2"),
        seconds="60s",
    )
    workers = [locust.start("--worker", "--master-port", port) for _ in range(2)]
    for process in workers:
        assert process.stdout is not None
        assert any(line == "begun\n" for line in process.stdout)
    master.send_signal(number)
    status, said = locust.end_of(master)
    assert [locust.end_of(process)[0] for process in workers] == [0, 0]
    assert status == 0, said
    found = locust.found()
    assert found["spread"] <= 2
    assert found["turns"] == locust.requests()


def test_an_interrupt_ends_no_request(locust: Locust) -> None:
    """The one that it comes in is finished and counted, as all are."""
    with (locust.folder / "locustfile.py").open("a") as file:
        file.write(
            "\nimport os, signal\n"
            "ask = Asks.ask\n"
            "def ask_interrupted(user):\n"
            "    Asks.tasks[:] = [ask]\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n"
            "    ask(user)\n"
            "    print('asked', flush=True)\n"
            "Asks.tasks[:] = [ask_interrupted]\n"
        )
    status, said = locust.end_of(locust.start_run("-u", "1", seconds="60s"))
    assert status == 0, said
    assert "asked\n" in said
    assert "Traceback" not in said
    assert locust.found()["turns"] == locust.requests() == 1


def test_a_second_interrupt_comes_at_once(locust: Locust) -> None:
    """So that a user that never yields can be ended."""
    with (locust.folder / "locustfile.py").open("a") as file:
        file.write(
            "\nimport os, signal\n"
            "def spin(user):\n"
            "    for _ in range(2):\n"
            "        os.kill(os.getpid(), signal.SIGINT)\n"
            "    while True:\n"
            "        pass\n"
            "Asks.tasks[:] = [spin]\n"
        )
    status, said = locust.end_of(locust.start_run("-u", "1", seconds="60s"))
    assert status == 0, said


def test_workers_that_seem_silent_at_the_end_quit_as_well(locust: Locust) -> None:
    """The master has them stop, which takes them from the list of those that get to quit."""
    with (locust.folder / "locustfile.py").open("a") as file:
        file.write(
            "\n@events.test_stopping.add_listener\n"
            "def seem_silent(environment, **_):\n"
            "    runner = environment.runner\n"
            "    if hasattr(runner, 'clients'):\n"
            "        runner.send_message('stop')\n"
            "        while len(runner.clients):\n"
            "            gevent.sleep(0.01)\n"
        )
    port = str(free_port())
    master = locust.start_run(
        *("--master", "--master-bind-port", port, "--expect-workers", "1", "--stop-timeout", "1"),
        seconds="60s",
    )
    worker = locust.start("--worker", "--master-port", port)
    assert worker.stdout is not None
    assert any(line == "begun\n" for line in worker.stdout)
    master.send_signal(signal.SIGINT)
    status, said = locust.end_of(master)
    assert locust.end_of(worker)[0] == 0
    assert status == 0, said
    assert locust.found()["turns"] == locust.requests()


@pytest.mark.parametrize(("ratio", "status"), [(None, 1), ("0.2", 0), ("0.01", 1)])
def test_failures_count_as_the_gate_says(tmp_path: Path, ratio: str | None, status: int) -> None:
    """Without a gate as locust has it; with one so many may fail."""
    locust = Locust(tmp_path, fails=True)
    try:
        found, said = locust.run(*(("--max-fail-ratio", ratio) if ratio else ()))
    finally:
        locust.end()
    assert found == status, said
    assert ("--max-fail-ratio 0.01 is missed by 0." in said) == (ratio == "0.01")
    balance = locust.found()
    assert balance["resets"] == sum(each["failures"] for each in balance["clones"]) > 0


def test_a_gate_has_the_last_word(locust: Locust) -> None:
    """Whatever a listener of the locustfile makes the exit status before."""
    with (locust.folder / "locustfile.py").open("a") as file:
        file.write(
            "\n@events.quitting.add_listener\n"
            "def all_is_well(environment, **_):\n    environment.process_exit_code = 0\n"
        )
    status, said = locust.run("--max-p99", "4")
    assert status == 1, said


def test_a_user_can_end_the_run(locust: Locust) -> None:
    """And is no user of its own runner's any more when that has stopped."""
    with (locust.folder / "locustfile.py").open("a") as file:
        file.write(
            "\n@task\ndef last(user):\n    user.environment.runner.quit()\n"
            "Asks.tasks.append(last)\n"
        )
    status, said = locust.end_of(locust.start_run("-u", "1", seconds="60s"))
    assert status == 0, said


def test_bad_gates_are_refused_before_anything_runs(locust: Locust) -> None:
    """By locust's parser, as other options are."""
    status, said = locust.run("--balance-min-jain", "5")
    assert status == 2
    assert "--balance-min-jain: must be a number, 0 to 1, got '5'" in said
