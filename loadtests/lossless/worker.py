"""Run in a process: do what is asked for on stdin, a line of JSON each, and answer on stdout.

python -m loadtests.lossless.worker MODULE

It ends when stdin does.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

from gevent.fileobject import FileObjectPosix

from loadtests.bench.serve import PR_SET_PDEATHSIG


def end_with_parent() -> None:
    """Have this process killed when the one that started it has ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    end_with_parent()
    module = importlib.import_module(f".{sys.argv[1]}", __package__)
    commands: Mapping[str, Callable[..., Any]] = module.COMMANDS
    # A descriptor of its own: gevent makes it non-blocking, and closes it.
    with FileObjectPosix(os.dup(0), "rb") as orders:
        for line in orders:
            order = json.loads(line)
            answer = commands[order.pop("do")](**order)
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
