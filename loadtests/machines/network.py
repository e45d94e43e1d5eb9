"""Hosts in network namespaces, joined by a bridge. The kernel removes all of it.

`enter` starts the program anew, as the first process of namespaces of its own for processes, mounts
and the network. When that process ends, however it ends, the kernel kills all others in there, and
then nothing holds the namespaces, links and mounts any more. So a run has no names and no addresses
in common with the machine or with another run, and leaves nothing behind, not even if it is killed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["FOLDER", "ROOT", "Host", "Network", "enter", "is_entered", "why_not"]

ROOT: Final = Path(__file__).parents[2]

#: Of a run, on a file system of its own.
FOLDER: Final = Path("/run/machines")

#: Set in the namespaces alone.
_ENTERED: Final = "GLB_MACHINES_ENTERED"

_UNSHARE: Final = (
    *("unshare", "--net", "--mount", "--pid"),
    *("--fork", "--kill-child", "--mount-proc"),
)

#: Root needs no more. Others are root in a user namespace, where the machine allows it.
_USERS: Final = ((), ("--user", "--map-root-user"))

#: Debian has `ip` there, and a user's PATH may not.
_PATH: Final = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

#: What a run will do, tried before.
_TRIAL: Final = """
set -e
mount -t tmpfs tmpfs /run
ip netns add host
ip link add switch type bridge
ip link add port type veth peer name eth0 netns host
ip netns exec host true
"""


def is_entered() -> bool:
    """Return True in the namespaces."""
    return _ENTERED in os.environ


def why_not() -> str | None:
    """Return why there can be no hosts on this machine; ``None`` if there can."""
    return _command()[1]


def enter(arguments: Sequence[str]) -> None:
    """Start Python with *arguments* in namespaces of its own, in place of this program.

    Raises:
        RuntimeError: This machine doesn't allow it; says why.
    """
    command, reason = _command()
    if reason is not None:
        raise RuntimeError(reason)
    environ = {**os.environ, "PATH": _PATH, _ENTERED: "1"}
    program = [*command, sys.executable, *arguments]
    sys.stdout.flush()
    os.execvpe(program[0], program, environ)


def _command() -> tuple[list[str], str | None]:
    """Return the command that unshares, and why there is none."""
    if not sys.platform.startswith("linux"):
        return [], f"network namespaces are Linux's, and this is {sys.platform}"
    for needed in ("unshare", "ip", "mount"):
        if shutil.which(needed, path=_PATH) is None:
            return [], f"needs the program {needed!r} (Debian's util-linux, iproute2)"
    said = ""
    for user in _USERS:
        command = [*_UNSHARE, *user]
        tried = subprocess.run(
            [*command, "sh", "-c", _TRIAL],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": _PATH},
            timeout=30,
            check=False,
        )
        if tried.returncode == 0:
            return command, None
        said = (tried.stderr.strip().splitlines() or [f"status {tried.returncode}"])[0]
    return [], f"this machine doesn't allow network namespaces: {said}"


class Network:
    """A bridge at which hosts are. This process is at it too, as 10.0.0.1. Use it in a ``with``."""

    ADDRESS: Final = "10.0.0.1"

    def __init__(self) -> None:
        self._hosts: Final[list[Host]] = []
        assert is_entered(), "the machine's own network stays as it is"
        _run("mount", "-t", "tmpfs", "tmpfs", "/run")
        FOLDER.mkdir()
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "switch", "type", "bridge")
        _run("ip", "addr", "add", f"{self.ADDRESS}/24", "dev", "switch")
        _run("ip", "link", "set", "switch", "up")

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_exc: object) -> None:
        """End the processes of all hosts. What they are in is removed with this process."""
        for host in self._hosts:
            host.end()

    def host(self, name: str, address: str) -> Host:
        """Return a host that has just been plugged in."""
        _run("ip", "netns", "add", name)
        cable = ("ip", "link", "add", f"port-{name}", "type", "veth")
        _run(*cable, "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", f"port-{name}", "master", "switch", "up")
        _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _run("ip", "-n", name, "link", "set", link, "up")
        host = Host(name, address)
        self._hosts.append(host)
        return host


class Host:
    """A host: its processes, and connections from it."""

    def __init__(self, name: str, address: str) -> None:
        self.name: Final = name
        self.address: Final = address
        #: What its processes wrote, but to pipes.
        self.said: Final = FOLDER / f"{name}.said"
        self._processes: Final[list[subprocess.Popen[bytes]]] = []

    def start(
        self,
        *command: str,
        cwd: Path = ROOT,
        environ: Mapping[str, str] | None = None,
        is_asked: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a process here. Its pid is the command's own.

        Args:
            is_asked: Its standard input and output are pipes.
        """
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        pipe = subprocess.PIPE if is_asked else None
        with self.said.open("ab") as said:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": path, "HOST": self.name, **(environ or {})},
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or said,
                stderr=said,
            )
        self._processes.append(process)
        return process

    def end(self) -> None:
        """End all its processes. Twice is once."""
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def connect(self, port: int) -> socket.socket:
        """Return a connection to a port of its own loopback."""
        found: list[Any] = []
        thread = threading.Thread(target=self._connect, args=(port, found))
        thread.start()
        thread.join()
        if isinstance(found[0], OSError):
            raise found[0]
        sock: socket.socket = found[0]
        return sock

    def _connect(self, port: int, found: list[Any]) -> None:
        # In a thread of its own, which moves to the host; a socket stays where it was made.
        # Python has `os.setns` since 3.12.
        try:
            with open(f"/run/netns/{self.name}", "rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            found.append(socket.create_connection(("127.0.0.1", port), timeout=10))
        except OSError as error:
            found.append(error)

    def last_words(self, lines: int = 20) -> str:
        """Return the last that its processes wrote."""
        text = self.said.read_text(errors="replace") if self.said.exists() else ""
        return "\n".join([f"{self.name} said:", *text.splitlines()[-lines:]])


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
