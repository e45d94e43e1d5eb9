"""Upgrades: the next process takes over, or this one serves on. Both are in one process here.

`tests/cli/test_upgrade.py` has real ones.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

import glb
import glb.upgrade
from glb.accept.inherited import Inheritance
from glb.hubs import signals
from glb.server import StreamServer
from glb.upgrade import Upgrade, UpgradeError

from ..support.engine import acceptors_of, entry_of, turns_of
from ..support.helpers import Holder, ask, connect, is_refused, receive_all, wait_until
from ..support.upgrading import Next, close, next_process
from .test_newcomers import lets_in
from .test_newcomers import pytestmark as needs_filter

LOCAL = ("127.0.0.1", 0)


@pytest.fixture
def following(monkeypatch: pytest.MonkeyPatch) -> Next:
    """The process that upgrades start."""
    return next_process(monkeypatch)


@pytest.fixture
def upgrade() -> Iterator[Upgrade]:
    """That of the first process."""
    found = Upgrade(timeout=20, inheritance=Inheritance({}))
    yield found
    close(found)


class Says:
    """A handler that says which process it is of."""

    def __init__(self, word: bytes) -> None:
        self.word = word

    def __call__(self, sock: Any, _peer: Any) -> None:
        sock.sendall(self.word)


def serve(upgrade: Upgrade, handle: Any, address: object = LOCAL, **options: Any) -> StreamServer:
    """Return a server on *address*, started."""
    server = StreamServer(upgrade.listen(address), handle, **options)
    server.start()
    return server


def test_the_next_process_gets_what_comes(upgrade: Upgrade, following: Next) -> None:
    """Until it is ready both serve; handlers of the old one finish; no filter is left."""
    holder = Holder()
    old = serve(upgrade, holder)
    with connect(old.address) as client:
        holder.wait_for(1)
        starting = gevent.spawn(upgrade.start)
        later = following.begin()
        new = serve(later, Says(b"new"))
        assert new.address == old.address
        entry_of(old).turns.suspend(old.glb_engine.workers.opened())  # both would accept
        assert ask(old.address) == b"new"
        later.ready()
        assert starting.get() == following.pid
        draining = gevent.spawn(old.drain)
        for _ in range(8):
            assert ask(new.address) == b"new"
        wait_until(lambda: old.state.value == "draining")
        holder.release()
        assert receive_all(client) == b"done"
    assert draining.get().finished == 1
    assert ask(new.address) == b"new"
    new.stop()
    assert is_refused(new.address)
    close(later)


def test_nothing_is_accepted_after_it(upgrade: Upgrade, following: Next) -> None:
    """Clients that connect between the answer and the drain are the next process's."""
    old = serve(upgrade, Says(b"old"))
    starting = gevent.spawn(upgrade.start)
    later = following.begin()
    listener = later.listen(LOCAL)
    later.ready()
    starting.get()
    with connect(old.address) as client:
        old.drain()
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"new")
        assert receive_all(client) == b"new"
    listener.close()
    close(later)


@pytest.mark.parametrize("fate", ["ends", "closes its channel", "hangs", "is called off"])
def test_a_process_that_fails_leaves_this_one_as_it_was(
    fate: str, upgrade: Upgrade, following: Next, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the reason, and the next upgrade may do better."""
    old = serve(upgrade, Says(b"old"))
    entry = entry_of(old)
    if fate == "hangs":
        monkeypatch.setattr(upgrade, "_timeout", 0.01)
    starting = gevent.spawn(upgrade.start)
    wait_until(lambda: following.starts == 1)
    reason = f"process {following.pid} "
    if fate == "ends":
        following.end_ = "exited with status 3"
        reason += "exited with status 3 before it was ready"
    elif fate == "closes its channel":
        monkeypatch.setattr(glb.upgrade, "ENDING_SECONDS", 0.01)
        following.die()
        reason += "has closed its channel before it was ready"
    elif fate == "hangs":
        reason += "wasn't ready after 0.01 s"
    else:
        upgrade.stop()
        assert starting.ready() or following.was_ended
        reason += "was ended, as this one is about to end"
    with pytest.raises(UpgradeError, match=reason):
        starting.get()
    assert following.was_ended
    assert ask(old.address) == b"old"
    assert entry.owns_file
    assert not entry.outlives_us
    if fate == "is called off":
        with pytest.raises(UpgradeError, match="the process is about to end"):
            upgrade.start()
        old.stop()
        return
    monkeypatch.setattr(upgrade, "_timeout", 20)
    starting = gevent.spawn(upgrade.start)
    later = following.begin()
    new = serve(later, Says(b"new"))
    later.ready()
    starting.get()
    old.drain()
    assert ask(new.address) == b"new"
    new.stop()
    close(later)


def test_one_upgrade_at_a_time(upgrade: Upgrade, following: Next) -> None:
    """Neither while one is under way, nor afterwards, nor by a process whose parent drains."""
    listener = upgrade.listen(LOCAL)
    starting = gevent.spawn(upgrade.start)
    later = following.begin()
    with pytest.raises(UpgradeError, match="an upgrade is under way"):
        upgrade.start()
    with pytest.raises(UpgradeError, match="it isn't ready itself"):
        later.start()
    later.listen(LOCAL).close()
    later.ready()
    starting.get()
    with pytest.raises(UpgradeError, match="another process has taken over"):
        upgrade.start()
    with pytest.raises(UpgradeError, match=f"process {os.getpid()}, which this one .* drains"):
        later.start()
    listener.close()
    close(upgrade)
    assert later.refusal == ""
    later.ready()  # twice is once
    close(later)


def test_a_process_that_is_late_learns_it(
    upgrade: Upgrade, following: Next, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It owns nothing, so its end takes nothing from the one that serves."""
    monkeypatch.setattr(following, "end", lambda: None)  # it takes its time to end
    old = serve(upgrade, Says(b"old"))
    starting = gevent.spawn(upgrade.start)
    later = following.begin()
    following.end_ = "hangs"
    with pytest.raises(UpgradeError, match="hangs before it was ready"):
        starting.get()
    with later.listen(LOCAL) as listener:
        with pytest.raises(UpgradeError, match="has given up waiting, and serves on"):
            later.ready()
        assert not listener.entry.owns_file
    assert ask(old.address) == b"old"
    old.stop()
    close(later)


def test_a_process_whose_parent_was_killed_owns_all(
    upgrade: Upgrade, following: Next, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no answer, and nothing else has the sockets."""
    monkeypatch.chdir(tmp_path)
    listener = upgrade.listen("unix:app.sock")
    starting = gevent.spawn(upgrade.start)
    later = following.begin()
    received = later.listen("unix:app.sock")
    assert (received.entry.outlives_us, received.entry.owns_file) == (True, False)
    assert later._passed is not None
    later._passed.channel.sock.shutdown(socket.SHUT_RD)  # the other end is closed, as it reads it
    later.ready()
    assert (received.entry.outlives_us, received.entry.owns_file) == (False, True)
    assert later.refusal == ""
    starting.get()
    listener.close()
    received.close()
    close(later)


@pytest.mark.parametrize("is_told", [True, False])
def test_the_path_of_a_unix_socket_survives(
    is_told: bool,
    upgrade: Upgrade,
    following: Next,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process removes it that serves it last; one that never served leaves it."""
    monkeypatch.chdir(tmp_path)
    old = serve(upgrade, Says(b"old"), "unix:app.sock")
    starting = gevent.spawn(upgrade.start)
    later = following.begin()
    new = serve(later, Says(b"new"), "unix:app.sock")
    if is_told:
        later.ready()
        starting.get()
        old.drain()
        assert ask("app.sock") == b"new"
        new.stop()
    else:
        new.stop()
        assert ask("app.sock") == b"old"
        starting.kill()
        old.stop()
    assert not os.path.exists("app.sock")
    close(later)


def test_each_address_finds_its_own_socket(upgrade: Upgrade, following: Next) -> None:
    """Port 0 asked twice is two ports, in the same order; what isn't asked again is closed."""
    before = [upgrade.listen(where) for where in (LOCAL, LOCAL, ("127.0.0.2", 0), "127.0.0.3:0")]
    starting = gevent.spawn(upgrade.start)
    later = following.begin()
    after = [later.listen(where) for where in ("127.0.0.1:0", LOCAL, "127.0.0.3:0", ("::1", 0))]
    later.ready()
    starting.get()
    assert [each.address for each in after[:3]] == [before[i].address for i in (0, 1, 3)]
    assert after[3].address not in [each.address for each in before]
    for each in before:
        each.close()
    assert is_refused(before[2].address)
    for each in after:
        with connect(each.address):
            each.accept()[0].close()
        each.close()
    close(later)


def test_listeners_that_share_a_port_find_one_socket(upgrade: Upgrade, following: Next) -> None:
    """It is passed for the first that asked; others join it there by its port."""
    before = upgrade.listen(LOCAL, reuse_port=True)
    again = upgrade.listen(before.address, reuse_port=True)
    assert again.entry is before.entry
    starting = gevent.spawn(upgrade.start)
    later = following.begin()
    first = later.listen(LOCAL, reuse_port=False)  # its address is shared in this process already
    later.ready()
    starting.get()
    assert first.address == before.address
    for each in (before, again, first):
        each.close()
    close(later)


@needs_filter
@pytest.mark.parametrize("is_closed", [False, True])
def test_no_filter_of_a_drain_is_left(is_closed: bool, upgrade: Upgrade, following: Next) -> None:
    """A drain that begins while the new process starts lets no client in, and is over or not."""
    before = upgrade.listen(LOCAL)
    starting = gevent.spawn(upgrade.start)
    later = following.begin()
    after = later.listen(LOCAL)
    assert before.entry.refuse_newcomers()
    if is_closed:
        before.close()
    later.ready()
    starting.get()
    assert lets_in(after.address)
    before.close()
    after.close()
    close(later)


def test_inherited_sockets_are_passed_on(upgrade: Upgrade, following: Next) -> None:
    """With their names, and they are never the process's alone."""
    with glb.bind(LOCAL) as opened:
        number = os.dup(opened.entry.pristine.fileno())
        systemd = Inheritance({"EINHORN_FD_COUNT": "1", "EINHORN_FD_0": str(number)})
        first = systemd.take(systemd.sockets[0]._replace(name=""))
        starting = gevent.spawn(upgrade.start)
        later = following.begin()
        (found,) = later._inheritance.sockets
        second = later._inheritance.take(found)
        later.ready()
        starting.get()
        assert second.address == first.address
        assert second.entry.outlives_us
        assert not second.entry.owns_file
        second.close()
        first.close()
    close(later)


# -- what was accepted and has no handler yet ---------------------------------------------------


@pytest.mark.parametrize("is_left", [True, False], ids=["an upgrade", "a drain"])
def test_a_connection_on_its_way_to_a_hub_is_served(
    is_left: bool, upgrade: Upgrade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub that accepts is between the accept and the clone, in another thread."""
    old = serve(upgrade, Says(b"old"), clones=2, hubs=2, patience=30)
    turns, entry = turns_of(old), entry_of(old)
    hand, is_between, may_go = turns.hand, threading.Event(), threading.Event()
    there = old.glb_engine.workers[1].dispatcher

    def hand_later(*args: Any) -> Any:
        is_between.set()
        may_go.wait(20)
        return hand(*args)

    def ask_and_let_go(*args: Any) -> Any:
        may_go.set()
        return real_ask(*args)

    real_ask = signals.ask
    monkeypatch.setattr("glb.serve.drain.ask", ask_and_let_go)
    monkeypatch.setattr(turns, "hand", hand_later)
    with turns.lock:
        turns.assign_locked(there)
    # The turn of the first hub's clone, for which the other hub accepts.
    assert turns.next_locked() is acceptors_of(old)[0]
    with connect(old.address) as client:
        wait_until(is_between.is_set)
        if is_left:
            entry.leave_queue()
        old.drain()
        assert receive_all(client) == b"old"


# -- programs of their own ----------------------------------------------------------------------


def test_servers_are_drained_when_another_process_serves(upgrade: Upgrade, following: Next) -> None:
    """By a signal; a failure is a line in the log, and they serve on."""
    server = StreamServer(upgrade.listen(LOCAL), Says(b"old"))
    serving = gevent.spawn(upgrade.serve_until_signal, server)
    wait_until(lambda: server.started)
    replacing = gevent.spawn(upgrade._replace_and_drain, [server], 5.0)
    wait_until(lambda: following.starts == 1)
    following.die()
    replacing.join()
    address = server.address
    assert ask(address) == b"old"
    replacing = gevent.spawn(upgrade._replace_and_drain, [server], 5.0)
    later = following.begin()
    new = serve(later, Says(b"new"))
    later.ready()
    assert serving.get() is None
    replacing.join()
    assert ask(address) == b"new"
    new.stop()
    close(later)


def test_the_directory_is_the_one_that_the_shell_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A symbolic link that leads to the newest release, say; a name of another one is ignored."""
    (tmp_path / "release").mkdir()
    (tmp_path / "current").symlink_to("release")
    monkeypatch.chdir(tmp_path / "current")
    for named, expected in [
        (f"{tmp_path}/current", f"{tmp_path}/current"),
        ("", f"{tmp_path}/release"),
        (f"{tmp_path}", f"{tmp_path}/release"),
        (f"{tmp_path}/gone", f"{tmp_path}/release"),
        ("current", f"{tmp_path}/release"),
    ]:
        monkeypatch.setenv("PWD", named)
        assert glb.upgrade._folder() == expected


@pytest.mark.parametrize(
    ("code", "text"),
    [(0, "exited with status 0"), (-9, "was ended by SIGKILL"), (-40, "was ended by signal 40")],
)
def test_an_end_has_its_words(code: int, text: str) -> None:
    """By a status, or by a signal."""
    assert glb.upgrade._how(code) == text


@pytest.mark.parametrize(
    ("timeout", "error"), [(0, ValueError), ("1", TypeError), (None, TypeError)]
)
def test_a_timeout_that_is_none_is_refused(timeout: Any, error: type[Exception]) -> None:
    """With the value in the text."""
    with pytest.raises(error, match="timeout must be"):
        Upgrade(timeout, inheritance=Inheritance({}))


# -- real processes -----------------------------------------------------------------------------


@pytest.fixture
def real(upgrade: Upgrade) -> Iterator[Upgrade]:
    """An upgrade that has a listener, and starts what a test says."""
    with upgrade.listen(LOCAL):
        yield upgrade


def assert_gone(error: UpgradeError) -> None:
    """Check that the process that *error* names has ended, and is waited for."""
    found = re.search(r"process (\d+)", str(error))
    assert found is not None
    with pytest.raises(ChildProcessError):
        os.waitpid(int(found[1]), os.WNOHANG)


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        # A loop that watches children, as other tests leave one, may learn how before.
        ("raise SystemExit(3)", "(exited with status 3|has ended) before it was ready"),
        ("import os; os.kill(os.getpid(), 9)", "(ended by SIGKILL|has ended) before it was ready"),
        ("import time; time.sleep(60)", "wasn't ready after 0.5 s"),
    ],
)
def test_a_real_process_that_fails_is_gone(
    program: str, reason: str, real: Upgrade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, and no descriptor stays."""
    monkeypatch.setattr(real, "_args", ["-c", program])
    if "sleep" in program:
        monkeypatch.setattr(real, "_timeout", 0.5)
    with pytest.raises(UpgradeError, match=reason) as caught:
        real.start()
    assert_gone(caught.value)


@pytest.mark.process
def test_the_next_process_is_the_watchdogs(
    real: Upgrade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WATCHDOG_PID would say that it is this one."""
    said = tmp_path / "said"
    program = f"import os; open({str(said)!r}, 'w').write(os.environ.get('WATCHDOG_PID', 'none'))"
    monkeypatch.setattr(real, "_args", ["-c", program])
    for pid, found in ((str(os.getpid()), "none"), ("1", "1")):
        monkeypatch.setenv("WATCHDOG_PID", pid)
        with pytest.raises(UpgradeError, match="before it was ready"):
            real.start()
        assert said.read_text() == found


@pytest.mark.process
def test_a_process_that_does_not_want_to_end_is_killed(
    real: Upgrade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given a moment after SIGTERM."""
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    monkeypatch.setattr(glb.upgrade, "KILL_SECONDS", 0.2)
    monkeypatch.setattr(real, "_timeout", 0.5)
    monkeypatch.setattr(real, "_args", ["-c", program])
    with pytest.raises(UpgradeError, match=r"wasn't ready after 0\.5 s") as caught:
        real.start()
    assert_gone(caught.value)


def test_a_process_that_cant_be_started_is_said(
    real: Upgrade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is gone, say."""
    monkeypatch.setattr(real, "_folder", f"{tmp_path}/gone")
    with pytest.raises(UpgradeError, match=r"can't start '.*/gone': No such file"):
        real.start()
