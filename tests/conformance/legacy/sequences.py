"""Does given operations with sockets, and reports how each went.

Each line on stdin is a JSON list of operations; each is answered by a line with a result for each
of them, and what is left when all sockets are closed. Ports have names in both: "a", "b", ... are
free ports that are chosen anew for each line, 0 is any.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

HOSTS: Final[dict[int, str]] = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)  # so that no address is left in TIME_WAIT
OPTIONS: Final = {
    "reuse port": (socket.SOL_SOCKET, socket.SO_REUSEPORT),
    "reuse address": (socket.SOL_SOCKET, socket.SO_REUSEADDR),
    "keep alive": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "v6 only": (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
    "listens": (socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
    "type": (socket.SOL_SOCKET, socket.SO_TYPE),
    "domain": (socket.SOL_SOCKET, socket.SO_DOMAIN),
    "error": (socket.SOL_SOCKET, socket.SO_ERROR),
}


def is_free(port: int) -> bool:
    """Return True if *port* is free."""
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                probe = socket.socket(family, kind)
            except OSError:  # no such family here
                continue
            with probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    probe.bind((host, port))
                except OSError:
                    return False
    return True


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def comes_true(holds: Callable[[], bool]) -> bool:
    """Wait for what may take some turns of an event loop."""
    for _ in range(200):
        if holds():
            return True
        time.sleep(0.001)
    return False


class Outside:
    """A listener of each family, which isn't shared: somewhere to connect to."""

    def __init__(self) -> None:
        self.listeners = {}
        for family, host in HOSTS.items():
            with contextlib.suppress(OSError):  # no such family here
                self.listeners[family] = socket.create_server((host, 0), family=family)
                # Clients that are connected here are in the queue; some "connect" but aren't.
                self.listeners[family].settimeout(0.05)

    def address(self, family: int) -> Any:
        return self.listeners[family].getsockname()

    def accept(self, family: int) -> socket.socket:
        conn = self.listeners[family].accept()[0]
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        return conn

    def close(self) -> None:
        for each in self.listeners.values():
            each.close()


class Sequence:
    """The sockets of one sequence of operations, by number."""

    def __init__(self, outside: Outside) -> None:
        self.outside = outside
        self.sockets: dict[int, socket.socket] = {}
        self.others: list[socket.socket] = []  # connections, and what they lead to
        self.has_closed = False
        self.names: dict[int, str] = {0: "0"}
        self.ports: dict[Any, Any] = {0: 0}
        while len(self.ports) < 3:
            # Below what the kernel gives to clients, so that none of them is in the way.
            port = random.randrange(11000, 32000)
            if port not in self.names and is_free(port):
                name = "ab"[len(self.ports) - 1]
                self.ports[name] = port
                self.names[port] = name

    def run(self, operations: list[list[Any]]) -> dict[str, Any]:
        descriptors = open_descriptors()
        results = []
        for name, *arguments in operations:
            try:
                result = getattr(self, "do_" + name.replace(" ", "_"))(*arguments)
            except Exception as error:
                result = ["error", type(error).__name__, getattr(error, "errno", None)]
            results.append(result)
            if self.has_closed:  # some event loops do so when they turn the next time
                self.has_closed = False
                time.sleep(0.001)
        for each in [*self.others, *self.sockets.values()]:
            each.close()
        self.sockets.clear()
        self.others.clear()
        return {
            "results": results,
            "descriptors are closed": comes_true(lambda: open_descriptors() <= descriptors),
            "ports are free": comes_true(lambda: all(is_free(self.ports[name]) for name in "ab")),
        }

    # -- what is said instead of what differs from run to run -----------------------------------

    def named(self, address: Any) -> Any:
        """Return *address* with the name of its port."""
        if not isinstance(address, tuple) or len(address) < 2:
            return repr(address)
        host, port, *rest = address
        name = self.names.setdefault(port, f"other {len(self.names)}")
        return [host, name, *rest]

    def address(self, host: Any, port: Any, form: str = "pair") -> Any:
        """Return an address as *form* says it; ``bytearray:host`` is a host in that type."""
        number = self.ports[port]
        kind, colon, rest = host.partition("/")
        if colon:
            host = {"bytes": bytes, "bytearray": bytearray}[kind](rest.encode())
        return {
            "pair": (host, number),
            "four": (host, number, 0, 0),
            "one": (host,),
            "text port": (host, str(number)),
            "big port": (host, 70000),
            "list": [host, number],
            "text": f"{host}:{number}",
        }[form]

    def put(self, number: int, sock: socket.socket) -> None:
        if number in self.sockets:
            self.do_close(number)
        self.sockets[number] = sock

    # -- operations -----------------------------------------------------------------------------

    def do_socket(self, number: int, family: str, kind: str) -> Any:
        sock = socket.socket(getattr(socket, family), getattr(socket, kind))
        self.put(number, sock)
        return [int(sock.family), int(sock.type), sock.proto, sock.gettimeout()]

    def do_set(self, number: int, option: str, value: int) -> Any:
        return self.sockets[number].setsockopt(*OPTIONS[option], value)

    def do_get(self, number: int, option: str) -> Any:
        return self.sockets[number].getsockopt(*OPTIONS[option])

    def do_bind(self, number: int, host: str, port: Any, form: str = "pair") -> Any:
        sock = self.sockets[number]
        sock.bind(self.address(host, port, form))
        return self.named(sock.getsockname())

    def do_listen(self, number: int, *backlog: int) -> Any:
        sock = self.sockets[number]
        sock.listen(*backlog)
        return self.named(sock.getsockname())

    def do_getsockname(self, number: int) -> Any:
        return self.named(self.sockets[number].getsockname())

    def do_getpeername(self, number: int) -> Any:
        return self.named(self.sockets[number].getpeername())

    def do_describe(self, number: int) -> Any:
        sock = self.sockets[number]
        return [int(sock.family), int(sock.type), sock.proto, sock.fileno() < 0, sock.gettimeout()]

    def do_shutdown(self, number: int, how: int) -> Any:
        return self.sockets[number].shutdown(how)

    def do_ready(self, number: int) -> Any:
        found = select.select([self.sockets[number]], [], [], 0)
        return [len(each) for each in found]

    def do_poll(self, number: int) -> Any:
        poller = select.poll()
        poller.register(self.sockets[number], select.POLLIN)
        return [event for _, event in poller.poll(0)]

    def do_accept(self, number: int) -> Any:
        """Try to, when there is no client."""
        sock = self.sockets[number]
        with self.timeout(sock, 0):
            sock.accept()
        return "accepted"

    def do_connect(self, number: int) -> Any:
        """Connect to outside."""
        sock = self.sockets[number]
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        with self.timeout(sock, 2):
            sock.connect(self.outside.address(sock.family))
        if sock.type == socket.SOCK_STREAM:
            self.others.append(self.outside.accept(sock.family))
        return self.named(sock.getsockname())

    def do_dup(self, number: int, other: int) -> Any:
        copy = self.sockets[number].dup()
        self.put(other, copy)
        return self.do_describe(other)

    def do_fromfd(self, number: int, other: int) -> Any:
        sock = self.sockets[number]
        self.put(other, socket.fromfd(sock.fileno(), sock.family, sock.type))
        return self.do_describe(other)

    def do_detach_and_close(self, number: int) -> Any:
        fd = self.sockets[number].detach()
        os.close(fd)
        self.has_closed = True
        return self.do_describe(number)

    def do_detach_and_adopt(self, number: int) -> Any:
        fd = self.sockets[number].detach()
        self.put(number, socket.socket(fileno=fd))
        return self.do_describe(number)

    def do_close(self, number: int) -> Any:
        self.sockets[number].close()
        self.has_closed = True
        return self.do_describe(number)

    def do_exchange(self, host: str, port: Any) -> Any:
        """Connect to a port, and tell on which address it was accepted: not by which copy."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            client.settimeout(2)
            client.connect((host, self.ports[port]))
            for listener in self.ready_listeners():
                with self.timeout(listener, 0), contextlib.suppress(BlockingIOError):
                    conn, peer = listener.accept()
                    with conn:
                        assert peer[1] == client.getsockname()[1]
                        conn.sendall(b"x")
                        assert client.recv(1) == b"x"
                        return [
                            self.named(listener.getsockname()),
                            self.named(conn.getsockname()),
                            peer[0],
                            [int(conn.family), int(conn.type), conn.gettimeout()],
                            conn.proto == listener.proto,
                        ]
        return "not accepted"

    def do_datagram(self, host: str, port: Any) -> Any:
        """Send one to a port, and tell on which address it was received."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", (host, self.ports[port]))
            open_now = [each for each in self.sockets.values() if each.fileno() >= 0]
            mine = [each for each in open_now if each.type == socket.SOCK_DGRAM]
            for sock in select.select(mine, [], [], 0.01)[0]:
                with self.timeout(sock, 0):
                    data, peer = sock.recvfrom(10)
                    return [self.named(sock.getsockname()), data.decode(), peer[0]]
        return "not received"

    @contextlib.contextmanager
    def timeout(self, sock: socket.socket, seconds: float) -> Iterator[None]:
        before = sock.gettimeout()
        sock.settimeout(seconds)
        try:
            yield
        finally:
            if sock.fileno() >= 0:
                sock.settimeout(before)

    def ready_listeners(self) -> list[socket.socket]:
        listeners = []
        for sock in self.sockets.values():
            if sock.fileno() >= 0 and sock.getsockopt(*OPTIONS["listens"]):
                listeners.append(sock)
        return select.select(listeners, [], [], 1)[0]


def main() -> None:
    outside = Outside()
    time.sleep(0.001)
    select.select([], [], [], 0.001)
    socket.getaddrinfo("localhost", 80)
    for line in sys.stdin:
        print(json.dumps(Sequence(outside).run(json.loads(line))), flush=True)
    outside.close()


if __name__ == "__main__":
    main()
