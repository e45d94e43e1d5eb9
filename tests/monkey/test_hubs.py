"""What handlers of a patched program may share across hubs: the table of ``docs/legacy.md``."""

from __future__ import annotations

import subprocess
import sys

#: 60 clients at once, several times, of a server whose 16 clones live on 4 hubs. The program is a
#: patched one: its locks, queues and threads are gevent's.
PROGRAM = """
import glb.monkey

glb.monkey.patch_all(clones=16, hubs=4)

import contextvars
import logging
import queue
import socket
import threading
from time import sleep

import gevent
from gevent.exceptions import InvalidThreadUseError
from gevent.pool import Pool
from gevent.server import StreamServer

CLIENTS, ROUNDS = 60, 4
lock, count = threading.Lock(), 0
store = queue.SimpleQueue()
local, variable = threading.local(), contextvars.ContextVar("variable", default=None)
logged, threads = [], set()
native_ident = glb.monkey.get_original("_thread", "get_ident")
event = threading.Event()
home = native_ident()


class Handler(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())


logging.getLogger("app").addHandler(Handler())


def handle(sock, address):
    global count
    what, number = sock.recv(100).decode().split()
    sock.sendall(str(globals()[what](int(number))).encode())


def shares(number):
    global count
    threads.add(native_ident())
    with lock:
        count += 1
    assert getattr(local, "number", None) is None and variable.get() is None
    local.number = number
    variable.set(number)
    store.put(number)
    logging.getLogger("app").warning("%d", number)
    own = []
    thread = threading.Thread(target=own.append, args=(number,))
    thread.start()
    thread.join()
    back, done = queue.Queue(), threading.Event()
    gevent.spawn(lambda: (back.put(own.pop()), done.set()))
    assert done.wait(10)
    sleep(0.001)
    assert (local.number, variable.get()) == (number, number)
    store.get(timeout=10)
    return back.get(timeout=10)


def waits(number):
    where = "here" if native_ident() == home else "elsewhere"
    try:
        return f"{event.wait(0.001)} {where}"
    except InvalidThreadUseError:
        return f"refused {where}"


def ask(what, number):
    with socket.create_connection(server.address, timeout=20) as client:
        client.sendall(f"{what} {number}".encode())
        return client.recv(100).decode()


with StreamServer(("127.0.0.1", 0), handle) as server:
    server.start()
    assert (server.hubs, server.clones) == (4, 16)
    for _ in range(ROUNDS):
        jobs = [gevent.spawn(ask, "shares", number) for number in range(CLIENTS)]
        gevent.joinall(jobs, timeout=30)
        assert [job.value for job in jobs] == [str(number) for number in range(CLIENTS)]
    assert count == CLIENTS * ROUNDS
    assert store.empty()
    assert sorted(logged, key=int) == sorted([*map(str, range(CLIENTS))] * ROUNDS, key=int)
    assert len(threads) == 4

    # A greenlet waits on the first hub: those of the others get an error, and none hangs.
    waiting = gevent.spawn(event.wait, 20)
    gevent.sleep(0)
    told = [ask("waits", number) for number in range(16)]
    assert {*told} == {"False here", "refused elsewhere"}, told
    event.set()
    assert waiting.get(timeout=10)

in_pool = StreamServer(("127.0.0.1", 0), handle, spawn=Pool(5))
assert (in_pool.hubs, in_pool.clones) == (1, 16)
in_pool.close()
print("done")
"""


def test_what_is_safe_across_hubs_and_what_is_refused() -> None:
    """Locks held for a moment, locals, queues as stores, logging, and what a handler makes."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    assert (done.returncode, done.stdout) == (0, "done\n")
