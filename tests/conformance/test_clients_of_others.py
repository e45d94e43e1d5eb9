"""Clients and applications see of each other what they see under gevent's WSGIServer.

Clients (curl, ab, h2load, wrk, requests, httpx, aiohttp, http.client) ask applications (Flask,
Django, Falcon, Bottle), each within wsgiref.validate, under gevent's server and under glb's with 4
clones, by each of its loops. The clients are in native threads, and in processes. What isn't
installed is skipped.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from wsgiref.validate import validator

import gevent
import gevent.pywsgi
import pytest
from gevent import socket
from gevent.pool import Pool

from glb.http.body import Body
from glb.pywsgi import WSGIHandler, WSGIServer

from ..fuzz.pages import ByHooks, digest, plain, recorded
from ..fuzz.test_servers import ANY, listening_in

pytestmark = [pytest.mark.process, pytest.mark.thorough]

PATIENCE_SECONDS: Final = 30.0

#: Of the clients that make load.
REQUESTS: Final = 100

# What a client saw of a reply that is no 2xx, or of an error.
_BAD: Final = re.compile(r"\((?!2)\d+, |HTTP/1\.1 (?!2|100)\d|Non-2xx|[1-9]\d* [345]xx")

# -- the clients: each makes the same requests, as far as it can ---------------------------------

CHUNKS: Final = [b"0123456789abcdef" * 256] * 20

#: A GET with a query, an upload in chunks, and a HEAD with a GET behind it on one connection.
SEQUENCE: Final = (
    ("GET", "get?a=%20b&c", False),
    ("POST", "upload", True),
    ("HEAD", "twice", False),
    ("GET", "twice", False),
)

#: Of a reply: what is each server's own.
LEFT_OUT: Final = frozenset({"date", "server", "connection"})

# A GET and an upload in turn, on each connection. wrk knows no HEAD: it would wait for a body.
_WRK: Final = r"""
local count = 0
local get = "GET PATHget?a=%20b HTTP/1.1\r\nHost: a\r\n\r\n"
local upload = "POST PATHupload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" ..
    string.rep("a\r\n0123456789\r\n", 100) .. "0\r\n\r\n"
request = function()
    count = count + 1
    return count % 2 == 1 and get or upload
end
done = function(summary)
    local bad = summary.errors
    print("errors", bad.connect + bad.read + bad.write + bad.status + bad.timeout)
    print("none", summary.requests == 0)
end
"""

_CURL: Final = r"--next -sS --include --write-out %{num_connects}\n"
_MAKE: Final = f"{_CURL} -HTransfer-Encoding:chunked -XPOST -T FILE"
_AB, _LOAD = "ab -q -k -n COUNT -c 4", "h2load --h1 -n COUNT -c 4"

#: Programs: what of the output is compared, and how each is run; *FILE* is wrk's, or a body.
PROGRAMS: Final = {
    "curl": (
        rf"^(?!(?i:{'|'.join(LEFT_OUT)}):).*",
        f"curl {_CURL} URL{SEQUENCE[0][1]} {_MAKE} URLupload {_CURL} -I URLtwice {_CURL} URLtwice",
    ),
    "ab": (
        r"^(?:Complete|Failed|Non-2xx|Keep-Alive|Document Length|HTML).*",
        *(f"{_AB} URLget?a=%20b", f"{_AB} -i URLtwice"),
    ),
    "h2load": (
        r"^(?:requests|status codes): .*|\(\d+\) data",
        *(f"{_LOAD} URLget?a=%20b", f"{_LOAD} -d FILE URLupload"),
    ),
    "wrk": (r"^(?:errors|none)\s.*|Non-2xx.*", "wrk -t 1 -c 4 -d 1s -s FILE URL"),
}


def by_program(name: str, url: str) -> Iterator[Any]:
    kept, *commands = PROGRAMS[name]
    with tempfile.NamedTemporaryFile() as file:
        script = _WRK.replace("PATH", "/" + url.split("/", 3)[3])
        file.write(script.encode() if name == "wrk" else b"".join(CHUNKS))
        file.flush()
        for command in commands:
            words = command.replace("URL", url).replace("COUNT", str(REQUESTS)).split()
            words = [file.name if word == "FILE" else word for word in words]
            done = subprocess.run(words, capture_output=True, timeout=PATIENCE_SECONDS, check=True)
            yield from re.findall(kept, done.stdout.decode("latin-1"), re.MULTILINE)


def reply(status: int, fields: Iterable[tuple[str, str]], body: bytes) -> Any:
    """Return what is compared of a reply."""
    kept = sorted((name.lower(), value) for name, value in fields)
    return status, [each for each in kept if each[0] not in LEFT_OUT], body


def by_library(url: str) -> Iterator[Any]:
    """Ask by `http.client`."""
    _, _, host, path = url.split("/", 3)
    with closing(http.client.HTTPConnection(host, timeout=PATIENCE_SECONDS)) as client:
        for method, name, is_upload in SEQUENCE:
            body = iter(CHUNKS) if is_upload else None
            client.request(method, f"/{path}{name}", body, encode_chunked=is_upload)
            got = client.getresponse()
            yield reply(got.status, got.getheaders(), got.read())


def by_session(package: Any, url: str) -> Iterator[Any]:
    """Ask by requests, or by httpx."""
    is_httpx = package.__name__ == "httpx"
    with package.Client() if is_httpx else package.Session() as client:
        for method, name, is_upload in SEQUENCE:
            body = {"content" if is_httpx else "data": iter(CHUNKS) if is_upload else None}
            got = client.request(method, url + name, timeout=PATIENCE_SECONDS, **body)
            yield reply(got.status_code, got.headers.items(), got.content)


async def by_aiohttp(url: str) -> list[Any]:
    import aiohttp  # may not be installed

    async def body() -> Any:
        for chunk in CHUNKS:
            yield chunk

    timeout, replies = aiohttp.ClientTimeout(PATIENCE_SECONDS), []
    async with aiohttp.ClientSession(timeout=timeout) as client:
        for method, name, is_upload in SEQUENCE:
            data = body() if is_upload else None
            async with client.request(method, url + name, data=data) as got:
                replies.append(reply(got.status, got.headers.items(), await got.read()))
    return replies


CLIENTS: Final = (*PROGRAMS, "requests", "httpx", "aiohttp", "http.client")


def ask(client: str, url: str) -> list[Any]:
    """Return what a *client* saw."""
    try:
        if client in PROGRAMS:
            return [*by_program(client, url)]
        if client == "aiohttp":
            return asyncio.run(by_aiohttp(url))
        if client == "http.client":
            return [*by_library(url)]
        return [*by_session(import_module(client), url)]
    except Exception as error:  # a client that fails has seen that
        return [(0, repr(error))]


# -- the applications ---------------------------------------------------------------------------


def describe(method: str, read: Callable[[int], bytes]) -> str:
    """Read a body, and return the body of the reply."""
    data = b"".join(iter(lambda: read(65536), b""))
    return f"{method.replace('HEAD', 'GET')} {digest(data)}\n"


def flask() -> Any:
    module = import_module("flask")
    application, request = module.Flask("clients"), module.request
    reply = application.route("/<path:_path>", methods=["GET", "POST"], endpoint="reply")
    reply(lambda _path: describe(request.method, request.stream.read))
    return application


def django() -> Any:
    # Django's own `read` gives what a Content-Length says: of a chunked body nothing.
    def reply(request: Any) -> Any:
        body = describe(request.method, request.environ["wsgi.input"].read)
        return import_module("django.http").HttpResponse(body)

    middleware = ["django.middleware.common.CommonMiddleware"]
    urls = (import_module("django.urls").re_path("", reply),)
    settings = import_module("django.conf").settings
    settings.configure(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"], MIDDLEWARE=middleware)
    return import_module("django.core.wsgi").get_wsgi_application()


def falcon() -> Any:
    def reply(request: Any, response: Any) -> None:
        response.text = describe(request.method, request.stream.read)

    application = import_module("falcon").App()
    application.add_sink(reply)
    return application


def bottle() -> Any:
    module = import_module("bottle")
    application, request = module.Bottle(), module.request
    reply = application.route("/<_path:path>", method=["GET", "POST"])
    # Bottle's own `body` undoes the chunks once more, which a server has undone already.
    reply(lambda _path: describe(request.method, request.environ["wsgi.input"].read))
    return application


#: What makes them. `plain` needs no package.
APPLICATIONS: Final[dict[str, Callable[[], Any]]] = {
    "plain": lambda: plain,
    **{each.__name__: cache(each) for each in (flask, django, falcon, bottle)},
}


# -- the comparison ------------------------------------------------------------------------------


class ByGevent(gevent.pywsgi.WSGIHandler):
    """gevent's, without the bodies that frameworks have for HEAD and leave to the server.

    gevent sends them; clients take them for the beginning of the next reply (RFC 9110, 9.3.2).
    """

    def handle(self) -> None:
        # Else clients that don't acknowledge at once wait 40 ms.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().handle()

    def write(self, data: bytes) -> None:
        super().write(b"" if self.command == "HEAD" else data)


#: The others are compared with the first.
SERVERS: Final = (
    partial(gevent.pywsgi.WSGIServer, handler_class=ByGevent),
    WSGIServer,
    partial(WSGIServer, hubs=2),
    partial(WSGIServer, hubs=2, handler_class=ByHooks),
)


def look(client: str, application: str, server_class: Any) -> tuple[Any, ...]:
    """Let a client ask an application; return what both saw.

    What the application saw is each call, how often it was made, and how many connections there
    were. (Of wrk, how often is chance: it sends as much as it can in a time.)
    """
    calls: list[dict[str, Any]] = []
    called = validator(recorded(APPLICATIONS[application](), calls.append))
    with closing(server_class(ANY, called, log=None)) as server:
        server.start()
        url = f"http://127.0.0.1:{server.server_port}/{client}/"
        seen = gevent.get_hub().threadpool.apply(ask, (client, url))
        server.stop(timeout=10)
    connections = {call.pop("REMOTE_PORT") for call in calls}
    for call in calls:
        call["HTTP_HOST"] = call.get("HTTP_HOST", "").partition(":")[0]
    times = Counter(json.dumps(call, sort_keys=True) for call in calls)
    return seen, sorted(times) if client == "wrk" else times, len(connections)


def compare(client: str, application: str) -> None:
    """Assert that both see the same under each server, and that nothing is reported."""
    with listening_in() as told:
        # wrk takes a second. Bottle's request is the native thread's: one server's at a time.
        pool = Pool(len(SERVERS) if client == "wrk" else 1)
        wanted, *ours = pool.map(partial(look, client, application), SERVERS)
    told.check(expected=())
    assert wanted[0] and not _BAD.search(repr(wanted[0])), wanted[0]
    for found in ours:
        assert found == wanted


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("client", CLIENTS)
def test_both_see_the_same(client: str, application: str) -> None:
    """Replies, but for what is each server's own; requests, and over how many connections."""
    if client in PROGRAMS and not shutil.which(client):
        pytest.skip(f"{client} is not installed")
    for package in {client, application} - {*PROGRAMS, "plain"}:
        pytest.importorskip(package)
    compare(client, application)


def test_both_see_the_same_on_libuv() -> None:
    """All but wrk."""
    which = "the_same and not wrk and not libuv"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__, "-k", which],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "GEVENT_LOOP": "libuv"},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stdout


# An application gets less than was sent.
def loses(patch: pytest.MonkeyPatch) -> None:
    read = Body.read
    patch.setattr(Body, "read", lambda self, size=None: read(self, size)[:-1])


# A connection is closed behind each reply.
def closes(patch: pytest.MonkeyPatch) -> None:
    end = WSGIHandler._end_input

    def end_all(self: Any) -> None:
        end(self)
        self.close_connection = True

    patch.setattr(WSGIHandler, "_end_input", end_all)


# Only the checker sees it.
def no_version(patch: pytest.MonkeyPatch) -> None:
    environ = WSGIServer.get_environ
    patch.setattr(WSGIServer, "get_environ", lambda self: {**environ(self), "wsgi.version": None})


@pytest.mark.parametrize("fault", [loses, closes, no_version])
def test_what_differs_is_found(monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    """By the client, by the application, or by the checker."""
    compare("http.client", "plain")
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        compare("http.client", "plain")
