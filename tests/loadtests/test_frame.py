"""What the load tests have in common: `loadtests.frame`, without a load."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
from click.testing import CliRunner

from loadtests import client_cost, monkey
from loadtests.bench.__main__ import Bench
from loadtests.frame.command import command_line, seed_option
from loadtests.frame.experiment import Experiment, Limit, Question, Shown, Size
from loadtests.frame.figures import ERRORS, FAIRNESS, OUT_OF_ORDER, Figure, Results
from loadtests.frame.process import Contender, Process, ProcessError
from loadtests.frame.sheet import Answer, Promise, Sheet, Table
from loadtests.hubs.__main__ import Hubs

ECHO = "import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)"

FIGURE = Figure("it", "a thing", 1)
WORST = Figure("worst", "the worst", 0, max)
MORE = Figure("more", "more", is_more_better=True)


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


class Trial(Experiment):
    """Three contenders, no process."""

    name = "trial"
    every = tuple(Contender(name, name.title(), None) for name in ("one", "two", "three"))
    shown: ClassVar[Sequence[Shown]] = (
        Shown("A title", every, (WORST, ERRORS), (FIGURE,), ("one",)),
    )
    sizes: ClassVar[Sequence[Size]] = (Size("rounds", 7, 2), Size("concurrency", 64, 64))
    promised = (Limit("one", FIGURE, 2), Limit("two", MORE, 2, "one"), Limit("three", WORST, 1))

    def questions(self) -> Iterator[Question]:
        yield Question("trial", self.every[:2], self.turn, rounds=3)

    def turn(self, one: Contender, _server: object) -> None:
        self.results.add(one.name, {FIGURE: 1})
        if one.name == "two":
            raise ValueError("no")
        self.taken.append(one.name)

    def start(self, one: Contender, *_: Any) -> Any:
        return contextlib.nullcontext(one)

    def warm_up(self, server: Any, count: int) -> None:
        self.begun.append((server, count))

    taken: list[str]
    begun: list[tuple[Contender, int]]


def trial(*names: str, seed: int = 12) -> Trial:
    contenders = [one for one in Trial.every if one.name in (names or ("one", "two", "three"))]
    run = Trial(contenders, seed=seed)
    run.taken, run.begun = [], []
    return run


def test_rounds_have_each_contender_once_in_an_order_of_the_seed() -> None:
    """So that a noisy minute is noisy for all, and a run can be done again."""
    orders = []
    for seed in (12, 12, 13):
        run = trial(seed=seed)
        steps: list[str] = []
        run.ask(Question("it", run.every, lambda *_: None, 50), steps.append)
        assert sorted(steps[:3]) == ["it: start One", "it: start Three", "it: start Two"]
        rounds = [steps[at : at + 3] for at in range(3, 153, 3)]
        for number, each in enumerate(rounds, 1):
            names = [step.removeprefix(f"it: round {number}, ") for step in each]
            assert sorted(names) == ["One", "Three", "Two"]
        assert len({tuple(step[-3:] for step in each) for each in rounds}) == 6
        orders.append(steps)
    assert orders[0] == orders[1] != orders[2]


def test_a_contender_that_breaks_is_left_out_and_the_others_go_on() -> None:
    """It keeps the reason, and none of its figures; what isn't chosen has no turn."""
    run = trial()
    for question in run.questions():
        run.ask(question, lambda _: None)
    assert run.taken == ["one"] * 3
    assert run.results.failed == {"two": "ValueError: no"}
    assert run.results.of("two", FIGURE) == []
    only = trial("two")
    for question in only.questions():
        only.ask(question, lambda _: None)
    assert only.taken == []


def test_a_server_is_up_during_all_rounds_of_a_question() -> None:
    """Each is warmed up when it has started, and ended when the question has been asked."""
    run = trial("one", "three")
    for often in (1, 2):
        run.ask(Question("it", run.every, run.turn, 2, warm_up=5), lambda _: None)
        assert sorted(one.name for one, _ in run.begun) == sorted(["one", "three"] * often)
        assert {count for _, count in run.begun} == {5}
        assert len(run.taken) == 4 * often


def test_an_order_is_exact_or_it_is_not() -> None:
    """From the first place on; the fairness counts places that got nothing."""
    results = Results()
    answers = {"exact": [0, 1, 0, 1], "late": [1, 0, 1, 0], "one": [0, 0, 0, 0], "alone": [0, 0]}
    for name, each in answers.items():
        results.note_order(name, each, 1 if name == "alone" else 2)
    assert {name: results.value(name, OUT_OF_ORDER) for name in (*answers, "none")} == {
        "exact": 0, "late": 25, "one": 75, "alone": 0, "none": None
    }  # fmt: skip
    fairness = [results.value(name, FAIRNESS) for name in ("exact", "late", "one")]
    assert fairness == [1.0, 1.0, 0.5]


def test_a_table_has_a_cell_for_each_column_and_a_gap_for_what_failed() -> None:
    """Medians, ratios and the worst, with as many digits as the figure has."""
    run = trial()
    for name, samples in (("one", (2.0, 4.0)), ("two", (1.0, 3.0))):
        for sample in samples:
            run.results.add(name, {FIGURE: sample, WORST: sample, ERRORS: 1})
    run.results.fail("three", "TypeError: why")
    [table] = run.tables()
    assert table.head == ["", "a thing", "x one", "the worst", "errors"]
    assert table.rows == [
        ["One", "3.0", "1", "4", "2"],
        ["Two", "2.0", "0.625", "3", "2"],
        ["Three", "TypeError", "-", "-", "-"],
    ]


def test_a_promise_is_of_a_figure_or_of_its_ratio_and_of_what_was_asked() -> None:
    """At most so much, or at least, where more is better."""
    run = trial("one", "two")
    for one, two in ((2.0, 4.0), (3.0, 6.3), (2.0, 4.2)):
        run.results.add("one", {FIGURE: one, MORE: one})
        run.results.add("two", {MORE: two})
    assert run.promises() == [
        Promise("One: a thing", 2.0, 2),
        Promise("Two: more, beside One", 2.1, 2, is_floor=True),
    ]
    assert [one.is_kept for one in run.promises()] == [True, True]


@pytest.mark.parametrize("kind", [Bench, Hubs, monkey.Monkey, client_cost.ClientCost])
def test_each_promise_and_each_table_is_of_contenders_there_are(kind: type[Any]) -> None:
    """A name with a slip in it would never be measured."""
    names = {one.name for one in kind.every}
    assert len(names) == len(kind.every)
    for limit in kind.promised:
        assert {limit.contender, limit.beside or limit.contender} <= names
    for shown in kind.shown:
        assert names.issuperset([*(one.name for one in shown.contenders), *shown.beside])


# -- reports ------------------------------------------------------------------------------------


def test_a_promise_says_how_much_it_is_and_whether_it_was_kept() -> None:
    """What was not measured isn't kept."""
    assert Promise("lost", 0).row() == ("lost", "<= 0", "0", "kept")
    assert Promise("p99", 1.034, 1.03).row() == ("p99", "<= 1.03", "1.034", "NOT KEPT")
    assert Promise("rate", 1234.5, 1000, is_floor=True).row()[1:] == (">= 1,000", "1,234", "kept")
    assert Promise("rate", None, 1, is_floor=True).row()[2:] == ("-", "not measured")
    assert not Promise("rate", None).is_kept


def test_a_sheet_is_kept_if_every_answer_is_and_nothing_failed() -> None:
    """An answer without a promise is none."""
    good = Answer("Is it?", [Promise("lost", 0)], [("seen", "12")])
    bad = Answer("Is it?", [Promise("lost", 0), Promise("late", 1)])
    assert Sheet("it", "here", {"a": good, "b": good}).is_kept
    assert not Sheet("it", "here", {"a": good, "b": bad}).is_kept
    assert not Sheet("it", "here", {"a": good, "b": Answer("Is it?", [])}).is_kept
    broken = Sheet("it", "here", {"a": good}, {"b": "ValueError: no"}, {"a": 1.2})
    assert not broken.is_kept
    assert broken.tables()[-1].rows == [("a", "kept", "1"), ("b", "NOT MEASURED", "")]
    assert "b failed: ValueError: no" in broken.text()
    found = json.loads(broken.json())
    assert found["failed"] == {"b": "ValueError: no"}
    assert not found["kept"]
    assert [one["kept"] for one in found["answers"]["a"]["promises"]] == [True]


def test_a_table_is_text_and_markdown_at_once() -> None:
    """The first column is names; columns stand below each other."""
    table = Table("What?", ("", "us"), [("glb", "1.5"), ("gevent", "10.0")])
    assert table.text() == (
        "**What?**\n\n|        |   us |\n| ------ | ---: |\n| glb    |  1.5 |\n| gevent | 10.0 |\n"
    )


# -- commands -----------------------------------------------------------------------------------


class Sized(Trial):
    """It has a size of its own."""

    name = "sized"
    sizes = (*Trial.sizes, Size("wait_seconds", 1.5, 0.5))
    shown = ()  # and so there is no picture

    def run(self, _tell: object) -> Answer:
        return self.answer()


@pytest.mark.parametrize(
    ("options", "line", "sizes"),
    [
        ("", "--rounds 7 --concurrency 64 --wait-seconds 1.5", (7, 1.5)),
        ("--quick", "--rounds 2 --concurrency 64 --wait-seconds 0.5 --quick", (2, 0.5)),
        ("--quick --rounds 3", "--rounds 3 --concurrency 64 --wait-seconds 0.5 --quick", (3, 0.5)),
        ("--wait-seconds 0.2", "--rounds 7 --concurrency 64 --wait-seconds 0.2", (7, 0.2)),
    ],
)
def test_an_experiment_has_an_option_for_each_size_of_its_plan(
    options: str, line: str, sizes: tuple[Any, ...], tmp_path: Path
) -> None:
    """`--quick` makes those small that are not given; the exit status is that of the promises."""
    runner = CliRunner()
    words = [*options.split(), "--seed", "3", "--only", "two", "--output", str(tmp_path)]
    done = runner.invoke(Sized.command("words"), words)
    assert done.exit_code == 1, done.output  # what is promised was not measured
    assert f"python -m loadtests.sized {line} --only two --seed 3\n" in done.output
    written = json.loads((tmp_path / "results.json").read_text())
    plan = written["answers"]["sized"]["details"]["plan"]
    assert (plan["rounds"], plan["wait_seconds"]) == sizes
    # What can't be is refused, with its value.
    assert "-1" in runner.invoke(Sized.command("words"), ["--rounds", "-1"]).output


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
