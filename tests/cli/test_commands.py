"""The command line, as real processes wherever that can be."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import pty
import re
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from click.testing import CliRunner
from gevent.event import Event

import glb.cli.commands
import glb.cli.console
import glb.cli.demo
import glb.model.stats
from glb.cli.demo import Outcome
from glb.cli.target import TargetError

from ..support.bounds import ENDLESS_SECONDS
from ..support.forks import Forks
from ..support.helpers import (
    Holder,
    ask,
    close_all,
    comes_true,
    connect,
    http_get,
    is_refused,
    receive_all,
    turns,
    wait_until,
)

pytestmark = pytest.mark.process

ROOT = pathlib.Path(glb.__file__).parents[1]
CERTIFICATES = pathlib.Path(gevent.__file__).parent / "tests"

PROGRAM = """
import glb

def application(environ, start_response):
    start_response("200 OK", [])
    return [b"%d %s" % (environ["glb.clone"], environ["wsgi.url_scheme"].encode())]

def ambiguous(first, second):
    second("200 OK", [])
    return [b"wsgi after all"]

def unknown(*args):
    return args

def handle(sock, peer):
    sock.sendall(b"%d" % glb.current_clone())

running = most = 0

def hold(sock, peer):
    global running, most
    running += 1
    most = max(most, running)
    sock.sendall(b"held ")
    sock.recv(1)
    running -= 1
    sock.sendall(b"most %d" % most)

number = 3
"""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A current directory with modules, some of which can't be imported."""
    for name, text in {
        "program": PROGRAM,
        "raises": "def fail():\n    raise RuntimeError('no\\nluck')\nfail()",
        "leaves": "raise SystemExit(3)",
        "killed": "import gevent\nraise gevent.GreenletExit",
        "needs": "import no_such_module",
        "malformed": "x = (",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "garbage.pem").write_text("garbage")
    return tmp_path


@contextlib.contextmanager
def child(*args: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run Python with *args*; whatever comes, it is ended and waited for.

    The option *said* has variables besides the usual, and *command* what runs instead of Python.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environ = {**os.environ, "PYTHONPATH": path, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    environ |= options.pop("said", {})
    command = [*options.pop("command", (sys.executable, "-W", "error")), *args]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with subprocess.Popen(command, env=environ, **options) as process:
        timer = threading.Timer(ENDLESS_SECONDS, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            timer.join()
            process.kill()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Runs that end at once."""
    begun = Forks()
    yield begun
    begun.end()


def run(*args: str, cwd: pathlib.Path | None = None) -> tuple[int, str, str]:
    """Return the status, stdout and stderr of ``glb`` with *args*."""
    with child("-m", "glb", *args, cwd=cwd) as process:
        out, err = process.communicate()
    return process.returncode, out, err


class Served:
    """A running ``glb serve``, and what its first line said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.process = process
        self.line = process.stderr.readline()
        found = re.search(r" on (\w+):(?://)?(\S+) (?:with|and) ", self.line)
        assert found is not None, self.line + process.stderr.read()
        self.scheme, place = found.groups()
        host, _, port = place.rpartition(":")
        self.address: Any = place if self.scheme == "unix" else (host.strip("[]"), int(port))

    def read_line(self, part: str) -> str:
        """Return the next line on stderr, in which *part* is."""
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert part in line, line or self.process.poll()
        return line

    def hang_up(self, part: str) -> str:
        """Send SIGHUP, and return the line that it makes, with *part* in it."""
        self.process.send_signal(signal.SIGHUP)
        return self.read_line(part)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal, and return the status and the rest of stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate()
        return self.process.returncode, err


@contextlib.contextmanager
def serving(
    *args: str,
    cwd: pathlib.Path,
    bind: str = "127.0.0.1:0",
    command: tuple[str, ...] = ("-m", "glb"),
) -> Iterator[Served]:
    with child(*command, "serve", *args, "--bind", bind, cwd=cwd) as process:
        yield Served(process)


# -- demo ---------------------------------------------------------------------------------------


def test_demo_shows_exact_turns() -> None:
    """All of 1,000 connections went round in turn, the status says so, and nothing blinks."""
    status, out, err = run("demo")
    assert (status, err) == (0, "")
    assert re.search(r"order +│ exact │ +not exact", out)
    assert len(re.findall(r"clone [0-3] +│ +250 │ +\d+", out)) == 4
    assert "\x1b" not in out


def test_demo_json_is_one_object_and_adds_up() -> None:
    """``--json`` prints one object alone, and every connection was served."""
    status, out, err = run("demo", "--json", "--clones", "3", "--connections", "100")
    found = json.loads(out)
    assert (status, err) == (0, "")
    assert (found["clones"], found["connections"]) == (3, 100)
    assert found["glb"]["served"] == [34, 33, 33]
    assert found["glb"]["exact"] is True
    assert sum(found["gevent"]["served"]) == 100
    assert found["gevent"]["jain"] == glb.model.stats.jain(found["gevent"]["served"])
    assert found["seconds"] > 0


def test_demo_runs_gevent_servers_that_race() -> None:
    """The other column is measured: as many clones, as many replies, a step for each."""
    steps: list[int] = []
    outcome = glb.cli.demo.run_gevent(4, 20, lambda: steps.append(1))
    assert (len(outcome.served), len(outcome.order), len(steps)) == (4, 20, 20)


def test_demo_takes_the_order_of_the_replies() -> None:
    """What glb is measured by is the whole order in which the clients were answered."""
    assert glb.cli.demo.run_glb(4, 42, lambda: None).order == turns(4, 42)


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_demo_fails_when_two_turns_are_swapped(
    as_json: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal counts are not enough: one swap in the order is status 1."""
    swapped = [*turns(4, 18), 3, 2]
    monkeypatch.setattr(glb.cli.commands, "run_glb", lambda *_: Outcome(4, swapped))
    result = CliRunner().invoke(glb.cli.cli, ["demo", "--connections", "20", *as_json])
    assert result.exit_code == 1
    if as_json:
        found = json.loads(result.stdout)["glb"]
        assert found == {"served": [5, 5, 5, 5], "exact": False, "jain": 1.0}
    else:
        assert re.search(r"order +│ not exact │", result.stdout)


def test_demo_leaves_nothing_when_a_reply_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is not answered ends the demo with an error, and closes the servers."""
    monkeypatch.setattr(glb.cli.demo, "REPLY_TIMEOUT_SECONDS", 0.01)
    holder = Holder()
    monkeypatch.setattr(glb.cli.demo, "_reply_clone", holder)
    with pytest.raises(TimeoutError):
        glb.cli.demo.run_glb(2, 2, lambda: None)
    holder.release()
    wait_until(lambda: holder.served == 1)


# -- serve --------------------------------------------------------------------------------------


def test_wsgi_target_is_served_in_turn(folder: pathlib.Path) -> None:
    """Its arguments show a WSGI application; its access log goes to stderr."""
    with serving("program:application", cwd=folder) as served:
        assert served.line == (
            f"glb: serving program:application on http://127.0.0.1:{served.address[1]}"
            " with 4 clones, monkey-patched\n"
        )
        replies = [http_get(served.address) for _ in range(8)]
        assert replies == [b"%d http" % clone for clone in turns(4, 8)]
        status, err = served.end()
    assert status == 0
    assert err.count('"GET / HTTP/1.0" 200') == 8
    assert err.endswith("glb: stopped after 8 connections, 0 failed; by clone: 2 2 2 2\n")


def test_stream_target_is_served_in_turn(folder: pathlib.Path) -> None:
    """Its arguments show a handler of (sock, peer)."""
    with serving("program:handle", "--clones", "2", cwd=folder) as served:
        assert served.scheme == "tcp"
        assert [ask(served.address) for _ in range(4)] == [b"0", b"1", b"0", b"1"]


def test_page_names_the_clone_that_answers(folder: pathlib.Path) -> None:
    """Without a target each request shows the next clone, also to a browser that keeps alive."""
    with serving("--clones", "1", cwd=folder) as served:
        assert served.line.endswith(" with 1 clone\n")
        assert http_get(served.address).startswith(b"Clone 0 answers, one of 1.\n")
        assert b"\r\nConnection: close\r\n" in ask(
            served.address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        )


def test_module_alone_means_its_application(folder: pathlib.Path) -> None:
    """A target without a colon is the module's ``application``, or ``app``."""
    with serving("program", cwd=folder) as served:
        assert http_get(served.address) == b"0 http"


def test_ambiguous_target_is_what_the_option_says(folder: pathlib.Path) -> None:
    """``--wsgi`` says what the arguments don't."""
    with serving("program:ambiguous", "--wsgi", cwd=folder) as served:
        assert http_get(served.address) == b"wsgi after all"


def test_installed_script_imports_from_current_directory(folder: pathlib.Path) -> None:
    """The current directory is importable, wherever the script lies."""
    (folder / "bin").mkdir()
    script = folder / "bin" / "glb-script"
    script.write_text("from glb.__main__ import main\nmain()\n")
    with serving("program:handle", cwd=folder, command=(str(script),)) as served:
        assert ask(served.address) == b"0"


def test_unix_socket_is_served_and_removed(folder: pathlib.Path) -> None:
    """``unix:/path`` is an address, and its file goes with the server."""
    # Relative, as a path of a Unix socket may have 107 bytes only.
    with serving("program:handle", cwd=folder, bind="unix:s") as served:
        assert (served.scheme, served.address) == ("unix", "s")
        path = os.path.relpath(folder / "s")
        assert [ask(path) for _ in range(3)] == [b"0", b"1", b"2"]
        assert served.end()[0] == 0
    assert not (folder / "s").exists()


def test_ipv6_is_announced_in_brackets(folder: pathlib.Path) -> None:
    """The announced address can be copied into a client."""
    try:
        glb.bind(("::1", 0)).close()
    except OSError:
        pytest.skip("there is no IPv6 here")
    with serving("program:handle", cwd=folder, bind="[::1]:0") as served:
        assert "tcp://[::1]:" in served.line
        assert ask(served.address) == b"0"


@pytest.mark.skipif(not (CERTIFICATES / "server.crt").exists(), reason="gevent has no tests here")
def test_certificate_makes_it_https(folder: pathlib.Path) -> None:
    """With a certificate and its key TLS is spoken, and the application knows."""
    tls = ("--certfile", f"{CERTIFICATES}/server.crt", "--keyfile", f"{CERTIFICATES}/server.key")
    with serving("program:application", *tls, cwd=folder) as served:
        assert served.scheme == "https"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        host, port = served.address
        client = http.client.HTTPSConnection(host, port, timeout=10, context=context)
        with contextlib.closing(client):
            client.request("GET", "/")
            assert client.getresponse().read() == b"0 https"


def test_max_connections_bounds_all_clones_together(folder: pathlib.Path) -> None:
    """One handler runs at a time; the other clients wait, and all are served."""
    with serving("program:hold", "--max-connections", "1", cwd=folder) as served:
        clients = [connect(served.address) for _ in range(5)]
        for client in clients:
            client.sendall(b"x")
        assert [receive_all(client) for client in clients] == [b"held most 1"] * 5
        close_all(clients)


# -- several addresses --------------------------------------------------------------------------


@contextlib.contextmanager
def serving_two(*args: str, cwd: pathlib.Path) -> Iterator[Served]:
    """Serve on a port, which is the address, and on ``unix:s``."""
    options = ("--bind", "unix:s", "--clones", "2")
    with child("-m", "glb", "serve", *args, "--bind", "127.0.0.1:0", *options, cwd=cwd) as process:
        yield Served(process)


def test_each_address_has_clones_of_its_own(folder: pathlib.Path) -> None:
    """One target, one process; turns go round the clones of an address."""
    with serving_two("program:handle", cwd=folder) as served:
        path = os.path.relpath(folder / "s")
        assert " with 2 clones each, monkey-patched" in served.line
        assert [ask(served.address) for _ in range(3)] == [b"0", b"1", b"0"]
        assert [ask(path) for _ in range(2)] == [b"0", b"1"]
        status, err = served.end()
        lines = err.splitlines()
        assert (status, len(lines)) == (0, 2)
        host = f"tcp://127.0.0.1:{served.address[1]}"
        assert f"glb: stopped {host} after 3 connections, 0 failed; by clone: 2 1" in lines
        assert "glb: stopped unix:s after 2 connections, 0 failed; by clone: 1 1" in lines
        glb.bind(served.address).close()
    assert not (folder / "s").exists()


def test_all_addresses_drain_at_a_time(folder: pathlib.Path) -> None:
    """Handlers of one don't keep the other one open, and all may finish."""
    with serving_two("program:hold", cwd=folder) as served:
        path = os.path.relpath(folder / "s")
        clients = [connect(served.address), connect(path)]
        assert [each.recv(5) for each in clients] == [b"held "] * 2
        served.process.send_signal(signal.SIGTERM)
        served.read_line("draining 2 connections, for 30 s at most")
        wait_until(lambda: is_refused(served.address) and is_refused(path))
        for each in clients:
            each.sendall(b"x")
            assert receive_all(each).startswith(b"most ")
        close_all(clients)
        assert served.process.wait() == 0


def test_a_second_signal_ends_all_addresses_at_once(folder: pathlib.Path) -> None:
    """Whatever their handlers do."""
    with serving_two("program:hold", "--drain-timeout", "1000", cwd=folder) as served:
        clients = [connect(served.address), connect(os.path.relpath(folder / "s"))]
        assert [each.recv(5) for each in clients] == [b"held "] * 2
        served.process.send_signal(signal.SIGTERM)
        served.read_line("draining 2 connections")
        assert served.end()[0] == 0
        close_all(clients)


def test_all_addresses_are_reloaded_and_seen(folder: pathlib.Path) -> None:
    """A reload is rolled into each; the administration shows each."""
    write_version(folder, "old")
    options = ("--admin", "127.0.0.1:0")
    with serving_two("versions:handle", *options, cwd=folder) as served:
        found = re.search(r", admin on http://127\.0\.0\.1:(\d+)$", served.line)
        assert found is not None, served.line
        ready = http_get(("127.0.0.1", int(found[1])), "/readyz")
        assert sorted(ready.splitlines()) == [
            b"127.0.0.1:%d: accepting" % served.address[1],
            b"unix:s: accepting",
        ]
        write_version(folder, "new")
        assert served.hang_up("reload") == "glb: reloaded 'versions:handle' (4 clones)\n"
        for address in (served.address, os.path.relpath(folder / "s")):
            assert [ask(address) for _ in range(2)] == [b"new"] * 2


def test_an_address_that_cant_be_bound_leaves_the_others_free(
    folder: pathlib.Path, forks: Forks
) -> None:
    """All are bound before the first client is let in."""
    with glb.bind(("127.0.0.1", 0)) as taken:
        port = taken.address[1]
        args = ("serve", "program:handle", "--bind", "unix:s", "--bind", f"127.0.0.1:{port}")
        reason = f"--bind from the command line: can't bind ('127.0.0.1', {port}): Address already"
        assert_refused(forks, args, reason, folder)
    assert not (folder / "s").exists()


def test_table_shows_the_addresses(folder: pathlib.Path) -> None:
    """A table for each."""
    args = ("serve", "program:handle", "--bind", "127.0.0.1:0", "--bind", "unix:s", "--clones", "1")
    with in_terminal(*args, cwd=folder) as (process, read):
        read(r"tcp://127\.0\.0\.1:\d+.*1 clone.*unix:s.*1 clone")
        process.send_signal(signal.SIGINT)
        read(r".*ended.*\x1b\[\?25h")
        assert process.wait() == 0


@pytest.mark.parametrize("target", ["program:application", "program:handle"])
def test_a_signal_before_the_first_client_ends_it_too(target: str, folder: pathlib.Path) -> None:
    """An orchestrator may change its mind; it is a clean end, and doesn't begin again."""
    code = (
        "import gevent, os, signal, glb.cli.service as s, glb.__main__ as m\n"
        "start = s.Service.start\n"
        "def late(self):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    while not self._signals: gevent.sleep(0)\n"
        "    start(self)\n"
        "s.Service.start = late; m.main()"
    )
    args = ("serve", target, "--bind", "127.0.0.1:0", "--bind", "unix:s")
    with child("-c", code, *args, cwd=folder) as process:
        _, err = process.communicate()
    assert process.returncode == 0
    assert err.count("glb: stopped ") == 2 and "Traceback" not in err
    assert not (folder / "s").exists()


def test_an_address_that_fails_ends_the_others(folder: pathlib.Path) -> None:
    """A supervisor sees status 1, and begins anew; what is in flight may finish."""
    code = (
        "import gevent, glb.cli.service as s, glb.__main__ as m; run = s.Service.run\n"
        "def failing(self, *args):\n"
        "    fail = self.servers[0].glb_engine.admission.fail\n"
        "    gevent.spawn_later(0.01, fail, OSError('broken'))\n"
        "    return run(self, *args)\n"
        "s.Service.run = failing; m.main()"
    )
    args = ("serve", "program:handle", "--bind", "127.0.0.1:0", "--bind", "unix:s")
    with child("-c", code, *args, cwd=folder) as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert err.count("glb: stopped ") == 2
    assert not (folder / "s").exists()


# -- patched ------------------------------------------------------------------------------------

PATIENT = """
import time
import gevent.monkey

is_open = False

def application(environ, start_response):
    global is_open
    if environ["PATH_INFO"] == "/open":
        is_open = True
    while not is_open:
        time.sleep(0.001)
    start_response("200 OK", [])
    return [b"patched" if gevent.monkey.is_module_patched("time") else b"not patched"]

def handle(sock, address):
    sock.sendall(b"patched" if gevent.monkey.is_module_patched("time") else b"not patched")
"""


@pytest.mark.parametrize("hubs", ["1", "2"])
def test_a_request_that_sleeps_lets_others_be_served(hubs: str, folder: pathlib.Path) -> None:
    """``time.sleep`` in one waits until another one has come, which it would not without."""
    (folder / "patient.py").write_text(PATIENT)
    options = ("--hubs", hubs, "--clones", hubs)
    with serving("patient", *options, cwd=folder) as served:
        assert served.line.endswith(", monkey-patched\n")
        clients = [connect(served.address) for _ in range(4)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert http_get(served.address, "/open") == b"patched"
        assert all(receive_all(each).endswith(b"\r\n\r\npatched") for each in clients)
        close_all(clients)
        status, err = served.end()
        assert (status, err.count(" 200 ")) == (0, 5)


@pytest.mark.parametrize(
    ("target", "options", "is_patched"),
    [
        ("patient:handle", (), True),
        ("patient:handle", ("--stream",), False),
        ("patient:handle", ("--stream", "--patch"), True),
        ("patient:application", ("--no-patch",), False),
    ],
)
def test_patching_is_said_and_may_be_asked_for(
    target: str, options: tuple[str, ...], is_patched: bool, folder: pathlib.Path
) -> None:
    """By default all but what is said to be a stream; the first line says so."""
    (folder / "patient.py").write_text(PATIENT.replace("is_open = False", "is_open = True"))
    with serving(target, *options, cwd=folder) as served:
        assert ("monkey-patched" in served.line) is is_patched
        expected = b"patched" if is_patched else b"not patched"
        reply = http_get(served.address) if "application" in target else ask(served.address)
        assert reply == expected


def test_nothing_is_there_too_early_to_be_patched(folder: pathlib.Path) -> None:
    """Modules that take what is patched by name, or make subclasses of it, come later."""
    command = (
        "-c",
        "import sys; before = {*sys.modules}; "  # coverage has some
        "import gevent.monkey, glb.__main__ as m; "
        "early = {'asyncio', 'concurrent.futures', 'gevent.pywsgi', 'gevent.ssl', 'http.client',"
        " 'http.server', 'logging.handlers', 'multiprocessing', 'socketserver', 'ssl',"
        " 'urllib.request'}; "
        "patch = gevent.monkey.patch_all; "
        "loaded = lambda: {*sys.modules} - before; "
        "gevent.monkey.patch_all = lambda: sys.exit(f'{early & loaded()} {patch()}'); "
        "m.main()",
    )
    with child(*command, "serve", "program", cwd=folder) as process:
        assert process.communicate() == ("", "set() True\n")


def test_a_program_that_patches_itself_is_patched_once(folder: pathlib.Path) -> None:
    """As its writer has it for other servers; no warning, either."""
    patching = "import gevent.monkey; gevent.monkey.patch_all(); import ssl, urllib.request\n"
    (folder / "patching.py").write_text(patching + PROGRAM)
    with serving("patching", cwd=folder) as served:
        assert http_get(served.address) == b"0 http"


# -- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("target", ["program:application", "program:handle"])
def test_signal_ends_it_and_frees_the_address(
    number: signal.Signals, target: str, folder: pathlib.Path
) -> None:
    """Either signal is a clean end: status 0, nothing but the last line, a free address."""
    with serving(target, cwd=folder) as served:
        status, err = served.end(number)
        assert (status, err) == (
            0,
            "glb: stopped after 0 connections, 0 failed; by clone: 0 0 0 0\n",
        )
        glb.bind(served.address).close()


def test_handler_in_flight_may_finish(folder: pathlib.Path) -> None:
    """After the signal no client is let in, and those that are in get their replies."""
    with serving("program:hold", cwd=folder) as served, connect(served.address) as client:
        assert client.recv(5) == b"held "
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: is_refused(served.address))
        client.sendall(b"x")
        assert receive_all(client).startswith(b"most ")  # `is_refused` may have come in, too
        assert served.process.wait() == 0


def test_handler_without_end_is_ended(folder: pathlib.Path) -> None:
    """A handler that doesn't finish can't keep the process alive, and is no failure of it."""
    options = ("--drain-timeout", "0.1")
    with serving("program:hold", *options, cwd=folder) as served:
        client = connect(served.address)
        assert client.recv(5) == b"held "
        status, err = served.end()
        client.close()
    assert status == 0
    assert "draining 1 connection, for 0.1 s at most" in err
    assert "Traceback" not in err


def test_a_second_signal_ends_it_at_once(folder: pathlib.Path) -> None:
    """Whatever the handlers do."""
    with serving("program:hold", "--drain-timeout", "1000", cwd=folder) as served:
        client = connect(served.address)
        assert client.recv(5) == b"held "
        served.process.send_signal(signal.SIGTERM)
        served.read_line("draining 1 connection")
        status, err = served.end(signal.SIGINT)
        client.close()
    assert status == 0
    assert "Traceback" not in err


def test_idle_connections_are_closed_at_the_end(folder: pathlib.Path) -> None:
    """A browser's kept-alive connection doesn't hold the end up."""
    with serving("program:application", cwd=folder) as served:
        client = connect(served.address)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        status, _ = served.end()
        assert client.recv(1000) == b""
        client.close()
    assert status == 0


def test_silent_clients_are_let_go(folder: pathlib.Path) -> None:
    """Of HTTP, before a request; a stream's if it is said so."""
    options = ("--first-byte-timeout", "0.2")
    for target in ("program:application", "program:handle"):
        with serving(target, *options, cwd=folder) as served:
            client = connect(served.address)
            assert client.recv(1000) == b""
            client.close()


def test_limits_are_the_servers(folder: pathlib.Path) -> None:
    """What is beyond waits in the kernel."""
    options = ("--max-connections-per-clone", "1", "--clones", "2", "--accept-rate", "1000")
    with serving("program:hold", *options, cwd=folder) as served:
        clients = [connect(served.address) for _ in range(3)]
        assert [client.recv(5) for client in clients[:2]] == [b"held "] * 2
        clients[0].sendall(b"x")
        assert receive_all(clients[0]).startswith(b"most ")
        assert clients[2].recv(5) == b"held "
        close_all(clients)


@pytest.mark.parametrize("hubs", ["1", "2"])
def test_it_is_seen_from_outside(hubs: str, folder: pathlib.Path) -> None:
    """Ready while it serves; not any more from the moment on in which it drains."""
    options = ("--hubs", hubs, "--admin", "127.0.0.1:0")
    with serving("program:hold", *options, cwd=folder) as served:
        found = re.search(r", admin on http://127\.0\.0\.1:(\d+)$", served.line)
        assert found is not None, served.line
        admin = ("127.0.0.1", int(found[1]))
        assert http_get(admin, "/readyz").endswith(b": accepting\n")
        client = connect(served.address)
        assert client.recv(5) == b"held "
        assert b'"active": 1' in http_get(admin, "/clones")
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: http_get(admin, "/readyz").endswith(b": draining\n"))
        client.sendall(b"x")
        assert receive_all(client).startswith(b"most ")
        client.close()
        assert served.end()[0] == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-connections", "0"),
        ("--max-connections-per-clone", "-1"),
        ("--accept-rate", "0"),
        ("--handshake-timeout", "-1"),
        ("--first-byte-timeout", "x"),
        ("--max-body", "-1"),
        ("--body-timeout", "x"),
        ("--send-timeout", "-1"),
        ("--drain-timeout", "-0.5"),
        ("--stall-limit", "0"),
        ("--drain-delay", "-1"),
    ],
)
def test_bad_limits_are_usage_errors(
    option: str, value: str, folder: pathlib.Path, forks: Forks
) -> None:
    """One line, with the value in it."""
    status, _, err = forks.run("serve", "program:handle", option, value, cwd=folder)
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("glb: ")
    assert option in err and value in err


def ask_raw(address: Any, request: bytes) -> bytes:
    """Send *request* on a connection of its own, and return all that comes back."""
    client = connect(address)
    client.sendall(request)
    reply = receive_all(client)
    client.close()
    return reply


def test_http_has_limits_that_are_on_by_default(folder: pathlib.Path) -> None:
    """RFC 9112 wants Host of every client of HTTP/1.1; a body is 1 GiB long, or as given."""
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    with serving("program:application", cwd=folder) as served:
        assert ask_raw(served.address, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert ask_raw(served.address, post % (2**30 + 1)).startswith(b"HTTP/1.1 413 ")
    options = ("--max-body", "10", "--body-timeout", "0.1", "--send-timeout", "0")
    with serving("program:application", *options, cwd=folder) as served:
        assert ask_raw(served.address, post % 11).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("option", ["--max-body", "--body-timeout", "--send-timeout"])
def test_a_stream_has_no_limits_of_http(option: str, folder: pathlib.Path, forks: Forks) -> None:
    """They would be taken for something that they aren't."""
    status, _, err = forks.run("serve", "program:handle", option, "1", cwd=folder)
    assert status == 2
    assert f"{option} from the command line: it is for WSGI" in err


# -- reloads ------------------------------------------------------------------------------------


def write_version(folder: pathlib.Path, version: str, before: str = "") -> None:
    """Write a program, and a package for it: its replies are *version*, at either end."""
    (folder / "package").mkdir(exist_ok=True)
    words = folder / "package" / "words.py"
    # Python takes what it compiled in the same second, of a file as long, for this one's.
    longer = "#" * words.stat().st_size if words.exists() else ""
    words.write_text(f"version = {version.encode()!r}\n{longer}\n")
    (folder / "versions.py").write_text(
        f"""{before}
from package.words import version

def handle(sock, peer):
    sock.sendall(version)

def hold(sock, peer):
    sock.sendall(version)
    sock.recv(1)
    sock.sendall(b" to the end " + version)

def application(environ, start_response):
    start_response("200 OK", [])
    return [version]
"""
    )


@pytest.mark.parametrize("hubs", ["1", "2"])
def test_hangup_rolls_the_new_source_in(hubs: str, folder: pathlib.Path) -> None:
    """All clones serve the new source from then on; the address was never free."""
    write_version(folder, "old")
    with serving("versions:handle", "--hubs", hubs, cwd=folder) as served:
        assert ask(served.address) == b"old"
        for version in ("new", "now"):  # of one size, and likely of one second
            write_version(folder, version)
            assert served.hang_up("reload") == "glb: reloaded 'versions:handle' (4 clones)\n"
            assert [ask(served.address) for _ in range(8)] == [version.encode()] * 8
        status, err = served.end()
    log_lines = [line for line in err.splitlines() if "draining" not in line]
    assert (status, len(log_lines)) == (0, 1)  # the last client may still be leaving
    assert log_lines[0].startswith("glb: stopped after 17 connections, 0 failed; by clone: ")


def test_hangup_reloads_an_application(folder: pathlib.Path) -> None:
    """WSGI as well, also for a client that keeps its connection."""
    write_version(folder, "old")
    with serving("versions", cwd=folder) as served:
        host, port = served.address
        client = http.client.HTTPConnection(host, port, timeout=10)
        with contextlib.closing(client):
            for version in ("old", "new"):
                write_version(folder, version)
                if version == "new":
                    served.hang_up("glb: reloaded 'versions' (4 clones)\n")
                client.request("GET", "/")
                assert client.getresponse().read() == version.encode()
                served.read_line('"GET / HTTP/1.1" 200')


def test_old_handlers_finish_in_the_old_source(folder: pathlib.Path) -> None:
    """A connection in flight keeps its handler, with its globals, over several reloads."""
    write_version(folder, "one")
    with serving("versions:hold", cwd=folder) as served:
        clients = []
        for version in ("two", "three", "four"):
            clients.append(connect(served.address))
            assert clients[-1].recv(5) in {b"one", b"two", b"three"}
            write_version(folder, version)
            served.hang_up("glb: reloaded ")
        for client in clients:
            client.sendall(b"x")
        ends = [b" to the end one", b" to the end two", b" to the end three"]
        assert [receive_all(client) for client in clients] == ends
        close_all(clients)


def test_reload_that_fails_leaves_the_old_one_serving(folder: pathlib.Path) -> None:
    """The error is one line, with its place; once it is mended the target is served."""
    write_version(folder, "old")
    with serving("versions:handle", cwd=folder) as served:
        for broken, reason in (
            ("fail(", "SyntaxError: "),
            ("raise RuntimeError('no\\nluck')", "RuntimeError: no luck (at "),
            ("raise SystemExit", "SystemExit: "),
            ("raise KeyboardInterrupt('x')", "KeyboardInterrupt: x (at "),
            ("import gevent; raise gevent.GreenletExit", "GreenletExit: (at "),
            ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ):
            write_version(folder, "bad", before=broken)
            line = served.hang_up(f"glb: can't reload 'versions:handle': {reason}")
            assert line.endswith("versions.py:1); the old one goes on serving\n")
            assert [ask(served.address) for _ in range(4)] == [b"old"] * 4
        write_version(folder, "new")
        served.hang_up("glb: reloaded ")
        assert ask(served.address) == b"new"
        assert served.end()[0] == 0


def save(path: pathlib.Path, text: str) -> None:
    """Write a file in one step: a watcher with a hundred polls a second would see half of it."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_saved_source_is_rolled_in(folder: pathlib.Path) -> None:
    """With --reload no signal is needed, not even after a mistake."""
    write_version(folder, "old")
    code = "import glb.cli, glb.__main__ as m; glb.cli.reload.POLL_SECONDS = 0.01; m.main()"
    command = ("-c", code)
    with serving("versions:handle", "--reload", cwd=folder, command=command) as served:
        save(folder / "package" / "words.py", "version = b'new'")
        served.read_line("glb: reloaded ")
        assert ask(served.address) == b"new"
        save(
            folder / "versions.py",
            "from newcomer import reply\ndef handle(sock, peer): sock.sendall(reply)",
        )
        served.read_line("No module named 'newcomer' (at ")
        save(folder / "newcomer.py", "fail(")
        served.read_line("SyntaxError: ")
        assert ask(served.address) == b"new"
        save(folder / "newcomer.py", "reply = b'repaired'")
        served.read_line("glb: reloaded ")
        assert ask(served.address) == b"repaired"
        served.hang_up("glb: reloaded ")
        status, err = served.end()
    log_lines = [line for line in err.splitlines() if "draining" not in line]
    assert (status, len(log_lines)) == (0, 1)  # the last client may still be leaving


def test_program_that_configures_logging_leaves_glb_its_lines(folder: pathlib.Path) -> None:
    """``dictConfig`` disables all loggers that it doesn't know; glb's lines are for an operator."""
    configure = "import logging.config; logging.config.dictConfig({'version': 1})"
    write_version(folder, "old", before=configure)
    with serving("versions:handle", cwd=folder) as served:
        served.hang_up("glb: reloaded ")
        assert served.end() == (
            0,
            "glb: stopped after 0 connections, 0 failed; by clone: 0 0 0 0\n",
        )


def test_what_cant_be_reloaded_is_refused_at_the_start(folder: pathlib.Path, forks: Forks) -> None:
    """And not at the first edit, also if the project wraps something around its application.

    Without --reload it is served, and SIGHUP logs the reason.
    """
    handlers = folder / "django" / "core" / "handlers"
    handlers.mkdir(parents=True)
    for each in (handlers, handlers.parent, handlers.parent.parent):
        (each / "__init__.py").touch()  # else a real one goes first
    (handlers / "wsgi.py").write_text(
        "class Handler:\n"
        "    def __call__(self, environ, start_response):\n"
        "        start_response('200 OK', [])\n"
        "        return [b'a view']\n"
    )
    (folder / "views.py").write_text(
        "import django.core.handlers.wsgi\n"
        "inner = django.core.handlers.wsgi.Handler()\n"
        "def application(environ, start_response):\n"
        "    return inner(environ, start_response)\n"
    )
    reason = "can't reload 'views': Django keeps the views that it has imported"
    assert_refused(
        forks, ("serve", "views", "--reload"), f"--reload from the command line: {reason}", folder
    )
    with serving("views", cwd=folder) as served:
        assert served.hang_up(reason).endswith("; the old one goes on serving\n")
        assert http_get(served.address) == b"a view"


def test_hangup_without_a_target_is_logged_and_ends_nothing(folder: pathlib.Path) -> None:
    """There is nothing to reload, and an operator's mistake is not the end of a server."""
    with serving("--clones", "1", cwd=folder) as served:
        assert served.hang_up("reload") == "glb: nothing to reload: there is no TARGET\n"
        assert http_get(served.address).startswith(b"Clone 0 answers")


class Reloaded:
    """A server and a target in one, which does as it is set when it reloads."""

    name = "app:handle"

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.answers: list[object] = []
        self.may_roll = Event()
        self.may_roll.set()
        self.reloads = glb.cli.reload.Reloads([self], self)  # type: ignore[arg-type,list-item]  # it has what is used

    def files(self) -> set[str]:
        return set()

    def reason(self, error: BaseException) -> str:
        return f"{type(error).__name__}: {error}"

    def reload(self) -> object:
        answer = self.answers.pop(0)
        self.seen.append(answer)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def roll(self, handle: object, *, wait: bool) -> object:
        assert wait is False
        self.may_roll.wait()
        self.seen.append(f"{handle} rolled")
        if handle == "unlucky":
            raise OSError("no luck")
        return SimpleNamespace(clones=(None,) * 2)


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that are put in the log."""
    lines: list[str] = []
    monkeypatch.setattr(glb.cli.console, "tell", lambda text, *args: lines.append(text % args))
    return lines


def test_reloads_come_one_after_another(log_lines: list[str]) -> None:
    """However often it is asked during a reload, there is one more after it."""
    both = Reloaded()
    both.answers = ["first", "second", "third"]
    both.may_roll.clear()
    with both.reloads:
        both.reloads.ask()
        assert comes_true(lambda: both.seen == ["first"])
        for _ in range(3):
            both.reloads.ask()
            gevent.sleep(0)
        assert both.seen == ["first"]
        both.may_roll.set()
        assert comes_true(lambda: len(log_lines) == 2)
        gevent.sleep(0)
    assert both.seen == ["first", "first rolled", "second", "second rolled"]
    assert log_lines == ["reloaded 'app:handle' (2 clones)"] * 2


@pytest.mark.parametrize("kind", [gevent.GreenletExit, KeyboardInterrupt, SystemExit])
def test_reload_that_its_module_ends_is_logged_and_not_the_last(
    kind: type[BaseException], log_lines: list[str]
) -> None:
    """What would end a greenlet, or the program, is an import that failed."""
    both = Reloaded()
    both.answers = [kind("no"), "lucky"]
    with both.reloads:
        for count in (1, 2):
            both.reloads.ask()
            assert comes_true(lambda expected=count: len(log_lines) == expected)  # type: ignore[misc]  # bound now
    assert log_lines == [
        f"can't reload 'app:handle': {kind.__name__}: no; the old one goes on serving",
        "reloaded 'app:handle' (2 clones)",
    ]


def test_the_end_of_the_server_ends_a_reload_in_its_middle(log_lines: list[str]) -> None:
    """A kill at the end is no import that failed."""
    both = Reloaded()
    both.answers = ["first"]
    both.may_roll.clear()
    with both.reloads:
        both.reloads.ask()
        assert comes_true(lambda: both.seen == ["first"])
    greenlet = both.reloads._greenlet
    assert greenlet is not None and greenlet.ready()
    assert log_lines == []


def test_reload_that_fails_is_logged_and_not_the_last(log_lines: list[str]) -> None:
    """Whatever comes of one, the next may be asked for."""
    both = Reloaded()
    both.answers = [TargetError("bad\nsource"), "unlucky", "lucky"]
    with both.reloads:
        for count in (1, 2, 3):
            both.reloads.ask()
            assert comes_true(lambda expected=count: len(log_lines) == expected)  # type: ignore[misc]  # bound now
    assert log_lines == [
        "can't reload 'app:handle': bad source; the old one goes on serving",
        "can't reload 'app:handle': OSError: no luck; the old one goes on serving",
        "reloaded 'app:handle' (2 clones)",
    ]


# -- in a terminal ------------------------------------------------------------------------------


@contextlib.contextmanager
def in_terminal(*args: str, cwd: pathlib.Path) -> Iterator[tuple[Any, Callable[[str], str]]]:
    """Run ``glb`` in a pseudo-terminal; yield it, and what reads until a pattern is seen."""
    ours, theirs = pty.openpty()
    seen = ""

    def read_until(pattern: str) -> str:
        nonlocal seen
        while not (found := re.search(pattern, seen, re.DOTALL)):
            try:
                data = os.read(ours, 65536)
            except OSError:  # EIO: the other side is closed
                data = b""
            assert data, f"{pattern!r} is not in {seen!r}"
            seen += data.decode(errors="replace")
        seen = seen[found.end() :]
        return found[0]

    try:
        terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        with child("-m", "glb", *args, cwd=cwd, **terminal) as process:
            os.close(theirs)
            theirs = -1
            yield process, read_until
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def test_table_of_clones_is_live_in_a_terminal(folder: pathlib.Path) -> None:
    """Counts change in place, requests are logged above it, and the cursor is given back."""
    with in_terminal("serve", "program", "--bind", "127.0.0.1:0", cwd=folder) as (process, read):
        port = read(r"serving program on http://127.0.0.1:\d+").rpartition(":")[2]
        read(r"state.*0 +0 +0 +0 +0 +\S*accepting")
        assert http_get(("127.0.0.1", int(port))) == b"0 http"
        shown = read(r".*?0 +1 +0 +1 +0 +\S*accepting")
        process.send_signal(signal.SIGINT)
        shown += read(r".*ended.*\x1b\[\?25h")
        assert process.wait() == 0
    assert re.search(r'127\.0\.0\.1 - - \[.*\] "GET / HTTP/1\.0" 200 6\r?\n', shown)
    assert "Traceback" not in shown


def test_reload_is_logged_above_the_table(folder: pathlib.Path) -> None:
    """A line of its own, with the live table below it again."""
    write_version(folder, "old")
    with in_terminal("serve", "versions:handle", "--bind", ":0", cwd=folder) as (process, read):
        port = read(r"serving versions:handle on tcp://[\d.]+:\d+").rpartition(":")[2]
        read(r"0 +\S*accepting")
        write_version(folder, "new")
        process.send_signal(signal.SIGHUP)
        read(
            r"\nglb: reloaded 'versions:handle' \(4 clones\) *\r?\n|"
            r"\x1b\[2K(\x1b\[1A\x1b\[2K)*glb: reloaded 'versions:handle' \(4 clones\) *\r?\n"
        )
        read(r"serving versions:handle.*0 +\S*accepting")
        assert ask(("127.0.0.1", int(port))) == b"new"
        process.send_signal(signal.SIGINT)
        read(r".*ended.*\x1b\[\?25h")
        assert process.wait() == 0


def test_closed_terminal_ends_it(folder: pathlib.Path) -> None:
    """The same signal means what it always meant: the terminal is gone."""
    ours, theirs = pty.openpty()
    try:
        terminal = {"stdin": theirs, "stdout": theirs, "start_new_session": True}
        args = ("serve", "program:handle", "--bind", "127.0.0.1:0")
        with child("-m", "glb", *args, cwd=folder, **terminal) as process:
            os.close(theirs)
            theirs = -1
            seen = b""
            while b"serving" not in seen:
                seen += os.read(ours, 65536)
            os.close(ours)
            ours = -1
            process.send_signal(signal.SIGHUP)
            assert process.wait() == -signal.SIGHUP
    finally:
        for descriptor in {ours, theirs} - {-1}:
            os.close(descriptor)


def test_progress_is_shown_in_a_terminal(folder: pathlib.Path) -> None:
    """While the demo runs there is a bar, and then the table."""
    with in_terminal("demo", "--connections", "100", cwd=folder) as (process, read):
        read(r"connecting.*\x1b\[\?25h")
        read(r"order.*exact")
        assert process.wait() == 0


# -- wrong input --------------------------------------------------------------------------------


def assert_refused(forks: Forks, args: tuple[str, ...], reason: str, folder: pathlib.Path) -> None:
    status, out, err = forks.run(*args, cwd=folder)
    assert (status, out) == (2, "")
    assert err.startswith("glb: ")
    assert err.count("\n") == 1
    assert reason in err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--bind", "127.0.0.1:70000"), "port must be 0 to 65535, got '127.0.0.1:70000'"),
        (("--bind", "nowhere"), "address must be host:port, :port, a port number"),
        (("--bind", "no.such.host.invalid:0"), "can't bind ('no.such.host.invalid', 0): "),
        (("--bind", "unix:/no/such/folder/s"), "can't bind '/no/such/folder/s': "),
        (("--clones", "0"), "--clones from the command line: must be a whole number, 1 or more"),
        (
            ("--clones", "many"),
            "--clones from the command line: must be a whole number, 1 or more, got 'many'",
        ),
        (("--backlog", "-1"), "--backlog from the command line: must be a whole number, 0 to"),
        (
            ("--max-connections", "0"),
            "--max-connections from the command line: must be a whole number, 1 or more",
        ),
        (
            ("--clones", "2", "--hubs", "3"),
            "--clones from the command line: clones must be 3 or more, one for each hub, got 2",
        ),
        (("--certfile", "garbage.pem"), "--certfile and --keyfile go together"),
        (("--keyfile", "garbage.pem"), "--certfile and --keyfile go together"),
        (("--certfile", "no.pem", "--keyfile", "garbage.pem"), "'no.pem' does not exist"),
        (("--certfile", "garbage.pem", "--keyfile", "garbage.pem"), "can't load the certificate"),
        (
            ("--admin", "nowhere"),
            "--admin from the command line: address must be host:port",
        ),
        (("--admin", "unix:/no/such/folder/s"), "can't bind '/no/such/folder/s': "),
        (("--stream",), "--stream needs a TARGET"),
        (("--reload",), "--reload needs a TARGET"),
        (("no_such_module:app",), "can't import 'no_such_module': ModuleNotFoundError: "),
        (("program:nothing",), "there is no 'nothing' in module 'program'"),
        (("program:number",), "target must be callable, got 'program:number': 3"),
        (("program:unknown",), "can't tell what 'program:unknown' is"),
        (("raises",), "can't import 'raises': RuntimeError: no luck (at "),
        (("raises:app",), "raises.py:2)"),
        (("leaves:app",), "can't import 'leaves': SystemExit: 3 (at "),
        (("killed:app",), "can't import 'killed': GreenletExit: (at "),
        (("needs:app",), "can't import 'needs': ModuleNotFoundError: No module named 'no_such"),
        (("malformed:app",), "can't import 'malformed': SyntaxError: "),
        (("json",), "target must be module:callable; 'json' has no application or app"),
        (("program:",), "target must be module:callable, got 'program:'"),
        ((":application",), "target must be module:callable, got ':application'"),
    ],
)
def test_wrong_input_to_serve_is_one_line(
    args: tuple[str, ...], reason: str, folder: pathlib.Path, forks: Forks
) -> None:
    """A target that can't be served is one line, before anything is served, with status 2."""
    assert_refused(forks, ("serve", "--bind", "127.0.0.1:0", *args), reason, folder)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("demo", "--clones", "0"), "'--clones': must be a whole number, 1 or more, got '0'"),
        (
            ("demo", "--connections", "-1"),
            "'--connections': must be a whole number, 1 or more, got '-1'",
        ),
        (("demo", "extra"), "extra"),
        (("dance",), "No such command 'dance'"),
        (("--dance",), "--dance"),
    ],
)
def test_wrong_input_is_one_line(
    args: tuple[str, ...], reason: str, folder: pathlib.Path, forks: Forks
) -> None:
    """What click refuses is one line as well."""
    assert_refused(forks, args, reason, folder)


def test_address_in_use_is_one_line(folder: pathlib.Path, forks: Forks) -> None:
    """Another process's address is refused, with the address."""
    with glb.bind(("127.0.0.1", 0)) as taken:
        port = taken.address[1]
        reason = f"can't bind ('127.0.0.1', {port}): Address already in use"
        assert_refused(forks, ("serve", "--bind", f"127.0.0.1:{port}"), reason, folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is permitted to root")
def test_missing_permission_is_one_line(folder: pathlib.Path, forks: Forks) -> None:
    """The error names a folder that may not be written to."""
    folder.chmod(0o500)
    bind = f"unix:{os.path.relpath(folder)}/s"
    assert_refused(forks, ("serve", "--bind", bind), "Permission denied", ROOT)


# -- words --------------------------------------------------------------------------------------


def test_glb_alone_shows_help() -> None:
    """Without a command the list of commands is shown."""
    status, out, err = run()
    assert (status, err) == (0, "")
    assert re.search(r"demo +Count.*serve +Serve.*Example: ", out, re.DOTALL)


def test_version_is_the_package_s() -> None:
    """``--version`` prints what the package says."""
    assert run("--version") == (0, f"glb {glb.__version__}\n", "")


@pytest.mark.parametrize("name", ["click", "rich"])
def test_missing_extra_is_one_line(name: str) -> None:
    """Without click or rich the error says what to install."""
    code = f"import sys; sys.modules[{name!r}] = None; import glb.__main__ as m; m.main()"
    with child("-c", code) as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert re.fullmatch(rf"glb: the command line needs {name}\S*: pip install 'glb\[cli\]'\n", err)


def test_without_its_extra_the_command_says_what_it_needs() -> None:
    """Installed without click and rich, the command names the extra."""
    program = "import sys; sys.modules['click'] = None; import glb.__main__ as m; m.main()"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )
    assert result.returncode == 1
    assert result.stderr == "glb: the command line needs click: pip install 'glb[cli]'\n"
