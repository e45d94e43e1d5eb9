"""A chat on Flask-SocketIO in its gevent mode: pages, websockets, and long polling."""

import flask
import flask_socketio
from common import HOST, Copy, main, wait_until_listening

app = flask.Flask(__name__)
app.config["SECRET_KEY"] = "not one"
socketio = flask_socketio.SocketIO(app, async_mode="gevent")


@app.route("/<path:path>")
def page(path: str) -> str:
    return f"/{path}"


@socketio.on("say")
def say(words: str) -> str:
    """Tell the speaker, and answer with an acknowledgement."""
    flask_socketio.emit("said", words.upper())
    return words


def open_copy(_index: int, port: int) -> Copy:
    def serve() -> None:
        socketio.run(app, host=HOST, port=port)

    def stop() -> None:
        socketio.wsgi_server.stop()

    return Copy(port, serve, stop, lambda: wait_until_listening(port))


if __name__ == "__main__":
    main(open_copy, copies=1)
