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

    #: Any trace but a "switch on its way": the next wait would get it.
    TRACES = (
        *(name for name in TRACES if name != "switch on its way"),
        *("reference", "weak reference", "link", "local", "attribute", "context", "context"),
        *("timeout soon", "timeout soon", "value link", "child"),
    )
    ENDINGS = (*("return",) * 16, "raise", "own exit", "exit", "killed", "timeout")

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.server: Any = None
        #: How many have begun, are done, and may have left a trace.
        self.begun = self.done = self.spoiled = 0
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        #: By greenlets that were kept.
        self.values: dict[Any, object] = {}
        #: Links that have to run yet.
        self.links: Counter[int] = Counter()
        #: By timeout: the handler that is to get it; `None` if it is over.
        self.timeouts: dict[gevent.Timeout, int | None] = {}
        self.kept: list[Any] = []
        self.go_on = Event()
        self.never = Event()

    def report(self, context: Any, kind: type[BaseException], value: Any, _tb: Any) -> None:
        """Stand in for the hub's `handle_error`."""
        if kind is gevent.Timeout and self.timeouts.get(value, -1) is not None:
            self.faults.append(f"a timeout of a handler that was done hit {context!r}")
        elif kind not in (LookupError, OwnExit, gevent.Timeout):
            self.faults.append(f"{context!r} failed with {value!r}")
        self.counts["reported"] += 1

    def __call__(self, sock: Any, _peer: Any) -> object:
        number = self.begun
        self.begun += 1
        try:
            self.check(number)
        except AssertionError as error:
            line = traceback.extract_tb(error.__traceback__)[-1].line
            self.faults.append(f"connection {number}: {str(error) or line}")
        try:
            return self.act(sock, number)
        except gevent.Timeout as error:
            if self.timeouts[error] != number:
                self.faults.append(f"connection {number}: another's timeout")
            self.timeouts[error] = None
            raise
        finally:
            self.done += 1

    def check(self, number: int) -> None:
        assert_fresh()
        assert here() not in self.values, "its greenlet is another's as well"
        clone = glb.current_clone()
        assert clone is not None and clone.server is self.server
        if self.server.hubs == 1:
            assert clone.index == number % self.server.clones, "out of order"

    def act(self, sock: Any, number: int) -> object:
        choose = self.random
        traces = choose.choices(self.TRACES, k=choose.choice((0, 0, 0, 0, 0, 1, 1, 2, 3)))
        ending = choose.choice(self.ENDINGS)
        looks = choose.random() < 0.3
        self.spoiled += bool(traces or looks or ending != "return")
        if looks and vars(BY_GREENLET):
            self.faults.append(f"connection {number}: a local")
        if choose.random() < 0.5:
            self.wait(sock, choose.choice(("answer", "turn", "timer", "event")))
        for trace in traces:
            self.leave(trace, number)
        if choose.random() < 0.2:
            self.wait(sock, choose.choice(("answer", "turn", "timer")))
        self.counts[ending] += 1
        if ending == "raise":
            fail()
        elif ending == "own exit":
            raise OwnExit
        elif ending == "exit":
            raise GreenletExit
        elif ending in ("killed", "timeout"):
            self.leave("kill" if ending == "killed" else "timeout soon", number)
            gevent.sleep(10)
        if here() in self.values:
            self.values[here()] = number
        return number

    def wait(self, sock: Any, how: str) -> None:
        self.counts[f"waited for {how}"] += 1
        if how == "answer":
            wait_for_answer(sock)
        elif how == "event":
            self.never.wait(0.001)
        else:
            gevent.sleep(self.soon() if how == "timer" else 0)

    def soon(self) -> float:
        """Return some time; less than 1 ms would be a warning with libuv."""
        return self.random.uniform(0.001, 0.003)

    def leave(self, trace: str, number: int) -> None:
        self.counts[f"left {trace}"] += 1
        if trace in ("reference", "its switch"):
            self.values.setdefault(here(), GreenletExit)
        if trace == "context":
            BY_CONTEXT.set(number)
        elif trace == "value link":
            self.links[number] += 1
            here().rawlink(lambda greenlet: self.links.update({number: -greenlet.dead}))
        elif trace == "Timeout on its way":
            timeout = gevent.Timeout()
            self.timeouts[timeout] = number
            gevent.get_hub().loop.run_callback(here().throw, timeout)
        elif trace in ("timeout", "timeout soon"):
            seconds = 3600 if trace == "timeout" else self.soon()
            self.timeouts[gevent.Timeout.start_new(seconds)] = number
        elif trace == "child":
            self.kept.append(gevent.spawn(self.go_on.wait))
        else:
            TRACES[trace](self.kept)
            if trace == "kill":
                gevent.sleep(0)

    def end(self) -> None:
        """Let go of all that was kept."""
        self.go_on.set()
        gevent.joinall([each for each in self.kept if isinstance(each, Greenlet)])
        for timeout in self.timeouts:
            timeout.close()

    def look(self) -> None:
        """Find what is wrong with links, and with greenlets that were kept. All are done."""
        if +self.links or -self.links:
            self.faults.append(f"links didn't run once, when all was over: {self.links}")
        for greenlet, value in self.values.items():
            if not (greenlet.dead and greenlet.ready()):
                self.faults.append(f"{greenlet!r} was kept, and is alive")
            elif (
                value is not GreenletExit and greenlet.exception is None and greenlet.value != value
            ):
                self.faults.append(f"{greenlet!r} returned {greenlet.value!r}, not {value!r}")
