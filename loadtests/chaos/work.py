"""What handlers do: reply, block, crash; each time another version of them, which tells itself.

A handler knows its version. When a server was given a new one and has said that the old one is
done, no old one may begin any more: see `Marks`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import gevent
from gevent import GreenletExit
from gevent.monkey import get_original

import glb
from loadtests.frame.traffic import CHUNK, Request, reply

from .tally import Tally

#: What a handler may be asked to do beside replying: do so after it has blocked its hub, or after
#: some Python and perhaps a pause; or raise.
BLOCK: Final = "block"
BUSY: Final = "busy"
CRASH: Final = "crash"

#: How long a handler blocks its hub. Longer than `glb.accept.turns.PATIENCE_SECONDS`: what lies
#: there meanwhile is taken back.
BLOCK_SECONDS: Final = 0.015

#: A busy handler goes round so often, and every other one pauses for so long.
BUSY_TURNS: Final = 2000
BUSY_SECONDS: Final = 0.001

_sleep: Final[Callable[[float], None]] = get_original("time", "sleep")
_numbers: Final = itertools.count(1)


class Planned(Exception):  # noqa: N818  # it is no error, it was planned
    """What a handler raises when it is asked to: its argument is the request's number."""


@dataclass
class Marks:
    """What is known of a server: its *number*, and the oldest handlers that may begin, by clone."""

    number: int = field(default_factory=lambda: next(_numbers))
    oldest: dict[int, int] = field(default_factory=dict)
    #: How often its clones came and went, with the handlers of others.
    resized: int = 0

    def resize(self) -> None:
        self.resized += 1
        self.oldest.clear()


class Work:
    """Makes handlers."""

    def __init__(self, tally: Tally) -> None:
        self._tally: Final = tally
        # Of requests, by number: which have begun, and how often each was to crash, and did.
        self._begun: dict[int, object] = {}
        self._crashed: Counter[int] = Counter()
        self.reported: Counter[int] = Counter()

    def handler(self, kind: str, marks: Marks) -> Any:
        """Return another handler, or application, of its own `version`, for a server's *marks*."""
        version = next(_numbers)

        def handle(sock: Any, _peer: object) -> None:
            self._check_version(marks, version)
            try:
                self._serve_stream(sock, marks)
            except (ConnectionResetError, BrokenPipeError):
                self._tally.count("handlers: left by the client")
            except GreenletExit:
                self._tally.hold("no handler is killed", False)
                raise

        def apply(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            self._check_version(marks, version)
            body = self._answer(Request.decode(environ["PATH_INFO"]), marks)
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]

        made: Any = handle if kind == "stream" else apply
        made.version = version
        return made

    def check_reports(self) -> None:
        """See whether each crash was reported once, and nothing else was."""
        for number in {*self._crashed, *self.reported}:
            times = self._crashed[number], self.reported[number]
            detail = f"request {number} crashed and was reported {times} times"
            self._tally.hold("each crash is reported once", times == (1, 1), detail)

    def _check_version(self, marks: Marks, version: int) -> None:
        clone = glb.current_clone()
        assert clone is not None, "it runs in a handler"
        oldest = marks.oldest.get(clone.index, 0)
        detail = f"server {marks.number}, clone {clone}: {version}, replaced by {oldest}"
        self._tally.hold("no replaced handler begins", version >= oldest, detail)

    def _serve_stream(self, sock: Any, marks: Marks) -> None:
        while True:
            with glb.idle():
                data = sock.recv(CHUNK)
            while data and not data.endswith(b"\n"):
                more = sock.recv(CHUNK)
                if not more:
                    self._tally.count("handlers: half a request")
                    return
                data += more
            if not data:
                return
            sock.sendall(self._answer(Request.decode(data.decode()), marks))

    def _answer(self, request: Request, marks: Marks) -> bytes:
        number, mine = request.number, object()
        is_first = self._begun.setdefault(number, mine) is mine
        self._tally.hold("nothing is served twice", is_first, f"request {number}")
        self._tally.count(f"handlers: {request.verb}")
        if request.verb == CRASH:
            self._crashed[number] += 1
            raise Planned(number)
        if request.verb == BLOCK:
            _sleep(BLOCK_SECONDS)
        if request.verb == BUSY:
            for _ in range(BUSY_TURNS):
                pass
            if number % 2:
                gevent.sleep(BUSY_SECONDS)
        clone = glb.current_clone()
        assert clone is not None, "it runs in a handler"
        return reply(request, marks.number, clone.index)
