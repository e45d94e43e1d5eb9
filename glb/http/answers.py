"""Answers: the timeout of a request, its refusal, and its line in the access log.

The timeout runs from the end of a request's head to the end of its reply. Then the hub raises
`RequestTimeout` in the application's greenlet, where it waits. An application that computes, and
never waits, can't be interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import traceback
from typing import Any, Final

from gevent import getcurrent

from ..hubs.threads import call_where_it_may_switch
from ..serve.sweep import NEVER, Deadlines, Task
from .replies import Replier
from .settings import RequestTimeout, Settings

__all__ = ["Answerer", "escaped"]

log: Final = logging.getLogger("glb")

_ESCAPES: Final = {
    code: f"\\x{code:02X}" for code in range(256) if not 32 <= code < 127 or chr(code) in '"\\'
}


class Answerer(Replier):
    """The part of a handler that takes a request from its head to its line in the access log."""

    __slots__ = ()

    def _enter_deadlines(self, deadlines: Deadlines, seconds: float) -> None:
        # In the hub, where handlers run with ``spawn=None``, nothing can wait.
        if getcurrent() is not deadlines.hub:
            self._task = _Request(getcurrent(), self)
            deadlines.enter(self._task, seconds)

    def _respond(self) -> None:
        """Call `handle_one_response`, within the request's timeout."""
        task = self._task
        if task is None:
            self.handle_one_response()
            return
        task.until = None
        try:
            self.handle_one_response()
        except RequestTimeout as error:
            # It came after the reply, or a method of a program's handler class let it through.
            with contextlib.suppress(RequestTimeout):
                self._time_is_up(error)
        finally:
            task.until = NEVER

    def _refuse(self, result: Any, line: str) -> None:
        """Send the reply to a request that isn't served, and log it.

        Args:
            result: The status, and the whole reply.
            line: The first line of the request, as far as it has come.
        """
        status, reply = result
        self.status = self._orig_status = status
        self._may_have_more = True
        # These are still those of the last request on the connection.
        self.code = None
        self.headers_sent = False
        self.response_length = 0
        if self._head is None:
            # A client may send any bytes, and a `format_request` does not expect that.
            self.requestline = escaped(line[: self._limits_now.line].rstrip("\r\n"))
        with contextlib.suppress(OSError):
            self._sendall(reply)
        self.time_start = self.time_finish = time.time()
        self.log_request()


class _Request(Task):
    """The requests of one connection, one after another."""

    __slots__ = ("_handler",)

    def __init__(self, greenlet: Any, handler: Any) -> None:
        super().__init__(greenlet)
        self._handler: Final = handler

    def seconds(self) -> float | None:
        handler = self._handler
        if handler.connection_upgraded or handler._is_taken:
            return None
        settings: Settings = handler._settings
        return None if handler.server.is_long_lived(handler.socket) else settings.request_timeout

    def is_late(self, reported: dict[object, object], /) -> None:
        # An application that catches the error, and goes on, gets it again after another timeout.
        handler, greenlet = self._handler, self.greenlet
        seconds = handler._settings.request_timeout
        handler.server.glb_engine.count_timeout("request")
        name = f"{handler.requestline!a} from {handler.client_address!r}"
        args = (name, seconds, _where(greenlet, name, reported))
        text = "%s has taken longer than %g s, and is ended. It was %s"
        call_where_it_may_switch(functools.partial(log.warning, text, *args))
        greenlet.throw(RequestTimeout(seconds))


def _where(greenlet: Any, name: str, reported: dict[object, object]) -> str:
    """Return the stack of a *greenlet*, or the name of the first one in *reported* that is there.

    Requests that are late together mostly wait for the same thing.
    """
    lines = tuple((frame.f_code, line) for frame, line in traceback.walk_stack(greenlet.gr_frame))
    first = reported.setdefault(lines, name)
    if first is not name:
        return f"where this one was: {first}"
    return "at:\n" + "".join(traceback.format_stack(greenlet.gr_frame)).rstrip()


def escaped(text: str) -> str:
    """Return *text*, of latin-1, in printable ASCII, without what ends a field of a log."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return text.translate(_ESCAPES)
