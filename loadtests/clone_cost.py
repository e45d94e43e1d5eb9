"""What does a connection cost with 256 clones, beside 1, and beside plain gevent?

    python -m loadtests.clone_cost [--clones 1,4,256] [--connections 4000] [--rounds 7]

For each number of clones a server process accepts, replies with two bytes and closes. The
rounds are interleaved: each server has its turn in each, in changing order, so that a noisy
machine is noisy for all of them. Printed is the CPU that the *server's* process used for a
connection: medians over the rounds, and the ratio to the first server of the list.

The promise: 256 clones cost at most 1.1 times what 1 costs. Exit status 0 if it holds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time

import gevent
from gevent import socket

PROMISE = 1.1

SERVER = """
import sys, gevent
kind, clones = sys.argv[1], int(sys.argv[2])
def handle(sock, peer):
    sock.sendall(b"ok")
if kind == "glb":
    from glb.server import StreamServer
    server = StreamServer(("127.0.0.1", 0), handle, clones=clones)
else:
    from gevent.server import StreamServer
    server = StreamServer(("127.0.0.1", 0), handle, backlog=4096)
server.start()
print(server.server_port, flush=True)
gevent.get_hub().threadpool.spawn(sys.stdin.read).get()
"""


class Server:
    """A server process, and what its CPU clock said."""

    def __init__(self, clones: int | None) -> None:
        self.name = "plain gevent" if clones is None else f"glb, {clones} clones"
        kind = "gevent" if clones is None else "glb"
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, kind, str(clones or 1)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = ("127.0.0.1", int(self._process.stdout.readline()))
        self.microseconds: list[float] = []

    def cpu_seconds(self) -> float:
        """CPU time of the server process: see clock_getcpuclockid(3)."""
        return time.clock_gettime((~self._process.pid << 3) | 2)

    def load(self, connections: int, concurrency: int) -> None:
        """Open *connections*, so many at a time, and note what one cost the server."""
        left = iter(range(connections))

        def client() -> None:
            for _ in left:
                with socket.create_connection(self.address) as sock:
                    while sock.recv(16):
                        pass

        before = self.cpu_seconds()
        gevent.joinall([gevent.spawn(client) for _ in range(concurrency)], raise_error=True)
        self.microseconds.append((self.cpu_seconds() - before) / connections * 1e6)

    def stop(self) -> None:
        self._process.communicate("", timeout=10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clones", default="1,4,256")
    parser.add_argument("--connections", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--concurrency", type=int, default=16)
    options = parser.parse_args()
    numbers = [int(text) for text in options.clones.split(",")]
    servers = [Server(number) for number in numbers]
    servers.append(Server(None))
    try:
        for server in servers:
            server.load(options.connections // 4, options.concurrency)  # warm-up
            server.microseconds.clear()
        for _ in range(options.rounds):
            for server in random.sample(servers, len(servers)):
                server.load(options.connections, options.concurrency)
    finally:
        for server in servers:
            server.stop()
    base = statistics.median(servers[0].microseconds)
    print(
        f"{options.rounds} rounds of {options.connections} connections, "
        f"{options.concurrency} at a time; server CPU a connection, median (min to max)"
    )
    for server in servers:
        median = statistics.median(server.microseconds)
        print(
            f"{server.name:18} {median:7.1f} us ({min(server.microseconds):.1f} to "
            f"{max(server.microseconds):.1f}), {median / base:.2f} of {servers[0].name}"
        )
    worst = max(statistics.median(server.microseconds) / base for server in servers[:-1])
    print(f"promised: at most {PROMISE} times {servers[0].name}; measured: {worst:.2f}")
    return 0 if worst <= PROMISE else 1


if __name__ == "__main__":
    sys.exit(main())
