"""Real runs of locust: what is counted, what is written, and the exit status."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support.bounds import ENDLESS_SECONDS
from ..support.ports import free_port

Process = subprocess.Popen[str]

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
        self.started: list[Process] = []

    def add(self, code: str) -> None:
        """Append *code* to the locustfile."""
        with (self.folder / "locustfile.py").open("a") as file:
            file.write(textwrap.dedent(code))

    def start(self, *args: str) -> Process:
        process = subprocess.Popen(
            [sys.executable, "-m", "locust", *args],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def start_run(self, *args: str, seconds: str = "1s") -> Process:
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

    def start_master(self, workers: int, *args: str) -> tuple[Process, list[Process]]:
        """Begin a long run of a master and so many *workers*; return when each has begun."""
        port = str(free_port())
        master = self.start_run(
            *("--master", "--master-bind-port", port, "--expect-workers", str(workers), *args),
            seconds="60s",
        )
        started = [self.start("--worker", "--master-port", port) for _ in range(workers)]
        for process in started:
            assert process.stdout is not None
            assert any(line == "begun\n" for line in process.stdout)
        return master, started

    def run(self, *args: str, seconds: str = "1s") -> tuple[int, str]:
        """Return the exit status of a run, and what it said."""
        return self.end_of(self.start_run(*args, seconds=seconds))

    @staticmethod
    def end_of(process: Process) -> tuple[int, str]:
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
    master, workers = locust.start_master(2, "--balance-max-spread", "2")
    master.send_signal(number)
    status, said = locust.end_of(master)
    assert [locust.end_of(process)[0] for process in workers] == [0, 0]
    assert status == 0, said
    found = locust.found()
    assert found["spread"] <= 2
    assert found["turns"] == locust.requests()


def test_an_interrupt_ends_no_request(locust: Locust) -> None:
    """The one that it comes in is finished and counted, as all are."""
    locust.add(
        """
        import os, signal
        ask = Asks.ask
        def ask_interrupted(user):
            Asks.tasks[:] = [ask]
            os.kill(os.getpid(), signal.SIGINT)
            ask(user)
            print('asked', flush=True)
        Asks.tasks[:] = [ask_interrupted]
        """
    )
    status, said = locust.run("-u", "1", seconds="60s")
    assert status == 0, said
    assert "asked\n" in said
    assert "Traceback" not in said
    assert locust.found()["turns"] == locust.requests() == 1


def test_a_second_interrupt_comes_at_once(locust: Locust) -> None:
    """So that a user that never yields can be ended."""
    locust.add(
        """
        import os, signal
        def spin(user):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            while True:
                pass
        Asks.tasks[:] = [spin]
        """
    )
    status, said = locust.run("-u", "1", seconds="60s")
    assert status == 0, said


def test_workers_that_seem_silent_at_the_end_quit_as_well(locust: Locust) -> None:
    """The master has them stop, which takes them from the list of those that get to quit."""
    locust.add(
        """
        @events.test_stopping.add_listener
        def seem_silent(environment, **_):
            runner = environment.runner
            if hasattr(runner, 'clients'):
                runner.send_message('stop')
                while len(runner.clients):
                    gevent.sleep(0.01)
        """
    )
    master, (worker,) = locust.start_master(1, "--stop-timeout", "1")
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
    locust.add(
        """
        @events.quitting.add_listener
        def all_is_well(environment, **_):
            environment.process_exit_code = 0
        """
    )
    status, said = locust.run("--max-p99", "4")
    assert status == 1, said


def test_a_user_can_end_the_run(locust: Locust) -> None:
    """And is no user of its own runner's any more when that has stopped."""
    locust.add(
        """
        @task
        def last(user):
            user.environment.runner.quit()
        Asks.tasks.append(last)
        """
    )
    status, said = locust.run("-u", "1", seconds="60s")
    assert status == 0, said


def test_bad_gates_are_refused_before_anything_runs(locust: Locust) -> None:
    """By locust's parser, as other options are."""
    status, said = locust.run("--balance-min-jain", "5")
    assert status == 2
    assert "--balance-min-jain: must be a number, 0 to 1, got '5'" in said
