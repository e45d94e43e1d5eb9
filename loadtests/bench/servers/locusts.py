"""Clients of locust's, and one without: for each order a round.

An order has a port, seconds, and how many users; the answer is how much a second was done, and what
each cost, in us of the process's CPU time.
"""
# ruff: noqa: PLC0415  # locust patches the process when it is imported

from __future__ import annotations

import gc
import importlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import gevent
from gevent import socket

from .job import ADDRESSES, Job, take_orders

LINE: Final = b"hello\n"

#: Until users are spawned and the server's recycled greenlets are warm.
WARM_UP_SECONDS: Final = 0.2


def _rate(count: Callable[[], int], seconds: str) -> str:
    """Return by how much *count* grows, while others run."""
    gevent.sleep(WARM_UP_SECONDS)
    gc.collect()
    before, start, cpu = count(), time.perf_counter(), time.process_time()
    gevent.sleep(float(seconds))
    done = count() - before
    rate = done / (time.perf_counter() - start)
    return f"{rate} {(time.process_time() - cpu) / max(done, 1) * 1e6}"


def bare(_job: Job, _number: int) -> None:
    """Run greenlets in a loop: what any client of gevent's has to do."""

    def work(port: str, seconds: str, users: str) -> str:
        done = 0
        is_over = False

        def loop(host: str) -> None:
            nonlocal done
            while not is_over:
                sock = socket.socket()
                sock.connect((host, int(port)))
                sock.sendall(LINE)
                reply = sock.recv(4096)
                while not reply.endswith(b"\n"):
                    reply += sock.recv(4096)
                sock.close()
                done += 1

        hosts = itertools.islice(itertools.cycle(ADDRESSES), int(users))
        greenlets = [gevent.spawn(loop, host) for host in hosts]
        found = _rate(lambda: done, seconds)
        is_over = True
        gevent.joinall(greenlets, raise_error=True)
        return found

    take_orders(work)


class _Spread:
    """Users of these addresses, in turn."""

    hosts: Iterator[str]
    host: Any  # a user's

    def __init__(self, environment: Any) -> None:
        self.host = next(self.hosts)
        super().__init__(environment)  # type: ignore[call-arg]  # a user's, which comes next


def echo(_job: Job, _number: int) -> None:
    """Run users of `glb.locust.EchoUser`."""
    from glb.locust import EchoUser

    class Client(_Spread, EchoUser):
        pass

    _run(Client, "tcp", ADDRESSES, "echo", "TCP")


def http(_job: Job, _number: int, *plugins: str) -> None:
    """Run users of locust's FastHttpUser, with *plugins*, which add listeners."""
    import locust

    for plugin in plugins:
        importlib.import_module(plugin)

    class Client(_Spread, locust.FastHttpUser):
        @locust.task
        def get(self) -> None:
            self.client.get("/")

    _run(Client, "http", ADDRESSES[:1], "/", "GET")


def _run(user: Any, scheme: str, addresses: Sequence[str], *entry: str) -> None:
    """Run users in locust's runner; with `glb.locust`, if that is imported, as a plugin is."""
    import locust
    from locust.env import Environment

    environment = Environment(user_classes=[user], events=locust.events)
    runner = environment.create_local_runner()
    init: Any = locust.events.init
    init.fire(environment=environment, runner=runner, web_ui=None)
    stats = environment.stats

    def count() -> int:
        if stats.num_failures:
            raise RuntimeError(next(iter(stats.errors.values())).to_name())
        return int(stats.get(*entry).num_requests)

    def work(port: str, seconds: str, users: str) -> str:
        user.hosts = itertools.cycle(f"{scheme}://{address}:{port}" for address in addresses)
        runner.start(int(users), spawn_rate=int(users))
        found = _rate(count, seconds)
        runner.stop()
        if ours := sys.modules.get("glb.locust"):
            assert ours.MEASURE.figures().replies > 0, "no clone has been read"
        return found

    take_orders(work)
