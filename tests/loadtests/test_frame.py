"""What the load tests have in common: `loadtests.frame`, without a load."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
import pytest
from click.testing import CliRunner

from loadtests.frame.command import chosen, command_line, seed_option
from loadtests.frame.figures import Figure, Results
from loadtests.frame.old_sheet import Sheet
from loadtests.frame.process import Contender, Cpus, Process, ProcessError
from loadtests.frame.rounds import Rounds, Tools

ECHO = "import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)"

FIGURE = Figure("it", "a thing", "us", 1)


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


# -- processes ----------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[Process]:
    with Process(python(ECHO)) as process:
        yield process


@pytest.mark.process
def test_a_process_answers_line_by_line_and_ends_with_its_input(echo: Process) -> None:
    """Lines that come together are answers, one after the other."""
    echo.tell("one\ntwo")
    assert [echo.line(10), echo.line(10)] == ["ONE", "TWO"]
    assert echo.is_running()
    assert echo.status(10) == 0
    assert not echo.is_running()


@pytest.mark.process
def test_a_process_that_says_nothing_is_an_error_with_its_last_words() -> None:
    """As is one that has ended; what it had said on standard error is in the text."""
    with Process(python("import sys, time; sys.stderr.write('woe\\n'); time.sleep(60)")) as process:
        with pytest.raises(ProcessError, match=rf"process {process.pid} says nothing for 0.01 s"):
            process.line(0.01)
        process.end_seconds = 0.0  # type: ignore[misc]  # it is for this one alone
    with Process(python("raise SystemExit('woe')")) as process:
        with pytest.raises(ProcessError, match="has ended: woe"):
            process.line(10)
        process.tell("is ignored")
        assert process.status(10) == 1


@pytest.mark.process
def test_a_process_that_does_not_end_is_killed() -> None:
    """Nothing of it is left, whatever it does with the end of its input."""
    with Process(python("import time; print('here', flush=True); time.sleep(600)")) as process:
        process.line(10)
        process.end_seconds = 0.0  # type: ignore[misc]  # it is for this one alone
        process.end()
    assert not process.is_running()


# -- runs ---------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Any) -> Rounds[Contender]:
    cpus = Cpus(frozenset(), frozenset())
    contenders = [Contender(name, name, None) for name in ("one", "two", "three")]
    return Rounds(contenders, 12, Tools((tmp_path, tmp_path), cpus, lambda _: None))


def test_rounds_have_each_contender_once_in_an_order_of_the_seed(run: Rounds[Contender]) -> None:
    """So that a noisy minute is noisy for all, and a run can be done again."""
    order = [(number, one.name) for number, one in run.rounds(run.contenders, 50)]
    for number in range(50):
        part = order[3 * number : 3 * number + 3]
        assert {each for each, _ in part} == {number + 1}
        assert sorted(name for _, name in part) == ["one", "three", "two"]
    assert len({tuple(name for _, name in order[at : at + 3]) for at in range(0, 150, 3)}) == 6


def test_a_contender_that_breaks_is_left_out_and_the_others_go_on(run: Rounds[Contender]) -> None:
    """It keeps the reason, and none of its figures."""

    def step(one: Contender) -> None:
        run.results.add(one.name, FIGURE, 1)
        if one.name == "two":
            raise ValueError("no")
        taken.append(one.name)

    taken: list[str] = []
    for _ in range(2):
        for contender in run.contenders:
            run.attempt(contender, step)
    assert taken == ["one", "three", "one", "three"]
    assert run.results.failed == {"two": "ValueError: no"}
    assert run.results.of("two", FIGURE) == []


def test_an_order_is_exact_or_it_is_not() -> None:
    """From the first place on; the fairness counts places that got nothing."""
    results = Results()
    for name, answers in (("exact", [0, 1, 0, 1]), ("late", [1, 0, 1, 0]), ("one", [0, 0, 0, 0])):
        results.note_order(name, answers, 2)
    sheet = Sheet(results, (), "CPUs", "a command")
    names = ("exact", "late", "one", "none")
    assert [sheet.is_exact(name) for name in names] == ["yes", "no", "no", "-"]
    fairness = [results.samples[name] for name in names[:3]]
    assert [[*each.values()][1] for each in fairness] == [[1.0], [1.0], [0.5]]


def test_a_table_has_a_cell_for_each_column_and_a_gap_for_what_failed() -> None:
    """Medians, ratios and the worst, with as many digits as the figure has."""
    results = Results()
    for name, samples in (("base", (2.0, 4.0)), ("other", (1.0, 3.0))):
        for sample in samples:
            results.add(name, FIGURE, sample)
    results.fail("broken", "why")
    sheet = Sheet(results, (), "CPUs", "a command")
    contenders = [Contender(name, name.title(), None) for name in ("base", "other", "broken")]
    columns = (
        ("it", sheet.median(FIGURE, " us")),
        ("x base", sheet.beside("base", FIGURE)),
        ("worst", sheet.worst(FIGURE)),
        ("", sheet.errors),
    )
    table = sheet.table("A title", "who", contenders, *columns)
    assert table.head == ("who", "it", "x base", "worst", "")
    assert table.rows == [
        ("Base", "3.0 us", "1", "4.0", ""),
        ("Other", "2.0 us", "0.625", "3.0", ""),
        ("Broken", "failed", "-", "-", "-"),
    ]


# -- commands -----------------------------------------------------------------------------------


def test_what_is_chosen_is_known() -> None:
    """All, if nothing is said."""
    assert chosen(None, "thing", ["a", "b"]) == ["a", "b"]
    assert chosen(" b ,a", "thing", ["a", "b"]) == ["b", "a"]
    with pytest.raises(click.BadParameter, match="no thing 'c'; there are a, b"):
        chosen("a,c", "thing", ["a", "b"])


@dataclass
class Said:
    """What a command was called with."""

    line: str = ""
    seed: int = -1


def command(said: Said) -> click.Command:
    @click.command()
    @click.argument("names", nargs=-1)
    @click.option("--rate", type=float, default=150.0)
    @click.option("--output")
    @click.option("--quick", is_flag=True)
    @seed_option()
    @click.pass_context
    def main(context: click.Context, /, seed: int, **_: Any) -> None:
        said.line, said.seed = command_line(context, "it"), seed

    return main


def test_a_command_says_how_to_run_it_again() -> None:
    """With the seed that was drawn, and without what is only shown otherwise."""
    said = Said()
    run = CliRunner().invoke
    assert run(command(said), ["a", "b", "--quick", "--seed", "7", "--output", "x"]).exit_code == 0
    assert said.line == "python -m loadtests.it a b --rate 150 --quick --seed 7"
    assert run(command(said), []).exit_code == 0
    assert 0 <= said.seed < 10_000
    assert said.line == f"python -m loadtests.it --rate 150 --seed {said.seed}"
