"""What belongs to one hub and is used on another: one warning names the hubs and has the stack."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Channel, Queue

import glb
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from .helpers import close_all, connect, wait_until

ANY = ("127.0.0.1", 0)


@contextmanager
def serving(on_hub_1: Callable[[], object], hubs: int = 2) -> Iterator[StreamServer]:
    """Serve on several hubs, with a handler on hub 1 that calls *on_hub_1*; end all of it."""

    def handle(_sock: Any, _peer: object) -> None:
        clone = glb.current_clone()
        assert clone is not None
        if clone.index == 1:
            on_hub_1()

    server = StreamServer(ANY, handle, hubs=hubs, clones=2, patience=30)
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    try:
        yield server
    finally:
        server.stop(0)
        close_all(clients)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log `glb` was warned of."""
    return [
        each.getMessage()
        for each in caplog.records
        if each.name == "glb" and each.levelno == logging.WARNING
    ]


def check_warning(caplog: pytest.LogCaptureFixture, function: str) -> None:
    """Wait for the warning; it is one, names both hubs, and its stack leads to *function*."""
    wait_until(lambda: bool(warnings_in(caplog)))
    (text,) = warnings_in(caplog)
    assert "used on another: hub " in text
    assert "hub 0 (<Hub at " in text
    assert "hub 1 (<Hub at " in text
    assert f"in {function}\n" in text


def test_a_queue_that_is_waited_for_on_another_hub_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As Flask-SocketIO's long polling does; the stack is that of the greenlet that waits."""
    queue: Queue[int] = Queue()

    def poll_for_message() -> None:
        queue.get()

    with serving(poll_for_message) as server:
        wait_until(lambda: "getters[1]" in repr(queue))
        queue.put(1)
        check_warning(caplog, "poll_for_message")
        # A second time is not told.
        assert queue.get() == 1
        with connect(server.address), connect(server.address):
            wait_until(lambda: "getters[1]" in repr(queue))
            queue.put(2)
            gevent.idle()
            assert len(warnings_in(caplog)) == 1


def test_a_full_queue_that_is_put_to_on_another_hub_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A greenlet that waits for room is found as well."""
    queue: Queue[int] = Queue(1)
    queue.put(1)

    def put_more() -> None:
        queue.put(2)

    with serving(put_more):
        wait_until(lambda: "putters[1]" in repr(queue))
        queue.get()
        check_warning(caplog, "put_more")


def test_a_channel_across_hubs_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """Its waiters are in pairs, which the stack of a greenlet keeps."""
    channel: Channel[int] = Channel()

    def put_to_channel() -> None:
        channel.put(1)

    with serving(put_to_channel):
        wait_until(lambda: "putters[1]" in repr(channel))
        assert channel.get() == 1
        check_warning(caplog, "put_to_channel")


def test_a_kill_across_hubs_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """A greenlet of another hub dies, and the one that has killed it waits for ever."""
    victim = gevent.spawn(Event().wait)
    gevent.idle()

    def kill_victim() -> None:
        victim.kill()

    with serving(kill_victim):
        check_warning(caplog, "kill_victim")
    assert victim.dead


def test_an_event_that_two_hubs_wait_for_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The error of gevent is in the program's own code here; the warning says what it means."""
    event = Event()
    waiter = gevent.spawn(event.wait)
    gevent.idle()

    def wait_for_event() -> None:
        event.wait()

    with serving(wait_for_event):
        check_warning(caplog, "wait_for_event")
    event.set()
    waiter.join()


def test_a_greenlet_that_is_switched_to_from_another_hub_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The error of `greenlet` names threads, by their main greenlets."""
    waiter = gevent.spawn(Event().wait)
    gevent.idle()

    def switch_to_waiter() -> None:
        waiter.switch()

    with serving(switch_to_waiter):
        check_warning(caplog, "switch_to_waiter")
    waiter.kill()


def test_a_wsgi_application_that_uses_two_hubs_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What an application raises is reported by the server's loop."""
    event = Event()
    waiter = gevent.spawn(event.wait)
    gevent.idle()

    def apply(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["glb.clone"].index == 1:
            event.wait()
        start_response("200 OK", [])
        return [b""]

    server = WSGIServer(ANY, apply, hubs=2, clones=2, log=None, error_log=None, patience=30)
    server.start()
    clients = [connect(server.address) for _ in range(2)]
    for client in clients:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
    check_warning(caplog, "apply")
    server.stop(0)
    close_all(clients)
    event.set()
    waiter.join()


def test_what_has_nothing_to_do_with_two_hubs_is_not_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same error can come of one hub alone, and a program has errors of its own."""
    failed = []

    def fail() -> None:
        failed.append(1)
        raise AssertionError("Can only use Waiter.switch method from the Hub greenlet")

    with serving(fail):
        wait_until(lambda: bool(failed))
        gevent.spawn(fail).join()
    assert warnings_in(caplog) == []


def test_a_server_of_one_hub_leaves_the_hub_alone() -> None:
    """Nothing is looked at there, and after the end of one with several nothing is left."""
    hub: Any = gevent.get_hub()
    with serving(lambda: None, hubs=1):
        assert "handle_error" not in vars(hub)
    with serving(lambda: None), serving(lambda: None):
        assert "handle_error" in vars(hub)
    assert "handle_error" not in vars(hub)


def test_a_programs_own_error_handler_has_its_reports() -> None:
    """One that was set before is called, and is there again afterwards."""
    hub: Any = gevent.get_hub()
    seen: list[object] = []
    own = hub.handle_error = lambda *args: seen.append(args[1])
    try:
        with serving(lambda: None):
            gevent.spawn(int, "no number").join()
        assert seen == [ValueError]
        assert hub.handle_error is own
    finally:
        del hub.handle_error
