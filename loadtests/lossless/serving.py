"""`glb serve` in a process of its own, which other processes may replace."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Final

from loadtests.frame.process import ROOT, Cpus, Process, ProcessError
from loadtests.frame.worker import end_with_parent

#: How long each step may take, in seconds.
STEP_SECONDS: Final = 60.0

#: So that processes whose parent has ended are this one's to wait for: see prctl(2).
PR_SET_CHILD_SUBREAPER: Final = 36


class Serving(Process):
    """``glb serve`` with *words*, on a TCP port, or on a Unix socket in its *folder*."""

    def __init__(self, *words: object, is_unix: bool = False) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._holder: Final = tempfile.TemporaryDirectory()
        self.folder: Final = pathlib.Path(self._holder.name)
        self._fate: Final = self.folder / "fate"
        self._lines: Final[list[str]] = []
        self._successor = 0
        bind = f"unix:{self.folder}/socket" if is_unix else "127.0.0.1:0"
        environ = {
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "LOADTEST_GENERATION": "0",
            "LOADTEST_FATE": str(self._fate),
        }
        super().__init__(
            [sys.executable, "-m", "glb", "serve", "--bind", bind, *map(str, words)],
            Cpus.available().server,
            env={**os.environ, **environ},
            stderr=subprocess.STDOUT,  # so that `line` waits for the log
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
        while True:
            try:
                self._lines.append(self.line(STEP_SECONDS))
            except ProcessError as error:
                raise ProcessError(f"no line has {pattern!r}: {self._lines[-5:]}") from error
            if found := re.search(pattern, self._lines[-1]):
                return found

    def rest(self) -> list[str]:
        """End it, and return all lines of its log."""
        self._stop()
        with contextlib.suppress(ProcessError):
            while True:
                self._lines.append(self.line(STEP_SECONDS))
        return self._lines

    def upgrade(self) -> tuple[int, int]:
        """Have the next process take over, and the last one end; return from when to when, in ns.

        It is over when the new process says that it serves.
        """
        began = time.monotonic_ns()
        os.kill(self.pid, signal.SIGUSR2)
        found = self.wait_for(r"process (\d+) serves now|no upgrade: (.*)")
        if not found[1]:
            raise ProcessError(found[2])
        ended = time.monotonic_ns()
        old, self._successor = self.pid, int(found[1])
        if status := _wait(old):
            raise ProcessError(f"process {old} ended with status {status}")
        return began, ended

    def fail(self, fate: str) -> str:
        """Have the next process meet its *fate*; return what the log says of it."""
        self._fate.write_text(fate)
        os.kill(self.pid, signal.SIGUSR2)
        found = self.wait_for("no upgrade: (.*)|(.*) serves now")
        self._fate.unlink()
        return found[1] or "it was replaced all the same"

    def _stop(self) -> None:
        # Twice is once. The last process isn't the one that was started here.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGTERM)
            try:
                _wait(self.pid)
            except ProcessError:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0)

    def end(self) -> None:
        super().end()
        self._holder.cleanup()


def _wait(pid: int) -> int:
    until = time.monotonic() + STEP_SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    raise ProcessError(f"process {pid} doesn't end")
