"""The command of an experiment: its options, what it says meanwhile, and how it ends."""

from __future__ import annotations

import pathlib
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn

import click

from .sheet import Answer, Sheet, surroundings

#: Options that don't belong to what is run, but to what is shown of it.
SHOWN: Final = frozenset({"output", "file"})

Option = Callable[[Any], Any]

#: Is called with each step, "part: of what", before it.
Tell = Callable[[str], None]

QUICK: Final[Option] = click.option(
    "--quick", is_flag=True, help="Small numbers, to try it: no figures to quote."
)


def seed_option(of: str = "Of all that is chosen.") -> Option:
    """Return ``--seed``, which is drawn if it isn't given."""

    def draw(_context: object, _option: object, seed: int | None) -> int:
        return random.SystemRandom().randrange(10_000) if seed is None else seed

    return click.option("--seed", type=int, callback=draw, help=f"{of} Printed if not given.")


def json_option(words: str) -> Option:
    """Return ``--json FILE``, as the argument *file*."""
    path: Any = click.Path(dir_okay=False, path_type=pathlib.Path)
    return click.option("--json", "file", type=path, help=words)


def wants_linux(needs: str) -> None:
    """Raise a `click.ClickException` elsewhere: the experiment *needs* what is Linux's."""
    if not sys.platform.startswith("linux"):
        raise click.ClickException(f"needs Linux ({needs}), this is {sys.platform}")


def allow_descriptors() -> int:
    """Allow this process as many as may be; return how many these are."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def command_line(context: click.Context, name: str) -> str:
    """Return what a user types to run *name* again: its options, but for what is shown."""
    words = [f"python -m loadtests.{name}"]
    for parameter in context.command.params:
        value = context.params[parameter.name or ""]
        if parameter.name in SHOWN or value in (None, False, ()):
            continue
        if isinstance(parameter, click.Argument):
            words += value
        elif value is True:
            words.append(parameter.opts[0])
        else:
            text = f"{value:g}" if isinstance(value, float) else value
            words.append(f"{parameter.opts[0]} {text}")
    return " ".join(words)


def conduct(
    command: str,
    scenarios: Mapping[str, Callable[[Tell], Answer]],
    heading: str = "Over loopback",
    *,
    packages: Iterable[str] = (),
    file: pathlib.Path | None = None,
    save: Callable[[Sheet], None] | None = None,
) -> NoReturn:
    """Ask all *scenarios*, print what was found, and exit: with 0 if every promise was kept.

    One that breaks is a line in the end, and the others go on: a run takes minutes.

    Args:
        command: What a user types to run it again.
        heading: How it was measured. The versions are added, those of *packages*, too.
        file: Gets all of it as JSON.
        save: Does more with it.
    """
    answers: dict[str, Answer] = {}
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}
    print(command, file=sys.stderr, flush=True)
    tell = _progress()
    for name, ask in scenarios.items():
        began = time.monotonic()
        try:
            answers[name] = ask(tell)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
        seconds[name] = time.monotonic() - began
    how = f"{heading}. {surroundings(*packages)}."
    sheet = Sheet(command, how, answers, failed, seconds)
    print("\n", file=sys.stderr)
    print(sheet.text())
    if file is not None:
        file.write_text(sheet.json())
    if save is not None:
        save(sheet)
    sys.exit(0 if sheet.is_kept else 1)


def _progress() -> Tell:
    """Return what shows each step: on a terminal in one line, elsewhere the parts, a line each.

    It writes between the turns, never during one: it would have the client's CPU.
    """
    said = ""

    def tell(step: str) -> None:
        nonlocal said
        part = step.partition(":")[0]
        if sys.stderr.isatty():
            print(f"\r\x1b[2K{step}", end="", file=sys.stderr, flush=True)
        elif part != said:
            print(part, file=sys.stderr, flush=True)
        said = part

    return tell
