"""Turns that passed over a clone, and why: it was paused, full, busy, or on a stalled hub.

No connection pays for the count: it is computed at each look from how many connections each clone
has accepted. While a clone is ready, its number grows as the others' do. So the turns that passed
over an absent clone are those that the busiest clone has had since then, less its own. In round
robin that is exact, to one turn for each absence.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from ..model.states import State
from ..model.stats import CloneStats

__all__ = ["BUSY", "STALLED", "PassedOver"]

#: Beside the states of `glb.model.states`: its hub doesn't turn.
STALLED: Final = "stalled"

#: Its accept loop does something else than to accept.
BUSY: Final = "busy"

#: States that a clone has alone. In the others its server gives no turns to any.
_ALONE: Final = {State.PAUSED.value, State.FULL.value, State.BACKING_OFF.value}


class _Away(NamedTuple):
    why: str
    #: What each clone had accepted when this one was ready last.
    accepted: Sequence[int]

    def turns(self, clone: int, accepted: Sequence[int]) -> int:
        got = [now - before for before, now in zip(self.accepted, accepted, strict=True)]
        return max(0, max(got) - got[clone])


class PassedOver:
    """Turns that have passed over each clone of one server, by reason. For one thread."""

    def __init__(self) -> None:
        self._accepted: list[int] = []
        self._away: dict[int, _Away] = {}
        self._turns: list[dict[str, int]] = []

    def look(
        self, clones: Sequence[CloneStats], stalled: Collection[int] = ()
    ) -> list[dict[str, int]]:
        """Note the states of *clones*; return the turns that passed over each since the start.

        Args:
            clones: All of the server's.
            stalled: The indexes of hubs that don't turn.
        """
        accepted = [each.accepted for each in clones]
        if len(accepted) != len(self._accepted):  # it was resized, or this is the first look
            self._away.clear()
            self._turns = [*self._turns[: len(clones)]]
            self._turns += [{} for _ in range(len(clones) - len(self._turns))]
            self._accepted = accepted
        for index, clone in enumerate(clones):
            why, away = _why_away(clone, stalled), self._away.get(index)
            if away is not None and away.why != why:
                self._add(self._turns[index], away, index, accepted)
                del self._away[index]
            if why and (away is None or away.why != why):
                # Until the last look, at least, its count grew as the others' did.
                self._away[index] = _Away(why, self._accepted if away is None else accepted)
        self._accepted = accepted
        found = [{**each} for each in self._turns]
        for index, away in self._away.items():
            self._add(found[index], away, index, accepted)
        return found

    @staticmethod
    def _add(turns: dict[str, int], away: _Away, clone: int, accepted: Sequence[int]) -> None:
        more = away.turns(clone, accepted)
        if more:
            turns[away.why] = turns.get(away.why, 0) + more


def _why_away(clone: CloneStats, stalled: Collection[int]) -> str:
    """Return why *clone* has no turns, while others of its server may; ``""`` if it has."""
    if clone.state == State.ACCEPTING.value:
        if clone.ready:
            return ""
        return STALLED if clone.hub in stalled else BUSY
    return clone.state if clone.state in _ALONE else ""
