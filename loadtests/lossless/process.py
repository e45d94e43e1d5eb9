"""A process that does what it is asked for, seen from outside."""

from __future__ import annotations

import json
import os
import pathlib
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from time import monotonic
from typing import IO, Any, Final

import psutil

from loadtests.frame.process import Cpus, pinned

__all__ = ["ANSWER_SECONDS", "Client", "Process", "Server", "Worker"]

ROOT: Final = pathlib.Path(__file__).parents[2]

#: How long an answer may take that isn't known to take longer, in seconds.
ANSWER_SECONDS: Final = 30.0

#: So long a process has to end by itself, before it is killed.
END_SECONDS: Final = 10.0


class Process:
    """A process of *command* on *cpus*, and what it writes. Use it in a ``with``."""

    def __init__(self, command: Sequence[str], cpus: frozenset[int]) -> None:
        self._complaints: Final[IO[bytes]] = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        with pinned(cpus):
            self._process: Final = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                cwd=ROOT,
            )

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    def descriptors(self) -> int:
        """Return how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def rss_mib(self) -> float:
        """Return its resident memory."""
        return float(psutil.Process(self.pid).memory_info().rss / 2**20)

    def complaints(self) -> list[str]:
        """Return the lines that it wrote to its standard error until now."""
        self._complaints.seek(0)
        return self._complaints.read().decode(errors="replace").splitlines()

    def tracebacks(self) -> int:
        """Count the tracebacks among them."""
        return sum(line.startswith("Traceback ") for line in self.complaints())

    def log_lines(self) -> list[str]:
        """Return those lines that glb's log has written."""
        # Without a handler logging writes the bare message, which tells of a server first.
        return [line for line in self.complaints() if "can't accept" in line]

    def is_running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """End it, by the end of its input, or by force. Twice is once."""
        if self._complaints.closed:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already, with an order unread
        self._stop()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._complaints.close()

    def _stop(self) -> None:
        pass


class Worker(Process):
    """A process of `loadtests.lossless.worker`."""

    def __init__(self, module: str, cpus: frozenset[int]) -> None:
        super().__init__([sys.executable, "-m", f"{__package__}.worker", module], cpus)
        self._selector: Final = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._read = b""

    def ask(self, do: str, *, within: float = ANSWER_SECONDS, **what: Any) -> Any:
        """Have it *do* something, and return what it answers *within* so many seconds.

        Raises:
            RuntimeError: It doesn't.
        """
        self.order(do, **what)
        return self.answer(within)

    def order(self, do: str, **what: Any) -> None:
        """Have it *do* something. Each order has an answer, in turn."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, within: float = ANSWER_SECONDS) -> Any:
        """Return the next answer. Raises as `ask`."""
        assert self._process.stdout is not None
        deadline = monotonic() + within
        while b"\n" not in self._read:
            ready = self._selector.select(max(0.0, deadline - monotonic()))
            piece = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            if not piece:
                words = self.complaints()[-1:] or ["it said nothing"]
                what = "ended" if ready else f"didn't answer within {within:g} s"
                raise RuntimeError(f"process {self.pid} {what}: {words[0]}")
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def end(self) -> None:
        self._selector.close()
        super().end()


class Server(Worker):
    """A process of servers."""

    def __init__(self) -> None:
        super().__init__("servers", Cpus.available().server)

    def __enter__(self) -> Server:
        return self


class Client(Worker):
    """A process of clients."""

    def __init__(self) -> None:
        super().__init__("clients", Cpus.available().client)

    def __enter__(self) -> Client:
        return self
