"""Does a server that is out of descriptors come back by itself, and how much does it log?"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import ClassVar, Final

from .answers import Answer, Promise, Tell
from .process import Client, Server

QUESTION: Final = "Does a server that is out of descriptors come back by itself?"

#: Longer than an episode lasts for the log after its last failure: see `glb.accept.dispatcher`.
CALM_SECONDS: Final = 1.5


@dataclass(frozen=True)
class Exhaustion:
    """*rounds* in which *clients* connect to a server that has room for fewer, and leave."""

    name: ClassVar[str] = "exhaustion"

    rounds: int = 200
    clients: int = 100
    #: For connections, and whatever else the server opens.
    descriptors: int = 50
    clones: int = 4
    hubs: int = 1
    #: One of so many rounds is an episode of its own for the log, and not one with those before.
    calm_each: int = 10

    @property
    def steps(self) -> int:
        return 1

    def run(self, tell: Tell) -> Answer:
        tell(self.name)
        lines, greeted, seconds = [0], [], []
        at_least = self.descriptors // 2
        with Server() as server, Client() as client:
            port = server.ask(
                "open",
                kind="hold",
                clones=self.clones,
                hubs=self.hubs,
                descriptors=self.descriptors,
            )
            for number in range(self.rounds):
                if number and number % self.calm_each == 0:
                    time.sleep(CALM_SECONDS)
                found = client.ask("exhaust", port=port, clients=self.clients, at_least=at_least)
                greeted.append(found["greeted"])
                if found["seconds"] is not None:
                    seconds.append(found["seconds"])
                lines.append(len(server.log_lines()))
            tracebacks = server.tracebacks()
            others = len(server.complaints()) - lines[-1]
        in_round = [after - before for before, after in itertools.pairwise(lines)]
        out = sum(at_least <= count < self.clients for count in greeted)
        return Answer(
            f"{QUESTION} {self.rounds} rounds",
            [
                Promise("rounds in which it was out", out, self.rounds, is_floor=True),
                Promise("rounds after which it was back", len(seconds), self.rounds, is_floor=True),
                Promise("most log lines in a round", max(in_round), 1),
                Promise("tracebacks", tracebacks),
            ],
            [
                ("log lines in all", f"{lines[-1]:,}"),
                ("other lines on stderr", f"{others:,}"),
                ("greeted before it was out", f"{min(greeted)} to {max(greeted)}"),
                ("longest until a client was greeted again, s", f"{max(seconds, default=0):.3f}"),
            ],
        )
