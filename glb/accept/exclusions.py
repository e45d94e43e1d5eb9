"""Exclusions: addresses that a program wants to be left alone.

Process-wide: the set of them. `glb.monkey.patch_all` fills it, and `glb.monkey.restore` empties it.
A socket that listens there takes no turns, and a server there has one clone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ..model import address as addresses
from ..model.address import Address, parse
from ..net import sockets

__all__ = ["EXCLUDED", "exclude", "exclude_nothing", "exclusions", "is_excluded"]

#: Keys of addresses that are never shared, and ports of any host. `is_excluded` need not be asked
#: while it is empty.
EXCLUDED: Final[set[object]] = set()


def exclusions(listed: Iterable[object]) -> set[object]:
    """Return what `exclude` takes for *listed* addresses; one without a host is any host's port.

    Raises:
        TypeError, ValueError, OSError: As `glb.model.address.parse`, and for a host that isn't
            known.
    """
    return {_exclusion(parse(each)) for each in listed}


def exclude(them: set[object]) -> None:
    """Leave some addresses alone from now on: see `exclusions`."""
    EXCLUDED.update(them)


def exclude_nothing() -> None:
    """Undo `exclude`."""
    EXCLUDED.clear()


def is_excluded(address: Address) -> bool:
    """Whether *address* is to be let alone."""
    if not EXCLUDED:
        return False
    return address.port in EXCLUDED or _exclusion(address) in EXCLUDED


def _exclusion(address: Address) -> object:
    if address.port is None:
        return address.sockaddr
    if not address.sockaddr[0]:
        return address.port
    return addresses.key_of(sockets.resolve(address))
