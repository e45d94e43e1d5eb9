"""gunicorn itself with glb's workers: its processes, its signals, its settings."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("gunicorn")

from ..support.ports import free_port
from .processes import SHORT_STOP_SECONDS, Gunicorn, KeptAlive, Load, exchange, get, running

WORKER = "patient.Worker"
FAST = "patient.FastWorker"

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="gunicorn forks"),
]


def assert_exact_turns(port: int, processes: list[int], clones: int) -> None:
    """Have each process serve alone for a while, and look at the whole order."""
    for each in processes:
        os.kill(each, signal.SIGSTOP)
    for each in processes:
        os.kill(each, signal.SIGCONT)
        answers = [get(("127.0.0.1", port)) for _ in range(2 * clones + 1)]
        assert answers == [f"{each} {number % clones}" for number in range(len(answers))]
        os.kill(each, signal.SIGSTOP)
    for each in processes:
        os.kill(each, signal.SIGCONT)


def assert_short_stop(program: Gunicorn) -> None:
    """Idle kept-alive clients don't hold a stop up."""
    clients = [KeptAlive(program.port()) for _ in range(10)]
    assert program.stop() < SHORT_STOP_SECONDS
    assert {client.close() for client in clients} == {b""}
    assert program.process.returncode == 0


@pytest.mark.parametrize(
    ("worker", "workers", "hubs"),
    [(WORKER, 1, 2), (WORKER, 4, 1), (FAST, 1, 1), (FAST, 2, 2)],
)
def test_turns_are_exact_in_each_process(
    tmp_path: Path, worker: str, workers: int, hubs: int
) -> None:
    """With any number of processes and hubs; and idle clients don't hold the stop up."""
    options = ["-w", str(workers), "--keep-alive", "60", "-e", f"GLB_HUBS={hubs}"]
    with running(tmp_path, worker, *options, GLB_CLONES="3") as program:
        assert_exact_turns(program.port(), program.ready(workers), 3)
        assert_short_stop(program)


@pytest.mark.thorough
@pytest.mark.parametrize("worker", [WORKER, FAST])
def test_signals_lose_no_request(tmp_path: Path, worker: str) -> None:
    """HUP, TTIN, TTOU and USR2, while clients ask; and a stop of the old arbiter."""
    with running(tmp_path, worker, "-w", "2", "-e", "GLB_HUBS=2") as program:
        program.ready(2)
        load = Load(program.port())
        try:
            load.wait_for_more()
            since = program.send("SIGHUP")
            program.wait_for("Worker exiting", 2, since)
            program.ready(2, since)
            load.wait_for_more()
            since = program.send("SIGTTIN")
            program.ready(1, since)
            since = program.send("SIGTTOU")
            program.wait_for("Worker exiting", 1, since)
            load.wait_for_more()
            since = program.send("SIGUSR2")
            program.ready(2, since)
            load.wait_for_more()
            new = int(Path(f"{program.pidfile}.2").read_text())
            program.stop()
            load.wait_for_more()
        finally:
            load.end()
            if program.process.poll() is not None:
                os.kill(new, signal.SIGTERM)
        program.wait_for(r"Shutting down: Master", 2)
    assert load.failures == []
    assert len({body.split()[0] for body in load.bodies}) >= 6  # the processes, old and new


def test_a_hub_that_is_blocked_for_long_ends_its_worker(tmp_path: Path) -> None:
    """The other hub turns; but the arbiter hears nothing, and starts another worker."""
    options = ["-w", "1", "-t", "2", "-e", "GLB_HUBS=2"]
    with running(tmp_path, WORKER, *options, GLB_CLONES="2") as program:
        program.ready()
        address = ("127.0.0.1", program.port())
        first = get(address)
        with pytest.raises((AssertionError, OSError)):
            get(address, "/block/30")  # clone 1's, which is on the other hub
        program.wait_for("WORKER TIMEOUT")
        program.ready(2)
        assert get(address).split()[0] != first.split()[0]


def test_late_requests_get_a_503(tmp_path: Path) -> None:
    """The variable holds in each worker process, from gunicorn's own ``env`` setting too."""
    with running(tmp_path, WORKER, "-e", "GLB_REQUEST_TIMEOUT=0.1") as program:
        program.ready()
        reply = exchange(("127.0.0.1", program.port()), b"GET /sleep/30 HTTP/1.0\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 503 Service Unavailable")
        program.wait_for("GET /sleep/30 took longer than GLB_REQUEST_TIMEOUT, 0.1 s")


def test_what_a_fast_worker_cant_honour_ends_gunicorn_at_the_start(tmp_path: Path) -> None:
    """In one line, with the setting's name."""
    (tmp_path / "gunicorn.conf.py").write_text("def pre_request(worker, request): pass")
    with running(tmp_path, FAST) as program:
        assert program.process.wait(20) != 0
        program.wait_for("^Error: FastWorker can't do pre_request = pre_request .*Worker$")
        assert "Traceback" not in program.said


def test_a_reload_of_settings_is_checked_as_the_start_is(tmp_path: Path) -> None:
    """A worker that can't do what they say doesn't serve."""
    with running(tmp_path, FAST) as program:
        program.ready()
        file = tmp_path / "gunicorn.conf.py"
        file.write_text(file.read_text() + "\nraw_env = ['GLB_HUBS=none']\n")
        program.send("SIGHUP")
        program.wait_for("RuntimeError: GLB_HUBS must be a whole number, 1 or more, got 'none'")
        program.wait_for("Worker failed to boot")
        assert program.process.wait(20) == 3


def test_each_process_has_its_own_socket_with_reuse_port(tmp_path: Path) -> None:
    """As gunicorn's setting says; a reload under load is the arbiter's to order."""
    address = ("127.0.0.1", free_port())
    bind = f"127.0.0.1:{address[1]}"
    with running(tmp_path, WORKER, "-w", "2", "--reuse-port", bind=bind) as program:
        program.ready(2)
        assert len({get(address).split()[0] for _ in range(60)}) == 2
        assert program.stop() < SHORT_STOP_SECONDS
