"""What runs on the hosts: `glb serve` and the balancer, with the files of docs/many-machines.md."""

from __future__ import annotations

import itertools
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.frame.process import ROOT, Process
from loadtests.lossless.stage import Serving

from .network import FOLDER, Host, set_up

PAGE: Final = ROOT / "docs" / "many-machines.md"

#: The balancer's address. It runs beside the bridge, in the run's own namespace.
FRONT: Final = "10.0.0.2"

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


def fetch(port: int, asks: str) -> str:
    """Return what is said at *port* until the end; "" if nothing listens yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            sock.sendall(asks.encode())
            return sock.makefile().read()
    except OSError:
        return ""


@dataclass(frozen=True)
class Kind:
    """What hosts serve by a *file* of the page's, and balancers have as a *backend*, in *front*."""

    backend: str
    file: str
    front: str


WEB: Final = Kind("web", "glb.toml", f"http://{FRONT}:80")
STREAM: Final = Kind("stream", "stream.toml", f"tcp://{FRONT}:7000")


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


class Site:
    """Three hosts that serve, with *changes* of their files; *balancer*; three hosts of clients."""

    def __init__(self, balancer: Balancer, changes: Mapping[str, str], is_quick: bool) -> None:
        set_up(FRONT)
        served = "from loadtests.target import echo as handle, http as application\n"
        (FOLDER / "app.py").write_text(served)
        self.balancer: Final = balancer
        self.is_quick: Final = is_quick
        self.webs: Final = [Host(f"web{number}", f"10.0.0.1{number}") for number in (1, 2, 3)]
        self.loads: Final = [Host(f"load{number}", f"10.0.0.2{number}") for number in range(3)]
        self._changes: Final = changes
        self._services: Final[dict[tuple[Kind, Host], Serving]] = {}
        for kind, host in itertools.product(balancer.kinds, self.webs):
            self._start(kind, host)
        changed = {**balancer.changes, **(balancer.quick if is_quick else {})}
        self._front: Final = Process(
            [*balancer.command, str(write(balancer.file, FOLDER, changed))]
        )
        for kind in balancer.kinds:
            self._wait_up(kind, *self.webs)

    def replace(self, kind: Kind, host: Host) -> tuple[int, int]:
        """Replace what serves there; return the old exit status and the new process's id."""
        status = self._services[kind, host].finish()
        self._start(kind, host)
        self._wait_up(kind, host)
        return status, self._services[kind, host].pid

    def _start(self, kind: Kind, host: Host) -> None:
        folder = FOLDER / f"{host.name}-{kind.backend}"
        folder.mkdir(exist_ok=True)
        config = write(kind.file, folder, self._changes)
        self._services[kind, host] = Serving(folder, "--config", config, before=host.enters)

    def _wait_up(self, kind: Kind, *hosts: Host) -> None:
        it, until = self.balancer, time.monotonic() + GIVE_UP_SECONDS
        lines = [it.up.format(kind.backend, host.name, host.address) for host in hosts]
        while True:
            said = fetch(it.admin, it.asks)
            if all(re.search(line, said, re.MULTILINE) for line in lines):
                return
            if not self._front.is_running() or time.monotonic() > until:
                raise RuntimeError(f"{lines} are not up: {self._front.last_words()}")
            time.sleep(0.02)


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
