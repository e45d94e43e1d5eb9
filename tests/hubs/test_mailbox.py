"""Mailboxes: calls for one hub, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent.event import Event

from glb.hubs.mailbox import Mailbox, WakeUp
from glb.hubs.signals import Signal
from glb.originals import RLock

from ..support.helpers import wait_until


class Lost:
    """Stands for the watcher of a loop that its thread is destroying."""

    def send(self) -> None:
        raise Exception("Closing handle")  # libuv's loop says it so


def lose(wake_up: Any) -> None:
    """Have *wake_up* find its loop destroyed."""
    watcher, wake_up._watcher = wake_up._watcher, Lost()
    watcher.stop()
    watcher.close()


def elsewhere(call: Callable[[], object]) -> None:
    """Make *call* in another native thread, and wait for it."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    made = Mailbox(gevent.get_hub(), RLock())
    yield made
    made.close()


def test_calls_of_other_threads_are_made_once_in_order(mailbox: Mailbox) -> None:
    """In the hub, each call once, in the order in which they were posted."""
    made: list[tuple[int, object]] = []
    greenlet = gevent.get_hub()

    def call(number: int) -> Callable[[], object]:
        return lambda: made.append((number, gevent.getcurrent()))

    elsewhere(lambda: [mailbox.post(call(number)) for number in range(5)])
    assert made == []
    wait_until(lambda: len(made) == 5)
    gevent.sleep(0)
    assert made == [(number, greenlet) for number in range(5)]


def test_an_error_stops_no_call_behind_it(
    mailbox: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub reports what a call raises, and makes the next one."""
    reported: list[object] = []
    monkeypatch.setattr(
        gevent.get_hub(), "handle_error", lambda _context, kind, *_: reported.append(kind)
    )
    done = Event()
    mailbox.post([].pop)
    mailbox.post(done.set)
    assert done.wait(10)
    assert reported == [IndexError]


def test_a_closed_mailbox_refuses_calls() -> None:
    """What was posted before is left for `answer`; what comes later is refused."""
    made: list[str] = []
    mailbox = Mailbox(gevent.get_hub(), RLock())
    assert mailbox.post(lambda: made.append("before"))
    mailbox.close()
    mailbox.close()
    assert not mailbox.is_open
    assert not mailbox.post(lambda: made.append("after"))
    mailbox.wake()
    mailbox.answer()
    assert made == ["before"]


def test_a_hub_that_was_lost_makes_no_call_wait() -> None:
    """The thread that finds the loop destroyed says so once, and makes the calls that are left."""
    made: list[str] = []
    mailbox = Mailbox(gevent.get_hub(), RLock(), lost=lambda: made.append("lost"))
    mailbox.post(lambda: made.append("before"))
    lose(mailbox._wake_up)
    assert mailbox.post(lambda: made.append("meanwhile"))
    assert made == ["lost", "before", "meanwhile"]
    assert not mailbox.post(lambda: made.append("after"))
    mailbox.wake()
    assert made == ["lost", "before", "meanwhile"]


def test_an_error_from_outside_is_raised_and_loses_no_hub(mailbox: Mailbox) -> None:
    """A signal handler may raise within a send: the hub is there, and makes the call."""
    done = Event()
    wake_up: Any = mailbox._wake_up
    watcher = wake_up._watcher

    class Struck:
        is_struck = False

        def send(self) -> None:
            if not self.is_struck:
                self.is_struck = True
                raise LookupError("on purpose")
            watcher.send()

    wake_up._watcher = Struck()
    with pytest.raises(LookupError):
        mailbox.post(done.set)
    wake_up._watcher = watcher
    assert mailbox.is_open
    assert done.wait(10)


def test_a_thread_closes_while_others_post() -> None:
    """A call is refused, or made: none is lost between the two."""
    hub = gevent.get_hub()
    for _ in range(20):
        mailbox = Mailbox(hub, RLock())
        made: list[int] = []
        taken: list[bool] = []
        started = threading.Event()

        def post(
            mailbox: Mailbox = mailbox,
            made: list[int] = made,
            taken: list[bool] = taken,
            started: threading.Event = started,
        ) -> None:
            started.set()
            for number in range(200):
                taken.append(mailbox.post(lambda number=number: made.append(number)))  # type: ignore[misc]  # its default

        thread = threading.Thread(target=post)
        thread.start()
        started.wait(10)
        mailbox.close()
        thread.join()
        mailbox.answer()
        assert made == [*range(sum(taken))]


def test_a_forgotten_mailbox_takes_nothing_and_no_lock() -> None:
    """In a forked child another thread may hold the lock for ever."""
    lock: Any = RLock()
    mailbox = Mailbox(gevent.get_hub(), lock)
    wake_up: Any = mailbox._wake_up
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            go_on.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    mailbox.forget()
    assert not mailbox.post(lambda: None)
    mailbox.close()
    go_on.set()
    thread.join()
    wake_up.close()


def test_a_signal_reaches_all_though_one_hub_was_lost() -> None:
    """A greenlet that waits is woken, whatever has become of the hubs of the others."""
    signal = Signal()
    waiting = gevent.spawn(signal.wait, 10)
    gevent.sleep(0)
    lost = WakeUp(gevent.get_hub(), lambda: None)
    signal._wake_ups.insert(0, lost)
    lose(lost)
    signal.set()
    assert waiting.get(timeout=10) is True
