"""Run a program: ``python -m loadtests.bench.servers MODULE:FUNCTION JOB NUMBER [OPTION...]``."""

import importlib
import sys

from .job import Job, end_with_parent

end_with_parent()
program, job, number, *options = sys.argv[1:]
module, function = program.split(":")
serve = getattr(importlib.import_module(f".{module}", __package__), function)
serve(Job(job), int(number), *options)
