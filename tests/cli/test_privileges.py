"""Privileges: sockets that others may connect to, and a process that isn't root any more."""

from __future__ import annotations

import grp
import os
import pathlib
import pwd
import stat
from typing import Any

import pytest

from glb.cli.commands import main
from glb.cli.privileges import Account, umask_of

from ..support.helpers import ask
from .test_commands import serving

NOBODY = pwd.getpwnam("nobody")
FREE_NUMBER = 3_000_000_000  # a user's that no list has

PROGRAM = """
import os

def handle(sock, address):
    threads = os.listdir("/proc/self/task")
    ids = {open(f"/proc/self/task/{each}/status").read().partition("Uid:")[2] for each in threads}
    ids = {tuple(each.split()[:4] + each.split()[5:9]) for each in ids}
    groups = sorted(os.getgroups())
    sock.sendall(repr((os.getuid(), os.getgid(), groups, len(ids), os.umask(0o22))).encode())
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another")


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A current directory with a program."""
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


@pytest.mark.process
@pytest.mark.parametrize(("umask", "mode"), [("007", 0o770), ("0", 0o777), ("0o177", 0o600)])
def test_umask_gives_a_unix_socket_its_mode(umask: str, mode: int, folder: pathlib.Path) -> None:
    """A web server is another user, and must be permitted to write."""
    with serving("program:handle", "--umask", umask, cwd=folder, bind="unix:s"):
        assert stat.S_IMODE((folder / "s").stat().st_mode) == mode


@pytest.mark.parametrize(
    ("text", "umask"), [("0", 0), ("22", 0o22), ("0o027", 0o27), ("0777", 0o777)]
)
def test_umask_is_octal(text: str, umask: int) -> None:
    """As people write it."""
    assert umask_of(text) == umask


@pytest.mark.parametrize("text", ["", "8", "-1", "1777", "0x7", "u=rwx", "7_7", " 7"])
def test_umask_that_is_none_is_refused(text: str) -> None:
    """With what it should be."""
    with pytest.raises(ValueError, match=f"umask must be octal, 0 to 777, got '{text}'"):
        umask_of(text)


@as_root
@pytest.mark.process
@pytest.mark.parametrize("hubs", ["1", "2"])
def test_user_is_another_once_addresses_are_bound(hubs: str, folder: pathlib.Path) -> None:
    """In each thread; with the user's groups, and none of root's. The socket is the group's."""
    options = ("--user", "nobody", "--hubs", hubs, "--admin", "127.0.0.1:0", "--umask", "007")
    with serving("program:handle", *options, cwd=folder, bind="unix:s") as served:
        reply = ask(os.path.relpath(folder / "s"))
        groups = sorted(os.getgrouplist("nobody", NOBODY.pw_gid))
        assert reply.decode() == repr((NOBODY.pw_uid, NOBODY.pw_gid, groups, 1, 0o007))
        found = (folder / "s").stat()
        assert (found.st_uid, found.st_gid) == (0, NOBODY.pw_gid)
        assert stat.S_IMODE(found.st_mode) == 0o770
        assert served.end()[0] == 0


@as_root
@pytest.mark.process
def test_a_socket_that_is_left_behind_is_removed_at_the_next_start(folder: pathlib.Path) -> None:
    """The user may not have been permitted to; it is still root's."""
    options = ("program:handle", "--user", "nobody")
    for _ in range(2):
        with serving(*options, cwd=folder, bind="unix:s") as served:
            assert ask(os.path.relpath(folder / "s"))
            served.process.kill()
            served.process.wait()
        assert (folder / "s").exists()


@as_root
@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--group", "daemon"), (0, "daemon", ["daemon"])),
        (("--user", str(FREE_NUMBER), "--group", "daemon"), (FREE_NUMBER, "daemon", ["daemon"])),
        (("--user", str(NOBODY.pw_uid), "--group", "1"), (NOBODY.pw_uid, 1, None)),
    ],
)
def test_group_is_another(
    options: tuple[str, ...], expected: tuple[int, Any, Any], folder: pathlib.Path
) -> None:
    """Alone, or of a user that has none; by name or by number."""
    uid, group, groups = expected
    gid = group if isinstance(group, int) else grp.getgrnam(group).gr_gid
    gids = sorted(os.getgrouplist("nobody", gid)) if groups is None else [gid]
    with serving("program:handle", *options, cwd=folder) as served:
        assert ask(served.address).decode().startswith(repr((uid, gid, gids, 1))[:-1])


def test_accounts_are_found_by_name_and_number() -> None:
    """A user's own group, unless one is given."""
    named = Account(NOBODY.pw_uid, NOBODY.pw_gid, "nobody")
    assert Account.of("nobody", None) == Account.of(str(NOBODY.pw_uid), None) == named
    assert Account.of("nobody", "0") == Account(NOBODY.pw_uid, 0, "nobody")
    assert Account.of(None, "daemon") == Account(None, grp.getgrnam("daemon").gr_gid, None)
    assert Account.of(str(FREE_NUMBER), "5") == Account(FREE_NUMBER, 5, None)


@pytest.mark.parametrize(
    ("user", "group", "reason"),
    [
        ("nemo", None, "there is no user 'nemo'"),
        ("-1", None, "there is no user '-1'"),
        ("4294967295", "0", "there is no user '4294967295'"),
        (None, "nemo", "there is no group 'nemo'"),
        (str(FREE_NUMBER), None, f"user {FREE_NUMBER} has no group of its own: give --group"),
    ],
)
def test_account_that_is_none_is_refused(user: str | None, group: str | None, reason: str) -> None:
    """-1 means to the kernel that nothing changes, and root's group must not stay."""
    with pytest.raises(ValueError, match=reason):
        Account.of(user, group)


@pytest.mark.parametrize("option", ["--user", "--group"])
def test_only_root_may_become_another(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before anything is imported or bound."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 1000)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "no_such_module", option, "0"])
    assert ended.value.code == 2
    kind = option[2:]
    reason = f"only root may become another {kind}, got '0'"
    assert capsys.readouterr() == ("", f"glb: {option} from the command line: {reason}\n")


def test_a_process_that_is_that_already_may_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that has become another user starts the next one with the same arguments."""
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid)
    monkeypatch.setattr(os, "getegid", lambda: NOBODY.pw_gid)
    # Unpatched: it is this process.
    with pytest.raises(SystemExit):
        main(["serve", "no_such_module", "--user", "nobody", "--no-patch"])
    assert "can't import 'no_such_module'" in capsys.readouterr().err
