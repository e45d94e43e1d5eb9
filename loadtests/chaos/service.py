"""A service: the servers of one address, one after another, and sometimes two at once."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import gevent

from glb.accept.registry import REGISTRY, Entry
from glb.model.states import State
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from .work import Marks

if TYPE_CHECKING:
    from .life import Life

#: So long at most until handlers have ended that are not waited for. No client stays longer.
END_SECONDS: Final = 30.0

#: Of the listening socket, and so of connections: a handler waits for slow readers.
SEND_BUFFER_BYTES: Final = 16384

#: How often a server that has ended is started again, instead of another one.
RESTARTED: Final = 0.25

#: What pywsgi says of half a request; the second where a `first_byte_timeout` is shorter than the
#: silence.
HALF_IS_BAD: Final = ("left within the head of a request", "silent within the head of a request")


class Service:
    """The servers at one address, oldest first, as long as they have handlers.

    Attributes:
        servers: Those that are there. Each has `Marks`.
        leaving: Those that are to end.
    """

    def __init__(self, life: Life, kind: str) -> None:
        self.kind: Final = kind
        self.servers: list[Any] = []
        self.leaving: set[Any] = set()
        self.address: Any = ("127.0.0.1", 0)
        self._life: Final = life
        # What servers that have ended had accepted.
        self._accepted_before = 0
        # The last one that has ended: it may be started again.
        self._ended: Any = None

    @property
    def entry(self) -> Entry | None:
        """The registry's of its address."""
        return next((each for each in REGISTRY if each.address == self.address), None)

    @property
    def staying(self) -> list[Any]:
        """The servers that take connections, but for those that are about to end."""
        return [each for each in self.servers if each not in self.leaving]

    def add(self, dice: random.Random) -> None:
        """Start another server, or the last one again.

        Raises:
            OSError, RuntimeError: There is no room for it.
        """
        life = self._life
        if self._ended is not None and dice.random() < RESTARTED:
            server, self._ended = self._ended, None
            server.marks.resize()  # the clones may be others by now
            accepted = _count_accepted(server)  # while its threads start, it has clients already
            server.start()
            self._accepted_before -= accepted
            self.servers.append(server)
            life.tally.act("server started again")
            return
        arguments, name = life.arguments(dice)
        arguments["reuse_port"] = True
        marks = Marks()
        handle = life.work.handler(self.kind, marks)
        if self.kind == "stream":
            server = StreamServer(self.address, handle, **arguments)
        else:
            # Without the name gevent would ask the resolver for it, in a thread of its pool.
            arguments["environ"] = {"SERVER_NAME": "localhost"}
            server = WSGIServer(self.address, handle, log=None, error_log=self, **arguments)
        server.marks = marks
        server.start()
        if not self.servers:
            listening: socket.socket = server.socket
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.address = server.address
        self.servers.append(server)
        life.tally.act(f"server with {name}")

    def write(self, text: str) -> None:
        """Count what pywsgi writes of bad requests: one line of each that was planned."""
        if text.strip():
            self._life.tally.count("handlers: half a request")
            is_half = any(each in text for each in HALF_IS_BAD)
            self._life.tally.hold("only half requests are bad", is_half, text)

    def retire(self, server: Any, how: str) -> None:
        """End *server*, by `drain`, `stop` or `close`, and see whether it has.

        Switches:
            Until its handlers have ended.
        """
        self.leaving.add(server)
        hold = self._life.tally.hold
        workers = server.glb_engine.workers
        threads = [each.thread for each in workers if each.thread is not None]
        if how == "drain":
            report = server.drain()
            hold("a drain without a deadline kills no handler", report.killed == 0, report)
        elif how == "stop":
            server.stop(END_SECONDS)
        else:
            server.close()

        def left() -> list[object]:
            running = [each.name for each in threads if not each.has_ended]
            return [*what_is_left(server), *running]

        wait_until(lambda: not left(), END_SECONDS)
        detail = f"{how} of {server!r}, {server.state}: {left()}"
        has_ended = not left() and server.state is State.STOPPED
        hold("a server that was ended ends, and leaves nothing", has_ended, detail)
        self._accepted_before += _count_accepted(server)
        self.servers.remove(server)
        self.leaving.discard(server)
        self._ended = server

    def retire_all(self) -> None:
        """End all servers, at once."""
        ends = [gevent.spawn(self.retire, each, "drain") for each in self.staying]
        gevent.joinall(ends, raise_error=True)

    def left(self) -> list[object]:
        """Return what isn't as it should be while nothing goes on."""
        found: list[object] = []
        for server in self.servers:
            found += [f"{server}: {each}" for each in server.clone_stats() if not each.ready]
            found += what_is_left(server)
        return found

    def count_accepted(self) -> int:
        """Return how many connections its servers were given, ever."""
        return self._accepted_before + sum(map(_count_accepted, self.servers))


def what_is_left(server: Any) -> list[object]:
    """Return what doesn't add up of *server* while nothing goes on."""
    found: list[object] = []
    for each in acceptors_of(server):
        accepted, taken = each.accepted - each.reclaimed, each.taken - each.reclaimed
        done, load, in_flight = each.completed + each.failed, each.load, each.in_flight
        if load or in_flight or not accepted == taken == done:
            found.append(f"{each!r}: {accepted=}, {taken=}, {done=}, {load=}, {in_flight=}")
    for worker in server.glb_engine.workers:
        left = (worker.unpooled, worker.watched, worker.active)
        if any(left):
            found.append(f"hub {worker.index}: {left}")
    pool, expected = server.pool, server.glb_engine.admission.expected
    if pool is not None and (len(pool) or (pool.size and pool.free_count() != pool.size)):
        found.append(f"{pool!r}: {len(pool)} in it, {pool.free_count()} of {pool.size} free")
    if server.active or expected:
        found.append(f"{server.active} active, {expected} expected")
    return found


def _count_accepted(server: Any) -> int:
    return sum(each.accepted - each.reclaimed for each in acceptors_of(server))


def acceptors_of(server: Any) -> list[Any]:
    """Return those of all clones of *server*, also of those that are about to go, or went."""
    return [*server.glb_engine.clones.acceptors, *server.glb_engine.clones.gone.values()]


def wait_until(is_so: Callable[[], bool], seconds: float, each: float = 0.01) -> bool:
    """Wait until *is_so*, at most *seconds*; return ``False`` if it isn't. Look *each* so often."""
    with gevent.Timeout(seconds, False):  # type: ignore[arg-type]  # not in the stubs
        while not is_so():
            gevent.sleep(each)
    return is_so()
