"""The clone set: a server's clones, each an acceptor and a share of the address.

The first clone of each hub has a `Listener`, and with it a descriptor, so that a child forked in
any hub keeps one. The other clones cost none, as nothing would read it, unless they have accept
loops.

Its lists are replaced, never changed, as other threads read them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from gevent import getcurrent

from ..accept.descriptor import is_adopted
from ..accept.listener import Listener
from ..accept.registry import REGISTRY, Entry
from ..accept.reports import count_connections
from ..hubs.threads import call_where_it_may_switch
from ..model.address import Address
from ..model.clone import Clone
from ..model.limits import check_places
from ..model.policy import Policy
from ..model.states import State
from ..net.connection import Kind, kind_of
from ..net.fd_leaks import Watermark
from ..net.sockets import set_nodelay
from . import accept_loop
from .accept_loop import AcceptLoop
from .acceptor import Acceptor, Loop
from .admission import Admission
from .hooks import Handler, Hooks
from .workers import Workers

__all__ = ["CloneSet", "give_to_threads", "make_handlers"]

log: Final = logging.getLogger("glb")


class Place:
    """A clone's share of an address, without a descriptor. Closing it twice is harmless."""

    __slots__ = ("entry", "share")

    def __init__(self, entry: Entry) -> None:
        self.entry: Final = entry
        self.share: Final = REGISTRY.acquire(entry)

    def belongs_to(self, thread: int) -> None:
        """A fork keeps it if *thread* forks, by its native ident: see `Listener.belongs_to`."""
        self.share.thread = thread

    def close(self) -> None:
        REGISTRY.release(self.share)

    def __del__(self) -> None:
        # Of a server that was collected unclosed. Its listener warns.
        if hasattr(self, "share"):
            self.close()


class CloneSet:
    """The clones of *server*."""

    #: The kind of its address, once it was opened.
    kind: Kind

    def __init__(self, server: Hooks, workers: Workers, admission: Admission) -> None:
        self._server: Final = server
        self._workers: Final = workers
        self._admission: Final = admission
        self.acceptors: Sequence[Acceptor] = ()
        #: One for each acceptor, while the server is open; those of the first clones are listeners.
        self.listeners: Sequence[Listener | Place] = ()
        #: The clones that went, by index; some may have handlers still.
        self.gone: dict[int, Acceptor] = {}
        #: What the program gave as listener, or ``None``.
        self.handed_in: Any = None
        #: The policy that the server asks of its address; ``None`` leaves it to others.
        self.policy: Policy | None = None
        self._shared_settings: tuple[Policy | None, float | None] = (None, None)

    def __len__(self) -> int:
        return len(self.acceptors)

    def at(self, index: int) -> Acceptor:
        """Return the acceptor of clone *index*.

        Raises:
            TypeError, ValueError: There is none.
        """
        try:
            number = operator.index(index)
        except TypeError as error:
            raise TypeError(f"clone must be a whole number, got {index!r}") from error
        if not 0 <= number < len(self.acceptors):
            raise ValueError(f"clone must be 0 to {len(self.acceptors) - 1}, got {index!r}")
        return self.acceptors[number]

    def _find(self, clone: Clone) -> Acceptor | None:
        acceptors = self.acceptors  # another thread may replace it
        return acceptors[clone] if clone < len(acceptors) else self.gone.get(clone)

    def handler_of(self, clone: Clone | None) -> Handler:
        """Return the handler of *clone*, also of one that went; ``None``: that has its turn."""
        server: object = None if clone is None else clone.server
        if clone is None or server is not self._server:
            acceptor = self._workers.turn.acceptor
        else:
            acceptor = self._find(clone)
        if acceptor is None or acceptor.handle is None:
            raise RuntimeError(
                f"no clone of {self._server} has its turn: run handlers by do_handle()"
            )
        found: Handler = acceptor.handle
        return found

    # -- accept loops --------------------------------------------------------------------------

    @property
    def loops(self) -> list[Loop]:
        """The accept loops of its clones, if they have any."""
        return [each.loop for each in self.acceptors if each.loop is not None]

    @property
    def acceptor_out_of_turn(self) -> Acceptor:
        """The clone for which a connection counts that is handled out of turn.

        In the greenlet of an accept loop it is the loop's, else the first, as gevent has one.
        """
        worker = self._workers.here
        looping: Any = None if worker is None else worker.loops.get(getcurrent())
        acceptor: Acceptor = self.acceptors[0] if looping is None else looping
        return acceptor

    def handle(self, clone: Clone, args: tuple[Any, ...]) -> None:
        """See `glb.Clone.handle`."""
        acceptor = self._find(clone)
        if acceptor is None:
            raise RuntimeError(f"{clone!r} can't handle {args[0]!r}: there is no such clone")
        accept_loop.handle(acceptor, args)

    def add_loops(self, acceptors: Sequence[Acceptor], listeners: Sequence[Any]) -> None:
        """Give *acceptors* their accept loops, if the server has one. Their hubs are open."""
        has_loops = self._server.accept_loop is not None  # another time it may have been otherwise
        for acceptor, listener in zip(acceptors, listeners, strict=True):
            acceptor.loop = AcceptLoop(acceptor, listener) if has_loops else None

    # -- opening and closing -------------------------------------------------------------------

    def open(self) -> None:
        """Bind, if need be, and make the listeners.

        Raises:
            OSError, ValueError: Nothing stays open but what the program gave.
        """
        server = self._server
        if (len(self.acceptors), len(self._workers)) != (server.clones, server.hubs):
            self.fit()  # they were set since
        given = self.handed_in
        listeners: list[Listener | Place] = []
        try:
            first = self._first_listener()
            listeners.append(first)
            sock, entry = first._sock, first.entry
            with saying_how_many(server.clones):
                listeners += (first.dup() for _ in range(1, server.hubs))
                listeners += self._places(entry, server.clones - server.hubs)
            if server.nodelay:
                set_nodelay(sock)
            entry.turns.join_settings(self.policy, server.patience, entry.address)
        except BaseException:
            opened = [*listeners, self.handed_in]
            self.handed_in = given
            self.close_each(each for each in opened if each is not given)
            raise
        self.listeners = listeners
        # As in gevent, the plain socket under the cooperative one: `do_read` never waits.
        server.socket = sock
        server.address = entry.address
        self.kind = kind_of(sock)
        self._shared_settings = (self.policy, server.patience)
        count = functools.partial(count_connections, REGISTRY)
        self._admission.watermark = Watermark(sock.fileno(), count, say=call_where_it_may_switch)

    def _places(self, entry: Entry, count: int) -> list[Listener | Place]:
        has_loops = self._server.accept_loop is not None
        places: list[Listener | Place] = []
        try:
            for _ in range(count):
                places.append(Listener(REGISTRY.acquire(entry)) if has_loops else Place(entry))
        except BaseException:
            self.close_each(places)
            raise
        return places

    def _first_listener(self) -> Listener:
        server = self._server
        if hasattr(server, "socket"):
            # What was given, or what a program, or its own `init_socket`, has set since.
            self.handed_in = server.socket
        listener = self.handed_in
        if listener is None and server.reuse_port:
            where, reuse = Address(server.family, server.address), bool(server.reuse_addr)
            return Listener(REGISTRY.open(where, server.backlog, shared=True, reuse_addr=reuse))
        if listener is None:
            listener = server.get_listener(server.address, server.backlog, server.family)
            if not isinstance(listener, Listener):
                self.handed_in = listener
        if isinstance(listener, Listener):
            return listener
        plain: Any = getattr(listener, "_sock", None)
        if is_adopted(plain):
            return Listener(REGISTRY.acquire(plain.entry))
        return Listener(REGISTRY.adopt(listener.fileno(), shared=server.reuse_port))

    def take_listeners(self) -> Callable[[], None]:
        """The server closes: have no listeners any more. The caller calls what this returns."""
        listeners, self.listeners = self.listeners, ()
        handed_in, self.handed_in = self.handed_in, None

        def close() -> None:
            if listeners:
                listeners[0].entry.turns.leave_settings(*self._shared_settings)
            self.close_each([*listeners, handed_in])

        return close

    def close_each(self, listeners: Iterable[Any]) -> None:
        """Close all of *listeners* but ``None``. What one raises is in the log, and stops none."""
        try:
            with contextlib.ExitStack() as rest:
                for each in reversed([*listeners]):
                    if each is not None:
                        rest.callback(each.close)
        except Exception as error:  # EBADF, of a number that the program has closed
            with REGISTRY.reserve.lend():  # for the log's file
                log.error("%s can't close a clone: %s; all the rest is closed", self._server, error)

    # -- how many --------------------------------------------------------------------------------

    def fit(self) -> None:
        """Have as many clones, and workers, as the server is to have. It is closed.

        Raises:
            TypeError, ValueError: There are no such numbers. Nothing has changed.
        """
        clones = self._server.clones
        check_places(clones, self._server.hubs)
        self._workers.fit(self._server.hubs)
        acceptors = [*self.acceptors]
        for acceptor in acceptors[clones:]:
            acceptor.enter(State.DRAINING)
            acceptor.enter(State.STOPPED)
            self.gone[acceptor.clone.index] = acceptor
        del acceptors[clones:]
        for index in range(clones):
            if index == len(acceptors):
                acceptors.append(self._come(index, acceptors[-1].handle if acceptors else None))
                acceptors[-1].enter(State.ACCEPTING)
            else:
                self._settle(acceptors[index])
        self.acceptors = acceptors

    def _come(self, index: int, handle: Handler | None) -> Acceptor:
        acceptor = self.gone.pop(index, None)
        if acceptor is None:
            worker = self._workers[index % len(self._workers)]
            acceptor = Acceptor(self._server, index, worker, self._workers, self._admission)
        if handle is not None:
            acceptor.handle = handle
        acceptor.enter(State.STOPPED, after=(State.DRAINING,))  # its handlers may be ending still
        self._settle(acceptor)
        return acceptor

    def _settle(self, acceptor: Acceptor) -> None:
        acceptor.worker = worker = self._workers[acceptor.clone.index % len(self._workers)]
        worker.acceptors[acceptor] = None

    def renew_handlers(self) -> None:
        """Give each clone what the ``handler_factory`` makes for it, if there is one."""
        handlers = self.make_handlers(range(len(self.acceptors)))
        for acceptor, handle in zip(self.acceptors, handlers or (), strict=False):
            acceptor.handle = handle

    def make_handlers(self, indices: range) -> list[Handler] | None:
        """Return what the ``handler_factory`` makes for the clones *indices*, if there is one."""
        factory = self._server.handler_factory
        return None if factory is None else make_handlers(factory, indices)

    def grow(self, clones: int) -> None:
        """Have *clones* of them, which is no less, in a server that is open."""
        listeners, first = self.listeners, len(self.acceptors)
        handlers: Sequence[Handler | None] | None = self.make_handlers(range(first, clones))
        if handlers is None:  # where clones have handlers of their own, the last one's
            handlers = [self.acceptors[-1].handle] * (clones - first)
        if self.listeners is not listeners:
            self._server.clones = clones  # it was closed meanwhile
            return
        with saying_how_many(clones):
            added = self._places(listeners[0].entry, len(handlers))
        new = [self._come(first + place, handle) for place, handle in enumerate(handlers)]
        for acceptor in new:
            if acceptor.worker.dispatcher is not None:
                acceptor.worker.place(acceptor)
        self.acceptors = [*self.acceptors, *new]
        self.listeners = [*listeners, *added]
        self._server.clones = clones
        give_to_threads(new, added)
        self.add_loops(new, added)
        for acceptor in new:  # not before: the guard of a hub would have its own stand in line
            acceptor.enter(State.ACCEPTING)
        accept_loop.start_loops(new)

    def shrink(self, clones: int) -> Sequence[Acceptor]:
        """Have *clones* of them, which is less; return those that go, and drain."""
        going, left = self.acceptors[clones:], self.listeners[clones:]
        for acceptor in going:
            acceptor.enter(State.DRAINING)
            self.gone[acceptor.clone.index] = acceptor
        self._admission.is_ending = True
        self.acceptors, self.listeners = self.acceptors[:clones], self.listeners[:clones]
        self._server.clones = clones
        self.close_each(left)
        return going


@contextlib.contextmanager
def saying_how_many(clones: int) -> Iterator[None]:
    """Say in an error of dup(2) how many were wanted: each hub's first, or each loop's, has one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"can't open {clones} clones: {error.strerror}") from error


def give_to_threads(acceptors: Iterable[Acceptor], listeners: Iterable[Listener | Place]) -> None:
    """Have *listeners* belong to the threads of their clones: a fork of another ends them."""
    for acceptor, listener in zip(acceptors, listeners, strict=True):
        thread = acceptor.worker.thread
        if thread is not None:
            listener.belongs_to(thread.ident)


def make_handlers(factory: Callable[[int], Handler], indices: range) -> list[Handler]:
    """Return what *factory* makes for the clones *indices*.

    Raises:
        TypeError: Something that can't be called.
    """
    handlers = [factory(index) for index in indices]
    for index, handle in zip(indices, handlers, strict=True):
        if not callable(handle):
            raise TypeError(
                f"handler_factory must return a callable, got {handle!r} for clone {index}"
            )
    return handlers
