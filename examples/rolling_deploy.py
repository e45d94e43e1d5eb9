"""A deploy without a lost request: a new version is rolled in while clients ask.

    python rolling_deploy.py

Clone after clone gets the new application. Clients on kept connections and new ones alike get a
reply to each request, from the old version or from the new one. Then the server grows, and drains.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from http.client import HTTPConnection
from typing import Any

from gevent import monkey

monkey.patch_all()

import gevent
from gevent.event import Event

from glb.pywsgi import WSGIServer


def application(
    version: str, environ: dict[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    gevent.sleep(0.002)  # as if it asked a database
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [version.encode()]


def ask(address: tuple[str, int], is_over: Event, replies: Counter[str]) -> None:
    """Ask until it is over, five requests a connection, and count what comes."""
    while not is_over.is_set():
        client = HTTPConnection(*address, timeout=10)
        try:
            for _ in range(5):
                client.request("GET", "/")
                replies[client.getresponse().read().decode()] += 1
        except OSError:
            replies["lost"] += 1
        finally:
            client.close()


def wait_for(replies: Counter[str], version: str) -> None:
    """Wait until many have come from *version*."""
    while replies[version] < 100:
        gevent.sleep(0.01)


def main() -> Counter[str]:
    """Roll, resize and drain under load, and return how many replies had which version."""
    replies: Counter[str] = Counter()
    is_over = Event()
    old = functools.partial(application, "old")
    server = WSGIServer(("127.0.0.1", 0), old, clones=4, log=None)
    server.start()
    clients = [gevent.spawn(ask, server.address, is_over, replies) for _ in range(10)]
    wait_for(replies, "old")
    print("rolled:", server.roll(functools.partial(application, "new")))
    print("resized:", server.resize(8))
    wait_for(replies, "new")
    is_over.set()
    gevent.joinall(clients)
    print("drained:", server.drain(timeout=10))
    print(", ".join(f"{count} {what}" for what, count in sorted(replies.items())))
    return replies


if __name__ == "__main__":
    raise SystemExit(1 if main()["lost"] else 0)
