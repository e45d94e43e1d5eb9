"""The settings page has each option of the command line, and each argument of the servers."""

from __future__ import annotations

import importlib.util
import inspect
import re
from types import ModuleType
from typing import Any

import click
import pytest

import glb.pywsgi
import glb.server
from glb.cli import cli

from .pages import ROOT

pytestmark = pytest.mark.thorough

PAGE = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
SERVERS: list[tuple[str, Any]] = [
    ("glb.server:StreamServer", glb.server.StreamServer),
    ("glb.pywsgi:WSGIServer", glb.pywsgi.WSGIServer),
]


def load_extension() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "glb_settings", ROOT / "docs/_ext/glb_settings.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


made = load_extension()


@pytest.mark.parametrize("name", [*cli.commands])
def test_each_option_is_on_the_page(name: str) -> None:
    """With the names that it has, its variable, and what it means."""
    assert f".. glb-options:: {name}\n" in PAGE
    text = "\n".join(made.options_as_rst(name))
    shown = {each.split()[0]: each for each in re.findall(r"^\.\. option:: (.*)$", text, re.M)}
    command = cli.commands[name]
    for each in command.params:
        if not isinstance(each, click.Option):
            continue
        assert "/".join([*each.opts, *each.secondary_opts]) in shown
        assert each.help, f"{each.opts[0]} says nothing of itself"
        if each.envvar:
            assert f"``{each.envvar}``" in text
    assert len(shown) == len(command.params)


@pytest.mark.parametrize(("name", "server"), SERVERS)
def test_each_argument_is_on_the_page(name: str, server: Any) -> None:
    """With a meaning, which a docstring has."""
    assert f".. glb-arguments:: {name}\n" in PAGE
    rows = [*made.arguments_of(name)]
    arguments = inspect.signature(server).parameters
    assert [each.name.lstrip("*") for each in rows] == [*arguments]
    assert all(each.meaning for each in rows)
    assert "".join(made.arguments_as_rst(name)).count("``max_connections``") == 1


def test_an_argument_without_a_meaning_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """So it can't be left out of the page in silence."""
    monkeypatch.setattr(made, "items_of", lambda _docstring: {})
    with pytest.raises(LookupError, match="'listener' of glb"):
        [*made.arguments_of("glb.server:StreamServer")]
