"""docs/systemd.md and docs/upgrades.md are true: systemd takes the units, and the programs run."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest

from ..support.helpers import http_get, is_refused, wait_until
from ..support.upgrading import children, reaps
from .test_commands import ROOT, child

__all__ = ["reaps"]  # a fixture

pytestmark = pytest.mark.process

SYSTEMD = (ROOT / "docs" / "systemd.md").read_text(encoding="utf-8")
UPGRADES = (ROOT / "docs" / "upgrades.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd isn't installed here")
def test_systemd_takes_the_units(tmp_path: pathlib.Path) -> None:
    """Without a word, but for a program that is elsewhere here."""
    pattern = r"<!-- unit: (\S+) -->\n```ini\n(.*?)^```$"
    units = dict(re.findall(pattern, SYSTEMD, re.MULTILINE | re.DOTALL))
    assert [*units] == ["app.service", "app.socket"]
    for name, text in units.items():
        program = "/srv/app/venv/bin/glb serve"
        (tmp_path / name).write_text(text.replace(program, f"{sys.executable} -m glb serve"))
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / name) for name in units)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    found = [line for line in done.stderr.splitlines() if "app." in line]
    assert (done.returncode, found) == (0, []), done.stderr


@pytest.mark.parametrize("number", range(len(blocks(SYSTEMD))))
def test_its_programs_run(number: int, tmp_path: pathlib.Path) -> None:
    """Without inherited sockets, too."""
    with child("-c", blocks(SYSTEMD)[number], cwd=tmp_path) as process:
        assert process.communicate() == ("", "")
        assert process.returncode == 0


@pytest.mark.usefixtures("reaps")
def test_the_program_of_upgrades_is_replaced(tmp_path: pathlib.Path) -> None:
    """By SIGUSR2; the path of its socket stays, and the new process drains at SIGTERM."""
    (source,) = blocks(UPGRADES)
    (tmp_path / "app.py").write_text(source.replace('("127.0.0.1", 0)', '"unix:app.sock"'))
    path = str(tmp_path / "app.sock")
    with child("app.py", cwd=tmp_path) as process:
        wait_until(lambda: not is_refused(path))
        assert http_get(path) == b"hi\n"
        process.send_signal(signal.SIGUSR2)
        assert process.wait() == 0
        assert http_get(path) == b"hi\n"
        (new,) = children()
        os.kill(new, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(new, 0)[1]) == 0
    assert not os.path.exists(path)
