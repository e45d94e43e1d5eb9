"""How often files call each other while a patched socket begins to listen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import glb

from ..support.adopting import bound, opened, sockets_patched

HOME: Final = f"{Path(glb.__file__).parent}/"

#: A later one finds the entry, its kind, its queue and a share. A first one makes an entry, whose
#: parts are in three other files.
MOST_CALLS: Final = 10


def calls_between_files(function: Callable[[], object]) -> list[tuple[str, str]]:
    """Return what called what while *function* ran: functions of glb's, each in another file."""
    found: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_back is None:
            return
        caller, called = frame.f_back.f_code, frame.f_code
        files = (caller.co_filename, called.co_filename)
        if all(file.startswith(HOME) for file in files) and len({*files}) == 2:
            found.append(
                (
                    f"{files[0].removeprefix(HOME)}:{caller.co_name}",
                    f"{files[1].removeprefix(HOME)}:{called.co_name}",
                )
            )

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


def test_a_listen_calls_few_other_files() -> None:
    """The first on an address and later ones; the first of a process also patches the rest."""
    with sockets_patched(), opened(), bound() as first, bound(first.getsockname()) as later:
        for sock in (first, later):
            calls = calls_between_files(sock.listen)
            assert ("net/sockets.py:sharing_facts", "model/address.py:key_of") in calls
            assert len(calls) <= MOST_CALLS, calls


def test_a_listen_that_shares_nothing_calls_one() -> None:
    """Without SO_REUSEPORT one question is asked."""
    import gevent.socket

    with sockets_patched(), gevent.socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert calls_between_files(sock.listen) == [
            ("monkey/sockets.py:listen", "net/sockets.py:sharing_facts")
        ]
