"""`glb.locust`: importing it patches the process, so its tests run in processes of their own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="needs locust"),
]

HERE = Path(__file__).parent
CHECKS = sorted(path.name for path in HERE.glob("*_checks.py"))
ENDLESS_SECONDS = 300  # a child that takes longer is ended, and its test fails


@pytest.mark.parametrize("name", CHECKS)
def test_its_checks_pass(name: str) -> None:
    """All of one file, each of which finds nothing left behind by the one before."""
    child = subprocess.run(
        # anyio's plugin, which comes with httpx, imports ssl before locust can patch it.
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--color=no",
            "-p",
            "no:anyio",
            f"tests/locust/{name}",
        ],
        cwd=HERE.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=ENDLESS_SECONDS,
        check=False,
    )
    assert child.returncode == 0, child.stdout[-8000:]
    print(child.stdout.splitlines()[-1])  # what was skipped, for who looks


def test_importing_glb_does_not_import_locust() -> None:
    """It patches the process, which is not for a server to find out."""
    code = "import glb, glb.server, glb.pywsgi, glb.cli, sys; print('locust' in sys.modules)"
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told == "False\n"
