"""How long does a small reply take on a kept-alive HTTP connection, beside plain gevent?

    python -m loadtests.small_replies [--requests 200] [--rounds 5]

gevent's WSGI server sends head and body apart. On a connection that is used again, Nagle's
algorithm holds the body back until the client has acknowledged the head, which a client
that delays its acknowledgements does after 40 ms. Printed is the time from request to whole
reply: the median over all requests, in interleaved rounds, and its ratio to plain gevent's.

The promise: at most 1/20 of plain gevent's. Exit status 0 if it holds.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time

SERVER = """
import sys, gevent
if sys.argv[1] == "glb":
    from glb.pywsgi import WSGIServer
else:
    from gevent.pywsgi import WSGIServer
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
server = WSGIServer(("127.0.0.1", 0), application, log=None)
server.start()
print(server.server_port, flush=True)
gevent.get_hub().threadpool.spawn(sys.stdin.read).get()
"""

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def measure(port: int, requests: int) -> list[float]:
    """Return the microseconds of each of *requests* on one connection."""
    taken = []
    with socket.create_connection(("127.0.0.1", port)) as client:
        for _ in range(requests):
            before = time.perf_counter()
            client.sendall(REQUEST)
            reply = b""
            while not reply.endswith(b"\r\n\r\nok"):
                reply += client.recv(4096)
            taken.append((time.perf_counter() - before) * 1e6)
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    kinds = ("gevent", "glb")
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", SERVER, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for kind in kinds
    ]
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        ports = [int(server.stdout.readline()) for server in servers if server.stdout]
        for _ in range(options.rounds):
            for kind, port in zip(kinds, ports, strict=True):
                taken[kind] += measure(port, options.requests)
    finally:
        for server in servers:
            server.communicate("", timeout=10)
    medians = {kind: statistics.median(times) for kind, times in taken.items()}
    for kind, median in medians.items():
        print(f"{kind:7} {median:9.0f} us, {median / medians['gevent']:.4f} of plain gevent")
    ratio = medians["glb"] / medians["gevent"]
    print(f"promised: at most {1 / 20} of plain gevent's; measured: {ratio:.4f}")
    return 0 if ratio <= 1 / 20 else 1


if __name__ == "__main__":
    sys.exit(main())
