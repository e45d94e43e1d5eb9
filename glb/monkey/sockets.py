"""Shared sockets: sockets of a patched program that have become clones.

A program that knows nothing of glb opens an address several times with SO_REUSEPORT, each time
by ``bind`` and ``listen``. The kernel judges the bind, as it always does: what it refuses stays
refused, with its own error, and a socket that binds and then connects stays as it is. At `listen`
the socket becomes a clone:

* the first on its address keeps its kernel socket, which becomes the entry's pristine socket;
* each later one stands in: its descriptor keeps its number and leads to the pristine socket from
  then on, and its own kernel socket, which has no connections yet, is closed.

Only sockets that are alike share an entry (`glb.net.sockets.kind_of`). The kernel balances all
others by itself, and also those that listened before the patch.

The program's object stays the same. Only the plain socket under it changes, to a `SharedSocket`.
Another object on the descriptor of a clone, or on one that was detached from a clone, is a clone
as well.

`init`, `bind`, `listen`, `accept`, `shutdown` and `dup` replace methods of
`gevent.socket.socket`, and `fromfd` replaces `socket.fromfd`: `glb.monkey.patch` puts them there.

Source: ``gevent._socket3``.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import operator
import os
from collections.abc import Callable
from typing import Any, Final

import gevent.socket
from gevent.socket import socket as GeventSocket

from ..accept.descriptor import NUMBERS, Descriptor, find
from ..accept.exclusions import EXCLUDED, is_excluded
from ..accept.registry import REGISTRY, Entry, Share
from ..model import address as addresses
from ..model.address import Address, Key
from ..net import sockets
from ..net.connection import PlainSocket

__all__ = [
    "SharedSocket",
    "accept",
    "bind",
    "dup",
    "fromfd",
    "init",
    "listen",
    "shutdown",
    "when_shared",
]

#: The default backlog of `socket.socket.listen`.
PYTHONS_BACKLOG: Final = min(_socket.SOMAXCONN, 128)

# By name, and now: ours will replace them.
gevents_init: Final[Any] = GeventSocket.__init__
gevents_bind: Final[Any] = GeventSocket.bind
gevents_listen: Final[Any] = GeventSocket.listen
gevents_accept: Final[Any] = GeventSocket.accept
gevents_shutdown: Final[Any] = GeventSocket.shutdown
gevents_dup: Final[Any] = GeventSocket.dup
gevents_fromfd: Final[Any] = gevent.socket.fromfd


class SharedSocket(Descriptor):
    """The plain socket under a program's own, whose address is shared."""

    __slots__ = ()

    asks_in_line = True
    is_adopted = True

    def _accept(self) -> tuple[int, Any]:
        # For code that bypasses the cooperative socket, as gevent's servers do. It never waits.
        sock, address = self.readiness.accept_nowait(is_in_line=True)
        return sock.detach(), address

    def listen(self, *args: Any) -> None:
        """Take connections, again if need be. The accept queue is never shortened."""
        _raise_backlog(self.entry, args)
        self.waiters.reopen()

    def connect(self, address: Any) -> None:
        """Refuse: other clones listen on the same kernel socket."""
        refusal = self.connect_ex(address)
        raise OSError(refusal, os.strerror(refusal))

    def connect_ex(self, address: Any) -> int:
        """Return the errno of `connect`'s refusal."""
        return errno.EADDRINUSE if self.waiters.is_cancelled else int(super().connect_ex(address))

    def shutdown(self, how: int) -> None:
        """Take no connections until the next `listen`; for code that bypasses `shutdown`."""
        self.cancel()

    def cancel(self) -> None:
        """Act as a socket that doesn't listen: accept fails, and pollers see it as readable."""
        self.waiters.cancel(lambda: OSError(errno.EINVAL, os.strerror(errno.EINVAL)))

    def detach(self) -> int:
        detached = _Detached(self.fileno(), self.entry.backlog)
        if self.entry.clones == 1:
            # No other clone could take what this one was given.
            detached.pending = self.readiness.take_all()
        number = super().detach()
        if find(number) is None:
            _detached[number] = detached
        return number


class _Detached:
    """A descriptor that was detached from a clone, and may become a clone again."""

    def __init__(self, number: int, backlog: int) -> None:
        self._number = number
        self._file = sockets.file_of(number)
        #: Of the entry to which it belonged.
        self.backlog = backlog
        #: Connections that the clone was given and hadn't accepted.
        self.pending: list[tuple[Any, Any]] = []

    @property
    def is_open(self) -> bool:
        """Whether the number still leads to the same file."""
        return self._file is not None and sockets.file_of(self._number) == self._file

    def drop(self) -> None:
        """Close the pending connections."""
        while self.pending:
            with contextlib.suppress(OSError):  # EBADF: its number was closed elsewhere
                self.pending.pop()[0].close()


# -- Global state ---------------------------------------------------------------------------------

#: By number. A stale one is dropped when a `listen` or a new object comes across it.
_detached: Final[dict[int, _Detached]] = {}

#: Called with the first shared socket: see `when_shared`.
_on_first: Final[list[Callable[[], object]]] = []


def when_shared(call: Callable[[], object]) -> None:
    """Have *call* called as soon as a socket is shared: now, if there is a clone already."""
    _on_first[:] = [call]
    if _detached or NUMBERS:
        _note_first()


def _note_first() -> None:
    while _on_first:
        _on_first.pop()()


# -- in place of gevent's methods -----------------------------------------------------------------


def init(
    self: Any,
    family: int = -1,
    type: int = -1,  # noqa: A002  # the standard library's name
    proto: int = -1,
    fileno: int | None = None,
) -> None:
    """Make a socket; on the descriptor of a clone it is the same clone."""
    gevents_init(self, family, type, proto, fileno)
    if fileno is None:
        return
    clone = find(fileno) if fileno in NUMBERS else None
    try:
        if clone is not None:
            _become(self, REGISTRY.acquire(clone.entry)).share_waiters(clone)
        elif fileno in _detached:
            _become_again(self, _detached.pop(fileno))
    except OSError:
        pass  # out of room for another clone: it is what it is without glb


def bind(self: Any, address: Any) -> None:
    """Bind; where the kernel refuses because of a socket of glb's own, join that one.

    The pristine sockets of `glb.bind` don't have SO_REUSEPORT, so the kernel doesn't share them.
    """
    try:
        gevents_bind(self, address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _join_ours(self, address):
            raise
        _note_first()


def listen(self: Any, *args: Any) -> None:
    """Listen; as a clone if SO_REUSEPORT is set.

    Raises:
        OSError: The kernel said no, or there is no descriptor left. Nothing has changed.
    """
    plain = self._sock
    facts = None if isinstance(plain, SharedSocket) else sockets.sharing_facts(plain)
    if facts is None or (EXCLUDED and is_excluded(facts.address)):
        gevents_listen(self, *args)
        return
    with REGISTRY.lock:
        entry, share = _find_to_join(facts.key)
        try:
            if entry is None:
                _listen_as_first(self, facts.key, args)
            elif sockets.kind_of(entry.pristine) == facts.kind:
                _listen_as_later(self, entry, args)
            else:
                gevents_listen(self, *args)
                return
        finally:
            if share is not None:
                REGISTRY.release(share)
    if _on_first:
        _note_first()


def accept(self: Any) -> tuple[GeventSocket, Any]:
    """Accept; a clone waits for its turn."""
    clone = self._sock
    if not isinstance(clone, SharedSocket):
        return gevents_accept(self)  # type: ignore[no-any-return]  # not in the stubs
    plain, address = clone.waiters.accept(self.timeout, clone)
    number = plain.detach()
    try:
        connection = GeventSocket(self.family, self.type, self.proto, fileno=number)
    except BaseException:
        _socket.close(number)
        raise
    if _socket.getdefaulttimeout() is None and self.gettimeout():
        connection.setblocking(True)  # as gevent: see Python issue 7995
    return connection, address


def shutdown(self: Any, how: Any) -> None:
    """Shut down; a clone takes no connections until it listens again.

    It has a kernel socket of its own then, which is bound and not listening, as after shutdown(2).
    It stays a clone if other objects share it, or if its address can't be bound again.
    """
    clone = self._sock
    if not isinstance(clone, SharedSocket):
        gevents_shutdown(self, how)
        return
    how = operator.index(how)
    if how not in (_socket.SHUT_RD, _socket.SHUT_WR, _socket.SHUT_RDWR):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if clone.waiters.is_cancelled:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    if how == _socket.SHUT_WR:
        return
    clone.cancel()
    if clone.waiters.is_shared:
        return
    try:
        own = sockets.open_bound(clone)
    except OSError:
        return
    with contextlib.closing(own):
        number = clone.leave_number(own)
    self._sock = PlainSocket(clone.family, clone.type, clone.proto, number)


def dup(self: Any) -> Any:
    """Return another object on the same socket; of a clone it is the same clone."""
    clone = self._sock
    if not isinstance(clone, SharedSocket):
        return gevents_dup(self)
    number = sockets.duplicate(clone)
    try:
        copy = type(self)(self.family, self.type, self.proto, fileno=number)
    except BaseException:
        _socket.close(number)
        raise
    _join(copy, clone)
    copy.settimeout(self.gettimeout())
    return copy


def fromfd(fd: int, family: int, type: int, proto: int = 0) -> Any:  # noqa: A002  # as above
    """Return a socket object from a duplicate of a descriptor; see `socket.fromfd`."""
    sock = gevents_fromfd(fd, family, type, proto)
    clone = find(fd)
    if clone is not None:
        _join(sock, clone)
    return sock


# -- steps ----------------------------------------------------------------------------------------


def _join_ours(sock: Any, address: Any) -> bool:
    """Join the entry of *address*, which glb itself has opened; ``False`` if there is none.

    *sock* takes no connections before its `listen`.
    """
    plain = sock._sock
    if not sockets.has_reuse_port(plain):
        return False
    try:
        where = Address(plain.family, sockets.numeric(plain.family, address))
    except (OSError, TypeError, ValueError):
        return False
    with REGISTRY.lock:
        entry = None if is_excluded(where) else REGISTRY.find(where)
        if entry is None or sockets.has_reuse_port(entry.pristine):
            return False
        if sockets.kind_of(entry.pristine) != sockets.kind_of(plain):
            return False
        _stand_in(sock, REGISTRY.acquire(entry)).cancel()
        return True


def _find_to_join(key: Key | None) -> tuple[Entry | None, Share | None]:
    """Return the open entry that has *key*; or one opened anew, and its share, to be released."""
    entry = None if key is None else REGISTRY.find_by_key(key)
    if entry is not None or key is None:
        return entry, None
    for number, detached in [*_detached.items()]:
        if not detached.is_open:
            _detached.pop(number).drop()
            continue
        found = sockets.address_of(number)
        if found is not None and addresses.key_of(found) == key:
            share = REGISTRY.adopt(number, shared=True, backlog=detached.backlog, key=key)
            return share.entry, share
    return None, None


def _listen_as_first(sock: Any, key: Key | None, args: tuple[Any, ...]) -> None:
    plain = sock._sock
    plain.listen(*args)
    try:
        share = REGISTRY.adopt(plain.fileno(), shared=True, backlog=_length(args), key=key)
    except BaseException:
        plain.shutdown(_socket.SHUT_RDWR)  # bound, and not listening, as it was
        raise
    _become(sock, share)


def _listen_as_later(sock: Any, entry: Entry, args: tuple[Any, ...]) -> None:
    before = entry.backlog
    # Each brings the queue that it would have had.
    _raise_backlog(entry, args, beyond=before)
    try:
        _stand_in(sock, REGISTRY.acquire(entry))
    except BaseException:
        REGISTRY.set_backlog(entry, before)
        raise


def _stand_in(sock: Any, share: Share) -> SharedSocket:
    """Have *sock*'s descriptor lead to the socket of *share*'s entry."""
    try:
        sockets.stand_in(sock.fileno(), share.entry.pristine)
    except BaseException:
        REGISTRY.release(share)
        raise
    return _become(sock, share)


def _join(sock: Any, clone: Descriptor) -> None:
    """Have *sock*, which is on a descriptor of *clone*'s socket, be the same clone."""
    try:
        _become(sock, REGISTRY.acquire(clone.entry)).share_waiters(clone)
    except BaseException:
        sock.close()
        raise


def _become(sock: Any, share: Share) -> SharedSocket:
    # On the hub that the socket has already: to make one may fail, and may take long.
    plain = sock._sock
    shared = SharedSocket.on(plain.fileno(), share, plain, sock.hub)
    plain.detach()
    sock._sock = shared
    return shared


def _become_again(sock: Any, detached: _Detached) -> None:
    if not detached.is_open:
        detached.drop()
        return
    number = sock.fileno()
    with REGISTRY.lock:
        entry = REGISTRY.find(sockets.bound_address(sock._sock))
        if entry is None:
            share = REGISTRY.adopt(number, shared=True, backlog=detached.backlog)
        elif sockets.file_of(entry.pristine.fileno()) == sockets.file_of(number):
            share = REGISTRY.acquire(entry)
        else:
            detached.drop()
            return  # the kernel has two sockets there now, and balances them by itself
        _become(sock, share).readiness.put_back(detached.pending)


def _raise_backlog(entry: Entry, args: tuple[Any, ...], beyond: int = 0) -> None:
    REGISTRY.raise_backlog(entry, min(_length(args) + beyond, sockets.MAX_BACKLOG))


def _length(args: tuple[Any, ...]) -> int:
    """Return what ``socket.listen(*args)`` takes for the backlog, or raise what it raises."""
    if len(args) > 1:
        raise TypeError(f"listen() takes at most 1 argument, got {len(args)}")
    length = operator.index(args[0]) if args else PYTHONS_BACKLOG
    if not -sockets.MAX_BACKLOG - 1 <= length <= sockets.MAX_BACKLOG:
        raise OverflowError(f"backlog must be at most {sockets.MAX_BACKLOG}, got {length}")
    return max(length, 0)
