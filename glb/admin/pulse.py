"""Pulses: whether a hub turns, and how long it takes to answer.

The administration's thread asks each hub of a server, a few times a second, to call a function. The
time until the call is the hub's lag. A hub that has not called it for long is stalled: something on
it runs, and lets nothing else run. Connections pay nothing for this.

Source: gevent's monitor thread, which reports a blocked hub in the same way; asyncio's
``slow_callback_duration``.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable
from typing import Final

from ..originals import monotonic

__all__ = ["LOOK_SECONDS", "STUCK_SECONDS", "Pulse"]

log: Final = logging.getLogger("glb")

#: So often each hub is asked.
LOOK_SECONDS: Final = 0.1

#: From then on a person sees that a hub is stuck. A probe has its own limit, which is longer: a
#: restart is worse than a wait.
STUCK_SECONDS: Final = 1.0


class Pulse:
    """Of one hub: its lag, and how often it was stalled.

    Args:
        name: For the log.
        thread: The native ident of its thread.
        send: Called with a function, which the hub is to call; from any thread. Returns ``False``
            if the hub has ended.
        stall_limit: The hub is stalled after so many seconds without an answer.
        is_logged: Whether the log then has a line.
    """

    def __init__(
        self,
        name: str,
        thread: int,
        send: Callable[[Callable[[], object]], bool],
        stall_limit: float,
        *,
        is_logged: bool = True,
    ) -> None:
        self.name: Final = name
        self.thread: Final = thread
        #: How often it was stalled.
        self.stalls = 0
        #: What its thread is at, as a stack in text, while it is stalled.
        self.stack: list[str] = []
        self._send: Final = send
        self._stall_limit: Final = stall_limit
        self._is_logged: Final = is_logged
        # Changed by the two threads in turn: by this one while nothing is asked.
        self._asked_at: float | None = None
        self._last_lag = 0.0

    @property
    def lag(self) -> float:
        """Seconds that it took for its last answer, or has taken so far for the next one."""
        asked_at = self._asked_at
        return self._last_lag if asked_at is None else max(self._last_lag, monotonic() - asked_at)

    @property
    def seconds_stuck(self) -> float:
        """For how long it has not turned, once that is `STUCK_SECONDS` or the limit; else 0."""
        lag = self.lag
        return lag if lag >= min(STUCK_SECONDS, self._stall_limit) else 0.0

    @property
    def is_stalled(self) -> bool:
        """Whether it has not answered for longer than the limit."""
        return bool(self.stack)

    @property
    def place(self) -> str:
        """Where its thread is while it is stalled: file, line and function."""
        return self.stack[-1].strip().partition("\n")[0] if self.stack else ""

    def look(self) -> None:
        """Ask it, unless an answer is due; log where it is if that is late."""
        asked_at = self._asked_at
        if asked_at is None:
            self.stack = []
            self._asked_at = monotonic()
            if not self._send(self._answer):
                self._asked_at = None
        elif not self.stack and monotonic() - asked_at > self._stall_limit:
            self.stalls += 1
            frame = sys._current_frames().get(self.thread)
            self.stack = traceback.format_stack(frame) if frame is not None else ["unknown"]
            if self._is_logged:
                log.warning(
                    "%s has not turned for %.1f s. Its thread is at:\n%s",
                    self.name,
                    self.lag,
                    "".join(self.stack).rstrip(),
                )

    def _answer(self) -> None:
        # In its hub.
        asked_at = self._asked_at
        if asked_at is not None:
            self._last_lag = monotonic() - asked_at
            self._asked_at = None
