"""The house: a file fits in one sitting."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import glb

MOST_LINES: Final = 500

#: Longer ones, to be split.
LONGER: Final = {"accept/dispatcher.py", "accept/waiters.py", "server.py"}


def test_no_file_is_too_long() -> None:
    """At most 500 lines, but for those of the locust plugin."""
    home = Path(glb.__file__).parent
    sizes = {
        path.relative_to(home).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in home.rglob("*.py")
    }
    found = {name for name, lines in sizes.items() if lines > MOST_LINES}
    assert {name for name in found if not name.startswith("locust/")} <= LONGER
