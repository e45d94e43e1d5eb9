"""Do silent clients keep the others waiting, and are they gone in time?"""

from __future__ import annotations

import pathlib
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import ClassVar, Final

from loadtests.frame.client import Client as CClient
from loadtests.frame.client import compile_programs
from loadtests.frame.process import START_MAX_SECONDS, Cpus

from .answers import Answer, Promise, Tell
from .process import ANSWER_SECONDS, Client, Process

QUESTION: Final = "Do silent clients keep the others waiting, and are they gone in time?"

#: One timer looks for all that are silent, each quarter of the time that they have: see
#: `glb.serve.idle`.
LATE: Final = 1.25

#: ``python -m glb``, which ends with us.
GLB: Final = """
from loadtests.lossless.worker import end_with_parent
end_with_parent()
from glb.__main__ import main
main()
"""

#: Server and client don't see a connection begin in the same moment.
EARLY: Final = 0.98


@dataclass(frozen=True)
class Silent:
    """*rounds* of good clients, *rate* a second, first alone and then with *silent* ones.

    Good ones come in *windows* of *seconds*, which are over before *deadline*,
    ``--first-byte-timeout``. Each window has its p99, and the median counts: many short ones,
    since another process that takes the CPU for 4 ms makes the p99 of its window, and of the
    longer one as well.
    """

    name: ClassVar[str] = "silent"

    rounds: int = 7
    silent: int = 2_000
    rate: float = 500
    windows: int = 6
    seconds: float = 0.6
    deadline: float = 6.0
    most_connections: int = 4_000
    clones: int = 4
    hubs: int = 1
    most_ratio: float = 2.0
    #: What a client may see of the end later than the server brought it about.
    slack_seconds: float = 0.0

    @property
    def steps(self) -> int:
        return self.rounds

    def run(self, tell: Tell) -> Answer:
        alone: list[float] = []
        beside: list[float] = []
        waits: list[float] = []
        stayed: list[float] = []
        errors: list[int] = []
        left = served = 0
        with tempfile.TemporaryDirectory() as folder, Client() as client, self._serve() as server:
            good = CClient(compile_programs(pathlib.Path(folder))[0], Cpus.available())
            port = server.port()

            def come(p99: list[float], beside: int = 0) -> None:
                nonlocal served
                for _ in range(self.windows):
                    load = good.open(port, self.seconds, self.rate, http=True, body=None)
                    if server.descriptors() >= beside:  # otherwise they have begun to leave
                        p99.append(load.p99)
                    errors.append(load.errors)
                    served += load.count

            come([])  # what the first ones load
            for number in range(1, self.rounds + 1):
                tell(f"{self.name}: round {number}")
                come(alone)
                client.ask("be_silent", port=port, count=self.silent)
                # Beside clients that are there: while they come they wait for each other.
                server.wait_for_descriptors(self.silent)
                accepted = time.monotonic()
                come(beside, self.silent)
                within = 2 * self.deadline
                found = client.ask("waits", within=within + ANSWER_SECONDS, at_most=within)
                waits += found["waits"]
                # Time in the accept queue doesn't count: it is the machine's.
                stayed.append(found["last"] - accepted)
                left += found["left"]
            tracebacks = server.tracebacks()
        p99 = [statistics.median(each) / 1e3 for each in (alone, beside)]
        spans = [f"{min(each) / 1e3:.2f} to {max(each) / 1e3:.2f}" for each in (alone, beside)]
        first, last = min(waits, default=None), max(waits, default=0)
        return Answer(
            f"{QUESTION} {self.silent:,} of them, {self.rate:g} good ones/s, "
            f"glb serve --first-byte-timeout {self.deadline:g}",
            [
                Promise(
                    "p99 of good ones beside them, by p99 alone", p99[1] / p99[0], self.most_ratio
                ),
                Promise("good ones not served within a second", sum(errors)),
                Promise("silent ones that stayed", left),
                Promise(
                    "s from the last accept until the last was gone",
                    max(stayed),
                    LATE * self.deadline + self.slack_seconds,
                ),
                Promise(
                    "s from connecting until the first was gone",
                    first,
                    EARLY * self.deadline,
                    is_floor=True,
                ),
                Promise("tracebacks", tracebacks),
            ],
            [
                ("good ones", f"{served:,}"),
                ("s from connecting until the last was gone", f"{last:.2f}"),
                ("median p99 alone, beside them, ms", f"{p99[0]:.2f}, {p99[1]:.2f}"),
                ("p99 of the windows alone, ms", spans[0]),
                ("p99 of the windows beside them, ms", spans[1]),
            ],
            details={"p99_us": {"alone": alone, "beside": beside}, "errors": errors},
        )

    def _serve(self) -> Serve:
        options = {
            "--bind": "127.0.0.1:0",
            "--clones": max(self.clones, self.hubs),
            "--hubs": self.hubs,
            "--first-byte-timeout": self.deadline,
            "--max-connections": self.most_connections,
        }
        return Serve([str(word) for pair in options.items() for word in pair])


class Serve(Process):
    """A process of ``glb serve``, with its built-in page."""

    def __init__(self, options: list[str]) -> None:
        super().__init__([sys.executable, "-c", GLB, "serve", *options], Cpus.available().server)

    def port(self) -> int:
        """Return the port that it serves, when it does.

        Raises:
            RuntimeError: It doesn't.
        """
        deadline = time.monotonic() + START_MAX_SECONDS
        while time.monotonic() < deadline and self.is_running():
            for line in self.complaints():
                if found := re.search(r"serving .* on http://127\.0\.0\.1:(\d+) ", line):
                    return int(found[1])
            time.sleep(0.02)
        raise RuntimeError(f"did not start: {self.last_words()}")

    def wait_for_descriptors(self, count: int) -> None:
        """Wait until it has so many.

        Raises:
            RuntimeError: It never has.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        while self.descriptors() < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"has {self.descriptors()} descriptors, and not {count}")
            time.sleep(0.02)

    def _stop(self) -> None:
        if self.is_running():
            self._process.terminate()
