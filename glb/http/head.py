"""The head of a request, read in one pass, by the grammar and nothing else.

Every byte that two readers could understand in two ways is refused: otherwise a proxy in front
could see other requests on the connection than the application does.

Rules that always hold:

- `parse` gets a whole head, from the first byte of the request line to the last field line. It
  returns a `Head`, or raises `BadRequest`; there is no third way, and nothing is repaired.
- A `Head` says how the request is framed. Nothing else in the package decides that.
- Text is latin-1, as WSGI has it.

Source: RFC 9110, RFC 9112; PEP 3333 for the names of the fields.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Final, NoReturn, TypeVar

__all__ = [
    "BadRequest",
    "Head",
    "Limits",
    "connection_options",
    "find_end",
    "is_field_value",
    "is_token",
    "keep",
    "parse",
    "remember",
    "without_empty_lines",
]

CRLF: Final = b"\r\n"
END: Final = b"\r\n\r\n"

_NOT_IN_HEAD: Final = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])", re.DOTALL
)

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# CONNECT has no path: RFC 9112, 3.2.3.
_REQUEST_LINE: Final = re.compile(
    r"(?!CONNECT /)([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!\"$-~][!-\"$-~]*) (HTTP/1\.[01])"
)
_OTHER_VERSION: Final = re.compile(r"[!-~\x80-\xff]+ [!-~\x80-\xff]+ HTTP/([0-9])(\.[0-9])?")
# A host and a port, as far as needed to find where one ends and the other begins.
_AUTHORITY: Final = re.compile(r"(?:\[[0-9A-Fa-fv:.]+\]|[A-Za-z0-9\-._~%!$&'()*+,;=]*)(?::[0-9]*)?")
_ABSOLUTE: Final = re.compile(r"https?://([^/?]+)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_BAD_IN_VALUE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

# Names that have no "HTTP_" in the environ.
_PLAIN_KEYS: Final = {"CONTENT_LENGTH", "CONTENT_TYPE"}
# Of two such fields, two readers may choose one each.
_SINGLE_KEYS: Final = {"HTTP_HOST", "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"}

# Programs see the same few names, hosts and connection options again and again.
_KNOWN_MOST: Final = 1024
_KNOWN_MAX_LENGTH: Final = 64
_keys: Final[dict[str, str]] = {}
_hosts: Final[dict[str, bool]] = {}
_options: Final[dict[str, frozenset[str]]] = {}

# Some clients send the same heads on each connection. A head is kept whole if each of its fields is
# one of these, which have few values and no secrets.
_KNOWN_MAX_BYTES: Final = 1024
_VERSION_LENGTH: Final = len("HTTP/1.1")
_heads: Final[dict[bytes, Head]] = {}
_REPEATED: Final = frozenset(
    {
        "CONTENT_LENGTH",
        "CONTENT_TYPE",
        "HTTP_ACCEPT",
        "HTTP_ACCEPT_ENCODING",
        "HTTP_ACCEPT_LANGUAGE",
        "HTTP_CACHE_CONTROL",
        "HTTP_CONNECTION",
        "HTTP_DNT",
        "HTTP_HOST",
        "HTTP_PRAGMA",
        "HTTP_SEC_FETCH_DEST",
        "HTTP_SEC_FETCH_MODE",
        "HTTP_SEC_FETCH_SITE",
        "HTTP_SEC_FETCH_USER",
        "HTTP_UPGRADE_INSECURE_REQUESTS",
        "HTTP_USER_AGENT",
    }
)

_NO_OPTIONS: Final[frozenset[str]] = frozenset()
_KEEP_ALIVE: Final = frozenset({"keep-alive"})

_K = TypeVar("_K")
_T = TypeVar("_T")


class BadRequest(ValueError):  # noqa: N818  # the field's name for it
    """A request that is refused.

    Attributes:
        status: The status line's code and reason.
    """

    def __init__(self, message: str, status: str = "400 Bad Request") -> None:
        super().__init__(message)
        self.status: Final = status


@dataclass(frozen=True)
class Limits:
    """How large a head may be.

    Args:
        line: Bytes of the request line, without its end.
        field: Bytes of a field line, without its end.
        head: Bytes of all field lines.
        fields: Number of field lines.
    """

    # nginx has 8 KiB for the line and 32 KiB for the head, Apache 8,190 bytes a line, 100 fields.
    line: int = 8190
    field: int = 65536
    head: int = 65536
    fields: int = 100


class Head:
    """The head of a request that may be served.

    Attributes:
        line: The request line.
        method, target, version: Its parts; *version* is ``"HTTP/1.0"`` or ``"HTTP/1.1"``.
        path, query: Of the target, as they were sent. *path* is the authority for ``CONNECT``,
            and ``"*"`` for a request to the server as a whole.
        rest: All bytes of it from the version on: the line's end, and the field lines.
        fields: The fields' values by the environ's keys. Names with an underscore are left out.
        length: Of the body, in bytes; ``None`` without Content-Length.
        is_chunked: True if the body is chunked; then *length* is ``None``.
        options: The connection options, in lower case.
        is_persistent: True if the connection may stay open after the reply, by this head.
        expects: What the client expects, in lower case; ``""`` is nothing.
    """

    __slots__ = (
        "_limits",
        "expects",
        "fields",
        "is_chunked",
        "is_persistent",
        "length",
        "line",
        "method",
        "options",
        "path",
        "query",
        "rest",
        "target",
        "version",
    )

    line: str
    method: str
    target: str
    version: str
    path: str
    query: str
    rest: bytes
    fields: dict[str, str]
    length: int | None
    is_chunked: bool
    options: frozenset[str]
    is_persistent: bool
    expects: str
    _limits: Limits

    def with_line(self, line: str) -> Head | None:
        """Return the head that has another request *line* and the same fields.

        Returns:
            ``None`` if the line needs `parse`.
        """
        match = _REQUEST_LINE.fullmatch(line)
        if match is None or len(line) > self._limits.line:
            return None
        method, target, version = match.groups()
        if target[0] != "/" or self.target[0] != "/":  # an absolute one has changed the fields
            return None
        head = Head()
        head.line = line
        head.method = method
        head.target = target
        head.version = version
        head.path, _, head.query = target.partition("?")
        head.rest = self.rest
        head.fields = self.fields
        head.length = self.length
        head.is_chunked = self.is_chunked
        head.options = self.options
        head.is_persistent = self.is_persistent
        head.expects = self.expects
        head._limits = self._limits
        return head

    @property
    def upgrade(self) -> str:
        """The protocol to which the connection is to be upgraded, in lower case; ``""`` is none.

        A request with a body is always read as HTTP: the protocol could only begin behind the body,
        and a proxy could disagree about where that is. HTTP/1.0 has no upgrade: RFC 9110, 7.8.
        """
        if "upgrade" not in self.options or self.method != "GET" or self.version != "HTTP/1.1":
            return ""
        if self.is_chunked or self.length:
            return ""
        return self.fields.get("HTTP_UPGRADE", "").lower()


def without_empty_lines(data: bytes) -> bytes:
    """Return *data* without the empty lines before a request line.

    RFC 9112, 2.2: some clients send one more line end after a body. All are removed at once: a
    client may send 64 KiB of them. Half a line end stays, and is refused by `find_end` or `parse`.
    """
    count = (len(data) - len(data.lstrip(CRLF))) // 2
    return data[count * 2 :] if data.startswith(CRLF * count) else data


def find_end(data: bytes, seen: int, limits: Limits) -> int:
    """Return where a head ends that begins *data*: at its last line's end; -1 if it goes on.

    Args:
        data: The bytes that have come.
        seen: How many bytes of *data* the last call has seen.
        limits: Of its size.

    Raises:
        BadRequest: It can't become a head any more.
    """
    end = data.find(END, max(0, seen - 3))
    if end >= 0 and end <= limits.line:
        return end
    line = data.find(CRLF, 0, limits.line + 2)
    if line < 0 and len(data) > limits.line + 1 and b"\n" not in data[: limits.line + 2]:
        raise BadRequest(f"the request line is longer than {limits.line}", "414 URI Too Long")
    # The first fault counts, so that the refusal doesn't depend on how the bytes are split.
    if line >= 0 and seen < line + 2:
        # A client of another protocol, HTTP/0.9 for one, may wait for a reply to it.
        text = data[:line].decode("latin-1")
        if not _REQUEST_LINE.fullmatch(text):
            _refuse_line(text)
    size = (len(data) if end < 0 else end) - max(0, line)
    if size > limits.head + 4:
        raise BadRequest(
            f"more than {limits.head} bytes of header fields", "431 Request Header Fields Too Large"
        )
    if end < 0 and _NOT_IN_HEAD.search(data, max(0, seen - 1)):
        raise BadRequest(
            f"a control character or half a line end: {_excerpt(data.decode('latin-1'))}"
        )
    return end


def parse(
    data: bytes, limits: Limits, *, needs_host: bool = False, last: Head | None = None
) -> Head:
    """Read a head: *data* ends before the empty line, and has the end of its last line.

    Args:
        last: The previous head on this connection. Clients mostly repeat their fields, which are
            read only once then.

    Raises:
        BadRequest: It is no head, or too large, or ambiguous.
    """
    end = data.find(CRLF)
    rest = data[end - _VERSION_LENGTH :] if end > _VERSION_LENGTH else b""
    known = last if last is not None and last.rest == rest else _heads.get(rest)
    if known is not None and known._limits is limits:
        head = known.with_line(data[:end].decode("latin-1"))
        if head is not None and not (needs_host and "HTTP_HOST" not in head.fields):
            return head
    head = _parse(data, limits, rest, needs_host=needs_host)
    if len(rest) <= _KNOWN_MAX_BYTES and _REPEATED.issuperset(head.fields):
        keep(_heads, rest, head)
    return head


def _parse(data: bytes, limits: Limits, rest: bytes, *, needs_host: bool) -> Head:
    text = data.decode("latin-1")
    line, *lines, _ = text.split("\r\n")
    if len(line) > limits.line and "\n" not in line[: limits.line + 2]:
        raise BadRequest(f"the request line is longer than {limits.line}", "414 URI Too Long")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        _refuse_line(line)
    if len(lines) > limits.fields:
        raise BadRequest(
            f"more than {limits.fields} header fields", "431 Request Header Fields Too Large"
        )
    if len(data) - len(line) > limits.head or len(data) > limits.field:
        _check_sizes(lines, limits)
    head = Head()
    head.line = line
    head.method, target, head.version = match.groups()
    head.target = target
    head.rest = rest
    head._limits = limits
    head.fields = fields = {}
    for each in lines:
        name, colon, value = each.partition(":")
        key = _keys.get(name)
        if key is None:
            key = _learn(name, each)
        if not colon:
            raise BadRequest(f"a header line without a colon: {_excerpt(each)}")
        # Printable text has no control characters and no half of a line end, and this check is much
        # faster. HTAB and some of latin-1 aren't printable, and are no fault.
        if not value.isprintable() and not is_field_value(value):
            raise BadRequest(
                f"a control character or half a line end in the head: {_excerpt(each)}"
            )
        if key not in fields:
            fields[key] = value.strip(" \t")
        elif key in _SINGLE_KEYS:
            raise BadRequest(f"{name} twice")
        elif "COOKIE" in key:
            fields[key] += "; " + value.strip(" \t")
        elif key != "CONTENT_TYPE":
            fields[key] += "," + value.strip(" \t")
    fields.pop("", None)  # those with an underscore
    _frame(head, fields)
    host = fields.get("HTTP_HOST")
    if host is None:
        if needs_host and head.version == "HTTP/1.1":
            raise BadRequest("no Host")
    elif host not in _hosts:
        _check_host(host)
    if target[0] == "/":
        head.path, _, head.query = target.partition("?")
    else:
        _read_target(head)
    return head


def _frame(head: Head, fields: dict[str, str]) -> None:
    is_11 = head.version == "HTTP/1.1"
    options = fields.get("HTTP_CONNECTION")
    if options is None:
        head.options = _NO_OPTIONS
    else:
        head.options = _options.get(options) or connection_options(options)
    if is_11:
        head.is_persistent = "close" not in head.options
    else:
        # As gevent: HTTP/1.0 has no other option.
        head.is_persistent = head.options == _KEEP_ALIVE
    head.length = None
    head.is_chunked = False
    length = fields.get("CONTENT_LENGTH")
    if length is not None:
        # Latin-1 has no decimal digits but ASCII's.
        if not length.isdecimal():
            raise BadRequest(f"Content-Length must be digits, got {_excerpt(length)}")
        if len(length) > 18:
            # `int` takes no more than 4,300 digits, an application's too.
            fields["CONTENT_LENGTH"] = length = length.lstrip("0") or "0"
            if len(length) > 19 or int(length) > sys.maxsize:
                raise BadRequest(
                    f"Content-Length must be {sys.maxsize} or less, got {_excerpt(length)}"
                )
        head.length = int(length)
    encoding = fields.get("HTTP_TRANSFER_ENCODING")
    if encoding is not None:
        if encoding.lower() != "chunked":
            raise BadRequest(
                f"Transfer-Encoding must be chunked, got {_excerpt(encoding)}",
                "501 Not Implemented",
            )
        if not is_11:
            raise BadRequest("Transfer-Encoding in HTTP/1.0")
        head.is_chunked = True
        if length is not None:
            # It may be an attack. RFC 9112, 6.1: Transfer-Encoding overrides, and the connection
            # is closed after the reply.
            del fields["CONTENT_LENGTH"]
            head.length = None
            head.is_persistent = False
    expects = fields.get("HTTP_EXPECT")
    head.expects = "" if expects is None or not is_11 else expects.lower()


def _read_target(head: Head) -> None:
    target = head.target
    head.path, head.query = target, ""
    if head.method == "CONNECT":
        if not _AUTHORITY.fullmatch(target):
            raise BadRequest(f"CONNECT needs host and port, got {_excerpt(target)}")
    elif target == "*":
        if head.method != "OPTIONS":
            raise BadRequest(f"* is for OPTIONS, got {_excerpt(head.line)}")
    else:
        match = _ABSOLUTE.fullmatch(target)
        if match is None or not _AUTHORITY.fullmatch(match[1]) or match[1][0] == ":":
            raise BadRequest(f"the target must begin with / or http://, got {_excerpt(target)}")
        # RFC 9112, 3.2.2: it is more important than Host.
        head.fields["HTTP_HOST"] = match[1]
        head.path = match[2] or "/"
        head.query = (match[3] or "?")[1:]


def _check_sizes(lines: list[str], limits: Limits) -> None:
    size = 0
    for each in lines:
        size += len(each) + 2
        if len(each) > limits.field or size > limits.head:
            limit = limits.field if len(each) > limits.field else limits.head
            raise BadRequest(
                f"more than {limit} bytes of header fields", "431 Request Header Fields Too Large"
            )


def _check_host(host: str) -> None:
    if not _AUTHORITY.fullmatch(host):
        raise BadRequest(f"Host must be a name or an address, and a port, got {_excerpt(host)}")
    remember(_hosts, host, True)


def _learn(name: str, line: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise BadRequest(f"a header line without a name: {_excerpt(line)}")
    key = name.replace("-", "_").upper()
    if "_" in name:
        # An X_Real_IP would look like X-Real-IP, which a proxy has set or removed.
        key = ""
    elif key not in _PLAIN_KEYS:
        key = "HTTP_" + key
    return remember(_keys, name, key)


def connection_options(value: str) -> frozenset[str]:
    """Return the options in a Connection field, in lower case."""
    names = [each.strip(" \t").lower() for each in value.split(",")]
    return remember(_options, value, frozenset(filter(None, names)))


def remember(known: dict[str, _T], name: str, value: _T) -> _T:
    """Return *value*, and keep it in *known*, which stays small."""
    if len(name) <= _KNOWN_MAX_LENGTH:
        keep(known, name, value)
    return value


def keep(known: dict[_K, _T], key: _K, value: _T) -> None:
    """Put *value* into *known*, which stays small."""
    if len(known) >= _KNOWN_MOST:
        # A client may have filled it with what won't come again.
        known.clear()
    known[key] = value


def _refuse_line(line: str) -> NoReturn:
    match = _OTHER_VERSION.fullmatch(line)
    if match is not None and (match[1] != "1" or match[2] not in {".0", ".1"}):
        raise BadRequest(
            f"HTTP/1.0 or HTTP/1.1, got {_excerpt(line)}", "505 HTTP Version Not Supported"
        )
    raise BadRequest(f"no request line: {_excerpt(line)}")


def _excerpt(text: str) -> str:
    # For a line of a log: escaped, and bounded.
    return ascii(text if len(text) <= 100 else text[:97] + "...")


def is_token(name: str) -> bool:
    """Return True if *name* may be a field's."""
    return _TOKEN.fullmatch(name) is not None


def is_field_value(value: str) -> bool:
    """Return True if *value* may be a field's: without control characters, but for HTAB."""
    return _BAD_IN_VALUE.search(value) is None
