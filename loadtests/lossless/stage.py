"""The stage of a scenario: servers, a load in the meantime, what was promised, what was seen."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from loadtests.bench.servers.job import end_with_parent
from loadtests.frame.process import ROOT, Cpus, Process, ProcessError
from loadtests.frame.sheet import Promise, Table
from loadtests.frame.traffic import GOOD, Place, Visit
from loadtests.frame.worker import ANSWER_SECONDS, Worker

#: What worker processes run; it has what `glb serve` serves, too.
WORKERS: Final = "loadtests.workers"

#: Servers that reply, as workers and as people call them.
KINDS: Final = {"stream": "StreamServer", "http": "WSGIServer"}

#: Nothing changes before so many have been served.
WARM_UP: Final = 20

#: How long each step may take, in seconds.
STEP_SECONDS: Final = 60.0

#: So that processes whose parent has ended are this one's to wait for: see prctl(2).
PR_SET_CHILD_SUBREAPER: Final = 36


#: From when to when, in ns.
Span = tuple[int, int]


@dataclass
class Load:
    """What became of a load; a good reply's last word is its handler's generation."""

    visits: Sequence[Visit] = ()
    counts: Counter[str] = field(default_factory=Counter)

    def depart(self, client: Worker) -> None:
        """End the load, and take what *client* has seen of it."""
        found = client.ask("depart", within=2 * ANSWER_SECONDS)
        self.visits = [Visit(*each) for each in found["visits"]]
        self.counts = Counter(found["counts"])

    def fates(self) -> Counter[str]:
        return Counter(visit.fate for visit in self.visits)

    def stale(self, changes: Sequence[Span]) -> int:
        """Count the clients that came after a change was over, and got a handler of before it."""
        return sum(
            any(
                visit.came > ended and int(visit.words[-1]) < generation
                for generation, (_, ended) in enumerate(changes, 1)
            )
            for visit in self.visits
            if visit.fate == GOOD
        )


@dataclass(frozen=True)
class Stage:
    """Where a scenario plays, and what was found there.

    Attributes:
        hubs: Of servers.
        rate: So many clients come a second.
        work: How long a handler is at work, in seconds.
        pause: Between changes, in seconds.
    """

    hubs: int = 1
    rate: float = 500.0
    work: float = 0.02
    pause: float = 0.5
    promises: list[Promise] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def promise(
        self, says: str, measured: float | None, limit: float = 0, *, is_floor: bool = False
    ) -> None:
        self.promises.append(Promise(says, measured, limit, is_floor))

    def note(self, says: str, value: object) -> None:
        self.notes.append((says, f"{value:,}" if isinstance(value, int) else str(value)))

    @contextmanager
    def open(
        self, kind: str, *, by: str = "glb", clones: int = 4, **options: Any
    ) -> Iterator[tuple[Worker, Worker, int]]:
        """Start a process with a server of *kind*, and one of clients; both, and the port."""
        if by == "glb":
            options["hubs"], clones = self.hubs, max(clones, self.hubs)
        cpu = Cpus.available().server
        with clients() as client, Worker(WORKERS, cpu) as server:
            yield server, client, server.ask("open", kind=kind, by=by, clones=clones, **options)

    @contextmanager
    def load(self, client: Worker, place: Place, kind: str, title: str) -> Iterator[Load]:
        """Have clients come in the block; then `judge` what became of them."""
        load = Load()
        names_us = isinstance(place, int)  # a Unix socket has no names for its clients
        how = {"rate": self.rate, "is_http": kind == "http", "names_us": names_us}
        client.ask("arrive", place=place, **how)
        client.ask("come", count=WARM_UP)
        yield load
        load.depart(client)
        self.judge(load, title)

    def judge(self, load: Load, title: str) -> None:
        """Promise that nothing of *load* was lost."""
        fates = load.fates()
        del fates[GOOD]
        others = fates.total() - fates["refused"] - fates["reset"]
        self.promise(f"{title}: connections reset", fates["reset"])
        self.promise(f"{title}: refused", fates["refused"])
        self.promise(f"{title}: without a good reply, otherwise", others)
        longest = max(visit.left - visit.came for visit in load.visits) / 1e6
        self.note(f"{title}: connections", len(load.visits))
        self.note(f"{title}: the longest, ms", f"{longest:.0f}")
        if +fates:
            self.note(f"{title}: fates", dict(+fates))

    def change(
        self,
        client: Worker,
        place: Place,
        kind: str,
        title: str,
        times: int,
        step: Callable[[], Span],
    ) -> None:
        """Do *step* so many times under load, with pauses around each.

        Each is a change of the server, and begins a generation of handlers. After it there is to be
        none of before.
        """
        changes = []
        with self.load(client, place, kind, title) as load:
            for _ in range(times):
                time.sleep(self.pause)
                changes.append(step())
            time.sleep(self.pause)
        self.promise(f"{title}: made after a change, old handler's", load.stale(changes))
        longest = max(ended - began for began, ended in changes) / 1e6
        self.note(f"{title}: the longest change, ms", f"{longest:.0f}")


def clients() -> Worker:
    """Return a process of clients."""
    return Worker(WORKERS, Cpus.available().client)


def descriptors(process: Process) -> int:
    """Return how many descriptors it has open."""
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def settled(process: Process, most: int, seconds: float = 5.0) -> int:
    """Return its descriptors when there are *most* or less, or after so many *seconds*."""
    deadline = time.monotonic() + seconds
    while (count := descriptors(process)) > most and time.monotonic() < deadline:
        time.sleep(0.02)
    return count


def tracebacks(lines: Sequence[str]) -> int:
    """Count the tracebacks in *lines* of a log."""
    return sum(line.startswith("Traceback ") for line in lines)


def spread(before: Sequence[int], after: Sequence[int]) -> int:
    """Return by how much the turns differ that clones had: by 1 at most if they are exact."""
    turns = [late - early for early, late in zip(before, after, strict=True)]
    return max(turns) - min(turns)


class Serving(Process):
    """``glb serve`` with *words*, which other processes may replace.

    Args:
        folder: In its file ``fate`` is what becomes of the next process.
        before: Words before the command.
    """

    def __init__(self, folder: pathlib.Path, *words: object, before: Sequence[str] = ()) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._fate: Final = folder / "fate"
        self._successor = self._lines = self._served_ns = 0
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        given = {"PYTHONPATH": path, "LOADTEST_GENERATION": "0", "LOADTEST_FATE": str(self._fate)}
        super().__init__(
            [*before, sys.executable, "-m", "glb", "serve", *map(str, words)],
            Cpus.available().server,
            env={**os.environ, **given},
            preexec_fn=end_with_parent,
        )
        try:
            found = self.wait_for(r"serving .* on (?:http|tcp|unix):(?://\S+?:(\d+)|(\S+)) ")
        except ProcessError:
            self.end()
            raise
        #: Where clients connect to.
        self.place: Final[int | str] = int(found[1]) if found[1] else found[2]

    @property
    def pid(self) -> int:
        """The id of the last process."""
        return self._successor or super().pid

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match of the next line of the log that has *pattern*.

        Raises:
            ProcessError: There is none in time.
        """
        until = time.monotonic() + STEP_SECONDS
        while time.monotonic() < until:
            for line in self.said().split("\n")[self._lines : -1]:
                self._lines += 1
                if found := re.search(pattern, line):
                    return found
            time.sleep(0.002)
        raise ProcessError(f"no line has {pattern!r}: {self.complaints()[-5:]}")

    def upgrade(self) -> Span:
        """Have the next process take over; return from when until it serves, in ns."""
        began = time.monotonic_ns()
        said = self.replace()
        if "serves now" not in said:
            raise ProcessError(said)
        return began, self._served_ns

    def replace(self, fate: str = "") -> str:
        """Have the next process take over, or meet its *fate*; return what the log says of it.

        The last one has ended then, if it was replaced.
        """
        self._fate.write_text(fate)
        os.kill(self.pid, signal.SIGUSR2)
        found = self.wait_for(r"process (\d+) serves now|no upgrade: .*")
        self._served_ns = time.monotonic_ns()
        if found[1]:
            old, self._successor = self.pid, int(found[1])
            if status := _wait(old):
                raise ProcessError(f"process {old} ended with status {status}")
        return found[0]

    def finish(self) -> int:
        """End it by SIGTERM; return its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return _wait(self.pid)

    def _stop(self) -> None:
        # Twice is once. The last process isn't the one that was started here.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            try:
                self.finish()
            except ProcessError:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)


def _wait(pid: int) -> int:
    until = time.monotonic() + STEP_SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    raise ProcessError(f"process {pid} doesn't end")
