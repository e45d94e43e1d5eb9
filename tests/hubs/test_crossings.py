"""What belongs to one hub and is used on another: one warning names the hubs and has the stack."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Channel, Empty, Queue, ShutDown

import glb
from glb.originals import Lock
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from ..support.helpers import close_all, connect, wait_until

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


@contextmanager
def reports() -> Iterator[list[object]]:
    """Give what is reported on this thread's hub, as a program's own handler has it."""
    hub: Any = gevent.get_hub()
    seen: list[object] = []
    hub.handle_error = lambda _context, _kind, error, _trace: seen.append(error)
    try:
        yield seen
    finally:
        del hub.handle_error


class Poll:
    """Gets from *queue* on hub 1, where nothing else happens from `hold` to `let_go`."""

    def __init__(self, queue: Queue[int], count: int = 1) -> None:
        self.queue = queue
        self.count = count
        self.got: list[object] = []
        self.greenlet: Any = None
        self.is_to_end = False
        self._asks = Event()
        self._held, self._gate = Lock(), Lock()
        self._held.acquire()
        self._gate.acquire()

    def __call__(self) -> None:
        self.greenlet = gevent.spawn(self.poll_for_message)
        while not self.greenlet.dead:
            if self._asks.wait(0.01) and not self.greenlet.dead:
                self._asks.clear()
                self._held.release()
                self._gate.acquire(True, 20)  # a bound, for a test that fails
                if self.is_to_end:
                    self.greenlet.throw(gevent.GreenletExit())

    def poll_for_message(self) -> None:
        try:
            for _ in range(self.count):
                self.got.append(self.queue.get())
        except Exception as error:
            self.got.append(error)

    def hold(self) -> None:
        """Return when hub 1 stands still, with the greenlet waiting."""
        wait_until(lambda: "getters[1]" in repr(self.queue))
        self._asks.set()
        self._held.acquire()

    def let_go(self) -> None:
        """Let hub 1 turn again."""
        self._gate.release()


def test_a_queue_that_is_waited_for_on_another_hub_has_its_item(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As Flask-SocketIO's long polling does; one warning, with the stack of what waits."""
    queue: Queue[int] = Queue()
    poll = Poll(queue, 3)

    def give(item: int) -> None:
        wait_until(lambda: "getters[1]" in repr(queue))
        queue.put(item)
        wait_until(lambda: poll.got[-1:] == [item])

    with reports() as seen, serving(poll):
        for item in range(3):
            give(item)
        check_warning(caplog, "poll_for_message")
        assert "was woken all the same" in warnings_in(caplog)[0]
    assert poll.got == [0, 1, 2]
    assert seen == []


def test_a_full_queue_that_is_put_to_on_another_hub_is_put_to_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A greenlet that waits for room goes on, and its item is there once."""
    queue: Queue[int] = Queue(1)
    queue.put(1)
    done = []

    def put_more() -> None:
        queue.put(2)
        done.append(2)

    with reports() as seen, serving(put_more):
        wait_until(lambda: "putters[1]" in repr(queue))
        assert queue.get() == 1
        wait_until(lambda: bool(done))
        check_warning(caplog, "put_more")
        assert queue.get() == 2
        assert queue.empty()
    assert seen == []


def test_an_item_that_is_put_on_another_hub_wakes_a_hub_that_has_nothing_else_to_do() -> None:
    """A put() there wakes no other loop; the guard's turns do, four times a second."""
    queue: Queue[int] = Queue()

    def put() -> None:
        wait_until(lambda: "getters[1]" in repr(queue))
        queue.put(1)

    with serving(put):
        assert queue.get(timeout=5) == 1


def test_an_item_that_another_greenlet_took_first_is_waited_for_again() -> None:
    """The get() of gevent doesn't look again: woken for nothing, it would raise IndexError."""
    queue: Queue[int] = Queue()
    poll = Poll(queue)
    with serving(poll):
        poll.hold()
        queue.put(1)
        wait_until(lambda: "getters" not in repr(queue))
        assert queue.get() == 1
        poll.let_go()
        wait_until(lambda: "getters[1]" in repr(queue))
        assert poll.got == []
        queue.put(2)
        wait_until(lambda: poll.got == [2])


def test_a_queue_that_is_shut_down_lets_such_a_greenlet_go() -> None:
    """It raises what it would have raised in the queue."""
    queue: Queue[int] = Queue()
    poll = Poll(queue)
    with serving(poll):
        poll.hold()
        queue.put(1)
        wait_until(lambda: "getters" not in repr(queue))
        queue.shutdown(immediate=True)
        poll.let_go()
        wait_until(lambda: bool(poll.got))
    assert isinstance(poll.got[0], ShutDown)


def test_an_item_whose_greenlet_has_ended_in_the_meantime_is_not_lost() -> None:
    """By a timeout or a kill; the item is in the queue, for the next one."""
    queue: Queue[int] = Queue()
    poll = Poll(queue)
    with serving(poll):
        poll.hold()
        queue.put(1)
        wait_until(lambda: "getters" not in repr(queue))
        poll.is_to_end = True
        poll.let_go()
        wait_until(lambda: bool(poll.greenlet.dead))
        assert poll.got == []
        assert queue.get() == 1


def test_those_behind_the_one_that_failed_have_their_items() -> None:
    """The error ends gevent's round, in which they were to be woken."""
    queue: Queue[int] = Queue()
    poll = Poll(queue)
    with serving(poll):
        poll.hold()
        others = [gevent.spawn(queue.get) for _ in range(2)]
        wait_until(lambda: "getters[3]" in repr(queue))
        for item in range(3):
            queue.put(item)
        gevent.joinall(others, timeout=5, raise_error=True)
        poll.let_go()
        wait_until(lambda: bool(poll.got))
        assert [each.value for each in others] + poll.got == [0, 1, 2]


@pytest.mark.parametrize("size", [None, 1])
def test_many_items_in_both_directions_are_had_once_each(size: int | None) -> None:
    """Each hub has a queue that is filled by the other, and one that it fills itself."""
    count = 50
    there: Queue[int] = Queue(size)
    made: list[Queue[int]] = []

    def answer() -> None:
        back: Queue[int] = Queue(size)
        made.append(back)
        for _ in range(count):
            back.put(there.get())

    def send() -> None:
        for item in range(count):
            there.put(item)

    with reports() as seen, serving(answer):
        wait_until(lambda: bool(made))
        sender = gevent.spawn(send)
        got = [made[0].get(timeout=10) for _ in range(count)]
        sender.join()
        assert got == [*range(count)]
        assert there.empty()
        assert made[0].empty()
    assert seen == []


def test_where_two_greenlets_could_be_meant_none_is_woken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A greenlet that is woken by mistake would go on with what it hasn't got."""
    channel: Channel[int] = Channel()
    queue: Queue[int] = Queue()
    got: list[object] = []

    def wait_for_channel() -> None:
        got.append(channel.get())

    def poll_for_message() -> None:
        gevent.spawn(wait_for_channel)
        try:
            queue.get(timeout=1)
        except Empty as error:
            got.append(error)

    with reports() as seen, serving(poll_for_message):
        wait_until(lambda: "getters[1]" in repr(queue) and "getters[1]" in repr(channel))
        put = gevent.spawn(channel.put, 1)
        wait_until(lambda: len(seen) == 1)
        queue.put(1)
        wait_until(lambda: bool(got))
        assert [type(each) for each in got] == [Empty]
        assert [type(each) for each in seen] == [AssertionError, AssertionError]
        assert queue.get() == 1
        check_warning(caplog, "wait_for_channel")
        assert "may wait for ever" in warnings_in(caplog)[0]
        put.kill()


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
