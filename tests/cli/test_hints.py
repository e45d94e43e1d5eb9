"""`glb run` says of a program that gets nothing by it that it is so, in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket

from glb.cli import hints
from glb.cli.hints import Hints
from glb.server import StreamServer

from ..support.helpers import comes_true, wait_until

ROOT = Path(hints.__file__).parents[2]
ANY = ("127.0.0.1", 0)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watching(said: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hints]:
    monkeypatch.setattr(hints, "SHARE_SECONDS", 0.01)
    monkeypatch.setattr(sys, "argv", ["app.py", "--debug"])
    made = Hints("app.py", said.append)
    made.start()
    yield made
    made.stop()


def listening() -> socket.socket:
    made = socket.socket()
    made.bind(ANY)
    made.listen()
    return made


def test_a_program_that_shares_no_address_gets_a_hint(watching: Hints, said: list[str]) -> None:
    """Once, with all that it listens on."""
    made = [listening() for _ in range(2)]
    wait_until(lambda: bool(said))
    made.append(listening())
    watching._look()
    first = said[0]
    for each in made:
        each.close()
    where = " and ".join(f"127.0.0.1:{each}" for each in ports(first))
    assert first == (
        f"glb: no address is shared, so there are no turns: the program listens on {where}"
        " without SO_REUSEPORT, and has no gevent server"
    )
    assert len(ports(first)) == 2


def ports(line: str) -> list[str]:
    return [each.rpartition(":")[2] for each in line.split() if each.startswith("127.0.0.1:")]


def test_a_program_that_shares_an_address_gets_no_hint(watching: Hints, said: list[str]) -> None:
    """Whatever else it listens on, before or after."""
    with listening():
        assert watching._timer is not None
        server = StreamServer(ANY, lambda *_: None)
        server.start()
        with listening():
            assert not comes_true(lambda: bool(said), 0.05)
        server.stop()


def test_an_excluded_address_gets_no_hint(
    watching: Hints, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That was asked for; nor are Unix sockets, which no program opens twice."""
    monkeypatch.setattr(hints, "is_excluded", lambda _: True)
    with listening(), socket.socket(socket.AF_UNIX) as unix:
        unix.bind("")
        unix.listen()
        assert watching._timer is None
    assert said == []


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "app.py", "--debug"],
        ["/usr/bin/python3.14", "-X", "dev", "./app.py"],
        (sys.executable, "-m", "app.py"),
        [sys.executable.encode(), b"app.py"],
    ],
)
def test_a_program_that_starts_itself_again_gets_a_hint(
    command: list[str], watching: Hints, said: list[str]
) -> None:
    """By a subprocess, or in its own place; once."""
    watching.started(command)
    watching.started(command)
    (line,) = said
    assert line.startswith("glb: the program starts itself again, by '")
    assert "app.py" in line
    assert line.endswith("; that process runs without glb: turn its reloader off")


@pytest.mark.parametrize("command", [["-m", "glb"], ["/usr/local/bin/glb"]])
def test_a_reloader_that_starts_glb_again_gets_a_hint_of_its_own(
    command: list[str], watching: Hints, said: list[str]
) -> None:
    """As Flask's does: there are turns in the process that it starts."""
    watching.started([sys.executable, *command, "run", "app.py"])
    (line,) = said
    assert line.endswith("; that process runs under glb, too")


@pytest.mark.parametrize(
    "command",
    [
        "python app.py",
        [],
        [sys.executable],
        [sys.executable, "worker.py"],
        ["vim", "app.py"],
        [sys.executable, 3],
        None,
    ],
)
def test_other_processes_get_no_hint(command: object, watching: Hints, said: list[str]) -> None:
    """Whatever they are."""
    watching.started(command)
    assert said == []


def test_a_thread_that_listened_may_have_ended(watching: Hints, said: list[str]) -> None:
    """Its loop is gone, and the timer with it: what is left to say is said at the exit."""

    def listens() -> None:
        listening().close()
        gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=listens)
    thread.start()
    thread.join()
    watching._look()
    assert len(said) == 1


def test_a_socket_closed_before_the_exit_gets_no_hint(watching: Hints, said: list[str]) -> None:
    """It may have been shared: nothing is known of it any more."""
    listening().close()
    open_still = listening()
    watching._look_at_exit()
    assert len(said) == 1
    assert ports(said[0]) == [str(open_still.getsockname()[1])]
    open_still.close()


def test_subprocesses_and_exec_are_seen(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way by which a reloader starts its program; afterwards all is as it was."""
    done: list[str] = []
    monkeypatch.setattr(os, "execv", lambda *_: done.append("execv"))
    monkeypatch.setattr(os, "execve", lambda *_, **__: done.append("execve"))
    monkeypatch.setattr(subprocess.Popen, "__init__", lambda *_, **__: done.append("Popen"))
    monkeypatch.setattr(subprocess.Popen, "__del__", lambda _: None)
    before = (os.execv, os.execve, subprocess.Popen.__init__)
    command = [sys.executable, "app.py"]
    starts: list[Callable[[], object]] = [
        lambda: os.execv(sys.executable, command),
        lambda: os.execve(sys.executable, command, {}),
        lambda: os.execve(path=sys.executable, argv=command, env={}),
        lambda: subprocess.Popen(command),
    ]
    for start in starts:
        made = Hints("app.py", said.append)
        made.start()
        start()
        made.stop()
    assert done == ["execv", "execve", "execve", "Popen"]
    assert len(said) == 4
    assert (os.execv, os.execve, subprocess.Popen.__init__) == before


PROGRAM = """
import os, socket, subprocess, sys
if "AGAIN" in os.environ:
    sys.exit()
subprocess.call([sys.executable, *sys.argv], env={**os.environ, "AGAIN": "1"})
sock = socket.socket()
sock.bind(("127.0.0.1", 0))
sock.listen()
print("listens", flush=True)
sock.accept()
"""


@pytest.mark.process
def test_glb_run_says_both(tmp_path: Path) -> None:
    """On stderr, while the program goes on."""
    (tmp_path / "app.py").write_text(PROGRAM)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-m", "glb", "run", "app.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        timer = threading.Timer(30, process.kill)
        timer.start()
        try:
            assert process.stderr is not None
            assert "starts itself again" in process.stderr.readline()
            assert "no address is shared" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert process.wait() == -signal.SIGTERM
        finally:
            timer.cancel()
            timer.join()
            process.kill()
