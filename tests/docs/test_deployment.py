"""The walk of the page on deployment: Flask on four hubs behind nginx, new code, a new process."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from ..support.ports import free_port
from . import shell
from .pages import PAGES, ROOT

NGINX: Final = shutil.which("nginx")

pytestmark = [
    pytest.mark.process,
    pytest.mark.thorough,
    pytest.mark.skipif(NGINX is None, reason="needs nginx"),
    pytest.mark.skipif(importlib.util.find_spec("flask") is None, reason="needs flask"),
]

(PAGE,) = (page for page in PAGES if page.name == "docs/deployment.md")


class Walk:
    """The page's files and commands, on free ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = {each: str(free_port()) for each in ("8000", "8001", "8080", "9000", "9001")}
        self.front = self.port("8080")
        self.write("nginx.conf", PAGE.files["nginx.conf"])
        # The two processes of the walk: the first on port 8000, the next one on port 8001.
        served = [each for each in shell.glb_commands(PAGE) if each[1] == "serve"]
        self.commands = [
            next(each for each in served if f"127.0.0.1:{port}" in each) for port in (8000, 8001)
        ]

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(self._on_free_ports(text))

    def write_version(self, version: str) -> None:
        self.write("app.py", PAGE.files["app.py"].replace('"one"', f'"{version}"'))

    def _on_free_ports(self, text: str) -> str:
        return re.sub(r":(80\d\d|90\d\d)\b", lambda found: f":{self._ports[found[1]]}", text)

    def port(self, wanted: str) -> int:
        return int(self._ports[wanted])

    @contextlib.contextmanager
    def started(self, args: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [self._on_free_ports(each) for each in args]
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                yield process
            finally:
                process.terminate()  # nginx ends its worker then
                try:
                    process.wait(10)
                finally:
                    process.kill()

    def end_successor(self) -> None:
        """End the process that SIGUSR2 has started: it is the child of one that has ended."""
        successor = int((self.folder / "app.pid").read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(successor, signal.SIGTERM)
        wait_for(lambda: not (self.folder / "app.pid").exists())


def ask(port: int, path: str = "/") -> str:
    """Return the status of a reply, and how it begins; or the error."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        client.request("GET", path)
        reply = client.getresponse()
        return f"{reply.status} {reply.read().decode().partition(',')[0].strip()}"
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        client.close()


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.02)


def test_the_walk_of_the_page_loses_nothing(tmp_path: Path) -> None:
    """New code by SIGHUP, a new process on the second port, on the first again, and by SIGUSR2."""
    walk = Walk(tmp_path)
    replies: Counter[str] = Counter()
    is_over = threading.Event()

    def load() -> None:
        while not is_over.wait(0.005):
            replies[ask(walk.front)] += 1

    python = [sys.executable, "-m"]
    walk.write_version("one")
    nginx = [str(NGINX), "-p", ".", "-c", "nginx.conf", "-g", "daemon off;"]
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(walk.started([*python, *walk.commands[0]]))
        wait_for(lambda: ask(walk.port("9000"), "/readyz").startswith("200"))
        stack.enter_context(walk.started(nginx))
        wait_for(lambda: ask(walk.front) == "200 version one")
        assert ask(walk.port("9000"), "/metrics").startswith("200 # HELP")
        thread = threading.Thread(target=load)
        thread.start()
        stack.callback(thread.join)
        stack.callback(is_over.set)
        wait_for(lambda: replies["200 version one"] > 0)
        walk.write_version("two")
        first.send_signal(signal.SIGHUP)
        wait_for(lambda: replies["200 version two"] > 0)
        walk.write_version("three")
        second = stack.enter_context(walk.started([*python, *walk.commands[1]]))
        wait_for(lambda: ask(walk.port("9001"), "/readyz").startswith("200"))
        first.terminate()
        assert first.wait(30) == 0
        wait_for(lambda: replies["200 version three"] > 0)
        walk.write_version("four")
        third = stack.enter_context(
            walk.started([*python, *walk.commands[0], "--pid-file", "app.pid"])
        )
        wait_for(lambda: ask(walk.port("9000"), "/readyz").startswith("200"))
        second.terminate()
        assert second.wait(30) == 0
        wait_for(lambda: replies["200 version four"] > 0)
        walk.write_version("five")
        stack.callback(walk.end_successor)
        third.send_signal(signal.SIGUSR2)
        assert third.wait(30) == 0
        wait_for(lambda: replies["200 version five"] > 0)
        is_over.set()
        thread.join()
    versions = ("one", "two", "three", "four", "five")
    assert {*replies} == {f"200 version {each}" for each in versions}
