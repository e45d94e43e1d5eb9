"""What systemd and a pid file learn of a service."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

import glb
from glb.cli.supervisor import PidFile, Supervisor, check_pid_file
from glb.hubs import signals
from glb.net.inherited import Notifier
from glb.server import StreamServer

from ..support.helpers import ask, connect, wait_until
from ..support.upgrading import reaps
from .test_commands import Served, child, folder, write_version

__all__ = ["folder", "reaps"]  # fixtures

ME = os.getpid()


class Systemd:
    """A notify socket of the test's own."""

    def __init__(self, place: pathlib.Path) -> None:
        self.place = str(place)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.place)
        self.sock.settimeout(20)

    def hears(self) -> dict[str, str]:
        """Return the next message that is none of the watchdog's, waiting for it."""
        while (message := self.hears_all()) == {"WATCHDOG": "1"}:
            pass
        return message

    def hears_all(self) -> dict[str, str]:
        lines = self.sock.recv(4096).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def systemd(tmp_path: pathlib.Path) -> Iterator[Systemd]:
    found = Systemd(tmp_path / "notify")
    yield found
    found.sock.close()


@pytest.mark.process
@pytest.mark.usefixtures("reaps")
def test_systemd_learns_all(folder: pathlib.Path, systemd: Systemd) -> None:
    """That it serves, reloads, is replaced and ends; and that it lives, in between."""
    write_version(folder, "old")
    bind = f"unix:{folder}/s"
    args = ("serve", "versions:handle", "--bind", bind, "--pid-file", "pid")
    said = {"NOTIFY_SOCKET": systemd.place, "WATCHDOG_USEC": "100000"}
    with child("-m", "glb", *args, cwd=folder, said=said) as process:
        served = Served(process)
        ready = systemd.hears()
        assert (ready["READY"], ready["MAINPID"]) == ("1", str(process.pid))
        assert ready["STATUS"].startswith(f"serving versions:handle on {bind}")
        assert (folder / "pid").read_text() == f"{process.pid}\n"
        assert systemd.hears_all() == {"WATCHDOG": "1"}

        served.hang_up("reloaded")
        reloading = systemd.hears()
        assert reloading.pop("MONOTONIC_USEC").isdigit()
        assert reloading == {"RELOADING": "1", "STATUS": "reloading versions:handle"}
        assert systemd.hears() == ready

        write_version(folder, "new")
        process.send_signal(signal.SIGUSR2)
        assert systemd.hears()["STATUS"] == "starting a new process"
        named = systemd.hears()
        assert [*named] == ["MAINPID"]
        new = int(named["MAINPID"])
        assert systemd.hears() == {**ready, "MAINPID": str(new)}
        assert process.wait() == 0
        assert (folder / "pid").read_text() == f"{new}\n"
        assert ask(served.address) == b"new"
        assert systemd.hears_all() == {"WATCHDOG": "1"}

        os.kill(new, signal.SIGTERM)
        assert systemd.hears() == {"STOPPING": "1", "STATUS": "draining"}
        assert process.stderr is not None
        assert "stopped after 1 connections" in process.stderr.read()
    assert not (folder / "pid").exists()
    assert not (folder / "s").exists()


@pytest.mark.process
def test_systemd_learns_what_came_to_nothing(folder: pathlib.Path, systemd: Systemd) -> None:
    """It would wait for the end of a reload otherwise."""
    args = ("serve", "--bind", "127.0.0.1:0", "--admin", f"unix:{folder}/admin")
    said = {"NOTIFY_SOCKET": systemd.place}
    with child("-m", "glb", *args, cwd=folder, said=said) as process:
        served = Served(process)
        ready = systemd.hears()
        served.hang_up("nothing to reload")
        assert systemd.hears()["RELOADING"] == "1"
        assert systemd.hears() == ready
        (folder / "admin").rename(folder / "elsewhere")
        (folder / "glb.py").write_text("raise SystemExit(3)")  # in the way of a new process
        process.send_signal(signal.SIGUSR2)
        assert systemd.hears()["RELOADING"] == "1"
        status = systemd.hears()["STATUS"]
        assert re.fullmatch(
            rf"no upgrade: process \d+ .* before it was ready; process {process.pid} serves on",
            status,
        )
        assert served.end()[0] == 0
        assert systemd.hears()["STOPPING"] == "1"


def test_the_watchdog_is_fed_while_all_hubs_turn(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One hub that is stuck is enough; when it goes on, so does the word."""
    may_go, is_stuck = threading.Event(), threading.Event()
    log: list[str] = []

    def handle(_sock: Any, _peer: Any) -> None:
        if glb.current_clone() == 1:  # on the other hub
            is_stuck.set()
            may_go.wait(20)  # natively

    def ask_and_note(send: Any, _function: Any, is_gone: Any) -> Any:
        log.append("asked")
        return ask_hub(send, lambda: log.append("answered"), is_gone)

    ask_hub = signals.ask
    monkeypatch.setattr("glb.cli.supervisor.ask", ask_and_note)
    notifier = Notifier({"NOTIFY_SOCKET": systemd.place, "WATCHDOG_USEC": "4000"})
    monkeypatch.setattr(notifier, "alive", lambda: log.append("alive"))
    server = StreamServer(("127.0.0.1", 0), handle, clones=2, hubs=2)
    server.start()
    with Supervisor(notifier).watching([server]):
        wait_until(lambda: log[:3] == ["asked", "answered", "alive"])
        with connect(server.address), connect(server.address):
            wait_until(is_stuck.is_set)
            wait_until(lambda: log[-1] == "asked")
            before = [*log]
            for _ in range(20):
                gevent.sleep(0.001)
            assert log == before
            may_go.set()
            wait_until(lambda: log[-1] == "alive")
    server.stop()


def test_a_process_that_was_replaced_sends_nothing(systemd: Systemd) -> None:
    """Its words would be taken for those of the service."""
    supervisor = Supervisor(Notifier({"NOTIFY_SOCKET": systemd.place}))
    supervisor.status = "well"
    supervisor.ready()
    supervisor.replaced()
    supervisor.ready()
    supervisor.reloading("again")
    supervisor.stopping("draining")
    assert systemd.hears() == {"READY": "1", "STATUS": "well", "MAINPID": str(ME)}
    systemd.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.hears()


# -- the pid file -------------------------------------------------------------------------------


def test_a_pid_file_has_the_process(tmp_path: pathlib.Path) -> None:
    """Whole, and alone in its folder; it goes with the process."""
    path = tmp_path / "pid"
    file = PidFile(str(path))
    file.write()
    assert path.read_text() == f"{ME}\n"
    assert os.listdir(tmp_path) == ["pid"]
    file.remove()
    file.remove()
    assert os.listdir(tmp_path) == []


def test_a_successors_pid_file_stays(tmp_path: pathlib.Path) -> None:
    """It has another id by then."""
    path = tmp_path / "pid"
    file = PidFile(str(path))
    file.write()
    path.write_text("1\n")
    file.remove()
    assert path.exists()


def test_without_a_path_there_is_none() -> None:
    """Neither written nor removed."""
    file = PidFile(None)
    file.write()
    file.remove()


def test_a_pid_file_that_cant_be_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is served, with the path."""
    check_pid_file(f"{tmp_path}/pid")
    with pytest.raises(ValueError, match=r"can't write '.*/no/pid': there is no folder"):
        check_pid_file(f"{tmp_path}/no/pid")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"can't write '.*/pid': the folder .* may not be written"):
        check_pid_file(f"{tmp_path}/pid")
