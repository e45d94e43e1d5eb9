"""What happens when the process is out of descriptors for two seconds, with 8 clones?

    python -m loadtests.out_of_descriptors [--seconds 2] [--clients 50]

A server process takes every descriptor it may have, and gives them back after a while;
meanwhile clients of another process connect. Printed are the log lines the server wrote,
the CPU that it used while it could not accept, and how many clients were served in the end;
and beside it the same for plain gevent.

The promise: at most 3 log lines, under 5 % of a core, every client served. Exit status 0 if
it holds.
"""

from __future__ import annotations

import argparse
import json
import sys

import gevent
from gevent import socket

from loadtests.frame.process import Process

ANSWER_SECONDS = 10.0

SERVER = """
import json, os, resource, sys, time
import gevent
seconds, clones = float(sys.argv[2]), 8
def handle(sock, peer):
    sock.sendall(b"ok")
if sys.argv[1] == "glb":
    from glb.server import StreamServer
    servers = [StreamServer(("127.0.0.1", 0), handle, clones=clones)]
    servers[0].start()
else:
    from gevent.server import StreamServer
    first = StreamServer(("127.0.0.1", 0), handle, backlog=4096)
    first.start()
    servers = [first]
    for _ in range(clones - 1):
        copy = gevent.socket.socket(fileno=os.dup(first.socket.fileno()))
        servers.append(StreamServer(copy, handle))
        servers[-1].start()
gevent.sleep(0)
print(servers[0].server_port, flush=True)
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
taken = []
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
print("taken", flush=True)
before = time.process_time()
gevent.sleep(seconds)
used = time.process_time() - before
for descriptor in taken:
    os.close(descriptor)
print(json.dumps({"core": used / seconds}), flush=True)
gevent.get_hub().threadpool.spawn(sys.stdin.read).get()
for server in servers:
    server.stop()
"""


def run(kind: str, seconds: float, clients: int) -> dict[str, float]:
    with Process([sys.executable, "-c", SERVER, kind, str(seconds)]) as server:
        port = int(server.line(ANSWER_SECONDS))
        server.tell("go")
        assert server.line(ANSWER_SECONDS) == "taken"

        def client() -> bool:
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.settimeout(seconds + 10)
                return bool(sock.recv(16) == b"ok")

        greenlets = [gevent.spawn(client) for _ in range(clients)]
        gevent.joinall(greenlets)
        core = json.loads(server.line(seconds + ANSWER_SECONDS))["core"]
        server.status(ANSWER_SECONDS)
        return {
            "lines": len(server.complaints()),
            "core": core,
            "served": sum(greenlet.value is True for greenlet in greenlets),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--clients", type=int, default=50)
    options = parser.parse_args()
    for kind in ("gevent", "glb"):
        found = run(kind, options.seconds, options.clients)
        print(
            f"{kind:7} {found['lines']:4.0f} log lines, {found['core']:6.2%} of a core, "
            f"{found['served']:.0f} of {options.clients} clients served"
        )
    print("promised: at most 3 log lines, under 5 % of a core, every client served")
    kept = found["lines"] <= 3 and found["core"] < 0.05 and found["served"] == options.clients
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
