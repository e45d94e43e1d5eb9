"""Programs of others on gunicorn's workers: Flask-SocketIO, by websockets and long polling."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gunicorn")
pytest.importorskip("flask_socketio")

from .processes import running

websocket: Any = pytest.importorskip("websocket")

pytestmark = pytest.mark.process

CHAT = """
import flask, flask_socketio, sys

application = flask.Flask(__name__)
socketio = flask_socketio.SocketIO(application, async_mode=MODE)

@socketio.on("say")
def say(words):
    flask_socketio.emit("said", words.upper())
    return words
"""

#: As geventwebsocket.gunicorn.workers has it, for gunicorn's own.
WORKERS = """
from geventwebsocket.handler import WebSocketHandler
from glb.gunicorn import FastWorker

class WebSocketWorker(FastWorker):
    wsgi_handler = WebSocketHandler
"""


def ask(port: int, path: str, text: str | None = None) -> str:
    """Return the body of the reply to a GET, or to a POST of *text*."""
    data = None if text is None else text.encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data)
    with urllib.request.urlopen(request, timeout=20) as reply:
        body: bytes = reply.read()
    return body.decode()


@pytest.mark.parametrize(
    ("worker", "mode"),
    [
        # simple-websocket, which speaks on the socket that gunicorn's environ has.
        ("glb.gunicorn.Worker", "threading"),
        # gevent-websocket, whose handler does.
        ("sockets.WebSocketWorker", "gevent"),
    ],
)
def test_flask_socketio_speaks(tmp_path: Path, worker: str, mode: str) -> None:
    """By a websocket, by polling, and by a websocket that a poller goes over to."""
    if mode == "gevent":
        pytest.importorskip("geventwebsocket")
    (tmp_path / "program.py").write_text(CHAT.replace("MODE", repr(mode)))
    (tmp_path / "sockets.py").write_text(WORKERS)
    path = "/socket.io/?EIO=4&transport="
    with running(tmp_path, worker, "--graceful-timeout", "1") as program:
        program.ready()
        port = program.port()
        chat = websocket.create_connection(f"ws://127.0.0.1:{port}{path}websocket", timeout=20)
        assert chat.recv().startswith('0{"sid"')
        chat.send("40")
        assert chat.recv().startswith('40{"sid"')
        chat.send('420["say","hi"]')
        assert [chat.recv(), chat.recv()] == ['42["said","HI"]', '430["hi"]']

        session = json.loads(ask(port, f"{path}polling")[1:])["sid"]
        mine = f"{path}polling&sid={session}"
        assert ask(port, mine, "40") == "OK"
        assert ask(port, mine).startswith('40{"sid"')
        assert ask(port, mine, '420["say","ho"]') == "OK"
        assert ask(port, mine) == '42["said","HO"]\x1e430["ho"]'

        where = f"ws://127.0.0.1:{port}{path}websocket&sid={session}"
        changed = websocket.create_connection(where, timeout=20)
        changed.send("2probe")
        assert changed.recv() == "3probe"
        changed.send("5")
        changed.send('421["say","up"]')
        assert {changed.recv(), changed.recv()} <= {"6", '42["said","UP"]', '431["up"]'}
        changed.close()
        chat.close()
        assert program.stop() < 5
