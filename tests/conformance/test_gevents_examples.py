"""gevent's example programs serve with our classes in the place of gevent's.

Only gevent's sdist has them. ``GLB_GEVENT_SOURCE`` names a folder in which one was unpacked;
without it pip fetches that of the gevent which is installed. The examples listen on ports that
stand in their code, which must be free.
"""

from __future__ import annotations

import http.client
import http.server
import importlib.util
import os
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pytest

from ..support import own_network

pytestmark = [pytest.mark.process, pytest.mark.thorough]

#: The process of an example, with gevent's classes or with ours: then 4 clones on 2 hubs. A file
#: gets "s" when a server has started, and the number of its hub for each connection. Nothing is
#: taken back from a hub that a loaded machine lets wait.
EXAMPLE: Final = """
import os, runpy, sys
import gevent.pywsgi, gevent.server
told = os.open(os.environ["GLB_TOLD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
classes, *sys.argv[:] = sys.argv[1:]
if classes == "glb":
    import glb.pywsgi, glb.serve.acceptor, glb.server
    gevent.server.StreamServer = glb.server.StreamServer
    gevent.pywsgi.WSGIServer = glb.pywsgi.WSGIServer
    gevent.pywsgi.WSGIHandler = glb.pywsgi.WSGIHandler
    glb.server.StreamServer.hubs, glb.server.StreamServer.patience = 2, 30
    assert glb.server.StreamServer.clones == 4
    serve = glb.serve.acceptor.Acceptor.serve
    def serve_and_tell(self, *args):
        os.write(told, b"%d" % self.worker.index)
        return serve(self, *args)
    glb.serve.acceptor.Acceptor.serve = serve_and_tell
start = gevent.server.StreamServer.start_accepting
def start_and_tell(self):
    start(self)
    os.write(told, b"s")
gevent.server.StreamServer.start_accepting = start_and_tell
runpy.run_path(sys.argv[0], run_name="__main__")
"""

#: gevent's test of an example, which starts it once for each of its tests. Once it has started the
#: test goes on, and not 3 seconds later. One of the tests patches the process, before all else, and
#: gives a proxy 0.1 s to hand its bytes on: a busy machine has ten times as long.
TEST: Final = """
import gevent.monkey
gevent.monkey.patch_all()
import os, runpy, sys, time
from gevent.testing import util
folder, example, module = sys.argv[1:]
started = 0
def start(command, **kwargs):
    *python, program = command[:5]
    return unchanged([*python, "-c", example, "glb", program, *command[5:]], **kwargs)
def wait_for_start(self):
    global started
    started += 1
    while started > open(os.environ["GLB_TOLD"]).read().count("s"):
        assert self.popen.poll() is None
        in_time(0.01)
in_time, time.sleep = time.sleep, lambda seconds: in_time(10 * seconds)
unchanged, util.start = util.start, start
util.TestServer.before = wait_for_start
util.ExampleMixin.cwd = folder
del sys.argv[1:]
runpy.run_module("gevent.tests." + module, run_name="__main__", alter_sys=True)
"""

START_SECONDS: Final = 20.0

HTTP: Final = ("127.0.0.1", 8088)
UNIX: Final = "./unixsocket_server.py.sock"
PLAIN: Final = (("GET", "/", ""), ("GET", "/none", ""), ("POST", "/", "a=b"), ("GET", "/", ""))

#: What gevent's tests ask of none, or only with a network. The proxy is asked for a page, for a
#: port on which nothing listens, and for what it doesn't know.
ASKED: Final[dict[str, tuple[Any, tuple[tuple[str, str, str], ...]]]] = {
    "webproxy.py": (
        HTTP,
        (
            ("GET", "/", ""),
            ("GET", "/127.0.0.1:{page}/search?q=a", ""),
            ("GET", "/http://127.0.0.1:1/", ""),
            ("POST", "/", "url=http%3A%2F%2Fexample.org%2F"),
            ("POST", "/none", "url=http"),
            ("PUT", "/", "none"),
        ),
    ),
    "webpy.py": (HTTP, PLAIN),
    "unixsocket_server.py": (UNIX, PLAIN),
}

loops = pytest.mark.parametrize("loop", ["libev-cext", "libuv"])


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of gevent's example programs."""
    if source := os.environ.get("GLB_GEVENT_SOURCE"):
        return Path(source) / "examples"
    folder = tmp_path_factory.mktemp("gevent")
    wanted = f"gevent=={version('gevent')}"
    fetch = ("-m", "pip", "download", "-q", "--no-deps", "--no-binary", "gevent", "-d", folder)
    fetched = subprocess.run(
        [sys.executable, *fetch, wanted],
        env={**os.environ, "PYTHONDEVMODE": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=own_network.leave,
    )
    archives = [*folder.glob("gevent-*.tar.gz")]
    if not archives:
        lines = fetched.stderr.strip().splitlines() or ["pip has fetched nothing"]
        pytest.skip(f"needs the source of {wanted}, or GLB_GEVENT_SOURCE: {lines[-1]}")
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, **safely)
    return next(folder.glob("gevent-*/examples"))


def environment(loop: str, told: Path) -> dict[str, str]:
    """Return the environment of an example. Warnings of gevent's programs are not ours."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    ours = {"PYTHONPATH": path, "PYTHONDEVMODE": "", "GEVENT_LOOP": loop, "GLB_TOLD": str(told)}
    return {**os.environ, **ours}


@loops
@pytest.mark.parametrize("name", ["wsgiserver", "wsgiserver_ssl", "echoserver", "portforwarder"])
def test_gevents_tests_of_its_examples_pass(
    name: str, loop: str, examples: Path, tmp_path: Path
) -> None:
    """Unchanged, with 4 clones on 2 hubs, of which both serve if there are two connections."""
    told = tmp_path / "told"
    told.touch()
    result = subprocess.run(
        [sys.executable, "-c", TEST, str(examples), EXAMPLE, f"test__example_{name}"],
        env=environment(loop, told),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    ran = re.search(r"^Ran (\d) tests? [^\n]*\n\nOK$", result.stderr, re.MULTILINE)
    assert ran is not None, result.stderr
    servers = told.read_text().split("s")[1:]
    assert len(servers) == int(ran[1])
    # In which order two hubs write, when both have a connection, is theirs.
    assert all(each and each.count("0") - each.count("1") in {0, 1} for each in servers), servers


@contextmanager
def running(name: str, classes: str, loop: str, told: Path) -> Iterator[None]:
    """Run an example of this folder while the block lasts."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", EXAMPLE, classes, name],
        env=environment(loop, told),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not (told.exists() and told.read_bytes()):
            assert process.poll() is None and time.monotonic() < deadline, name
            time.sleep(0.01)
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


class Client(http.client.HTTPConnection):
    """A client that keeps its connection, to an IP address or to a Unix path."""

    def __init__(self, address: Any) -> None:
        self._address = address
        super().__init__("localhost" if isinstance(address, str) else "127.0.0.1")

    def connect(self) -> None:
        family = socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET
        self.sock = socket.socket(family)
        self.sock.settimeout(10)
        self.sock.connect(self._address)


def ask(address: Any, requests: tuple[tuple[str, str, str], ...], page: int) -> list[Any]:
    """Return status, fields but the date and the connection's, and body of each reply."""
    replies = []
    with closing(Client(address)) as client:
        for method, path, body in requests:
            client.request(method, path.format(page=page), body or None)
            reply = client.getresponse()
            fields = {name.lower(): value for name, value in reply.getheaders()}
            for name in ("date", "connection"):
                fields.pop(name, None)
            replies.append((reply.status, reply.reason, fields, reply.read()))
    return replies


class Page(http.server.BaseHTTPRequestHandler):
    """A page with a link, and without a length: the proxy makes links longer, and keeps lengths."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<a href='/search'>%b</a>" % self.path.encode())

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def page() -> Iterator[int]:
    """The port of a page."""
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()


@loops
@pytest.mark.parametrize("name", [*ASKED])
def test_an_example_replies_as_with_gevents_classes(
    name: str,
    loop: str,
    examples: Path,
    page: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same statuses, fields and bodies."""
    if name == "webpy.py" and importlib.util.find_spec("web") is None:
        pytest.skip("needs web.py")
    monkeypatch.chdir(examples)
    found = {}
    for classes in ("gevent", "glb"):
        told = tmp_path / classes
        with running(name, classes, loop, told):
            found[classes] = ask(*ASKED[name], page)
        assert classes == "gevent" or "0" in told.read_text()
    assert found["glb"] == found["gevent"]
    assert found["glb"][0][0] == 200
    if name == "webproxy.py":
        assert (
            found["glb"][1][3]
            == b'<a href="http://127.0.0.1/http://127.0.0.1:%d/search">/search?q=a</a>' % page
        )
