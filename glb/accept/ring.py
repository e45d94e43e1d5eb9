"""The ring: the order of turns.

*The next connection goes to the ready clone that has waited longest.* While all clones
are ready that is 0, 1, ..., N-1, 0, 1, ... without exception. A clone that is not ready is
passed over, never waited for, and comes back at the end of the line. One that was away when
no clone behind it had a turn has not been passed over, and may have its place back: `Ring.join`.

Clones that are ready or not *together*, those of one server, form a `Team`: a server whose
pool is full takes its whole team out of the ring in one step, and puts it back in one,
however many clones it has. `Ring.first`, `Ring.rotate`, `join`, `leave`, `admit` and
`suspend` cost O(1) in clones, and O(log teams) where several servers share an address.

The ring knows no sockets, no hubs and no time: it counts turns. It has no lock: see
`glb.accept.turns`, whose it is.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["Ring", "Team"]

M = TypeVar("M")

# Since when a clone waits: the count at which it joined, or at which its team was admitted if
# that was later, and then the first again: clones of teams that were admitted together keep the
# order in which they joined. No two are equal, so the teams behind them are never compared.
Since = tuple[int, int]


class Team(Generic[M]):
    """Ready clones that leave the ring, and come back, as one. Of one ring for its life."""

    __slots__ = ("__weakref__", "admitted", "is_sorted", "line", "listed", "since")

    def __init__(self, *, admitted: bool = True) -> None:
        #: The ready clones, longest waiting first, each with the count at which it joined.
        self.line: OrderedDict[M, int] = OrderedDict()
        #: Whether its clones have turns now.
        self.admitted = admitted
        #: The count at which the team was last admitted. No clone in it has waited longer.
        self.since = 0
        #: Whether the ring's heap has an entry for it.
        self.listed = False
        #: Whether no clone has come back to a place before others since `sort`.
        self.is_sorted = True

    def take_back(self, member: M, joined: int) -> None:
        """Put *member* where the count at which it *joined* belongs."""
        line = self.line
        if line and joined < line[next(reversed(line))]:
            self.is_sorted = False
        line[member] = joined

    def sort(self) -> None:
        """Put clones that came back to their places in order."""
        if not self.is_sorted:
            self.is_sorted = True
            for member, _ in sorted(self.line.items(), key=lambda entry: entry[1]):
                self.line.move_to_end(member)

    @property
    def waits_since(self) -> Since:
        """Since when its first clone waits. There must be one."""
        self.sort()
        return _since(next(iter(self.line.values())), self.since)


class Ring(Generic[M]):
    """The order of turns of one address."""

    def __init__(self) -> None:
        self._count = 0
        # The highest count since which a clone has waited that has had a turn.
        self._last_served = 0
        # One entry for each admitted team that has a ready clone, perhaps more. Since when it
        # waits may lag behind its team's, never run ahead, so what is on top is
        # either right or shows that it isn't.
        self._by_wait: list[tuple[Since, Team[M]]] = []
        # Whether a clone has come back to its place: then it is made anew before it is used.
        self._is_stale = False

    def join(self, team: Team[M], member: M, place: int | None = None) -> None:
        """Put *member* at the end of the line, unless it stands there already.

        Args:
            place: What `leave` returned. It gets that place again, unless a clone behind it
                has had a turn: then it was passed over. (Where turns are not dealt in this
                order, by another policy, that may have been before it left.)
        """
        if member in team.line:
            return
        if place is None or place <= self._last_served:
            team.line[member] = self._next_count()
        else:
            self._is_stale = True
            team.take_back(member, place)
        self._list(team)

    def leave(self, team: Team[M], member: M) -> int | None:
        """Take *member* out of the line; return its place, or ``None`` if it had none there.

        A team that was admitted again has lost the places that its clones had before.
        """
        joined = team.line.pop(member, None)
        return joined if joined is not None and joined > team.since else None

    def rotate(self, team: Team[M], member: M) -> None:
        """Send *member*, which had its turn, from wherever it stands to the end of the line."""
        line = team.line
        waited_since = line.get(member)
        if waited_since is not None:
            if waited_since < team.since:  # noqa: PLR1730  # max() takes three times as long
                waited_since = team.since
            if waited_since > self._last_served:  # noqa: PLR1730  # as above
                self._last_served = waited_since
            self._count = line[member] = self._count + 1
            line.move_to_end(member)

    def serve(self, place: int | None) -> int:
        """Count a turn outside the line; return the place at its end.

        Args:
            place: What `leave` returned to the one that has the turn, if it kept its place.
        """
        if place is not None and place > self._last_served:
            self._last_served = place
        return self._next_count()

    def is_first(self, place: int | None) -> bool:
        """Tell whether *place*, which `leave` returned, is before all that are ready."""
        if place is None or place <= self._last_served:
            return False
        member = self.first()
        return member is None or (place, place) < self._by_wait[0][1].waits_since

    def admit(self, *teams: Team[M]) -> None:
        """Let *teams* have turns, all clones in the order they kept, behind all that wait."""
        now = self._next_count()
        for team in teams:
            if not team.admitted:
                team.admitted = True
                team.since = now
                self._list(team)

    def suspend(self, team: Team[M]) -> None:
        """Pass over all of *team* until it is admitted again."""
        team.admitted = False

    def drop(self, team: Team[M]) -> None:
        """Forget *team*, which has no more turns here. O(teams)."""
        team.admitted = False
        self._by_wait = [entry for entry in self._by_wait if entry[1] is not team]
        heapq.heapify(self._by_wait)

    def first(self) -> M | None:
        """Return the ready clone that has waited longest, or ``None``."""
        by_wait = self._by_wait
        if len(by_wait) == 1:
            _, team = by_wait[0]
            if team.admitted and team.is_sorted:
                for member in team.line:
                    return member
        if self._is_stale:
            self._is_stale = False
            teams = [team for _, team in self._by_wait]
            for team in teams:
                team.listed = bool(team.line)
            self._by_wait = [(team.waits_since, team) for team in teams if team.line]
            heapq.heapify(self._by_wait)
        by_wait = self._by_wait
        while by_wait:
            since, team = by_wait[0]
            if not team.admitted or not team.line:
                heapq.heappop(by_wait)
                team.listed = False
            elif len(by_wait) > 1 and since != (now := team.waits_since):
                heapq.heapreplace(by_wait, (now, team))
            else:
                if not team.is_sorted:
                    team.sort()
                return next(iter(team.line))
        return None

    def first_of(self, teams: Iterable[Team[M]]) -> M | None:
        """Return the one of *teams* that has waited longest, or ``None``. O(teams)."""
        first: Team[M] | None = None
        for team in teams:
            if not team.admitted or not team.line:
                continue
            team.sort()
            if first is None or team.waits_since < first.waits_since:
                first = team
        return None if first is None else next(iter(first.line))

    def __bool__(self) -> bool:
        """Whether a clone is ready. O(teams): it looks at no place."""
        return any(team.admitted and team.line for _, team in self._by_wait)

    def ready(self) -> Iterator[M]:
        """Yield every ready clone, longest waiting first. O(N log teams)."""
        lines = (_stamped(team) for _, team in self._by_wait if team.admitted)
        return (member for _, member in heapq.merge(*lines, key=lambda entry: entry[0]))

    def __len__(self) -> int:
        """The number of ready clones."""
        return sum(len(team.line) for _, team in self._by_wait if team.admitted)

    def _list(self, team: Team[M]) -> None:
        if team.admitted and team.line and not team.listed:
            heapq.heappush(self._by_wait, (team.waits_since, team))
            team.listed = True

    def relist(self, teams: Iterable[Team[M]]) -> None:
        """See to it that the heap has all of *teams* that it is to have. O(teams).

        See `glb.hubs.guard`: an exception may have struck in the middle of a change.
        """
        listed = {id(team) for _, team in self._by_wait}
        for team in teams:
            team.listed = id(team) in listed
            self._list(team)

    def _next_count(self) -> int:
        self._count += 1
        return self._count


def _since(joined: int, admitted: int) -> Since:
    return (joined if joined > admitted else admitted, joined)


def _stamped(team: Team[M]) -> Iterator[tuple[Since, M]]:
    team.sort()
    return ((_since(joined, team.since), member) for member, joined in team.line.items())
