"""Unix socket files: a socket's file outlives its process, and may be in the way of a new one.

A stale file, whose socket no process has open, is removed before a bind. Everything else in the way
stays there, and the error says what it is.

Source: unix(7), flock(2).
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, Final

if sys.platform != "win32":
    import fcntl

from .. import originals
from ..model.address import AF_UNIX, Address, Key

__all__ = ["is_abstract", "remove_stale", "unlink"]

# How long a Unix bind waits for another process that holds the lock of the folder. glb holds it for
# some 20 us. A process that holds it for longer has another use for it, as flock(1) has.
FOLDER_LOCK_SECONDS: Final = 1.0
FOLDER_LOCK_LOOK_SECONDS: Final = 0.001


def remove_stale(path: Any) -> None:
    """Remove the file of a Unix socket that no process has open any more.

    Raises:
        OSError: EADDRINUSE: the file is in use, or isn't ours to remove. The text has the reason.
    """
    # The check and the removal are two steps. Two processes that have both found the file stale
    # would remove it in turn, and the second one the new socket of the first. So each locks the
    # folder for the two steps. The lock needs no file, and a killed process releases it. Without a
    # lock one could rename the file and check it then, which takes a server's path away for a
    # moment. bind(2) needs no lock: one process gets the path, the other one EADDRINUSE.
    with _locked_folder(path):
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return  # its server has removed it, or another server that starts
        if not stat.S_ISSOCK(found.st_mode):
            raise _in_use(f"{_KINDS.get(stat.S_IFMT(found.st_mode), 'no socket')} is there")
        if found.st_uid != os.geteuid():
            raise _in_use(f"the socket there is of the user with id {found.st_uid}")
        _check_is_stale(path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


_KINDS: Final = {
    stat.S_IFREG: "a plain file",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
}


def _check_is_stale(path: Any) -> None:
    # Linux and BSD find the socket by its file first, and check its type then. So a datagram
    # socket gets EPROTOTYPE if a process has it open, and the server sees nothing of it; also if
    # it is bound and doesn't listen yet. (Linux 6.18; FreeBSD's and macOS's uipc_usrreq.c.) A
    # kernel that checks the type first, as gVisor, refuses both: so a stream socket tries, too.
    # Neither waits; if the accept queue is full it gets EAGAIN.
    for kind in (_socket.SOCK_DGRAM, _socket.SOCK_STREAM):
        with contextlib.closing(_socket.socket(AF_UNIX, kind)) as probe:
            probe.setblocking(False)
            try:
                probe.connect(path)
            except (ConnectionRefusedError, FileNotFoundError):
                continue
            except PermissionError as error:
                raise _in_use("a server may have it open, and we may not ask it") from error
            except OSError as error:
                raise _in_use("a server has it open") from error
            raise _in_use("a server has it open")


@contextlib.contextmanager
def _locked_folder(path: Any) -> Iterator[None]:
    # Windows has no flock(2), and we open no Unix sockets there.
    try:
        folder = os.open(os.path.dirname(path) or os.curdir, os.O_RDONLY)
    except PermissionError as error:
        raise _in_use("we may not read its folder to see whether it is stale") from error
    try:
        until = originals.monotonic() + FOLDER_LOCK_SECONDS
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if originals.monotonic() >= until:
                    raise _in_use("another process has locked its folder") from error
                originals.sleep(FOLDER_LOCK_LOOK_SECONDS)
            except OSError as error:  # the file system has no locks
                raise _in_use("its folder can't be locked") from error
        yield
    finally:
        originals.close(folder)


def _in_use(reason: str) -> OSError:
    return OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}: {reason}")


def unlink(address: Address, key: Key | None = None) -> None:
    """Remove the file of a bound Unix socket's *address*, if it still has the *key* it had.

    Only a file that is still this socket's is removed, and no symbolic link that leads there.
    Failing is no error: then it wasn't ours to remove.
    """
    path: Any = address.sockaddr
    if not path or is_abstract(path):
        return
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        is_ours = key in (None, (AF_UNIX, found.st_dev, found.st_ino))
        if is_ours and stat.S_ISSOCK(found.st_mode):
            os.unlink(path)


def is_abstract(path: Any) -> bool:
    return path[:1] in ("\0", b"\0")
