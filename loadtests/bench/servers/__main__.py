"""Run a program: ``python -m loadtests.bench.servers MODULE:FUNCTION JOB NUMBER [OPTION...]``."""

from __future__ import annotations

import importlib
import sys

from .job import Job, end_with_parent


def main() -> None:
    program, job, number, *options = sys.argv[1:]
    end_with_parent()
    module, function = program.split(":")
    serve = getattr(importlib.import_module(f".{module}", __package__), function)
    serve(Job(job), int(number), *options)


if __name__ == "__main__":
    main()
