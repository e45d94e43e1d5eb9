"""``glb top`` and the live table: a picture that fits, and is true to what a server counts."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import click.testing
import gevent
import pytest
from rich.console import Console

import glb.cli
from glb.admin import Admin
from glb.admin.watched import Watched
from glb.cli import live as live_module
from glb.cli import top as top_module
from glb.cli.clone_table import picture
from glb.cli.live import MOST_WRITES, Above, live
from glb.cli.source import Source, UnreadableError, _checked
from glb.pywsgi import WSGIServer
from glb.server import StreamServer

from ..admin.test_admin import Blocking, in_thread, started
from ..support.helpers import ask, close_all, connect, wait_until
from .test_commands import in_terminal

ANY = ("127.0.0.1", 0)
MOST_INTERRUPTS = 20


def facts(
    clones: int, states: Mapping[int, str] | None = None, hubs: int = 1, **more: Any
) -> dict[str, Any]:
    """Return what ``/clones`` has of a server with such clones."""
    states = states or {}
    return {
        "address": "127.0.0.1:8000",
        "state": "accepting",
        "shown_state": "accepting",
        "active": 0,
        "accept_queue": {"depth": 3, "limit": 4096},
        "hubs": [
            {"index": n, "lag_seconds": 0.001, "is_stalled": False, "stalled_at": "", "stalls": 0}
            for n in range(hubs)
        ],
        "clones": [
            {
                "index": n,
                "hub": n % hubs,
                "accepted": 1000 + n,
                "active": n % 3,
                "completed": 990 + n,
                "failed": 1,
                "state": states.get(n, "accepting"),
                "shown_state": states.get(n, "accepting"),
                "stalled_seconds": 12.3 if states.get(n) == "stalled" else 0.0,
                "passed_over": {"paused": 7} if states.get(n) == "paused" else {},
            }
            for n in range(clones)
        ],
        **more,
    }


def of_clone(**more: Any) -> dict[str, Any]:
    """Return the facts of a server whose one clone has these."""
    server = facts(1)
    return {**server, "clones": [{**server["clones"][0], **more}]}


def drawn(servers: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> list[str]:
    """Return the lines of a picture, none of which is wider than the screen."""
    out = Console(record=True, width=size[0], height=size[1], file=open("/dev/null", "w"))  # noqa: SIM115  # closed below
    with out.file:
        out.print(picture(servers, "a title", "a note", size))
        lines = out.export_text().splitlines()
    assert all(len(line) <= size[0] for line in lines)
    return lines


def rows(lines: Sequence[str]) -> dict[int, list[str]]:
    """Return the words of each clone, by its number."""
    found = {}
    for line in lines:
        for block in line.split("│"):
            words = block.split()
            if words and words[0].isdigit() and words[1][0].isdigit():
                found[int(words[0])] = words
    return found


def test_few_clones_have_all_that_is_known() -> None:
    """In one table, the busiest first, with a row of totals."""
    lines = drawn([facts(4, {1: "paused"})], (80, 24))
    assert lines[0].rstrip() == "a title"
    assert lines[-1].rstrip() == "a note"
    assert lines[1].split() == [
        *["127.0.0.1:8000", "accepting", "3", "of", "4096", "in", "the", "accept", "queue"],
        *["lag", "1", "ms"],
    ]
    names = ["clone", "accepted", "active", "completed", "failed", "passed", "over", "state"]
    assert lines[2].split() == names
    assert [each.split() for each in lines[3:7]] == [
        ["2", "1002", "2", "992", "1", "accepting"],
        ["1", "1001", "1", "991", "1", "7", "paused", "paused"],
        ["3", "1003", "0", "993", "1", "accepting"],
        ["0", "1000", "0", "990", "1", "accepting"],
    ]
    total = " ".join(" ".join(lines[7:-1]).split())
    assert total == (
        "4 clones: 4006 accepted, 3 active, 3966 completed, 4 failed; 3 accepting, 1 paused"
    )


@pytest.mark.parametrize("size", [(80, 24), (200, 50), (80, 50), (132, 30)])
@pytest.mark.parametrize("hubs", [1, 4])
def test_sixty_four_clones_fit(size: tuple[int, int], hubs: int) -> None:
    """Each with its number, its connections and its state; nothing is cut off."""
    states = {3: "stalled", 9: "full", 11: "paused", 12: "backing off"}
    lines = drawn([facts(64, states, hubs)], size)
    assert len(lines) <= size[1]
    found = rows(lines[3:])
    assert sorted(found) == [*range(64)]
    assert {str(1000 + n) in found[n] for n in found} == {True}
    words = {n: " ".join(found[n]) for n in states}
    assert re.search(r"stall(ed 12 s)?$", words[3])
    assert re.search(r"full$", words[9])
    assert re.search(r"pause(d)?$", words[11])
    assert re.search(r"back(ing off)?$", words[12])
    text = " ".join(" ".join(lines).split())
    accepted = sum(1000 + n for n in range(64))
    assert f"64 clones: {accepted} accepted, 63 active" in text
    assert "60 accepting, " in text and "1 stalled" in text and "not shown" not in text


def test_a_screen_without_columns_has_one() -> None:
    """``COLUMNS=0`` is a width to rich."""
    assert picture([facts(1)], "a title", "a note", (0, 24)).renderables


def test_what_has_no_room_is_counted() -> None:
    """The busiest are shown."""
    lines = drawn([facts(1000)], (80, 24))
    assert len(lines) <= 24
    text = " ".join(" ".join(lines).split())
    shown = rows(lines[3:-3])
    assert f"{1000 - len(shown)} not shown" in text
    assert all(int(words[2]) == 2 for words in shown.values())


def test_several_servers_share_the_screen() -> None:
    """Each with its own totals."""
    lines = drawn([facts(8, address="a"), facts(8, address="b")], (80, 30))
    assert len(lines) <= 30
    assert [line.split()[0] for line in lines if "accept queue" in line] == ["a", "b"]
    assert len([line for line in lines if line.startswith("8 clones:")]) == 2


def test_a_stuck_hub_is_named() -> None:
    """With its place, and for how long."""
    server = facts(4, {1: "stalled", 3: "stalled"}, hubs=2)
    server["hubs"][1].update(lag_seconds=12.3, stalled_at='File "app.py", line 3, in slow')
    lines = drawn([server], (80, 24))
    assert lines[2].rstrip() == 'hub 1 stalled 12 s at File "app.py", line 3, in slow'


def test_numbers_that_are_long_are_shortened_where_room_is_short() -> None:
    """They are exact below 100,000, and everywhere else."""
    server = facts(64)
    for n, clone in enumerate(server["clones"]):
        clone["accepted"] = [99_999, 123_456, 12_345_678, 999_950_000][n % 4]
    words = {row[1] for row in rows(drawn([server], (80, 24))[3:]).values()}
    assert words == {"99999", "123k", "12.3M", "1G"}
    assert "123456" in " ".join(drawn([server], (200, 60)))


# -- reading -------------------------------------------------------------------------------------


def test_it_shows_what_the_server_counts() -> None:
    """A real one, read from its administration, at both sizes."""
    server = StreamServer(ANY, lambda sock, _: sock.sendall(b"x"), clones=64, hubs=2)
    with started(server), Admin(server, ANY) as admin:
        for _ in range(100):
            assert ask(server.address) == b"x"
        server.pause_clone(5)
        wait_until(lambda: sum(each.completed for each in server.clone_stats()) == 100)
        found = in_thread(lambda: Source(admin.url).read())
        stats = server.clone_stats()
    for size in ((80, 24), (200, 50)):
        lines = drawn(found, size)
        shown = rows(lines[3:])
        for each in stats:
            assert str(each.accepted) in shown[each.index]
        assert "100 accepted, 0 active, 100 completed, 0 failed" in " ".join(lines)


@pytest.mark.parametrize(
    "form", ["{host}:{port}", "http://{host}:{port}", "http://{host}:{port}/", ":{port}", "{port}"]
)
def test_its_address_may_be_the_administrations_url(form: str) -> None:
    """As ``glb serve`` prints it; a port alone is this machine's."""
    server = StreamServer(ANY, lambda *_: None, clones=2)
    with Admin(server, ANY) as admin:
        where = form.format(host="127.0.0.1", port=admin.address[1])
        (found,) = in_thread(lambda: Source(where).read())
        assert len(found["clones"]) == 2


def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    """By its address."""
    server = StreamServer(ANY, lambda *_: None, clones=2)
    with Admin(server, f"unix:{tmp_path}/a"):
        (found,) = in_thread(lambda: Source(f"unix:{tmp_path}/a").read())
        assert found["accept_queue"] is None


def run(*args: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(glb.cli.cli, ["top", *args])


def test_a_dead_administration_is_one_line_and_status_1(tmp_path: Path) -> None:
    """It names the address and the reason."""
    for where, why in (
        ("127.0.0.1:9", "Connection refused"),
        (f"unix:{tmp_path}/none", "No such file or directory"),
    ):
        found = run(where)
        assert found.exit_code == 1
        assert found.stderr == f"glb: can't read {where}: {why}\n"
        assert found.stdout == ""


def test_a_wrong_address_is_wrong_input() -> None:
    """With the value in it."""
    found = run("127.0.0.1:x")
    assert found.exit_code == 2
    assert "'127.0.0.1:x'" in found.stderr


@pytest.mark.parametrize(
    "body",
    [
        b"hello",
        b"[]",
        b'{"servers": [{}]}',
        json.dumps({"servers": [facts(1, shown_state=3)]}).encode(),
        json.dumps({"servers": [facts(1) | {"clones": [{"index": "\x1b]0;x"}]}]}).encode(),
        b"[" * 100_000,
        json.dumps({"servers": [facts(1) | {"clones": []}]}).encode(),
        json.dumps({"servers": [of_clone(passed_over=[[]])]}).encode(),
        json.dumps({"servers": [of_clone(passed_over={"full": math.inf})]}).encode(),
        json.dumps({"servers": [of_clone(accepted=10**400)]}).encode(),
        json.dumps({"servers": [of_clone(stalled_seconds=math.nan)]}).encode(),
        json.dumps(
            {"servers": [facts(1, hubs=1) | {"hubs": [{"index": 0, "lag_seconds": 10**400}]}]}
        ).encode(),
        json.dumps({"servers": [facts(1, accept_queue={"depth": math.inf, "limit": 1})]}).encode(),
    ],
)
def test_another_server_is_no_administration(body: bytes) -> None:
    """Nothing that it says reaches the terminal as it is."""

    def application(_: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [body]

    server = WSGIServer(ANY, application, log=None)
    with started(server):
        with pytest.raises(UnreadableError, match="is no administration of glb: ") as caught:
            in_thread_raising(lambda: Source(f"127.0.0.1:{server.address[1]}").read())
        assert str(caught.value).isprintable()


def in_thread_raising(function: Any) -> Any:
    def call() -> Any:
        try:
            return function(), None
        except Exception as error:
            return None, error

    found, error = in_thread(call)
    if error is not None:
        raise error
    return found


def test_control_characters_of_an_address_are_not_shown() -> None:
    """They would be the terminal's."""
    found = _checked({"servers": [facts(1, address="a\x1b[2Jb")]})
    assert found[0]["address"] == "a?[2Jb"


def test_where_stdout_is_no_terminal_it_is_printed_once() -> None:
    """With status 0."""
    server = StreamServer(ANY, lambda *_: None, clones=2)
    with started(server), Admin(server, ANY) as admin:
        found = in_thread(lambda: run(f"127.0.0.1:{admin.address[1]}"))
    assert found.exit_code == 0
    assert "2 clones: 0 accepted" in found.stdout
    assert "\x1b" not in found.stdout


def test_rates_are_those_between_two_looks() -> None:
    """A server that is new, or was started again, has none below 0."""
    now = [10.0]
    rates = top_module._Rates(lambda: now[0])
    assert rates.of([facts(2)]) == {}
    now[0] += 2
    more = facts(2)
    more["clones"][0]["accepted"] += 30
    assert rates.of([more, facts(1, address="b")]) == {"127.0.0.1:8000": 15.0}
    now[0] += 1
    assert rates.of([facts(2)]) == {"127.0.0.1:8000": 0}


@pytest.mark.process
@pytest.mark.parametrize("key", ["q", "\x03", None])
def test_it_is_live_until_a_key_or_until_there_is_no_answer(
    key: str | None, tmp_path: Path
) -> None:
    """The screen is the terminal's again, and the status says which it was."""
    server = StreamServer(ANY, lambda sock, _: sock.sendall(b"x"), clones=2)
    with started(server), Admin(server, ANY) as admin:
        where = f"127.0.0.1:{admin.address[1]}"
        args = ("top", where, "--interval", "0.1")
        ours: list[int] = []
        openpty = os.openpty

        def opened() -> tuple[int, int]:
            pair = openpty()
            ours.append(pair[0])
            return pair

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pty.openpty", opened)

            def watch() -> int:
                with in_terminal(*args, cwd=tmp_path) as (process, read):
                    read(r"2 clones\S*: 0 accepted")
                    asked.set()
                    read(r"2 clones\S*: 4 accepted")
                    if key is None:
                        gone.set()
                    elif key == "\x03":
                        process.send_signal(signal.SIGINT)
                    else:
                        os.write(ours[0], key.encode())
                    read(r"\x1b\[\?1049l")
                    if key is None:
                        read("Connection refused")
                    status: int = process.wait()
                    return status

            asked, gone = threading.Event(), threading.Event()
            status: list[int] = []
            thread = threading.Thread(target=lambda: status.append(watch()))
            thread.start()
            wait_until(lambda: asked.is_set() or not thread.is_alive())
            for _ in range(4):
                assert ask(server.address) == b"x"
            if key is None:
                wait_until(lambda: gone.is_set() or not thread.is_alive())
                admin.stop()
            wait_until(lambda: not thread.is_alive())
            thread.join()
            assert status == [1 if key is None else 0]


# -- the live table -----------------------------------------------------------------------------


def test_lines_are_kept_whole_until_they_are_taken() -> None:
    """From any number of writes; the last may have no end."""
    above = Above()
    assert above.take() == ""
    above.write("one\ntw")
    assert above.take() == "one"
    above.write("o\nthree\n")
    above.write("fo")
    assert above.take() == "two\nthree"
    assert above.take() == ""
    assert above.take(is_last=True) == "fo"
    for _ in range(MOST_WRITES + 5):
        above.write("x\n")
    *lines, last = above.take().split("\n")
    assert lines == ["x"] * MOST_WRITES
    assert last == "glb: 5 writes more came than a terminal takes"


def test_a_write_may_interrupt_a_write() -> None:
    """As those of a signal handler or a finalizer do, anywhere in it."""
    above = Above()
    code = Above.write.__code__
    written: list[str] = []

    def interrupt(frame: Any, *_: object) -> Any:
        if frame.f_code is code and len(written) < MOST_INTERRUPTS:
            sys.settrace(None)
            written.append("within\n")
            above.write(written[-1])
            sys.settrace(interrupt)
            return interrupt
        return None

    thread = threading.Thread(target=traced, args=(interrupt, lambda: above.write("out\n")))
    thread.daemon = True  # a lock would keep it
    thread.start()
    wait_until(lambda: not thread.is_alive())
    assert sorted(above.take().split()) == ["out"] + ["within"] * len(written)
    assert len(written) > 1


def traced(trace: Any, call: Callable[[], object]) -> None:
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)


class Screen:
    """A terminal that keeps what is written to it, and is read meanwhile."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def make_screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Return what stands in for the terminal from now on."""
    # No fixture: pytest has a stdout of its own in each phase.
    made = Screen()
    monkeypatch.setattr(sys, "stdout", made)
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setattr(live_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr("glb.admin.pulse.STUCK_SECONDS", 0.05)
    return made


def test_the_table_goes_on_while_hub_0_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, of its clones alone, and what is written meanwhile comes out above it."""
    screen = make_screen(monkeypatch)
    handle = Blocking()
    server = StreamServer(ANY, handle, clones=2, hubs=2)
    seen: list[bool] = []

    def watch() -> None:
        until = threading.Event()
        try:
            assert handle.blocked.acquire(timeout=10)
            for part in ("1 stalled", "1 accepting", "hub 0 stalled", "a line of a request"):
                if part.startswith("a line"):
                    sys.stderr.write(f"{part}\n")
                deadline = monotonic() + 10
                while part not in screen.text and monotonic() < deadline:
                    until.wait(0.005)
                seen.append(part in screen.text)
        finally:
            handle.go_on.set()

    out = Console(force_terminal=True, width=100, height=30)
    with started(server):
        with live({"tcp://here": server}, "a title", out, 60):
            clients = [connect(server.address)]
            assert clients[0].recv(1) == b"x"
            thread = threading.Thread(target=watch)
            thread.start()
            clients[0].sendall(b"b")
            wait_until(lambda: not thread.is_alive())
            thread.join()
            sys.stdout.write("a last line")
        close_all(clients)
        assert sys.stdout is screen
    text = re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", screen.text)
    assert seen == [True] * 4
    assert "tcp://here" in text and "a last line" in text
    assert text.rstrip().endswith("ended")


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server goes on; SIGHUP is what says that it is gone."""
    screen = make_screen(monkeypatch)
    server = StreamServer(ANY, lambda *_: None, clones=2)
    out = Console(force_terminal=True, width=100, height=30)

    def gone(_: str) -> int:
        failed.append(1)
        raise OSError(5, "Input/output error")

    failed: list[int] = []
    with started(server), live({"tcp://here": server}, "a title", out, None):
        monkeypatch.setattr(screen, "write", gone)
        wait_until(lambda: bool(failed))
        gevent.sleep(0)
        monkeypatch.undo()


def test_a_server_that_is_watched_is_as_it_counts() -> None:
    """What the table is drawn from has the numbers of `clone_stats`."""
    server = StreamServer(ANY, lambda sock, _: sock.sendall(b"x"), clones=3)
    with started(server):
        assert [ask(server.address) for _ in range(7)] == [b"x"] * 7
        watched = Watched(server, 10.0)
        found = watched.view().as_json()["clones"]
        assert [each["accepted"] for each in found] == [3, 2, 2]
