"""The load: clients that ask properly, and clients that don't; by a seed.

A proper request must be served: the right reply, as a whole. The others must leave nothing behind.
"""

from __future__ import annotations

import enum
import random
import socket as native_socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import gevent
from gevent import socket

from .plan import Kind, Plan
from .wire import CHUNK, Reply, Request, Verb, WireError, read_reply

__all__ = ["Behaviour", "Load", "Outcome", "Result"]

#: When a client gives up, in seconds: longer than any pause, and anything that is in the way.
GIVE_UP_SECONDS: Final = 20.0

#: A server that ends may close a client that is silent for a second after it has connected. If the
#: client's own process kept it from sending for longer, the server has not lost it.
LATE_SECONDS: Final = 0.7

#: As many clients at once, and no more come: then the process could not look after them.
MOST_CLIENTS: Final = 400

#: How often, on the average, many come at once.
BURST_EVERY_SECONDS: Final = 2.5

#: More than socket buffers hold: the handler waits for its client.
LARGE_BYTES: Final = 300_000
#: Read in drips it takes a second or two.
SLOW_BYTES: Final = 60_000
DRIP_BYTES: Final = 16_384
DRIP_SECONDS: Final = 0.05
SMALL_BUFFER_BYTES: Final = 4096

#: For how long clients are silent, at most; in a short run for less.
SILENT_SECONDS: Final = 3.5
SILENT_SHARE: Final = 0.25

_RESET: Final = struct.pack("ii", 1, 0)


class Behaviour(enum.Enum):
    """How a client behaves."""

    GOOD = "asks and reads"
    KEPT_ALIVE = "asks several times"
    BLOCK = "asks for what blocks a hub"
    SLOW = "reads in drips"
    CRASH = "crashes the handler"
    RESET = "resets before accept"
    HALF_OPEN = "stops in a request, then vanishes"
    SILENT = "says nothing, then vanishes"
    ABORT = "aborts in a reply"


WEIGHTS: Final[Mapping[Behaviour, float]] = {
    Behaviour.GOOD: 50,
    Behaviour.KEPT_ALIVE: 12,
    Behaviour.BLOCK: 6,
    Behaviour.SLOW: 4,
    Behaviour.CRASH: 3,
    Behaviour.RESET: 12,
    Behaviour.HALF_OPEN: 3,
    Behaviour.SILENT: 3,
    Behaviour.ABORT: 7,
}


class Result(enum.Enum):
    """What becomes of what a client asks."""

    SERVED = "served"
    #: It was another reply, or a part of it.
    FAILED = "failed"
    #: No reply.
    LOST = "lost"
    #: A kept-alive connection was closed between two requests, which a server may do.
    CLOSED = "closed between requests"
    #: The client itself was too late.
    LATE = "late by its own fault"
    #: Nothing was asked properly.
    DONE = "done"


class _Closed(Exception):  # noqa: N818  # it is no error
    """The connection was closed between two requests."""


class _Late(Exception):  # noqa: N818  # it is no error of the server's
    """The client has not asked in time."""


@dataclass
class Outcome:
    """What came of a load."""

    #: Requests, or clients that made none, by behaviour and result.
    counts: Counter[tuple[Behaviour, Result]] = field(default_factory=Counter)
    #: Of those that ask once and read: from connect to the end of the reply, in seconds.
    latencies: list[float] = field(default_factory=list)
    #: What went wrong, the first of it.
    details: list[str] = field(default_factory=list)
    #: From when to when, on `time.monotonic`'s clock.
    found_at: list[tuple[float, float]] = field(default_factory=list)
    #: Clients that did not come, as there were too many.
    held_back: int = 0

    def of(self, *results: Result) -> int:
        return sum(count for (_, result), count in self.counts.items() if result in results)

    def lost(self, detail: str, began: float) -> None:
        """A client that *began* then, on `time.monotonic`'s clock, was not served."""
        self.found_at.append((began, time.monotonic()))
        if len(self.details) < 20:
            self.details.append(detail)


class Load:
    """Clients of the servers at *ports*."""

    def __init__(self, plan: Plan, ports: Mapping[Kind, int]) -> None:
        self._plan: Final = plan
        self._ports: Final = ports
        self._dice: Final = random.Random(plan.seed)
        self._number = 0
        self._began = 0.0
        self.outcome: Final = Outcome()

    def run(self, is_over: Callable[[], bool]) -> Outcome:
        """Have clients come for the plan's time, or until *is_over*; wait for the last."""
        behaviours = [each for each in Behaviour if self._is_wanted(each)]
        weights = [WEIGHTS[each] for each in behaviours]
        clients: set[Any] = set()
        dice = self._dice
        began = self._began = now = time.monotonic()
        next_burst = began + dice.uniform(0.3, 2) * min(1, self._plan.seconds / 5)
        next_client = began
        while now < began + self._plan.seconds and not is_over():
            count = 0
            while next_client < now:
                next_client += dice.expovariate(self._plan.rate)
                count += 1
            if now > next_burst:
                next_burst = now + dice.expovariate(1 / BURST_EVERY_SECONDS)
                count += dice.randint(1, 3 * self._plan.room)
            room = max(0, MOST_CLIENTS - len(clients))
            self.outcome.held_back += max(0, count - room)
            for behaviour in dice.choices(behaviours, weights, k=min(count, room)):
                kind = dice.choice([*self._ports])
                client = gevent.spawn(self._run_client, behaviour, kind, dice.random())
                clients.add(client)
                client.rawlink(clients.discard)
            gevent.sleep(0.005)
            now = time.monotonic()
        gevent.joinall([*clients])
        return self.outcome

    def ask_in_turn(self, kind: Kind, count: int) -> list[Reply | None]:
        """Ask *count* times, one after another, and return the replies."""
        replies: list[Reply | None] = []
        for _ in range(count):
            try:
                with gevent.Timeout(GIVE_UP_SECONDS):
                    replies.append(self._ask_once(kind, Verb.REPLY, 100))
            except (gevent.Timeout, OSError, EOFError, WireError):
                replies.append(None)
        return replies

    def _is_wanted(self, behaviour: Behaviour) -> bool:
        return behaviour is not Behaviour.BLOCK or self._plan.hubs > 1

    # -- a client ---------------------------------------------------------------------------------

    def _run_client(self, behaviour: Behaviour, kind: Kind, seed: float) -> None:
        began = time.monotonic()
        dice = random.Random(seed)
        try:
            with gevent.Timeout(GIVE_UP_SECONDS, WireError("given up")):
                result = self._behave(behaviour, kind, dice)
        except _Closed:
            result = Result.CLOSED
        except _Late:
            result = Result.LATE
        except (OSError, EOFError, WireError) as error:
            is_reply = isinstance(error, WireError) and str(error) != "given up"
            result = Result.FAILED if is_reply else Result.LOST
            at = f"at {began - self._began:.2f} s, after {time.monotonic() - began:.2f} s"
            self.outcome.lost(f"{kind.value}: {behaviour.value}: {at}: {error!r}", began)
        else:
            if behaviour is Behaviour.GOOD:
                self.outcome.latencies.append(time.monotonic() - began)
        self._count(behaviour, result)

    def _count(self, behaviour: Behaviour, result: Result) -> None:
        self.outcome.counts[behaviour, result] += 1

    def _behave(self, behaviour: Behaviour, kind: Kind, dice: random.Random) -> Result:
        if behaviour is Behaviour.GOOD:
            self._ask_once(kind, Verb.REPLY, dice.choice([10, 200, 5000]))
        elif behaviour is Behaviour.BLOCK:
            self._ask_once(kind, Verb.BLOCK, 10)
        elif behaviour is Behaviour.KEPT_ALIVE:
            self._ask_several_times(kind, dice)
        elif behaviour is Behaviour.SLOW:
            self._read_in_drips(kind)
        elif behaviour is Behaviour.CRASH:
            self._crash(kind)
        else:
            self._misbehave(behaviour, kind, dice)
            return Result.DONE
        return Result.SERVED

    # -- proper requests --------------------------------------------------------------------------

    def _connect(self, kind: Kind, buffer: int | None = None) -> socket.socket:
        sock = socket.socket()
        try:
            if buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            sock.connect(("127.0.0.1", self._ports[kind]))
        except BaseException:
            sock.close()
            raise
        return sock

    def _new(self, verb: Verb, size: int = 0) -> Request:
        self._number += 1
        return Request(verb, self._number, size)

    def _ask(
        self,
        sock: socket.socket,
        kind: Kind,
        request: Request,
        receive: Callable[[], bytes],
        since: float,
        *,
        is_last: bool = True,
    ) -> Reply:
        is_late = False
        try:
            sock.sendall(request.encode(kind, is_last=is_last))
            is_late = time.monotonic() - since > LATE_SECONDS
            return read_reply(kind, request, receive)
        except (EOFError, ConnectionError) as error:
            if is_late:
                raise _Late from error
            raise

    def _ask_once(self, kind: Kind, verb: Verb, size: int) -> Reply:
        began = time.monotonic()
        request = self._new(verb, size)
        with self._connect(kind) as sock:
            found = self._ask(sock, kind, request, lambda: sock.recv(CHUNK), began)
            if kind is Kind.HTTP and (rest := sock.recv(CHUNK)):
                raise WireError(f"more than the reply to {request}: {rest[:80]!r}")
            return found

    def _ask_several_times(self, kind: Kind, dice: random.Random) -> None:
        began = time.monotonic()
        with self._connect(kind) as sock:
            for turn in range(dice.randint(2, 8)):
                received: list[int] = []

                def receive(received: list[int] = received) -> bytes:
                    chunk: bytes = sock.recv(CHUNK)
                    received.append(len(chunk))
                    return chunk

                request = self._new(Verb.REPLY, dice.choice([10, 1000]))
                since = time.monotonic() if turn else began
                try:
                    found = self._ask(sock, kind, request, receive, since, is_last=False)
                except (EOFError, ConnectionError):
                    if turn and not sum(received):
                        raise _Closed from None
                    raise
                if turn:
                    self._count(Behaviour.KEPT_ALIVE, Result.SERVED)
                if not found.goes_on:
                    return
                gevent.sleep(dice.uniform(0.002, 0.2))

    def _read_in_drips(self, kind: Kind) -> None:
        began = time.monotonic()
        request = self._new(Verb.REPLY, SLOW_BYTES)

        def drip() -> bytes:
            gevent.sleep(DRIP_SECONDS)
            chunk: bytes = sock.recv(DRIP_BYTES)
            return chunk

        with self._connect(kind, SMALL_BUFFER_BYTES) as sock:
            self._ask(sock, kind, request, drip, began)

    def _crash(self, kind: Kind) -> None:
        with self._connect(kind) as sock:
            sock.sendall(self._new(Verb.CRASH).encode(kind))
            data = b""
            while chunk := sock.recv(CHUNK):
                data += chunk
            expected = b"" if kind is Kind.STREAM else b"HTTP/1.1 500 "
            if not data.startswith(expected) or (data and not expected):
                raise WireError(f"not what a crash looks like: {data[:80]!r}")

    # -- other clients ----------------------------------------------------------------------------

    def _misbehave(self, behaviour: Behaviour, kind: Kind, dice: random.Random) -> None:
        # Whatever the server makes of it is right.
        most = max(0.3, min(SILENT_SECONDS, SILENT_SHARE * self._plan.seconds))
        try:
            with self._connect(kind, SMALL_BUFFER_BYTES) as sock:
                if behaviour is Behaviour.HALF_OPEN:
                    sock.sendall(self._new(Verb.REPLY, 10).half(kind))
                    gevent.sleep(dice.uniform(0.2, most))
                elif behaviour is Behaviour.SILENT:
                    gevent.sleep(dice.uniform(0.2, most))
                elif behaviour is Behaviour.ABORT:
                    request = self._new(Verb.REPLY, LARGE_BYTES)
                    sock.sendall(request.encode(kind))
                    for _ in range(dice.randint(0, 3)):
                        sock.recv(SMALL_BUFFER_BYTES)
                if behaviour in {Behaviour.RESET, Behaviour.ABORT} or dice.random() < 0.5:
                    sock.setsockopt(socket.SOL_SOCKET, native_socket.SO_LINGER, _RESET)
        except ConnectionRefusedError:
            raise
        except ConnectionError:
            pass
