"""The files in docs/many-machines.md, and what a run changes in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .network import ROOT

__all__ = ["file_of_page", "write"]

PAGE: Final = ROOT / "docs" / "many-machines.md"


def file_of_page(name: str) -> str:
    """Return the block that follows a line which ends with its name and a colon."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.search(rf"`{name}`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{PAGE.name} has no block that is {name}")
    return found[1]


def write(name: str, folder: Path, changes: Mapping[str, str]) -> Path:
    """Write that file into *folder*, with *changes*: what is there, and what a run has instead."""
    text = file_of_page(name)
    for old, new in changes.items():
        if old not in text:
            raise ValueError(f"{PAGE.name} has no {old!r} in {name}")
        text = text.replace(old, new)
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file
