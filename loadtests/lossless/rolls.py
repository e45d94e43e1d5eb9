"""Is a connection lost while the handlers of a server are replaced, again and again?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

from .answers import Answer, Promise, Tell
from .load import Change, Load, loaded
from .process import Client, Server
from .words import KINDS

QUESTION = "Is a connection lost while handlers are rolled?"


@dataclass(frozen=True)
class Rolls:
    """*rolls* of *clones*, under *rate* connections/s of which each has a handler for a while."""

    name: ClassVar[str] = "rolls"

    rolls: int = 20
    clones: int = 4
    hubs: int = 1
    rate: float = 500
    #: How long a handler is at work.
    handler_seconds: float = 0.02
    pause_seconds: float = 0.5

    @property
    def steps(self) -> int:
        return len(KINDS)

    def run(self, tell: Tell) -> Answer:
        promises: list[Promise] = []
        notes: list[tuple[str, str]] = []
        with Server() as server, Client() as client:
            for kind, title in KINDS.items():
                tell(f"{self.name}: {title}")
                load, changes, accepted = self._roll(server, client, kind)
                promises += load.promises(title)
                promises += [
                    Promise(f"{title}: made after a roll, old handler's", load.stale(changes)),
                    Promise(f"{title}: clones' turns differ by", max(accepted) - min(accepted), 1),
                ]
                old, new = load.old_and_new(changes)
                slowest = max(change.ms for change in changes)
                notes += load.notes(title)
                notes.append((f"{title}: during rolls, old and new handler's", f"{old:,}, {new:,}"))
                notes.append((f"{title}: the longest roll, ms", f"{slowest:.0f}"))
        question = f"{QUESTION} {self.rolls} rolls of {self.clones} clones, {self.rate:g}/s"
        return Answer(question, promises, notes)

    def _roll(
        self, server: Server, client: Client, kind: str
    ) -> tuple[Load, list[Change], list[int]]:
        port = server.ask(
            "open", kind=kind, clones=self.clones, hubs=self.hubs, seconds=self.handler_seconds
        )
        changes = []
        with loaded(client, port, self.rate, is_http=kind == "http") as load:
            for number in range(1, self.rolls + 1):
                time.sleep(self.pause_seconds)
                changes.append(Change(**server.ask("roll"), generation=number))
            time.sleep(self.pause_seconds)
        accepted = server.ask("accepted")
        server.ask("close")
        return load, changes, accepted
