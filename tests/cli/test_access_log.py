"""The access log: its formats, that no client forges a line, and its file."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gevent.event import Event

import glb.cli.console
from glb.cli.access_log import FORMATS, AccessLog, handler_class
from glb.cli.serve import serve
from glb.pywsgi import WSGIHandler, WSGIServer

from ..fuzz.pages import ByHooks
from ..support.helpers import ask, comes_true, connect, http_get, receive_all
from ..support.ports import free_port
from .test_commands import Served, child, in_terminal, serving

process_of_its_own = pytest.mark.process

COMMON = re.compile(
    r'(\S+) - - \[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "([^"]*)" (\d{3}) (\d+|-)'
    r'(?: "([^"]*)" "([^"]*)")?'
)

PROGRAM = """
def application(environ, start_response):
    path = environ["PATH_INFO"]
    environ.clear()
    if path == "/fail":
        raise RuntimeError("no luck")
    if path == "/none":
        start_response("204 No Content", [])
        return []
    length = [("Content-Length", "5")] if path == "/length" else []
    start_response("200 OK", [("Content-Type", "text/plain"), *length])
    if path == "/parts":
        return (each for each in [b"a" * 10, b"b" * 20])
    if path == "/hints":
        return [b"x" * 100_000]
    return [b"hello"]

def handle(sock, address):
    sock.sendall(b"hello")
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A current directory with a program."""
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


class Lines:
    """A log that keeps what is written."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def logged(form: str, *requests: bytes, application: Any = None, **more: Any) -> list[str]:
    """Return the lines that requests make, each on a connection of its own."""
    if application is None:
        found: dict[str, Any] = {}
        exec(PROGRAM, found)
        application = found["application"]
    log = Lines()
    made = handler_class(form)
    options: dict[str, Any] = {"log": log, "error_log": None, "handler_class": made}
    options.update(more)
    with WSGIServer(("127.0.0.1", 0), application, clones=2, **options) as server:
        server.start()
        for request in requests:
            client = connect(server.address)
            client.sendall(request)
            receive_all(client)
            client.close()
        assert comes_true(lambda: len(log.lines) == len(requests))
    return log.lines


def get(path: str, version: str = "1.1", method: str = "GET", fields: str = "") -> bytes:
    head = f"{method} {path} HTTP/{version}\r\nHost: x\r\nConnection: close\r\n{fields}\r\n"
    return head.encode("latin-1")


# -- formats ------------------------------------------------------------------------------------


def test_formats_are_those_of_the_option() -> None:
    """What may be chosen is there."""
    option = next(each for each in serve.params if each.name == "log_format")
    assert [*option.type.choices] == [*FORMATS]  # type: ignore[attr-defined]  # it is a choice


def test_handler_reads_requests_as_fast_as_without_a_log() -> None:
    """A format overrides no method of those by which requests are read."""
    for form in FORMATS:
        assert handler_class(form)._is_lean


def test_common_and_combined_are_apaches() -> None:
    """Fields in their order, whatever the application does to its environ."""
    before = int(time.time())
    fields = "Referer: http://a/b\r\nUser-Agent: me/1\r\n"
    for form, more in (("common", (None, None)), ("combined", ("http://a/b", "me/1"))):
        (line,) = logged(form, get("/x?y=1", fields=fields))
        found = COMMON.fullmatch(line)
        assert found is not None, line
        assert found[1] == "127.0.0.1"
        seconds = time.mktime(time.strptime(found[2][:20], "%d/%b/%Y:%H:%M:%S"))
        assert before <= seconds <= time.time()
        assert found[2][21:] == time.strftime("%z")
        assert found.group(3, 4, 5, 6, 7) == ("GET /x?y=1 HTTP/1.1", "200", "5", *more)
    assert logged("combined", get("/"))[0].endswith(' 200 5 "-" "-"')


def test_json_has_opentelemetrys_names() -> None:
    """One object a line; what isn't known has no field."""
    fields = "User-Agent: me/1\r\nReferer: http://a/\r\n"
    first, second = map(json.loads, logged("json", get("/x%20y?a=%22b", fields=fields), get("/")))
    assert first.pop("timestamp").endswith("Z")
    assert 0 <= first.pop("duration") < 60
    assert first.pop("client.port") > 0
    assert first == {
        "client.address": "127.0.0.1",
        "http.request.method": "GET",
        "url.path": "/x%20y",
        "url.query": "a=%22b",
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
        "http.response.body.size": 5,
        "user_agent.original": "me/1",
        "http.request.header.referer": ["http://a/"],
        "glb.clone": 0,
    }
    assert second["glb.clone"] == 1
    assert {"url.query", "user_agent.original", "http.request.header.referer"}.isdisjoint(second)


def test_a_proxys_client_has_no_port() -> None:
    """A proxy gives its client's address, and no port: JSON has no field for it."""
    request = get("/", fields="X-Forwarded-For: 1.2.3.4\r\n")
    (line,) = map(json.loads, logged("json", request, forwarded_allow_ips="*"))
    assert line["client.address"] == "1.2.3.4"
    assert "client.port" not in line


@pytest.mark.parametrize(
    ("request_", "status", "size"),
    [
        (get("/"), 200, 5),
        (get("/", version="1.0"), 200, 5),
        (get("/", method="HEAD"), 200, 0),
        (get("/length"), 200, 5),
        (get("/hints"), 200, 100_000),
        (get("/none"), 204, 0),
        (get("/parts", version="1.0"), 200, 30),
        (get("/parts"), 200, 30 + len(b"a\r\n\r\n14\r\n\r\n0\r\n\r\n")),
        (get("/fail"), 500, len("Internal Server Error")),
    ],
)
def test_size_is_that_of_what_came_after_the_head(request_: bytes, status: int, size: int) -> None:
    """As nginx counts it: with the frames of chunks, without the head."""
    (line,) = logged("json", request_)
    found = json.loads(line)
    assert (found["http.response.status_code"], found["http.response.body.size"]) == (status, size)


def test_early_hints_are_no_part_of_the_body() -> None:
    """They come before the head of the reply."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload")])
        start_response("200 OK", [("Content-Length", "5")])
        yield b"hello"

    (line,) = logged("json", get("/"), application=application)
    assert json.loads(line)["http.response.body.size"] == 5


def test_requests_of_one_connection_are_counted_alone() -> None:
    """What one has left behind says nothing of the next."""
    log = Lines()
    found: dict[str, Any] = {}
    exec(PROGRAM, found)
    options: dict[str, Any] = {"log": log, "handler_class": handler_class("json")}
    with WSGIServer(("127.0.0.1", 0), found["application"], clones=1, **options) as server:
        server.start()
        client = connect(server.address)
        keep = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n"
        client.sendall(keep % b"/" + keep % b"/none" + keep % b"/length" + get("/parts"))
        receive_all(client)
        client.close()
        assert comes_true(lambda: len(log.lines) == 4)
    sizes = [json.loads(line)["http.response.body.size"] for line in log.lines]
    assert sizes == [5, 0, 5, 46]


# -- requests that were refused -----------------------------------------------------------------

#: What is sent, the first line as the log has it, and the status.
REFUSED = [
    (b"GET / HTTP/1.1\r\nA B: c\r\n\r\n", "GET / HTTP/1.1", 400),
    (b"GET /%s HTTP/1.1\r\n\r\n" % (b"x" * 9000), f"GET /{'x' * 8185}", 414),
    (b"GET / HTTP/1.1\r\n%b\r\n" % (b"A: b\r\n" * 101), "GET / HTTP/1.1", 431),
    (b"POST / HTTP/1.1\r\nTransfer-Encoding: x\r\n\r\n", "POST / HTTP/1.1", 501),
    (b"GET / HTTP/2.0\r\n\r\n", "GET / HTTP/2.0", 505),
    (b"GET / HT", "GET / HT", 400),
    (b"\x16\x03\x01\x02\x00\x01", r"\x16\x03\x01\x02\x00\x01", 400),
    (b'" 200 5 "\x1b[31m\xff\r\n\r\n', r"\x22 200 5 \x22\x1B[31m\xFF", 400),
    (b"\n1.2.3.4 - - [x]\r\n\r\n", "", 400),
    (b"\r1.2.3.4 - - [x]\n\r\n", r"\x0D1.2.3.4 - - [x]", 400),
]


def log_of(handler_class_: Any, *parts: bytes, ends: bool = True, **options: Any) -> list[str]:
    """Return the lines that one connection makes, on which *parts* are sent."""
    found: dict[str, Any] = {}
    exec(PROGRAM, found)
    log = Lines()
    application, address = found["application"], ("127.0.0.1", 0)
    given: dict[str, Any] = {"log": log, "error_log": None, "handler_class": handler_class_}
    with WSGIServer(address, application, clones=1, **given, **options) as server:
        server.start()
        client = connect(server.address)
        for part in parts:
            client.sendall(part)
        if ends:
            client.shutdown(socket.SHUT_WR)
        receive_all(client)
        client.close()
        assert comes_true(lambda: server.active == 0)
    return log.lines


def test_why_a_request_is_refused_is_in_glbs_log(caplog: pytest.LogCaptureFixture) -> None:
    """One line, which begins with what happened, and not with a socket's address in memory."""
    log_of(handler_class("json"), b"GET  /%s HTTP/1.1\r\nHost: x\r\n\r\n")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("glb", "WARNING")
    line = (
        r"Invalid request \(from \('127\.0\.0\.1', \d+\)\): no request line: 'GET  /%s HTTP/1\.1'"
    )
    assert re.fullmatch(line, record.getMessage())


@pytest.mark.parametrize(("sent", "line", "status"), REFUSED)
def test_a_request_that_is_refused_has_a_line(sent: bytes, line: str, status: int) -> None:
    """With its first line as it came, as far as that is one; it can't be forged by that."""
    for form in ("common", "combined"):
        (found,) = log_of(handler_class(form), sent)
        match = COMMON.fullmatch(found)
        assert match is not None, found
        assert match.group(1, 3, 4, 5) == ("127.0.0.1", line, str(status), "-")
    (found,) = log_of(handler_class("json"), sent)
    fields = json.loads(found)
    assert (fields.get("glb.request_line", ""), fields["http.response.status_code"]) == (
        line,
        status,
    )
    assert {"http.request.method", "url.path", "network.protocol.version"}.isdisjoint(fields)


@pytest.mark.parametrize(("sent", "line", "status"), REFUSED)
def test_both_loops_log_the_same_of_refusals(sent: bytes, line: str, status: int) -> None:
    """Also in gevent's own format, which escapes nothing."""
    lines = [
        re.sub(r"\[.*?\]", "[]", each, count=1)
        for loop in (WSGIHandler, ByHooks)
        for each in log_of(loop, sent)
    ]
    assert lines[0].startswith(f'127.0.0.1 - - [] "{line}" {status} ')
    assert lines == [lines[0]] * 2


def test_a_request_whose_head_was_read_is_logged_with_it() -> None:
    """One with too long a body, say."""
    head = b"POST /x?y HTTP/1.1\r\nHost: a\r\nUser-Agent: me\r\nContent-Length: 9\r\n\r\n"
    (line,) = log_of(handler_class("json"), head, max_body=8)
    found = json.loads(line)
    names = ("http.request.method", "url.path", "user_agent.original", "http.response.status_code")
    assert [found[name] for name in names] == ["POST", "/x", "me", 413]
    assert "glb.request_line" not in found


def test_a_silent_client_has_a_line() -> None:
    """With what it has said of its request."""
    (line,) = log_of(handler_class("common"), b"GET / HT", ends=False, first_byte_timeout=0.02)
    assert '"GET / HT" 408 -' in line


def test_a_refusal_shows_nothing_of_the_request_before() -> None:
    """On the same connection: neither its length nor its line, nor its client behind a proxy."""
    before = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n"
    for form in ("common", "json"):
        first, second = log_of(handler_class(form), before, b"BAD\r\n\r\n", forwarded_allow_ips="*")
        assert "9.9.9.9" in first
        if form == "json":
            found = json.loads(second)
            assert (found["client.address"], found["http.response.body.size"]) == ("127.0.0.1", 0)
        else:
            assert second.startswith("127.0.0.1 - - [")
            assert second.endswith('"BAD" 400 -')


def test_a_client_that_says_nothing_has_no_line() -> None:
    """It has asked for nothing."""
    assert log_of(handler_class("common")) == []


@pytest.mark.parametrize("form", FORMATS)
def test_a_request_that_takes_too_long_has_a_line(form: str) -> None:
    """With the status that it got."""
    log = Lines()

    def application(*_: object) -> Any:
        Event().wait()

    made: dict[str, Any] = {"handler_class": handler_class(form), "error_log": None, "log": log}
    with WSGIServer(
        ("127.0.0.1", 0), application, clones=1, request_timeout=0.02, **made
    ) as server:
        server.start()
        with connect(server.address) as client:
            client.sendall(get("/slow"))
            assert receive_all(client)[9:12] == b"503"
    (line,) = log.lines
    assert ('"http.response.status_code": 503' if form == "json" else '" 503 -') in line


# -- what can't be forged -----------------------------------------------------------------------

FORGERIES = [
    'x" 200 5 "-" "me',
    "x\\",
    "\x85 \xa0 \xff \xad",
    "\xe2\x80\xa8 \xc2\x9b31m",
    '{"a": "b"}',
    "\t x",
]


@pytest.mark.parametrize("value", FORGERIES)
@pytest.mark.parametrize("form", FORMATS)
def test_no_client_forges_a_line_or_a_field(form: str, value: str) -> None:
    """One line of printable ASCII, that reads back as it was sent."""
    fields = f"User-Agent: {value}\r\nReferer: {value}\r\n"
    path = '/"\\'
    (line,) = logged(form, get(path, fields=fields))
    assert line.isascii() and line.isprintable()
    if form == "json":
        found = json.loads(line)
        raw = value.strip(" \t").encode("latin-1").decode("utf-8", "backslashreplace")
        assert found["user_agent.original"] == raw
        assert found["url.path"].startswith('/"\\')
        assert found["http.response.status_code"] == 200
    else:
        match = COMMON.fullmatch(line)
        assert match is not None, line
        assert match.group(3, 4, 5) == (r"GET /\x22\x5C HTTP/1.1", "200", "5")


@process_of_its_own
def test_a_unix_sockets_client_has_no_address(folder: pathlib.Path) -> None:
    """A dash, or no field."""
    for form in FORMATS:
        with serving("program", "--log-format", form, cwd=folder, bind="unix:s") as served:
            client = connect(os.path.relpath(folder / "s"))
            client.sendall(get("/"))
            receive_all(client)
            client.close()
            line = served.read_line("")
        if form == "json":
            assert "client.address" not in json.loads(line)
        else:
            assert line.startswith("- - - [")


# -- the file -----------------------------------------------------------------------------------


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that are put in glb's log."""
    lines: list[str] = []
    monkeypatch.setattr(glb.cli.console, "tell", lambda text, *args: lines.append(text % args))
    return lines


def test_file_is_appended_to_and_reopened(tmp_path: pathlib.Path) -> None:
    """What was there stays; after a rename lines go on in the old file until it is reopened."""
    path = tmp_path / "log"
    path.write_text("before\n")
    log = AccessLog(str(path))
    log.write("one\n")
    path.rename(tmp_path / "old")
    log.write("two\n")
    log.reopen()
    log.write("three\n")
    log.close()
    log.close()
    assert (tmp_path / "old").read_text() == "before\none\ntwo\n"
    assert path.read_text() == "three\n"


def test_file_that_cant_be_reopened_goes_on(tmp_path: pathlib.Path) -> None:
    """The lines are in the file that was open."""
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "log"
    log = AccessLog(str(path))
    (tmp_path / "folder").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        log.reopen()
    log.write("one\n")
    log.close()
    assert (tmp_path / "gone" / "log").read_text() == "one\n"


def test_lines_that_cant_be_written_are_counted_and_fail_no_request(
    log_lines: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """A full disk is said once, and once more when it is over."""
    log = AccessLog(str(tmp_path / "log"))
    room = [0]

    def write(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= 1
        return descriptor and min(3, len(data))  # a part of it

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        log.write("one\n")
        log.write("two\n")
        room[0] = 2
        log.write("three\n"[:5])
    log.close()
    name = str(tmp_path / "log")
    assert log_lines == [
        f"can't write to {name}: No space left on device; lines are lost until it can",
        f"{name} is written to again; 2 lines lost",
    ]


def test_lines_of_many_threads_stay_whole(tmp_path: pathlib.Path) -> None:
    """Hubs are threads; the file is reopened meanwhile."""
    path = tmp_path / "log"
    log = AccessLog(str(path))
    barrier = threading.Barrier(5)

    def write(number: int) -> None:
        barrier.wait()
        for _ in range(200):
            log.write(f"{number}" * 5000 + "\n")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    barrier.wait()
    for _ in range(50):
        log.reopen()
    for each in threads:
        each.join()
    log.close()
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{number}" * 5000 for number in range(4) for _ in range(200))


# -- glb serve ----------------------------------------------------------------------------------


def ask_some(served: Served, *paths: str) -> None:
    for path in paths:
        http_get(served.address, path)


@process_of_its_own
def test_signal_reopens_the_file(folder: pathlib.Path) -> None:
    """As logrotate has it: rename, signal, and on in the new one."""
    options = ("--access-log", "log", "--log-format", "combined", "--hubs", "2")
    with serving("program", *options, cwd=folder) as served:
        ask_some(served, "/one")
        assert comes_true(lambda: "/one " in (folder / "log").read_text())
        (folder / "log").rename(folder / "log.1")
        served.process.send_signal(signal.SIGUSR1)
        served.read_line("glb: reopened log\n")
        ask_some(served, "/two", "/three")
        status, err = served.end()
        assert (status, "GET" in err) == (0, False)
    assert (folder / "log.1").read_text().count("\n") == 1
    lines = (folder / "log").read_text().splitlines()
    assert [line.split()[6] for line in lines] == ["/two", "/three"]


@process_of_its_own
def test_signal_without_a_file_ends_nothing(folder: pathlib.Path) -> None:
    """Its default is an end, which is not what it is for here."""
    for target in ("program", "program:handle"):
        with serving(target, cwd=folder) as served:
            served.process.send_signal(signal.SIGUSR1)
            served.read_line("glb: nothing to reopen: --access-log names no file\n")
            assert served.end()[0] == 0


@process_of_its_own
def test_log_may_go_to_stdout(folder: pathlib.Path) -> None:
    """A dash is stdout; glb's own lines stay on stderr."""
    with serving("program", "--access-log", "-", "--log-format", "json", cwd=folder) as served:
        ask_some(served, "/one", "/two")
        assert served.process.stdout is not None
        lines = [json.loads(served.process.stdout.readline()) for _ in range(2)]
        assert [line["url.path"] for line in lines] == ["/one", "/two"]
        assert [line["glb.clone"] for line in lines] == [0, 1]
        assert served.end()[0] == 0


@process_of_its_own
def test_stdout_that_is_closed_is_said(folder: pathlib.Path) -> None:
    """A supervisor may start programs without one; only a log that goes there needs it."""
    code = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = ("-c", code, "-m", "glb")
    with child(*command, "serve", "program", "--access-log", "-", cwd=folder) as process:
        _, err = process.communicate()
    assert process.returncode == 2
    assert err == "glb: --access-log from the command line: can't open '-': stdout is closed\n"
    with serving("program", cwd=folder, command=command) as served:
        ask_some(served, "/one")
        assert served.end()[0] == 0


@process_of_its_own
def test_file_is_written_below_a_live_table(folder: pathlib.Path) -> None:
    """A file that is named has the log, and not the terminal."""
    args = ("serve", "program", "--bind", "127.0.0.1:0", "--access-log", "log")
    with in_terminal(*args, cwd=folder) as (process, read):
        port = read(r"serving program on http://127.0.0.1:\d+").rpartition(":")[2]
        read(r"0 +\S*accepting")
        http_get(("127.0.0.1", int(port)), "/one")
        assert comes_true(lambda: '"GET /one HTTP/1.0" 200 5' in (folder / "log").read_text())
        process.send_signal(signal.SIGINT)
        read(r".*ended.*\x1b\[\?25h")
        assert process.wait() == 0


@process_of_its_own
def test_log_on_a_terminals_stdout_takes_the_tables_place(folder: pathlib.Path) -> None:
    """Both can't be there."""
    args = ("serve", "program", "--bind", "127.0.0.1:0", "--access-log", "-")
    with in_terminal(*args, cwd=folder) as (process, read):
        port = read(r"glb: serving program on http://127.0.0.1:\d+").rpartition(":")[2]
        http_get(("127.0.0.1", int(port)), "/one")
        read(r'"GET /one HTTP/1.0" 200 5\r\n')
        process.send_signal(signal.SIGINT)
        assert "accepting" not in read(r".*glb: stopped after 1 connection.*by clone: 1 0 0 0")
        assert process.wait() == 0


@process_of_its_own
@pytest.mark.parametrize("option", [("--access-log", "log"), ("--log-format", "json")])
def test_a_stream_has_no_access_log(option: tuple[str, str], folder: pathlib.Path) -> None:
    """There are no requests that glb knows of."""
    with child("-m", "glb", "serve", "program:handle", *option, cwd=folder) as process:
        _, err = process.communicate()
    assert process.returncode == 2
    assert err.startswith(f"glb: {option[0]} from the command line: it is for WSGI")
    assert not (folder / "log").exists()


@process_of_its_own
def test_level_leaves_lines_out(folder: pathlib.Path) -> None:
    """A supervisor may not want them."""
    port = free_port()
    args = ("serve", "program:handle", "--bind", f"127.0.0.1:{port}", "--log-level", "WARNING")
    with child("-m", "glb", *args, cwd=folder) as process:
        assert comes_true(lambda: is_open(port))
        assert ask(("127.0.0.1", port)) == b"hello"
        process.send_signal(signal.SIGTERM)
        assert process.communicate() == ("", "")
        assert process.returncode == 0


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_status_of_old_handlers_is_read() -> None:
    """A reply that never began has none, or one in bytes."""
    status: Callable[[Any], str] = glb.cli.access_log._status
    for orig, now, expected in (
        (None, None, "000"),
        (None, b"400 Bad", "400"),
        ("200 OK", b"x", "200"),
    ):
        assert status(SimpleNamespace(_orig_status=orig, status=now)) == expected
