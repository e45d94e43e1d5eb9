"""ARCHITECTURE.md is true: what it names is there, and it names what it should."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import glb

pytestmark = pytest.mark.thorough

ROOT: Final = Path(__file__).parents[2]
HOME: Final = Path(glb.__file__).parent
TEXT: Final = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
MOST_LINES: Final = 250

#: Text in backquotes, but for blocks of it.
QUOTED: Final = sorted(
    {*re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))}
)

#: Not names of glb's.
NOT_OURS: Final = {"Connection: close", "__init__", "hubs=4"}

TREES: Final = {
    path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(HOME.rglob("*.py"))
}


def names_in(tree: ast.AST) -> Iterator[str]:
    """Yield what a module or a class defines, and what is set on its objects."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id
                elif isinstance(target, ast.Attribute):
                    yield target.attr
        elif isinstance(node, ast.arg):
            yield node.arg


NAMES: Final = {name for tree in TREES.values() for name in names_in(tree)}
CLASSES: Final = [
    node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
]


def is_there(quoted: str) -> bool:
    name = quoted.removesuffix("()")
    if "/" in name:
        return (ROOT / name).exists()
    if name.startswith("glb."):
        return hasattr(glb, name.removeprefix("glb."))
    owner, _, member = name.partition(".")
    if member:
        return any(member in {*names_in(each)} for each in CLASSES if each.name == owner)
    return name in NAMES


@pytest.mark.parametrize("quoted", [each for each in QUOTED if each not in NOT_OURS])
def test_each_name_in_it_exists(quoted: str) -> None:
    """Files are files of the repository, and names are defined somewhere in glb."""
    assert is_there(quoted)


@pytest.mark.parametrize("package", ["accept", "serve"])
def test_each_public_class_is_in_its_glossary(package: str) -> None:
    """A row each, of the two packages that have most of them."""
    glossary = {*re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)}
    public = {
        node.name
        for path, tree in TREES.items()
        if path.is_relative_to(HOME / package)
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    }
    assert public - glossary == set()


def test_its_glossary_has_nothing_else() -> None:
    """What is gone from the packages is gone from here."""
    glossary = {*re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)}
    assert glossary <= {each.name for each in CLASSES}


def test_it_is_short_enough_to_be_read() -> None:
    """At most 250 lines."""
    assert len(TEXT.splitlines()) <= MOST_LINES
