"""`glb.pywsgi.WSGIServer`: gevent's, with clones."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import pytest
from gevent import socket

import glb
from glb.pywsgi import WSGIHandler, WSGIServer

from ..support.helpers import (
    ask,
    close_all,
    connect,
    http_get,
    is_refused,
    let_hub_turn,
    receive_all,
    turns,
    wait_until,
)

LOCAL = ("127.0.0.1", 0)


def tell_clone(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['glb.clone']}".encode()]


def test_requests_go_round_in_exact_turn() -> None:
    """A connection a request: environ has the clone, 0, 1, ..., N-1, 0, 1, ..."""
    with WSGIServer(LOCAL, tell_clone, clones=5, log=None) as server:
        server.start()
        assert [int(http_get(server.address)) for _ in range(50)] == turns(5, 50)


def test_a_kept_alive_connection_stays_with_its_clone() -> None:
    """Turns are taken by connections, not by requests."""
    with WSGIServer(LOCAL, tell_clone, clones=3, log=None) as server:
        server.start()
        with connect(server.address) as client:
            for _ in range(4):
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                reply = b""
                while not reply.partition(b"\r\n\r\n")[2]:
                    reply += client.recv(4096)
                assert reply.endswith(b"\r\n\r\n0")
        assert http_get(server.address) == b"1"


def test_small_replies_leave_at_once() -> None:
    """Head and body go apart, and the body does not wait for the head's acknowledgement."""
    for nodelay in (None, False):
        with WSGIServer(LOCAL, tell_clone, log=None, nodelay=nodelay) as server:
            server.start()
            option = server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert bool(option) is (nodelay is None)


def test_environ_has_the_clone_and_its_server() -> None:
    """A number that knows its server; what a copy keeps is the number."""
    seen: list[Any] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append((environ["glb.clone"], glb.current_clone()))
        start_response("200 OK", [])
        return [json.dumps(environ["glb.clone"]).encode()]

    with WSGIServer(LOCAL, application, clones=2, log=None) as server:
        server.start()
        assert [http_get(server.address) for _ in range(2)] == [b"0", b"1"]
        assert [(clone.index, clone.server is server) for clone, _ in seen] == [
            (0, True),
            (1, True),
        ]
        assert all(clone is current for clone, current in seen)


def test_each_clone_can_have_its_own_application() -> None:
    """`handler_factory` makes applications here."""

    def factory(index: int) -> Any:
        def application(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
            start_response("200 OK", [])
            return [b"application %d" % index]

        return application

    with WSGIServer(LOCAL, handler_factory=factory, clones=2, log=None) as server:
        server.start()
        assert [http_get(server.address) for _ in range(3)] == [
            b"application 0",
            b"application 1",
            b"application 0",
        ]
    with pytest.raises(TypeError, match="not both"):
        WSGIServer(LOCAL, tell_clone, handler_factory=factory)


def test_a_subclass_can_have_its_application_and_its_clones() -> None:
    """As class attributes, as gevent's tests do it."""

    class Simple(WSGIServer):
        application = staticmethod(tell_clone)
        clones = 2

    with Simple(LOCAL, log=None) as server:
        server.start()
        assert [http_get(server.address) for _ in range(3)] == [b"0", b"1", b"0"]


def test_a_full_pool_never_answers_503() -> None:
    """Clients wait in the accept queue and get their replies."""
    proceed = gevent.event.Event()

    def application(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
        proceed.wait()
        start_response("200 OK", [])
        return [b"late"]

    with WSGIServer(LOCAL, application, spawn=2, log=None) as server:
        server.start()
        clients = [connect(server.address) for _ in range(9)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        wait_until(lambda: sum(clone.active for clone in server.clone_stats()) == 2)
        let_hub_turn()
        assert sum(clone.accepted for clone in server.clone_stats()) == 2
        proceed.set()
        replies = [receive_all(client) for client in clients]
        assert all(reply.startswith(b"HTTP/1.1 200 OK") for reply in replies)
        close_all(clients)


def test_an_error_in_an_application_is_a_500_and_logged() -> None:
    """As gevent's: on the server's error log, and the clone goes on."""
    errors = io.StringIO()

    def application(_environ: dict[str, Any], _start_response: Any) -> list[bytes]:
        raise LookupError("on purpose")

    with WSGIServer(LOCAL, application, log=None, error_log=errors) as server:
        server.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gevent.get_hub(), "handle_error", lambda *_: None)
            reply = ask(server.address, b"GET / HTTP/1.0\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 500")
        assert server.clone_stats()[0].completed == 1


def test_a_unix_socket_and_a_restart(tmp_path: Path) -> None:
    """Served, freed, and served again at the same path."""
    path = str(tmp_path / "http")
    server = WSGIServer(f"unix:{path}", tell_clone, clones=2, log=None)
    for _ in range(2):
        server.start()
        assert [http_get(path) for _ in range(3)] == [b"0", b"1", b"0"]
        server.stop()
        assert is_refused(path)


def test_environ_and_server_name_are_gevents() -> None:
    """What gevent's has for an application, ours has."""
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("200 OK", [])
        return []

    with WSGIServer(LOCAL, application, log=None, environ={"mine": "x"}) as server:
        server.start()
        http_get(server.address, "/path?a=b")
        assert seen["SERVER_PORT"] == str(server.server_port)
    assert (seen["mine"], seen["PATH_INFO"], seen["QUERY_STRING"]) == ("x", "/path", "a=b")
    assert not seen["wsgi.multithread"]


def test_an_application_in_a_greenlet_of_its_own_is_its_clones() -> None:
    """The environ says whose it is, also where the context doesn't."""

    class Detached(WSGIHandler):
        def run_application(self) -> None:
            gevent.spawn(super().run_application).get()

    def factory(index: int) -> Any:
        def application(_environ: dict[str, Any], start_response: Any) -> list[bytes]:
            start_response("200 OK", [])
            return [b"%d" % index]

        return application

    with WSGIServer(
        LOCAL, handler_factory=factory, handler_class=Detached, clones=3, log=None
    ) as server:
        server.start()
        assert [int(http_get(server.address)) for _ in range(6)] == turns(3, 6)


@pytest.mark.process
@pytest.mark.parametrize("first", ["gevent.pywsgi", "glb.pywsgi", "glb.server"])
def test_ours_can_take_the_place_of_gevents_in_any_order(first: str) -> None:
    """Also before gevent.pywsgi is imported, which then builds on our StreamServer."""
    program = f"""if True:
        import importlib
        importlib.import_module({first!r})
        import gevent.server
        import glb.server
        gevent.server.StreamServer = glb.server.StreamServer
        import gevent.pywsgi
        import glb.pywsgi
        gevent.pywsgi.WSGIServer = glb.pywsgi.WSGIServer
        from tests.support.helpers import http_get
        def factory(index):
            return lambda environ, start: (start("200 OK", []), [b"%d" % index])[1]
        with gevent.pywsgi.WSGIServer(
            ("127.0.0.1", 0), handler_factory=factory, policy="round_robin", clones=3, log=None
        ) as server:
            server.start()
            order = [http_get(server.address) for _ in range(4)]
            print(order, server.glb_engine.clones.policy.value)
    """
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("[b'0', b'1', b'2', b'0'] round_robin\n", "")


@pytest.mark.parametrize("length", [str(sys.maxsize + 1), "9" * 30, "1_" + "0" * 19])
def test_a_body_longer_than_any_is_refused(length: str) -> None:
    """Gevent's input would look for its end for ever, and its hub with it."""

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.input"].readline()
        start_response("200 OK", [])
        return [b"served"]

    with WSGIServer(LOCAL, application, clones=1, log=None, error_log=None) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(f"POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client).startswith(b"HTTP/1.1 400 Bad Request")
        with connect(server.address) as client:
            client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n\n\n")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client).endswith(b"served")
