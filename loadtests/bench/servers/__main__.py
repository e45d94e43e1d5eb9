"""Run a program: ``python -m loadtests.bench.servers MODULE:FUNCTION JOB NUMBER [OPTION...]``.

Each function is a contender's: it listens, announces its port and serves. They do one job with the
means of their own library, and are as short as its users would write them. Nothing is imported that
the program doesn't need: it would count as memory.
"""

import importlib
import sys

from .job import Job, end_with_parent

end_with_parent()
program, job, number, *options = sys.argv[1:]
module, function = program.split(":")
serve = getattr(importlib.import_module(f".{module}", __package__), function)
serve(Job(job), int(number), *options)
