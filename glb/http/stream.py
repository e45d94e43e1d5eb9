"""The streams below a request and a reply: the socket as a raw file, and files that go out whole.

A `RawStream` is what a buffered reader of a connection reads from. A `FileWrapper` is PEP 3333's
``wsgi.file_wrapper``.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final

from .body import READ_BYTES, BodyError, ClientLeft

__all__ = ["FileWrapper", "RawStream", "send_file"]

# Bytes of one call, so that the hub has other turns in between even if the client is fast.
SEND_FILE_BYTES: Final = 1 << 20

# Errors of file systems that can't: some FUSE and network ones, depending on the kernel.
_CANT_SEND_FILE: Final = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


class RawStream(io.RawIOBase):
    """The reading side of a connection, as a raw file for `io.BufferedReader`.

    Args:
        sock: The connection. The stream doesn't own it.
        rest: Bytes that were read from it already.

    Attributes:
        timeout: How long a read may take, in seconds; ``None`` is for ever.
        is_touched: True if anything was read from it, or its socket was taken.
        is_taken: True if a program has its socket, and may read and write there.
        on_taken: Called with the socket when a program takes it, unless it is ``None``.
        on_silence: Called when `timeout` is over, unless it is ``None``.
    """

    on_taken: Callable[[Any], object] | None = None
    on_silence: Callable[[], object] | None = None

    def __init__(self, sock: Any, rest: bytes = b"") -> None:
        super().__init__()
        self._socket = sock
        self._rest = rest
        self._is_dry = False
        self.timeout: float | None = None
        self.is_touched = self.is_taken = False

    @property
    def _sock(self) -> Any:
        # Programs look here for the socket of a websocket (simple-websocket, and so Flask-Sock and
        # Flask-SocketIO). What they do with it isn't known here.
        if self.on_taken is not None:
            self.on_taken(self._socket)
        self.is_touched = self.is_taken = True
        return self._socket

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        number: int = self._socket.fileno()
        return number

    def readinto(self, buffer: Any) -> int | None:
        """Read at most as much as *buffer* holds, and return how much.

        Raises:
            BodyError: The client was silent for `timeout` seconds.
            ClientLeft: It has reset the connection. An application's own connections raise the
                same errors, but not this one.
        """
        self.is_touched = True
        if self._rest:
            data = self._rest[: len(buffer)]
            self._rest = self._rest[len(buffer) :]
            buffer[: len(data)] = data
            return len(data)
        if self._is_dry:
            return None
        try:
            return self._receive_into(buffer)
        except ConnectionError as error:
            raise ClientLeft(*error.args) from error

    def _receive_into(self, buffer: Any) -> int:
        sock = self._socket
        if self.timeout is None:
            size: int = sock.recv_into(buffer)
            return size
        timeout = sock.gettimeout()
        sock.settimeout(self.timeout)
        try:
            size = sock.recv_into(buffer)
        except TimeoutError:
            if self.on_silence is not None:
                self.on_silence()
            raise BodyError(
                f"the client was silent for {self.timeout} s within the body of a request",
                "408 Request Timeout",
            ) from None
        finally:
            sock.settimeout(timeout)
        return size

    def peek_buffered(self, reader: io.BufferedReader[RawStream]) -> bytes:
        """Return the bytes that *reader* has read ahead."""
        is_touched, self.is_touched = self.is_touched, False
        rest, self._rest, self._is_dry = self._rest, b"", True
        try:
            return reader.peek(1) + rest
        finally:
            self._rest, self._is_dry, self.is_touched = rest, False, is_touched

    def take_rest(self, reader: io.BufferedReader[RawStream]) -> bytes:
        """Return the bytes that *reader* has read ahead. It can't be used any more."""
        self._is_dry = True
        rest = reader.peek(1) + self._rest
        self._rest = b""
        return rest


class FileWrapper:
    """An open file as the body of a reply: ``wsgi.file_wrapper``.

    Where it can, the kernel sends it.

    Args:
        file: It has `read`, and is closed with the reply if it has `close`.
        block_size: How much is read at once, in bytes.
    """

    def __init__(self, file: Any, block_size: int = READ_BYTES) -> None:
        self.file: Final = file
        self.block_size: Final = block_size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> Iterator[bytes]:
        while data := self.file.read(self.block_size):
            yield data

    def size(self) -> int | None:
        """Return how many bytes are left of a file that the kernel can send; ``None`` if not."""
        file = self.file
        raw = file.raw if type(file) in {io.BufferedReader, io.BufferedRandom} else file
        # Other files may have a descriptor with other bytes than their own: `gzip.open` for one.
        if type(raw) is not io.FileIO:
            return None
        try:
            place: int = file.tell()
            found = os.fstat(raw.fileno())
        except (OSError, ValueError):
            return None
        # A file of size 0 may be one of /proc.
        size = found.st_size - place
        return size if stat.S_ISREG(found.st_mode) and size > 0 else None


def send_file(sock: Any, wrapper: FileWrapper, size: int, timeout: float | None) -> int:
    """Have the kernel send *size* bytes of a file, and return how many there were.

    Raises:
        OSError: The client left, or took nothing for *timeout* seconds; ``None`` is as long as the
            socket's own timeout.
    """
    number, place, sent = wrapper.file.fileno(), wrapper.file.tell(), 0
    before = sock.gettimeout()
    if timeout is not None:
        sock.settimeout(timeout)
    try:
        while sent < size:
            try:
                count = os.sendfile(
                    sock.fileno(), number, place + sent, min(size - sent, SEND_FILE_BYTES)
                )
            except BlockingIOError:
                sock._wait(sock._write_event)
                continue
            except OSError as error:
                if sent or error.errno not in _CANT_SEND_FILE:
                    raise
                # Its position has not changed.
                while data := wrapper.file.read(min(size - sent, READ_BYTES)):
                    sock.sendall(data)
                    sent += len(data)
                break
            if not count:
                break
            sent += count
    finally:
        if sock.fileno() >= 0:
            sock.settimeout(before)
    return sent
