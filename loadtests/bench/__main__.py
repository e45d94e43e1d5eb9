"""What does a connection cost with glb, beside other servers with the same job?

    python -m loadtests.bench

Servers that accept, send a small fixed reply and close, and HTTP servers, each in a process of
its own, in interleaved rounds. Printed are tables, and what glb promises beside what was
measured; JSON, Markdown and a plot are written to a folder. Exit status 0 only if every
promise was measured and kept.
"""

from __future__ import annotations

from loadtests.frame.command import CONCURRENCY, QUICK, chosen, experiment
from loadtests.frame.process import Contender

from .contenders import CONTENDERS
from .measure import Run
from .plan import Plan


def choose(only: str | None) -> list[Contender]:
    """Return the contenders of these names; ``glb`` is all of ``glb-4``, ``glb-256``, ..."""
    every = [one.name for one in CONTENDERS]
    groups = [name[:at] for name in every for at, each in enumerate(name) if each == "-"]
    names = chosen(only, "contender", [*dict.fromkeys([*every, *groups])])
    return [
        one for one in CONTENDERS if any(f"{one.name}-".startswith(f"{name}-") for name in names)
    ]


main = experiment(
    "bench",
    __doc__,
    Plan(),
    Run,
    choose,
    "Contenders, with commas between; glb is all of glb-N. Ratios want gevent and c, or "
    "wsgi-gevent and wsgi-granian.",
    CONCURRENCY,
    QUICK,
)

if __name__ == "__main__":
    main()
