"""The house: nothing in the load tests is written twice."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Final

import pytest

import glb

pytestmark = pytest.mark.thorough

ROOT: Final = Path(glb.__file__).parent.parent

#: So many lines, one after another, are a piece of code that could have a name.
LINES: Final = 6

#: What says nothing: brackets, and the words around names.
THIN: Final = re.compile(r"[\W_]*|(from|import|#).*|(else|try|finally):")


def lines_of(path: Path) -> list[tuple[int, str]]:
    """Return the lines of *path* that say something, with their numbers."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    stripped = ((number, line.strip()) for number, line in lines)
    return [(number, line) for number, line in stripped if not THIN.fullmatch(line)]


def repeated(paths: list[Path]) -> dict[str, list[str]]:
    """Return what stands in more than one place of *paths*, by its first line."""
    places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path in paths:
        lines = lines_of(path)
        for at in range(len(lines) - LINES + 1):
            piece = tuple(line for _, line in lines[at : at + LINES])
            places[piece].append(f"{path.name}:{lines[at][0]}")
    return {piece[0]: where for piece, where in places.items() if len(where) > 1}


def test_no_six_lines_of_the_load_tests_are_the_same() -> None:
    """What two experiments need is in `loadtests.frame`."""
    assert repeated(sorted((ROOT / "loadtests").rglob("*.py"))) == {}


def test_six_lines_that_are_the_same_are_found(tmp_path: Path) -> None:
    """Five aren't, and neither are imports; comments and blank lines don't count."""
    paths = [tmp_path / "one.py", tmp_path / "other.py"]
    six = [f"name{number} = {number}" for number in range(6)]
    imports = [f"import module{number}" for number in range(9)]
    paths[0].write_text("\n".join([*imports, *six[:5]]))
    paths[1].write_text("\n".join([*imports, *six]))
    assert repeated(paths) == {}
    paths[0].write_text("\n\n# a reason\n".join([*imports, *six]))
    assert repeated(paths) == {"name0 = 0": ["one.py:28", "other.py:10"]}
