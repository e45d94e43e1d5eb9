"""Runs of `glb` that end at once: forks of one process that has imported it already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import glb

from .bounds import ENDLESS_SECONDS

__all__ = ["Forks"]


#: Of a line of JSON on stdin it makes a run, and of the run a line on stdout.
PROGRAM: Final = """
import json, os, signal, sys, tempfile
import glb.__main__, glb.cli

for line in sys.stdin:
    asked = json.loads(line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            signal.alarm(asked["seconds"])
            os.chdir(asked["cwd"])
            with open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv[:] = ["glb", *asked["args"]]
            glb.__main__.main()
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        said = [os.pread(each.fileno(), 1 << 20, 0).decode() for each in (out, err)]
    print(json.dumps([status, *said]), flush=True)
"""


class Forks:
    """A process that has imported the command line, and forks for each run: 20 ms instead of 300.

    Only for what ends before anything is served: what a run leaves to its process it takes along,
    but that it was started by Python itself is for other tests to show.
    """

    def __init__(self) -> None:
        root = Path(glb.__file__).parents[1]
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        self._process: Final = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM],
            env={**os.environ, "PYTHONPATH": path, "TERM": "xterm", "COLUMNS": "100"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, cwd: Path) -> tuple[int, str, str]:
        """Return the status, stdout and stderr of ``glb`` with *args*."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        asked = {"args": args, "cwd": str(cwd), "seconds": ENDLESS_SECONDS}
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        told: Any = json.loads(process.stdout.readline())
        return told[0], told[1], told[2]

    def end(self) -> None:
        """End the process. Its status says whether that was all."""
        self._process.communicate(timeout=ENDLESS_SECONDS)
        assert self._process.returncode == 0
