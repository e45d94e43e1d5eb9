"""Accept loops: each clone has a resource that serves one client at a time.

    python accept_loops.py

A loop waits in `accept()` only while its printer is free. So a clone whose printer is busy is
passed over, without a lock and without a queue of the program's: clients wait in the accept queue
until one is free. The program prints six jobs on two printers, and ends.
"""

import time
from typing import Any

import gevent
from gevent import socket

import glb
from glb.server import StreamServer


class Printer:
    """Prints one page after the other, and takes its time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pages = 0

    def print_page(self, text: str) -> str:
        gevent.sleep(0.05)
        self.pages += 1
        return f"page {self.pages} of {self.name}: {text}"


def accept_loop(listener: glb.Listener, clone: glb.Clone) -> None:
    """Be the loop of one clone: it has a printer of its own, for as long as the server accepts."""
    printer = Printer(f"printer {clone}")
    while True:
        sock, _address = listener.accept()
        with sock:
            text = sock.recv(1000).decode().strip()
            sock.sendall(printer.print_page(text).encode())


def ask(address: Any, text: str) -> str:
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(text.encode())
        return bytes(client.recv(1000)).decode()


def main() -> list[str]:
    """Print six jobs at once on two printers, and return what came of them."""
    with StreamServer(("127.0.0.1", 0), accept_loop=accept_loop, clones=2) as server:
        server.start()
        began = time.monotonic()
        jobs = [gevent.spawn(ask, server.address, f"job {number}") for number in range(6)]
        done = [each.get() for each in jobs]
        seconds = time.monotonic() - began
    for each in done:
        print(each)
    print(f"six jobs of 0.05 s on two printers took {seconds:.2f} s")
    return done


if __name__ == "__main__":
    main()
