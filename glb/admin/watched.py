"""Watched servers: each with the pulses of its hubs, and what has passed over its clones."""

from __future__ import annotations

from typing import Final

from ..server import StreamServer
from .passed_over import PassedOver
from .pulse import LOOK_SECONDS, Pulse
from .view import ServerView, stalled_hubs, view

__all__ = ["Watched"]

# Turns are reckoned at each look from outside, and so often in any case: 64 clones
# take 0.2 ms.
_LOOKS_A_RECKONING: Final = round(1.0 / LOOK_SECONDS)


class Watched:
    """A server, watched from one other thread.

    Args:
        stall_limit: A hub is stalled after so many seconds without an answer.
        is_logged: Whether the log then has a line.
    """

    def __init__(self, server: StreamServer, stall_limit: float, *, is_logged: bool = True) -> None:
        self._server: Final = server
        self._stall_limit: Final = stall_limit
        self._is_logged: Final = is_logged
        self._pulses: list[Pulse] = []
        self._passed_over: Final = PassedOver()
        self._address = ""
        self._looks = 0

    def look(self) -> None:
        """Ask each hub for an answer. To be called each `LOOK_SECONDS`."""
        for pulse in self.pulses():
            pulse.look()
        self._looks += 1
        if self._looks % _LOOKS_A_RECKONING == 0:
            self._passed_over.look(self._server.clone_stats(), stalled_hubs(self._server))

    def pulses(self) -> list[Pulse]:
        """Return those of the hubs that it has now; none while it is stopped."""
        hubs = [
            (worker.dispatcher.thread, worker.send)
            for worker in self._server.glb_engine.workers
            if worker.dispatcher is not None
        ]
        if [pulse.thread for pulse in self._pulses] != [thread for thread, _ in hubs]:
            server = self.view().address or repr(self._server)
            self._pulses = [
                Pulse(
                    f"hub {index} of {server}",
                    thread,
                    send,
                    self._stall_limit,
                    is_logged=self._is_logged,
                )
                for index, (thread, send) in enumerate(hubs)
            ]
        return self._pulses

    def view(self) -> ServerView:
        """Return its view now."""
        found = view(self._server, self._pulses, self._passed_over, self._address)
        self._address = found.address
        return found
