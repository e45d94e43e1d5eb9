"""Checks: what must hold of registry, admission, clones, ring, hubs and descriptors, at any time.

Everything is read in one critical section of the registry's lock, in the greenlet of no server.
Counts that other threads change without it are read in an order in which they can only differ in
one direction: handlers done, then begun, then accepted.

A state that is only wrong if it stays is wrong when two checks in succession see it.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import gevent
from greenlet import greenlet

import glb.hubs.threads
from glb.accept.listener import Listener
from glb.accept.registry import REGISTRY, Entry
from glb.hubs.greenlet_pool import MAX_PARKED
from glb.model.states import MOVES, State
from glb.net.sockets import is_readable
from glb.serve.admission import Admission

from .descriptors import Descriptors, count_resident_bytes, leads
from .plan import Plan
from .service import Service, acceptors_of, wait_until
from .tally import Tally

__all__ = ["Checks", "watch_moves"]

#: So often at most it is counted again until what is open is what should be: a connection that
#: is just being closed is open, and its handler done, or the other way round.
MOST_COUNTS: Final = 40
COUNT_SECONDS: Final = 0.005

#: So long after the end until threads and sockets are gone.
SETTLE_SECONDS: Final = 3.0


def watch_moves(tally: Tally) -> Counter[str]:
    """Have each change of a server's state looked at; return what counts them."""
    moves: Counter[str] = Counter()
    set_locked = Admission._set_locked

    def watched(admission: Admission, state: State) -> None:
        name = f"{admission.state.value} -> {state.value}"
        moves[name] += 1
        tally.hold(
            "a server's state changes as glb.model.states says",
            state in MOVES[admission.state],
            name,
        )
        set_locked(admission, state)

    Admission._set_locked = watched  # type: ignore[method-assign, assignment]  # to watch it
    return moves


_EPOLL: Final = "anon_inode:[eventpoll]"


class Checks:
    """Looks at *services*. Made before any server: what there is then is to be left at the end.

    Args:
        steady: See `Actions.steady`.
    """

    def __init__(
        self,
        plan: Plan,
        services: Sequence[Service],
        tally: Tally,
        steady: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._plan: Final = plan
        self._services: Final = services
        self._tally: Final = tally
        self._steady: Final = steady
        #: Of each look: when, resident bytes, connections.
        self.samples: list[tuple[float, int, int]] = []
        # What looked wrong when it was last looked at, and whether it still does.
        self._doubts: set[Hashable] = set()
        self._new_doubts: set[Hashable] = set()
        gevent.get_hub()
        gc.collect()
        self._before: Final = leads()
        self._open_before: Final = Descriptors.look(frozenset())
        self._threads_before: Final = {each.name for each in threading.enumerate()}
        self._greenlets_before: Final = _count_greenlets()
        self._watchers_before: Final[int] = gevent.get_hub().loop.activecnt
        # How many descriptors a hub's thread has beside its connections, once one was seen.
        self._others_a_thread: int | None = None

    def look(self, seconds: float) -> None:
        """Look at everything once, *seconds* after the start.

        Switches:
            While the process is out of descriptors on purpose, and while it is counted again.
        """
        with self._steady():
            with REGISTRY.lock:
                self._look_at_registry()
                for service in self._services:
                    entry = service.entry
                    self._hold("each address has its entry", entry is not None, service.address)
                    if entry is not None:
                        self._look_at_entry(service, entry)
                    for server in service.servers:
                        self._look_at_server(server)
            self._doubts, self._new_doubts = self._new_doubts, set()
            connections = self._count_descriptors()
            self.samples.append((seconds, count_resident_bytes(), connections))

    def _hold(self, invariant: str, is_kept: object, detail: object = "") -> None:
        self._tally.hold(invariant, bool(is_kept), detail)

    def _stays(self, invariant: str, is_well: object, key: Hashable, detail: object) -> None:
        # Wrong if it wasn't well the last time either, by the same key.
        if not is_well:
            self._new_doubts.add((invariant, key))
        self._hold(invariant, is_well or (invariant, key) not in self._doubts, detail)

    # -- the registry -------------------------------------------------------------------------

    def _look_at_registry(self) -> None:
        try:
            REGISTRY.check()
        except AssertionError as error:
            self._hold("REGISTRY.check()", is_kept=False, detail=repr(error))
        else:
            self._hold("REGISTRY.check()", is_kept=True)
        count = len([*REGISTRY])
        self._hold("no entry more than addresses", count == len(self._services), count)

    def _look_at_entry(self, service: Service, entry: Entry) -> None:
        clones = sum(len(each.glb_engine.clones.listeners) for each in service.servers)
        self._hold(
            "an entry's clones are its servers'", entry.clones == clones, (entry.clones, clones)
        )
        turns: Any = entry.turns
        leader = turns.leader
        dispatchers = [*turns.dispatchers.values()]
        self._hold("the leader is there", leader in dispatchers, leader)
        self._hold("no connection is pending", turns.pending == 0, turns.pending)
        inboxes: Counter[Any] = Counter()
        for each in dispatchers:
            self._look_at_dispatcher(each)
            inboxes.update(handed.member for handed in each.inbox)
            self._hold(
                "an inbox holds its own hub's",
                all(handed.member.dispatcher is each for handed in each.inbox),
                [(handed.member, handed.member.dispatcher) for handed in each.inbox],
            )
        for server in service.servers:
            for acceptor in acceptors_of(server):
                self._hold(
                    "what lies in an inbox is in flight",
                    inboxes.pop(acceptor, 0) <= acceptor.in_flight,
                    acceptor,
                )
        self._hold("an inbox holds servers'", not inboxes, inboxes)
        self._look_at_ring(service, entry)
        is_ready = any(
            each.team.line and each.team.admitted
            for server in service.servers
            for each in server.glb_engine.workers
        )
        self._stays(
            "nobody waits while a clone is ready",
            not (turns.waiting and is_ready),
            tuple(map(id, [*turns.waiting][:1])),
            f"{len(turns.waiting)} connections at {service.address}",
        )
        self._stays(
            "the accept queue moves while a clone is ready",
            not (is_ready and is_readable(entry.pristine)) or turns.is_paused,
            (id(entry), turns.accepted),
            f"{turns.accepted} accepted at {service.address}",
        )

    def _look_at_dispatcher(self, dispatcher: Any) -> None:
        self._hold(
            "no dispatcher counts below 0",
            dispatcher._users >= 0 and dispatcher.accepted >= 0 and dispatcher.quick >= 0,
            f"{dispatcher._users} users, {dispatcher.accepted} accepted, {dispatcher.quick} quick",
        )
        # The thread of its hub counts the last one out before it waits for the lock.
        self._stays(
            "a dispatcher is somebody's",
            dispatcher.is_watchdog or dispatcher._users > 0,
            id(dispatcher),
            f"{dispatcher._users} users",
        )
        handlers = dispatcher.handlers
        self._hold("no more parked than may be", len(handlers) <= MAX_PARKED, len(handlers))
        self._stays(
            "handlers have a server",
            dispatcher.is_watchdog or handlers._users > 0,
            id(handlers),
            f"{handlers._users} users",
        )
        self._stays(
            "a hub that was withdrawn comes back",
            dispatcher.has_turns,
            (id(dispatcher), dispatcher.moves),  # it may be withdrawn often
            f"stalled at {dispatcher.stalled_at}, inbox {len(dispatcher.inbox)}",
        )

    # -- the ring -------------------------------------------------------------------------------

    def _look_at_ring(self, service: Service, entry: Entry) -> None:
        turns: Any = entry.turns
        ring = turns.ring
        lines: Counter[Any] = Counter()
        listed: Counter[Any] = Counter(team for _, team in ring._by_wait)
        teams = {each.singles for each in turns.dispatchers.values()}
        ready = 0
        for server in service.servers:
            for worker in server.glb_engine.workers:
                if worker.dispatcher is not None:
                    teams.add(worker.team)
                    self._look_at_team(server, worker, listed)
                    ready += len(worker.team.line) if worker.team.admitted else 0
        for team in {*teams, *listed}:
            lines.update([*team.line])
            self._hold(
                "only servers that are open have turns",
                team in teams or not (team.admitted and team.line),
                [*team.line],
            )
        for server in service.servers:
            is_open = server.glb_engine.admission.turns is not None
            for acceptor in acceptors_of(server):
                is_to_stand = (
                    is_open
                    and acceptor.own is State.ACCEPTING
                    and acceptor in server.glb_engine.clones.acceptors
                )
                self._hold(
                    "who is ready stands in line once, who isn't doesn't",
                    lines[acceptor] == is_to_stand
                    and (acceptor in acceptor.team.line or not is_to_stand),
                    f"{acceptor!r}: {lines[acceptor]} times, {acceptor.own}, {server.state}",
                )
        self._hold("the ring is as long as its teams", len(ring) == ready, (len(ring), ready))
        order = [*ring.ready()]
        self._hold(
            "the ring yields each ready clone once", len({*order}) == len(order) == ready, order
        )

    def _look_at_team(self, server: Any, worker: Any, listed: Counter[Any]) -> None:
        team, dispatcher = worker.team, worker.dispatcher
        accepts = server.glb_engine.admission.state is State.ACCEPTING
        where = f"hub {worker.index} of {server!r}, {server.state}"
        self._hold("an open server is its dispatcher's", team in dispatcher.servers, where)
        self._hold(
            "teams of those that accept have turns",
            (team in dispatcher.admitted) == accepts
            and team.admitted == (accepts and dispatcher.has_turns),
            f"{where}: {team in dispatcher.admitted}, {team.admitted}, {dispatcher.has_turns}",
        )
        is_to_be_listed = team.admitted and bool(team.line)
        self._hold(
            "the ring knows each team that has turns, once",
            listed[team] == 1 if is_to_be_listed else listed[team] <= 1,
            f"{where}: {listed[team]} times, {len(team.line)} in line",
        )

    # -- servers ----------------------------------------------------------------------------------

    def _look_at_server(self, server: Any) -> None:
        admission = server.glb_engine.admission
        acceptors = acceptors_of(server)
        self._hold("a server's state is one", isinstance(admission.state, State), admission.state)
        in_flight = sum(each.in_flight for each in acceptors)
        self._hold(
            "expected is the sum of what is in flight",
            admission.expected == in_flight >= 0 and all(each.in_flight >= 0 for each in acceptors),
            f"{server!r}: {admission.expected}, {[each.in_flight for each in acceptors]}",
        )
        self._stays(
            "who is full has no room",
            admission.state is not State.FULL
            or server.full()
            or admission.has_assigned_all()
            or admission._has_most(),
            (id(server), admission._episode),
            f"{server!r}: {server.active} active, {admission.expected} expected",
        )
        self._stays(
            "who backs off accepts again",
            admission.state is not State.BACKING_OFF,
            (id(server), admission._episode),
            f"{server!r}: delay {server.delay}",
        )
        for each in acceptors:
            self._look_at_clone(server, each)
        for worker in server.glb_engine.workers:
            done, reclaimed = worker.done, worker.reclaimed
            active = worker.taken - done - reclaimed
            self._hold("no hub has less than 0 connections", active >= 0, f"{server!r}: {active}")

    def _look_at_clone(self, server: Any, acceptor: Any) -> None:
        # In this order: see above.
        done = acceptor.completed + acceptor.failed
        taken = acceptor.taken - acceptor.reclaimed
        accepted = acceptor.accepted - acceptor.reclaimed
        load = taken - done + acceptor.in_flight
        what = f"{acceptor!r}: {accepted} accepted, {taken} taken, {done} done"
        self._hold("a clone's counts add up", accepted >= taken >= done >= 0, what)
        self._hold("no clone's load is below 0", load >= 0 and acceptor.in_flight >= 0, what)
        self._hold("a clone's state is one", isinstance(acceptor.state, State), acceptor.own)
        is_gone = acceptor not in server.glb_engine.clones.acceptors
        self._hold(
            "a clone that went is not in use, one that is there is",
            (acceptor.own in {State.DRAINING, State.STOPPED}) == is_gone,
            f"{acceptor!r}: {acceptor.own}",
        )
        limit = server.max_connections_per_clone
        self._stays(
            "a clone that is full has no room",
            acceptor.own is not State.FULL or limit is None or load >= limit,
            id(acceptor),
            f"{what}, limit {limit}",
        )

    # -- descriptors ------------------------------------------------------------------------------

    def _count_descriptors(self) -> int:
        for _ in range(MOST_COUNTS):
            with REGISTRY.lock:
                wrong, connections = self._compare_descriptors()
            if not wrong:
                break
            gevent.sleep(COUNT_SECONDS)
        for what in ("listening", "connected", "spare", "other"):
            self._hold(f"descriptors: {what}", what not in wrong, wrong.get(what))
        return connections

    def _compare_descriptors(self) -> tuple[dict[str, str], int]:
        wrong = {}
        expected: Counter[int] = Counter()
        active: Counter[int] = Counter()
        for service in self._services:
            port = service.address[1]
            entry = service.entry
            if entry is not None:
                clones = (
                    one for each in service.servers for one in each.glb_engine.clones.listeners
                )
                expected[port] = 1 + sum(isinstance(one, Listener) for one in clones)
                active[port] = len(entry.turns.waiting)
            for server in service.servers:
                active[port] += server.active + server.glb_engine.admission.expected
        found = Descriptors.look(frozenset(expected))
        if found.listening != expected:
            wrong["listening"] = f"{found.listening}, and listeners and pristine: {expected}"
        if +found.connected != +active:
            wrong["connected"] = f"{found.connected}, and connections in use: {active}"
        spares = found.spares - self._open_before.spares
        if not 0 <= spares <= 1:
            wrong["spare"] = f"{spares}"
        others = found.others - self._open_before.others
        threads = len(glb.hubs.threads._running)
        if threads and self._others_a_thread is None and not wrong:
            self._others_a_thread = others // threads
        if others != threads * (self._others_a_thread or 0):
            wrong["other"] = (
                f"{others} beside those of the start, {threads} threads of hubs; all: {leads()}"
            )
        return wrong, sum(found.connected.values())

    # -- quiet, and the end -----------------------------------------------------------------------

    def look_at_rest(self) -> None:
        """Check all servers without load and actions: all must be ready, and the counts add up."""
        for service in self._services:
            is_at_rest = wait_until(
                lambda service=service: all(  # type: ignore[misc]  # mypy can't infer a default's
                    each.active == 0
                    and not (each.pool and len(each.pool))
                    and each.glb_engine.admission.expected == 0
                    and all(clone.ready for clone in each.clone_stats())
                    for each in service.servers
                ),
                SETTLE_SECONDS,
            )
            self._hold(
                "quiet: every clone is ready, and has no connection",
                is_at_rest,
                [(each, each.state, each.active, each.clone_stats()) for each in service.servers],
            )
            for server in service.servers:
                service.check_quiet(server)
            entry = service.entry
            accepted = service.count_accepted()
            self._hold(
                "quiet: an entry has accepted what its clones have",
                entry is not None and entry.turns.accepted == accepted,
                (None if entry is None else entry.turns.accepted, accepted),
            )

    def look_at_end(self) -> dict[str, Any]:
        """All servers have ended: everything must be as it was before. Return what there is."""
        wait_until(self._is_as_before, SETTLE_SECONDS)
        gc.collect()
        gevent.sleep(0)
        left = _more_than(self._before)
        threads = {each.name for each in threading.enumerate()} - self._threads_before
        greenlets = _count_greenlets()
        watchers = gevent.get_hub().loop.activecnt
        entries = [*REGISTRY]
        self._hold("end: no descriptor is left", not left, left)
        self._hold("end: no thread is left", not threads and not glb.hubs.threads._running, threads)
        self._hold("end: no entry is left", not entries, entries)
        self._hold(
            "end: no greenlet is left",
            greenlets <= self._greenlets_before,
            f"{greenlets}, {self._greenlets_before} before",
        )
        self._hold(
            "end: no watcher is left",
            watchers <= self._watchers_before,
            f"{watchers}, {self._watchers_before} before",
        )
        return {
            "descriptors": (len(self._before), len(leads())),
            "threads": (len(self._threads_before), threading.active_count()),
            "greenlets": (self._greenlets_before, greenlets),
            "watchers": (self._watchers_before, watchers),
        }

    def _is_as_before(self) -> bool:
        return (
            not [*REGISTRY]
            and not glb.hubs.threads._running
            and not _more_than(self._before)
            and _count_greenlets() <= self._greenlets_before
        )


def _more_than(before: dict[int, str]) -> dict[int, str]:
    """Return what is open, and what was not *before*, by its number.

    libev takes another epoll descriptor in place of its own when that tells of sockets that are
    closed here, and open in a child.
    """
    now = leads()
    gone = [to for number, to in before.items() if number not in now and to == _EPOLL]
    more = {number: to for number, to in now.items() if number not in before}
    for number in [number for number, to in more.items() if to == _EPOLL][: len(gone)]:
        del more[number]
    return more


def _count_greenlets() -> int:
    gc.collect()
    return sum(isinstance(each, greenlet) and not each.dead for each in gc.get_objects())
