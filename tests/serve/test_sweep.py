"""Deadlines: nothing is late before its time, and what is late is found soon."""

from __future__ import annotations

import itertools
from typing import Any

import gevent
import pytest
from gevent import get_hub
from gevent.event import Event

from glb.serve.sweep import BATCH, NEVER, Deadlines, Task

from ..support.helpers import Clock, wait_until

SECONDS = 8.0


class Work(Task):
    """What takes as long as it likes."""

    def __init__(self, seconds: float | None = SECONDS, greenlet: Any = None) -> None:
        super().__init__(greenlet or gevent.getcurrent())
        self.allowed = seconds
        self.late = 0
        self.reported = 0

    def seconds(self) -> float | None:
        return self.allowed

    def is_late(self, reported: dict[object, object], /) -> None:
        self.late += 1
        reported[self] = None
        self.reported = len(reported)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of deadlines. Timers have the loop's own."""
    clock = Clock()
    monkeypatch.setattr("glb.serve.sweep.monotonic", clock)
    return clock


@pytest.fixture
def deadlines() -> Any:
    made = Deadlines(get_hub())
    yield made
    made.close()


def look(deadlines: Deadlines) -> None:
    deadlines._look(SECONDS)


def timer_of(deadlines: Deadlines) -> Any:
    """Return its timer as it is now."""
    return deadlines._timer


def begin(deadlines: Deadlines, work: Work, seconds: float = SECONDS) -> None:
    deadlines.enter(work, seconds)
    work.until = None


def test_a_task_has_its_time_from_the_first_look_on(clock: Clock, deadlines: Deadlines) -> None:
    """So it is never late too early, however long ago the last look was."""
    work = Work()
    begin(deadlines, work)
    look(deadlines)
    clock.now += SECONDS - 0.01
    look(deadlines)
    assert work.late == 0
    clock.now += 0.01
    look(deadlines)
    assert work.late == 1


def test_a_task_that_goes_on_is_late_again_as_much_later(
    clock: Clock, deadlines: Deadlines
) -> None:
    """And no sooner."""
    work = Work()
    begin(deadlines, work)
    look(deadlines)
    for times in (1, 2, 3):
        clock.now += SECONDS
        look(deadlines)
        look(deadlines)
        assert work.late == times


def test_a_task_that_is_done_is_never_late(clock: Clock, deadlines: Deadlines) -> None:
    """What begins after it has a time of its own."""
    work = Work()
    begin(deadlines, work)
    look(deadlines)
    work.until = NEVER
    clock.now += 10 * SECONDS
    look(deadlines)
    work.until = None
    look(deadlines)
    clock.now += SECONDS / 2
    look(deadlines)
    assert work.late == 0
    deadlines.leave(work)
    clock.now += SECONDS
    look(deadlines)
    assert (work.late, len(deadlines)) == (0, 0)


def test_what_may_take_for_ever_is_not_late(clock: Clock, deadlines: Deadlines) -> None:
    """Also if that is known only when its time is up."""
    work = Work()
    begin(deadlines, work)
    look(deadlines)
    work.allowed = None
    for _ in range(2):
        clock.now += 10 * SECONDS
        look(deadlines)
    assert work.late == 0


def test_a_task_that_another_one_ends_is_not_late(clock: Clock, deadlines: Deadlines) -> None:
    """What is done about one may end others, in the same look."""
    first, second = Work(), Work()
    begin(deadlines, first)
    begin(deadlines, second)

    def end_other(_reported: object) -> None:
        deadlines.leave(second)

    first.is_late = end_other  # type: ignore[method-assign]  # this one's
    look(deadlines)
    clock.now += SECONDS
    look(deadlines)
    assert second.late == 0


@pytest.mark.parametrize("until", [None, NEVER])
def test_a_greenlet_that_is_gone_has_no_deadline(
    until: float | None, clock: Clock, deadlines: Deadlines
) -> None:
    """An exception may have struck before it could say that it is done: nothing is thrown there."""
    greenlet = gevent.spawn(lambda: None)
    work = Work(greenlet=greenlet)
    deadlines.enter(work, SECONDS)
    work.until = until
    greenlet.join()
    for _ in range(2):
        look(deadlines)
        clock.now += SECONDS
    assert (work.late, len(deadlines)) == (0, 0)


def test_a_hub_turns_between_batches_of_what_is_late(clock: Clock, deadlines: Deadlines) -> None:
    """A thousand that are late at once don't stall it. None is ended twice, or forgotten."""
    works = [Work() for _ in range(5 * BATCH)]
    for each in works:
        begin(deadlines, each)
    look(deadlines)
    clock.now += SECONDS
    done, at_each_turn = works[-1], [0]
    done.until = NEVER  # it has ended meanwhile
    check = get_hub().loop.check()
    check.start(lambda: at_each_turn.append(sum(each.late for each in works)))
    try:
        look(deadlines)
        wait_until(lambda: at_each_turn[-1] == len(works) - 1)
    finally:
        check.stop()
        check.close()
    in_turns = [now - before for before, now in itertools.pairwise(at_each_turn)]
    assert [each for each in in_turns if each] == [BATCH] * 4 + [BATCH - 1]
    assert [each.reported for each in works[:-1]] == [*range(1, len(works))]  # together
    look(deadlines)
    assert [each.late for each in works] == [1] * (len(works) - 1) + [0]


def test_one_timer_looks_for_all_and_goes_with_the_last(deadlines: Deadlines) -> None:
    """And is back with the next one."""
    for _ in range(2):
        assert timer_of(deadlines) is None
        tasks = [Work() for _ in range(2)]
        deadlines.enter(tasks[0], 0.004)
        timer = timer_of(deadlines)
        assert timer is not None
        deadlines.enter(tasks[1], 0.004)
        assert timer_of(deadlines) is timer
        for each in tasks:
            deadlines.leave(each)
            deadlines.leave(each)
        wait_until(lambda: timer_of(deadlines) is None)


def test_a_timer_that_was_stopped_is_started_again(deadlines: Deadlines) -> None:
    """As gevent stops one whose callback an exception has struck."""
    late = Event()
    work = Work(0.004)
    work.is_late = lambda _: late.set()  # type: ignore[method-assign]  # this one's
    begin(deadlines, work, 0.004)
    timer_of(deadlines).stop()
    deadlines.look_over()
    assert late.wait(10)
