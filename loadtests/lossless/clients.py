"""Clients that reset, that say nothing, that stay: a worker's commands, beside those of traffic."""

from __future__ import annotations

import contextlib
import ssl
from collections import Counter
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

import gevent.event
import gevent.pool
import gevent.ssl

from loadtests.frame import traffic
from loadtests.frame.traffic import GIVE_UP_SECONDS, Fate, ask, connect, fate_of, new_request
from loadtests.frame.worker import commands_of

#: So many connect at a time, where many are to be there.
AT_A_TIME: Final = 50

#: A client that isn't greeted for so long won't be, before another leaves.
CALM_SECONDS: Final = 0.03


class Clients(traffic.Traffic):
    """What clients do; each is a command."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Any] = []
        #: When each client of a crowd was greeted.
        self._greeted: list[float] = []
        self._crowd: list[Any] = []
        self._leave = gevent.event.Event()

    def reset_many(self, place: int, resets: int, is_http: bool, seconds: float) -> Counter[str]:
        """Have *resets* clients reset their connections; return the fates of those that couldn't.

        Some reset at once, which is mostly before they are accepted, some with their request sent,
        some after *seconds* in which the handler has read it, or waits for it.
        """
        fates: Counter[str] = Counter()

        def come(index: int) -> None:
            sock = None
            try:
                sock = connect(place)
                if index & 1:
                    sock.sendall(new_request().encode(is_http=is_http, is_last=True))
                if index & 2:
                    gevent.sleep(seconds)
            except OSError as error:
                fates[fate_of(error)] += 1
            if sock is not None:
                traffic.reset(sock)

        pool = gevent.pool.Pool(AT_A_TIME)
        for index in range(resets):
            pool.spawn(come, index)
        pool.join()
        return fates

    def hold(self, place: int, count: int, asks: Sequence[str] = (), is_tls: bool = False) -> None:
        """Connect *count* of them, which wait for the reply to the last they ask, or for the end.

        *asks* are verbs, at most two, of requests over HTTP. The first has its reply at once, so
        that a handler is at work when its server ends; without any the client is silent.
        """
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE

        def connect_one(_index: int) -> tuple[Any, float]:
            sock = connect(place)
            if is_tls:
                sock = context.wrap_socket(sock, suppress_ragged_eofs=False)
            for verb in asks[:1]:
                ask(sock, new_request(verb), is_http=True)
            return sock, monotonic()

        for each in gevent.pool.Pool(AT_A_TIME).map(connect_one, range(count)):
            self._held.append(gevent.spawn(self._wait, *each, asks[1:]))

    def _wait(self, sock: Any, began: float, asks: Sequence[str]) -> tuple[str, float, float]:
        sock.settimeout(None)
        with contextlib.closing(sock):
            try:
                if asks:
                    found = ask(sock, new_request(asks[0]), is_http=True)
                    fate = "good, and told" if found.is_last else "good"
                else:
                    fate = "something" if sock.recv(1) else "closed"
            except (OSError, Fate) as error:
                fate = fate_of(error)
            now = monotonic()
            return fate, now - began, now

    def let_go(self, at_most: float) -> list[tuple[str, float, float]]:
        """Return of each its fate, after how many seconds, and when; "stuck" after *at_most*."""
        greenlets, self._held = self._held, []
        gevent.joinall(greenlets, at_most)
        fates = [each.value or ("stuck", at_most, monotonic()) for each in greenlets]
        gevent.killall(greenlets)
        return fates

    def crowd(self, place: int, clients: int, least: int) -> int:
        """Have so many connect; return how many are greeted: *least*, until no more of them are."""
        self._greeted = []
        self._leave.clear()
        self._crowd = [gevent.spawn(self._come, connect(place)) for _ in range(clients)]
        give_up = monotonic() + GIVE_UP_SECONDS
        before = -1
        while before != (now := len(self._greeted)) or (now < least and monotonic() < give_up):
            before = now
            gevent.sleep(CALM_SECONDS)
        return before

    def leave(self) -> tuple[int, float]:
        """Have them leave, and the others when they are greeted.

        Returns:
            How many were greeted in all, and after how many seconds the next one was.
        """
        began, before = monotonic(), len(self._greeted)
        self._leave.set()
        gevent.joinall(self._crowd)
        seconds = self._greeted[before] - began if len(self._greeted) > before else 0.0
        return len(self._greeted), seconds

    def _come(self, sock: Any) -> None:
        with contextlib.closing(sock), contextlib.suppress(OSError):
            if sock.recv(1):
                self._greeted.append(monotonic())
                self._leave.wait()


COMMANDS: Final = commands_of(Clients())
