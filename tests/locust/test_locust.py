"""`glb.locust`: importing it patches the process, so its tests run in processes of their own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(importlib.util.find_spec("locust") is None, reason="needs locust"),
]

HERE = Path(__file__).parent
CHECKS = sorted(path.name for path in HERE.glob("*_checks.py"))
ENDLESS_SECONDS = 300  # a child that takes longer is ended, and its test fails


class Child:
    """A pytest of one file, which has begun."""

    def __init__(self, name: str, folder: Path) -> None:
        self._said: Final = folder / f"{name}.txt"
        with self._said.open("w") as out:
            self._process: Final = subprocess.Popen(
                # anyio's plugin, which comes with httpx, imports ssl before locust can patch it.
                [
                    sys.executable,
                    *("-m", "pytest", "-q", "--color=no", "-p", "no:anyio"),
                    f"tests/locust/{name}",
                ],
                cwd=HERE.parents[1],
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> tuple[int, str]:
        """Return its exit status, and what it said."""
        status = self._process.wait(ENDLESS_SECONDS)
        return status, self._said.read_text()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def children(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Child]]:
    """Begin all that are to be run at once: most of the time they wait, for two minutes in all."""
    folder = tmp_path_factory.mktemp("checks")
    names = [
        str(item.callspec.params["name"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.originalname == "test_its_checks_pass"
    ]
    begun = {name: Child(name, folder) for name in names}
    yield begun
    for each in begun.values():
        each.end()


@pytest.mark.parametrize("name", CHECKS)
def test_its_checks_pass(name: str, children: dict[str, Child]) -> None:
    """All of one file, each of which finds nothing left behind by the one before."""
    status, said = children[name].wait()
    assert status == 0, said[-8000:]
    print(said.splitlines()[-1])  # what was skipped, for who looks


def test_importing_glb_does_not_import_locust() -> None:
    """It patches the process, which is not for a server to find out."""
    code = "import glb, glb.server, glb.pywsgi, glb.cli, sys; print('locust' in sys.modules)"
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told == "False\n"
