"""Upgrades under load, and upgrades that fail."""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.lossless.answers import Answer, Promise, Tell
from loadtests.lossless.load import Change, loaded
from loadtests.lossless.process import Client
from loadtests.lossless.words import KINDS

from .lineage import Lineage

__all__ = ["FATES", "Failures", "Upgrades"]

#: What becomes of processes that don't take over, and what the old one says of it.
FATES: Final = {
    "crashes": "exited with status 2 before it was ready",
    "exits": "exited with status 0 before it was ready",
    "is killed": "was ended by SIGKILL before it was ready",
    "hangs": "wasn't ready after",
}


@dataclass(frozen=True)
class Upgrades:
    """*times* a new process takes over, under *rate* connections/s."""

    kind: str
    is_unix: bool
    hubs: int
    times: int = 20
    rate: float = 500
    pause_seconds: float = 0.2

    @property
    def name(self) -> str:
        return f"{KINDS[self.kind]}, {'Unix' if self.is_unix else 'TCP'}, hubs {self.hubs}"

    @property
    def steps(self) -> int:
        return 1

    def run(self, tell: Tell) -> Answer:
        tell(self.name)
        options = ["--hubs", str(self.hubs)]
        with (
            tempfile.TemporaryDirectory() as folder,
            Client() as client,
            Lineage(pathlib.Path(folder), self.kind, *options, is_unix=self.is_unix) as line,
        ):
            changes = []
            with loaded(client, line.place, self.rate, is_http=self.kind == "http") as load:
                for _ in range(self.times):
                    time.sleep(self.pause_seconds)
                    changes.append(line.upgrade())
                time.sleep(self.pause_seconds)
            left = [] if not self.is_unix else [*pathlib.Path(folder).glob("socket")]
            line.end(15)
            still = [each for each in left if each.exists()]
        old, new = load.old_and_new(changes)
        promises = [
            *load.promises("while processes change"),
            Promise("made afterwards, old process's", load.stale(changes)),
        ]
        if self.is_unix:
            promises.append(
                Promise("the socket's file after upgrades", len(left), 1, is_floor=True)
            )
            promises.append(Promise("the socket's file after the end", len(still)))
        notes = [
            *load.notes("all"),
            ("meanwhile, old and new process's", f"{old:,}, {new:,}"),
            ("upgrades, ms: median, longest", _times(changes)),
        ]
        question = f"{self.name}: is one lost in {self.times} upgrades, {self.rate:g}/s?"
        return Answer(question, promises, notes)


def _times(changes: Sequence[Change]) -> str:
    found = sorted(change.ms for change in changes)
    return f"{found[len(found) // 2]:.0f}, {found[-1]:.0f}"


@dataclass(frozen=True)
class Failures:
    """New processes that fail, each in its way, under *rate* connections/s."""

    rate: float = 500
    timeout: float = 3
    is_unix: bool = True

    name = "new processes that fail"

    @property
    def steps(self) -> int:
        return len(FATES)

    def run(self, tell: Tell) -> Answer:
        options = ["--upgrade-timeout", str(self.timeout)]
        said = {}
        with (
            tempfile.TemporaryDirectory() as folder,
            Client() as client,
            Lineage(pathlib.Path(folder), "http", *options, is_unix=self.is_unix) as line,
            loaded(client, line.place, self.rate, is_http=True) as load,
        ):
            for fate in FATES:
                tell(f"{self.name}: {fate}")
                said[fate] = line.fail(fate)
            # It isn't worn out by that.
            change = line.upgrade()
        wrong = sum(FATES[fate] not in text for fate, text in said.items())
        promises = [
            *load.promises("meanwhile"),
            Promise("failures that the log explains otherwise", wrong),
            Promise("the upgrade after them, generation", change.generation, 1, is_floor=True),
        ]
        notes = [*load.notes("all"), *said.items()]
        return Answer("Does the old process serve on if the new one fails?", promises, notes)
