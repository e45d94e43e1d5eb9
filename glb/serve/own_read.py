"""The old way of accepting: a program's own ``do_read``, which gevent's servers may have.

Such a hook accepts by itself, or asks ours (`glb.server.StreamServer.do_read`) for a connection
that was accepted for it already. It has no arguments, so what it needs is in this thread's `Turn`.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..accept.protocols import PendingConnection, Turn
from ..accept.ring import Team
from ..net.connection import Connection
from ..originals import monotonic
from .admission import Admission
from .hooks import Hooks
from .hooks import Turn as TurnOfServer
from .workers import Workers

__all__ = ["Reader", "read_handed", "take_handed", "take_turn"]


class Reader(Protocol):
    """A clone for which ``do_read`` accepts: a `glb.serve.acceptor.Acceptor`."""

    server: Hooks
    accepted: int
    taken: int
    dispatcher: Any
    team: Team[Any]

    @property
    def admission(self) -> Admission: ...
    @property
    def workers(self) -> Workers: ...
    def accept_failed(self, error: BaseException) -> Turn: ...
    def handle_failed(self, taken: int, peer: Any, error: BaseException) -> None: ...
    def unexpect_locked(self) -> None: ...


def take_turn(acceptor: Reader) -> Turn:
    """Have the program's ``do_read`` accept for *acceptor*, and handle what it returns."""
    server, admission = acceptor.server, acceptor.admission
    try:
        args: Any = server.do_read()
        server.delay = server.min_delay
        if not args:
            return Turn.EMPTY
    except BaseException as error:
        return acceptor.accept_failed(error)
    acceptor.dispatcher.turns.rotate(acceptor.team, acceptor)
    if admission.bucket is not None:
        admission.bucket.take(monotonic())
    _handle(acceptor, args)
    return Turn.TAKEN


def take_handed(acceptor: Reader, handed: PendingConnection) -> bool:
    """Have the program's ``do_read`` read *handed*; ``False`` if *acceptor* can't take it."""
    server, admission = acceptor.server, acceptor.admission
    turn = acceptor.workers.turn
    turn.handed = handed
    try:
        # A pool that others use as well may have filled up since it was asked.
        if server.full():
            admission.found_full()
            return False
        args: Any = server.do_read()
        if turn.handed is not None:
            # A `do_read` that accepts by itself. What it may have got is served as well.
            if args:
                _handle(acceptor, args)
            args = read_handed(turn, admission)
        server.delay = server.min_delay
        _handle(acceptor, args)
    except BaseException as error:
        # Nothing was accepted here, so it is nothing that the kernel says.
        admission.accept_failed(error)
        if turn.handed is not None:
            return False
    finally:
        turn.handed = None
    with acceptor.dispatcher.turns.lock:
        acceptor.unexpect_locked()
    return True


def read_handed(turn: TurnOfServer, admission: Admission) -> tuple[Connection, Any]:
    """Take the connection that was accepted for the clone whose turn it is."""
    handed = turn.handed
    assert handed is not None, "only in a turn"
    connection = Connection.on(handed.sock, admission.watermark, admission.server)
    if handed.moves:
        connection.moves = handed.moves
    turn.handed = None
    return connection, handed.address


def _handle(acceptor: Reader, args: Any) -> None:
    acceptor.accepted += 1
    acceptor.dispatcher.accepted += 1
    taken = acceptor.taken
    turn = acceptor.workers.turn
    turn.acceptor = acceptor
    try:
        acceptor.server.do_handle(*args)
    except BaseException as error:
        peer = args[1:] if isinstance(args, (tuple, list)) else args
        acceptor.handle_failed(taken, peer, error)
    finally:
        turn.acceptor = None
