"""Sockets: opened as the platform wants it, and nothing left behind when that fails."""

from __future__ import annotations

import _socket
import contextlib
import errno
import fcntl
import os
import re
import resource
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import gevent.os
import pytest

from glb.model.address import AF_INET, AF_INET6, AF_UNIX, Address, key_of, parse
from glb.net import sockets, unix_files
from glb.net.sockets import PLATFORM, Platform

from ..conftest import open_descriptors

LOCAL = Address(AF_INET, ("127.0.0.1", 0))
LINUX = Platform.of("linux", has_unix=True, has_reuse_port=True)
FREEBSD = Platform.of("freebsd14", has_unix=True, has_reuse_port=True)
DARWIN = Platform.of("darwin", has_unix=True, has_reuse_port=True)
WINDOWS = Platform.of("win32", has_unix=False, has_reuse_port=False)


def option(sock: _socket.socket, name: int) -> bool:
    return bool(sock.getsockopt(_socket.SOL_SOCKET, name))


def accept(sock: Any) -> int:
    """Return the descriptor of a connection that waits."""
    descriptor: int = sock._accept()[0]
    return descriptor


def backlog_of(sock: _socket.socket) -> int:
    """Return the accept queue's length as the kernel has it: tcp_info's tcpi_sacked."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    length: int = struct.unpack_from("=I", info, 28)[0]
    return length


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A path for a Unix socket, short enough for the 108 bytes of sun_path."""
    monkeypatch.chdir(tmp_path)
    return "app.sock"


@contextmanager
def descriptor_limit(spare: int) -> Iterator[None]:
    """Let this process open *spare* descriptors more, then get EMFILE."""
    taken = []
    for _ in range(spare + 1):
        taken.append(os.dup(0))
    first_refused = taken[-1]
    for descriptor in taken:
        os.close(descriptor)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_refused, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# -- platforms --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("linux", Platform(reuse_addr=True, reuse_port_balances=True, unix_sockets=True)),
        ("android", Platform(reuse_addr=True, reuse_port_balances=True, unix_sockets=True)),
        ("darwin", Platform(reuse_addr=True, reuse_port_balances=False, unix_sockets=True)),
        ("freebsd14", Platform(reuse_addr=True, reuse_port_balances=False, unix_sockets=True)),
        ("win32", Platform(reuse_addr=False, reuse_port_balances=False, unix_sockets=False)),
    ],
)
def test_each_platform_has_its_facts(name: str, facts: Platform) -> None:
    """With every constant defined, the name alone decides."""
    assert Platform.of(name, has_unix=True, has_reuse_port=True) == facts


def test_what_python_does_not_know_a_platform_does_not_have() -> None:
    """An old kernel's headers may lack the option, or the family."""
    bare = Platform.of("linux", has_unix=False, has_reuse_port=False)
    assert bare == Platform(reuse_addr=True, reuse_port_balances=False, unix_sockets=False)


def test_the_facts_are_those_of_this_system() -> None:
    """What is passed by default was read from where this runs."""
    assert (
        Platform.of(
            sys.platform,
            has_unix=hasattr(socket, "AF_UNIX"),
            has_reuse_port=hasattr(socket, "SO_REUSEPORT"),
        )
        == PLATFORM
    )


@pytest.mark.parametrize(
    ("platform", "expected"), [(LINUX, True), (FREEBSD, True), (DARWIN, True), (WINDOWS, False)]
)
def test_the_port_is_not_stolen_on_windows(platform: Platform, expected: bool) -> None:
    """SO_REUSEADDR is set only where it doesn't mean "take it from its owner"."""
    with closing(sockets.open_listening(LOCAL, 1, platform=platform)) as sock:
        assert option(sock, _socket.SO_REUSEADDR) is expected


def test_reuse_addr_can_be_declined() -> None:
    """A server may say ``reuse_addr = 0``, as with gevent."""
    with closing(sockets.open_listening(LOCAL, 1, reuse_addr=False, platform=LINUX)) as sock:
        assert not option(sock, _socket.SO_REUSEADDR)


@pytest.mark.parametrize(
    ("platform", "expected"), [(LINUX, True), (FREEBSD, False), (DARWIN, False), (WINDOWS, False)]
)
def test_reuse_port_is_set_only_where_the_kernel_balances(
    platform: Platform, expected: bool
) -> None:
    """Elsewhere one of the sockets would get all connections."""
    with closing(sockets.open_listening(LOCAL, 1, reuse_port=True, platform=platform)) as sock:
        assert option(sock, _socket.SO_REUSEPORT) is expected


def test_reuse_port_is_not_set_unasked() -> None:
    """By default no other socket can bind the address."""
    with closing(sockets.open_listening(LOCAL, 1, platform=LINUX)) as sock:
        assert not option(sock, _socket.SO_REUSEPORT)


def test_without_unix_sockets_one_is_refused(path: str) -> None:
    """A platform without them says so with an errno, and touches no file."""
    with pytest.raises(OSError, match=r"unix:app\.sock") as caught:
        sockets.open_listening(parse(f"unix:{path}"), 1, platform=WINDOWS)
    assert caught.value.errno == errno.EAFNOSUPPORT
    assert not os.path.exists(path)


# -- opening ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_opened_socket_listens(host: str) -> None:
    """It is a plain, non-blocking stream socket that clients reach."""
    address = sockets.resolve(parse((host, 0)))
    with closing(sockets.open_listening(address, 5)) as sock:
        assert type(sock) is _socket.socket
        assert sock.gettimeout() == 0
        assert not os.get_blocking(sock.fileno())
        with pytest.raises(BlockingIOError):
            accept(sock)
        socket.create_connection(sock.getsockname()[:2], timeout=10).close()


def test_a_unix_socket_listens_on_its_path(path: str) -> None:
    """Its file is there while it is open."""
    with closing(sockets.open_listening(parse(f"unix:{path}"), 5)) as sock:
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        assert sock.getsockname() == path
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the backlog in tcp_info")
def test_the_kernel_gets_the_backlog() -> None:
    """The queue is as long as asked, up to what the kernel allows."""
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    for backlog in (0, 1, 7, sockets.DEFAULT_BACKLOG):
        with closing(sockets.open_listening(LOCAL, backlog)) as sock:
            assert backlog_of(sock) == min(backlog, most)


def test_a_taken_address_is_refused_and_nothing_is_left() -> None:
    """EADDRINUSE, with the address in the text, the cause kept, and no descriptor more."""
    with closing(sockets.open_listening(LOCAL, 1)) as first:
        taken = sockets.bound_address(first)
        before = open_descriptors()
        with pytest.raises(OSError, match=re.escape(repr(taken.sockaddr))) as caught:
            sockets.open_listening(taken, 1)
        assert caught.value.errno == errno.EADDRINUSE
        assert isinstance(caught.value.__cause__, OSError)
        assert open_descriptors() == before


def test_a_failed_bind_is_the_error_that_it_was() -> None:
    """An except clause for the built-in class of an errno catches it here too."""
    address = parse("unix:/proc/self/nothing/app.sock")
    with pytest.raises(FileNotFoundError, match=re.escape(repr(address.sockaddr))) as caught:
        sockets.open_listening(address, 1)
    assert caught.value.errno == errno.ENOENT


def test_a_path_that_is_too_long_is_refused() -> None:
    """Python itself says so, without an errno; the text has the path all the same."""
    address = parse("unix:/" + "x" * 200)
    with pytest.raises(OSError, match="x" * 200):
        sockets.open_listening(address, 1)


def refused(path: str) -> str:
    """Return why *path* can't be bound; it and the folder stay as they were."""
    before, descriptors = os.lstat(path), open_descriptors()
    with pytest.raises(OSError, match=re.escape(f"can't bind '{path}'")) as caught:
        sockets.open_listening(parse(f"unix:{path}"), 1)
    assert caught.value.errno == errno.EADDRINUSE
    assert isinstance(caught.value.__cause__, OSError)
    assert os.path.samestat(os.lstat(path), before)
    assert open_descriptors() == descriptors
    return str(caught.value).partition("Address already in use: ")[2]


def bind_and_leave(path: str, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(socket.AF_UNIX, kind) as stale:
        stale.bind(path)


def test_a_stale_unix_socket_is_replaced(path: str) -> None:
    """A killed process leaves its file, and the next one binds the path; nothing else is left."""
    for spelling in (path, f"./{path}", os.path.abspath(path)):
        bind_and_leave(path)
        with closing(sockets.open_listening(parse(f"unix:{spelling}"), 1)) as sock:
            socket_of(path).close()
            sockets.unlink(sockets.bound_address(sock))
        assert os.listdir() == []


def socket_of(path: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    return client


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: Path(path).write_text("mine"), "a plain file is there"),
        (os.mkdir, "a folder is there"),
        (lambda path: os.symlink("nowhere", path), "a symbolic link is there"),
        (
            lambda path: [bind_and_leave("stale.sock"), os.symlink("stale.sock", path)],  # type: ignore[func-returns-value]  # one after the other
            "a symbolic link is there",
        ),
        (os.mkfifo, "no socket is there"),
    ],
)
def test_what_is_no_socket_stays_in_the_way(
    make: Callable[[str], object], reason: str, path: str
) -> None:
    """Whatever else has the path is kept, and the error says what it is."""
    make(path)
    assert refused(path) == reason


@pytest.mark.parametrize("state", ["bound", "listening", "full", "datagrams"])
def test_a_live_unix_socket_stays(path: str, state: str) -> None:
    """A server is not disturbed, from its bind on: no connection comes to it."""
    kind = socket.SOCK_DGRAM if state == "datagrams" else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as server, contextlib.ExitStack() as clients:
        server.bind(path)
        server.setblocking(False)
        if state in ("listening", "full"):
            server.listen(0)
        if state == "full":
            clients.enter_context(socket_of(path))
        assert refused(path) == "a server has it open"
        if state == "listening":
            with pytest.raises(BlockingIOError):
                server.accept()


def test_a_kernel_that_looks_at_the_type_first_is_asked_twice(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a datagram socket is refused by a live server, too, a stream socket finds it."""

    class OtherKernel(_socket.socket):
        def connect(self, address: Any, /) -> None:
            if self.type == socket.SOCK_DGRAM:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
            super().connect(address)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        monkeypatch.setattr(_socket, "socket", OtherKernel)
        assert refused(path) == "a server has it open"


def test_another_users_unix_socket_stays(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a stale one, and whatever we may do there: root may."""
    bind_and_leave(path)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert refused(path) == f"the socket there is of the user with id {mine}"


def test_a_socket_that_may_not_be_asked_stays(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to write to its file nothing is known of its server."""

    class Forbidden(_socket.socket):
        def connect(self, address: Any, /) -> None:
            raise PermissionError(errno.EACCES, "no")

    bind_and_leave(path)
    monkeypatch.setattr(_socket, "socket", Forbidden)
    assert refused(path) == "a server may have it open, and we may not ask it"


def test_a_folder_that_may_not_be_read_is_said(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can't be locked then, so nothing is removed."""
    bind_and_leave(path)

    def forbid(*_: object) -> int:
        raise PermissionError(errno.EACCES, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", forbid)
        assert refused(path) == "we may not read its folder to see whether it is stale"
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", failing_with(errno.ENOLCK))
        assert refused(path) == "its folder can't be locked"


def failing_with(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_folder_that_stays_locked_is_not_waited_for_for_ever(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some other use of the lock holds no server up."""
    monkeypatch.setattr(unix_files, "FOLDER_LOCK_SECONDS", 0.01)
    bind_and_leave(path)
    folder = os.open(".", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert refused(path) == "another process has locked its folder"
    finally:
        os.close(folder)
    sockets.open_listening(parse(f"unix:{path}"), 1).close()


def test_monkey_patching_does_not_keep_the_folder_locked(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gevent's `os.close` would close it, and so give the lock back, a turn of the loop later."""
    monkeypatch.setattr(os, "close", gevent.os.close)
    monkeypatch.setattr(unix_files, "FOLDER_LOCK_SECONDS", 0)
    for _ in range(2):
        bind_and_leave(path)
        sockets.open_listening(parse(f"unix:{path}"), 1).close()
        os.unlink(path)


def test_a_stale_file_that_is_gone_meanwhile_is_no_error(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has removed it before we had the lock, and hasn't bound the path yet."""
    bind_and_leave(path)
    flock = fcntl.flock

    def lock_late(*args: Any) -> None:
        os.unlink(path)
        flock(*args)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    sockets.open_listening(parse(f"unix:{path}"), 1).close()


def test_a_server_that_is_quicker_wins(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It binds after we have removed the stale file: the address is its own."""
    bind_and_leave(path)
    unlink = os.unlink
    with socket.socket(socket.AF_UNIX) as quicker:

        def unlink_and_lose(where: str) -> None:
            unlink(where)
            quicker.bind(path)
            quicker.listen()

        monkeypatch.setattr(os, "unlink", unlink_and_lose)
        with pytest.raises(OSError, match=r"app\.sock") as caught:
            sockets.open_listening(parse(f"unix:{path}"), 1)
        assert caught.value.errno == errno.EADDRINUSE
        socket_of(path).close()


def test_of_two_that_found_a_stale_file_one_wins(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first one's look at the file and its removal the second one has to wait."""
    bind_and_leave(path)
    has_looked, has_to_wait = threading.Event(), threading.Event()
    check_is_stale, flock = unix_files._check_is_stale, fcntl.flock

    def look_slowly(where: str) -> None:
        check_is_stale(where)
        if not has_looked.is_set():
            has_looked.set()
            assert has_to_wait.wait(20)

    def lock(*args: Any) -> None:
        try:
            flock(*args)
        except BlockingIOError:
            has_to_wait.set()
            raise

    def start() -> None:
        first.append(sockets.open_listening(parse(f"unix:{path}"), 9))

    monkeypatch.setattr(unix_files, "_check_is_stale", look_slowly)
    monkeypatch.setattr(fcntl, "flock", lock)
    monkeypatch.setattr(unix_files, "FOLDER_LOCK_SECONDS", 20)
    first: list[_socket.socket] = []
    thread = threading.Thread(target=start)
    thread.start()
    assert has_looked.wait(20)
    with pytest.raises(OSError, match="Address already in use") as caught:
        sockets.open_listening(parse(f"unix:{path}"), 9)
    assert caught.value.errno == errno.EADDRINUSE
    thread.join()
    socket_of(path).close()
    first[0].close()


# Binds after a line, and closes after the next one.
BIND_AT_ONCE = """
import sys
import threading
from glb.net import sockets
from glb.model.address import parse

print("ready", flush=True)
for line in sys.stdin:
    sock = None
    try:
        sock = sockets.open_listening(parse("unix:app.sock"), 9)
    except OSError as error:
        assert "Address already in use" in str(error), error
    print("lost" if sock is None else "won", flush=True)
    sys.stdin.readline()
    if sock is not None:
        sock.close()  # and leaves its file, as if it was killed
    print("over", flush=True)
"""


@pytest.mark.process
@pytest.mark.usefixtures("path")
def test_of_processes_that_start_at_once_one_wins() -> None:
    """Round after round a stale file is left, and the processes bind all at once."""
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", BIND_AT_ONCE],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(4)
        ]
        pipes = [(each.stdin, each.stdout) for each in running]

        def tell() -> list[str]:
            for stdin, _ in pipes:
                assert stdin is not None
                stdin.write("go\n")
                stdin.flush()
            return answers()

        def answers() -> list[str]:
            return sorted(stdout.readline().strip() for _, stdout in pipes if stdout is not None)

        assert answers() == ["ready"] * 4
        bind_and_leave("app.sock")
        for _ in range(50):
            assert tell() == ["lost", "lost", "lost", "won"]
            socket_of("app.sock").close()
            assert tell() == ["over"] * 4


def test_out_of_descriptors_nothing_is_opened() -> None:
    """EMFILE comes as such, with the address."""
    with descriptor_limit(0), pytest.raises(OSError, match=re.escape("('127.0.0.1', 0)")) as caught:
        sockets.open_listening(LOCAL, 1)
    assert caught.value.errno == errno.EMFILE


class FailingSocket(_socket.socket):
    """A socket of which one step fails, as a kernel can't be made to."""

    fails: ClassVar[str] = ""
    error: ClassVar[BaseException] = OSError(errno.EIO, "no disk for this")
    made: ClassVar[list[FailingSocket]] = []

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.made.append(self)

    def _fail(self, step: str) -> None:
        if self.fails == step:
            raise self.error

    def setsockopt(self, *args: Any) -> None:
        self._fail("setsockopt")
        super().setsockopt(*args)

    def listen(self, *args: Any) -> None:
        self._fail("listen")
        super().listen(*args)

    def setblocking(self, flag: bool, /) -> None:
        self._fail("setblocking")
        super().setblocking(flag)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> type[FailingSocket]:
    monkeypatch.setattr(FailingSocket, "fails", "")
    monkeypatch.setattr(FailingSocket, "made", [])
    monkeypatch.setattr(_socket, "socket", FailingSocket)
    return FailingSocket


@pytest.mark.parametrize("step", ["setsockopt", "listen", "setblocking"])
def test_whatever_step_fails_the_socket_is_closed(
    step: str, failing: type[FailingSocket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step of opening leaves a descriptor behind, and the error is the step's."""
    monkeypatch.setattr(failing, "fails", step)
    before = open_descriptors()
    with pytest.raises(OSError, match=re.escape("('127.0.0.1', 0)")) as caught:
        sockets.open_listening(LOCAL, 1)
    assert caught.value.errno == errno.EIO
    assert caught.value.__cause__ is failing.error
    assert [sock.fileno() for sock in failing.made] == [-1]
    assert open_descriptors() == before


@pytest.mark.parametrize("step", ["listen", "setblocking"])
def test_a_unix_socket_that_cannot_listen_leaves_no_file(
    step: str, failing: type[FailingSocket], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """What bind(2) made is removed again."""
    monkeypatch.setattr(failing, "fails", step)
    with pytest.raises(OSError, match=r"app\.sock"):
        sockets.open_listening(parse(f"unix:{path}"), 1)
    assert not os.path.exists(path)
    assert [sock.fileno() for sock in failing.made] == [-1]


def test_an_interrupt_passes_through_and_leaves_nothing(
    failing: type[FailingSocket], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """What is no OSError isn't made one."""
    monkeypatch.setattr(failing, "fails", "listen")
    monkeypatch.setattr(failing, "error", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        sockets.open_listening(parse(f"unix:{path}"), 1)
    assert not os.path.exists(path)
    assert [sock.fileno() for sock in failing.made] == [-1]


# -- backlogs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backlog", [0, 1, 128, 2**31 - 1])
def test_a_whole_number_is_a_backlog(backlog: int) -> None:
    """Whatever listen(2) takes."""
    assert sockets.check_backlog(backlog) == backlog


def test_no_backlog_is_as_many_as_the_kernel_allows() -> None:
    """More than any system's limit, and not more than 16 bits."""
    assert sockets.check_backlog(None) == sockets.DEFAULT_BACKLOG == 65535


@pytest.mark.parametrize("backlog", [-1, 2**31, -(2**70), 2**70])
def test_a_number_that_listen_cannot_take_is_refused(backlog: int) -> None:
    """The kernel would take its lower 32 bits, or read it as unsigned."""
    with pytest.raises(ValueError, match=f"backlog.*{backlog}$"):
        sockets.check_backlog(backlog)


@pytest.mark.parametrize("backlog", ["128", 128.0, True, b"1", [1]])
def test_what_is_no_number_is_no_backlog(backlog: object) -> None:
    """The text has the value."""
    with pytest.raises(TypeError, match="backlog.*" + re.escape(repr(backlog))):
        sockets.check_backlog(backlog)


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelling", "sockaddr"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("127.1:80", ("127.0.0.1", 80)),
        ("localhost:80", ("127.0.0.1", 80)),
        (":80", ("0.0.0.0", 80)),
        (80, ("::", 80, 0, 0)),
        (("", 80), ("::", 80, 0, 0)),
        ("[::1]:80", ("::1", 80, 0, 0)),
        (("0::1", 80, 5), ("::1", 80, 5, 0)),
        (("fe80::1", 80, 5, 1), ("fe80::1", 80, 5, 1)),
    ],
)
def test_a_host_is_made_numeric(spelling: object, sockaddr: object) -> None:
    """Names, short forms and no host at all come to what bind(2) means by them."""
    assert sockets.resolve(parse(spelling)).sockaddr == sockaddr


def test_a_numeric_address_stays_as_it_is() -> None:
    """Resolving twice is once."""
    for spelling in ("127.0.0.1:80", "[::1]:80", ("fe80::1", 80, 5, 1), ":80", 80):
        once = sockets.resolve(parse(spelling))
        assert sockets.resolve(once) == once


def test_a_unix_path_is_not_looked_up() -> None:
    """There is nothing to resolve in it."""
    address = parse("unix:localhost")
    assert sockets.resolve(address) is address


def test_an_unknown_host_is_a_gaierror_with_the_address() -> None:
    """`socket.gaierror`, as from bind(2) in Python; the text says which host."""
    # A name that no resolver asks a network for: RFC 6761 reserves "invalid", and a
    # space is in no host's name.
    address = parse("no such host.invalid:80")
    with pytest.raises(socket.gaierror, match=re.escape(repr(address.sockaddr))) as caught:
        sockets.resolve(address)
    assert caught.value.errno is not None
    assert isinstance(caught.value.__cause__, socket.gaierror)


@pytest.mark.parametrize("host", ["x" * 64, "a..b", "\udcff"])
def test_a_host_that_cannot_be_asked_for_is_a_value_error(host: str) -> None:
    """A label of over 63 letters, of none, or of what is no text: the text has the address."""
    address = Address(AF_INET, (host, 80))
    with pytest.raises(ValueError, match=re.escape(repr(address.sockaddr))):
        sockets.resolve(address)


# -- duplicates -------------------------------------------------------------------------------


def test_a_duplicate_is_the_same_kernel_socket() -> None:
    """Clients of one are clients of the other, and one lives on without the other."""
    sock = sockets.open_listening(LOCAL, 5)
    address = sock.getsockname()
    with closing(_socket.socket(fileno=sockets.duplicate(sock))) as copy:
        sock.close()
        assert copy.getsockname() == address
        with socket.create_connection(address, timeout=10):
            os.close(accept(copy))


def test_no_descriptor_is_inherited_by_a_child_program() -> None:
    """What a child program inherited would keep the address taken."""
    with closing(sockets.open_listening(LOCAL, 1)) as sock:
        copy = sockets.duplicate(sock)
        with closing(sockets.adopt(copy)) as adopted:
            descriptors = [sock.fileno(), copy, adopted.fileno()]
            assert not any(map(os.get_inheritable, descriptors))
            sockets.park(adopted)
            descriptors.append(adopted.fileno())
            program = "import os, sys\nfor fd in sys.argv[1:]: print(os.path.exists('/dev/fd/'+fd))"
            child = subprocess.run(
                [sys.executable, "-c", program, *map(str, descriptors)],
                check=True,
                capture_output=True,
                text=True,
                close_fds=False,
                timeout=60,
            )
        os.close(copy)
    assert child.stdout.split() == ["False"] * len(descriptors)


def test_duplicating_a_closed_socket_is_ebadf() -> None:
    """The kernel's own error."""
    sock = sockets.open_listening(LOCAL, 1)
    sock.close()
    with pytest.raises(OSError, match="descriptor") as caught:
        sockets.duplicate(sock)
    assert caught.value.errno == errno.EBADF


def test_out_of_descriptors_nothing_is_duplicated() -> None:
    """EMFILE, and the socket itself stays as it is."""
    with closing(sockets.open_listening(LOCAL, 1)) as sock:
        for step in (sockets.duplicate, lambda sock: sockets.adopt(sock.fileno())):
            with descriptor_limit(0), pytest.raises(OSError, match="open files") as caught:
                step(sock)
            assert caught.value.errno == errno.EMFILE
        socket.create_connection(sock.getsockname(), timeout=10).close()


def test_adopting_leaves_the_descriptor_its_owners() -> None:
    """We get one of our own, non-blocking; theirs stays open."""
    with socket.create_server(("127.0.0.1", 0)) as theirs:
        with closing(sockets.adopt(theirs.fileno())) as ours:
            assert ours.fileno() != theirs.fileno()
            assert ours.getsockname() == theirs.getsockname()
            assert not os.get_blocking(ours.fileno())
        socket.create_connection(theirs.getsockname(), timeout=10).close()


def test_a_datagram_socket_is_not_adopted() -> None:
    """Nothing could be accepted from it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        before = open_descriptors()
        with pytest.raises(TypeError, match=f"stream socket.*type={int(socket.SOCK_DGRAM)}"):
            sockets.adopt(udp.fileno())
        assert open_descriptors() == before


def test_a_closed_descriptor_is_not_adopted() -> None:
    """EBADF, and nothing is opened."""
    closed = os.dup(0)
    os.close(closed)
    before = open_descriptors()
    with pytest.raises(OSError, match="descriptor") as caught:
        sockets.adopt(closed)
    assert caught.value.errno == errno.EBADF
    assert open_descriptors() == before


def test_what_is_no_socket_is_not_adopted() -> None:
    """ENOTSOCK, and the file stays its owner's."""
    reader, writer = os.pipe()
    try:
        before = open_descriptors()
        with pytest.raises(OSError, match="socket") as caught:
            sockets.adopt(reader)
        assert caught.value.errno == errno.ENOTSOCK
        assert open_descriptors() == before
        os.write(writer, b"x")
        assert os.read(reader, 1) == b"x"
    finally:
        os.close(reader)
        os.close(writer)


# -- keys and files ---------------------------------------------------------------------------


def unix_key(path: str | bytes) -> object:
    return sockets.find_key(Address(AF_UNIX, path))


def test_the_key_of_an_ip_address_is_that_of_its_spelling() -> None:
    """Only Unix sockets need the file system for that."""
    for address in (Address(AF_INET, ("127.0.0.1", 80)), Address(AF_INET6, ("::1", 80))):
        assert sockets.find_key(address) == key_of(address)


def test_a_unix_key_is_that_of_the_file(path: str) -> None:
    """Relative, absolute, by a link, as bytes: the same file is the same place."""
    with closing(sockets.open_listening(parse(f"unix:{path}"), 1)):
        os.mkdir("sub")
        os.symlink(path, "link.sock")
        here = unix_key(path)
        assert here is not None
        for spelling in ("./app.sock", os.path.abspath(path), "sub/../app.sock", "link.sock"):
            assert unix_key(spelling) == here
            assert unix_key(os.fsencode(spelling)) == here
        with closing(sockets.open_listening(parse("unix:other.sock"), 1)):
            assert unix_key("other.sock") != here


def test_a_file_that_took_the_place_has_another_key(path: str) -> None:
    """A path alone isn't enough: while the first is open, no other file has its number."""
    with closing(sockets.open_listening(parse(f"unix:{path}"), 1)):
        first = unix_key(path)
        for _ in range(8):  # inode numbers are handed out again at once by some file systems
            os.unlink(path)
            assert unix_key(path) is None
            with closing(sockets.open_listening(parse(f"unix:{path}"), 1)):
                assert unix_key(path) not in (None, first)


def test_where_there_is_no_socket_there_is_no_key(path: str) -> None:
    """Neither a file of another kind, nor none, nor a path that can't be."""
    Path(path).write_text("mine")
    for spelling in (path, "missing.sock", "a\0b", ".", "x" * 5000):
        assert unix_key(spelling) is None


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
def test_an_abstract_name_is_its_own_key() -> None:
    """It has no file; as text and as bytes it is one name."""
    address = parse(f"unix:@glb-test-{os.getpid()}")
    with closing(sockets.open_listening(address, 1)) as sock:
        bound = sockets.bound_address(sock)
        assert sockets.find_key(bound) == sockets.find_key(address)
        sockets.unlink(sockets.bound_address(sock))  # nothing to remove, and no error
        sockets.unlink(sockets.bound_address(sock), sockets.find_key(bound))


def test_unlink_removes_the_sockets_own_file(path: str) -> None:
    """With its key, or without one in hand."""
    for with_key in (True, False):
        with closing(sockets.open_listening(parse(f"unix:{path}"), 1)) as sock:
            sockets.unlink(
                sockets.bound_address(sock),
                sockets.find_key(parse(f"unix:{path}")) if with_key else None,
            )
            assert not os.path.exists(path)
            sockets.unlink(sockets.bound_address(sock))  # it is gone: no error


def test_unlink_leaves_the_file_that_took_the_place(path: str) -> None:
    """A foreign socket, or file, keeps its path."""
    with closing(sockets.open_listening(parse(f"unix:{path}"), 1)) as sock:
        key = sockets.find_key(parse(f"unix:{path}"))
        os.unlink(path)
        with closing(sockets.open_listening(parse(f"unix:{path}"), 1)):
            sockets.unlink(sockets.bound_address(sock), key)
            assert os.path.exists(path)
        os.unlink(path)
        Path(path).write_text("mine")
        sockets.unlink(sockets.bound_address(sock), key)
        assert Path(path).read_text() == "mine"


@pytest.mark.parametrize("with_key", [True, False])
def test_unlink_leaves_a_link_that_took_the_place(path: str, with_key: bool) -> None:
    """A symbolic link isn't the socket's file, although it leads to that."""
    with closing(sockets.open_listening(parse(f"unix:{path}"), 1)) as sock:
        key = sockets.find_key(parse(f"unix:{path}")) if with_key else None
        os.rename(path, "moved.sock")
        os.symlink("moved.sock", path)
        sockets.unlink(sockets.bound_address(sock), key)
        assert os.readlink(path) == "moved.sock"
        socket_of("moved.sock").close()


@pytest.mark.usefixtures("path")
def test_unlink_that_fails_is_no_error() -> None:
    """A file that we may not remove wasn't ours to remove."""
    os.mkdir("sub")
    with closing(sockets.open_listening(parse("unix:sub/app.sock"), 1)) as sock:
        os.rename("sub", "moved")
        sockets.unlink(sockets.bound_address(sock))
        assert os.path.exists("moved/app.sock")


# -- parking ----------------------------------------------------------------------------------


def test_parking_frees_the_address_and_keeps_the_number() -> None:
    """The address can be bound again, and no new file gets the number."""
    sock = sockets.open_listening(LOCAL, 1)
    address, number = sockets.bound_address(sock), sock.fileno()
    before = set(open_descriptors())
    sockets.park(sock)
    assert set(open_descriptors()) == before
    with closing(sockets.open_listening(address, 1)) as again:
        assert again.fileno() != number
        assert sock.fileno() == number
    sock.close()
    assert number not in open_descriptors()


def test_without_a_descriptor_for_the_stand_in_the_socket_is_closed() -> None:
    """The address is free all the same."""
    sock = sockets.open_listening(LOCAL, 1)
    address = sockets.bound_address(sock)
    with descriptor_limit(0):
        sockets.park(sock)
    assert sock.fileno() == -1
    sockets.open_listening(address, 1).close()


def test_parking_a_closed_socket_is_harmless() -> None:
    """As closing twice is."""
    sock = sockets.open_listening(LOCAL, 1)
    sock.close()
    sockets.park(sock)
    assert sock.fileno() == -1


# -- what sockets are -------------------------------------------------------------------------


@pytest.fixture
def plain() -> Iterator[Any]:
    """What makes plain sockets, which are closed after the test."""
    made: list[_socket.socket] = []

    def make(*kind: int) -> _socket.socket:
        made.append(_socket.socket(*kind))
        return made[-1]

    yield make
    for sock in made:
        sock.close()


def test_sockets_of_one_kind_are_alike(plain: Any) -> None:
    """Blocking or not, bound or not, with the protocol given or not."""
    one, other = plain(), plain(AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    other.setblocking(False)
    other.bind(LOCAL.sockaddr)
    assert sockets.kind_of(one) == sockets.kind_of(other)


def test_sockets_of_two_kinds_are_not_alike(plain: Any) -> None:
    """Family, type, protocol, IPV6_V6ONLY, and the device tell them apart."""
    only, both = plain(AF_INET6), plain(AF_INET6)
    only.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    others = [plain(), plain(AF_INET, socket.SOCK_DGRAM), only, both, plain(AF_UNIX)]
    device = plain()
    try:
        device.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        others.append(device)
    except PermissionError:
        pass  # not every user may
    kinds = [sockets.kind_of(sock) for sock in others]
    assert len({*kinds}) == len(kinds)


def test_only_tcp_sockets_can_share_a_port(plain: Any) -> None:
    """With the option, while it is set; UDP and Unix sockets have another meaning of it."""
    for kind, expected in {
        (AF_INET, socket.SOCK_STREAM): True,
        (AF_INET6, socket.SOCK_STREAM): True,
        (AF_INET, socket.SOCK_DGRAM): False,
    }.items():
        sock = plain(*kind)
        found = [sockets.has_reuse_port(sock)]
        for flag in (1, 0):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, flag)
            found.append(sockets.has_reuse_port(sock))
        assert found == [False, expected, False]
    assert not sockets.has_reuse_port(plain(AF_UNIX))


def test_without_the_option_no_port_is_shared(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system that has none."""
    monkeypatch.delattr(_socket, "SO_REUSEPORT")
    assert not sockets.has_reuse_port(plain())


@pytest.mark.parametrize("has_info", [True, False], ids=["TCP_INFO", "no TCP_INFO"])
def test_a_socket_is_idle_until_it_listens_or_connects(
    has_info: bool, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound is idle; listening and connected aren't, on whichever side."""
    if not has_info:
        monkeypatch.delattr(_socket, "TCP_INFO")
    sock, client = plain(), plain()
    found = [sockets.is_idle(sock)]
    sock.bind(LOCAL.sockaddr)
    found.append(sockets.is_idle(sock))
    sock.listen()
    found.append(sockets.is_idle(sock))
    client.connect(sock.getsockname())
    with closing(_socket.socket(fileno=accept(sock))) as conn:
        found += [sockets.is_idle(client), sockets.is_idle(conn)]
    assert found == [True, True, False, False, False]


def test_a_socket_that_is_about_to_connect_is_not_idle(plain: Any) -> None:
    """Its first packet is under way: its queue is full to which it goes."""
    busy, clients = plain(), [plain() for _ in range(4)]
    busy.bind(LOCAL.sockaddr)
    busy.listen(0)
    for client in clients:
        client.setblocking(False)
        assert client.connect_ex(busy.getsockname()) == errno.EINPROGRESS
    assert not any(map(sockets.is_idle, clients))


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_another_socket_is_bound_to_the_same_address(plain: Any, family: int) -> None:
    """Alike in what lets the kernel share it; it isn't blocking, and no client can connect."""
    like = plain(family)
    if family == AF_INET6:
        like.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    like.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    like.bind(("::1" if family == AF_INET6 else "127.0.0.1", 0))
    like.listen()
    with closing(sockets.open_bound(like)) as made:
        assert made.getsockname() == like.getsockname()
        assert sockets.kind_of(made) == sockets.kind_of(like)
        assert sockets.has_reuse_port(made)
        assert (sockets.is_idle(made), made.gettimeout()) == (True, 0)
        assert not os.get_inheritable(made.fileno())
        like.close()
        assert plain(family).connect_ex(made.getsockname()) == errno.ECONNREFUSED


def test_an_address_that_is_not_shared_is_not_bound_again(plain: Any) -> None:
    """EADDRINUSE, and nothing is left open."""
    like = plain()
    like.bind(LOCAL.sockaddr)
    like.listen()
    before = open_descriptors()
    with pytest.raises(OSError, match="in use") as caught:
        sockets.open_bound(like)
    assert caught.value.errno == errno.EADDRINUSE
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("family", "given", "expected"),
    [
        (AF_INET, ("127.0.0.1", 80), ("127.0.0.1", 80)),
        (AF_INET, ["localhost", 80], ("127.0.0.1", 80)),
        (AF_INET, ("", 80), ("0.0.0.0", 80)),
        (AF_INET, (b"127.1", 80), ("127.0.0.1", 80)),
        (AF_INET, (bytearray(b"127.0.0.1"), True), ("127.0.0.1", 1)),
        (AF_INET6, ("::1", 80), ("::1", 80, 0, 0)),
        (AF_INET6, ("0::1", 80, 5), ("::1", 80, 5, 0)),
        (AF_INET6, ("", 80), ("::", 80, 0, 0)),
    ],
)
def test_an_address_is_read_as_bind_reads_it(family: int, given: Any, expected: Any) -> None:
    """Names, short forms, bytes, lists: as the kernel would get it."""
    try:
        found = sockets.numeric(family, given)
    except TypeError:
        assert isinstance(given, list)  # which bind(2) of Python refuses
        return
    # The flow label of an IPv6 address doesn't come back.
    assert (found[:2], found[3:]) == (expected[:2], expected[3:])


@pytest.mark.parametrize(
    "given",
    [
        None,
        5,
        "text",
        (),
        ("127.0.0.1",),
        ("127.0.0.1", "80"),
        ("no such host.invalid", 80),
        (None, 80),
    ],
)
def test_what_bind_cannot_read_is_an_error(given: Any) -> None:
    """Of the kinds that bind(2) of Python raises, and no descriptor is left."""
    before = open_descriptors()
    with pytest.raises((OSError, TypeError, ValueError)):
        sockets.numeric(AF_INET, given)
    assert open_descriptors() == before


@pytest.mark.parametrize("flag", [True, False])
def test_standing_in_keeps_the_number_and_what_a_child_inherits(plain: Any, flag: bool) -> None:
    """It leads to the other's kernel socket; what it was is closed."""
    with closing(sockets.open_listening(LOCAL, 1)) as pristine:
        sock = plain()
        sock.bind(LOCAL.sockaddr)
        address = sockets.bound_address(sock)
        os.set_inheritable(sock.fileno(), flag)
        number = sock.fileno()
        sockets.stand_in(number, pristine)
        assert (sock.fileno(), os.get_inheritable(number)) == (number, flag)
        assert sockets.file_of(number) == sockets.file_of(pristine.fileno())
        assert sock.getsockname() == pristine.getsockname()
        sockets.open_listening(address, 1, reuse_addr=False).close()  # it is free


def test_standing_in_for_a_closed_socket_is_ebadf(plain: Any) -> None:
    """What the number was stays as it is."""
    sock = plain()
    pristine = sockets.open_listening(LOCAL, 1)
    pristine.close()
    before = open_descriptors()
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        sockets.stand_in(sock.fileno(), pristine)
    # os.dup2 has another word than the kernel for -1, since Python 3.7.
    assert caught.value.errno in (errno.EBADF, errno.EINVAL)
    assert open_descriptors() == before


def test_an_open_file_is_distinct_from_all_others(plain: Any) -> None:
    """The same by each of its numbers, another for each socket, none when closed."""
    one, other = plain(), plain()
    copy = os.dup(one.fileno())
    assert sockets.file_of(copy) == sockets.file_of(one.fileno()) != sockets.file_of(other.fileno())
    os.close(copy)
    assert (sockets.file_of(copy), sockets.file_of(-1)) == (None, None)


def test_the_address_behind_a_number_is_found_for_tcp_sockets(plain: Any, path: str) -> None:
    """``None`` of what is closed, no socket, or of another family; the number stays open."""
    sock, unix = plain(), plain(AF_UNIX)
    sock.bind(LOCAL.sockaddr)
    unix.bind(path)
    assert sockets.address_of(sock.fileno()) == Address(AF_INET, sock.getsockname())
    assert sockets.address_of(unix.fileno()) is None
    before = open_descriptors()
    with open(os.devnull) as file:
        assert sockets.address_of(file.fileno()) is None
        number = file.fileno()
    assert sockets.address_of(number) is None
    assert open_descriptors() == before
