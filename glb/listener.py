"""Listeners: what a program holds. Each is a clone of the socket of its address.

A `Listener` is a `gevent.socket.socket` on its own descriptor. It differs in one thing: its
`~Listener.accept` takes turns with the other clones of its address, in the order in which
they began to wait (see `glb.ring`).

`bind` opens one. `bind_load_balanced` and `bind_direct` say which way.

Source: deno_net's ``tcp.rs`` for the three functions; gevent's ``socket.accept`` and
``socket.close`` for what a waiting greenlet sees.
"""

from __future__ import annotations

import _socket
import errno
import warnings
from collections import deque
from typing import Any, Final

from gevent import Timeout, get_hub, getcurrent
from gevent._socketcommon import cancel_wait_ex
from gevent.exceptions import InvalidSwitchError
from gevent.hub import Waiter

from . import errors, sockets
from .address import parse
from .connection import Connection, LazySocket, PlainSocket
from .dispatcher import Dispatcher
from .errors import Heap, classify
from .registry import REGISTRY, Entry, Share, native_ident
from .ring import Team
from .standby import dispatcher_for
from .turns import Handed, Turn

__all__ = ["Listener", "bind", "bind_direct", "bind_load_balanced"]

# gevent's own min_delay and max_delay: short enough that a waiting client does not notice,
# and at most one try a second for a process that stays out of descriptors.
PAUSE_MIN_SECONDS: Final = 0.01
PAUSE_MAX_SECONDS: Final = 1.0

# As gevent's servers: so many connections a wake-up, then whatever else the hub has to do.
MAX_ACCEPT: Final = 100


class Listener(LazySocket):
    """A clone: one of the listeners of an address. Made by `bind`, never directly.

    It is a `gevent.socket.socket` for every purpose. What differs:

    * `accept` waits for this clone's turn.
    * `listen`, `shutdown`, `settimeout` and `setblocking` concern this clone alone,
      although the kernel's socket is everybody's. The kernel's flag stays non-blocking.
    * `dup` gives another clone. `close` gives this one's share back, and frees the address
      with the last. `detach` does so too, but the descriptor lives on as the caller's, and
      so does a Unix socket's file.
    * A greenlet that waits in `accept` keeps the hub alive, whatever ``ref`` says.

    It may be used from any native thread's hub. One that is collected unclosed gives its
    share back and warns (`ResourceWarning`).
    """

    __slots__ = ("_is_shut_down", "_seats", "entry")

    #: The registry's entry of this listener's address.
    entry: Entry

    def __init__(self, share: Share) -> None:
        self._closed = True
        try:
            get_hub()  # a thread's first may fail, and then there is no descriptor yet
            sock = _Descriptor.of(share)
        except BaseException:
            REGISTRY.release(share)
            raise
        super().__init__(sock)
        self._is_shut_down = False
        self._seats: dict[Any, _Seat] = {}
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
                timeout of 0 nobody waits and no turn is taken: ``BlockingIOError``.

        Switches:
            While waiting for the turn. A kill or a `gevent.Timeout` leaves nothing behind:
            what was not returned was not accepted.
        """
        self._check_open()
        hub = get_hub()
        if self.timeout == 0.0:
            return self._connection(*self._accept_now())
        if getcurrent() is hub:
            # Waiting is an error in a callback; what is there already can be had.
            try:
                return self._connection(*self._accept_now())
            except BlockingIOError:
                hub.switch_out()
        seat = self._seats.get(hub)
        if seat is None:
            seat = self._seats[hub] = _Seat(self, hub)
            if self._closed or self._is_shut_down:
                # Another thread ended the listener before it could see this seat.
                self._seats.pop(hub, None)
                seat.close()
                self._check_open()
        try:
            return self._connection(*seat.wait(self.timeout))
        finally:
            # The home hub's seat is kept until the end, so that a loop of accepts doesn't
            # make its watchers anew each time.
            if hub is not self.hub and not seat.waiters:
                self._seats.pop(hub, None)
                seat.close()

    def _accept_now(self) -> tuple[int, Any]:
        turns = self.entry.turns
        handed = turns.take_waiting()  # by a hub that was too slow
        accepted: tuple[int, Any]
        accepted = (handed.number, handed.address) if handed else self._sock._accept()
        with turns.lock:
            turns.accepted_before += 1
        return accepted

    def _connection(self, descriptor: int, address: Any) -> tuple[Connection, Any]:
        sock = self._sock
        connection = Connection(sock.family, sock.type, sock.proto, fileno=descriptor)
        if _socket.getdefaulttimeout() is None and self.timeout:
            connection.setblocking(True)  # as gevent: see Python issue 7995
        return connection, address

    def _check_open(self) -> None:
        if self._closed:
            raise errors.listener_closed(self.address)
        if self._is_shut_down:
            raise errors.listener_shut_down(self.address)

    def listen(self, backlog: int | None = None) -> None:
        """Make the accept queue *backlog* connections long, if it is shorter.

        The queue is every clone's, so none can make it shorter. ``None`` changes nothing.
        """
        self._check_open()
        if backlog is not None:
            REGISTRY.raise_backlog(self.entry, sockets.check_backlog(max(backlog, 0)))

    def shutdown(self, how: int) -> None:
        """Take no more connections by this clone; the others go on.

        As with the kernel's, greenlets that wait in `accept`, and later calls, get EINVAL,
        and shutting down the writing side alone changes nothing.
        """
        if self._closed:
            raise errors.listener_closed(self.address)
        if how not in (_socket.SHUT_RD, _socket.SHUT_WR, _socket.SHUT_RDWR):
            raise OSError(errno.EINVAL, f"how must be SHUT_RD, SHUT_WR or SHUT_RDWR, got {how!r}")
        if how != _socket.SHUT_WR:
            self._is_shut_down = True
            for seat in [*self._seats.values()]:
                seat.cancel(errors.listener_shut_down(self.address))

    def dup(self) -> Listener:
        """Return another clone of the same address; the caller closes it."""
        self._check_open()
        clone = type(self)(REGISTRY.acquire(self.entry))
        clone.settimeout(self.gettimeout())
        return clone

    def belongs_to(self, thread: int) -> None:
        """A fork keeps it if *thread* forks, by its native ident: it was the maker's."""
        self._sock._share.thread = thread

    def _detach_socket(self, reason: str) -> None:
        if self._sock:
            self._give_seats_up()
            super()._detach_socket(reason)  # type: ignore[misc]  # not in the stubs

    def _give_seats_up(self) -> None:
        seats, self._seats = self._seats, {}
        for seat in seats.values():
            seat.end(cancel_wait_ex)

    def _drop_ref_on_close(self, sock: Any) -> None:
        # gevent asks the loop whether somebody still watches the descriptor. A loop that is
        # gone can't tell, and another thread's must not be asked.
        if self.hub.loop is None or self.hub.thread_ident != native_ident():
            sock.close()
            return
        super()._drop_ref_on_close(sock)
        if sock.fileno() >= 0:
            # Somebody does, and gevent closes it a turn later. The address is free now.
            sock.let_go()

    def __del__(self) -> None:
        # The descriptor warns and closes itself, if nobody else has it: gevent's servers
        # keep that, and drop the listener they were given.
        try:
            closed = object.__getattribute__(self, "_closed")  # gevent's looks at _sock
        except AttributeError:
            return  # it was never made
        if not closed:
            self._give_seats_up()


class _Descriptor(PlainSocket):  # type: ignore[misc]  # the stubs leave gevent's out
    """A clone's descriptor, and with it its share: the two come and go together."""

    __slots__ = ("_share",)

    @classmethod
    def of(cls, share: Share) -> _Descriptor:
        """Return a new descriptor of *share*'s socket, which from then on owns the share."""
        pristine = share.entry.pristine
        number = sockets.duplicate(pristine)
        try:
            sock = cls(pristine.family, pristine.type, pristine.proto, number)
        except BaseException:
            _socket.close(number)
            raise
        sock._share = share
        sock.setblocking(False)
        share.hold_for(sock)
        return sock

    def close(self) -> None:
        try:
            super().close()
        finally:  # EBADF, if somebody closed it by its number
            REGISTRY.release(self._share)

    def detach(self) -> int:
        number: int = super().detach()
        self._share.entry.disown()
        REGISTRY.release(self._share)
        return number

    def let_go(self) -> None:
        """Give the share back, and free the address if it was the last; close later."""
        REGISTRY.release(self._share)
        if self._share.entry.is_closed and not self._share.entry.outlives_us:
            sockets.park(self)

    def __del__(self) -> None:
        if self.fileno() >= 0:
            # Before closing, as the standard library's: what comes after must not fail.
            address = self._share.entry.address
            warnings.warn(
                f"unclosed listener on {address!r}: {self!r}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
            self.close()


class _Waiter(Waiter):  # type: ignore[type-arg]  # generic in the stubs alone
    """A greenlet that waits for a connection, and what it gets: descriptor and peer."""

    accepted: tuple[int, Any] | None = None


class _Seat:
    """A listener's place in the ring of one hub, with the greenlets that wait on it there."""

    __slots__ = (
        "_delay",
        "_expected",
        "_hub",
        "_is_closed",
        "_listener",
        "dispatcher",
        "waiters",
    )

    #: Nobody knows how long a program works on what it accepted.
    load: Final = 0
    #: The greenlet that waits goes on within the turn.
    is_out_of_reach: Final = False
    max_accept: Final = MAX_ACCEPT

    def __init__(self, listener: Listener, hub: Any) -> None:
        self.dispatcher: Dispatcher = dispatcher_for(listener.entry, hub)
        self._hub = hub
        self._listener = listener
        self._is_closed = False
        # Connections that are on their way here from another hub.
        self._expected = 0
        self._delay = PAUSE_MIN_SECONDS
        self.waiters: deque[_Waiter] = deque()

    @property
    def team(self) -> Team[Any]:
        return self.dispatcher.singles

    def wait(self, timeout: float | None) -> tuple[int, Any]:
        """Return the descriptor and the peer's address of the next connection."""
        waiter = _Waiter(self._hub)
        deadline = Timeout.start_new(timeout, TimeoutError("timed out"))
        try:
            self.waiters.append(waiter)
            self.dispatcher.hold_loop(self, is_held=True)
            self._settle()
            switched = waiter.get()
            if switched is not waiter:
                raise InvalidSwitchError(f"invalid switch into {waiter!r}: got {switched!r}")
            accepted: tuple[int, Any] | None = waiter.accepted
            assert accepted is not None, "it comes with the switch"
            return accepted
        finally:
            deadline.close()
            if waiter.accepted is None and waiter in self.waiters:
                self.waiters.remove(waiter)
                self._settle()
            if not self.waiters:
                self.dispatcher.hold_loop(self, is_held=False)

    def _settle(self) -> None:
        # It is ready while more greenlets wait than connections are on their way to it.
        turns = self.dispatcher.turns
        with turns.lock:
            if len(self.waiters) > self._expected:
                turns.join(self)
            else:
                turns.leave(self)

    def expect_locked(self) -> None:
        self._expected += 1
        self._settle()

    def unexpect_locked(self) -> None:
        self._expected -= 1
        self._settle()

    def has_room(self) -> bool:
        return True  # who waits is in the ring, and nobody else

    def take(self, handed: Handed) -> bool:
        with self.dispatcher.turns.lock:
            if not self.waiters:
                return False
            self._expected -= 1
        self._wake(handed.number, handed.address)
        return True

    def broken(self, error: OSError) -> None:
        self._cancel(error)

    def take_turn(self) -> Turn:
        try:
            number, address = self._listener._sock._accept()
        except BlockingIOError:
            return Turn.EMPTY
        except OSError as error:
            heap = classify(error)
            if heap is Heap.OUT_OF_ROOM:
                raise
            if heap is not Heap.PEER_LEFT:
                self.dispatcher.turns.rotate(self.team, self)
                self._next_waiter().throw(error)
            return Turn.TAKEN
        self.dispatcher.accepted += 1
        self.dispatcher.turns.rotate(self.team, self)
        self._wake(number, address)
        return Turn.TAKEN

    def _wake(self, number: int, address: Any) -> None:
        # The greenlet runs now, in this switch: there is no moment in which it could be
        # killed, or its timeout end, with a connection on the way to it.
        self._delay = PAUSE_MIN_SECONDS
        waiter = self._next_waiter()
        waiter.accepted = (number, address)
        waiter.switch(waiter)

    def _next_waiter(self) -> _Waiter:
        waiter = self.waiters.popleft()
        self._settle()
        return waiter

    def next_delay(self) -> float:
        delay = self._delay
        self._delay = min(PAUSE_MAX_SECONDS, delay * 2)
        return delay

    def cancel(self, error: OSError) -> None:
        """Raise *error* in every greenlet that waits here. From any thread."""
        self.dispatcher.run(lambda: self._cancel(error))

    def _cancel(self, error: OSError) -> None:
        waiters, self.waiters = self.waiters, deque()
        self._settle()
        for waiter in waiters if self.dispatcher.has_loop else ():
            self._hub.loop.run_callback(waiter.throw, error)

    def end(self, error: OSError) -> None:
        """Cancel, and give the place up. From any thread."""

        def end() -> None:
            self._cancel(error)
            self.close()

        self.dispatcher.run(end)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self.dispatcher.detach()

    @property
    def context(self) -> Listener:
        return self._listener


def bind(address: object, reuse_port: bool = False, backlog: int | None = None) -> Listener:
    """Return a listener on *address*; with *reuse_port* one that shares it in this process.

    `bind_load_balanced` or `bind_direct`, on every platform alike.

    Args:
        address: ``(host, port)``, ``"host:port"``, ``":port"``, a port number,
            ``"unix:/path"``: what gevent's servers take; see `glb.address.parse`.
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
    when the last clone is closed; nobody in the accept queue is lost before that. Port 0
    opens a new socket, which others join under the port that it got. A larger *backlog*
    raises the queue's, a smaller one changes nothing.

    SO_REUSEPORT is not set: another process gets EADDRINUSE, rather than a part of the
    connections. Arguments, errors and ownership are `bind`'s.
    """
    return Listener(REGISTRY.open(parse(address), backlog, shared=True))


def bind_direct(address: object, reuse_port: bool = False, backlog: int | None = None) -> Listener:
    """Return a listener on a socket of its own, which nobody can join by its address.

    Args:
        reuse_port: Set SO_REUSEPORT where the kernel balances by it (Linux, Android), for
            who wants the kernel's way: other sockets with it, also of other processes, may
            then bind the same address, and closing one resets who waits in its queue.
            Elsewhere it changes nothing.

    The other arguments, errors and ownership are `bind`'s.
    """
    return Listener(REGISTRY.open(parse(address), backlog, shared=False, reuse_port=reuse_port))
