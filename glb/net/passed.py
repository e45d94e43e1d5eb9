"""Passed sockets: what a process gives to the one that replaces it, and the channel between both.

The new process has the listening sockets under the numbers that they had in the old one, and its
end of a socket pair, the channel. The variable ``GLB_UPGRADE_FROM`` says which they are, as JSON.
It names the inode of the channel as well, so that a child of the new process, which has other
files under these numbers, doesn't believe it.

Source: Cloudflare's tableflip, whose new process gets its sockets in the same way.
"""

from __future__ import annotations

import _socket
import json
import os
import stat
from collections.abc import MutableMapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from .sockets import is_readable

__all__ = [
    "Channel",
    "Passed",
    "PassedSocket",
    "listening_socket",
    "open_channel",
    "passed_variable",
    "take_passed",
]

VARIABLE: Final = "GLB_UPGRADE_FROM"

#: What the new process says when it serves.
READY: Final = b"R"

#: What the old one replies when it has let go, or when it doesn't wait any more.
GO: Final = b"G"
NO: Final = b"N"


@dataclass(frozen=True)
class PassedSocket:
    """A listening socket that goes from one process to the next.

    Attributes:
        number: Its descriptor, in both processes.
        asked: The address that it was opened for, as `str` has it; ``None`` if it was inherited.
        name: The name that it was inherited under; ``None`` if it was opened here.
        is_ours_alone: Whether no other process is to have it afterwards.
        file: Device and inode of a Unix socket's file, if the process removes it at its end.
    """

    number: int
    asked: str | None
    name: str | None
    is_ours_alone: bool
    file: tuple[int, int] | None


@dataclass(frozen=True)
class Passed:
    """What a process has from the one that it replaces, whose id is *parent*."""

    parent: int
    channel: Channel
    sockets: Sequence[PassedSocket]


class Channel:
    """One end of the socket pair between both processes. Nothing here waits."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock: Final = sock

    def say(self, word: bytes) -> bool:
        """Send *word*; return ``False`` if the other process has closed its end."""
        try:
            self.sock.send(word)
        except OSError:
            return False
        return True

    def hear(self) -> bytes | None:
        """Return a word, ``b""`` if the other end is closed, or ``None`` if there is none yet."""
        try:
            return self.sock.recv(1)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def is_closed(self) -> bool:
        """Return True if the other end, or this one, is closed, and all that was said is heard."""
        if self.sock.fileno() < 0:
            return True
        try:
            return is_readable(self.sock) and not self.sock.recv(1, _socket.MSG_PEEK)
        except OSError:
            return True

    def close(self) -> None:
        self.sock.close()


def open_channel() -> tuple[Channel, Channel]:
    """Return both ends of a channel. The caller closes them.

    Raises:
        OSError: There is no descriptor left.
    """
    ends = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    for end in ends:
        end.setblocking(False)
    return Channel(ends[0]), Channel(ends[1])


def passed_variable(channel: Channel, sockets: Sequence[PassedSocket]) -> dict[str, str]:
    """Return the variable that tells the new process of its *channel* and its *sockets*."""
    number = channel.sock.fileno()
    said = {
        "parent": os.getpid(),
        "channel": [number, os.fstat(number).st_ino],
        "sockets": [asdict(each) for each in sockets],
    }
    return {VARIABLE: json.dumps(said)}


def take_passed(environ: MutableMapping[str, str] = os.environ) -> Passed | None:
    """Return what the process has from the one that it replaces; ``None`` if it replaces none.

    The environment of its children has nothing of it. The caller owns the descriptors.

    Raises:
        ValueError: The variable is no such JSON, as another version may have it. It has the value.
    """
    text = environ.pop(VARIABLE, None)
    if text is None:
        return None
    try:
        said: dict[str, Any] = json.loads(text)
        number, inode = map(int, said["channel"])
        sockets = [
            PassedSocket(
                int(each["number"]),
                each.get("asked"),
                each.get("name"),
                bool(each["is_ours_alone"]),
                tuple(each["file"]) if each.get("file") else None,
            )
            for each in said["sockets"]
        ]
        parent = int(said["parent"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{VARIABLE} must be from glb, got {text!r}") from error
    try:
        found = os.fstat(number)
    except OSError:
        return None  # of an ancestor: these numbers are not open here, or something else
    if not stat.S_ISSOCK(found.st_mode) or found.st_ino != inode:
        return None
    for each in (number, *(each.number for each in sockets)):
        os.set_inheritable(each, False)
    return Passed(parent, Channel(_socket.socket(fileno=number)), sockets)


def listening_socket(number: int, name: str = "") -> _socket.socket:
    """Return a non-blocking socket on descriptor *number* itself, which listens already.

    The caller owns both from then on.

    Raises:
        ValueError: It isn't a stream socket that listens. It is left as it is.
    """
    what = f"descriptor {number} ({name!r})" if name else f"descriptor {number}"
    try:
        sock = _socket.socket(fileno=number)
    except OSError as error:
        raise ValueError(f"{what} must be a listening socket: {error.strerror}") from error
    reason = _why_not(sock)
    if reason:
        sock.detach()
        raise ValueError(f"{what} must be a listening socket: {reason}")
    sock.setblocking(False)
    return sock


def _why_not(sock: _socket.socket) -> str:
    if sock.type != _socket.SOCK_STREAM:
        return "it is no stream socket"
    try:
        if sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN):
            return ""
    except OSError:
        return ""  # this kernel doesn't tell: accept(2) will
    try:
        sock.getpeername()
    except OSError:
        return "it doesn't listen"
    return "it is a connection, as systemd's Accept=yes hands over: say Accept=no"
