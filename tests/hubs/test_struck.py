"""An exception may strike anywhere in a hub: it goes on serving, counts right, and stops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import glb

from ..support import struck

#: Each so-manieth place is struck; 1 is all of them, which takes half a minute to two each.
STEP = int(os.environ.get("GLB_STRUCK_STEP", "29"))


@pytest.mark.process
@pytest.mark.thorough
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it counts by /proc")
@pytest.mark.parametrize("loop", ["libev-cext", "libuv"])
@pytest.mark.parametrize("hubs", [1, 2])
@pytest.mark.parametrize("kind", struck.KINDS)
def test_one_exception_never_makes_a_hub_deaf(kind: str, hubs: int, loop: str) -> None:
    """Struck at any place, it recovers by itself: the next clients are served, nothing is left."""
    root = Path(glb.__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.struck", kind, str(hubs), str(STEP)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": path, "GEVENT_LOOP": loop},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 faults" in done.stdout
