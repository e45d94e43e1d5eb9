"""What does the load client cost: how much of what a bare client does is left to a locust user?

    python -m loadtests.client_cost echo
    python -m loadtests.client_cost http

`echo`: connections/s of `EchoUser` in locust's own runner, with all that listens to its events,
beside a bare gevent loop that does the same in the same process: connect, send, receive, close.
`http`: requests/s of locust's FastHttpUser without `glb.locust`, and with it, where the clone is
read from each reply's header; each in a process of its own. The server is another process, on
another CPU if there is one, and the rounds take turns. Printed are the medians of the ratios, round
by round, of what is done in a second, and for the same CPU, beside what is promised; exit status 1
if one misses it.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from statistics import median
from typing import Any

import click
import gevent
from gevent import socket
from gevent.os import tp_read

import glb
from glb.pywsgi import WSGIServer
from glb.server import StreamServer
from loadtests.frame.process import Cpus, Process, ProcessError

LINE = b"hello\n"
CLONES = 4

# EchoUser, of the connections/s of a bare loop; FastHttpUser, of its requests/s without us.
ECHO_PROMISE = 0.6
HTTP_PROMISE = 0.8

#: A child has started, or a round is over, long before.
ANSWER_SECONDS = 120

# Until users are spawned and the server's recycled greenlets are warm.
WARM_UP_SECONDS = 0.2

# To one address there are 28,000 local ports, of which Linux's connect(2) first takes every other
# one, and none again within a second (TIME_WAIT). From some 5,000 connections a second on it would
# be measured how the kernel looks for a free one; at 14,000 nothing else.
ADDRESSES = 8


# -- the server, which knows nothing of locust -------------------------------------------------


def whose() -> str:
    clone = glb.current_clone()
    assert clone is not None
    return f"{clone.index}/{CLONES}"


def echo(sock: Any, _peer: Any) -> None:
    told = whose().encode() + b" "
    had = b""
    while data := sock.recv(4096):
        had += data
        if had.endswith(b"\n"):
            sock.sendall(told + had)
            had = b""


def answer(_environ: Any, start_response: Any) -> list[bytes]:
    headers = [("Content-Length", "5"), ("X-Glb-Clone", whose())]
    start_response("200 OK", headers)
    return [b"hello"]


def serve(kind: str) -> None:
    """Serve on ports that are printed, until stdin ends."""
    address = ("127.0.0.1", 0)
    servers: list[Any] = (
        [StreamServer(address, echo, clones=CLONES) for _ in range(ADDRESSES)]
        if kind == "echo"
        else [WSGIServer(address, answer, clones=CLONES, log=None)]
    )
    for server in servers:
        server.start()
    print(*(server.address[1] for server in servers), flush=True)
    tp_read(0, 1)
    for server in servers:
        server.stop()


def child(*args: str) -> Process:
    """Return a child of this program, which ends when its stdin does."""
    cpus = Cpus.available()
    command = [sys.executable, "-m", "loadtests.client_cost", *args]
    return Process(command, cpus.server if args[0] == "serve" else cpus.client, stderr=None)


def line(process: Process) -> str:
    try:
        return process.line(ANSWER_SECONDS)
    except ProcessError as error:
        raise click.ClickException(str(error)) from error


# -- the clients -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """What a client did in a round, and what each cost it."""

    a_second: float
    microseconds: float

    def __str__(self) -> str:
        return f"{self.a_second:8.0f}/s {self.microseconds:6.1f} us"


def rate(count: Callable[[], int], seconds: float) -> Rate:
    """Return by how much *count* grows, while others run."""
    gevent.sleep(WARM_UP_SECONDS)
    gc.collect()
    before, start, cpu = count(), time.perf_counter(), time.process_time()
    gevent.sleep(seconds)
    done = count() - before
    return Rate(
        done / (time.perf_counter() - start), (time.process_time() - cpu) / max(done, 1) * 1e6
    )


class Bare:
    """Greenlets in a loop: what any client of gevent's has to do."""

    def __init__(self, ports: Iterator[int], users: int) -> None:
        self._ports = ports
        self._users = users
        self._done = 0
        self._is_over = False

    def _loop(self, port: int) -> None:
        address = ("127.0.0.1", port)
        while not self._is_over:
            sock = socket.socket()
            sock.connect(address)
            sock.sendall(LINE)
            reply = sock.recv(4096)
            while not reply.endswith(b"\n"):
                reply += sock.recv(4096)
            sock.close()
            self._done += 1

    def round(self, seconds: float) -> Rate:
        self._is_over = False
        greenlets = [gevent.spawn(self._loop, next(self._ports)) for _ in range(self._users)]
        found = rate(lambda: self._done, seconds)
        self._is_over = True
        gevent.joinall(greenlets, raise_error=True)
        return found


class Locust:
    """Users in locust's runner; with `glb.locust`, if that has been imported, as a plugin is."""

    def __init__(self, user_class: Any, users: int, name: str, kind: str) -> None:
        import locust  # noqa: PLC0415  # as below
        from locust.env import Environment  # noqa: PLC0415  # as below

        self._users = users
        self._environment = Environment(user_classes=[user_class], events=locust.events)
        self._runner = self._environment.create_local_runner()
        init: Any = locust.events.init
        init.fire(environment=self._environment, runner=self._runner, web_ui=None)
        self._entry = (name, kind)

    def _count(self) -> int:
        stats = self._environment.stats
        if stats.num_failures:
            raise click.ClickException(next(iter(stats.errors.values())).to_name())
        return int(stats.get(*self._entry).num_requests)

    def round(self, seconds: float) -> Rate:
        self._runner.start(self._users, spawn_rate=self._users)
        try:
            return rate(self._count, seconds)
        finally:
            self._runner.stop()


def load_http(with_glb: bool, port: int, users: int) -> None:
    """Print requests/s of a round of so many seconds as each line on stdin says."""
    import locust  # noqa: PLC0415  # it patches the process: not the server's

    if with_glb:
        import glb.locust  # noqa: PLC0415  # it adds its listeners: not for runs without it

    class Client(locust.FastHttpUser):
        host = f"http://127.0.0.1:{port}"

        @locust.task
        def get(self) -> None:
            self.client.get("/")

    load = Locust(Client, users, "/", "GET")
    for seconds in sys.stdin:
        found = load.round(float(seconds))
        print(found.a_second, found.microseconds, flush=True)
    if with_glb:
        assert glb.locust.MEASURE.figures().replies > 0, "no clone has been read"


# -- the answer --------------------------------------------------------------------------------


def compare(
    plain: tuple[str, Callable[[], Rate]],
    ours: tuple[str, Callable[[], Rate]],
    rounds: int,
    promise: float,
) -> None:
    """Print the rates of *rounds* pairs, whose order changes, and the answer; exit."""
    ratios, costs = [], []
    print(f"{'round':>5} {plain[0]:>22} {ours[0]:>22} {'ratio':>6} {'of CPU':>6}")
    for number in range(1, rounds + 1):
        if number % 2:
            second, first = ours[1](), plain[1]()
        else:
            first = plain[1]()
            second = ours[1]()
        ratios.append(second.a_second / first.a_second)
        costs.append(first.microseconds / second.microseconds)
        print(
            f"{number:5} {first!s:>22} {second!s:>22} {ratios[-1]:6.2f} {costs[-1]:6.2f}",
            flush=True,
        )
    # Of two that wait for the server both are as fast as it is: then the CPU tells what is left.
    found = min(median(ratios), median(costs))
    print(
        f"{ours[0]} does {median(ratios):.2f} of {plain[0]}, and {median(costs):.2f} for the same "
        f"CPU (medians); promised of both: {promise}: {'kept' if found >= promise else 'MISSED'}"
    )
    sys.exit(0 if found >= promise else 1)


@click.group(help=__doc__)
def main() -> None:
    pass


def options(command: Any) -> Any:
    for option in (
        click.option("--rounds", type=click.IntRange(1), default=15, show_default=True),
        click.option("--seconds", type=float, default=0.7, show_default=True, help="Of a round."),
        click.option("--users", type=click.IntRange(1, 1000), default=100, show_default=True),
    ):
        command = option(command)
    return command


@main.command("echo", help="EchoUser beside a bare gevent loop: connections/s.")
@options
def compare_echo(rounds: int, seconds: float, users: int) -> None:
    from glb.locust import MEASURE, EchoUser  # noqa: PLC0415  # as in load_http

    with child("serve", "echo") as server:
        ports = cycle(map(int, line(server).split()))

        class Client(EchoUser):
            def __init__(self, environment: Any) -> None:
                self.host = f"tcp://127.0.0.1:{next(ports)}"
                super().__init__(environment)

        os.sched_setaffinity(0, Cpus.available().client)
        bare, load = Bare(ports, users), Locust(Client, users, "echo", "TCP")

        def with_locust() -> Rate:
            found = load.round(seconds)
            assert MEASURE.figures().turns > 0, "no clone has been read"
            return found

        compare(
            ("a bare loop", lambda: bare.round(seconds)),
            ("EchoUser", with_locust),
            rounds,
            ECHO_PROMISE,
        )


@main.command("http", help="FastHttpUser with glb.locust beside one without: requests/s.")
@options
def compare_http(rounds: int, seconds: float, users: int) -> None:
    with child("serve", "http") as server:
        port = line(server)
        with (
            child("load", "plain", port, str(users)) as plain,
            child("load", "glb", port, str(users)) as ours,
        ):

            def rate_of(process: Process) -> Rate:
                process.tell(str(seconds))
                return Rate(*map(float, line(process).split()))

            compare(
                ("FastHttpUser", lambda: rate_of(plain)),
                ("with glb.locust", lambda: rate_of(ours)),
                rounds,
                HTTP_PROMISE,
            )


@main.command("serve", hidden=True)
@click.argument("kind", type=click.Choice(["echo", "http"]))
def serve_command(kind: str) -> None:
    serve(kind)


@main.command("load", hidden=True)
@click.argument("kind", type=click.Choice(["plain", "glb"]))
@click.argument("port", type=int)
@click.argument("users", type=int)
def load_command(kind: str, port: int, users: int) -> None:
    load_http(kind == "glb", port, users)


if __name__ == "__main__":
    main()
