"""A service: the servers of one address, one after another, and sometimes two at once."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent.pool import Pool

from glb.accept.registry import REGISTRY, Entry
from glb.model.states import State
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from .plan import Kind, Plan
from .tally import Tally
from .work import Versions, Work

__all__ = ["Service", "acceptors_of", "wait_until"]

#: So long at most until handlers have ended that are not waited for. No client stays longer.
END_SECONDS: Final = 30.0

#: Of the listening socket, and so of connections: a handler waits for slow readers.
SEND_BUFFER_BYTES: Final = 16384

#: A server with such a timeout closes silent clients. Longer than any proper client is silent,
#: however busy the machine.
FIRST_BYTE_SECONDS: Final = 3.0

#: How often a server that has ended is started again, instead of another one.
RESTARTED: Final = 0.25

#: What pywsgi says of `loadtests.soak.wire.Request.half`; the second where a `first_byte_timeout`
#: is shorter than the silence.
HALF_IS_BAD: Final = ("left within the head of a request", "silent within the head of a request")


class _ErrorLog:
    """What pywsgi writes of bad requests: one line of each that was planned."""

    def __init__(self, tally: Tally) -> None:
        self._tally: Final = tally

    def write(self, text: str) -> None:
        if text.strip():
            self._tally.serve("half a request")
            self._tally.hold(
                "only half requests are bad", any(each in text for each in HALF_IS_BAD), text
            )

    def flush(self) -> None:
        pass


class Service:
    """The servers at one address, oldest first, as long as they have handlers."""

    def __init__(
        self, plan: Plan, kind: Kind, work: Work, versions: Versions, tally: Tally
    ) -> None:
        self.kind: Final = kind
        self.servers: list[Any] = []
        #: Those that are to end.
        self.leaving: set[Any] = set()
        self.address: Any = ("127.0.0.1", 0)
        # What servers that have ended had accepted.
        self._accepted_before = 0
        self._plan: Final = plan
        self._work: Final = work
        self._versions: Final = versions
        self._tally: Final = tally
        # The last one that has ended: it may be started again.
        self._ended: Any = None

    @property
    def entry(self) -> Entry | None:
        """The registry's of its address."""
        found = [each for each in REGISTRY if each.address == self.address]
        return found[0] if found else None

    @property
    def staying(self) -> list[Any]:
        """The servers that take connections, but for those that are about to end."""
        return [each for each in self.servers if each not in self.leaving]

    # -- servers that come --------------------------------------------------------------------

    def add(self, dice: random.Random) -> Any:
        """Start another server, with limits that *dice* choose.

        Raises:
            OSError, RuntimeError: There is no room for it.
        """
        if self._ended is not None and dice.random() < RESTARTED:
            return self._restart(self._ended)
        plan = self._plan
        number = self._versions.next_server()
        hubs = dice.choice([plan.hubs, plan.hubs, 1])
        clones = max(hubs, dice.randint(max(1, plan.clones - 1), plan.clones + 1))
        limits, name = self._limits(dice, clones, hubs)
        arguments: dict[str, Any] = {
            **limits,
            "clones": clones,
            "hubs": hubs,
            "reuse_port": True,
            "policy": plan.policy,
        }
        handle = self._work.handler(self.kind, number, self._versions.next())
        server: Any
        if self.kind is Kind.STREAM:
            server = StreamServer(self.address, handle, **arguments)
        else:
            # Without the name gevent would ask the resolver for it, in a thread of its pool.
            environ = {"SERVER_NAME": "localhost"}
            server = WSGIServer(
                self.address,
                handle,
                log=None,
                error_log=_ErrorLog(self._tally),
                environ=environ,
                **arguments,
            )
        server.soak_number = number
        server.start()
        if not self.servers:
            listening: socket.socket = server.socket
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        self.address = server.address
        self.servers.append(server)
        self._tally.act(f"server with {name}")
        return server

    def _restart(self, server: Any) -> Any:
        self._versions.resizing(server.soak_number)  # the clones may be others by now
        accepted = _count_accepted(server)  # while its threads start, it has clients already
        server.start()
        self._ended = None
        self._accepted_before -= accepted
        self.servers.append(server)
        self._tally.act("server started again")
        return server

    def _limits(self, dice: random.Random, clones: int, hubs: int) -> tuple[dict[str, Any], str]:
        room = self._plan.room
        rate = 1.5 * self._plan.rate / len(self._plan.kinds)
        limits: list[tuple[dict[str, Any], str]] = [
            ({}, "no limit"),
            ({"spawn": room}, "a number for spawn"),
            ({"max_connections": room}, "max_connections"),
            ({"max_connections_per_clone": max(2, room // clones)}, "max_connections_per_clone"),
            ({"accept_rate": rate}, "accept_rate"),
            ({"spawn": gevent.spawn}, "spawn=gevent.spawn"),
        ]
        if hubs == 1:
            limits.append(({"spawn": Pool(room)}, "a pool"))
        found, name = dice.choice(limits)
        if dice.random() < 0.3:
            found = {**found, "first_byte_timeout": FIRST_BYTE_SECONDS}
            name += ", first_byte_timeout"
        return found, name

    # -- servers that go ----------------------------------------------------------------------

    def retire(self, server: Any, how: str) -> None:
        """End *server*, by `drain`, `stop` or `close`, and see whether it has.

        Switches:
            Until its handlers have ended.
        """
        self.leaving.add(server)
        threads = [each.thread for each in server.glb_engine.workers if each.thread is not None]
        if how == "drain":
            report = server.drain()
            self._tally.hold("a drain without a deadline kills nobody", report.killed == 0, report)
        elif how == "stop":
            server.stop(END_SECONDS)
        else:
            server.close()

        def has_ended() -> bool:
            return (
                server.active == 0
                and not (server.pool and len(server.pool))
                and all(each.has_ended for each in threads)
                and not any(each.watched for each in server.glb_engine.workers)
            )

        is_over = wait_until(has_ended, END_SECONDS)
        self._tally.hold(
            "a server that was ended ends",
            is_over and server.state is State.STOPPED,
            f"{how} of {server!r}: {server.active} active, {server.state}, "
            f"threads {[each.name for each in threads if not each.has_ended]}",
        )
        self.check_quiet(server)
        self._accepted_before += _count_accepted(server)
        self.servers.remove(server)
        self.leaving.discard(server)
        self._ended = server

    def forget(self) -> None:
        """Start nothing again: let go of what has ended."""
        self._ended = None

    def count_accepted(self) -> int:
        """Return how many connections its servers were given, ever."""
        return self._accepted_before + sum(map(_count_accepted, self.servers))

    def check_quiet(self, server: Any) -> None:
        """See whether everything adds up that *server* has done, now that nothing goes on."""
        for each in acceptors_of(server):
            numbers = (
                each.accepted - each.reclaimed,
                each.taken - each.reclaimed,
                each.completed + each.failed,
            )
            self._tally.hold(
                "quiet: a clone's counts are equal",
                len({*numbers}) == 1 and each.load == 0 and each.in_flight == 0,
                f"clone {each.clone.index} of {server!r}: accepted, taken, done are "
                f"{numbers}, in flight {each.in_flight}",
            )
        pool = server.pool
        for worker in server.glb_engine.workers:
            self._tally.hold(
                "quiet: nothing is left of handlers",
                not worker.unpooled and not worker.watched and worker.active == 0,
                f"hub {worker.index} of {server!r}: {worker.unpooled}, {worker.watched}, "
                f"{worker.active} active",
            )
        if pool is not None and pool.size is not None:
            self._tally.hold(
                "quiet: a pool has all its room",
                pool.free_count() == pool.size and len(pool) == 0,
                f"{pool!r} of {server!r}: {pool.free_count()} of {pool.size} free",
            )
        self._tally.hold(
            "quiet: nothing is on its way",
            server.glb_engine.admission.expected == 0,
            server.glb_engine.admission.expected,
        )


def _count_accepted(server: Any) -> int:
    return sum(each.accepted - each.reclaimed for each in acceptors_of(server))


def acceptors_of(server: Any) -> list[Any]:
    """Return those of all clones of *server*, also of those that are about to go, or went."""
    return [*server.glb_engine.clones.acceptors, *server.glb_engine.clones.gone.values()]


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    """Wait until *is_so*, at most *seconds*; return ``False`` if it isn't."""
    with gevent.Timeout(seconds, False):  # type: ignore[arg-type]  # not in the stubs
        while not is_so():
            gevent.sleep(0.01)
    return is_so()
