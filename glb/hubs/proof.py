"""Proof: a handler greenlet is used again only if nothing refers to it.

A count of references proves it, by these steps:

1. *Counted by C alone.* A parked greenlet is an element of a list, and `map` calls
   `sys.getrefcount` with it. No bytecode holds it meanwhile, so it makes no difference that CPython
   3.14 and newer borrow references where older ones count them, nor how warm a function is.
2. *Compared with the same greenlet.* Each parks once before its first job, and is counted there.
   When it parks again, its stack is the same to the instruction, so one more in the count is one
   reference more. Within a switch, where several jobs follow one another, the count before a job
   is compared with the count after it.
3. *Nothing refers to it at the first count.* Here a count is compared with another greenlet's:
   one of the trial's, which was seen to end, and to have no reference left but its list's.
   A greenlet that a tracer, a spawn callback or a profiler refers to has another count, and is
   never used again; nor is one whose stack differs for another reason.
4. *Tried.* When a process first needs it, a trial runs jobs that keep their greenlet, and jobs that
   keep nothing, by the very code that decides. If a kept one could be used again, or if one that
   was not kept is not, no greenlet of this process is used again. `Proof.reason` and the log say
   why.

CPython 3.10 to 3.13 own each reference that a frame has; from 3.14 on a frame may borrow it from
another, but something owns it, and owning counts. Debug builds and development mode count alike.
Coverage has a weak reference to each greenlet that it sees (with ``concurrency = greenlet``), and
some profilers add a reference to the stack: there each handler has a fresh greenlet. A Python that
has no counts gets fresh greenlets.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, Final, Protocol
from weakref import getweakrefcount

from .threads import call_where_it_may_switch

__all__ = ["WARM_UP", "Proof", "Trial", "count"]

log: Final = logging.getLogger("glb")

_HAS_COUNTS: Final = hasattr(sys, "getrefcount")
_count_references: Final[Callable[[object], int]] = getattr(sys, "getrefcount", lambda _: 0)

# So many trials of each kind. CPython replaces a call by a specialized one at its second to
# sixteenth; the count of 3.14 and 3.15 is one less from the second on.
WARM_UP: Final = 32


def count(one: list[Any]) -> int:
    """Return how many references there are to the greenlet that *one* has; 0 if it has none.

    No frame has it meanwhile: see the module's docstring.
    """
    return next(map(_count_references, one), 0)


class Trial(Protocol):
    """Jobs that are known to keep their greenlet, or not to."""

    proof: Proof

    def count_unused(self) -> int | None: ...

    def find_fault(self) -> str: ...

    def end_parked(self) -> None: ...


class Proof:
    """Says if handler greenlets are used again in this process, and why not.

    Args:
        make_trial: Returns a trial in a hub.
    """

    def __init__(self, make_trial: Callable[[Any], Trial]) -> None:
        self._make_trial = make_trial
        #: ``None`` before the first server of this process starts, and after a trial without a
        #: result.
        self.is_given: bool | None = None
        #: Why they are not used again, or ``""``.
        self.reason = ""
        # How many references there are to a parked greenlet that nothing refers to.
        self._untouched = 0

    def __repr__(self) -> str:
        return f"<Proof is_given={self.is_given} reason={self.reason!r}>"

    def holds(self, one: list[Any]) -> bool:
        """Return True if only the list *one* refers to the parked greenlet in it."""
        return (
            self.is_given is True and count(one) == self._untouched and not getweakrefcount(one[0])
        )

    def found_traced(self) -> None:
        """Note that something refers to a greenlet before its first job."""
        if self.is_given is not False and not self.reason:
            self.reason = "a tracer, profiler or spawn callback refers to each new greenlet"
            self._log(log.debug, "handlers run in fresh greenlets, as %s", self.reason)

    def give(self, hub: Any) -> None:
        """Run the trial, within a callback of *hub*, and set `is_given`.

        It takes about a millisecond, once a process.
        """
        if not _HAS_COUNTS:
            self.is_given, self.reason = False, "this Python has no reference counts"
            self._log(log.info, "handlers run in fresh greenlets, as %s", self.reason)
            return
        trial = self._make_trial(hub)
        counts: list[int] = []
        for _ in range(WARM_UP):
            found = trial.count_unused()
            if found is None:  # the reference may be gone when the next server starts
                self.found_traced()
                return
            counts.append(found)
        if len({*counts[WARM_UP // 2 :]}) > 1:
            self._refuse(f"the number of references to an unused one varies: {counts}")
            return
        # Other hubs go on without a proof until the trial is over.
        trial.proof = Proof(self._make_trial)
        trial.proof.is_given, trial.proof._untouched = True, counts[-1]
        fault = trial.find_fault()
        trial.end_parked()
        if fault:
            self._refuse(fault)
        else:
            self._untouched = counts[-1]
            self.is_given, self.reason = True, ""

    def _refuse(self, reason: str) -> None:
        self.is_given, self.reason = False, reason
        self._log(
            log.warning,
            "handlers run in fresh greenlets, as using them again is not safe: %s",
            reason,
        )

    @staticmethod
    def _log(write: Callable[..., None], *line: object) -> None:
        call_where_it_may_switch(functools.partial(write, *line))
