"""Traffic: requests that have a number of their own, over streams and HTTP, and their fates.

A reply is a line, and as many bytes as the line says. The line repeats the request's number, so
that a reply is seen that is another's, or there twice; then it has words of the server's, which
say what has replied. Clients are greenlets. `loadtests.frame.worker` runs them in a process.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import socket as plain
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic_ns
from typing import Any, Final, NamedTuple

import gevent
from gevent import socket

from .worker import commands_of

#: A port of this machine, the path of a Unix socket, or host and port.
Place = int | str | Sequence[Any]

#: When a client gives up, in seconds.
GIVE_UP_SECONDS: Final = 10.0

#: How much is read at once, in bytes.
CHUNK: Final = 65536

#: A shorter pause is this long: libuv knows no shorter one, and warns.
PAUSE_MIN_SECONDS: Final = 0.001

#: With SO_LINGER so, closing a connection resets it.
RESETS: Final = b"\1\0\0\0\0\0\0\0"

#: What a handler is asked to do: reply, or do so after a while.
REPLY: Final = "reply"
SLOW: Final = "slow"

#: The fate of a request with a whole reply.
GOOD: Final = "good"

#: That of one on a kept connection that ended without a byte of the reply: the end may have been
#: on its way before the request, and only the server knows whether it had begun.
RACED: Final = "raced"

#: Those of one without a byte of the reply.
ENDED: Final = frozenset({"closed", "reset"})

_FATES: Final[Mapping[type[BaseException], str]] = {
    ConnectionRefusedError: "refused",
    ConnectionResetError: "reset",
    BrokenPipeError: "reset",
    TimeoutError: "late",
    ssl.SSLEOFError: "ragged",
}


class Fate(Exception):  # noqa: N818  # a name for what became of it, and no error of ours
    """What became of a request that has no good reply: its *name*, and what was seen."""

    def __init__(self, name: str, detail: str = "") -> None:
        super().__init__(f"{name}: {detail}" if detail else name)
        self.name: Final = name


def fate_of(error: BaseException) -> str:
    """Return the name of the fate that *error* means."""
    if isinstance(error, Fate):
        return error.name
    return _FATES.get(type(error), f"{type(error).__name__}: {error}")


# -- the wire -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """What a handler is to do, a *number* that no other has, and the *size* of the reply's body."""

    number: int
    size: int = 0
    verb: str = REPLY

    def encode(self, *, is_http: bool, is_last: bool = False) -> bytes:
        """Return the line, or the head: with ``Connection: close`` if it *is_last*."""
        words = f"{self.verb} {self.number} {self.size}"
        if not is_http:
            return f"{words}\n".encode()
        end = "Connection: close\r\n" if is_last else ""
        return f"GET /{words.replace(' ', '/')} HTTP/1.1\r\nHost: x\r\n{end}\r\n".encode()

    @classmethod
    def decode(cls, text: str) -> Request:
        """Return the request of a line, or of a path."""
        verb, number, size = text.replace("/", " ").split()
        return cls(int(number), int(size), verb)


class Reply(NamedTuple):
    """A whole reply: the server's words, and whether it said ``Connection: close``."""

    words: tuple[str, ...]
    is_last: bool


_numbers: Final = itertools.count(os.getpid() << 32)


def new_request(verb: str = REPLY, size: int = 0) -> Request:
    """Return a request with a number that no other has, of this process or of another."""
    return Request(next(_numbers), size, verb)


def _body(request: Request) -> bytes:
    piece = b"%016x" % (request.number * 0x9E3779B97F4A7C15 % 2**64)
    return (piece * (request.size // len(piece) + 1))[: request.size]


def reply(request: Request, *words: object) -> bytes:
    """Return the reply to *request*, with *words* that say what has replied: none has a space."""
    line = " ".join(map(str, (request.number, request.size, *words)))
    return f"{line}\n".encode() + _body(request)


def parse(data: bytes, request: Request, *, is_http: bool) -> Reply | None:
    """Return the reply that *data* is; ``None`` if it may become one.

    Raises:
        Fate: It is no good reply to *request*, whatever follows.
    """
    is_last = False
    length = None
    if is_http:
        head, end, data = data.partition(b"\r\n\r\n")
        if not end:
            return None
        status, *lines = head.decode("latin-1").split("\r\n")
        if not status.startswith("HTTP/1.1 200 "):
            raise Fate(status)
        fields = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        is_last = headers.get("connection", "").lower() == "close"
        length = headers.get("content-length")
    line, end, body = data.partition(b"\n")
    if not end:
        return None
    words = line.decode("latin-1").split(" ")
    if words[:2] != [str(request.number), str(request.size)]:
        raise Fate("another's", f"{data[:80]!r} is no reply to {request}")
    if is_http and length != str(len(line) + 1 + request.size):
        raise Fate("another length", f"{length} of {len(line) + 1 + request.size} bytes")
    if len(body) < request.size:
        return None
    if body != _body(request):
        raise Fate("another body", f"of {len(body)} bytes, to {request}")
    return Reply(tuple(words[2:]), is_last)


def read_reply(receive: Callable[[], bytes], request: Request, *, is_http: bool) -> Reply:
    """Return the reply to *request*.

    Args:
        receive: Returns some bytes, none at the end.

    Raises:
        ConnectionError: There was none.
        Fate: "closed", there was none; "broken", a part of one; or it is another.
    """
    data = b""
    while (found := parse(data, request, is_http=is_http)) is None:
        try:
            piece = receive()
        except ConnectionError as error:
            if data:
                raise Fate("broken", f"{error} after {data[:80]!r}") from error
            raise
        if not piece:
            raise Fate("broken", f"the end after {data[:80]!r}") if data else Fate("closed")
        data += piece
    return found


# -- connections --------------------------------------------------------------------------------


def connect(place: Place, *, buffer: int | None = None) -> Any:
    """Return a connection to *place*, with a receive *buffer* of so many bytes."""
    family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
    sock = socket.socket(family)
    sock.settimeout(GIVE_UP_SECONDS)
    try:
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if isinstance(place, int):
            place = ("127.0.0.1", place)
        sock.connect(place if isinstance(place, str) else tuple(place))
    except BaseException:
        sock.close()
        raise
    return sock


def reset(sock: Any) -> None:
    """Close *sock*: the peer sees a reset, unless it has closed before. No TIME_WAIT is left."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
    sock.close()


def ask(
    sock: Any, request: Request, *, is_http: bool, is_last: bool = False, is_kept: bool = False
) -> Reply:
    """Send *request*, and return the reply; after which the end has to come, if it *is_last*.

    Args:
        is_kept: There was a reply before, and *sock* may end.

    Raises:
        OSError, Fate: There is none that is good.
    """
    try:
        sock.sendall(request.encode(is_http=is_http, is_last=is_last))
        found = read_reply(partial(sock.recv, CHUNK), request, is_http=is_http)
    except (OSError, Fate) as error:
        if is_kept and fate_of(error) in ENDED:
            raise Fate(RACED) from error
        raise
    if is_last and (rest := sock.recv(CHUNK)):
        raise Fate("more than a reply", f"{rest[:80]!r}")
    return found


# -- many of them -------------------------------------------------------------------------------


class Visit(NamedTuple):
    """A request: when it began and was over, in ns; its fate, "good" or another; the reply's words.

    It is of the clock of `time.monotonic_ns`, which all processes of a machine share.
    """

    number: int
    came: int
    left: int
    fate: str
    words: Sequence[str] = ()


class Traffic:
    """Requests that are due at a fixed rate, whatever became of those before."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._visits: list[Visit] = []
        #: Requests without a fate yet: when they began.
        self._open: dict[int, int] = {}
        self._counts: Counter[str] = Counter()
        self._greenlets: set[Any] = set()
        self._is_over = False

    def arrive(
        self, place: Place, rate: float, is_http: bool, slow_each: int = 0, names_us: bool = False
    ) -> None:
        """Have *rate* clients come a second, from now on, with a request each.

        Args:
            slow_each: Each so manieth request is for what is slow.
            names_us: The first word of a good reply is the client's own ``address:port``.
        """
        ask_once = partial(self._ask, place, None, is_http, True, names_us)

        def come() -> None:
            began = monotonic_ns()
            for count in itertools.count(1):
                is_slow = slow_each and count % slow_each == 0
                self._spawn(ask_once, SLOW if is_slow else REPLY)
                _pause_until(began + int(count * 1e9 / rate))
                if self._is_over:
                    return

        self._spawn(come)

    def keep(
        self, place: Place, clients: int, pause: float, seed: int = 0, names_us: bool = False
    ) -> None:
        """Have *clients* keep HTTP connections, with a request each *pause* seconds in the mean.

        One that meets the end before it sends a request connects again.
        """

        def keep(chance: random.Random) -> None:
            sock = None
            due = monotonic_ns()
            while True:
                due += int(chance.uniform(0, 2 * pause) * 1e9)
                _pause_until(due)
                if sock is not None and (self._is_over or self._has_ended(sock)):
                    reset(sock)
                    sock = None
                if self._is_over:
                    return
                sock = self._ask(place, sock, True, False, names_us)

        for index in range(clients):
            self._spawn(keep, random.Random(seed + index))

    def come(self, count: int) -> int:
        """Wait until *count* requests are over, whatever their fates."""
        with gevent.Timeout(GIVE_UP_SECONDS, RuntimeError(f"no {count} requests come to an end")):
            while len(self._visits) < count:
                gevent.sleep(0.005)
        return len(self._visits)

    def depart(self) -> dict[str, Any]:
        """Have no more come; return the visits, and counts of what became of kept connections."""
        self._is_over = True
        # What broke here is no fate of a request: it ends the process.
        gevent.joinall([*self._greenlets], GIVE_UP_SECONDS + 1, raise_error=True)
        # None may be left out.
        stuck = [Visit(each, began, 0, "stuck") for each, began in self._open.items()]
        found = {"visits": self._visits + stuck, "counts": self._counts}
        self._forget()
        return found

    def _spawn(self, function: Callable[..., Any], *arguments: Any) -> None:
        greenlet = gevent.spawn(function, *arguments)
        self._greenlets.add(greenlet)
        # Those that break stay, for `depart`.
        greenlet.link_value(self._greenlets.discard)

    def _has_ended(self, sock: Any) -> bool:
        try:
            has_ended = not sock._sock.recv(1, plain.MSG_PEEK | plain.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            self._visits.append(Visit(0, 0, 0, f"{fate_of(error)} while idle"))
            return True
        self._counts["met the end"] += has_ended
        return has_ended

    def _ask(
        self,
        place: Place,
        sock: Any,
        is_http: bool,
        is_last: bool,
        names_us: bool,
        verb: str = REPLY,
    ) -> Any:
        """Ask once, on *sock*, or on a connection of its own; return it if it is good for more."""
        request = new_request(verb)
        # Not when it was due: it was held up by this process alone.
        began = self._open[request.number] = monotonic_ns()
        words: Sequence[str] = ()
        is_kept = sock is not None
        try:
            if sock is None:
                sock = connect(place)
                self._counts["connected"] += 1
            name = "{}:{}".format(*sock.getsockname()) if names_us else ""
            words, ends = ask(sock, request, is_http=is_http, is_last=is_last, is_kept=is_kept)
            fate = GOOD if not names_us or words[0] == name else "another's address"
            self._counts["told"] += ends
        except (OSError, Fate) as error:
            fate, ends = fate_of(error), True
        self._visits.append(Visit(request.number, began, monotonic_ns(), fate, words))
        del self._open[request.number]
        if (ends or is_last) and sock is not None:
            reset(sock)
            sock = None
        return sock


def _pause_until(due_ns: int) -> None:
    seconds = (due_ns - monotonic_ns()) / 1e9
    gevent.sleep(max(seconds, PAUSE_MIN_SECONDS) if seconds > 0 else 0)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return what so many percent of *values* are at most; ``None`` of none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


COMMANDS: Final = commands_of(Traffic())
