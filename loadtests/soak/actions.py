"""Actions: what is done to servers all the time, each kind in a greenlet of its own.

So everything may happen within anything else: a pause within a roll within a drain. Only what
would fail for a lack of descriptors that the soak brings about itself is kept apart: see
`Actions.steady`.
"""

from __future__ import annotations

import functools
import os
import random
import resource
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from .plan import Plan
from .service import Service
from .tally import Tally
from .work import Versions, Work

__all__ = ["Actions"]

#: How long it is, on the average, from the end of one action to the next of its kind, in seconds.
PAUSE_EVERY: Final = 0.4
REPLACE_EVERY: Final = 0.7
RESIZE_EVERY: Final = 1.0
STOP_EVERY: Final = 1.5
TAKE_OVER_EVERY: Final = 2.0
STARVE_EVERY: Final = 3.0
FORK_EVERY: Final = 3.0

#: So long a child has to end its copies of the servers, in seconds.
CHILD_SECONDS: Final = 20

#: How often a server stops accepting before it ends.
STOPPED_FIRST: Final = 0.2


class Actions:
    """What is done to *services* until `end`."""

    def __init__(
        self,
        plan: Plan,
        services: Sequence[Service],
        work: Work,
        versions: Versions,
        tally: Tally,
    ) -> None:
        self._plan: Final = plan
        self._services: Final = services
        self._work: Final = work
        self._versions: Final = versions
        self._tally: Final = tally
        self._is_over: Final = Event()
        self._is_steady: Final = BoundedSemaphore(1)
        self._greenlets: list[Any] = []

    def start(self) -> None:
        """Begin."""
        dice = random.Random(self._plan.seed)
        kinds: dict[Callable[[Service, random.Random], None], float] = {
            self._pause: PAUSE_EVERY,
            self._replace: REPLACE_EVERY,
            self._resize: RESIZE_EVERY,
            self._stop_accepting: STOP_EVERY,
            self._take_over: TAKE_OVER_EVERY,
        }
        for service in self._services:
            for act, every in kinds.items():
                one = functools.partial(act, service)
                self._greenlets.append(
                    gevent.spawn(self._repeat, one, every, random.Random(dice.random()))
                )
        for whole, every in {self._starve: STARVE_EVERY, self._fork: FORK_EVERY}.items():
            self._greenlets.append(
                gevent.spawn(self._repeat, whole, every, random.Random(dice.random()))
            )

    def end(self) -> None:
        """Let what goes on come to its end, and leave the servers as they are meant to be."""
        self._is_over.set()
        gevent.joinall(self._greenlets)
        self._greenlets.clear()
        for service in self._services:
            for server in service.staying:
                for index in range(len(server.clone_stats())):
                    server.resume_clone(index)
                server.start_accepting()

    @contextmanager
    def steady(self) -> Iterator[None]:
        """Within it the process isn't out of descriptors, but for reasons of its own."""
        with self._is_steady:
            yield

    def _repeat(
        self, act: Callable[[random.Random], None], every: float, dice: random.Random
    ) -> None:
        while not self._is_over.wait(dice.expovariate(1 / every)):
            try:
                act(dice)
            except Exception as error:
                self._tally.hold("actions don't fail", False, f"{act}: {error!r}")

    # -- each kind ------------------------------------------------------------------------------

    def _pause(self, service: Service, dice: random.Random) -> None:
        began = self._tally.seconds
        server = dice.choice(service.staying)
        paused = [
            index for index in range(len(server.clone_stats())) if dice.random() < dice.random()
        ]
        for index in paused:
            server.pause_clone(index)
        gevent.sleep(dice.uniform(0.002, 0.4))
        for index in paused:
            if index < len(server.clone_stats()):  # it may have been resized
                server.resume_clone(index)
        self._tally.act("pause, resume", began)

    def _replace(self, service: Service, dice: random.Random) -> None:
        began = self._tally.seconds
        server = dice.choice(service.staying)
        number, version = server.soak_number, self._versions.next()
        handle = self._work.handler(service.kind, number, version)
        changing = self._versions.changing()
        waits = dice.random() < 0.7
        count = len(server.clone_stats())
        way = dice.choice(["replace_clone", "roll", "roll with a factory"])
        if way == "replace_clone":
            clones = [dice.randrange(count)]
            reports = [server.replace_clone(clones[0], handle, wait=waits)]
        else:
            clones = [*range(count)]
            if way == "roll":
                report = server.roll(handle, wait=waits)
            else:
                report = server.roll(handler_factory=lambda _index: handle, wait=waits)
            reports = [*report.clones]
        if waits:
            for clone in clones:
                self._versions.changed(changing, number, clone, version)
        killed = sum(each.killed for each in reports)
        self._tally.hold("a roll without a deadline kills nobody", killed == 0, reports)
        self._tally.act(f"{way}, {'waiting' if waits else 'at once'}", began)

    def _resize(self, service: Service, dice: random.Random) -> None:
        began = self._tally.seconds
        server = dice.choice(service.staying)
        clones = dice.randint(server.hubs, max(server.hubs, 2 * self._plan.clones))
        before = len(server.clone_stats())
        self._versions.resizing(server.soak_number)
        try:
            report = server.resize(clones)
        except OSError as error:
            self._tally.act(f"resize refused: {error.strerror}", began)
            return
        finally:
            self._versions.resizing(server.soak_number)
        self._tally.hold("a resize without a deadline kills nobody", report.killed == 0, report)
        self._tally.act("resize up" if clones > before else "resize down", began)

    def _stop_accepting(self, service: Service, dice: random.Random) -> None:
        began = self._tally.seconds
        server = dice.choice(service.staying)
        server.stop_accepting()
        gevent.sleep(dice.uniform(0.002, 0.3))
        if server not in service.leaving and server in service.servers:
            server.start_accepting()
        self._tally.act("stop_accepting, start_accepting", began)

    def _take_over(self, service: Service, dice: random.Random) -> None:
        began = self._tally.seconds
        with self.steady():
            service.add(dice)
        gevent.sleep(dice.uniform(0.002, 0.5))
        # Now and then the new one goes again, and the old one stays.
        server = dice.choice(service.staying[:1] * 2 + service.staying[-1:])
        how = dice.choice(["drain", "drain", "drain", "stop", "close"])
        if dice.random() < STOPPED_FIRST:
            server.stop_accepting()
            how += " after stop_accepting"
        service.retire(server, how.split()[0])
        self._tally.act(f"take-over, {how}", began)

    def _starve(self, dice: random.Random) -> None:
        with self.steady():
            began = self._tally.seconds
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + dice.randint(0, 3), hard))
            try:
                gevent.sleep(dice.uniform(0.05, 0.3))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self._tally.act("out of descriptors", began)

    def _fork(self, dice: random.Random) -> None:
        """Have a child end its copies of the servers; the parent's are to notice nothing."""
        with self.steady():
            began = self._tally.seconds
            closes = dice.random() < 0.7
            with warnings.catch_warnings():
                # From 3.12 on: that other threads run is what this is about.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                self._end_child(closes=closes)
            status = _wait_for_child(pid)
        self._tally.hold("a forked child ends its servers", status == 0, status)
        self._tally.act("fork, close in the child" if closes else "fork", began)

    def _end_child(self, *, closes: bool) -> NoReturn:
        # It lets no other greenlet run: they would reply to the parent's clients.
        status = 1
        try:
            signal.alarm(CHILD_SECONDS)
            for server in [each for service in self._services for each in service.servers]:
                if closes:
                    server.close()
            status = 0
        finally:
            os._exit(status)


def _wait_for_child(pid: int) -> int:
    """Return the child's status; 0 if gevent's loop, on libuv, has reaped it before."""
    while True:
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return 0
        if ended:
            return status
        gevent.sleep(0.01)
