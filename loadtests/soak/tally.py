"""The tally: what the server's process counts, and what it finds wrong; by any thread."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from gevent.monkey import get_original

__all__ = ["Tally"]

_Lock: Final[Callable[[], Any]] = get_original("_thread", "RLock")

#: So many faults of each kind are shown in full.
MOST_DETAILS: Final = 3


class Tally:
    """Counts, and violations."""

    def __init__(self) -> None:
        self._lock = _Lock()
        self._began = time.monotonic()
        #: What handlers did.
        self.served: Counter[str] = Counter()
        #: What was done to servers.
        self.done: Counter[str] = Counter()
        #: The same, each with when it began and was over, in seconds after the start.
        self.events: list[tuple[float, float, str]] = []
        #: When something was found wrong, on the same clock.
        self.found_at: list[float] = []
        #: How often each invariant was looked at.
        self.checked: Counter[str] = Counter()
        #: How often each did not hold.
        self.violated: Counter[str] = Counter()
        self.details: dict[str, list[str]] = {}
        #: The numbers of requests that have begun, and of those whose handlers were to crash.
        self._begun: set[int] = set()
        self.crashed: set[int] = set()

    def serve(self, what: str) -> None:
        with self._lock:
            self.served[what] += 1

    @property
    def seconds(self) -> float:
        """How long it is since the start."""
        return time.monotonic() - self._began

    def act(self, what: str, began: float | None = None) -> None:
        """Count *what*, which is over now and *began* then, by `seconds`; ``None`` is now."""
        with self._lock:
            ended = self.seconds
            self.done[what] += 1
            self.events.append((ended if began is None else began, ended, what))

    def hold(self, invariant: str, is_kept: bool, detail: object = "") -> None:
        """Count a look at *invariant*, and tell *detail* if it isn't kept."""
        with self._lock:
            self.checked[invariant] += 1
            if not is_kept:
                self.violated[invariant] += 1
                self.found_at.append(self.seconds)
                details = self.details.setdefault(invariant, [])
                if len(details) < MOST_DETAILS:
                    details.append(f"after {self.seconds:.2f} s: {detail}")

    def begin(self, number: int) -> None:
        """A request is handled, which must not have been before."""
        with self._lock:
            is_first = number not in self._begun
            self._begun.add(number)
        self.hold("nothing is served twice", is_first, f"request {number}")

    def crash(self, number: int) -> None:
        with self._lock:
            self.crashed.add(number)

    def to_json(self) -> dict[str, Any]:
        with self._lock:
            return {
                "served": dict(self.served),
                "done": dict(self.done),
                "began": self._began,
                "events": self.events,
                "found_at": self.found_at,
                "checked": dict(self.checked),
                "violated": dict(self.violated),
                "details": self.details,
                "crashed": sorted(self.crashed),
            }
