"""Each program of ``examples/`` runs, and does what its first lines say."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from gevent import subprocess as gevent_subprocess

from ..support.helpers import connect, http_get
from .pages import ROOT

pytestmark = [pytest.mark.process, pytest.mark.thorough]

EXAMPLES: Final = ROOT / "examples"

#: gevent-websocket, if it is installed, makes Engine.IO insist on its handler.
SERVE: Final = """
import sys
sys.modules["geventwebsocket"] = None
from glb.cli import main
main()
"""


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}


@contextlib.contextmanager
def served(target: str, *options: str, **variables: str) -> Iterator[tuple[str, int]]:
    """Have ``glb serve`` serve *target*, and give its address; it has to drain in the end."""
    command = [sys.executable, "-W", "error", "-c", SERVE, "serve", target]
    command += ["--bind", "127.0.0.1:0", *options]
    with gevent_subprocess.Popen(
        command, cwd=EXAMPLES, env=environment(**variables), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            found = re.search(r"://127\.0\.0\.1:(\d+)", said)
            assert found is not None, said + process.stderr.read()
            yield "127.0.0.1", int(found[1])
            process.terminate()
            _, said = process.communicate(timeout=30)
            assert process.returncode == 0, said
            assert ", 0 failed" in said
        finally:
            process.kill()


def run(*command: str) -> str:
    """Run a program of the examples to its end, and return what it prints."""
    done = gevent_subprocess.run(
        [sys.executable, *command],
        cwd=EXAMPLES,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return str(done.stdout)


def test_flask_takes_turns() -> None:
    """Clone after clone answers, on four hubs."""
    pytest.importorskip("flask")
    with served("flask_app:app", "--clones", "8", "--hubs", "4") as address:
        replies = [http_get(address) for _ in range(8)]
    assert replies == [b"served by clone %d of 8\n" % clone for clone in range(8)]


def test_django_takes_turns() -> None:
    """Clone after clone answers."""
    pytest.importorskip("django")
    with served("django_app:application", "--clones", "4") as address:
        replies = [http_get(address) for _ in range(4)]
    assert replies == [b"served by clone %d\n" % clone for clone in range(4)]


def test_the_chat_sends_all_what_one_says() -> None:
    """Over websockets, each on a clone of its own."""
    pytest.importorskip("flask_socketio")
    websocket: Any = pytest.importorskip("websocket")
    with served("flask_socketio_chat:app", "--clones", "4") as address:
        assert b"<title>chat</title>" in http_get(address)
        polled = http_get(address, "/socket.io/?EIO=4&transport=polling")
        assert json.loads(polled[1:])["sid"]
        url = f"ws://127.0.0.1:{address[1]}/socket.io/?EIO=4&transport=websocket"
        clients = []
        for _ in range(3):
            client = websocket.create_connection(url, timeout=10)
            clients.append(client)
            assert json.loads(client.recv()[1:])["sid"]
            client.send("40")
            assert client.recv().startswith("40")
        clients[0].send('42["say","hi"]')
        assert {each.recv() for each in clients} == {'42["said","hi"]'}
        for each in clients:
            each.close()


def test_a_clone_of_the_line_protocol_has_a_store_of_its_own() -> None:
    """The next clone doesn't know a word that one has stored; a turn later it is there."""
    with served("line_protocol:handle", "--clones", "4") as address:

        def ask(*lines: bytes) -> list[bytes]:
            with connect(address) as client:
                file = client.makefile("rwb")
                replies = []
                for line in lines:
                    file.write(line + b"\n")
                    file.flush()
                    replies.append(file.readline())
                file.close()
                return replies

        assert ask(b"set colour blue", b"get colour") == [b"0/4 ok\n", b"0/4 blue\n"]
        assert ask(b"get colour", b"x") == [
            b"1/4 nothing\n",
            b"1/4 error: say 'set KEY VALUE' or 'get KEY'\n",
        ]
        ask(b"get colour"), ask(b"get colour")
        assert ask(b"get colour") == [b"0/4 blue\n"]


def test_each_hub_has_a_connection_to_the_database(tmp_path: Path) -> None:
    """Visits are counted over all four of them."""
    options = ["--clones", "8", "--hubs", "4"]
    with served(
        "blocking_database:application", *options, COUNTER=str(tmp_path / "counter.db")
    ) as address:
        replies = [http_get(address).decode() for _ in range(8)]
    assert replies == [f"visit {turn + 1}, on hub {turn % 4}\n" for turn in range(8)]


def test_the_rolling_deploy_loses_nothing() -> None:
    """Clients get replies of both versions, and no error."""
    said = run("-W", "error", "rolling_deploy.py")
    assert re.search(r"^\d+ new, \d+ old$", said, re.MULTILINE)


def test_a_busy_accept_loop_is_passed_over() -> None:
    """Six jobs are done by two printers, each job once, three by each."""
    said = run("-W", "error", "accept_loops.py")
    pages = sorted(re.findall(r"^page (\d) of printer (\d): job \d$", said, re.MULTILINE))
    assert pages == sorted((str(page), str(printer)) for page in (1, 2, 3) for printer in (0, 1))


def test_the_load_test_finds_exact_turns() -> None:
    """Its exit status is 0 only then."""
    if importlib.util.find_spec("locust") is None:  # importing it patches the process
        pytest.skip("needs locust")
    with served("line_protocol:handle", "--clones", "4") as (host, port):
        options = ["--headless", "-u", "4", "-r", "4", "-t", "1s", "--balance-max-spread", "1"]
        said = run(
            "-m", "locust", "-f", "locustfile.py", "--host", f"tcp://{host}:{port}", *options
        )
    assert "of 4 clones: exact" in said


def test_each_example_is_shown_and_run() -> None:
    """The page of examples includes each, and this file has a test of it."""
    page = (ROOT / "docs/examples.md").read_text(encoding="utf-8")
    tests = Path(__file__).read_text(encoding="utf-8")
    for each in sorted(EXAMPLES.glob("*.py")):
        assert f"```{{literalinclude}} ../examples/{each.name}\n" in page
        assert f"| [`{each.name}`](../examples/{each.name}) |" in page
        assert each.stem in tests
