"""What these programs have in common: some copies of a server on one port, and an orderly end.

A program prints ``port N`` when its copies run. A line on stdin, or its end, stops them; then it
prints one line of JSON: how long the stop took, and what it left behind.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

COPIES = 4
HOST = "127.0.0.1"


class Copy(NamedTuple):
    """One server: its port, what serves until it is stopped, and what stops it."""

    port: int
    serve: Callable[[], Any]
    stop: Callable[[], Any]
    wait_until_ready: Callable[[], Any] = lambda: None


def given_port() -> int:
    """Return the port on the command line, or 0: any."""
    return int(sys.argv[1]) if len(sys.argv) > 1 else 0


def socketserver_copy(server: Any) -> Copy:
    """Return what runs a `socketserver` server, or one that is made of it."""

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return Copy(server.server_address[1], server.serve_forever, stop)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def warm_up() -> None:
    """Use once what may open something that stays open: names, threads, a connection."""
    socket.getaddrinfo("localhost", 80)
    with socket.create_server((HOST, 0)) as listener:

        def accept() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=accept)
        thread.start()
        with socket.create_connection(listener.getsockname()) as client:
            client.recv(1)
        thread.join()
    select.select([], [], [], 0.001)
    time.sleep(0.001)


def wait_until_listening(port: int) -> None:
    """Return when a server accepts connections on *port*."""
    while True:
        try:
            socket.create_connection((HOST, port)).close()
        except ConnectionRefusedError:
            time.sleep(0.005)
        else:
            return


def wait_for_line() -> None:
    """Return when there is a line on stdin, or its end, while other threads run."""
    select.select([sys.stdin], [], [])
    sys.stdin.readline()


def at_once(calls: list[Callable[[], Any]]) -> None:
    """Call all, each in a thread, and wait for them."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def report(began: float, descriptors: int) -> None:
    """Print how long the stop took, and what is left."""
    seconds = time.perf_counter() - began
    for _ in range(100):  # some event loops close a descriptor when they turn the next time
        if open_descriptors() <= descriptors:
            break
        time.sleep(0.001)
    left = {
        "seconds": seconds,
        "descriptors": open_descriptors() - descriptors,
        "threads": [
            each.name for each in threading.enumerate() if each is not threading.current_thread()
        ],
    }
    print(json.dumps(left), flush=True)


def main(open_copy: Callable[[int, int], Copy], copies: int = COPIES) -> None:
    """Open copies on one port, run each in a thread until there is a line on stdin."""
    warm_up()
    descriptors = open_descriptors()
    port = given_port()
    running = []
    for index in range(copies):
        copy = open_copy(index, port)
        running.append(copy)
        port = copy.port
    threads = [threading.Thread(target=copy.serve) for copy in running]
    for thread in threads:
        thread.start()
    for copy in running:
        copy.wait_until_ready()
    print("port", port, flush=True)
    wait_for_line()
    began = time.perf_counter()
    at_once([copy.stop for copy in running])
    for thread in threads:
        thread.join()
    report(began, descriptors)
