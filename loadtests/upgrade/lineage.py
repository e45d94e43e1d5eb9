"""The line of processes of one ``glb serve``, each of which replaces the last."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
from time import monotonic, monotonic_ns
from typing import Any, Final

from loadtests.frame.process import Cpus, pinned
from loadtests.lossless.load import Change

__all__ = ["Lineage"]

ROOT: Final = pathlib.Path(__file__).parents[2]

#: How long each step may take, in seconds.
STEP_SECONDS: Final = 60.0

#: So that processes whose parent has ended are this one's to wait for: see prctl(2).
PR_SET_CHILD_SUBREAPER: Final = 36


class Lineage:
    """``glb serve`` with *options*, in *folder*, where its Unix socket is. Use it in a ``with``."""

    def __init__(self, folder: pathlib.Path, kind: str, *options: str, is_unix: bool) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self.folder: Final = folder
        self.generation = 0
        self._text = b""
        self._lines: Final[list[str]] = []
        reading, writing = os.pipe()
        self._reading: Final = reading
        name = "application" if kind == "http" else "handle"
        bind = f"unix:{folder}/socket" if is_unix else "127.0.0.1:0"
        command = [sys.executable, "-m", "glb", "serve", f"loadtests.upgrade.program:{name}"]
        command += (
            ["--bind", bind, "--access-log", os.devnull] if kind == "http" else ["--bind", bind]
        )
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        try:
            with pinned(Cpus.available().server):
                process = subprocess.Popen(
                    [*command, *options],
                    cwd=folder,
                    env={**os.environ, "PYTHONPATH": path, "PWD": str(folder)},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=writing,
                )
        finally:
            os.close(writing)
        self.pid = process.pid
        process.returncode = 0  # it is waited for here, as its successors
        try:
            found = self.wait_for_line(r"serving \S+ on (?:http|tcp|unix):(?://\S+?:(\d+)|(\S+)) ")
        except BaseException:
            self.end(signal.SIGKILL)
            raise
        #: Where clients connect to.
        self.place: Final[int | str] = int(found[1]) if found[1] else found[2]

    def __enter__(self) -> Lineage:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)

    def wait_for_line(self, pattern: str) -> Any:
        """Return the match of the next line of the log that has *pattern*.

        Raises:
            RuntimeError: There is none in time.
        """
        until = monotonic() + STEP_SECONDS
        while True:
            line, end, rest = self._text.partition(b"\n")
            if not end:
                ready = select.select([self._reading], [], [], max(0.0, until - monotonic()))[0]
                piece = os.read(self._reading, 65536) if ready else b""
                if not piece:
                    raise RuntimeError(f"no line has {pattern!r}: {self._lines[-5:]}")
                self._text += piece
                continue
            self._text = rest
            self._lines.append(line.decode(errors="replace"))
            found = re.search(pattern, self._lines[-1])
            if found is not None:
                return found

    def upgrade(self) -> Change:
        """Have the next process take over, and the last one end; tell when new ones were served."""
        began = monotonic_ns()
        os.kill(self.pid, signal.SIGUSR2)
        found = self.wait_for_line(r"process (\d+) serves now|no upgrade: (.*)")
        if not found[1]:
            raise RuntimeError(found[2])
        ended = monotonic_ns()
        old, self.pid = self.pid, int(found[1])
        status = self._wait(old)
        if status != 0:
            raise RuntimeError(f"process {old} ended with status {status}")
        self.generation += 1
        return Change(began, ended, self.generation)

    def fail(self, fate: str) -> str:
        """Have the next process meet its *fate*; return what the log says of it."""
        file = self.folder / "fate"
        file.write_text(fate)
        os.kill(self.pid, signal.SIGUSR2)
        found = self.wait_for_line("no upgrade: (.*)|(.*) serves now")
        file.unlink()
        return str(found[1] or "it was replaced all the same")

    def _wait(self, pid: int) -> int:
        until = monotonic() + STEP_SECONDS
        while monotonic() < until:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            select.select([], [], [], 0.005)
        raise RuntimeError(f"process {pid} doesn't end")

    def end(self, number: int) -> None:
        """End the last process. Twice is harmless."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, number)
            try:
                self._wait(self.pid)
            except RuntimeError:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)
        with contextlib.suppress(OSError):
            os.close(self._reading)
