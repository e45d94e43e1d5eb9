"""Passed sockets: what one process says of them, the next one understands; nothing else does."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from glb.net.passed import (
    VARIABLE,
    Channel,
    PassedSocket,
    listening_socket,
    open_channel,
    passed_variable,
    take_passed,
)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Both ends of a channel."""
    ours, theirs = open_channel()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_word_is_heard_once(ends: tuple[Channel, Channel]) -> None:
    """Nothing waits; after the last word comes the end."""
    ours, theirs = ends
    assert theirs.hear() is None
    assert ours.say(b"R")
    assert not theirs.is_closed()
    assert theirs.hear() == b"R"
    assert theirs.hear() is None
    ours.close()
    assert theirs.is_closed()
    assert theirs.hear() == b""
    assert not theirs.say(b"G")


def test_a_word_before_the_end_is_heard(ends: tuple[Channel, Channel]) -> None:
    """The other end may be closed by then."""
    ours, theirs = ends
    ours.say(b"G")
    ours.close()
    assert not theirs.is_closed()
    assert (theirs.hear(), theirs.hear()) == (b"G", b"")


def test_what_is_said_is_understood(ends: tuple[Channel, Channel]) -> None:
    """Numbers, names, owners; the environment has nothing of it afterwards."""
    ours, theirs = ends
    with socket.create_server(("127.0.0.1", 0)) as first, socket.socket() as second:
        said = [
            PassedSocket(first.fileno(), "127.0.0.1:0", None, True, None),
            PassedSocket(second.fileno(), None, "web", False, (8, 2**40)),
        ]
        environ = passed_variable(theirs, said)
        for each in (first, second):
            each.set_inheritable(True)
        found = take_passed(environ)
        assert found is not None
        assert (found.parent, found.sockets, environ) == (os.getpid(), said, {})
        assert not first.get_inheritable()
        assert not second.get_inheritable()
        assert found.channel.sock.fileno() == theirs.sock.detach()
        found.channel.say(b"R")
        assert ours.hear() == b"R"
        found.channel.close()


@pytest.mark.parametrize("other", ["closed", "a file", "another socket"])
def test_a_child_of_the_new_process_believes_nothing(
    other: str, ends: tuple[Channel, Channel], tmp_path: Path
) -> None:
    """It has inherited the variable, and other files under the numbers."""
    environ = passed_variable(ends[1], [])
    number = ends[1].sock.detach()
    with socket.socket() as sock, (tmp_path / "file").open("w") as file:
        if other == "closed":
            os.close(number)
        else:
            os.dup2(sock.fileno() if other == "another socket" else file.fileno(), number)
        assert take_passed(environ) is None
        if other != "closed":
            os.close(number)
    assert environ == {}


def test_without_the_variable_nothing_is_passed() -> None:
    """As a rule a process replaces none."""
    assert take_passed({"HOME": "/"}) is None


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"parent": 1, "channel": [1], "sockets": []}', '{"channel": "xy"}']
)
def test_what_is_none_of_ours_is_refused(text: str) -> None:
    """The error has the variable and its value."""
    with pytest.raises(ValueError, match=re.escape(f"{VARIABLE} must be from glb, got {text!r}")):
        take_passed({VARIABLE: text})


def test_more_than_is_known_is_no_error(ends: tuple[Channel, Channel]) -> None:
    """A later version may say more."""
    environ = passed_variable(ends[1], [])
    environ[VARIABLE] = json.dumps({**json.loads(environ[VARIABLE]), "more": 1})
    found = take_passed(environ)
    assert found is not None
    ends[1].sock.detach()
    found.channel.close()


def test_a_listening_descriptor_is_the_socket_itself() -> None:
    """No duplicate, and no second listen(2); it doesn't block any more."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number, address = sock.detach(), None
        with closing(listening_socket(number)) as found:
            address = found.getsockname()
            assert found.fileno() == number
            assert not found.getblocking()
            socket.create_connection(address).close()


def connection(_folder: Path) -> tuple[Any, ...]:
    return socket.socketpair()


def unbound(_folder: Path) -> tuple[Any, ...]:
    return (socket.socket(),)


def datagrams(_folder: Path) -> tuple[Any, ...]:
    return (socket.socket(type=socket.SOCK_DGRAM),)


def file(folder: Path) -> tuple[Any, ...]:
    return ((folder / "file").open("w"),)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            connection,
            "it is a connection, as systemd's Accept=yes hands over: say Accept=no",
        ),
        (unbound, "it doesn't listen"),
        (datagrams, "it is no stream socket"),
        (file, "Socket operation on non-socket"),
    ],
)
def test_what_does_not_listen_is_refused(
    make: Callable[[Path], tuple[Any, ...]], reason: str, tmp_path: Path
) -> None:
    """With its number, its name and the reason; it is left as it is."""
    made = make(tmp_path)
    number = made[0].fileno()
    text = f"descriptor {number} ('web') must be a listening socket: {reason}"
    with pytest.raises(ValueError, match=re.escape(text)):
        listening_socket(number, "web")
    os.fstat(number)
    for each in made:
        each.close()
    with pytest.raises(ValueError, match=f"descriptor {number} must be a listening socket: Bad f"):
        listening_socket(number)
