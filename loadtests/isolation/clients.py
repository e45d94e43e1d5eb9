"""The clients' process: ``python -m loadtests.isolation.clients PORT COUNT AT_ONCE SEED``.

*COUNT* clients connect to *PORT*, up to *AT_ONCE* at a time and in bursts, so that a wake-up of the
server has several. Each answers a question mark with an ``x``, until the server closes. Printed is
how many were closed with an error. The exit status is 1 if the server does nothing for a while.
"""

from __future__ import annotations

import random
import select
import socket
import sys
from collections import Counter
from typing import Final

#: No client of these waits for longer than a few milliseconds, but machines may be busy.
PATIENCE_SECONDS: Final = 30.0


def run(port: int, count: int, at_once: int, seed: str) -> Counter[str]:
    """Return how the connections ended.

    Raises:
        TimeoutError: The server did nothing for `PATIENCE_SECONDS`.
    """
    choose = random.Random(seed)
    ended: Counter[str] = Counter()
    clients: dict[int, socket.socket] = {}
    poll = select.epoll()
    begun, burst = 0, 1
    while sum(ended.values()) < count:
        if len(clients) + burst <= at_once:
            for _ in range(min(burst, count - begun)):
                client = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
                clients[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
                begun += 1
            burst = choose.choice((1, 1, 2, 5, at_once // 2, at_once))
        ready = poll.poll(PATIENCE_SECONDS)
        if not ready:
            raise TimeoutError(f"the server does nothing, {len(clients)} clients wait")
        for number, _ in ready:
            try:
                data = clients[number].recv(100)
                clients[number].sendall(b"x" * data.count(b"?"))
                how = "in order"
            except ConnectionError:  # its handler has ended before the answer came
                data, how = b"", "reset"
            if not data:
                poll.unregister(number)
                clients.pop(number).close()
                ended[how] += 1
    poll.close()
    return ended


def main(port: str, count: str, at_once: str, seed: str) -> None:
    ended = run(int(port), int(count), int(at_once), seed)
    print(", ".join(f"{how}: {times}" for how, times in sorted(ended.items())))


if __name__ == "__main__":
    main(*sys.argv[1:])
