"""Inherited sockets: listeners on what the process was started with. Process-wide: `INHERITANCE`.

A process has inherited sockets from systemd, from einhorn, or from the process that it replaces
(see `glb.upgrade`). They listen already, under a number, and mostly with a name. Each becomes the
pristine socket of an address, with the descriptor that it has, and never gets a second listen(2).

Source: sd_listen_fds(3).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Final

from ..model.address import AF_UNIX, Key
from ..net.inherited import InheritedSocket, take_sockets, why_none
from ..net.passed import Passed, PassedSocket, listening_socket, take_passed
from .listener import Listener
from .registry import REGISTRY

__all__ = ["INHERITANCE", "Inheritance", "inherited"]


class Inheritance:
    """What the process was started with. The environment is read at the first question, once."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._environ: Final = environ
        self._is_read = False
        self._sockets: list[InheritedSocket] = []
        #: Why there are none, for people; ``""`` if there are some.
        self.why_none = ""
        #: What the process that this one replaces has passed on; ``None`` if it replaces none.
        self.passed: Passed | None = None
        self._asked: dict[str, list[PassedSocket]] = {}

    def read(self) -> None:
        """Read the environment, unless that is done.

        Raises:
            ValueError: It has something wrong, or what it says isn't there.
        """
        if self._is_read:
            return
        self._is_read = True
        self.why_none = why_none(self._environ)
        self.passed = passed = take_passed(self._environ)
        self._sockets = take_sockets(self._environ)
        if passed is not None:
            self.why_none = ""
            for each in passed.sockets:
                if each.name is not None:
                    self._sockets.append(InheritedSocket(each.name, each.number))
                elif each.asked is not None:
                    self._asked.setdefault(each.asked, []).append(each)

    @property
    def sockets(self) -> list[InheritedSocket]:
        """Those that were not taken yet."""
        self.read()
        return [*self._sockets]

    def take(self, socket: InheritedSocket, *, reuse_port: bool = False) -> Listener:
        """Return a listener on one of `sockets`, which isn't among them any more.

        Args:
            reuse_port: As `glb.bind` has it.

        Raises:
            ValueError: It isn't a stream socket that listens. It is left as it is.
            OSError: Its address is open in this process already.
        """
        pristine = listening_socket(socket.descriptor, socket.name)
        self._sockets.remove(socket)
        return Listener(REGISTRY.adopt(pristine, shared=reuse_port, origin=socket))

    def take_asked(self, asked: str, *, reuse_port: bool) -> tuple[Listener, PassedSocket] | None:
        """Return a listener on the passed socket that was opened for the address *asked*."""
        self.read()
        found = self._asked.get(asked)
        if not found:
            return None
        pristine = listening_socket(found[0].number)
        passed = found.pop(0)
        key: Key | None = None if passed.file is None else (AF_UNIX, *passed.file)
        return Listener(REGISTRY.adopt(pristine, shared=reuse_port, key=key)), passed

    def close_rest(self) -> list[str]:
        """Close what was not taken; return what it was, for people."""
        self.read()
        asked = [each for found in self._asked.values() for each in found]
        left = [each.number for each in asked]
        words = [f"the socket of {each.asked}" for each in asked]
        for name, number in self._sockets:
            left.append(number)
            words.append(f"descriptor {number} ({name!r})" if name else f"descriptor {number}")
        self._asked.clear()
        self._sockets.clear()
        for each in left:
            os.close(each)
        return words


def inherited(name: str | None = None, *, reuse_port: bool = False) -> list[Listener]:
    """Return listeners on the sockets that the process was started with, each of them once.

    They are systemd's (``LISTEN_FDS``), einhorn's (``EINHORN_FD_COUNT``), or those of the process
    that this one replaces. Their accept queues are as long as they are. A server takes one in place
    of an address.

    Args:
        name: Only those of this name: in a socket unit ``FileDescriptorName=``, and without it the
            unit's name. ``None`` is all.
        reuse_port: Let other listeners of this process join the address, as `glb.bind` has it.

    Returns:
        Listeners, in the order of their descriptors; none if the process was started without. The
        caller closes them, which leaves a Unix socket's file to systemd.

    Raises:
        TypeError: *name* is no string.
        ValueError: The environment says it wrong, or one isn't a stream socket that listens.
        OSError: One's address is open in this process already.

    Switches:
        Never.

    Example:
        >>> inherited("web")
        []
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a string or None, got {name!r}")
    found = [each for each in INHERITANCE.sockets if name in (None, each.name)]
    listeners: list[Listener] = []
    try:
        for each in sorted(found, key=lambda each: each.descriptor):
            listeners.append(INHERITANCE.take(each, reuse_port=reuse_port))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


# -- Global state ---------------------------------------------------------------------------------

#: What this process was started with.
INHERITANCE: Final = Inheritance()
