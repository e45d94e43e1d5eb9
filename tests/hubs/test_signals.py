"""`glb.hubs.signals.ask`: a function runs in another hub's greenlet, and its result comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import pytest
from gevent import GreenletExit, get_hub
from gevent.event import Event

from glb.hubs.signals import ask
from glb.hubs.threads import HubThread
from glb.originals import native_ident

from ..support.helpers import let_hub_turn, wait_until


@pytest.fixture
def thread() -> Iterator[HubThread]:
    """A hub that turns."""
    thread = HubThread("glb asked").start()
    yield thread
    thread.end()
    assert thread.wait(None)


def raise_lookup_error() -> Any:
    raise LookupError("on purpose")


def keep_waiting(go_on: threading.Event) -> Callable[[], str]:
    """Return a function that waits, in its greenlet, and says that it is done."""

    def wait() -> str:
        while not go_on.is_set():
            gevent.sleep(0.001)
        return "done"

    return wait


# -- answers ------------------------------------------------------------------------------------


def test_the_result_comes_back(thread: HubThread) -> None:
    """Of a function that ran in the other thread, in a greenlet of its hub."""

    def look() -> tuple[int, bool, bool]:
        greenlet = gevent.getcurrent()
        return native_ident(), greenlet.parent is thread.hub, isinstance(greenlet, gevent.Greenlet)

    assert ask(thread.send, look)(None) == (thread.ident, True, True)


def test_a_function_may_wait(thread: HubThread) -> None:
    """It has a greenlet of its own; that hub, and this one, go on."""
    go_on = threading.Event()
    answer = ask(thread.send, keep_waiting(go_on))
    turned = Event()
    gevent.spawn(turned.set)
    waiting: Any = gevent.spawn(answer, None)
    assert turned.wait(10)
    assert thread.call(lambda: "turns") == "turns"
    assert not waiting.ready()
    go_on.set()
    assert waiting.get() == "done"


def test_what_it_raises_is_raised_here(thread: HubThread) -> None:
    """The error itself, and the other hub doesn't report it."""
    reported: list[object] = []
    thread.hub.handle_error = lambda *args: reported.append(args)
    with pytest.raises(LookupError, match="on purpose"):
        ask(thread.send, raise_lookup_error)(None)
    with pytest.raises(LookupError, match="on purpose"):
        ask(thread.send, raise_lookup_error)(10)
    assert reported == []


def test_even_what_ends_a_program_is_the_askers(thread: HubThread) -> None:
    """As with `HubThread.call`; the other hub goes on."""

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        ask(thread.send, leave)(None)
    assert ask(thread.send, lambda: 7)(None) == 7


@pytest.mark.parametrize("result", [None, False, 0, (), "text"])
def test_any_result_is_a_result(thread: HubThread, result: object) -> None:
    """Also one that is nothing, and an error that is one is only returned."""
    assert ask(thread.send, lambda: result)(None) is result
    error = LookupError("not raised")
    assert ask(thread.send, lambda: error)(None) is error


def test_an_answer_that_came_first_is_there(thread: HubThread) -> None:
    """The caller may do other things before waiting, even with no time left."""
    asked = threading.Event()

    def work() -> str:
        asked.set()
        return "early"

    answer = ask(thread.send, work)
    assert asked.wait(10)
    thread.call(lambda: None)
    let_hub_turn()
    assert answer(10) == "early"


def test_an_answer_may_be_asked_for_again(thread: HubThread) -> None:
    """It stays what it is; and after a time that was too short it may be there."""
    go_on = threading.Event()
    answer = ask(thread.send, keep_waiting(go_on))
    assert answer(0) is None
    go_on.set()
    assert [answer(None), answer(0)] == ["done", "done"]


def test_several_may_be_asked_at_once() -> None:
    """Each answers for itself, in any order."""
    threads = [HubThread(f"glb asked {number}").start() for number in range(3)]
    gates = [threading.Event() for _ in threads]

    def work(gate: threading.Event) -> tuple[str, int]:
        return keep_waiting(gate)(), native_ident()

    answers = [
        ask(each.send, partial(work, gate)) for each, gate in zip(threads, gates, strict=True)
    ]
    for gate in reversed(gates):
        gate.set()
    assert [answer(None) for answer in answers] == [("done", each.ident) for each in threads]
    for each in threads:
        each.end()
        assert each.wait(None)


def test_one_hub_answers_many_in_order(thread: HubThread) -> None:
    """Their greenlets begin in the order in which they were asked."""
    begun: list[int] = []
    answers = [ask(thread.send, partial(begun.append, number)) for number in range(20)]
    for answer in answers:
        answer(None)
    assert begun == [*range(20)]


def test_the_hub_of_a_thread_may_ask_this_one(thread: HubThread) -> None:
    """Any hub may, whose greenlets can wait."""
    here = native_ident()
    calls: list[Callable[[], object]] = []

    def run_here(call: Callable[[], object]) -> None:
        calls.append(call)
        watcher.send()

    def answer_here() -> None:
        calls.pop()()

    watcher: Any = get_hub().loop.async_()
    watcher.start(answer_here)
    answer = ask(thread.send, lambda: ask(run_here, native_ident)(None))
    assert answer(None) == here
    watcher.stop()
    watcher.close()


# -- no answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_time_that_is_over_is_no_result(thread: HubThread, timeout: float) -> None:
    """`None` comes back, and the function goes on to its end."""
    go_on, over = threading.Event(), threading.Event()
    wait = keep_waiting(go_on)

    def work() -> None:
        wait()
        over.set()

    assert ask(thread.send, work)(timeout) is None
    assert not over.is_set()
    go_on.set()
    wait_until(over.is_set)


def test_an_error_behind_time_is_nobodys(thread: HubThread) -> None:
    """It was not asked for any more."""
    go_on, over = threading.Event(), threading.Event()
    wait = keep_waiting(go_on)

    def fail() -> None:
        wait()
        over.set()
        raise LookupError("on purpose")

    reported: list[object] = []
    thread.hub.handle_error = lambda *args: reported.append(args)
    assert ask(thread.send, fail)(0.001) is None
    go_on.set()
    wait_until(over.is_set)
    assert thread.call(lambda: reported) == []


@pytest.mark.parametrize("timeout", [None, 1000, 0])
def test_a_hub_that_has_ended_gives_no_answer(timeout: float | None) -> None:
    """There is `None` at once, and the function never runs."""
    thread = HubThread("glb gone").start()
    thread.end()
    assert thread.wait(None)
    assert ask(thread.send, raise_lookup_error)(timeout) is None


def test_a_hub_that_was_never_there_gives_no_answer() -> None:
    """As one that has ended."""
    assert ask(HubThread("glb never").send, raise_lookup_error)(None) is None


def test_a_hub_that_ends_meanwhile_ends_the_wait() -> None:
    """Its greenlets are killed; a greenlet that waits for one gets no answer, and isn't killed."""
    thread = HubThread("glb ending").start()
    begun = threading.Event()

    def work() -> None:
        begun.set()
        gevent.sleep(1000)

    answer = ask(thread.send, work)
    assert begun.wait(10)
    thread.end()
    assert answer(None) is None
    assert thread.wait(None)


def test_a_hub_that_ends_before_it_begins_gives_no_answer() -> None:
    """It was sent, and the end was there first."""
    thread = HubThread("glb ending").start()
    inside, go_on = threading.Event(), threading.Event()

    def block() -> None:
        inside.set()
        go_on.wait(20)

    thread.send(block)
    assert inside.wait(10)
    thread.end()
    ran: list[int] = []
    answer = ask(thread.send, lambda: ran.append(1), lambda: thread.has_ended)
    go_on.set()
    assert thread.wait(None)
    # Its greenlet was made, and killed before it began.
    assert (answer(None), ran) == (None, [])


def test_a_wait_that_is_killed_leaves_nothing(thread: HubThread) -> None:
    """The answer goes nowhere, and the watcher is gone: see the fixture of all tests."""
    go_on = threading.Event()
    answer = ask(thread.send, keep_waiting(go_on))
    waiting: Any = gevent.spawn(answer, None)
    let_hub_turn()
    waiting.kill()
    assert isinstance(waiting.value, GreenletExit)
    go_on.set()
    assert thread.call(lambda: 1) == 1


def test_many_questions_leave_no_watchers(thread: HubThread) -> None:
    """Answered, or not, or with an error."""
    loop = get_hub().loop
    before = loop.activecnt
    for _ in range(50):
        ask(thread.send, lambda: 1)(None)
        ask(thread.send, lambda: gevent.sleep(0.002))(0)
        with pytest.raises(LookupError):
            ask(thread.send, raise_lookup_error)(None)
    let_hub_turn()
    assert loop.activecnt <= before
