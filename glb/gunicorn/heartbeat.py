"""The heartbeat: whether every hub of a worker turns.

gunicorn's arbiter ends a worker that has not notified it for ``timeout`` seconds. A worker of
several hubs whose first hub turns would notify it for ever, while the connections of another wait.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Final

from ..serve.hub_worker import HubWorker

__all__ = ["Heartbeat"]


class Heartbeat:
    """Of the hubs of *workers*. Its methods are called in one thread."""

    def __init__(self, workers: Iterable[HubWorker]) -> None:
        self._workers: Final = [*workers]
        # Those that were asked, and have not answered. Each leaves it in its own hub.
        self._asked: set[HubWorker] = set()

    def has_ticked(self) -> bool:
        """Whether all hubs have answered what they were asked at the last call; ask them anew.

        A hub that has ended, as in a drain, is not waited for.
        """
        waiting = [each for each in [*self._asked] if not each.is_gone]
        if waiting:
            return False
        self._asked = {*self._workers}
        for worker in self._workers:
            answer = functools.partial(self._asked.discard, worker)
            if not worker.send(answer):
                answer()
        return True
