"""``glb serve --bind fd://...``: sockets of systemd, and what is wrong with them."""

from __future__ import annotations

import contextlib
import pathlib
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from glb.accept.inherited import Inheritance
from glb.cli.binds import check_bind, open_listeners
from glb.net.inherited import InheritedSocket
from glb.upgrade import Upgrade

from ..support.helpers import ask, connect, http_get, is_refused, receive_all
from .test_commands import Served, child, serving

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd isn't installed here"
)


@contextlib.contextmanager
def handed_over(
    made: socket.socket | None,
    *args: str,
    cwd: pathlib.Path,
    pid: str = "mine",
    name: str = "web",
) -> Iterator[subprocess.Popen[str]]:
    """Run ``glb serve`` with *made* as descriptor 3."""
    said = {"LISTEN_FDS": "1", "LISTEN_PID": pid, "LISTEN_FDNAMES": name}
    # As systemd does it: the id of a process is known in it alone.
    shell = 'if [ "$LISTEN_PID" = mine ]; then LISTEN_PID=$$; fi; '
    shell += f'exec "$@" {"3<&-" if made is None else f"3<&{made.fileno()}"}'
    command = [
        "/bin/bash",
        "-c",
        shell,
        "bash",
        sys.executable,
        "-W",
        "error",
        "-m",
        "glb",
        "serve",
    ]
    fds = () if made is None else (made.fileno(),)
    with child(*args, command=command, cwd=cwd, pass_fds=fds, said=said) as process:
        yield process


def listening(place: Any) -> socket.socket:
    family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
    sock = socket.socket(family)
    sock.bind(place)
    sock.listen()
    return sock


@pytest.mark.process
@pytest.mark.parametrize("bind", [("--bind", "fd://3"), ("--bind", "fd://web"), ()])
def test_a_socket_of_systemd_is_served(bind: Sequence[str], tmp_path: pathlib.Path) -> None:
    """By its number, by its name, and if nothing else is said; a client may have come before."""
    with listening(("127.0.0.1", 0)) as sock, connect(sock.getsockname()) as early:
        early.sendall(b"GET / HTTP/1.0\r\n\r\n")
        with handed_over(sock, *bind, cwd=tmp_path) as process:
            served = Served(process)
            assert served.address == sock.getsockname()
            replies = [receive_all(early), *(http_get(served.address) for _ in range(3))]
            turns = [re.findall(rb"Clone (\d)", reply)[0] for reply in replies]
            assert turns == [b"0", b"1", b"2", b"3"]
            assert served.end()[0] == 0


@pytest.mark.process
def test_the_file_of_systemds_unix_socket_stays(tmp_path: pathlib.Path) -> None:
    """It is not the service's to remove, and systemd listens there still."""
    with (
        listening(str(tmp_path / "web.sock")) as sock,
        handed_over(sock, "--bind", "fd://web", cwd=tmp_path) as process,
    ):
        assert Served(process).end()[0] == 0
    assert (tmp_path / "web.sock").exists()


def unbound() -> socket.socket:
    return socket.socket()


def connected() -> socket.socket:
    first, second = socket.socketpair()
    second.close()
    return first


MAKERS: dict[str, Callable[[], socket.socket]] = {
    "listening": lambda: listening(("127.0.0.1", 0)),
    "unbound": unbound,
    "connected": connected,
}


@pytest.mark.process
@pytest.mark.parametrize(
    ("make", "bind", "pid", "reason"),
    [
        ("listening", "fd://3", "1", "no inherited socket is 'fd://3': LISTEN_PID is 1, and this"),
        (
            "listening",
            "fd://4",
            "mine",
            "no inherited socket is 'fd://4': there are fd://3 ('web')",
        ),
        (
            "listening",
            "fd://x",
            "mine",
            "no inherited socket is 'fd://x': there are fd://3 ('web')",
        ),
        ("listening", "fd://", "mine", "an inherited socket must have a number or a name, got 'fd"),
        ("none", "fd://3", "mine", "descriptor 3 ('web') was to be a socket: Bad file descriptor"),
        (
            "unbound",
            "fd://3",
            "mine",
            "descriptor 3 ('web') must be a listening socket: it doesn't",
        ),
        (
            "connected",
            "fd://3",
            "mine",
            "listening socket: it is a connection, as systemd's Accept",
        ),
        ("listening", "fd://3", "x", "LISTEN_PID must be a number, got 'x'"),
    ],
)
def test_what_is_wrong_is_one_line(
    make: str, bind: str, pid: str, reason: str, tmp_path: pathlib.Path
) -> None:
    """With status 2, before anything is served."""
    sock = None if make == "none" else MAKERS[make]()
    with (
        sock or contextlib.nullcontext(),
        handed_over(sock, "--bind", bind, cwd=tmp_path, pid=pid) as process,
    ):
        out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("glb: --bind from the command line: ")
    assert reason in err


@pytest.mark.process
def test_a_socket_that_no_bind_names_is_said(tmp_path: pathlib.Path) -> None:
    """And closed: its clients would wait for nothing."""
    with (
        listening(("127.0.0.1", 0)) as sock,
        handed_over(sock, "--bind", "127.0.0.1:0", cwd=tmp_path) as process,
    ):
        served = Served(process)
        served.read_line("descriptor 3 ('web') is inherited, and no --bind names it: closed")
        assert served.end()[0] == 0


# -- systemd's own ------------------------------------------------------------------------------


@contextlib.contextmanager
def activated(*options: str, cwd: pathlib.Path, bind: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``glb serve`` by systemd-socket-activate, when a client comes to ``web.sock``."""
    command = ["systemd-socket-activate", "-l", str(cwd / "web.sock"), *options]
    for name in ("PYTHONPATH", "COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
        command += ["-E", name]
    command += [sys.executable, "-W", "error", "-m", "glb", "serve", "--bind", bind]
    with child(*command[1:], command=[shutil.which(command[0]) or ""], cwd=cwd) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "Listening on" in line, line
        yield process


@needs_systemd
@pytest.mark.process
def test_systemd_socket_activate_starts_it(tmp_path: pathlib.Path) -> None:
    """Its first client is served."""
    with activated("--fdname=web", cwd=tmp_path, bind="fd://web") as process:
        assert b"Clone 0 " in http_get(str(tmp_path / "web.sock"))
        assert process.stderr is not None
        process.terminate()  # it has become glb
        assert process.wait() == 0
        assert "serving the built-in page on unix:" in process.stderr.read()


@needs_systemd
@pytest.mark.process
def test_a_connection_for_each_process_is_refused(tmp_path: pathlib.Path) -> None:
    """With Accept=yes a process gets a connection, and a server has no use for one."""
    with activated("--accept", cwd=tmp_path, bind="fd://3") as process:
        assert ask(str(tmp_path / "web.sock")) == b""
        assert process.stderr is not None
        while "glb: " not in (line := process.stderr.readline()):
            assert line
        assert "it is a connection, as systemd's Accept=yes hands over: say Accept=no" in line


# -- paths that are taken -----------------------------------------------------------------------


@pytest.mark.process
def test_the_file_of_a_killed_process_is_no_obstacle(tmp_path: pathlib.Path) -> None:
    """The next start removes it, and serves there."""
    bind = f"unix:{tmp_path}/app.sock"
    with serving(cwd=tmp_path, bind=bind) as served:
        served.process.kill()
        served.process.wait()
    assert (tmp_path / "app.sock").exists()
    with serving(cwd=tmp_path, bind=bind) as served:
        assert b"Clone 0 " in http_get(f"{tmp_path}/app.sock")
        assert served.end()[0] == 0
    assert not (tmp_path / "app.sock").exists()


@pytest.mark.process
@pytest.mark.parametrize(
    ("there", "reason"),
    [("live", "a server has it open"), ("file", "a plain file"), ("link", "a symbolic link")],
)
def test_what_is_in_the_way_is_one_line(there: str, reason: str, tmp_path: pathlib.Path) -> None:
    """It stays there, and the line has the path and the reason."""
    path = tmp_path / "app.sock"
    with listening(str(tmp_path / "other.sock")) as sock:
        if there == "live":
            (tmp_path / "other.sock").rename(path)
        elif there == "file":
            path.write_text("mine")
        else:
            path.symlink_to("other.sock")
        with child("-m", "glb", "serve", "--bind", f"unix:{path}", cwd=tmp_path) as process:
            out, err = process.communicate()
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.accept()
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)
    assert f"can't bind '{path}': Address already in use: {reason}" in err
    assert path.exists()


# -- binds --------------------------------------------------------------------------------------


def test_a_name_may_be_of_several_sockets() -> None:
    """A socket unit with two addresses gives both the same; each is served."""
    found = Inheritance({})
    made = [listening(("127.0.0.1", 0)) for _ in range(3)]
    addresses = [each.getsockname() for each in made]
    names = ["web", "admin", "web"]
    found._is_read = True
    found._sockets[:] = [
        InheritedSocket(name, each.detach()) for name, each in zip(names, made, strict=True)
    ]
    upgrade = Upgrade(inheritance=found)
    listeners = open_listeners(upgrade, ["fd://web", "127.0.0.1:0"], None, found)
    assert [each.address for each in listeners[:2]] == [addresses[0], addresses[2]]
    assert len(listeners) == 3
    for each in listeners:
        each.close()
    with pytest.raises(ValueError, match="no inherited socket is 'fd://other': there are fd://"):
        open_listeners(upgrade, ["127.0.0.1:0", "fd://other"], None, found)
    assert [each.name for each in found.sockets] == ["admin"]
    found.close_rest()
    assert is_refused(addresses[1])


@pytest.mark.parametrize("text", ["fd://3", "fd://web", "unix:/x", "8000"])
def test_binds_are_checked(text: str) -> None:
    """Before anything is opened."""
    check_bind(text)
