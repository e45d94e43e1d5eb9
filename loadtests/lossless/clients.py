"""What workers of clients do beside `Traffic`: they reset, wait, and are held."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

import gevent
import gevent.ssl
from gevent.pool import Pool

from loadtests.frame.traffic import (
    Fate,
    Traffic,
    ask,
    connect,
    fate_of,
    new_request,
    reset,
)
from loadtests.frame.worker import commands_of

#: So many connect at a time, where many are to be there.
AT_A_TIME: Final = 50


class Clients(Traffic):
    """What clients do; each is a command."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[Any] = []
        #: Those that have met their end stay, until all are let go.
        self._ended: list[Any] = []
        self._may_stay = True

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
                reset(sock)

        pool = Pool(AT_A_TIME)
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

        for each in Pool(AT_A_TIME).map(connect_one, range(count)):
            self._held.append(gevent.spawn(self._wait, *each, asks[1:]))

    def _wait(self, sock: Any, began: float, asks: Sequence[str]) -> tuple[str, float, float]:
        sock.settimeout(None)
        try:
            if asks:
                found = ask(sock, new_request(asks[0]), is_http=True)
                fate = "good, and told" if found.is_last else "good"
            else:
                fate = "greeted" if sock.recv(1) else "closed"
        except (OSError, Fate) as error:
            fate = fate_of(error)
        now = monotonic()
        self._ended.append(sock)
        if not self._may_stay:
            sock.close()
        return fate, now - began, now

    def ended(self) -> int:
        """Return how many have met their end: a reply, a greeting, or the server's."""
        return len(self._ended)

    def let_go(self, at_most: float) -> list[tuple[str, float, float]]:
        """Have them leave, and the others at their ends; "stuck" after *at_most* seconds.

        Returns:
            The fate of each, after how many seconds, and when, by `time.monotonic`.
        """
        self._may_stay = False
        for sock in self._ended:
            sock.close()
        gevent.joinall(self._held, at_most)
        fates = [each.value or ("stuck", at_most, monotonic()) for each in self._held]
        gevent.killall(self._held)
        self._held, self._ended, self._may_stay = [], [], True
        return fates


COMMANDS: Final = commands_of(Clients())
