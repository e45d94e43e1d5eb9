"""Run as a program: an exception strikes at one line of glb's after another, while a server serves.

``python -m tests.support.struck KIND HUBS STEP``: for each *STEP*-th line that glb runs for a few
connections, a server of its own. The line raises, as a signal handler might there; then the server
is to serve new clients, to have counted right, to hold no descriptor and to stop. What is not so is
printed.
"""

from __future__ import annotations

import _socket
import gc
import linecache
import os
import queue
import sys
import threading
import time
from typing import Any

import gevent

import glb
import glb.hubs.guard
from glb.accept.registry import REGISTRY
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

HOME = os.path.dirname(glb.__file__) + os.sep
LOCAL = ("127.0.0.1", 0)
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

#: By kind: the server's arguments.
KINDS: dict[str, dict[str, Any]] = {
    "stream": {},
    "waits": {},
    "http": {},
    "pool": {"spawn": 2},
    "full": {"max_connections": 2},
    "full clones": {"max_connections_per_clone": 1},
    "rate": {"accept_rate": 400},
    "accept loops": {},
}


class StruckError(Exception):
    """What strikes."""


class Striker:
    """A trace function that raises at the *number*-th line of glb's in this thread."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.struck = ""

    def __call__(self, frame: Any, event: str, _arg: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(HOME):
            return None
        text = linecache.getline(code.co_filename, frame.f_lineno).strip()
        # At the end of a `with` a tracer strikes where an interpreter looks for no signals: before
        # the lock is released, and out of reach of what would release it.
        if event in ("line", "call") and not text.startswith("with "):
            self.left -= 1
            if self.left == 0:
                name = code.co_filename[len(HOME) :]
                self.struck = f"{name}:{frame.f_lineno} in {code.co_name}: {text}"
                raise StruckError(self.struck)
        return self


def application(_environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2"), ("Connection", "close")])
    return [b"ok"]


def handle(sock: Any, _peer: Any) -> None:
    sock.recv(100)
    sock.sendall(b"ok")


def handle_later(sock: Any, peer: Any) -> None:
    gevent.sleep(0.001)
    handle(sock, peer)


class Loops:
    """Greenlets that loop over ``accept``, one a clone, as a server."""

    def __init__(self) -> None:
        self.listeners = [glb.bind(LOCAL, reuse_port=True)]
        self.listeners += [self.listeners[0].dup() for _ in range(3)]
        self.address = self.listeners[0].address
        self.greenlets: list[gevent.Greenlet] = []  # type: ignore[type-arg]  # in the stubs alone

    def start(self) -> None:
        self.greenlets = [gevent.spawn(self.serve, each) for each in self.listeners]

    def serve(self, listener: glb.Listener) -> None:
        while True:
            try:
                sock, peer = listener.accept()
                with sock:
                    handle(sock, peer)
            except StruckError:
                pass
            finally:
                sock = None  # type: ignore[assignment]  # what was struck is not kept

    def stop(self, _timeout: float) -> None:
        gevent.killall(self.greenlets)
        for listener in self.listeners:
            listener.close()


def make(kind: str, hubs: int) -> Any:
    if kind == "accept loops":
        return Loops()
    options = {"hubs": hubs, "clones": 4, **KINDS[kind]}
    if kind == "http":
        return WSGIServer(LOCAL, application, log=None, error_log=None, **options)
    return StreamServer(LOCAL, handle_later if kind == "waits" else handle, **options)


def ask(address: Any, timeout: float, answers: queue.SimpleQueue[bytes]) -> None:
    # By a native socket, in a native thread: what strikes is not to strike the client.
    said = b""
    sock = _socket.socket()
    try:
        sock.settimeout(timeout)
        sock.connect(address)
        sock.sendall(REQUEST)
        while data := sock.recv(1000):
            said += data
    except OSError as error:
        said = repr(error).encode()
    finally:
        sock.close()
    answers.put(said[-2:] if said.endswith(b"ok") else said)


def ask_at_once(address: Any, count: int, timeout: float) -> list[bytes]:
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threads = [
        threading.Thread(target=ask, args=(address, timeout, answers), daemon=True)
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    while answers.qsize() < count:
        try:
            gevent.sleep(0.001)
        except StruckError:
            pass  # libuv hands it to the main greenlet
    for thread in threads:
        thread.join()
    return [answers.get() for _ in range(count)]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def what_is_left(server: Any, before: int) -> dict[str, object]:
    """Return what is not as it should be."""
    if isinstance(server, Loops):
        return {"descriptors": descriptors() - before} if descriptors() > before else {}
    stats = server.clone_stats()
    found: dict[str, object] = {
        "active": server.active,
        "active of clones": sum(each.active for each in stats),
        "load": sum(each.load for each in server.glb_engine.clones.acceptors),
        "expected": server.glb_engine.admission.expected,
        "descriptors": max(0, descriptors() - before),
    }
    return {name: value for name, value in found.items() if value}


def strike(kind: str, hubs: int, number: int) -> tuple[str, dict[str, object]]:
    """Return where it struck, and what was wrong after that."""
    striker = Striker(number)
    server = make(kind, hubs)
    server.start()
    ask_at_once(server.address, 2, 5)
    before = descriptors()
    sys.settrace(striker)
    ask_at_once(server.address, 5, 0.5)
    sys.settrace(None)
    wrong: dict[str, object] = {}
    if striker.struck:
        after = ask_at_once(server.address, 8, 5)
        if after != [b"ok"] * 8:
            wrong["clients after it"] = after
        until = time.monotonic() + 5
        while what_is_left(server, before) and time.monotonic() < until:
            gevent.sleep(0.01)
            gc.collect()
        wrong.update(what_is_left(server, before))
    stopping = gevent.spawn(server.stop, 1)
    stopping.join(10)
    if not stopping.ready():
        wrong["stop"] = "never returns"
    elif REGISTRY.entries():
        wrong["open"] = REGISTRY.entries()
    return striker.struck, wrong


def main(kind: str, hubs: int, step: int) -> int:
    glb.hubs.guard.GUARD_SECONDS = 0.01  # type: ignore[misc]  # so that thousands of trials take a minute
    hub: Any = gevent.get_hub()
    hub.print_exception = hub.handle_system_error = lambda *_: None
    sys.unraisablehook = lambda _: None  # what strikes in a generator that is being closed
    strike(kind, hubs, 10**9)
    number, faults = 1, 0
    while True:
        struck, wrong = strike(kind, hubs, number)
        if not struck:
            break
        if wrong:
            faults += 1
            print(f"{number}: struck at {struck}: {wrong}", flush=True)
        number += step
    print(f"{kind}, {hubs} hubs: {number // step} lines struck, {faults} faults")
    return min(faults, 1)


if __name__ == "__main__":
    code = main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    os._exit(code)  # what a fault has left must not hang this
