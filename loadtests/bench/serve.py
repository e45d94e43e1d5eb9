"""Run in a server process: set it up, then run one of the `servers`.

python -m loadtests.bench.serve MODULE:FUNCTION JOB NUMBER [OPTION...]
"""

from __future__ import annotations

import ctypes
import importlib
import signal
import sys
from typing import Final

from .servers.job import Job

# prctl(2): the server ends with the benchmark, and strace may attach where Yama forbids it.
PR_SET_PDEATHSIG: Final = 1
PR_SET_PTRACER: Final = 0x59616D61
PR_SET_PTRACER_ANY: Final = ctypes.c_ulong(-1)


def main() -> None:
    program, job, number, *options = sys.argv[1:]
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY)
    module, function = program.split(":")
    serve = getattr(importlib.import_module(f".servers.{module}", __package__), function)
    serve(Job(job), int(number), *options)


if __name__ == "__main__":
    main()
