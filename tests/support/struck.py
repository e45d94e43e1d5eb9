"""Run as a program: a signal strikes at one place of the code after another, while a server serves.

``python -m tests.support.struck KIND HUBS STEP``: for each *STEP*-th place at which the interpreter
looks for signals while a few connections are served, a server of its own. There a real signal
comes, whose handler raises; then the server is to serve new clients, to have counted right, to hold
no descriptor and no greenlet, and to stop. What is not so is printed.

An interpreter looks for signals at the beginning of a function, after a call and at a jump back.
"""

from __future__ import annotations

import _socket
import ctypes
import dis
import functools
import gc
import linecache
import os
import queue
import signal
import sys
import threading
from types import CodeType
from typing import Any

import gevent

import glb
import glb.hubs.guard
from glb.accept.registry import REGISTRY
from glb.hubs.greenlet_pool import handlers_here
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from .helpers import comes_true

#: What is struck. gevent's loop on libuv is Python, and is not.
PLACES = tuple(os.path.join(*each.__path__, "") for each in (glb, gevent))
LOOPS = tuple(os.path.join(PLACES[1], each, "") for each in ("_ffi", "libuv"))
JUMPS = ("JUMP_BACKWARD", "JUMP_ABSOLUTE")

_raise = ctypes.CDLL(None)["raise"]
_raise.restype = None
_raise.argtypes = [ctypes.c_int, *(3 * [ctypes.py_object])]  # C looks at the first one alone
SEND_SIGNAL = functools.partial(_raise, signal.SIGUSR1)

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
    """A trace function that has a signal strike at the *number*-th place in this thread.

    It counts while it `is_armed`.
    """

    def __init__(self, number: int) -> None:
        self.is_armed = False
        self.left = number
        self.struck = ""
        signal.signal(signal.SIGUSR1, lambda _, frame: self.strike(frame))

    def __call__(self, frame: Any, event: str, _arg: object) -> Any:
        code = frame.f_code
        if event == "call":
            if not code.co_filename.startswith(PLACES) or code.co_filename.startswith(LOOPS):
                return None
            frame.f_trace_opcodes = True
            if self._is_it():
                self.strike(frame)
        elif event == "opcode" and frame.f_lasti in before_looks(code) and self._is_it():
            # Called with the next instruction. A signal handler is Python, and would run in a trace
            # function that is: this one is C, so it runs where the interpreter looks next.
            frame.f_trace = SEND_SIGNAL
            return None
        return self

    def _is_it(self) -> bool:
        self.left -= self.is_armed
        return self.is_armed and self.left == 0

    def strike(self, frame: Any) -> None:
        sys.settrace(None)
        each = frame
        while each is not None:
            each.f_trace = None
            each = each.f_back
        if not self.struck:
            code = frame.f_code
            text = linecache.getline(code.co_filename, frame.f_lineno).strip()
            self.struck = f"{code.co_filename}:{frame.f_lineno} in {code.co_name}: {text}"
            raise StruckError(self.struck)


@functools.cache
def before_looks(code: CodeType) -> frozenset[int]:
    """Return where the instructions are that come right before a call or a jump back."""
    found, before = [], 0
    for each in dis.get_instructions(code):
        if each.opname.startswith("CALL") or each.opname in JUMPS:
            found.append(before)
        before = each.offset
    return frozenset(found)


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
    found: dict[str, object] = {"descriptors": max(0, descriptors() - before)}
    if not isinstance(server, Loops):
        stats = server.clone_stats()
        turns = REGISTRY.entries()[0]
        accepted = sum(each.accepted for each in stats)
        found["active"] = server.active
        found["active of clones"] = sum(each.active for each in stats)
        found["load"] = sum(each.load for each in server.glb_engine.clones.acceptors)
        found["expected"] = server.glb_engine.admission.expected
        found["accepted and not done"] = [
            each for each in stats if each.accepted != each.completed + each.failed
        ]
        found["accepted by the address alone"] = turns.accepted - accepted
        found["in the pool"] = 0 if server.pool is None else len(server.pool)
        found["not ready"] = [each for each in stats if not each.ready]
    return {name: value for name, value in found.items() if value}


def strike(kind: str, hubs: int, number: int) -> tuple[str, dict[str, object]]:
    """Return where it struck, and what was wrong after that."""
    striker = Striker(number)
    wrong = _strike(striker, kind, hubs)
    if handlers_here().all:
        wrong["greenlets"] = handlers_here().all
    return striker.struck, wrong


def _strike(striker: Striker, kind: str, hubs: int) -> dict[str, object]:
    sys.settrace(striker)  # now, as it strikes in no function that has begun already
    server = make(kind, hubs)
    server.start()
    ask_at_once(server.address, 2, 5)
    before = descriptors()
    striker.is_armed = True
    ask_at_once(server.address, 5, 0.5)
    striker.is_armed = False
    sys.settrace(None)
    wrong: dict[str, object] = {}
    if striker.struck:
        after = ask_at_once(server.address, 8, 5)
        if after != [b"ok"] * 8:
            wrong["clients after it"] = after

        def is_clean() -> bool:
            gc.collect()
            return not what_is_left(server, before)

        comes_true(is_clean, 5)
        wrong.update(what_is_left(server, before))
    stopping = gevent.spawn(server.stop, 1)
    stopping.join(10)
    if not stopping.ready():
        wrong["stop"] = "never returns"
    elif REGISTRY.entries():
        wrong["open"] = REGISTRY.entries()
    return wrong


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
    print(f"{kind}, {hubs} hubs: {number // step} places struck, {faults} faults")
    return min(faults, 1)


if __name__ == "__main__":
    code = main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    os._exit(code)  # what a fault has left must not hang this
