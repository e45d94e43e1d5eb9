"""A handler that knows how long the body of its reply was, for access logs."""

from __future__ import annotations

from typing import Any, Final

from .handler import WSGIHandler
from .reply import ReplyHead, as_lines

__all__ = ["MeasuredHandler"]

#: What is between the words of ``HTTP/1.1 200 OK``, its line's end and the empty line.
_FRAME_BYTES: Final = len(b"HTTP/1.1 \r\n\r\n")


class MeasuredHandler(WSGIHandler):
    """A handler whose access log may have the length of the reply's body."""

    __slots__ = ("_body_bytes", "_bytes_before_head")

    _body_bytes: int | None
    _bytes_before_head: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._forget()

    def log_request(self) -> None:
        super().log_request()
        self._forget()

    def _forget(self) -> None:
        self._body_bytes = None
        self._bytes_before_head = 0

    def _send_whole(self, reply: ReplyHead, data: bytes) -> None:
        self._body_bytes = len(data)
        super()._send_whole(reply, data)

    def _write_with_headers(self, data: Any) -> None:
        self._bytes_before_head = self.response_length  # of early hints
        super()._write_with_headers(data)

    def body_bytes(self) -> int:
        """Return how many bytes were sent after the reply's head."""
        if self._body_bytes is not None:
            return self._body_bytes
        if not self.headers_sent:
            return 0
        head = _FRAME_BYTES + len(self._orig_status or "") + len(as_lines(self.response_headers))
        return max(0, self.response_length - self._bytes_before_head - head)
