"""What handlers may leave behind, and how a handler tells that nothing of another's is there."""

from __future__ import annotations

import contextvars
import random
import sys
import traceback
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import gevent
import gevent.local
from gevent import Greenlet, GreenletExit, getcurrent
from gevent.event import Event

import glb

BY_GREENLET = gevent.local.local()
BY_CONTEXT: contextvars.ContextVar[object] = contextvars.ContextVar("left", default=None)

#: Coverage has a weak reference to each greenlet that it traces: a trace like any, after
#: which none would be used again.
BY_TRACER = gevent.spawn(lambda: weakref.getweakrefcount(getcurrent())).get()


class OwnExit(BaseException):
    """An error that is no `Exception`."""


def here() -> Any:
    return getcurrent()


def fail(*_: object) -> Any:
    raise LookupError("on purpose")


def wait_for_answer(sock: Any) -> None:
    """Wait in a handler: the client can't answer before the hub has had its turn."""
    sock.sendall(b"?")
    assert sock.recv(1) == b"x"


def assert_fresh() -> None:
    """Assert that the running greenlet has no trace of another handler. Leaves none itself."""
    assert isinstance(getcurrent(), Greenlet)
    greenlet = here()
    assert greenlet and greenlet.started and not greenlet.ready() and not greenlet.dead
    assert (greenlet.value, greenlet.exception, greenlet.exc_info) == (None, None, None)
    assert {*greenlet.__dict__} <= {"_run"}  # which is gevent's
    assert greenlet.kwargs == {}
    assert not greenlet.has_links()
    assert weakref.getweakrefcount(greenlet) == BY_TRACER
    assert greenlet.parent is gevent.get_hub()
    hub: Any = gevent.get_hub()
    assert greenlet.spawning_greenlet() is hub
    assert greenlet.spawn_tree_locals is hub.spawn_tree_locals
    assert BY_CONTEXT.get() is None
    assert [*contextvars.copy_context()] == [glb.model.clone.CURRENT]
    assert sys.exc_info() == (None, None, None)


BY_WEAK_KEY: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


TRACES: dict[str, Callable[[list[Any]], object]] = {
    "reference": lambda kept: kept.append(here()),
    "its switch": lambda kept: kept.append(here().switch),
    "weak reference": lambda kept: kept.append(weakref.ref(here())),
    "finalizer": lambda _: weakref.finalize(here(), int),
    "weak key": lambda _: BY_WEAK_KEY.setdefault(here(), "me"),
    "link": lambda _: here().link(id),
    "rawlink": lambda _: here().rawlink(id),
    "link_value": lambda _: here().link_value(id),
    "link_exception": lambda _: here().link_exception(id),
    "attribute": lambda _: setattr(here(), "user", "me"),
    "keyword argument": lambda _: here().kwargs.setdefault("user", "me"),
    "name": lambda _: setattr(here(), "name", "me"),
    "generated name": lambda _: here().name,
    "minimal_ident": lambda _: here().minimal_ident,
    "local": lambda _: setattr(BY_GREENLET, "user", "me"),
    "look at a local": lambda _: hasattr(BY_GREENLET, "user"),
    "tree locals": lambda _: setattr(here(), "spawn_tree_locals", {"user": "me"}),
    "timeout": lambda kept: kept.append(gevent.Timeout.start_new(3600)),
    "kill": lambda _: here().kill(block=False),
    "joined": lambda kept: kept.append(gevent.spawn(here().join)),
    "child": lambda kept: kept.append(gevent.spawn(gevent.sleep, 3600)),
    "switch on its way": lambda _: gevent.get_hub().loop.run_callback(here().switch),
    "Timeout on its way": lambda _: gevent.get_hub().loop.run_callback(
        here().throw, gevent.Timeout()
    ),
}


class Fuzz:
    """A handler that does anything, and looks on entry for what others left."""

    TRACES = (
        *(name for name in TRACES if name != "child"),
        *("reference", "weak reference", "link", "local", "attribute", "context", "context"),
        *("timeout soon", "timeout soon", "value link", "child"),
    )
    ENDINGS = (*("return",) * 16, "raise", "own exit", "exit", "killed", "timeout")

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.server: Any = None
        self.begun = 0
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.values: dict[Any, object] = {}  # by greenlets that were kept
        self.weak: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.linked: Counter[object] = Counter()
        self.expected_links: Counter[object] = Counter()
        self.timeouts: dict[gevent.Timeout, int] = {}
        self.raised: set[gevent.Timeout] = set()
        self.done: set[int] = set()
        self.kept: list[Any] = []
        self.go_on = Event()
        self.never = Event()

    def report(self, context: Any, kind: type[BaseException], value: Any, _tb: Any) -> None:
        """Stand in for the hub's `handle_error`."""
        text = repr(context)
        if kind is gevent.Timeout and value not in self.raised:
            self.faults.append(f"a timeout of a handler that was done hit {text}")
        elif kind not in (LookupError, OwnExit, gevent.Timeout):
            self.faults.append(f"{text} failed with {value!r}")
        self.counts["reported"] += 1

    def __call__(self, sock: Any, _peer: Any) -> object:
        number = self.begun
        self.begun += 1
        try:
            self.check(number)
        except AssertionError as error:
            self.faults.append(f"connection {number}: {str(error) or _line_of(error)}")
        try:
            return self.act(sock, number)
        except gevent.Timeout as error:
            self.raised.add(error)
            if self.timeouts[error] != number:
                self.faults.append(f"connection {number}: another's timeout")
            raise
        finally:
            self.done.add(number)

    def check(self, number: int) -> None:
        assert_fresh()
        greenlet = here()
        assert greenlet not in self.values, "its greenlet is another's as well"
        assert greenlet not in self.weak, "its greenlet is known to another"
        clone = glb.current_clone()
        assert clone is not None and clone.server is self.server
        if self.server.hubs == 1:
            assert clone.index == number % self.server.clones, "out of order"
        if self.random.random() < 0.3:
            assert vars(BY_GREENLET) == {}, "a local"

    def act(self, sock: Any, number: int) -> object:
        choose = self.random
        if choose.random() < 0.5:
            self.wait(sock, choose.choice(("answer", "turn", "timer", "event")))
        for trace in choose.choices(self.TRACES, k=choose.choice((0, 0, 0, 0, 0, 1, 1, 2, 3))):
            self.leave(trace, number)
        if choose.random() < 0.2:
            self.wait(sock, choose.choice(("answer", "turn", "timer")))
        ending = choose.choice(self.ENDINGS)
        self.counts[ending] += 1
        if ending == "raise":
            fail()
        elif ending == "own exit":
            raise OwnExit
        elif ending == "exit":
            raise GreenletExit
        elif ending == "killed":
            here().kill(block=False)
            gevent.sleep(10)
        elif ending == "timeout":
            self.timeouts[gevent.Timeout.start_new(0.001)] = number
            gevent.sleep(10)
        if here() in self.values:
            self.values[here()] = number
        return number

    def wait(self, sock: Any, how: str) -> None:
        self.counts[f"waited for {how}"] += 1
        if how == "answer":
            wait_for_answer(sock)
        elif how == "turn":
            gevent.sleep(0)
        elif how == "timer":
            gevent.sleep(self.soon())
        else:
            self.never.wait(0.001)

    def soon(self) -> float:
        """Return some time; less than 1 ms would be a warning with libuv."""
        return self.random.uniform(0.001, 0.003)

    def leave(self, trace: str, number: int) -> None:
        self.counts[f"left {trace}"] += 1
        if trace == "reference":
            self.values.setdefault(here(), GreenletExit)
        elif trace == "weak reference":
            self.weak[here()] = number
        elif trace == "context":
            BY_CONTEXT.set(number)
        elif trace == "value link":
            self.expected_links[number] += 1
            here().rawlink(lambda greenlet: self.note(greenlet, number))
        elif trace == "timeout soon":
            self.timeouts[gevent.Timeout.start_new(self.soon())] = number
        elif trace in ("timeout", "Timeout on its way"):
            timeout = gevent.Timeout()
            self.timeouts[timeout] = number
            if trace == "timeout":
                self.kept.append(gevent.Timeout.start_new(3600))
                self.timeouts[self.kept[-1]] = number
            else:
                gevent.get_hub().loop.run_callback(here().throw, timeout)
        elif trace == "child":
            self.kept.append(gevent.spawn(self.go_on.wait))
        elif trace == "its switch":
            self.kept.append(here().switch)
        elif trace != "switch on its way":  # the next wait would get it
            TRACES[trace](self.kept)
            if trace == "kill":
                gevent.sleep(0)

    def note(self, greenlet: Any, number: int) -> None:
        self.linked[number] += 1
        if not greenlet.dead:
            self.faults.append(f"connection {number}: linked while it lives")

    def end(self) -> None:
        """Let go of all that was kept."""
        self.go_on.set()
        for each in self.kept:
            if isinstance(each, gevent.Timeout):
                each.close()
            elif isinstance(each, Greenlet):
                each.join()
        for timeout in self.timeouts:
            timeout.close()


def _line_of(error: BaseException) -> str | None:
    return traceback.extract_tb(error.__traceback__)[-1].line
