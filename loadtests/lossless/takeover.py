"""Is a connection lost while a server takes over the address of another?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

from .answers import Promise, Tell
from .kinds import Found, Loaded, Pair
from .load import Change
from .process import Client, Server

KEPT = "kept alive"


@dataclass(frozen=True)
class Takeover(Loaded):
    """*times* a server starts on the address of another, which drains.

    Under *rate* connections/s, and, by turns, with *kept* HTTP connections, each of which has a
    request about every *kept_pause_seconds*.
    """

    name: ClassVar[str] = "takeover"

    times: int = 20
    kept: int = 50
    kept_pause_seconds: float = 0.1
    seed: int = 12

    @property
    def steps(self) -> int:
        return super().steps + 1

    def options(self) -> dict[str, Any]:
        return {**super().options(), "reuse_port": True}

    def question(self) -> str:
        return (
            f"Is a connection lost while a server takes over from another? {self.times} times, "
            f"{self.rate:g}/s; {self.kept} connections kept"
        )

    def ask(self, pair: Pair, title: str, found: Found) -> None:
        with self.loaded(pair, title, found) as load:
            changes = self._take_over(pair.server)
        old, new = load.old_and_new(changes)
        slowest = max(change.ms for change in changes)
        found.promises.append(
            Promise(f"{title}: made afterwards, old server's", load.stale(changes))
        )
        found.notes += [
            (f"{title}: meanwhile, old and new server's", f"{old:,}, {new:,}"),
            (f"{title}: the longest takeover, ms", f"{slowest:.0f}"),
        ]

    def ask_more(self, server: Server, client: Client, tell: Tell, found: Found) -> None:
        tell(f"{self.name}: {KEPT}")
        with self.opened(server, client, "http") as pair:
            client.ask(
                "keep",
                port=pair.port,
                clients=self.kept,
                pause=self.kept_pause_seconds,
                seed=self.seed,
            )
            self._take_over(server)
            kept = client.ask("keep_no_more")
            # Those of the raced requests that had begun.
            begun = server.ask("begun_of", paths=kept["raced"])
        failed = sum(kept["failures"].values()) + len(begun)
        never_begun = len(kept["raced"]) - len(begun)
        found.promises.append(Promise(f"{KEPT}: requests failed", failed))
        found.notes += [
            (f"{KEPT}: requests with a good reply", f"{kept['good']:,}"),
            (f"{KEPT}: connections", f"{kept['connected']:,}"),
            (f"{KEPT}: told by Connection: close", f"{kept['told']:,}"),
            (f"{KEPT}: met the end while idle", f"{kept['met the end']:,}"),
            (f"{KEPT}: raced, sent as it was closed, never begun", f"{never_begun:,}"),
        ]
        if kept["failures"]:
            found.notes.append((f"{KEPT}: failures", str(kept["failures"])))

    def _take_over(self, server: Server) -> list[Change]:
        changes = []
        for number in range(1, self.times + 1):
            time.sleep(self.pause_seconds)
            report = server.ask("take_over")
            changes.append(Change(report["began"], report["ended"], number))
        time.sleep(self.pause_seconds)
        return changes
