"""The README is true: its code runs and prints what it says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_in_the_readme_runs(number: int) -> None:
    """Each block is a program of its own."""
    if "glb.locust" in BLOCKS[number] and importlib.util.find_spec("locust") is None:
        pytest.skip("needs locust")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCKS[number]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    if number == 0:
        assert result.stdout.split() == [
            word for turn in range(8) for word in ("served", "by", "clone", str(turn % 4))
        ]


def test_ci_runs_the_readmes_test_command() -> None:
    """It is found by the marker that `.ci/run` looks for."""
    assert re.search(r"<!-- test command -->\n```sh\n[^\n]*tox run-parallel\n```", README)
