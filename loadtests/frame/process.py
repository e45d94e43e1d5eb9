"""A contender, the CPUs it runs on, and processes: any, and a server of one."""

from __future__ import annotations

import contextlib
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final

import psutil

from loadtests.bench.servers.job import BACKLOG, REPLY, Job

if TYPE_CHECKING:
    from typing_extensions import Self  # Python 3.10 has it nowhere else

#: Of the checkout, from which `loadtests` is imported.
ROOT: Final = pathlib.Path(__file__).parents[2]

#: How long a server may take until it listens, in seconds.
START_MAX_SECONDS: Final = 20


class ProcessError(RuntimeError):
    """A process has ended, or doesn't do what it should."""


@dataclass(frozen=True)
class Contender:
    """A server that does the job, or a client that is measured.

    *program* is a function of `loadtests.bench.servers`, ``None`` for the C loop; *number* of
    clones or servers it is started with, among which an order goes round; *options* are its other
    arguments. It *needs* a module that may be missing.
    """

    name: str
    title: str
    program: str | None
    number: int = 1
    needs: str | None = None
    is_http: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cpus:
    """Which CPUs the servers run on, and which the client: apart, if there are two."""

    server: frozenset[int]
    client: frozenset[int]

    @classmethod
    def available(cls) -> Cpus:
        """Return those of this process."""
        every = sorted(os.sched_getaffinity(0))
        # The last for the servers: the first is where interrupts tend to go.
        return cls(frozenset(every[-1:]), frozenset(every[:-1] or every))

    def describe(self) -> str:
        server, client = (", ".join(map(str, sorted(some))) for some in (self.server, self.client))
        return f"servers on CPU {server}, client on CPU {client}"


@contextlib.contextmanager
def pinned(cpus: frozenset[int]) -> Iterator[None]:
    """Let what is started here, and its threads and children, run on *cpus* alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Process:
    """*command* in a process of its own, on *cpus*, and what it says. Use it in a ``with``.

    It is to end with its standard input, and does so at the latest when it is left. What it writes
    to standard error is kept, unless *options*, which are of `subprocess.Popen`, say otherwise.
    """

    #: So long it has to end by itself, before it is killed.
    end_seconds: ClassVar[float] = 10.0

    def __init__(
        self, command: Sequence[str], cpus: frozenset[int] | None = None, **options: Any
    ) -> None:
        self._complaints: Final = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self._seen = b""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._complaints}
        with pinned(frozenset(os.sched_getaffinity(0)) if cpus is None else cpus):
            process: Any = subprocess.Popen(command, cwd=ROOT, **{**pipes, **options})
        self._process: Final[subprocess.Popen[bytes]] = process
        self._input: Final[IO[bytes]] = process.stdin
        self._output: Final[IO[bytes]] = process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def tell(self, line: str) -> None:
        """Write *line* to its standard input. One that has ended ignores it."""
        with contextlib.suppress(BrokenPipeError):
            self._input.write(f"{line}\n".encode())
            self._input.flush()

    def line(self, within: float) -> str:
        """Return the next line of its standard output.

        Raises:
            ProcessError: There is none *within* so many seconds.
        """
        number, deadline = self._output.fileno(), time.monotonic() + within
        while b"\n" not in self._seen:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([number], [], [], left)
            piece = os.read(number, 1 << 20) if ready else b""
            if not piece:
                what = "has ended" if ready else f"says nothing for {within:g} s"
                raise ProcessError(f"process {self.pid} {what}: {self.last_words()}")
            self._seen += piece
        line, _, self._seen = self._seen.partition(b"\n")
        return line.decode()

    def said(self) -> str:
        """Return what it wrote to its standard error until now."""
        # Not by the file's position, which is the process's too: it would write in another place.
        number = self._complaints.fileno()
        return os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace")

    def complaints(self) -> list[str]:
        """Return the lines of that."""
        return self.said().splitlines()

    def last_words(self) -> str:
        return (self.said().strip().splitlines() or ["it said nothing"])[-1]

    def status(self, within: float) -> int:
        """Close its standard input, and return with what it ends.

        Raises:
            ProcessError: It doesn't *within* so many seconds.
        """
        self.close_input()
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired as error:
            raise ProcessError(f"process {self.pid} doesn't end within {within:g} s") from error

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        """End it, by the end of its input, or by force. Twice is once."""
        if self._complaints.closed:
            return
        self.close_input()
        self._stop()
        try:
            self._process.wait(self.end_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        self._complaints.close()

    def close_input(self) -> None:
        """Have its standard input end."""
        with contextlib.suppress(BrokenPipeError):  # it has ended already, with an order unread
            self._input.close()

    def _stop(self) -> None:
        """Do what ends it, if the end of its input doesn't."""


class Server(Process):
    """A server process of *contender*, which listens on *port*."""

    def __init__(self, contender: Contender, c_server: pathlib.Path, cpus: Cpus, job: Job) -> None:
        self.contender = contender
        self.job = job
        command = [str(c_server), str(BACKLOG), REPLY.decode()]
        if contender.program is not None:
            command = [sys.executable, "-m", "loadtests.bench.servers", contender.program]
            command += [job.value, str(contender.number), *contender.options]
        super().__init__(command, cpus.server)
        try:
            self.port = int(self.line(START_MAX_SECONDS))
        except (ProcessError, ValueError) as error:
            words = self.last_words()
            self.end()
            raise RuntimeError(f"did not start: {words}") from error

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

    def _stop(self) -> None:
        if self.is_running():
            for pid in reversed(self.pids()):  # workers first: they have no parent afterwards
                psutil.Process(pid).kill()
