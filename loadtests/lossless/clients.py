"""What client processes do: many clients at once, and what became of each."""

from __future__ import annotations

import contextlib
import random
import socket as plain
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from time import monotonic, monotonic_ns
from typing import Any, Final, NamedTuple

import gevent
import gevent.pool
import gevent.ssl
from gevent import socket

from .words import BYE, NOTED, SLOW, STREAM_REQUEST, http_request, parse

__all__ = ["COMMANDS"]

#: When a client gives up, in seconds.
GIVE_UP_SECONDS: Final = 10.0

#: So many connect at a time, where many are to be there.
AT_A_TIME: Final = 50

#: A client that isn't greeted for so long won't be, before another leaves.
CALM_SECONDS: Final = 0.03

#: A shorter pause is this long: libuv knows no shorter one, and warns.
PAUSE_MIN_SECONDS: Final = 0.001

#: With SO_LINGER so, closing a connection resets it.
RESETS: Final = b"\1\0\0\0\0\0\0\0"


class Fate(Exception):  # noqa: N818  # a name for what became of it, and no error of ours
    """What became of a connection that had no good end."""


class Reply(NamedTuple):
    """A whole reply over HTTP."""

    body: bytes
    is_last: bool


def _connect(port: int | str) -> Any:
    """Connect to a port of this machine, or to the path of a Unix socket."""
    sock = socket.socket(socket.AF_UNIX if isinstance(port, str) else socket.AF_INET)
    sock.settimeout(GIVE_UP_SECONDS)
    try:
        sock.connect(port if isinstance(port, str) else ("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock


def _pause(seconds: float) -> None:
    gevent.sleep(max(seconds, PAUSE_MIN_SECONDS) if seconds > 0 else 0)


def _reset(sock: Any) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
    sock.close()


def _name(error: BaseException) -> str:
    names: dict[type[BaseException], str] = {
        ConnectionRefusedError: "refused",
        ConnectionResetError: "reset",
        BrokenPipeError: "reset",
        TimeoutError: "late",
        ssl.SSLEOFError: "ragged",
    }
    if isinstance(error, Fate):
        return str(error)
    return names.get(type(error), f"{type(error).__name__}: {error}")


def _read_all(sock: Any) -> bytes:
    parts = []
    while part := sock.recv(4096):
        parts.append(part)
    return b"".join(parts)


def _read_reply(sock: Any) -> Reply:
    """Read one reply; raise `Fate` if there is none, or a part of one."""
    data = b""
    while True:
        head, end, body = data.partition(b"\r\n\r\n")
        if end:
            lines = head.decode("latin-1").split("\r\n")
            lengths = [line for line in lines if line.lower().startswith("content-length:")]
            if " 200 " not in lines[0] or not lengths:
                raise Fate(lines[0])
            if len(body) >= int(lengths[0].partition(":")[2]):
                return Reply(body, BYE.strip() in lines)
        part = sock.recv(4096)
        if not part:
            raise Fate("broken" if data else "closed")
        data += part


# -- one connection, one reply ------------------------------------------------------------------


def _visit(port: int | str, *, is_http: bool) -> tuple[int, int]:
    """Connect, ask, and return generation and clone of the reply."""
    sock = _connect(port)
    try:
        sock.sendall(http_request("/", is_last=True) if is_http else STREAM_REQUEST)
        body = _read_all(sock)
    finally:
        _reset(sock)  # the server has closed it, and no TIME_WAIT is left
    if is_http:
        head, _, body = body.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise Fate("broken" if body else "closed")
    found = parse(body)
    if found is None:
        raise Fate("broken" if body else "closed")
    return found


class Arrivals:
    """Clients that come on a schedule, whether those before have been served or not."""

    def __init__(self) -> None:
        #: Of each: when it came and when it had its reply, in ns; its fate, "good" or another;
        #: generation and clone of its reply.
        self._visits: list[tuple[int, int, str, int, int]] = []
        self._here: set[Any] = set()
        self._come_count = 0
        self._comes: Any = None

    def start(self, port: int | str, rate: float, is_http: bool) -> None:
        """Have *rate* of them come a second, from now on."""
        self._visits, self._come_count = [], 0
        self._comes = gevent.spawn(self._come, port, rate, is_http)

    def come(self, count: int) -> int:
        """Wait until *count* have been served, or what became of them is known."""
        with gevent.Timeout(GIVE_UP_SECONDS):
            while len(self._visits) < count:
                gevent.sleep(0.005)
        return len(self._visits)

    def stop(self) -> list[tuple[int, int, str, int, int]]:
        """Have no more come, and return what became of them."""
        self._comes.kill()
        gevent.joinall([*self._here], GIVE_UP_SECONDS + 1)
        # None may be left out: a client without a visit has no good end.
        missing = self._come_count - len(self._visits)
        return self._visits + [(0, 0, "stuck", -1, -1)] * missing

    def _come(self, port: int | str, rate: float, is_http: bool) -> None:
        began = monotonic_ns()
        while True:
            due = began + int(self._come_count * 1e9 / rate)
            _pause((due - monotonic_ns()) / 1e9)
            greenlet = gevent.spawn(self._one, port, is_http)
            self._here.add(greenlet)
            greenlet.rawlink(self._here.discard)
            self._come_count += 1

    def _one(self, port: int | str, is_http: bool) -> None:
        fate, generation, clone = "good", -1, -1
        began = monotonic_ns()  # and not when it was due: it was held up by this process alone
        try:
            generation, clone = _visit(port, is_http=is_http)
        except (OSError, Fate) as error:
            fate = _name(error)
        self._visits.append((began, monotonic_ns(), fate, generation, clone))


# -- connections that are kept ------------------------------------------------------------------


class Kept:
    """HTTP clients that keep their connections, and send a request now and then.

    One that gets the end before it sends a request connects again. One that has sent a request
    when the end was on its way can't know: it gets no byte of a reply. Only the server knows if
    that request was lost, or never began.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._raced: list[str] = []
        self._failures: Counter[str] = Counter()
        self._clients: list[Any] = []
        self._is_over = False

    def start(self, port: int, clients: int, pause: float, seed: int) -> None:
        """Have so many, which pause for so many seconds between requests, in the mean."""
        self._counts, self._raced, self._failures = Counter(), [], Counter()
        self._is_over = False
        self._clients = [
            gevent.spawn(self._one, port, pause, index, random.Random(seed + index))
            for index in range(clients)
        ]

    def stop(self) -> dict[str, Any]:
        """Have each finish its request; return what was counted."""
        self._is_over = True
        gevent.joinall(self._clients, GIVE_UP_SECONDS + 1)
        left = sum(not each.ready() for each in self._clients)
        broken = sum(each.ready() and not each.successful() for each in self._clients)
        return {
            **{name: self._counts[name] for name in ("good", "connected", "told", "met the end")},
            "failures": {**self._failures, **({"stuck": left} if left else {}),
                         **({"client broke": broken} if broken else {})},
            "raced": self._raced,
        }  # fmt: skip

    def _one(self, port: int, pause: float, index: int, chance: random.Random) -> None:
        sock = None
        number = 0
        try:
            while not self._is_over:
                if sock is None:
                    try:
                        sock = _connect(port)
                    except OSError as error:
                        self._failures[_name(error)] += 1
                        gevent.sleep(pause)
                        continue
                    self._counts["connected"] += 1
                _pause(chance.uniform(0, 2 * pause))
                if self._has_ended(sock):
                    self._counts["met the end"] += 1
                    is_kept = False
                else:
                    number += 1
                    is_kept = self._ask(sock, f"{NOTED}{index}-{number}")
                if not is_kept:
                    _reset(sock)
                    sock = None
        finally:
            if sock is not None:
                _reset(sock)

    def _has_ended(self, sock: Any) -> bool:
        try:
            return not sock._sock.recv(1, plain.MSG_PEEK | plain.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            self._failures[f"idle, and {_name(error)}"] += 1
            return True

    def _ask(self, sock: Any, path: str) -> bool:
        # Whether the connection is to be kept.
        try:
            sock.sendall(http_request(path, is_last=False))
            reply = _read_reply(sock)
        except (OSError, Fate) as error:
            name = _name(error)
            if name in ("closed", "reset"):
                self._raced.append(path)
            else:
                self._failures[name] += 1
            return False
        self._counts["good"] += 1
        self._counts["told"] += reply.is_last
        return not reply.is_last


# -- connections that a server ends -------------------------------------------------------------


class Held:
    """HTTP connections, plain or TLS, which are there when their server ends."""

    def __init__(self) -> None:
        self._fates: dict[str, list[Any]] = {"idle": [], "slow": []}
        self._last_ns = 0

    def open(self, port: int, idle: int, slow: int, is_tls: bool) -> list[int]:
        """Connect: *idle* that have had a reply, *slow* that wait for one. Return how many are."""
        self._last_ns = 0
        context = None
        if is_tls:
            context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE

        def connect(_index: int) -> Any:
            sock = _connect(port)
            if context is not None:
                sock = context.wrap_socket(sock, suppress_ragged_eofs=False)
            # For its handler is at work when its server ends.
            sock.sendall(http_request("/", is_last=False))
            _read_reply(sock)
            return sock

        socks = gevent.pool.Pool(AT_A_TIME).map(connect, range(idle + slow))
        for sock in socks[idle:]:
            sock.sendall(http_request(SLOW, is_last=False))
        self._fates["idle"] = [gevent.spawn(self._wait_for_end, sock) for sock in socks[:idle]]
        self._fates["slow"] = [gevent.spawn(self._wait_for_reply, sock) for sock in socks[idle:]]
        return [len(each) for each in self._fates.values()]

    def fates(self) -> dict[str, Any]:
        """Return what became of them, and when the last had its reply."""
        counts = {}
        for name, greenlets in self._fates.items():
            gevent.joinall(greenlets, GIVE_UP_SECONDS)
            counts[name] = Counter(each.value or "stuck" for each in greenlets)
        return {**counts, "last_reply": self._last_ns}

    def _wait_for_end(self, sock: Any) -> str:
        with contextlib.closing(sock):
            try:
                return "something" if sock.recv(1) else "closed"
            except OSError as error:
                return _name(error)

    def _wait_for_reply(self, sock: Any) -> str:
        with contextlib.closing(sock):
            try:
                reply = _read_reply(sock)
            except (OSError, Fate) as error:
                return _name(error)
            self._last_ns = monotonic_ns()
            fate = "good" if parse(reply.body) is not None else "broken"
            return f"{fate}, and told" if reply.is_last else fate


# -- clients that are no good -------------------------------------------------------------------


def reset(port: int, resets: int, good: int, is_http: bool, seconds: float) -> dict[str, int]:
    """Have *resets* clients reset their connections, among *good* ones; return their fates.

    Some reset at once, which is mostly before they are accepted, some with their request sent,
    some after *seconds* in which the handler has read it, or waits for it.
    """
    fates: Counter[str] = Counter()
    request = http_request("/", is_last=True) if is_http else STREAM_REQUEST

    def be_bad(index: int) -> None:
        try:
            sock = _connect(port)
        except OSError as error:
            fates[f"to reset: {_name(error)}"] += 1
            return
        try:
            if index & 1:
                sock.sendall(request)
            if index & 2:
                gevent.sleep(seconds)
        except OSError as error:
            fates[f"to reset: {_name(error)}"] += 1
        finally:
            _reset(sock)

    def be_good(_index: int) -> None:
        try:
            _visit(port, is_http=is_http)
        except (OSError, Fate) as error:
            fates[_name(error)] += 1
        else:
            fates["good"] += 1

    pool = gevent.pool.Pool(AT_A_TIME)
    done = 0
    for index in range(resets):
        pool.spawn(be_bad, index)
        while done * resets < index * good:
            pool.spawn(be_good, done)
            done += 1
    for number in range(done, good):
        pool.spawn(be_good, number)
    pool.join()
    return fates


class Silent:
    """Clients that connect, and say nothing."""

    def __init__(self) -> None:
        self._waits: list[Any] = []
        self._last = 0.0

    def connect(self, port: int, count: int) -> int:
        """Have *count* of them connect."""

        def connect(_index: int) -> tuple[Any, float]:
            return _connect(port), monotonic()

        connected = gevent.pool.Pool(AT_A_TIME).map(connect, range(count))
        self._waits = [gevent.spawn(self._wait, *each) for each in connected]
        return len(connected)

    def waits(self, at_most: float) -> dict[str, Any]:
        """Return after how long each was gone, in seconds; how many were not, after *at_most*.

        And when the last one went, on `time.monotonic`'s clock, which is that of all processes.
        """
        gevent.joinall(self._waits, at_most)
        ended = [each.value for each in self._waits if each.value is not None]
        left = [each for each in self._waits if each.value is None]
        gevent.killall(left)
        return {"waits": ended, "left": len(left), "last": self._last}

    def _wait(self, sock: Any, began: float) -> float:
        sock.settimeout(None)
        with contextlib.closing(sock):
            try:
                sock.recv(1)
            except OSError:
                pass  # it is gone, one way or the other
            self._last = monotonic()
            return self._last - began


def exhaust(port: int, clients: int, at_least: int) -> dict[str, float | None]:
    """Connect until the server is out of descriptors, leave, and see when it is back.

    Returns how many it has greeted before it was out, *at_least* so many, and
    after how many seconds another client was greeted: ``None``, if none was.
    """
    socks = [_connect(port) for _ in range(clients)]
    greetings = [gevent.spawn(sock.recv, 1) for sock in socks]
    greeted = -1
    give_up = monotonic() + GIVE_UP_SECONDS
    # Until no more of them are greeted: each that is takes the server a fraction of a ms.
    while greeted != (greeted := sum(each.ready() for each in greetings)) or (
        greeted < at_least and monotonic() < give_up
    ):
        gevent.sleep(CALM_SECONDS)
    gevent.killall(greetings)
    for sock in socks:
        sock.close()
    began = monotonic()
    seconds = None
    try:
        with contextlib.closing(_connect(port)) as sock:
            if sock.recv(1):
                seconds = monotonic() - began
    except OSError:
        pass  # it is not back
    return {"greeted": greeted, "seconds": seconds}


_arrivals: Final = Arrivals()
_kept: Final = Kept()
_held: Final = Held()
_silent: Final = Silent()

COMMANDS: Final[Mapping[str, Callable[..., Any]]] = {
    "arrive": _arrivals.start,
    "come": _arrivals.come,
    "depart": _arrivals.stop,
    "keep": _kept.start,
    "keep_no_more": _kept.stop,
    "hold": _held.open,
    "fates": _held.fates,
    "reset": reset,
    "be_silent": _silent.connect,
    "waits": _silent.waits,
    "exhaust": exhaust,
}
