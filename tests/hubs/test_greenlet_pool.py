"""`glb.hubs.greenlet_pool`: recycled greenlets, which look like fresh ones.

What a promise of gevent's is, a test asks of ``spawn=gevent.spawn`` as well: ``EACH_SPAWN``.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import gevent.local
import pytest
from gevent import Greenlet, GreenletExit, getcurrent, socket
from gevent.event import Event
from gevent.pool import Pool, PoolFull
from greenlet import greenlet as RawGreenlet

import glb
from glb.hubs import greenlet_pool, handler_greenlets, proof
from glb.hubs.greenlet_pool import HandlerGreenlet, HandlerPool, Handlers, handlers_here
from glb.server import StreamServer

from ..support.helpers import Holder, ask, close_all, connect, let_hub_turn, receive_all, wait_until
from ..support.traces import (
    BY_CONTEXT,
    BY_TRACER,
    TRACES,
    OwnExit,
    assert_fresh,
    fail,
    here,
    wait_for_answer,
)

LOCAL = ("127.0.0.1", 0)

#: Each in turn: ours, ours bounded, and gevent's as the measure of both.
EACH_SPAWN = ["default", 5, gevent.spawn]
RECYCLED = ["default", 5]

#: The modules that count references.
COUNTING = (proof, handler_greenlets, greenlet_pool)

Pair = Callable[[StreamServer], socket.socket]


@pytest.fixture(autouse=True)
def tracer_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handler greenlets look through the tracer's references, if there is one."""
    if BY_TRACER:
        count = weakref.getweakrefcount
        for module in COUNTING:
            monkeypatch.setattr(module, "getweakrefcount", lambda each: count(each) - BY_TRACER)


def talk(client: socket.socket) -> bytes:
    """Answer each question mark, and return all that was said."""
    said = b""
    with client:
        while data := client.recv(100):
            said += data
            client.sendall(b"x" * data.count(b"?"))
    return said


def talk_at_once(server: StreamServer, count: int) -> list[bytes]:
    """Start *server* with *count* clients in its queue: their handlers start in one go."""
    server.init_socket()
    clients = [connect(server.address) for _ in range(count)]
    server.start()
    return [talk(client) for client in clients]


@pytest.fixture
def created() -> Iterator[list[None]]:
    """Grows by one with each handler greenlet that starts."""
    seen: list[None] = []

    def see(greenlet: object) -> None:  # which keeps no reference: that would be a trace
        if isinstance(greenlet, HandlerGreenlet):
            seen.append(None)

    Greenlet.add_spawn_callback(see)
    yield seen
    Greenlet.remove_spawn_callback(see)


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, type[BaseException]]]:
    """The errors that the hub has reported, as text and type. A reference would be a trace."""
    found: list[tuple[str, type[BaseException]]] = []
    monkeypatch.setattr(
        gevent.get_hub(),
        "handle_error",
        lambda context, kind, *_: found.append((repr(context), kind)),
    )
    return found


@pytest.fixture
def kept() -> Iterator[list[Any]]:
    """What handlers keep; timers and greenlets among it are ended."""
    left: list[Any] = []
    yield left
    for each in left:
        if isinstance(each, gevent.Timeout):
            each.close()
        elif isinstance(each, Greenlet):
            each.kill()


def alive() -> int:
    """Return how many handler greenlets could run."""
    return sum(isinstance(each, HandlerGreenlet) and not each.dead for each in gc.get_objects())


# -- recycling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spawn", RECYCLED)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_handlers_that_leave_nothing_run_in_one_greenlet(
    waits: bool, spawn: Any, created: list[None]
) -> None:
    """A thousand connections one by one need one greenlet, and it is like new each time."""

    def handle(sock: Any, _peer: Any) -> None:
        assert_fresh()
        if waits:
            wait_for_answer(sock)
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        for _ in range(1000):
            assert talk(connect(server.address))[-2:] == b"ok"
        assert len(created) == 1
        assert sum(clone.completed for clone in server.clone_stats()) == 1000


@pytest.mark.parametrize("spawn", ["default", 50])
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_a_burst_starts_in_the_order_of_its_connections(
    waits: bool, spawn: Any, created: list[None]
) -> None:
    """A handler that never waits leaves its greenlet to the next at once; others keep it."""
    started: list[int] = []

    def handle(sock: Any, peer: Any) -> None:
        assert_fresh()
        started.append(peer[1])
        if waits:
            wait_for_answer(sock)
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle, spawn=spawn, clones=3) as server:
        server.init_socket()
        clients = [connect(server.address) for _ in range(40)]
        ports = [client.getsockname()[1] for client in clients]
        server.start()
        assert {talk(client)[-2:] for client in clients} == {b"ok"}
        assert started == ports
        assert len(created) == (40 if waits else 1)
        assert talk(connect(server.address))[-2:] == b"ok"
        assert len(created) == (40 if waits else 1)


def test_handlers_that_wait_and_that_do_not_share_greenlets(created: list[None]) -> None:
    """As many greenlets as were needed at a time, for any handler."""
    holder = Holder()

    def handle(sock: Any, peer: Any) -> None:
        if sock.recv(1) == b"w":
            holder(sock, peer)
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle) as server:
        server.start()
        clients = [connect(server.address) for _ in range(4)]
        for client in clients:
            client.sendall(b"w")
        holder.wait_for(4)
        assert ask(server.address, b"n") == b"ok"
        assert len(created) == 5
        holder.release()
        assert [receive_all(client) for client in clients] == [b"doneok"] * 4
        for _ in range(20):
            assert ask(server.address, b"n") == b"ok"
        assert len(created) == 5
        close_all(clients)


@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
@pytest.mark.parametrize(
    "leave_and_take_back",
    [
        lambda: weakref.ref(getcurrent()),
        lambda: [getcurrent()],
        lambda: gevent.Timeout.start_new(3600).close(),
        lambda: (here().rawlink(fail), here().unlink(fail)),
        lambda: (setattr(here(), "user", "me"), delattr(here(), "user")),  # type: ignore[func-returns-value]  # nor is any wanted
        lambda: setattr(gevent.local.local(), "user", "me"),
        lambda: gevent.spawn(int).join(),
        lambda: contextvars.copy_context().run(BY_CONTEXT.set, "me"),
    ],
    ids=["weakref", "reference", "timeout", "link", "attribute", "local", "child", "context"],
)
def test_a_trace_that_is_taken_back_is_none(
    leave_and_take_back: Callable[[], object], waits: bool, created: list[None]
) -> None:
    """The greenlet of a handler that cleans up is recycled."""

    def handle(sock: Any, _peer: Any) -> None:
        assert_fresh()
        if waits:
            wait_for_answer(sock)
        leave_and_take_back()
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle) as server:
        server.start()
        for _ in range(5):
            assert talk(connect(server.address))[-2:] == b"ok"
        assert len(created) == 1


@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_a_parked_greenlet_keeps_nothing_of_its_handler(waits: bool, created: list[None]) -> None:
    """The connection, the result, the server: all can go when the handler is done."""

    class Thing:
        pass

    left: list[weakref.ref[Any]] = []

    def handle(sock: Any, _peer: Any) -> Any:
        thing = Thing()
        BY_CONTEXT.set(Thing())
        left.extend(weakref.ref(each) for each in (sock, thing, BY_CONTEXT.get()))
        if waits:
            wait_for_answer(sock)
        sock.sendall(b"ok")
        return thing

    with StreamServer(LOCAL, handle) as other:
        other.start()  # so that greenlets stay parked
        server = StreamServer(LOCAL, handle)
        left.append(weakref.ref(server))
        assert {reply[-2:] for reply in talk_at_once(server, 3)} == {b"ok"}
        let_hub_turn()
        server.stop()
        del server
        gc.collect()
        assert len(handlers_here()) == len(created) == (3 if waits else 1)
        assert [each() for each in left] == [None] * 10


# -- each trace ends its greenlet ---------------------------------------------------------------


@pytest.mark.parametrize("spawn", RECYCLED)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
@pytest.mark.parametrize("trace", TRACES)
def test_after_a_trace_the_next_handler_has_a_fresh_greenlet(
    trace: str,
    waits: bool,
    spawn: Any,
    created: list[None],
    kept: list[Any],
    reported: list[Any],
) -> None:
    """One by one and in a burst; and no error is reported."""
    ended: list[int] = []

    def handle(sock: Any, _peer: Any) -> None:
        assert_fresh()
        if waits:
            wait_for_answer(sock)
        sock.sendall(b"ok")
        ended.append(1)
        TRACES[trace](kept)

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        assert {reply[-2:] for reply in talk_at_once(server, 3)} == {b"ok"}
        assert len(created) == 3
        for _ in range(3):
            assert talk(connect(server.address))[-2:] == b"ok"
        let_hub_turn()
        assert len(created) == len(ended) == 6
        assert reported == []
        assert len(handlers_here()) == 0
        assert [clone.failed for clone in server.clone_stats()] == [0, 0, 0, 0]


@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_context_variables_are_gone_with_their_handler(waits: bool, created: list[None]) -> None:
    """The next handler, in the same greenlet, sees defaults: also if a context was put there."""
    handled = 0

    def handle(sock: Any, _peer: Any) -> None:
        nonlocal handled
        assert_fresh()
        clone = glb.current_clone()
        assert clone is not None and clone.index == handled % 2 and clone.server is server
        if waits:
            wait_for_answer(sock)
        BY_CONTEXT.set("me")
        if handled % 3 == 2:
            here().gr_context = contextvars.Context()
            BY_CONTEXT.set("me too")
        handled += 1
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle, clones=2) as server:
        if not waits:
            assert talk_at_once(server, 6) == [b"ok"] * 6
        else:
            server.start()
        for _ in range(6):
            assert talk(connect(server.address))[-2:] == b"ok"
        assert len(created) == 1
    assert BY_CONTEXT.get() is None and glb.current_clone() is None


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_a_greenlet_that_was_kept_is_dead_and_has_the_result(waits: bool, spawn: Any) -> None:
    """``dead``, ``ready()``, ``successful()``, ``value``, ``get()`` are as in gevent."""
    kept: list[Any] = []

    def handle(sock: Any, _peer: Any) -> int:
        kept.append(here())
        if waits:
            wait_for_answer(sock)
        return len(kept)

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        for _ in range(3):
            talk(connect(server.address))
        let_hub_turn()
        assert len({*kept}) == 3
        for number, greenlet in enumerate(kept, 1):
            assert greenlet.dead and greenlet.ready() and greenlet.successful() and not greenlet
            assert (greenlet.value, greenlet.get(), greenlet.exception) == (number, number, None)
            assert greenlet not in server.pool if server.pool is not None else True
            greenlet.join()
            greenlet.kill()


@pytest.mark.parametrize("spawn", EACH_SPAWN)
def test_a_handler_is_ready_when_it_has_returned(spawn: Any) -> None:
    """Not a turn of the hub later: the greenlet that woke it finds it done at once."""
    proceed = Event()
    kept: list[Any] = []

    def handle(_sock: Any, _peer: Any) -> str:
        kept.append(here())
        proceed.wait()
        return "done"

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        with connect(server.address):
            wait_until(lambda: bool(kept))
            proceed.set()
            gevent.sleep(0)
            assert (kept[0].ready(), kept[0].value) == (True, "done")


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_weak_references_die_with_the_handler(waits: bool, spawn: Any) -> None:
    """Callbacks and finalizers run, and weak keys vanish, once each."""
    gone: list[object] = []
    kept: list[Any] = []
    weak: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def handle(sock: Any, _peer: Any) -> None:
        kept.append(weakref.ref(here(), gone.append))
        weakref.finalize(here(), gone.append, "finalized")
        weak[here()] = 1
        if waits:
            wait_for_answer(sock)

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        for count in range(1, 4):
            talk(connect(server.address))
            let_hub_turn()
            gc.collect()
            assert [reference() for reference in kept] == [None] * count
            assert gone.count("finalized") == count and len(gone) == 2 * count
            assert len(weak) == 0


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_links_run_once_with_the_dead_greenlet(
    raises: bool, waits: bool, spawn: Any, reported: list[Any]
) -> None:
    """Each kind of link, of its own handler alone, with the value or the error."""
    called: list[tuple[str, Any]] = []

    def noting(kind: str) -> Callable[[Any], None]:
        def link(greenlet: Any) -> None:
            assert greenlet.dead and greenlet.ready()
            called.append((kind, greenlet.value if not raises else greenlet.exception.args[0]))

        return link

    def handle(sock: Any, peer: Any) -> Any:
        here().link(noting("link"))
        here().rawlink(noting("rawlink"))
        here().link_value(noting("value"))
        here().link_exception(noting("exception"))
        if waits:
            wait_for_answer(sock)
        if raises:
            raise LookupError(peer[1])
        return peer[1]

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        for _ in range(3):
            client = connect(server.address)
            port = client.getsockname()[1]
            talk(client)
            let_hub_turn()
            kinds = {"link", "rawlink", "exception" if raises else "value"}
            assert sorted(called) == sorted((kind, port) for kind in kinds)
            called.clear()
        assert len(reported) == (3 if raises else 0)


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_a_join_of_a_handler_wakes_when_it_ends(waits: bool, spawn: Any) -> None:
    """`join`, `get`, `joinall` and `iwait` get the greenlet and its value."""
    waiting: list[Any] = []

    def handle(sock: Any, peer: Any) -> Any:
        waiting.append(gevent.spawn(here().join))
        waiting.append(gevent.spawn(here().get))
        waiting.append(gevent.spawn(gevent.joinall, [here()]))
        waiting.append(gevent.spawn(list, gevent.iwait([here()])))
        gevent.sleep(0)  # let them begin to wait
        if waits:
            wait_for_answer(sock)
        return peer[1]

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        for _ in range(3):
            with connect(server.address) as client:
                port = client.getsockname()[1]
                if waits:
                    client.sendall(b"x")
                receive_all(client)
            joined, got, (one,), (other,) = (each.get() for each in waiting)
            assert (joined, got, one.value, one.dead) == (None, port, port, True)
            assert one is other
            waiting.clear()


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_greenlet_locals_go_with_the_handler(waits: bool, spawn: Any) -> None:
    """Each handler finds its own empty, and initialised; the values are freed."""

    class Value:
        pass

    class Counted(gevent.local.local):
        def __init__(self) -> None:
            self.made = 1

    plain, counted = gevent.local.local(), Counted()
    values: list[weakref.ref[Value]] = []

    def handle(sock: Any, _peer: Any) -> None:
        assert vars(plain) == {} and vars(counted) == {"made": 1}
        if waits:
            wait_for_answer(sock)
        plain.value = Value()
        counted.made += 1
        values.append(weakref.ref(plain.value))
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        assert {reply[-2:] for reply in talk_at_once(server, 3)} == {b"ok"}
        for _ in range(3):
            assert talk(connect(server.address))[-2:] == b"ok"
        let_hub_turn()
        gc.collect()
        assert [value() for value in values] == [None] * 6


@pytest.mark.parametrize("spawn", EACH_SPAWN)
def test_minimal_idents_and_names_are_given_back(spawn: Any) -> None:
    """Handlers one by one have one number, handlers at a time different ones."""
    idents: list[int] = []
    holder = Holder()

    def handle(sock: Any, peer: Any) -> None:
        assert_fresh()
        idents.append(here().minimal_ident)
        assert here().name == f"Greenlet-{idents[-1]}"
        if sock.recv(1) == b"w":
            holder(sock, peer)

    def ask_and_settle(server: StreamServer) -> None:
        ask(server.address, b"n")
        let_hub_turn()
        gc.collect()

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        for _ in range(4):
            ask_and_settle(server)
        assert len({*idents}) == 1
        clients = [connect(server.address) for _ in range(3)]
        for client in clients:
            client.sendall(b"w")
        holder.wait_for(3)
        assert len({*idents[-3:]}) == 3
        holder.release()
        close_all(clients)
        wait_until(lambda: holder.served == 3)


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_a_timeout_that_was_never_closed_hits_no_other_handler(
    waits: bool, spawn: Any, kept: list[gevent.Timeout], reported: list[Any]
) -> None:
    """The next handler is there when it fires, and does not notice."""

    def leave(sock: Any, _peer: Any) -> None:
        if waits:
            wait_for_answer(sock)
        kept.append(gevent.Timeout.start_new(0.001))
        sock.sendall(b"left")

    def stay(sock: Any, _peer: Any) -> None:
        (timeout,) = kept
        wait_until(lambda: not timeout.pending)
        gevent.sleep(0)
        sock.sendall(b"stayed")

    with StreamServer(LOCAL, leave, spawn=spawn) as server:
        server.start()
        assert talk(connect(server.address))[-4:] == b"left"
        server.set_handle(stay)  # what each connection asks for
        assert ask(server.address) == b"stayed"
        assert reported == []
        assert [clone.failed for clone in server.clone_stats()] == [0, 0, 0, 0]


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
@pytest.mark.parametrize(
    "send",
    [
        lambda: here().kill(block=False),
        lambda: here().kill(LookupError("on purpose"), block=False),
        lambda: gevent.killall([here()], block=False),
        lambda: gevent.get_hub().loop.run_callback(here().switch),
        lambda: gevent.get_hub().loop.run_callback(here().switch, "anything"),
        lambda: gevent.get_hub().loop.run_callback(here().throw, gevent.Timeout()),
    ],
    ids=["kill", "kill with an error", "killall", "switch", "switch with a value", "timeout"],
)
def test_what_reaches_a_handler_too_late_changes_nothing(
    send: Callable[[], object], waits: bool, spawn: Any, reported: list[Any]
) -> None:
    """A kill, a switch or a timeout that was on its way as the handler returned."""
    kept: list[Any] = []
    linked: list[Any] = []

    def handle(sock: Any, _peer: Any) -> str:
        if waits:
            wait_for_answer(sock)
        kept.append(here())
        here().rawlink(lambda greenlet: linked.append((greenlet.value, greenlet.exception)))
        send()
        return "done"

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        talk(connect(server.address))
        let_hub_turn()
        assert (kept[0].value, kept[0].exception, kept[0].dead) == ("done", None, True)
        assert linked == [("done", None)]
        assert reported == []
        assert sum(clone.completed for clone in server.clone_stats()) == 1


@pytest.mark.parametrize("spawn", EACH_SPAWN)
def test_a_switch_that_comes_too_late_starts_no_handler(spawn: Any) -> None:
    """In the very turn in which a handler returned, and with the next one waiting to start."""
    first: list[Any] = []
    second: list[Any] = []

    def handle(sock: Any, _peer: Any) -> None:
        if not first:
            wait_for_answer(sock)
            first.append(here())
            gevent.get_hub().loop.run_callback(accept_and_switch)
        else:
            second.append(here())

    def accept_and_switch() -> None:
        server.do_handle(ours, "peer")
        first[0].switch()

    ours, theirs = socket.socketpair()
    with StreamServer(LOCAL, handle, spawn=spawn) as server, theirs:
        server.start()
        talk(connect(server.address))
        assert receive_all(theirs) == b""
        let_hub_turn()
        assert first[0] is not second[0]
        assert first[0].dead and second[0].dead


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["from its start", "after a wait"])
def test_a_handler_resumed_by_another_one_ends_like_any(waits: bool, spawn: Any) -> None:
    """By a plain ``switch``, while the other one has a reference: its greenlet isn't used again."""
    parts = iter(["resumed", "resumes", *["neither"] * 5])
    waiting: list[Any] = []
    seen: list[Any] = []

    def handle(sock: Any, _peer: Any) -> None:
        assert_fresh()
        what = next(parts)
        if what == "resumed":
            waiting.append(here())
            gevent.get_hub().switch()
            sock.sendall(b"resumed")
        elif what == "resumes":
            if waits:
                wait_for_answer(sock)
            gevent.get_hub().loop.run_callback(here().switch)
            other = waiting.pop()
            other.switch()
            seen.append(other)
            sock.sendall(b"%d" % other.ready())
        else:
            sock.sendall(b"%d" % (here() not in seen))

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        with connect(server.address) as first:
            wait_until(lambda: bool(waiting))
            assert talk(connect(server.address))[-1:] == b"1"
            assert receive_all(first) == b"resumed"
        for _ in range(5):
            assert ask(server.address) == b"1"
        assert seen[0].dead and seen[0].successful()


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_a_handler_that_gives_itself_a_parent_ends_there(waits: bool, spawn: Any) -> None:
    """The other greenlet runs once, when the handler is dead, and the server goes on."""
    after: list[object] = []

    def handle(sock: Any, _peer: Any) -> None:
        assert_fresh()
        if waits:
            wait_for_answer(sock)
        sock.sendall(b"ok")
        greenlet = weakref.ref(here())
        here().parent = RawGreenlet(lambda *_: after.append(greenlet()), gevent.get_hub())

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        assert {reply[-2:] for reply in talk_at_once(server, 3)} == {b"ok"}
        for _ in range(3):
            assert talk(connect(server.address))[-2:] == b"ok"
        let_hub_turn()
        assert len(after) == 6
        for greenlet in after:
            assert greenlet is None or greenlet.dead  # type: ignore[attr-defined]  # it is gevent's


def test_killing_every_greenlet_that_there_is_breaks_nothing(created: list[None]) -> None:
    """``gevent.killall`` of what `gc` finds, a known idiom, hits parked ones as well."""
    holder = Holder()
    with StreamServer(LOCAL, holder) as server:
        server.start()
        clients = [connect(server.address) for _ in range(5)]
        holder.wait_for(5)
        holder.release()
        assert [receive_all(client) for client in clients] == [b"done"] * 5
        close_all(clients)
        assert len(handlers_here()) == 5
        found = [each for each in gc.get_objects() if isinstance(each, Greenlet)]
        gevent.killall([each for each in found if each.parent is gevent.get_hub()])
        del found
        for _ in range(20):
            assert ask(server.address) == b"done"
        assert 6 <= len(created) <= 10
        handlers_here()._trim()
        handlers_here()._trim()
        assert len(handlers_here()) == 0
        assert ask(server.address) == b"done"


# -- threads under monkey patching, and a Python without counts ---------------------------------


def run_child(program: str) -> None:
    """Run *program* in a Python of its own, with warnings as errors."""
    root = Path(glb.__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", CHILD_START + program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


CHILD_START = """\
def ask(address, request):
    with gevent.socket.create_connection(address, timeout=10) as client:
        client.sendall(request)
        reply = b""
        while data := client.recv(100):
            reply += data
        return reply

def count_created():
    from glb.hubs.greenlet_pool import HandlerGreenlet
    created = []
    gevent.Greenlet.add_spawn_callback(
        lambda each: created.append(1) if isinstance(each, HandlerGreenlet) else None)
    return created

"""


@pytest.mark.parametrize("spawn", ["'default'", "10", "gevent.spawn"])
def test_thread_locals_and_current_thread_are_a_fresh_greenlets(spawn: str) -> None:
    """Under monkey patching: nothing in them, no thread left over, no name used by two."""
    run_child(f"""
from gevent import monkey
monkey.patch_all()
import gevent, gevent.socket, threading, weakref
import glb.server

created = count_created()
data, main = threading.local(), threading.current_thread()
threads, values = [], []
class Value: pass

def handle(sock, peer):
    what = sock.recv(1)
    if what in b"lb":
        assert vars(data) == {{}}, vars(data)
        data.value = Value()
        values.append(weakref.ref(data.value))
    if what in b"tb":
        thread = threading.current_thread()
        assert thread is not main and thread.is_alive() and thread.ident == threading.get_ident()
        assert threading.current_thread() is thread
        assert not hasattr(thread, "seen")
        assert weakref.ref(thread) not in threads
        thread.seen = True
        threads.append(weakref.ref(thread))
        assert threading.active_count() == 2
    if what == b"s":
        child = threading.Thread(target=setattr, args=(data, "value", 1))
        child.start()
        child.join()
        assert not child.is_alive()
    if what == b"w":
        threading.Event().wait(0.001)
    sock.sendall(b"ok")

spawn = {spawn}
ours = spawn != gevent.spawn
with glb.server.StreamServer(("127.0.0.1", 0), handle, spawn=spawn) as server:
    server.start()
    for _ in range(10):
        for what in b"ltbnsw":
            before = len(created)
            assert ask(server.address, bytes([what])) == b"ok", chr(what)
            gevent.sleep(0)
            gevent.sleep(0)
            assert threading.enumerate() == [main], threading.enumerate()
    for _ in range(20):
        assert ask(server.address, b"n") == b"ok"
    # At most one for each that left a trace (to make a thread is to look at one's own), and
    # one for those that left none.
    assert len(created) <= {80 if BY_TRACER else 41} and bool(created) is ours, created
    import gc; gc.collect()
    assert {{value() for value in values}} == {{None}}
    assert {{thread() for thread in threads}} == {{None}}
    assert vars(data) == {{}}
""")


def test_without_reference_counts_each_handler_has_a_fresh_greenlet() -> None:
    """As on PyPy: nothing can be proved there, so nothing is used again."""
    run_child("""
import sys
del sys.getrefcount
import gevent, gevent.socket
import glb.server

created = count_created()
kept = []

def handle(sock, peer):
    kept.append(gevent.getcurrent())
    if sock.recv(1) == b"w":
        gevent.sleep(0.001)
    sock.sendall(b"ok")

with glb.server.StreamServer(("127.0.0.1", 0), handle) as server:
    server.init_socket()
    clients = [gevent.spawn(ask, server.address, b"n") for _ in range(5)]
    gevent.sleep(0.01)
    server.start()
    gevent.joinall(clients, raise_error=True)
    for what in b"nwnwn":
        assert ask(server.address, bytes([what])) == b"ok"
    gevent.sleep(0.001)
    assert len(created) == len(set(kept)) == 10, (len(created), len(set(kept)))
    assert all(each.dead and each.successful() for each in kept)
""")


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
@pytest.mark.parametrize("kind", [ValueError, OwnExit, gevent.Timeout])
def test_an_error_is_reported_as_gevent_reports_it(
    kind: type[BaseException], waits: bool, spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, with the greenlet, the error and its traceback; and the next one is served."""
    reports: list[Any] = []
    texts: list[str] = []

    def handle_error(context: Any, *rest: Any) -> None:
        reports.append((context, *rest))
        texts.append(repr(context))

    raised: list[BaseException] = []

    def handle_it(sock: Any, _peer: Any) -> None:
        assert_fresh()
        if waits:
            wait_for_answer(sock)
        if not raised:
            raised.append(kind("on purpose") if kind is not gevent.Timeout else kind())
            raise raised[0]
        sock.sendall(b"ok")

    monkeypatch.setattr(gevent.get_hub(), "handle_error", handle_error)
    with StreamServer(LOCAL, handle_it, spawn=spawn) as server:
        server.start()
        client = connect(server.address)
        port = client.getsockname()[1]
        assert talk(client)[-2:] != b"ok"
        assert talk(connect(server.address))[-2:] == b"ok"
        let_hub_turn()
        ((context, got, value, traceback),) = reports
        assert (got, value) == (kind, raised[0])
        while traceback.tb_next is not None:
            traceback = traceback.tb_next
        assert traceback.tb_frame.f_code is handle_it.__code__
        assert isinstance(context, Greenlet) and context.dead and not context.successful()
        assert context.exception is value and (context.exc_info or ())[:2] == (kind, value)
        with pytest.raises(kind):
            context.get()
        if spawn is not gevent.spawn:  # there the connection's close stands between
            assert "handle_it" in texts[0] and str(port) in texts[0]
        stats = server.clone_stats()
        assert sum(clone.failed for clone in stats) == sum(clone.completed for clone in stats) == 1


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_system_error_reaches_the_main_greenlet(
    kind: type[BaseException], waits: bool, spawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is caught there the program may go on: the server does."""
    errors = iter([kind("on purpose"), kind("again")])

    def handle(sock: Any, _peer: Any) -> None:
        assert_fresh()
        if waits:
            wait_for_answer(sock)
        for error in errors:
            raise error
        sock.sendall(b"ok")

    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *_: None)
    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        for text in ("on purpose", "again"):
            client = connect(server.address)
            with pytest.raises(kind, match=text):
                talk(client)
            let_hub_turn()
        assert talk(connect(server.address))[-2:] == b"ok"
        let_hub_turn()
        stats = server.clone_stats()
        assert [sum(each) for each in zip(*(clone[1:5] for clone in stats), strict=True)] == [
            3,
            0,
            1,
            2,
        ]


def test_a_program_that_catches_a_system_error_may_stop_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the hub is in the midst of starting handlers; those that wait to start are served."""
    started: list[int] = []

    def handle(sock: Any, _peer: Any) -> None:
        started.append(1)
        if len(started) == 2:
            raise SystemExit
        sock.sendall(b"ok")

    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *_: None)
    server = StreamServer(LOCAL, handle)
    server.init_socket()
    clients = [connect(server.address) for _ in range(4)]
    server.start()
    with pytest.raises(SystemExit):
        gevent.sleep(10)
    assert len(started) == 2
    server.stop()
    assert [receive_all(client) for client in clients] == [b"ok", b"", b"ok", b"ok"]
    close_all(clients)
    let_hub_turn()
    assert (len(handlers_here()), alive()) == (0, 0)


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_greenlet_exit_is_silent(waits: bool, spawn: Any, reported: list[Any]) -> None:
    """It closes the connection, counts as failed, and is the greenlet's value."""
    kept: list[Any] = []

    def handle(sock: Any, _peer: Any) -> None:
        kept.append(here())
        if waits:
            wait_for_answer(sock)
        raise GreenletExit

    with StreamServer(LOCAL, handle, spawn=spawn, clones=1) as server:
        server.start()
        for _ in range(2):
            talk(connect(server.address))
        let_hub_turn()
        assert reported == []
        assert server.clone_stats()[0][1:5] == (2, 0, 0, 2)
        for greenlet in kept:
            assert greenlet.dead and greenlet.successful()
            assert isinstance(greenlet.value, GreenletExit)


@pytest.mark.parametrize("spawn", EACH_SPAWN)
@pytest.mark.parametrize("kind", [GreenletExit, ValueError, OwnExit])
def test_killing_a_handler_closes_its_connection(
    kind: type[BaseException], spawn: Any, reported: list[tuple[str, type[BaseException]]]
) -> None:
    """It counts as failed, is reported if it isn't GreenletExit, and the next is served."""
    kept: list[Any] = []

    def handle(sock: Any, _peer: Any) -> None:
        assert_fresh()
        if not kept:
            kept.append(here())
            Event().wait()
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle, spawn=spawn, clones=1) as server:
        server.start()
        with connect(server.address) as client:
            wait_until(lambda: bool(kept))
            kept[0].kill(kind)
            assert kept[0].dead
            assert receive_all(client) == b""
        assert server.clone_stats()[0][1:5] == (1, 0, 0, 1)
        assert [kind for _, kind in reported] == ([] if kind is GreenletExit else [kind])
        for _ in range(3):
            assert ask(server.address) == b"ok"


def test_a_killed_handler_that_is_kept_keeps_no_connection() -> None:
    """Its greenlet has let go of the job, as gevent's lets go of its arguments."""
    kept: list[Any] = []

    def handle(_sock: Any, _peer: Any) -> None:
        kept.append(here())
        Event().wait()

    with StreamServer(LOCAL, handle) as server:
        server.start()
        with connect(server.address) as client:
            wait_until(lambda: bool(kept))
            kept[0].kill()
            assert receive_all(client) == b""
        assert (kept[0].dead, kept[0].job, kept[0].args) == (True, None, ())
        assert kept[0] not in kept[0]._handlers.all


@pytest.mark.parametrize("spawn", EACH_SPAWN)
def test_a_handler_may_outlive_its_kill(spawn: Any, created: list[None]) -> None:
    """A handler that catches GreenletExit goes on, and its result is its own."""
    kept: list[Any] = []

    def handle(sock: Any, _peer: Any) -> str:
        kept.append(weakref.ref(here()))
        here().rawlink(lambda greenlet: kept.append(greenlet.value))
        with contextlib.suppress(GreenletExit):
            gevent.spawn(here().kill)
            Event().wait()
        sock.sendall(b"ok")
        return "lived on"

    with StreamServer(LOCAL, handle, spawn=spawn, clones=1) as server:
        server.start()
        assert ask(server.address) == b"ok"
        let_hub_turn()
        assert kept[1] == "lived on"
        assert server.clone_stats()[0][1:5] == (1, 0, 1, 0)
        assert ask(server.address) == b"ok"
        assert len(created) == (0 if spawn is gevent.spawn else 2)


@pytest.mark.parametrize("spawn", EACH_SPAWN)
def test_an_error_that_was_handled_is_not_the_next_ones(spawn: Any) -> None:
    """`sys.exc_info` is empty, and a bare ``raise`` has nothing to raise."""

    def handle(sock: Any, _peer: Any) -> None:
        assert_fresh()
        with pytest.raises(RuntimeError, match="No active exception"):
            raise  # noqa: PLE0704  # there is none, which is the point
        try:
            fail()
        except LookupError:
            sock.sendall(b"ok")
            return

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        assert talk_at_once(server, 3) == [b"ok"] * 3
        assert [ask(server.address) for _ in range(3)] == [b"ok"] * 3


# -- new greenlets are seen ---------------------------------------------------------------------


@contextlib.contextmanager
def spawn_callback(callback: Callable[[Any], object]) -> Iterator[None]:
    Greenlet.add_spawn_callback(callback)
    try:
        yield
    finally:
        Greenlet.remove_spawn_callback(callback)


@pytest.mark.parametrize("spawn", EACH_SPAWN)
def test_a_spawn_callback_sees_new_greenlets(spawn: Any) -> None:
    """`Greenlet.add_spawn_callback` is called before the handler runs, with its greenlet."""
    seen: list[weakref.ref[Any]] = []

    def handle(sock: Any, _peer: Any) -> None:
        sock.sendall(b"%d" % (here() in [each() for each in seen]))

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        with spawn_callback(lambda greenlet: seen.append(weakref.ref(greenlet))):
            assert [ask(server.address) for _ in range(3)] == [b"1"] * 3
        assert len(seen) in (3, 4)  # the log may say in one of its own that they are fresh ones


@pytest.mark.parametrize("spawn", ["default", 20, gevent.spawn])
@pytest.mark.parametrize("waits", [False, True], ids=["never waits", "waits"])
def test_a_spawn_callback_that_keeps_greenlets_has_one_for_each_handler(
    waits: bool, spawn: Any
) -> None:
    """A reference that was there before the handler began is one as well."""
    kept: list[Any] = []
    ran: list[Any] = []

    def handle(sock: Any, _peer: Any) -> None:
        ran.append(kept.index(here()))
        if waits:
            wait_for_answer(sock)
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle, spawn=spawn) as server, spawn_callback(kept.append):
        assert {reply[-2:] for reply in talk_at_once(server, 5)} == {b"ok"}
        for _ in range(5):
            assert talk(connect(server.address))[-2:] == b"ok"
        let_hub_turn()
        assert ran == [*range(10)]
        assert all(greenlet.dead for greenlet in kept)


@pytest.mark.parametrize("spawn", RECYCLED)
def test_a_spawn_callback_that_raises_costs_its_connection_alone(
    spawn: Any, reported: list[tuple[str, type[BaseException]]]
) -> None:
    """It is closed, counts as failed and is reported; the others are served."""
    calls = iter([True, False, True])

    def raise_at_times(_greenlet: object) -> None:
        if next(calls, False):
            fail()

    def handle(sock: Any, _peer: Any) -> None:
        wait_for_answer(sock)
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle, spawn=spawn, clones=1) as server:
        with spawn_callback(raise_at_times):
            replies = talk_at_once(server, 4)
        assert replies == [b"", b"?ok", b"", b"?ok"]
        let_hub_turn()
        assert server.clone_stats()[0][1:5] == (4, 0, 2, 2)
        assert [kind for _, kind in reported] == [LookupError] * 2
        assert talk(connect(server.address)) == b"?ok"
        assert server.pool is None or len(server.pool) == 0


# -- parked greenlets ---------------------------------------------------------------------------


def hold_at_once(server: StreamServer, holder: Holder, count: int) -> None:
    """Let *count* handlers run at a time, and end."""
    clients = [connect(server.address) for _ in range(count)]
    holder.wait_for(count)
    holder.release()
    assert [receive_all(client) for client in clients] == [b"done"] * count
    close_all(clients)
    let_hub_turn()


def test_no_more_than_so_many_are_parked(
    monkeypatch: pytest.MonkeyPatch, created: list[None]
) -> None:
    """After a peak the surplus ends at once."""
    monkeypatch.setattr(handler_greenlets, "MAX_PARKED", 3)
    holder = Holder()
    with StreamServer(LOCAL, holder) as server:
        server.start()
        hold_at_once(server, holder, 10)
        assert (len(created), len(handlers_here()), alive()) == (10, 3, 3)


def test_idle_greenlets_are_trimmed(monkeypatch: pytest.MonkeyPatch, created: list[None]) -> None:
    """Within two periods without a connection all are gone, and the timer with them."""
    monkeypatch.setattr(handler_greenlets, "TRIM_SECONDS", 0.01)
    holder = Holder()
    with StreamServer(LOCAL, holder) as server:
        server.start()
        hold_at_once(server, holder, 10)
        wait_until(lambda: handlers_here()._trimmer is None)
        assert (len(handlers_here()), alive()) == (0, 0)
        assert ask(server.address) == b"done"
        assert len(created) == 11
        assert handlers_here()._trimmer is not None


def test_trimming_leaves_what_was_needed() -> None:
    """As many as ran at a time since the last look stay."""
    with StreamServer(LOCAL, Holder()) as server:
        server.start()
        here = handlers_here()
        for at_once, left in ((10, 10), (4, 4), (4, 4), (1, 1), (0, 0)):
            if at_once:
                holder = Holder()
                server.set_handle(holder)  # what each connection asks for
                hold_at_once(server, holder, at_once)
            here._trim()
            assert (len(here), alive()) == (left, left)


@pytest.mark.parametrize("spawn", [("default", "default"), (4, "default"), (4, 4)])
def test_servers_of_a_hub_share_greenlets(spawn: tuple[Any, Any], created: list[None]) -> None:
    """The last one that stops ends them."""

    def handle(sock: Any, _peer: Any) -> None:
        assert_fresh()
        clone = glb.current_clone()
        assert clone is not None
        wait_for_answer(sock)
        sock.sendall(b"%d" % servers.index(clone.server))

    servers = [StreamServer(LOCAL, handle, spawn=each) for each in spawn]
    for server in servers:
        server.start()
    for _ in range(3):
        for number, server in enumerate(servers):
            assert talk(connect(server.address)) == b"?%d" % number
    assert len(created) == 1
    servers[0].stop()
    assert (len(handlers_here()), alive()) == (1, 1)
    assert talk(connect(servers[1].address)) == b"?1"
    assert len(created) == 1
    servers[1].stop()
    assert (len(handlers_here()), alive(), handlers_here()._trimmer) == (0, 0, None)


@pytest.mark.parametrize("where", ["outside", "in a handler"])
def test_the_last_server_ends_all_greenlets(where: str, created: list[None]) -> None:
    """Parked ones at once, and those that still run when they are done."""
    holder = Holder()

    def handle(sock: Any, peer: Any) -> None:
        what = sock.recv(1)
        if what == b"w":
            holder(sock, peer)
        elif what == b"s":
            server.stop()
        sock.sendall(b"ok")

    server = StreamServer(LOCAL, handle)
    server.start()
    clients = [connect(server.address) for _ in range(3)]
    for client in clients:
        client.sendall(b"w")
    holder.wait_for(3)
    assert ask(server.address, b"n") == b"ok"
    assert (len(handlers_here()), alive()) == (1, 4)
    if where == "outside":
        server.stop()
    else:
        assert ask(server.address, b"s") == b"ok"
    let_hub_turn()
    assert (len(handlers_here()), alive(), handlers_here()._trimmer) == (0, 3, None)
    holder.release()
    assert [receive_all(client) for client in clients] == [b"doneok"] * 3
    close_all(clients)
    let_hub_turn()
    assert (len(handlers_here()), alive(), handlers_here()._trimmer) == (0, 0, None)
    assert len(created) == 4
    server.start()
    assert ask(server.address, b"n") == b"ok"
    assert len(handlers_here()) == 1
    server.stop()
    assert (len(handlers_here()), alive(), handlers_here()._trimmer) == (0, 0, None)


def test_a_handler_that_never_returns_costs_nothing_to_others(created: list[None]) -> None:
    """It has its greenlet; a hundred others one by one need one more."""
    holder = Holder()

    def handle(sock: Any, peer: Any) -> None:
        if sock.recv(1) == b"w":
            holder(sock, peer)
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle, clones=1) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(b"w")
            holder.wait_for(1)
            for _ in range(100):
                assert ask(server.address, b"n") == b"ok"
            assert len(created) == 2
            assert server.clone_stats()[0][1:5] == (101, 1, 100, 0)
            holder.release()
            assert receive_all(client) == b"doneok"


@pytest.mark.parametrize("spawn", EACH_SPAWN)
def test_handlers_that_start_handlers_leave_the_hub_its_turns(spawn: Any) -> None:
    """An endless chain without a wait does not keep timers and connections waiting."""
    ended: list[int] = []
    links = 0

    class Chained(StreamServer):
        def do_close(self, *args: Any) -> None:
            nonlocal links
            links += 1
            if not ended and links < 300_000:
                self.do_handle(*args)
            else:
                super().do_close(*args)

    timer = gevent.get_hub().loop.timer(0.02)
    with Chained(LOCAL, lambda *_: None, spawn=spawn) as server:
        server.start()
        timer.start(ended.append, 1)
        assert ask(server.address) == b""
        assert links < 300_000, "a timer of 20 ms had no turn"
    timer.stop()
    timer.close()


NO_LIBUV = pytest.mark.skipif(
    "libuv" in gevent.config.loop.__module__,
    reason="a libuv hub can't be destroyed while a server has a watcher there, nor can gevent's",
)


@NO_LIBUV
def test_a_server_outlives_the_hub_of_its_thread() -> None:
    """Its greenlets end in any kind of stop, and the thread's next hub has its own."""
    failed: list[BaseException] = []
    old: list[StreamServer] = []

    def serve() -> StreamServer:
        server = StreamServer(LOCAL, lambda sock, _: sock.sendall(b"ok"), clones=2)
        server.start()
        assert [ask(server.address) for _ in range(3)] == [b"ok"] * 3
        assert len(handlers_here()) == 1
        return server

    def run() -> None:
        try:
            old.append(serve())
            old.append(serve())
            before = handlers_here()
            gevent.get_hub().destroy(destroy_loop=True)
            old[0].stop()
            assert len(before) == 1
            server = serve()
            assert handlers_here() is not before
            old[1].stop()
            server.stop()
            assert len(handlers_here()) == 0
            old.append(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    if failed:
        raise failed[0]
    old[2].stop()  # from here, with its thread gone
    assert glb.registry.entries() == []


@NO_LIBUV
def test_the_greenlets_of_a_destroyed_hub_end_with_their_last_server() -> None:
    """In its thread: no loop is needed for that."""
    counts: list[tuple[int, Any, bool]] = []

    def run() -> None:
        server = StreamServer(LOCAL, lambda sock, _: sock.sendall(b"ok"))
        server.start()
        ask(server.address)
        here: Handlers = handlers_here()
        parked = weakref.ref(here._parked[0])
        gevent.get_hub().destroy(destroy_loop=True)
        server.stop()
        counts.append((len(here), here._trimmer, parked() is None))
        gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert counts == [(0, None, True)]


# -- a bounded server ---------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Has a server handle a connection out of turn, and returns the client's end."""
    ends: list[socket.socket] = []

    def handle_one(server: StreamServer) -> socket.socket:
        ends.extend(socket.socketpair())
        server.do_handle(ends[-2], "peer")
        return ends[-1]

    yield handle_one
    close_all(ends)


def test_a_pool_knows_its_handlers() -> None:
    """`len`, `full`, `free_count`, iteration and ``in`` are as in gevent while they run."""
    greenlets: list[Any] = []
    holder = Holder()

    def handle(sock: Any, peer: Any) -> None:
        assert here() in server.pool
        greenlets.append(here())
        holder(sock, peer)
        assert here() in server.pool

    with StreamServer(LOCAL, handle, spawn=3) as server:
        pool = server.pool
        assert type(pool).__mro__[1] is Pool
        assert (len(pool), pool.size, pool.free_count(), pool.full()) == (0, 3, 3, False)
        server.start()
        clients = [connect(server.address) for _ in range(3)]
        for count in (1, 2, 3):
            holder.wait_for(count)
        assert {*pool} == {*greenlets} == pool.greenlets
        assert (len(pool), pool.free_count(), pool.full(), bool(pool)) == (3, 0, True, True)
        assert pool.wait_available(timeout=0) == 0
        assert pool.join(timeout=0) is False
        with pytest.raises(PoolFull):
            server.pool.add(Greenlet(), blocking=False)
        holder.release()
        assert [receive_all(client) for client in clients] == [b"done"] * 3
        close_all(clients)
        assert pool.join() is True
        assert (len(pool), [*pool], pool.free_count(), pool.full()) == (0, [], 3, False)
        assert not any(greenlet in pool for greenlet in greenlets)
        assert pool._semaphore.counter == 3


def test_a_connection_that_waits_for_its_greenlet_counts(pair: Pair) -> None:
    """From the moment that it was taken the pool has one place less."""
    with StreamServer(LOCAL, lambda sock, _: sock.sendall(b"ok"), spawn=2) as server:
        server.start()
        pool = server.pool
        clients = [pair(server), pair(server)]
        assert (len(pool), pool.free_count(), pool.full()) == (2, 0, True)
        assert not pool._empty_event.is_set()
        assert pool.join() is True
        assert len(pool) == 0
        assert [receive_all(client) for client in clients] == [b"ok"] * 2
        close_all(clients)


@pytest.mark.parametrize("spawn", [3, pytest.param(Pool, id="gevent's")])
def test_join_waits_for_connections_that_wait_for_a_greenlet(spawn: Any, pair: Pair) -> None:
    """A handler that ends while another is about to start leaves no empty pool."""
    proceed = Event()
    order: list[str] = []

    def handle(_sock: Any, _peer: Any) -> None:
        if not order:
            order.append("first began")
            proceed.wait()
            order.append("first")
        else:
            gevent.sleep(0.001)
            order.append("second")

    with StreamServer(LOCAL, handle, spawn=spawn(3) if spawn is Pool else spawn) as server:
        server.start()
        first = pair(server)
        wait_until(lambda: bool(order))

        def join() -> None:
            server.pool.join()
            order.append("joined")

        joining = gevent.spawn(join)
        let_hub_turn()
        proceed.set()  # it will end before what follows starts
        second = pair(server)
        joining.join()
        assert order == ["first began", "first", "second", "joined"]
        close_all([first, second])


@pytest.mark.parametrize("block", [True, False])
def test_killing_a_pool_closes_what_runs_and_what_waits(
    block: bool, reported: list[Any], pair: Pair
) -> None:
    """Each counts as failed, once, nothing is reported, and all places are free."""
    holder = Holder()
    with StreamServer(LOCAL, holder, spawn=4, clones=1) as server:
        server.start()
        clients = [pair(server), pair(server)]
        holder.wait_for(2)
        clients += [pair(server), pair(server)]
        server.pool.kill(block=block)
        if not block:
            assert server.pool.join() is True
        assert [receive_all(client) for client in clients] == [b""] * 4
        assert glb.current_clone() is None
        assert holder.held == 2 and holder.served == 0
        # Out of turn they were not accepted.
        assert server.clone_stats()[0][1:5] == (0, 0, 0, 4)
        assert reported == []
        assert (len(server.pool), server.pool._semaphore.counter) == (0, 4)
        holder.release()
        assert [ask(server.address) for _ in range(5)] == [b"done"] * 5


def test_killing_one_pool_leaves_another_servers_handlers(pair: Pair) -> None:
    """A job of another pool that waits for a greenlet is served."""
    with (
        StreamServer(LOCAL, lambda sock, _: sock.sendall(b"one"), spawn=2) as one,
        StreamServer(LOCAL, lambda sock, _: sock.sendall(b"two"), spawn=2) as two,
    ):
        one.start()
        two.start()
        clients = [pair(server) for server in (one, two, one, two)]
        one.pool.kill()
        assert [receive_all(client) for client in clients] == [b"", b"two", b"", b"two"]
        close_all(clients)


def test_killing_one_handler_of_a_pool() -> None:
    """`killone` is gevent's."""
    greenlets: list[Any] = []

    def handle(_sock: Any, _peer: Any) -> None:
        greenlets.append(here())
        Event().wait()

    with StreamServer(LOCAL, handle, spawn=4, clones=1) as server:
        server.start()
        clients = [connect(server.address) for _ in range(2)]
        wait_until(lambda: len(greenlets) == 2)
        server.pool.killone(greenlets[0])
        assert receive_all(clients[0]) == b""
        assert {*server.pool} == {greenlets[1]}
        assert server.clone_stats()[0][1:5] == (2, 1, 0, 1)
        server.pool.kill()
        assert receive_all(clients[1]) == b""
        close_all(clients)


def test_stop_kills_handlers_that_are_not_done_in_time(reported: list[Any]) -> None:
    """Handlers that run after the timeout are killed, and their connections closed."""
    holder = Holder()
    server = StreamServer(LOCAL, holder, spawn=5, clones=1)
    server.start()
    clients = [connect(server.address) for _ in range(3)]
    holder.wait_for(3)
    server.stop(timeout=0.01)
    assert [receive_all(client) for client in clients] == [b""] * 3
    close_all(clients)
    assert server.clone_stats()[0][1:5] == (3, 0, 0, 3)
    let_hub_turn()
    assert (len(server.pool), alive(), reported) == (0, 0, [])
    holder.release()
    server.start()
    assert ask(server.address) == b"done"
    assert server.clone_stats()[0][1:5] == (4, 0, 1, 3)
    server.stop()


def test_stop_with_a_connection_that_has_not_begun(pair: Pair) -> None:
    """It is served within the timeout, as one that runs."""
    server = StreamServer(LOCAL, lambda sock, _: sock.sendall(b"ok"), spawn=5)
    server.start()
    client = pair(server)
    server.stop()
    assert receive_all(client) == b"ok"
    client.close()
    assert (len(server.pool), alive()) == (0, 0)


def test_a_pools_own_methods_are_gevents(created: list[None]) -> None:
    """`spawn`, `apply`, `map`, `imap` beside handlers, in gevent's greenlets."""
    holder = Holder()

    def handle(sock: Any, peer: Any) -> None:
        sock.sendall(b"%d" % server.pool.apply(abs, (-7,)))  # at once: it is one of the pool
        holder(sock, peer)

    with StreamServer(LOCAL, handle, spawn=3) as server:
        server.start()
        pool = server.pool
        with connect(server.address) as client:
            holder.wait_for(1)
            spawned = pool.spawn(lambda: here() in pool and not isinstance(here(), HandlerGreenlet))
            assert (len(pool), pool.free_count()) == (2, 1)
            assert spawned.get() is True
            assert pool.apply(abs, (-3,)) == 3
            assert pool.apply_async(abs, (-3,)).get() == 3
            assert pool.map(abs, [-1, 2, -3, 4]) == [1, 2, 3, 4]
            assert [*pool.imap(abs, [-1, 2])] == [1, 2]
            assert sorted(pool.imap_unordered(abs, [-1, 2])) == [1, 2]
            let_hub_turn()
            assert len(pool) == 1
            holder.release()
            assert receive_all(client) == b"7done"
        assert pool.join() is True
        assert (len(pool), pool._semaphore.counter, len(created)) == (0, 3, 1)


def test_a_handler_may_leave_its_pool() -> None:
    """``pool.discard(getcurrent())`` makes room once, not twice, and the handler goes on."""
    holder = Holder()

    def handle(sock: Any, peer: Any) -> None:
        server.pool.discard(here())
        holder(sock, peer)

    with StreamServer(LOCAL, handle, spawn=1) as server:
        server.start()
        clients = [connect(server.address) for _ in range(3)]
        holder.wait_for(3)
        assert (len(server.pool), server.pool._semaphore.counter) == (0, 1)
        holder.release()
        assert [receive_all(client) for client in clients] == [b"done"] * 3
        close_all(clients)
        let_hub_turn()
        assert (len(server.pool), server.pool._semaphore.counter) == (0, 1)


def test_what_strikes_as_a_handler_leaves_its_pool_leaves_room(
    reported: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the pool is looked over, it discards a dead greenlet, which keeps the failed job."""

    def strike(_pool: HandlerPool, _greenlet: HandlerGreenlet) -> None:
        raise ValueError("struck")

    with StreamServer(LOCAL, lambda *_: None, spawn=1) as server:
        server.start()
        monkeypatch.setattr(HandlerPool, "end", strike)
        with connect(server.address) as client:
            assert receive_all(client) == b""
            wait_until(lambda: bool(reported))
        room = [server.pool._semaphore.counter]
        server.pool.look_over(handlers_here())
        room.append(server.pool._semaphore.counter)
        server.pool.greenlets.clear()  # or a server that fails here would wait for it
        server.pool._empty_event.set()
    assert room == [0, 1]


@pytest.mark.parametrize("ending", [fail, GreenletExit, None], ids=["raises", "killed", "returns"])
def test_each_end_of_a_handler_makes_room_once(ending: Any, reported: list[Any]) -> None:
    """After any number of them the pool is what it was."""

    def handle(sock: Any, _peer: Any) -> None:
        wait_for_answer(sock)
        if ending is GreenletExit:
            gevent.spawn(here().kill)
            Event().wait()
        elif ending is not None:
            ending()

    with StreamServer(LOCAL, handle, spawn=2) as server:
        assert talk_at_once(server, 7) == [b"?"] * 7
        assert server.pool.join() is True
        let_hub_turn()
        assert (len(server.pool), server.pool._semaphore.counter) == (0, 2)
        assert len(reported) == (7 if ending is fail else 0)


def test_a_bounded_server_never_runs_more(created: list[None]) -> None:
    """Nor does it keep more greenlets than that."""
    running = 0
    most = 0

    def handle(sock: Any, _peer: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        wait_for_answer(sock)
        running -= 1

    with StreamServer(LOCAL, handle, spawn=4) as server:
        server.start()
        clients = [gevent.spawn(lambda: talk(connect(server.address))) for _ in range(60)]
        assert [client.get() for client in clients] == [b"?"] * 60
        assert (most, running) == (4, 0)
        assert len(created) <= 5  # one more may start in the turn in which one ends


def test_one_handler_pool_may_bound_two_servers() -> None:
    """A `HandlerPool` is a pool like any; given to two, both have handler greenlets."""
    pool = HandlerPool(2)
    holder = Holder()
    with (
        StreamServer(LOCAL, holder, spawn=pool) as one,
        StreamServer(LOCAL, holder, spawn=pool) as other,
    ):
        one.start()
        other.start()
        clients = [connect(server.address) for server in (one, other, one, other)]
        holder.wait_for(2)
        let_hub_turn()
        assert holder.held == len(pool) == 2
        assert all(isinstance(each, HandlerGreenlet) for each in pool)
        holder.release()
        assert [receive_all(client) for client in clients] == [b"done"] * 4
        close_all(clients)
    assert len(pool) == 0


def test_a_pool_serves_through_restarts() -> None:
    """Stopped and started it is the same pool, with all its places."""
    server = StreamServer(LOCAL, lambda sock, _: sock.sendall(b"ok"), spawn=2)
    for _ in range(3):
        server.start()
        assert [ask(server.address) for _ in range(5)] == [b"ok"] * 5
        server.stop()
        assert (len(server.pool), server.pool._semaphore.counter, alive()) == (0, 2, 0)


# -- gevent's own ways --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make_spawn",
    [
        lambda: gevent.spawn,
        lambda: Pool(5),
        lambda: gevent.spawn_raw,
        lambda: None,
        lambda: lambda *args: gevent.spawn_later(0, *args),
    ],
    ids=["spawn", "Pool", "spawn_raw", "None", "custom"],
)
def test_other_spawns_are_gevents(make_spawn: Callable[[], Any], created: list[None]) -> None:
    """No handler greenlet is made; each has the greenlet that its spawn gives it."""
    spawn = make_spawn()
    kinds: list[type[Any]] = []
    kept: list[Any] = []

    def handle(sock: Any, _peer: Any) -> None:
        kinds.append(type(here()))
        kept.append(here())
        if isinstance(spawn, Pool):
            assert here() in spawn
        sock.sendall(b"ok")

    with StreamServer(LOCAL, handle, spawn=spawn) as server:
        server.start()
        assert [ask(server.address) for _ in range(5)] == [b"ok"] * 5
    hub = gevent.get_hub()
    expected = {None: type(hub), gevent.spawn_raw: type(gevent.spawn_raw(int))}.get(spawn, Greenlet)
    assert {*kinds} == {expected}
    assert len({*kept}) == (1 if spawn is None else 5)
    assert kept[0] is hub or all(greenlet.dead for greenlet in kept)
    assert created == []
