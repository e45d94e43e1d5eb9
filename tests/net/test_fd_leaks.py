"""Open descriptors, their owners, and one warning before there are none left."""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

import glb.net.fd_leaks
from glb.hubs.threads import call_where_it_may_switch
from glb.net.fd_leaks import Census, Watermark, describe, look

from ..support.helpers import close_all
from ..support.scarcity import scarcity

EMFILE = OSError(errno.EMFILE, "Too many open files")

# -- a census ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opened", "connections", "before", "is_suspect"),
    [
        (1024, 12, 10, True),
        (1024, 0, 10, True),
        (1024, 300, 10, True),
        (1024, 338, 10, False),  # two more for each: an honest proxy with a file
        (1024, 1000, 10, False),
        (1024, 12, 900, False),  # they were there before
        (1024, 12, 600, True),
        (200, 0, 10, False),  # no trouble
    ],
)
def test_handlers_are_suspected_of_what_came_since_the_start(
    opened: int, connections: int, before: int, is_suspect: bool
) -> None:
    """Neither connections nor what was open before, nor little, is a sign of a leak."""
    assert Census(opened, 1024, connections, before).is_suspect is is_suspect


def test_a_look_counts_each_kind(tmp_path: Path) -> None:
    """Sockets, pipes and files, each by what it is; all of them are counted."""
    before, kinds_before = look(1024)
    path = tmp_path / "leaked"
    path.touch()
    pair, pipe = socket.socketpair(), os.pipe()
    files = [path.open() for _ in range(3)]
    opened, kinds = look(1024)
    close_all([*pair, *files])
    for number in pipe:
        os.close(number)
    assert opened == before + 7
    assert kinds - kinds_before == Counter({"socket": 2, "pipe": 2, str(path): 3})
    assert look(1024)[0] == before


def test_a_look_at_many_is_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub does not wait for a million of them; the counts are what follows."""
    looked: list[int] = []

    def kind_of(number: int) -> str:
        looked.append(number)
        return "socket"

    monkeypatch.setattr("glb.net.fd_leaks._kind_of", kind_of)
    assert look(1_000_000) == (1_000_000, Counter({"socket": 1_000_000}))
    assert len({*looked}) == glb.net.fd_leaks.MOST_LOOKED_AT


def test_without_proc_a_look_finds_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind of a file is known everywhere."""
    opened, kinds = look(1024)
    monkeypatch.setattr("os.readlink", refuse)
    with socket.socket():
        less = look(1024)
    assert less[0] == opened + 1
    assert less[1].keys() <= {"socket", "pipe", "file"}
    assert less[1]["socket"] == kinds["socket"] + 1


def refuse(*_args: object) -> str:
    raise FileNotFoundError


@pytest.mark.parametrize(
    ("kinds", "connections", "words"),
    [
        ({"socket": 9, "pipe": 20, "/a": 3, "anon_inode:[eventpoll]": 2}, 4,
         "pipe (20), socket (5), /a (3)"),
        ({"socket": 9}, 20, "of an unknown kind"),
        ({"/tmp/a": 1, "/tmp/b (deleted)": 1, "/var/c": 1, "pipe": 1}, 0,
         "files in /tmp (2), files in /var (1), pipe (1)"),
        ({"/a\nb\udcff": 2}, 0, r"'/a\nb\udcff' (2)"),
        ({"/" + "x" * 200: 2}, 0, f"...{'x' * 80} (2)"),
    ],
)  # fmt: skip
def test_kinds_are_named_most_frequent_first(
    kinds: dict[str, int], connections: int, words: str
) -> None:
    """Without the connections, on one line, and as anything that a log can write."""
    assert glb.net.fd_leaks._most_of(Counter(kinds), connections) == words


# -- the line of an episode -------------------------------------------------------------------


def test_a_leak_is_described_with_its_kind_and_count() -> None:
    """Out of descriptors, a handful of connections: what are all the others?"""
    with scarcity(taken=100) as hoard:
        words = describe(EMFILE, lambda: 3, 10)
        opened, kinds = look(glb.net.fd_leaks.soft_limit() or 0)
    assert words.startswith(
        f"{opened} of {opened} descriptors are open, 3 of them connections that handlers have; "
        f"handlers may leak the others, mostly /dev/null ({kinds['/dev/null']}), "
    )
    assert kinds["/dev/null"] >= len(hoard.numbers)


def test_connections_are_no_leak() -> None:
    """A server that has as many as it may needs a higher limit, and leaks nothing."""
    with scarcity():
        limit = glb.net.fd_leaks.soft_limit()
        assert limit is not None
        words = describe(EMFILE, lambda: limit - 10, 10)
    assert words == (
        f"{limit} of {limit} descriptors are open, "
        f"{limit - 10} of them connections that handlers have"
    )


def test_nothing_is_suspected_where_connections_are_not_counted() -> None:
    """For an accept loop of the program's own the log has what is open, and no more."""
    with scarcity(taken=100):
        words = describe(EMFILE, lambda: None, 10)
    assert re.search(r"^\d+ of \d+ descriptors are open, mostly /dev/null \(\d{3}\), ", words)
    assert not re.search("handlers (have|may leak)", words)  # a log file may be named for either


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc/sys")
def test_enfile_is_described_by_the_systems_files() -> None:
    """ENFILE is no fault of this process; the one spare descriptor suffices to find out."""
    error = OSError(errno.ENFILE, "Too many open files in system")
    with scarcity(free=1):
        count, of, rest = describe(error, lambda: 3, 10).split(" ", 2)
    assert count.isdigit() and of == "of" and rest.endswith("files of the system are open")
    with scarcity():
        assert describe(error, lambda: 3, 10) == ""


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "?"), OSError("?"), MemoryError()])
def test_other_errors_have_no_description(error: BaseException) -> None:
    assert describe(error, lambda: 3, 10) == ""


def test_describe_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is to be logged, whatever its end was to be."""
    assert describe(EMFILE, lambda: 1 // 0, 10) == ""
    monkeypatch.setattr("glb.net.fd_leaks.soft_limit", lambda: None)
    assert describe(EMFILE, lambda: 3, 10) == ""


# -- the watermark ----------------------------------------------------------------------------


class Scene:
    """A watermark of 1,000 descriptors, of which *opened* seem to be open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self.connections: int | None = 12
        self.limit: int | None = 1000
        self.opened = 0
        self.looks = 0
        self.now = 0.0
        self._caplog = caplog
        monkeypatch.setattr("glb.net.fd_leaks.look", self._look)
        self.mark = Watermark(
            10,
            lambda: self.connections,
            say=call_where_it_may_switch,
            limit=lambda: self.limit,
            clock=lambda: self.now,
        )

    def _look(self, below: int) -> tuple[int, Counter[str]]:
        self.looks += 1
        opened = min(below, self.opened)
        return opened, Counter({"socket": opened})

    def accept(self, *numbers: int) -> list[int]:
        """Accept with *numbers*; return those with which there was a warning."""
        warned = []
        for number in numbers:
            before = len(self._caplog.records)
            if number >= self.mark.level:
                self.mark.reached("a server", number)
            warned += [number] * (len(self._caplog.records) - before)
        return warned


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Scene:
    return Scene(monkeypatch, caplog)


def test_a_leak_is_warned_of_once_at_three_quarters(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """On its way to the limit a leak is reported once, with all facts."""
    scene.opened = 1000
    assert scene.accept(*range(1000)) == [750]
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("glb", "WARNING")
    assert record.getMessage() == (
        "a server: handlers seem to leak descriptors: 751 of 1000 descriptors are open, "
        "12 of them connections that handlers have; the others are mostly socket (739)"
    )


def test_connections_give_no_warning_and_are_not_looked_at(scene: Scene) -> None:
    """A burst of connections is what the server is for; nothing is read for it."""
    scene.connections = scene.opened = 900
    assert scene.accept(*range(1000)) == [] and scene.looks == 0


def test_a_leak_that_shows_later_is_warned_of_half_way_to_the_limit(scene: Scene) -> None:
    """Its proof is not looked for at each accept: at 750, 875, 938, 969, 985, 993, 997, 999."""
    asked: list[int] = []
    scene.connections = 900
    scene.mark._count_connections = lambda: asked.append(number) or scene.connections  # type: ignore[func-returns-value]  # on purpose
    for number in range(930):
        assert scene.accept(number) == []
    scene.connections = 12
    warned = []
    for number in range(930, 1000):
        warned += scene.accept(number)
    assert (asked, warned) == ([750, 875, 938], [938])


def test_a_low_number_alone_does_not_end_an_episode(scene: Scene) -> None:
    """One connection among the leaked ones has ended: the next gets its number, again and again."""
    scene.opened = 800
    assert scene.accept(800) == [800]
    for _ in range(100):
        scene.now += 1
        assert scene.accept(400, 800) == []
    assert scene.looks == 1 + 20  # each 5 seconds


def test_an_episode_is_over_when_half_is_free_again(scene: Scene) -> None:
    """And then the next leak is news; below three quarters nothing is asked at all."""
    scene.opened = 800
    assert scene.accept(800, 801) == [800]
    scene.opened = 499
    assert scene.accept(400) == [] and scene.mark.level == 0
    scene.now += 10
    assert scene.accept(400) == [] and scene.mark.level == 750
    looks = scene.looks
    assert scene.accept(*range(750)) == [] and scene.looks == looks
    assert scene.accept(750) == [750]


def test_a_limit_that_was_raised_moves_the_mark(scene: Scene) -> None:
    """A program may do so after its server has started."""
    scene.limit, scene.opened = 4000, 800
    assert scene.accept(800) == [] and scene.mark.level == 3000
    scene.limit = None
    assert scene.accept(3000) == [] and scene.mark.level == sys.maxsize


def test_without_a_limit_or_a_count_there_is_no_warning(scene: Scene) -> None:
    scene.connections, scene.opened = None, 800
    assert scene.accept(800) == []
    assert (
        Watermark(10, lambda: 0, say=call_where_it_may_switch, limit=lambda: None).level
        == sys.maxsize
    )


def test_what_goes_wrong_in_a_warning_is_not_the_accepts(scene: Scene) -> None:
    """The connection was accepted; a failed count is a matter for the debug log."""
    scene.mark._count_connections = lambda: 1 // 0
    scene.mark.reached("a server", 800)


def test_two_hubs_that_reach_it_at_once_warn_once(scene: Scene) -> None:
    """The second does not wait for the first either, which is held within."""
    inside, leave = threading.Event(), threading.Event()
    scene.opened = 800

    def count() -> int:
        inside.set()
        leave.wait(10)
        return 12

    warned: list[int] = []
    scene.mark._count_connections = count
    thread = threading.Thread(target=lambda: warned.extend(scene.accept(800)))
    thread.start()
    assert inside.wait(10)
    assert scene.accept(801) == []
    leave.set()
    thread.join()
    assert warned == [800]


def test_the_kernels_own_numbers(caplog: pytest.LogCaptureFixture) -> None:
    """A real leak of sockets, with nothing but real descriptors in it."""
    leaked: list[socket.socket] = []
    with scarcity(free=400, taken=0):
        limit = glb.net.fd_leaks.soft_limit() or 0
        mark = Watermark(leak_once(leaked), lambda: 1, say=call_where_it_may_switch)
        while not caplog.records:
            number = leak_once(leaked)
            if number >= mark.level:
                mark.reached("a server", number)
        told = caplog.records[0].getMessage()
    close_all(leaked)
    assert len(leaked) < 400
    assert f": {int(limit * 0.75) + 1} of {limit} descriptors are open, 1 of them" in told
    assert f"socket ({len(leaked) - 1 + sockets_open()})" in told


def leak_once(leaked: list[socket.socket]) -> int:
    leaked.append(socket.socket())
    return leaked[-1].fileno()


def sockets_open() -> int:
    return look(1024)[1]["socket"]
