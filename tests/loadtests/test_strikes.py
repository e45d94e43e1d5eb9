"""What `loadtests.strikes` finds, and that it finds anything: short runs, and planted faults."""

from __future__ import annotations

import sys

import pytest

from loadtests.strikes.words import Kind, Mixed, is_whole, request, tokens

from ..support.helpers import run_load_test

pytestmark = [
    pytest.mark.process,
    pytest.mark.thorough,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs epoll and /proc"),
]

MINE, ANOTHERS = b"<0000000000000001>", b"<0000000000000002>"

# The servers' process with faults, before its `main`: the guard sees nothing, a client gets
# another's words.
NO_GUARD = "glb.hubs.guard.Guard._tick = lambda self: None"
MIXES = """
def echo(sock, peer):
    while data := sock.recv(18):
        last.append(data)
        sock.sendall(last[-2] if data[-2] == ord("7") else data)
last = [b"<0000000000000000>"]
server.echo = echo
"""


SERVER = """
import os, sys, time
import glb.hubs.guard
from loadtests.strikes import server
{fault}
server.main(*sys.argv[1:])
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize("kind", Kind)
def test_a_reply_is_known_as_ones_own(kind: Kind) -> None:
    """A part may become the whole; what is another's, or too much, is mixed up."""
    head = b"" if kind is Kind.STREAM else b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n"
    assert tokens(request(kind, MINE)) == [MINE]
    assert is_whole(kind, MINE, head + MINE)
    assert not any(is_whole(kind, MINE, (head + MINE)[:length]) for length in range(1, 18))
    for wrong in (head + ANOTHERS, head + ANOTHERS[:17], head + MINE + b"Internal Server Error"):
        with pytest.raises(Mixed):
            is_whole(kind, MINE, wrong)
    if kind is Kind.HTTP:
        with pytest.raises(ConnectionError):
            is_whole(kind, MINE, b"HTTP/1.1 500 Internal Server Error\r\n\r\n")


def run(*options: str, fault: str = "", loop: str = "libev-cext") -> tuple[int, str]:
    """Return the exit status of a run, of servers with a *fault*, and what it printed."""
    server = SERVER.format(fault=fault) if fault else ""
    return run_load_test("strikes", "--seed", "1", *options, server=server, GEVENT_LOOP=loop)


@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
@pytest.mark.parametrize("hubs", [1, 2])
def test_both_servers_serve_on(hubs: int, loop: str) -> None:
    """Struck 30 times, no client is left waiting. (What else may be wrong, a longer run tells.)"""
    _, printed = run("--signals", "30", "--hubs", str(hubs), loop=loop)
    assert "deaf after" not in printed, printed
    assert "30 signals struck: " in printed


def test_a_server_that_stays_deaf_is_found() -> None:
    """It is struck until no client is served."""
    status, printed = run("--signals", "3000", fault=NO_GUARD)
    assert status == 1, printed
    assert "deaf after so many signals: " in printed


def test_words_of_another_client_are_found() -> None:
    """Each client knows its own."""
    status, printed = run("--signals", "100", fault=MIXES)
    assert status == 1, printed
    assert "was read for " in printed
