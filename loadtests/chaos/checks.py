"""Checks: what must hold of registry, states, ring, hubs, counts and descriptors, at any time.

Everything is read in one critical section of the registry's lock, in the greenlet of no server.
Counts that other threads change without it are read in an order in which they can only differ in
one direction: handlers done, then begun, then accepted.

A state that is only wrong if it stays is wrong when two looks in succession see it.
"""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from collections.abc import Hashable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import gevent
from greenlet import greenlet

import glb.hubs.threads
from glb.accept.listener import Listener
from glb.accept.registry import REGISTRY, Entry
from glb.hubs.greenlet_pool import MAX_PARKED
from glb.model.states import MOVES, State
from glb.net.sockets import address_of, is_readable
from glb.serve.admission import Admission

from .service import Service, acceptors_of, wait_until
from .tally import Tally

if TYPE_CHECKING:
    from .life import Life

#: So often at most it is counted again until what is open is what should be: a connection that
#: is just being closed is open, and its handler done, or the other way round.
MOST_COUNTS: Final = 40
COUNT_SECONDS: Final = 0.005

#: So long until what is over is at rest, and until threads and sockets are gone.
SETTLE_SECONDS: Final = 4.0


def watch_moves(tally: Tally) -> None:
    """Have each change of a server's state looked at and counted."""
    set_locked = Admission._set_locked

    def watched(admission: Admission, state: State) -> None:
        name = f"{admission.state.value} -> {state.value}"
        tally.count(f"states: {name}")
        is_a_move = state in MOVES[admission.state]
        tally.hold("a server's state changes as glb.model.states says", is_a_move, name)
        set_locked(admission, state)

    Admission._set_locked = watched  # type: ignore[method-assign, assignment]  # to watch it


class Checks:
    """Looks at *life*'s servers. Made before any: what there is then is to be left at the end."""

    def __init__(self, life: Life) -> None:
        self._life: Final = life
        self._hold: Final = life.tally.hold
        # What looked wrong when it was last looked at, and what does now.
        self._doubts: set[Hashable] = set()
        self._new_doubts: set[Hashable] = set()
        gevent.get_hub()
        self._before: Final = _what_there_is()
        self._open_before: Final = _count_open(frozenset())
        # How many descriptors a hub's thread has beside its connections, once one was seen.
        self._others_a_thread: int | None = None

    def look(self) -> None:
        """Look at everything once.

        Switches:
            While the process is out of descriptors on purpose, and while they are counted again.
        """
        with self._life.steady():
            error = None
            try:
                with REGISTRY.lock:
                    self._look_at_entries()
            except Exception as found:  # an assertion of REGISTRY.check(), for one
                error = repr(found)
            self._hold("each look comes to its end", error is None, error)
            self._doubts, self._new_doubts = self._new_doubts, set()
            self._look_at_descriptors()

    def _none(self, invariant: str, wrong: Iterable[object]) -> None:
        found = [*wrong]
        self._hold(invariant, not found, found)

    def _stays(self, invariant: str, is_well: object, key: Hashable, detail: object) -> None:
        # Wrong if it wasn't well the last time either, by the same key.
        if not is_well:
            self._new_doubts.add((invariant, key))
        self._hold(invariant, is_well or (invariant, key) not in self._doubts, detail)

    # -- entries and dispatchers ----------------------------------------------------------------

    def _look_at_entries(self) -> None:
        REGISTRY.check()
        entries = {each.address: each for each in REGISTRY}
        addresses = {each.address for each in self._life.services}
        self._hold("entries are those of the addresses", {*entries} == addresses, entries)
        for service in self._life.services:
            self._look_at_entry(service, entries[service.address])
            self._look_at_ring(service, entries[service.address].turns)
            for server in service.servers:
                self._look_at_server(server)

    def _look_at_entry(self, service: Service, entry: Entry) -> None:
        turns: Any = entry.turns
        dispatchers, waiting = [*turns.dispatchers.values()], [*turns.waiting]
        engines = [each.glb_engine for each in service.servers]
        clones = sum(len(each.clones.listeners) for each in engines)
        detail = f"{entry}, {clones=} of servers, {len(waiting)=}, {_seen(turns, ENTRY)}"
        hold = partial(self._hold, detail=detail)
        hold("an entry's clones are its servers'", entry.clones == clones)
        hold("the leader is there", turns.leader in dispatchers)
        hold("no connection is pending", turns.pending == 0)
        for each in dispatchers:
            self._look_at_dispatcher(each)
        pending = [(handed.member, each) for each in dispatchers for handed in each.inbox]
        strangers = [member for member, each in pending if member.dispatcher is not each]
        self._none("an inbox holds its own hub's", strangers)
        acceptors = [each for server in service.servers for each in acceptors_of(server)]
        in_flight = Counter({each: each.in_flight for each in acceptors})
        more = Counter(member for member, _ in pending) - in_flight
        self._none("what lies in an inbox is in flight, to a server", more)
        teams = [each.team for engine in engines for each in engine.workers]
        is_ready = any(each.line and each.admitted for each in teams)
        is_served = not (waiting and is_ready)
        first = tuple(map(id, waiting[:1]))
        self._stays("no connection waits while a clone is ready", is_served, first, detail)
        is_moving = not (is_ready and is_readable(entry.pristine)) or turns.is_paused
        key = (id(entry), turns.accepted)
        self._stays("the accept queue moves while a clone is ready", is_moving, key, detail)

    def _look_at_dispatcher(self, dispatcher: Any) -> None:
        handlers, users = dispatcher.handlers, dispatcher._users
        detail = f"{_seen(dispatcher, DISPATCHER)}, {len(handlers)=}, {handlers._users=}"
        hold = partial(self._hold, detail=detail)
        stays = partial(self._stays, detail=detail, key=id(dispatcher))
        hold("no dispatcher counts below 0", min(users, dispatcher.accepted, dispatcher.quick) >= 0)
        hold("no more parked than may be", len(handlers) <= MAX_PARKED)
        # The thread of its hub counts the last one out before it waits for the lock.
        stays("a dispatcher is in use", dispatcher.is_watchdog or users > 0)
        stays("handlers have a server", dispatcher.is_watchdog or handlers._users > 0)
        # It may be withdrawn often.
        key = (id(dispatcher), dispatcher.moves)
        stays("a hub that was withdrawn comes back", dispatcher.has_turns, key=key)

    # -- the ring -------------------------------------------------------------------------------

    def _look_at_ring(self, service: Service, turns: Any) -> None:
        listed: Counter[Any] = Counter(team for _, team in turns.ring._by_wait)
        teams = {each.singles for each in turns.dispatchers.values()}
        wrong, ready = [], 0
        for server in service.servers:
            for worker in server.glb_engine.workers:
                if worker.dispatcher is not None:
                    teams.add(worker.team)
                    self._look_at_team(server, worker, listed[worker.team])
                    ready += len(worker.team.line) if worker.team.admitted else 0
        closed = {each for each in listed if each not in teams and each.admitted and each.line}
        self._none("only servers that are open have turns", closed)
        lines = Counter(one for team in {*teams, *listed} for one in team.line)
        for server in service.servers:
            is_open = server.glb_engine.admission.turns is not None
            there = server.glb_engine.clones.acceptors
            for one in acceptors_of(server):
                is_to_stand = is_open and one.own is State.ACCEPTING and one in there
                if lines[one] != is_to_stand or (is_to_stand and one not in one.team.line):
                    wrong.append((one, lines[one], one.own, server.state))
        self._none("a clone stands in line once if it is ready, and otherwise doesn't", wrong)
        length, order = len(turns.ring), [*turns.ring.ready()]
        detail = f"{length=}, {ready=}, {order=}"
        is_each_once = len({*order}) == len(order) == ready == length
        self._hold("the ring yields each ready clone once, and counts them", is_each_once, detail)

    def _look_at_team(self, server: Any, worker: Any, listed: int) -> None:
        team, dispatcher = worker.team, worker.dispatcher
        accepts = server.glb_engine.admission.state is State.ACCEPTING
        is_admitted, has_turns = team in dispatcher.admitted, dispatcher.has_turns
        where = f"hub {worker.index} of {server!r}"
        detail = (
            f"{where}: {accepts=}, {is_admitted=}, {has_turns=}, {listed=}, {_seen(team, TEAM)}"
        )
        hold = partial(self._hold, detail=detail)
        hold("an open server is its dispatcher's", team in dispatcher.servers)
        is_right = is_admitted == accepts and team.admitted == (accepts and has_turns)
        hold("teams of those that accept have turns", is_right)
        is_known = listed == 1 or (listed == 0 and not (team.admitted and team.line))
        hold("the ring knows each team that has turns, once", is_known)

    # -- servers --------------------------------------------------------------------------------

    def _look_at_server(self, server: Any) -> None:
        admission, workers = server.glb_engine.admission, server.glb_engine.workers
        acceptors = acceptors_of(server)
        in_flight = [each.in_flight for each in acceptors]
        states = [admission.state, *(each.state for each in acceptors)]
        # Done is read before taken.
        active = [-each.done - each.reclaimed + each.taken for each in workers]
        detail = f"{server!r}: {states=}, {active=}, {in_flight=}, {_seen(admission, ADMISSION)}"
        hold = partial(self._hold, detail=detail)
        stays = partial(self._stays, key=(id(server), admission._episode), detail=detail)
        hold("each server and clone has a state", all(isinstance(each, State) for each in states))
        is_sum = admission.expected == sum(in_flight) and min(in_flight, default=0) >= 0
        hold("expected is the sum of what is in flight", is_sum)
        hold("no hub has less than 0 connections", min(active) >= 0)
        has_no_room = server.full() or admission.has_assigned_all() or admission._has_most()
        stays("a full server has no room", admission.state is not State.FULL or has_no_room)
        stays("a server that backs off accepts again", admission.state is not State.BACKING_OFF)
        for each in acceptors:
            self._look_at_clone(server, each)

    def _look_at_clone(self, server: Any, acceptor: Any) -> None:
        # In this order: see above.
        done = acceptor.completed + acceptor.failed
        taken = acceptor.taken - acceptor.reclaimed
        accepted = acceptor.accepted - acceptor.reclaimed
        load = taken - done + acceptor.in_flight
        limit = server.max_connections_per_clone
        detail = f"{acceptor!r}, {acceptor.own}: {accepted=}, {taken=}, {done=}, {load=}, {limit=}"
        hold = partial(self._hold, detail=detail)
        hold("a clone's counts add up", accepted >= taken >= done >= 0)
        hold("no clone's load is below 0", load >= 0 and acceptor.in_flight >= 0)
        is_gone = acceptor not in server.glb_engine.clones.acceptors
        is_over = acceptor.own in {State.DRAINING, State.STOPPED}
        hold("a clone that went is not in use, one that is there is", is_over == is_gone)
        has_no_room = acceptor.own is not State.FULL or limit is None or load >= limit
        self._stays("a full clone has no room", has_no_room, id(acceptor), detail)

    # -- descriptors ----------------------------------------------------------------------------

    def _look_at_descriptors(self) -> None:
        for _ in range(MOST_COUNTS):
            with REGISTRY.lock:
                wrong = self._compare_descriptors()
            if not wrong:
                break
            gevent.sleep(COUNT_SECONDS)
        for use in ("of port", "spare", "other"):
            found = {name: counts for name, counts in wrong.items() if name.startswith(use)}
            self._hold(f"descriptors: {use}", not found, f"{found}, all: {_leads()}")

    def _compare_descriptors(self) -> dict[str, tuple[int, int]]:
        # What is open for another number of uses than it should be: how many are, and should be.
        expected: Counter[str] = Counter()
        for service in self._life.services:
            use, entry = f"of port {service.address[1]}", service.entry
            expected[use] = 0 if entry is None else 1 + len(entry.turns.waiting)
            for server in service.servers:
                clones = server.glb_engine.clones.listeners
                expected[use] += sum(isinstance(each, Listener) for each in clones)
                expected[use] += server.active + server.glb_engine.admission.expected
        found = _count_open(frozenset(each.address[1] for each in self._life.services))
        found.subtract(self._open_before)
        # glb's spare one is there if it was needed: see `glb.net.spare_fd`.
        expected["spare"] = min(1, max(0, found["spare"]))
        threads = len(glb.hubs.threads._running)
        if threads and self._others_a_thread is None:
            self._others_a_thread = found["other"] // threads
        expected["other"] = threads * (self._others_a_thread or 0)
        counts = {use: (found[use], expected[use]) for use in {*found, *expected}}
        return {use: (one, other) for use, (one, other) in counts.items() if one != other}

    # -- quiet, and the end ---------------------------------------------------------------------

    def look_at_rest(self) -> None:
        """Check all servers without load and trouble: all must be ready, and counts add up."""
        for service in self._life.services:
            wait_until(lambda one=service: not one.left(), SETTLE_SECONDS)  # type: ignore[misc]  # no default's type is inferred
            self._none("quiet: every clone is ready, and nothing is left", service.left())
            if service.entry is not None:
                turns: Any = service.entry.turns
                counts = (turns.accepted, service.count_accepted())
                is_sum = counts[0] == counts[1]
                self._hold("quiet: an entry has accepted what its clones have", is_sum, counts)

    def look_at_end(self) -> None:
        """All servers have ended: everything must be as it was before."""
        before = self._before + Counter(watcher=1)  # it is the wait's
        wait_until(lambda: not _what_there_is() - before, SETTLE_SECONDS)
        left = _what_there_is() - self._before
        for kind in ("descriptor", "thread", "entry", "greenlet", "watcher"):
            self._none(f"end: no {kind} is left", [each for each in left if each.startswith(kind)])


#: What is shown of each of these, if something is wrong with it.
ENTRY: Final = ("pending", "accepted", "leader", "is_paused")
DISPATCHER: Final = ("_users", "accepted", "quick", "stalled_at", "inbox", "moves")
TEAM: Final = ("admitted", "line")
ADMISSION: Final = ("state", "expected")


def _seen(one: Any, names: Iterable[str]) -> str:
    return ", ".join(f"{name}={getattr(one, name)}" for name in names)


def _what_there_is() -> Counter[str]:
    gc.collect()
    found = Counter(f"descriptor of {where}" for where in _leads().values())
    found.update(f"thread {each.name}" for each in threading.enumerate())
    found.update(f"thread of {each}" for each in glb.hubs.threads._running)
    found.update(f"entry {each}" for each in REGISTRY)
    greenlets = (each for each in gc.get_objects() if isinstance(each, greenlet))
    found["greenlet"] = sum(not each.dead for each in greenlets)
    found["watcher"] = gevent.get_hub().loop.activecnt
    return found


def _leads() -> dict[int, str]:
    # What each descriptor leads to, but for those that are closed meanwhile.
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listdir() used, among others
            continue
    return found


def _count_open(ports: frozenset[int]) -> Counter[str]:
    # By use: sockets of *ports*, `os.devnull`, all others. Other threads may open and close some.
    found: Counter[str] = Counter()
    for number, where in _leads().items():
        address = None
        with suppress(OSError):  # another thread has closed it
            address = address_of(number)
        if address is not None and address.port in ports:
            found[f"of port {address.port}"] += 1
        else:
            found["spare" if where == os.devnull else "other"] += 1
    return found
