"""Limits: numbers that are refused with a reason, and a bucket of tokens on any clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glb.model.limits import (
    BURST_SECONDS,
    MIN_PAUSE_SECONDS,
    Bucket,
    check_count,
    check_places,
    check_rate,
    check_seconds,
)

INF, NAN = math.inf, math.nan

# -- numbers ------------------------------------------------------------------------------------


def check_seconds_or_zero(name: str, seconds: object) -> None:
    check_seconds(name, seconds, may_be_zero=True)


COUNT = "limit must be a whole number, got {!r}"
SECONDS = "limit must be a number of seconds, got {!r}"
RATE = "limit must be a number of connections a second, got {!r}"


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (check_count, COUNT),
        (check_seconds, SECONDS),
        (check_seconds_or_zero, SECONDS),
        (check_rate, RATE),
    ],
)
def test_what_is_no_number_is_a_type_error(check: Callable[[str, object], None], text: str) -> None:
    """The text has the name and the value; truth values are no numbers here."""
    for value in (True, False, "3", "", b"3", [3], (), 3j, object()):
        with pytest.raises(TypeError) as caught:
            check("limit", value)
        assert str(caught.value) == text.format(value)


@pytest.mark.parametrize("value", [None, 3.0, 0.5, NAN, INF])
def test_a_count_is_a_whole_number(value: object) -> None:
    """Not even a whole float, nor None: each caller checks those itself."""
    with pytest.raises(TypeError) as caught:
        check_count("limit", value)
    assert str(caught.value) == COUNT.format(value)


@pytest.mark.parametrize("value", [0, -1, -(10**30)])
def test_a_count_is_one_or_more(value: int) -> None:
    """A server that takes nothing would be a mistake."""
    with pytest.raises(ValueError, match="must be 1 or more") as caught:
        check_count("limit", value)
    assert str(caught.value) == f"limit must be 1 or more, got {value!r}"


@pytest.mark.parametrize("value", [0, 0.0, -0.0, -1, -0.001, NAN, INF, -INF])
def test_seconds_are_more_than_none(value: float) -> None:
    """And not for ever: that is what `None` is for."""
    with pytest.raises(ValueError, match="must be more than 0 seconds") as caught:
        check_seconds("limit", value)
    assert str(caught.value) == f"limit must be more than 0 seconds, got {value!r}"


@pytest.mark.parametrize("value", [-1, -0.001, NAN, INF, -INF])
def test_seconds_that_may_be_zero_are_not_less(value: float) -> None:
    """The text says so."""
    with pytest.raises(ValueError, match="must be 0 seconds or more") as caught:
        check_seconds_or_zero("limit", value)
    assert str(caught.value) == f"limit must be 0 seconds or more, got {value!r}"


@pytest.mark.parametrize("value", [0, 0.0, -1, -0.001, NAN, INF, -INF])
def test_a_rate_is_more_than_nothing(value: float) -> None:
    """And not without end."""
    with pytest.raises(ValueError, match="must be more than 0 connections") as caught:
        check_rate("limit", value)
    assert str(caught.value) == f"limit must be more than 0 connections a second, got {value!r}"


@pytest.mark.parametrize(
    ("check", "values"),
    [
        (check_count, [1, 2, 10**30]),
        (check_seconds, [None, 1, 0.001, 1e9]),
        (check_seconds_or_zero, [None, 0, 0.0, 1, 0.001]),
        (check_rate, [None, 1, 0.001, 1e9]),
    ],
)
def test_what_is_right_passes(check: Callable[[str, Any], None], values: list[object]) -> None:
    """Whole numbers and others, and `None` where it has a meaning."""
    for value in values:
        check("limit", value)


@pytest.mark.parametrize(
    ("clones", "hubs", "text"),
    [
        (0, None, "clones must be 1 or more, got 0"),
        (-1, 1, "clones must be 1 or more, got -1"),
        (4, 0, "hubs must be 1 or more, got 0"),
        (None, -2, "hubs must be 1 or more, got -2"),
        (3, 4, "clones must be 4 or more, one for each hub, got 3"),
    ],
)
def test_places_that_do_not_fit_are_a_value_error(
    clones: int | None, hubs: int | None, text: str
) -> None:
    """Each hub has a clone, or it would have nothing to do."""
    with pytest.raises(ValueError, match="must be") as caught:
        check_places(clones, hubs)
    assert str(caught.value) == text


@pytest.mark.parametrize("value", [True, "2", 2.0])
def test_places_are_whole_numbers(value: Any) -> None:
    """Both, and each is named."""
    with pytest.raises(TypeError, match=r"^clones must be a whole number, got "):
        check_places(value, None)
    with pytest.raises(TypeError, match=r"^hubs must be a whole number, got "):
        check_places(4, value)


@pytest.mark.parametrize("places", [(None, None), (1, None), (None, 7), (4, 4), (5, 4)])
def test_places_that_fit_pass(places: tuple[int | None, int | None]) -> None:
    """None fits anything."""
    check_places(*places)


# -- a bucket -----------------------------------------------------------------------------------


def test_it_is_full_at_first() -> None:
    """A tenth of a second's worth may be taken at once, and then one at a time."""
    bucket = Bucket(20, now=5.0)
    assert bucket.pause(5.0) == 0.0
    bucket.take(5.0)
    assert bucket.pause(5.0) == 0.0
    bucket.take(5.0)
    assert bucket.pause(5.0) == 1 / 20


def test_it_holds_one_at_least() -> None:
    """Of a rate so slow that a tenth of a second has less than one."""
    bucket = Bucket(0.5, now=0.0)
    assert bucket.pause(0.0) == 0.0
    bucket.take(0.0)
    assert [bucket.pause(now) for now in (0.0, 0.5, 1.0, 1.75, 2.0)] == [2.0, 1.5, 1.0, 0.25, 0.0]


def test_it_fills_at_its_rate() -> None:
    """To the exact moment."""
    bucket = Bucket(16, now=0.0)
    bucket.take(0.0)
    left = 1 - (16 * BURST_SECONDS - 1)
    assert bucket.pause(0.0) == left / 16
    assert bucket.pause(1 / 64) == (left - 0.25) / 16
    assert bucket.pause(1 / 16) == 0.0


def test_it_does_not_overflow() -> None:
    """However long nothing was taken, no more than a burst is there."""
    bucket = Bucket(20, now=0.0)
    for _ in range(2):
        assert bucket.pause(1e6) == 0.0
        bucket.take(1e6)
    assert bucket.pause(1e6) == 1 / 20


def test_taking_more_than_there_is_makes_the_pause_longer() -> None:
    """What was taken beyond is a debt, to the last token."""
    bucket = Bucket(20, now=0.0)
    for _ in range(12):
        bucket.take(0.0)
    assert bucket.pause(0.0) == 11 / 20
    assert bucket.pause(0.5) == pytest.approx(1 / 20)
    assert bucket.pause(0.55) == 0.0


def test_a_pause_is_worth_its_timer() -> None:
    """It is never shorter than the shortest one, unless it is none."""
    bucket = Bucket(1000, now=0.0)
    for _ in range(100):
        assert bucket.pause(0.0) == 0.0
        bucket.take(0.0)
    assert bucket.pause(0.0) == MIN_PAUSE_SECONDS
    assert bucket.pause(0.0005) == MIN_PAUSE_SECONDS
    assert bucket.pause(0.001) == 0.0


def test_asking_takes_nothing() -> None:
    """However often."""
    bucket = Bucket(20, now=0.0)
    assert [bucket.pause(0.0) for _ in range(100)] == [0.0] * 100


#: Rates whose burst is a whole number, and times that are so many 64ths of a second: sums and
#: products of both are exact, in floats too.
RATES = st.integers(0, 6).map(lambda power: 10 * 2**power)
TICKS = st.integers(0, 64)
STEPS = st.lists(st.tuples(TICKS, st.integers(0, 4)), max_size=40)


@given(rate=RATES, start=st.integers(0, 2**20), steps=STEPS)
def test_the_pause_is_none_exactly_when_there_is_a_token(
    rate: int, start: int, steps: list[tuple[int, int]]
) -> None:
    """Beside a model in whole numbers, whatever is taken, and when."""
    now = Fraction(start)
    bucket = Bucket(rate, float(now))
    size = tokens = Fraction(max(1, rate // 10))
    for ticks, wanted in steps:
        now += Fraction(ticks, 64)
        tokens = min(size, tokens + rate * Fraction(ticks, 64))
        for _ in range(wanted):
            pause = bucket.pause(float(now))
            assert (pause == 0) is (tokens >= 1)
            if pause:
                assert pause == pytest.approx(max((1 - tokens) / rate, MIN_PAUSE_SECONDS))
            bucket.take(float(now))
            tokens -= 1


FLOAT_RATES = st.floats(0.1, 10000, allow_nan=False)


@given(
    rate=FLOAT_RATES,
    start=st.floats(0, 1e6),
    steps=st.lists(st.floats(0, 3), max_size=60),
    patient=st.booleans(),
)
def test_no_window_has_more_than_its_share(
    rate: float, start: float, steps: list[float], patient: bool
) -> None:
    """Of any length: its seconds' worth and one burst, by a caller that asks before each token."""
    now = start
    bucket = Bucket(rate, now)
    burst = max(1.0, rate * BURST_SECONDS)
    taken: list[float] = []
    for step in steps:
        now += bucket.pause(now) if patient else step / rate
        if not bucket.pause(now):
            bucket.take(now)
            taken.append(now)
    for first, begin in enumerate(taken):
        for last, end in enumerate(taken[first:], first):
            assert last - first + 1 <= rate * (end - begin) + burst + 1e-4


@given(rate=FLOAT_RATES, start=st.floats(0, 1e6), taken=st.integers(0, 50))
def test_after_its_pause_there_is_a_token(rate: float, start: float, taken: int) -> None:
    """After the pause there is a token, give or take one more of the shortest."""
    bucket = Bucket(rate, start)
    for _ in range(taken):
        bucket.take(start)
    now = start + bucket.pause(start)
    assert bucket.pause(now) in (0.0, MIN_PAUSE_SECONDS)
    assert bucket.pause(now + MIN_PAUSE_SECONDS) == 0.0


@given(
    rate=FLOAT_RATES,
    start=st.floats(0, 1e6),
    steps=st.lists(st.floats(-5, 5), max_size=60),
)
def test_a_clock_that_stands_or_goes_back_harms_nothing(
    rate: float, start: float, steps: list[float]
) -> None:
    """No wait is longer than for one token, and only time that passes makes tokens."""
    now, passed, taken = start, 0.0, 0
    bucket = Bucket(rate, now)
    burst = max(1.0, rate * BURST_SECONDS)
    for step in steps:
        now += step
        passed += max(0.0, step)
        while not (pause := bucket.pause(now)) and taken < 10000:
            bucket.take(now)
            taken += 1
        assert taken <= rate * passed + burst + 1e-4
        assert pause <= max(1 / rate, MIN_PAUSE_SECONDS) + 1e-9


def test_a_clock_that_stands_gives_no_more_than_a_burst() -> None:
    """Time is what fills it."""
    bucket = Bucket(50, now=3.0)
    taken = 0
    while not bucket.pause(3.0):
        bucket.take(3.0)
        taken += 1
    assert taken == 5
    assert [bucket.pause(3.0) for _ in range(3)] == [1 / 50] * 3
