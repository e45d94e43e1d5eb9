"""`glb.monkey`: what is patched, where, and back. gevent's own patch runs in child processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import gevent.monkey
import gevent.pywsgi
import gevent.select
import gevent.selectors
import gevent.server
import gevent.socket
import pytest
from gevent import socket
from gevent.baseserver import BaseServer
from gevent.pool import Pool

import glb
from glb import monkey
from glb.accept import exclusions
from glb.monkey import sockets as shared_sockets
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from ..support.adopting import bound, check_child, opened, sockets_patched
from ..support.helpers import Recorder, ask, connect, let_hub_turn, turns

PLACES: dict[str, tuple[Any, str]] = {
    "bind": (gevent.socket.socket, "bind"),
    "listen": (gevent.socket.socket, "listen"),
    "dup": (gevent.socket.socket, "dup"),
    "fromfd": (gevent.socket, "fromfd"),
    "select": (gevent.select, "select"),
    "poll": (gevent.select.poll, "poll"),
    "selector": (gevent.selectors.GeventSelector, "select"),
    "server": (BaseServer, "start_accepting"),
}
#: What each connection goes through: patched with the first clone.
LATER: dict[str, tuple[Any, str]] = {
    "socket": (gevent.socket.socket, "__init__"),
    "accept": (gevent.socket.socket, "accept"),
    "shutdown": (gevent.socket.socket, "shutdown"),
}


@pytest.fixture
def patchable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let `patch_all` leave gevent's part alone, as if that had been done; undo the rest."""

    def refuse(**_: object) -> None:
        raise AssertionError("this process is not to be patched by gevent")

    monkeypatch.setattr(gevent.monkey, "patch_all", refuse)
    monkeypatch.setattr(gevent.monkey, "is_module_patched", lambda _: True)
    monkeypatch.setattr(monkey.patch, "_find_late_modules", lambda *_: [])
    yield
    monkey.restore()
    shared_sockets._detached.clear()


def names(places: dict[str, tuple[Any, str]] = PLACES) -> dict[str, Any]:
    """Return what stands in each place now."""
    return {name: getattr(where, attribute) for name, (where, attribute) in places.items()}


# -- arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"clones": 0}, ValueError, "clones must be 1 or more, got 0"),
        ({"clones": "4"}, TypeError, "clones must be a whole number, got '4'"),
        ({"clones": True}, TypeError, "clones must be a whole number, got True"),
        ({"hubs": -1}, ValueError, "hubs must be 1 or more, got -1"),
        ({"hubs": 1.5}, TypeError, "hubs must be a whole number, got 1.5"),
        ({"clones": 2, "hubs": 3}, ValueError, "clones must be 3 or more.* got 2"),
        ({"exclude": ":80"}, TypeError, "exclude must be a list of addresses, got ':80'"),
        ({"exclude": [":http"]}, ValueError, "http"),
        ({"exclude": [":80", ("127.0.0.1", 65536)]}, ValueError, "65536"),
        ({"exclude": [object]}, TypeError, "object"),
        ({"exclude": [f"{'x' * 64}:80"]}, ValueError, "x" * 64),
    ],
)
@pytest.mark.usefixtures("patchable")
def test_an_argument_that_cannot_be_is_refused(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    """The text has the value, and nothing has changed."""
    before = (names(), StreamServer.clones, StreamServer.hubs_if_possible)
    with pytest.raises(error, match=text):
        monkey.patch_all(**arguments)
    assert (names(), StreamServer.clones, StreamServer.hubs_if_possible) == before
    assert (monkey.is_patched(), exclusions.EXCLUDED) == (False, set())
    assert gevent.server.StreamServer is not StreamServer


@pytest.mark.usefixtures("patchable")
def test_what_is_not_ours_is_gevents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments are handed on as they are; if it refuses, nothing of ours has changed."""
    asked: list[dict[str, Any]] = []

    def patch_all(**options: Any) -> bool:
        asked.append(options)
        if options.get("ssl"):
            raise TypeError("gevent says no")
        return not options.get("thread")

    before = names()
    monkeypatch.setattr(gevent.monkey, "patch_all", patch_all)
    assert monkey.patch_all(thread=True) is False
    with pytest.raises(TypeError, match="gevent says no"):
        monkey.patch_all(2, 2, exclude=[":80"], ssl=True)
    assert (names(), monkey.is_patched(), exclusions.EXCLUDED) == (before, False, set())
    assert (StreamServer.clones, StreamServer.hubs_if_possible) == (4, 1)
    assert monkey.patch_all(3, thread=False, aggressive=True) is True
    assert monkey.is_patched()
    monkey.patch_all(4)  # nothing of gevent's is asked for, and it has patched
    assert asked == [{"thread": True}, {"ssl": True}, {"thread": False, "aggressive": True}]


@pytest.mark.usefixtures("patchable")
def test_gevent_patches_unless_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is `socket`: without it patched gevent is asked, with nothing but defaults."""
    asked: list[dict[str, Any]] = []
    done: set[str] = {"time", "select"}

    def patch_all(**options: Any) -> None:
        asked.append(options)
        done.add("socket")

    monkeypatch.setattr(gevent.monkey, "patch_all", patch_all)
    monkeypatch.setattr(gevent.monkey, "is_module_patched", done.__contains__)
    assert [monkey.patch_all(2), monkey.patch_all(3)] == [True, True]
    assert asked == [{}]


@pytest.mark.usefixtures("patchable")
def test_without_gevents_select_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time, at the caller; without sockets there is no warning."""
    monkeypatch.setattr(gevent.monkey, "is_module_patched", lambda name: name != "select")
    before = names()
    for _ in range(2):
        with pytest.warns(gevent.monkey.MonkeyPatchWarning, match="SO_REUSEPORT") as caught:
            assert monkey.patch_all() is True
        assert [warning.filename for warning in caught] == [__file__]
    assert (names(), monkey.is_patched("sockets"), monkey.is_patched("servers")) == (
        before,
        False,
        True,
    )
    assert monkey.patch_all(sockets=False) is True


@pytest.mark.parametrize("what", ["socket", "", 5])
def test_only_what_can_be_patched_can_be_asked_for(what: Any) -> None:
    """The text has the value, and what there is."""
    with pytest.raises(ValueError, match=f"sockets, servers, got {what!r}"):
        monkey.is_patched(what)


# -- what is patched --------------------------------------------------------------------------


@pytest.mark.usefixtures("patchable")
def test_all_is_patched_and_restored() -> None:
    """Methods and names are ours in between, and gevent's again after it; twice is harmless."""
    before = names()
    servers = (gevent.server.StreamServer, gevent.pywsgi.WSGIServer)
    assert [monkey.is_patched(what) for what in (None, "sockets", "servers")] == [False] * 3
    assert monkey.patch_all() is True
    first = names()
    assert all(first[name] is not before[name] for name in PLACES)
    assert monkey.patch_all() is True
    assert names() == first
    assert (gevent.server.StreamServer, gevent.pywsgi.WSGIServer) == (StreamServer, WSGIServer)
    assert [monkey.is_patched(what) for what in (None, "sockets", "servers")] == [True] * 3
    for _ in range(2):
        monkey.restore()
        assert names() == before
        assert (gevent.server.StreamServer, gevent.pywsgi.WSGIServer) == servers
        assert [monkey.is_patched(what) for what in (None, "sockets", "servers")] == [False] * 3


@pytest.mark.usefixtures("patchable")
@pytest.mark.parametrize("is_joining", [False, True])
def test_a_program_without_clones_pays_for_none(is_joining: bool) -> None:
    """What each connection goes through is gevent's until the first clone, and after `restore`."""
    before = names(LATER)
    monkey.patch_all()
    with glb.bind(("127.0.0.1", 0), reuse_port=True) as ours:
        with bound() as sock:
            sock.connect(ours.address)
            ours.accept()[0].close()
            assert names(LATER) == before
        with bound(ours.address) if is_joining else opened():
            after = names(LATER)
            assert all(after[name] is not before[name] for name in LATER)
        monkey.patch_all()
        monkey.restore()
        assert names(LATER) == before


def test_clones_from_before_a_restore_are_met_again() -> None:
    """Patched again, they have all that clones have."""
    with sockets_patched():
        one = opened()
    with sockets_patched(), one, socket.fromfd(one.fileno(), one.family, one.type) as other:
        assert isinstance(other._sock, shared_sockets.SharedSocket)  # type: ignore[attr-defined]  # not in the stubs
        greenlets = [gevent.spawn(each.accept) for each in (one, other)]
        let_hub_turn()
        for greenlet in greenlets:
            with connect(one.getsockname()):
                greenlet.get()[0].close()


@pytest.mark.usefixtures("patchable")
def test_either_half_can_be_had_alone_and_the_other_later() -> None:
    """`sockets=False` leaves sockets, `servers=False` servers, as gevent has them."""
    before = names()
    monkey.patch_all(sockets=False)
    assert (names(), monkey.is_patched("sockets"), monkey.is_patched("servers")) == (
        before,
        False,
        True,
    )
    monkey.restore()
    monkey.patch_all(servers=False)
    assert (monkey.is_patched("sockets"), monkey.is_patched("servers")) == (True, False)
    assert gevent.server.StreamServer is not StreamServer
    monkey.patch_all(sockets=False)
    assert (monkey.is_patched("sockets"), monkey.is_patched("servers")) == (True, True)


@pytest.mark.usefixtures("patchable")
def test_clones_and_hubs_are_the_servers_defaults() -> None:
    """Defaults of servers; a Pool keeps one to a single hub; `restore` undoes it."""
    recorder = Recorder()

    def places(**options: Any) -> tuple[int, int]:
        server = gevent.server.StreamServer(("127.0.0.1", 0), recorder, **options)
        return server.clones, server.hubs  # type: ignore[attr-defined]  # it is ours

    monkey.patch_all()
    assert places() == (4, 1)
    monkey.patch_all(clones=6)
    assert places() == (6, 1)
    monkey.patch_all(hubs=2)
    assert (places(), places(spawn=Pool(5)), places(spawn=5)) == ((6, 2), (6, 1), (6, 2))
    assert (places(clones=3), places(hubs=1), places(clones=1, hubs=1)) == ((3, 2), (6, 1), (1, 1))
    monkey.patch_all(clones=8, hubs=8)
    assert places() == (8, 8)
    monkey.restore()
    assert (StreamServer.clones, StreamServer.hubs_if_possible) == (4, 1)


@pytest.mark.usefixtures("patchable")
def test_more_hubs_than_clones_by_default_are_as_many_clones() -> None:
    """A clone for each hub, at least."""
    monkey.patch_all(hubs=7)
    server = gevent.server.StreamServer(("127.0.0.1", 0), Recorder())
    assert (server.clones, server.hubs) == (7, 7)  # type: ignore[attr-defined]  # it is ours


@pytest.mark.usefixtures("patchable")
def test_a_server_on_an_excluded_address_has_one_clone() -> None:
    """As gevent's has, unless it says more; a second exclusion is added."""
    monkey.patch_all(clones=3, hubs=2, exclude=[":8000"])
    monkey.patch_all(exclude=["127.0.0.1:8001"])
    places = []
    for port in (8000, 8001, 8002):
        server: Any = gevent.server.StreamServer(("127.0.0.1", port), Recorder())
        places.append((server.clones, server.hubs))
    make: Any = gevent.server.StreamServer
    told = make(("127.0.0.1", 8000), Recorder(), clones=2)
    assert (places, told.clones) == ([(1, 1), (1, 1), (3, 2)], 2)
    monkey.restore()
    assert not exclusions.is_excluded(glb.model.address.parse(":8000"))


@pytest.mark.usefixtures("patchable")
def test_servers_on_one_hub_serve_in_turn() -> None:
    """Looked up where gevent has it, with the clones that were asked for."""
    monkey.patch_all(clones=3)
    recorder = Recorder()
    server = gevent.server.StreamServer(("127.0.0.1", 0), recorder)
    server.start()
    for _ in range(7):
        ask(server.address)
    server.stop()
    assert recorder.order == turns(3, 7)


def test_restored_clones_stay_clones() -> None:
    """Shared sockets keep their turns; new ones are the kernel's own."""
    with sockets_patched():
        one = opened()
    with one, bound(one.getsockname()) as other:
        other.listen()
        assert [entry.clones for entry in glb.registry.entries()] == [1]
        assert not isinstance(other._sock, shared_sockets.SharedSocket)  # type: ignore[attr-defined]  # not in the stubs
        other.close()
        one.settimeout(0)
        with pytest.raises(BlockingIOError):
            one.accept()


@pytest.mark.usefixtures("patchable")
def test_originals_can_be_had() -> None:
    """What gevent had, what the standard library had, one name or several, patched or not."""
    import select as native_select
    import socket as native_socket

    before = (gevent.server.StreamServer, gevent.select.select, gevent.socket.fromfd)
    for _ in range(2):
        assert monkey.get_original("gevent.server", "StreamServer") is before[0]
        assert monkey.get_original("gevent.pywsgi", "WSGIServer").__module__ == "gevent.pywsgi"
        assert monkey.get_original("gevent.select", ["select"]) == [before[1]]
        assert monkey.get_original("gevent.socket", ("fromfd", "socket")) == [
            before[2],
            gevent.socket.socket,
        ]
        assert monkey.get_original("select", "select") is native_select.select
        assert monkey.get_original("socket", ["socket", "fromfd"]) == [
            native_socket.socket,
            native_socket.fromfd,
        ]
        with pytest.raises(AttributeError, match="no_such"):
            monkey.get_original("gevent.server", "no_such")
        monkey.patch_all()


def test_find_late_modules_what_would_be_patched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By module and name, sorted, in the warning; gevent's and glb's own modules don't count."""
    import sys
    import types

    for name in ("late_one", "late_two.part", "glb.fake", "gevent.fake"):
        module = types.ModuleType(name)
        vars(module).update(Server=gevent.server.StreamServer, select=gevent.select.select)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(gevent.monkey, "is_module_patched", lambda _: True)
    try:
        with pytest.warns(gevent.monkey.MonkeyPatchWarning, match="comes too late for ") as caught:
            monkey.patch_all()
        assert [warning.filename for warning in caught] == [__file__]
        text = str(caught[0].message)
        ours = [each for each in text.replace(":", ",").split(", ") if "fake" in each]
        assert ours == []
        for each in ("late_one.Server", "late_one.select", "late_two.part.Server"):
            assert each in text
        monkey.patch_all()  # nothing is patched, so nothing is too late
    finally:
        monkey.restore()


# -- with gevent's patch, in child processes --------------------------------------------------


def test_the_standard_library_is_patched_by_gevent_and_by_us() -> None:
    """Two lines on top: sockets of the library are clones, selectors see turns."""
    check_child(
        """
import glb.monkey
assert glb.monkey.patch_all() is True
import select, selectors, socket, threading
import gevent, gevent.monkey, gevent.select, gevent.selectors, gevent.socket
import glb
assert gevent.monkey.is_module_patched("socket") and gevent.monkey.is_module_patched("threading")
assert socket.socket is gevent.socket.socket
assert select.select is gevent.select.select and socket.fromfd is gevent.socket.fromfd
assert glb.monkey.get_original("socket", "socket").__module__ == "socket"
assert selectors.DefaultSelector is gevent.selectors.GeventSelector

first = socket.create_server(("127.0.0.1", 0), reuse_port=True)
copies = [first, *(socket.create_server(first.getsockname(), reuse_port=True) for _ in range(3))]
assert [entry.clones for entry in glb.registry.entries()] == [4]
order = []

def by_selector(kind, sock):
    with kind() as selector:
        selector.register(sock, selectors.EVENT_READ)
        while not selector.select(None):
            pass

ways = [
    lambda sock: None,
    lambda sock: by_selector(selectors.DefaultSelector, sock),
    lambda sock: by_selector(selectors.SelectSelector, sock),
    lambda sock: by_selector(selectors.PollSelector, sock),
]

def serve(index):
    while True:
        ways[index](copies[index])
        conn, _ = copies[index].accept()
        order.append(index)
        conn.close()

for index in range(4):
    threading.Thread(target=serve, args=(index,), daemon=True).start()
    gevent.sleep(0.01)
for _ in range(12):
    with socket.create_connection(first.getsockname(), timeout=10) as client:
        assert client.recv(1) == b""
assert order == [0, 1, 2, 3] * 3, order

assert selectors.SelectSelector._select._gevent_monkey  # gevent's mark
before = select.select
glb.monkey.patch_all()
assert select.select is before
glb.monkey.restore()
assert select.select is gevent.select.select is not before
assert selectors.SelectSelector._select._gevent_monkey
assert not glb.monkey.is_patched() and gevent.monkey.is_module_patched("socket")
import os; os._exit(0)  # the loops wait on
"""
    )


@pytest.mark.process
@pytest.mark.parametrize("way", ["select", "poll", "Default", "Select", "Poll"])
@pytest.mark.parametrize("is_busy", [False, True], ids=["alone", "beside a ready descriptor"])
def test_one_loop_of_a_program_takes_exact_turns(way: str, is_busy: bool) -> None:
    """By each poller of the library that gevent leaves: with time and without, one client each."""
    check_child(
        f"""
import glb.monkey
glb.monkey.patch_all()
import select, selectors, socket
assert not hasattr(select, "epoll") and not hasattr(selectors, "EpollSelector")

first = socket.create_server(("127.0.0.1", 0), reuse_port=True)
copies = [first, *(socket.create_server(first.getsockname(), reuse_port=True) for _ in range(3))]
busy, other = socket.socketpair()
writable = [busy] if {is_busy} else []

def by_select(timeout):
    return select.select(copies, writable, [], timeout)[0]

poller = select.poll()
def by_poll(timeout):
    numbers = dict((each.fileno(), each) for each in copies)
    found = poller.poll(int(timeout * 1000))
    return [numbers[number] for number, _ in found if number in numbers]

def by_selector(timeout):
    return [key.fileobj for key, _ in selector.select(timeout) if key.fileobj in copies]

polled = by_select if "{way}" == "select" else by_poll if "{way}" == "poll" else by_selector
selector = getattr(selectors, "{way}Selector")() if polled is by_selector else None
for each in copies:
    each.setblocking(False)
    poller.register(each, select.POLLIN)
    if selector:
        selector.register(each, selectors.EVENT_READ)
for each in writable:
    poller.register(each, select.POLLOUT)
    if selector:
        selector.register(each, selectors.EVENT_WRITE)

order = []
for count in range(12):
    assert polled(0.002) == []
    with socket.create_connection(first.getsockname()):
        for timeout in (0, 0.005, 5):
            for each in polled(timeout):
                each.accept()[0].close()
                order.append(copies.index(each))
            if len(order) > count:
                break
assert sorted(order[:4]) == [0, 1, 2, 3] and order == order[:4] * 3, order
if selector:
    selector.close()
for each in (*copies, busy, other):
    each.close()
"""
    )


def test_what_gevent_has_patched_is_left_as_it_is() -> None:
    """Without arguments of gevent's; with them gevent decides. Servers below TLS are ours."""
    check_child(
        """
import gevent.monkey
gevent.monkey.patch_all(thread=False)
import glb.monkey
assert glb.monkey.patch_all(clones=2, exclude=["localhost:1"]) is True
assert not gevent.monkey.is_module_patched("threading")
import socket, ssl
import gevent.pywsgi, gevent.server, glb.pywsgi, glb.server
from gevent.pywsgi import WSGIServer
assert WSGIServer is glb.pywsgi.WSGIServer
assert gevent.server.StreamServer is glb.server.StreamServer
assert glb.server.StreamServer.clones == 2
with socket.create_server(("127.0.0.1", 0), reuse_port=True) as sock:
    with socket.create_server(sock.getsockname(), reuse_port=True):
        assert [entry.clones for entry in glb.registry.entries()] == [2]
"""
    )


def test_a_subscriber_of_gevents_events_can_prevent_all() -> None:
    """Then nothing is patched, and `patch_all` says so; again and again, as gevent remembers."""
    check_child(
        """
import gevent.events, gevent.monkey, gevent.server
import glb.accept.exclusions, glb.monkey
def veto(event):
    raise gevent.events.DoNotPatch
gevent.events.subscribers.append(
    lambda event: veto(event) if type(event).__name__ == "GeventWillPatchAllEvent" else None
)
assert glb.monkey.patch_all() is False
assert not glb.monkey.is_patched() and not gevent.monkey.is_module_patched("socket")
gevent.events.subscribers.pop()
before = gevent.server.StreamServer
for arguments in ({}, {}, {"socket": True}):
    assert glb.monkey.patch_all(2, exclude=[":80"], **arguments) is False
    assert not glb.monkey.is_patched() and not gevent.monkey.is_module_patched("socket")
    assert gevent.server.StreamServer is before and not glb.accept.exclusions.EXCLUDED
"""
    )


def test_an_exclusion_that_cannot_be_keeps_gevent_from_patching() -> None:
    """All is left as it was, the standard library included; then it can be patched."""
    check_child(
        """
import gevent.monkey, gevent.server, glb.accept.exclusions, glb.monkey, socket
before = (socket.socket, gevent.server.StreamServer, glb.server.StreamServer.clones)
for wrong in ([":80", ":http"], [f"{'x' * 64}:80"], ":80"):
    try:
        glb.monkey.patch_all(2, exclude=wrong)
    except (TypeError, ValueError):
        pass
    else:
        raise AssertionError(wrong)
    assert not gevent.monkey.is_module_patched("socket") and not glb.monkey.is_patched()
    assert (socket.socket, gevent.server.StreamServer, glb.server.StreamServer.clones) == before
    assert not glb.accept.exclusions.EXCLUDED
assert glb.monkey.patch_all(2, exclude=[":80"]) is True
assert gevent.monkey.is_module_patched("socket") and glb.monkey.is_patched("sockets")
"""
    )


def test_without_gevents_select_sockets_take_no_turns() -> None:
    """A warning says so, and the servers are ours; with it, later, they do."""
    check_child(
        """
import warnings
import gevent.monkey, glb.monkey
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert glb.monkey.patch_all(select=False) is True
assert [each.category for each in caught] == [gevent.monkey.MonkeyPatchWarning], caught
assert "SO_REUSEPORT" in str(caught[0].message) and caught[0].filename == "<string>", caught
assert glb.monkey.is_patched("servers") and not glb.monkey.is_patched("sockets")
import socket
assert gevent.monkey.is_module_patched("socket")
with socket.create_server(("127.0.0.1", 0), reuse_port=True):
    assert glb.registry.entries() == []
gevent.monkey.patch_select()
assert glb.monkey.patch_all() is True
assert glb.monkey.is_patched("sockets")
with socket.create_server(("127.0.0.1", 0), reuse_port=True):
    assert len(glb.registry.entries()) == 1
"""
    )


def test_patching_too_late_warns() -> None:
    """Once, as gevent does, with what was kept; patching again is silent."""
    check_child(
        """
import sys, types, warnings
from socket import socket
from gevent.server import StreamServer
import gevent.monkey, glb.monkey
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    glb.monkey.patch_all()
    glb.monkey.patch_all()
texts = [str(each.message) for each in caught if "glb.monkey" in str(each.message)]
assert len(texts) == 1, texts
assert "__main__.StreamServer" in texts[0] and "__main__.socket" in texts[0], texts
assert issubclass(caught[0].category, gevent.monkey.MonkeyPatchWarning)
"""
    )


def test_hubs_reach_servers_that_know_nothing_of_them() -> None:
    """A server of gevent's, looked up afterwards, has as many hubs and clones, in exact turn."""
    check_child(
        """
import glb.monkey
glb.monkey.patch_all(clones=4, hubs=2)
import gevent, gevent.pool, gevent.server, socket, threading, glb

glb.server.StreamServer.patience = 30

def handle(sock, peer):
    sock.sendall(b"%d" % glb.current_clone())

server = gevent.server.StreamServer(("127.0.0.1", 0), handle)
pooled = gevent.server.StreamServer(("127.0.0.1", 0), handle, spawn=gevent.pool.Pool(3))
server.start()
pooled.start()
assert (server.clones, server.hubs, pooled.clones, pooled.hubs) == (4, 2, 4, 1)

def ask(address):
    with socket.create_connection(address, timeout=10) as client:
        return int(client.recv(10))

assert [ask(pooled.address) for _ in range(8)] == [0, 1, 2, 3] * 2
assert sorted(ask(server.address) for _ in range(8)) == [0, 0, 1, 1, 2, 2, 3, 3]
server.stop()
pooled.stop()
assert glb.registry.entries() == []
"""
    )


def test_a_program_of_socketserver_serves_in_turn_and_stops() -> None:
    """`serve_forever` four times on one port; `shutdown` returns, and nothing is left."""
    check_child(
        """
import glb.monkey
glb.monkey.patch_all()
import os, socket, socketserver, threading, time
import gevent, glb

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_port = True
    allow_reuse_address = True
    daemon_threads = True

    def server_bind(self):  # allow_reuse_port is new in Python 3.11
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"%d" % servers.index(self.server))

gevent.sleep(0)  # the hub has descriptors, and stays
descriptors = len(os.listdir("/proc/self/fd"))
servers = []
port = 0
threads = []
for _ in range(4):
    server = Server(("127.0.0.1", port), Handler)
    port = server.server_address[1]
    servers.append(server)
for server in servers:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    threads.append(thread)
    time.sleep(0.01)
order = []
for _ in range(40):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        order.append(int(client.recv(10)))
assert order == [0, 1, 2, 3] * 10, order
for server, thread in zip(servers, threads):
    server.shutdown()
    thread.join(5)
    assert not thread.is_alive()
    server.server_close()
assert glb.registry.entries() == []
time.sleep(0.01)
assert len(os.listdir("/proc/self/fd")) == descriptors, os.listdir("/proc/self/fd")
"""
    )
