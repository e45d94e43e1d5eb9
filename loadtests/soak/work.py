"""What handlers do: reply, block, crash; each time another version of them, which tells itself.

A handler knows its version. When a server was given a new one and has said that the old one is
done, no old one may begin any more: see `Versions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from gevent import GreenletExit
from gevent.monkey import get_original

import glb

from .plan import Kind
from .tally import Tally
from .wire import CHUNK, Reply, Request, Verb, reply

__all__ = ["Planned", "Versions", "Work"]

_sleep: Final[Callable[[float], None]] = get_original("time", "sleep")

#: How long a handler blocks its hub. Longer than `glb.accept.turns.PATIENCE_SECONDS`: what lies
#: there meanwhile is taken back.
BLOCK_SECONDS: Final = 0.015


class Planned(Exception):  # noqa: N818  # it is no error, it was planned
    """What a handler raises when it is asked to."""


class Versions:
    """Which handlers may begin, by server's number and clone."""

    def __init__(self) -> None:
        self._last = 0
        self._servers = 0
        self._oldest: dict[tuple[int, int], int] = {}
        self._resized = 0

    def next(self) -> int:
        self._last += 1
        return self._last

    def next_server(self) -> int:
        """Return the number of a new server."""
        self._servers += 1
        return self._servers

    def changing(self) -> int:
        """Return what to tell `changed` when the change is over."""
        return self._resized

    def changed(self, began: int, server: int, clone: int, version: int) -> None:
        """Clone *clone* has *version* since, and what was older is done."""
        if began == self._resized:  # or it may be another's by now
            self._oldest[server, clone] = version

    def resizing(self, server: int) -> None:
        """Clones of *server* come and go, with the handlers of others."""
        self._resized += 1
        for key in [key for key in self._oldest if key[0] == server]:
            del self._oldest[key]

    def oldest(self, server: int, clone: int) -> int:
        """Return the oldest version that may begin there."""
        return self._oldest.get((server, clone), 0)


class Work:
    """Makes handlers."""

    def __init__(self, tally: Tally, versions: Versions) -> None:
        self._tally: Final = tally
        self._versions: Final = versions

    def handler(self, kind: Kind, server: int, version: int) -> Callable[..., Any]:
        """Return a handler, or an application, of *version* for the server of that number."""

        def handle(sock: Any, _peer: object) -> None:
            self._check_version(server, version)
            try:
                self._serve_stream(sock, server, version)
            except (ConnectionResetError, BrokenPipeError):
                self._tally.serve("left by the client")
            except GreenletExit:
                self._tally.serve("killed")
                raise

        def apply(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            self._check_version(server, version)
            request = Request.decode(environ["PATH_INFO"])
            body = self._answer(request, server, version)
            head = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
            start_response("200 OK", head)
            return [body]

        return handle if kind is Kind.STREAM else apply

    def _check_version(self, server: int, version: int) -> None:
        clone = glb.current_clone()
        assert clone is not None, "it runs in a handler"
        oldest = self._versions.oldest(server, clone.index)
        self._tally.hold(
            "no replaced handler begins",
            version >= oldest,
            f"server {server}, clone {clone}: {version}, replaced by {oldest}",
        )

    def _serve_stream(self, sock: Any, server: int, version: int) -> None:
        while True:
            with glb.idle():
                data = sock.recv(CHUNK)
            while data and not data.endswith(b"\n"):
                more = sock.recv(CHUNK)
                if not more:
                    self._tally.serve("half a request")
                    return
                data += more
            if not data:
                return
            sock.sendall(self._answer(Request.decode(data.decode()), server, version))

    def _answer(self, request: Request, server: int, version: int) -> bytes:
        self._tally.begin(request.number)
        self._tally.serve(request.verb.value)
        if request.verb is Verb.CRASH:
            self._tally.crash(request.number)
            raise Planned(f"request {request.number}")
        if request.verb is Verb.BLOCK:
            _sleep(BLOCK_SECONDS)
        clone = glb.current_clone()
        assert clone is not None, "it runs in a handler"
        return reply(request, Reply(server, clone.index, version))
