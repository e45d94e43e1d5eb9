"""The README: its first program prints what it says, its commands work, and it is short.

`tests/docs` runs the other blocks of it, and those of the pages.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES = 200


def test_the_first_program_prints_what_the_readme_says() -> None:
    """Fifteen lines, eight connections, two rounds."""
    program = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[0]
    assert len([line for line in program.splitlines() if line.strip()]) <= 15
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [f"served by clone {turn % 4}" for turn in range(8)]


def test_ci_runs_the_readmes_test_command() -> None:
    """It is found by the marker that `.ci/run` looks for."""
    assert re.search(r"<!-- test command -->\n```sh\n[^\n]*tox run-parallel -p 3\n```", README)


def test_the_readme_is_short() -> None:
    """What more there is to say, pages say."""
    assert len(README.splitlines()) <= MOST_LINES


def test_each_link_leads_to_a_file() -> None:
    """Of the repository: it has no site to link to."""
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", README):
        assert (ROOT / target).exists(), target
