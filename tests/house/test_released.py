"""What a handler held is released with it, and not with the next cyclic garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.ssl
import gevent.tests
import pytest
from gevent import getcurrent, socket
from gevent.event import Event

import glb
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from ..support.helpers import connect
from ..support.tls import client_context, server_context

LOCAL = ("127.0.0.1", 0)
EACH_SPAWN = ["default", 5, gevent.spawn]
COUNT = 10


@pytest.fixture(autouse=True)
def without_collection(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is collected but by its count; errors are not printed."""
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *_: None)
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def is_closed(client: Any) -> bool:
    """Whether the other side has closed *client*'s connection, within a second."""
    client.settimeout(1)
    try:
        return not client.recv(1000)
    except TimeoutError:
        return False
    except OSError:
        return True  # reset, as something was not read


class Talk:
    """A handler that keeps a file of its connection in a local, and ends in *ending*."""

    def __init__(self, ending: str) -> None:
        self.ending = ending
        self.arrived = 0
        self.may_go = Event()

    def __call__(self, sock: Any, _peer: Any) -> None:
        lines = sock.makefile("rb")
        if self.ending == "raises":
            for line in lines:
                int(line)
        elif self.ending == "raises after a wait":
            line = lines.readline()
            gevent.sleep(0)
            int(line)
        elif self.ending == "raises in idle":
            with glb.idle():
                int(lines.readline())
        elif self.ending == "raises with its greenlet in a local":
            me = getcurrent()
            del me
            int(lines.readline())
        else:
            lines.readline()
            self.arrived += 1
            self.may_go.wait()


@pytest.mark.parametrize("is_secured", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize(
    "ending",
    [
        "raises",
        "raises after a wait",
        "raises in idle",
        "raises with its greenlet in a local",
        "is killed",
    ],
)
def test_a_connection_is_closed_though_a_local_has_its_file(
    ending: str, spawn: Any, is_secured: bool
) -> None:
    """At once, as with gevent: the error's traceback does not keep the greenlet that keeps it."""
    talk = Talk(ending)
    serving, asking = server_context(), client_context()
    options: dict[str, Any] = {"ssl_context": serving} if is_secured else {}
    with StreamServer(LOCAL, talk, spawn=spawn, **options) as server:
        server.start()
        clients = []
        for _ in range(COUNT if spawn != 5 else 5):
            client: Any = connect(server.address)
            if is_secured:
                client = asking.wrap_socket(client)
            client.sendall(b"x\n")
            clients.append(client)
        if ending == "is killed":
            with gevent.Timeout(10):
                while talk.arrived < len(clients):
                    gevent.sleep(0.001)
            server.drain(0)
        assert [is_closed(client) for client in clients] == [True] * len(clients)
        for client in clients:
            client.close()


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("ending", ["raises", "is killed"])
def test_an_http_connection_is_closed_though_a_local_has_its_file(
    ending: str, spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for an application that holds what it reads its request from."""
    monkeypatch.setattr("glb.serve.drain_worker.KILL_SECONDS", 0.05)
    arrived = 0
    may_go = Event()

    def application(environ: dict[str, Any], _start_response: Any) -> list[bytes]:
        nonlocal arrived
        body = environ["wsgi.input"]
        extra = body.rfile.raw._sock.makefile("rb") if hasattr(body.rfile, "raw") else None
        arrived += 1
        if ending == "raises":
            raise OwnExit(body, extra)
        may_go.wait()
        return [b""]

    server = WSGIServer(LOCAL, application, spawn=spawn, log=None, error_log=None)
    with server:
        server.start()
        clients = [connect(server.address) for _ in range(5)]
        for client in clients:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        with gevent.Timeout(10):
            while arrived < len(clients):
                gevent.sleep(0.001)
        if ending == "is killed":
            server.drain(0)
        assert [is_ended(client) for client in clients] == [True] * len(clients)
        for client in clients:
            client.close()


class OwnExit(BaseException):
    """An error that gevent's HTTP handler does not turn into a reply."""


def is_ended(client: socket.socket) -> bool:
    """Whether *client* reads the end of the stream, after whatever reply."""
    while True:
        client.settimeout(1)
        try:
            if not client.recv(1000):
                return True
        except TimeoutError:
            return False
        except OSError:
            return True
