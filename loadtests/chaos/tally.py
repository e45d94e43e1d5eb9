"""The tally of a run: what servers and clients count, and what they find wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from time import monotonic
from typing import Any, Final

from gevent.monkey import get_original

from loadtests.frame.sheet import Answer, Promise, Table

#: So many faults of each kind are shown.
MOST_FOUND: Final = 5

#: With each is shown what was done so long before it. A roll takes longer, but what was done during
#: it is shown as well.
LAST_SECONDS: Final = 3.0

#: From when to when something was, on `time.monotonic`'s clock, and what.
Event = tuple[float, float, str]


class Tally:
    """Counts and violations, by any thread; those of another process may be added.

    Args:
        began: When the run began, on `time.monotonic`'s clock, which all processes share.
    """

    def __init__(self, began: float) -> None:
        self._lock: Final[Any] = get_original("_thread", "RLock")()
        self._began: Final = began
        self.counts: Counter[str] = Counter()
        #: How often each invariant was looked at, and how often it did not hold.
        self.checked: Counter[str] = Counter()
        self.violated: Counter[str] = Counter()
        #: What was done to servers, and what was found wrong.
        self.events: list[Event] = []
        self.found: list[Event] = []

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def act(self, what: str, began: float | None = None) -> None:
        """Count *what* was done to servers. It is over now, and *began* then: ``None`` is now."""
        now = monotonic()
        self.count(f"done: {what}")
        self.events.append((now if began is None else began, now, what))

    def hold(
        self, invariant: str, is_kept: object, detail: object = "", began: float | None = None
    ) -> None:
        """Count a look at *invariant*; if it isn't kept, show *detail*, and since when it isn't."""
        with self._lock:
            self.checked[invariant] += 1
            if is_kept:
                return
            self.violated[invariant] += 1
            if self.violated[invariant] <= MOST_FOUND:
                now = monotonic()
                what = f"VIOLATED: {invariant}: {detail}"
                self.found.append((now if began is None else began, now, what))

    def to_json(self) -> dict[str, Any]:
        with self._lock:
            names = ("counts", "checked", "violated", "events", "found")
            return {name: getattr(self, name).copy() for name in names}

    def add(self, other: Mapping[str, Any]) -> None:
        """Add what another process has found: its `to_json`."""
        for name, what in other.items():
            if isinstance(what, dict):
                getattr(self, name).update(what)
            else:
                getattr(self, name).extend(map(tuple, what))

    def answer(self, question: str) -> Answer:
        """Return what answers *question*: each invariant is a promise."""
        looks = sorted(self.checked.items())
        counts = [(what, f"{count:,}") for what, count in sorted(self.counts.items())]
        shown = [*self.found]
        for event in self.events:
            if any(event[1] > one[0] - LAST_SECONDS and event[0] < one[1] for one in self.found):
                shown.append(event)
        return Answer(
            question,
            [Promise(name, self.violated[name], remark=f", of {count:,}") for name, count in looks],
            tables=[Table("What was counted", ("", "times"), counts)],
            lines=[
                f"{began - self._began:8.2f} s to {ended - self._began:8.2f} s: {what}"
                for began, ended, what in sorted(shown)
            ],
            details=self.to_json(),
        )
