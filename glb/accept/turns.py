"""Turns: the clone that is next at an address, on whichever hub, and the hub that accepts.

The clones of an entry stand in one ring (see `glb.accept.ring`), on however many hubs they live. Of
its dispatchers, one a hub, one is **that leads**: it accepts, and deals out. While all clones
live on one hub that is its dispatcher's for good. As soon as there is a second hub, a **watchdog**
joins them, a dispatcher in a thread of its own that runs no handlers (see `glb.accept.watchdog`).

What becomes of a connection that one hub has accepted for another is `glb.accept.handover`'s.

All state is guarded by the registry's lock, which is native and held for a moment only.
Watchers are touched by their hub's thread alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Generic, TypeVar

from ..model.policy import Policy, least_loaded
from .protocols import Dispatcher, Member, Watchdog
from .ring import Ring, Team

__all__ = ["PATIENCE_SECONDS", "Turns"]

# How long a hub may let a connection lie; until a tick sees it, it is up to twice as long.
# Longer than a hub with much to do takes for a round of its loop (gevent looks at I/O every
# 5 ms) while another thread keeps the interpreter (5 ms); shorter than what a client notices.
# With 5 ms four hubs under 64 clients at a time gave a false alarm in every third run of 8,000
# connections, with 10 ms in none of five.
PATIENCE_SECONDS: Final = 0.01


W = TypeVar("W")


class _SharedSetting(Generic[W]):
    """A setting of an address, which is the same for all servers that give one."""

    def __init__(self) -> None:
        self.value: W | None = None
        self._users = 0

    def check(self, name: str, value: W | None, address: object) -> None:
        if value is not None and self.value not in (None, value):
            raise ValueError(
                f"{name} must be {_shown(self.value)!r}, as it is for {address!r} already, "
                f"got {_shown(value)!r}"
            )

    def join(self, value: W | None) -> None:
        if value is not None:
            self.value = value
            self._users += 1

    def leave(self, value: W | None) -> None:
        if value is not None:
            self._users -= 1
            if self._users == 0:
                self.value = None


def _shown(value: object) -> object:
    return value.value if isinstance(value, Policy) else value


class Turns:
    """The order of turns at one address."""

    def __init__(self, lock: Any) -> None:
        self.lock: Final = lock
        self.dispatchers: dict[object, Dispatcher] = {}
        #: The dispatcher that accepts; ``None`` without any.
        self.leader: Dispatcher | None = None
        #: Only from the second hub on.
        self.watchdog: Watchdog | None = None
        #: How turns are dealt, while a server has set it.
        self.policy: Policy | None = None
        self.patience = PATIENCE_SECONDS
        self._policies: _SharedSetting[Policy] = _SharedSetting()
        self._patiences: _SharedSetting[float] = _SharedSetting()
        #: The order of turns. Used with the lock held.
        self.ring: Final[Ring[Any]] = Ring()

    @property
    def is_paused(self) -> bool:
        """Whether there was no room for a connection a moment ago."""
        return any(each.is_paused for each in [*self.dispatchers.values()])

    @property
    def ready(self) -> int:
        """How many clones wait for a connection."""
        with self.lock:
            return 0 if self.is_paused else len(self.ring)

    # -- settings of servers ---------------------------------------------------------------------

    def join_settings(self, policy: Policy | None, patience: float | None, address: object) -> None:
        """Deal turns by *policy*, and with *patience*, until as many `leave_settings`.

        ``None`` leaves a setting to other servers.

        Raises:
            ValueError: Another server on this address has set another. Nothing has changed.
        """
        with self.lock:
            self._policies.check("policy", policy, address)
            self._patiences.check("patience", patience, address)
            self._policies.join(policy)
            self._patiences.join(patience)
            self._apply_settings_locked()

    def leave_settings(self, policy: Policy | None, patience: float | None) -> None:
        """Undo `join_settings`."""
        with self.lock:
            self._policies.leave(policy)
            self._patiences.leave(patience)
            self._apply_settings_locked()

    def _apply_settings_locked(self) -> None:
        self.policy = self._policies.value
        self.patience = self._patiences.value or PATIENCE_SECONDS

    # -- the ring, from any thread -----------------------------------------------------------

    def join(self, member: Member, place: int | None = None) -> None:
        """Let *member* have its turns, at the end of the line or at the *place* it had."""
        with self.lock:
            self.ring.join(member.team, member, place)
            self._look_locked()

    def leave(self, member: Member) -> int | None:
        """Give *member* no more turns; return its place, if it had one."""
        with self.lock:
            place = self.ring.leave(member.team, member)
            self._look_locked()
            return place

    def rotate(self, team: Team[Any], member: Member) -> None:
        """Send *member* of *team*, which had its turn, to the end of the line."""
        with self.lock:
            self.ring.rotate(team, member)

    def admit(self, teams: Sequence[tuple[Dispatcher, Team[Any]]]) -> None:
        """Let all of *teams*, each with its dispatcher, have turns."""
        with self.lock:
            for dispatcher, team in teams:
                dispatcher.admitted[team] = None
            self.ring.admit(*(team for dispatcher, team in teams if dispatcher.has_turns))
            self._look_locked()

    def suspend(self, teams: Sequence[tuple[Dispatcher, Team[Any]]]) -> None:
        """Pass over all of *teams*."""
        with self.lock:
            for dispatcher, team in teams:
                dispatcher.admitted.pop(team, None)
                self.ring.suspend(team)
            self._look_locked()

    def look_over_locked(self, dispatcher: Dispatcher) -> None:
        """Take up what an exception has left undone for *dispatcher*'s hub.

        See `glb.hubs.guard`.
        """
        if dispatcher.has_turns:
            self.ring.admit(*dispatcher.admitted)
        self.ring.relist(dispatcher.admitted)

    def drop(self, teams: Sequence[tuple[Dispatcher, Team[Any]]]) -> None:
        """Forget all of *teams*, for good."""
        with self.lock:
            for dispatcher, team in teams:
                dispatcher.admitted.pop(team, None)
                self.ring.drop(team)
            self._look_locked()

    def next_locked(self) -> Any:
        """Return the `Member` that is next, or ``None``."""
        policy = self.policy
        if policy is None or policy is Policy.ROUND_ROBIN:
            return self.ring.first()
        if policy is Policy.LEAST_CONNECTIONS:
            return least_loaded(self.ring.ready())
        for dispatcher in self.dispatchers.values():
            member = self.ring.first_of(dispatcher.admitted)
            if member is not None:
                return member
        return None

    @property
    def is_anybody_ready(self) -> bool:
        """Whether `next_locked` would find a member."""
        with self.lock:
            return bool(self.ring)

    def _look_locked(self) -> None:
        if self.watchdog is not None and self.watchdog is not self.leader:
            self._relieve_locked()
            self.watchdog.look_locked()
        if self.leader is not None:
            self.leader.look_locked()

    # -- the leader --------------------------------------------------------------------------

    def add_locked(self, hub: object, dispatcher: Dispatcher) -> None:
        """*dispatcher* is *hub*'s from now on."""
        self.dispatchers[hub] = dispatcher
        if self.leader is None:
            self.leader = dispatcher

    def add_watchdog_locked(self, hub: object, watchdog: Watchdog) -> None:
        """There is a second hub, or about to be."""
        self.dispatchers[hub] = watchdog
        self.watchdog = watchdog
        self._look_locked()

    def _forget_locked(self, dispatcher: Dispatcher) -> None:
        for team in dispatcher.admitted:
            self.ring.drop(team)
        if dispatcher is self.watchdog:
            self.watchdog = None
        if dispatcher is self.leader:
            self.leader = self.watchdog or next(iter(self.dispatchers.values()), None)
            if self.leader is not None:
                self.leader.wake_locked()

    def _relieve_locked(self) -> None:
        # The hub of a thread that has plain listeners only turns while it waits for a
        # connection, so it can't accept for others.
        leader = self.leader
        is_fit = leader is not None and bool(leader.servers)
        if self.watchdog is not None and not is_fit and self.next_locked() is not None:
            self.assign_locked(self.watchdog)

    def assign_locked(self, dispatcher: Dispatcher) -> None:
        """Have *dispatcher* accept from now on."""
        self.leader = dispatcher
        dispatcher.wake_locked()

    def find_fit_locked(self) -> Dispatcher | None:
        """Return the first hub's dispatcher that could accept for all."""
        fit = (each for each in self.dispatchers.values() if self._is_fit_locked(each))
        return next(fit, None)

    def has_hub_that_turns_locked(self) -> bool:
        """Whether there is one, with a clone that isn't paused; all places may be taken."""
        return any(
            any(team.line for team in (*each.servers, each.singles))
            for each in self.dispatchers.values()
            if each.has_turns
        )

    def _is_fit_locked(self, dispatcher: Dispatcher) -> bool:
        return (
            not dispatcher.is_watchdog
            and dispatcher.has_turns
            and dispatcher.stalled_at is None
            and bool(dispatcher.servers)
        )
