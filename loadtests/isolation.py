"""Does a handler ever meet anything of another's?

    python -m loadtests.isolation --connections 100000 --hubs 4 --seed 1

Handlers leave behind what a handler can leave (references, links, timeouts, attributes, locals,
context variables, kills on their way), and each looks on entry whether its greenlet is as fresh as
one of gevent's. Printed is what was found; the exit status is 1 if a handler met anything, a kept
greenlet was used again, or one that kept nothing was not and the log doesn't say so.
"""

from __future__ import annotations

import gc
import logging
import random
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import click
import gevent
from gevent import Greenlet, get_hub

from glb.hubs.greenlet_pool import PROOF, HandlerGreenlet
from glb.hubs.signals import ask

from .chaos import life
from .chaos.clients import Client, Crowd
from .chaos.life import Plan
from .chaos.run import Servers, command, run
from .chaos.tally import Tally
from .chaos.traces import Fuzz
from .chaos.work import Marks

#: No client of these waits for longer than a few milliseconds, but machines may be busy.
PATIENCE_SECONDS: Final = 30.0

#: More than a wake-up takes, few enough that each turn of the hub has several.
AT_ONCE: Final = 64

#: After so many everything is let go of, and a new server begins: what was left by then is looked
#: at while there is memory for it.
ROUND: Final = 5000

#: Handlers of a bounded server: fewer than there are clients.
BOUND: Final = 12

#: What glb logs if it doesn't use greenlets again.
FRESH: Final = "handlers run in fresh greenlets"


class Life(life.Life):
    """A server after another, whose handlers are a `Fuzz` for each hub."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._spawn: object = "default"
        # By hub: nothing of one is of another thread's.
        self._fuzzes: dict[Any, Fuzz] = {}
        self._created = 0
        self._is_told = False
        Greenlet.add_spawn_callback(self._see)
        logging.getLogger("glb").setLevel(logging.INFO)

    def _see(self, greenlet: object) -> None:  # it keeps no reference: that would be a trace
        self._created += isinstance(greenlet, HandlerGreenlet)

    def emit(self, record: logging.LogRecord) -> None:
        if FRESH in record.getMessage():
            self._is_told = True
        elif record.levelno >= logging.WARNING:
            super().emit(record)

    def arguments(self, dice: random.Random) -> tuple[dict[str, Any], str]:
        return {**super().arguments(dice)[0], "spawn": self._spawn}, f"spawn={self._spawn}"

    def handler(self, kind: str, marks: Marks) -> Any:
        return self._handle

    def _handle(self, sock: Any, peer: Any) -> object:
        hub: Any = get_hub()
        if hub not in self._fuzzes:
            fuzz = Fuzz(f"{self.plan.seed}-{self.dice.random()}")
            fuzz.server = self.services[0].servers[-1]
            hub.handle_error = fuzz.report
            self._fuzzes[hub] = fuzz
        return self._fuzzes[hub](sock, peer)

    def play(self, spawn: object) -> dict[str, int]:
        """Start a server that spawns so, in place of the last one."""
        self._spawn, self._created = spawn, 0
        return self.serve()

    def end_trouble(self) -> None:
        # Each in its own hub, as what it kept is that hub's.
        workers = [each for one in self.services[0].servers for each in one.glb_engine.workers]
        threads = {each.thread.hub: each.thread for each in workers if each.thread}
        ends = {hub: partial(_end, fuzz) for hub, fuzz in self._fuzzes.items()}
        answers = [ask(threads[hub].send, end) for hub, end in ends.items() if hub in threads]
        if get_hub() in ends:
            ends[get_hub()]()
        for answer in answers:
            self.tally.hold("what was kept ends", answer(PATIENCE_SECONDS) is not None)

    def judge(self, count: int) -> None:
        """Let go of all that handlers of *count* connections have left, and look at it."""
        self.rest()
        self.services[0].retire_all()
        get_hub().__dict__.pop("handle_error", None)
        for _ in range(5):
            gevent.sleep(0)
            gevent.idle()
        hold, created = self.tally.hold, self._created
        begun = sum(each.begun for each in self._fuzzes.values())
        hold("each connection has its handler", begun == count, f"{begun} of {count}")
        # So many may run at a time, on each hub; and some that wait to be looked at.
        most = 2 * AT_ONCE * self.plan.hubs + sum(each.spoiled for each in self._fuzzes.values())
        while self._fuzzes:
            self._judge_one(self._fuzzes.popitem()[1])
        self.tally.counts.update({"greenlets": created, "connections": count})
        is_given = PROOF.is_given is True
        detail = f"{created} of {count}, and {most} are enough; {PROOF}"
        hold("a greenlet without a trace is used again", not is_given or created <= most, detail)
        hold("or the log says that it isn't", is_given or self._is_told, detail)
        gc.collect()
        greenlets = [each for each in gc.get_objects() if isinstance(each, HandlerGreenlet)]
        left = sum(not each.dead for each in greenlets)
        hold("no handler's greenlet is left", not left, left)

    def _judge_one(self, fuzz: Fuzz) -> None:
        fuzz.look()
        self.tally.counts.update(fuzz.counts)
        for fault in fuzz.faults or [""]:
            self.tally.hold("a handler meets nothing of another's", not fault, fault)


def _end(fuzz: Fuzz) -> bool:
    fuzz.end()
    return True  # `None` is no answer


COMMANDS: Final = life.commands(Life)


# -- the command's process ----------------------------------------------------------------------


def isolate(
    connections: int, hubs: int, seed: int, python: Sequence[str] = (sys.executable,)
) -> Tally:
    """Return what was found with so many *connections*; *python* runs the servers' process."""
    plan = Plan(seed=seed, hubs=hubs, clones=max(3, hubs), kinds=["stream"])

    def course(servers: Servers, tally: Tally) -> None:
        for number, begun in enumerate(range(0, connections, ROUND)):
            count = min(ROUND, connections - begun)
            ports = servers.have("play", spawn=BOUND if number % 2 else "default")
            _come(Crowd(plan, tally, ports, PATIENCE_SECONDS), count, random.Random(seed + number))
            servers.have("judge", count=count)

    return run("isolation", plan, course, python)


def _come(crowd: Crowd, count: int, dice: random.Random) -> None:
    # In bursts, so that a wake-up of the server has several.
    while count:
        burst = min(count, dice.choice((1, 1, 2, 5, AT_ONCE // 2, AT_ONCE)))
        while len(crowd) + burst > AT_ONCE:
            gevent.sleep(0.001)
        for _ in range(burst):
            crowd.come("answers", _answer)
        count -= burst
    crowd.leave()


def _answer(client: Client) -> None:
    # It answers a question mark with an ``x``, until the server closes.
    sock = client.connect()
    with suppress(ConnectionError):  # its handler may have ended before the answer came
        while data := sock.recv(100):
            sock.sendall(b"x" * data.count(b"?"))


main = command(
    "isolation",
    __doc__,
    isolate,
    click.option(
        "--connections", type=click.IntRange(1, 1_000_000), default=100_000, show_default=True
    ),
    click.option("--hubs", type=click.IntRange(1, 16), default=1, show_default=True),
)

if __name__ == "__main__":
    main()
