"""Sphinx: how the site is built. ``tox run -e docs`` does it; a warning is an error there."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final
from unittest.mock import MagicMock

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]

from pygments.lexers.special import TextLexer  # noqa: E402  # as below
from sphinx.highlighting import lexers  # noqa: E402  # as below

from glb import __version__ as release  # noqa: E402  # it is found by the path above

lexers["haproxy"] = TextLexer()  # Pygments knows no HAProxy


class User:
    """What users derive from, in the place of locust's: importing that patches the process."""

    tasks: ClassVar[list[object]] = []


for name in ("", ".log", ".runners", ".exception", ".user", ".user.task"):
    sys.modules[f"locust{name}"] = MagicMock(User=User)
sys.modules["websocket"] = MagicMock()

project = "glb"
author = "The glb developers"
copyright = author  # noqa: A001  # Sphinx's name

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "glb_settings",
]
exclude_patterns = ["_build", "_ext"]
templates_path: list[str] = []
smartquotes = False
html_theme = "furo"
html_title = f"glb {release}"
html_static_path: list[str] = []
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Docstrings: Google's sections, and a name in single backquotes is a reference.
default_role = "py:obj"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Switches", "params_style"), "Source"]
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
os.environ.setdefault("GEVENT_LOOP", "libev-cext")

_LINK: Final = re.compile(r"(?<!!)\[([^]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
_INCLUDED: Final = re.compile(r"^<!-- (\w+\.md) -->$", re.MULTILINE)


def _is_page(path: Path) -> bool:
    return path.suffix == ".md" and path.is_relative_to(HERE)


def _with_links(text: str, folder: Path) -> str:
    """Return *text* with its links as the site has them.

    The README and ARCHITECTURE.md are pages, other files of the repository are not: a link to
    them stays as its words.
    """
    pages = {ROOT / "README.md": HERE / "index.md", ROOT / "ARCHITECTURE.md": HERE / "design.md"}

    def shown(match: re.Match[str]) -> str:
        words, target, anchor = match[1], (folder / match[2]).resolve(), match[3] or ""
        if not target.exists():
            raise FileNotFoundError(f"{match[0]}: leads to no file")
        target = pages.get(target, target)
        if not _is_page(target):
            return words
        return f"[{words}](/{target.relative_to(HERE).as_posix()}{anchor})"

    return _LINK.sub(shown, text)


def _read(_app: Sphinx, name: str, source: list[str]) -> None:
    """Put in the files of the repository that a page is made of, and lead its links to pages."""

    def put_in(match: re.Match[str]) -> str:
        text = (ROOT / match[1]).read_text(encoding="utf-8")
        text = re.sub(r"(!\[[^]]*\]\()", r"\1../", text)
        return _with_links(text, ROOT)

    text = _with_links(source[0], (HERE / name).parent)
    source[0] = _INCLUDED.sub(put_in, text)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect what is above."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
