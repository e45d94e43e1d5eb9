"""HTTP messages, read from a file: plain, slow, and by nothing of `glb.http`.

What a proxy has sent is well-formed, or the reading of it ends there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

__all__ = ["Message", "read_reply", "read_request"]


@dataclass
class Message:
    """A request or a reply, or as much of it as there is.

    Attributes:
        line: The first line.
        fields: Names in lower case, and values, in order.
        head_size: In bytes, with the empty line.
        body: Without its framing.
        is_whole: Whether it was there to its end.
        interim: The codes of the replies before it that were not final.
    """

    line: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    head_size: int = 0
    body: bytes = b""
    is_whole: bool = False
    interim: list[int] = field(default_factory=list)

    def values(self, name: str) -> list[str]:
        return [value for each, value in self.fields if each == name]

    def value(self, name: str) -> str:
        return ",".join(self.values(name))

    @property
    def code(self) -> int:
        """Of a reply."""
        return int(self.line.split(" ")[1])

    @property
    def method(self) -> str:
        """Of a request."""
        return self.line.partition(" ")[0]

    @property
    def target(self) -> str:
        """Of a request."""
        return self.line.split(" ")[1]


def read_request(file: IO[bytes]) -> Message | None:
    """Return the next request; ``None`` if there is no whole head of one."""
    message = _read_head(file)
    if message is not None:
        message.is_whole = _read_body(message, file, ends_with_file=False)
    return message


def read_reply(
    file: IO[bytes], method: str, on_continue: Callable[[], object] | None = None
) -> Message | None:
    """Return the next final reply, to a request with *method*; ``None`` if there is no whole head.

    Args:
        file: Where it comes from.
        method: The request's.
        on_continue: Called when the server says that it waits for the body.

    Raises:
        ValueError: It is no reply.
    """
    interim = []
    while (message := _read_head(file)) is not None:
        if not message.line.startswith("HTTP/1."):
            raise ValueError(f"no reply: {message.line[:100]!r}")
        if message.code >= 200 or message.code == 101:
            break
        interim.append(message.code)
        if message.code == 100 and on_continue is not None:
            on_continue()
    else:
        return None
    message.interim = interim
    if method == "HEAD" or message.code in {101, 204, 304}:
        message.is_whole = True
    else:
        message.is_whole = _read_body(message, file, ends_with_file=True)
    return message


def _read_head(file: IO[bytes]) -> Message | None:
    lines = []
    size = 0
    while True:
        line = file.readline()
        size += len(line)
        if not line.endswith(b"\n"):
            return None
        text = line.decode("latin-1").rstrip("\r\n")
        if text:
            lines.append(text)
        elif lines:
            break
    message = Message(lines[0], head_size=size)
    for each in lines[1:]:
        name, _, value = each.partition(":")
        message.fields.append((name.lower(), value.strip(" \t")))
    return message


def _read_body(message: Message, file: IO[bytes], *, ends_with_file: bool) -> bool:
    lengths = message.values("content-length")
    if "chunked" in message.value("transfer-encoding").lower():
        return _read_chunks(message, file)
    if lengths:
        length = int(lengths[0])
        message.body = file.read(length)
        return len(message.body) == length
    if ends_with_file:
        message.body = file.read()
    return True


def _read_chunks(message: Message, file: IO[bytes]) -> bool:
    parts = []
    is_whole = False
    while (line := file.readline()).endswith(b"\n"):
        size = int(line.partition(b";")[0], 16)
        if not size:
            while (line := file.readline()) not in {b"\r\n", b"\n", b""}:
                pass
            is_whole = bool(line)
            break
        parts.append(file.read(size))
        if len(parts[-1]) < size or len(file.read(2)) < 2:
            break
    message.body = b"".join(parts)
    return is_whole
