"""A Flask application on werkzeug's threaded server."""

import socket

import flask
from common import HOST, Copy, main, socketserver_copy
from werkzeug.serving import ThreadedWSGIServer


class Server(ThreadedWSGIServer):
    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


def make_app(copy: int) -> flask.Flask:
    app = flask.Flask(__name__)

    @app.route("/<path:path>")
    def page(path: str) -> flask.Response:
        response = flask.make_response(f"{copy} /{path}")
        response.headers["Connection"] = "close"
        return response

    return app


def open_copy(index: int, port: int) -> Copy:
    return socketserver_copy(Server(HOST, port, make_app(index)))


if __name__ == "__main__":
    main(open_copy)
