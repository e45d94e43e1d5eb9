"""The balance as a measure: counts, fairness, gates, and their reports."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from locust.argument_parser import LocustArgumentParser
from locust.stats import RequestStats

from glb.locust import gates, report
from glb.locust.measure import MOST_CLONES, MOST_SAMPLES, OTHERS, Measure, Sample, kind_of

TOLD = st.tuples(
    st.sampled_from(["0/3", "2/3", b"1/3", 4, "red", "7"]), st.booleans(), st.integers(0, 3000)
)


def measured(*told: int | str | bytes | bytearray) -> Measure:
    measure = Measure()
    for each in told:
        measure.record(each, 1.0)
    return measure


def turns(measure: Measure) -> dict[int | str, int]:
    return {each.clone: each.turns for each in measure.figures().clones}


def test_turns_and_replies_are_counted_by_clone() -> None:
    """A reply on a connection that had one is no turn, and all spellings of a clone are one."""
    measure = measured("1/4", b"1/4", 1, "1", " 3 ")
    measure.record("1/4", 5.0, is_turn=False)
    figures = measure.figures()
    assert turns(measure) == {0: 0, 1: 4, 2: 0, 3: 1}
    assert [each.replies for each in figures.clones] == [0, 5, 0, 1]
    assert (figures.turns, figures.replies) == (5, 6)


def test_a_clone_without_a_turn_counts() -> None:
    """Of four, one has everything: that is a quarter, and not perfect."""
    figures = measured(*["2/4"] * 40).figures()
    assert figures.jain == 0.25
    assert (figures.spread, figures.deviation, figures.is_exact) == (40, 30, False)


@pytest.mark.parametrize(
    ("told", "is_exact", "spread"),
    [
        (["0/2", "1/2"], True, 0),
        (["0/2", "1/2", "0/2"], True, 1),
        (["0/2", "0/2"], False, 2),
        ([], False, 0),
    ],
)
def test_exact_is_what_turns_give(told: list[str], is_exact: bool, spread: int) -> None:
    """One may be ahead by one, in the middle of a round; no clone at all is no round."""
    figures = measured(*told).figures()
    assert (figures.is_exact, figures.spread) == (is_exact, spread)


def test_any_words_are_a_clone() -> None:
    """Numbers first, then words; what is no "n/m" is taken as it is."""
    assert [
        *turns(measured("web-2", 10, 9, "-1/4", "1/", "x" * 300, b"\xff", 2**70, bytearray(b"9")))
    ] == [*(9, 10, "-1/4", "1/", str(2**70), "web-2", "x" * 100, "\ufffd")]


def test_a_name_is_only_words_to_a_terminal_and_a_spreadsheet() -> None:
    """They come from whatever server was asked."""
    (name,) = turns(measured("a\nb\x1b[2J\ud800"))
    assert name == "a\ufffdb\ufffd[2J\ufffd"
    assert "\r\n'=cmd," in report.to_csv(measured("=cmd").figures())


def test_a_server_with_a_new_name_each_time_fills_no_memory() -> None:
    """So many, and the rest is one; the sum is complete."""
    measure = measured(*(f"request {n}" for n in range(MOST_CLONES + 50)), "0/999999")
    assert len(turns(measure)) == MOST_CLONES + 1
    assert turns(measure)[OTHERS] == 51
    assert len(measure._known) == MOST_CLONES


@given(st.lists(st.lists(st.one_of(TOLD, st.none())), min_size=1, max_size=3))
def test_workers_add_up_to_one_process(workers: list[list[Any]]) -> None:
    """However often they report, the master has what one process would have counted."""
    alone, master = Measure(), Measure()
    for events in workers:
        worker = Measure()
        for event in events:
            if event is None:
                # Through what locust sends it with: numbers may be keys there, tuples are lists.
                master.merge(worker.take())
                continue
            told, is_turn, milliseconds = event
            for measure in (alone, worker):
                measure.record(told, milliseconds, is_turn=is_turn, is_failure=milliseconds > 2000)
                measure.fail(ConnectionResetError())
        master.merge(worker.take())
        assert worker.take()["failures"] == {"reset": 0, "refused": 0, "timeout": 0}
    assert master.figures() == alone.figures()


def test_history_is_thinned_and_keeps_its_span() -> None:
    """However long a test runs, and the last sample is never far away."""
    measure = measured("0/1")
    for second in range(10_000):
        measure.sample(second)
        assert len(measure.history) < MOST_SAMPLES
    seconds = [each.seconds for each in measure.history]
    assert seconds == sorted(seconds)
    assert seconds[0] < 100
    assert seconds[-1] > 9_900
    assert measure.history[0] == Sample(seconds[0], {0: 1})


@pytest.mark.parametrize(
    ("exception", "kind"),
    [
        (ConnectionResetError(), "reset"),
        (BrokenPipeError(), "reset"),
        (ConnectionRefusedError(), "refused"),
        (TimeoutError(), "timeout"),
        (ValueError("wraps", ConnectionRefusedError()), "refused"),
        (SimpleNamespace, None),
        (ValueError(), None),
    ],
)
def test_failures_have_a_kind(exception: Any, kind: str | None) -> None:
    """That of what the socket raised, however deep a library has put it."""
    if not isinstance(exception, BaseException):
        exception = RuntimeError(exception)
    assert kind_of(exception) == kind


def test_a_second_try_that_fails_is_counted_once() -> None:
    """What was handled meanwhile was counted when it came."""
    second = ConnectionError("closed without a reply")
    second.__context__ = ConnectionResetError()
    assert kind_of(second) is None


def test_a_cause_that_is_its_own_ends() -> None:
    """Exceptions may refer to each other in a circle."""
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    first.__context__ = ConnectionResetError()
    assert kind_of(first) == "reset"


# -- gates -----------------------------------------------------------------------------------------


def options(*args: str) -> Any:
    parser = LocustArgumentParser()
    gates.add_options(parser)
    return parser.parse_args([*args])


def total(requests: int = 0, failures: int = 0, milliseconds: int = 10) -> Any:
    entry = RequestStats().total
    for number in range(requests):
        entry.log(milliseconds, 0)
        if number < failures:
            entry.log_error(None)
    return entry


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            "--balance-min-jain 0.99",
            "--balance-min-jain 0.99 is missed by 0.09: Jain's index of 2 ",
        ),
        ("--balance-max-spread 1", "--balance-max-spread 1 is missed by 3: turns differ by 4"),
        ("--max-fail-ratio 0.1", "--max-fail-ratio 0.1 is missed by 0.1: 2 of 10 requests failed"),
        ("--max-p99 8", "--max-p99 8 is missed by 2 ms: p99 is 10 ms"),
        ("--balance-min-jain 0.9 --max-p99 10 --max-fail-ratio 0.2 --balance-max-spread 4", None),
    ],
)
def test_a_gate_that_is_missed_says_by_how_much(args: str, line: str | None) -> None:
    """And one that is met, if only just, says nothing."""
    figures = measured(*["0/2"] * 8, *["1/2"] * 4).figures()
    found = gates.misses(options(*args.split()), figures, total(10, 2))
    assert [each[: len(line or "")] for each in found] == ([line] if line else [])


@pytest.mark.parametrize("flag", ["balance-min-jain", "balance-max-spread", "max-p99"])
def test_nothing_measured_misses_every_gate(flag: str) -> None:
    """A test in which nothing happened has shown nothing."""
    (line,) = gates.misses(options(f"--{flag}", "1"), Measure().figures(), total())
    assert line.startswith(f"--{flag} 1 is missed: ")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("--balance-min-jain 1.1", "must be a number, 0 to 1, got '1.1'"),
        ("--balance-min-jain nan", "must be a number, 0 to 1, got 'nan'"),
        ("--balance-max-spread -1", "must be a whole number, 0 or more, got '-1'"),
        ("--balance-max-spread 1.5", "must be a whole number, 0 or more, got '1.5'"),
        ("--max-fail-ratio 5", "must be a number, 0 to 1, got '5'"),
        ("--max-p99 fast", "must be a number, 0 or more, got 'fast'"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(
    args: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the value in it, before anything runs."""
    with pytest.raises(SystemExit):
        options(*args.split())
    assert words in capsys.readouterr().err


# -- reports ---------------------------------------------------------------------------------------


def test_reports_have_the_same() -> None:
    """CSV, JSON, table and page have the turns of every clone."""
    measure = measured("0/3", "0/3", "2/3")
    measure.sample(1.0)
    measure.fail(ConnectionResetError())
    figures = measure.figures()
    rows = [*csv.DictReader(io.StringIO(report.to_csv(figures)))]
    assert [(row["clone"], row["turns"]) for row in rows] == [("0", "2"), ("1", "0"), ("2", "1")]
    data = json.loads(json.dumps(report.to_dict(figures, measure.history)))
    assert [each["turns"] for each in data["clones"]] == [2, 0, 1]
    assert data["history"] == [{"seconds": 1.0, "turns": {"0": 2, "1": 0, "2": 1}}]
    assert (data["spread"], data["exact"], data["resets"]) == (2, False, 1)
    lines = report.table(figures)
    assert [line.split()[:2] for line in lines[1:5]] == [
        *(["clone", "turns"], ["0", "2"], ["1", "0"], ["2", "1"])
    ]
    assert "3 turns of 3 clones: not exact, Jain 0.6, spread 2" in lines[-1]
    section = report.html_section(figures, measure.history)
    assert "<svg" in section
    assert lines[-1] in section


def test_a_clones_words_are_only_words_on_a_page() -> None:
    """They come from whatever server was asked."""
    assert "<script" not in report.html_section(measured("<script>").figures(), [])


def test_a_run_without_clones_says_so() -> None:
    """There are requests without a known clone."""
    assert report.facts(Measure().figures()).startswith("no reply told which clone gave it; ")


@pytest.mark.parametrize("read", [gates._number(int, 0), gates._number(float, 0, 1)])
def test_what_is_no_number_is_no_gate(read: Callable[[str], float]) -> None:
    """The parser adds the option's name."""
    with pytest.raises(argparse.ArgumentTypeError, match="got 'x'"):
        read("x")
