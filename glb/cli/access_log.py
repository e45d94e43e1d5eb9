"""The access log of ``glb serve``: a line for each request, in a file that may be reopened.

A client can't forge a line, nor a field of one: what isn't printable ASCII is escaped, and so is
what ends a field. The fields are the request's own, as it came, whatever the application does to
its environ.

Source: Apache's *Common Log Format* and *Combined*; nginx's ``log_format``, for the escapes;
OpenTelemetry's semantic conventions for HTTP spans.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Final

from ..http.answers import escaped
from ..http.handler import WSGIHandler
from ..http.head import Head
from ..http.measured import MeasuredHandler
from ..model.clone import current_clone
from ..originals import Lock
from . import console

__all__ = ["AccessLog", "handler_class"]

_MONTHS: Final = "JanFebMarAprMayJunJulAugSepOctNovDec"


class AccessLog:
    """A file, or stdout, that lines are appended to: whole, from any thread.

    A line that can't be written is lost, and no request fails by it. That there are such is said
    once, and how many, when there are no more.

    Args:
        path: Of the file, which is made if it isn't there; ``"-"`` is stdout.

    Raises:
        OSError: It can't be opened.

    Attributes:
        path: As it was given.
    """

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self._lock: Final = Lock()
        self._descriptor = _open(path)
        self._lost = 0

    @property
    def is_stdout(self) -> bool:
        return self.path == "-"

    def write(self, text: str) -> None:
        """Append *text*, which ends with its line."""
        data = text.encode("ascii", "backslashreplace")
        try:
            # Not a greenlet's: hubs are threads. A file takes a line in one call, mostly.
            with self._lock:
                while data:
                    data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                why = error.strerror
                console.tell("can't write to %s: %s; lines are lost until it can", self.path, why)
        else:
            if self._lost:
                lost, self._lost = self._lost, 0
                some = console.count(lost, "line")
                console.tell("%s is written to again; %s lost", self.path, some)

    def reopen(self) -> None:
        """Go on in the file that has the name now: the other one was renamed.

        Raises:
            OSError: It can't be opened. The one that was open goes on.
        """
        if self.is_stdout:
            return
        new = _open(self.path)
        with self._lock:
            old, self._descriptor = self._descriptor, new
        os.close(old)

    def close(self) -> None:
        """Close the file. Twice is harmless."""
        with self._lock:
            old, self._descriptor = self._descriptor, -1
        if old >= 0 and not self.is_stdout:
            os.close(old)


def _open(path: str) -> int:
    if path == "-":
        if sys.stdout is None:  # it was closed before the start
            raise OSError(errno.EBADF, "stdout is closed")
        return sys.stdout.fileno()
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)


# -- the handler ------------------------------------------------------------------------------


def handler_class(form: str) -> type[WSGIHandler]:
    """Return the class of handlers whose line has the format *form*: a key of `FORMATS`."""

    class LoggedHandler(MeasuredHandler):
        __slots__ = ()
        format_request = FORMATS[form]

        def log_error(self, msg: str, *args: object) -> None:
            # gevent's line begins with the socket's repr, which tells a reader nothing.
            console.log.warning(msg, *args)

    # It overrides what is said of a request, and not how one is read.
    LoggedHandler._is_lean = True
    return LoggedHandler


# -- formats ----------------------------------------------------------------------------------


def _common(handler: Any) -> str:
    address = _client(handler)[0] or "-"
    line = handler.requestline or ""
    if handler._head is not None:  # else it was refused, and is escaped
        line = escaped(line)
    return (
        f"{escaped(address)} - - [{_local(handler.time_start)}]"
        f' "{line}" {_status(handler)} {handler.body_bytes() or "-"}'
    )


def _combined(handler: Any) -> str:
    referer, agent = (_field(handler, name) or "-" for name in ("REFERER", "USER_AGENT"))
    return f'{_common(handler)} "{escaped(referer)}" "{escaped(agent)}"'


def _as_json(handler: Any) -> str:
    head = handler._head
    started = datetime.fromtimestamp(handler.time_start, timezone.utc)
    address, port = _client(handler)
    status = _status(handler)
    clone = current_clone()
    found: dict[str, Any] = {
        "timestamp": started.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "client.address": address,
        "client.port": port,
        **({"glb.request_line": handler.requestline} if head is None else _of_head(head)),
        "http.response.status_code": int(status) or None,
        "http.response.body.size": handler.body_bytes(),
        "duration": round(max(0.0, handler.time_finish - handler.time_start), 6),
        "user_agent.original": _text(_field(handler, "USER_AGENT")),
        "glb.clone": clone if clone is None else int(clone),
    }
    referer = _field(handler, "REFERER")
    if referer:
        found["http.request.header.referer"] = [_text(referer)]
    # What is not known has no field.
    return json.dumps({key: value for key, value in found.items() if value not in (None, "")})


def _of_head(head: Head) -> dict[str, str]:
    return {
        "http.request.method": head.method,
        "url.path": _text(head.path),
        "url.query": _text(head.query),
        "network.protocol.version": head.version.removeprefix("HTTP/"),
    }


FORMATS: Final[dict[str, Callable[[Any], str]]] = {
    "common": _common,
    "combined": _combined,
    "json": _as_json,
}


def _client(handler: Any) -> tuple[str, int | None]:
    address = handler.client_address
    if isinstance(address, tuple):
        return str(address[0]), int(address[1]) or None  # no proxy sends the port
    return "", None  # a Unix socket's has no name


def _field(handler: Any, name: str) -> str:
    if handler._head is None:  # it was refused before its fields were read
        return ""
    value: str = handler._head.fields.get(f"HTTP_{name}", "")
    return value


def _status(handler: Any) -> str:
    # As gevent: `status` may tell of an error that came after the reply had begun.
    status = handler._orig_status or handler.status or "000"
    return str(status).split()[0] if isinstance(status, str) else status.split()[0].decode()


def _text(text: str) -> str:
    """Return what a client has sent as UTF-8, whose bytes *text* has as WSGI wants them."""
    return text if text.isascii() else text.encode("latin-1").decode("utf-8", "backslashreplace")


_last: tuple[int, str] = (-1, "")


def _local(seconds: float) -> str:
    """Return a time as the common format has it."""
    global _last  # noqa: PLW0603  # the same for a second, and for all connections
    second, text = _last
    if second != int(seconds):
        second = int(seconds)
        now = time.localtime(second)
        minutes = now.tm_gmtoff // 60
        sign, minutes = "-" if minutes < 0 else "+", abs(minutes)
        text = (  # strftime would have the month in the process's language
            f"{now.tm_mday:02}/{_MONTHS[3 * now.tm_mon - 3 : 3 * now.tm_mon]}/{now.tm_year}"
            f":{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02}"
            f" {sign}{minutes // 60:02}{minutes % 60:02}"
        )
        _last = second, text
    return text
