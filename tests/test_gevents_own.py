"""gevent's own server tests pass with our classes in the place of gevent's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import runpy, sys
import gevent.pywsgi, gevent.server, glb.pywsgi, glb.server
gevent.server.StreamServer = glb.server.StreamServer
gevent.pywsgi.WSGIServer = glb.pywsgi.WSGIServer
module, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module("gevent.tests." + module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "module", ["test__server", "test__server_pywsgi", "test__pywsgi", "test__backdoor"]
)
def test_gevents_own_tests_pass_with_our_servers(module: str) -> None:
    """Whole modules, unchanged, with 4 clones to a server."""
    result = subprocess.run(
        [sys.executable, "-c", RUN, module],
        # Warnings of gevent's tests, which run without development mode, are not ours.
        env={**os.environ, "PYTHONDEVMODE": ""},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    ran = re.search(r"Ran (\d+) tests", result.stderr)
    assert ran is not None
    assert int(ran[1]) >= 10
