"""The clients: each has exchanges over a proxy, and looks whether what it gets is its own."""

from __future__ import annotations

import contextlib
import random
import socket as native
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import gevent
from gevent.socket import create_connection

from . import websockets
from .exchanges import Exchange, Maker
from .messages import Message, read_reply
from .words import digest, reply_body

__all__ = ["Asked", "Clients", "Tally"]

#: No client waits for so long, on a busy machine either.
PATIENCE_SECONDS: Final = 30.0

#: A client that leaves doesn't wait for a reply any longer: perhaps it hasn't asked for one.
LEAVE_SECONDS: Final = 0.05

#: After so many requests a client takes a new connection, on average.
KEEP: Final = 8

#: Of kinds whose reply a proxy's reset may outrun: it closes while the client still sends.
_MAY_BE_OUTRUN: Final = {"early reply", "too large", "ambiguous"}


@dataclass
class Asked:
    """What a client has asked for, and from which address."""

    exchange: Exchange
    address: str


@dataclass
class Tally:
    """What was seen.

    Attributes:
        asked: By tokens.
        counts: Of exchanges, by their kind and how they went.
        faults: What was not as it should be.
    """

    asked: dict[str, Asked] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Clients:
    """Clients of one proxy.

    Args:
        name: The proxy's.
        number: Of the clients' addresses.
        port: The proxy's.
        maker: Makes their requests.
        kinds: Of `KINDS`.
        tally: Gets what was seen.

    Attributes:
        second_head: How large the head of an attack's second request is, when the server gets it.
    """

    def __init__(
        self,
        name: str,
        number: int,
        port: int,
        maker: Maker,
        kinds: Sequence[str],
        tally: Tally,
    ) -> None:
        self._name: Final = name
        self._number: Final = number
        self._port: Final = port
        self._maker: Final = maker
        self._choose: Final[random.Random] = maker.choose
        self._kinds: Final = kinds
        self._tally: Final = tally
        self._connections = 0
        self._left = 0
        self.second_head = 0

    def run(self, requests: int, at_once: int) -> None:
        """Send *requests*, *at_once* clients at a time."""
        self._left = requests
        gevent.joinall([gevent.spawn(self._go_on) for _ in range(at_once)], raise_error=True)

    def ask(self, exchange: Exchange) -> None:
        """Have *exchange* on a connection of its own."""
        connection = self._connect()
        try:
            self._exchange(connection, [exchange])
        finally:
            connection.close()

    # -- a client ------------------------------------------------------------------------------

    def _go_on(self) -> None:
        choose = self._choose
        while self._left > 0:
            connection = self._connect()
            try:
                while self._left > 0 and choose.random() > 1 / KEEP:
                    batch = self._maker.batch(self._kinds, self.second_head)
                    self._left -= len(batch)
                    if not self._exchange(connection, batch):
                        break
            finally:
                connection.close()

    def _connect(self) -> _Connection:
        # All addresses are as long, and so are the heads that a proxy makes with them.
        count = self._connections
        self._connections += 1
        address = f"127.{self._number}.{100 + count // 150 % 150}.{100 + count % 150}"
        return _Connection(self._port, address)

    def _exchange(self, connection: _Connection, batch: list[Exchange]) -> bool:
        """Send *batch* and read the replies; return True if the connection may have more."""
        for each in batch:
            self._tally.asked[each.token] = Asked(each, connection.address)
        if batch[-1].kind == "leaving":
            self._leave(connection, batch)
            return False
        data = b"".join(each.head + (b"" if each.waits else each.tail) for each in batch)
        sending = gevent.spawn(connection.send, self._pieces(data))
        try:
            goes_on = True
            for each in batch:
                goes_on = self._receive(connection, each) and goes_on
            sending.join(PATIENCE_SECONDS if goes_on else 0.0)
            return goes_on and not batch[-1].ends
        finally:
            sending.kill()

    def _pieces(self, data: bytes) -> list[bytes]:
        choose = self._choose
        if choose.random() < 0.7:
            return [data]
        pieces, place = [], 0
        most = choose.choice((30, 1000)) if len(data) < 5000 else 50_000
        while place < len(data):
            size = choose.randint(1, most)
            pieces.append(data[place : place + size])
            place += size
        return pieces

    # -- a reply -------------------------------------------------------------------------------

    def _receive(self, connection: _Connection, exchange: Exchange) -> bool:
        """Read a reply; return True if the connection goes on."""
        if connection.has_ended:
            self._count(exchange, "not asked")  # a reply before has said so
            return False
        tail = exchange.tail if exchange.waits else b""
        try:
            reply = read_reply(connection.file, exchange.method, lambda: connection.send([tail]))
        except TimeoutError:
            self._fault(exchange, "no reply in time")
            reply = None
            connection.has_ended = True
        except OSError:
            reply = None
            if exchange.kind not in _MAY_BE_OUTRUN:
                self._fault(exchange, "a reset, and no reply")
            connection.has_ended = True
        except ValueError as error:
            if exchange.kind != "ambiguous":  # some ask as HTTP/0.9 does
                self._fault(exchange, str(error))
            reply = None
            connection.has_ended = True
        else:
            if reply is None:
                connection.has_ended = True
                if exchange.kind not in _MAY_BE_OUTRUN:
                    self._fault(exchange, f"no reply, behind {connection.before}")
        if reply is None:
            self._count(exchange, "without a reply")
            return False
        self._look_at(exchange, reply)
        connection.before = f"{_describe(exchange)}: {reply.line!r}, {reply.fields}"
        self._count(exchange, str(reply.code))
        if reply.code == 101:
            self._talk(connection, exchange)
            return False
        if not reply.is_whole or "close" in reply.value("connection").lower():
            connection.has_ended = True
        return not connection.has_ended

    def _look_at(self, exchange: Exchange, reply: Message) -> None:
        code = reply.code
        if code not in exchange.statuses:
            self._fault(exchange, f"answered with {reply.line!r}")
            return
        token = reply.value("x-token")
        if token in self._tally.asked and token != exchange.token:
            self._fault(exchange, f"has the reply to another: {self._about(token)}")
        if exchange.kind == "ambiguous" or code == 413:
            return
        if token != exchange.token:
            self._fault(exchange, f"has a reply without its token: {reply.line!r}")
        if code == 101:
            return
        expected = reply_body(exchange.token, digest(exchange.read), exchange.size)
        if exchange.method == "HEAD" or code in {204, 304}:
            expected = b""
        if reply.body != expected:
            self._fault(exchange, f"has {digest(reply.body)} as body, and not {digest(expected)}")
        if reply.is_whole == (exchange.page == "short" and exchange.method != "HEAD"):
            self._fault(exchange, f"has a reply that is whole: {reply.is_whole}")
        self._tally.counts[f"{self._name}, early hints"] += reply.interim.count(103)

    def _talk(self, connection: _Connection, exchange: Exchange) -> None:
        choose = self._choose
        try:
            for _ in range(choose.randint(0, 5)):
                data = choose.randbytes(choose.choice((0, 5, 125, 126, 5000, 60_000)))
                said = websockets.frame(websockets.TEXT, data, choose.randbytes(4))
                connection.send(self._pieces(said))
                if websockets.read_frame(connection.file) != (websockets.TEXT, data):
                    self._fault(exchange, "the websocket's echo is wrong")
                    return
            if choose.random() < 0.2:
                return  # without a word
            connection.send([websockets.frame(websockets.CLOSE, b"", choose.randbytes(4))])
            if websockets.read_frame(connection.file) != (websockets.CLOSE, b""):
                self._fault(exchange, "the websocket's close is not answered")
            if rest := connection.file.read():
                self._fault(exchange, f"something behind the websocket: {rest[:100]!r}")
        except OSError as error:
            self._fault(exchange, f"the websocket has ended: {error!r}")

    def _leave(self, connection: _Connection, batch: list[Exchange]) -> None:
        choose = self._choose
        data = b"".join(each.head + each.tail for each in batch)
        whole = choose.random() < 0.5
        connection.send([data if whole else data[: choose.randint(0, len(data))]])
        with contextlib.suppress(OSError):
            if choose.random() < 0.5:
                connection.sock.settimeout(LEAVE_SECONDS)
                connection.sock.recv(choose.choice((1, 5000)))
            else:
                gevent.sleep(choose.choice((0.0, 0.005, 0.02)))
        connection.close(is_reset=choose.random() < 0.5)
        for each in batch:
            self._count(each, "left")

    def _count(self, exchange: Exchange, how: str) -> None:
        self._tally.counts[f"{self._name}, {exchange.kind}: {how}"] += 1

    def _fault(self, exchange: Exchange, what: str) -> None:
        self._tally.faults.append(f"{self._name}: {_describe(exchange)} {what}")

    def _about(self, token: str) -> str:
        return _describe(self._tally.asked[token].exchange)


class _Connection:
    """A client's connection to a proxy, from an address of its own."""

    def __init__(self, port: int, address: str) -> None:
        self.address: Final = address
        self.sock: Final[Any] = create_connection(
            ("127.0.0.1", port), timeout=PATIENCE_SECONDS, source_address=(address, 0)
        )
        self.file: Final = self.sock.makefile("rb")
        self.has_ended = False
        self.before = "nothing"  # the last reply

    def send(self, pieces: list[bytes]) -> None:
        # A proxy that doesn't read on has its reasons, which its reply tells.
        with contextlib.suppress(OSError):
            for each in pieces:
                self.sock.sendall(each)
                if len(pieces) > 1:
                    gevent.sleep(0)

    def close(self, *, is_reset: bool = False) -> None:
        if is_reset:
            linger = struct.pack("ii", 1, 0)
            self.sock.setsockopt(native.SOL_SOCKET, native.SO_LINGER, linger)
        self.file.close()
        self.sock.close()


def _describe(exchange: Exchange) -> str:
    head = exchange.head.decode("latin-1").replace(f"/{exchange.token}?", "/TOKEN?")
    return f"[{exchange.kind}] {head[:300]!r}"
