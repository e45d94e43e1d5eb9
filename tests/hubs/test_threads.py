"""Hub threads: native threads whose hub turns until they are to end."""

from __future__ import annotations

import _thread
import subprocess
import sys
import threading
from functools import partial
from typing import Any

import gevent
import pytest
from gevent._hub_local import get_hub_if_exists
from gevent.event import Event

from glb.hubs import threads as hubs
from glb.hubs.threads import HubThread
from glb.originals import native_ident

from ..conftest import open_descriptors
from ..support.helpers import wait_until
from ..support.scarcity import scarcity


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def raise_lookup_error() -> Any:
    raise LookupError("on purpose")


def end(thread: HubThread) -> None:
    thread.end()
    assert thread.wait(None)


def silence(thread: HubThread) -> list[type[BaseException]]:
    """Let the thread's hub report to a list, which is returned."""
    found: list[type[BaseException]] = []
    thread.hub.handle_error = lambda _context, kind, *_: found.append(kind)
    return found


def block(thread: HubThread) -> tuple[threading.Event, threading.Event]:
    """Block the thread's hub natively; return what is set when it is, and what lets it go on."""
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        go_on.wait(20)

    thread.send(wait)
    return inside, go_on


# -- from start to end -----------------------------------------------------------------------


def test_a_hub_of_its_own_turns_in_a_thread_of_its_own() -> None:
    """`start` returns when the hub is there, and knows it and the thread."""
    thread = HubThread("glb test")
    assert (thread.hub, thread.ident) == (None, 0)
    assert thread.start() is thread
    assert thread.call(gevent.get_hub) is thread.hub
    assert thread.call(native_ident) == thread.ident
    assert thread.hub is not gevent.get_hub()
    assert thread.ident != native_ident()
    end(thread)


def test_it_is_known_by_its_name_until_it_ends() -> None:
    """`threading.enumerate` has it, and after the end no more, not even as a dummy."""
    before = names()
    thread = HubThread("glb by name").start()
    assert names() == [*before, "glb by name"]
    end(thread)
    assert names() == before


def test_nothing_is_left_of_many() -> None:
    """Threads and descriptors are as before, however often one was started and ended."""
    before, running = open_descriptors(), [*hubs._running]
    count = threading.active_count()
    for _ in range(20):
        end(HubThread("glb test").start())
        assert threading.active_count() == count
    assert open_descriptors() == before
    assert [*hubs._running] == running


def test_ending_twice_is_harmless() -> None:
    """Before it has ended, and after."""
    thread = HubThread("glb test").start()
    thread.end()
    thread.end()
    assert thread.wait(None)
    thread.end()
    assert thread.wait(0)
    assert thread.join(0)


def test_it_can_end_itself() -> None:
    """From a callback of its hub, or from a greenlet there."""
    first, second = HubThread("glb 1").start(), HubThread("glb 2").start()
    first.send(first.end)
    second.send(lambda: gevent.spawn(second.end))
    assert first.wait(None)
    assert second.wait(None)


def test_greenlets_that_run_do_not_keep_it() -> None:
    """Its end is the end of its hub: a wait for handlers comes before."""
    thread = HubThread("glb test").start()
    started = threading.Event()

    def sleep() -> None:
        started.set()
        gevent.sleep(1000)

    thread.send(lambda: gevent.spawn(sleep))
    assert started.wait(10)
    end(thread)


# -- what it is sent -------------------------------------------------------------------------


def test_what_is_sent_is_called_in_its_hub_in_order() -> None:
    """Each call once, in the thread, in the order in which they were sent."""
    thread = HubThread("glb test").start()
    seen: list[tuple[int, int]] = []

    def note(number: int) -> None:
        seen.append((number, native_ident()))

    for number in range(100):
        assert thread.send(partial(note, number))
    thread.call(lambda: None)
    end(thread)
    assert seen == [(number, thread.ident) for number in range(100)]


def test_what_was_sent_before_the_end_is_called() -> None:
    """Also behind the call that ends it; nothing that `send` took is dropped."""
    thread = HubThread("glb test").start()
    called: list[str] = []
    inside, go_on = block(thread)
    assert inside.wait(10)
    thread.end()
    assert thread.send(lambda: called.append("behind"))
    go_on.set()
    assert thread.wait(None)
    assert called == ["behind"]


def test_a_thread_that_has_ended_takes_nothing() -> None:
    """`send` says so, and `call` raises with the name in the text."""
    thread = HubThread("glb test").start()
    end(thread)
    assert thread.send(raise_lookup_error) is False
    with pytest.raises(RuntimeError, match="'glb test' has ended"):
        thread.call(raise_lookup_error)


def test_a_thread_that_was_not_started_takes_nothing() -> None:
    """There is no hub yet."""
    thread = HubThread("glb test")
    assert thread.send(raise_lookup_error) is False
    with pytest.raises(RuntimeError, match="'glb test'"):
        thread.call(raise_lookup_error)


def test_a_call_raises_what_the_function_raises() -> None:
    """The error is the caller's, also one that ends programs; the thread goes on."""
    thread = HubThread("glb test").start()
    with pytest.raises(LookupError, match="on purpose"):
        thread.call(raise_lookup_error)

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        thread.call(leave)
    assert thread.call(lambda: "result") == "result"
    end(thread)


def test_what_raises_is_reported_and_stops_nothing_behind_it() -> None:
    """A call that fails is the hub's to report; the next one is called all the same."""
    thread = HubThread("glb failing").start()
    reported = silence(thread)
    called = threading.Event()
    inside, go_on = block(thread)
    assert inside.wait(10)
    thread.send(raise_lookup_error)
    thread.send(called.set)
    go_on.set()
    was_called = called.wait(2)
    thread.end()
    has_ended = thread.wait(2)
    assert (reported, was_called, has_ended) == ([LookupError], True, True)


def test_threads_call_each_other() -> None:
    """From any thread, not only from the one that started it."""
    first, second = HubThread("glb 1").start(), HubThread("glb 2").start()
    assert first.call(lambda: second.call(native_ident)) == second.ident
    end(first)
    end(second)


# -- waiting ---------------------------------------------------------------------------------


def test_waiting_lets_other_greenlets_go_on() -> None:
    """Several may wait, while the thread is busy; all wake."""
    thread = HubThread("glb test").start()
    go_on = threading.Event()
    thread.send(lambda: go_on.wait(10))
    thread.end()
    turned = Event()
    waiting = [gevent.spawn(thread.wait, None) for _ in range(3)]
    gevent.spawn(turned.set)
    assert turned.wait(10)
    assert not any(greenlet.ready() for greenlet in waiting)
    go_on.set()
    gevent.joinall(waiting, raise_error=True)
    assert [greenlet.value for greenlet in waiting] == [True] * 3


def test_a_wait_that_is_over_before_the_thread_says_so() -> None:
    """It leaves nothing behind, and the next one hears of the end."""
    thread = HubThread("glb test").start()
    assert thread.wait(0.001) is False
    assert thread.join(0) is False
    greenlet = gevent.spawn(thread.wait, None)
    gevent.sleep(0)
    greenlet.kill()
    assert thread._ended._wake_ups == []
    end(thread)


def test_a_wait_returns_the_truth_each_time() -> None:
    """A wait that has returned is followed by no sign of the thread."""
    for _ in range(50):
        thread = HubThread("glb truth").start()
        thread.end()
        assert thread.wait(None) is True
        assert "glb truth" not in names()


def test_a_thread_waits_for_another() -> None:
    """Greenlets of any hub may wait."""
    first, second = HubThread("glb 1").start(), HubThread("glb 2").start()
    told = threading.Event()

    def wait() -> None:
        if second.wait(None):
            told.set()

    first.send(lambda: gevent.spawn(wait))
    end(second)
    wait_until(told.is_set)
    end(first)


# -- what goes wrong -------------------------------------------------------------------------


def test_a_start_without_room_for_a_hub_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the thread met is raised in `start`, and the thread is over."""
    before, threads = open_descriptors(), threading.active_count()
    monkeypatch.setattr(hubs, "get_hub", raise_lookup_error)
    thread = HubThread("glb test")
    with pytest.raises(LookupError, match="on purpose"):
        thread.start()
    assert threading.active_count() == threads
    assert open_descriptors() == before
    assert thread not in hubs._running
    assert thread.send(raise_lookup_error) is False
    monkeypatch.undo()
    assert thread.wait(0)


@pytest.mark.parametrize("free", [0, 2, 4])
def test_a_start_without_descriptors_is_refused(free: int) -> None:
    """With the thread's name. libev would ask for its own for ever, and fill the error log."""
    before, threads = open_descriptors(), threading.active_count()
    thread = HubThread("glb test")
    with scarcity(free=free), pytest.raises(OSError, match="'glb test': Too many open files"):
        thread.start()
    assert (open_descriptors(), threading.active_count()) == (before, threads)
    assert thread.wait(0)


def test_a_start_without_room_for_a_thread_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own RuntimeError; no call waits for such a thread."""

    def refuse(*_: object) -> Any:
        raise RuntimeError("can't start new thread")

    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(hubs, "_start_native", refuse)
        thread = HubThread("glb test")
        with pytest.raises(RuntimeError, match="can't start new thread"):
            thread.start()
    assert open_descriptors() == before
    assert thread.wait(0)
    assert thread.join(0)
    thread.end()


def test_what_ends_a_program_is_passed_on_and_the_thread_goes_on() -> None:
    """SystemExit in a greenlet there goes to the callback that the thread was started with."""
    told: list[tuple[type[BaseException], int]] = []
    thread = HubThread("glb test", lambda error: told.append((type(error), native_ident()))).start()

    def leave() -> None:
        raise SystemExit(3)

    def has_passed_on(count: int) -> bool:
        return len(told) == count

    for count in (1, 2):
        thread.send(lambda: gevent.spawn(leave))
        wait_until(partial(has_passed_on, count))
    assert thread.call(lambda: 7) == 7
    end(thread)
    assert told == [(SystemExit, thread.ident)] * 2


def run_python(program: str) -> str:
    """Return what *program* prints, which is to end by itself and without a complaint."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_end_of_the_interpreter_ends_them() -> None:
    """Those that were forgotten, and those whose end takes a wait, with no complaint."""
    printed = run_python(
        "import gevent\n"
        "from glb.hubs.threads import HubThread\n"
        "thread, other = HubThread('one').start(), HubThread('two').start()\n"
        "def finish():\n"
        "    gevent.sleep(0.01)\n"
        "    print('finished')\n"
        "    thread.end()\n"
        "thread.at_exit = finish\n"
        "print('over')\n"
    )
    assert printed == "over\nfinished\n"


def test_they_are_native_under_monkey_patching() -> None:
    """A patched `threading` doesn't turn them into greenlets, and their end is heard of."""
    printed = run_python(
        "from gevent import monkey; monkey.patch_all()\n"
        "from glb.hubs.threads import HubThread\n"
        "from glb.originals import native_ident\n"
        "thread = HubThread('one').start()\n"
        "print(thread.call(native_ident) != native_ident())\n"
        "thread.end()\n"
        "print(thread.wait(None))\n"
    )
    assert printed == "True\nTrue\n"


def test_a_forked_child_has_none() -> None:
    """What was sent to them there goes nowhere, and no call waits for them."""
    printed = run_python(
        "import os, sys, warnings, gevent\n"
        "from glb.hubs import threads as hubs\n"
        "warnings.simplefilter('ignore', DeprecationWarning)  # forking with threads, from 3.12\n"
        "thread = hubs.HubThread('one').start()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    print(thread.send(print), thread.join(0), len(hubs._running), flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "print(thread.call(lambda: 'parent'))\n"
        "thread.end()\n"
        "thread.join(-1)\n"
    )
    assert printed == "False True 0\nparent\n"


def test_a_thread_takes_no_part_in_another_ones_lock() -> None:
    """`send` never waits for the thread: it may be blocked for as long as it likes."""
    thread = HubThread("glb test").start()
    lock = _thread.allocate_lock()
    lock.acquire()
    thread.send(lock.acquire)
    seen: list[int] = []
    for number in range(3):
        assert thread.send(partial(seen.append, number))
    assert seen == []
    lock.release()
    end(thread)
    assert seen == [0, 1, 2]


def test_what_may_switch_is_called_in_a_greenlet_of_its_own_in_the_hub_alone() -> None:
    """A greenlet calls it itself, and has it done when it goes on."""
    callers: list[object] = []
    hub = gevent.get_hub()

    def call() -> None:
        gevent.sleep(0)  # as a log handler under monkey patching may
        callers.append(gevent.getcurrent())

    hubs.call_where_it_may_switch(call)
    assert callers == [gevent.getcurrent()]
    hub.loop.run_callback(hubs.call_where_it_may_switch, call)
    while len(callers) < 2:
        gevent.sleep(0)
    assert callers[1] not in (hub, callers[0])


def test_a_thread_without_a_hub_gets_none_by_logging() -> None:
    """There it is called at once, and nothing of a loop is left open."""
    before, hubs_there = open_descriptors(), list[object]()
    thread = threading.Thread(
        target=hubs.call_where_it_may_switch,
        args=[lambda: hubs_there.append(get_hub_if_exists())],
    )
    thread.start()
    thread.join()
    assert (hubs_there, open_descriptors()) == ([None], before)
