"""Inherited sockets: each becomes a listener once, and is left to its owner."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

import glb
import glb.accept.inherited
from glb.accept.inherited import Inheritance
from glb.net import sockets
from glb.server import StreamServer

from ..support.helpers import ask, connect, is_refused

ME = str(os.getpid())


def handed_over(*places: Any) -> dict[str, str]:
    """Return the variables of einhorn for sockets that listen at *places*."""
    environ = {"EINHORN_FD_COUNT": str(len(places))}
    for index, place in enumerate(places):
        family = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
        sock = socket.socket(family)
        sock.bind(place)
        sock.listen(5)
        environ[f"EINHORN_FD_{index}"] = str(sock.detach())
    return environ


@pytest.fixture
def inheritance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inheritance]:
    """The process's: two sockets."""
    found = Inheritance(handed_over(("127.0.0.1", 0), ("127.0.0.1", 0)))
    monkeypatch.setattr(glb.accept.inherited, "INHERITANCE", found)
    yield found
    found.close_rest()


def test_each_socket_is_given_once(inheritance: Inheritance) -> None:
    """In the order of their descriptors; their own descriptors are the pristine sockets."""
    numbers = sorted(each.descriptor for each in inheritance.sockets)
    listeners = glb.inherited()
    assert [each.entry.pristine.fileno() for each in listeners] == numbers
    assert glb.inherited() == []
    for each in listeners:
        with connect(each.address):
            each.accept()[0].close()
        each.close()
        assert is_refused(each.address)


def test_only_those_of_a_name_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are there for another question."""
    found = Inheritance(handed_over(("127.0.0.1", 0), ("127.0.0.1", 0)))
    first, second = found.sockets
    found._sockets[:] = [first._replace(name="web"), second._replace(name="admin")]
    monkeypatch.setattr(glb.accept.inherited, "INHERITANCE", found)
    assert glb.inherited("other") == []
    with pytest.raises(TypeError, match="name must be a string or None, got 3"):
        glb.inherited(3)  # type: ignore[arg-type]  # that is the point
    (admin,) = glb.inherited("admin")
    (web,) = glb.inherited()
    assert admin.entry.origin == second._replace(name="admin")
    assert web.entry.origin == first._replace(name="web")
    admin.close()
    web.close()


@pytest.mark.usefixtures("inheritance")
def test_a_server_takes_one_in_place_of_an_address() -> None:
    """With clones, in exact turn."""
    first, second = glb.inherited()
    second.close()
    turns = []

    def handle(_sock: Any, _peer: Any) -> None:
        turns.append(glb.current_clone())

    with StreamServer(first, handle, clones=3) as server:
        server.start()
        for _ in range(6):
            ask(server.address)
        server.stop()
    assert turns == [0, 1, 2] * 2


@pytest.mark.usefixtures("inheritance")
def test_there_is_no_second_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accept queue is as long as its opener made it, also when others join."""
    lengths: list[int] = []
    from glb.accept.registry import REGISTRY

    monkeypatch.setattr(REGISTRY, "set_backlog", lambda _entry, length: lengths.append(length))
    first, second = glb.inherited(reuse_port=True)
    with glb.bind(first.address, reuse_port=True, backlog=100) as joined:
        joined.listen(2000)
        assert joined.entry is first.entry
    with StreamServer(second, lambda *_: None) as server:
        server.start()
        server.stop()
    first.close()
    assert lengths == []


def test_a_socket_that_is_wrong_leaves_nothing_open(inheritance: Inheritance) -> None:
    """Of several, none is given if one can't be."""
    with socket.socket(type=socket.SOCK_DGRAM) as wrong:
        last = max(each.descriptor for each in inheritance.sockets)
        os.dup2(wrong.fileno(), last)
        with pytest.raises(ValueError, match=f"descriptor {last} must be a listening socket"):
            glb.inherited()
    assert glb.registry.entries() == []


def test_the_file_of_a_unix_socket_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that has bound it listens on it still."""
    monkeypatch.chdir(tmp_path)
    found = Inheritance(handed_over("web.sock"))
    listener = found.take(found.sockets[0])
    assert not listener.entry.owns_file
    listener.close()
    assert os.path.exists("web.sock")


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({}, "the process was started with none"),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, f"LISTEN_PID is 1, and this process is {ME}"),
        ({"LISTEN_PID": ME, "LISTEN_FDS": "0"}, ""),
    ],
    ids=["unset", "of another process", "none"],
)
def test_why_there_are_none_is_known(environ: dict[str, str], reason: str) -> None:
    """For an error's text."""
    found = Inheritance(environ)
    assert found.sockets == []
    assert found.why_none == reason


def test_what_is_not_taken_can_be_closed(inheritance: Inheritance) -> None:
    """With words for people; twice is harmless."""
    numbers = [each.descriptor for each in inheritance.sockets]
    assert inheritance.close_rest() == [f"descriptor {number}" for number in numbers]
    assert inheritance.close_rest() == []
    for number in numbers:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(number)


# -- a queue that is left to another process ------------------------------------------------------


def test_a_left_queue_is_not_accepted_from() -> None:
    """Clients wait for the other process, whatever is asked of the listener here."""
    with glb.bind(("127.0.0.1", 0)) as listener:
        entry = listener.entry
        with socket.socket(fileno=sockets.duplicate(entry.pristine)) as other:
            waiting = gevent.spawn(listener.accept)
            gevent.idle()
            entry.leave_queue()
            with connect(listener.address) as client:
                listener.settimeout(0)
                with pytest.raises(BlockingIOError):
                    listener.accept()
                assert not waiting.ready()
                assert not entry.has_clients()
                connection, _ = other.accept()
                with connection:
                    connection.sendall(b"other")
                    assert client.recv(10) == b"other"
            waiting.kill()


def test_a_left_queue_refuses_no_newcomers() -> None:
    """The other process's clients would wait for a second."""
    with glb.bind(("127.0.0.1", 0)) as listener:
        listener.entry.leave_queue()
        assert listener.entry.refuse_newcomers() is False


@pytest.mark.parametrize("is_left", [True, False])
def test_a_left_unix_socket_keeps_its_file(
    is_left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the other process's, which may own it then."""
    monkeypatch.chdir(tmp_path)
    with glb.bind("unix:app.sock") as listener:
        listener.entry.leave_queue()
        if not is_left:
            listener.entry.own(is_ours_alone=True, owns_file=True)
    assert os.path.exists("app.sock") is is_left
