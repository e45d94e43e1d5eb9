"""Two processes behind HAProxy are replaced one after the other, and no client sees it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..support.ports import free_port
from .test_haproxy_header import HAPROXY

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.process,
    pytest.mark.thorough,
    pytest.mark.skipif(HAPROXY is None, reason="needs haproxy"),
]

CONFIG = """
global
  log stdout local0
defaults
  mode http
  retries 0
  timeout connect 5s
  timeout client 20s
  timeout server 20s
frontend front
  bind 127.0.0.1:{front}
  default_backend back
backend back
  option httpchk GET /readyz
  http-check expect status 200
  default-server inter 100ms fall 2 rise 1
  server a 127.0.0.1:{a} check port {admin_a}
  server b 127.0.0.1:{b} check port {admin_b}
"""

APPLICATION = """
import time
def application(environ, start_response):
    time.sleep(0.005)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


class Process:
    """One ``glb serve``, which can be replaced by another one at the same address."""

    def __init__(self, folder: Path, delay: str) -> None:
        self.port, self.admin = free_port(), free_port()
        self._folder, self._delay = folder, delay
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        options = ["--bind", f"127.0.0.1:{self.port}", "--admin", f"127.0.0.1:{self.admin}"]
        options += ["--drain-delay", self._delay, "--drain-timeout", "10"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "glb", "serve", "program:application", *options],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: status(self.admin, "/readyz") == 200)

    def replace(self) -> None:
        self.stop()
        self.start()

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)


def status(port: int, path: str) -> int | None:
    """Return the status of a reply; ``None`` if there is none."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        client.request("GET", path, headers={"Connection": "close"})
        return client.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        client.close()


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.02)


@contextlib.contextmanager
def deployed(folder: Path, delay: str) -> Iterator[tuple[int, list[Process]]]:
    (folder / "program.py").write_text(APPLICATION)
    both = [Process(folder, delay) for _ in range(2)]
    front = free_port()
    config = folder / "haproxy.cfg"
    a, b = both
    config.write_text(
        CONFIG.format(front=front, a=a.port, admin_a=a.admin, b=b.port, admin_b=b.admin)
    )
    try:
        for each in both:
            each.start()
        with subprocess.Popen(
            [str(HAPROXY), "-db", "-f", str(config)], stdout=subprocess.DEVNULL
        ) as haproxy:
            try:
                wait_for(lambda: status(front, "/") == 200)
                yield front, both
            finally:
                haproxy.kill()
    finally:
        for each in both:
            each.stop(signal.SIGKILL)


def statuses_while_both_are_replaced(folder: Path, delay: str) -> Counter[int | None]:
    """Return how often clients got which status, at 200 requests a second or so."""
    found: Counter[int | None] = Counter()
    is_over = threading.Event()

    def ask(front: int) -> None:
        while not is_over.wait(0.02):
            found[status(front, "/")] += 1

    with deployed(folder, delay) as (front, both):
        threads = [threading.Thread(target=ask, args=(front,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):
                for each in both:
                    each.replace()
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
    return found


def test_no_client_sees_that_processes_are_replaced(tmp_path: Path) -> None:
    """With a delay longer than the balancer's checks take, each reply is a 200."""
    found = statuses_while_both_are_replaced(tmp_path, "1")
    assert {*found} == {200}
    assert found[200] > 100


def test_without_a_delay_clients_see_it(tmp_path: Path) -> None:
    """The balancer sends some to a process that doesn't accept any more."""
    found = statuses_while_both_are_replaced(tmp_path, "0")
    assert {*found} > {200}
