"""Privileges: another user and group for this process, once what only root may do is done.

Source: setgid(2), initgroups(3), setuid(2), which glibc and musl have hold for each thread.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ..accept.listener import Listener

__all__ = ["Account", "check_user", "gid_of", "umask_of"]

MOST_UMASK: Final = 0o777


@dataclass(frozen=True)
class Account:
    """A user and a group that a process may become.

    Attributes:
        uid: ``None`` leaves the user as it is.
        gid: Of the group that files are made with.
        name: The user's, whose other groups are had as well; ``None`` has none.
    """

    uid: int | None
    gid: int
    name: str | None

    @classmethod
    def of(cls, user: str | None, group: str | None) -> Account:
        """Return the account of a *user* and a *group*, each a name or a number.

        Raises:
            ValueError: There is no such name, or no group is given for a number that has none.
        """
        gid = None if group is None else gid_of(group)
        if user is None:
            assert gid is not None, "one of both is given"
            return cls(None, gid, None)
        found = _find(user)
        if isinstance(found, int):
            if gid is None:
                raise ValueError(f"user {found} has no group of its own: give --group")
            return cls(found, gid, None)
        return cls(found.pw_uid, found.pw_gid if gid is None else gid, found.pw_name)

    @property
    def is_current(self) -> bool:
        """Whether the process is that already: one is that a dropped process has started anew."""
        return self.uid in (None, os.geteuid()) and self.gid == os.getegid()

    def become(self, listeners: Iterable[Listener] = ()) -> None:
        """Be that from now on, in every thread. There is no way back.

        The files of Unix sockets that *listeners* have bound become the group's.

        Raises:
            OSError: It may not be: EPERM, as a rule.
        """
        for each in listeners:
            # A socket without a name has no file, and an inherited one's is systemd's. The file
            # stays root's: one that is left behind is removed at the next start, and another
            # user's is not.
            path = each.address
            has_file = isinstance(path, str) and path[:1] not in {"", "\0"}
            if has_file and each.entry.owns_file:
                os.chown(path, -1, self.gid)
        # In this order: only root may change groups. Root's own go first.
        if self.name is None:
            os.setgroups([self.gid])
        else:
            os.initgroups(self.name, self.gid)
        os.setgid(self.gid)
        if self.uid is not None:
            os.setuid(self.uid)


def umask_of(text: str) -> int:
    """Return the number that *text* has in octal.

    Raises:
        ValueError: It is none.
    """
    if not re.fullmatch("(0o)?[0-7]{1,4}", text) or int(text, 8) > MOST_UMASK:
        raise ValueError(f"umask must be octal, 0 to 777, got {text!r}")
    return int(text, 8)


def check_user(name: str) -> None:
    """Raise ValueError if there is no such user."""
    _find(name)


def gid_of(name: str) -> int:
    """Return a group's number, by its name or number.

    Raises:
        ValueError: There is no such group.
    """
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return _number(name, "group")


def _find(name: str) -> pwd.struct_passwd | int:
    """Return a user by name or number; the number if it isn't a user's that is known."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        number = _number(name, "user")
    try:
        return pwd.getpwuid(number)
    except KeyError:
        return number


def _number(text: str, what: str) -> int:
    # -1 means to the kernel: leave it.
    if text.isascii() and text.isdigit() and int(text) < 2**32 - 1:
        return int(text)
    raise ValueError(f"there is no {what} {text!r}")
