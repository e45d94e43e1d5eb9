"""Behind proxies of one's own, an application sees the client, and nothing that may be forged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gevent import socket

from glb.pywsgi import WSGIHandler, WSGIServer

from ..support.helpers import connect, receive_all

ANY = ("127.0.0.1", 0)
KEYS: tuple[str, ...] = (
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "wsgi.url_scheme",
    "HTTP_HOST",
    "HTTP_X_FORWARDED_FOR",
)
KEYS += ("HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST", "HTTP_FORWARDED")

Ask = Callable[..., dict[str, Any]]


class ByHooks(WSGIHandler):
    """Requests are read by gevent's hooks."""

    def read_request(self, raw_requestline: str) -> Any:
        return super().read_request(raw_requestline)


class Served:
    """A server, what its application was given, and what it has logged."""

    def __init__(self, handler: Any, **options: Any) -> None:
        self.environs: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.errors: list[str] = []
        self.server = WSGIServer(
            ANY, self, log=self.lines(self.log), error_log=self.lines(self.errors),
            handler_class=handler, clones=1, **options,
        )  # fmt: skip
        self.server.start()

    @staticmethod
    def lines(to: list[str]) -> Any:
        class Log:
            write = staticmethod(to.append)

        return Log()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.environs.append({key: environ.get(key) for key in KEYS})
        start_response("200 OK", [("Content-Length", "1")])
        return [b"x"]

    def ask(self, *fields: str, host: str = "inner") -> bytes:
        """Return the reply to a request with *fields*."""
        lines = "".join(f"{each}\r\n" for each in fields)
        with connect(self.server.address) as client:
            request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{lines}\r\n"
            client.sendall(request.encode("latin-1"))
            client.shutdown(socket.SHUT_WR)
            return receive_all(client)


@pytest.fixture(params=[WSGIHandler, ByHooks], ids=["lean", "hooks"])
def serve(request: pytest.FixtureRequest) -> Iterator[Callable[..., Served]]:
    """Make a server, which is stopped afterwards."""
    made: list[Served] = []

    def make(**options: Any) -> Served:
        made.append(Served(request.param, **options))
        return made[-1]

    yield make
    for each in made:
        each.server.stop()


def test_the_environ_and_the_log_show_the_client(serve: Callable[..., Served]) -> None:
    """Its address, scheme and host; what it has forged is cut off."""
    served = serve(forwarded_allow_ips=["127.0.0.1", "10.0.0.0/8"])
    reply = served.ask(
        "X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.1.1.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: a.example",
    )
    assert reply.endswith(b"\r\n\r\nx")
    assert served.environs == [
        {
            "REMOTE_ADDR": "1.2.3.4",
            "REMOTE_PORT": None,
            "wsgi.url_scheme": "https",
            "HTTP_HOST": "a.example",
            "HTTP_X_FORWARDED_FOR": "1.2.3.4, 10.1.1.1",
            "HTTP_X_FORWARDED_PROTO": "https",
            "HTTP_X_FORWARDED_HOST": "a.example",
            "HTTP_FORWARDED": None,
        }
    ]
    (line,) = served.log
    assert line.startswith("1.2.3.4 - - [")


@pytest.mark.parametrize("networks", [[], ["10.0.0.0/8"], "unix"])
def test_fields_from_a_peer_that_is_no_proxy_are_left_out(
    networks: Any, serve: Callable[..., Served]
) -> None:
    """The client is the peer."""
    served = serve(forwarded_allow_ips=networks)
    served.ask("X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https", "Forwarded: for=1.2.3.4")
    (environ,) = served.environs
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["REMOTE_PORT"].isdigit()
    assert (environ["wsgi.url_scheme"], environ["HTTP_HOST"]) == ("http", "inner")
    assert [environ[key] for key in KEYS[4:]] == [None] * 4


def test_without_the_setting_the_fields_come_as_they_are(serve: Callable[..., Served]) -> None:
    """As under gevent: the application decides."""
    served = serve()
    served.ask("X-Forwarded-For: 6.6.6.6, 1.2.3.4")
    (environ,) = served.environs
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert environ["HTTP_X_FORWARDED_FOR"] == "6.6.6.6, 1.2.3.4"


def test_two_clients_are_refused(serve: Callable[..., Served]) -> None:
    """One of the fields was not written by the proxy. One line says so."""
    served = serve(forwarded_allow_ips="*")
    reply = served.ask("X-Forwarded-For: 1.2.3.4", "Forwarded: for=6.6.6.6")
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in reply
    assert served.environs == []
    (line,) = served.errors
    assert "X-Forwarded-For says '1.2.3.4', and Forwarded '6.6.6.6'" in line


def test_each_request_of_a_connection_has_its_own_client(serve: Callable[..., Served]) -> None:
    """A proxy sends those of many on one."""
    served = serve(forwarded_allow_ips="127.0.0.1")
    with connect(served.server.address) as client:
        for hops in ("1.2.3.4", "5.6.7.8", None, "1.2.3.4"):
            field = "" if hops is None else f"X-Forwarded-For: {hops}\r\n"
            client.sendall(f"GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n".encode())
            while not client.recv(1000).endswith(b"x"):
                pass
    found = [each["REMOTE_ADDR"] for each in served.environs]
    assert found == ["1.2.3.4", "5.6.7.8", "127.0.0.1", "1.2.3.4"]
    assert [each["REMOTE_PORT"] is None for each in served.environs] == [True, True, False, True]
    assert [line.split()[0] for line in served.log] == found


def test_what_is_set_later_holds_from_the_next_start_on(serve: Callable[..., Served]) -> None:
    """As other settings of connections."""
    served = serve()
    served.server.forwarded_allow_ips = ["127.0.0.1"]
    served.server.stop()
    served.server.start()
    served.ask("Forwarded: for=1.2.3.4;proto=https")
    assert served.environs[0]["REMOTE_ADDR"] == "1.2.3.4"
    assert served.environs[0]["wsgi.url_scheme"] == "https"


@pytest.mark.parametrize("wrong", ["nowhere", ["10.0.0.0/99"], [1]])
def test_bad_networks_are_refused(wrong: Any) -> None:
    """With the value in the error."""
    with pytest.raises((TypeError, ValueError), match=r"nowhere|10\.0\.0\.0/99|got 1"):
        WSGIServer(ANY, lambda *_: [], forwarded_allow_ips=wrong)
