"""The way of a connection from the event loop to its handler, as ARCHITECTURE.md has it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

import glb
from glb.hubs.greenlet_pool import Handlers
from glb.server import StreamServer

from ..support.helpers import ask

HOME: Final = Path(glb.__file__).parent


def files_on_the_stack() -> set[str]:
    """Return the files of glb whose functions are being called here."""
    found = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(HOME):
            found.add(path.relative_to(HOME).as_posix())
        frame = frame.f_back
    return found


def test_a_connection_passes_four_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the dispatcher, which the loop calls, to the greenlet that runs its handler."""
    passed: set[str] = set()
    spawn = Handlers.spawn

    def spawn_and_look(*args: Any) -> None:
        passed.update(files_on_the_stack())
        spawn(*args)

    def handle(sock: Any, _peer: Any) -> None:
        passed.update(files_on_the_stack())
        sock.sendall(b"ok")

    monkeypatch.setattr(Handlers, "spawn", spawn_and_look)
    with StreamServer(("127.0.0.1", 0), handle, clones=2) as server:
        server.start()
        assert ask(server.address) == b"ok"
    assert passed == {
        "accept/dispatcher.py",
        "hubs/handler_greenlets.py",
        "serve/acceptor.py",
        "server.py",
    }
