"""The head of a reply: the status and fields of an application, checked.

Rules that always hold:

- A head that would break the framing of the connection is an error of the application, raised in
  ``start_response``.
- Framing is the server's alone: an application can't set Transfer-Encoding, and the server obeys
  the Connection field that it sends.

Source: PEP 3333; RFC 9110, 6.6 and 8.6; RFC 9112, 6 and 9.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any, Final

from .head import connection_options, is_field_value, is_token, keep, remember

__all__ = ["ReplyHead", "as_lines", "checked", "date"]

_STATUS: Final = re.compile(r"[1-9][0-9][0-9](?: [\t -~\x80-\xff]*)?")

# PEP 3333: fields about one connection are the server's. Connection is read, and Upgrade says
# nothing about the framing of this reply.
_HOP_BY_HOP: Final = {
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
}

# Programs send the same few statuses and names again and again.
_statuses: Final[dict[str, tuple[int, bytes]]] = {}
#: Names, in lower case if they mean something to the server, else empty; and as bytes.
_names: Final[dict[str, tuple[str, bytes]]] = {}
_SPECIAL: Final = frozenset({"connection", "content-length", "date"})

# Programs send the same few heads again and again, too. A head is kept whole if each of its fields
# is one of these, which have few values and no secrets.
_REPEATED: Final = frozenset(
    {
        "accept-ranges",
        "access-control-allow-credentials",
        "access-control-allow-headers",
        "access-control-allow-methods",
        "access-control-allow-origin",
        "allow",
        "cache-control",
        "connection",
        "content-encoding",
        "content-language",
        "content-length",
        "content-type",
        "cross-origin-opener-policy",
        "referrer-policy",
        "server",
        "strict-transport-security",
        "vary",
        "x-content-type-options",
        "x-frame-options",
        "x-xss-protection",
    }
)
_KNOWN_MAX_LENGTH: Final = 512
_known: Final[dict[tuple[Any, ...], ReplyHead]] = {}

_WEEKDAYS: Final = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS: Final = tuple(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())


class ReplyHead:
    """The arguments of ``start_response``, checked.

    Attributes:
        status: As given.
        code: Its three digits.
        line: The status as bytes.
        fields: Names and values, as bytes.
        length: The application's Content-Length; ``None`` is none.
        has_date: True if it gave a Date.
        connection: Its Connection; ``None`` is none.
        start: The status line and the fields as bytes, with their line ends.
    """

    __slots__ = ("code", "connection", "fields", "has_date", "length", "line", "start", "status")

    def __init__(self, status: Any, headers: Any) -> None:
        """Check *status* and *headers*.

        Raises:
            UnicodeError: Something is no native string, or can't be sent.
            ValueError: Something can't be sent, or would break the framing.
        """
        self.status: str = status
        line = _statuses.get(status) if type(status) is str else None
        self.code, self.line = line or _learn_status(status)
        self.fields: list[tuple[bytes, bytes]] = []
        self.length: int | None = None
        self.has_date = False
        self.connection: str | None = None
        add, names = self.fields.append, _names
        for name, value in headers:
            try:
                special, data = names[name]
            except (KeyError, TypeError):
                special, data = _learn_name(name, value)
            # Printable text has no control characters, and this check is much faster.
            if type(value) is not str or not value.isprintable():
                _check_value(name, value)
            try:
                add((data, value.encode("latin-1")))
            except UnicodeEncodeError:
                raise UnicodeError("Non-latin1 header", repr(name), repr(value)) from None
            if special:
                self._take_special(special, value)
        self.start = b"HTTP/1.1 %b\r\n%b" % (self.line, as_lines(self.fields))

    def _take_special(self, name: str, value: str) -> None:
        if name == "content-length":
            # Of characters beyond ASCII, latin-1 has no decimal digits.
            if not value.isdecimal():
                raise ValueError(f"Content-Length must be digits, got {value!r}")
            if self.length is not None:
                raise ValueError(f"Content-Length twice: {self.length} and {value}")
            self.length = int(value)
        elif name == "date":
            self.has_date = True
        else:
            # Several are one list.
            self.connection = value if self.connection is None else f"{self.connection}, {value}"

    @property
    def options(self) -> frozenset[str]:
        """The application's connection options, in lower case."""
        if self.connection is None:
            return frozenset()
        return connection_options(self.connection)


def checked(status: Any, headers: Any) -> ReplyHead:
    """Return the `ReplyHead` of *status* and *headers*, which must not be changed.

    Raises:
        UnicodeError, ValueError: As `ReplyHead`.
    """
    if type(headers) is not list:
        return ReplyHead(status, headers)
    key = (status, *headers)
    try:
        reply = _known.get(key)
    except TypeError:  # pairs that are lists
        return ReplyHead(status, headers)
    if reply is None:
        reply = ReplyHead(status, headers)
        if len(reply.start) <= _KNOWN_MAX_LENGTH and all(
            name.lower() in _REPEATED for name, _ in headers
        ):
            keep(_known, key, reply)
    return reply


def _learn_status(status: Any) -> tuple[int, bytes]:
    if not isinstance(status, str):
        raise UnicodeError("The status string must be a native string", status)
    if "\r" in status or "\n" in status:
        raise ValueError("carriage return or newline in status", status)
    if not _STATUS.fullmatch(status):
        raise ValueError(f"a status must be three digits and a reason, got {status!r}")
    code = int(status[:3])
    if code < 200 and code != 101:
        raise ValueError(f"a status must be 101 or 200 and above, got {status!r}")
    # Without a reason the space before it stays: RFC 9112, 4.
    line = status if len(status) > 3 else f"{status} "
    return remember(_statuses, status, (code, line.encode("latin-1")))


def _check_value(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise UnicodeError("The value must be a native string", name, value)
    if not is_field_value(value):
        raise ValueError(
            "carriage return or newline in header value, or another control character", value
        )


def _learn_name(name: Any, value: object) -> tuple[str, bytes]:
    if not isinstance(name, str):
        raise UnicodeError("The header must be a native string", name, value)
    if "\r" in name or "\n" in name:
        raise ValueError("carriage return or newline in header name", name)
    if not is_token(name):
        raise ValueError(f"a header's name must be a token, got {name!r}")
    lower = name.lower()
    if lower in _HOP_BY_HOP:
        raise ValueError(
            f"{name} is about one connection, and not the application's (PEP 3333, hop-by-hop)"
        )
    special = lower if lower in _SPECIAL else ""
    return remember(_names, name, (special, name.encode("latin-1")))


def as_lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return *fields* as lines of a head."""
    return b"".join([b"%b: %b\r\n" % each for each in fields])


_date: tuple[int, bytes] = (-1, b"")


def date() -> bytes:
    """Return the time now, for a Date field."""
    global _date  # noqa: PLW0603  # the same for a second, and for all connections
    second, text = _date
    now = int(time.time())
    if now != second:
        year, month, day, hour, minute, second, weekday, *_ = time.gmtime(now)
        text = b"%b, %02d %b %04d %02d:%02d:%02d GMT" % (
            _WEEKDAYS[weekday],
            day,
            _MONTHS[month - 1],
            year,
            hour,
            minute,
            second,
        )
        _date = (now, text)
    return text
