"""What a process was started with is found, and its supervisor learns how it is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glb.net.inherited import InheritedSocket, Notifier, take_sockets

ME = str(os.getpid())


@pytest.fixture
def three() -> Iterator[socket.socket]:
    """Descriptors 3 and 4 lead to a listening socket while a child process starts."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


# -- sockets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["web:admin", None])
def test_what_systemd_hands_over_is_found(names: str | None, three: socket.socket) -> None:
    """By number and name; children of the process don't see it."""
    program = (
        "import os, sys\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from glb.net.inherited import take_sockets\n"
        "found = take_sockets()\n"
        "print([tuple(each) for each in found], [os.get_inheritable(each[1]) for each in found])\n"
        "print(take_sockets(), sorted(key for key in os.environ if key.startswith('LISTEN')))\n"
    )
    environ = {**os.environ, "LISTEN_FDS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    if names is not None:
        environ["LISTEN_FDNAMES"] = names
    shell = f'exec "$0" -c "$1" 3<&{three.fileno()} 4<&{three.fileno()}'
    done = subprocess.run(
        ["/bin/bash", "-c", shell, sys.executable, program],
        env=environ,
        pass_fds=[three.fileno()],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    expected = [("web", 3), ("admin", 4)] if names else [("", 3), ("", 4)]
    assert done.stdout == f"{expected} [False, False]\n[] []\n"


def test_sockets_of_another_process_are_not_taken() -> None:
    """A child of the one that got them sees what was said, and has other descriptors there."""
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "web", "HOME": "/"}
    assert take_sockets(environ) == []
    assert environ == {"HOME": "/"}


def test_einhorns_sockets_are_found(three: socket.socket) -> None:
    """Each has a variable of its own."""
    number = os.dup(three.fileno())
    environ = {"EINHORN_FD_COUNT": "1", "EINHORN_FD_0": str(number)}
    os.set_inheritable(number, True)
    assert take_sockets(environ) == [InheritedSocket("", number)]
    assert environ == {}
    assert not os.get_inheritable(number)
    os.close(number)


@pytest.mark.parametrize(
    ("environ", "error"),
    [
        ({"LISTEN_PID": ME, "LISTEN_FDS": "x"}, "LISTEN_FDS must be a number, got 'x'"),
        ({"LISTEN_PID": ME}, "LISTEN_FDS must be a number, got ''"),
        ({"LISTEN_PID": "-1", "LISTEN_FDS": "1"}, "LISTEN_PID must be a number, got '-1'"),
        ({"LISTEN_FDS": "1"}, "LISTEN_PID must be a number, got ''"),
        (
            {"LISTEN_PID": ME, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a:b"},
            "LISTEN_FDNAMES has 2 names for 1 sockets",
        ),
        ({"EINHORN_FD_COUNT": "1"}, "EINHORN_FD_0 must be a number, got ''"),
        (
            {"EINHORN_FD_COUNT": "1", "EINHORN_FD_0": "99999"},
            "descriptor 99999 was to be a socket: Bad file descriptor",
        ),
    ],
)
def test_what_is_said_wrong_is_refused(environ: dict[str, str], error: str) -> None:
    """With the name and the value in the error."""
    with pytest.raises(ValueError, match=error):
        take_sockets(environ)


# -- words --------------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """Its notifications arrive here."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify") if request.param == "path" else f"\0glb-test-{ME}")
        sock.settimeout(10)
        yield sock


def path_of(systemd: socket.socket) -> str:
    name = systemd.getsockname()
    return name if isinstance(name, str) else "@" + name[1:].decode()


def test_each_word_is_one_message(systemd: socket.socket) -> None:
    """A reload says when it began, so that systemd knows which `ready` ends it."""
    notifier = Notifier({"NOTIFY_SOCKET": path_of(systemd)})
    notifier.ready("4 clones\non :8000")
    assert systemd.recv(1000).decode() == f"READY=1\nSTATUS=4 clones on :8000\nMAINPID={ME}"
    notifier.reloading("again")
    kind, time, status = systemd.recv(1000).decode().split("\n")
    assert (kind, status) == ("RELOADING=1", "STATUS=again")
    name, _, value = time.partition("=")
    assert name == "MONOTONIC_USEC"
    assert int(value) > 0
    notifier.stopping("draining")
    assert systemd.recv(1000) == b"STOPPING=1\nSTATUS=draining"
    notifier.alive()
    assert systemd.recv(1000) == b"WATCHDOG=1"


def test_without_a_socket_nothing_is_sent(tmp_path: Path) -> None:
    """One that is gone is no error, either."""
    assert not Notifier({}).send(READY=1)
    assert not Notifier({"NOTIFY_SOCKET": f"{tmp_path}/gone"}).send(READY=1)
    assert not Notifier({"NOTIFY_SOCKET": ""}).send(READY=1)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": ME}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(
    environ: dict[str, str], seconds: float | None
) -> None:
    """If it is this process that it asks."""
    assert Notifier({"NOTIFY_SOCKET": "/x", **environ}).watchdog_seconds == seconds
    assert Notifier(environ).watchdog_seconds is None
