"""The body of a request: what an application reads as ``wsgi.input``.

Rules that always hold:

- A body ends where its head says. It never reads a byte behind that end, which is the next
  request's.
- Only bytes that have come take memory; a length that was only announced takes none.
- After an error in its framing nothing more of the connection is read: no two readers would agree
  where the body ends.

Source: RFC 9112, 6 and 7; PEP 3333.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

from gevent.pywsgi import _InvalidClientInput  # type: ignore[attr-defined]  # not in the stubs

from .head import is_field_value, is_token

__all__ = ["Body", "BodyError", "ClientLeft"]

# Bytes of one read. A longer body grows by so much as it comes.
READ_BYTES: Final = 65536

# A body that the application hasn't read is read away, so that the next request is found. If it is
# longer, or slower, a new connection costs both sides less.
DISCARD_MAX_BYTES: Final = 65536

# The most bytes of chunk extensions and trailers in a whole body. Hardly a client sends either, and
# only attacks make them large. Node has 16 KiB for all extensions of a request.
OVERHEAD_MAX_BYTES: Final = 16384
LINE_MAX_BYTES: Final = OVERHEAD_MAX_BYTES + 1

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_CHUNK: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:[ \t]*;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?)*)\r\n"
    % (_TOKEN, _TOKEN, _QUOTED)
)

_HEXDIGITS: Final = b"0123456789abcdefABCDEF"

# Fields that say how a message is framed or where it goes can't come behind it.
_NOT_IN_TRAILERS: Final = {
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


class BodyError(_InvalidClientInput):  # type: ignore[misc]  # not in the stubs
    """A body that is not as the client has announced it, or too large, or too slow.

    Attributes:
        status: The code and the reason of the reply.
    """

    def __init__(self, message: str, status: str = "400 Bad Request") -> None:
        super().__init__(message)
        self.status: Final = status


class ClientLeft(OSError):  # noqa: N818  # an OSError, as gevent's
    """The client has closed the connection in the middle of a body."""


class Body:
    """The body of one request, as a file to read from.

    Args:
        rfile: A buffered reader of the connection.
        length: In bytes; ``None`` if it is chunked, or there is none.
        is_chunked: True if it is chunked.
        limit: The most bytes of a chunked body; ``None`` is no limit.
        before: Called before the first read: the client may wait for ``100 Continue``.

    Attributes:
        rfile: As given.
        content_length: *length*.
        is_broken: True if its end can't be found any more.
    """

    def __init__(
        self,
        rfile: Any,
        length: int | None,
        *,
        is_chunked: bool,
        limit: int | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        self.rfile: Final = rfile
        self.content_length: Final = length
        self.chunked_input: Final = is_chunked
        self.is_broken = False
        # Bytes left of the current chunk, or of a body that isn't chunked.
        self._left = 0 if is_chunked else length or 0
        self._is_over = not is_chunked and not length
        self._position = 0
        self._overhead = 0
        self._limit: Final = limit
        self._before = before

    # -- as a file -----------------------------------------------------------------------------

    def read(self, size: int | None = None) -> bytes:
        """Return *size* bytes, or all; fewer only at the end.

        Raises:
            OSError: The client left, was too slow, or broke the framing.
        """
        self._begin()
        wanted = -1 if size is None or size < 0 else size
        parts = []
        while wanted:
            data = self._some(READ_BYTES if wanted < 0 else min(wanted, READ_BYTES), self._read)
            if not data:
                break
            parts.append(data)
            wanted -= 0 if wanted < 0 else len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readline(self, size: int | None = None) -> bytes:
        """Return a line with its end, or *size* bytes of it; ``b""`` at the end.

        Raises:
            OSError: As `read`.
        """
        self._begin()
        wanted = -1 if size is None or size < 0 else size
        parts = []
        while wanted:
            most = READ_BYTES if wanted < 0 else min(wanted, READ_BYTES)
            data = self._some(most, self.rfile.readline)
            if not data:
                break
            parts.append(data)
            wanted -= 0 if wanted < 0 else len(data)
            if data[-1] == 10:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """Return all lines; with *hint*, no more once they have so many bytes."""
        lines, size = [], 0
        for line in self:
            lines.append(line)
            size += len(line)
            if hint is not None and 0 < hint <= size:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    # -- its end -------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """True if all of it was read."""
        return self._is_over

    @property
    def is_awaited(self) -> bool:
        """True if the client waits for ``100 Continue`` before it sends anything."""
        return self._before is not None

    @property
    def left(self) -> int | None:
        """How many bytes are left; ``None`` if only the client knows."""
        return None if self.chunked_input else self._left

    def ends_in(self, data: bytes) -> bool:
        """Return True if *data*, which comes next, contains its end. Nothing is read."""
        ahead = copy.copy(self)
        ahead.rfile = io.BytesIO(data)  # type: ignore[misc]  # of a copy that stays here
        try:
            return ahead.end(len(data))
        except OSError:
            return False

    def end(self, limit: int) -> bool:
        """Read the rest, up to *limit* bytes; return True if that was all.

        Raises:
            OSError: As `read`.
        """
        self._before = None
        if not self.chunked_input and self._left > limit:
            return False
        while not self._is_over and limit > 0:
            limit -= len(self._some(min(limit, READ_BYTES), self._read))
        return self._is_over

    def _discard(self) -> None:
        # gevent's name: a `handle_one_response` of the program's own may call it.
        if not self.end(DISCARD_MAX_BYTES):
            self._break("the rest of the body is too long to be read away")

    # -- reading -------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._before is not None:
            before, self._before = self._before, None
            before()

    def _read(self, size: int) -> bytes:
        # Not `rfile.read`, which would wait for all of *size*.
        data: bytes = self.rfile.read1(size)
        return data

    def _some(self, most: int, read: Callable[[int], bytes]) -> bytes:
        """Return bytes that have come, at most *most*, by *read*; ``b""`` is the end."""
        if self.is_broken:
            raise BodyError("the body was broken before")
        if self._left == 0 and self.chunked_input and not self._is_over:
            self._begin_chunk()
        if self._is_over:
            return b""
        try:
            data = read(min(most, self._left))
        except BaseException:
            self.is_broken = True  # a part may have been read
            raise
        if not data:
            self._break_off()
        self._position += len(data)
        self._left -= len(data)
        if self._left == 0:
            if self.chunked_input:
                self._expect_line_end()
            else:
                self._is_over = True
        return data

    def _expect_line_end(self) -> None:
        # Right behind the data of a chunk, so that a wrong one is refused with the last byte.
        line = self._line(2)
        if line != b"\r\n":
            self._refuse(line, 2, "a chunk is longer than its size")

    def _begin_chunk(self) -> None:
        if self._position == 0:
            # At once: a client that knows no chunks may not send the end of a line.
            first = self._peek()
            if first and first not in _HEXDIGITS:
                self._break(f"a chunk must begin with its size: {first!r}")
        line = self._line(LINE_MAX_BYTES)
        match = _CHUNK.fullmatch(line)
        if match is None:
            if len(line) == LINE_MAX_BYTES:
                self._break(f"a chunk's size and extensions are longer than {OVERHEAD_MAX_BYTES}")
            self._refuse(line, LINE_MAX_BYTES, "a chunk must begin with its size")
        self._count_overhead(len(match[2]), "400 Bad Request")
        self._left = int(match[1], 16)
        if self._left == 0:
            self._read_trailers()
            self._is_over = True
        elif self._limit is not None and self._position + self._left > self._limit:
            self._break(f"the body is longer than {self._limit} bytes", "413 Content Too Large")

    def _read_trailers(self) -> None:
        while (line := self._line(LINE_MAX_BYTES)) != b"\r\n":
            self._count_overhead(len(line))
            name, colon, value = line[:-2].decode("latin-1").partition(":")
            is_sound = line.endswith(b"\r\n") and colon and is_token(name) and is_field_value(value)
            if not is_sound or name.lower() in _NOT_IN_TRAILERS:
                self._refuse(line, LINE_MAX_BYTES, "this is no trailer")

    def _peek(self) -> bytes:
        """Return the next byte and leave it there; ``b""`` at the end, or if *rfile* can't peek."""
        peek = getattr(self.rfile, "peek", None)
        if peek is None:
            return b""
        try:
            data: bytes = peek(1)[:1]
        except BaseException:
            self.is_broken = True
            raise
        return data

    def _line(self, limit: int) -> bytes:
        try:
            line: bytes = self.rfile.readline(limit)
        except BaseException:
            self.is_broken = True
            raise
        return line

    def _refuse(self, line: bytes, limit: int, message: str) -> NoReturn:
        """Refuse *line*, of which no more than *limit* bytes were read."""
        if len(line) < limit and not line.endswith(b"\n"):
            self._break_off()
        if len(line) > OVERHEAD_MAX_BYTES:
            self._count_overhead(len(line))
        self._break(f"{message}: {line[:100]!r}")

    def _break_off(self) -> NoReturn:
        self.is_broken = True
        raise ClientLeft(
            f"unexpected end of file while reading request at position {self._position}"
        )

    def _count_overhead(
        self, size: int, status: str = "431 Request Header Fields Too Large"
    ) -> None:
        self._overhead += size
        if self._overhead > OVERHEAD_MAX_BYTES:
            self._break(
                f"more than {OVERHEAD_MAX_BYTES} bytes of chunk extensions and trailers", status
            )

    def _break(self, message: str, status: str = "400 Bad Request") -> NoReturn:
        self.is_broken = True
        raise BodyError(message, status)
