"""gunicorn itself, with its arbiter and its worker processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gunicorn.config

ROOT = Path(__file__).parents[2]

#: Not ``-m gunicorn``: with that, its own USR2 starts it from the wrong folder.
SCRIPT = "from gunicorn.app.wsgiapp import run\nrun()\n"

#: A machine that is busy with other tests passes no hub over.
WORKERS = """
import glb.gunicorn

class Patient:
    def server_options(self):
        return {**super().server_options(), "patience": 30.0}

class Worker(Patient, glb.gunicorn.Worker):
    pass

class FastWorker(Patient, glb.gunicorn.FastWorker):
    pass
"""

APPLICATION = """
import glb, os, time

def application(environ, start_response):
    name, _, value = environ["PATH_INFO"][1:].partition("/")
    if name == "sleep":
        time.sleep(float(value))
    if name == "block":
        import gevent.monkey
        gevent.monkey.get_original("time", "sleep")(float(value))
    clone = glb.current_clone()
    body = f"{os.getpid()} {-1 if clone is None else int(clone)}"
    if name == "environ":
        body = environ.get(value, "")
    body = body.encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

#: An end that idle clients hold up takes gunicorn's 30 s. With nothing else running, it is over in
#: less than one.
SHORT_STOP_SECONDS = 10

#: When a worker says that it boots, it may still lose a signal.
SETTINGS = """
def post_worker_init(worker):
    worker.log.info("ready %s", worker.pid)
"""


class Gunicorn:
    """One ``gunicorn``, and what it says."""

    def __init__(self, folder: Path, worker: str, options: list[str], env: dict[str, str]) -> None:
        (folder / "run.py").write_text(SCRIPT)
        files = {"program.py": APPLICATION, "patient.py": WORKERS, "gunicorn.conf.py": SETTINGS}
        for name, text in files.items():
            if not (folder / name).exists():
                (folder / name).write_text(text)
        self.folder = folder
        self.pidfile = folder / "pid"
        command = [sys.executable, "run.py", "-k", worker, "-p", str(self.pidfile), *options]
        if hasattr(gunicorn.config, "ControlSocketDisable"):
            command.append("--no-control-socket")
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [*command, "program:application"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **env},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                with self._changed:
                    self.lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self.lines.append("")  # the end
            self._changed.notify_all()

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str, count: int = 1, since: int = 0) -> list[str]:
        """Return the lines with *pattern*, once there are *count* of them."""
        end = time.monotonic() + 30
        with self._changed:
            while True:
                found = [line for line in self.lines[since:] if re.search(pattern, line)]
                if len(found) >= count:
                    return found
                left = end - time.monotonic()
                assert left > 0 and self.lines[-1:] != [""], f"no {pattern!r} in:\n{self.said}"
                self._changed.wait(left)

    def ready(self, count: int = 1, since: int = 0) -> list[int]:
        """Return the ids of *count* worker processes, once they serve."""
        return [int(line.split()[-1]) for line in self.wait_for(r" ready \d+$", count, since)]

    def port(self) -> int:
        (line, *_) = self.wait_for("Listening at: ")
        found = re.search(r"://127\.0\.0\.1:(\d+)", line)
        assert found is not None
        return int(found[1])

    def send(self, name: str) -> int:
        """Send the arbiter a signal; return how many lines it had said before."""
        before = len(self.lines)
        self.process.send_signal(getattr(signal, name))
        return before

    def stop(self) -> float:
        """End it, and return how long that took."""
        began = time.monotonic()
        self.process.terminate()
        self.process.wait(30)
        return time.monotonic() - began

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join()


@contextlib.contextmanager
def running(
    folder: Path, worker: str, *options: str, bind: str = "127.0.0.1:0", **env: str
) -> Iterator[Gunicorn]:
    """Run gunicorn in *folder*, with *env* in its environment; end it afterwards."""
    program = Gunicorn(folder, worker, ["-b", bind, *options], env)
    try:
        yield program
    finally:
        program.close()


def exchange(address: Any, request: bytes, wrap: Any = None) -> bytes:
    """Send *request* on a connection of its own, and return all that comes."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(20)
        sock.connect(address)
        client = sock if wrap is None else wrap(sock)
        with client:
            client.sendall(request)
            parts = []
            # After a reply by TLS on a Unix socket, some versions of OpenSSL answer a close.
            with contextlib.suppress(BrokenPipeError):
                while data := client.recv(65536):
                    parts.append(data)
    return b"".join(parts)


def get(address: Any, path: str = "/", *fields: str, wrap: Any = None) -> str:
    """Return the reply's body."""
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *fields, "", ""]
    reply = exchange(address, "\r\n".join(lines).encode(), wrap)
    assert reply.startswith(b"HTTP/1.1 200 OK"), reply
    return reply.partition(b"\r\n\r\n")[2].decode()


class KeptAlive:
    """A connection that stays open after its first reply."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while not re.search(rb"\r\n\r\n\d+ -?\d+", data):
            more = self.sock.recv(1000)
            assert more, data
            data += more
        assert b"Connection: close" not in data

    def close(self) -> bytes:
        """Return what came since the reply, until the server's end."""
        with self.sock:
            return self.sock.recv(1000)


class Load:
    """Clients that ask again and again, each time on a new connection; it counts what they got."""

    def __init__(self, port: int, clients: int = 4) -> None:
        self._port = port
        self._is_over = threading.Event()
        self.bodies: list[str] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._is_over.is_set():
            try:
                self.bodies.append(get(("127.0.0.1", self._port), "/sleep/0.005"))
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))

    def wait_for_more(self, count: int = 20) -> None:
        """Return when *count* more requests were answered."""
        wanted = len(self.bodies) + count
        end = time.monotonic() + 30
        while len(self.bodies) < wanted:
            assert time.monotonic() < end, self.failures
            time.sleep(0.005)

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
