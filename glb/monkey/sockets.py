"""Adopted sockets: a program's own, which have become clones.

A program that knows nothing of glb opens an address several times with SO_REUSEPORT, each time
by ``bind`` and ``listen``. The kernel judges the bind, as it always does: so whatever it refuses
stays refused, with its own error, and a socket that is bound and then connects is let alone. At
`listen` the socket becomes a clone:

* the first on its address as it is: its kernel socket is the entry's pristine socket then;
* each later one by standing in: its descriptor, whose number stays, leads to the pristine socket
  from then on, and its own kernel socket, on which nobody has knocked yet, is closed.

Only sockets that are alike share an entry (`glb.net.sockets.kind_of`): what the kernel lets stand
side by side otherwise stays the kernel's business, and so does whatever listens already.

Nothing of a program's object changes but the plain socket under it, which is an `Adopted` then.
Another object that is made on the descriptor of a clone, or on one that was detached from a
clone, is a clone as well.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import operator
import os
from typing import Any, Final

from gevent.socket import socket as GeventSocket

from ..accept.descriptor import NUMBERS, Descriptor, find
from ..accept.exclusions import is_excluded
from ..accept.registry import REGISTRY, Entry, Share
from ..model import address as addresses
from ..model.address import Address
from ..net import sockets
from ..net.connection import PlainSocket

__all__ = ["Adopted", "accept", "bind", "duplicate", "listen", "made", "shutdown"]

#: What listen(2) of Python takes, where it isn't told.
PYTHONS_BACKLOG: Final = min(_socket.SOMAXCONN, 128)


class Adopted(Descriptor):
    """The plain socket under a program's own, whose address is shared."""

    __slots__ = ()

    asks_in_line = True
    is_adopted = True

    def _accept(self) -> tuple[int, Any]:
        # For who goes under the cooperative socket, as gevent's servers do: never waits.
        sock, address = self.readiness.accept_nowait(is_in_line=True)
        return sock.detach(), address

    def listen(self, *args: Any) -> None:
        """Take connections, again if need be. The accept queue is never shortened."""
        _raise_backlog(self.entry, args)
        self.waiters.reopen()

    def connect(self, address: Any) -> None:
        """Refuse: its kernel socket listens, for others as well."""
        refusal = self.connect_ex(address)
        raise OSError(refusal, os.strerror(refusal))

    def connect_ex(self, address: Any) -> int:
        """Refuse, as `connect`, by an errno."""
        return errno.EADDRINUSE if self.waiters.is_cancelled else int(super().connect_ex(address))

    def shutdown(self, how: int) -> None:
        """Take no more connections, until it listens again; for who goes under `shutdown`."""
        self.cancel()

    def cancel(self) -> None:
        """Be a socket that doesn't listen: accept fails, and pollers are told."""
        self.waiters.cancel(lambda: OSError(errno.EINVAL, os.strerror(errno.EINVAL)))

    def detach(self) -> int:
        left = _Left(self.fileno(), self.entry.backlog)
        if self.entry.clones == 1:
            # Nobody else could have it.
            left.pending = self.readiness.take_all()
        number = super().detach()
        if find(number) is None:
            _left[number] = left
        return number


class _Left:
    """A descriptor of a clone's kernel socket that isn't a clone now, and may become one."""

    def __init__(self, number: int, backlog: int) -> None:
        self._number = number
        self._file = sockets.file_of(number)
        #: Of the entry to which it belonged.
        self.backlog = backlog
        #: What it was given, and hadn't accepted.
        self.pending: list[tuple[Any, Any]] = []

    @property
    def is_there(self) -> bool:
        """Whether nobody has closed it, by whatever way."""
        return self._file is not None and sockets.file_of(self._number) == self._file

    def drop(self) -> None:
        """Nobody will have it."""
        while self.pending:
            with contextlib.suppress(OSError):  # EBADF: its number was closed elsewhere
                self.pending.pop()[0].close()


# -- Global state ---------------------------------------------------------------------------------

#: By number. What is stale is dropped when somebody comes across it.
_left: Final[dict[int, _Left]] = {}


# -- what a program does with its sockets ---------------------------------------------------------


def bind(sock: Any, address: Any) -> bool:
    """Join the entry of *address*, which the kernel has refused to bind *sock* to; tell whether.

    The pristine sockets of glb's own don't let the kernel share them: see `glb.bind`. It takes
    no connections before `listen`.
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
        if entry is None or sockets.has_reuse_port(entry.pristine) or not _is_alike(entry, plain):
            return False
        _stand_in(sock, REGISTRY.acquire(entry)).cancel()
        return True


def listen(sock: Any, *args: Any) -> bool:
    """Have *sock* listen as a clone; tell whether it is one, or the kernel's own as before.

    Raises:
        OSError: The kernel said no, or there is no descriptor left. Nothing has changed.
    """
    plain = sock._sock
    if isinstance(plain, Adopted) or not sockets.has_reuse_port(plain):
        return False
    if not sockets.is_idle(plain) or is_excluded(sockets.bound_address(plain)):
        return False
    with REGISTRY.lock:
        entry, share = _find_to_join(sockets.bound_address(plain))
        if entry is None:
            _begin(sock, args)
            return True
        try:
            if not _is_alike(entry, plain):
                return False
            before = entry.backlog
            # Each brings the queue that it would have had.
            _raise_backlog(entry, args, beyond=before)
            try:
                _stand_in(sock, REGISTRY.acquire(entry))
            except BaseException:
                REGISTRY.set_backlog(entry, before)
                raise
        finally:
            if share is not None:
                REGISTRY.release(share)
    return True


def accept(sock: Any, clone: Descriptor) -> tuple[GeventSocket, Any]:
    """Wait for the turn of *clone*, which *sock* stands on, as `gevent.socket.socket.accept`."""
    plain, address = clone.waiters.accept(sock.timeout, clone)
    number = plain.detach()
    try:
        connection = GeventSocket(sock.family, sock.type, sock.proto, fileno=number)
    except BaseException:
        _socket.close(number)
        raise
    if _socket.getdefaulttimeout() is None and sock.gettimeout():
        connection.setblocking(True)  # as gevent: see Python issue 7995
    return connection, address


def shutdown(sock: Any, clone: Adopted, how: Any) -> None:
    """Have *sock* take no more connections, until it listens again.

    It stands on a kernel socket of its own then, which is bound and not listening, as after
    shutdown(2); unless other objects have it in common, or its address isn't to be bound again.
    """
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
    sock._sock = PlainSocket(clone.family, clone.type, clone.proto, number)


def duplicate(sock: Any, clone: Descriptor) -> Any:
    """Return another object on *clone*'s socket, of *sock*'s class; the caller closes it."""
    number = sockets.duplicate(clone)
    try:
        copy = type(sock)(sock.family, sock.type, sock.proto, fileno=number)
    except BaseException:
        _socket.close(number)
        raise
    join(copy, clone)
    copy.settimeout(sock.gettimeout())
    return copy


def join(sock: Any, clone: Descriptor) -> None:
    """Let *sock*, which stands on a descriptor of *clone*'s socket, be the same clone."""
    try:
        _become(sock, REGISTRY.acquire(clone.entry)).share_waiters(clone)
    except BaseException:
        sock.close()
        raise


def made(sock: Any, number: int) -> None:
    """See whether *sock*, which was just made on descriptor *number*, stands on a clone's."""
    clone = find(number) if number in NUMBERS else None
    try:
        if clone is not None:
            _become(sock, REGISTRY.acquire(clone.entry)).share_waiters(clone)
        elif number in _left:
            _adopt_again(sock, _left.pop(number))
    except OSError:
        pass  # there is no room for another clone, and it is what it is without glb


def has_been() -> bool:
    """Whether there are clones, or descriptors that were detached from clones."""
    return bool(_left or NUMBERS)


# -- steps ----------------------------------------------------------------------------------------


def _is_alike(entry: Entry, plain: _socket.socket) -> bool:
    return sockets.kind_of(entry.pristine) == sockets.kind_of(plain)


def _find_to_join(where: Address) -> tuple[Entry | None, Share | None]:
    """Return the open entry of *where*; or one opened anew, and its share, to be released."""
    entry = REGISTRY.find(where)
    if entry is not None or not where.port:
        return entry, None
    for number, left in [*_left.items()]:
        if not left.is_there:
            _left.pop(number).drop()
            continue
        found = sockets.address_of(number)
        if found is not None and addresses.key_of(found) == addresses.key_of(where):
            share = REGISTRY.adopt(number, shared=True, backlog=left.backlog)
            return share.entry, share
    return None, None


def _begin(sock: Any, args: tuple[Any, ...]) -> None:
    """Listen, and be the first clone of a new entry."""
    plain = sock._sock
    plain.listen(*args)
    try:
        share = REGISTRY.adopt(plain.fileno(), shared=True, backlog=_length(args))
    except BaseException:
        plain.shutdown(_socket.SHUT_RDWR)  # bound, and not listening, as it was
        raise
    _become(sock, share)


def _stand_in(sock: Any, share: Share) -> Adopted:
    """Have *sock*'s descriptor lead to the socket of *share*'s entry."""
    try:
        sockets.stand_in(sock.fileno(), share.entry.pristine)
    except BaseException:
        REGISTRY.release(share)
        raise
    return _become(sock, share)


def _become(sock: Any, share: Share) -> Adopted:
    # On the hub that the socket has already: to make one may fail, and may take long.
    plain = sock._sock
    adopted = Adopted.on(plain.fileno(), share, plain, sock.hub)
    plain.detach()
    sock._sock = adopted
    return adopted


def _adopt_again(sock: Any, left: _Left) -> None:
    if not left.is_there:
        left.drop()
        return
    number = sock.fileno()
    with REGISTRY.lock:
        entry = REGISTRY.find(sockets.bound_address(sock._sock))
        if entry is None:
            share = REGISTRY.adopt(number, shared=True, backlog=left.backlog)
        elif sockets.file_of(entry.pristine.fileno()) == sockets.file_of(number):
            share = REGISTRY.acquire(entry)
        else:
            left.drop()
            return  # the kernel has two sockets there now, and shares by itself
        _become(sock, share).readiness.put_back(left.pending)


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
