"""Users over TCP, TLS, Unix sockets and WebSockets: what is counted, and what stays behind."""

from __future__ import annotations

import base64
import doctest
import errno
import gc
import hashlib
import importlib
import os
import pathlib
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.pool import Group
from locust import (
    MarkovTaskSet,
    SequentialTaskSet,
    TaskSet,
    constant,
    tag,
    task,
    transition,
)
from locust.env import Environment
from locust.exception import (
    CatchResponseError,
    InterruptTaskSet,
    RescheduleTask,
    RescheduleTaskImmediately,
    StopTest,
    StopUser,
)
from locust.user.task import filter_tasks_by_tags

import glb
from glb.locust import EchoUser, TcpUser
from glb.locust.users import SHOWN_BYTES, RequestFailed, tcp_target
from glb.server import StreamServer

from ..support.bounds import ENDLESS_SECONDS
from ..support.helpers import wait_until

websocket = pytest.importorskip("websocket")

from glb.locust.websocket import WebSocketUser, websocket_target  # noqa: E402  # if there is one

CERTIFICATES = pathlib.Path(gevent.__file__).parent / "tests"
CERTIFICATE, KEY = CERTIFICATES / "test_server.crt", CERTIFICATES / "test_server.key"

#: Long enough for anything on loopback, where a test would otherwise wait for ten seconds.
SHORT_SECONDS = 0.1


class Log:
    """The requests of a user, as locust has them."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, **event: Any) -> None:
        self.events.append(event)

    @property
    def names(self) -> list[str]:
        return [each["name"] for each in self.events]

    @property
    def failures(self) -> list[tuple[str, BaseException]]:
        return [(each["name"], each["exception"]) for each in self.events if each["exception"]]

    @property
    def clones(self) -> list[tuple[Any, Any]]:
        """Clone and turn of each event that has them."""
        contexts = [each["context"] for each in self.events]
        return [(each["glb_clone"], each["glb_turn"]) for each in contexts if "glb_clone" in each]


def made(user_class: type[Any]) -> tuple[Any, Log]:
    """Return a user that doesn't run, and its requests."""
    environment: Any = Environment(user_classes=[user_class])
    log = Log()
    environment.events.request.add_listener(log)
    return user_class(environment), log


def described(base: type[Any], **attributes: Any) -> type[Any]:
    return type("Client", (base,), {"tasks": [lambda _: None], **attributes})


def client(base: type[Any] = TcpUser, **attributes: Any) -> tuple[Any, Log]:
    """Return ``self.client`` of a user with these *attributes*, and the log of its requests."""
    user, log = made(described(base, **attributes))
    return user.client, log


class Served:
    """A server, the connections that it has accepted, and those that are still open."""

    def __init__(self, server: Any, url: str) -> None:
        self.server = server
        self.url = url
        self.accepted = 0
        self.open = 0
        self.ended: list[BaseException | None] = []


@contextmanager
def serving(
    handle: Callable[[Any], object], kind: str = "tcp", folder: Any = None, clones: int = 1
) -> Iterator[Served]:
    """Serve by *handle*, which is given the socket; how it ends is kept."""

    def each(sock: Any, _: Any) -> None:
        served.accepted += 1
        served.open += 1
        try:
            handle(sock)
        except (OSError, gevent.GreenletExit) as error:
            served.ended.append(error)
        else:
            served.ended.append(None)
        finally:
            served.open -= 1

    address: Any = ("::1" if kind == "tcp6" else "127.0.0.1", 0)
    options: dict[str, Any] = {}
    if kind == "unix":
        address = f"unix:{folder}/sock"
    if kind == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE, KEY)
        options = {"ssl_context": context}
    server = StreamServer(address, each, clones=clones, **options)
    server.start()
    if kind == "unix":
        url = f"unix://{folder}/sock"
    else:
        name = "[::1]" if kind == "tcp6" else "127.0.0.1"
        url = f"{'tls' if kind == 'tls' else 'tcp'}://{name}:{server.address[1]}"
    served = Served(server, url)
    try:
        yield served
    finally:
        server.stop(timeout=0)


def lines(sock: Any) -> Iterator[bytes]:
    had = b""
    while data := sock.recv(4096):
        had += data
        *whole, had = had.split(b"\n")
        yield from whole


def echo(sock: Any) -> None:
    for line in lines(sock):
        sock.sendall(line + b"\n")


def clone() -> int:
    """Return which clone it is that runs this."""
    current = glb.current_clone()
    assert current is not None
    return current.index


def tell(sock: Any) -> None:
    for line in lines(sock):
        sock.sendall(b"%d/4 %s\n" % (clone(), line))


def never_reply(sock: Any) -> None:
    while sock.recv(4096):
        pass


def reply_with(*pieces: bytes) -> Callable[[Any], None]:
    """Return a handler that answers the first line with *pieces*, and then closes."""

    def handle(sock: Any) -> None:
        sock.recv(4096)
        for piece in pieces:
            sock.sendall(piece)
            gevent.sleep(0)

    return handle


def reset(sock: Any) -> None:
    """Reset the connection in the middle of a reply."""
    sock.recv(4096)
    sock.sendall(b"3/4 he")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


@pytest.fixture
def closed_port() -> Iterator[str]:
    """A port without a listener; bound, so that there won't be one."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{sock.getsockname()[1]}"


@pytest.fixture
def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTIFICATE))


def let_run(user: Any, until: Callable[[], bool]) -> None:
    """Run *user* as locust's runner does until that holds, and kill it."""
    greenlet = user.start(Group())
    try:
        wait_until(lambda: until() or greenlet.dead)
        assert until(), greenlet.exception
    finally:
        greenlet.kill()


# -- requests ----------------------------------------------------------------------------------


def test_each_method_is_a_timed_request() -> None:
    """With its name, its kind, its time and its length, as locust's listeners expect them."""
    with serving(echo) as served:
        ours, log = client(host=served.url)
        ours.connect()
        ours.send(b"one\ntwo\nthr")
        assert ours.receive(4) == b"one\n"
        assert ours.receive_line() == b"two\n"
        ours.send(b"ee\n", name="more")
        assert ours.receive_until(b"e\n") == b"three\n"
        assert ours.request(b"four\n", name="ask") == b"four\n"
        ours.close()
        assert not ours.is_connected
    assert [(each["name"], each["response_length"]) for each in log.events] == [
        *(("connect", 0), ("send", 0), ("receive", 4), ("receive", 4), ("more", 0)),
        *(("receive", 6), ("ask", 5), ("close", 0)),
    ]
    assert log.failures == []
    assert {each["request_type"] for each in log.events} == {"TCP"}
    assert {each["url"] for each in log.events} == {served.url}
    assert all(0 <= each["response_time"] < 60_000 for each in log.events)
    starts = [each["start_time"] for each in log.events]
    assert starts == sorted(starts)
    assert [each["response"] for each in log.events][2:4] == [b"one\n", b"two\n"]


@pytest.mark.parametrize("kind", ["tcp", "tcp6", "tls", "unix"])
def test_it_speaks_over(kind: str, tmp_path: pathlib.Path, trusting: ssl.SSLContext) -> None:
    """Each of these, and the report says which."""
    with serving(echo, kind, tmp_path) as served:
        ours, log = client(
            host=served.url, ssl_context=trusting, server_hostname="localhost", keep_alive=True
        )
        for _ in range(3):
            ours.connect()
            assert ours.request(b"hello\n") == b"hello\n"
        ours.close()
        wait_until(lambda: served.open == 0)
    assert served.ended == [None]
    assert log.names == ["connect", "request", "request", "request", "close"]
    assert log.failures == []
    assert {each["request_type"] for each in log.events} == {
        kind.upper()[:3].replace("UNI", "UNIX")
    }


def test_what_comes_early_is_kept() -> None:
    """Of a piece with more in it than was asked for nothing is lost; and a reply may be in many."""
    with serving(reply_with(b"on", b"e\ntwo\nthr", b"ee", b"four")) as served:
        ours, log = client(host=served.url)
        assert ours.request(b"go\n") == b"one\n"
        assert ours.receive(2) + ours.receive_line() == b"two\n"
        assert ours.receive(0) == b""
        assert ours.receive(9) == b"threefour"
        ours.close()
    assert log.failures == []


def test_an_end_may_come_in_pieces() -> None:
    """It is found wherever it is cut, and looked for only where it may be."""
    with serving(reply_with(b"a\r", b"\nb\r\n", b"c\r", b"\r", b"\n")) as served:
        ours, log = client(host=served.url)
        ours.send(b"go\n")
        found = [ours.receive_until(b"\r\n") for _ in range(3)]
        ours.close()
    assert found == [b"a\r\n", b"b\r\n", b"c\r\r\n"]
    assert log.failures == []


def test_a_request_of_a_length() -> None:
    """Where replies have no end that could be looked for."""
    with serving(reply_with(b"a\nb", b"c\n")) as served:
        ours, log = client(host=served.url)
        assert ours.request(b"go\n", length=5) == b"a\nbc\n"
        ours.close()
    assert log.names == ["connect", "request", "close"]


def test_a_megabyte_there_and_back() -> None:
    """More than the kernel takes at once: the receiver must read meanwhile."""
    data = b"x" * 1_000_000 + b"\n"
    with serving(echo) as served:
        ours, log = client(host=served.url)
        ours.connect()
        sender = gevent.spawn(ours.send, data)
        assert ours.receive_line() == data
        sender.get()
        ours.close()
    assert log.failures == []


def test_a_line_without_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """It doesn't fill the memory."""
    monkeypatch.setattr("glb.locust.users.MOST_BYTES", 1_000_000)

    def talk(sock: Any) -> None:
        while True:
            sock.sendall(b"x" * 1_000_000)

    with serving(talk) as served:
        ours, log = client(host=served.url, timeout=None)
        with pytest.raises(RequestFailed, match="in 1000000 bytes"):
            ours.receive_line()
    assert log.names == ["connect", "receive"]


def test_the_users_context_is_in_each_event() -> None:
    """Beside the clone; and the user's own dict stays as it is."""
    mine = {"who": "me"}
    with serving(tell) as served:
        ours, log = client(
            host=served.url, context=lambda _: mine, clone_of=lambda _, reply: reply[:3]
        )
        ours.request(b"hello\n")
        ours.close()
    assert [each["context"]["who"] for each in log.events] == ["me"] * 3
    assert log.clones == [(b"0/4", True)]
    assert mine == {"who": "me"}


def test_a_connection_is_one_turn() -> None:
    """The first reply that has its clone; those after it are replies."""

    def whose(_: Any, reply: bytes) -> bytes | None:
        return reply if reply != b"hm\n" else None

    with serving(echo) as served:
        ours, log = client(host=served.url, clone_of=whose)
        for _ in range(2):
            ours.connect()
            for line in (b"hm\n", b"1\n", b"1\n"):
                ours.request(line)
        ours.close()
    assert log.clones == [(b"1\n", True), (b"1\n", False)] * 2


def test_a_check_says_what_is_wrong() -> None:
    """The reply is a failure with its words, and still counts for its clone."""
    with serving(echo) as served:
        ours, log = client(host=served.url, clone_of=lambda *_: 3)
        ours.request(b"fine\n", check=lambda _: None)
        with pytest.raises(RequestFailed, match="not so"):
            ours.request(b"hello\n", check=lambda reply: f"not so: {reply!r}")
        assert not ours.is_connected
    ((name, error),) = log.failures
    assert (name, type(error), str(error)) == (
        *("request", CatchResponseError, "not so: b'hello\\n'"),
    )
    assert log.clones == [(3, True), (3, False)]


def test_a_mistake_of_the_locustfiles_is_a_failed_request() -> None:
    """A reply that `clone_of` didn't expect is in the report, and the error is the task's."""

    class Mistaken(TcpUser):
        abstract = True
        keep_alive = True

        def clone_of(self, reply: bytes) -> bytes:
            return reply.split()[5]

    with serving(echo) as served:
        user, log = made(described(Mistaken, host=served.url))
        with pytest.raises(IndexError):
            user.client.request(b"hello\n")
        assert [(name, type(reason)) for name, reason in log.failures] == [("request", IndexError)]
        assert not user.client.is_connected
        wait_until(lambda: served.ended == [None])


def test_abort_resets() -> None:
    """The server gets an error, not the end of a stream."""
    with serving(never_reply) as served:
        ours, log = client(host=served.url)
        ours.connect()
        wait_until(lambda: served.open == 1)
        ours.abort()
        ours.abort()
        wait_until(lambda: served.open == 0)
    assert [type(each) for each in served.ended] == [ConnectionResetError]
    assert log.names == ["connect"]


def test_two_greenlets_may_use_one_connection() -> None:
    """One that receives, with its own timeout, and one that sends meanwhile."""
    with serving(echo) as served:
        ours, log = client(host=served.url)
        ours.connect()
        reader = gevent.spawn(lambda: [ours.receive_line() for _ in range(100)])
        for number in range(100):
            ours.send(b"%d\n" % number)
            gevent.sleep(0)
        assert reader.get() == [b"%d\n" % number for number in range(100)]
        ours.close()
    assert log.failures == []


# -- hosts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["users", "websocket"])
def test_the_examples_are_true(module: str) -> None:
    """The suite's own search for them would import locust where it may not be."""
    found = doctest.testmod(importlib.import_module(f"glb.locust.{module}"))
    assert (found.failed, found.attempted > 0) == (0, True)


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:80", "http://127.0.0.1:80", "tcp://127.0.0.1", "tcp://:80", "tcp://a:b", ""),
        *("tcp://a:70000", "tcp://a:0", "tcp://[::1:80", "tcp://a:80/path", "tcp://me@a:80"),
        *("tcp://a:80?x", "unix://relative", "unix:one", "TLS:a:80"),
    ],
)
def test_another_host_stops_the_test(url: str) -> None:
    """With what was given, and what may be."""
    words = f"tls://host:port or unix:///path, got {url!r}"
    with pytest.raises(ValueError, match=re.escape(words)):
        tcp_target(url)
    with pytest.raises(StopTest, match=re.escape(words)):
        made(described(TcpUser, host=url))


def test_no_host_stops_the_test() -> None:
    """As locust's own users do it."""
    with pytest.raises(StopTest, match="no host to connect to: give --host, or Client"):
        made(described(TcpUser))


@pytest.mark.parametrize(
    ("url", "kind", "name", "port"),
    [
        ("tcp://127.0.0.1:8000", "TCP", "127.0.0.1", 8000),
        ("tcp://[::1]:8000/", "TCP", "::1", 8000),
        ("tls://example.org:443", "TLS", "example.org", 443),
        ("unix:///run/a:b.sock", "UNIX", "/run/a:b.sock", None),
        ("unix:/run/glb.sock", "UNIX", "/run/glb.sock", None),
    ],
)
def test_hosts(url: str, kind: str, name: str, port: int | None) -> None:
    """All that there are."""
    target = tcp_target(url)
    assert (target.kind, target.name, target.port) == (kind, name, port)
    assert tcp_target(url) is target


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of its addresses the one that answers is asked first from then on."""
    asked = []
    with serving(echo) as served:
        port = served.server.address[1]

        def look_up(*args: Any) -> list[Any]:
            asked.append(args)
            addresses = ["127.0.0.9", "127.0.0.1", "127.0.0.1"]
            return [(socket.AF_INET, 1, 6, "", (each, port)) for each in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        user_class = described(TcpUser, host=f"tcp://server.example:{port}")
        for _ in range(3):
            user, log = made(user_class)
            user.client.request(b"hello\n")
            user.client.close()
            assert log.failures == []
    assert len(asked) == 1
    target = tcp_target(user_class.host)
    assert [address[0] for _, address in target.resolve()] == ["127.0.0.1", "127.0.0.9"]


def test_an_unknown_name_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each connect: it is looked up again, and may be known by then."""

    def look_up(*_: Any) -> list[Any]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    ours, log = client(host="tcp://unknown.example:80")
    for _ in range(2):
        with pytest.raises(RequestFailed, match="not known"):
            ours.connect()
    assert [(name, type(error)) for name, error in log.failures] == [
        ("connect", socket.gaierror)
    ] * 2


# -- failures ----------------------------------------------------------------------------------


def test_refused(closed_port: str) -> None:
    """The failure is the kernel's error; what the task gets isn't an error of its own."""
    ours, log = client(host=closed_port)
    with pytest.raises(RescheduleTask) as caught:
        ours.request(b"hello\n")
    ((name, error),) = log.failures
    assert (name, type(error)) == ("connect", ConnectionRefusedError)
    assert isinstance(caught.value, RequestFailed)
    assert caught.value.reason is caught.value.__cause__ is error
    assert "refused" in str(caught.value)
    assert not ours.is_connected


def test_no_socket_file_is_a_failure(tmp_path: pathlib.Path) -> None:
    """As a port without a listener."""
    ours, log = client(host=f"unix://{tmp_path}/none")
    with pytest.raises(RequestFailed):
        ours.connect()
    assert [type(error) for _, error in log.failures] == [FileNotFoundError]


def test_out_of_descriptors_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the client's, and the report says so."""

    def fail(*_: Any) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("glb.locust.users.Connection", fail)
    ours, log = client(host="tcp://127.0.0.1:80")
    with pytest.raises(RequestFailed, match="Too many open files"):
        ours.connect()
    assert log.names == ["connect"]


def test_reset_in_the_middle() -> None:
    """The request is the failure, with what it was; the next one connects anew."""
    with serving(reset) as served:
        ours, log = client(host=served.url, keep_alive=True)
        for _ in range(2):
            with pytest.raises(RequestFailed):
                ours.request(b"hello\n")
        assert served.accepted == 2
    assert log.names == ["connect", "request"] * 2
    assert [type(error) for _, error in log.failures] == [ConnectionResetError] * 2


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"", "the server closed the connection without a reply"),
        (b"3/4 he", "the server closed the connection after 6 bytes: b'3/4 he'"),
        (
            b"x" * 200,
            f"the server closed the connection after 200 bytes: b'{'x' * SHOWN_BYTES}'...",
        ),
    ],
)
def test_an_end_in_the_middle(reply: bytes, words: str) -> None:
    """The failure has what there was of the reply, so far as one wants to read it."""
    with serving(reply_with(reply)) as served:
        ours, log = client(host=served.url)
        with pytest.raises(RequestFailed):
            ours.request(b"hello\n")
    ((name, error),) = log.failures
    assert (name, type(error), str(error)) == ("request", ConnectionError, words)
    assert not ours.is_connected


def test_an_end_short_of_a_length() -> None:
    """The failure says how much was asked for, too."""
    with serving(reply_with(b"12345")) as served:
        ours, log = client(host=served.url)
        ours.send(b"go\n")
        with pytest.raises(RequestFailed, match="after 5 of 10 bytes: b'12345'"):
            ours.receive(10)
    assert [name for name, _ in log.failures] == ["receive"]


@pytest.mark.parametrize("kind", ["tcp", "tls", "unix"])
def test_no_reply(kind: str, tmp_path: pathlib.Path, trusting: ssl.SSLContext) -> None:
    """A timeout is a failure that says how long was waited; the connection is given up."""
    with serving(never_reply, kind, tmp_path) as served:
        ours, log = client(
            host=served.url,
            timeout=SHORT_SECONDS,
            ssl_context=trusting,
            server_hostname="localhost",
        )
        with pytest.raises(RequestFailed):
            ours.request(b"hello\n")
        assert not ours.is_connected
        wait_until(lambda: served.open == 0)
    ((name, error),) = log.failures
    assert (name, type(error), str(error)) == ("request", TimeoutError, "no reply within 0.1 s")
    # libuv counts whole milliseconds.
    assert log.events[-1]["response_time"] >= SHORT_SECONDS * 1000 - 2


def test_a_timeout_begins_with_its_request() -> None:
    """And not when the event loop last looked at its clock, before other users had their turns."""

    def reply_once(sock: Any) -> None:
        gevent.sleep(0)
        sock.sendall(b"hello\n")
        never_reply(sock)

    with serving(reply_once) as served:
        ours, log = client(host=served.url, timeout=SHORT_SECONDS)
        assert ours.receive_line() == b"hello\n"  # the loop looked before it saw this
        began = monotonic()
        while monotonic() - began < 2 * SHORT_SECONDS:
            pass
        with pytest.raises(RequestFailed):
            ours.receive_line()
    assert log.events[-1]["response_time"] >= SHORT_SECONDS * 1000 - 2


def test_a_reply_in_drops_takes_no_longer() -> None:
    """The time is for the whole, and doesn't begin again with each piece."""

    def drip(sock: Any) -> None:
        while True:
            sock.sendall(b".")
            gevent.sleep(SHORT_SECONDS / 20)

    with serving(drip) as served:
        ours, log = client(host=served.url, timeout=SHORT_SECONDS)
        with pytest.raises(RequestFailed, match=r"no reply within 0\.1 s"):
            ours.receive_line()
    assert log.names == ["connect", "receive"]


def test_a_server_that_does_not_read() -> None:
    """What can't be sent is a failure of "send"."""
    held = Event()
    with serving(lambda _: held.wait()) as served:
        ours, log = client(host=served.url, timeout=SHORT_SECONDS)
        with pytest.raises(RequestFailed, match=r"not all sent within 0\.1 s"):
            ours.send(b"x" * 50_000_000)
        held.set()
    assert [(name, type(error)) for name, error in log.failures] == [("send", TimeoutError)]


def test_a_handshake_that_does_not_end() -> None:
    """TLS's is part of "connect", and of its time."""
    with serving(never_reply) as served:
        ours, log = client(host=served.url.replace("tcp", "tls"), connect_timeout=SHORT_SECONDS)
        with pytest.raises(RequestFailed, match=r"no connection within 0\.1 s"):
            ours.connect()
        wait_until(lambda: served.open == 0)
    assert log.names == ["connect"]


@contextmanager
def full_queue(path: str) -> Iterator[socket.socket]:
    """A Unix socket whose accept queue is full."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)
        yield listener


def test_a_full_queue_of_a_unix_socket(tmp_path: pathlib.Path) -> None:
    """It is waited for; the kernel would say no at once."""
    with full_queue(f"{tmp_path}/sock") as listener:
        ours, log = client(host=f"unix://{tmp_path}/sock", connect_timeout=SHORT_SECONDS)
        with pytest.raises(RequestFailed, match=r"no connection within 0\.1 s"):
            ours.connect()
        patient, _ = client(host=f"unix://{tmp_path}/sock")
        waiting = gevent.spawn(patient.connect)
        gevent.sleep(0)
        accepted = [listener.accept()[0] for _ in range(2)]
        waiting.get()
        patient.close()
        for each in accepted:
            each.close()
    assert [type(error) for _, error in log.failures] == [TimeoutError]


def test_a_connection_that_takes_its_time() -> None:
    """One that the kernel can't answer at once: it is waited for, and may fail yet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        others = [socket.socket() for _ in range(3)]
        for each in others:  # until the kernel drops what comes
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        ours, log = client(host=f"tcp://127.0.0.1:{port}", connect_timeout=SHORT_SECONDS)
        with pytest.raises(RequestFailed, match=r"no connection within 0\.1 s"):
            ours.connect()
        late, _ = client(host=f"tcp://127.0.0.1:{port}", connect_timeout=None)
        waiting = gevent.spawn(late.connect)
        gevent.sleep(0)
        for each in others:
            each.close()
        accepted = []
        while not waiting.dead:  # a SYN that was dropped is sent again after a second
            if found := gevent.with_timeout(0.05, listener.accept, timeout_value=None):
                accepted.append(found[0])
        waiting.get()
        late.close()
        for each in accepted:
            each.close()
    assert [type(error) for _, error in log.failures] == [TimeoutError]


def test_a_certificate_that_is_not_trusted_is_a_failure() -> None:
    """Without a context it verifies."""
    with serving(echo, "tls") as served:
        ours, log = client(host=served.url)
        with pytest.raises(RequestFailed, match="CERTIFICATE_VERIFY_FAILED"):
            ours.connect()
        wait_until(lambda: served.open == 0)
    assert [type(error) for _, error in log.failures] == [ssl.SSLCertVerificationError]


def test_a_certificate_of_another_is_a_failure(trusting: ssl.SSLContext) -> None:
    """The host's name is what must be in it."""
    with serving(echo, "tls") as served:
        ours, log = client(host=served.url, ssl_context=trusting)
        with pytest.raises(RequestFailed, match="IP address mismatch"):
            ours.connect()
    assert log.names == ["connect"]


def test_a_mistake_in_a_task_is_no_failure_of_the_servers() -> None:
    """It is raised as it is, and leaves no connection that might be in the middle of something."""
    with serving(echo) as served:
        ours, log = client(host=served.url)
        ours.connect()
        with pytest.raises(TypeError):
            ours.send("text")
        assert not ours.is_connected
    assert log.names == ["connect"]


def test_a_timeout_of_the_tasks_own_is_the_tasks() -> None:
    """A foreign exception is no failure, and the connection is closed."""
    with serving(never_reply) as served:
        ours, log = client(host=served.url)
        with pytest.raises(gevent.Timeout), gevent.Timeout(SHORT_SECONDS):
            ours.request(b"hello\n")
        assert not ours.is_connected
    assert log.names == ["connect"]


# -- kills -------------------------------------------------------------------------------------


def killed_in(ours: Any, call: Callable[[], object], is_there: Callable[[], bool]) -> None:
    """Kill the greenlet of *call* when *is_there*, and check that nothing is left of it."""
    greenlet = gevent.spawn(call)
    wait_until(is_there)
    gevent.sleep(0)
    assert not greenlet.dead
    greenlet.kill()
    assert isinstance(greenlet.value, gevent.GreenletExit)
    assert not ours.is_connected


@pytest.mark.parametrize("call", ["receive_line", "receive", "request", "send"])
@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_a_kill_in_the_middle_closes(call: str, kind: str, trusting: ssl.SSLContext) -> None:
    """Wherever it is, the server sees the end; and locust no failure: it was the user's end."""
    held = Event()

    def handle(sock: Any) -> None:
        held.wait()
        while sock.recv(100_000):
            pass

    with serving(handle, kind) as served:
        ours, log = client(host=served.url, ssl_context=trusting, server_hostname="localhost")
        args: dict[str, Any] = {"receive": (5,), "request": (b"a\n",), "send": (b"x" * 9_000_000,)}
        killed_in(ours, lambda: getattr(ours, call)(*args.get(call, ())), lambda: served.open == 1)
        held.set()
        wait_until(lambda: served.open == 0)
    assert log.names == ["connect"]


def test_a_kill_in_a_handshake_closes() -> None:
    """Also if there is no client yet that could be closed."""
    with serving(never_reply) as served:
        ours, log = client(host=served.url.replace("tcp", "tls"))
        killed_in(ours, ours.connect, lambda: served.open == 1)
        wait_until(lambda: served.open == 0)
    assert log.names == []


def test_a_kill_in_a_full_queue_closes(tmp_path: pathlib.Path) -> None:
    """As in a handshake."""
    with full_queue(f"{tmp_path}/sock"):
        ours, log = client(host=f"unix://{tmp_path}/sock")
        killed_in(ours, ours.connect, lambda: True)
    assert log.names == []


class Careless(TcpUser):
    """One whose `on_stop` doesn't call ours."""

    abstract = True
    keep_alive = True

    def on_stop(self) -> None:
        pass


@pytest.mark.parametrize("base", [TcpUser, Careless])
def test_no_connection_outlives_its_user(base: type[Any]) -> None:
    """Killed between two requests, with the connection open."""
    reached = Event()

    def linger(user: Any) -> None:
        user.client.request(b"hello\n")
        reached.set()
        gevent.sleep(60)

    with serving(echo) as served:
        user, log = made(described(base, host=served.url, keep_alive=True, tasks=[linger]))
        let_run(user, reached.is_set)
        wait_until(lambda: served.open == 0)
        assert not user.client.is_connected
    assert log.failures == []


def test_a_user_that_never_began_may_be_killed() -> None:
    """There is nothing to close."""
    user, log = made(described(TcpUser, host="tcp://127.0.0.1:80"))
    greenlet = user.start(Group())
    greenlet.kill()
    assert log.names == []


def test_an_error_in_on_start_leaves_nothing() -> None:
    """The user is ended by locust then, which doesn't call `on_stop`."""

    def fail(user: Any) -> None:
        user.client.connect()
        raise StopUser

    with serving(never_reply) as served:
        user, _ = made(described(TcpUser, host=served.url, on_start=fail))
        user.start(Group()).join()
        wait_until(lambda: served.accepted == 1 and served.open == 0)
        assert not user.client.is_connected


# -- tasks -------------------------------------------------------------------------------------


def counted(base: type[Any], body: Callable[[Any], object], tasks: int, **attributes: Any) -> Log:
    """Return the log of *tasks* runs of *body*, by a user that runs as locust's do."""
    left = count(tasks, -1)

    def run(user: Any) -> None:
        if next(left) == 0:
            raise StopUser
        body(user)

    user, log = made(described(base, tasks=[run], **attributes))
    user.start(Group()).get()
    return log


def ask(user: Any) -> None:
    user.client.request(b"hello\n")


def test_a_connection_is_a_tasks() -> None:
    """Each begins without one, and it is closed at the end; of which nothing is reported."""
    with serving(echo) as served:
        log = counted(TcpUser, ask, 3, host=served.url)
        wait_until(lambda: served.open == 0)
        assert served.accepted == 3
    assert log.names == ["connect", "request"] * 3


def test_the_close_may_be_reported() -> None:
    """As a request like the others."""
    with serving(echo) as served:
        log = counted(TcpUser, ask, 2, host=served.url, report_close=True)
    assert log.names == ["connect", "request", "close"] * 2


def test_a_connection_is_closed_before_the_user_waits() -> None:
    """A user that thinks for a minute doesn't keep the server waiting."""
    with serving(echo) as served:
        user, _ = made(described(TcpUser, host=served.url, tasks=[ask], wait_time=constant(60)))
        let_run(user, lambda: served.accepted == 1 and served.open == 0)


def test_a_task_that_waits_keeps_its_connection() -> None:
    """`User.wait` in the middle of one is not its end."""

    def ask_twice(user: Any) -> None:
        ask(user)
        user.wait()
        ask(user)

    with serving(echo) as served:
        log = counted(TcpUser, ask_twice, 2, host=served.url)
        assert served.accepted == 2
    assert log.names == ["connect", "request", "request"] * 2


def test_a_kept_connection_is_all_tasks() -> None:
    """One for all of a user's, until its end."""
    with serving(echo) as served:
        log = counted(TcpUser, ask, 3, host=served.url, keep_alive=True)
        wait_until(lambda: served.open == 0)
        assert served.accepted == 1
    assert log.names == ["connect", "request", "request", "request"]


@pytest.mark.parametrize("kind", ["tcp", "tls"])
def test_a_kept_connection_that_was_closed_is_made_anew(
    kind: str, trusting: ssl.SSLContext
) -> None:
    """The server may close one that is idle: that is no failure, if `connect` is called."""
    with serving(reply_with(b"0/4 hello\n"), kind) as served:
        user, log = made(
            described(
                EchoUser,
                host=served.url,
                keep_alive=True,
                ssl_context=trusting,
                server_hostname="localhost",
            )
        )
        for number in range(1, 4):
            user.echo()
            wait_until(lambda: len(served.ended) == number)  # noqa: B023  # it is called here
        user.client.close()
    assert log.names == ["connect", "echo"] * 3 + ["close"]
    assert log.failures == []
    assert log.clones == [(b"0/4", True)] * 3


def test_a_look_for_the_end_loses_nothing() -> None:
    """Data that the server has sent unasked is there for the next request."""
    with serving(reply_with(b"one\ntwo\n", b"")) as served:
        ours, log = client(host=served.url, keep_alive=True)
        ours.send(b"go\n")
        wait_until(lambda: served.open == 0)
        ours.connect()
        assert ours.receive_line() + ours.receive_line() == b"one\ntwo\n"
        ours.connect()
        assert served.accepted == 1
        wait_until(lambda: served.accepted == 2)
        ours.close()
    assert log.names == ["connect", "send", "receive", "receive", "connect", "close"]


def test_a_failed_request_ends_its_task() -> None:
    """The user goes on with the next; the failure is the only error."""
    ran: list[str] = []

    def fail(user: Any) -> None:
        ran.append("begun")
        user.client.request(b"hello\n")
        ran.append("gone on")

    with serving(reset) as served:
        log = counted(TcpUser, fail, 3, host=served.url, keep_alive=True)
        assert served.accepted == 3
    assert ran == ["begun"] * 3
    assert log.names == ["connect", "request"] * 3


@pytest.mark.parametrize("error", [RescheduleTask, RescheduleTaskImmediately, ValueError])
def test_a_task_that_fails_leaves_no_connection(error: type[Exception]) -> None:
    """Whatever it raises; the next one begins without."""

    def fail(user: Any) -> None:
        ask(user)
        raise error

    with serving(echo) as served:
        log = counted(TcpUser, fail, 3, host=served.url)
        wait_until(lambda: served.accepted == 3 and served.open == 0)
    assert log.names == ["connect", "request"] * 3


class Inner(TaskSet):
    @task
    def ask(self) -> None:
        ask(self)
        raise InterruptTaskSet


class Outer(TaskSet):
    @task
    def ask(self) -> None:
        ask(self)

    inner = task(Inner)


class Sequence(SequentialTaskSet):
    @task
    def first(self) -> None:
        self.client.request(b"first\n", name="first")

    @task
    def second(self) -> None:
        self.client.request(b"second\n", name="second")


class Markov(MarkovTaskSet):
    @transition("second")
    def first(self) -> None:
        self.client.request(b"first\n", name="first")

    @transition("first")
    def second(self) -> None:
        self.client.request(b"second\n", name="second")


@pytest.mark.parametrize("tasks", [Outer, Sequence, Markov])
def test_tasks_of_sets_are_tasks(tasks: type[TaskSet]) -> None:
    """Of sets in sets as well: a connection each."""
    with serving(echo) as served:
        user, log = made(described(TcpUser, host=served.url, tasks=[tasks]))
        let_run(user, lambda: len(served.ended) >= 20)
        connects = log.names.count("connect")
        wait_until(lambda: served.accepted == connects and served.open == 0)
        asked = [name for name in log.names if name != "connect"]
        assert connects - 1 <= len(asked) <= connects  # the last one may have been cut off
    assert log.failures == []
    if tasks is not Outer:
        assert asked[:4] == ["first", "second"] * 2
    assert "execute_task" not in vars(tasks)  # it may be another user's, too


def test_tasks_are_still_locusts() -> None:
    """Their names, weights and tags are those that were given, in a subclass, too."""

    class Base(TcpUser):
        abstract = True

        @tag("one")
        @task(2)
        def first(self) -> None:
            pass

        others = task(Sequence)

    class Client(Base):
        @tag("other")
        @task
        def second(self) -> None:
            pass

    user_class: Any = Client
    names = [each.__name__ for each in user_class.tasks]
    assert names == ["first", "first", "Sequence", "second"]
    assert len({*map(id, Base.tasks)} - {*map(id, Client.tasks)}) == 0  # not wrapped again
    filter_tasks_by_tags(user_class, {"one"})
    assert [each.__name__ for each in user_class.tasks] == ["first", "first"]


# -- runs of locust ----------------------------------------------------------------------------


@contextmanager
def running(user_class: type[Any], users: int) -> Iterator[tuple[Any, Log]]:
    environment: Any = Environment(user_classes=[user_class], stop_timeout=30)
    log = Log()
    environment.events.request.add_listener(log)
    runner = environment.create_local_runner()
    try:
        runner.start(users, spawn_rate=users)
        yield environment, log
    finally:
        runner.quit()
        runner.greenlet.kill()


def test_all_that_was_served_is_counted() -> None:
    """A run that ends cuts off no request: the server's count and locust's are one."""
    turns = count()

    def handle(sock: Any) -> None:
        for line in lines(sock):
            next(turns)
            gevent.sleep(0.001)  # in the middle of which the run ends
            sock.sendall(b"%d/4 %s\n" % (clone(), line))

    with serving(handle, clones=4) as served:
        with running(described(EchoUser, host=served.url, tasks=[]), 20) as (environment, log):
            wait_until(lambda: len(log.events) > 300)
        wait_until(lambda: served.open == 0)
        assert next(turns) == served.accepted == log.names.count("echo")
        assert log.names.count("connect") == served.accepted
        stats = environment.stats
        assert (stats.num_requests, stats.num_failures) == (len(log.events), 0)
        assert served.ended == [None] * served.accepted
        told = [each for each, _ in log.clones]
        assert {told.count(b"%d/4" % each) for each in range(4)} <= {
            *(served.accepted // 4, served.accepted // 4 + 1),
        }


def test_a_user_that_waits_is_stopped_at_once() -> None:
    """However long it would wait: there is no request to cut off."""
    with serving(echo) as served:
        user_class = described(EchoUser, host=served.url, tasks=[], wait_time=constant(1000))
        with running(user_class, 5) as (environment, log):
            wait_until(lambda: log.names.count("echo") == 5)
            environment.runner.stop()
        assert environment.stats.num_requests == 10


def test_a_failure_is_counted_once() -> None:
    """As a failure of a request, by its reason; not as an exception of a task, too."""
    with serving(reset) as served:
        user_class = described(EchoUser, host=served.url, tasks=[], wait_time=constant(0.001))
        with running(user_class, 5) as (environment, log):
            wait_until(lambda: len(log.failures) >= 20)
        stats = environment.stats
        assert stats.num_failures == len(log.failures) == log.names.count("connect")
        assert environment.runner.exceptions == {}
        (error,) = stats.errors.values()
        assert (error.name, error.method, error.occurrences) == ("echo", "TCP", stats.num_failures)
        assert "ConnectionResetError" in error.to_name()


def test_a_user_waits_longer_each_time_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a second; a connection that stands ends that."""
    slept: list[float] = []
    monkeypatch.setattr("glb.locust.users.gevent.sleep", slept.append)
    with serving(echo) as served:
        user, log = made(described(EchoUser, host=served.url, tasks=[]))
    for _ in range(8):
        with pytest.raises(RequestFailed):
            user.client.connect()
    assert slept == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    assert len(log.failures) == 8
    monkeypatch.undo()
    with serving(echo) as served:
        user, _ = made(described(EchoUser, host=served.url, tasks=[]))
        user.refusals = 5
        user.client.connect()
        assert user.refusals == 0
        user.client.drop()


def test_a_run_against_a_dead_port_stops_at_once(
    closed_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its users wait then; each has tried some times, and not thousands."""
    with running(described(EchoUser, host=closed_port, tasks=[]), 10) as (environment, log):
        wait_until(lambda: len(log.failures) >= 40)
        for name in ("REFUSED_SECONDS", "MOST_REFUSED_SECONDS"):
            monkeypatch.setattr(f"glb.locust.users.{name}", ENDLESS_SECONDS)
        tried = len(log.failures)
        wait_until(lambda: len(log.failures) >= tried + 10)  # all of them wait so long now
        began = monotonic()
        environment.runner.stop()
    assert monotonic() - began < ENDLESS_SECONDS / 2
    assert len(log.failures) < 100


def test_a_host_that_is_wrong_stops_the_run() -> None:
    """Before a user is made; what was given is in what is logged."""
    with (
        pytest.raises(StopTest, match="got 'http://a'"),
        running(described(EchoUser, host="http://a", tasks=[]), 1) as (
            environment,
            _,
        ),
    ):
        environment.runner.spawning_greenlet.get()


# -- echo --------------------------------------------------------------------------------------


def test_an_echo_has_its_clone() -> None:
    """What stands before the message and a space; two requests a connection are reported."""
    with serving(tell, clones=4) as served:
        user, log = made(described(EchoUser, host=served.url, tasks=[]))
        for _ in range(5):
            user.tasks[0](user)
    assert log.names == ["connect", "echo"] * 5
    assert log.clones == [(b"%d/4" % (turn % 4), True) for turn in range(5)]
    assert log.failures == []


def test_a_kept_echo_has_one_turn() -> None:
    """Then the others are replies."""
    with serving(tell, clones=4) as served:
        user, log = made(described(EchoUser, host=served.url, tasks=[], keep_alive=True))
        for _ in range(3):
            user.tasks[0](user)
        user.client.close()
    assert log.names == ["connect", "echo", "echo", "echo", "close"]
    assert log.clones == [(b"0/4", True), (b"0/4", False), (b"0/4", False)]


def test_a_pure_echo_has_no_clone() -> None:
    """It is right all the same."""
    with serving(echo) as served:
        user, log = made(described(EchoUser, host=served.url, tasks=[], message=b"3/4 hi there"))
        user.tasks[0](user)
    assert (log.names, log.failures, log.clones) == (["connect", "echo"], [], [])


@pytest.mark.parametrize(
    "reply", [b"hullo\n", b"3/4hello\n", b"\n", b"hello \n", b"y" * 99 + b"\n"]
)
def test_another_reply_is_a_failure(reply: bytes) -> None:
    """Which shows what was sent and what came, and doesn't go on with that connection."""
    with serving(reply_with(reply)) as served:
        user, log = made(described(EchoUser, host=served.url, tasks=[], keep_alive=True))
        with pytest.raises(RequestFailed):
            user.tasks[0](user)
        assert not user.client.is_connected
    ((name, error),) = log.failures
    came = repr(reply) if len(reply) <= SHOWN_BYTES else f"{reply[:SHOWN_BYTES]!r}..."
    assert (name, str(error)) == ("echo", f"sent b'hello\\n', got {came}")
    assert log.clones == []


def test_a_message_of_two_lines_stops_the_test() -> None:
    """The first would be answered, and the second taken for the next one's reply."""
    with pytest.raises(StopTest, match=r"message must be one line, got b'a\\nb'"):
        made(described(EchoUser, host="tcp://127.0.0.1:80", message=b"a\nb"))


# -- WebSockets --------------------------------------------------------------------------------

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


def frame(opcode: int, data: bytes) -> bytes:
    assert len(data) < 126
    return bytes((0x80 | opcode, len(data))) + data


def exactly(sock: Any, length: int) -> bytes:
    data = b""
    while len(data) < length:
        if not (piece := sock.recv(length - len(data))):
            raise ConnectionError("the end")
        data += piece
    return data


def next_frame(sock: Any) -> tuple[int, bytes]:
    """Return opcode and data of a short frame of a client's."""
    first, length = exactly(sock, 2)
    mask = exactly(sock, 4)
    data = exactly(sock, length & 0x7F)
    return first & 0x0F, bytes(each ^ mask[at % 4] for at, each in enumerate(data))


def shake_hands(sock: Any, headers: bytes = b"") -> bytes:
    """Answer the handshake; return the request."""
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        request += sock.recv(4096)
    key = re.search(rb"(?i)sec-websocket-key: *(\S+)", request)
    assert key is not None
    accept = base64.b64encode(hashlib.sha1(key[1] + MAGIC).digest())
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n" + headers + b"\r\n"
    )
    return request


def echo_frames(sock: Any, headers: bytes = b"") -> None:
    shake_hands(sock, headers)
    while True:
        opcode, data = next_frame(sock)
        sock.sendall(frame(PING, b"") + frame(opcode, data))
        if opcode == CLOSE:
            return


def tell_frames(sock: Any) -> None:
    echo_frames(sock, b"X-Glb-Clone: %d/4\r\n" % clone())


def ws(served: Served) -> str:
    return served.url.replace("tcp://", "ws://").replace("tls://", "wss://") + "/chat?a=b"


def test_a_websockets_methods_are_timed_requests() -> None:
    """Messages of text and of bytes; pings are answered meanwhile."""
    with serving(echo_frames) as served:
        ours, log = client(WebSocketUser, host=ws(served))
        ours.connect()
        ours.send("héllo")
        assert ours.receive() == "héllo"
        assert ours.request(b"\xff\x00", name="ask") == b"\xff\x00"
        ours.close()
        wait_until(lambda: served.open == 0)
    assert served.ended == [None]
    assert log.names == ["connect", "send", "receive", "ask", "close"]
    assert {each["request_type"] for each in log.events} == {"WS"}
    assert (log.failures, log.clones) == ([], [])


def test_a_websocket_over_tls(trusting: ssl.SSLContext) -> None:
    """With the context and the name that the user gives."""
    with serving(echo_frames, "tls") as served:
        ours, log = client(
            WebSocketUser, host=ws(served), ssl_context=trusting, server_hostname="localhost"
        )
        assert ours.request("hello") == "hello"
        ours.close()
    assert {each["request_type"] for each in log.events} == {"WSS"}
    assert log.failures == []


def test_a_handshake_has_the_clone() -> None:
    """That is the connection's turn; what comes after it are replies."""
    with serving(tell_frames, clones=4) as served:
        user, log = made(described(WebSocketUser, host=ws(served), clone_of=lambda _, reply: reply))
        for _ in range(2):
            user.client.connect()
            user.client.request("0/4")
        assert user.client.headers["x-glb-clone"] == "1/4"
        user.client.close()
        assert user.client.headers == {}
    assert log.clones == [("0/4", True), ("0/4", False), ("1/4", True), ("0/4", False)]


def test_a_users_headers_and_subprotocols_are_sent() -> None:
    """Beside the handshake's own."""
    requests: list[bytes] = []

    def handle(sock: Any) -> None:
        requests.append(shake_hands(sock, b"Sec-WebSocket-Protocol: chat\r\n"))
        never_reply(sock)

    with serving(handle) as served:
        ours, log = client(
            WebSocketUser, host=ws(served), headers={"X-Me": "you"}, subprotocols=["chat"]
        )
        ours.connect()
        ours.drop()
    assert log.failures == []
    assert requests[0].startswith(b"GET /chat?a=b HTTP/1.1\r\n")
    assert b"X-Me: you\r\n" in requests[0]
    assert b"Sec-WebSocket-Protocol: chat\r\n" in requests[0]


def test_a_websocket_is_a_tasks() -> None:
    """Closed with a goodbye at its end, which the server sees, and isn't in locust's report."""
    closed: list[tuple[int, bytes]] = []

    def handle(sock: Any) -> None:
        shake_hands(sock)
        sock.sendall(frame(*next_frame(sock)))
        closed.append(next_frame(sock))
        sock.sendall(frame(*closed[-1]))

    with serving(handle) as served:
        log = counted(WebSocketUser, lambda user: user.client.request("a"), 2, host=ws(served))
        wait_until(lambda: served.open == 0)
    assert log.names == ["connect", "request"] * 2
    assert closed == [(CLOSE, b"\x03\xe8")] * 2  # 1000


@pytest.mark.parametrize("report_close", [False, True])
def test_a_server_that_says_no_goodbye(report_close: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It isn't waited for to the end of the world; a failure only with `report_close`."""
    monkeypatch.setattr("glb.locust.websocket.GOODBYE_SECONDS", SHORT_SECONDS)

    def handle(sock: Any) -> None:
        shake_hands(sock)
        never_reply(sock)

    with serving(handle) as served:
        log = counted(
            WebSocketUser,
            lambda user: user.client.connect(),
            1,
            host=ws(served),
            timeout=SHORT_SECONDS,
            report_close=report_close,
        )
        wait_until(lambda: served.open == 0)
    told = [str(error) for _, error in log.failures]
    assert told == (["no goodbye within 0.1 s"] if report_close else [])


def test_a_kept_websocket_is_all_tasks() -> None:
    """And made anew when it has failed."""

    def handle(sock: Any) -> None:
        shake_hands(sock)
        for _ in range(2):
            sock.sendall(frame(*next_frame(sock)))
        next_frame(sock)
        sock.sendall(frame(CLOSE, b"\x03\xe9going away"))

    def say(user: Any) -> None:
        user.client.connect()
        user.client.request("a")

    with serving(handle) as served:
        log = counted(WebSocketUser, say, 5, host=ws(served), keep_alive=True)
        assert served.accepted == 2
    assert log.names == [
        *("connect", "request", "request", "request"),
        *("connect", "request", "request"),
    ]
    assert [str(error) for _, error in log.failures] == [
        "the server closed the WebSocket: 1001 'going away'"
    ]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (
            b"HTTP/1.1 503 No\r\nDate: today\r\nContent-Length: 2\r\n\r\nno",
            "the handshake's reply is 503",
        ),
        (b"HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:1/\r\n\r\n", "Redirect limit exhausted"),
        (b"HTTP/1.1 101 Fine\r\n\r\n", "Invalid WebSocket Header"),
        (b"", "Connection to remote host was lost."),
    ],
)
def test_a_handshake_that_fails(reply: bytes, words: str) -> None:
    """Its reason has nothing in it that is other each time: locust lists each text."""
    with serving(reply_with(reply)) as served:
        ours, log = client(WebSocketUser, host=ws(served))
        with pytest.raises(RequestFailed):
            ours.connect()
        wait_until(lambda: served.open == 0)
    ((name, error),) = log.failures
    assert (name, str(error)) == ("connect", words)
    assert not ours.is_connected


def test_websockets_that_fail(closed_port: str) -> None:
    """Refused, and cut off, and no reply."""
    ours, log = client(WebSocketUser, host=closed_port.replace("tcp", "ws"))
    with pytest.raises(RequestFailed):
        ours.send("a")
    assert [type(error) for _, error in log.failures] == [ConnectionRefusedError]

    def handle(sock: Any) -> None:
        shake_hands(sock)
        if next_frame(sock)[1] == b"go":
            return
        never_reply(sock)

    with serving(handle) as served:
        ours, log = client(WebSocketUser, host=ws(served), timeout=SHORT_SECONDS)
        for message in ("go", "stay"):
            with pytest.raises(RequestFailed):
                ours.request(message)
        wait_until(lambda: served.open == 0)
    assert [str(error) for _, error in log.failures] == [
        "Connection to remote host was lost.",
        "no reply within 0.1 s",
    ]


def test_a_text_that_is_none_is_a_failure() -> None:
    """It is the server's, not the task's."""

    def handle(sock: Any) -> None:
        shake_hands(sock)
        sock.sendall(frame(TEXT, b"\xff"))
        never_reply(sock)

    with serving(handle) as served:
        ours, log = client(WebSocketUser, host=ws(served))
        with pytest.raises(RequestFailed):
            ours.receive()
    assert [name for name, _ in log.failures] == ["receive"]


@pytest.mark.parametrize("call", ["connect", "receive", "close"])
def test_a_kill_of_a_websocket_closes(call: str) -> None:
    """Also in a goodbye, in which the library would swallow it."""
    shaken = Event()

    def handle(sock: Any) -> None:
        if call != "connect":
            shake_hands(sock)
        shaken.set()
        never_reply(sock)

    with serving(handle) as served:
        ours, log = client(WebSocketUser, host=ws(served))
        if call == "close":
            ours.connect()
        killed_in(ours, getattr(ours, call), shaken.is_set)
        wait_until(lambda: served.open == 0)
    assert log.names == ([] if call == "connect" else ["connect"])


def test_one_receives_while_another_sends_over_a_websocket() -> None:
    """Each with its own time."""
    with serving(echo_frames) as served:
        ours, log = client(WebSocketUser, host=ws(served))
        ours.connect()
        reader = gevent.spawn(lambda: [ours.receive() for _ in range(50)])
        for number in range(50):
            ours.send(str(number))
            gevent.sleep(0)
        assert reader.get() == [str(number) for number in range(50)]
        ours.close()
    assert log.failures == []


@pytest.mark.parametrize("url", ["http://a", "ws://", "ws://a:0", "ws://a:x", "tcp://a:1"])
def test_another_host_of_a_websocket_stops_the_test(url: str) -> None:
    """With what was given."""
    with pytest.raises(StopTest, match=re.escape(f"got {url!r}")):
        made(described(WebSocketUser, host=url))


def test_hosts_of_websockets() -> None:
    """The ports are those that belong to them."""
    targets = [websocket_target(each) for each in ("ws://a", "wss://a/b", "ws://[::1]:81/")]
    assert [(each.name, each.port) for each in targets] == [("a", 80), ("a", 443), ("::1", 81)]
    assert [each.kind for each in targets] == ["WS", "WSS", "WS"]


def test_websockets_are_imported_when_they_are_used() -> None:
    """Not all have the package."""
    code = (
        "import sys, glb.locust; print('websocket' in sys.modules); "
        "glb.locust.WebSocketUser; print('websocket' in sys.modules)"
    )
    told = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True)
    assert told.split() == ["False", "True"]


def test_a_user_is_garbage_when_it_is_done() -> None:
    """Nothing that was failed or timed keeps it, with all its receive buffers, in memory."""
    with serving(reset) as served:
        counted(TcpUser, ask, 3, host=served.url)
    gc.collect()
    kept = [each for each in gc.get_objects() if type(each).__name__ == "TcpClient"]
    assert kept == []
