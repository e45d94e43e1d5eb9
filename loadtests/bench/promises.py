"""What glb promises of its speed, and whether it was kept: one table."""

from __future__ import annotations

from typing import Final

from loadtests.frame.old_promise import Promise

from . import figures
from .contenders import GUNICORN, GUNICORN_FAST, GUNICORN_WORKER

# Where a promise is "no more than plain gevent's", two runs of the very same server differ:
# the limit is what it may differ by. p99 of a second or two of load rests on a dozen
# connections, hence the 5 %; the same for idle connections that cost a request nothing. Memory
# is counted, not timed, in pages: 2 %.
P99_NOISE: Final = 1.05
CROWD_NOISE: Final = 1.05
MEMORY_NOISE: Final = 1.02

#: CPU of an HTTP request, with our server beside gevent's and granian's.
BESIDE_GEVENT: Final = 0.25
BESIDE_GRANIAN: Final = 1.3

#: The same of glb's workers of gunicorn beside its own gevent worker.
WORKER_BESIDE_GUNICORN: Final = 1.0
FAST_BESIDE_GUNICORN: Final = 0.3

PROMISES: Final = (
    Promise("connections/s beside plain gevent", "glb-4", figures.RATE, 1.9, "gevent", True),
    Promise("CPU a connection beside plain gevent", "glb-4", figures.CPU, 0.5, "gevent"),
    Promise("CPU a connection beside the bare C loop", "glb-4", figures.CPU, 2.0, "c"),
    Promise("system calls a connection", "glb-4", figures.CALLS, 10),
    Promise("CPU with 1,024 clones beside 4", "glb-1024", figures.CPU, 1.05, "glb-4"),
    Promise("memory a clone, KiB", "glb-1024", figures.CLONE_KIB, 24),
    Promise(
        "memory an idle connection beside plain gevent",
        "glb-4", figures.IDLE_KIB, MEMORY_NOISE, "gevent",
    ),
    Promise(
        "p99 at 1,000 connections/s beside plain gevent",
        "glb-4", figures.OPEN_P99, P99_NOISE, "gevent",
    ),
    Promise("exact order, 4 clones", "glb-4", figures.EXACT, 1, is_floor=True),
    Promise("exact order, 256 clones", "glb-256", figures.EXACT, 1, is_floor=True),
    Promise("exact order, 1,024 clones", "glb-1024", figures.EXACT, 1, is_floor=True),
    *(
        Promise(f"WSGI{what} beside {who}", "wsgi-glb", figure, limit, beside)
        for who, limit, beside in (
            ("gevent", BESIDE_GEVENT, "wsgi-gevent"),
            ("granian", BESIDE_GRANIAN, "wsgi-granian"),
        )
        for what, figure in (
            (": CPU a connection", figures.CPU),
            (" kept alive: CPU a request", figures.KEEP_CPU),
            (" kept alive, 10 headers: CPU a request", figures.KEEP_BROWSER_CPU),
        )
    ),
    *(
        Promise(f"gunicorn, {what}{how} beside its gevent worker", name, figure, limit, GUNICORN)
        for what, name, limit in (
            ("a glb Worker", GUNICORN_WORKER, WORKER_BESIDE_GUNICORN),
            ("a glb FastWorker", GUNICORN_FAST, FAST_BESIDE_GUNICORN),
        )
        for how, figure in (
            (": CPU a connection", figures.CPU),
            (" kept alive: CPU a request", figures.KEEP_CPU),
            (" kept alive, 10 headers: CPU a request", figures.KEEP_BROWSER_CPU),
        )
    ),
    Promise(
        "WSGI: memory an idle kept-alive connection beside gevent",
        "wsgi-glb", figures.IDLE_KIB, 1.0, "wsgi-gevent",
    ),
    Promise(
        "WSGI: CPU a request with idle connections beside without",
        "wsgi-glb", figures.CROWD, CROWD_NOISE,
    ),
)  # fmt: skip
