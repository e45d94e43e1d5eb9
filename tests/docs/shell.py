"""The commands of a page, and the check of each: options, files and names are real."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from glb.cli import cli
from loadtests.frame.experiment import Experiment, chosen

from .pages import ROOT, Page

__all__ = ["check", "glb_commands", "other_commands", "shell_commands"]

#: Programs of others: what they make of their arguments is theirs to say.
FOREIGN: Final = {
    *(
        ".",
        "apt-get",
        "cd",
        "curl",
        "django-admin",
        "docker",
        "gunicorn",
        "haproxy",
        "kill",
        "kubectl",
        "mkdir",
    ),
    *("nginx", "systemctl", "systemd-socket-activate"),
}

_OPERATORS: Final = {"&&", "||", ";", "|"}


def _lines(text: str) -> Iterator[list[str]]:
    """Yield the words of each line; quoted text and a backslash carry on to the next."""
    line = ""
    for each in text.splitlines():
        line += each.removesuffix("\\") + ("" if each.endswith("\\") else "\n")
        if each.endswith("\\"):
            continue
        try:
            words = shlex.split(line.replace("$(", "$( "), comments=True)
        except ValueError:  # no closing quotation yet
            continue
        line = ""
        if words:
            yield words
    assert not line, f"not a whole command: {line!r}"


def shell_commands(text: str) -> Iterator[list[str]]:
    """Yield the commands of a shell block, each as its words."""
    for words in _lines(text):
        command: list[str] = []
        for each in [*words, "&&"]:
            if each not in _OPERATORS:
                command.append(each)
                continue
            while command and re.match(r"[A-Z_]+=", command[0]):  # variables
                del command[0]
            if command:
                yield command
            command = []


def glb_commands(page: Page) -> Iterator[list[str]]:
    """Yield each command ``glb ...`` of *page*, wherever it stands: in blocks, and in sentences."""
    for block in page.blocks:
        if block.language == "sh":
            yield from (each for each in shell_commands(block.text) if _is_glb(each))
        elif block.language not in {"python", "text", ""}:
            # ExecStart of systemd; a list of Docker's or Kubernetes'
            for line in re.findall(r"^ExecStart=(.*)$", block.text, re.MULTILINE):
                yield shlex.split(line.replace("%i", "8000"))  # the instance
            for listed in re.findall(r"\[\"glb\".*\]", block.text):
                yield json.loads(listed)
    for quoted in re.findall(r"`(glb (?:serve|run|demo|top) [^`]+)`", _sentences(page)):
        if not re.search(r"\.\.\.|\[-|[A-Z]{3}", quoted):  # not a pattern of commands
            yield shlex.split(quoted)


def other_commands(page: Page) -> Iterator[list[str]]:
    """Yield each load test, and each environment of tox, that the sentences of *page* name."""
    for quoted in re.findall(r"`((?:python -m loadtests\b|tox run -e )[^`]+)`", _sentences(page)):
        yield shlex.split(quoted)


def _sentences(page: Page) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", page.text, flags=re.MULTILINE | re.DOTALL)


def _is_glb(words: list[str]) -> bool:
    return words[0].rpartition("/")[2] == "glb" and len(words) > 1


def check(words: list[str], page: Page) -> None:
    """Check a command of *page*."""
    name = words[0].rpartition("/")[2]
    known = _KNOWN.get(name)
    if known is None:
        assert name in FOREIGN, f"{name} is no program that this test knows: add it to FOREIGN"
        return
    known(words[1:], page)


def _check_glb(args: list[str], _page: Page) -> None:
    if not args or args[0].startswith("-"):
        context = cli.make_context("glb", args, resilient_parsing=False)
        assert context is not None
        return
    command = cli.commands[args[0]]
    for number, each in enumerate(args):
        if each in {"--certfile", "--keyfile"}:
            Path(args[number + 1]).touch()
    try:
        command.make_context(f"glb {args[0]}", args[1:])
    except click.exceptions.Exit:  # after --help
        pass
    except click.ClickException as error:
        raise AssertionError(f"glb {' '.join(args)}: {error.format_message()}") from error


def _check_python(args: list[str], page: Page) -> None:
    if args[0] == "-m":
        assert importlib.util.find_spec(args[1]) is not None, f"no module {args[1]}"
        if args[1].startswith("loadtests."):
            _check_load_test(args[1], args[2:])
    elif args[0] != "-c":
        _check_file(args[0], page)


def _check_load_test(name: str, args: list[str]) -> None:
    found = importlib.util.find_spec(f"{name}.__main__") if _is_package(name) else None
    module: Any = importlib.import_module(f"{name}.__main__" if found else name)
    try:
        context = module.main.make_context(name, args)
        for each in vars(module).values():
            if isinstance(each, type) and issubclass(each, Experiment) and each is not Experiment:
                chosen(context.params.get("only"), each.every)
    except click.ClickException as error:
        raise AssertionError(f"{name} {' '.join(args)}: {error.format_message()}") from error


def _is_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def _check_pip(args: list[str], _page: Page) -> None:
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n", _toml(), re.DOTALL)
    assert extras is not None
    names = {*re.findall(r"^(\w+) = ", extras[1], re.MULTILINE)}
    for each in args:
        assert not re.match(r"glb\b", each), f"{each}: PyPI's glb is another program"
        if wanted := re.fullmatch(r"(?:glb|\.)\[(.*)\]", each):
            assert {*wanted[1].split(",")} <= names, each


def _toml() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def _check_tox(args: list[str], _page: Page) -> None:
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    if "-e" in args:
        name = args[args.index("-e") + 1]
        names = name.split(",")
        for each in names:
            assert f"[testenv:{each}]" in tox or each.startswith("py3"), f"no environment {each}"


def _check_locust(args: list[str], page: Page) -> None:
    _check_file(args[args.index("-f") + 1], page)
    gates = (ROOT / "glb/locust/gates.py").read_text(encoding="utf-8")
    for each in args:
        if each.startswith("--balance"):
            assert f'"{each}"' in gates, f"no option {each}"


def _check_file(name: str, page: Page) -> None:
    found = name in page.files or (ROOT / name).exists() or (ROOT / "examples" / name).exists()
    assert found, f"no file {name}"


_KNOWN: Final[dict[str, Callable[[list[str], Page], Any]]] = {
    "glb": _check_glb,
    "locust": _check_locust,
    "pip": _check_pip,
    "python": _check_python,
    "python3": _check_python,
    "tox": _check_tox,
}
