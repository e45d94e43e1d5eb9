"""Is a connection lost while clones come and go?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from .answers import Answer, Promise, Tell
from .load import Load, loaded, spread
from .process import Client, Server
from .words import KINDS

QUESTION = "Is a connection lost while clones come and go?"


@dataclass(frozen=True)
class Resize:
    """*times* from *few* clones to *many* and back, under *rate* connections/s."""

    name: ClassVar[str] = "resize"

    times: int = 20
    few: int = 1
    many: int = 16
    hubs: int = 1
    rate: float = 500
    #: How long a handler is at work.
    handler_seconds: float = 0.02
    pause_seconds: float = 0.25

    @property
    def steps(self) -> int:
        return len(KINDS)

    def run(self, tell: Tell) -> Answer:
        promises: list[Promise] = []
        notes: list[tuple[str, str]] = []
        few = max(self.few, self.hubs)
        with Server() as server, Client() as client:
            for kind, title in KINDS.items():
                tell(f"{self.name}: {title}")
                load, spreads, seconds = self._resize(server, client, kind, few)
                promises += load.promises(title)
                promises.append(
                    Promise(f"{title}: turns of {self.many} clones differ by", max(spreads), 1)
                )
                notes += load.notes(title)
                notes.append((f"{title}: the longest resize, ms", f"{max(seconds) * 1e3:.0f}"))
        question = f"{QUESTION} {few} -> {self.many} -> {few}, {self.times} times, {self.rate:g}/s"
        return Answer(question, promises, notes)

    def _resize(
        self, server: Server, client: Client, kind: str, few: int
    ) -> tuple[Load, list[int], list[float]]:
        port = server.ask(
            "open", kind=kind, clones=few, hubs=self.hubs, seconds=self.handler_seconds
        )
        spreads, seconds = [], []
        with loaded(client, port, self.rate, is_http=kind == "http") as load:
            for _ in range(self.times):
                began = time.monotonic()
                _, then = server.ask("resize", clones=self.many)
                seconds.append(time.monotonic() - began)
                time.sleep(self.pause_seconds)
                began = time.monotonic()
                # What each was given from when there were many of them until there are few.
                before, _ = server.ask("resize", clones=few)
                seconds.append(time.monotonic() - began)
                spreads.append(spread(then, before))
                time.sleep(self.pause_seconds)
        server.ask("close")
        return load, spreads, seconds
