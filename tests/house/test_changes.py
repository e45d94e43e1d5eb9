"""The house: what `changes/` has for the changelog reads as one entry of it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

import glb

CHANGES: Final = Path(glb.__file__).parent.parent / "changes"

#: The changelog's 100 columns less the two of its bullet.
COLUMNS_MAX: Final = 98


def faults(text: str) -> list[str]:
    """Return what keeps *text* from being one entry of the changelog."""
    lines = text.splitlines()
    found = [f"line {n} is too long" for n, line in enumerate(lines, 1) if len(line) > COLUMNS_MAX]
    if not text.strip():
        return ["is empty"]
    if text.startswith(("-", "*", "#", " ")):
        found.append("begins with a bullet, a heading or a space")
    if not text.rstrip().endswith((".", "`.", ".)")):
        found.append("doesn't end with a full stop")
    if "" in (line.strip() for line in lines):
        found.append("has an empty line")
    return found


def test_each_change_is_one_entry_of_the_changelog() -> None:
    """Whole sentences of at most 98 columns; `towncrier` looks at the names."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in CHANGES.glob("+*")}
    assert {name: faults(text) for name, text in texts.items() if faults(text)} == {}


@pytest.mark.parametrize(
    "text",
    ["", "\n", "- A bullet.\n", "# A heading.\n", "no stop\n", "Two.\n\nOf them.\n", "x" * 99],
)
def test_what_is_no_entry_is_found(text: str) -> None:
    """Empty, or of another form than its neighbours will have."""
    assert faults(text)
