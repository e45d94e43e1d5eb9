"""The demo: the clients of each clone, with glb and with gevent servers that race.

Both get the same load: one client after another, each of which waits for its reply. So the order
in which they entered the accept queue is known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import gevent.server
from gevent import socket

from ..model.clone import current_clone
from ..model.stats import jain
from ..server import StreamServer

__all__ = ["Outcome", "run_gevent", "run_glb"]

ANY_PORT: Final = ("127.0.0.1", 0)

# A reply comes within a millisecond. A longer wait is a bug, and an error shows it.
REPLY_TIMEOUT_SECONDS: Final = 10


@dataclass(frozen=True)
class Outcome:
    """The turns: *order* has the index of the clone that answered each client."""

    clones: int
    order: Sequence[int]

    @property
    def served(self) -> list[int]:
        """How many connections each clone served."""
        served = [0] * self.clones
        for clone in self.order:
            served[clone] += 1
        return served

    @property
    def is_exact(self) -> bool:
        """True if the whole order is 0, 1, ..., N-1, 0, 1, ..."""
        return list(self.order) == [turn % self.clones for turn in range(len(self.order))]

    @property
    def jain(self) -> float:
        return jain(self.served)

    def as_json(self) -> dict[str, object]:
        return {"served": self.served, "exact": self.is_exact, "jain": self.jain}


def run_glb(clones: int, connections: int, advance: Callable[[], object]) -> Outcome:
    """Return the outcome of *connections* clients of one server; call *advance* after each.

    Raises:
        OSError: The kernel said no, or a reply did not come. Nothing stays open.
    """
    server = StreamServer(ANY_PORT, _reply_clone, clones=clones)
    server.start()
    try:
        return Outcome(clones, _ask(server.address, connections, advance))
    finally:
        server.stop()


def _reply_clone(sock: Any, _peer: object) -> None:
    clone = current_clone()
    assert clone is not None, "this is a handler"
    sock.sendall(b"%d" % clone)


def run_gevent(clones: int, connections: int, advance: Callable[[], object]) -> Outcome:
    """Return the outcome of as many plain gevent servers on duplicates of one socket."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(ANY_PORT)
        listener.listen()
        for index in range(clones):
            server = gevent.server.StreamServer(listener.dup(), _reply(index))
            stack.callback(server.stop)
            server.start()
        return Outcome(clones, _ask(listener.getsockname(), connections, advance))


def _reply(index: int) -> Callable[[Any, object], None]:
    def handle(sock: Any, _peer: object) -> None:
        sock.sendall(b"%d" % index)

    return handle


def _ask(address: Any, connections: int, advance: Callable[[], object]) -> list[int]:
    order = []
    for _ in range(connections):
        with socket.create_connection(address, REPLY_TIMEOUT_SECONDS) as client:
            reply = b""
            while data := client.recv(64):
                reply += data
        order.append(int(reply))
        advance()
    return order
