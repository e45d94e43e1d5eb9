"""The page of the administration, and a real browser that shows it."""

from __future__ import annotations

import base64
import hashlib
import html
import http.client
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from glb.admin import Admin, page
from glb.model.states import State
from glb.server import StreamServer

from ..support.helpers import ask, wait_until
from .test_admin import ANY, in_thread, started

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
TEXT = page.PAGE.decode()


def test_it_is_one_file_and_nothing_comes_from_elsewhere() -> None:
    """No address of another host, no file beside it, nothing that a policy would refuse."""
    assert not re.search(r"https?:|//\w+\.\w|@import|url\(|\bsrc=|<link|<img|<iframe", TEXT)
    assert not re.search(r"<\w[^>]*\s(style|on\w+)=", TEXT)
    assert "innerHTML" not in TEXT and "eval" not in TEXT
    assert re.findall(r"fetch\((.*?),", TEXT) == ['"clones"']


def test_it_is_in_the_wheel() -> None:
    """As package data."""
    project = (Path(page.__file__).parents[2] / "pyproject.toml").read_text()
    assert '"admin/page.html"' in project


def test_a_browser_may_run_its_script_and_style_alone() -> None:
    """By their hashes; each reply says so."""
    with Admin(StreamServer(ANY, lambda *_: None), ANY) as admin:

        def get(path: str) -> tuple[http.client.HTTPResponse, bytes]:
            client = http.client.HTTPConnection("127.0.0.1", admin.address[1], timeout=10)
            try:
                client.request("GET", path)
                reply = client.getresponse()
                return reply, reply.read()
            finally:
                client.close()

        reply, body = in_thread(lambda: get("/"))
        assert (reply.status, body) == (200, page.PAGE)
        assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = reply.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; connect-src 'self'; ")
        for tag in ("script", "style"):
            (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "unsafe" not in policy
        other, _ = in_thread(lambda: get("/nothing"))
        assert other.headers["Content-Security-Policy"] == policy


def test_each_state_has_its_colour() -> None:
    """Also those that have two words, and a stalled hub's."""
    for state in [*(each.value for each in State), "stalled"]:
        assert f".s-{state.split(' ')[0]}" in TEXT


def dumped(url: str, profile: Path) -> str:
    """Return the page as a browser has it after its script has drawn."""
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",  # a container has none to give
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=2500",
            "--enable-logging=stderr",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr
    return done.stdout


def cells_of(text: str) -> dict[int, list[str]]:
    """Return the cells of each clone's row."""
    rows = re.findall(r'<tr data-clone="(\d+)">(.*?)</tr>', text, re.DOTALL)
    return {
        int(clone): [html.unescape(each) for each in re.findall(r"<td[^>]*>(.*?)</td>", row)]
        for clone, row in rows
    }


@pytest.mark.process
@pytest.mark.skipif(CHROMIUM is None, reason="needs the browser chromium")
@pytest.mark.parametrize(("clones", "hubs"), [(4, 1), (64, 2)])
def test_a_browser_shows_the_numbers_of_the_clones(clones: int, hubs: int, tmp_path: Path) -> None:
    """Each clone's, its state, and their sums."""

    def handle(sock: Any, _peer: object) -> None:
        sock.sendall(b"x")

    server = StreamServer(ANY, handle, clones=clones, hubs=hubs)
    with started(server), Admin(server, ANY) as admin:
        server.pause_clone(2)
        for _ in range(2 * clones):
            assert ask(server.address) == b"x"
        wait_until(lambda: sum(each.completed for each in server.clone_stats()) == 2 * clones)
        text = in_thread(lambda: dumped(f"{admin.url}/", tmp_path))
        stats = server.clone_stats()
    rows = cells_of(text)
    assert sorted(rows) == [*range(clones)]
    for each in stats:
        cells = rows[each.index]
        assert int(cells[0]) == each.index
        if hubs > 1:
            assert int(cells.pop(1)) == each.hub
        counts = [each.accepted, each.active, each.completed, each.failed]
        assert [int(cell) for cell in cells[1:5]] == counts
        assert cells[-1] == each.state
    assert f"<b>{2 * clones}</b> accepted" in text
    assert f">{clones - 1}</b> accepting" in text
    assert ">1</b> paused" in text
    assert f"127.0.0.1:{server.address[1] if server.started else ''}" in text
