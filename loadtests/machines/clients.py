"""A host's load: half of the requests on connections of their own, half on kept ones.

    python -m loadtests.machines.clients ADDRESS RATE

Requests are due at a fixed rate, whatever became of those before. With the first good reply it
writes ``ready``. When standard input ends, it waits for the replies that are missing, and writes a
line of JSON: how many requests had which fate, and each good reply: when it came, in seconds of the
monotonic clock, and from which process.
"""

# ruff: noqa: E402  # patched before anything else is imported
from gevent import monkey

monkey.patch_all()

import http.client
import json
import sys
import time
from collections import Counter
from typing import Any, Final

import gevent
import gevent.os

#: So many connections are kept.
KEPT: Final = 10

#: Every so manieth request takes half a second, and is in flight when its host is stopped.
SLOW: Final = 50

#: How long a reply may take, in seconds, and all that are missing at the end.
REPLY_SECONDS: Final = 20.0


class Clients:
    """The clients of one host."""

    def __init__(self, address: str, rate: float) -> None:
        self._address: Final = address
        self._rate: Final = rate
        self._fates: Final[Counter[str]] = Counter()
        self._replies: Final[list[tuple[float, str, int]]] = []
        self._asked = 0
        self._is_over = False

    def run(self) -> dict[str, Any]:
        began = time.monotonic()
        each = self._rate / 2
        loops = [gevent.spawn(self._at, each, self._come)]
        loops += [gevent.spawn(self._keep, each / KEPT) for _ in range(KEPT)]
        with gevent.Timeout(REPLY_SECONDS, RuntimeError(f"no good reply: {self._fates}")):
            while not self._replies:
                gevent.sleep(0.01)
        print("ready", flush=True)
        while gevent.os.tp_read(0, 100):
            pass
        self._is_over = True
        seconds = time.monotonic() - began
        gevent.joinall(loops)
        with gevent.Timeout(REPLY_SECONDS, False):
            while self._fates.total() < self._asked:
                gevent.sleep(0.01)
        if missing := self._asked - self._fates.total():
            self._fates["stuck"] = missing
        return {"fates": self._fates, "seconds": seconds, "replies": self._replies}

    def _at(self, rate: float, ask: Any) -> None:
        due = time.monotonic()
        while not self._is_over:
            ask()
            due += 1 / rate
            gevent.sleep(max(0.0, due - time.monotonic()))

    def _come(self) -> None:
        self._asked += 1
        path = "/slow" if self._asked % SLOW == 0 else "/"
        gevent.spawn(self._ask, self._connection(), path, {"Connection": "close"})

    def _keep(self, rate: float) -> None:
        client = self._connection()

        def ask() -> None:
            self._asked += 1
            self._ask(client, "/", {})

        self._at(rate, ask)
        client.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, timeout=REPLY_SECONDS)

    def _ask(self, client: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> None:
        try:
            if client.sock is None:
                client.connect()
            host, port = client.sock.getsockname()
            client.request("GET", path, headers=headers)
            reply = client.getresponse()
            body = reply.read().decode()
        except (OSError, http.client.HTTPException) as error:
            client.close()
            self._fates[type(error).__name__] += 1
            return
        if reply.status != 200:
            self._fates[f"{reply.status} {body.splitlines()[:1]}"] += 1
            return
        seen, server, process = body.split()
        if seen != f"{host}:{port}":
            self._fates["another's address"] += 1
            return
        self._fates["good"] += 1
        self._replies.append((round(time.monotonic(), 4), server, int(process)))


if __name__ == "__main__":
    print(json.dumps(Clients(sys.argv[1], float(sys.argv[2])).run()), flush=True)
