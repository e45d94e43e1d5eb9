"""The dispatcher's promises: exact turns, no room, no spinning, many hubs."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket as native_socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.exceptions import LoopExit
from gevent.hub import Hub

import glb
from glb.accept.dispatcher import MOST_LEFT_IN_A_ROW, Dispatcher
from glb.accept.listener import Listener
from glb.accept.registry import REGISTRY
from glb.accept.reports import count_connections
from glb.hubs.signals import Signal
from glb.monkey import selectors as polls
from glb.net.sockets import address_of
from glb.server import StreamServer

from ..support.engine import entry_of
from ..support.failing import REFUSALS, failing_accepts
from ..support.helpers import (
    ask,
    close_all,
    connect,
    is_refused,
    let_hub_turn,
    loop_iterations,
    turns,
    wait_until,
)
from ..support.scarcity import scarcity

ANY = ("127.0.0.1", 0)

Handler = Callable[[int, socket.socket], object]


def open_clones(count: int) -> list[Listener]:
    first = glb.bind_load_balanced(ANY)
    return [first, *(glb.bind_load_balanced(first.address) for _ in range(1, count))]


@contextmanager
def clones(count: int) -> Iterator[list[Listener]]:
    """Open *count* clones of one new address, and close what is left of them."""
    opened = open_clones(count)
    try:
        yield opened
    finally:
        close_all(opened)


def accept_loop(listener: Listener, index: int, handle: Handler) -> None:
    """The usual accept loop; it ends when the listener is closed."""
    while True:
        try:
            conn, _ = listener.accept()
        except OSError as error:
            if error.errno == errno.EBADF:
                return
            raise
        handle(index, conn)


def start_loops(listeners: list[Listener], handle: Handler) -> list[gevent.Greenlet[..., Any]]:
    greenlets = [
        gevent.spawn(accept_loop, listener, index, handle)
        for index, listener in enumerate(listeners)
    ]
    wait_until(lambda: all(g.started and not g.ready() for g in greenlets))
    let_hub_turn()
    return greenlets


class Inline:
    """A handler that records the clone that had the turn, and replies at once."""

    def __init__(self) -> None:
        self.order: list[int] = []

    def __call__(self, index: int, conn: socket.socket) -> None:
        self.order.append(index)
        conn.sendall(b"%d" % index)
        conn.close()


class Spawned(Inline):
    """The same, in a greenlet for each connection."""

    def __call__(self, index: int, conn: socket.socket) -> None:
        self.order.append(index)
        gevent.spawn(self.reply, index, conn)

    def reply(self, index: int, conn: socket.socket) -> None:
        gevent.sleep(0)
        conn.sendall(b"%d" % index)
        conn.close()


def failing_accept(
    monkeypatch: pytest.MonkeyPatch, listener: Listener, errors: list[int]
) -> list[int]:
    """Let *listener*'s next accepts raise *errors*; return those that are still to come.

    A fake, because the kernel cannot be made to fail on demand.
    """
    entry = listener.entry
    real = entry.accept

    def accept() -> tuple[Any, Any]:
        member = entry.turns.next_locked()
        if errors and (member is None or member.clone is listener._sock.waiters):
            code = errors.pop(0)
            raise OSError(code, errno.errorcode.get(code, "?"))
        return real()

    monkeypatch.setattr(entry, "accept", accept)
    return errors


def reset(client: socket.socket) -> None:
    """Close *client* with a reset instead of a farewell."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def in_thread(work: Callable[[], object]) -> None:
    """Run *work* in a native thread, and raise here what it raised there."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the thread hangs"
    if failures:
        raise failures[0]


def destroy_hub() -> None:
    gevent.get_hub().destroy(destroy_loop=True)


class HubThread:
    """A native thread in which greenlets accept, until its main function returns."""

    def __init__(self, main: Callable[[], object]) -> None:
        self._main = main
        self.failure: BaseException | None = None
        self.started = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self.started.wait(10)

    def _run(self) -> None:
        try:
            main = gevent.spawn(self._main)
            gevent.sleep(0.01)  # its greenlets run until they wait
            self.started.set()
            main.get()
        except BaseException as error:
            self.failure = error
        finally:
            self.started.set()
            destroy_hub()

    def join(self) -> None:
        wait_until(lambda: not self._thread.is_alive())
        if self.failure is not None:
            raise self.failure


# -- exact turns ------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [Inline, Spawned])
def test_sequential_connections_go_round_exactly(handler: type[Inline]) -> None:
    """One client after the other: 0 to 6, and again, without exception."""
    handle = handler()
    with clones(7) as listeners:
        start_loops(listeners, handle)
        replies = [int(ask(listeners[0].address)) for _ in range(70)]
        assert handle.order == replies == turns(7, 70)


@pytest.mark.parametrize("handler", [Inline, Spawned])
@pytest.mark.parametrize("concurrency", [2, 4, 64])
def test_concurrent_connections_go_round_exactly(handler: type[Inline], concurrency: int) -> None:
    """However many clients come at once, turns keep their order."""
    handle = handler()
    with clones(7) as listeners:
        start_loops(listeners, handle)

        def client() -> None:
            for _ in range(10):
                ask(listeners[0].address)

        gevent.joinall([gevent.spawn(client) for _ in range(concurrency)], raise_error=True)
        assert handle.order == turns(7, 10 * concurrency)


def test_connections_that_waited_before_any_loop_go_round_exactly() -> None:
    """A full accept queue is dealt out in turn, over several wake-ups of the hub."""
    handle = Inline()
    with clones(7) as listeners:
        clients = [connect(listeners[0].address) for _ in range(300)]
        start_loops(listeners, handle)
        wait_until(lambda: len(handle.order) >= 300)
        close_all(clients)
        assert handle.order == turns(7, 300)


@pytest.mark.parametrize("count", [1, 2, 256])
def test_any_number_of_clones_goes_round_exactly(count: int) -> None:
    """1 clone, 2 or 256: each gets every 256th connection, in order."""
    handle = Inline()
    with clones(count) as listeners:
        start_loops(listeners, handle)
        for _ in range(600):
            ask(listeners[0].address)
        assert handle.order == turns(count, 600)


def test_clones_of_bind_and_of_dup_share_one_ring() -> None:
    """However a clone was made, it has its turn."""
    handle = Inline()
    first = glb.bind(ANY, reuse_port=True)
    listeners = [first, first.dup(), glb.bind(first.address, reuse_port=True)]
    listeners.append(listeners[1].dup())
    start_loops(listeners, handle)
    for _ in range(40):
        ask(first.address)
    close_all(listeners)
    assert handle.order == turns(4, 40)


def test_clones_stand_in_line_in_the_order_in_which_they_began_to_wait() -> None:
    """The order of opening means nothing, the order of waiting everything."""
    handle = Inline()
    with clones(5) as listeners:
        for index in (3, 1, 4, 0, 2):
            gevent.spawn(accept_loop, listeners[index], index, handle)
            let_hub_turn()
        for _ in range(10):
            ask(listeners[0].address)
        assert handle.order == [3, 1, 4, 0, 2] * 2


def test_a_busy_clone_is_passed_over_and_returns_to_the_end_of_the_line() -> None:
    """No connection waits for a handler; its clone has lost nothing but its place."""
    order: list[int] = []
    blocked, release = Event(), Event()

    def handle(index: int, conn: socket.socket) -> None:
        order.append(index)
        if order == [0, 1]:
            blocked.set()
            release.wait()
        conn.sendall(b"%d" % index)
        conn.close()

    with clones(3) as listeners:
        address = listeners[0].address
        start_loops(listeners, handle)
        ask(address)
        slow = connect(address)
        blocked.wait()
        for _ in range(5):
            ask(address)
        assert order == [0, 1, 2, 0, 2, 0, 2]
        release.set()
        assert slow.recv(10) == b"1"
        let_hub_turn()
        for _ in range(6):
            ask(address)
        slow.close()
        assert order[7:] == [0, 2, 1, 0, 2, 1]


def test_greenlets_on_one_clone_share_its_turns() -> None:
    """Three greenlets on a clone don't get it three turns; each has one in its order."""
    handle = Inline()
    with clones(2) as listeners:
        for index in (10, 11, 12):
            gevent.spawn(accept_loop, listeners[0], index, handle)
        gevent.spawn(accept_loop, listeners[1], 20, handle)
        let_hub_turn()
        for _ in range(12):
            ask(listeners[0].address)
        assert handle.order == [10, 20, 11, 20, 12, 20] * 2


def test_clones_come_and_go_in_the_middle_of_a_round() -> None:
    """A new clone joins at the end; a closed one leaves no gap."""
    handle = Inline()
    with clones(3) as listeners:
        start_loops(listeners, handle)
        address = listeners[0].address
        for _ in range(4):
            ask(address)
        listeners.append(listeners[0].dup())
        gevent.spawn(accept_loop, listeners[3], 3, handle)
        listeners[1].close()
        let_hub_turn()
        for _ in range(6):
            ask(address)
        assert handle.order == [0, 1, 2, 0, 2, 0, 3, 2, 0, 3]


def test_a_handler_may_close_any_clone_in_the_middle_of_a_turn() -> None:
    """Turns are given while the handler runs: what it changes holds from the next one on."""
    order: list[int] = []
    with clones(4) as listeners:
        address = listeners[0].address

        def handle(index: int, conn: socket.socket) -> None:
            order.append(index)
            if order == [0]:
                listeners[1].close()
                listeners[0].close()
            conn.close()

        clients = [connect(address) for _ in range(5)]
        start_loops(listeners, handle)
        wait_until(lambda: len(order) == 5)
        close_all(clients)
        assert order == [0, 2, 3, 2, 3]


def test_a_handler_may_close_the_last_clone_in_the_middle_of_a_turn() -> None:
    """The address is free at once, although its dispatcher is giving turns."""
    listener = glb.bind_load_balanced(ANY)
    address = listener.address
    refused: list[bool] = []

    def handle(_index: int, conn: socket.socket) -> None:
        listener.close()
        refused.append(is_refused(address))
        again = glb.bind_load_balanced(address)
        again.close()
        conn.close()

    (greenlet,) = start_loops([listener], handle)
    connect(address).close()
    greenlet.join()
    assert refused == [True]


def test_a_greenlet_that_dies_with_its_connection_stops_no_other_clone() -> None:
    """An error in an inline handler is its greenlet's alone."""
    handle = Inline()
    with clones(3) as listeners:

        def die(_index: int, conn: socket.socket) -> None:
            conn.close()
            raise gevent.GreenletExit

        dying = gevent.spawn(accept_loop, listeners[0], 0, die)
        let_hub_turn()
        for index in (1, 2):
            gevent.spawn(accept_loop, listeners[index], index, handle)
        let_hub_turn()
        assert ask(listeners[0].address) == b""
        dying.join()
        for _ in range(4):
            ask(listeners[0].address)
        assert handle.order == [1, 2, 1, 2]


def test_a_raw_greenlet_has_its_turn_too() -> None:
    """accept() asks for a greenlet, not for gevent's; its death gives the hub back."""
    import greenlet

    handle = Inline()
    with clones(2) as listeners:
        address = listeners[0].address
        got: list[str] = []

        def once() -> None:
            conn, _ = listeners[0].accept()
            got.append("raw")
            conn.close()

        raw = greenlet.greenlet(once, gevent.get_hub())
        gevent.get_hub().loop.run_callback(raw.switch)
        let_hub_turn()
        start_loops(listeners[1:], handle)
        client = connect(address)
        wait_until(lambda: bool(got))
        client.close()
        for _ in range(3):
            ask(address)
        assert got == ["raw"] and handle.order == [0, 0, 0]


def test_a_long_accept_queue_leaves_the_hub_time_for_others() -> None:
    """One wake-up takes so many, then the rest of the program has its turn."""
    from glb.accept.waiters import MAX_ACCEPT

    handle = Inline()
    seen: list[int] = []
    with clones(2) as listeners:
        clients = [connect(listeners[0].address) for _ in range(3 * MAX_ACCEPT)]

        def bystander() -> None:
            while len(handle.order) < 3 * MAX_ACCEPT:
                seen.append(len(handle.order))
                gevent.sleep(0)

        start_loops(listeners, handle)
        gevent.spawn(bystander).join()
        close_all(clients)
        steps = [after - before for before, after in pairwise(seen)]
        assert max(steps, default=0) <= MAX_ACCEPT


# -- clones that close ------------------------------------------------------------------------


def test_a_closed_clone_loses_no_client_in_the_accept_queue() -> None:
    """20 clients wait, one of three clones is closed: 20 of 20 are served."""
    handle = Inline()
    with clones(3) as listeners:
        clients = [connect(listeners[0].address) for _ in range(20)]
        listeners[0].close()
        start_loops(listeners[1:], handle)
        assert [client.recv(10) for client in clients] == [b"0", b"1"] * 10
        close_all(clients)


def test_a_closed_clone_with_connections_waiting_costs_nothing() -> None:
    """Its descriptor may live on in the event loop's set; the loop must not spin on it."""
    with clones(3) as listeners:
        greenlets = start_loops(listeners, Inline())
        for _ in range(6):
            ask(listeners[0].address)
        gevent.killall(greenlets[1:])
        listeners[0].close()
        clients = [connect(listeners[1].address) for _ in range(5)]
        assert loop_iterations(0.05) < 30  # one that spins has thousands
        close_all(clients)


def test_a_detached_descriptor_with_connections_waiting_costs_nothing() -> None:
    """Connections that the caller does not accept wake nothing here."""
    listener = glb.bind_load_balanced(ANY)
    address = listener.address
    start_loops([listener], Inline())
    ask(address)
    with native_socket.socket(fileno=listener.detach()):
        let_hub_turn()
        client = connect(address)
        assert loop_iterations(0.05) < 30  # one that spins has thousands
        client.close()


def test_a_descriptor_detached_by_another_thread_costs_nothing() -> None:
    """Neither does it when the hub that watched the address wasn't the one that let go.

    Checked by CPU time of the watching thread: on libuv a registration whose descriptor
    number was replaced can't be taken back, and each wake-up finds it again.
    """
    listener = glb.bind_load_balanced(ANY)
    address = listener.address
    spent: list[float] = []
    detached = threading.Event()

    def watch() -> None:
        with pytest.raises(OSError, match="closed in another greenlet"):
            listener.accept()
        detached.wait()
        before = time.thread_time()
        gevent.sleep(0.2)
        spent.append(time.thread_time() - before)

    thread = HubThread(watch)
    sock = native_socket.socket(fileno=listener.detach())
    client = connect(address)
    detached.set()
    thread.join()
    client.close()
    sock.close()
    assert spent[0] < 0.05


def test_without_a_ready_clone_nothing_is_watched() -> None:
    """While no clone is ready, connections wait in the kernel and cost nothing."""
    release = Event()
    with clones(2) as listeners:

        def hold(_index: int, conn: socket.socket) -> None:
            release.wait()
            conn.close()

        loops = start_loops(listeners, hold)
        clients = [connect(listeners[0].address) for _ in range(6)]
        let_hub_turn()
        entry = listeners[0].entry
        assert entry.turns.accepted == 2 and entry.turns.ready == 0
        assert not any(each.is_watching for each in entry.turns.dispatchers.values())
        assert loop_iterations(0.05) < 30  # one that spins has thousands
        release.set()
        wait_until(lambda: entry.turns.accepted == 6)
        close_all(clients)
        gevent.killall(loops)


# -- the loop's reason to live ----------------------------------------------------------------


def in_own_hub(work: Callable[[], object]) -> None:
    """Run *work* in a thread: this one's hub has a reason to live, the test's timeout."""

    def run() -> None:
        try:
            work()
        finally:
            destroy_hub()

    in_thread(run)


def test_listeners_without_an_accept_keep_no_hub_alive() -> None:
    """As with gevent's own: an open socket alone is no reason to wait."""

    def work() -> None:
        with clones(2) as listeners:
            ask_then_stop(listeners[0])
            with pytest.raises(LoopExit):
                gevent.get_hub().switch()

    in_own_hub(work)


def ask_then_stop(listener: Listener) -> None:
    """Serve one connection, so that all that is made on first need has been made."""
    greenlet = gevent.spawn(listener.accept)
    client = connect(listener.address)
    greenlet.get()[0].close()
    client.close()
    let_hub_turn()


def test_a_waiting_accept_keeps_the_hub_alive() -> None:
    """gevent.wait() goes on while a greenlet accepts, and ends when none does."""

    def work() -> None:
        with clones(2) as listeners:
            greenlet = gevent.spawn(listeners[0].accept)
            let_hub_turn()
            assert gevent.wait(timeout=0.02) is False
            greenlet.kill()
            assert gevent.wait(timeout=5) is True

    in_own_hub(work)


def test_a_paused_dispatcher_keeps_the_hub_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of room is no reason to end the program: a greenlet is still waiting."""

    def work() -> None:
        with clones(1) as (listener,):
            failing_accept(monkeypatch, listener, [errno.EMFILE])
            client = native_socket.create_connection(listener.address)
            listener.accept()[0].close()  # the main greenlet: LoopExit if nothing kept the hub
            client.close()

    in_own_hub(work)


def test_nothing_is_left_on_the_loop_after_the_last_close() -> None:
    """The loop counts as many watchers as before, whatever was waited for in between."""
    loop: Any = gevent.get_hub().loop
    before = loop.activecnt
    with clones(3) as listeners:
        greenlets = start_loops(listeners, Inline())
        for _ in range(4):
            ask(listeners[0].address)
    gevent.joinall(greenlets)
    let_hub_turn()
    assert loop.activecnt == before


# -- accept fails -----------------------------------------------------------------------------

PEER_LEFT = [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH]
OUT_OF_ROOM = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


@pytest.mark.parametrize("code", PEER_LEFT, ids=errno.errorcode.get)
def test_a_peer_that_left_is_passed_over_silently(
    code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs no clone a turn, and is not worth a line."""
    handle = Inline()
    with clones(3) as listeners:
        left = failing_accept(monkeypatch, listeners[0], [code] * 3)
        start_loops(listeners, handle)
        for _ in range(6):
            ask(listeners[0].address)
        assert handle.order == turns(3, 6)
        assert left == [] and caplog.records == []


@pytest.mark.parametrize("code", [errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EIO, 9999])
def test_a_broken_accept_is_raised_in_the_greenlet_that_had_the_turn(
    code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One greenlet gets the error, as it is; the connection goes to the next clone."""
    handle = Inline()
    with clones(3) as listeners:
        failing_accept(monkeypatch, listeners[0], [code])
        broken = gevent.spawn(listeners[0].accept)
        let_hub_turn()
        start_loops(listeners[1:], handle)
        for _ in range(4):
            ask(listeners[0].address)
        broken.join()
        assert isinstance(broken.exception, OSError) and broken.exception.errno == code
        assert handle.order == turns(2, 4)
        assert caplog.records == []
        again = gevent.spawn(listeners[0].accept)
        let_hub_turn()
        assert not again.ready()
        again.kill()


def test_an_accept_that_breaks_for_ever_does_not_starve_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program that tries again and again on a broken socket still lets others run."""
    with clones(1) as (listener,):
        failing_accept(monkeypatch, listener, [errno.EIO] * 1000)
        stop = Event()

        def stubborn() -> None:
            while not stop.is_set():
                try:
                    listener.accept()[0].close()
                except OSError:
                    continue

        greenlet = gevent.spawn(stubborn)
        client = connect(listener.address)
        for _ in range(5):
            gevent.sleep(0.001)
        stop.set()
        greenlet.kill()
        client.close()


@pytest.mark.parametrize("hubs", [1, 2])
@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
def test_a_refused_accept_is_raised_where_a_greenlet_waits(
    code: int, hubs: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One greenlet gets the error, on whichever hub, and accepts when the fault is over."""
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(Hub, "handle_error", lambda _self, _, kind, *__: reported.append(kind))
    caught: list[OSError] = []
    with clones(2) as listeners, failing_accepts(listeners[0].entry, code) as fault:

        def serve() -> None:
            try:
                listeners[1].accept()
            except OSError as error:
                caught.append(error)
            fault.code = None
            listeners[1].accept()[0].close()

        if hubs == 2:
            # Its seat stays on this hub, so that there are two.
            listeners[0].settimeout(0.001)
            with pytest.raises(TimeoutError):
                listeners[0].accept()
        with connect(listeners[0].address) as client:
            if hubs == 1:
                gevent.spawn(serve).get()
            else:
                HubThread(serve).join()
            assert client.recv(1) == b""
    assert [error.errno for error in caught] == [code]
    assert (fault.calls, caplog.records) == (1, [])
    assert not any(issubclass(kind, OSError) for kind in reported)  # a hub's end may be


@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
def test_a_refused_accept_is_reported_once_to_pollers_and_loses_nothing(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poller goes on waiting meanwhile, and wakes when the fault is over."""
    reported: list[object] = []
    monkeypatch.setattr(
        gevent.get_hub(), "handle_error", lambda context, *_: reported.append(context)
    )
    with clones(2) as listeners, failing_accepts(listeners[0].entry, code) as fault:

        def serve() -> None:
            assert polls.select([listeners[0]], [], []) == ([listeners[0]], [], [])
            listeners[0].accept()[0].close()

        poller = gevent.spawn(serve)
        let_hub_turn()
        with connect(listeners[0].address) as client:
            wait_until(lambda: fault.calls == 4)
            assert not poller.ready()
            fault.code = None
            assert client.recv(1) == b""
        poller.get()
    assert reported == [f"the listener on {listeners[0].address!r}"]


@pytest.mark.parametrize("hubs", [1, 2])
@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPROTO], ids=errno.errorcode.get)
def test_endless_aborted_connections_cause_pauses_and_one_line(
    code: int, hubs: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel gives nothing else: no core is burnt, and it ends by itself."""
    server = StreamServer(ANY, lambda sock, _: sock.sendall(b"ok"), hubs=hubs, clones=4)
    server.min_delay = server.delay = 0.001
    server.max_delay = 0.004
    with server:
        server.start()
        entry = entry_of(server)
        with failing_accepts(entry, code) as fault, connect(server.address) as client:
            wait_until(lambda: len(caplog.records) > 0)
            before = fault.calls
            assert before > MOST_LEFT_IN_A_ROW
            wait_until(lambda: fault.calls >= before + 3 * server.max_accept)
            fault.code = None
            assert client.recv(10) == b"ok"
    (record,) = caplog.records
    assert os.strerror(code) in record.getMessage()
    assert "trying again in 0.001 s" in record.getMessage()


def test_peers_that_leave_for_ever_have_one_wake_up_between_pauses(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By plain listeners, whose pauses grow: so many accepts, and not one more."""
    calls: list[int] = []
    real = Dispatcher._resume

    def resume(self: Dispatcher) -> None:
        calls.append(fault.calls)
        if len(calls) == 3:
            fault.code = None
        real(self)

    monkeypatch.setattr(Dispatcher, "_resume", resume)
    handle = Inline()
    with clones(3) as listeners, failing_accepts(listeners[0].entry, errno.EPROTO) as fault:
        start_loops(listeners, handle)
        assert ask(listeners[0].address) == b"0"
    assert calls == [MOST_LEFT_IN_A_ROW + 1 + 100 * count for count in range(3)]
    assert len(caplog.records) == 1


def test_a_queue_of_peers_that_left_is_no_reason_to_pause(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client behind them is served at once, and the next queue may be as long."""
    monkeypatch.setattr(Dispatcher, "_pause_for", lambda *_: pytest.fail("it pauses"))
    left = MOST_LEFT_IN_A_ROW
    code = errno.ECONNABORTED
    with clones(1) as (listener,), failing_accepts(listener.entry, code, left) as fault:
        start_loops([listener], Inline())
        for _ in range(2):
            assert ask(listener.address) == b"0"
            assert fault.left == 0
            fault.left = left
    assert caplog.records == []


@pytest.mark.parametrize("code", OUT_OF_ROOM, ids=errno.errorcode.get)
def test_out_of_room_pauses_once_logs_once_and_loses_no_client(
    code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line an episode for the whole entry, and turns go on where they stopped."""
    handle = Inline()
    with clones(3) as listeners:
        failing_accept(monkeypatch, listeners[0], [code] * 3)
        start_loops(listeners, handle)
        clients = [connect(listeners[0].address) for _ in range(6)]
        assert [client.recv(10) for client in clients] == [b"0", b"1", b"2"] * 2
        close_all(clients)
        assert handle.order == turns(3, 6)
        (record,) = caplog.records
        assert record.name == "glb" and record.levelno == logging.ERROR
        assert repr(listeners[0].address) in record.getMessage()


class SwitchingHandler(logging.Handler):
    """As one of a patched program that writes to a socket, or whose lock a greenlet has."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = Event()
        self.written: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.may_go_on.wait()
        self.written.append(record.getMessage())


def test_a_log_that_switches_greenlets_stops_no_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub doesn't write to it, so the pause begins, and ends, while the log waits."""
    handler = SwitchingHandler()
    log = logging.getLogger("glb")
    log.addHandler(handler)
    try:
        with clones(1) as (listener,):
            failing_accept(monkeypatch, listener, [errno.EMFILE])
            start_loops([listener], Inline())
            assert ask(listener.address) == b"0"
            assert handler.written == []
            handler.may_go_on.set()
            wait_until(lambda: bool(handler.written))
            assert "can't accept" in handler.written[0]
    finally:
        log.removeHandler(handler)


def test_a_second_episode_is_logged_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An episode ends when nothing has failed for a while, however many were served meanwhile."""
    now = [100.0]
    monkeypatch.setattr("glb.accept.dispatcher.monotonic", lambda: now[0])
    with clones(1) as (listener,):
        errors = failing_accept(monkeypatch, listener, [errno.EMFILE] * 2)
        start_loops([listener], Inline())
        ask(listener.address)
        errors += [errno.EMFILE] * 2
        ask(listener.address)
        assert len(caplog.records) == 1
        now[0] += 10
        errors += [errno.EMFILE] * 2
        ask(listener.address)
        assert len(caplog.records) == 2


def test_a_clone_closed_in_the_pause_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause's timer goes with the last clone, and the accept that waits raises."""
    listener = glb.bind_load_balanced(ANY)
    failing_accept(monkeypatch, listener, [errno.EMFILE] * 50)
    greenlet = gevent.spawn(listener.accept)
    client = connect(listener.address)
    wait_until(lambda: any(each.is_paused for each in dispatchers(listener)))
    listener.close()
    greenlet.join()
    client.close()
    assert isinstance(greenlet.exception, OSError) and greenlet.exception.errno == errno.EBADF


def dispatchers(listener: Listener) -> list[Any]:
    return [*listener.entry.turns.dispatchers.values()]


def test_a_timeout_ends_an_accept_in_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of room is no excuse to wait longer than was asked."""
    with clones(1) as (listener,):
        failing_accept(monkeypatch, listener, [errno.EMFILE] * 50)
        listener.settimeout(0.1)
        client = connect(listener.address)
        with pytest.raises(TimeoutError):
            listener.accept()
        client.close()
        assert listener.entry.turns.ready == 0


def test_a_clone_that_joins_in_the_pause_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pause is the entry's: a fresh clone knows of no more room than the others."""
    with clones(2) as listeners:
        left = failing_accept(monkeypatch, listeners[0], [errno.EMFILE] * 3)
        handle = Inline()
        gevent.spawn(accept_loop, listeners[0], 0, handle)
        client = connect(listeners[0].address)
        wait_until(lambda: any(each.is_paused for each in dispatchers(listeners[0])))
        tries = len(left)
        gevent.spawn(accept_loop, listeners[1], 1, handle)
        gevent.sleep(0)
        assert len(left) == tries and handle.order == []
        assert client.recv(10) == b"0"
        client.close()
        assert len(caplog.records) == 1


def fill(hoard: list[native_socket.socket]) -> None:
    """Take every descriptor that there is."""

    def take() -> None:
        while True:
            hoard.append(native_socket.socket())

    with pytest.raises(OSError, match="Too many open files"):
        take()


#: Several pauses of a dispatcher that is out of descriptors.
OUT_SECONDS = 0.8


def test_out_of_descriptors_for_a_while_costs_no_cpu_and_loses_no_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The kernel's own EMFILE, eight clones: at most 3 lines, under 5 % of a core."""
    handle = Inline()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    hoard: list[native_socket.socket] = []
    with clones(8) as listeners:
        clients = [socket.socket() for _ in range(20)]
        start_loops(listeners, handle)
        for _ in range(8):
            ask(listeners[0].address)
        handle.order.clear()
        try:
            highest = max(client.fileno() for client in clients)
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, limits[1]))
            fill(hoard)
            for client in clients:
                client.connect(listeners[0].address)
            before = time.process_time()
            gevent.sleep(OUT_SECONDS)
            spent = time.process_time() - before
            assert handle.order == []
            close_all(hoard)
            replies = [int(client.recv(10)) for client in clients]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            close_all([*hoard, *clients])
    assert replies == handle.order == turns(8, 20)
    assert 1 <= len(caplog.records) <= 3
    assert spent < 0.05 * OUT_SECONDS


def has_spare() -> bool:
    return REGISTRY.reserve.is_there


class OpensItsFile(logging.Handler):
    """Opens its file for each record, as one that rotates files, or looks for a moved one."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.failures: list[OSError] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            with self.path.open("a") as file:
                file.write(record.getMessage() + "\n")
        except OSError as error:
            self.failures.append(error)


@contextmanager
def logging_to(path: Path) -> Iterator[OpensItsFile]:
    handler = OpensItsFile(path)
    log = logging.getLogger("glb")
    log.addHandler(handler)
    try:
        yield handler
    finally:
        log.removeHandler(handler)


def test_out_of_descriptors_a_log_handler_can_open_its_file(tmp_path: Path) -> None:
    """There is a spare one for that, and afterwards there is again."""
    path = tmp_path / "log"
    with clones(3) as listeners, logging_to(path) as handler, socket.socket() as client:
        start_loops(listeners, Inline())
        address = listeners[0].address
        with scarcity():
            client.connect(address)
            wait_until(path.exists)
            assert has_spare()
        assert client.recv(10) == b"0"
        (line,) = path.read_text().splitlines()
        assert handler.failures == []
        assert f"{address!r}" in line and "descriptors are open, mostly /dev/null (" in line


def test_a_thread_that_ends_without_a_word_gives_the_spare_one_back() -> None:
    """Its hub is gone before it learns that the address is closed."""
    accepted, closed = threading.Event(), threading.Event()
    listeners: list[Listener] = []

    def accept() -> None:
        listeners.append(glb.bind_load_balanced(ANY))
        waiting = gevent.spawn(listeners[0].accept)
        gevent.sleep(0)
        waiting.kill()
        accepted.set()
        closed.wait(10)
        gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=accept)
    thread.start()
    assert accepted.wait(10)
    assert has_spare()
    listeners.pop().close()
    closed.set()
    thread.join()
    assert not has_spare()


def test_the_log_names_the_descriptors_that_a_handler_leaks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it left open has a name and a number in the one line of the episode."""
    leaked: list[int] = []

    def leak(_conn: socket.socket, _peer: object) -> None:
        for _ in range(0 if caplog.records else 30):
            try:
                leaked.append(os.open("/dev/zero", os.O_RDONLY))
            except OSError:
                return

    server = StreamServer(ANY, leak, clones=2)
    server.start()
    clients = [socket.socket() for _ in range(11)]
    try:
        with scarcity(free=300):
            for client in clients:
                client.connect(server.address)
            wait_until(lambda: bool(caplog.records))
            server.close()
    finally:
        close_all(clients)
        server.stop()
        wait_until(lambda: server.active == 0)
        for number in leaked:
            os.close(number)
    (told,) = [record.getMessage() for record in caplog.records]
    assert "of them connections that handlers have; handlers may leak the others, mostly" in told
    assert f"/dev/zero ({len(leaked)})" in told


def test_connections_that_a_server_has_are_no_leak(caplog: pytest.LogCaptureFixture) -> None:
    """Those of another server of this process are counted, too: they aren't ours to suspect."""
    release = Event()

    def hold(_conn: socket.socket, _peer: object) -> None:
        release.wait()

    servers = [StreamServer(ANY, hold, clones=2) for _ in range(2)]
    for server in servers:
        server.start()
    clients = [socket.socket() for _ in range(200)]
    try:
        with scarcity(free=150, taken=0):
            for client in clients:
                client.connect(servers[len(clients) % 2].address)
            wait_until(lambda: bool(caplog.records))
            count = count_connections(REGISTRY)
        assert count == 150
        assert f"{count} of them connections that handlers have" in caplog.text
    finally:
        release.set()
        close_all(clients)
        for server in servers:
            server.stop()


def test_a_server_that_is_about_to_end_is_counted_too() -> None:
    """By its handler greenlets, as long as another server is open on their hub."""
    release = Event()

    def hold(_conn: socket.socket, _peer: object) -> None:
        release.wait()

    assert count_connections(REGISTRY) is None
    ending, other = (StreamServer(ANY, hold, clones=2) for _ in range(2))
    ending.start()
    other.start()
    clients = [connect(ending.address) for _ in range(3)]
    wait_until(lambda: count_connections(REGISTRY) == ending.active == 3)
    for index in range(2):
        ending.pause_clone(index)
    assert count_connections(REGISTRY) == 3
    ending.close()
    assert count_connections(REGISTRY) == 3
    release.set()
    wait_until(lambda: count_connections(REGISTRY) == 0)
    other.stop()
    close_all(clients)
    assert count_connections(REGISTRY) is None


def test_twenty_times_out_of_descriptors_are_twenty_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Each episode has its line, in the file as well, and each client is served after it."""
    now = [100.0]
    monkeypatch.setattr("glb.accept.dispatcher.monotonic", lambda: now[0])
    handle = Inline()
    path = tmp_path / "log"
    with clones(3) as listeners, logging_to(path) as handler:
        start_loops(listeners, handle)
        with scarcity(free=1) as hoard:
            for count in range(20):
                with socket.socket() as client:
                    client.connect(listeners[0].address)
                    wait_until(lambda: any(each.is_paused for each in dispatchers(listeners[0])))
                    hoard.give_back(1)
                    assert client.recv(10) == b"%d" % (count % 3)
                assert len(caplog.records) == count + 1
                let_hub_turn()
                hoard.fill()
                hoard.give_back(1)
                now[0] += 10
        assert handler.failures == []
    assert len(path.read_text().splitlines()) == 20
    assert handle.order == turns(3, 20)


def test_out_of_descriptors_the_last_clone_is_closed_in_good_order() -> None:
    """Another hub watches the descriptor: its number is kept until that has looked away.

    Otherwise the next file that gets the number is watched in its place; see `sockets.park`.
    """
    listener = glb.bind_load_balanced(ANY)
    number = listener.entry.pristine.fileno()
    watching, go_on = threading.Event(), threading.Event()

    def watch() -> None:
        greenlet = gevent.spawn(listener.accept)
        let_hub_turn()
        watching.set()
        go_on.wait()  # natively: this hub turns no more
        with pytest.raises(OSError, match="closed"):
            greenlet.get()
        destroy_hub()

    thread = threading.Thread(target=watch)
    thread.start()
    assert watching.wait(10)
    with scarcity():
        listener.close()
        parked = address_of(number)
        assert parked is not None and parked.sockaddr == ("0.0.0.0", 0)
    go_on.set()
    wait_until(lambda: not thread.is_alive())


def test_the_spare_lives_as_long_as_a_dispatcher() -> None:
    """A process that accepts nowhere has the descriptor for something else."""
    with clones(2) as listeners:
        assert not has_spare()
        start_loops(listeners, Inline())
        assert has_spare()
    assert not has_spare()


def test_the_spare_goes_with_the_last_of_several_hubs() -> None:
    """Whichever way: by the end of a hub that was destroyed with its clone open, too."""
    listener = served_in_a_thread_without_hub_now()
    kept = glb.bind_load_balanced(ANY)
    ask_then_stop(kept)
    listener.close()
    assert has_spare()
    kept.close()
    assert not has_spare()


def test_a_client_that_resets_before_accept_does_no_harm() -> None:
    """Whether the kernel hands its connection out or not, all others are served."""
    served: list[bytes] = []

    def handle(index: int, conn: socket.socket) -> None:
        try:
            conn.sendall(b"%d" % index)
            served.append(b"%d" % index)
        except OSError:
            pass
        conn.close()

    with clones(3) as listeners:
        address = listeners[0].address
        clients = [connect(address) for _ in range(9)]
        for client in clients[::2]:
            reset(client)
        start_loops(listeners, handle)
        assert all(client.recv(10) for client in clients[1::2])
        close_all(clients)
        assert ask(address)


def test_an_error_that_is_no_oserror_does_not_end_the_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Short of memory in the middle of an accept: reported to the hub, and tried again."""
    told: list[Any] = []
    monkeypatch.setattr(
        gevent.get_hub(), "handle_error", lambda *args: told.append(args[1]), raising=False
    )
    with clones(1) as (listener,):
        real, errors = listener.entry.accept, [MemoryError()]

        def accept() -> tuple[Any, Any]:
            if errors:
                raise errors.pop()
            return real()

        monkeypatch.setattr(listener.entry, "accept", accept)
        start_loops([listener], Inline())
        assert ask(listener.address) == b"0"
        assert told == [MemoryError]


# -- native threads ---------------------------------------------------------------------------


def test_a_listener_of_one_thread_accepts_in_another() -> None:
    """Its home hub does not matter to accept()."""
    listener = glb.bind_load_balanced(ANY)
    served: list[bytes] = []

    def work() -> None:
        for _ in range(3):
            client = native_socket.create_connection(listener.address)
            conn, peer = listener.accept()
            assert peer == client.getsockname()
            client.sendall(b"x")
            served.append(conn.recv(1))
            conn.close()
            client.close()
        destroy_hub()

    in_thread(work)
    ask_then_stop(listener)
    assert served == [b"x"] * 3
    assert len(dispatchers(listener)) == 1  # the other hub's went with its last accept
    listener.close()


def test_greenlets_of_a_foreign_hub_share_a_listener_and_leave_nothing_there() -> None:
    """Two greenlets of another thread on one listener, made elsewhere."""
    listener = glb.bind_load_balanced(ANY)
    order: list[int] = []

    def work() -> None:
        def take(name: int) -> None:
            for _ in range(4):
                listener.accept()[0].close()
                order.append(name)

        greenlets = [gevent.spawn(take, name) for name in (0, 1)]
        gevent.sleep(0)
        clients = [native_socket.create_connection(listener.address) for _ in range(8)]
        gevent.joinall(greenlets, raise_error=True)
        close_all(clients)
        destroy_hub()

    in_thread(work)
    assert order == [0, 1] * 4 and listener.entry.turns.dispatchers == {}
    listener.close()


def test_three_hubs_serve_every_connection_once() -> None:
    """Clones of three threads: none lost, none twice, all closed at the end."""
    first = glb.bind_load_balanced(ANY)
    stop = threading.Event()
    served: list[bytes] = []

    def serve() -> None:
        listeners = [first.dup(), first.dup()]

        def handle(_index: int, conn: socket.socket) -> None:
            name = conn.recv(10)
            served.append(name)
            conn.sendall(name)
            conn.close()

        loops = [gevent.spawn(accept_loop, each, 0, handle) for each in listeners]
        while not stop.is_set():
            gevent.sleep(0.005)
        close_all(listeners)
        gevent.joinall(loops, raise_error=True)

    threads = [HubThread(serve) for _ in range(3)]

    def client(number: int) -> None:
        for count in range(20):
            name = b"%d.%d" % (number, count)
            assert ask(first.address, name) == name

    gevent.joinall([gevent.spawn(client, number) for number in range(10)], raise_error=True)
    stop.set()
    for thread in threads:
        thread.join()
    first.close()
    assert Counter(served) == {b"%d.%d" % (n, c): 1 for n in range(10) for c in range(20)}


def test_a_listener_closed_by_another_thread_ends_a_waiting_accept() -> None:
    """The waiter hears of it in its own hub, although a clone keeps the address."""
    kept = glb.bind_load_balanced(ANY)
    listener = kept.dup()
    codes: list[int | None] = []

    def wait() -> None:
        with pytest.raises(OSError, match="closed") as caught:
            listener.accept()
        codes.append(caught.value.errno)

    thread = HubThread(wait)
    listener.close()
    thread.join()
    assert codes == [errno.EBADF]
    ask_then_stop(kept)
    kept.close()


def test_the_last_clone_closed_by_another_thread_frees_the_address_at_once() -> None:
    """No wait for the hub that watches it; no descriptor left once that has turned."""
    listener = glb.bind_load_balanced(ANY)
    address = listener.address
    go_on = Signal()

    def wait() -> None:
        with pytest.raises(OSError, match="closed"):
            listener.accept()
        go_on.set()

    thread = HubThread(wait)
    listener.close()
    again = native_socket.socket()  # without SO_REUSEADDR: no socket at all is bound there
    again.bind(address)
    again.close()
    assert is_refused(address)
    assert go_on.wait(10)
    thread.join()


def test_shutdown_by_another_thread_ends_a_waiting_accept() -> None:
    """EINVAL, in its own hub; the other clones go on."""
    kept = glb.bind_load_balanced(ANY)
    listener = kept.dup()
    codes: list[int | None] = []

    def wait() -> None:
        with pytest.raises(OSError, match="shut down") as caught:
            listener.accept()
        codes.append(caught.value.errno)

    thread = HubThread(wait)
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert codes == [errno.EINVAL]
    ask_then_stop(kept)
    close_all([kept, listener])


@pytest.mark.parametrize("strike", ["close", "shutdown"])
def test_a_listener_ended_between_the_check_and_the_wait_is_noticed(
    strike: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread ends it just as accept() takes its place in the ring.

    The race is held open where a new place is made: after the check that the listener is
    open, before a call that ends it could see that there is a place to end.
    """
    module: Any = sys.modules["glb.accept.waiters"]
    kept = glb.bind_load_balanced(ANY)
    listener = kept.dup()
    real = module.dispatcher_for

    def in_between(*args: Any) -> Any:
        dispatcher = real(*args)
        end = listener.close if strike == "close" else lambda: listener.shutdown(2)
        in_thread(end)
        return dispatcher

    monkeypatch.setattr(module, "dispatcher_for", in_between)
    greenlet = gevent.spawn(listener.accept)
    try:
        greenlet.join(2)
        assert greenlet.ready(), "accept() waits for ever"
        expected = errno.EBADF if strike == "close" else errno.EINVAL
        assert isinstance(greenlet.exception, OSError) and greenlet.exception.errno == expected
    finally:
        greenlet.kill()
        close_all([listener, kept])


def served_in_a_thread_without_hub_now() -> Listener:
    """Return a listener that accepted in a thread, whose hub and loop are destroyed."""
    opened: list[Listener] = []

    def work() -> None:
        listener = glb.bind_load_balanced(ANY)
        opened.append(listener)
        ask_then_stop(listener)
        destroy_hub()

    in_thread(work)
    return opened[0]


def test_a_listener_closes_after_its_hub_was_destroyed() -> None:
    """The thread is over, its loop is gone: the address is free all the same."""
    listener = served_in_a_thread_without_hub_now()
    listener.close()
    assert is_refused(listener.address)


def test_a_listener_shuts_down_after_its_hub_was_destroyed() -> None:
    listener = served_in_a_thread_without_hub_now()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    assert is_refused(listener.address)


def test_a_listener_accepts_in_another_hub_after_its_own_was_destroyed() -> None:
    listener = served_in_a_thread_without_hub_now()
    ask_then_stop(listener)
    listener.close()
    assert is_refused(listener.address)


def test_a_listener_closes_in_its_own_thread_after_the_hub_was_destroyed() -> None:
    """Cleaning up in the wrong order is common, and no reason to keep an address."""

    def work() -> None:
        listener = glb.bind_load_balanced(ANY)
        ask_then_stop(listener)
        destroy_hub()
        listener.close()
        assert is_refused(listener.address)
        destroy_hub()

    in_thread(work)


def test_a_listener_goes_on_with_the_next_hub_of_its_thread() -> None:
    """A thread may destroy its hub and get a new one."""

    def work() -> None:
        listener = glb.bind_load_balanced(ANY)
        ask_then_stop(listener)
        destroy_hub()
        ask_then_stop(listener)
        listener.close()
        assert is_refused(listener.address)
        destroy_hub()

    in_thread(work)


def test_a_thread_whose_main_greenlet_served_last_may_destroy_its_hub(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its hub still stands in the turn that it gave; that is not a failed accept."""

    def work() -> None:
        listener = glb.bind_load_balanced(ANY)
        client = native_socket.create_connection(listener.address)
        listener.accept()[0].close()
        client.close()
        destroy_hub()
        listener.close()

    in_thread(work)
    assert caplog.records == []


def test_a_clone_closed_by_another_thread_is_not_waited_for() -> None:
    """Clones of a hub that does not turn are passed over by the others: they go on."""
    first = glb.bind_load_balanced(ANY)
    stalled, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        clone = first.dup()
        greenlet = gevent.spawn(clone.accept)
        gevent.sleep(0)
        stalled.set()
        go_on.wait()  # natively: this hub turns no more
        greenlet.kill()
        clone.close()
        destroy_hub()

    thread = threading.Thread(target=stall)
    thread.start()
    assert stalled.wait(10)
    handle = Inline()
    start_loops([first], handle)
    for _ in range(5):
        ask(first.address)
    go_on.set()
    wait_until(lambda: not thread.is_alive())
    first.close()
    assert handle.order == [0] * 5


def test_a_close_while_another_thread_destroys_its_hub_frees_the_address() -> None:
    """In that moment the loop is there and takes no calls: they are answered here."""
    opened: list[Listener] = []
    waiting, finish = threading.Event(), threading.Event()

    def work() -> None:
        listener = glb.bind_load_balanced(ANY)
        opened.append(listener)
        greenlet = gevent.spawn(listener.accept)
        let_hub_turn()
        waiting.set()
        while not finish.is_set():
            gevent.sleep(0.001)
        for watcher in watchers:  # a real destruction takes them along
            watcher.stop()
            watcher.close()
        greenlet.kill()

    thread = HubThread(work)
    waiting.wait()
    (dispatcher,) = dispatchers(opened[0])
    wake_up: Any = dispatcher.mailbox._wake_up
    watchers = [dispatcher._io, wake_up._watcher]

    class Destroyed:
        active = True

        def send(self) -> None:
            raise Exception("Closing handle")  # libuv's loop says it so

    wake_up._watcher = Destroyed()
    opened[0].close()
    assert is_refused(opened[0].address)
    assert glb.registry.entries() == []
    finish.set()
    thread.join()
