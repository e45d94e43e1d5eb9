"""Descriptors: what the process has open, and what for."""

from __future__ import annotations

import _socket
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

__all__ = ["Descriptors", "count_resident_bytes", "leads"]


@dataclass(frozen=True)
class Descriptors:
    """How many the process has open.

    Attributes:
        listening: Sockets that listen, by port.
        connected: Other sockets of such a port.
        spares: Of ``os.devnull``: see `glb.net.spare_fd`.
        others: All that is no socket, or one of another kind.
    """

    listening: Counter[int]
    connected: Counter[int]
    spares: int
    others: int

    @classmethod
    def look(cls, ports: frozenset[int]) -> Descriptors:
        """Count them, of *ports*. Other threads may open and close some meanwhile."""
        listening: Counter[int] = Counter()
        connected: Counter[int] = Counter()
        spares = others = 0
        for number, where in leads().items():
            spares += where == os.devnull
            port, is_listening = _port_of(number) if where.startswith("socket:") else (0, False)
            if port not in ports:
                others += where != os.devnull
            elif is_listening:
                listening[port] += 1
            else:
                connected[port] += 1
        return cls(listening, connected, spares, others)


def leads() -> dict[int, str]:
    """Return what each descriptor leads to, but for those that are closed meanwhile."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the one that listdir() used, among others
            continue
    return found


def _port_of(number: int) -> tuple[int, bool]:
    # The port on this side, and whether it listens; (0, False) of what has none.
    try:
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM, 0, number)
    except OSError:
        return 0, False
    try:
        address: Any = sock.getsockname()
        is_listening = bool(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))
    except OSError:
        return 0, False
    else:
        return (address[1] if isinstance(address, tuple) else 0), is_listening
    finally:
        sock.detach()


def count_resident_bytes() -> int:
    """Return how much memory the process has in use."""
    with open("/proc/self/statm") as file:  # each second, of a process under load
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
