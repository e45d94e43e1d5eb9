"""Clients, on native sockets. They send the signals, too, and see what becomes of everybody."""

from __future__ import annotations

import os
import random
import select
import socket
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic
from typing import Final

from .server import SIGNALS
from .words import Kind, Mixed, is_whole, request

__all__ = ["Clients"]

#: A server that goes on serves within this time. glb looks over what has stopped four times a
#: second.
SERVED_SECONDS: Final = 2.0

#: So many clients of each kind, of those that come after a signal, are to be served.
SERVED_AFTER: Final = 3

#: So many clients are there at a time.
AT_ONCE: Final = 16

#: The longest pause before a signal. A connection takes less than one.
PAUSE_SECONDS: Final = 0.004


@dataclass
class Client:
    """One of them: it has a few tokens echoed, one after another."""

    kind: Kind
    sock: socket.socket
    #: How often it asks.
    left: int
    #: When it connected, or asked the last time.
    began: float
    #: How many signals there had been when it connected.
    signals: int
    token: bytes = b""
    seen: bytes = b""
    is_served: bool = False


@dataclass
class Clients:
    """They come and go, and the process *pid* gets signals.

    The descriptor *told* gets a byte for each signal whose handler has raised: one that comes while
    the loop runs does so a moment later.
    """

    ports: dict[Kind, int]
    pid: int
    told: int
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    #: How many signals have struck.
    signals: int = 0
    #: The longest that a client waited for its reply, in seconds, and the longest from a signal
    #: until those that came after it were served.
    longest: float = 0.0
    longest_after: float = 0.0
    #: After how many signals no client was served in time.
    deaf_after: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._choose = random.Random(self.seed)
        self._poll = select.epoll()
        self._clients: dict[int, Client] = {}
        self._poll.register(self.told, select.EPOLLIN)
        self._made = 0
        # Of each kind: clients that came after the last signal and were served.
        self._after: Counter[Kind] = Counter()

    def warm_up(self, seconds: float) -> None:
        """Come and go, without signals."""
        until = monotonic() + seconds
        while monotonic() < until:
            self._turn(0.01)
        self.leave()
        self.counts.clear()
        self.longest = 0.0

    def strike(self, signals: int, deaf: int) -> None:
        """Send *signals*, one after another, and look after each whether clients are served.

        It ends early when they weren't for *deaf* times.
        """
        for _ in range(2 * signals):
            if self.signals >= signals or len(self.deaf_after) >= deaf:
                return
            pause = self._choose.uniform(0, PAUSE_SECONDS)
            until = monotonic() + pause
            while (left := until - monotonic()) > 0:
                self._turn(left)
            before = self.signals
            os.kill(self.pid, self._choose.choice(SIGNALS))
            began = monotonic()
            while self.signals == before and monotonic() - began < SERVED_SECONDS:
                self._turn(0.01)
            self._after.clear()
            began = monotonic()
            while any(self._after[kind] < SERVED_AFTER for kind in Kind):
                self._turn(0.01)
                if monotonic() - began > SERVED_SECONDS:
                    missing = [kind.value for kind in Kind if self._after[kind] < SERVED_AFTER]
                    self.deaf_after.append(self.signals)
                    self.faults.append(f"nobody of {missing} is served after {self.signals}")
                    break
            else:
                self.longest_after = max(self.longest_after, monotonic() - began)
        self.faults.append(f"only {self.signals} of {2 * signals} signals struck")

    def leave(self) -> None:
        """Let all come to their end, and have no new ones."""
        while self._clients:
            self._read(0.01)

    # -- steps --------------------------------------------------------------------------------

    def _turn(self, seconds: float) -> None:
        while len(self._clients) < AT_ONCE:
            self._connect()
        self._read(seconds)

    def _connect(self) -> None:
        kind = self._choose.choice((*Kind,))
        sock = socket.create_connection(("127.0.0.1", self.ports[kind]), SERVED_SECONDS)
        many = self._choose.choice((1, 1, 1, 2, 5))
        client = Client(kind, sock, many, monotonic(), self.signals)
        self._clients[sock.fileno()] = client
        self._poll.register(sock, select.EPOLLIN)
        self._ask(client)

    def _ask(self, client: Client) -> None:
        self._made += 1
        client.left -= 1
        client.seen, client.token = b"", b"<%016x>" % (self.seed << 40 | self._made)
        client.began = monotonic()
        try:
            client.sock.sendall(request(client.kind, client.token))
        except ConnectionError:
            self._end(client, "closed")

    def _read(self, seconds: float) -> None:
        for number, _ in self._poll.poll(seconds):
            if number == self.told:
                self.signals += len(os.read(number, 100))
                self._after.clear()
            else:
                self._read_one(self._clients[number])
        now = monotonic()
        for client in [*self._clients.values()]:
            if now - client.began > SERVED_SECONDS:
                self.faults.append(
                    f"a client of {client.kind.value} waits, which came after {client.signals} "
                    f"signals, of {self.signals}; it was served before: {client.is_served}"
                )
                self._end(client, "late")

    def _read_one(self, client: Client) -> None:
        try:
            data = client.sock.recv(4096)
            client.seen += data
            if not data:
                self._end(client, "closed")
            elif is_whole(client.kind, client.token, client.seen):
                self._served(client)
        except ConnectionError:
            self._end(client, "closed")
        except Mixed as error:
            self.faults.append(str(error))
            self._end(client, "mixed")

    def _served(self, client: Client) -> None:
        self.counts["answers"] += 1
        self.longest = max(self.longest, monotonic() - client.began)
        client.is_served = True
        if client.signals == self.signals:
            self._after[client.kind] += 1
        if client.left:
            self._ask(client)
        else:
            self._end(client, "served")

    def _end(self, client: Client, how: str) -> None:
        if self._clients.pop(client.sock.fileno(), None) is not None:
            self._poll.unregister(client.sock)
            client.sock.close()
            self.counts[how] += 1
