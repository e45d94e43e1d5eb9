"""Is a connection lost while a server takes over the address of another?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from .answers import Answer, Promise, Tell
from .load import Change, Load, loaded
from .process import Client, Server
from .words import KINDS

QUESTION = "Is a connection lost while a server takes over from another?"

KEPT = "kept alive"


@dataclass(frozen=True)
class Takeover:
    """*times* a server starts on the address of another, which drains.

    Under *rate* connections/s, and, by turns, with *kept* HTTP connections, each of which has a
    request about every *kept_pause_seconds*.
    """

    name: ClassVar[str] = "takeover"

    times: int = 20
    clones: int = 4
    hubs: int = 1
    rate: float = 500
    #: How long a handler is at work.
    handler_seconds: float = 0.02
    pause_seconds: float = 0.5
    kept: int = 50
    kept_pause_seconds: float = 0.1
    seed: int = 12

    @property
    def steps(self) -> int:
        return len(KINDS) + 1

    def run(self, tell: Tell) -> Answer:
        promises: list[Promise] = []
        notes: list[tuple[str, str]] = []
        with Server() as server, Client() as client:
            for kind, title in KINDS.items():
                tell(f"{self.name}: {title}")
                load, changes = self._under_load(server, client, kind)
                old, new = load.old_and_new(changes)
                promises += load.promises(title)
                promises.append(
                    Promise(f"{title}: made afterwards, old server's", load.stale(changes))
                )
                notes += load.notes(title)
                notes.append((f"{title}: meanwhile, old and new server's", f"{old:,}, {new:,}"))
                slowest = max(change.ms for change in changes)
                notes.append((f"{title}: the longest takeover, ms", f"{slowest:.0f}"))
            tell(f"{self.name}: {KEPT}")
            kept, begun = self._with_kept(server, client)
        failed = sum(kept["failures"].values()) + len(begun)
        never_begun = len(kept["raced"]) - len(begun)
        promises.append(Promise(f"{KEPT}: requests failed", failed))
        notes += [
            (f"{KEPT}: requests with a good reply", f"{kept['good']:,}"),
            (f"{KEPT}: connections", f"{kept['connected']:,}"),
            (f"{KEPT}: told by Connection: close", f"{kept['told']:,}"),
            (f"{KEPT}: met the end while idle", f"{kept['met the end']:,}"),
            (f"{KEPT}: raced, sent as it was closed, never begun", f"{never_begun:,}"),
        ]
        if kept["failures"]:
            notes.append((f"{KEPT}: failures", str(kept["failures"])))
        question = f"{QUESTION} {self.times} times, {self.rate:g}/s; {self.kept} connections kept"
        return Answer(question, promises, notes)

    def _open(self, server: Server, kind: str) -> int:
        return int(
            server.ask(
                "open",
                kind=kind,
                clones=self.clones,
                hubs=self.hubs,
                seconds=self.handler_seconds,
                reuse_port=True,
            )
        )

    def _take_over(self, server: Server) -> list[Change]:
        changes = []
        for number in range(1, self.times + 1):
            time.sleep(self.pause_seconds)
            report = server.ask("take_over")
            changes.append(Change(report["began"], report["ended"], number))
        time.sleep(self.pause_seconds)
        return changes

    def _under_load(self, server: Server, client: Client, kind: str) -> tuple[Load, list[Change]]:
        port = self._open(server, kind)
        with loaded(client, port, self.rate, is_http=kind == "http") as load:
            changes = self._take_over(server)
        server.ask("close")
        return load, changes

    def _with_kept(self, server: Server, client: Client) -> tuple[dict[str, Any], list[str]]:
        """Return what the clients counted, and those of the raced requests that had begun."""
        port = self._open(server, "http")
        client.ask(
            "keep", port=port, clients=self.kept, pause=self.kept_pause_seconds, seed=self.seed
        )
        self._take_over(server)
        kept = client.ask("keep_no_more")
        begun = server.ask("begun_of", paths=kept["raced"])
        server.ask("close")
        return kept, begun
