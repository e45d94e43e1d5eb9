"""What `loadtests.bench` counts, and what it makes of it."""

from __future__ import annotations

import re
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click
import pytest

from loadtests.bench.__main__ import (
    HTTP,
    HTTP_CPU,
    IDLE_KIB,
    Bench,
    crowd,
)
from loadtests.frame.client import BROWSER, CLOSE, KEEP, Client, compile_programs, request
from loadtests.frame.experiment import chosen
from loadtests.frame.figures import Figure
from loadtests.frame.process import Cpus
from loadtests.frame.sheet import Promise, Sheet

HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
WHOLE: Final = HEAD + b"ok\n"

needs_client = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None,
    reason="the client is for Linux, and C",
)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Client:
    program, _ = compile_programs(tmp_path_factory.mktemp("bench"))
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
        seen = load.run("close", port, count=1, http=True)
    assert (seen.count, seen.errors) == (is_whole, not is_whole)


@needs_client
def test_a_kept_alive_reply_with_something_behind_it_is_an_error(load: Client) -> None:
    """The same on a connection that is kept, where no end tells that the reply is whole."""
    with _server(WHOLE, 10**9) as port:
        seen = load.run("keep", port, seconds=0.05, http=True)
    assert seen.count > 0
    assert seen.errors == 0
    with _server(WHOLE + b"more", 10**9) as port:
        seen = load.run("keep", port, seconds=0.05, http=True)
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
        seen = load.run("close", listener.getsockname()[1], count=1)
        thread.join(10)
    assert (seen.count, seen.errors) == (is_whole, not is_whole)


@pytest.mark.parametrize("how", [CLOSE, KEEP])
def test_a_browsers_request_has_ten_headers(how: str) -> None:
    """Upgrade-Insecure-Requests, which must not look like an upgrade, is one of them."""
    head, end = request(how + BROWSER).split("\r\n\r\n")
    names = [line.partition(":")[0] for line in head.split("\r\n")[1:]]
    assert end == ""
    assert len(set(names)) == len(names) == 10
    assert "Upgrade-Insecure-Requests" in names


def test_contenders_are_chosen_by_name_or_by_what_it_begins_with() -> None:
    """Glb is each number of its clones, wsgi all servers of HTTP; c is no beginning of clones."""
    assert [one.name for one in chosen("c,gevent", Bench.every)] == ["c", "gevent"]
    assert {one.name.partition("-")[0] for one in chosen("glb", Bench.every)} == {"glb"}
    assert chosen("wsgi", Bench.every) == [*HTTP]
    assert chosen(None, Bench.every) == [*Bench.every]
    with pytest.raises(click.BadParameter, match="no contender 'gl'; there are c, gevent, "):
        chosen("gl", Bench.every)


def test_idle_connections_have_to_be_there_at_the_end() -> None:
    """A server that closed one in between was not measured with them."""
    with _server(WHOLE, 2, 1) as port, crowd(port, 1, http=True):
        pass
    with (
        pytest.raises(RuntimeError, match="idle connection"),
        _server(WHOLE, 1, 1) as port,
        crowd(port, 1, http=True),
    ):
        pass


def _promised(run: Bench, contender: str, figure: Figure, beside: str) -> Promise:
    promises = zip(run.promised, run.promises(), strict=True)
    [promise] = [
        promise
        for limit, promise in promises
        if (limit.contender, limit.figure, limit.beside) == (contender, figure, beside)
    ]
    return promise


def test_what_http_promises_is_of_paired_rounds() -> None:
    """CPU of a request beside gevent's and granian's: at most 0.25, and at most 1.3."""
    run = Bench(Bench.every)
    run.results.failed.clear()
    for gevent, granian, glb in ((100, 20, 24), (200, 40, 50), (100, 18, 26)):
        for figure in HTTP_CPU:
            run.results.add("wsgi-gevent", {figure: gevent})
            run.results.add("wsgi-granian", {figure: granian})
            run.results.add("wsgi-glb", {figure: glb})
    for figure in HTTP_CPU:
        beside_gevent = _promised(run, "wsgi-glb", figure, "wsgi-gevent")
        assert (beside_gevent.limit, beside_gevent.measured) == (0.25, 0.25)
        assert beside_gevent.is_kept
        beside_granian = _promised(run, "wsgi-glb", figure, "wsgi-granian")
        assert (beside_granian.limit, beside_granian.measured) == (1.3, 1.25)
        assert beside_granian.is_kept
    idle = _promised(run, "wsgi-glb", IDLE_KIB, "wsgi-gevent")
    assert (idle.limit, idle.measured, idle.is_kept) == (1, None, False)


def test_a_report_of_nothing_has_all_tables_and_keeps_no_promise() -> None:
    """Contenders that are not installed are a line each; what was not measured is not kept."""
    run = Bench(Bench.every)
    for contender in Bench.every:
        run.results.fail(contender.name, "not installed")
    answer = run.answer()
    text = Sheet("command", "CPU 0", {"bench": answer}).text()
    assert not answer.is_kept
    assert text.count("not measured") == len(Bench.promised)
    for contender in Bench.every:
        assert re.search(rf"\| {re.escape(contender.title)} +\| not installed \|", text)
    assert len(answer.tables) == len(Bench.shown)
