"""The README and the site's pages, and the blocks of code in them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["PAGES", "ROOT", "Block", "Page"]

ROOT: Final = Path(__file__).parents[2]

_FENCE: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
_NOT_RUN: Final = re.compile(r"<!-- not run: (.+) -->$")
_FILE: Final = re.compile(r"`(\w+\.(?:py|toml|conf))`")


class Block(NamedTuple):
    """A block of code.

    Attributes:
        line: Where it stands in its page.
        language: As its fence has it; "" is output or a drawing.
        file: The name that the line before gives it, as in "Write `app.py`:".
        reason: Why it is not run, if it is marked so: ``<!-- not run: it needs root -->``.
    """

    line: int
    language: str
    text: str
    file: str | None
    reason: str | None


class Page(NamedTuple):
    """A page, and its blocks."""

    path: Path
    text: str
    blocks: list[Block]

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def files(self) -> dict[str, str]:
        """The blocks that are files, by name; the last one of a name."""
        return {each.file: each.text for each in self.blocks if each.file is not None}

    @classmethod
    def read(cls, path: Path) -> Page:
        text = path.read_text(encoding="utf-8")
        return cls(path, text, [*_blocks(text)])


def _blocks(text: str) -> Iterator[Block]:
    for found in _FENCE.finditer(text):
        before = text[: found.start()].rstrip().rpartition("\n")[2]
        names = _FILE.findall(before) if before.endswith((":", ":**")) else []
        marked = _NOT_RUN.match(before.strip())
        yield Block(
            line=text.count("\n", 0, found.start()) + 1,
            language=found["language"],
            text=textwrap.dedent(found["text"]),
            file=names[-1] if names else None,
            reason=marked[1] if marked else None,
        )


PAGES: Final = [
    Page.read(path) for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
]
