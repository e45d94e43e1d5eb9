"""Does a server grow with the connections that it has served?"""

from __future__ import annotations

import pathlib
import tempfile
from dataclasses import dataclass
from typing import ClassVar, Final

from loadtests.frame import client as bench
from loadtests.frame.process import Cpus

from .answers import Answer, Promise, Tell
from .process import Server

QUESTION: Final = "Does a server grow with the connections that it has served?"

BYTE: Final = "x"


@dataclass(frozen=True)
class Memory:
    """Resident memory after *connections*, beside that after *first* of them: an echo of a byte."""

    name: ClassVar[str] = "memory"

    connections: int = 500_000
    first: int = 50_000
    concurrency: int = 64
    clones: int = 4
    hubs: int = 1
    most_mib: float = 2.0

    @property
    def steps(self) -> int:
        return 1

    def run(self, tell: Tell) -> Answer:
        tell(self.name)
        sizes, rates = [], []
        errors = served = 0
        with tempfile.TemporaryDirectory() as folder, Server() as server:
            program, _ = bench.compile_programs(pathlib.Path(folder))
            client = EchoClient(program, Cpus.available())
            port = server.ask("open", kind="echo", clones=self.clones, hubs=self.hubs)
            while served < self.connections:
                load = client.echo(
                    port, min(self.first, self.connections - served), self.concurrency
                )
                served += load.count
                errors += load.errors
                sizes.append(server.rss_mib())
                rates.append(load.count / load.seconds)
                if not load.count:
                    raise RuntimeError(f"doesn't answer: {server.complaints()[-1:]}")
            tracebacks = server.tracebacks()
        return Answer(
            f"{QUESTION} {self.connections:,}, of which the first {self.first:,} don't count",
            [
                Promise("MiB grown", round(sizes[-1] - sizes[0], 3), self.most_mib),
                Promise("connections without their byte", errors),
                Promise("tracebacks", tracebacks),
            ],
            [
                ("MiB, each time", " ".join(f"{size:.2f}" for size in sizes)),
                ("connections/s", f"{min(rates):,.0f} to {max(rates):,.0f}"),
            ],
        )


class EchoClient(bench.Client):
    """The client of `loadtests.frame`, which leaves no TIME_WAIT: ports don't run out."""

    def echo(self, port: int, count: int, concurrency: int) -> bench.Load:
        """Open *count* connections, *concurrency* at a time: a byte there, and back."""
        options = ["-n", str(count), "-q", BYTE, "-e", BYTE]
        return self._call("close", port, concurrency, bench.GIVE_UP_SECONDS, options)
