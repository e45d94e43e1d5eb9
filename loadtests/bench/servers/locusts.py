"""Clients of locust's, and one without: for each order a round.

An order has seconds, how many users, and the URLs of servers; the answer is how much was done a
second, and what each cost, in us of the process's CPU time.
"""
# ruff: noqa: PLC0415  # locust patches the process when it is imported

from __future__ import annotations

import gc
import importlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import gevent
from gevent import socket

from .job import Job, take_orders

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

    def work(seconds: str, users: str, *urls: str) -> str:
        done = 0
        is_over = False

        def loop(url: str) -> None:
            nonlocal done
            address = (urlsplit(url).hostname, urlsplit(url).port)
            while not is_over:
                sock = socket.socket()
                sock.connect(address)
                sock.sendall(LINE)
                reply = sock.recv(4096)
                while not reply.endswith(b"\n"):
                    reply += sock.recv(4096)
                sock.close()
                done += 1

        chosen = itertools.islice(itertools.cycle(urls), int(users))
        greenlets = [gevent.spawn(loop, url) for url in chosen]
        found = _rate(lambda: done, seconds)
        is_over = True
        gevent.joinall(greenlets, raise_error=True)
        return found

    take_orders(work)


def users(_job: Job, _number: int, kind: str, *plugins: str) -> None:
    """Run users in locust's runner: `glb.locust.EchoUser`s, or FastHttpUsers, with *plugins*."""
    import locust
    from locust.env import Environment

    for plugin in plugins:
        importlib.import_module(plugin)  # which adds listeners
    hosts: Iterator[str] = iter(())
    user: Any = sys.modules["glb.locust"].EchoUser if kind == "echo" else locust.FastHttpUser

    class Client(user):  # type: ignore[misc]  # one of two
        def __init__(self, environment: Any) -> None:
            self.host = next(hosts)
            super().__init__(environment)

    if kind == "http":
        Client.tasks = [lambda user: user.client.get("/")]
    environment = Environment(user_classes=[Client], events=locust.events)
    runner = environment.create_local_runner()
    init: Any = locust.events.init
    init.fire(environment=environment, runner=runner, web_ui=None)
    stats, entry = environment.stats, ("echo", "TCP") if kind == "echo" else ("/", "GET")

    def count() -> int:
        if stats.num_failures:
            raise RuntimeError(next(iter(stats.errors.values())).to_name())
        return int(stats.get(*entry).num_requests)

    def work(seconds: str, users: str, *urls: str) -> str:
        nonlocal hosts
        hosts = itertools.cycle(urls)
        runner.start(int(users), spawn_rate=int(users))
        found = _rate(count, seconds)
        runner.stop()
        if ours := sys.modules.get("glb.locust"):
            assert ours.MEASURE.figures().replies > 0, "no clone has been read"
        return found

    take_orders(work)
