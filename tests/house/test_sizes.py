"""The house: a file fits in one sitting, and a server's private parts stay its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import glb

pytestmark = pytest.mark.thorough

MOST_LINES: Final = 500
MOST_LINES_OF_LOAD_TESTS: Final = 8000

HOME: Final = Path(glb.__file__).parent
ROOT: Final = HOME.parent
SERVER: Final = HOME / "server.py"
EVERYWHERE: Final = sorted(
    path for name in ("glb", "tests", "loadtests") for path in (ROOT / name).rglob("*.py")
)


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def privates_of_servers(path: Path) -> Iterator[str]:
    """Yield what *path* takes from a server, by names that are the server's own."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        owner = ast.unparse(node.value).rpartition(".")[2].lower()
        if owner.endswith("server") and not node.attr.startswith("__"):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"


def test_no_file_is_too_long() -> None:
    """At most 500 lines, but for those of the locust plugin."""
    sizes = {path.relative_to(HOME).as_posix(): lines_of(path) for path in HOME.rglob("*.py")}
    found = {name for name, lines in sizes.items() if lines > MOST_LINES}
    assert not {name for name in found if not name.startswith("locust/")}


def test_load_tests_stay_small() -> None:
    """A new experiment is a few declarations, on what `loadtests.frame` has."""
    assert sum(map(lines_of, (ROOT / "loadtests").rglob("*.py"))) <= MOST_LINES_OF_LOAD_TESTS


def test_the_server_is_an_adapter() -> None:
    """Gevent's constructor and hooks, and the documentation: 480 lines, 45 methods at most."""
    assert lines_of(SERVER) <= 480
    (server,) = (
        node
        for node in ast.parse(SERVER.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    assert sum(isinstance(node, ast.FunctionDef) for node in server.body) <= 45


def test_private_parts_of_a_server_are_its_own() -> None:
    """Neither the engine nor a test takes what begins with an underscore from a server."""
    paths = (path for path in EVERYWHERE if path != SERVER)
    assert [line for path in paths for line in privates_of_servers(path)] == []
