"""What `loadtests.bench` counts, and what it makes of it."""

from __future__ import annotations

import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click
import pytest

from loadtests.bench import figures
from loadtests.bench.__main__ import choose
from loadtests.bench.contenders import CONTENDERS
from loadtests.bench.crowd import Crowd
from loadtests.bench.plan import Plan
from loadtests.bench.promises import PROMISES
from loadtests.bench.report import Report
from loadtests.frame import client
from loadtests.frame.client import BROWSER_REQUEST, BROWSER_REQUEST_AND_CLOSE, Client
from loadtests.frame.figures import Figure, Results
from loadtests.frame.old_promise import Promise
from loadtests.frame.process import Cpus

HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
WHOLE: Final = HEAD + b"ok\n"

needs_client = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None,
    reason="the client is for Linux, and C",
)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Client:
    program, _ = client.compile_programs(tmp_path_factory.mktemp("bench"))
    return Client(program, Cpus.available())


@contextmanager
def _server(reply: bytes, requests: int = 1, connections: int = 1) -> Iterator[int]:
    """Serve *requests* on each connection with *reply*, then close it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(connections):
            connection, _ = listener.accept()
            with connection:
                for _ in range(requests):
                    if not connection.recv(4096):
                        break
                    connection.sendall(reply)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
        thread.join(10)
        assert not thread.is_alive()
    finally:
        listener.close()


@needs_client
@pytest.mark.parametrize(
    ("reply", "is_whole"),
    [
        (WHOLE, True),
        (WHOLE[:-1], False),
        (HEAD, False),
        (WHOLE + b"more", False),
        (WHOLE + WHOLE, False),
        (HEAD + b"no\n", False),
        (b"HTTP/1.1 200 OK\r\n\r\nok\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", False),
        (WHOLE.replace(b"200 OK", b"500 No"), False),
    ],
)
def test_a_connection_counts_if_its_reply_is_whole(
    load: Client, reply: bytes, is_whole: bool
) -> None:
    """One that is cut short, another body, or something behind it is an error."""
    with _server(reply) as port:
        seen = load.close(port, 1, 1, http=True)
    assert (seen.count, seen.errors) == (is_whole, not is_whole)


@needs_client
def test_a_kept_alive_reply_with_something_behind_it_is_an_error(load: Client) -> None:
    """The same on a connection that is kept, where no end tells that the reply is whole."""
    with _server(WHOLE, 10**9) as port:
        seen = load.keep(port, 0.05, 1)
    assert seen.count > 0
    assert seen.errors == 0
    with _server(WHOLE + b"more", 10**9) as port:
        seen = load.keep(port, 0.05, 1)
    assert seen.count == 0
    assert seen.errors > 0


@needs_client
@pytest.mark.parametrize(
    ("reply", "is_whole"), [(b"ok\n", True), (b"ok", False), (b"ok\nok\n", False)]
)
def test_a_tcp_reply_is_compared_as_a_whole(load: Client, reply: bytes, is_whole: bool) -> None:
    """Nothing may be missing, and nothing be behind it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        seen = load.close(listener.getsockname()[1], 1, 1)
        thread.join(10)
    assert (seen.count, seen.errors) == (is_whole, not is_whole)


@pytest.mark.parametrize("request_", [BROWSER_REQUEST, BROWSER_REQUEST_AND_CLOSE])
def test_a_browsers_request_has_ten_headers(request_: str) -> None:
    """Upgrade-Insecure-Requests, which must not look like an upgrade, is one of them."""
    head, end = request_.split("\r\n\r\n")
    names = [line.partition(":")[0] for line in head.split("\r\n")[1:]]
    assert end == ""
    assert len(set(names)) == len(names) == 10
    assert "Upgrade-Insecure-Requests" in names


def test_contenders_are_chosen_by_name_or_by_what_it_begins_with() -> None:
    """Glb is each number of its clones, wsgi all servers of HTTP; c is no beginning of clones."""
    assert [one.name for one in choose("c,gevent")] == ["c", "gevent"]
    assert {one.name.partition("-")[0] for one in choose("glb")} == {"glb"}
    assert choose("wsgi") == [one for one in CONTENDERS if one.is_http]
    assert choose(None) == [*CONTENDERS]
    with pytest.raises(click.BadParameter, match="no contender 'gl'; there are c, gevent, "):
        choose("gl")


def test_idle_connections_have_to_be_there_at_the_end() -> None:
    """A server that closed one in between was not measured with them."""
    with _server(WHOLE, 2, 1) as port, Crowd(port, 1, http=True):
        pass
    with (
        pytest.raises(RuntimeError, match="idle connection"),
        _server(WHOLE, 1, 1) as port,
        Crowd(port, 1, http=True),
    ):
        pass


def _promised(contender: str, figure: Figure, beside: str | None) -> Promise:
    [promise] = [
        one
        for one in PROMISES
        if (one.contender, one.figure, one.beside) == (contender, figure, beside)
    ]
    return promise


def test_what_http_promises_is_of_paired_rounds() -> None:
    """CPU of a request beside gevent's and granian's: at most 0.25, and at most 1.3."""
    results = Results()
    for gevent, granian, glb in ((100, 20, 24), (200, 40, 50), (100, 18, 26)):
        for figure in (figures.CPU, figures.KEEP_CPU, figures.KEEP_BROWSER_CPU):
            results.add("wsgi-gevent", figure, gevent)
            results.add("wsgi-granian", figure, granian)
            results.add("wsgi-glb", figure, glb)
    for figure in (figures.CPU, figures.KEEP_CPU, figures.KEEP_BROWSER_CPU):
        beside_gevent = _promised("wsgi-glb", figure, "wsgi-gevent")
        assert (beside_gevent.limit, beside_gevent.measured(results)) == (0.25, 0.25)
        assert beside_gevent.is_kept(results)
        beside_granian = _promised("wsgi-glb", figure, "wsgi-granian")
        assert (beside_granian.limit, beside_granian.measured(results)) == (1.3, 1.25)
        assert beside_granian.is_kept(results)
    idle = _promised("wsgi-glb", figures.IDLE_KIB, "wsgi-gevent")
    assert idle.limit == 1
    assert idle.is_kept(results) is None


def test_a_report_of_nothing_has_all_tables_and_keeps_no_promise() -> None:
    """Contenders that are not installed are a line each; what was not measured is not kept."""
    report = Report(Results(), CONTENDERS, "CPU 0", "command", Plan(), CONTENDERS)
    text = report.markdown()
    assert not report.all_kept()
    assert text.count("not measured") == len(PROMISES)
    for contender in CONTENDERS:
        assert f"| {contender.title} | not installed |" in text
    written = report.as_json()
    assert set(written["contenders"]) == {one.name for one in CONTENDERS}
    assert len(written["promises"]) == len(PROMISES)
