"""The trial: servers whose handlers leave all kinds of things behind, and what was found."""

from __future__ import annotations

import gc
import logging
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final

import gevent
from gevent import Greenlet, GreenletExit, get_hub, getcurrent

from glb.hubs.greenlet_pool import PROOF, HandlerGreenlet
from glb.hubs.signals import ask
from glb.server import StreamServer

from .clients import PATIENCE_SECONDS
from .traces import Fuzz

__all__ = ["Found", "Trial"]

LOCAL: Final = ("127.0.0.1", 0)

#: More than a wake-up takes, few enough that each turn of the hub has several.
AT_ONCE: Final = 64

#: After so many everything is let go of, and a new server begins: what was left by then is looked
#: at while there is memory for it.
ROUND: Final = 5000

#: Handlers of a bounded server: fewer than there are clients.
BOUND: Final = 12

#: A share of the connections of the fuzz are those of the program that keeps each greenlet, and
#: as many those of the one that keeps none.
KEEPERS_SHARE: Final = 0.1


@dataclass
class Found:
    """What was found. All of it is for the report but *faults*, of which there are to be none."""

    connections: int = 0
    #: Greenlets that the fuzz has needed.
    greenlets: int = 0
    #: Connections of the program that keeps each greenlet, and how many greenlets it has.
    keeping: int = 0
    kept: int = 0
    #: Connections of the program that keeps none, and how many greenlets it has needed.
    keeping_none: int = 0
    used: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_used_again(self) -> bool:
        """Whether the program that keeps none has used its greenlets again."""
        return self.used < self.keeping_none


class _PerHub:
    """A `Fuzz` for each hub: nothing of one is of another thread's."""

    def __init__(self, seed: str) -> None:
        self._seed: Final = seed
        self.server: Any = None
        self.fuzzes: dict[Any, Fuzz] = {}

    def __call__(self, sock: Any, peer: Any) -> object:
        return self._here()(sock, peer)

    def _here(self) -> Fuzz:
        hub: Any = get_hub()
        fuzz = self.fuzzes.get(hub)
        if fuzz is None:
            fuzz = Fuzz(f"{self._seed}-{len(self.fuzzes)}")
            fuzz.server = self.server
            self.fuzzes[hub] = fuzz
            hub.handle_error = fuzz.report
        return fuzz

    def total(self, count: Callable[[Fuzz], int]) -> int:
        return sum(map(count, [*self.fuzzes.values()]))


def _end(fuzz: Fuzz) -> bool:
    fuzz.end()
    return True  # `None` is no answer


class Trial:
    """All of it, once: `run` returns what was `Found`."""

    def __init__(self, connections: int, hubs: int, seed: int) -> None:
        self._connections: Final = connections
        self._hubs: Final = hubs
        self._seed: Final = seed
        self._created: list[None] = []
        self._found: Final = Found()

    def run(self) -> Found:
        """Do it, in the main greenlet."""
        began = monotonic()
        found = self._found
        said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]  # shorter than a class
        log = logging.getLogger("glb")
        level = log.level
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        Greenlet.add_spawn_callback(self._see)
        try:
            for number, count in enumerate(self._rounds()):
                self._fuzz(number, count)
            share = max(1, int(self._connections * KEEPERS_SHARE))
            self._keep_each(share)
            self._keep_none(share)
        finally:
            Greenlet.remove_spawn_callback(self._see)
            log.removeHandler(handler)
            log.setLevel(level)
        is_said = any("handlers run in fresh greenlets" in each for each in said)
        if PROOF.is_given is not True and not is_said:
            self._fault(f"greenlets aren't used again, and the log doesn't say so: {PROOF}")
        # So many may run at a time, on each hub; and some that wait to be looked at.
        if PROOF.is_given is True and found.used > 2 * AT_ONCE * self._hubs:
            self._fault(f"{found.keeping_none} connections that keep none need {found.used}")
        found.seconds = monotonic() - began
        return found

    def _rounds(self) -> Iterator[int]:
        left = self._connections
        while left > 0:
            yield min(left, ROUND)
            left -= ROUND

    def _fault(self, what: str) -> None:
        self._found.faults.append(what)

    def _see(self, greenlet: object) -> None:  # it keeps no reference: that would be a trace
        if isinstance(greenlet, HandlerGreenlet):
            self._created.append(None)

    # -- the fuzz -----------------------------------------------------------------------------

    def _fuzz(self, number: int, count: int) -> None:
        handle = _PerHub(f"{self._seed}-{number}")
        spawn: Any = ("default", BOUND)[number % 2]
        self._created.clear()
        home: Any = get_hub()
        try:
            with self._server(handle, spawn) as server:
                handle.server = server
                server.start()
                self._clients(server, count, number)
                self._wait(lambda: handle.total(lambda fuzz: len(fuzz.done)) == count, "handlers")
                self._let_go(server, handle)
                self._wait(lambda: server.active == 0, "active connections")
                stats = server.clone_stats()
        finally:
            home.__dict__.pop("handle_error", None)
        self._turn()
        found = self._found
        found.connections += count
        found.greenlets += len(self._created)
        accepted = sum(clone.accepted for clone in stats)
        over = sum(clone.completed + clone.failed for clone in stats)
        begun = handle.total(lambda fuzz: fuzz.begun)
        if not accepted == over == begun == count:
            self._fault(f"{count} connections: {accepted=}, {begun=}, {over=}")
        for fuzz in handle.fuzzes.values():
            self._look_at(fuzz)
        if PROOF.is_given is True and len(self._created) >= count > 10 * AT_ONCE:
            self._fault(f"round {number}: nothing was used again")
        handle.fuzzes.clear()
        self._look_for_alive()

    def _look_at(self, fuzz: Fuzz) -> None:
        found = self._found
        found.faults += fuzz.faults
        found.counts += fuzz.counts
        if fuzz.linked != fuzz.expected_links:
            self._fault(f"links ran {fuzz.linked.total()}, not {fuzz.expected_links.total()}")
        for greenlet, value in fuzz.values.items():
            if not (greenlet.dead and greenlet.ready()):
                self._fault(f"{greenlet!r} was kept, and is alive")
            elif value is GreenletExit or greenlet.exception is not None:
                continue
            elif greenlet.value != value:
                self._fault(f"{greenlet!r} returned {greenlet.value!r}, not {value!r}")

    def _let_go(self, server: StreamServer, handle: _PerHub) -> None:
        # Each in its own hub, as what it kept is that hub's.
        threads = {
            each.thread.hub: each.thread for each in server.glb_engine.workers if each.thread
        }
        answers = []
        for hub, fuzz in [*handle.fuzzes.items()]:
            if hub is get_hub():
                fuzz.end()
            else:
                answers.append(ask(threads[hub].send, partial(_end, fuzz)))
        for answer in answers:
            if answer(PATIENCE_SECONDS) is None:
                self._fault("what was kept doesn't end")

    def _look_for_alive(self) -> None:
        self._turn()
        gc.collect()
        alive = [each for each in gc.get_objects() if isinstance(each, HandlerGreenlet)]
        if count := sum(not each.dead for each in alive):
            self._fault(f"{count} handler greenlets are left")

    # -- programs that keep each greenlet, and none ---------------------------------------------

    def _keep_each(self, count: int) -> None:
        kept: list[Any] = []

        def handle(sock: Any, _peer: Any) -> None:
            number = len(kept)
            kept.append(getcurrent() if number % 2 else getcurrent().switch)
            if number % 4 < 2:
                gevent.sleep(0)
            sock.sendall(b"ok")

        self._serve(handle, count)
        greenlets = {each if isinstance(each, Greenlet) else each.__self__ for each in kept}
        found = self._found
        found.keeping, found.kept = len(kept), len(greenlets)
        if not len(greenlets) == len(kept) == count:
            self._fault(f"{count} connections, {len(kept)} kept, {len(greenlets)} greenlets")
        if alive := sum(not each.dead for each in greenlets):
            self._fault(f"{alive} of those that were kept are alive")

    def _keep_none(self, count: int) -> None:
        waits = random.Random(self._seed)

        def handle(sock: Any, _peer: Any) -> None:
            if waits.random() < 0.5:
                gevent.sleep(0)
            sock.sendall(b"ok")

        self._created.clear()
        self._serve(handle, count)
        self._found.keeping_none, self._found.used = count, len(self._created)

    def _serve(self, handle: Callable[..., object], count: int) -> None:
        with self._server(handle, "default") as server:
            server.start()
            self._clients(server, count, 0)
            self._wait(lambda: server.active == 0, "active connections")
        self._turn()

    # -- servers and clients ------------------------------------------------------------------

    @contextmanager
    def _server(self, handle: Callable[..., object], spawn: object) -> Iterator[StreamServer]:
        clones = max(3, self._hubs)
        server = StreamServer(LOCAL, handle, clones=clones, spawn=spawn, hubs=self._hubs)
        try:
            yield server
        finally:
            server.stop()

    def _clients(self, server: StreamServer, count: int, number: int) -> None:
        plan = [server.server_port, count, AT_ONCE, f"{self._seed}-{number}"]
        clients = subprocess.Popen(
            [sys.executable, "-m", "loadtests.isolation.clients", *map(str, plan)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            while clients.poll() is None:  # it gives up by itself
                gevent.sleep(0.01)
        finally:
            if clients.poll() is None:
                clients.kill()
            said, _ = clients.communicate()
        if clients.returncode:
            self._fault(f"clients: {said}")

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        until = monotonic() + PATIENCE_SECONDS
        while not holds():
            if monotonic() > until:
                self._fault(f"{what} are not done")
                return
            gevent.sleep(0.001)

    def _turn(self) -> None:
        for _ in range(5):
            gevent.sleep(0)
            gevent.idle()
