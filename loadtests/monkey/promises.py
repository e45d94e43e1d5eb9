"""What glb promises of its patch, and whether it was kept: one table."""

from __future__ import annotations

from typing import Final

from loadtests.frame.old_promise import Promise

from . import figures
from .contenders import BASE, COPIES, ONLY_SOCKETS, PROGRAMS, WHOLE, contender

#: What a program may cost that has no use for glb, beside gevent's patch alone.
COST_MAX: Final = 1.03

PROMISES: Final = (
    *(
        Promise(
            f"CPU a connection beside gevent's patch: {program.title}, {side.title}",
            contender(program, side).name,
            figures.CPU,
            COST_MAX,
            contender(program, BASE).name,
        )
        for program in PROGRAMS
        for side in (ONLY_SOCKETS, WHOLE)
    ),
    *(
        Promise(
            f"exact order, {COPIES} copies: {program.title}",
            contender(program, WHOLE, COPIES).name,
            figures.EXACT,
            1,
            is_floor=True,
        )
        for program in PROGRAMS
        if not program.is_client
    ),
)
