"""Privileges: another user and group for this process, once what only root may do is done.

Source: setgid(2), initgroups(3), setuid(2), which glibc and musl have hold for each thread.
"""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass

__all__ = ["Account", "check_user", "gid_of"]


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

    def become(self) -> None:
        """Be that from now on, in every thread. There is no way back.

        Raises:
            OSError: It may not be: EPERM, as a rule.
        """
        # In this order: only root may change groups. Root's own go first.
        if self.name is None:
            os.setgroups([self.gid])
        else:
            os.initgroups(self.name, self.gid)
        os.setgid(self.gid)
        if self.uid is not None:
            os.setuid(self.uid)


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
