"""A network of the tests' own, where no other process takes their ports, or asks them for a reply.

A server that starts again binds the port that it had. Beside other tests, and what else a machine
runs, a client may have got that meanwhile; and a client that looks whether a port is free may be
another server's next connection, whose turns it takes.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

__all__ = ["enter", "is_own", "leave"]

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1

#: What `enter` left, for `leave`.
_outside: list[int] = []


def enter() -> None:
    """Give this process, and what it starts, a loopback of its own, where it may have one.

    Call it before there is a second thread. Source: network_namespaces(7).
    """
    if sys.platform != "linux":
        return
    import fcntl  # not on each system

    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET) != 0:
        os.close(here)  # it takes a right that containers seldom give
        return
    _outside.append(here)
    try:
        with socket.socket() as sock:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
    except OSError:  # that takes another right
        leave()
        os.close(_outside.pop())


def is_own() -> bool:
    """Whether `enter` could."""
    return bool(_outside)


def leave() -> None:
    """Use the machine's network again: for a child that is to fetch something."""
    for outside in _outside:
        ctypes.CDLL(None).setns(outside, _CLONE_NEWNET)
