"""Two generations of a process: in one, where the test plays the next one, and as real ones."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence

import gevent
import pytest

import glb.upgrade
from glb.accept.inherited import Inheritance
from glb.net.passed import VARIABLE, take_passed
from glb.upgrade import Upgrade

from .bounds import ENDLESS_SECONDS


class Next:
    """The process that an upgrade starts. Made by `next_process`.

    Attributes:
        end: How it has ended, or ``None``.
        was_ended: Whether the old process has ended it.
    """

    def __init__(self) -> None:
        self.pid = 2**22  # more than there can be
        self.end_: str | None = None
        self.was_ended = False
        self.starts = 0
        self._said: dict[str, str] = {}

    def start(
        self, _args: Sequence[str], _folder: str, environ: Mapping[str, str], numbers: Sequence[int]
    ) -> int:
        """Take duplicates, as a process that is started has its own descriptors."""
        said = json.loads(environ[VARIABLE])
        copies = {number: os.dup(number) for number in numbers}
        said["channel"][0] = copies[said["channel"][0]]
        for each in said["sockets"]:
            each["number"] = copies[each["number"]]
        self._said = {VARIABLE: json.dumps(said)}
        self.starts += 1
        self.end_ = None
        return self.pid

    def end_of(self) -> str | None:
        return self.end_

    def end(self) -> None:
        self.was_ended = True
        self.end_ = "was ended by SIGTERM"
        self.die()

    def begin(self) -> Upgrade:
        """Return the upgrade of the new process, when it has been started."""
        while not self._said:
            gevent.sleep(0)
        said, self._said = self._said, {}
        return Upgrade(inheritance=Inheritance(said))

    def die(self) -> None:
        """Close what it has, if it has not begun."""
        said, self._said = self._said, {}
        passed = take_passed(said)
        if passed is not None:
            passed.channel.close()
            for each in passed.sockets:
                os.close(each.number)


def next_process(monkeypatch: pytest.MonkeyPatch) -> Next:
    """Have upgrades start no process, but what is returned."""
    found = Next()
    monkeypatch.setattr(glb.upgrade, "_spawn", found.start)
    monkeypatch.setattr(glb.upgrade, "_Child", lambda _pid: found)
    return found


def close(upgrade: Upgrade) -> None:
    """Close the channels of *upgrade*, as the end of its process would."""
    if upgrade._to_successor is not None:
        upgrade._to_successor.close()
    if upgrade._passed is not None:
        upgrade._passed.channel.close()


# -- real processes -------------------------------------------------------------------------------

#: So that processes whose parent has ended are the test's to wait for: see prctl(2).
PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def reaps() -> Iterator[None]:
    """Have processes whose parent has ended be this one's, and let none of them stay."""
    before = {*children()}

    def kill() -> None:
        for pid in {*children()} - before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # The first process's pipes are open in all, so a test that reads would wait for ever.
    timer = threading.Timer(ENDLESS_SECONDS, kill)
    timer.start()
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)
        timer.cancel()
        timer.join()
        kill()
        for pid in {*children()} - before:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def children(of: int | str = "self") -> list[int]:
    """Return the ids of a process's children, and of theirs."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        for each in pathlib.Path(f"/proc/{of}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (each / "children").read_text().split())
    return [*found, *(pid for child in found for pid in children(child))]
