"""Programs that know nothing of glb, run by it: exact turns, no change to their code.

Each program of ``tests/conformance/legacy`` runs once, in a child process, and is asked one
request after the other, and then many at a time; the tests look at what was recorded.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import xmlrpc.client
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gevent
import gevent.pool
import pytest
from gevent import ssl

from ..support.bounds import ENDLESS_SECONDS
from ..support.helpers import connect, receive_all
from ..support.ports import free_port

pytestmark = pytest.mark.process

ROOT = pathlib.Path(__file__).parents[2]
LEGACY = pathlib.Path(__file__).parent / "legacy"
TELL_CLONE = pathlib.Path(__file__).parent / "tell_clone.py"
COPIES = 4
IN_TURN = 400  # requests, one after the other
AT_ONCE = int(os.environ.get("GLB_LEGACY_REQUESTS", "400"))  # requests, some at a time
CONCURRENCY = 50
STOP_SECONDS = 1.0  # the programs look at their flags at least every half a second

Ask = Callable[[int, str], bytes]


# -- clients ------------------------------------------------------------------------------------


def ask_line(port: int, what: str) -> bytes:
    """Send a line, and return the reply: the copy, and the line again."""
    with connect(("127.0.0.1", port)) as client:
        client.sendall(what.encode() + b"\n")
        return receive_all(client).removesuffix(b"\n")


def page_of(client: Any, what: str) -> tuple[bytes, bytes]:
    """Return the head and the body of the reply.

    We read no further than Content-Length, as browsers do: werkzeug waits 10 ms for
    us to close.
    """
    client.sendall(f"GET {what} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    reply = b""
    while data := client.recv(65536):
        reply += data
        head, end, body = reply.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if end and length and len(body) == int(length[1]):
            break
    assert re.match(rb"HTTP/1\.[01] 200 ", reply), reply
    return head, body


def ask_http(port: int, what: str) -> bytes:
    with connect(("127.0.0.1", port)) as client:
        return page_of(client, what)[1]


TLS_CLIENT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TLS_CLIENT.check_hostname = False
TLS_CLIENT.verify_mode = ssl.CERT_NONE


def ask_https(port: int, what: str) -> bytes:
    with TLS_CLIENT.wrap_socket(connect(("127.0.0.1", port))) as client:
        return page_of(client, what)[1]


def ask_header(port: int, what: str) -> bytes:
    """Return the copy from the header that ``tell_clone.py`` adds, and the page."""
    with connect(("127.0.0.1", port)) as client:
        head, body = page_of(client, what)
    found = re.search(rb"(?i)\r\nclone: (\d+)", head)
    assert found is not None, head
    return found[1] + b" " + body


def ask_xmlrpc(port: int, what: str) -> bytes:
    body = xmlrpc.client.dumps((what,), "serve").encode()
    head = f"POST /RPC2 HTTP/1.0\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    with connect(("127.0.0.1", port)) as client:
        client.sendall(head.encode() + body)
        reply = receive_all(client).partition(b"\r\n\r\n")[2]
    (result,), _ = xmlrpc.client.loads(reply)
    assert isinstance(result, str)
    return result.encode()


# -- programs -----------------------------------------------------------------------------------


class Program(NamedTuple):
    """A file in ``legacy``, what it needs, how it is asked, and what it may write to stderr."""

    name: str
    ask: Ask
    needs: tuple[str, ...] = ()
    log: str | None = None  # a pattern: one such line for each request
    tls: bool = False
    one_server: bool = False  # with as many clones as the others have copies

    def __str__(self) -> str:
        return self.name


COMMON_LOG = r'127\.0\.0\.1 - - \[[^]]+\] "GET /\S* HTTP/1\.0" 200 \S+'
GEVENT_LOG = COMMON_LOG + r" \d+\.\d+"
DJANGO_LOG = r'\[[^]]+\] "GET /\S* HTTP/1\.0" 200 \d+'

COPIED = [
    Program("tcp_threading", ask_line),
    Program("tcp_single", ask_line),
    Program("http_threading", ask_http, log=COMMON_LOG),
    Program("http_single", ask_http, log=COMMON_LOG),
    Program("http_tls", ask_https, log=COMMON_LOG, tls=True),
    Program("wsgiref_simple", ask_http, log=COMMON_LOG),
    Program("xmlrpc_simple", ask_xmlrpc),
    Program("werkzeug_fd", ask_http, needs=("werkzeug",), log=COMMON_LOG),
    Program("flask_werkzeug", ask_http, needs=("flask", "werkzeug"), log=COMMON_LOG),
    Program("bottle_wsgiref", ask_http, needs=("bottle",)),
    Program("django_wsgi", ask_http, needs=("django",), log=DJANGO_LOG),
    Program("accept_loop", ask_line),
    Program("accept_timeout", ask_line),
    Program("select_loop", ask_line),
    Program("poll_loop", ask_line),
    Program("selectors_echo", ask_line),
    Program("asyncio_streams", ask_line),
    Program("accept_polling", ask_line),
    Program("cheroot_wsgi", ask_http, needs=("cheroot",)),
    Program("waitress_sockets", ask_http, needs=("waitress",)),
]
"""They open four copies on one port."""

SOCKETIO = Program(
    "flask_socketio_gevent", ask_header, needs=("flask_socketio", "websocket"), one_server=True
)
CLONED = [
    Program("gevent_stream", ask_line, one_server=True),
    Program("gevent_pywsgi", ask_header, log=GEVENT_LOG, one_server=True),
    Program("bottle_gevent", ask_header, needs=("bottle",), one_server=True),
    SOCKETIO,
]
"""They open one server of gevent's, which gets four clones."""


#: What ``GLB_LEGACY=few`` leaves: one of each kind.
FEW = {"tcp_threading", "http_tls", "select_loop", "selectors_echo", "accept_polling"}
FEW |= {"gevent_pywsgi"}


def skip_what_cannot_run(program: Program) -> None:
    if os.environ.get("GLB_LEGACY") == "few" and program.name not in FEW:
        pytest.skip("GLB_LEGACY=few leaves it out")
    for module in program.needs:
        pytest.importorskip(module)
    if program.tls and not shutil.which("openssl"):
        pytest.skip("there is no openssl to make a certificate")


def make_certificate(folder: pathlib.Path) -> list[str]:
    """Return the paths of a new certificate and its key."""
    made = [str(folder / "certificate.pem"), str(folder / "key.pem")]
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=localhost"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-out", made[0], "-keyout", made[1]),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return made


def glb_command(program: Program) -> list[str]:
    """Return what runs *program* under glb."""
    command = ["-X", "dev", "-W", "error", "-m", "glb", "run"]
    if program.one_server:
        command += ["--clones", str(COPIES), str(TELL_CLONE)]
    return command


def gevent_command(_program: Program) -> list[str]:
    """Return what runs a program with nothing but gevent."""
    return ["-X", "dev", "-m", "gevent.monkey"]


class Running(NamedTuple):
    """A program that serves.

    Attributes:
        errors: What gets its stderr: a pipe would fill up.
    """

    process: subprocess.Popen[str]
    port: int
    errors: pathlib.Path

    def end(self) -> tuple[int, dict[str, Any]]:
        """Send a line, and return the status, and what the program says of its end."""
        out, _ = self.process.communicate("\n")
        return self.process.returncode, json.loads(out) if out else {}


@contextlib.contextmanager
def running(program: Program, command: list[str], folder: pathlib.Path) -> Iterator[Running]:
    """Run *program* until it serves; whatever comes, it is ended and waited for."""
    port = free_port()  # some need it: they don't share "any port"
    words = [*command, str(LEGACY / f"{program.name}.py"), str(port)]
    if program.tls:
        words += make_certificate(folder)
    errors = folder / "stderr"
    path = os.pathsep.join(filter(None, [str(ROOT), str(LEGACY), os.environ.get("PYTHONPATH")]))
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": path},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        timer = threading.Timer(ENDLESS_SECONDS, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.split() == ["port", str(port)], line + errors.read_text()
            yield Running(process, port, errors)
        finally:
            timer.cancel()
            timer.join()
            process.kill()


class Outcome(NamedTuple):
    """What a program did.

    Attributes:
        order: The copies that served one request after the other.
        wrong: The replies that were not what they should be, or what was raised instead.
        left: What the program says of its end.
        errors: What it wrote to stderr.
    """

    order: list[int]
    wrong: list[str]
    status: int
    left: dict[str, Any]
    errors: str


def judge(program: Program, command: list[str], folder: pathlib.Path, at_once: int) -> Outcome:
    """Run *program*, ask it one request after the other, and then *at_once*, and end it."""
    numbers = itertools.count()
    wrong: list[str] = []

    def one(_: int = 0) -> int:
        what = f"/{next(numbers)}"
        try:
            reply = program.ask(port, what).decode()
        except (OSError, AssertionError) as error:
            reply = repr(error)
        if found := re.fullmatch(rf"([0-{COPIES - 1}]) {what}", reply):
            return int(found[1])
        wrong.append(f"{what}: {reply}")
        return -1

    with running(program, command, folder) as child:
        port = child.port
        order = [one() for _ in range(IN_TURN)]
        pool = gevent.pool.Pool(CONCURRENCY)
        for _ in pool.imap_unordered(one, range(at_once)):
            pass
        return Outcome(order, wrong, *child.end(), child.errors.read_text())


@pytest.fixture(scope="module", params=[*COPIED, *CLONED], ids=str)
def judged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Program, Outcome]:
    """A program, and what it did under glb."""
    program: Program = request.param
    skip_what_cannot_run(program)
    folder = tmp_path_factory.mktemp(program.name)
    return program, judge(program, glb_command(program), folder, AT_ONCE)


def test_turns_are_exact(judged: tuple[Program, Outcome]) -> None:
    """One request after the other is served by one copy after the other, all the time."""
    order = judged[1].order
    assert sorted(order[:COPIES]) == [*range(COPIES)]
    assert order == order[:COPIES] * (IN_TURN // COPIES)


def test_every_reply_is_right(judged: tuple[Program, Outcome]) -> None:
    """No client is refused, left waiting, or given another's reply, also in a crowd."""
    assert judged[1].wrong == []


def test_stop_is_quick_and_leaves_nothing(judged: tuple[Program, Outcome]) -> None:
    """The program's own way to stop works as ever: in time, no thread, no descriptor is left."""
    outcome = judged[1]
    assert outcome.status == 0
    assert outcome.left.pop("seconds") < STOP_SECONDS
    assert outcome.left == {"descriptors": 0, "threads": []}


def test_nothing_is_complained_of(judged: tuple[Program, Outcome]) -> None:
    """Stderr has a line for each request, if the program logs, and no warning or traceback."""
    program, outcome = judged
    lines = outcome.errors.splitlines()
    logged = [each for each in lines if program.log and re.fullmatch(program.log, each)]
    assert [each for each in lines if each not in logged] == []
    assert len(logged) == (IN_TURN + AT_ONCE if program.log else 0)


@pytest.mark.parametrize("name", ["tcp_single", "http_threading", "accept_loop", "selectors_echo"])
def test_program_is_ordinary(name: str, tmp_path: pathlib.Path) -> None:
    """The programs run as well with nothing but gevent: then the kernel deals."""
    (program,) = [each for each in COPIED if each.name == name]
    outcome = judge(program, gevent_command(program), tmp_path, 0)
    assert (outcome.wrong, outcome.status) == ([], 0)
    assert set(outcome.order) == {*range(COPIES)}


# -- Socket.IO ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Socket.IO server with clones."""
    skip_what_cannot_run(SOCKETIO)
    folder = tmp_path_factory.mktemp("chat")
    with running(SOCKETIO, glb_command(SOCKETIO), folder) as child:
        yield child.port
        status, left = child.end()
        assert left.pop("seconds") < STOP_SECONDS
        assert (status, left) == (0, {"descriptors": 0, "threads": []})
        assert child.errors.read_text() == ""


def test_websockets_are_served_side_by_side(chat: int) -> None:
    """Clients with a websocket each, all open, are answered, each with what it said."""
    import websocket

    url = f"ws://127.0.0.1:{chat}/socket.io/?EIO=4&transport=websocket"
    clients = [websocket.create_connection(url, timeout=10) for _ in range(5 * COPIES)]
    for client in clients:
        assert str(client.recv()).startswith("0{")
        client.send("40")
        assert str(client.recv()).startswith("40{")
    for _ in range(2):
        for number, client in enumerate(clients):
            client.send(f'421["say","hello {number}"]')
        for number, client in enumerate(clients):
            assert client.recv() == f'42["said","HELLO {number}"]'
            assert client.recv() == f'431["hello {number}"]'
    for client in clients:
        client.close()


class LongPoll:
    """A Socket.IO client that makes a connection for each request."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.path = "/socket.io/?EIO=4&transport=polling"
        self.clones: set[bytes] = set()
        opened = json.loads(self.get().removeprefix(b"0"))
        self.path += f"&sid={opened['sid']}"
        self.post(b"40")
        assert self.get().startswith(b"40{")

    def ask(self, request: str, body: bytes = b"") -> bytes:
        with connect(("127.0.0.1", self.port)) as client:
            client.sendall(
                f"{request} {self.path} HTTP/1.0\r\nHost: localhost\r\n"
                f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            head, _, reply = receive_all(client).partition(b"\r\n\r\n")
        assert b" 200 " in head, head
        self.clones.update(re.findall(rb"(?i)\r\nclone: (\d+)", head))
        return reply

    def get(self) -> bytes:
        return self.ask("GET")

    def post(self, body: bytes) -> None:
        assert self.ask("POST", body).lower() == b"ok"


def test_long_polls_are_served_side_by_side(chat: int) -> None:
    """A client's requests are served by all clones in turn, and waits for news hold none up."""
    clients = [LongPoll(chat) for _ in range(2 * COPIES)]
    waits = [gevent.spawn(client.get) for client in clients]
    for number, client in enumerate(clients):
        client.post(b'421["say","hello %d"]' % number)
    for number, (client, wait) in enumerate(zip(clients, waits, strict=True)):
        packets = wait.get(timeout=10).split(b"\x1e")
        while len(packets) < 2:
            packets += client.get().split(b"\x1e")
        assert packets == [b'42["said","HELLO %d"]' % number, b'431["hello %d"]' % number]
    for _ in range(COPIES):
        clients[0].post(b"3")  # a pong
    assert set.union(*(client.clones for client in clients)) == {b"%d" % i for i in range(COPIES)}
    for client in clients:
        client.post(b"1")  # the end
