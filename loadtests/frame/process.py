"""A contender, the CPUs it runs on, and a server process of one."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psutil

from loadtests.bench.servers.job import BACKLOG, REPLY, Job

__all__ = ["START_MAX_SECONDS", "Contender", "Cpus", "Server", "pinned"]

#: How long a server may take until it listens, in seconds.
START_MAX_SECONDS: Final = 20


@dataclass(frozen=True)
class Contender:
    """A server that does the job.

    *program* is a function of `servers`, ``None`` for the C loop; *number* of clones or
    servers it is started with, *options* are the program's other arguments. What it has in the
    order pass are as many *places*, 0 if the question makes no sense. It *needs* a module that
    may not be installed. Over HTTP, connections are kept alive if *is_kept*.
    """

    name: str
    title: str
    program: str | None
    number: int = 1
    places: int = 0
    needs: str | None = None
    is_http: bool = False
    is_kept: bool = False
    is_idle_measured: bool = False
    options: tuple[str, ...] = ()

    def is_installed(self) -> bool:
        return self.needs is None or importlib.util.find_spec(self.needs) is not None


@dataclass(frozen=True)
class Cpus:
    """Which CPUs the servers run on, and which the client: apart, if there are two."""

    server: frozenset[int]
    client: frozenset[int]

    @classmethod
    def available(cls, *, is_shared: bool = False) -> Cpus:
        """Return those of this process; both sides have them all, if it *is_shared*."""
        every = sorted(os.sched_getaffinity(0))
        if is_shared:
            return cls(frozenset(every), frozenset(every))
        # The last for the servers: the first is where interrupts tend to go.
        return cls(frozenset(every[-1:]), frozenset(every[:-1] or every))

    def describe(self) -> str:
        server, client = (", ".join(map(str, sorted(some))) for some in (self.server, self.client))
        return f"servers on CPU {server}, client on CPU {client}"


@contextmanager
def pinned(cpus: frozenset[int]) -> Iterator[None]:
    """Let what is started here, and its threads and children, run on *cpus* alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """A server process of *contender*, which listens on *port*. Use it in a ``with``."""

    def __init__(
        self, contender: Contender, c_server: pathlib.Path, cpus: Cpus, job: Job = Job.REPLY
    ) -> None:
        self.contender = contender
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        if contender.program is None:
            command = [str(c_server), str(BACKLOG), REPLY.decode()]
        else:
            command = [sys.executable, "-m", "loadtests.bench.serve"]
            command += [contender.program, job.value, str(contender.number), *contender.options]
        with pinned(cpus.server):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                text=True,
            )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_MAX_SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if not line.strip().isdigit():
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            words = self.last_words()
            self._complaints.close()
            raise RuntimeError(f"did not start: {words}")
        self.port = int(line)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def pids(self) -> list[int]:
        """Return the ids of the process and its workers."""
        process = psutil.Process(self._process.pid)
        return [process.pid, *(child.pid for child in process.children(recursive=True))]

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads and workers until now."""
        # The process's clock, in ns: see clock_getcpuclockid(3). The times in /proc, which
        # psutil reads, are in ticks of 10 ms.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids())

    def memory_kib(self) -> float:
        """Return the memory that would be free without it (USS)."""
        return sum(psutil.Process(pid).memory_full_info().uss for pid in self.pids()) / 1024

    def last_words(self) -> str:
        """Return the last line that it wrote to its standard error, if any."""
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def stop(self) -> None:
        """End the process and its workers. Twice is once."""
        if self._process.returncode is not None:
            return
        for pid in reversed(self.pids()):  # workers first: they have no parent afterwards
            psutil.Process(pid).kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._complaints.close()
