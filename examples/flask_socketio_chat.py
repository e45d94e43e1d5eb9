"""A chat on Flask-SocketIO: what one client says, all hear.

    glb serve flask_socketio_chat:app --clones 4

One hub, which is the default: a message goes from one client's connection to the others', and
queues that connect hubs are slow (see docs/legacy.md). It needs flask-socketio.
"""

from flask import Flask
from flask_socketio import SocketIO, emit

PAGE = """<!doctype html>
<title>chat</title>
<script src="https://cdn.socket.io/4.8.1/socket.io.min.js"></script>
<ul id="heard"></ul>
<form onsubmit="chat.emit('say', words.value); words.value = ''; return false">
  <input id="words">
</form>
<script>
  const chat = io()
  chat.on('said', words => {
    const line = document.createElement('li')
    line.textContent = words
    heard.append(line)
  })
</script>
"""

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent")


@app.get("/")
def page() -> str:
    return PAGE


@socketio.on("say")
def say(words: str) -> None:
    emit("said", words, broadcast=True)
