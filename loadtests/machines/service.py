"""`glb serve` on a host, which can be replaced by a new process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .network import FOLDER, Host
from .page import write

__all__ = ["GIVE_UP_SECONDS", "STREAM", "WEB", "Kind", "Service", "start_all", "wait_for"]

#: How long anything may take that a run waits for, in seconds: longer than a drain of the page's.
GIVE_UP_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Kind:
    """What the page's hosts serve, and balancers have as a *backend*.

    Attributes:
        file: The page's.
        admin: The port that has ``/readyz``.
        front: The balancer's URL for it.
    """

    backend: str
    file: str
    admin: int
    front: str


WEB: Final = Kind("web", "glb.toml", 9000, "http://{}:80")
STREAM: Final = Kind("stream", "stream.toml", 9001, "tcp://{}:7000")


def wait_for(what: str, holds: Callable[[], bool]) -> None:
    """Wait until it *holds*.

    Raises:
        TimeoutError: It takes too long.
    """
    until = time.monotonic() + GIVE_UP_SECONDS
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {GIVE_UP_SECONDS:g} s")
        time.sleep(0.02)


class Service:
    """A process of ``glb serve --config`` with the page's file, but for *changes*."""

    def __init__(self, kind: Kind, host: Host, changes: Mapping[str, str]) -> None:
        self.host: Final = host
        self._admin: Final = kind.admin
        self._folder: Final[Path] = FOLDER / f"{host.name}-{kind.backend}"
        self._folder.mkdir()
        (self._folder / "app.py").write_text("from loadtests.machines.application import *\n")
        self._file: Final = write(kind.file, self._folder, changes)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return before it is ready."""
        program = (sys.executable, "-m", "glb", "serve", "--config", str(self._file))
        self._process = self.host.start(*program, cwd=self._folder)

    def wait_ready(self) -> None:
        wait_for(f"/readyz of {self.host.name}", self._is_ready)

    def _is_ready(self) -> bool:
        assert self._process is not None
        if (status := self._process.poll()) is not None:
            raise RuntimeError(f"ended with {status}; {self.host.last_words()}")
        try:
            with socket.create_connection((self.host.address, self._admin), timeout=5) as sock:
                sock.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                return b" 200 " in sock.recv(100)
        except OSError:
            return False

    def stop(self) -> int:
        """Have it drain; return its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(GIVE_UP_SECONDS)


def start_all(kind: Kind, hosts: Sequence[Host], changes: Mapping[str, str]) -> list[Service]:
    """Return a service on each host, when all are ready."""
    services = [Service(kind, host, changes) for host in hosts]
    for service in services:
        service.start()
    for service in services:
        service.wait_ready()
    return services
