"""Handlers of streams, one for each job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .blocking import BLOCK_MICROSECONDS, ORDERS_COME_FROM, obey, usleep
from .job import REPLY, Job

__all__ = ["Handler", "handler"]

Handler = Callable[[Any, Any], None]


def handler(job: Job, clone: Callable[[], int], hubs: int | None = None) -> Handler:
    """Return the handler for *job*. *clone* tells which one runs; it is on one of *hubs*.

    ``None`` is a hub for each clone.
    """

    def reply(sock: Any, _peer: Any) -> None:
        sock.sendall(REPLY)

    def tell(sock: Any, _peer: Any) -> None:
        sock.sendall(b"%d\n" % clone())

    def wait(sock: Any, _peer: Any) -> None:
        sock.sendall(REPLY)
        sock.recv(1)

    def block(sock: Any, _peer: Any) -> None:
        usleep(BLOCK_MICROSECONDS)
        sock.sendall(REPLY)

    def tell_or_obey(sock: Any, peer: Any) -> None:
        if peer[0] == ORDERS_COME_FROM:
            obey(sock, clone() if hubs is None else clone() % hubs)
        else:
            tell(sock, peer)

    return {
        Job.REPLY: reply,
        Job.ORDER: tell,
        Job.IDLE: wait,
        Job.BLOCK: block,
        Job.STALL: tell_or_obey,
    }[job]
