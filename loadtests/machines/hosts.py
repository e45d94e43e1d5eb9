"""What runs on the hosts: `glb serve` and the balancer, with the files of docs/many-machines.md."""

from __future__ import annotations

import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.frame.process import ROOT

from .network import FOLDER, Host, Program

PAGE: Final = ROOT / "docs" / "many-machines.md"

#: How long anything may take that a run waits for, in seconds: longer than a drain of the page's.
GIVE_UP_SECONDS: Final = 60.0


def write(name: str, folder: Path, changes: Mapping[str, str]) -> Path:
    """Write the page's file *name* into *folder*, with *changes*: what is there, what a run has.

    It is the block that follows a line which ends with its name and a colon.
    """
    page = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"`{name}`:\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{PAGE.name} has no block that is {name}")
    text = found[1]
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"{PAGE.name} has no {old!r} in {name}")
        text = text.replace(old, new)
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def wait_for(what: str, program: Program, holds: Callable[[], bool]) -> None:
    """Wait until it *holds*.

    Raises:
        RuntimeError: The *program* has ended, or it takes too long.
    """
    until = time.monotonic() + GIVE_UP_SECONDS
    while not holds():
        if not program.is_running() or time.monotonic() > until:
            raise RuntimeError(f"{what}: not in time: {program.complaints()[-20:]}")
        time.sleep(0.02)


def fetch(address: str, port: int, asks: str) -> str:
    """Return what is said there until the end; "" if nothing listens yet."""
    try:
        with socket.create_connection((address, port), timeout=5) as sock:
            sock.sendall(asks.encode())
            return sock.makefile().read()
    except OSError:
        return ""


@dataclass(frozen=True)
class Kind:
    """What hosts serve, and balancers have as a *backend*: the page's file, where `/readyz` is."""

    backend: str
    file: str
    admin: int


WEB: Final = Kind("web", "glb.toml", 9000)
STREAM: Final = Kind("stream", "stream.toml", 9001)


class Service:
    """A process of ``glb serve --config`` with the page's file, but for *changes*."""

    def __init__(self, kind: Kind, host: Host, changes: Mapping[str, str]) -> None:
        self.host: Final = host
        self._admin: Final = kind.admin
        self._folder: Final = FOLDER / f"{host.name}-{kind.backend}"
        self._folder.mkdir()
        (self._folder / "app.py").write_text("from loadtests.machines.application import *\n")
        self._file: Final = write(kind.file, self._folder, changes)
        self.program = self._start()

    def _start(self) -> Program:
        glb = (sys.executable, "-m", "glb", "serve", "--config", str(self._file))
        return self.host.start(*glb, cwd=self._folder)

    def wait_ready(self) -> None:
        def is_ready() -> bool:
            return " 200 " in fetch(self.host.address, self._admin, "GET /readyz HTTP/1.0\r\n\r\n")

        wait_for(f"/readyz of {self.host.name}", self.program, is_ready)

    def replace(self) -> int:
        """Have it drain, and start another; return its exit status."""
        self.program.signal(signal.SIGTERM)
        status = self.program.status(GIVE_UP_SECONDS)
        self.program = self._start()
        self.wait_ready()
        return status


@dataclass(frozen=True)
class Balancer:
    """A load balancer.

    Attributes:
        changes: Of the page's file: nothing may be tried again, or a loss isn't seen.
        quick: What a quick run changes beside.
        kinds: What its file has backends for.
        asks: What to send to its *admin* port.
        up: Matches what is said there of a host that is up, and gets its whole share, if it
            *is_exact*; and otherwise before slow start.
        is_exact: It goes round the hosts in exact turn.
    """

    command: tuple[str, ...]
    file: str
    changes: Mapping[str, str]
    quick: Mapping[str, str]
    kinds: Sequence[Kind]
    admin: int
    asks: str
    up: str
    is_exact: bool

    def start(self, is_quick: bool) -> Program:
        changes = {**self.changes, **(self.quick if is_quick else {})}
        return Program(*self.command, str(write(self.file, FOLDER, changes)))

    def wait_up(self, program: Program, kind: Kind, *hosts: Host) -> None:
        """Wait until each of *hosts* is *up*."""

        def are_up() -> bool:
            said = fetch("127.0.0.1", self.admin, self.asks)
            lines = [self.up.format(kind.backend, host.name, host.address) for host in hosts]
            return all(re.search(line, said, re.MULTILINE) for line in lines)

        names = ", ".join(host.name for host in hosts)
        wait_for(f"{self.command[0]}: {names} of {kind.backend} up", program, are_up)


HAPROXY: Final = Balancer(
    ("haproxy", "-db", "-f"),
    "haproxy.cfg",
    changes={"retries 2": "retries 0"},
    quick={"inter 1s": "inter 100ms", "slowstart 10s": "slowstart 500ms"},
    kinds=(WEB, STREAM),
    admin=9999,
    asks="show stat\n",
    up="^{0},{1},.*,UP,100,",
    is_exact=True,
)

ENVOY: Final = Balancer(
    ("envoy", "--concurrency", "2", "--log-level", "error", "--base-id", "1", "-c"),
    "envoy.yaml",
    changes={"num_retries: 2": "num_retries: 0"},
    quick={
        "interval: 1s": "interval: 0.1s",
        "window: 10s": "window: 0.5s",
        # What checks find becomes known a second later, unless it is 0.
        "{value: 0}}": "{value: 0}, update_merge_window: 0s}",
    },
    kinds=(WEB,),
    admin=9901,
    asks="GET /clusters HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    up="^{0}::{2}:8000::health_flags::healthy",
    is_exact=False,  # each of its threads goes round by itself
)

BALANCERS: Final = {"haproxy": HAPROXY, "envoy": ENVOY}
