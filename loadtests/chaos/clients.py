"""Clients, well-behaved and not; by a seed. Each is a greenlet in the command's process.

A proper request has the right reply, as a whole. The others must leave nothing behind.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import gevent

from loadtests.frame import traffic
from loadtests.frame.traffic import CHUNK, REPLY, Fate, Request, new_request

from .life import Plan
from .tally import Tally
from .work import BLOCK, CRASH

#: A server that ends may close a client that is silent for a second after it has connected. If the
#: client's own process kept it from sending for longer, the server has not lost it.
LATE_SECONDS: Final = 0.7

#: More than socket buffers hold: the handler waits for its client.
LARGE_BYTES: Final = 300_000
#: Read in drips it takes a second or two.
SLOW_BYTES: Final = 60_000
DRIP_BYTES: Final = 16_384
DRIP_SECONDS: Final = 0.05
SMALL_BUFFER_BYTES: Final = 4096

#: For how long clients are silent, at most; in a short run for this share of it.
SILENT_SECONDS: Final = 3.5
SILENT_SHARE: Final = 0.25

#: Fates beside those of `loadtests.frame.traffic`: of one that asked for nothing, of one that the
#: server kept waiting, of one that has not asked in time.
DONE: Final = "done"
GIVEN_UP: Final = "given up"
LATE: Final = "late by its own fault"


class Client:
    """One of them: what it speaks, what it chooses by, and its connection once there is one."""

    def __init__(self, crowd: Crowd, kind: str, seed: float) -> None:
        self.crowd: Final = crowd
        self.kind: Final = kind
        self.is_http: Final = kind == "http"
        self.dice: Final = random.Random(seed)
        self.sock: Any = None
        #: How many replies it has had.
        self.replies = 0
        self._is_late = False

    def connect(self, buffer: int | None = None) -> Any:
        began = monotonic()
        self.sock = traffic.connect(self.crowd.ports[self.kind], buffer=buffer)
        self.sock.settimeout(None)  # the crowd gives it up
        self._is_late = monotonic() - began > LATE_SECONDS
        return self.sock

    def send(self, verb: str, size: int) -> Request:
        """Send a request, and return it."""
        request = new_request(verb, size)
        self.sock.sendall(request.encode(is_http=self.is_http))
        return request

    def ask(self, verb: str, size: int, *, is_last: bool = True) -> traffic.Reply:
        """Ask, and return the reply.

        Raises:
            OSError, Fate: There is none that is good.
        """
        sock = self.sock or self.connect()
        try:
            request, is_last = new_request(verb, size), is_last and self.is_http
            found = traffic.ask(
                sock, request, is_http=self.is_http, is_last=is_last, is_kept=self.replies > 0
            )
        except (OSError, Fate) as error:
            if self._is_late and traffic.fate_of(error) in traffic.ENDED:
                raise Fate(LATE) from error
            raise
        self.replies += 1
        self._is_late = False
        return found


#: What a client does. It may raise what `Client.ask` does.
Behaviour = Callable[[Client], object]


class Crowd:
    """Clients of the servers at *ports*, by kind, which come and go.

    Args:
        patience: When a client gives up, in seconds.
        forgiven: The beginnings of fates of which nothing is wrong.
    """

    def __init__(
        self,
        plan: Plan,
        tally: Tally,
        ports: Mapping[str, int],
        patience: float,
        forgiven: Sequence[str] = (),
    ) -> None:
        self.plan: Final = plan
        self.ports: Final = ports
        self.tally: Final = tally
        self._dice: Final = random.Random(plan.seed)
        self._patience: Final = patience
        self._forgiven: Final = (DONE, LATE, traffic.RACED, *forgiven)
        self._here: set[Any] = set()

    def __len__(self) -> int:
        return len(self._here)

    def come(self, name: str, behaviour: Behaviour) -> None:
        """Have another client come, of any kind, which the report calls *name*."""
        client = Client(self, self._dice.choice([*self.ports]), self._dice.random())
        greenlet = gevent.spawn(self._run, client, name, behaviour)
        self._here.add(greenlet)
        greenlet.rawlink(self._here.discard)

    def leave(self) -> None:
        """Wait until all have come to their end."""
        gevent.joinall([*self._here])

    def _run(self, client: Client, name: str, behaviour: Behaviour) -> None:
        began = monotonic()
        fate, detail = DONE, ""
        try:
            with gevent.Timeout(self._patience, Fate(GIVEN_UP)):
                behaviour(client)
        except Exception as error:
            fate, detail = traffic.fate_of(error), repr(error)
        finally:
            if client.sock is not None:
                client.sock.close()
        for each in [traffic.GOOD] * client.replies + [fate] * (fate != DONE or not client.replies):
            self.tally.count(f"clients: {name}: {each}")
        self.tally.hold(
            "a client has its own reply, in time",
            fate.startswith(self._forgiven),
            f"{client.kind}: {name}: {client.replies} replies, then {fate}: {detail}",
            began,
        )


# -- behaviours ---------------------------------------------------------------------------------


def _ask_several_times(client: Client) -> None:
    for _ in range(client.dice.randint(2, 8)):
        if client.ask(REPLY, client.dice.choice([10, 1000]), is_last=False).is_last:
            return
        gevent.sleep(client.dice.uniform(0.002, 0.2))


def _read_in_drips(client: Client) -> None:
    sock = client.connect(SMALL_BUFFER_BYTES)

    def drip() -> bytes:
        gevent.sleep(DRIP_SECONDS)
        chunk: bytes = sock.recv(DRIP_BYTES)
        return chunk

    traffic.read_reply(drip, client.send(REPLY, SLOW_BYTES), is_http=client.is_http)


def _crash(client: Client) -> None:
    sock = client.connect()
    client.send(CRASH, 0)
    data = b""
    while chunk := sock.recv(CHUNK):
        data += chunk
    if not data.startswith(b"HTTP/1.1 500 ") if client.is_http else data:
        raise Fate("not what a crash looks like", f"{data[:80]!r}")


def _misbehave(act: Callable[[Client], object], resets: float) -> Behaviour:
    # Whatever the server makes of it is right.
    def behave(client: Client) -> None:
        sock = client.connect(SMALL_BUFFER_BYTES)
        with suppress(ConnectionError):
            act(client)
            if client.dice.random() < resets:
                traffic.reset(sock)

    return behave


def _be_silent(client: Client) -> None:
    most = max(0.3, min(SILENT_SECONDS, SILENT_SHARE * client.crowd.plan.seconds))
    gevent.sleep(client.dice.uniform(0.2, most))


def _send_half(client: Client) -> None:
    # Of HTTP not even a line: gevent takes one without its end for a request.
    whole = new_request().encode(is_http=client.is_http)
    client.sock.sendall(whole[: 3 if client.is_http else 8])
    _be_silent(client)


def _abort(client: Client) -> None:
    client.send(REPLY, LARGE_BYTES)
    for _ in range(client.dice.randint(0, 3)):
        client.sock.recv(SMALL_BUFFER_BYTES)


#: By name: how often it is chosen, of all, and what it does.
BEHAVIOURS: Final[Mapping[str, tuple[float, Behaviour]]] = {
    "asks and reads": (50, lambda client: client.ask(REPLY, client.dice.choice([10, 200, 5000]))),
    "asks several times": (12, _ask_several_times),
    "asks for what blocks a hub": (6, lambda client: client.ask(BLOCK, 10)),
    "reads in drips": (4, _read_in_drips),
    "crashes the handler": (3, _crash),
    "resets before accept": (12, _misbehave(lambda _: None, 1.0)),
    "stops in a request, then vanishes": (3, _misbehave(_send_half, 0.5)),
    "says nothing, then vanishes": (3, _misbehave(_be_silent, 0.5)),
    "aborts in a reply": (7, _misbehave(_abort, 1.0)),
}
