"""A child of `os.fork` that ends its copy of a server leaves the parent's server as it was."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ..support.bounds import ENDLESS_SECONDS

pytestmark = pytest.mark.process

#: Closes or stops a copy in a child, several times over, and asks the parent's server after each.
PROGRAM = """
import os, sys
import gevent
from gevent import socket
from glb.server import StreamServer

action, how, hubs = sys.argv[1], sys.argv[2], int(sys.argv[3])
import gevent.os
fork = {"os": os.fork, "gevent": gevent.os.fork_gevent}[how]
server = StreamServer(
    ("127.0.0.1", 0), lambda sock, _: sock.sendall(b"hi"), clones=2, hubs=hubs, patience=30
)
server.start()

def ask():
    with gevent.Timeout(10), socket.create_connection(server.address) as client:
        assert client.recv(10) == b"hi"

for _ in range(3):
    [ask() for _ in range(4)]
    pid = fork()
    if pid == 0:
        getattr(server, action)()
        gevent.sleep(0.001)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    [ask() for _ in range(4)]
server.stop()
print("served")
"""


@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
@pytest.mark.parametrize("hubs", [1, 2])
@pytest.mark.parametrize("how", ["os", "gevent"])
@pytest.mark.parametrize("action", ["close", "stop"])
def test_a_child_that_ends_its_copy_leaves_the_parents(
    action: str, how: str, hubs: int, loop: str
) -> None:
    """On libuv a plain `os.fork` leaves parent and child with one epoll set; gevent's is deaf."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, action, how, str(hubs)],
        env={**os.environ, "GEVENT_LOOP": loop},
        capture_output=True,
        text=True,
        timeout=ENDLESS_SECONDS,
        check=False,
    )
    assert (result.stdout, result.returncode) == ("served\n", 0), result.stderr
