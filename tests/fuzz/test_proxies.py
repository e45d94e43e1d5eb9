"""What is found through real HAProxy and nginx, and that it is found: see `proxies`.

``GLB_FUZZ_EXAMPLES`` is how many requests each run has, and ``GLB_FUZZ_SEED`` what chooses them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from .proxies import PROXIES, SMUGGLED, ask_through, find

pytestmark = [
    pytest.mark.process,
    pytest.mark.thorough,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs all of 127.0.0.0/8"),
]

INSTALLED: Final = [
    pytest.param(name, marks=pytest.mark.skipif(find(name) is None, reason="it isn't installed"))
    for name in PROXIES
]

REQUESTS: Final = int(os.environ.get("GLB_FUZZ_EXAMPLES", "300"))
SEED: Final = os.environ.get("GLB_FUZZ_SEED", "1")

# An application gets less than was sent.
LOSES = """
from glb.http.body import Body
read = Body.read
Body.read = lambda self, size=None: read(self, size)[:-1]
"""

# A connection on which a reply has said nothing of its end is closed behind it.
CLOSES = """
from glb.http.handler import WSGIHandler
end = WSGIHandler._end_input
def end_all(self):
    end(self)
    self.close_connection = True
WSGIHandler._end_input = end_all
"""


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("hubs", [1, 2])
@pytest.mark.parametrize("server", ["lean", "hooks"])
def test_an_application_sees_what_the_proxy_sent(
    tmp_path: Path, server: str, hubs: int, name: str
) -> None:
    """Of requests of all kinds, by each loop."""
    assert ask_through(name, tmp_path, REQUESTS, server=server, hubs=hubs, seed=SEED) == []


@pytest.mark.parametrize("name", INSTALLED)
def test_a_request_in_the_body_of_an_upgrade_is_smuggled_into_gevents_server(
    tmp_path: Path, name: str
) -> None:
    """Through each proxy; glb's server reads it as the body that it is."""
    attacks: dict[str, Any] = {"kinds": ["attack"], "clients": 1, "seed": SEED}
    assert SMUGGLED in ask_through(name, tmp_path, 40, server="gevent", **attacks)[0]
    assert ask_through(name, tmp_path, 40, **attacks) == []


@pytest.mark.skipif(find("haproxy") is None, reason="needs haproxy")
@pytest.mark.parametrize(
    ("fault", "found"),
    [(LOSES, "another body: "), (CLOSES, "not given to the application: ")],
    ids=["a byte less", "a close without a word"],
)
def test_what_is_lost_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, found: str
) -> None:
    """By what was recorded between the proxy and the server."""
    (tmp_path / "faulty.py").write_text(f"{fault}\nfrom tests.fuzz.pages import COMMANDS\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    faults = ask_through(
        "haproxy", tmp_path, 300, kinds=["upload", "plain"], seed=SEED, module="faulty"
    )
    assert any(found in each for each in faults)
