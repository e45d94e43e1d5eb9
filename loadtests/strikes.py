"""Does a server go on after signals whose handlers raise?

    python -m loadtests.strikes --signals 500 --hubs 4 --seed 1

A process serves streams and HTTP; signals strike its main thread at random moments, and their
handler raises: in handlers, in glb, in gevent, in the loop itself. After each, new clients are to
be served within two seconds; each client reads its own words or is closed; no thread closes a
descriptor of another's; and in the end all is as it was. It prints what was found; the exit status
is 1 if anything was not so.
"""

from __future__ import annotations

import inspect
import itertools
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import click
import gevent

import glb
from loadtests.frame.process import ProcessError

from .chaos import life
from .chaos.clients import Client, Crowd
from .chaos.life import Plan
from .chaos.run import ANSWER_SECONDS, Servers, command, run
from .chaos.service import wait_until
from .chaos.tally import Tally
from .chaos.work import BUSY

#: What strikes.
SIGNALS: Final = (signal.SIGUSR1, signal.SIGALRM)
#: When what would have struck the loop tries again.
AGAIN_SECONDS: Final = 0.0002

#: The longest pause before a signal. A connection takes less than one.
PAUSE_SECONDS: Final = 0.004

#: A server that goes on serves within this time, so many clients of each kind that come after a
#: signal. glb looks over what has stopped four times a second.
SERVED_SECONDS: Final = 2.0
SERVED_AFTER: Final = 3

#: So many clients are there at a time, and come and go so long before the first signal.
AT_ONCE: Final = 16
WARM_UP_SECONDS: Final = 0.5

#: A server that was deaf so often is not asked again. One that is deaf once stays so, as a rule.
MOST_DEAF: Final = 3

#: What is open and watched at a time: about as many as there are connections.
SENTINELS: Final = 16

_HOME: Final = os.path.dirname(glb.__file__) + os.sep
#: gevent's loop on libuv is Python, and what strikes there may wedge it: with gevent's own servers
#: as with glb's. That on libev is C, where no signal handler runs.
_LOOPS: Final = tuple(
    os.path.join(os.path.dirname(gevent.__file__), name, "") for name in ("_ffi", "libuv")
)

#: These count what happens, and hold a lock for it. From CPython 3.14 on a signal handler may raise
#: after a `with` has acquired a lock, and before anything would release it.
_COUNTING: Final = (inspect.getfile(Tally), life.__file__)

#: Python's file of a socket was struck in its constructor, before it had the socket: when it is
#: freed, Python's own close() says so.
HALF_MADE: Final = "'SocketIO' object has no attribute '_sock'"

#: What may be said: what struck; and on libuv, when another hub wakes one whose watcher was struck
#: and is not started again yet.
TOLERATED: Final = (
    "StruckError",
    "WARNING: gevent: Unhandled error with no watcher",
    "RuntimeError: cannot use from_handle() on NULL pointer",
)

#: Good ends of a client whose handler was struck.
STRUCK: Final = ("closed", "reset", "broken", "HTTP/1.1 400 ", "HTTP/1.1 500 ")


class StruckError(Exception):
    """What strikes."""


class Life(life.Life):
    """Servers that are struck."""

    _told = -1
    _is_over = False

    def is_planned(self, error: object) -> bool:
        return isinstance(error, StruckError) or str(error) == HALF_MADE

    def strike(self, told: str) -> None:
        """Let signals strike until the next line on standard input.

        Args:
            told: A file that gets a byte at the beginning, and then for each that has struck: one
                that comes while the loop runs does so a moment later.
        """
        self._told = os.open(told, os.O_WRONLY | os.O_APPEND)
        sentinels = threading.Thread(target=self._watch_descriptors)
        sentinels.start()
        for number in SIGNALS:
            signal.signal(number, self._strike)
        os.write(self._told, b"!")
        while signal.getsignal(SIGNALS[-1]) != signal.SIG_IGN:
            # Twice, as one may strike where the first is caught, and none follows at once. Not all
            # are what struck: on libuv gevent switches to a greenlet whose watcher was struck.
            try:
                # Seldom: each time it wakes a loop that would be deaf.
                while not select.select([0], [], [], 0)[0]:
                    self._pause(1.5 * SERVED_SECONDS)
                for number in SIGNALS:
                    signal.signal(number, signal.SIG_IGN)
            except Exception:
                self._pause(0)
        for _ in range(5):  # gevent may have a switch left from what struck the loop
            self._pause(0.01)
        os.read(0, 100)
        self._is_over = True
        sentinels.join()
        os.close(self._told)

    def _pause(self, seconds: float) -> None:
        try:
            gevent.sleep(seconds)
        except Exception as error:  # gevent gives the main greenlet what strikes the loop itself
            self.tally.count(f"reached the main greenlet: {type(error).__name__}")

    def _strike(self, _number: int, frame: Any) -> None:
        if _is_in_loop(frame) or frame.f_code.co_filename in _COUNTING:
            self.tally.count("spared: the loop, or what counts")
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
            return
        stack = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=6)
        lines = [f"{os.path.basename(each.filename)}:{each.lineno} {each.name}" for each in stack]
        self.tally.events.append((time.monotonic(), time.monotonic(), " < ".join(lines)))
        self.tally.count(f"struck: {os.path.dirname(stack[0].filename).rpartition(os.sep)[2]}")
        os.write(self._told, b"!")
        raise StruckError

    def _watch_descriptors(self) -> None:
        # A native thread that opens files and closes them, and looks whether they stay its own. A
        # descriptor that glb closes twice, or keeps as its own, is sooner or later one of these.
        with tempfile.TemporaryDirectory() as folder:
            names = [os.path.join(folder, str(index)) for index in range(SENTINELS)]
            files = [os.open(name, os.O_CREAT | os.O_RDWR) for name in names]
            nodes = [os.stat(name).st_ino for name in names]  # it may be closed already
            for turn in itertools.cycle(range(SENTINELS)):
                # Before the old one is closed: else it would have the same number again and again,
                # below those of the connections.
                fresh = os.open(names[turn], os.O_RDWR)
                found: object = None
                try:
                    found = os.fstat(files[turn]).st_ino
                    if found == nodes[turn]:
                        os.close(files[turn])
                except OSError as error:
                    found = error
                is_ours = found == nodes[turn]
                detail = f"descriptor {files[turn]} is {found}, and was {nodes[turn]}"
                self.tally.hold("a descriptor is closed by its owner alone", is_ours, detail)
                files[turn] = fresh
                if self._is_over:
                    break
                time.sleep(0.0005)
            for each in files:
                with suppress(OSError):
                    os.close(each)


def _is_in_loop(frame: Any) -> bool:
    if frame.f_code.co_name == "python_check_callback":
        return False  # where gevent looks for signals, and gives the main greenlet what they raise
    while frame is not None and not frame.f_code.co_filename.startswith(_HOME):
        if frame.f_code.co_filename.startswith(_LOOPS):
            return True
        frame = frame.f_back
    return False


COMMANDS: Final = life.commands(Life)


# -- the command's process ----------------------------------------------------------------------


class Strikes:
    """Signals to *servers*, and a look after each whether clients are served.

    Args:
        told: A file that gets a byte for each that strikes, after a first one.
    """

    def __init__(self, plan: Plan, servers: Servers, tally: Tally, told: str) -> None:
        self._dice: Final = random.Random(plan.seed)
        self._servers: Final = servers
        self._tally: Final = tally
        self._told: Final = told
        self._crowd: Final = Crowd(plan, tally, servers.have("serve"), SERVED_SECONDS, STRUCK)
        # Replies, by the client's kind and by how many signals had struck when it came, and then.
        self._served: Counter[tuple[str, int]] = Counter()

    def run(self, signals: int) -> None:
        """Send so many, and have the servers come to rest."""
        comes = gevent.spawn(self._come)
        gevent.sleep(WARM_UP_SECONDS)
        self._servers.order("have", it="strike", told=self._told)
        wait_until(lambda: self._count() == 0, ANSWER_SECONDS)
        deaf = sent = 0
        while self._count() < signals and deaf < MOST_DEAF and sent < 2 * signals:
            deaf += not self._strike()
            sent += 1
        comes.kill()
        self._crowd.leave()
        if deaf == MOST_DEAF:
            raise ProcessError(f"it is deaf after {self._count()} signals")
        self._tally.hold("signals strike", self._count() >= signals, f"{self._count()} of {sent}")
        self._servers.tell("over")
        until = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                self._servers.answer(0.5)
                break
            except ProcessError:
                if time.monotonic() > until or not self._servers.is_running():
                    raise
            # On libuv what struck may have left the main greenlet asleep: another one wakes it.
            self._servers.signal(SIGNALS[0])
        self._servers.have("rest")

    def _count(self) -> int:
        # How many have struck.
        return os.stat(self._told).st_size - 1

    def _come(self) -> None:
        while True:
            while len(self._crowd) < AT_ONCE:
                self._crowd.come("visits", self._visit)
            gevent.sleep(0.001)

    def _visit(self, client: Client) -> None:
        count = self._count()
        for _ in range(client.dice.choice((1, 1, 1, 2, 3))):
            client.ask(BUSY, 10, is_last=False)
            self._served[client.kind, count] += count == self._count()

    def _strike(self) -> bool:
        # Whether clients were served again.
        gevent.sleep(self._dice.uniform(0.001, PAUSE_SECONDS))
        before = self._count()
        self._servers.signal(self._dice.choice(SIGNALS))
        wait_until(lambda: self._count() > before, SERVED_SECONDS, 0.001)

        def are_served() -> bool:
            count = self._count()
            return all(self._served[kind, count] >= SERVED_AFTER for kind in self._crowd.ports)

        is_served = wait_until(are_served, SERVED_SECONDS, 0.001)
        detail = f"after {self._count()} signals: {self._served}"
        self._tally.hold("new clients are served after a signal", is_served, detail)
        self._served.clear()
        return is_served


def strike(signals: int, hubs: int, seed: int, python: Sequence[str] = (sys.executable,)) -> Tally:
    """Return what was found after so many *signals*; *python* runs the servers' process."""
    plan = Plan(seed=seed, hubs=hubs, clones=8)

    def course(servers: Servers, tally: Tally) -> None:
        with tempfile.NamedTemporaryFile() as told:
            Strikes(plan, servers, tally, told.name).run(signals)

    return run("strikes", plan, course, python, TOLERATED)


main = command(
    "strikes",
    __doc__,
    strike,
    click.option("--signals", type=click.IntRange(1, 100_000), default=500, show_default=True),
    click.option("--hubs", type=click.IntRange(1, 8), default=1, show_default=True),
)

if __name__ == "__main__":
    main()
