"""Django, all of it in one file, on the threaded server of its ``runserver``."""

import socket

import django
from common import HOST, Copy, main, socketserver_copy
from django.conf import settings
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="not one",
    USE_TZ=True,
)
django.setup()


def page(request: HttpRequest, rest: str) -> HttpResponse:
    return HttpResponse(f"{request.META['COPY']} /{rest}")


urlpatterns = [path("<path:rest>", page)]


class Server(ThreadedWSGIServer):
    request_queue_size = 64

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()


def open_copy(index: int, port: int) -> Copy:
    server = Server((HOST, port), WSGIRequestHandler)
    server.daemon_threads = False  # so that ``server_close()`` waits for them
    server.base_environ["COPY"] = str(index)
    server.set_app(get_wsgi_application())
    return socketserver_copy(server)


if __name__ == "__main__":
    main(open_copy)
