"""Accept loops: a greenlet a clone, where the program wants the loop.

``StreamServer(..., accept_loop=loop)``, or a method ``accept_loop`` of a subclass, runs
``loop(listener, clone)`` in a greenlet of its own for each clone, on the clone's hub. The
*listener* is a `glb.Listener` on a descriptor of its own, and *clone* a `glb.Clone`. These rules
hold:

* The clone is ready exactly while a greenlet waits in ``listener.accept()``, and the clone and its
  server accept. Its turns are those of the ring in which all clones stand.
* What ``accept()`` returns is the loop's. `glb.Clone.handle` has the server handle it, so that it
  counts for the server's limits, and for its end. All else is counted as accepted, and no more.
* When the clone goes, ``accept()`` raises gevent's error for a closed socket. The loop then has as
  long as the handlers to end, and is killed.
* A loop that returns or raises takes its clone out of the ring until the server starts again.
  gevent reports what it raised. With the last loop the server closes, as with a broken listener.

`default_accept_loop` does what the server does without a loop.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Sequence
from typing import Any, Final

from gevent import Greenlet, get_hub

from ..accept.listener import Listener
from ..accept.protocols import Turn
from ..accept.readiness import Accepted
from ..accept.registry import REGISTRY
from ..accept.ring import Team
from ..accept.waiters import AcceptWaiters, HubWaiters
from ..hubs.threads import call_where_it_may_switch
from ..model.accept_errors import Episode, listener_closed
from ..model.clone import CURRENT, Clone
from ..model.states import State
from ..originals import monotonic
from .acceptor import Acceptor, Loop

__all__ = ["AcceptLoop", "LoopMember", "default_accept_loop"]

log: Final = logging.getLogger("glb")

# As for handlers: so long for loops that were killed, and don't want to go.
KILL_SECONDS: Final = 1.0


def default_accept_loop(listener: Listener, clone: Clone) -> None:
    """Accept, and have the server handle what comes: as a server does without an accept loop."""
    while True:
        clone.handle(*listener.accept())


class AcceptLoop:
    """The accept loop of one clone: its greenlet, and its listener, which the server closes.

    Args:
        acceptor: The clone's, whose worker is open.
    """

    def __init__(self, acceptor: Acceptor, listener: Listener) -> None:
        self._acceptor: Final = acceptor
        self._run_loop: Final = acceptor.server.accept_loop
        self._listener: Final = listener
        # A server that starts again may have another one by the time the loop ends.
        self._worker: Final = acceptor.worker
        self._waiters: Final = _LoopWaiters(acceptor, listener)
        self._has_begun = False
        #: Whether the loop has returned or raised while its clone was to go on.
        self.has_ended = False
        acceptor.is_not_reclaimable = True  # the loop has seen what the server handles
        listener.hub = acceptor.dispatcher.hub
        listener._sock.wait_by(self._waiters)
        self._member: Final = LoopMember(acceptor, self._waiters, listener.hub)
        self._waiters.have(self._member)

    def __repr__(self) -> str:
        return f"<accept loop of {self._acceptor.clone!r}>"

    @property
    def is_waiting(self) -> bool:
        """Whether the clone stands in line: a greenlet is in ``accept()``."""
        return self._member in self._member.team.line

    def settle(self) -> None:
        """Have the clone stand in line exactly if it is ready. From any thread."""
        self._waiters.settle()

    def start(self) -> None:
        """Run the loop in a greenlet until it waits first. In a callback of the clone's hub.

        Twice is once: see `glb.hubs.guard`.
        """
        if not (self._has_begun or self._is_going):
            self._has_begun = True
            greenlet = Greenlet(self._run)
            self._worker.loops[greenlet] = self._acceptor
            greenlet.rawlink(self._ended)
            greenlet.start()
            greenlet.switch()  # now, and not in one of the next rounds of the event loop
            self._member.came_back()

    @property
    def _is_going(self) -> bool:
        """Whether its clone goes, or went, so that the loop is to end."""
        acceptor = self._acceptor
        is_last = acceptor.loop is not self or self._worker.is_closed
        return is_last or acceptor.own in (State.DRAINING, State.STOPPED)

    def _run(self) -> None:
        clone = self._acceptor.clone
        CURRENT.set(clone)
        try:
            self._run_loop(self._listener, clone)
        except OSError as error:
            # The error by which it learns that its clone goes is no failure.
            if not (self._is_going and error.errno == errno.EBADF):
                raise

    def _ended(self, greenlet: Any) -> None:
        # In its hub, when gevent has reported it.
        worker = self._worker
        worker.loops.pop(greenlet, None)
        try:
            if not self._is_going:
                is_last = self._is_last_to_end()
                # Its clone leaves the ring, and other greenlets of the program that wait by it.
                self._waiters.cancel(functools.partial(listener_closed, self._listener.address))
                self._report(is_last=is_last)
        finally:
            worker.handler_ended(None)  # a drain may wait for it

    def _is_last_to_end(self) -> bool:
        server: Any = self._acceptor.server  # more than the engine sees
        with REGISTRY.lock:  # loops of two hubs may end at the same time, and one is the last
            self.has_ended = True
            return all(each.has_ended for each in server.glb_engine.clones.loops)

    def _report(self, *, is_last: bool) -> None:
        server: Any = self._acceptor.server
        is_last = is_last and not server.is_draining  # which waits for the handlers
        rest = ", the last one: the server closes" if is_last else ""
        text = f"{server}: the accept loop of clone {self._acceptor.clone} has ended{rest}"
        call_where_it_may_switch(functools.partial(log.warning, "%s", text))
        if is_last:
            server.close()


def start_loops(acceptors: Sequence[Acceptor]) -> None:
    """Have the accept loops of *acceptors* run, if they have any. Returns at once.

    Those of a hub begin in one callback there, in the order of their clones: a thousand greenlets
    that are merely spawned begin in several rounds of the event loop, between which the first ones
    would get connections that are the others' by turn.
    """
    by_hub: dict[Any, list[Loop]] = {}
    for acceptor in acceptors:
        if acceptor.loop is not None:
            by_hub.setdefault(acceptor.dispatcher, []).append(acceptor.loop)
    for dispatcher, loops in by_hub.items():
        start = functools.partial(_start_each, loops)
        if dispatcher.is_here:  # before it looks for connections
            dispatcher.hub.loop.run_callback(start)
        else:
            dispatcher.send(start)


def _start_each(loops: Sequence[Loop]) -> None:
    for loop in loops:
        loop.start()


class _LoopWaiters(AcceptWaiters):
    """The greenlets in ``accept()`` on a clone with an accept loop. All are of the clone's hub."""

    __slots__ = ("_acceptor",)

    def __init__(self, acceptor: Acceptor, listener: Listener) -> None:
        super().__init__(listener.entry, acceptor.dispatcher.hub)
        self._acceptor: Final = acceptor

    def have(self, member: LoopMember) -> None:
        """Have *member*, which is their only one."""
        self._by_hub[member.hub] = member

    def make_member(self, hub: Any) -> LoopMember:
        raise RuntimeError(
            f"the listener of {self._acceptor.clone!r} can't be used on {hub!r}: "
            "accept on the hub of its accept loop, or by a dup() of it"
        )

    def accept_nowait(self, *, is_in_line: bool) -> Accepted:
        self.check_open()
        self.on(get_hub())
        acceptor = self._acceptor
        if self.polled is not None and self.polled.pending:  # counted when it came
            return super().accept_nowait(is_in_line=is_in_line)
        is_accepting = acceptor.own is acceptor.admission.state is State.ACCEPTING
        if not (is_accepting and acceptor.has_room()):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        found = super().accept_nowait(is_in_line=is_in_line)
        count(acceptor, found[0], is_new=True)
        return found


class LoopMember(HubWaiters):
    """A clone with an accept loop, in the ring: as ready as its acceptor, while its loop waits.

    A loop that goes on with ``accept()`` before it waits for anything else is *quick*. It keeps its
    place while it has its turn, as a clone without a loop does, so that turns are exact over all
    hubs. It may be handed more than one connection by another hub. What it doesn't take then after
    all is the next clone's. A loop that has not begun counts as quick.
    """

    __slots__ = ("_is_in_turn", "_is_quick", "acceptor", "team")

    team: Team[Any]

    #: What it takes is the loop's at once, and can't be reclaimed before its handler begins.
    is_not_reclaimable = True

    def __init__(self, acceptor: Acceptor, clone: _LoopWaiters, hub: Any) -> None:
        #: Counts what it takes.
        self.acceptor: Final = acceptor
        # A server that starts again brings a new one.
        self.team = acceptor.team
        self._is_quick = True
        # Whether it is about to come back to its accept, and stands in line meanwhile.
        self._is_in_turn = True
        super().__init__(clone, hub)

    @property
    def load(self) -> int:
        return self.acceptor.load

    @property
    def max_accept(self) -> int:
        most: int = self.acceptor.server.max_accept
        return most

    @property
    def context(self) -> object:
        return self.acceptor.server

    # -- room ----------------------------------------------------------------------------------

    @property
    def expected(self) -> int:
        return (0 if self._is_quick else self.acceptor.in_flight) - self._is_in_turn

    @property
    def is_taking(self) -> bool:
        return super().is_taking and not self.acceptor.worker.is_closed

    @property
    def room(self) -> int:
        is_accepting = self.acceptor.own is State.ACCEPTING
        return super().room if is_accepting else 0

    def has_room(self) -> bool:
        return super().has_room() and self.acceptor.has_room()

    def may_expect_locked(self) -> bool:
        return self.acceptor.may_expect_locked()

    def expect_locked(self) -> None:
        self.acceptor.expect_locked()
        self.settle()

    def unexpect_locked(self) -> None:
        self.acceptor.unexpect_locked()
        self.settle()

    def take(self, handed: Any) -> bool:
        # A pool that others use as well may have filled up since it was asked.
        if self.acceptor.server.full():
            self.acceptor.admission.found_full()
            return False
        return super().take(handed)

    def deliver(self, plain: Any, address: Any, moves: int | None = None) -> bool:
        if self.acceptor.loop is not None:
            self.acceptor.loop.start()  # its turn may come before the callback that starts it
        self._is_in_turn = self._is_quick
        try:
            if not super().deliver(plain, address, moves):
                return False
            if moves is not None:  # not before: the loop has counted it for the limits by now
                with self.dispatcher.turns.lock:
                    self.acceptor.unexpect_locked()
            return True
        finally:
            self.came_back()

    def came_back(self) -> None:
        """Its loop waits: see whether in ``accept()``. In its hub."""
        self._is_in_turn = False
        self._is_quick = bool(self.waiters)
        self.settle()

    def arrived(self, plain: Any, *, is_new: bool) -> None:
        super().arrived(plain, is_new=is_new)
        count(self.acceptor, plain, is_new=is_new)

    # -- errors --------------------------------------------------------------------------------

    # As a server's without a loop: an error of accept is the server's, and not the loop's.

    @property
    def failures(self) -> Episode:
        return self.acceptor.failures

    def wants(self, error: OSError) -> bool:
        return self.acceptor.wants(error)

    def accept_failed(self, error: BaseException) -> Turn:
        return self.acceptor.accept_failed(error)

    def broken(self, error: OSError) -> None:
        self.acceptor.broken(error)

    def next_delay(self) -> float:
        return self.acceptor.next_delay()


def check_hooks(server: Any, *, reads: bool) -> None:
    """Refuse an accept loop of *server* that isn't one, or has a ``do_read`` beside it: it *reads*.

    Raises:
        TypeError: It is so.
    """
    if server.accept_loop is None:
        return
    if not callable(server.accept_loop):
        raise TypeError(f"accept_loop must be callable, got {server.accept_loop!r}")
    if reads or "do_read" in server.__dict__:
        raise TypeError(
            f"do_read can't accept for {server} beside the accept_loop {server.accept_loop!r}: "
            "have one of them"
        )


def refuse_to_handle(sock: Any, *_: Any) -> None:
    """The handler of a server that has an accept loop, and no other."""
    raise TypeError(f"a server without a handler can't handle {sock!r}: give it a handle")


def count(acceptor: Acceptor, plain: Any, *, is_new: bool) -> None:
    """Count the connection *plain*, which the loop of *acceptor* gets now.

    Args:
        is_new: Whether it was accepted for this clone now, and not handed over by another hub,
            which has counted it for the rate.
    """
    admission, server = acceptor.admission, acceptor.server
    acceptor.accepted += 1
    server.delay = server.min_delay
    if is_new and admission.bucket is not None:
        admission.bucket.take(monotonic())
    number = plain.fileno()
    if number >= admission.watermark.level:
        admission.watermark.reached(server, number)


def handle(acceptor: Acceptor, args: tuple[Any, ...]) -> None:
    """Have the server handle a connection for the clone of *acceptor*: see `glb.Clone.handle`.

    Raises:
        RuntimeError: The clone lives on another hub.
    """
    if not acceptor.worker.is_here:
        raise RuntimeError(
            f"{acceptor.clone!r} can't handle {args[0]!r} here: it lives on another hub"
        )
    turn = acceptor.workers.turn
    turn.acceptor = acceptor
    try:
        acceptor.server.do_handle(*args)
    except Exception as error:  # a kill, or a timeout of the loop's own, ends its wait for room
        acceptor.admission.back_off((args[1:], acceptor.server), error)
    finally:
        turn.acceptor = None
