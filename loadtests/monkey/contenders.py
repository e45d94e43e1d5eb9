"""The contenders: each of some programs, under each patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from loadtests.bench.servers.patched import GEVENT, GLB, GLB_SOCKETS
from loadtests.frame import process


@dataclass(frozen=True)
class Program:
    """One of `loadtests.bench.servers.patched`. What *is_client* has no listener under load."""

    name: str
    title: str
    is_http: bool = False
    is_client: bool = False


@dataclass(frozen=True)
class Side:
    """A patch that a program runs under. *patch* is the program's argument for it."""

    name: str
    title: str
    patch: str


PROGRAMS: Final = (
    Program("threads", "accept, a thread each"),
    Program("socketservers", "ThreadingTCPServer"),
    Program("http", "ThreadingHTTPServer", is_http=True),
    Program("selects", "select.select, non-blocking", is_http=True),
    Program("clients", "create_connection, send, recv", is_client=True),
)

#: What the others are compared with.
BASE: Final = Side("gevent", "gevent's", GEVENT)

#: The same once more. By how much it differs from itself is what nothing here can resolve.
AGAIN: Final = Side("again", "gevent's, again", GEVENT)

ONLY_SOCKETS: Final = Side("glb-sockets", "glb's, without servers", GLB_SOCKETS)
WHOLE: Final = Side("glb", "glb's", GLB)

SIDES: Final = (BASE, AGAIN, ONLY_SOCKETS, WHOLE)

#: Of programs in several copies. What the order is with one is no question.
SIDES_OF_COPIES: Final = (BASE, WHOLE)
COPIES: Final = 4


@dataclass(frozen=True)
class Contender(process.Contender):
    """*of*, in one copy or several, on *side*."""

    of: Program = PROGRAMS[0]
    side: Side = BASE


def contender(program: Program, side: Side, number: int = 1) -> Contender:
    copies = f"-{number}" if number > 1 else ""
    return Contender(
        f"{program.name}{copies}-{side.name}",
        f"{program.title}: {side.title}",
        f"patched:{program.name}",
        number,
        number if number > 1 else 0,
        is_http=program.is_http,
        options=(side.patch,),
        of=program,
        side=side,
    )


#: Groups of contenders that are measured together: a program, on all sides.
Group = tuple[Contender, ...]

GROUPS: Final[tuple[Group, ...]] = (
    *(tuple(contender(program, side) for side in SIDES) for program in PROGRAMS),
    *(
        tuple(contender(program, side, COPIES) for side in SIDES_OF_COPIES)
        for program in PROGRAMS
        if not program.is_client
    ),
)
