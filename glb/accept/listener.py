"""Listeners: what a program holds. Each is a clone of the socket of its address.

A `Listener` is a `gevent.socket.socket` on its own descriptor. It differs in one thing: its
`~Listener.accept` takes turns with the other clones of its address, in the order in which
they began to wait (see `glb.accept.ring`).

`bind` opens one. `bind_load_balanced` and `bind_direct` say which way.

Source: deno_net's ``tcp.rs`` for the three functions; gevent's ``socket.accept`` and
``socket.close`` for what a waiting greenlet sees.
"""

from __future__ import annotations

import _socket
import errno
from typing import Any

from ..model import accept_errors
from ..model.address import parse
from ..net import sockets
from ..net.connection import Connection, LazySocket
from ..originals import native_ident
from .descriptor import Descriptor
from .registry import REGISTRY, Entry, Share

__all__ = ["Listener", "bind", "bind_direct", "bind_load_balanced"]


class Listener(LazySocket):
    """A clone: one of the listeners of an address. Made by `bind`, never directly.

    It is a `gevent.socket.socket` for every purpose. What differs:

    * `accept` waits for this clone's turn.
    * `listen`, `shutdown`, `settimeout` and `setblocking` concern this clone alone,
      although the kernel's socket is shared. The kernel's flag stays non-blocking.
    * `dup` gives another clone. `close` gives this one's share back, and frees the address
      with the last. `detach` does so too, but the descriptor lives on as the caller's, and
      so does a Unix socket's file.
    * A greenlet that waits in `accept` keeps the hub alive, whatever ``ref`` says.

    It may be used from any native thread's hub. One that is collected unclosed gives its
    share back and warns (`ResourceWarning`).
    """

    __slots__ = ("entry",)

    #: The registry's entry of this listener's address.
    entry: Entry
    _sock: Any

    def __init__(self, share: Share) -> None:
        self._closed = True
        try:
            sock = Descriptor.of(share)
        except BaseException:
            REGISTRY.release(share)
            raise
        super().__init__(sock)
        self.entry = share.entry

    @property
    def address(self) -> Any:
        """The address really bound, as `getsockname` gives it; it outlives `close`."""
        return self.entry.address

    def local_addr(self) -> Any:
        """Return `address`. deno_net's name for it."""
        return self.address

    def _extra_repr(self) -> str:
        return f" clone of {self.address!r}"

    def accept(self) -> tuple[Connection, Any]:
        """Wait for this clone's turn, and return the connection and its peer's address.

        Of the clones that wait, the next connection goes to the one that has waited
        longest. Several greenlets may wait on one clone; they share its turns. Connections
        whose peer has left are passed over, and while the process is out of descriptors
        the call goes on waiting: the client stays in the accept queue.

        Returns:
            A non-blocking, cooperative socket and an address. The caller closes the socket.

        Raises:
            OSError: EBADF, when the listener is closed, also while waiting; EINVAL, when it
                was shut down; ``TimeoutError``, when `settimeout`'s time is over. With a
                timeout of 0 it doesn't wait, and takes no turn: ``BlockingIOError``.

        Switches:
            While waiting for the turn. A kill or a `gevent.Timeout` leaves nothing behind:
            what was not returned was not accepted.
        """
        self.check_open()
        return self._connection(*self._sock.waiters.accept(self.timeout, self._sock))

    def _connection(self, plain: Any, address: Any) -> tuple[Connection, Any]:
        connection = Connection.on(plain)
        if _socket.getdefaulttimeout() is None and self.timeout:
            connection.setblocking(True)  # as gevent: see Python issue 7995
        return connection, address

    def check_open(self) -> None:
        """Raise EBADF if it was closed, and EINVAL if it was shut down."""
        if self._closed:
            raise accept_errors.listener_closed(self.address)
        self._sock.waiters.check_open()

    def listen(self, backlog: int | None = None) -> None:
        """Make the accept queue *backlog* connections long, if it is shorter.

        The queue is every clone's, so none can make it shorter. ``None`` changes nothing.
        """
        self.check_open()
        if backlog is not None:
            if isinstance(backlog, int):
                backlog = max(backlog, 0)  # as the kernel reads it
            REGISTRY.raise_backlog(self.entry, sockets.check_backlog(backlog))

    def shutdown(self, how: int) -> None:
        """Take no more connections by this clone; the others go on.

        As with the kernel's, greenlets that wait in `accept`, and later calls, get EINVAL,
        and shutting down the writing side alone changes nothing.
        """
        if self._closed:
            raise accept_errors.listener_closed(self.address)
        if how not in (_socket.SHUT_RD, _socket.SHUT_WR, _socket.SHUT_RDWR):
            raise OSError(errno.EINVAL, f"how must be SHUT_RD, SHUT_WR or SHUT_RDWR, got {how!r}")
        if how != _socket.SHUT_WR:
            address = self.address
            self._sock.waiters.cancel(lambda: accept_errors.listener_shut_down(address))

    def dup(self) -> Listener:
        """Return another clone of the same address; the caller closes it."""
        self.check_open()
        clone = type(self)(REGISTRY.acquire(self.entry))
        clone.settimeout(self.gettimeout())
        return clone

    def belongs_to(self, thread: int) -> None:
        """A fork keeps it if *thread* forks, by its native ident: it was the maker's."""
        self._sock.belongs_to(thread)

    def _detach_socket(self, reason: str) -> None:
        if self._sock:
            self._sock.end_waiters()
            super()._detach_socket(reason)  # type: ignore[misc]  # not in the stubs

    def _drop_ref_on_close(self, sock: Any) -> None:
        # gevent asks the loop whether a watcher still has the descriptor. A loop that is
        # gone can't tell, and another thread's must not be asked.
        if self.hub.loop is None or self.hub.thread_ident != native_ident():
            sock.close()
            return
        super()._drop_ref_on_close(sock)
        if sock.fileno() >= 0:
            # One has it, and gevent closes it a turn later. The address is free now.
            sock.let_go()

    def __del__(self) -> None:
        # The descriptor warns and closes itself, if it has no other owner: gevent's servers
        # keep that, and drop the listener they were given.
        try:
            closed = object.__getattribute__(self, "_closed")  # gevent's looks at _sock
        except AttributeError:
            return  # it was never made
        if not closed:
            self._sock.end_waiters()


def bind(address: object, reuse_port: bool = False, backlog: int | None = None) -> Listener:
    """Return a listener on *address*; with *reuse_port* one that shares it in this process.

    `bind_load_balanced` or `bind_direct`, on every platform alike.

    Args:
        address: ``(host, port)``, ``"host:port"``, ``":port"``, a port number,
            ``"unix:/path"``: what gevent's servers take; see `glb.model.address.parse`.
        reuse_port: Share the address with the other listeners of this process.
        backlog: Length of the accept queue, in connections, 0 to 2147483647. ``None`` is as
            many as the kernel allows, which also lowers larger ones without a word.

    Returns:
        A `Listener`, bound and listening. The caller closes it; closing twice is harmless.

    Raises:
        TypeError, ValueError: *address* or *backlog* has the wrong type or shape.
        OSError: The kernel said no: EADDRINUSE, EACCES, EADDRNOTAVAIL, EMFILE, or
            ``socket.gaierror`` for a host that isn't known. Nothing stays open.

    Switches:
        Never.

    Example:
        >>> first = bind(("127.0.0.1", 0), reuse_port=True)
        >>> second = bind(first.address, reuse_port=True)
        >>> second.address == first.address
        True
        >>> first.close(), second.close()
        (None, None)

    Source:
        deno_net's ``tcp.rs``, ``bind``, whose comment says so; its code only half does.
    """
    return (
        bind_load_balanced(address, backlog) if reuse_port else bind_direct(address, False, backlog)
    )


def bind_load_balanced(address: object, backlog: int | None = None) -> Listener:
    """Return a clone of *address*: the socket is opened once and shared in this process.

    Connections go round the clones that wait for one, in exact turn. The address is free
    when the last clone is closed; no client in the accept queue is lost before that. Port 0
    opens a new socket, which others join under the port that it got. A larger *backlog*
    raises the queue's, a smaller one changes nothing.

    SO_REUSEPORT is not set: another process gets EADDRINUSE, rather than a part of the
    connections. Arguments, errors and ownership are `bind`'s.
    """
    return Listener(REGISTRY.open(parse(address), backlog, shared=True))


def bind_direct(address: object, reuse_port: bool = False, backlog: int | None = None) -> Listener:
    """Return a listener on a socket of its own, which no other joins by its address.

    Args:
        reuse_port: Set SO_REUSEPORT where the kernel balances by it (Linux, Android), for
            programs that want the kernel's way: other sockets with it, also of other processes,
            may then bind the same address, and closing one resets the clients in its queue.
            Elsewhere it changes nothing.

    The other arguments, errors and ownership are `bind`'s.
    """
    return Listener(REGISTRY.open(parse(address), backlog, shared=False, reuse_port=reuse_port))
