"""The registry: the only process-wide state, and the only owner of pristine sockets.

For each open address it keeps an `Entry`: the pristine socket, on which the registry
itself never accepts, and a `Share` for each clone. The rules that always hold:

* An entry is in the registry exactly as long as it has a share. With the last share its
  socket is closed in the same critical section in which it was counted out, so the address
  is free when `Registry.release` returns.
* Two shared entries never have the same key. Port 0 always makes a new entry.
* A step that fails leaves the registry and the process's descriptors as they were.

**Threads, greenlets, signals.** One native re-entrant lock. Nothing inside of it switches
greenlets, so only another native thread ever waits for it; and a signal handler or a
garbage collection that strikes inside comes back in through the same lock. Therefore every
critical section counts first and acts then: what it relies on can't be closed under it.

**Fork.** No other thread is in the critical section at the moment of a fork. The child keeps
the clones of the thread that forked, they are the same kernel sockets; clones of other
threads, whose hubs do not exist there, are closed there. A Unix socket's file is removed by
the process that bound it, not by its children.

Source: deno_net's ``tcp.rs`` (``bind_load_balanced``) and its fix 3b11cc4887: two clones
dropped at once each saw the other, and the port stayed bound until the process ended.
"""

from __future__ import annotations

import _socket
import errno
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..model import accept_errors
from ..model.address import AF_UNIX, Address, Key, unmap
from ..model.stats import EntryStats
from ..net import sockets
from ..net.inherited import InheritedSocket
from ..net.spare_fd import Reserve
from ..originals import RLock, native_ident
from .handover import HandOver
from .protocols import Closable

__all__ = ["Entry", "Registry", "Share", "entries"]


class Share:
    """One clone's part in an entry. Its owner releases it; twice is harmless."""

    __slots__ = ("__weakref__", "entry", "held_by", "thread")

    def __init__(self, entry: Entry, thread: int) -> None:
        self.entry = entry
        self.thread = thread
        #: What it belongs to, which the registry never keeps alive.
        self.held_by: weakref.ref[Closable] | None = None

    @property
    def holder(self) -> Closable | None:
        return None if self.held_by is None else self.held_by()


def _accept_nothing() -> tuple[int, Any]:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


class Entry:
    """One open address: its pristine socket, its shares, and its turns."""

    def __init__(
        self,
        registry: Registry,
        pristine: _socket.socket,
        *,
        key: Key | None,
        shared: bool,
        owns_file: bool,
        origin: InheritedSocket | None = None,
    ) -> None:
        self.registry: Final = registry
        self.pristine: Final = pristine
        self.key: Final = key
        self.shared: Final = shared
        #: Under which name and number the process has inherited it, if it has.
        self.origin: Final = origin
        self.address: Final[Any] = pristine.getsockname()
        #: Accepts a connection from the kernel, as `glb.net.connection.accept_plain` takes it.
        self.accept: Callable[[], tuple[int, Any]] = pristine._accept  # type: ignore[attr-defined]  # not in the stubs
        #: The length that was last given to listen(2). Of a socket that was handed in it is
        #: unknown, and the default stands here, so that joining doesn't lower it.
        self.backlog = 0
        #: The order of turns, and connections on their way to other hubs.
        self.turns: Final = HandOver(registry.lock)
        #: What is in the log already of accepts that fail.
        self.failures: Final = accept_errors.Episode()
        self.is_closed = False
        #: Whether the kernel's socket is open elsewhere too: handed in, detached,
        #: or copied by a fork. Then letting go of it here doesn't free the address.
        self.outlives_us = not owns_file
        #: Other threads' dispatchers that still watch the descriptor: the last one closes it.
        self._left_to: set[Any] = set()
        self._shares: set[Share] = set()
        self._refuses_newcomers = False
        self._keeps_reserve = False
        #: Whether what is in the accept queue is accepted.
        self.accepts = True
        #: Whether another process serves the accept queue, and this one doesn't any more.
        self.is_left = False
        # The process that removes a Unix socket's file; a child of it doesn't.
        self._file_owner = os.getpid() if owns_file else None

    @property
    def clones(self) -> int:
        return len(self._shares)

    def __repr__(self) -> str:
        return f"<Entry of {self.address!r}, {self.clones} clones>"

    def refuse_newcomers(self) -> bool:
        """Let no new client into the accept queue, until a clone joins or it is closed.

        Where the kernel can't, or the socket is others' as well, nothing happens.

        Returns:
            Whether it does so.
        """
        with self.registry.lock:
            if not self.is_closed and not self.outlives_us:
                self._refuses_newcomers = sockets.refuse_newcomers(self.pristine)
            return self._refuses_newcomers

    def accept_nothing(self) -> None:
        """Leave what is in the accept queue there, until a clone joins or it is closed.

        What was accepted before is given to clones still.
        """
        with self.registry.lock:
            if not self.is_closed:
                self.accepts, self.accept = False, _accept_nothing
                for dispatcher in [*self.turns.dispatchers.values()]:
                    dispatcher.look_locked()

    def keep_reserve(self) -> None:
        """Have the reserve kept until the entry is closed: a dispatcher is going to accept.

        It is the entry's and not each hub's, since a thread may end without a word.
        """
        with self.registry.lock:
            if not self.is_closed and not self._keeps_reserve:
                self._keeps_reserve = True
                self.registry.reserve.acquire()

    # -- called by the registry, with its lock held --------------------------------------

    def acquire_locked(self, thread: int) -> Share | None:
        """Count a new share in; ``None`` if the last of the others went a moment before."""
        share = Share(self, thread)
        self._shares.add(share)
        if self.is_closed:
            self._shares.discard(share)
            return None
        if not (self.accepts or self.is_left):
            self.accepts = True
            self.accept = self.pristine._accept  # type: ignore[attr-defined]  # as above
        if self._refuses_newcomers:
            self._refuses_newcomers = False
            sockets.admit_newcomers(self.pristine)
        return share

    def release_locked(self, share: Share) -> bool:
        """Count *share* out; tell whether it was the last."""
        if share not in self._shares:
            return False
        self._shares.remove(share)
        return not self._shares

    def close_locked(self) -> None:
        """Free the address. Dispatchers of other threads look away when they come to it."""
        self.is_closed = True
        if self.pristine.family == AF_UNIX and self.owns_file:
            sockets.unlink(Address(AF_UNIX, self.address), self.key)
        foreign = []
        self.turns.close_locked()
        for dispatcher in [*self.turns.dispatchers.values()]:
            if dispatcher.is_here:
                dispatcher.close()
            elif dispatcher.is_watching:
                foreign.append(dispatcher)
            else:
                self.turns.remove_locked(dispatcher)
                dispatcher.send(dispatcher.close)
        if foreign:
            # An event loop keeps watching what a number stood for as long as that is open
            # anywhere. So if it is, the number stays what it is until the loop looks away.
            self._left_to = {*foreign}
            if not self.outlives_us:
                with self.registry.reserve.lend():
                    sockets.park(self.pristine)
            for dispatcher in foreign:
                dispatcher.send(dispatcher.close)
        if self._keeps_reserve:
            self._keeps_reserve = False
            self.registry.reserve.release()
        if not foreign:
            self.pristine.close()  # last: EBADF, if its number was closed elsewhere

    def disown(self) -> None:
        """Leave the kernel's socket, and its file, to another owner of a descriptor."""
        self.outlives_us = True
        self._file_owner = None

    @property
    def owns_file(self) -> bool:
        """Whether this process removes a Unix socket's file, when it closes the entry."""
        return self._file_owner == os.getpid()

    def own(self, *, is_ours_alone: bool, owns_file: bool) -> None:
        """Have the kernel's socket, and its file, as the process had it that has left it to us."""
        self.outlives_us = not is_ours_alone
        self._file_owner = os.getpid() if owns_file else None
        sockets.admit_newcomers(self.pristine)  # the other process may have begun to drain

    def leave_queue(self) -> None:
        """Accept nothing more: another process does. What was accepted goes on to its clone."""
        with self.registry.lock:
            self.is_left = True
            self.disown()
            self._refuses_newcomers = False
            sockets.admit_newcomers(self.pristine)
            self.accept_nothing()

    def has_clients(self) -> bool:
        """Return True if a client waits in the accept queue for this process."""
        return not self.is_left and sockets.is_readable(self.pristine)

    def dispatcher_closed(self, dispatcher: object) -> None:
        """Called by a dispatcher that has looked away from the descriptor, for good."""
        with self.registry.lock:
            if dispatcher in self._left_to:
                self._left_to.discard(dispatcher)
                if not self._left_to:
                    self.pristine.close()

    def keep_thread_locked(self, thread: int) -> None:
        """Keep the shares and the dispatchers of *thread* alone, in a forked child."""
        for share in [share for share in self._shares if share.thread != thread]:
            self._shares.discard(share)
            holder = share.holder
            if holder is not None:
                holder.close_in_child()
        self.turns.keep_thread_locked(thread)


class Registry:
    """Open addresses, and their shares."""

    def __init__(self) -> None:
        self.lock: Any = RLock()
        #: A descriptor for when there is no other. Dispatchers acquire it.
        self.reserve: Final = Reserve(self.lock)
        self._by_key: dict[Key, Entry] = {}
        self._entries: dict[Entry, None] = {}

    def open(
        self,
        address: Address,
        backlog: int | None,
        *,
        shared: bool,
        reuse_port: bool = False,
        reuse_addr: bool = True,
    ) -> Share:
        """Return a share in *address*, opening it if need be.

        Args:
            backlog: Length of the accept queue, in connections; ``None`` is what the kernel
                allows. Joining an open address raises its backlog and never lowers it.
            shared: Join the shared entry of this address if there is one, and let others
                join. Otherwise no other clone joins it.
            reuse_port: Set SO_REUSEPORT on a new socket, where the kernel balances by it.
            reuse_addr: Set SO_REUSEADDR on a new socket, where it means what it says.

        Raises:
            OSError: The kernel said no; nothing stays open.
            TypeError, ValueError: *backlog* is not a number of connections.

        Switches:
            Never.
        """
        length = sockets.check_backlog(backlog)
        address = sockets.resolve(address)
        if shared:
            # 127.0.0.1 and ::ffff:127.0.0.1 must not come to two kernel sockets.
            address = unmap(address)
        with self.lock:
            share = self._join_locked(address) if shared else None
            if share is None:
                pristine = sockets.open_listening(
                    address, length, reuse_port=reuse_port, reuse_addr=reuse_addr
                )
                return self._add_locked(pristine, shared, backlog=length)
            try:
                self.raise_backlog(share.entry, length)
            except BaseException:
                self.release(share)
                raise
            return share

    def find(self, address: Address) -> Entry | None:
        """Return the open, shared entry of a numeric *address*."""
        with self.lock:
            key = sockets.find_key(address)
            return None if key is None else self._by_key.get(key)

    def find_by_key(self, key: Key) -> Entry | None:
        """Return the open, shared entry that has *key*: see `glb.net.sockets.find_key`."""
        with self.lock:
            return self._by_key.get(key)

    def adopt(
        self,
        listening: int | _socket.socket,
        *,
        shared: bool = False,
        backlog: int = sockets.DEFAULT_BACKLOG,
        key: Key | None = None,
        origin: InheritedSocket | None = None,
    ) -> Share:
        """Return a share in *listening*: a descriptor, which stays the caller's, or a socket.

        A socket becomes the pristine one, also if this fails. A Unix socket's file stays another's.

        Args:
            backlog: What its accept queue is long, in connections. Where that isn't known,
                joining never makes it shorter.
            key: That of its address, if the caller knows it.
            origin: Under which name and number the process has inherited it.

        Raises:
            OSError: It is not a socket, or *shared* and its address is open here already.
            TypeError: It is not a stream socket.
            ValueError: *shared*, and it has no address that could be joined.
        """
        pristine = sockets.adopt(listening) if isinstance(listening, int) else listening
        with self.lock:
            return self._add_locked(
                pristine, shared, backlog=backlog, owns_file=False, key=key, origin=origin
            )

    def acquire(self, entry: Entry) -> Share:
        """Return one more share in an open *entry*.

        Raises:
            OSError: EBADF, when it has been closed.
        """
        with self.lock:
            share = entry.acquire_locked(native_ident())
            if share is None:
                raise accept_errors.listener_closed(entry.address)
            return share

    def release(self, share: Share) -> None:
        """Give *share* back; with the last one of an entry the address is free."""
        entry = share.entry
        with self.lock:
            if entry.release_locked(share) and not entry.is_closed:
                self._close_locked(entry)

    def raise_backlog(self, entry: Entry, backlog: int) -> None:
        """Make *entry*'s accept queue *backlog* long, unless it is longer already."""
        with self.lock:
            if backlog > entry.backlog:
                self.set_backlog(entry, backlog)

    def set_backlog(self, entry: Entry, backlog: int) -> None:
        """Make *entry*'s accept queue *backlog* long; clients that wait in it stay there."""
        with self.lock:
            entry.pristine.listen(backlog)
            entry.backlog = backlog

    def entries(self) -> list[EntryStats]:
        """Return what is open now, oldest first."""
        with self.lock:
            return [
                EntryStats(
                    entry.address,
                    entry.clones,
                    entry.turns.ready,
                    entry.turns.accepted,
                    entry.shared,
                )
                for entry in self._entries
            ]

    def check(self) -> None:
        """Raise `AssertionError` if a rule of this module does not hold. For tests."""
        with self.lock:
            for entry in self._entries:
                assert not entry.is_closed and entry.clones > 0, entry
                assert entry.pristine.fileno() >= 0, entry
                if entry.shared:
                    assert entry.key is not None and self._by_key[entry.key] is entry, entry
            for key, entry in self._by_key.items():
                assert entry in self._entries and entry.shared and entry.key == key, entry

    # -- with the lock held ---------------------------------------------------------------

    def _join_locked(self, address: Address) -> Share | None:
        if address.port == 0:
            return None
        entry = self.find(address)
        return None if entry is None else entry.acquire_locked(native_ident())

    def _add_locked(
        self,
        pristine: _socket.socket,
        shared: bool,
        *,
        backlog: int,
        owns_file: bool = True,
        key: Key | None = None,
        origin: InheritedSocket | None = None,
    ) -> Share:
        # Takes *pristine* over, also when it fails.
        try:
            # A socket that was handed in may be of a family that has no keys here.
            if key is None and (shared or owns_file):
                bound = sockets.bound_address(pristine)
                key = sockets.find_key(bound)
                if shared and (key is None or bound.port == 0):
                    raise ValueError(f"a socket bound to {bound.sockaddr!r} can't be shared")
            if shared and key in self._by_key:
                raise accept_errors.address_in_use(pristine.getsockname())
            entry = Entry(
                self, pristine, key=key, shared=shared, owns_file=owns_file, origin=origin
            )
            entry.backlog = backlog
            share = entry.acquire_locked(native_ident())
            assert share is not None, "it was made here, and is not shared yet"
        except BaseException:
            if owns_file and pristine.family == AF_UNIX:
                sockets.unlink(sockets.bound_address(pristine))
            pristine.close()
            raise
        self._entries[entry] = None
        if shared and key is not None:
            self._by_key[key] = entry
        return share

    def _close_locked(self, entry: Entry) -> None:
        if entry.key is not None and self._by_key.get(entry.key) is entry:
            del self._by_key[entry.key]
        self._entries.pop(entry, None)
        entry.close_locked()

    def keep_thread_locked(self, thread: int) -> None:
        """In a forked child: keep what belongs to *thread*, let go of the rest."""
        for entry in [*self._entries]:
            entry.outlives_us = True
            entry.keep_thread_locked(thread)
            if not entry.clones:
                self._close_locked(entry)
        self.reserve.keep_thread_locked(thread)

    def __iter__(self) -> Iterator[Entry]:
        with self.lock:
            return iter([*self._entries])


#: The process's registry.
REGISTRY: Final = Registry()


def entries() -> list[EntryStats]:
    """Return what is open in this process now, oldest first: see `glb.model.stats.EntryStats`."""
    return REGISTRY.entries()


def _after_fork_in_parent() -> None:
    for entry in REGISTRY:
        entry.outlives_us = True
    REGISTRY.lock.release()


def _after_fork_in_child() -> None:
    try:
        REGISTRY.keep_thread_locked(native_ident())
    finally:
        REGISTRY.lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=REGISTRY.lock.acquire,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
