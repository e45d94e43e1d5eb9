"""Does a server keep its invariants when everything goes wrong at once?

    python -m loadtests.soak --seconds 60

It runs for a given time: clients that come and go, reset before they are accepted, stop in the
middle of a request, read in drips, crash handlers; clones that are paused, replaced, rolled and
resized; servers that fill up, stop accepting, run out of descriptors, and are taken over by
others; children that are forked and close their copies. Once a second every invariant is checked,
and in the end everything must be as it was before. It prints tables of all that was done and found.
Exit status 0 only if no invariant was violated, and no proper request lost.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Final

import click
import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool

from glb.model.policy import Policy
from loadtests.frame.command import json_option
from loadtests.frame.traffic import Fate, ask, connect, new_request

from .chaos import life
from .chaos.clients import BEHAVIOURS, Crowd
from .chaos.life import Plan
from .chaos.run import Servers, command, run
from .chaos.service import Service
from .chaos.tally import Tally

KINDS: Final = ["stream", "http"]

POLICIES: Final = [each.value for each in Policy]

#: A server with such a timeout closes silent clients. Longer than any proper client is silent,
#: however busy the machine.
FIRST_BYTE_SECONDS: Final = 3.0

#: What a connection is held for, on the average of all behaviours, in seconds: as measured, with
#: the default rate. Limits come from it, so that they are met now and then.
MEAN_HOLD_SECONDS: Final = 0.2

#: How often it is looked at everything.
LOOK_SECONDS: Final = 1.0

#: How often a server stops accepting before it ends.
STOPPED_FIRST: Final = 0.2

#: So long a child has to end its copies of the servers, in seconds.
CHILD_SECONDS: Final = 20

#: When a client gives up, in seconds: longer than any pause, and anything that is in the way.
GIVE_UP_SECONDS: Final = 20.0

#: As many clients at once, and no more come: then the process could not look after them.
MOST_CLIENTS: Final = 400

#: How often, on the average, many come at once.
BURST_EVERY_SECONDS: Final = 2.5

#: What runs the servers' process.
PYTHON: Final = (sys.executable, "-W", "always::ResourceWarning")


def room_of(plan: Plan) -> int:
    """Return how many connections a server with a limit takes at once, about."""
    return max(8, round(1.5 * MEAN_HOLD_SECONDS * plan.rate / len(plan.kinds)))


class Life(life.Life):
    """Servers to which something is done all the time, each kind of it in a greenlet of its own.

    So everything may happen within anything else: a pause within a roll within a drain. Only what
    would fail for a lack of descriptors that the soak brings about itself is kept apart: `steady`.
    """

    def __init__(self, plan: Plan) -> None:
        self._is_steady: Final = BoundedSemaphore(1)
        self._is_over: Final = Event()
        self._greenlets: list[Any] = []
        super().__init__(plan)

    def steady(self) -> Any:
        return self._is_steady

    def arguments(self, dice: random.Random) -> tuple[dict[str, Any], str]:
        plan, room = self.plan, room_of(self.plan)
        hubs = dice.choice([plan.hubs, plan.hubs, 1])
        clones = max(hubs, dice.randint(max(1, plan.clones - 1), plan.clones + 1))
        limits: dict[str, dict[str, Any]] = {
            "no limit": {},
            "a number for spawn": {"spawn": room},
            "max_connections": {"max_connections": room},
            "max_connections_per_clone": {"max_connections_per_clone": max(2, room // clones)},
            "accept_rate": {"accept_rate": 1.5 * plan.rate / len(plan.kinds)},
            "spawn=gevent.spawn": {"spawn": gevent.spawn},
        }
        if hubs == 1:
            limits["a pool"] = {"spawn": Pool(room)}
        name = dice.choice([*limits])
        found = {**limits[name], "clones": clones, "hubs": hubs, "policy": plan.policy}
        if dice.random() < 0.3:
            found["first_byte_timeout"] = FIRST_BYTE_SECONDS
            name += ", first_byte_timeout"
        return found, name

    def start_trouble(self) -> None:
        """Look at all once a second, and do something to servers, until `end_trouble`."""
        # How long it is, on the average, from the end of each to the next time, in seconds.
        kinds: dict[Callable[[Service, random.Random], str], float] = {
            self._pause: 0.4,
            self._replace: 0.7,
            self._resize: 1.0,
            self._stop_accepting: 1.5,
            self._take_over: 2.0,
            self._starve: 6.0,
            self._fork: 6.0,
        }
        self._greenlets.append(gevent.spawn(self._look))
        for service in self.services if self.plan.trouble else ():
            for act, every in kinds.items():
                dice = random.Random(self.dice.random())
                self._greenlets.append(gevent.spawn(self._repeat, act, service, every, dice))

    def end_trouble(self) -> None:
        self._is_over.set()
        gevent.joinall(self._greenlets)
        self._greenlets.clear()
        for service in self.services:
            for server in service.staying:
                for index in range(len(server.clone_stats())):
                    server.resume_clone(index)
                server.start_accepting()

    def _look(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            self.checks.look()

    def _repeat(
        self,
        act: Callable[[Service, random.Random], str],
        service: Service,
        every: float,
        dice: random.Random,
    ) -> None:
        # A shorter time than 1 ms would be a warning with libuv.
        while not self._is_over.wait(0.001 + dice.expovariate(1 / every)):
            began = time.monotonic()
            try:
                self.tally.act(act(service, dice), began)
            except Exception as error:
                self.tally.hold("what is done doesn't fail", False, f"{act}: {error!r}", began)

    def _pause(self, service: Service, dice: random.Random) -> str:
        server = dice.choice(service.staying)
        count = len(server.clone_stats())
        paused = [index for index in range(count) if dice.random() < dice.random()]
        for index in paused:
            server.pause_clone(index)
        gevent.sleep(dice.uniform(0.002, 0.4))
        for index in paused:
            if index < len(server.clone_stats()):  # it may have been resized
                server.resume_clone(index)
        return "pause, resume"

    def _replace(self, service: Service, dice: random.Random) -> str:
        server = dice.choice(service.staying)
        handle, resized = self.work.handler(service.kind, server.marks), server.marks.resized
        waits = dice.random() < 0.7
        clones = [*range(len(server.clone_stats()))]
        way = dice.choice(["replace_clone", "roll", "roll with a factory"])
        if way == "replace_clone":
            clones = [dice.choice(clones)]
            reports = [server.replace_clone(clones[0], handle, wait=waits)]
        elif way == "roll":
            reports = [*server.roll(handle, wait=waits).clones]
        else:
            reports = [*server.roll(handler_factory=lambda _: handle, wait=waits).clones]
        if waits and resized == server.marks.resized:  # or they may be others by now
            server.marks.oldest.update(dict.fromkeys(clones, handle.version))
        killed = sum(each.killed for each in reports)
        self.tally.hold("a roll without a deadline kills no handler", killed == 0, reports)
        return f"{way}, {'waiting' if waits else 'at once'}"

    def _resize(self, service: Service, dice: random.Random) -> str:
        server = dice.choice(service.staying)
        clones = dice.randint(server.hubs, max(server.hubs, 2 * self.plan.clones))
        before = len(server.clone_stats())
        server.marks.resize()
        try:
            report = server.resize(clones)
        except OSError as error:
            return f"resize refused: {error.strerror}"
        finally:
            server.marks.resize()
        self.tally.hold("a resize without a deadline kills no handler", report.killed == 0, report)
        return "resize up" if clones > before else "resize down"

    def _stop_accepting(self, service: Service, dice: random.Random) -> str:
        server = dice.choice(service.staying)
        server.stop_accepting()
        gevent.sleep(dice.uniform(0.002, 0.3))
        if server in service.staying:
            server.start_accepting()
        return "stop_accepting, start_accepting"

    def _take_over(self, service: Service, dice: random.Random) -> str:
        with self.steady():
            service.add(dice)
        gevent.sleep(dice.uniform(0.002, 0.5))
        # Now and then the new one goes again, and the old one stays.
        server = dice.choice(service.staying[:1] * 2 + service.staying[-1:])
        how = dice.choice(["drain", "drain", "drain", "stop", "close"])
        is_stopped_first = dice.random() < STOPPED_FIRST
        if is_stopped_first:
            server.stop_accepting()
        service.retire(server, how)
        return f"take-over, {how}{' after stop_accepting' if is_stopped_first else ''}"

    def _starve(self, _service: Service, dice: random.Random) -> str:
        with self.steady():
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(0)
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + dice.randint(0, 3), hard))
            try:
                gevent.sleep(dice.uniform(0.05, 0.3))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return "out of descriptors"

    def _fork(self, _service: Service, dice: random.Random) -> str:
        # A child ends its copies of the servers; the parent's are to notice nothing. It lets no
        # other greenlet run: they would reply to the parent's clients.
        closes = dice.random() < 0.7
        with self.steady():
            with warnings.catch_warnings():
                # From 3.12 on: that other threads run is what this is about.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    signal.alarm(CHILD_SECONDS)
                    for each in self.services if closes else ():
                        for server in each.servers:
                            server.close()
                    status = 0
                finally:
                    os._exit(status)
            ended = status = 0
            while not ended:
                gevent.sleep(0.01)
                try:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:  # gevent's loop, on libuv, has reaped it
                    break
        self.tally.hold("a forked child ends its servers", status == 0, status)
        return "fork, close in the child" if closes else "fork"


COMMANDS: Final = life.commands(Life)


# -- the command's process ----------------------------------------------------------------------


def soak(plan: Plan, python: Sequence[str] = PYTHON) -> Tally:
    """Run *plan*, and return what was found; *python* runs the servers' process."""

    def course(servers: Servers, tally: Tally) -> None:
        crowd = Crowd(plan, tally, servers.have("serve"), GIVE_UP_SECONDS)
        servers.have("start_trouble")
        _come(plan, crowd, servers)
        servers.have("rest")
        # With several hubs one that has blocked has its turns back a while later: see
        # glb.accept.watchdog. No other policy's turns are exact.
        if plan.hubs == 1 and plan.policy == Policy.ROUND_ROBIN.value:
            for kind, port in crowd.ports.items():
                places = [_place(kind, port) for _ in range(8 * plan.clones)]
                turn = places[: len({*places})]
                is_in_turn = places == (turn * len(places))[: len(places)]
                tally.hold("turns are exact afterwards", is_in_turn, f"{kind}: {places}")

    return run("soak", plan, course, python)


def _place(kind: str, port: int) -> object:
    # The server and the clone that reply, or what came instead.
    try:
        with closing(connect(port)) as sock:
            return ask(sock, new_request(size=100), is_http=kind == "http").words
    except (OSError, Fate) as error:
        return repr(error)


def _come(plan: Plan, crowd: Crowd, servers: Servers) -> None:
    # Clients come for the plan's time, by and by, and in bursts.
    dice = random.Random(plan.seed)
    weights = {name: weight for name, (weight, _) in BEHAVIOURS.items()}
    if plan.hubs == 1:
        weights["asks for what blocks a hub"] = 0
    began = now = next_client = time.monotonic()
    next_burst = began + dice.uniform(0.3, 2) * min(1, plan.seconds / 5)
    while now < began + plan.seconds and servers.is_running():
        count = 0
        while next_client < now:
            next_client += dice.expovariate(plan.rate)
            count += 1
        if now > next_burst:
            next_burst = now + dice.expovariate(1 / BURST_EVERY_SECONDS)
            count += dice.randint(1, 3 * room_of(plan))
        count = min(count, max(0, MOST_CLIENTS - len(crowd)))
        for name in dice.choices([*weights], [*weights.values()], k=count):
            crowd.come(name, BEHAVIOURS[name][1])
        gevent.sleep(0.005)
        now = time.monotonic()
    crowd.leave()


def _soak(kind: str, **numbers: Any) -> Tally:
    plan = Plan(kinds=KINDS if kind == "both" else [kind], **numbers)
    if plan.clones < plan.hubs:
        raise click.BadParameter(f"{plan.hubs} hubs need as many clones, got {plan.clones}")
    return soak(plan)


main = command(
    "soak",
    __doc__,
    _soak,
    click.option("--seconds", type=click.FloatRange(0, min_open=True), default=60.0),
    click.option("--clones", type=click.IntRange(1), default=4),
    click.option("--hubs", type=click.IntRange(1), default=1),
    click.option("--kind", type=click.Choice([*KINDS, "both"]), default="both"),
    click.option("--rate", type=click.FloatRange(1, 2000), default=150.0, help="Clients a second."),
    click.option("--policy", type=click.Choice(POLICIES), default=POLICIES[0]),
    json_option("File for all that was found."),
)

if __name__ == "__main__":
    main()
