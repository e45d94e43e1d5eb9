"""Descriptors of clones: each goes with a share of its entry, and with the clone's waiters.

A `Descriptor` is the plain socket under a cooperative one: under a `glb.Listener`, or under a
socket of a monkey-patched program (see `glb.monkey.sockets`). A close gives the share back, and
wakes greenlets that wait or poll.

`find` gives the clone of a descriptor's number, for pollers, which know numbers only.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Final

from gevent import get_hub
from gevent._socketcommon import cancel_wait_ex

from ..model import accept_errors
from ..net import sockets
from ..net.connection import PlainSocket
from .readiness import Readiness
from .registry import REGISTRY, Entry, Share
from .waiters import AcceptWaiters

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing, from 3.11 on

__all__ = ["NUMBERS", "Descriptor", "find", "is_adopted"]


class Descriptor(PlainSocket):  # type: ignore[misc]  # the stubs leave gevent's out
    """A clone's descriptor, and with it its share: the two come and go together."""

    __slots__ = ("_below", "_hub", "_is_left", "_share", "_waiters")

    #: See `glb.accept.waiters.Holder`.
    asks_in_line: bool = False
    #: Whether it stands under a socket of a patched program: see `glb.monkey.sockets`.
    is_adopted: bool = False
    #: What had the same number before, and may have it afterwards.
    _below: weakref.ref[Descriptor] | None
    _waiters: AcceptWaiters | None
    _is_left: bool

    @classmethod
    def of(cls, share: Share) -> Self:
        """Return a new descriptor of *share*'s socket, which from then on owns the share."""
        hub = get_hub()  # a thread's first may fail, and then nothing has happened yet
        number = sockets.duplicate(share.entry.pristine)
        try:
            return cls.on(number, share, share.entry.pristine, hub)
        except BaseException:
            _socket.close(number)
            raise

    @classmethod
    def on(cls, number: int, share: Share, like: _socket.socket, hub: Any) -> Self:
        """Return one on *number*, a descriptor of *share*'s socket; it owns both then.

        Its family, type and protocol are those of *like*. *hub* is where it lives.
        """
        sock = cls(like.family, like.type, like.proto, number)
        sock._share = share
        sock._hub = hub
        sock._waiters = None
        sock._is_left = False
        sock.setblocking(False)
        share.held_by = weakref.ref(sock)
        sock._below = NUMBERS.get(number)
        NUMBERS[number] = weakref.ref(sock)
        return sock

    @property
    def entry(self) -> Entry:
        entry: Entry = self._share.entry
        return entry

    @property
    def waiters(self) -> AcceptWaiters:
        """What waits for its connections. Made when first needed, which is never by servers."""
        waiters = self._waiters
        if waiters is None:
            with REGISTRY.lock:
                waiters = self._waiters
                if waiters is None:
                    waiters = AcceptWaiters(self.entry, self._hub)
                    self._have(waiters)
        return waiters

    @property
    def readiness(self) -> Readiness:
        """What programs that poll it need; made when first needed."""
        return self.waiters.readiness

    def share_waiters(self, other: Descriptor) -> None:
        """Have *other*'s waiters and readiness in common."""
        with REGISTRY.lock:
            self._have(other.waiters)

    def wait_by(self, waiters: AcceptWaiters) -> None:
        """Have *waiters*. Greenlets that wait by it already get the error of a closed socket."""
        with REGISTRY.lock:
            self.end_waiters()
            self._is_left = False
            self._have(waiters)

    def _have(self, waiters: AcceptWaiters) -> None:
        self._waiters = waiters
        waiters.join(self)
        if self._is_left:
            self.end_waiters()

    def belongs_to(self, thread: int) -> None:
        """A fork keeps it if *thread* forks, by its native ident: it was the maker's."""
        self._share.thread = thread

    def close(self) -> None:
        self._leave()
        try:
            super().close()
        finally:  # EBADF, if it was closed by its number
            REGISTRY.release(self._share)

    def detach(self) -> int:
        self._leave()
        number: int = super().detach()
        self._share.entry.disown()
        REGISTRY.release(self._share)
        return number

    def leave_number(self, to: _socket.socket) -> int:
        """Close it, but have its number, which is returned, lead *to* another socket."""
        sockets.stand_in(self.fileno(), to)
        self._leave()
        number: int = super().detach()
        REGISTRY.release(self._share)
        return number

    def let_go(self) -> None:
        """Give the share back, and free the address if it was the last; close later."""
        self._leave()
        REGISTRY.release(self._share)
        if self._share.entry.is_closed and not self._share.entry.outlives_us:
            sockets.park(self)

    def close_in_child(self) -> None:
        """Close it in a forked child in which its thread, and so its hub, isn't there."""
        if self._waiters is not None:
            self._waiters.abandon()
        with contextlib.suppress(OSError):  # as below: the others are to be closed as well
            self.close()

    def _leave(self) -> None:
        number = self.fileno()
        reference = NUMBERS.get(number)
        if reference is not None and reference() in (self, None):
            below = None if self._below is None else self._below()
            if below is not None and below.fileno() == number:
                NUMBERS[number] = weakref.ref(below)
            else:
                del NUMBERS[number]
        self.end_waiters()

    def end_waiters(self) -> None:
        """Wake greenlets that wait or poll: it is closed. Twice is harmless."""
        with REGISTRY.lock:
            self._is_left = True
            waiters = self._waiters
        if waiters is not None:
            address = self.entry.address
            waiters.end(self, cancel_wait_ex, lambda: accept_errors.listener_closed(address))

    def is_same_file(self) -> bool:
        """Whether its number still leads to it, and not to another file opened in its place."""
        mine = sockets.file_of(self.fileno())
        return mine is not None and mine == sockets.file_of(self.entry.pristine.fileno())

    def __del__(self) -> None:
        if self.fileno() >= 0:
            # Before closing, as the standard library's: what comes after must not fail.
            address = self._share.entry.address
            try:
                warnings.warn(
                    f"unclosed listener on {address!r}: {self!r}",
                    ResourceWarning,
                    stacklevel=2,
                    source=self,
                )
            finally:  # it raises where warnings are errors, or go to a log that switches
                with contextlib.suppress(OSError):  # EBADF, if it was closed by its number
                    self.close()


def find(number: int) -> Descriptor | None:
    """Return the clone that has the descriptor *number*, if it is one."""
    reference = NUMBERS.get(number)
    found = None if reference is None else reference()
    return found if found is not None and found.is_same_file() else None


def is_adopted(plain: object) -> bool:
    """Tell whether *plain* stands under a socket of a patched program, and is a clone."""
    return isinstance(plain, Descriptor) and plain.is_adopted


# -- Global state ---------------------------------------------------------------------------------

#: Clones by the numbers of their descriptors, for `find`. It need not be called while it is empty.
NUMBERS: Final[dict[int, weakref.ref[Descriptor]]] = {}


def _after_fork_in_child() -> None:
    for reference in [*NUMBERS.values()]:
        each = reference()
        if each is not None and each._waiters is not None:
            each._waiters.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
