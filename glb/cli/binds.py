"""Binds: what ``--bind`` says, and the listeners that come of it.

An address is bound, unless the process that this one replaces has passed its socket on. ``fd://3``
and ``fd://NAME`` are sockets that the process was started with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

from ..accept.inherited import INHERITANCE, Inheritance
from ..accept.listener import Listener
from ..model.address import parse
from ..net.inherited import InheritedSocket
from ..upgrade import Upgrade

__all__ = ["all_inherited", "check_bind", "open_listeners"]

SCHEME: Final = "fd://"


def check_bind(text: str) -> object:
    """Return what *text* spells.

    Raises:
        ValueError: Neither an address nor an inherited socket.
    """
    if text == SCHEME:
        raise ValueError(f"an inherited socket must have a number or a name, got {text!r}")
    return text if text.startswith(SCHEME) else parse(text)


def all_inherited(inheritance: Inheritance = INHERITANCE) -> tuple[str, ...]:
    """Return the binds of all sockets that the process was started with.

    Raises:
        ValueError: The environment says it wrong.
    """
    return tuple(f"{SCHEME}{each.descriptor}" for each in inheritance.sockets)


def open_listeners(
    upgrade: Upgrade,
    binds: Sequence[str],
    backlog: int | None,
    inheritance: Inheritance = INHERITANCE,
) -> list[Listener]:
    """Return a listener for each of *binds*, or several for a name that several sockets have.

    Args:
        backlog: Of those that are bound here.

    Raises:
        OSError, ValueError: One can't be had. None stays open.
    """
    with contextlib.ExitStack() as opened:
        listeners: list[Listener] = []
        for text in binds:
            if text.startswith(SCHEME):
                found = [inheritance.take(each) for each in _named(text, inheritance)]
            else:
                found = [upgrade.listen(text, backlog=backlog)]
            for each in found:
                opened.callback(each.close)
            listeners += found
        opened.pop_all()
    return listeners


def _named(text: str, inheritance: Inheritance) -> list[InheritedSocket]:
    name = text.removeprefix(SCHEME)
    there = inheritance.sockets
    if name.isascii() and name.isdigit():
        found = [each for each in there if each.descriptor == int(name)]
    else:
        found = [each for each in there if each.name == name]
    if not found:
        shown = ", ".join(
            f"{SCHEME}{each.descriptor}" + (f" ({each.name!r})" if each.name else "")
            for each in there
        )
        reason = f"there are {shown}" if there else inheritance.why_none or "all are taken"
        raise ValueError(f"no inherited socket is {text!r}: {reason}")
    return found
