"""Each setting of gunicorn's beside its own gevent worker: the same is seen.

Two gunicorns run side by side with the same settings, and are asked the same.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

pytest.importorskip("gunicorn")

from ..support.tls import CERTIFICATES
from .processes import SHORT_STOP_SECONDS, Gunicorn, exchange, get, running

pytestmark = pytest.mark.process

WORKER = "patient.Worker"
FAST = "patient.FastWorker"

SETTINGS = """
import os

def say(name):
    def hook(*args):
        with open("hooks", "a") as file:
            file.write(name + "\\n")
    return hook

def post_worker_init(worker):
    say("post_worker_init")()
    worker.log.info("ready %s", worker.pid)

def post_fork(server, worker): say("post_fork")()
def pre_request(worker, req): say(f"pre_request {req.method} {req.path}")()
def post_request(worker, req, environ, resp): say(f"post_request {resp.status}")()
def worker_exit(server, worker): say(f"worker_exit {worker.nr}")()
def child_exit(server, worker): say("child_exit")()
def on_exit(server): say("on_exit")()

accesslog = "access"
access_log_format = '%(h)s "%(r)s" %(s)s %(B)s "%({x-own}i)s" %({content-length}o)s'
max_requests = 8
limit_request_line = 200
limit_request_fields = 5
limit_request_field_size = 100
forwarded_allow_ips = "127.0.0.1"
secure_scheme_headers = {"X-SECURE": "yes"}
proxy_protocol = True
keepalive = 1
raw_env = ["OWN=own"]
"""

STATSD = """
import glb

def post_worker_init(worker):
    worker.log.info("ready %s", worker.pid)
"""


class Seen(NamedTuple):
    """What clients, and gunicorn's files, have shown."""

    replies: list[str]
    hooks: list[str]
    accesses: list[str]


REQUESTS = [
    "GET /environ/REMOTE_ADDR HTTP/1.1\r\nHost: x\r\nX-Own: 1\r\n",
    "GET /environ/wsgi.url_scheme HTTP/1.1\r\nHost: x\r\nX-Secure: yes\r\n",
    "GET /environ/SERVER_NAME HTTP/1.0\r\n",
    "HEAD /environ/HTTP_HOST HTTP/1.1\r\nHost: x\r\n",
    f"GET /{'a' * 250} HTTP/1.1\r\nHost: x\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\n" + "A: 1\r\n" * 6,
    f"GET / HTTP/1.1\r\nHost: x\r\nA: {'a' * 150}\r\n",
    "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: nonsense\r\n",
    "nonsense\r\n",
    "POST /environ/CONTENT_LENGTH HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    "Content-Length: 3\r\n\r\nabc",
    # The same, for a client that a balancer names.
    "PROXY TCP4 192.0.2.1 127.0.0.1 5000 80\r\nGET /environ/REMOTE_ADDR HTTP/1.1\r\nHost: x\r\n",
]


def seen_of(folder: Path, worker: str) -> Seen:
    folder.mkdir()
    (folder / "gunicorn.conf.py").write_text(SETTINGS)
    with running(folder, worker) as program:
        program.ready()
        address = ("127.0.0.1", program.port())
        replies = []
        for request in REQUESTS:
            close = "" if request.startswith(("nonsense", "POST")) else "Connection: close\r\n\r\n"
            reply = exchange(address, (request + close).encode()).decode()
            replies.append(re.sub(r"Date: .*", "", reply))
        for _ in range(2):  # which are the 7th and the 8th that aren't refused
            get(address, "/environ/SERVER_PROTOCOL")
        program.wait_for("Autorestarting worker after current request")
        program.ready(2)
        program.stop()
    hooks = (folder / "hooks").read_text().splitlines()
    return Seen(replies, hooks, (folder / "access").read_text().splitlines())


@pytest.mark.thorough
def test_a_worker_shows_what_gunicorns_own_shows(tmp_path: Path) -> None:
    """Replies, hooks in their order and the access log: limits, proxies, requests counted."""
    with ThreadPoolExecutor(2) as pool:
        both = pool.map(seen_of, [tmp_path / "theirs", tmp_path / "ours"], ["gevent", WORKER])
        theirs, ours = both
    assert ours.replies == theirs.replies
    assert "192.0.2.1" in ours.replies[-1]
    assert "https" in ours.replies[1]
    assert ours.hooks == theirs.hooks
    assert ours.accesses == theirs.accesses


@pytest.mark.thorough
def test_the_first_request_of_a_fast_worker_is_the_same(tmp_path: Path) -> None:
    """Statsd's packets, and the access log's fields."""
    packets: dict[str, list[str]] = {}
    for worker in ("gevent", FAST):
        folder = tmp_path / worker
        folder.mkdir()
        (folder / "gunicorn.conf.py").write_text(STATSD)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
            statsd.bind(("127.0.0.1", 0))
            statsd.settimeout(20)
            options = [
                "--statsd-host", f"127.0.0.1:{statsd.getsockname()[1]}", "--access-logfile", "log",
                "--access-logformat", '%(h)s "%(r)s" %(s)s %({host}i)s %({content-length}o)s %(b)s',
            ]  # fmt: skip
            with running(folder, worker, *options) as program:
                program.ready()
                assert get(("127.0.0.1", program.port()), "/environ/REQUEST_METHOD") == "GET"
                found: list[str] = []
                while len(found) < 3:
                    packet = statsd.recv(1000).decode()
                    if packet.startswith("gunicorn.request"):
                        found.append(re.sub(r":[\d.]+\|ms", ":N|ms", packet))
                packets[worker] = found
            line = (folder / "log").read_text()
        assert line == '127.0.0.1 "GET /environ/REQUEST_METHOD HTTP/1.1" 200 x 3 3\n'
    assert packets[FAST] == packets["gevent"]


@pytest.fixture(params=[WORKER, FAST])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Gunicorn, str]]:
    """Two addresses of one gunicorn with TLS, of which one is a Unix socket; and preloaded."""
    path = str(tmp_path / "sock")
    server = CERTIFICATES / "server"
    tls = ["--certfile", f"{server}.crt", "--keyfile", f"{server}.key"]
    options = [*tls, "-b", f"unix:{path}", "--preload", "-w", "2"]
    (tmp_path / "program.py").write_text(PRELOADED)
    with running(tmp_path, request.param, *options, GLB_REQUEST_TIMEOUT="") as program:
        program.ready(2)
        yield program, path


PRELOADED = """
import os, signal, subprocess
from gevent import monkey
from threading import Lock
from time import sleep

assert sleep.__module__ == "gevent.hub", sleep
assert Lock.__module__ == "gevent.thread", Lock
assert signal.signal.__module__ == "signal", signal.signal
IMPORTED_IN = os.getpid()

def application(environ, start_response):
    if environ["PATH_INFO"] == "/kill":
        os.kill(os.getpid(), signal.SIGKILL)
    done = subprocess.run(["echo", environ["wsgi.url_scheme"]], capture_output=True)
    text = done.stdout.decode().strip()
    text += f" {IMPORTED_IN == os.getppid()} {signal.signal.__module__}"
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text.encode()]
"""


def test_two_addresses_with_tls_of_a_preloaded_application(served: tuple[Gunicorn, str]) -> None:
    """It was patched in the arbiter, which notices, all the same, that a worker has died."""
    program, path = served
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    (line, *_) = program.wait_for("Listening at: ")
    port = re.search(r"https://127\.0\.0\.1:(\d+)", line)
    assert port is not None
    for address in (("127.0.0.1", int(port[1])), path):
        assert get(address, wrap=context.wrap_socket) == "https True gevent.signal"
    since = len(program.lines)
    with pytest.raises((AssertionError, OSError)):
        get(path, "/kill", wrap=context.wrap_socket)
    program.ready(1, since)
    assert get(path, wrap=context.wrap_socket) == "https True gevent.signal"
    assert "Warning" not in program.said
    assert "Exception" not in program.said
    assert program.stop() < SHORT_STOP_SECONDS
    assert not Path(path).exists()
